"""The triples a student came with, sorted on disk: what is known of a query, and who was seen in which role."""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kgdistil.answer.equations import Side
from kgdistil.errors import CheckpointError

SPLITS = ("train", "valid", "test")


def arrays(triples: np.ndarray, split: np.ndarray, relations: int) -> dict[str, np.ndarray]:
    """What triples.bin holds, of triples [n, 3] (head, relation, tail) and the split of each, 0 to 2.

    head, tail int32 [n] and split uint8 [n], sorted by relation, head and tail; `first` int64 [R + 1], where each
    relation's triples begin; `by_tail` int32 [n]: their places, sorted by relation, tail and head.
    """
    order = np.lexsort((triples[:, 2], triples[:, 0], triples[:, 1]))
    triples, split = triples[order].astype(np.int32), split[order].astype(np.uint8)
    first = np.searchsorted(triples[:, 1], np.arange(relations + 1)).astype(np.int64)
    by_tail = np.lexsort((triples[:, 0], triples[:, 2], triples[:, 1])).astype(np.int32)
    return {"head": triples[:, 0], "tail": triples[:, 2], "split": split, "first": first, "by_tail": by_tail}


def added(held: Triples, triples: np.ndarray) -> dict[str, np.ndarray]:
    """`arrays` with further training triples [m, 3] that are not held yet, without a sort of all of them."""
    triples = triples[np.lexsort((triples[:, 2], triples[:, 0], triples[:, 1]))]
    h, r, t = triples.astype(np.int32).T
    by_tail = np.lexsort((h, t, r))

    def places(rows: np.ndarray, key: Callable[[int], Any]) -> np.ndarray:
        every, first = range(len(held)), held.first
        return np.array([bisect_left(every, (a, b), first[x], first[x + 1], key=key) for a, b, x in rows.tolist()], int)

    at = places(triples[:, [0, 2, 1]], lambda i: (held.head[i], held.tail[i]))
    turned = lambda i: (held.tail[held.by_tail[i]], held.head[held.by_tail[i]])
    between = places(triples[by_tail][:, [2, 0, 1]], turned)
    moved = (held.by_tail + np.searchsorted(at, held.by_tail, "right")).astype(np.int32)
    return {
        "head": np.insert(held.head, at, h),
        "tail": np.insert(held.tail, at, t),
        "split": np.insert(held.split, at, 0),
        "first": np.array(held.first) + np.searchsorted(r, np.arange(len(held.first))),
        "by_tail": np.insert(moved, between, (at + np.arange(len(at)))[by_tail]),
    }


class Triples:
    """Triples of such arrays. All are looked at once, about 0.3 s for ten million, so that none is missed later.

    Raises:
        CheckpointError: the arrays hold none of a graph of so many entities and relations, or are not sorted.
    """

    def __init__(self, found: Mapping[str, np.ndarray], entities: int, relations: int):
        self.head, self.tail, self.split = found["head"], found["tail"], found["split"]
        self.first, self.by_tail = found["first"].tolist(), found["by_tail"]
        kinds = {"head": "<i4", "tail": "<i4", "split": "|u1", "first": "<i8", "by_tail": "<i4"}
        if any(found[name].dtype != kind or found[name].ndim != 1 for name, kind in kinds.items()):
            raise ValueError("arrays of other kinds")
        n = len(self.head)
        shaped = len(self.first) == relations + 1 and all(len(x) == n for x in (self.tail, self.split, self.by_tail))
        if not shaped or self.first[0] != 0 or self.first[-1] != n or sorted(self.first) != self.first:
            raise CheckpointError("the student's triples are of another graph: copy all its files from one folder")
        for ids, most in ((self.head, entities), (self.tail, entities), (self.by_tail, n), (self.split, len(SPLITS))):
            if n and not 0 <= ids.min() <= ids.max() < most:
                raise CheckpointError("the student's triples are damaged: take an unchanged copy")
        seen = np.zeros(n, bool)
        seen[self.by_tail] = True
        heads, tails = self.head[self.by_tail], self.tail[self.by_tail]
        spans = [self.by_tail[a:b] for a, b in zip(self.first, self.first[1:]) if a < b]
        within = all(x.min() >= at for x, at in zip(spans, sorted({*self.first})))  # then none lies beyond, either
        if not (seen.all() and within and self._ascend(self.head, self.tail) and self._ascend(tails, heads)):
            raise CheckpointError("the student's triples are damaged (they are not sorted): take an unchanged copy")

    def _ascend(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether pairs ascend within each relation."""
        right = (one[1:] > one[:-1]) | ((one[1:] == one[:-1]) & (other[1:] >= other[:-1]))
        right[[at - 1 for at in self.first if 0 < at < len(one)]] = True
        return bool(right.all())

    def __len__(self) -> int:
        return len(self.head)

    def answers(self, anchor: int, relation: int, side: Side) -> np.ndarray:
        """Ids int32, ascending, that complete (anchor, relation, ?) or (?, relation, anchor) in any split."""
        low, high = self.first[relation], self.first[relation + 1]
        if side == "tail":
            start, end = bisect_left(self.head, anchor, low, high), bisect_right(self.head, anchor, low, high)
            return distinct(self.tail[start:end])
        key: Callable[[int], Any] = lambda place: self.tail[place]
        start = bisect_left(self.by_tail, anchor, low, high, key=key)
        end = bisect_right(self.by_tail, anchor, low, high, key=key)
        return distinct(self.head[self.by_tail[start:end]])

    def relations(self, head: int, tail: int) -> list[int]:
        """Relations that hold between two entities in any split."""
        pairs = zip(self.first, self.first[1:])
        return [r for r, (a, b) in enumerate(pairs) if a < b and tail in self.answers(head, r, "tail")]

    @functools.lru_cache(maxsize=8)  # noqa: B019 - as many as a batch may take turns with; they go with the student
    def seen(self, relation: int, side: Side) -> np.ndarray:
        """Ids that stand in that place of a training triple of the relation, ascending."""
        low, high = self.first[relation], self.first[relation + 1]
        ids = (self.tail if side == "tail" else self.head)[low:high]
        return np.unique(ids[self.split[low:high] == 0])

    def of(self, split: str) -> np.ndarray:
        """The triples [n, 3] of one split, int64, in the order of this file."""
        relation = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        chosen = self.split == SPLITS.index(split)
        return np.stack([self.head[chosen], relation[chosen], self.tail[chosen]], axis=1).astype(np.int64)


def distinct(ids: np.ndarray) -> np.ndarray:
    """Ids that ascend, each once; a triple may stand in two splits."""
    return ids if len(ids) < 2 or (ids[1:] > ids[:-1]).all() else np.unique(ids)
