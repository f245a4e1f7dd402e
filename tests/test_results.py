"""Run records: what they must say, how they are read back, and where the last run's things lie."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kgdistil
from kgdistil import records
from kgdistil.config import make_config
from kgdistil.errors import CheckpointError
from kgdistil.evaluation import Ranks
from kgdistil.graph import Graph
from kgdistil.paper.last import main
from kgdistil.training.loop import Run, run

HOME = Path(kgdistil.__file__).parent.parent


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing is written into the checkout."""
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    return tmp_path


def tiny_run(graph: Graph, **values: Any) -> Run:
    settings = {"dataset": "tiny", "dim": 4, "epochs": 4, "check_every": 2, "batch_size": 64, "negatives": 4, **values}
    return run(make_config(**settings), graph, progress=False)


# ---- what a record says ---------------------------------------------------------------------------------------------
def test_a_record_holds_all_that_is_needed_to_judge_and_repeat_a_run(
    tiny_graph: Graph, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", "--dim", "4", "a b"])
    began = time.perf_counter()
    finished = tiny_run(tiny_graph, seed=3)
    took = time.perf_counter() - began

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (folders / "results" / "runs" / f"{finished.id}.json").read_text(encoding="utf-8")
    record = json.loads(text, parse_constant=refuse)
    assert len(record.pop("sum")) == 8
    assert record == finished.record, "what is returned is what is written"
    assert record["id"] == finished.id
    assert make_config(**record["config"]) == finished.config and record["config"]["seed"] == 3
    assert record["graph"] == {
        "entities": 30,
        "relations": 4,
        "train": 160,
        "valid": 20,
        "test": 20,
        "sha256": tiny_graph.sha256,
    }
    assert record["parameters"] == 30 * 8 + 4 * 4
    assert record["epochs"] == 4 and record["best_epoch"] in (2, 4)
    assert 0 <= record["seconds"] <= took + 0.005, "rounded to hundredths"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["finished"])
    assert record["command"] == "train.py --dim 4 'a b'"
    assert "thread(s)" in record["device"] and record["engine"] in ("NativeEngine", "ReferenceEngine")
    assert {"commit", "dirty"} <= record.keys()
    assert set(record["versions"]) == {"python", "kgdistil", *records.LIBRARIES}
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(record["versions"][name] != "not installed" for name in records.LIBRARIES)
    for split in ("valid", "test"):
        assert set(record[split]) == {"head", "tail", "both", "mean_of_two_ranks"}
        for side in record[split].values():
            assert set(side) == {"mr", "mrr", "hits@1", "hits@3", "hits@10"}
    assert [point["epoch"] for point in record["curve"]] == [2, 4]
    assert {"lr", "student_hard", "valid_mrr"} <= record["curve"][0].keys()


# ---- git ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def checkout(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own, with one commit."""
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folders))
    home = folders / "checkout"
    (home / "results").mkdir(parents=True)
    (home / "code.py").write_text("1\n")
    (home / "results" / "old.json").write_text("{}\n")
    git(home, "init", "-q")
    git(home, "add", ".")
    git(home, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    monkeypatch.setattr(records, "checkout", lambda: home)
    return home


def git(home: Path, *arguments: str) -> str:
    ran = subprocess.run(["git", "-C", str(home), *arguments], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_commit_and_a_clean_checkout(checkout: Path) -> None:
    found = records.provenance()
    assert found["commit"] == git(checkout, "rev-parse", "HEAD") and len(found["commit"]) == 40
    assert found["dirty"] is False


def test_results_and_untracked_files_do_not_make_it_dirty(checkout: Path) -> None:
    (checkout / "results" / "old.json").write_text("[]\n")
    (checkout / "results" / "new.json").write_text("[]\n")
    (checkout / "notes.txt").write_text("mine\n")
    assert records.provenance()["dirty"] is False


@pytest.mark.parametrize("change", ["edited", "staged", "deleted"])
def test_a_tracked_change_makes_it_dirty(checkout: Path, change: str) -> None:
    (checkout / "code.py").write_text("2\n")
    if change == "staged":
        git(checkout, "add", "code.py")
    if change == "deleted":
        (checkout / "code.py").unlink()
    assert records.provenance()["dirty"] is True


def test_without_git_nothing_is_claimed(checkout: Path, monkeypatch: pytest.MonkeyPatch, tiny_graph: Graph) -> None:
    (checkout.parent / "plain").mkdir()
    monkeypatch.setattr(records, "checkout", lambda: checkout.parent / "plain")
    assert (records.provenance()["commit"], records.provenance()["dirty"]) == (None, None)
    monkeypatch.setenv("PATH", "")
    assert records.git("status") is None
    assert tiny_run(tiny_graph).record["commit"] is None


# ---- read back ------------------------------------------------------------------------------------------------------
def test_all_records_by_id(tiny_graph: Graph, folders: Path) -> None:
    assert records.read_records() == []
    runs = [tiny_run(tiny_graph, seed=seed) for seed in (2, 0, 1)]
    (folders / "results" / "runs" / ".half.json.tmp1").write_text("{")  # left by a killed process
    assert records.read_records() == sorted((r.record for r in runs), key=lambda record: record["id"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"id": "x"}',
        b'{"id": "x", "finished": "", "config": {"model": "a"}, "graph": {"sha256": ""}, "test": {"both": 1}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_no_record(folders: Path, content: bytes) -> None:
    path = folders / "results" / "runs" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    for read in (records.read_records, lambda: records.read_record(path)):
        with pytest.raises(
            CheckpointError, match=r"x\.json is no run record \(.*\); delete it to run again$"
        ) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_record_that_is_not_there(folders: Path) -> None:
    assert records.read_record(records.record_path("nothing")) is None


def test_ranks_come_back_and_damaged_ones_are_refused(folders: Path) -> None:
    ranks = Ranks(np.arange(6, dtype=np.int32).reshape(3, 2), np.ones((3, 2), np.int32))
    with pytest.raises(CheckpointError, match="holds no ranks"):
        records.read_ranks("x")
    records.write_ranks("x", ranks)
    found = records.read_ranks("x")
    assert (found.greater == ranks.greater).all() and (found.equal == ranks.equal).all()
    whole = records.ranks_path("x").read_bytes()
    for content in (b"", b"no archive", *(whole[:n] for n in range(1, len(whole), 7))):
        records.ranks_path("x").write_bytes(content)
        with pytest.raises(CheckpointError, match="holds no ranks"):
            records.read_ranks("x")


# ---- python -m kgdistil.paper.last --------------------------------------------------------------------------------
def last(capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    return main([]), capsys.readouterr().out.splitlines()


def put(path: Path, age: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    os.utime(path, (1e9 - age, 1e9 - age))


def test_last_names_the_newest_of_each(
    tiny_graph: Graph, folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(records, "root", lambda: folders)
    for seed, moment in enumerate(("2031-01-01T00:00:00Z", "2031-01-02T00:00:00Z", "2030-12-31T23:59:59Z")):
        records.write_record({**tiny_run(tiny_graph, seed=seed).record, "finished": moment})
    newest = make_config(**tiny_run(tiny_graph, seed=1).record["config"]).run_id
    for name, age in (("a.ipynb", 5), ("b.ipynb", 1), ("c.ipynb", 3), ("old.png", 9), ("deep/new.png", 2)):
        put(folders / "runs" / name, age)
    put(folders / "runs" / ".ipynb_checkpoints" / "b-checkpoint.ipynb", 0)
    put(folders / "results" / "elsewhere.png", 0)
    assert last(capsys) == (
        0,
        [
            "executed notebook: runs/b.ipynb",
            "picture: runs/deep/new.png",
            f"run record: results/runs/{newest}.json",
        ],
    )


def test_last_names_the_record_of_the_newest_notebook(
    tiny_graph: Graph, folders: Path, capsys: pytest.CaptureFixture
) -> None:
    """Where all is in the cache, the newest record is that of some other run."""
    first, second = (tiny_run(tiny_graph, seed=seed).id for seed in (0, 1))
    notebook = folders / "runs" / "a.ipynb"
    put(notebook, 1)
    notebook.write_text(f'"record:  runs/{second}.json\\n", "record:  runs/{first}.json\\n", "picture: gone.json"')
    assert last(capsys)[1][2] == f"run record: {records.record_path(first)}"


def test_last_says_what_is_missing(tiny_graph: Graph, folders: Path, capsys: pytest.CaptureFixture) -> None:
    none = "none yet; `make demo` makes one"
    assert last(capsys) == (1, [f"executed notebook: {none}", f"picture: {none}", f"run record: {none}"])
    finished = tiny_run(tiny_graph)
    put(folders / "runs" / "a.png", 0)
    code, lines = last(capsys)
    assert code == 1 and lines[0] == f"executed notebook: {none}"
    assert lines[1:] == [
        f"picture: {folders / 'runs' / 'a.png'}",  # outside the checkout: the whole path
        f"run record: {records.record_path(finished.id)}",
    ]


def test_last_is_all_there_is(capsys: pytest.CaptureFixture) -> None:
    for arguments in (["first"], ["last", "again"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "usage: python -m kgdistil.paper.last" in capsys.readouterr().err


def test_last_from_the_command_line_says_in_one_line_what_is_damaged(folders: Path) -> None:
    path = records.record_path("x")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    command = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", "kgdistil.paper.last"]
    ran = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(HOME)}, check=False
    )
    assert ran.returncode == 1 and ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1 and f"{path} is no run record" in ran.stderr


def test_the_command_of_a_notebook_is_what_started_its_kernel(monkeypatch):
    """A kernel's own command line names a temporary file; its parent's says how to run it again."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/kgdistil", "stats"])
    assert records.command() == "kgdistil stats"
    monkeypatch.setattr(sys, "argv", ["/somewhere/ipykernel_launcher.py", "-f", "/tmp/kernel.json"])
    child = f"import sys; sys.argv = {sys.argv!r}; from kgdistil import records; print(records.command())"
    shell = f'"{sys.executable}" -c "$CHILD"; true'  # without `true` the shell would become the child
    done = subprocess.run(
        ["sh", "-c", shell, "papermill", "-p dim 8"],
        capture_output=True,
        text=True,
        env={**os.environ, "CHILD": child},
        check=False,
    )
    assert done.stdout.startswith("sh -c ") and "papermill" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "how, told",
    [
        (["-m", "shop.till"], "python -m shop.till 'two words'"),
        (["-m", "shop"], "python -m shop 'two words'"),
        (["shop/till.py"], "till.py 'two words'"),
    ],
)
def test_a_record_says_the_command_as_it_can_be_given_again(how: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    for name in ("till", "__main__"):
        (tmp_path / "shop" / f"{name}.py").write_text("from kgdistil import records; print(records.command())")
    run = subprocess.run([sys.executable, *how, "two words"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == told
