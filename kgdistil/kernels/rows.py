"""`rows.cpp`: the rows of a table that a step uses, in the type of its products; their N3; queries; Adagrad."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kgdistil.kernels.compile import check_sizes, compiled, enough, pointer, threads
from kgdistil.kernels.ids import grouped

SHAPES = 256  # rows are padded to a multiple of it, since oneDNN makes code anew for each shape that it has not seen
EPSILON = 1e-10


class Parts(ctypes.Structure):
    """Mirrors `Parts` of parts.h."""

    _fields_ = [
        ("data", ctypes.c_void_p * 3),
        ("first", ctypes.c_int64 * 4),
        ("width", ctypes.c_int64),
        ("half", ctypes.c_int32 * 3),
    ]


class Step(ctypes.Structure):
    """Mirrors `Step` of rows.cpp."""

    _fields_ = [
        ("parts", Parts),
        *((name, ctypes.c_void_p) for name in ("order", "start", "ids")),
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("table", "sums", "into")),
        ("rate", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("by_row", "threads")),
    ]


class Products(ctypes.Structure):
    """Mirrors `Products` of rows.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "r", "ids")),
        *((name, ctypes.c_int64) for name in ("n", "d", "tails", "R")),
        *((name, ctypes.c_int32) for name in ("directed", "half", "add", "threads")),
        *((name, ctypes.c_void_p) for name in ("queries", "of_x", "of_r")),
    ]


class Between(ctypes.Structure):
    """Mirrors `Between` of rows.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "begins", "row", "answer", "order", "start")),
        *((name, ctypes.c_int64) for name in ("n", "u", "d", "turned")),
        *((name, ctypes.c_int32) for name in ("half", "threads")),
        *((name, ctypes.c_void_p) for name in ("between", "of_x", "of_y")),
    ]


def rows_library(x: Tensor) -> ctypes.CDLL | None:
    """The compiled functions for a table, None where they cannot be: float32 on the CPU."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return None
    library = compiled("rows.cpp")
    return None if library is None else declared(library)


@functools.cache
def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """It with what its functions take."""
    check_sizes(library, Step, Products, Between)
    library.kgd_step.argtypes = [ctypes.POINTER(Step)]
    library.kgd_step.errcheck = enough
    address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    library.kgd_rows.argtypes = [address, size, address, size, size, size, number, number, address]
    library.kgd_among.argtypes = [address, size, size, address, size, address, size, size, number, number, address]
    library.kgd_cubes.argtypes = [*[address] * 2, *[size] * 3, ctypes.c_float, number, address, address]
    library.kgd_shares.argtypes = [address, address, size, address, size, ctypes.c_float, *[address] * 3]
    library.kgd_by_id.argtypes = [address, address, size, size, number, address]
    library.kgd_adagrad.argtypes = [address, size, ctypes.c_float, number, address, address]
    of_rows = library.kgd_shares, library.kgd_cubes, library.kgd_by_id, library.kgd_adagrad
    for function in (*of_rows, library.kgd_products_back):
        function.restype = None
    library.kgd_products.argtypes = library.kgd_products_back.argtypes = [ctypes.POINTER(Products)]
    for function in (library.kgd_between, library.kgd_between_back):
        function.argtypes, function.restype = [ctypes.POINTER(Between)], None
    library.kgd_rows.errcheck = library.kgd_products.errcheck = library.kgd_among.errcheck = inside
    return library


def inside(result: Any, *_: Any) -> Any:
    """ctypes' `errcheck` of functions that return 1 where an id is outside a table.

    Raises:
        IndexError: it is.
    """
    if result:
        raise IndexError("an id is outside its table: the model is of another graph")
    return result


def as_parts(parts: Sequence[Tensor]) -> Parts:
    """One to three gradients [n, W], float32 or bfloat16, which must outlive what reads them."""
    found = Parts(width=parts[0].shape[1])
    for i in range(3):
        found.first[i + 1] = found.first[i] + (len(parts[i]) if i < len(parts) else 0)
        if i < len(parts):
            found.data[i], found.half[i] = pointer(parts[i]), parts[i].dtype == torch.bfloat16
    return found


def rows_in(dtype: torch.dtype, table: Tensor, places: Tensor, multiple: int = SHAPES) -> Tensor:
    """Rows [n or more, W] of a table at places [n], in a type, padded with zeros to a multiple."""
    n, width = len(places), table.shape[1]
    library = rows_library(table) if dtype in (torch.bfloat16, torch.float32) else None
    if library is None or places.dtype != torch.int64 or not table.is_contiguous():
        rows = table.index_select(0, places).to(dtype)
        return F.pad(rows, (0, 0, 0, -n % multiple)) if n % multiple else rows
    found, places = torch.empty(n + -n % multiple, width, dtype=dtype), places.contiguous()
    sizes = n, len(found), width, dtype == torch.bfloat16, threads()
    library.kgd_rows(pointer(table), len(table), pointer(places), *sizes, pointer(found))
    return found


def among(table: Tensor, rows: Tensor, columns: Tensor, like: Tensor) -> Tensor:
    """Of a table [R, E] the rows [n] and of those the columns [m], in the shape and type of `like` [n, m or more], with
    zeros beyond.

    Raises:
        IndexError: one of them is outside the table.
    """
    found, m, half = like.new_empty(like.shape), len(columns), table.dtype == torch.bfloat16
    alike = table.is_contiguous() and like.dtype == table.dtype and (half or table.dtype == torch.float32)
    library = rows_library(torch.empty(0, device=table.device)) if alike else None
    if library is None:
        found[:, :m], found[:, m:] = table[rows][:, columns], 0
        return found
    rows, columns = rows.contiguous(), columns.contiguous()
    sizes = pointer(table), *table.shape, pointer(rows), len(rows), pointer(columns), m, like.shape[1]
    library.kgd_among(*sizes, half, threads(), pointer(found))
    return found


def adagrad(leaf: Tensor, sums: Tensor, rate: float) -> None:
    """One step of Adagrad on a whole tensor that has a gradient."""
    gradient, library = leaf.grad, rows_library(leaf)
    assert gradient is not None
    if library is not None and all(
        x.is_contiguous() and (x.dtype, x.shape) == (leaf.dtype, leaf.shape) for x in (leaf, sums, gradient)
    ):
        library.kgd_adagrad(pointer(gradient), leaf.numel(), rate, threads(), pointer(leaf), pointer(sums))
        return
    squares = sums.addcmul_(gradient, gradient)
    leaf.data.addcdiv_(gradient, squares.sqrt().add_(EPSILON), value=-rate)


class Gradients:
    """Gradients of rows, of which several may be of one row.

    Args:
        places: int64 [n], the row that each gradient is of.
        parts: up to three tensors of gradients, float32 or bfloat16, n rows of W together.
    Attributes:
        ids: int64 [u], the rows that there are, each once, ascending.
    """

    def __init__(self, places: Tensor, parts: Sequence[Tensor]):
        self.parts = [x.contiguous() for x in parts]
        self.ids, self.order, self.start, self.row = grouped(places)

    def summed(self) -> Tensor:
        """The sum for each of `ids`: float32 or wider [u, W]."""
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in self.parts), torch.float32)
        found = self.parts[0].new_empty(len(self.ids), self.parts[0].shape[1], dtype=dtype)
        if self.call(found, into=pointer(found)):
            return found
        return found.zero_().index_add_(0, self.row, torch.cat([x.to(dtype) for x in self.parts]))

    def adagrad(self, table: Tensor, sums: Tensor, rate: float) -> None:
        """One step on a table [E, W] whose sums of squares are [E, W], or [E, 1] for means over rows."""
        by_row = sums.shape[1] == 1
        if self.call(table, table=pointer(table), sums=pointer(sums), rate=rate, by_row=by_row):
            return
        gradient = self.summed()
        squares = gradient.square().mean(1, keepdim=True) if by_row else gradient.square()
        sums.index_copy_(0, self.ids, squares.add_(sums.index_select(0, self.ids)))
        table.index_add_(0, self.ids, gradient.div_(squares.sqrt_().add_(EPSILON)), alpha=-rate)

    def call(self, like: Tensor, **more: object) -> bool:
        """`kgd_step`; False where it cannot be compiled."""
        library = rows_library(like)
        if library is None:
            return False
        job = Step(
            parts=as_parts(self.parts),
            **{name: pointer(x) for name, x in (("order", self.order), ("start", self.start), ("ids", self.ids))},
            rows=len(self.ids),
            threads=threads(),
            **more,
        )
        library.kgd_step(ctypes.byref(job))
        return True
