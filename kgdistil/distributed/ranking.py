"""Filtered ranks where each rank counts among its own entities: the targets' scores are the same bits on all of them,
and the counts are summed, so the ranks are those of one process.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kgdistil import kernels
from kgdistil.distributed.shards import Guests, Shards
from kgdistil.errors import KgdistilError
from kgdistil.evaluation import MEMORY_LIMIT, KnownTriples, Ranks, score_all, sound
from kgdistil.models import SIDES, KGEModel, with_entities


@torch.no_grad()
def rank(model: KGEModel, triples: Tensor, known: KnownTriples, *, shards: Shards, native: bool | None = None) -> Ranks:
    """`evaluation.rank` of a model of which each rank holds its rows; the same on every rank.

    By the readable path, ties of dot products may break, as its sums depend on how many are taken at a time.

    Raises:
        KgdistilError: numbers that are not finite, on any rank.
    """
    if int(shards.add([torch.tensor([int(not sound(model))], device=model.entities.device)])[0]):
        raise KgdistilError("the model's embeddings hold NaN or very large numbers: lower the learning rate")
    native = kernels.usable(model) and kernels.rank_library(model) is not None if native is None else native
    size = max(1024, shards.block // 8) if native else max(1, min(256, MEMORY_LIMIT // 2 // (12 * shards.block)))
    counts = []
    for side, anchor, target in SIDES:
        for part in triples.split(size):
            left_out = within(shards, known.spans(part[:, anchor], part[:, 1], side))
            given = part.to(model.entities.device)
            ends = Guests(shards, given[:, [0, 2]].flatten()).rows(model.entities.data).view(len(given), 2, -1)
            queries = model.query(ends[:, anchor // 2], model.relations[given[:, 1]], side)
            count = count_native if native else count_readable
            counts.append(count(model, queries, ends[:, target // 2].contiguous(), left_out))
    totals = shards.add([torch.cat([torch.stack(x, 1) for x in counts])])[0].view(len(SIDES), -1, 2).cpu().numpy()
    return Ranks(totals[..., 0].T.copy(), totals[..., 1].T.copy())


def within(shards: Shards, known: kernels.Known) -> kernels.Known:
    """What to leave out of each query's entities, those that this rank holds, by their rows here."""
    start, end, ids = known
    lengths = end - start
    query = torch.arange(len(start)).repeat_interleave(lengths)
    place = torch.arange(len(query)) + (start - (lengths.cumsum(0) - lengths))[query]
    found = ids[place]
    held = (found >= shards.low) & (found < shards.high)
    stop = torch.bincount(query[held], minlength=len(start)).cumsum(0)
    return torch.cat([stop.new_zeros(1), stop])[:-1], stop, found[held] - shards.low


def count_native(model: KGEModel, queries: Tensor, targets: Tensor, known: kernels.Known) -> tuple[Tensor, Tensor]:
    """How many rows score above, and equal to, the target [n, W] of each query, a row of its own: int32 [n] each.

    Targets stand past the last of the rows that count, so their scores are made as all others are.
    """
    rows = model.entities
    counted = -(-len(rows) // 16) * 16  # whole tiles of the kernel
    table = torch.cat([rows, rows.new_full((counted - len(rows), rows.shape[1]), torch.nan), targets])
    ranker = kernels.Ranker(with_entities(model, table))
    ranker.num_entities = counted
    greater, equal = ranker.counts(queries, counted + torch.arange(len(targets)), known)
    return greater, equal + 1  # the kernel takes the target off, where it is not known: here it is


def count_readable(model: KGEModel, queries: Tensor, targets: Tensor, known: kernels.Known) -> tuple[Tensor, Tensor]:
    """The same in PyTorch."""
    scores = score_all(with_entities(model, torch.cat([model.entities, targets])), queries)
    goal = scores[:, len(model.entities) :].diagonal()[:, None]
    start, end, ids = known
    scores[torch.arange(len(queries)).repeat_interleave(end - start), ids.long()] = -torch.inf
    counted = scores[:, : len(model.entities)]
    return (counted > goal).sum(1, dtype=torch.int32), (counted == goal).sum(1, dtype=torch.int32)
