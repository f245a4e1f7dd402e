"""`codes.cpp`: the nearest of sixteen vectors for each group of floats, what codes say, and its gradient."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from kgdistil.kernels.compile import compiled, enough, pointer, threads
from kgdistil.kernels.rows import Parts, as_parts

ADDRESS, SIZE, FLAG, COUNT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool, ctypes.c_int32


def nearest_library(rows: Tensor, group: int) -> ctypes.CDLL | None:
    """The compiled search for rows whose groups have that many floats, None where it cannot be: float32 on the CPU."""
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return None
    library = compiled("codes.cpp", f"KGD_GROUP={group}")
    return None if library is None else declared(library)


@functools.cache
def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """It with what its functions take."""
    library.kgd_assign.argtypes = [ADDRESS, ADDRESS, SIZE, SIZE, FLAG, ADDRESS, ADDRESS, COUNT, ADDRESS]
    library.kgd_assign.errcheck = enough
    library.kgd_decode.argtypes = [ADDRESS, SIZE, SIZE, SIZE, FLAG, ADDRESS, COUNT, FLAG, ADDRESS]
    library.kgd_by_code.argtypes = [ctypes.POINTER(Parts), ADDRESS, SIZE, SIZE, FLAG, COUNT, ADDRESS]
    library.kgd_decode.restype = library.kgd_by_code.restype = None
    return library


def nearest(table: Tensor, book: Tensor, paired: bool = False, places: Tensor | None = None) -> Tensor | None:
    """`product.codes_of`, compiled: codes uint8 [n, M] of rows [n, W], or of those at places [n], and book [M, 16, g];
    None if it cannot."""
    library = nearest_library(table, book.shape[2]) if book.dtype == torch.float32 else None
    if library is None:
        return None
    table, book = table.detach().contiguous(), book.detach().contiguous()
    n, m = len(table) if places is None else len(places), len(book)
    squares, codes = book.square().sum(-1), torch.empty(n, m, dtype=torch.uint8)
    at = [pointer(x) for x in (table, places)]
    library.kgd_assign(*at, n, m, paired, pointer(book), pointer(squares), threads(), pointer(codes))
    return codes


def decoded(codes: Tensor, book: Tensor, paired: bool, dtype: torch.dtype, to: int = 1) -> Tensor | None:
    """`product.rows_of` in bfloat16 or float32, padded with zeros to a multiple of `to` rows; None if it cannot."""
    library = nearest_library(book, book.shape[2])
    if library is None or dtype not in (torch.bfloat16, torch.float32):
        return None
    (n, m), book, codes = codes.shape, book.detach().contiguous(), codes.contiguous()
    found, half = torch.empty(n + -n % to, m * book.shape[2], dtype=dtype), dtype == torch.bfloat16
    library.kgd_decode(pointer(codes), n, len(found), m, paired, pointer(book), threads(), half, pointer(found))
    return found


def by_code(parts: Sequence[Tensor], codes: Tensor, group: int, paired: bool) -> Tensor | None:
    """Gradients of rows [n, W], in up to three parts, summed by the vectors that their codes [n, M] took: float32
    [M, 16, g]; None if it cannot."""
    library = nearest_library(torch.empty(0, device=codes.device), group)
    if library is None:
        return None
    (n, m), found = codes.shape, torch.zeros(threads(), codes.shape[1], 16, group)
    parts = [x.contiguous() for x in parts]
    library.kgd_by_code(ctypes.byref(as_parts(parts)), pointer(codes), n, m, paired, threads(), pointer(found))
    return found.sum(0)
