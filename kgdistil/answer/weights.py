"""The numbers of a student where they lie: rows of an entity, and scans over all of them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from kgdistil.answer.equations import Array, Equation, Side, equation
from kgdistil.answer.format import blocks
from kgdistil.answer.mixed import Mixed, places, right
from kgdistil.answer.native import Codes, Floats
from kgdistil.errors import CheckpointError, ConfigError, short

log = logging.getLogger("kgdistil")
GROUPS = {"4bit": 1, "2bit": 2, "1bit": 4}  # floats of an entity that share four bits
NESTED = "nested"  # codes of some depth: a group's vectors, one from each of its codebooks, are added
DEPTHS = (1, 2, 4, 8)  # of the students of the first codes of a nested one
TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8} | dict.fromkeys((*GROUPS, NESTED), np.uint8)
WHOLE = ("whole", "whole.rows", "whole.scale")  # of entities that have no codes: ids, rows of int8, their scales
SLICE = 1 << 16  # entities that are decoded at a time


class Weights:
    """The weights of a student: `format.layout`, usually views of a memory map.

    Args:
        about: model, dim, norm, offset, epsilon, precision, num_entities, num_relations.
    Raises:
        CheckpointError: arrays that are not those of such a model.
    """

    def __init__(self, about: Mapping[str, Any], arrays: Mapping[str, Array]):
        self.arrays, self.about = arrays, about
        self.precision, self.num_entities = about["precision"], about["num_entities"]
        sizes = {name: about[name] for name in ("norm", "offset", "epsilon")}
        shared = arrays["map"].astype(np.float32) if "map" in arrays else None
        self.equation: Equation = equation(about["model"], about["dim"], **sizes, shared=shared)
        self.blocks, self.scale = arrays["entities"], arrays["entities.scale"] if self.precision == "int8" else None
        self.relations = arrays["relations"].astype(np.float32)
        width, size, self.depth = self.equation.width, GROUPS.get(self.precision, 0), 1
        if self.precision == NESTED:
            self.depth, _, _, size = arrays["entities.book"].shape
        wanted = (-(-self.depth * (width // size) // 2), 64) if size else (width, 16)
        fits = self.blocks.shape == (-(-self.num_entities // wanted[1]), *wanted)
        fits &= self.relations.shape == (about["num_relations"], self.equation.relation_width)
        fits &= self.blocks.dtype == TYPES.get(self.precision) and (not size or width % size == 0)
        if size:
            self.book = arrays["entities.book"].astype(np.float32).reshape(-1, *arrays["entities.book"].shape[-2:])
            fits &= self.book.shape == (self.depth * (width // size), 16, size)
            for depth in [d for d in DEPTHS if d < self.depth]:
                fits &= arrays[f"book_{depth}"].shape == (depth, width // size, 16, size)
                fits &= arrays[f"relations_{depth}"].shape == self.relations.shape
            columns = np.arange(width, dtype=np.int32)
            if self.equation.paired:  # the two halves of a complex number lie beside each other
                columns = columns.reshape(2, -1).T.reshape(-1)
            self.columns = np.tile(columns, self.depth)
            self._place, self._first = np.argsort(columns), 16 * np.arange(len(self.book))  # of a code 0 in all books
        few = [name for name in WHOLE if name in arrays] if self.precision in GROUPS else []
        self.whole = arrays["whole"] if few else None
        if self.whole is not None:
            fits &= len(few) == len(WHOLE) and self.equation.comparison == "dot"
            fits &= right(self.whole, arrays["whole.rows"], arrays["whole.scale"], self.num_entities, width)
        if self.scale is not None:
            fits &= self.scale.shape == (self.num_entities,)
        if not fits:
            raise CheckpointError(f"its numbers are not those of a {short(about['model'])} of that size and precision")

    @property
    def bytes(self) -> int:
        """Of the weights, without what rounds a block up."""
        row = self.blocks.shape[1] * self.blocks.itemsize
        return self.num_entities * row + sum(x.nbytes for name, x in self.arrays.items() if name != "entities")

    @property
    def coded(self) -> bool:
        return self.precision in (*GROUPS, NESTED)

    def rows(self, ids: Array) -> Array:
        """Float32 rows [n, width] of entities by id [n]."""
        at, size = np.asarray(ids), self.blocks.shape[2]
        stored = self.blocks[at // size, :, at % size]
        if not self.coded:
            found = stored.astype(np.float32)
            return found if self.scale is None else found * self.scale[at, None]
        found = self.decoded(stored)
        if self.whole is not None:
            place, own = places(self.whole, at)
            found[own] = self.arrays["whole.rows"][place[own]] * self.arrays["whole.scale"][place[own], None]
        return found

    def decoded(self, stored: Array) -> Array:
        """Float32 rows [n, width] of codes, two a byte [n, ⌈groups / 2⌉]."""
        groups, _, size = self.book.shape
        codes = np.empty((len(stored), stored.shape[1], 2), np.uint8)
        codes[..., 0], codes[..., 1] = stored & 15, stored >> 4
        at = codes.reshape(len(stored), 2 * stored.shape[1])[:, :groups] + self._first
        found = self.book.reshape(-1, size).take(at, 0).reshape(len(stored), self.depth, len(self._place))
        rows = functools.reduce(np.add, found.transpose(1, 0, 2))  # one after the other, as PyTorch adds them
        return rows.take(self._place, 1)

    @property
    def sizes(self) -> dict[int, int]:
        """The depth of the codes of each size in bytes an entity that a nested student has; {} of any other."""
        groups, depths = len(self.book) // self.depth if self.precision == NESTED else 0, DEPTHS
        return {-(-depth * groups // 2): depth for depth in depths if groups and depth <= self.depth}

    def books(self, depth: int) -> list[Array]:
        """The codebooks of students of the codes up to a depth, float32 [1, 2, 4, …, M, 16, g]; one of other codes."""
        if self.precision != NESTED:
            return [self.book[None]]
        names = [f"book_{d}" if d < self.depth else "entities.book" for d in DEPTHS if d <= depth]
        return [self.arrays[name].astype(np.float32) for name in names]

    def shorter(self, size: int) -> dict[str, Array]:
        """The arrays of a student whose entities are the first `size` bytes of codes.

        Raises:
            ConfigError: no such size.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size not in self.sizes:
            there = f"it has {', '.join(map(str, self.sizes))}" if self.sizes else f"it is not {NESTED}"
            raise ConfigError(f"{size} bytes an entity is no size of this student: {there}")
        depth = self.sizes[size]
        if depth == self.depth:
            return dict(self.arrays)
        fewer = [f"{what}_{d}" for what in ("book", "relations") for d in DEPTHS if d < depth]
        found = {name: self.arrays[name] for name in (*fewer, "map") if name in self.arrays}
        own = {"entities.book": self.arrays[f"book_{depth}"], "relations": self.arrays[f"relations_{depth}"]}
        return {"entities": self.blocks[:, :size], **own, **found}

    @functools.cached_property
    def coarsest(self) -> Weights:
        """The student of the first codes, where they lie.

        Raises:
            ConfigError: there is none, or it is compared by no inner products, so that codes are not scanned.
        """
        if len(self.sizes) < 2 or self.equation.comparison != "dot":
            why = f"a shortlist takes a {NESTED} student of several sizes that is compared by inner products"
            own = (
                f"has one size, {self.precision}"
                if len(self.sizes) < 2
                else f"is compared by {self.equation.comparison}"
            )
            raise ConfigError(f"{why}, and this one {own}: leave it out")
        return Weights(self.about, self.shorter(min(self.sizes)))

    def finite(self) -> bool:
        """Whether all numbers are finite, so that there is an order to rank by."""
        shared = [self.relations, *([self.book] if self.coded else []), *([] if self.scale is None else [self.scale])]
        shared += [] if self.whole is None else [self.arrays["whole.scale"] * np.float32(127)]
        shared += [x for name, x in self.arrays.items() if name == "map" or name.startswith(("book_", "relations_"))]
        tiles = [self.blocks] if self.blocks.dtype.kind == "f" else []
        return all(np.isfinite(x).all() for x in (*shared, *tiles))

    def queries(self, anchor: Array, relation: Array, side: Side) -> Array:
        """Query vectors float32 [n, query width] of ids [n]."""
        return self.equation.query(self.rows(anchor), self.relations[relation], side)

    @functools.cached_property
    def scanner(self) -> Codes | Mixed | Floats:
        """What finds the best of all entities, where they lie. Codes that no scan compares are decoded, with a line."""
        comparison, norm = self.equation.comparison, self.equation.norm
        summed = comparison == "dot" or (comparison == "distance" and self.depth == 1)
        if self.coded and (summed or (comparison == "modulus" and self.depth == 1 and self.book.shape[2] % 2 == 0)):
            sizes = self.num_entities, self.book, self.columns, comparison, norm, self.equation.width
            codes = Codes(self.blocks, *sizes)
            return codes if self.whole is None else Mixed(codes, *(self.arrays[name] for name in WHOLE))
        tiles = self.blocks
        if self.coded:
            log.warning("its codes cannot be scanned by their comparison, so they are decoded: that takes longer")
            starts = range(0, self.num_entities, SLICE)
            parts = [self.rows(np.arange(i, min(i + SLICE, self.num_entities))) for i in starts]
            tiles = np.concatenate([blocks(part, 16) for part in parts])
        return Floats(tiles, self.num_entities, self.scale, comparison, norm)

    def score_relations(self, head: int, tail: int) -> Array:
        """Scores float32 [R] of (head, r, tail) for every relation."""
        rows = self.rows(np.array([head, tail]))
        queries = self.equation.query(
            np.broadcast_to(rows[:1], (len(self.relations), rows.shape[1])), self.relations, "tail"
        )
        return self.equation.compare(queries, rows[1:])
