"""`codes.cpp`: the nearest of sixteen vectors for each group of floats."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kgdistil.kernels.compile import compiled, enough, pointer, threads


def nearest_library(rows: Tensor, group: int) -> ctypes.CDLL | None:
    """The compiled search for rows whose groups have that many floats, None where it cannot be: float32 on the CPU."""
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return None
    return compiled("codes.cpp", f"KGD_GROUP={group}")


def nearest(groups: Tensor, book: Tensor) -> Tensor | None:
    """`codes.assign`, compiled: codes uint8 [n, M] of groups [n, M, g] and book [M, 16, g], or None if it cannot."""
    library = nearest_library(groups, groups.shape[2]) if book.dtype == torch.float32 else None
    if library is None:
        return None
    n, m, _ = groups.shape
    groups, book = groups.detach().contiguous(), book.detach().contiguous()
    squares, codes = book.square().sum(-1), torch.empty(n, m, dtype=torch.uint8)
    address, size = ctypes.c_void_p, ctypes.c_int64
    library.kgd_assign.argtypes = [address, size, size, address, address, ctypes.c_int32, address]
    library.kgd_assign.errcheck = enough
    library.kgd_assign(pointer(groups), n, m, pointer(book), pointer(squares), threads(), pointer(codes))
    return codes
