"""Sampled softmax with a teacher that is lists: `graphs.lists`."""

from __future__ import annotations

import torch
from torch import Tensor

from kgdistil.config import RunConfig
from kgdistil.errors import ConfigError
from kgdistil.graphs.lists import Lists
from kgdistil.graphs.queries import Batch, spans
from kgdistil.models import KGEModel
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine

NEVER = -1e30  # a score that no softmax sees


class ListsEngine(SampledSoftmaxEngine):
    """As `SampledSoftmaxEngine`, whose soft label is the softmax over a query's list; without one its answers, alike.

    Candidates of lists are a batch's. Made-up queries have a list and no training answer; ConfigError: no query has.
    """

    def __init__(self, student: KGEModel, lists: Lists, triples: Tensor, config: RunConfig):
        super().__init__(student, None, triples, config)
        self.lists, self.others = lists, lists.beside(*self.asked)
        if config.unlabelled and not len(self.others):
            raise ConfigError(f"unlabelled is {config.unlabelled}, but every list is a training query's: set it to 0")

    def made_up(self, base: Tensor) -> tuple[Tensor, ...]:
        return self.lists.drawn(self.others, self.samples, base)

    def best(self, batch: Tensor) -> Tensor | None:
        start, count = self.lists.spans(self.anchor[batch], self.relation[batch], self.is_head[batch])
        (self.row, self.listed), self.without = spans(start, count), count == 0
        return self.lists.ids[self.listed]

    def candidates(self, answers: Tensor, base: Tensor, top: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        found = super().candidates(answers, base, top)
        order = found[0].argsort()
        self.place = order[torch.searchsorted(found[0][order], top.long())]
        return found

    def losses_of(self, role: str, scores: list[Tensor], shift: Tensor, batch: Batch, place: Tensor) -> list[Tensor]:
        other = torch.full_like(scores[0], NEVER, requires_grad=False)
        said = self.lists.scores[self.listed]  # by how much less than its list's best, or few bits would not tell them
        best = said.new_full((len(other),), -torch.inf).scatter_reduce(0, self.row, said, "amax")
        other[self.row, self.place] = (said - best[self.row]).to(other.dtype)
        without = self.without[batch.row]
        other[batch.row[without], place[without]] = 0.0
        return super().losses_of(role, [scores[0], other], shift, batch, place)
