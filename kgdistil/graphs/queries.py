"""Triples as queries: (h, r, ?) and (?, r, t), each with all its answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kgdistil import kernels
from kgdistil.errors import ConfigError
from kgdistil.models import KGEModel, Side
from kgdistil.sampling import GOLDEN, mix, shift_right

MOST = 10**12  # scores of a teacher over a whole graph: some minutes to an hour
AT_ONCE = 1 << 29  # that are in memory at a time


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


class Batch(NamedTuple):
    """Queries of a step, those for tails first: their ids, anchors, relations and numbers of answers [n]; where each
    one's answers begin, and the last ones end [n + 1]; how many are for tails; of each answer its query and itself [a].
    """

    ids: Tensor
    anchor: Tensor
    relation: Tensor
    counts: Tensor
    begins: Tensor
    tails: int
    row: Tensor
    answers: Tensor


def batch_of(queries: Sequence[Tensor], ids: Tensor) -> Batch:
    """Those of ids int64 [n] of what `queries_of` gives."""
    anchor, relation, is_head, start, count, answers = queries
    if (found := kernels.asked(ids, is_head, anchor, relation, start, count)) is not None:
        (ids, anchor, relation, start, count), begins, tails = found
    else:
        order = is_head[ids].sort(stable=True)
        ids, tails = ids[order.indices], int((~order.values).sum())
        anchor, relation, start, count = (x[ids] for x in (anchor, relation, start, count))
        begins = F.pad(count.cumsum(0), (1, 0))
    return Batch(ids, anchor, relation, count, begins, tails, *spans(start, count, answers))


def spans(start: Tensor, count: Tensor, at: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of spans [n] that begin at `start` and have `count` places: each place's span, and the places, or what `at` holds
    there, in a row."""
    if (found := kernels.spans(start, count, at)) is not None:
        return found
    row = torch.arange(len(start), device=start.device).repeat_interleave(count)
    places = torch.arange(len(row), device=start.device) + (start - count.cumsum(0) + count)[row]
    return row, places if at is None else at[places]


def drawn_besides(own: Tensor, base: Tensor, k: int, size: int) -> Tensor:
    """What is left of k draws of `size` entities, by a step's random number, without those in `own` [u], ascending."""
    if (found := kernels.drawn(base, k, size, own)) is not None:
        return found
    found = (shift_right(mix(base + torch.arange(k, device=own.device) * GOLDEN), 32) * size) >> 32
    return found[own[torch.searchsorted(own, found).clamp_max(len(own) - 1)] != found]


def candidates(
    answers: Tensor, base: Tensor, k: int, size: int, top: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch's candidates among `size` entities: its answers [a], others that are wanted, `top`, and what is left of k
    draws by a step's random number; all entities where k is as many.

    Returns:
        Ids [m], the answers' places among them [a], and what to add to the scores [m]: each drawn entity stands for
        (E − chosen) / drawn others, so log of that is added to its score.
    """
    if k >= size:
        return torch.arange(size, device=answers.device), answers, torch.zeros(size, device=answers.device)
    own, _, _, place = kernels.grouped(answers if top is None else torch.cat([answers, top.flatten().long()]))
    drawn = drawn_besides(own, base, k, size)
    shift = torch.zeros(len(own) + len(drawn), device=answers.device)
    shift[len(own) :] = math.log(max(1, size - len(own)) / max(1, len(drawn)))
    return torch.cat([own, drawn]), place[: len(answers)], shift


@torch.no_grad()
def scores_of(
    model: KGEModel, anchor: Tensor, relation: Tensor, is_head: Tensor, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """A model's scores [n, E] of some queries at a time of [Q], and which those are, int64 [n].

    Args:
        dtype: of products of matrices.
    """
    entities = model.entities.to(dtype)
    parts: list[tuple[Side, Tensor]] = [("tail", ~is_head), ("head", is_head)]
    for side, which in parts:
        size = min(256 if model.distance else 2048, max(1, AT_ONCE // len(entities)))
        for rows in which.nonzero()[:, 0].split(size):
            yield rows, model.compare(model.queries(anchor[rows], relation[rows], side).to(dtype), entities)


def best_of(model: KGEModel, anchor: Tensor, relation: Tensor, is_head: Tensor, k: int) -> Tensor:
    """The k best entities of each query [Q] by a model, known ones among them: int32 [Q, k].

    Raises:
        ConfigError: more than `MOST` scores.
    """
    if len(anchor) * model.num_entities > MOST:
        raise ConfigError(
            f"top is {k}: the teacher would score {len(anchor):,} queries against {model.num_entities:,} entities "
            "each, which takes days; set top to 0"
        )
    best = torch.empty(len(anchor), min(k, model.num_entities), dtype=torch.int32, device=anchor.device)
    for rows, scores in scores_of(model, anchor, relation, is_head, model.entities.dtype):
        best[rows] = scores.topk(best.shape[1]).indices.to(torch.int32)
    return best


def like_known(anchor: Tensor, relation: Tensor, is_head: Tensor, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As many queries again, made up to be such as the graph might be asked.

    Of two different queries of one relation and side, one is given a further question that the graph holds for the
    other's entity: who is asked the one thing may be asked the other.

    Args:
        anchor, relation, is_head: [Q], as `queries_of` gives them.
        base: `stream(seed, MADE_UP_STREAM, epoch)`.
    Returns:
        anchor, relation int64 [Q], is_head bool [Q].
    """
    kind, number = 2 * relation + is_head, torch.arange(len(anchor), device=anchor.device)

    def drawn(turn: int, count: Tensor | int) -> Tensor:
        return (shift_right(mix(base + (3 * number + turn) * GOLDEN), 32) * count) >> 32

    def another(turn: int, group: Tensor, which: Tensor) -> Tensor:
        """One of those queries [Q] whose group is that of query `which` [Q]."""
        order, count = group.argsort(stable=True), group.bincount()
        first = count.cumsum(0) - count
        return order[first[group[which]] + drawn(turn, count[group[which]])]

    own = drawn(0, len(anchor))
    other = another(2, anchor, another(1, kind, own))
    return anchor[own], relation[other], is_head[other]
