"""Filtered ranks of link prediction and the metrics made of them.

For a triple (h, r, t) every entity takes the head's place, then the tail's; triples known from train, valid and test
are left out (the filtered setting of Bordes et al. 2013), and the rank is the true entity's place by score.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kgdistil import kernels
from kgdistil.answer.ranks import HITS as HITS
from kgdistil.answer.ranks import Ranks as Ranks
from kgdistil.errors import KgdistilError
from kgdistil.graph import Graph
from kgdistil.models import SIDES, KGEModel, Side

LARGEST = 1e10  # beyond it a float32 score may overflow to NaN, which would rank first
Counts = Callable[..., tuple[Tensor, Tensor]]  # queries, targets, what is known: how many are better, and equal
Candidates = Callable[[Callable[[KGEModel], Counts], Side, Tensor, Tensor, kernels.Known], tuple[Tensor, Tensor]]
MEMORY_LIMIT = 512 << 20  # bytes the readable path may use for scores and what they are made of


class KnownTriples:
    """Which entities complete (h, r, ?) and (?, r, t) to a known triple: what a filtered rank leaves out.

    Args:
        triples: int64 [n, 3]; train, valid and test together for the filtered setting.
    """

    def __init__(self, triples: Tensor, num_relations: int):
        self.num_relations = num_relations
        self.keys: dict[Side, Tensor] = {}
        self.ids: dict[Side, Tensor] = {}
        for side, anchor, entity in SIDES:
            by_entity = triples[triples[:, entity].argsort()]
            keys = by_entity[:, anchor] * num_relations + by_entity[:, 1]
            keys, order = keys.sort(stable=True)
            ids = by_entity[order, entity].to(torch.int32)
            first = torch.ones(len(ids), dtype=torch.bool)  # a triple may stand in two splits
            first[1:] = (keys[1:] != keys[:-1]) | (ids[1:] != ids[:-1])
            self.keys[side], self.ids[side] = keys[first], ids[first]

    def spans(self, anchor: Tensor, relation: Tensor, side: Side) -> kernels.Known:
        """start, end int64 [n] and ids int32: query i leaves out ids[start[i]:end[i]], ascending."""
        key = anchor * self.num_relations + relation
        start = torch.searchsorted(self.keys[side], key)
        return start, torch.searchsorted(self.keys[side], key, right=True), self.ids[side]


@torch.no_grad()
def sound(model: KGEModel) -> bool:
    """Whether no number is NaN, nor so large that a score may be: of a low rank neither what the map makes of it."""
    most = {name: float(torch.stack(torch.aminmax(x)).abs().max()) for name, x in model.named_parameters()}
    if (shared := getattr(model, "map", None)) is not None:
        most["mapped"] = most["entities"] * float(shared.abs().sum(0).max())
    return all(x < LARGEST for x in most.values())  # NaN is not


def rank(
    model: KGEModel,
    triples: Tensor,
    known: KnownTriples,
    *,
    native: bool | None = None,
    candidates: Candidates | None = None,
) -> Ranks:
    """Filtered ranks of triples [n, 3] against every entity, head and tail side.

    Args:
        model: on any device; the triples and `known` are moved to it where needed.
        native: True or False forces the compiled or the readable path; None takes the compiled one where it can.
        candidates: counts among others than all entities, as `paper.constrained` does: from a function that makes a
            model's counts, the side, its queries, the relation and target of each, and what to leave out.
    Raises:
        KgdistilError: the model holds numbers that are not finite, so that it has no order to rank by.
    """
    if not sound(model):
        raise KgdistilError(
            f"the model's embeddings hold NaN or numbers beyond {LARGEST:g}, so nothing can be ranked: the training "
            "diverged; lower its learning rate"
        )
    native = kernels.usable(model) and kernels.rank_library(model) is not None if native is None else native
    if not native:
        kernels.check_equation(model)

    def counter(of: KGEModel) -> Counts:
        return kernels.Ranker(of).counts if native else functools.partial(count_readable, of)

    whole, counts = counter(model) if candidates is None else None, []
    with torch.no_grad():
        for side, anchor, target in SIDES:
            device = model.entities.device
            spans = known.spans(triples[:, anchor], triples[:, 1], side)
            queries = model.queries(triples[:, anchor].to(device), triples[:, 1].to(device), side)
            if whole is not None:
                counts.append(whole(queries, triples[:, target], spans))
            elif candidates is not None:
                counts.append(candidates(counter, side, queries, triples[:, [1, target]], spans))
    greater, equal = (np.stack([x.cpu().numpy() for x in column], axis=1) for column in zip(*counts, strict=True))
    return Ranks(greater, equal)


def count_readable(model: KGEModel, queries: Tensor, target: Tensor, known: kernels.Known) -> tuple[Tensor, Tensor]:
    """`kernels.Ranker.counts` in PyTorch, on the model's device, within `MEMORY_LIMIT` bytes."""
    return count_scores(lambda part: score_all(model, part), model.num_entities, queries, target, known)


def count_scores(
    score: Callable[[Tensor], Tensor], num_entities: int, queries: Tensor, target: Tensor, known: kernels.Known
) -> tuple[Tensor, Tensor]:
    """The same for any `score` that takes some of the queries [n, ...] and returns scores [n, E]."""
    device, (start, end, ids) = queries.device, known
    rows = max(1, min(1024, MEMORY_LIMIT // 2 // (12 * num_entities)))
    greater, equal = torch.empty(2, len(queries), dtype=torch.int32, device=device).unbind()
    for i in range(0, len(queries), rows):
        part = slice(i, i + rows)
        scores = score(queries[part])
        goal = scores.gather(1, target[part, None].to(device))
        lengths = end[part] - start[part]
        row = torch.arange(len(scores)).repeat_interleave(lengths)
        within = torch.arange(len(row)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        entity = ids[start[part].repeat_interleave(lengths) + within].long()
        scores[row.to(device), entity.to(device)] = -torch.inf
        scores.scatter_(1, target[part, None].to(device), -torch.inf)  # the true entity does not tie with itself
        greater[part] = (scores > goal).sum(1, dtype=torch.int32)
        equal[part] = (scores == goal).sum(1, dtype=torch.int32)
    return greater, equal


def score_all(model: KGEModel, queries: Tensor) -> Tensor:
    """Scores [n, E] of queries [n, query width], candidates taken in blocks that keep within `MEMORY_LIMIT`."""
    block = max(1, MEMORY_LIMIT // 2 // (16 * len(queries) * model.entities.shape[1]))
    scores = torch.empty(len(queries), model.num_entities, device=queries.device)
    for i in range(0, model.num_entities, block):
        scores[:, i : i + block] = model.compare(queries, model.entities[i : i + block])
    return scores


def sampled(triples: Tensor, count: int) -> Tensor:
    """`count` of the triples [n, 3], drawn without replacement, the same each time; all of them for 0."""
    if not 0 < count < len(triples):
        return triples
    return triples[torch.randperm(len(triples), generator=torch.Generator().manual_seed(0))[:count].sort().values]


def evaluate(
    model: KGEModel, graph: Graph, split: str = "test", *, known: KnownTriples | None = None, sample: int = 0
) -> Ranks:
    """Filtered ranks of one split of a graph, or of a sample of it; pass `known` to build it only once."""
    known = known or KnownTriples(graph.known.cpu(), graph.num_relations)
    return rank(model, sampled(getattr(graph, split).cpu(), sample), known)
