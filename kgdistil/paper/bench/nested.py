"""`python -m kgdistil.paper.bench.nested CELL --depth 4`: one training, every size, beside a training for each.

CELL is a distilled student of few bits of the frontier, the smallest size; or with `--largest` the largest, of which
`depth` groups are then one. With `--spread` it begins as the mean of teachers, side by side, and the smaller sizes have
the dimensions of the first of them. The nested student is trained as it is, from the same teacher or by `--teacher`'s,
but with codes of that depth, and in as many passes as the students of all its sizes have together.
With `--in-turn` each size is trained by itself in the passes of its own, the smallest as the frontier has it, and each
with the codes of the one before, which stay; one of more dimensions at the rate of those given that validates best.
Each student beside is the frontier's own, from whatever teacher it has; differences are those of test ranks, by the
paired bootstrap over triples. With `--coarse` that student, trained before, is asked coarse to fine
(`Student.predict`'s shortlist): how many of its ten best answers are found, and what a query takes, on the graph and
among made-up entities.
Results: `results/bench/nested.json`, by cell.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kgdistil import kernels, records
from kgdistil.answer.files import write_json
from kgdistil.answer.native import BLOCK, Codes
from kgdistil.answer.student import Student
from kgdistil.answer.weights import NESTED
from kgdistil.compress.nested import DEPTHS, shorter
from kgdistil.config import RunConfig, read_config
from kgdistil.distillation.statistics import bootstrap
from kgdistil.errors import ConfigError, run_command
from kgdistil.evaluation import KnownTriples, evaluate
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.models import MODELS
from kgdistil.paper.cells import Cell, parse
from kgdistil.paper.ensemble import join, joined_name
from kgdistil.paper.frontier import cells
from kgdistil.paper.reading import record_of
from kgdistil.paper.recipe import config
from kgdistil.paper.reproduce import log_to_terminal
from kgdistil.paper.timing import seconds
from kgdistil.students.labelled import Labelled
from kgdistil.training.loop import Run, run

SHORTLISTS = (30, 100, 300, 1000, 3000)
MILLIONS = (1_000_000, 8_000_000)  # made-up entities
ASKED, K, ROUNDS = 200, 10, 21  # test triples whose heads and tails are asked for; answers; of the median


def path() -> Path:
    return records.results_folder() / "bench" / "nested.json"


def rivals(cell: Cell, depth: int, largest: bool) -> dict[int, Cell]:
    """By depth the frontier's student of as many bytes, of the same method.

    Raises:
        ConfigError: one of them has no record, or no ranks.
    """
    made = {other.bytes: other for other in cells(cell.dataset) if other.method == cell.method}
    sizes = {d: d * smallest(cell, depth, largest) for d in DEPTHS if d <= depth}
    found = {d: made[size] for d, size in sizes.items() if size in made}
    for other in found.values():
        record = record_of(other)
        if record is None or not records.ranks_path(record["id"]).is_file():
            raise ConfigError(f"{other} has no ranks: `python -m kgdistil.paper.reproduce {other}`")
    return found


def smallest(cell: Cell, depth: int, largest: bool) -> int:
    """Bytes an entity of the first codes."""
    return cell.bytes // depth if largest else cell.bytes


def config_of(cell: Cell, depth: int, largest: bool, teacher: Cell, spread: Sequence[Cell]) -> RunConfig:
    """The nested student's run, which begins as the cell's own teacher, or as those that it is `spread` over, and is
    taught by another's.

    Raises:
        ConfigError: a cell that is no student of few bits, or whose groups would be too large.
    """
    usual = config(cell)
    if usual is None or not usual.group:
        raise ConfigError(f"{cell} is no student of few bits: give one, as frontier/wn18rr/ComplEx/distilled/16/512")
    passes = usual.epochs * sum(d <= depth for d in DEPTHS)
    more: dict[str, Any] = {
        "depth": depth,
        "spread": bool(spread),
        "epochs": passes,
        "check_every": max(1, passes // 5),
        "protocol": "nested",
    }
    if (taught := config(teacher)) is not None:
        more["teacher"] = taught.run_id
    if spread:
        more["student"] = joined_name(*runs_of(spread))
    return read_config({**usual.model_dump(), **more, "group": usual.group * (depth if largest else 1)})


def runs_of(teachers: Sequence[Cell]) -> list[str]:
    """The runs of teachers, each of which has one."""
    return [found.run_id for each in teachers if (found := config(each)) is not None]


def measured(
    cell: Cell, depth: int, largest: bool, teacher: Cell, spread: Sequence[Cell], graph: Graph
) -> dict[str, Any]:
    """The nested student's run, and a row for each of its sizes."""
    own = config_of(cell, depth, largest, teacher, spread)
    for first in dict.fromkeys((*(spread or [cell.teacher]), teacher)):
        if (needed := config(first)) is not None:
            run(needed, graph)
    if spread:
        join(graph, *runs_of(spread))
    return said(run(own, graph), cell, depth, largest, teacher, graph)


def said(done: Run, cell: Cell, depth: int, largest: bool, teacher: Cell, graph: Graph) -> dict[str, Any]:
    """What is told of a nested student's run: a row for each of its sizes."""
    others, known, rows = rivals(cell, depth, largest), KnownTriples(graph.known, graph.num_relations), []
    model = done.load(graph)
    for d in [d for d in DEPTHS if d <= depth]:
        ranks = {split: evaluate(shorter(model, d), graph, split, known=known) for split in ("valid", "test")}
        row: dict[str, Any] = {"depth": d, "bytes": d * smallest(cell, depth, largest)}
        row |= {split: found.metrics() for split, found in ranks.items()}
        if d in others and (record := record_of(others[d])):
            low, high, p = bootstrap(records.read_ranks(record["id"]).reciprocal(), ranks["test"].reciprocal())
            gain = row["test"]["both"]["mrr"] - record["test"]["both"]["mrr"]
            row |= {"rival": str(others[d]), "rival_run": record["id"], "gain": gain, "low": low, "high": high, "p": p}
            row |= {"rival_mrr": record["test"]["both"]["mrr"]}
        rows.append(row)
        print(json.dumps({name: x for name, x in row.items() if name not in ("valid", "test")}), flush=True)
    taught = config(teacher)
    return {"teacher_mrr": run(taught, graph).test("mrr") if taught else None, "run": done.record, "rows": rows}


def in_turn(
    cell: Cell, depth: int, teacher: Cell, spread: Sequence[Cell], rates: Sequence[float], graph: Graph
) -> tuple[Run, list[dict[str, Any]]]:
    """The run of the largest size, after those of the others, and what validation said of each.

    Raises:
        ConfigError: a size that the frontier lacks, or no teachers for one of its dimensions.
    """
    sizes = rivals(cell, depth, largest=True)
    usual = {d: found for d in DEPTHS if d <= depth and d in sizes and (found := config(sizes[d])) is not None}
    if list(usual) != [d for d in DEPTHS if d <= depth]:
        raise ConfigError(f"the frontier of {cell.dataset} lacks a size of {cell} with fewer codes")
    for first in dict.fromkeys((*spread, sizes[1].teacher, teacher)):
        if (needed := config(first)) is not None:
            run(needed, graph)
    own, starts = read_config({**usual[1].model_dump(), "protocol": "nested"}), runs_of(spread)
    done, told = run(own, graph), list[dict[str, Any]]()
    groups = own.dim * MODELS[own.model].entity_factor // own.group
    dims = list(itertools.accumulate(found.dim for each in spread if (found := config(each)) is not None))
    for d, other in list(usual.items())[1:]:
        if other.dim not in dims:
            raise ConfigError(
                f"--spread: {sizes[d]} has {other.dim} dimensions; the first teachers have {dims} together"
            )
        begun = starts[: dims.index(other.dim) + 1]
        join(graph, *begun, codes=done.id, size=own.group)
        group = other.dim * MODELS[other.model].entity_factor // groups
        more = {"depth": d, "group": group, "spread": len(begun) > 1, "protocol": "nested"}
        more |= {"student": joined_name(*begun, codes=done.id)}
        if (taught := config(teacher)) is not None:
            more["teacher"] = taught.run_id
        asked = rates if other.dim > done.config.dim else [other.lr]
        tried = [run(read_config({**other.model_dump(), **more, "lr": rate}), graph) for rate in asked]
        done = max(tried, key=lambda each: each.record["valid"]["both"]["mrr"])
        told += [{"depth": d, "run": each.record, "taken": each is done} for each in tried]
    return done, told


def coarse_to_fine(student: Student, graph: Graph) -> list[dict[str, Any]]:
    """A row for each shortlist, the first without one: the share of the K best that it finds, and seconds of a query
    that is asked alone; of the graph's entities, and of made-up ones, whose share is not said."""
    rows, weights, coarse = list[dict[str, Any]](), student.weights, student.weights.coarsest
    test, sides = graph.test[:: max(1, len(graph.test) // ASKED)].numpy(), (("tail", 0), ("head", 2))
    queries = lambda of: np.concatenate([of.queries(test[:, at], test[:, 1], side) for side, at in sides])
    asked = queries(weights), queries(coarse)

    def of(fine: Codes, first: Codes, entities: int) -> list[dict[str, Any]]:
        def best(shortlist: int, part: slice) -> Any:
            if not shortlist:
                return fine.top(asked[0][part], K, threads=kernels.threads())[1]
            listed = first.top(asked[1][part], shortlist, threads=kernels.threads())[1]
            return fine.best_of(asked[0][part], listed, K, threads=kernels.threads())[1]

        out, wanted, own = list[dict[str, Any]](), None, entities == graph.num_entities
        for shortlist in tqdm((0, *SHORTLISTS), desc=f"{entities:,} entities", disable=None):
            few = range(0, len(asked[0]), len(asked[0]) // 4)
            each = [seconds(functools.partial(best, shortlist, slice(i, i + 1)), ROUNDS, "cpu") for i in few]
            row = {"entities": entities, "shortlist": shortlist, "seconds": sum(each) / len(each)}
            if own:
                found = best(shortlist, slice(None))
                wanted = found if wanted is None else wanted
                row["same"] = sum(len(np.intersect1d(*x)) for x in zip(found, wanted)) / wanted.size
            out.append(row)
        return out

    rows += of(weights.scanner, coarse.scanner, graph.num_entities)
    draw, steps = np.random.default_rng(0), coarse.blocks.shape[1]
    for entities in MILLIONS:  # each with the first codes of some entity, and the others of another
        blocks, shape = -(-entities // BLOCK), weights.blocks.shape[1:]
        many = np.empty((blocks, *shape), np.uint8)
        for i in range(shape[0] // steps):
            which = draw.integers(graph.num_entities, size=(blocks, BLOCK))
            at = slice(i * steps, (i + 1) * steps)
            many[:, at] = weights.blocks[which // BLOCK, at, which % BLOCK].transpose(0, 2, 1)
        made = [
            Codes(many[:, : w.blocks.shape[1]], entities, w.book, w.columns, "dot", width=w.equation.width)
            for w in (weights, coarse)
        ]
        rows += of(made[0], made[1], entities)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure one nested student, and write it beside what is there.

    Returns:
        0.
    Raises:
        ConfigError: a cell that is no student of few bits, or whose rivals have no ranks.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.nested", description=__doc__.split("\n")[0])
    parser.add_argument("cell", type=parse, help="a student of few bits, as frontier/wn18rr/ComplEx/distilled/16/512")
    parser.add_argument("--depth", type=int, choices=[d for d in DEPTHS if d > 1], default=4, help="codes of a group")
    parser.add_argument("--largest", action="store_true", help="CELL is the largest size")
    parser.add_argument(
        "--spread", type=parse, nargs="+", metavar="CELL", default=[], help="teachers that it begins as"
    )
    parser.add_argument("--teacher", type=parse, metavar="CELL", help="in place of its own")
    parser.add_argument(
        "--in-turn", type=float, nargs="+", metavar="RATE", help="train each size by itself, after the smaller ones"
    )
    parser.add_argument("--coarse", action="store_true", help="ask it coarse to fine, in place of its ranks")
    options = parser.parse_args(arguments)
    log_to_terminal()
    teacher = options.teacher or options.cell.teacher
    asked = options.cell, options.depth, options.largest, teacher, options.spread
    graph = load(options.cell.dataset)
    report = json.loads(path().read_text(encoding="utf-8")) if path().is_file() else {}
    about: dict[str, Any] = {
        "cell": str(options.cell),
        "teacher": str(teacher),
        "spread": [str(each) for each in options.spread],
        "graph": {**graph.sizes(), "sha256": graph.sha256},
        "command": records.command(),
        "device": records.describe_device("cpu"),
        **records.provenance(),
    }
    name = str(options.cell) + (f" by {teacher}" if options.teacher else "") + (" spread" if options.spread else "")
    name += " in turn" if options.in_turn else ""
    before = report.get(name, {})
    turns = options.cell, options.depth, teacher, options.spread, options.in_turn or (), graph
    if options.coarse:
        done = in_turn(*turns)[0] if options.in_turn else run(config_of(*asked), graph)
        student = Labelled(done.load(graph), graph, NESTED, done.record["id"]).student()
        rows = coarse_to_fine(student, graph)
        found = {**before, "coarse": {**about, "run": done.record["id"], "threads": kernels.threads(), "rows": rows}}
    elif options.in_turn:
        done, told = in_turn(*turns)
        found = {**about, **said(done, options.cell, options.depth, True, teacher, graph), "trainings": told}
    else:
        found = {**about, **measured(*asked, graph)}
    write_json(path(), {**report, name: found})
    return 0


if __name__ == "__main__":
    run_command(main)
