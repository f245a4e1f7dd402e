"""The score functions of `kgdistil.models` in numpy, as answers need them: a query, and how it compares with an entity.

All numbers are float32; a row [..., width] is an entity or a relation, `side` says what is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kgdistil.errors import CheckpointError, ForeignModelError, short

Array = np.ndarray
LOW_RANK = ("LowRankComplEx", "LowRankReciprocal")  # models whose entities have a map
Side = Literal["head", "tail"]


@dataclass(frozen=True)
class Equation:
    """One model's score: `comparison` of `query` with an entity, plus `offset` where it is a distance.

    `rows` is what an entity's numbers stand for, which for a low rank lies in another space; `width` and
    `relation_width` are floats an entity and a relation hold.
    """

    comparison: str  # "dot", "distance", "modulus" or "hyperplane"; larger is better
    norm: int
    offset: float
    width: int
    relation_width: int
    paired: bool  # the halves of a row are real and imaginary parts
    query: Callable[[Array, Array, Side], Array]
    rows: Callable[[Array], Array]

    def compare(self, queries: Array, entities: Array) -> Array:
        """Scores [...] of queries and entities that broadcast against each other, without a scan."""
        if self.comparison == "dot":
            return np.einsum("...i,...i->...", queries, entities)
        if self.comparison == "hyperplane":
            queries, normal = halves(queries)
            entities = on_hyperplane(entities, normal)
        difference = queries - entities
        if self.comparison == "modulus":
            difference = np.sqrt(sum(x * x for x in halves(difference)))
        return self.offset - np.linalg.norm(difference, self.norm, axis=-1)


def halves(x: Array) -> tuple[Array, Array]:
    """The two halves [..., d] of rows [..., 2·d]: views, in a tenth of the time of `np.split`."""
    middle = x.shape[-1] // 2
    return x[..., :middle], x[..., middle:]


def product(a: Array, b: Array) -> Array:
    """a ∘ b (elementwise, complex), both stored as [..., 2·d]."""
    (ar, ai), (br, bi) = halves(a), halves(b)
    return np.concatenate([ar * br - ai * bi, ar * bi + ai * br], axis=-1)


def conjugate(x: Array) -> Array:
    real, imaginary = halves(x)
    return np.concatenate([real, -imaginary], axis=-1)


def on_hyperplane(x: Array, normal: Array) -> Array:
    """x − (w·x)w, as in TransH."""
    return x - (x * normal).sum(-1, keepdims=True) * normal


def transe(anchor: Array, r: Array, side: Side) -> Array:
    return anchor + r if side == "tail" else anchor - r


def transh(anchor: Array, r: Array, side: Side, unit: bool) -> Array:
    translation, normal = halves(r)
    if unit:
        normal = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), np.float32(1e-12))
    point = transe(on_hyperplane(anchor, normal), translation, side)
    return np.concatenate([point, np.broadcast_to(normal, point.shape)], axis=-1)


def complex_(anchor: Array, r: Array, side: Side) -> Array:
    return product(anchor, r if side == "tail" else conjugate(r))


def reciprocal(anchor: Array, r: Array, side: Side) -> Array:
    return complex_(anchor, halves(r)[side == "head"], side)


def simple(anchor: Array, r: Array, side: Side) -> Array:
    (first, second), (forward, backward) = halves(anchor), halves(r)
    if side == "head":
        forward, backward = backward, forward
    return np.concatenate([second * backward, first * forward], axis=-1) / np.float32(2)


def equation(
    model: str, dim: int, *, norm: int = 1, offset: float = 0.0, epsilon: float = 2.0, shared: Array | None = None
) -> Equation:
    """The equation of a model by its name, as `kgdistil.models` has it.

    `shared` is the map [rank, 2·dim] of a low rank.

    Raises:
        CheckpointError: no such model, or sizes that are impossible.
    """

    def rotate(anchor: Array, r: Array, side: Side) -> Array:
        angle = r * np.float32(math.pi / ((offset + epsilon) / dim))
        rotation = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
        return complex_(anchor, rotation, side)

    def low_rank(anchor: Array, r: Array, side: Side) -> Array:
        assert shared is not None
        return each(within(each(anchor, shared), r, side), shared.T)

    def each(rows: Array, by: Array) -> Array:
        """rows @ by, row by row: BLAS adds up in another order when it is given several."""
        return np.array([row @ by for row in rows.reshape(-1, len(by))], rows.dtype).reshape(
            *rows.shape[:-1], by.shape[1]
        )

    within = reciprocal if model == "LowRankReciprocal" else complex_
    if norm not in (1, 2) or dim < 1 or (model in LOW_RANK) != (shared is not None):
        raise CheckpointError(f"no student is a {short(model)} of dimension {short(dim)} and norm {short(norm)}")
    if shared is not None and (shared.ndim != 2 or shared.shape[1] != 2 * dim):
        raise CheckpointError(f"the map of a low rank is {list(shared.shape)}, and not [rank, {2 * dim}]")
    if model == "RotatE" and not (offset + epsilon) / dim > 1e-30:
        raise CheckpointError(f"RotatE with offset + epsilon = {offset + epsilon} has no angles")
    same = lambda rows: rows
    wide: dict[str, Any] = {"width": 2 * dim, "relation_width": 2 * dim, "paired": True}
    flat: dict[str, Any] = {"width": dim, "relation_width": dim, "paired": False}
    translated: dict[str, Any] = {"norm": norm, "offset": offset, "rows": same}
    inner: dict[str, Any] = {"comparison": "dot", "norm": 1, "offset": 0.0}
    found = {
        "TransE": lambda: Equation("distance", **translated, **flat, query=transe),
        "TransH": lambda: hyperplane(True),
        "FreeTransH": lambda: hyperplane(False),
        "ComplEx": lambda: Equation(**inner, **wide, query=complex_, rows=same),
        "ReciprocalComplEx": lambda: Equation(
            **inner, **(wide | {"relation_width": 4 * dim}), query=reciprocal, rows=same
        ),
        "SimplE": lambda: Equation(**inner, **(wide | {"paired": False}), query=simple, rows=same),
        "DistMult": lambda: Equation(**inner, **flat, query=lambda a, r, _: a * r, rows=same),
        "RotatE": lambda: Equation(
            "modulus" if norm == 1 else "distance",
            **translated,
            width=2 * dim,
            relation_width=dim,
            paired=True,
            query=rotate,
        ),
    }
    found |= {
        name: lambda: Equation(
            **inner,
            width=0 if shared is None else len(shared),
            relation_width=2 * dim if within is complex_ else 4 * dim,
            paired=False,
            query=low_rank,
            rows=lambda rows: rows @ shared,
        )
        for name in LOW_RANK
    }

    def hyperplane(unit: bool) -> Equation:
        query = lambda anchor, r, side: transh(anchor, r, side, unit)
        return Equation("hyperplane", **translated, width=dim, relation_width=2 * dim, paired=False, query=query)

    if model not in found:
        raise ForeignModelError(f"{short(model)} is no model that answers without PyTorch, as {', '.join(found)} do")
    return found[model]()
