"""`pairs.cpp`: scores of every query with every candidate and their gradients, for models that are distances."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kgdistil.kernels.compile import enough, pointer, threads
from kgdistil.kernels.kinds import comparison
from kgdistil.kernels.rank import for_vectors
from kgdistil.models import KGEModel

LEAST = 1e-6  # of the largest gradient of a score in a batch: what is smaller is left out


def compare(model: KGEModel, queries: Tensor, candidates: Tensor) -> Tensor:
    """`model.compare`, compiled where it can be: scores [n, m] of queries [n, query width] and candidates [m, width].

    Gradients of scores below `LEAST` of the batch's largest are taken as nothing.
    """
    library = comparison("pairs.cpp", model)
    if library is None:
        return model.compare(queries, candidates)
    return model.offset + Pairs.apply(queries, candidates, library)


class Pairs(torch.autograd.Function):
    """Scores without the model's offset."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, candidates: Tensor, library: ctypes.CDLL) -> Tensor:
        queries, candidates = queries.contiguous(), candidates.contiguous()
        (n, m), width = (len(queries), len(candidates)), candidates.shape[1]
        padded = -(-m // 16) * 16
        tiles, scores = for_vectors(padded * width), torch.empty(n, padded)
        declare(library).kgd_pair_tiles(pointer(candidates), m, threads(), pointer(tiles))
        library.kgd_pair_scores(pointer(tiles), pointer(queries), n, m, threads(), pointer(scores))
        ctx.library, ctx.sizes = library, (n, m, width)
        ctx.save_for_backward(queries, tiles)
        return scores[:, :m]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        (queries, tiles), (n, m, width) = ctx.saved_tensors, ctx.sizes
        given = F.pad(upstream, (0, -m % 16)).contiguous()
        least = LEAST * float(given.abs().max())
        to_queries, to_tiles = torch.empty_like(queries), for_vectors(tiles.numel())
        to_candidates = torch.empty(m, width)
        outputs = pointer(to_queries), pointer(to_tiles)
        ctx.library.kgd_pair_gradients(
            pointer(tiles), pointer(queries), pointer(given), n, m, least, threads(), *outputs
        )
        ctx.library.kgd_pair_rows(pointer(to_tiles), m, threads(), pointer(to_candidates))
        return to_queries, to_candidates, None


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """The same library, which now knows its arguments."""
    at, size, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    library.kgd_pair_tiles.argtypes = library.kgd_pair_rows.argtypes = [at, size, count, at]
    library.kgd_pair_scores.argtypes = [at, at, size, size, count, at]
    library.kgd_pair_gradients.argtypes = [at, at, at, size, size, ctypes.c_float, count, at, at]
    library.kgd_pair_gradients.errcheck = enough
    for name in ("tiles", "rows", "scores"):
        getattr(library, f"kgd_pair_{name}").restype = None
    return library
