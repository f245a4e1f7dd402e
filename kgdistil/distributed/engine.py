"""Sampled softmax on N ranks: the step of one process, of which each rank scores a share of the queries.

Queries, their order and the candidates follow from seed, epoch and step, so every rank knows them all. It scores every
N-th query of the batch against all candidates; a loss counts by the rank's share of the batch's triples, so that sums
over ranks are the means of one process. Gradients of entities are added by who holds the row, in the ranks' order. In a
step N ranks send together (`shards`; |C| different candidates, X_j the other anchors of rank j's queries)

    Σ over models: rows(C, X) · (2 where it learns, else 1)  +  Σ over models that learn: sums(F)

with F the numbers of relations, codebooks and map, and for the first model the five losses and a flag.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from kgdistil import kernels
from kgdistil.compress.product import FITTED, exact, fitted, grouped, ungrouped
from kgdistil.config import RunConfig
from kgdistil.distributed.shards import Shards, Wanted
from kgdistil.errors import ConfigError
from kgdistil.models import KGEModel
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine, View


class ShardedEngine(SampledSoftmaxEngine):
    """Args as `SampledSoftmaxEngine`, the models with the rows of this rank only."""

    def __init__(self, student: KGEModel, teacher: KGEModel | None, triples: Tensor, config: RunConfig, shards: Shards):
        if config.depth > 1:
            raise ConfigError(f"depth is {config.depth}, but several ranks train students of one size: set it to 1")
        # what looks at whole tables is made here
        super().__init__(student, teacher, triples, config.model_copy(update={"top": 0, "group": 0}))
        self.config, self.shards, self.size = config, shards, shards.size
        self.stop, self.stopped = 0.0, False  # what this rank asks for, and whether any does: see `between`
        if config.group:
            book = codebook(shards, student.entities.data, config.group, student.paired)
            self.moments |= {"student.codebook": book, "student.codebook.v": torch.full_like(book, config.accumulator)}

    @property
    def arithmetic(self) -> dict[str, str | int]:
        """As of one process, and how many ranks there are."""
        return {**super().arithmetic, "ranks": self.shards.world, "backend": dist.get_backend()}

    def step(self, batch: Tensor, base: Tensor, rates: dict[str, float]) -> Tensor:
        """One batch, of which this rank takes its share; returns what one process does."""
        asked = self.batch_of(batch)
        batch, row = asked.ids, asked.row
        candidates, place, shift = super().candidates(asked.answers, base)
        world, rank = self.shards.world, self.shards.rank
        reader = torch.arange(max(len(batch), world), device=self.device)
        queries = reader * (reader < len(batch))  # a rank that is left without takes the first, which counts nothing
        self.found = candidates, place[torch.isin(row, queries[rank::world])], shift
        self.share = 0.0 if rank >= len(batch) else len(self.found[1]) / len(row)
        self.wanted = Wanted(self.shards, candidates, asked.anchor[queries], reader % world)
        super().step(batch[queries[rank::world]], base, rates)
        return len(row) * self.losses

    def candidates(self, answers: Tensor, base: Tensor, top: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the whole batch, and the places of this rank's answers."""
        return self.found

    def table(self, role: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What is read of it, from those who hold it: of entities that begin with the candidates."""
        others = ids[len(self.wanted.candidates) :]
        places = torch.cat([self.wanted.candidates, self.wanted.places(others)])
        return self.wanted.fetch(self.models[role].entities.data), places

    def add(self, soft: Mapping[str, Tensor], hard: Mapping[str, Tensor], penalty: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's share of them."""
        total, parts = super().add(soft, hard, penalty)
        self.further = [(self.share * parts).float(), torch.tensor([self.stop], device=self.device)]
        return self.share * total, parts

    def gradients(self, view: View) -> kernels.Gradients:
        """Of the rows that are held here, from all ranks; what every rank has of its own is summed as well."""
        leaves = [x.grad for x in (view.relations, view.book, view.map) if x is not None]
        added = self.shards.adding(leaves + self.further)  # on its way while rows are summed and sent
        sums = super().gradients(view).summed()  # of all rows that were fetched, since a step uses what it reads
        ids, gradient = self.wanted.push(sums)
        for x, total in zip(leaves + self.further, added(), strict=True):
            x.copy_(total)
        if self.further:
            self.losses, self.stopped, self.further = self.further[0].double(), bool(self.further[1] > 0), []
        return kernels.Gradients(ids, [gradient])


def codebook(shards: Shards, rows: Tensor, group: int, paired: bool) -> Tensor:
    """`product.fit` of a table of which each rank holds its block: at most `FITTED` rows reach all of them."""
    own = exact(rows, group, paired)
    (everywhere,) = shards.add([torch.tensor([float(own is not None)])])
    if own is not None and everywhere == shards.world:
        books = [torch.empty_like(own) for _ in range(shards.world)]
        dist.all_gather(books, own)
        taken = ungrouped(torch.cat(books, 1).transpose(0, 1), paired)  # [16 N, W]
        if (book := exact(taken, group, paired)) is not None:
            return book
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(shards.size, generator=generator).to(rows.device)[:FITTED]
    wanted = Wanted(shards, order, order[:0], order[:0])
    return fitted(grouped(wanted.fetch(rows)[wanted.places(order)], group, paired), generator)
