"""Train the paper's tables: `python -m kgdistil.paper.reproduce --table 3`, or tuned/wn18rr/RotatE/DS/8 for one cell.

What is recorded is skipped, what was begun goes on, and several processes, on one folder or started by `--jobs`, never
train the same run twice. `recipe` says how a cell is trained, `tasks` what can start, `costs` how long it will take.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from kgdistil import records
from kgdistil.errors import BusyError, KgdistilError, run_command
from kgdistil.paper.cells import (
    PAPER_MODELS,
    PROTOCOLS,
    Cell,
    cells_of,
    parse,
)
from kgdistil.paper.costs import Costs, print_plan
from kgdistil.paper.recipe import (
    config,
    with_needs,
)
from kgdistil.paper.tasks import Task, graph_of, outstanding, perform, recorded, train_again

log = logging.getLogger("kgdistil")


# ---- doing it -------------------------------------------------------------------------------------------------------
def work(cells: list[Cell], device: str, threads: int, show: bool) -> None:
    """Take tasks until none is left; one that another process has is left to it, and looked at again."""
    if multiprocessing.parent_process() is not None:
        log_to_terminal()
    torch.set_num_threads(threads)
    costs = Costs(device)
    everything = with_needs(cells)
    total = sum(costs.cell(c) for c in everything)
    with tqdm(
        total=round(total),
        unit="s",
        desc="reproduce",
        disable=None if show else True,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
    ) as bar:
        while True:
            left = list(outstanding(cells, device))
            if not left:
                break
            if not any(isinstance(task, Task) for task in left):
                raise KgdistilError(f"{left[0]} waits for what nothing trains: its recipe is wrong")
            for task in left:
                if isinstance(task, Cell):
                    continue
                bar.set_postfix_str(str(task))
                try:
                    perform(task, graph_of(task.cell.dataset), progress=False)
                except BusyError:
                    continue
                log.info("done: %s%s", task, shown_score(task))
                break
            else:
                time.sleep(2)  # all that could start is being trained elsewhere
            bar.n = round(total - sum(costs.cell(c) for c in everything))
            bar.refresh()


def log_to_terminal() -> None:
    """What is done, with the time, for the commands and their workers; a notebook stays quiet."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def shown_score(task: Task) -> str:
    """A finished cell's test MRR, for the log."""
    record = None if task.trial else records.read_record(records.record_path(task.config.run_id))
    return f", test MRR {record['test']['both']['mrr']:.3f}" if record else ""


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.paper.reproduce --table 3`: train what is missing.

    Returns:
        0 when everything asked for is recorded.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.reproduce", description=__doc__.split("\n")[0])
    parser.add_argument("cells", nargs="*", type=parse, help="single cells, as tuned/wn18rr/RotatE/DS/8")
    parser.add_argument("--table", type=int, nargs="+", default=[], help="tables of the paper: 3, 4, 6")
    parser.add_argument("--figure", type=int, nargs="+", default=[], help="figures of the paper: 1, 2, 3")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="tuned")
    parser.add_argument("--models", nargs="+", choices=PAPER_MODELS, default=PAPER_MODELS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes; the threads are divided among them")
    parser.add_argument("--plan", action="store_true", help="say what is left and what it costs, and stop")
    parser.add_argument("--again", action="store_true", help="train what is recorded, too, and replace its records")
    options = parser.parse_args(arguments)
    cells = list(options.cells)
    for name in [*(f"table{n}" for n in options.table), *(f"figure{n}" for n in options.figure)]:
        cells += [replace(c, seed=options.seed) for c in cells_of(name, options.protocol) if c.model in options.models]
    if not cells:
        parser.error("nothing asked for: name cells, --table or --figure")
    threads = max(1, torch.get_num_threads() // options.jobs)
    print_plan(cells, options.device, threads, options.jobs, options.plan)
    log_to_terminal()
    if options.plan:
        return 0
    there = [c for c in dict.fromkeys(cells) if (own := config(c, options.device)) and recorded(own)]
    failed = work_together(cells, options.device, options.jobs)
    for cell in there if options.again else ():
        train_again(cell, graph_of(cell.dataset), options.device)
    return failed


def watched(task: Callable[..., None], *arguments: Any) -> None:
    """A worker's task. The worker ends with the process that started it, even with one that was killed."""

    def watch(parent: int) -> None:
        multiprocessing.connection.wait([parent])
        os._exit(1)  # what it writes is written whole or not at all, and the same command goes on

    if above := multiprocessing.parent_process():
        threading.Thread(target=watch, args=(above.sentinel,), daemon=True).start()
    task(*arguments)


def work_together(cells: list[Cell], device: str, jobs: int) -> int:
    """`work` in that many processes, among which the threads are divided.

    Returns:
        0 when everything asked for is recorded.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    if jobs == 1:
        work(cells, device, threads, True)
        return 0
    context = multiprocessing.get_context("spawn")
    tasks = [(work, cells, device, threads, number == 0) for number in range(jobs)]
    workers = [context.Process(target=watched, args=task) for task in tasks]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:  # whoever stops this process means the workers too
        for stop in (multiprocessing.Process.terminate, multiprocessing.Process.kill):  # kill: one that would not hear
            for worker in workers:
                if worker.is_alive():
                    stop(worker)
            for worker in workers:
                if worker.is_alive():
                    worker.join(timeout=5)
    return max(abs(worker.exitcode or 0) for worker in workers)


if __name__ == "__main__":
    run_command(main)
