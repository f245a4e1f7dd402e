"""`ids.cpp`: ids that stand in several places, what is drawn for a batch, and spans in a row."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from kgdistil.kernels.compile import compiled, enough, pointer

ADDRESS, SIZE = ctypes.c_void_p, ctypes.c_int64
LARGEST = 1 << 32  # what a compiled function's ids and their number must be below
TOO_LARGE = 2  # what `kgd_group` returns of other ids


def ids_library(ids: Tensor) -> ctypes.CDLL | None:
    """The compiled functions for such ids, None where they cannot be: int64 on the CPU."""
    if ids.device.type != "cpu" or ids.dtype != torch.int64 or len(ids) >= LARGEST:
        return None
    library = compiled("ids.cpp")
    return None if library is None else declared(library)


@functools.cache
def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """It with what its functions take."""
    library.kgd_group.argtypes = [ADDRESS, SIZE, *[ADDRESS] * 5]
    library.kgd_draw.argtypes, library.kgd_draw.restype = [SIZE, SIZE, SIZE, ADDRESS, SIZE, ADDRESS], SIZE
    library.kgd_spans.argtypes, library.kgd_spans.restype = [ADDRESS, ADDRESS, SIZE, *[ADDRESS] * 3], None
    library.kgd_batch.argtypes, library.kgd_batch.restype = [ADDRESS, SIZE, *[ADDRESS] * 4], SIZE
    return library


def grouped(ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of ids int64 [n]: the different ones [u], ascending; an order [n] of their places in which those of one id stand
    together, and where each begins in it and the last one ends [u + 1]; and for each id [n] which of the different ones
    it is."""
    ids, n = ids.contiguous(), len(ids)
    if (library := ids_library(ids)) is not None:
        own, order, place, start = (ids.new_empty(n + extra) for extra in (0, 0, 0, 1))
        count = SIZE()
        done = library.kgd_group(pointer(ids), n, *map(pointer, (own, order, start, place)), ctypes.byref(count))
        if done != TOO_LARGE:
            enough(done, library.kgd_group, None)
            return own[: count.value], order, start[: count.value + 1], place
    found, order = ids.sort(stable=True)
    own, place, each = found.unique_consecutive(return_inverse=True, return_counts=True)
    start = torch.cat([each.new_zeros(1), each.cumsum(0)])
    return own, order, start, torch.empty_like(place).index_copy_(0, order, place)


def drawn(base: Tensor, k: int, size: int, own: Tensor) -> Tensor | None:
    """What is left of k draws of `size` entities by a step's random number `base`, without those of `own` [u], which
    ascend; None if it cannot."""
    if (library := ids_library(own)) is None or size >= LARGEST:
        return None
    found = own.new_empty(k)
    return found[: library.kgd_draw(int(base), k, size, pointer(own), len(own), pointer(found))]


def spans(start: Tensor, count: Tensor, at: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """`graphs.queries.spans`, compiled; None if it cannot."""
    if (
        (library := ids_library(start)) is None
        or count.dtype != torch.int64
        or (at is not None and at.dtype != start.dtype)
    ):
        return None
    total = int(count.sum())
    row, places, start, count = start.new_empty(total), start.new_empty(total), start.contiguous(), count.contiguous()
    at = None if at is None else at.contiguous()
    library.kgd_spans(*map(pointer, (start, count)), len(start), *map(pointer, (at, row, places)))
    return row, places


def asked(ids: Tensor, is_head: Tensor, *columns: Tensor) -> tuple[Tensor, Tensor, int] | None:
    """Of queries int64 [n] those for tails first: their ids and what four columns int64 [Q] hold of them, of which the
    last are numbers of answers, [5, n]; where each one's answers begin in a row of all, and the last ones end [n + 1];
    and how many are for tails. None if it cannot."""
    alike = all(x.dtype == ids.dtype and x.is_contiguous() and len(x) == len(is_head) for x in columns)
    if (library := ids_library(ids)) is None or is_head.dtype != torch.bool or not alike:
        return None
    found, begins = ids.new_empty(5, len(ids)), ids.new_empty(len(ids) + 1)
    ids, is_head = ids.contiguous(), is_head.contiguous()
    given = (ADDRESS * 4)(*map(pointer, columns))
    tails = library.kgd_batch(pointer(ids), len(ids), pointer(is_head), given, pointer(found), pointer(begins))
    return found, begins, tails
