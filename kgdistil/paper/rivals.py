"""What is made of a teacher without training: codes and fewer floats, the rivals of a student of as many bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgdistil.compress.product import codes_of, fit, grouped, rows_of, ungrouped
from kgdistil.errors import ConfigError

BY_FAISS = ("FAISS", "OPQ", "RQ", "LSQ")
MOST = {"LSQ": 32}  # bytes of an entity that a method is tried for: its search takes the square of the codes
# Bytes of a teacher's entity up to which a method is tried: of 10,240 a rotation of 256 bytes had not ended after nine
# minutes beside other work, and residual codes compare as many numbers for each code.
WIDEST = {"OPQ": 4096, "RQ": 4096, "LSQ": 4096}
MOST_ENTITIES = {"LSQ": 10_000}  # with 41,000, as WN18RR has, that of 16 bytes had not ended after nine minutes


def is_tried(method: str, size: int, teacher: int, entities: int = 0) -> bool:
    """Whether a method is tried for `size` bytes of a teacher's row of so many, on a graph of so many entities."""
    return (
        size <= MOST.get(method, size)
        and teacher <= WIDEST.get(method, teacher)
        and entities <= MOST_ENTITIES.get(method, entities)
    )


def rounded(rows: Tensor, size: int, paired: bool) -> Tensor:
    """Rows [E, W] in four-bit codes of `size` bytes each, decoded again."""
    book = fit(rows, rows.shape[1] // (2 * size), paired)
    return rows_of(codes_of(rows, book, paired), book, paired)


def on_axes(rows: Tensor, axes: Tensor) -> Tensor:
    """Rows [E, W] projected on the span of `axes` [W, k]: they keep k numbers each."""
    basis = torch.linalg.qr(axes).Q
    return rows @ basis @ basis.T


def principal(rows: Tensor, size: int, paired: bool) -> Tensor:
    """PCA without centring, since scores are inner products; size / 4 float32 numbers an entity."""
    return on_axes(rows, torch.linalg.svd(rows, full_matrices=False).Vh[: size // 4].T)


def random_projection(rows: Tensor, size: int, paired: bool) -> Tensor:
    """On size / 4 random axes (Johnson and Lindenstrauss 1984), the same for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    return on_axes(rows, torch.randn(rows.shape[1], size // 4, generator=generator))


def library() -> Any:
    """FAISS.

    Raises:
        ConfigError: it is missing.
    """
    try:
        import faiss
    except ImportError:
        raise ConfigError("FAISS is missing: pip install -c constraints.txt -e '.[notebooks]'") from None
    return faiss


def by_faiss(kind: str, rows: Tensor, size: int, paired: bool) -> Tensor:
    """One of FAISS's quantisers: `size` codes of eight bits; four bits, twice as many, on graphs of few entities.

    PQ: Jégou et al. 2011; OPQ, with a learned rotation before it: Ge et al. 2013; RQ, each code of what the ones before
    it leave, with a beam: Liu et al. 2015; LSQ, codes that are added, by local search: Martinez et al. 2018.

    Raises:
        ConfigError: FAISS is missing.
    """
    faiss = library()
    bits = 8 if len(rows) >= 39 << 8 else 4  # FAISS wants 39 rows for each of the 256 vectors
    codes = size * 8 // bits
    faiss.omp_set_num_threads(torch.get_num_threads())
    x: Any = grouped(rows, rows.shape[1], paired)[:, 0].numpy()  # a complex number's parts side by side
    # as many numbers for each code; a rotation spreads the row over all of them, residual codes take it as it is
    width = x.shape[1] + (-x.shape[1] % codes if kind in ("PQ", "OPQ") else 0)
    made: dict[str, Any] = {"RQ": faiss.ResidualQuantizer, "LSQ": faiss.LocalSearchQuantizer}
    quantiser = made.get(kind, faiss.ProductQuantizer)(width, codes, bits)
    if kind != "LSQ":
        quantiser.cp.seed, quantiser.cp.min_points_per_centroid = 0, 1  # no warning where there are few entities
    turn: Any = faiss.OPQMatrix(x.shape[1], codes, width) if kind == "OPQ" else None
    if turn is not None:
        turn.pq = quantiser
        # from no rotation, as in the paper: from FAISS's random one it ends worse than none on rows that were trained
        faiss.copy_array_to_vector(np.eye(width, dtype=np.float32).ravel(), turn.A)
        turn.train(np.ascontiguousarray(x))
        x = turn.apply(np.ascontiguousarray(x))
    x = np.pad(x, ((0, 0), (0, width - x.shape[1])))
    quantiser.train(x)
    decoded = quantiser.decode(quantiser.compute_codes(x))
    decoded = decoded if turn is None else turn.reverse_transform(decoded)
    return ungrouped(torch.from_numpy(decoded)[:, None, : rows.shape[1]], paired)


UNTRAINED: dict[str, Callable[[Tensor, int, bool], Tensor]] = {
    "rounded": rounded,
    "FAISS": functools.partial(by_faiss, "PQ"),
    **{kind: functools.partial(by_faiss, kind) for kind in ("OPQ", "RQ", "LSQ")},
    "PCA": principal,
    "random projection": random_projection,
}
