"""The paper's runs, each a cell with an address, and the recipe that a cell is trained by.

`reproduction.toml` says how a cell is trained.
"""

from __future__ import annotations

import functools
import itertools
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kgdistil import records
from kgdistil.config import RunConfig, make_config
from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.models import MODELS as MODEL_CLASSES
from kgdistil.paper.ensemble import joined_name

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
LARGEST_TEACHER = 2048  # of the frontier, in bytes of an entity
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
        raise ConfigError(
            f"{text!r} is no cell: write protocol/graph/model/method/dim, as in tuned/wn18rr/RotatE/DS/8"
        ) from None
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
    return records.results_folder() / "search" / f"{cell.protocol}-{cell.dataset}-{cell.model.lower()}.jsonl"


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
