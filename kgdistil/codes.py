"""Entities of a few bits: each group of g floats of a row is one of sixteen vectors, so it takes four bits.

A row of width W is W / g groups and so W / (2 g) bytes: four bits a float for g = 1, two for g = 2, one for g = 4,
half a bit for g = 8. The sixteen vectors of a group, its codebook, are shared by all entities and learned. Even
levels, signs and product quantisation (Jégou et al. 2011, with 4-bit codes) are all of this form.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIXTEEN = 16


def grouped(rows: Tensor, size: int, paired: bool) -> Tensor:
    """Rows [n, W] as groups [n, W / size, size]; `paired` rows hold [real | imaginary], and the two stay together."""
    if paired:
        rows = torch.stack(rows.chunk(2, dim=-1), dim=-1)
    return rows.reshape(len(rows), -1, size)


def ungrouped(groups: Tensor, paired: bool) -> Tensor:
    """The rows [n, W] of groups [n, M, size]: undoes `grouped`."""
    rows = groups.reshape(len(groups), -1)
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=-1) if paired else rows


def assign(groups: Tensor, book: Tensor) -> Tensor:
    """The nearest of the sixteen vectors: groups [n, M, g] and book [M, 16, g] to codes uint8 [n, M]."""
    by_group = groups.transpose(0, 1)  # [M, n, g]
    distance = book.square().sum(-1)[:, None] - 2 * torch.bmm(by_group, book.transpose(1, 2))
    return distance.argmin(-1).T.to(torch.uint8)


def decode(codes: Tensor, book: Tensor) -> Tensor:
    """Groups [n, M, g] of codes uint8 [n, M]."""
    index = codes.T.long()[..., None].expand(-1, -1, book.shape[2])
    return torch.gather(book, 1, index).transpose(0, 1)
