"""What of the paper's runs can start now, doing one of it, and where the weights of a cell are."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kgdistil import records
from kgdistil.answer.files import sealed, write_text
from kgdistil.answer.format import HEADER, read_header
from kgdistil.answer.student import Student
from kgdistil.checkpoint import WEIGHTS, load_model
from kgdistil.compress.packing import size
from kgdistil.compress.size import PRECISION_OF
from kgdistil.config import RunConfig
from kgdistil.errors import ConfigError
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.models import KGEModel
from kgdistil.paper.cells import (
    FRONTIER,
    GRAPHS,
    LOW_RANK,
    PATHS,
    Cell,
)
from kgdistil.paper.ensemble import join, write_path_lists
from kgdistil.paper.recipe import (
    config,
    joins,
    needs,
    path_settings,
    read_search,
    search_path,
    trials,
    with_needs,
)
from kgdistil.students.labelled import Labelled
from kgdistil.training.loop import Run, run

log = logging.getLogger("kgdistil")
MEGABYTE = 10**6


@functools.cache
def graph_of(name: str) -> Graph:
    return load(name)


@dataclass(frozen=True)
class Task:
    """One training that can start now."""

    cell: Cell
    config: RunConfig
    trial: bool
    joined: tuple[str, ...] = ()  # runs whose mean is its teacher, or that a path model's is multiplied with

    @property
    def inputs(self) -> set[str]:
        """Runs whose weights it starts from or learns from."""
        given = {self.config.student, *(self.joined or (self.config.teacher,))} - {None}
        return {run_id.split("/")[0] for run_id in given}

    def __str__(self) -> str:
        return f"{self.cell} trial {self.config.run_id[-8:]}" if self.trial else str(self.cell)


def recorded(run_config: RunConfig) -> bool:
    return records.record_path(run_config.run_id).is_file()


def has_weights(run_config: RunConfig) -> bool:
    return (records.model_folder(run_config.run_id) / WEIGHTS).is_file()


def decided(cell: Cell, device: str = "cpu") -> RunConfig:
    """The run of a cell whose search, and those of the cells that it needs, have ended.

    Raises:
        ConfigError: they have not.
    """
    own = config(cell, device)
    if own is None:
        raise ConfigError(f"{cell} has no recorded search: run `python -m kgdistil.paper.reproduce {cell}` first")
    return own


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
        joined = tuple(config(each, device).run_id for each in joins(cell)) if ready else ()
        if own:
            yield Task(cell, own, False, joined) if ready else cell
            continue
        # a trial of stage 1 needs the trained teacher as well
        if not ready or (searched := trials(cell, device)) is None:
            yield cell
            continue
        found = read_search(cell)
        yield from (Task(cell, t, True, joined) for t in searched if t.run_id not in found)


def train(task: Task, graph: Graph, again: bool = False) -> Run:
    """Train one task. Its record is where `run` writes it: the driver's `keep` puts a trial's where it belongs.

    Raises:
        BusyError: another process is at it.
    """
    if task.cell.method == PATHS:
        write_path_lists(graph, task.joined[0], path_settings(task.cell))
    elif task.joined:
        join(graph, *task.joined)
    return run(task.config, graph, progress=False, save_ranks=not task.trial, again=again)


def keep(task: Task, done: Run, graph: Graph) -> None:
    """Leave what a finished task is for: a student worth publishing, or a trial's line of its search."""
    if not task.trial:
        if task.cell.dataset in GRAPHS:
            publish(task.cell, done, graph)
        return
    kept = {key: value for key, value in done.record.items() if key not in ("curve", "test")}
    found = {**read_search(task.cell), done.id: sealed(kept)}
    write_text(search_path(task.cell), "".join(json.dumps(found[k], ensure_ascii=False) + "\n" for k in sorted(found)))
    records.record_path(done.id).unlink(missing_ok=True)
    shutil.rmtree(done.folder, ignore_errors=True)


def folder_of(cell: Cell) -> Path | None:
    """Where the weights of the cell's run lie: among this machine's runs, or published; None where they are gone."""
    own = config(cell)
    if own is None:
        return None
    if has_weights(own):
        return records.model_folder(own.run_id)
    there = cell.dataset in GRAPHS and (published(cell) / HEADER).is_file()
    return published(cell) if there and read_header(published(cell)).get("run_id") == own.run_id else None


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
    own = decided(cell, device)
    for need in needs(cell):
        if not has_weights(decided(need, device)):
            train_again(need, graph, device)
    task = Task(cell, own, False, tuple(decided(each, device).run_id for each in joins(cell)))
    before = records.read_record(records.record_path(own.run_id))
    done = train(task, graph, again=True)
    keep(task, done, graph)
    if before:
        log.info("again: %s, test MRR %.4f, recorded was %.4f", cell, done.test(), before["test"]["both"]["mrr"])
    return done


def published(cell: Cell) -> Path:
    """The folder of a published student, whether it is there or not."""
    name = f"d{cell.size}"
    if cell.protocol == FRONTIER:
        name = f"{PATHS}-" * (cell.method == PATHS) + f"{cell.size}B" + "-low-rank" * (cell.method in LOW_RANK)
    return records.results_folder() / "students" / f"{cell.dataset}-{cell.model.lower()}-{name}"


def publish(cell: Cell, done: Run, graph: Graph) -> None:
    """Keep students worth having under `results/students/`: weights and labels, but no triples and readable names,
    which are the data set's.

    Those are, of seed 0, the tuned ones of 8 dimensions from a teacher of 64, and of few bits the distilled ones that
    fit into a megabyte.
    """
    if cell.seed:
        return
    precision = "float32"
    if cell.protocol == FRONTIER:
        precision = PRECISION_OF.get(done.config.group, "") if done.config.group else ""
    model = done.load(graph)
    small = cell.method in ("distilled", PATHS, "low-rank") and precision and size(model, precision) < MEGABYTE
    if small or (cell.protocol, cell.method, cell.size, cell.teacher_size) == ("tuned", "DS", 8, 64):
        metrics = {"model": cell.model, "dim": model.dim, **done.record["test"]["both"]}
        labelled = Labelled(model, graph, precision, done.id, {"metrics": [metrics]})
        labelled.calibrate()
        made = labelled.student()
        Student(made.header, made.weights, made.entities).save(published(cell))
