"""Cells as tasks of Ray: what is killed is done again, recorded once, with the same bits."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import SMALL
from test_reproduce import cell

from kgdistil import records
from kgdistil.errors import KgdistilError
from kgdistil.paper import reproduce, tasks
from kgdistil.paper.cluster import check_listens
from kgdistil.paper.recipe import config, read_search, trials, with_needs
from kgdistil.paper.tasks import Task

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402 - after it is known to be there
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402 - the same

HEAD = {"num_cpus": 1, "include_dashboard": False}
CELLS = [cell("DS"), cell("no-DS")]


def patiently(start: Callable[..., Any], **values: Any) -> Any:
    """What `start` gives. Ray ends a node that is not up in half a minute, which a first start beside other tests may
    take; a second one finds its files in memory."""
    for _ in range(2):
        with contextlib.suppress(Exception):  # Ray raises no other kind
            return start(**values)
    return start(**values)


class Nodes:
    """A cluster of two nodes of one core each; the second has a cache folder of its own, as another machine has."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cluster = patiently(Cluster, initialize_head=True, head_node_args=HEAD)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        self.add()

    def add(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(self.folder))
            self.other = patiently(self.cluster.add_node, num_cpus=1)


SLOW = bool(os.environ.get("KGDISTIL_SLOW"))
slow = pytest.mark.skipif(not SLOW, reason="takes a minute; KGDISTIL_SLOW=1 runs it")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One for all tests: its start takes seconds."""
    made = Nodes(tmp_path_factory.mktemp("other machine"))
    yield made
    ray.shutdown()
    made.cluster.shutdown()


def training(above: int | None = None) -> list[psutil.Process]:
    """The workers that train right now: Ray names a process after its task."""
    found = []
    for process in psutil.Process(above).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] == ["ray::train_there"]:
                found.append(process)
    return found


def bits(folder: Path) -> dict[str, object]:
    """Weights, and what the records say of them; the losses of a curve are summed as the threads fall."""
    weights = {path.parent.name: path.read_bytes() for path in folder.glob("runs/models/*/model.safetensors")}
    told = [json.loads(path.read_text()) for path in folder.glob("results/runs/*.json")]
    return weights | {f"{x['id']}.json": [x[name] for name in ("config", "valid", "test")] for x in told}


@pytest.fixture
def expected(small: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What one process makes; folders are then others."""
    reproduce.work(CELLS, "cpu", show=False)
    for name in ("runs", "results"):
        monkeypatch.setenv(f"KGDISTIL_{name.upper()}", str(small / "other" / name))
    return bits(small)


@pytest.mark.parametrize("what", ["workers", pytest.param("a machine", marks=slow)])
def test_what_is_killed_is_done_again(
    nodes: Nodes, expected: dict, small: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, killed, ended = [], [], threading.Event()
    moments = (0, 3, 6) if what == "workers" and SLOW else (3,)  # how many runs are kept when one is killed
    keep = tasks.keep
    monkeypatch.setattr(reproduce, "keep", lambda task, *rest: kept.append(task.config.run_id) or keep(task, *rest))

    def kill() -> None:
        while not ended.wait(0.02) and len(killed) < len(moments):
            for process in training()[:1]:
                if len(kept) < moments[len(killed)]:
                    continue
                if what == "workers":
                    process.kill()
                    killed.append(process.pid)
                elif any(nodes.folder.rglob("models")):
                    nodes.cluster.remove_node(nodes.other, allow_graceful=False)
                    killed.append(nodes.other)

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    sleep = ray.remote(num_cpus=1, scheduling_strategy=here, max_retries=0)(lambda: time.sleep(600))
    busy = sleep.remote() if what == "workers" else None  # so that all is trained on the other machine
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        reproduce.work(CELLS, "cpu", 2, nodes.cluster.address, show=False)
    finally:
        ended.set()
        killer.join()
        if busy:
            ray.cancel(busy, force=True)
    assert what == "a machine" or any(nodes.folder.rglob("model.safetensors")), "weights have come to the other machine"
    assert len(killed) == len(moments) and bits(small / "other") == expected
    assert set(Counter(kept).values()) == {1} and len(kept) == 2 * 3 + 4
    for c in with_needs(CELLS):
        record = records.read_record(records.record_path(config(c).run_id))
        assert record["command"] == records.command() and record["threads"] == 1
        assert records.read_ranks(record["id"]).greater.shape == (record["graph"]["test"], 2)
        assert not trials(c) or {t.run_id for t in trials(c)} <= set(read_search(c))
    assert not list((small / "other").rglob("found")), "nothing is left behind in the folder of a run"


def test_an_error_in_a_worker_is_told_at_the_end(nodes: Nodes, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = cell("DS", teacher_size=72)
    real = tasks.outstanding

    def lost(*arguments: Any) -> Any:
        """The student's teacher as one that nobody has."""
        for task in real(*arguments):
            if isinstance(task, Task) and task.config.teacher:
                yield Task(task.cell, task.config.model_copy(update={"teacher": "nobody"}), task.trial)
            else:
                yield task

    monkeypatch.setattr(reproduce, "outstanding", lost)
    with pytest.raises(KgdistilError, match=r"trial \w{8}: no model 'nobody'.*; .*trial \w{8}: no model 'nobody'"):
        reproduce.work([asked, cell("no-DS")], "cpu", 2, show=False)
    assert list(real([cell("no-DS")])) == [] == list(real([asked.teacher])), "what needs it not has ended"


@slow
def test_a_command_that_is_ended_leaves_no_worker_and_goes_on(small: Path, expected: dict) -> None:
    """Stopped by Ctrl-C and killed, in the middle; what then goes on ends with the bits of one undisturbed."""
    command = [sys.executable, "-c", COMMAND, json.dumps(SMALL), *map(str, CELLS), "--jobs", "2"]
    for how in (signal.SIGINT, signal.SIGKILL):
        began = time.monotonic()
        out = (small / "out").open("w+")  # Ray's helpers outlive a killed command by seconds, and would hold a pipe
        with out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
            while process.poll() is None and not (workers := training(process.pid)) and time.monotonic() < began + 120:
                time.sleep(0.01)
            below = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(how)
            code, said = process.wait(timeout=60), (small / "out").read_text()
        gone, left = psutil.wait_procs(below if how == signal.SIGINT else workers, timeout=30)
        assert code and workers and gone and not left, said
        assert not any(word in said.lower() for word in ("dashboard", "usage stat", "token", "local ray")), said
        assert bits(small / "other") != expected
    reproduce.work(CELLS, "cpu", show=False)
    assert bits(small / "other") == expected


COMMAND = """
import json, signal, sys
from kgdistil.paper import cells, recipe, reproduce

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
cells.GRAPHS, table = ("nations",), json.loads(sys.argv[1])
recipe.recipes, reproduce.print_plan = lambda: table, lambda *_: None
sys.exit(reproduce.main(sys.argv[2:]))
"""


def test_without_ray_a_line_says_how_to_get_it(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(KgdistilError, match=r'^more than one job needs ray: pip install "kgdistil\[cluster\]"$'):
        reproduce.work([cell("no-DS")], "cpu", 2, show=False)


def test_where_nothing_listens_is_said_at_once() -> None:
    """Ray itself asks there for minutes."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(KgdistilError, match=rf"no Ray cluster at '{address}' \(.*\); start one: ray start --head"):
            check_listens(address, "127.0.0.1")
        held.listen()
        check_listens(address, "127.0.0.1")
    check_listens(None, "127.0.0.1"), check_listens("auto", "127.0.0.1")
