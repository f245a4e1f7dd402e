"""How a cell is trained: the layers of reproduction.toml, the recipe that they make, its search and its run.

`python -m kgdistil.paper.recipe CELL` prints the recipe, and the layer that each value comes from.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kgdistil import records
from kgdistil.answer.files import CHANGED, unsealed
from kgdistil.answer.rendering import plain
from kgdistil.config import RunConfig, read_config
from kgdistil.distillation.paths import Settings
from kgdistil.errors import CheckpointError, run_command
from kgdistil.paper.cells import (
    ALONE,
    CODED,
    COMMITTEE,
    FORMS,
    FRONTIER,
    LOW_RANK,
    METHODS,
    OWN_LISTS,
    PATHS,
    START,
    Cell,
    parse,
    shape,
)
from kgdistil.paper.ensemble import joined_name, path_lists_name

RECIPES = Path(__file__).with_name("reproduction.toml")
# whose recipe a method has, but for what stands under its own name
LIKE = {OWN_LISTS: "distilled", **dict.fromkeys(FORMS, "distilled")}
LIKE |= {name + ALONE: "low-rank-alone" for name in FORMS if name != "low-rank"}
LARGEST_TEACHER = 2048  # of the frontier, in bytes of an entity, where no recipe says otherwise
SEARCH = "search"  # the protocol of a trial's config, so that a trial is never taken for a cell
SCRATCH = "scratch"  # what was tried without a record, by whose runs they were
# keys of the recipe that are no parameters of a run
OWN = ("search_epochs", "share", "checks", "guide", "largest", "members", "teachers", "beside", PATHS, SCRATCH)


# ---- layers ---------------------------------------------------------------------------------------------------------
@functools.cache
def recipes() -> dict[str, Any]:
    """`reproduction.toml` as nested dictionaries."""
    return tomllib.loads(RECIPES.read_text(encoding="utf-8"))


def layers(cell: Cell) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables of `reproduction.toml` that speak for a cell, with their names; later ones refine earlier ones.

    A second stage takes its parameters from the first, so that an [all] does not speak for it.
    """
    method = METHODS.get(cell.method, cell.method)
    methods = list(dict.fromkeys([LIKE.get(method, method), method]))
    second = method in ("stage2", "only2", "only2" + START)
    lists = (cell.protocol, "lists") if goes_on(cell) else ()
    own = (cell.protocol, cell.model, cell.dataset)
    for place in ((cell.protocol,), (cell.protocol, cell.dataset), own[:2], lists, own):
        table = functools.reduce(lambda found, key: found.get(key, {}), place, recipes()) if place else {}
        sizes = ("", f"/{cell.size}", f"/*/{cell.teacher_size}", f"/{cell.size}/{cell.teacher_size}")
        for name in ("all", *(each + of for each in methods for of in sizes)):
            values = table.get(name, {})
            if second and name == "all":
                values = {key: value for key, value in values.items() if key in OWN}
            if values:
                yield ".".join((*place, f'"{name}"' if "/" in name else name)), values


def goes_on(cell: Cell) -> bool:
    """Whether the cell's model has starts on this graph, after which it goes on with whole lists of candidates."""
    method = METHODS.get(cell.method, cell.method)
    table = recipes()[cell.protocol].get(cell.model, {}).get(cell.dataset, {})
    return ("stage1" if method == "stage2" else method) + START in table


def recipe(cell: Cell) -> dict[str, Any]:
    """What `reproduction.toml` says about a cell; lists are still to be searched."""
    merged: dict[str, Any] = {}
    for _, values in layers(cell):
        merged |= {key: value for key, value in values.items() if key != SCRATCH}
    return merged


def scratch(cell: Cell) -> dict[str, list[str]]:
    """What was tried without a record and decided a cell's recipe, or those of the runs that it goes on from.

    By whose runs they were: "teacher", "alone" (students without one), "distilled", or "both" students alike.
    """
    found: dict[str, dict[str, None]] = {}
    link: Cell | None = cell
    while link:
        for _, values in layers(link):
            for whose, note in values.get(SCRATCH, {}).items():
                found.setdefault(whose, {})[" ".join(note.split())] = None
        link = replace(link, method="-S2") if link.method == "DS" else start(link)
    return {whose: list(notes) for whose, notes in found.items()}


def unequal(cells: Iterable[Cell]) -> list[Cell]:
    """The distilled ones (DS) that had trials beyond their search which no student alone had."""
    return [cell for cell in cells if cell.method == "DS" and "distilled" in scratch(cell)]


# ---- what a cell needs ----------------------------------------------------------------------------------------------
def start(cell: Cell) -> Cell | None:
    """The cell that this one goes on from, where it has a recipe."""
    return replace(cell, method=cell.method + START) if goes_on(cell) and cell.method != "DS" else None


def members(cell: Cell) -> list[Cell]:
    """Of a committee: the distilled students whose mean is the teacher, and the first of which is the start."""
    number = recipe(cell).get("members", 1) if cell.method == COMMITTEE else 0
    return [replace(cell, method="distilled", seed=cell.seed + i) for i in range(number)]


def guide(cell: Cell) -> Cell:
    """The teacher whose lists a distilled student learns: `guide` times as large as the one that it starts from."""
    spec = recipe(cell)
    factor, most = 1 if cell.method == OWN_LISTS else spec.get("guide", 1), spec.get("largest", LARGEST_TEACHER)
    return cell.teacher if factor == 1 else replace(cell.teacher, size=min(factor * cell.teacher_size, most))


def guides(cell: Cell) -> list[Cell]:
    """The teachers whose mean's lists a distilled student learns: of so many seeds as the recipe's `teachers` says."""
    number = 1 if cell.method == OWN_LISTS else recipe(cell).get("teachers", 1)
    return [replace(guide(cell), seed=i) for i in range(number)]


def path_settings(cell: Cell) -> Settings:
    """Of the path model whose lists a student learns."""
    made: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in recipe(cell)[PATHS].items()}
    return Settings(**made)


def joins(cell: Cell) -> list[Cell]:
    """The cells whose mean is the cell's teacher, or the one that a path model's is multiplied with; none where that is
    one cell."""
    if cell.method == COMMITTEE:
        return members(cell)
    if cell.method == PATHS:
        return [parse(f"{cell.protocol}/{cell.dataset}/{recipe(cell)['beside']}")]
    several = guides(cell) if cell.protocol == FRONTIER and cell.distilled else []
    return several if len(several) > 1 else []


def needs(cell: Cell) -> list[Cell]:
    """Cells that have to be there before this one can be trained."""
    if cell.method == "DS":
        return [cell.teacher, replace(cell, method="-S2")]
    if cell.method in (COMMITTEE, PATHS):
        return [*([cell.teacher] if cell.method == PATHS else []), *joins(cell)]
    found = [cell.teacher, *guides(cell), cell.searched_as.teacher] if cell.distilled else []
    if cell.method.startswith("-S1"):  # which takes its settings from the first stage
        found.append(replace(cell, method=cell.method.replace("-S1", "-S2")))
    starts = [before for before in (start(cell), start(cell.searched_as)) if before]
    return list(dict.fromkeys(found + starts))


def with_needs(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and all they need, each once, what is needed first."""
    ordered: dict[Cell, None] = {}

    def add(cell: Cell) -> None:
        for need in needs(cell):
            add(need)
        ordered[cell] = None

    for cell in cells:
        add(cell)
    return list(ordered)


# ---- from a recipe to its runs --------------------------------------------------------------------------------------
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


def finish(values: dict[str, Any]) -> RunConfig:
    """A config from a recipe's values: `checks` becomes the epochs between two validations."""
    values = dict(values)
    checks, epochs = values.pop("checks", None), values.get("epochs", 1000)
    if checks:
        values["check_every"] = max(1, epochs // checks)
    return _checked(json.dumps({k: v for k, v in values.items() if k not in OWN}, sort_keys=True))


@functools.lru_cache(maxsize=1 << 14)
def _checked(values: str) -> RunConfig:
    """Checked once: a table asks for each some fifty times, through those that it depends on."""
    return read_config(json.loads(values))


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
    values = start_values(cell, spec, device)
    if values is None:
        return None
    short = {"protocol": SEARCH, "epochs": spec["search_epochs"], "checks": 2, "test_curve": False}
    return [
        finish({**values, **short, **dict(zip(axes, tried, strict=True))})
        for tried in itertools.product(*axes.values())
    ]


def start_values(cell: Cell, spec: dict[str, Any], device: str) -> dict[str, Any] | None:
    """Everything but what is searched; None while the teacher or the first stage is not decided."""
    values = base(cell, device=device)
    before = start(cell)
    own_start = before and config(before, device)
    if before and own_start is None:
        return None
    if cell.method in ("DS", "-S1", "-S1" + START):
        above = inherited(cell, device)
        if above is None:
            return None
        values = {**above, **values}
        if own_start:  # the teacher has learned too
            values["teacher"] = f"{own_start.run_id}/teacher"
    elif cell.method == COMMITTEE:
        runs = [run for member in members(cell) if (run := config(member, device))]
        if len(runs) < len(members(cell)):
            return None
        values |= {"teacher": joined_name(*(run.run_id for run in runs)), "student": runs[0].run_id}
    elif cell.method == PATHS:
        beside, own = config(joins(cell)[0], device), config(cell.teacher, device)
        if beside is None or own is None:
            return None
        values |= {"teacher": path_lists_name(beside.run_id, path_settings(cell)), "student": own.run_id}
    elif cell.distilled:
        teachers, own = [run for each in guides(cell) if (run := config(each, device))], config(cell.teacher, device)
        if len(teachers) < len(guides(cell)) or own is None:
            return None
        names = [run.run_id for run in teachers]
        values["teacher"] = names[0] if len(names) == 1 else joined_name(*names)
        own_start = own_start or (own if cell.method in (*CODED, *LOW_RANK) else None)
    return {**values, **({"student": own_start.run_id} if own_start else {}), **spec}


def config(cell: Cell, device: str = "cpu") -> RunConfig | None:
    """The cell's run, None while its search or one it depends on is unfinished.

    Raises:
        ConfigError: the recipe is wrong.
    """
    searches = records.results_folder() / "search"
    files = os.scandir(searches) if searches.is_dir() else ()
    stamps = sorted((x.name, x.stat().st_mtime_ns, x.stat().st_size) for x in files)
    found = _found(id(recipes()), searches, *stamps)
    if (cell, device) not in found:
        found[cell, device] = _config(cell, device)
    return found[cell, device]


@functools.lru_cache(maxsize=1)
def _found(*state: Any) -> dict[Any, Any]:
    """What was found for as long as recipes and searches are these: a page of tables asks thousands of times."""
    return {"recipes": recipes()}  # which keeps their id theirs


def _config(cell: Cell, device: str) -> RunConfig | None:
    spec = recipe(cell)
    values, searched = start_values(cell, spec, device), trials(cell, device)
    if values is None or searched is None:
        return None
    if searched:
        found = read_search(cell)
        if any(t.run_id not in found for t in searched):
            return None
        best = max(searched, key=lambda t: found[t.run_id]["valid"]["both"]["mrr"])
        values |= {key: getattr(best, key) for key, value in spec.items() if isinstance(value, list)}
    return finish(values)


def search_path(cell: Cell) -> Path:
    return records.results_folder() / "search" / f"{cell.protocol}-{cell.dataset}-{cell.model.lower()}.jsonl"


def read_search(cell: Cell) -> dict[str, dict[str, Any]]:
    """The recorded trials of the cell's model and graph, by run id.

    Raises:
        CheckpointError: with the line that is no trial.
    """
    path = search_path(cell)
    if not path.is_file():
        return {}
    stamp = path.stat()
    return _read_trials(path, stamp.st_mtime_ns, stamp.st_size).copy()


@functools.lru_cache(maxsize=32)
def _read_trials(path: Path, *stamp: int) -> dict[str, dict[str, Any]]:
    """Read once for as long as the file stays as it is: a table asks for it thousands of times."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            record["valid"]["both"]["mrr"]
            unsealed(record)
            found[record["id"]] = record  # with its sum, so that it is written as it was
        except (ValueError, LookupError, TypeError) as error:
            what = CHANGED if str(error) == CHANGED else "no trial"
            raise CheckpointError(f"{path}, line {number}: {what}; delete the line to run it again") from None
    return found


# ---- printed --------------------------------------------------------------------------------------------------------
def explain(cell: Cell) -> list[tuple[str, str, str, str]]:
    """Every setting of a cell's run: its name, its value, what was searched, and where it comes from.

    The value is what the search chose, or "not searched yet"; None is left out.
    """
    made, spec, own = config(cell), recipe(cell), base(cell)
    source = {key: f"[{name}]" for name, values in layers(cell) for key in values}
    links: dict[str, Cell | str | None] = {}
    if cell.distilled:
        mean = f"the mean of {len(joins(cell))} cells like {guide(cell)}" if joins(cell) else guide(cell)
        mean = f"lists of a path model and {joins(cell)[0]}" if cell.method == PATHS else mean
        links = {"teacher": mean, "student": start(cell) or cell.teacher}
    elif before := start(cell):
        links = {"student": before}
    first = None
    if cell.method in ("DS", "-S1", "-S1" + START):
        first = replace(cell, method="-S2" + (START if cell.method.endswith(START) else ""))
        links = {"teacher": start(cell) or cell.teacher, "student": first}
    elif cell.method == COMMITTEE:
        links = {"teacher": f"the mean of {len(members(cell))} cells", "student": members(cell)[0]}
    settings = {**own, **spec, **(made.model_dump(exclude_none=True) if made else {})}
    inherits = (start_values(cell, {}, "cpu") or {}) if first else {}
    above = {key: where for key, _, _, where in explain(first)} if first else {}
    rows = []
    for key, value in settings.items():
        tried = spec.get(key) if isinstance(spec.get(key), list) else None
        if key in source:
            where = source[key]
        elif key in own:
            where = "the address"
        elif key in links:
            where = f"the run of {links[key]}"
        elif key == "check_every" and "checks" in spec:
            where = "epochs / checks"
        elif key == "teacher_lr" and first:
            where = f"share × lr of {cell.teacher}"
        elif key == "lr" and first:
            where = f"{'share × ' if cell.method == 'DS' else ''}lr of {first}, {above[key]}"
        elif key in inherits:
            where = f"{first}, {above.get(key, 'its run')}"
        else:
            where = "config.py: the paper's, or the default"
        found = f"{value:g}" if isinstance(value, float) else str(value)
        rows.append(
            (
                key,
                "not searched yet" if tried and made is None else found,
                ", ".join(map(str, tried)) if tried else "",
                where,
            )
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.paper.recipe CELL`: print how a cell is trained, and where each value comes from."""
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.recipe", description="How a cell is trained.")
    parser.add_argument("cells", nargs="+", type=parse, metavar="CELL", help="as tuned/wn18rr/RotatE/DS/8")
    for cell in parser.parse_args(arguments).cells:
        made = config(cell)
        print(f"{cell}: run {made.run_id if made else 'not decided: its search, or one it needs, has not ended'}")
        print(f"needs: {', '.join(map(str, needs(cell))) or 'nothing'}")
        print(f"layers: {', '.join(f'[{name}]' for name, _ in layers(cell))}\n")
        print(plain(["setting", "value", "searched", "from"], explain(cell)))
        for whose, notes in scratch(cell).items():
            print(f"\nTried without a record ({whose}):", *notes, sep="\n  ")
        print()
    return 0


if __name__ == "__main__":
    run_command(main)
