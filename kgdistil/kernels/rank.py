"""`rank.cpp`: filtered ranks and top-k answers of queries against all entities of one model."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from kgdistil.errors import ConfigError
from kgdistil.kernels.compile import check_sizes, enough, pointer, threads
from kgdistil.kernels.kinds import comparison
from kgdistil.models import KGEModel

# Entities to leave out of query i: ids[start[i]:end[i]], ascending; start and end int64 [n], ids int32.
Known = tuple[Tensor, Tensor, Tensor]


# ---- ranking --------------------------------------------------------------------------------------------------------
class Job(ctypes.Structure):
    """Mirrors rank.cpp."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("entities", "queries", "target", "known_start", "known_end", "known")]
        + [
            ("n", ctypes.c_int64),
            ("num_entities", ctypes.c_int64),
            ("threads", ctypes.c_int32),
            ("k", ctypes.c_int32),
        ]
        + [(name, ctypes.c_void_p) for name in ("greater", "equal", "best_score", "best")]
    )


def for_vectors(size: int) -> Tensor:
    """Uninitialised float32 [size] at an address that vectors of 64 bytes divide."""
    room = torch.empty(size + 16)
    return room[(-room.data_ptr() % 64) // 4 :][:size]


class Ranker:
    """Counts and top-k answers of queries against one model's entities, tiled once.

    Args:
        model: float32, on the CPU (`usable`).
    Raises:
        ConfigError: no kernel for it, or no compiler.
    """

    library: Any  # `ctypes` knows no types of its functions

    def __init__(self, model: KGEModel):
        self.num_entities, self.width = model.entities.shape
        self.query_width = self.width * model.query_factor
        self.library = rank_library(model)
        if self.library is None:
            raise ConfigError(f"{type(model).__name__} cannot be ranked by a compiled kernel here: leave native out")
        self.tiles = for_vectors(-(-self.num_entities // 16) * 16 * self.width)
        self.library.kgd_tiles(
            pointer(model.entities.data.contiguous()), self.num_entities, threads(), pointer(self.tiles)
        )

    def job(self, queries: Tensor, known: Known, **more: Any) -> Job:
        start, end, ids = known
        return Job(
            entities=pointer(self.tiles),
            queries=pointer(queries),
            known_start=pointer(start),
            known_end=pointer(end),
            known=pointer(ids),
            n=len(queries),
            num_entities=self.num_entities,
            threads=threads(),
            **more,
        )

    def counts(self, queries: Tensor, target: Tensor, known: Known) -> tuple[Tensor, Tensor]:
        """How many entities score above, and how many equal to, the target of each query; int32 [n] each.

        Args:
            queries: float32 [n, query width]. target: int64 [n].
            known: what to leave out of each query, the target among them.
        """
        queries, target = queries.contiguous(), target.contiguous()
        greater, equal = torch.empty(2, len(queries), dtype=torch.int32).unbind()
        self.library.kgd_rank(
            ctypes.byref(
                self.job(queries, known, target=pointer(target), greater=pointer(greater), equal=pointer(equal))
            )
        )
        return greater, equal

    def top(self, queries: Tensor, k: int, known: Known) -> tuple[Tensor, Tensor]:
        """The k best entities of each query: scores without the model's offset, and ids int32 (−1: none), [n, k].

        Raises:
            ConfigError: k below 1.
        """
        if k < 1:
            raise ConfigError(f"k = {k}: ask for at least one entity")
        queries = queries.contiguous()
        score, best = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int32)
        self.library.kgd_top(ctypes.byref(self.job(queries, known, k=k, best_score=pointer(score), best=pointer(best))))
        return score, best


def rank_library(model: KGEModel) -> ctypes.CDLL | None:
    library = comparison("rank.cpp", model)
    if library is None:
        return None
    check_sizes(library, Job)
    library.kgd_tiles.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p]
    library.kgd_rank.argtypes = library.kgd_top.argtypes = [ctypes.POINTER(Job)]
    library.kgd_tiles.restype = None
    library.kgd_rank.errcheck = library.kgd_top.errcheck = enough
    return library
