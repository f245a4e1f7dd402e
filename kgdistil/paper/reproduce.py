"""The paper's runs, each a cell with an address: `python -m kgdistil.paper.reproduce tuned/wn18rr/RotatE/DS/8`.

`reproduction.toml` says how a cell is trained. What is recorded is skipped, what was begun goes on, and several
processes, on one folder or started by `--jobs`, never train the same run twice.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import torch
from tqdm import tqdm

from kgdistil import records
from kgdistil.checkpoint import WEIGHTS, load_model, read_model, save_weights
from kgdistil.compress.packing import size
from kgdistil.compress.size import PRECISION_OF
from kgdistil.config import RunConfig
from kgdistil.errors import BusyError, ConfigError, KgdistilError, run_command
from kgdistil.files import write_text
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.models import KGEModel, build_model
from kgdistil.paper.cells import (
    CODED,
    FRONTIER,
    GRAPHS,
    LOW_RANK,
    PAPER_MODELS,
    PROTOCOLS,
    Cell,
    cells_of,
    parse,
)
from kgdistil.paper.ensemble import join
from kgdistil.paper.recipe import (
    base,
    config,
    finish,
    members,
    needs,
    read_search,
    recipe,
    search_path,
    trials,
    with_needs,
)
from kgdistil.training.engine import make_engine
from kgdistil.training.loop import Run, run

log = logging.getLogger("kgdistil")
MEGABYTE = 10**6
PART = 16  # one in so many triples says what an epoch costs


# ---- what is to be done ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Task:
    """One training that can start now."""

    cell: Cell
    config: RunConfig
    trial: bool

    def __str__(self) -> str:
        return f"{self.cell} trial {self.config.run_id[-8:]}" if self.trial else str(self.cell)


def recorded(run_config: RunConfig) -> bool:
    return records.record_path(run_config.run_id).is_file()


def has_weights(run_config: RunConfig) -> bool:
    return (records.model_folder(run_config.run_id) / WEIGHTS).is_file()


def outstanding(cells: Iterable[Cell], device: str = "cpu") -> Iterator[Task | Cell]:
    """Tasks that can start now, and cells that still wait for others, in the cells' order.

    A recorded run whose weights are gone is trained again only where another cell waits for them.
    """
    cells = with_needs(cells)
    waiting: set[Cell] = set()  # cells whose weights a missing run needs
    for cell in reversed(cells):
        own = config(cell, device)
        if own is None or not recorded(own) or (cell in waiting and not has_weights(own)):
            waiting |= set(needs(cell))
    for cell in cells:
        own = config(cell, device)
        if own and recorded(own) and (cell not in waiting or has_weights(own)):
            continue
        ready = all((c := config(need, device)) and recorded(c) and has_weights(c) for need in needs(cell))
        if own:
            yield Task(cell, own, False) if ready else cell
            continue
        # a trial of stage 1 needs the trained teacher as well
        if not ready or (searched := trials(cell, device)) is None:
            yield cell
            continue
        found = read_search(cell)
        yield from (Task(cell, t, True) for t in searched if t.run_id not in found)


def perform(task: Task, graph: Graph, progress: bool | None = None) -> None:
    """Train one task and leave its record: a cell's under `results/runs/`, a trial's as a line of its search.

    Raises:
        BusyError: another process is at it.
    """
    if several := members(task.cell):
        join(graph, *(config(member, task.config.device).run_id for member in several))
    if not task.trial:
        done = run(task.config, graph, progress=progress, save_ranks=True)
        if task.cell.dataset in GRAPHS:
            publish(task.cell, done, graph)
        return
    name, path = task.config.run_id, search_path(task.cell)
    for folder in (records.runs_folder(), path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        held = filelock.FileLock(records.runs_folder() / f".{name}.lock", timeout=0).acquire()
    except filelock.Timeout:
        raise BusyError(f"another process is at trial {name}") from None
    with held:
        if name in read_search(task.cell):  # since this task was listed
            return
        done = run(task.config, graph, progress=progress)
        kept = {key: value for key, value in done.record.items() if key not in ("curve", "test")}
        with filelock.FileLock(records.runs_folder() / f".{path.name}.lock"):
            found = {**read_search(task.cell), name: kept}
            lines = "".join(json.dumps(found[key], ensure_ascii=False) + "\n" for key in sorted(found))
            write_text(path, lines)
        records.record_path(name).unlink(missing_ok=True)
        shutil.rmtree(done.folder, ignore_errors=True)


def folder_of(cell: Cell) -> Path | None:
    """Where the weights of the cell's run lie: among this machine's runs, or published; None where they are gone."""
    own = config(cell)
    if own is None:
        return None
    if has_weights(own):
        return records.model_folder(own.run_id)
    if cell.dataset in GRAPHS and (published(cell) / WEIGHTS).is_file():
        about = read_model(published(cell) / WEIGHTS)[1]
        if about.get("run_id") == own.run_id:
            return published(cell)
    return None


def weights_of(cell: Cell, graph: Graph) -> KGEModel:
    """The cell's model: from `folder_of`, or else trained again, with all that it needs.

    Raises:
        ConfigError: its recipe has not been searched.
    """
    if folder := folder_of(cell):
        return load_model(folder, graph)
    return train_again(cell, graph).load(graph)


def train_again(cell: Cell, graph: Graph, device: str = "cpu") -> Run:
    """Train a cell's run though it is recorded; its record and ranks are replaced at the end. What it needs is trained
    only where its weights are gone.

    Raises:
        ConfigError: its recipe has not been searched.
    """
    own = config(cell, device)
    if own is None:
        raise ConfigError(f"{cell} has no recorded search: run `python -m kgdistil.paper.reproduce {cell}` first")
    for need in needs(cell):
        if not has_weights(config(need, device)):
            train_again(need, graph, device)
    if several := members(cell):
        join(graph, *(config(member, device).run_id for member in several))
    before = records.read_record(records.record_path(own.run_id))
    done = run(own, graph, save_ranks=True, again=True)
    if cell.dataset in GRAPHS:
        publish(cell, done, graph)
    if before:
        log.info("again: %s, test MRR %.4f, recorded was %.4f", cell, done.test(), before["test"]["both"]["mrr"])
    return done


def published(cell: Cell) -> Path:
    """The folder of a student's published weights, whether they are there or not."""
    name = f"d{cell.size}"
    if cell.protocol == FRONTIER:
        name = f"{cell.size}B" + ("-low-rank" if cell.method in LOW_RANK else "")
    return records.results_folder() / "students" / f"{cell.dataset}-{cell.model.lower()}-{name}"


def publish(cell: Cell, done: Run, graph: Graph) -> None:
    """Keep the weights of students worth having under `results/students/`, where `load_model` reads them.

    Those are, of seed 0, the tuned ones of 8 dimensions from a teacher of 64, and of few bits the distilled ones that
    fit into a megabyte.
    """
    if cell.seed:
        return
    precision = "float32"
    if cell.protocol == FRONTIER:
        precision = PRECISION_OF.get(done.config.group, "") if done.config.group else ""
    model = done.load(graph)
    small = cell.method in ("distilled", "low-rank") and precision and size(model, precision) < MEGABYTE
    if small or (cell.protocol, cell.method, cell.size, cell.teacher_size) == ("tuned", "DS", 8, 64):
        save_weights(published(cell), model, graph, done.id, precision=precision)


# ---- what it costs --------------------------------------------------------------------------------------------------
class Costs:
    """Seconds of an epoch by what decides them, from records of this device or else from timing one, or part of it."""

    def __init__(self, device: str):
        self.device, self.known = device, {}
        here = records.describe_device(device)
        for record in records.read_records():
            if record["device"] == here and record["epochs"]:
                self.known[self.key(record["config"])] = record["seconds"] / record["epochs"]

    @staticmethod
    def key(values: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(
            values.get(k) or 0 for k in ("dataset", "model", "dim", "role", "negatives", "loss", "group", "rank")
        )

    def epoch(self, run_config: RunConfig) -> float:
        key = self.key(run_config.model_dump())
        if key not in self.known:
            graph, sizes = graph_of(run_config.dataset), (run_config.model_options,)
            args = (graph.num_entities, graph.num_relations)
            student = build_model(run_config.model, *args, run_config.dim, **sizes[0])
            large = run_config.dim if run_config.group else 64
            teacher = build_model(run_config.model, *args, large, **sizes[0]) if run_config.teacher else None
            part = PART if run_config.loss == "softmax" else 1  # whole lists take minutes
            graph = replace(graph, train=graph.train[::part])
            engine = make_engine(student.to(self.device), teacher and teacher.to(self.device), run_config, graph)
            rates = torch.full((engine.steps,), run_config.lr, dtype=torch.float64)
            for epoch in range(2):  # the first one warms up
                began = time.perf_counter()
                engine.epoch(epoch, rates, rates)
            self.known[key] = part * (time.perf_counter() - began)
        return self.known[key]

    def cell(self, cell: Cell, left: bool = True) -> float:
        """Seconds the cell takes, its search included; `left`: without what is recorded. Chains are judged by shape."""
        spec, own = recipe(cell), config(cell, self.device)
        if left and own and recorded(own):
            return 0.0
        axes = [value for value in spec.values() if isinstance(value, list)]
        above = recipe(replace(cell, method="-S2")) if cell.method in ("DS", "-S1") else {}
        shape = {k: v[0] if isinstance(v, list) else v for k, v in (above | spec).items()}
        link = {"teacher": "64"} if cell.distilled else {}
        link |= {"student": "64"} if cell.distilled and cell.method in (*CODED, *LOW_RANK) else {}
        like = finish({**shape, **base(cell, device=self.device), **link, "lr": 0.01})
        number = functools.reduce(lambda n, axis: n * len(axis), axes, 1) if axes else 0
        if left and number:
            found, mine = read_search(cell), trials(cell, self.device) or []
            number -= sum(t.run_id in found for t in mine)
        return self.epoch(like) * (like.epochs + number * spec["search_epochs"])


@functools.cache
def graph_of(name: str) -> Graph:
    return load(name)


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
    workers = [context.Process(target=work, args=(cells, device, threads, number == 0)) for number in range(jobs)]
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
    return max(abs(worker.exitcode) for worker in workers)


def print_plan(cells: list[Cell], device: str, threads: int, jobs: int, whole: bool = False) -> None:
    """What is left and what it costs on this machine; `whole`: and what all would cost, recorded or not."""
    torch.set_num_threads(threads)
    costs, everything = Costs(device), with_needs(cells)
    seconds = {cell: costs.cell(cell) for cell in everything}
    missing = [cell for cell in everything if seconds[cell]]
    print(f"{len(everything) - len(missing)} of {len(everything)} cells are recorded.")
    if whole:
        cost = sum(costs.cell(cell, left=False) for cell in everything)
        print(f"From nothing they would take about {cost / 60 / jobs:.0f} min.")
    for cell in missing:
        print(f"  {cell!s:40s} {seconds[cell] / 60:6.1f} min")
    if missing:
        print(
            f"Together about {sum(seconds.values()) / 60 / jobs:.0f} min with {jobs} process(es) of {threads} "
            "thread(s); validations come on top.",
            flush=True,
        )


if __name__ == "__main__":
    run_command(main)
