"""Triples as queries: (h, r, ?) and (?, r, t), each with all its answers."""

from __future__ import annotations

import torch
from torch import Tensor


def queries_of(triples: Tensor, most: int = 0) -> tuple[Tensor, ...]:
    """The different queries of triples [n, 3], and their answers; one of more than `most` stands there several times.

    Returns:
        anchor, relation int64 [Q], is_head bool [Q]; start and count int64 [Q]: the span of the query's answers in
        the last one, int64 [2 n].
    """
    h, r, t = triples.unbind(-1)
    size = int(r.max()) + 1
    relation = torch.cat([r, r + size])
    key = torch.cat([h, t]) * (2 * size) + relation
    key, order = key.sort(stable=True)
    key, count = key.unique_consecutive(return_counts=True)
    start = count.cumsum(0) - count
    if most:  # else an answer of half the graph would make half the graph the candidates of its batch
        whole = torch.arange(len(key), device=key.device).repeat_interleave(-(-count // most))
        piece = torch.arange(len(whole), device=key.device) - torch.searchsorted(whole, whole)
        key, start = key[whole], start[whole] + piece * most
        count = (count[whole] - piece * most).clamp_max(most)
    relation = key % (2 * size)
    return key // (2 * size), relation % size, relation >= size, start, count, torch.cat([t, h])[order]
