"""`python -m kgdistil.paper.bench.calibration`: whether probabilities and answer sets of published students hold.

Each student is calibrated on validation triples, as `kgdistil calibrate` does it, and measured on test triples, with
training and validation left out: a query's ten best answers by how often they stand in the test split, before (σ of the
score) and after; and how often the answer sets hold a test triple's entity. Which feature of an answer is fitted was
chosen by cross-fitting on the validation triples, which is measured, too. Writes results/bench/calibration.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np

from kgdistil import records
from kgdistil.answer import asking
from kgdistil.answer.calibration import Calibration, log_softmax
from kgdistil.answer.files import write_json
from kgdistil.answer.native import cores
from kgdistil.answer.student import SIDES, Student, load_student
from kgdistil.answer.triples import Triples
from kgdistil.answer.triples import arrays as triple_arrays
from kgdistil.errors import run_command
from kgdistil.graphs.datasets import load
from kgdistil.records import results_folder
from kgdistil.students import calibration
from kgdistil.students.calibration import Asked, ask, tables

STUDENTS = ("wn18rr-complex-16B", "wn18rr-rotate-d8", "fb15k-237-complex-16B", "fb15k-237-rotate-d8")
ANSWERS, BINS, FOLDS, SEED = 10, 15, 5, 0
COVERAGES = (0.8, 0.9, 0.95)
SIZED = 2000  # test triples of a side whose sets are counted
Array = np.ndarray


# ---- measures --------------------------------------------------------------------------------------------------------
def bins(p: Array, true: Array, edges: Array | None = None) -> list[dict[str, float]]:
    """Answers in bins of equal number by p, or between edges: their number, mean p and share of true ones."""
    order = np.argsort(p, kind="stable")
    cuts = BINS if edges is None else np.searchsorted(p[order], edges[1:-1])
    parts = [x for x in np.array_split(order, cuts) if len(x)]
    return [{"answers": len(x), "probability": float(p[x].mean()), "true": float(true[x].mean())} for x in parts]


def error(p: Array, true: Array) -> float:
    """Expected calibration error over 15 bins of equal number: the mean of |mean p − share of true ones|."""
    return sum(x["answers"] * abs(x["probability"] - x["true"]) for x in bins(p, true)) / len(p)


def brier(p: Array, true: Array) -> float:
    """Mean (p − true)²."""
    return float(((p - true) ** 2).mean())


def sigmoid(score: Array) -> Array:
    return 1 / (1 + np.exp(-score))


def calibrated(asked: Asked, table: Calibration, answers: int) -> Array:
    """p [n, answers]."""
    each = zip(asked.x[:, :answers], asked.relation.tolist())
    return np.stack([table.probability(x, r, asked.side) for x, r in each])


def first_answers(
    asked: list[Asked], table: Calibration, answers: int = ANSWERS, distinct: bool = True
) -> tuple[Array, Array, Array]:
    """Of the best answers of each query, once for each or once for each of its triples: σ(score), p and true, flat."""
    columns = []
    for side in asked:
        rows = side.first if distinct else np.ones(len(side.own), bool)
        there = np.isfinite(side.x[rows, :answers])
        both = sigmoid(side.score[rows, :answers]), calibrated(side, table, answers)[rows]
        columns.append([x[there] for x in (*both, side.true[rows, :answers])])
    before, after, true = (np.concatenate(x) for x in zip(*columns))
    return before, after, true


def probabilities(asked: list[Asked], table: Calibration) -> dict[str, Any]:
    """What `first_answers` are worth, before and after."""
    before, after, true = first_answers(asked, table)
    best, often = first_answers(asked, table, 1), first_answers(asked, table, distinct=False)
    edges = np.linspace(0, 1, 11)
    told: dict[str, Any] = {"queries": len(best[2]), "answers": len(true), "true": float(true.mean())}
    for i, (name, p) in enumerate((("before", before), ("after", after))):
        told[name] = {"error": error(p, true), "brier": brier(p, true), "error_of_the_best": error(best[i], best[2])}
        told[name] |= {"error_by_triples": error(often[i], often[2])}
        told[name] |= {"bins": bins(p, true), "tenths": bins(p, true, edges)}
    return told


# ---- which feature ---------------------------------------------------------------------------------------------------
def features(asked: Asked) -> dict[str, Array]:
    """What an answer's p could be fitted to, larger for better ones [n, BEST]."""
    with np.errstate(invalid="ignore"):
        gap = asked.score - np.where(np.isfinite(asked.score[:, 9:10]), asked.score[:, 9:10], 0)
    rank = np.where(np.isfinite(asked.x), -np.log1p(np.arange(asked.x.shape[1])), -np.inf)
    return {"score": asked.score, "softmax": asked.x, "gap to the tenth": gap, "rank": rank}


def cross_fitted(asked: list[Asked], relations: int) -> list[dict[str, Any]]:
    """Each feature, fitted to four fifths of the validation queries and measured on the last, in turn."""
    rows = []
    for name in features(asked[0]):
        given = [replace(side, x=features(side)[name]) for side in asked]
        found: list[tuple[Array, ...]] = []
        for fold in range(FOLDS):
            parts = []
            for side in given:  # a query's triples lie in one fold
                _, query = np.unique(side.score, axis=0, return_inverse=True)
                parts.append(np.random.default_rng(SEED).integers(FOLDS, size=query.max() + 1)[query.ravel()] == fold)
            kept, left = ([select(s, p == inside) for s, p in zip(given, parts)] for inside in (False, True))
            found.append(first_answers(left, Calibration(tables(kept, relations))))
        _, p, true = (np.concatenate(x) for x in zip(*found))
        rows.append({"feature": name, "error": error(p, true), "brier": brier(p, true)})
    return rows


def select(asked: Asked, rows: Array) -> Asked:
    return replace(asked, **{name: x[rows] for name, x in vars(asked).items() if name != "side"})


# ---- answer sets -----------------------------------------------------------------------------------------------------
def sets(student: Student, asked: list[Asked], table: Calibration, known: Array, test: Array) -> list[dict[str, Any]]:
    """How many triples' entities their sets hold, and how large the sets are, by coverage and side."""
    size: dict[str, Array] = {side.side: sizes(student, side, table, known, test) for side in asked}
    rows: list[dict[str, Any]] = []
    for i, level in enumerate(COVERAGES):
        least = table.least(level)
        inside: dict[str, Array] = {s.side: s.own >= [least(r, s.side) for r in s.relation.tolist()] for s in asked}
        for which, names in (("head", ["head"]), ("tail", ["tail"]), ("both", ["head", "tail"])):
            held, counted = (np.concatenate([x[n] for n in names]) for x in (inside, {n: size[n][i] for n in names}))
            row = {"asked": level, "side": which, "covered": float(held.mean())}
            rows.append(row | {"mean": float(counted.mean()), "median": float(np.median(counted))})
    return rows


def sizes(student: Student, asked: Asked, table: Calibration, known: Array, test: Array) -> Array:
    """Entities in the sets of `SIZED` triples drawn at random, without what is known [levels, triples]."""
    anchor = next(a for side, a, _ in SIDES if side == asked.side)
    counts = len(student.entities), len(student.relations)
    before = Triples(triple_arrays(known, np.zeros(len(known)), counts[1]), *counts)
    rows, found = np.sort(np.random.default_rng(SEED).permutation(len(test))[:SIZED]), []
    for part in np.array_split(rows, -(-len(rows) // 100)):
        a, r = test[part, anchor], test[part, 1]
        each = list(zip(a.tolist(), r.tolist()))
        left = [np.union1d(before.answers(x, y, asked.side), [] if y in student.reflexive else [x]) for x, y in each]
        score, _ = student.best(a, r, asked.side, len(student.entities), asking.places(left), None)
        x = log_softmax(score, score[:, : calibration.BEST])
        bound = np.array([[table.least(level)(y, asked.side) for _, y in each] for level in COVERAGES])
        found.append((x >= bound[:, :, None]).sum(2))
    return np.concatenate(found, axis=1)


def measure(name: str) -> dict[str, Any]:
    """A published student."""
    began = time.perf_counter()
    student = load_student(name)
    graph = load(student.graph)
    split = {part: student.triples.of(part) for part in ("train", "valid", "test")}
    valid = list(ask(student, split["train"], split["valid"], alone=True))
    told = tables(valid, graph.num_relations)
    fitted, known = time.perf_counter() - began, np.concatenate([split["train"], split["valid"]])
    asked, table = list(ask(student, known, split["test"])), Calibration(told)
    sides = {"head": asked[:1], "tail": asked[1:], "both": asked}
    return {
        "student": name,
        "run_id": student.run_id,
        "precision": student.precision,
        "graph": {**graph.sizes(), "sha256": graph.sha256},
        "tables": len(told["tables"]),
        "features": cross_fitted(valid, graph.num_relations),
        "test": {side: probabilities(part, table) for side, part in sides.items()},
        "sets": sets(student, asked, table, known, split["test"]),
        "seconds": {"fit": round(fitted, 1), "all": round(time.perf_counter() - began, 1)},
    }


def main(arguments: list[str] | None = None) -> int:
    """Write results/bench/calibration.json and print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.calibration", description=__doc__)
    parser.add_argument("--students", nargs="+", default=STUDENTS, help="folders under results/students")
    options = parser.parse_args(arguments)
    config = {"best": calibration.BEST, "least": calibration.LEAST, "knots": calibration.KNOTS, "answers": ANSWERS}
    config |= {"bins": BINS, "folds": FOLDS, "sized": SIZED}
    rows = [measure(name) for name in options.students]
    report = {"config": config, "seed": SEED, "command": records.command(), "device": records.describe_device("cpu")}
    report |= {"threads": cores(), **records.provenance(), "students": rows}
    write_json(results_folder() / "bench" / "calibration.json", report)
    for row in rows:
        for side, told in row["test"].items():
            errors = {when: told[when]["error"] for when in ("before", "after")}
            print(row["student"], side, *(f"{when} {x:.4f}" for when, x in errors.items()))
        for found in row["sets"]:
            print(row["student"], *(f"{key} {x:.4g}" if isinstance(x, float) else x for key, x in found.items()))
    return 0


if __name__ == "__main__":
    run_command(main)
