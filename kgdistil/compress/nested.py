"""One student, several sizes: the first codes of each entity are a student of fewer bytes.

A group of floats has `depth` codes, and a student of the first 1, 2, 4, … of them has decoders of its own: a codebook
[1, 2, 4, …, M, 16, g] whose vectors are added (residual quantisation, Juang and Gray 1982), and relations. What all
share are the codes. The j-th code of a group is the nearest vector to what the codes before it leave, by the smallest
student that has it.

A smaller student may have fewer dimensions as well (`spread`): the two smallest have the same, the next twice as many,
and so on (`seen`). They are the first floats of each group; its codebook and so its rows are 0 beyond, and no gradient
changes that. The model that it begins as may be the mean of several, side by side (`paper.ensemble.joined`), of which
the smallest students then have the first.

All sizes can be trained together, each in its share of the steps, or one after another (`carried`): a student of few
bits is then taken as it is, its codes are the first ones of the next size and stay, and only what is new is trained.

A model of such codes keeps them as buffers beside the rows that they stand for: `codes` uint8 [E, depth · M], the first
ones of all groups before the second ones, `book` float32 [depth, M, 16, g], and for each smaller depth d `book_d` and
`relations_d`. Its file has the precision "nested".
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kgdistil.answer.weights import DEPTHS, NESTED
from kgdistil.compress import product, whole
from kgdistil.errors import ConfigError
from kgdistil.models import KGEModel
from kgdistil.sampling import GOLDEN, mix, shift_right

Model = TypeVar("Model", bound=KGEModel)
ROUNDS = 5  # in which the vectors of codes that are there already become the means of what the others leave


def fit(rows: Tensor, size: int, paired: bool, depth: int, spread: bool = False, codes: Tensor | None = None) -> Tensor:
    """A codebook [depth, M, 16, size] of rows [n, W]: each `product.fit` of what those before it leave; if `spread`
    each two of their own floats of a group alone. `codes` uint8 [n, .] are those that the first ones have already."""
    which = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(rows.device)[: product.FITTED]
    rows, books = rows[which], list[Tensor]()
    if codes is not None:
        found = means(product.grouped(rows, size, paired), codes[which])
        books, rows = list(found), rows - product.rows_of(codes[which], found, paired)
    for level in range(len(books), depth):
        fitted = rows
        if spread:
            groups, own = product.grouped(rows, size, paired), seen(size, 1, depth)
            outside = (torch.arange(size, device=rows.device) // own) != level // 2
            fitted = product.ungrouped(groups.masked_fill(outside, 0), paired)
        books.append(product.fit(fitted, size, paired))
        rows = rows - product.rows_of(product.codes_of(rows, books[-1], paired), books[-1], paired)
    return torch.stack(books)


def means(groups: Tensor, codes: Tensor) -> Tensor:
    """The codebook [L, M, 16, g] by which codes uint8 [n, L · M] say groups [n, M, g] best: in turns, each vector is
    the mean of what the others leave where it stands (least squares)."""
    m, g = groups.shape[1:]
    each = [product.places(level).flatten() for level in codes.split(m, 1)]
    book = groups.new_zeros(len(each), m * product.SIXTEEN, g)
    counts = [places.bincount(minlength=book.shape[1]).clamp_min(1)[:, None] for places in each]
    for _ in range(ROUNDS):
        for i, places in enumerate(each):
            others = (level[at] for k, (level, at) in enumerate(zip(book, each, strict=True)) if k != i)
            left = functools.reduce(torch.sub, others, groups.flatten(0, 1))
            book[i] = torch.zeros_like(book[i]).index_add_(0, places, left) / counts[i]
    return book.unflatten(1, (m, product.SIXTEEN))


def codes_of(
    rows: Tensor, books: Sequence[Tensor], paired: bool, places: Tensor | None = None, first: Tensor | None = None
) -> Tensor:
    """Codes uint8 [n, depth · M] of rows [n, W], or of those at places [n], by the codebooks of all depths; `first`
    uint8 [., .] are the first ones of all rows, where they are given."""
    if books[-1].ndim == 3:  # of no depth
        return product.codes_of(rows, books[-1], paired, places)
    rows, m = rows if places is None else rows.index_select(0, places), books[-1].shape[1]
    codes = list[Tensor]() if first is None else list((first if places is None else first[places]).split(m, 1))
    for book in books:
        left = rows
        for i, level in enumerate(book):
            if i == len(codes):
                codes.append(product.codes_of(left, level, paired))
            left = left - product.rows_of(codes[i], level, paired)
    return torch.cat(codes, dim=1)


def seen(size: int, depth: int, deepest: int) -> int:
    """How many floats of each group the student of a depth has, of a student whose codes are `spread`."""
    return size * max(2, depth) // deepest


# ---- in training ----------------------------------------------------------------------------------------------------
def of(depth: int, deepest: int) -> str:
    """How the names of what the student of a depth has of its own end; `deepest` is the depth of all codes."""
    return "" if depth == deepest else f".{depth}"


def learned(
    student: KGEModel, size: int, depth: int, kept: Tensor | None = None, spread: bool = False
) -> dict[str, Tensor]:
    """What is learned besides the student's tables: a codebook, and of a depth above 1 what smaller students have.

    `kept` [E]: entities without codes (`whole`).

    Raises:
        ConfigError: the codes that the student begins with (`carried`) are not half of all.
    """
    if spread:
        side_by_side(student, size, depth)
    if (first := begun(student)) is not None:
        return learned_besides(student, first, size, depth, spread)
    rows, relations = student.entities.data, student.relations.data
    if depth == 1:
        coded = rows if kept is None or kept.all() else rows[~kept]
        return {"student.codebook": product.fit(coded, size, student.paired)}
    book = fit(rows, size, student.paired, depth, spread)
    found = {"student.codebook" + of(d, depth): book[:d].clone() for d in DEPTHS if d <= depth}
    share = {d: size / seen(size, d, depth) if spread else 1 for d in DEPTHS if d < depth}  # its scores are as large
    found |= {"student.relations" + of(d, depth): relations * each for d, each in share.items()}
    as_coded(student, found)  # so that it has its buffers from the beginning
    return found


def begun(student: KGEModel) -> Tensor | None:
    """The codes uint8 [E, .] that a model has from a smaller student (`carried`), and that stay."""
    buffers = dict(student.named_buffers())
    return None if "book" in buffers else buffers.get("codes")


def learned_besides(student: KGEModel, first: Tensor, size: int, depth: int, spread: bool) -> dict[str, Tensor]:
    """`learned` of a model that begins with the first half of its codes: what the smaller students have is theirs."""
    rows, found = student.entities.data, dict[str, Tensor]()
    groups, below = rows.shape[1] // size, [d for d in DEPTHS if d < depth]
    if first.shape[1] * 2 != depth * groups or f"book_{max(below)}" not in dict(student.named_buffers()):
        raise ConfigError(
            f"depth is {depth} and group {size}: a student of {first.shape[1]} codes an entity becomes one of twice as "
            f"many, in as many groups, and this would have {depth * groups}"
        )
    for d in below:
        book, relations = getattr(student, f"book_{d}"), getattr(student, f"relations_{d}")
        own = book.shape[-1] // (1 + student.paired)
        parts = relations.view(len(relations), -1, groups, own)  # whose other floats meet those of a book that are 0
        found[f"student.relations.{d}"] = F.pad(parts, (0, size // (1 + student.paired) - own)).flatten(1)
        found[f"student.codebook.{d}"] = F.pad(book, (0, size - book.shape[-1]))
    found["student.codebook"] = fit(rows, size, student.paired, depth, spread, first)
    as_coded(student, found, first=first)
    return found


def carried(model: Model, smaller: KGEModel, size: int) -> Model:
    """The model itself with the codes of a smaller student and what that one has of its own: as such a start, those
    stay (`begun`), and a depth of twice as many is trained.

    Args:
        smaller: of few bits, nested or with groups of `size` floats of one code.
    Raises:
        ConfigError: it has no codes.
    """
    buffers = {name: x for name, x in smaller.named_buffers() if is_buffer(name)}
    rows, book = smaller.entities.data, buffers.pop("book", None)
    if book is None:
        level = product.exact(rows, size, smaller.paired)
        if level is None:
            raise ConfigError(f"its rows are no codes of groups of {size} floats: give a student of few bits")
        book, buffers = level[None], {"codes": product.codes_of(rows, level, smaller.paired)}
    own = {f"book_{len(book)}": book, f"relations_{len(book)}": smaller.relations.data}
    return attach(model, {**buffers, **own})


def side_by_side(student: KGEModel, size: int, depth: int) -> None:
    """Put a model's dimensions in another order, in place: the first ones become the first floats of all groups."""
    own = seen(size, 1, depth) // (2 if student.paired else 1)
    order = torch.arange(student.dim, device=student.entities.device).view(depth // 2, -1, own)
    order = order.transpose(0, 1).flatten()
    for table in (student.entities.data, student.relations.data):
        parts = table.chunk(table.shape[1] // student.dim, dim=1)
        table.copy_(torch.cat([part[:, order] for part in parts], dim=1))


def books(learned: Mapping[str, Tensor], depth: int) -> list[Tensor]:
    """The codebooks of all depths up to one."""
    all_ = learned["student.codebook"]
    if all_.ndim == 3:
        return [all_]
    return [learned["student.codebook" + of(d, len(all_))] for d in DEPTHS if d <= depth]


def drawn(base: Tensor, depth: int, first: Tensor | None = None) -> int:
    """The depth that a step trains, each as often as the others, by the step's own random number; all of it where the
    `first` codes stay."""
    if depth == 1 or first is not None:
        return depth
    return 1 << int((shift_right(mix(base - GOLDEN), 32) * depth.bit_length()) >> 32)


def as_coded(
    student: KGEModel, learned: Mapping[str, Tensor], kept: Tensor | None = None, first: Tensor | None = None
) -> Tensor:
    """The rows [E, W] that the student's codes stand for, and those in `kept` [E] rounded to int8; of a depth above 1
    it has all of `attach` from now on. `first` as `codes_of` takes it."""
    book = learned["student.codebook"]
    depth = len(book) if book.ndim == 4 else 1
    codes = codes_of(student.entities.data, books(learned, depth), student.paired, first=first)
    if depth > 1:
        below = [d for d in DEPTHS if d < depth]
        own = {f"book_{d}": learned[f"student.codebook.{d}"] for d in below}
        own |= {f"relations_{d}": learned[f"student.relations.{d}"] for d in below}
        attach(student, {"codes": codes, "book": book, **own})
    rows = product.rows_of(codes, book, student.paired)
    if kept is not None:
        rows[kept] = whole.rounded(student.entities.data[kept])
    return rows


# ---- models ---------------------------------------------------------------------------------------------------------
def attach(model: Model, tensors: Mapping[str, Tensor]) -> Model:
    """The model itself, with those tensors as buffers that a nested one has."""
    for name, x in tensors.items():
        if is_buffer(name):
            model.register_buffer(name, x.detach().clone())
    return model


def is_buffer(name: str) -> bool:
    """Whether a nested model has a buffer of that name, or one of whole entities."""
    own = {f"{what}_{d}" for what in ("book", "relations") for d in DEPTHS}
    return name in {"codes", "book", whole.NAME, *own}


def buffers_of(model: KGEModel) -> dict[str, Tensor]:
    """What `attach` gave.

    Raises:
        ConfigError: a model that was not trained so.
    """
    found = {name: x for name, x in model.named_buffers() if is_buffer(name)}
    if "codes" not in found:
        raise ConfigError(f"precision is {NESTED}, which takes a model that was trained with codes of some depth")
    return found


def shorter(model: Model, depth: int) -> Model:
    """A copy of a nested model of which each group has its first `depth` codes.

    Raises:
        ConfigError: no such depth, or another kind of model.
    """
    buffers = buffers_of(model)
    if depth == len(buffers["book"]):
        return copy.deepcopy(model)
    if f"book_{depth}" not in buffers:
        raise ConfigError(f"a depth of {depth}: this student has {len(buffers['book'])} and smaller powers of two")
    book = buffers[f"book_{depth}"]
    found = copy.deepcopy(model)
    for name in buffers:
        delattr(found, name)
    codes = buffers["codes"][:, : depth * book.shape[1]].contiguous()
    found.entities.data = product.rows_of(codes, book, model.paired)
    found.relations.data = buffers[f"relations_{depth}"].clone()
    fewer = {name: x for name, x in buffers.items() if "_" in name and int(name.rsplit("_")[-1]) < depth}
    return attach(found, {"codes": codes, "book": book, **fewer})
