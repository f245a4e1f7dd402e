"""The paper's runs, each a cell with an address: `python -m kgdistil.reproduce tuned/wn18rr/RotatE/DS/8`.

`reproduction.toml` says how a cell is trained. What is recorded is skipped, what was begun goes on, and several
processes, on one folder or started by `--jobs`, never train the same run twice.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import torch
from tqdm import tqdm

from . import results
from .checkpoint import WEIGHTS, load_model, read_model, save_model, save_weights, write_atomically
from .config import RunConfig, make_config
from .data import Graph, load
from .errors import BusyError, CheckpointError, ConfigError, KgdistilError, run_command
from .models import MODELS as MODEL_CLASSES
from .models import KGEModel, build_model, joined
from .quantise import GROUPS as PACKED
from .quantise import size
from .training import Run, make_engine, run

log = logging.getLogger("kgdistil")
RECIPES = Path(__file__).with_name("reproduction.toml")
GRAPHS, MODELS, DIMS = ("wn18rr", "fb15k-237"), ("TransE", "TransH", "ComplEx", "RotatE"), (32, 16, 8)
PROTOCOLS = ("tuned", "paper")
# The name of a method in the paper's tables, and in reproduction.toml
METHODS = {"teacher": "teacher", "no-DS": "no-DS", "DS": "stage2", "-S1": "only2", "-S2": "stage1"}
ROLES = {"teacher": "teacher", "no-DS": "no-ds", "DS": "stage2", "-S1": "stage2", "-S2": "stage1"}
# Where a model's recipes have a METHOD-start, a cell goes on from a run of its own, and students learn there from the
# teacher's
START = "-start"
FIRST = [method for method in METHODS if method != "DS"]
METHODS |= {method + START: METHODS[method] + START for method in FIRST}
ROLES |= {method + START: ROLES[method] for method in FIRST}
# Beyond the paper (`frontier`): cells of this protocol give the bytes of an entity in place of the dimension
FRONTIER = "frontier"
OWN_LISTS = "own-lists"
COMMITTEE = "committee"  # goes on from a distilled student, on the lists of several such: `members` of other seeds
# as many floats as the teacher, of few bits
CODED = {"distilled": "stage1", OWN_LISTS: "stage1", COMMITTEE: "stage1", "coded-alone": "no-ds"}
# fewer floats than the teacher and a map that all entities share (`LowRankComplEx`), of few bits
LOW_RANK = {"low-rank": "stage1", "low-rank-alone": "no-ds"}
LOW_RANK_GROUP = 2  # floats of theirs that share four bits
SMALL = {"small-distilled": "stage1", "small": "no-ds"}  # float32, fewer floats
TRAINED = {"teacher": "teacher", **CODED, **LOW_RANK, **SMALL}
LIKE = {OWN_LISTS: "distilled", "low-rank": "distilled"}  # whose recipe a method has
MEGABYTE = 10**6
LARGEST_TEACHER = 2048  # of the frontier, in bytes of an entity
PART = 16  # one in so many triples says what an epoch costs
SEARCH = "search"  # the protocol of a trial's config, so that a trial is never taken for a cell
# keys of the recipe that are no parameters of a run
OWN = ("search_epochs", "share", "checks", "guide", "start", "members")


# ---- cells ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cell:
    """One model of one table: what is trained, not yet how."""

    protocol: str
    dataset: str
    model: str
    method: str  # a key of METHODS, or of TRAINED
    dim: int  # for FRONTIER, bytes of an entity, and so is teacher_dim
    teacher_dim: int = 64  # of the teacher that a distilled student has
    seed: int = 0

    def __str__(self) -> str:
        named = self.teacher_dim != 64 and (self.distilled or self.protocol == FRONTIER)
        more = f"/{self.teacher_dim}" if named else ""
        return f"{self.protocol}/{self.dataset}/{self.model}/{self.method}/{self.dim}{more}" + (
            f"@{self.seed}" if self.seed else ""
        )

    @property
    def distilled(self) -> bool:
        plain = self.method.removesuffix(START)
        return plain in ("DS", "-S1", "-S2", "distilled", OWN_LISTS, COMMITTEE, "low-rank", "small-distilled")

    @property
    def role(self) -> str:
        return (ROLES | TRAINED)[self.method]

    @property
    def teacher(self) -> Cell | None:
        """The cell of its teacher, which has seed 0 whatever the student's seed is."""
        if not self.distilled:
            return None
        method = "teacher" + (START if self.method.endswith(START) else "")
        return replace(self, method=method, dim=self.teacher_dim, teacher_dim=64, seed=0)

    @property
    def start(self) -> Cell | None:
        """The cell that this one goes on from, where it has a recipe."""
        return replace(self, method=self.method + START) if recipe(self).get("start") else None

    @property
    def members(self) -> list[Cell]:
        """Of a committee: the distilled students whose mean is the teacher, and the first of which is the start."""
        number = recipe(self).get("members", 1) if self.method == COMMITTEE else 0
        return [replace(self, method="distilled", seed=self.seed + i) for i in range(number)]

    @property
    def searched_as(self) -> Cell:
        """The cell whose search this one shares: that of seed 0, and of 64 dimensions for larger ones."""
        if self.protocol == FRONTIER:
            return replace(self, seed=0)
        return replace(self, seed=0, dim=min(self.dim, 64), teacher_dim=64)

    @property
    def needs(self) -> list[Cell]:
        """Cells that have to be there before this one can be trained."""
        if self.method == "DS":
            return [self.teacher, replace(self, method="-S2")]
        if self.method == COMMITTEE:
            return self.members
        found = [self.teacher, guide(self), self.searched_as.teacher] if self.distilled else []
        if self.method.startswith("-S1"):  # which takes its settings from the first stage
            found.append(replace(self, method=self.method.replace("-S1", "-S2")))
        starts = [start for start in (self.start, self.searched_as.start) if start]
        return list(dict.fromkeys(found + starts))


def parse(text: str) -> Cell:
    """The cell of an address "protocol/graph/model/method/dim[/teacher's dim][@seed]", in capitals or not.

    Raises:
        ConfigError: with the part that is wrong.
    """
    address, _, seed = text.partition("@")
    parts = address.split("/")
    beyond = parts[0].lower() == FRONTIER
    allowed = ((*PROTOCOLS, FRONTIER), (*GRAPHS, *["umls"] * beyond), MODELS, tuple(TRAINED if beyond else METHODS))
    try:
        numbers = [int(x) for x in [*parts[4:6], seed or 0]]
        if len(parts) not in (5, 6) or any(x < 0 for x in numbers):
            raise ValueError
    except ValueError:
        raise ConfigError(f"{text!r} is no cell: write protocol/graph/model/method/dim, "
                          "as in tuned/wn18rr/RotatE/DS/8") from None  # fmt: skip
    for place, choice in enumerate(allowed):
        meant = [name for name in choice if name.lower() == parts[place].lower()]
        if not meant:
            raise ConfigError(f"{text!r}: {parts[place]!r} is none of {', '.join(choice)}")
        parts[place] = meant[0]
    return Cell(*parts[:4], numbers[0], numbers[1] if len(parts) == 6 else 64, numbers[-1])


def table_cells(protocol: str, dataset: str, methods: Iterable[str] = ("no-DS", "DS")) -> list[Cell]:
    """The cells of a table like Table 3: a teacher of 64 dimensions, students of 32, 16 and 8, four models."""
    cells = []
    for model in MODELS:
        cells.append(Cell(protocol, dataset, model, "teacher", 64))
        cells += [Cell(protocol, dataset, model, method, dim) for dim in DIMS for method in methods]
    return cells


def cells_of(what: str, protocol: str) -> list[Cell]:
    """The cells behind "table3", "table4", "table6", "figure1", "figure2" or "figure3".

    Raises:
        ConfigError: nothing of that name is trained.
    """
    if what in ("table3", "table4"):
        return table_cells(protocol, GRAPHS[what == "table4"])
    if what == "table6":
        return [c for c in table_cells(protocol, "wn18rr", ("DS", "-S1", "-S2")) if c.method != "teacher"]
    if what == "figure1":
        return [Cell(protocol, "wn18rr", "TransE", "no-DS", dim) for dim in (8, 16, 32, 64, 128, 256, 512)]
    if what == "figure2":
        return [Cell(protocol, "wn18rr", "TransE", "DS", dim, large) for large in (64, 128, 256) for dim in DIMS]
    if what == "figure3":
        return [Cell(protocol, "fb15k-237", "RotatE", method, 32) for method in ("no-DS", "-S2", "DS")]
    raise ConfigError(f"{what!r}: nothing of that name is trained; choose table 3, 4 or 6, or figure 1, 2 or 3")


def with_needs(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and all they need, each once, what is needed first."""
    ordered: dict[Cell, None] = {}

    def add(cell: Cell) -> None:
        for need in cell.needs:
            add(need)
        ordered[cell] = None

    for cell in cells:
        add(cell)
    return list(ordered)


# ---- from a cell to its runs ----------------------------------------------------------------------------------------
@functools.cache
def recipes() -> dict[str, Any]:
    """`reproduction.toml` as nested dictionaries."""
    return tomllib.loads(RECIPES.read_text(encoding="utf-8"))


def recipe(cell: Cell) -> dict[str, Any]:
    """What `reproduction.toml` says about a cell; lists are still to be searched.

    A second stage takes its parameters from the first, so that an [all] does not speak for it.
    """
    method, merged = METHODS.get(cell.method, cell.method), {}
    method = LIKE.get(method, method)
    second = method in ("stage2", "only2", "only2" + START)
    table = recipes()[cell.protocol]
    of_model = table.get(cell.model, {})
    own = (of_model, of_model.get(cell.dataset, {}))
    lists = any(("stage1" if method == "stage2" else method) + START in layer for layer in own)
    for layer in (table, table.get(cell.dataset, {}), own[0], table.get("lists", {}) if lists else {}, own[1]):
        shared = layer.get("all", {})
        merged |= {k: v for k, v in shared.items() if not second or k in OWN} | layer.get(method, {})
        merged |= layer.get(f"{method}/{cell.dim}", {})
    if lists and method != "stage2":
        return merged | {"start": True}
    return merged | (table.get("large", {}) if cell.dim > 64 else {})


def guide(cell: Cell) -> Cell:
    """The teacher whose lists a distilled student learns: `guide` times as large as the one that it starts from."""
    factor = 1 if cell.method == OWN_LISTS else recipe(cell).get("guide", 1)
    return cell.teacher if factor == 1 else replace(cell.teacher, dim=min(factor * cell.teacher_dim, LARGEST_TEACHER))


def base(cell: Cell, **values: Any) -> dict[str, Any]:
    """What identifies the cell, as parameters of a run."""
    return {
        "protocol": cell.protocol,
        "dataset": cell.dataset,
        "model": cell.model,
        **shape(cell),
        "role": cell.role,
        "seed": cell.seed,
        **values,
    }


def shape(cell: Cell) -> dict[str, int]:
    """The dimension, and for a coded student the floats that share four bits.

    Raises:
        ConfigError: no such number of bytes.
    """
    if cell.protocol != FRONTIER:
        return {"dim": cell.dim}
    factor = MODEL_CLASSES[cell.model].entity_factor
    floats = (cell.teacher_dim if cell.method in (*CODED, *LOW_RANK) else cell.dim) / 4
    group, rank = 0 if cell.method not in CODED else floats / (2 * cell.dim), 0
    if cell.method in LOW_RANK:
        group, rank = LOW_RANK_GROUP, 2 * LOW_RANK_GROUP * cell.dim
    if floats % factor or group % 1 or floats < factor or rank > floats:
        raise ConfigError(
            f"{cell}: {cell.dim} bytes are no {cell.method} {cell.model} beside one of {cell.teacher_dim}"
        )
    small = {"group": int(group), "rank": rank}
    return {"dim": int(floats) // factor} | {key: value for key, value in small.items() if value}


def finish(values: dict[str, Any]) -> RunConfig:
    """A config from a recipe's values: `checks` becomes the epochs between two validations."""
    values = dict(values)
    checks, epochs = values.pop("checks", None), values.get("epochs", 1000)
    if checks:
        values["check_every"] = max(1, epochs // checks)
    return make_config(**{k: v for k, v in values.items() if k not in OWN})


def inherited(cell: Cell, device: str) -> dict[str, Any] | None:
    """What a second stage takes over from the first: all its settings, rates made slower. None: not known yet."""
    first = config(replace(cell, method="-S2" + (START if cell.method.endswith(START) else "")), device)
    teacher = config(cell.teacher, device)
    if first is None or teacher is None:
        return None
    share, kept = recipe(cell)["share"], first.model_dump(exclude={"role", "epochs", "check_every", "student"})
    rates = {"lr": first.lr * share if cell.method == "DS" else first.lr, "teacher_lr": teacher.lr * share}
    return {**kept, **rates, **({"student": first.run_id} if cell.method == "DS" else {})}


def trials(cell: Cell, device: str = "cpu") -> list[RunConfig] | None:
    """The runs of the cell's search, [] where nothing is searched, None while what they need is not known.

    They have two validations, and are those of `Cell.searched_as`.
    """
    cell, spec = cell.searched_as, recipe(cell.searched_as)
    axes = {key: value for key, value in spec.items() if isinstance(value, list)}
    if not axes:
        return []
    start = start_values(cell, spec, device)
    if start is None:
        return None
    short = {"protocol": SEARCH, "epochs": spec["search_epochs"], "checks": 2, "test_curve": False}
    return [
        finish({**start, **short, **dict(zip(axes, values, strict=True))})
        for values in itertools.product(*axes.values())
    ]


def start_values(cell: Cell, spec: dict[str, Any], device: str) -> dict[str, Any] | None:
    """Everything but what is searched; None while the teacher or the first stage is not decided."""
    values = base(cell, device=device)
    start = cell.start and config(cell.start, device)
    if cell.start and start is None:
        return None
    if cell.method in ("DS", "-S1", "-S1" + START):
        above = inherited(cell, device)
        if above is None:
            return None
        values = {**above, **values}
        if start:  # the teacher has learned too
            values["teacher"] = f"{start.run_id}/teacher"
    elif cell.method == COMMITTEE:
        members = [config(member, device) for member in cell.members]
        if None in members:
            return None
        values |= {"teacher": joined_name(*(member.run_id for member in members)), "student": members[0].run_id}
    elif cell.distilled:
        teacher, own = config(guide(cell), device), config(cell.teacher, device)
        if teacher is None or own is None:
            return None
        values["teacher"] = teacher.run_id
        start = start or (own if cell.method in (*CODED, *LOW_RANK) else None)
    return {**values, **({"student": start.run_id} if start else {}), **spec}


def config(cell: Cell, device: str = "cpu") -> RunConfig | None:
    """The cell's run, None while its search or one it depends on is unfinished.

    Raises:
        ConfigError: the recipe is wrong.
    """
    spec = recipe(cell)
    start, searched = start_values(cell, spec, device), trials(cell, device)
    if start is None or searched is None:
        return None
    if searched:
        found = read_search(cell)
        if any(t.run_id not in found for t in searched):
            return None
        best = max(searched, key=lambda t: found[t.run_id]["valid"]["both"]["mrr"])
        start |= {key: getattr(best, key) for key, value in spec.items() if isinstance(value, list)}
    return finish(start)


def search_path(cell: Cell) -> Path:
    return results.results_folder() / "search" / f"{cell.protocol}-{cell.dataset}-{cell.model.lower()}.jsonl"


def read_search(cell: Cell) -> dict[str, dict[str, Any]]:
    """The recorded trials of the cell's model and graph, by run id.

    Raises:
        CheckpointError: with the line that is no trial.
    """
    path, found = search_path(cell), {}
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            record["valid"]["both"]["mrr"]
            found[record["id"]] = record
        except (ValueError, LookupError, TypeError):
            raise CheckpointError(f"{path}, line {number}: no trial; delete the line to run it again") from None
    return found


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
    return results.record_path(run_config.run_id).is_file()


def has_weights(run_config: RunConfig) -> bool:
    return (results.model_folder(run_config.run_id) / WEIGHTS).is_file()


def outstanding(cells: Iterable[Cell], device: str = "cpu") -> Iterator[Task | Cell]:
    """Tasks that can start now, and cells that still wait for others, in the cells' order.

    A recorded run whose weights are gone is trained again only where another cell waits for them.
    """
    cells = with_needs(cells)
    waiting: set[Cell] = set()  # cells whose weights a missing run needs
    for cell in reversed(cells):
        own = config(cell, device)
        if own is None or not recorded(own):
            waiting |= set(cell.needs)
        elif cell in waiting and not has_weights(own):
            waiting |= set(cell.needs)
    for cell in cells:
        own = config(cell, device)
        if own and recorded(own) and (cell not in waiting or has_weights(own)):
            continue
        ready = all((c := config(need, device)) and recorded(c) and has_weights(c) for need in cell.needs)
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
    if members := task.cell.members:
        join(graph, *(config(member, task.config.device).run_id for member in members))
    if not task.trial:
        done = run(task.config, graph, progress=progress, save_ranks=True)
        if task.cell.dataset in GRAPHS:
            publish(task.cell, done, graph)
        return
    name, path = task.config.run_id, search_path(task.cell)
    for folder in (results.runs_folder(), path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        held = filelock.FileLock(results.runs_folder() / f".{name}.lock", timeout=0).acquire()
    except filelock.Timeout:
        raise BusyError(f"another process is at trial {name}") from None
    with held:
        if name in read_search(task.cell):  # since this task was listed
            return
        done = run(task.config, graph, progress=progress)
        kept = {key: value for key, value in done.record.items() if key not in ("curve", "test")}
        with filelock.FileLock(results.runs_folder() / f".{path.name}.lock"):
            found = {**read_search(task.cell), name: kept}
            lines = "".join(json.dumps(found[key], ensure_ascii=False) + "\n" for key in sorted(found))
            write_atomically(path, lambda scratch: Path(scratch).write_text(lines, encoding="utf-8"))
        results.record_path(name).unlink(missing_ok=True)
        shutil.rmtree(done.folder, ignore_errors=True)


def folder_of(cell: Cell) -> Path | None:
    """Where the weights of the cell's run lie: among this machine's runs, or published; None where they are gone."""
    own = config(cell)
    if own is None:
        return None
    if has_weights(own):
        return results.model_folder(own.run_id)
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
        raise ConfigError(f"{cell} has no recorded search: run `python -m kgdistil.reproduce {cell}` first")
    for need in cell.needs:
        if not has_weights(config(need, device)):
            train_again(need, graph, device)
    if members := cell.members:
        join(graph, *(config(member, device).run_id for member in members))
    before = results.read_record(results.record_path(own.run_id))
    done = run(own, graph, save_ranks=True, again=True)
    if cell.dataset in GRAPHS:
        publish(cell, done, graph)
    if before:
        log.info("again: %s, test MRR %.4f, recorded was %.4f", cell, done.test(), before["test"]["both"]["mrr"])
    return done


def joined_name(*teachers: str) -> str:
    """The folder of several teachers as one."""
    return "joined-" + hashlib.sha256("+".join(teachers).encode()).hexdigest()[:8]


def join(graph: Graph, *teachers: str) -> None:
    """Save the mean of teachers, given by their runs, under `joined_name`."""
    folder = results.model_folder(joined_name(*teachers))
    if not (folder / WEIGHTS).is_file():
        save_model(folder, joined([load_model(results.model_folder(t), graph) for t in teachers]), graph)


def published(cell: Cell) -> Path:
    """The folder of a student's published weights, whether they are there or not."""
    name = f"d{cell.dim}"
    if cell.protocol == FRONTIER:
        name = f"{cell.dim}B" + ("-low-rank" if cell.method in LOW_RANK else "")
    return results.results_folder() / "students" / f"{cell.dataset}-{cell.model.lower()}-{name}"


def publish(cell: Cell, done: Run, graph: Graph) -> None:
    """Keep the weights of students worth having under `results/students/`, where `load_model` reads them.

    Those are, of seed 0, the tuned ones of 8 dimensions from a teacher of 64, and of few bits the distilled ones that
    fit into a megabyte.
    """
    if cell.seed:
        return
    precision = "float32"
    if cell.protocol == FRONTIER:
        precision = next((p for p, g in PACKED.items() if g == done.config.group), "")
    model = done.load(graph)
    small = cell.method in ("distilled", "low-rank") and precision and size(model, precision) < MEGABYTE
    if small or (cell.protocol, cell.method, cell.dim, cell.teacher_dim) == ("tuned", "DS", 8, 64):
        save_weights(published(cell), model, graph, done.id, precision=precision)


# ---- what it costs --------------------------------------------------------------------------------------------------
class Costs:
    """Seconds of an epoch by what decides them, from records of this device or else from timing one, or part of it."""

    def __init__(self, device: str):
        self.device, self.known = device, {}
        here = results.describe_device(device)
        for record in results.read_records():
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
        like = finish({**shape, **base(cell, device=self.device), **link, **({"lr": 0.01})})
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
    with tqdm(total=round(total), unit="s", desc="reproduce", disable=None if show else True,
              bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}") as bar:  # fmt: skip
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
    record = None if task.trial else results.read_record(results.record_path(task.config.run_id))
    return f", test MRR {record['test']['both']['mrr']:.3f}" if record else ""


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.reproduce --table 3`: train what is missing.

    Returns:
        0 when everything asked for is recorded.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.reproduce", description=__doc__.split("\n")[0])
    parser.add_argument("cells", nargs="*", type=parse, help="single cells, as tuned/wn18rr/RotatE/DS/8")
    parser.add_argument("--table", type=int, nargs="+", default=[], help="tables of the paper: 3, 4, 6")
    parser.add_argument("--figure", type=int, nargs="+", default=[], help="figures of the paper: 1, 2, 3")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="tuned")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
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
        print(f"  {str(cell):40s} {seconds[cell] / 60:6.1f} min")
    if missing:
        print(f"Together about {sum(seconds.values()) / 60 / jobs:.0f} min with {jobs} process(es) of {threads} "
              "thread(s); validations come on top.", flush=True)  # fmt: skip


if __name__ == "__main__":
    run_command(main)
