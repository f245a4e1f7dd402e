"""Sampled softmax with a teacher that is lists: `graphs.lists`."""

from __future__ import annotations

import torch
from torch import Tensor

from kgdistil.config import RunConfig
from kgdistil.errors import ConfigError
from kgdistil.graphs.lists import Lists
from kgdistil.graphs.queries import spans
from kgdistil.models import KGEModel
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine

NEVER = -1e30  # a score that no softmax sees


class ListsEngine(SampledSoftmaxEngine):
    """As `SampledSoftmaxEngine`, whose soft label is the softmax over a query's list.

    The candidates of a list are candidates of its batch. A query without one has its own answers, alike, as soft label.
    """

    def __init__(self, student: KGEModel, lists: Lists, triples: Tensor, config: RunConfig):
        if config.unlabelled:
            raise ConfigError(f"unlabelled is {config.unlabelled}, but lists have no made-up queries: set it to 0")
        super().__init__(student, None, triples, config)
        self.list_start, self.list_count = lists.spans(self.anchor, self.relation, self.is_head)
        self.list_ids, self.list_scores = lists.ids, lists.scores

    def step(self, batch: Tensor, base: Tensor, rates: dict[str, float]) -> Tensor:
        batch = batch[self.is_head[batch].sort(stable=True).indices]
        count = self.list_count[batch]
        self.row, self.listed = spans(self.list_start[batch], count)
        self.without = count == 0
        return super().step(batch, base, rates)

    def candidates(self, answers: Tensor, base: Tensor, top: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        ids = self.list_ids[self.listed].long()
        candidates, place, shift = super().candidates(answers, base, ids)
        order = candidates.argsort()
        self.place = order[torch.searchsorted(candidates[order], ids)]
        return candidates, place, shift

    def losses_of(
        self, role: str, scores: list[Tensor], shift: Tensor, row: Tensor, count: Tensor, place: Tensor
    ) -> list[Tensor]:
        other = torch.full_like(scores[0], NEVER, requires_grad=False)
        other[self.row, self.place] = self.list_scores[self.listed].to(other.dtype)
        own = self.without[row]
        other[row[own], place[own]] = 0.0
        return super().losses_of(role, [scores[0], other], shift, row, count, place)
