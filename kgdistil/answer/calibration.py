"""How likely an answer is true, and how many answers hold the missing one: tables that a student's folder carries.

What decides is x, the logarithm of an answer's softmax among the `best` (100) entities of its query that no triple
names yet. A table has, for answers of some relations and one side, the probability `p` of being true at knots of `x`,
and `sets`, how small x may be for an answer to belong to a set of each of the `levels` (split conformal prediction).
`kgdistil.students.calibration` fits them on validation triples.
"""

from __future__ import annotations

import itertools
import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kgdistil.answer import asking
from kgdistil.answer.equations import Array, Side
from kgdistil.errors import ConfigError

log = logging.getLogger("kgdistil")
LEVELS = tuple(round(0.01 * i, 2) for i in range(50, 100))
MOST = 1000  # answers of a set, unless k says otherwise
NONE = (
    "this student's probabilities were never calibrated: kgdistil calibrate STUDENT fits them to its graph, "
    "which takes 30 validation triples"
)
Judge = Callable[[Array, Array, Side, Array, Array], tuple[Array, dict[str, Array]]]


def log_softmax(score: Array, best: Array) -> Array:
    """Scores [n, k] of each query beside its best ones [n, ≤100], −inf past the last: x, float64 [n, k]."""
    best = np.asarray(best, np.float64)
    most = best.max(1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):  # no candidate at all: −inf, and no answer to judge either
        return score - (most + np.log(np.exp(best - most).sum(1, keepdims=True)))


def right(told: Any) -> bool:
    """Whether this is what a header may say of calibration."""
    numbers = lambda x: isinstance(x, list) and all(type(y) in (int, float) and abs(y) < 1e9 for y in x)
    rising = lambda x: numbers(x) and len(x) > 0 and all(a <= b for a, b in itertools.pairwise(x))
    try:
        tables, levels = told["tables"], told["levels"]
        places = all(0 <= x < len(tables) and type(x) is int for side in ("head", "tail") for x in told[side])
        return (
            (type(told["best"]) is int and 0 < told["best"] < 1 << 20)
            and (rising(levels) and levels[0] > 0 and levels[-1] < 1)
            and (places and len(told["head"]) == len(told["tail"]))
            and all(rising(t["x"]) and rising(t["p"]) and len(t["x"]) == len(t["p"]) for t in tables)
            and all(t["p"][0] >= 0 and t["p"][-1] <= 1 for t in tables)
            and all(rising([-x for x in t["sets"]]) and len(t["sets"]) == len(levels) for t in tables)
        )
    except (LookupError, TypeError):
        return False


class Calibration:
    """The tables of a header, `right` ones."""

    def __init__(self, told: Mapping[str, Any]):
        self.best, self.levels = told["best"], told["levels"]
        self.tables = [{name: np.array(x, np.float64) for name, x in table.items()} for table in told["tables"]]
        self.of: dict[Side, list[int]] = {"head": told["head"], "tail": told["tail"]}

    def probability(self, x: Array, relation: int, side: Side) -> Array:
        """Of answers to a query, float64 [k] by their x: interpolated, and at the ends as at the last knot."""
        table = self.tables[self.of[side][relation]]
        return np.interp(x, table["x"], table["p"])

    def least(self, coverage: float) -> Callable[[int, Side], float]:
        """How small x may be in a set of that coverage, by relation and side: that of the next level up.

        Raises:
            ConfigError: beyond the highest level, or no share.
        """
        if isinstance(coverage, bool) or not isinstance(coverage, int | float) or not 0 < coverage <= self.levels[-1]:
            raise ConfigError(f"coverage is {coverage!r}; it must be above 0 and at most {self.levels[-1]}")
        at = bisect_left(self.levels, coverage - 1e-9)
        return lambda relation, side: float(self.tables[self.of[side][relation]]["sets"][at])

    def judge(self, who: Any, probability: bool, coverage: float | None, most: int, cuts: list[int]) -> Judge:
        """What `asking.ask` hands its answers to: columns to add, and −1 in place of those outside the set.

        Args:
            who: the student, with its triples.
            most: answers of a set that are given; a log line says so where there are more.
            cuts: takes the number of such sets.
        """
        least = None if coverage is None else self.least(coverage)

        def judged(
            anchor: Array, relation: Array, side: Side, score: Array, answer: Array
        ) -> tuple[Array, dict[str, Array]]:
            out = asking.leave_out(who, anchor, relation, side, new=True)
            x = log_softmax(score, who.best(anchor, relation, side, self.best, out, None)[0])
            columns = {}
            if least is not None:
                bound = np.array([least(int(r), side) for r in relation])[:, None]
                answer = np.where(x >= bound, answer, -1)
                cuts.append(cut := int((answer[:, most:] >= 0).any(1).sum()))
                if cut:
                    log.warning(
                        "%s of %s answer sets have more than %s answers and are cut there, so that they cover less "
                        "than %s; a larger k gives them whole",
                        *(cut, len(answer), f"{most:,}", coverage),
                    )
                answer[:, most:] = -1
            if probability:
                columns["probability"] = np.empty(x.shape)
                for row, ids, into, a, r in zip(x, answer, columns["probability"], anchor.tolist(), relation.tolist()):
                    into[:] = self.probability(row, r, side)
                    into[np.isin(ids, who.known(a, r, side))] = 1  # the graph says so
            return answer, columns

        return judged


def of(who: Any) -> Calibration:
    """A student's tables.

    Raises:
        ConfigError: it has none.
    """
    if not who.header.get("calibration"):
        raise ConfigError(NONE)
    return Calibration(who.header["calibration"])
