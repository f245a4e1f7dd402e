"""Entities of a few bits: each group of g floats of a row is one of sixteen vectors, so it takes four bits.

A row of width W is W / g groups and so W / (2 g) bytes: four bits a float for g = 1, two for g = 2, one for g = 4,
half a bit for g = 8. The sixteen vectors of a group, its codebook, are shared by all entities and learned. Even
levels, signs and product quantisation (Jégou et al. 2011, with 4-bit codes) are all of this form.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kgdistil import kernels

SIXTEEN = 16
SLICE, FITTED = 1 << 16, 1 << 14  # rows that are coded at a time, and that a codebook is fitted on


def grouped(rows: Tensor, size: int, paired: bool) -> Tensor:
    """Rows [n, W] as groups [n, W / size, size]; `paired` rows hold [real | imaginary], and the two stay together."""
    if paired:
        rows = torch.stack(rows.chunk(2, dim=-1), dim=-1)
    return rows.reshape(len(rows), -1, size)


def ungrouped(groups: Tensor, paired: bool) -> Tensor:
    """The rows [n, W] of groups [n, M, size]: undoes `grouped`."""
    rows = groups.reshape(len(groups), -1)
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=-1) if paired else rows


def assign(groups: Tensor, book: Tensor, *, native: bool | None = None) -> Tensor:
    """The nearest of the sixteen vectors: groups [n, M, g] and book [M, 16, g] to codes uint8 [n, M].

    `kernels/codes.cpp` does it for float32 on the CPU; native=False takes the readable path.
    """
    if native is not False and (codes := kernels.nearest(groups.flatten(1), book)) is not None:
        return codes
    by_group = groups.transpose(0, 1)  # [M, n, g]
    squares = book.square().sum(-1)[:, None].expand(-1, len(groups), -1)
    distance = torch.baddbmm(squares, by_group, book.transpose(1, 2), alpha=-2)
    return distance.argmin(-1).T.to(torch.uint8)


def decode(codes: Tensor, book: Tensor) -> Tensor:
    """Groups [n, M, g] of codes uint8 [n, M]."""
    return F.embedding(places(codes), book.flatten(0, 1))


def places(codes: Tensor) -> Tensor:
    """Where the vectors of codes [n, M] stand among all vectors of a book, int64 [n, M]."""
    return codes.long() + torch.arange(0, SIXTEEN * codes.shape[1], SIXTEEN, device=codes.device)


def codes_of(rows: Tensor, book: Tensor, paired: bool, places: Tensor | None = None) -> Tensor:
    """Codes uint8 [n, M] of rows [n, W], or of those at places [n], made in slices: nothing else grows with n."""
    if (codes := kernels.nearest(rows, book, paired, places)) is not None:
        return codes
    rows = rows if places is None else rows.index_select(0, places)
    return torch.cat([assign(grouped(part, book.shape[2], paired), book) for part in rows.split(SLICE)])


def rows_of(codes: Tensor, book: Tensor, paired: bool) -> Tensor:
    """The rows [n, W] of codes [n, M], made in slices; of a deep book [depth, M, 16, g] and codes [n, depth · M] their
    vectors are added (`nested`)."""
    if book.ndim == 4:
        each = zip(codes.chunk(len(book), dim=1), book, strict=True)
        return functools.reduce(torch.add, (rows_of(own, level, paired) for own, level in each))
    if (found := kernels.decoded(codes, book, paired, book.dtype)) is not None:
        return found
    rows = book.new_empty(len(codes), book.shape[0] * book.shape[2])
    for into, part in zip(rows.split(SLICE), codes.split(SLICE), strict=True):
        into.copy_(ungrouped(decode(part, book), paired))
    return rows


def exact(rows: Tensor, size: int, paired: bool) -> Tensor | None:
    """A codebook that loses nothing, where each group of rows [n, W] has at most sixteen vectors; else None."""
    book: Tensor | None = None
    for part in rows.split(FITTED):
        groups = grouped(part, size, paired)
        if book is not None and torch.equal(decode(assign(groups, book), book), groups):
            continue
        few: list[Tensor] = []
        for i, column in enumerate(groups.unbind(1)):
            vectors = (column if book is None else torch.cat([book[i], column])).unique(dim=0)
            if len(vectors) > SIXTEEN:
                return None
            few.append(torch.cat([vectors, vectors[:1].expand(SIXTEEN - len(vectors), -1)]))
        book = torch.stack(few)
    return book


def fit(rows: Tensor, size: int, paired: bool, seed: int = 0, rounds: int = 15) -> Tensor:
    """A codebook [M, 16, size] for the groups of rows [n, W]: Lloyd's k-means of each group; `exact` where it can be.

    A larger table is fitted on 16,384 of its rows.
    """
    if (book := exact(rows, size, paired)) is not None:
        return book
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).to(rows.device)[:FITTED]
    return fitted(grouped(rows[order], size, paired), generator, rounds)


def fitted(groups: Tensor, generator: torch.Generator, rounds: int = 15) -> Tensor:
    """Lloyd's k-means of each group of [n, M, g], as `fit` goes on."""
    x = groups.transpose(0, 1)  # [M, n, g]
    book = torch.stack([starting_vectors(column, generator) for column in x])
    for _ in range(rounds):
        code = assign(x.transpose(0, 1), book).T.long()  # [M, n]
        sums = torch.zeros_like(book).scatter_add_(1, code[..., None].expand_as(x), x)
        count = torch.zeros(book.shape[:2], device=x.device).scatter_add_(1, code, torch.ones_like(x[..., 0]))
        book = torch.where(count[..., None] > 0, sums / count.clamp_min(1)[..., None], book)
    return book


def starting_vectors(column: Tensor, generator: torch.Generator) -> Tensor:
    """Sixteen vectors of [n, g] to begin with: all there are where they are few, else spread ones.

    Each next one is drawn with the squared distance to those already taken as its weight (k-means++).
    """
    taken = [column[0]]
    nearest = torch.full((len(column),), torch.inf, device=column.device)
    for _ in range(SIXTEEN - 1):
        nearest = torch.minimum(nearest, (column - taken[-1]).square().sum(1))
        total = float(nearest.sum())
        if total <= 0:
            taken.append(taken[-1])
            continue
        place = torch.rand((), generator=generator).item() * total
        taken.append(column[int(torch.searchsorted(nearest.cumsum(0), place).clamp_max(len(column) - 1))])
    return torch.stack(taken)


def rows_in(dtype: torch.dtype, codes: Tensor, book: Tensor, paired: bool) -> Tensor:
    """`rows_of` in a type, padded with zeros to a multiple of `kernels.SHAPES`: [n or more, W]."""
    if book.ndim == 3 and (rows := kernels.decoded(codes, book, paired, dtype, kernels.SHAPES)) is not None:
        return rows
    return F.pad(rows_of(codes, book, paired).to(dtype), (0, 0, 0, -len(codes) % kernels.SHAPES))


def straight_through(parts: Sequence[Tensor], codes: Tensor, book: Tensor, paired: bool) -> Tensor:
    """The book's gradient [M, 16, g]: those of rows [n, W], in up to three parts, summed by the vectors that their
    codes [n, M] took. The rows themselves have it straight through (Bengio et al. 2013)."""
    if book.ndim == 4:
        each = zip(codes.chunk(len(book), dim=1), book, strict=True)
        return torch.stack([straight_through(parts, own.contiguous(), level, paired) for own, level in each])
    if (found := kernels.by_code(parts, codes, book.shape[2], paired)) is not None:
        return found
    gradient = grouped(torch.cat([x.float() for x in parts]), book.shape[2], paired)
    sums = torch.zeros_like(book).flatten(0, 1)
    return sums.index_add_(0, places(codes).flatten(), gradient.flatten(0, 1)).view_as(book)
