"""Probabilities and answer sets of a student, fitted on its validation triples: the tables of `answer.calibration`.

A validation triple asks two queries, (h, r, ?) and (?, r, t); what training holds is left out. An answer is true where
the validation split holds it. So p is the share of true ones among answers of that softmax, of queries that have one,
and a true answer that the graph lacks counts as false. Test triples play no part.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kgdistil.answer import adding, asking
from kgdistil.answer.calibration import LEVELS, log_softmax
from kgdistil.answer.equations import Array, Side
from kgdistil.answer.format import HEADER, write_header
from kgdistil.answer.student import RANKED, SIDES, Student, load_student, located
from kgdistil.answer.triples import Triples
from kgdistil.answer.triples import arrays as triple_arrays
from kgdistil.errors import ConfigError

BEST = 100  # entities of a query whose softmax is taken
LEAST, FEWEST = 300, 30  # validation triples for a relation's own table, and for any
MOST = 20_000  # validation triples that are asked, drawn at random where there are more
KNOTS = 24
EVERYTHING = -1e6  # x of a set that all entities belong to


@dataclass(frozen=True)
class Asked:
    """n triples asked on one side. The best answers of each: `score` and `x` float64 [n, BEST], and which of them are
    `true`; `own`: x of the triple's own entity; `first`: whether it is the first triple that asks this query."""

    side: Side
    relation: Array
    first: Array
    score: Array
    x: Array
    true: Array
    own: Array


def ask(student: Student, known: Array, held: Array, alone: bool = False) -> Iterator[Asked]:
    """Triples held out [n, 3] asked on both sides; answers of the known triples [m, 3] are left out.

    Args:
        alone: for `own` other answers that are held out are left out, too: what is asked later knows them.
    """
    sizes = len(student.entities), len(student.relations)
    before, now = (Triples(triple_arrays(x, np.zeros(len(x)), sizes[1]), *sizes) for x in (known, held))
    equation, weights = student.weights.equation, student.weights
    for side, anchor, target in SIDES:
        a, r, goal = held[:, anchor], held[:, 1], held[:, target]
        itself = np.array([x not in student.reflexive for x in r.tolist()])  # its entity is no answer
        queries, first, place = np.unique(held[:, [anchor, 1]], axis=0, return_index=True, return_inverse=True)
        parts = []
        for i in range(0, len(queries), RANKED):  # each query once: a few may have millions of answers
            part = queries[i : i + RANKED]
            left = [np.union1d(before.answers(x, y, side), own_of(student, x, y)) for x, y in part.tolist()]
            score, answer = student.best(part[:, 0], part[:, 1], side, BEST, asking.places(left), None)
            true = np.stack([np.isin(ids, now.answers(x, y, side)) for ids, (x, y) in zip(answer, part.tolist())])
            parts.append((score, answer, true))
        score, answer, true = (np.concatenate(column)[place.reshape(-1)] for column in zip(*parts))
        own = equation.compare(weights.queries(a, r, side), weights.rows(goal))[:, None]
        among = np.where(true & (answer != goal[:, None]), -np.inf, score) if alone else score
        own = np.where(itself & (a == goal), -np.inf, np.minimum(log_softmax(own, among)[:, 0], 0))
        score, x = score.astype(np.float64), log_softmax(score, score)
        yield Asked(side, held[:, 1], np.isin(np.arange(len(held)), first), score, x, true, own)


def own_of(student: Student, anchor: int, relation: int) -> Array:
    """The query's own entity, where it is no answer."""
    return np.array([anchor] if relation not in student.reflexive else [], np.int32)


def fit(student: Student) -> dict[str, Any]:
    """What the header of a student with triples says as `calibration`.

    Each relation and side with at least LEAST validation triples has a table of its own, all others of a side share
    one. p is isotonic regression, over distinct queries. A set's bound is the split conformal quantile, over triples.

    Raises:
        ConfigError: fewer than FEWEST validation triples.
    """
    valid = student.triples.of("valid")
    if len(valid) < FEWEST:
        raise ConfigError(
            f"{len(valid)} validation triples calibrate nothing: it takes {FEWEST}; make a student of a graph with more"
        )
    if len(valid) > MOST:
        valid = valid[np.sort(np.random.default_rng(0).choice(len(valid), MOST, replace=False))]
    return tables(list(ask(student, student.triples.of("train"), valid, alone=True)), len(student.relations))


def tables(asked: list[Asked], relations: int) -> dict[str, Any]:
    """`fit` of what was asked."""
    told: dict[str, Any] = {"best": BEST, "queries": sum(len(x.own) for x in asked), "levels": list(LEVELS)}
    told["tables"] = []
    for side in asked:
        count = np.bincount(side.relation, minlength=relations)
        frequent, own = np.flatnonzero(count >= LEAST), (count >= LEAST)[side.relation]
        rest = ~own if (~own).sum() >= FEWEST else np.ones(len(own), bool)
        group = np.full(relations, len(told["tables"]))
        group[frequent] += np.arange(1, 1 + len(frequent))
        told["tables"] += [table(side, rest), *(table(side, side.relation == r) for r in frequent)]
        told[side.side] = group.tolist()
    return told


def table(asked: Asked, part: Array) -> dict[str, list[float]]:
    """The table of some of the triples."""
    from scipy.optimize import isotonic_regression

    x, true = (values[part & asked.first] for values in (asked.x, asked.true))
    there = np.isfinite(x)
    x, true = x[there], true[there]
    ends = [x.min(), x.max()]
    # One more at each end, false at the top and true at the bottom: nothing is certain.
    at, place = np.unique(np.concatenate([x, ends]), return_inverse=True)
    trues, count = np.bincount(place, np.concatenate([true, [1, 0]])), np.bincount(place)
    fitted = isotonic_regression(trues / count, weights=count).x
    of = [x, x[true]] if true.any() else [x]  # dense where answers are, and where true ones are
    knots = np.unique(np.round(np.concatenate([np.quantile(y, np.linspace(0, 1, KNOTS)) for y in of]), 4))
    own, n = np.sort(-asked.own[part]), int(part.sum())
    places = [math.ceil((n + 1) * level) for level in LEVELS]
    bounds = [-own[k - 1] if k <= n else EVERYTHING for k in places]
    return {
        "x": knots.tolist(),
        "p": np.round(np.interp(knots, at, fitted), 5).tolist(),
        # Rounded down: a score is added up in another order when it is scanned.
        "sets": [math.floor(1e4 * x - 1) / 1e4 if x > EVERYTHING else EVERYTHING for x in bounds],
    }


def calibrate(folder: str | os.PathLike) -> Student:
    """Fit the tables of a student's folder and write its header with them; one of format 1 is converted.

    Args:
        folder: or the name of a published student, in a checkout.
    Raises:
        ConfigError: it came without triples, or with too few. BusyError: another process is changing the
            folder. KgdistilError: it cannot be written.
    """
    folder = located(folder)
    load_student(folder)  # what is none is refused before a lock is laid there
    with adding.alone(folder):
        student = load_student(folder)
        student.header = {**student.header, "calibration": fit(student)}
        if (folder / HEADER).is_file():
            write_header(folder, student.header)
        else:
            student.replace(folder)
    return student
