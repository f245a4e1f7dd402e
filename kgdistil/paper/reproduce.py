"""Train the paper's tables: `python -m kgdistil.paper.reproduce --table 3`, or tuned/wn18rr/RotatE/DS/8 for one cell.

What is recorded is skipped, what was begun goes on. `recipe` says how a cell is trained, `tasks` what can start,
`costs` how long it will take, `cluster` how several are trained at a time (`--jobs`), or on other machines (`--ray`).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from dataclasses import replace
from pathlib import Path

import filelock
import torch
from tqdm import tqdm

from kgdistil import records
from kgdistil.config import check_device
from kgdistil.errors import BusyError, KgdistilError, run_command, short
from kgdistil.paper.cells import (
    PAPER_MODELS,
    PROTOCOLS,
    Cell,
    cells_of,
    parse,
)
from kgdistil.paper.cluster import cluster
from kgdistil.paper.costs import Costs, print_plan
from kgdistil.paper.recipe import (
    config,
    with_needs,
)
from kgdistil.paper.tasks import Task, graph_of, keep, outstanding, recorded, train, train_again
from kgdistil.training.loop import Run

log = logging.getLogger("kgdistil")
MOST_JOBS = 1000
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"


def work(cells: list[Cell], device: str, jobs: int = 1, address: str | None = None, show: bool | None = None) -> None:
    """Train what is missing of the cells and of what they need: one after another in this process, or on a `cluster`.

    Args:
        jobs, address: as `cluster` takes them; with neither, Ray is not needed.
        show: False for no bar.
    Raises:
        BusyError: another process trains in this folder.
        KgdistilError: runs that failed, told when all others have ended.
    """
    costs, everything = Costs(device), with_needs(cells)
    failed: dict[str, str] = {}  # by run

    def startable() -> list[Task]:
        return [t for t in outstanding(cells, device) if isinstance(t, Task) and t.config.run_id not in failed]

    if left := startable():
        total = sum(costs.cell(c) for c in everything)
        options = {
            "total": round(total),
            "unit": "s",
            "desc": "reproduce",
            "disable": None if show is None else not show,
        }
        many = cluster(device, jobs, address) if jobs > 1 or address else contextlib.nullcontext(alone)
        with alone_in(records.runs_folder()), many as first, tqdm(**options, bar_format=BAR) as bar:
            while left:
                bar.set_postfix_str(str(left[0]))
                task, done = first(left)
                if isinstance(done, Run):
                    keep(task, done, graph_of(task.cell.dataset))
                    log.info("done: %s%s", task, "" if task.trial else f", test MRR {done.test():.3f}")
                else:
                    failed[task.config.run_id] = f"{task}: {done}"
                    log.error("failed: %s: %s", task, done)
                left = startable()
                bar.n = round(total - sum(costs.cell(c) for c in everything))
                bar.refresh()
    if failed:
        raise KgdistilError("; ".join(failed.values()))
    if waiting := list(outstanding(cells, device)):
        raise KgdistilError(f"{waiting[0]} waits for what nothing trains: its recipe is wrong")


def alone(ready: list[Task]) -> tuple[Task, Run | KgdistilError]:
    """The first task, trained here, or its error: a `cluster` of this process."""
    try:
        return ready[0], train(ready[0], graph_of(ready[0].cell.dataset))
    except KgdistilError as error:
        return ready[0], error


def alone_in(folder: Path) -> filelock.BaseFileLock:
    """The folder's lock, held: one command writes its records.

    Raises:
        BusyError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return filelock.FileLock(folder / ".reproduce.lock", timeout=0).acquire().lock
    except filelock.Timeout:
        raise BusyError(f"another process trains cells in {folder}: wait for it, or give it more --jobs") from None


def log_to_terminal() -> None:
    """What is done, with the time, for the commands; a notebook stays quiet."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def count(text: str) -> int:
    """A number of jobs. ArgumentTypeError: none, or no number."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_JOBS:
        raise argparse.ArgumentTypeError(f"{short(text)} is no number of runs at a time: give 1 to {MOST_JOBS:,}")
    return int(text)


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """The options that say where runs are trained; the extra `cluster` brings Ray."""
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time; the threads are divided among them")
    parser.add_argument("--ray", metavar="ADDRESS", help="train on the Ray cluster there, which auto finds by itself")


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.paper.reproduce --table 3`: train what is missing.

    Returns:
        0 when everything asked for is recorded.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.reproduce", description=__doc__.split("\n")[0])
    parser.add_argument("cells", nargs="*", type=parse, help="single cells, as tuned/wn18rr/RotatE/DS/8")
    parser.add_argument("--table", type=int, nargs="+", default=[], help="tables of the paper: 3, 4, 6")
    parser.add_argument("--figure", type=int, nargs="+", default=[], help="figures of the paper: 1, 2, 3")
    for_tables = parser.add_argument_group("of --table and --figure; a cell says them itself, the seed as @1")
    for_tables.add_argument("--protocol", choices=PROTOCOLS, help="default: tuned")
    for_tables.add_argument("--models", nargs="+", choices=PAPER_MODELS, help="default: all")
    for_tables.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--device", default="cpu")
    add_jobs(parser)
    parser.add_argument("--plan", action="store_true", help="say what is left and what it costs, and stop")
    parser.add_argument("--again", action="store_true", help="train what is recorded, too, and replace its records")
    options = parser.parse_args(arguments)
    cells = list(options.cells)
    names = [*(f"table{n}" for n in options.table), *(f"figure{n}" for n in options.figure)]
    for name in () if names else ("protocol", "models", "seed"):
        if cells and getattr(options, name) is not None:
            parser.error(f"--{name} is of --table and --figure: a cell says it itself, as tuned/wn18rr/RotatE/DS/8@1")
    protocol, models, seed = options.protocol or "tuned", options.models or PAPER_MODELS, options.seed or 0
    for name in names:
        cells += [replace(c, seed=seed) for c in cells_of(name, protocol) if c.model in models]
    if not cells:
        parser.error("nothing asked for: name cells, --table or --figure")
    check_device(options.device)
    threads = 1 if options.ray else max(1, torch.get_num_threads() // options.jobs)
    print_plan(cells, options.device, threads, options.jobs, options.plan)
    log_to_terminal()
    if options.plan:
        return 0
    there = [c for c in dict.fromkeys(cells) if (own := config(c, options.device)) and recorded(own)]
    work(cells, options.device, options.jobs, options.ray)
    for cell in there if options.again else ():
        train_again(cell, graph_of(cell.dataset), options.device)
    return 0


if __name__ == "__main__":
    run_command(main)
