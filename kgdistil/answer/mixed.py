"""Entities that are codes but for a few whole ones, rows of int8: the calls of `native.Codes` over both."""

from __future__ import annotations

import numpy as np

from kgdistil.answer.native import BLOCK, Array, Codes, Floats, Known, tiled
from kgdistil.errors import ConfigError


def right(ids: Array, rows: Array, scale: Array, entities: int, width: int) -> bool:
    """Whether whole entities are ids int32 [K] in order, int8 rows [K, width] and scales float32 [K]."""
    found = ids.dtype == np.int32 and ids.ndim == 1 and len(ids) > 0 and rows.shape == (len(ids), width)
    found = found and rows.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == ids.shape
    return bool(found and ids[0] >= 0 and ids[-1] < entities and (ids[1:] > ids[:-1]).all())


def places(ids: Array, entities: Array) -> tuple[Array, Array]:
    """Where entities [n] stand among ids [K] in order, int64 [n], and which of them do, bool [n]."""
    place = np.searchsorted(ids, entities).clip(max=len(ids) - 1)
    return place, ids[place] == entities


class Mixed:
    """Inner products with entities of four-bit codes, of whom a few have a row in their place.

    Args:
        codes: of all entities; what stands there of the whole ones is not read.
        ids: int32 [K], ascending. rows: int8 [K, W]. scale: float32 [K]: the whole entities, scale[i] · rows[i].
    Raises:
        ConfigError: codes that are not compared by inner products, or arrays that are not `right`.
    """

    def __init__(self, codes: Codes, ids: Array, rows: Array, scale: Array):
        if not right(ids, rows, scale, codes.num_entities, codes.width):
            shapes = ", ".join(f"{x.dtype} {list(x.shape)}" for x in (ids, rows, scale))
            raise ConfigError(f"whole entities are {shapes}: give ids in order, int8 rows of {codes.width}, and scales")
        if codes.comparison != "dot":
            raise ConfigError(f"whole entities are compared by inner products, and these by {codes.comparison}")
        self.codes, self.ids, self.num_entities, self.width = codes, ids, codes.num_entities, codes.width
        self.library = codes.library
        there = np.ones(-(-self.num_entities // BLOCK) * BLOCK, bool)
        there[ids] = False
        self.coded = np.packbits(there, bitorder="little").view("<u8").astype(np.uint64)
        self.rows = Floats(tiled(rows), len(ids), np.array(scale), "dot", native=codes.native)

    def top(
        self,
        queries: Array,
        k: int,
        leave_out: Known | None = None,
        allowed: Array | None = None,
        threads: int | None = None,
    ) -> tuple[Array, Array]:
        """As `Codes.top`."""
        queries, leave_out, allowed = self.codes.checked(queries, leave_out, allowed)
        coded = self.coded if allowed is None else allowed & self.coded
        score, best = self.codes.top(queries, k, leave_out, coded, threads)
        few = None if allowed is None else self._bits(allowed)
        more, whole = self.rows.top(queries, k, self._left_out(leave_out), few, threads)
        score, best = np.hstack([score, more]), np.hstack([best, np.where(whole < 0, -1, self.ids[whole])])
        order = np.lexsort((np.where(best < 0, self.num_entities, best), -score), axis=-1)[:, :k]
        found = np.take_along_axis(score, order, axis=1), np.take_along_axis(best, order, axis=1)
        return found[0], found[1].astype(np.int32)

    def counts(
        self, queries: Array, target: Array, leave_out: Known | None = None, threads: int | None = None
    ) -> tuple[Array, Array]:
        """As `Codes.counts`."""
        queries, leave_out, _ = self.codes.checked(queries, leave_out)
        target, goal = self.codes.targets(target, len(queries)), np.empty(len(queries), np.float32)
        place, whole = places(self.ids, target)
        goal[~whole] = self.codes.scores_of(queries[~whole], target[~whole])
        if whole.any():
            alone = np.zeros((int(whole.sum()), -(-len(self.ids) // BLOCK) * BLOCK), bool)
            alone[np.arange(len(alone)), place[whole]] = True
            bits = np.packbits(alone, axis=-1, bitorder="little").view("<u8").astype(np.uint64)
            goal[whole] = self.rows.top(queries[whole], 1, None, bits, threads)[0][:, 0]
        own, left_out = np.where(whole, place, -1), self._left_out(leave_out)
        one = self.codes.counts(queries, target, leave_out, threads, self.coded, goal)
        other = self.rows.counts(queries, own, left_out, threads, None, goal)
        return one[0] + other[0], one[1] + other[1]

    def _left_out(self, known: Known | None) -> Known | None:
        """`Known` with places among the whole entities."""
        if known is None:
            return None
        start, end, ids = known
        count = (end - start).clip(min=0)
        last = count.cumsum()
        if len(last) and last[-1] > len(ids):  # spans that share most of it: each id is looked up once
            place, there = places(self.ids, ids)
            sums = np.concatenate([[0], there.cumsum()])
            return sums[start], sums[np.maximum(start, end)], place[there].astype(np.int32)
        at = np.arange(last[-1] if len(last) else 0) + np.repeat(start - (last - count), count)
        place, there = places(self.ids, ids[at])
        sums = np.concatenate([[0], there.cumsum()])
        return sums[last - count], sums[last], place[there].astype(np.int32)

    def _bits(self, allowed: Array) -> Array:
        """Which whole entities may come, of the bits of all, as `top` takes them."""
        bits = allowed[..., self.ids // BLOCK] >> (self.ids % BLOCK).astype(np.uint64) & np.uint64(1)
        room = np.zeros((*bits.shape[:-1], -(-len(self.ids) // BLOCK) * BLOCK), bool)
        room[..., : len(self.ids)] = bits
        return np.packbits(room, axis=-1, bitorder="little").view("<u8").astype(np.uint64)
