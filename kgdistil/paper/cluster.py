"""Tasks on a Ray cluster, one of this machine's own or one that runs: `with cluster(...) as first`.

A task gets its graph and, on another machine, the weights that it starts from; it gives back its record, ranks and
weights, which the driver alone writes. On the driver's own machine weights and checkpoints lie in the driver's folder,
elsewhere in the user's cache until the task ends. A task whose worker or machine dies is begun again, and goes on from
its checkpoint where that is still there. Whoever reaches a Ray cluster can run code on it: see its page on tokens.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from kgdistil import records
from kgdistil.answer.files import user_folder, write_bytes
from kgdistil.checkpoint import WEIGHTS
from kgdistil.errors import KgdistilError
from kgdistil.errors import needs as extra
from kgdistil.evaluation import Ranks
from kgdistil.graph import Graph
from kgdistil.paper.tasks import Task, graph_of, train
from kgdistil.training.loop import CHECKPOINT, Run

RETRIES = 3  # of a task whose worker died: one that ends every worker, for want of memory, is given up
FOUND = "found"  # the results of a run in a worker, below its folder: a retry finds what the worker could not hand over
Files = dict[str, bytes]  # by path below the folder of models
First = Callable[[list[Task]], tuple[Task, Run | KgdistilError]]


def files_of(run_id: str) -> Files:
    """The weights of a run, and all that `load_model` reads with them."""
    paths = [p for p in records.model_folder(run_id).rglob("*") if p.is_file() and p.name != CHECKPOINT]
    return {str(p.relative_to(records.model_folder("."))): p.read_bytes() for p in paths if not p.name.startswith(".")}


def write_files(files: Files) -> None:
    for name in sorted(files, key=lambda name: name.endswith(WEIGHTS)):  # which say that the others are there
        write_bytes(records.model_folder(name), files[name])


def train_there(
    task: Task, graph: Graph, lent: list[Any], runs: Path, node: str, threads: int, command: list[str]
) -> tuple[dict[str, Any], Ranks | None, Files]:
    """In a worker: one task, its record, test ranks (None of a trial), and weights unless `runs` is at hand."""
    import ray

    sys.argv = command  # which the record names
    here = ray.get_runtime_context().get_node_id() == node
    folder = (runs if here else user_folder("cache") / "cluster") / "models" / task.config.run_id
    os.environ |= {"KGDISTIL_RUNS": str(folder.parent.parent), "KGDISTIL_RESULTS": str(folder / FOUND)}
    torch.set_num_threads(threads)
    if not here:
        for files in ray.get(lent):
            write_files(files)
    done = train(task, graph)
    ranks = None if task.trial else done.ranks or records.read_ranks(done.id)
    shutil.rmtree(folder / FOUND)
    files = {} if here else files_of(done.id)
    if not here:
        shutil.rmtree(folder, ignore_errors=True)
    return done.record, ranks, files


def check_listens(address: str | None, own: str) -> None:
    """KgdistilError where nothing listens at host:port, which Ray asks for minutes; it takes loopback for `own`."""
    found = re.fullmatch(r"(?:ray://)?(.+):([0-9]{1,5})", address or "")
    hosts = [found[1], *[own] * (found[1] in ("127.0.0.1", "localhost"))] if found else []
    for host in hosts:
        try:
            socket.create_connection((host, int(found[2])), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            reason = error
    if hosts:
        raise KgdistilError(f"no Ray cluster at {address!r} ({reason}); start one: ray start --head")


@contextlib.contextmanager
def cluster(device: str, jobs: int, address: str | None = None) -> Iterator[First]:
    """What is given tasks that can start, has them trained, and gives back the first that ends, or its error.

    Args:
        jobs: tasks at a time on this machine, among which its threads are divided, where there is no `address`.
        address: of a cluster that runs, where a task has one core and for a GPU's `device` one GPU; "auto" finds it.
    Raises:
        KgdistilError: Ray is not installed, or no cluster is there.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # read by `import ray`
    if not address:  # nobody else on this machine may give its workers code; without this, Ray leaves a file at home
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    with extra("ray", "more than one job", "cluster"):
        import ray

    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            options: dict[str, Any] = {"address": address}
            if not address:
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
                options = {"address": "local", "num_cpus": jobs, "include_dashboard": False, "_temp_dir": scratch}
            stack.callback(ray.shutdown)
            check_listens(address, ray.util.get_node_ip_address())
            try:
                ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
                reason = " ".join(str(error).split())
                raise KgdistilError(f"no Ray cluster at {address!r} ({reason}); start one: ray start --head") from None
        gpus = 1 / (1 if address else jobs) if torch.device(device).type == "cuda" else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(train_there)
        threads = 1 if address else max(1, torch.get_num_threads() // jobs)
        whence = (
            records.runs_folder().resolve(),
            ray.get_runtime_context().get_node_id(),
            threads,
            shlex.split(records.command()),
        )
        graph = functools.cache(lambda name: ray.put(graph_of(name)))
        weights = functools.cache(lambda run_id: ray.put(files_of(run_id)))
        begun: dict[str, Any] = {}  # what each run will give, by its id

        def first(ready: list[Task]) -> tuple[Task, Run | KgdistilError]:
            for task in ready:
                if task.config.run_id not in begun:
                    lent = [weights(run_id) for run_id in sorted(task.inputs)] if address else []
                    begun[task.config.run_id] = remote.remote(task, graph(task.cell.dataset), lent, *whence)
            ended = ray.wait(list(begun.values()))[0][0]
            task = next(task for task in ready if begun[task.config.run_id] == ended)
            del begun[task.config.run_id]
            try:
                record, ranks, files = ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                return task, cause if isinstance(cause, KgdistilError) else KgdistilError(str(error))
            except ray.exceptions.RayError as error:
                return task, KgdistilError(f"its worker died {RETRIES + 1} times ({str(error).splitlines()[0]})")
            write_files(files)
            if ranks is not None:
                records.write_ranks(task.config.run_id, ranks)
                records.write_record(record)
            return task, Run(task.config, record, records.model_folder(task.config.run_id), ranks)

        yield first
