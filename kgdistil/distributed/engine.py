"""Sampled softmax on N ranks: the step of one process, each rank scoring all queries against its own candidates.

Queries, their order and the candidates follow from seed, epoch and step, so every rank knows them all. The rows of the
queries' anchors go to every rank, where each query meets the candidates that the rank holds; of each query the ranks
tell one another the log-sum-exp of its scores, so that each knows its part of the softmax over all candidates. An
answer's triples count where its row is. Gradients of anchors are added by who holds the row, in the ranks' order. In a
step of B queries of |X| different anchors N ranks send together (`shards`)

    Σ over models: rows(X) · (2 where it learns, else 1)  +  Σ over models that learn: sums(F) + 24 (N − 1) B

with F the numbers of relations, codebooks and map, and for the first model the five losses and a flag.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from kgdistil import kernels
from kgdistil.compress import whole
from kgdistil.compress.product import FITTED, exact, fitted, grouped, ungrouped
from kgdistil.config import RunConfig
from kgdistil.distributed.shards import Guests, Shards
from kgdistil.errors import ConfigError
from kgdistil.graphs.queries import Batch
from kgdistil.kernels.softmax import Everywhere, softmax_library, softmax_sums
from kgdistil.models import KGEModel
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine, View

NOTHING = -1e4  # added to a score that counts nothing


class ShardedEngine(SampledSoftmaxEngine):
    """Args as `SampledSoftmaxEngine`, the models with the rows of this rank only."""

    def __init__(self, student: KGEModel, teacher: KGEModel | None, triples: Tensor, config: RunConfig, shards: Shards):
        if config.depth > 1:
            raise ConfigError(f"depth is {config.depth}, but several ranks train students of one size: set it to 1")
        # what looks at whole tables is made here
        super().__init__(student, teacher, triples, config.model_copy(update={"top": 0, "group": 0, "whole": 0}))
        self.config, self.shards, self.size = config, shards, shards.size
        self.stop, self.stopped = 0.0, False  # what this rank asks for, and whether any does: see `between`
        self.rows = slice(shards.low, shards.high)
        self.whole = whole.keep_frequent(student, triples, config.whole, shards.size)
        if config.group:
            coded = None if self.whole is None or self.whole.all() else ~self.whole
            book = codebook(shards, student.entities.data, config.group, student.paired, coded)
            self.moments |= {"student.codebook": book, "student.codebook.v": torch.full_like(book, config.accumulator)}

    @property
    def arithmetic(self) -> dict[str, str | int]:
        """As of one process, and how many ranks there are."""
        return {**super().arithmetic, "ranks": self.shards.world, "backend": dist.get_backend()}

    def step(self, batch: Tensor, base: Tensor, rates: dict[str, float]) -> Tensor:
        """One batch, of which this rank scores its candidates; returns what one process does."""
        super().step(batch, base, rates)
        return len(self.asked_all.row) * self.losses

    def batch_of(self, ids: Tensor) -> Batch:
        """All queries, each with those of its answers whose rows are held here."""
        every = self.asked_all = super().batch_of(ids)
        self.held = self.shards.held(every.answers)
        row, answers = every.row[self.held], every.answers[self.held]
        counts = torch.bincount(row, minlength=len(ids))
        self.share = len(row) / len(every.row)
        self.guests = Guests(self.shards, every.anchor)  # on their way while candidates are drawn
        self.coming = {role: self.guests.fetching(model.entities.data) for role, model in self.models.items()}
        return every._replace(counts=counts, begins=F.pad(counts.cumsum(0), (1, 0)), row=row, answers=answers)

    def candidates(self, answers: Tensor, base: Tensor, top: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Of those of the whole batch the ones that are held here, and the places of this rank's answers."""
        ids, place, shift = super().candidates(self.asked_all.answers, base)
        held = self.shards.held(ids)
        here, shift = ids[held], shift[held]
        if not len(here):  # a rank that has none takes its first, which counts nothing
            here, shift = ids.new_full((1,), self.shards.low), shift.new_full((1,), NOTHING)
        self.own = here - self.shards.low
        return here, torch.searchsorted(held, place[self.held]), shift

    def table(self, role: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What is read of it: own candidates, with which entities [n] begin, and anchors, from those who hold them."""
        rows = self.models[role].entities.data.index_select(0, self.own)
        places = torch.cat([torch.arange(len(rows), device=self.device), len(rows) + self.guests.place])
        return torch.cat([rows, self.coming.pop(role)()]), places

    def losses_of(self, role: str, scores: list[Tensor], shift: Tensor, batch: Batch, place: Tensor) -> list[Tensor]:
        """What is here of those of all ranks, whose sum they are."""
        if self.shards.world == 1:
            return super().losses_of(role, scores, shift, batch, place)
        (own, *others), t, room = scores, self.config.temperature, None
        if not own.requires_grad and not others:
            room = self.slopes[role] = torch.empty_like(own)
        here = softmax_sums(own, others[0] if others else None, shift, t, room)
        sums = self.shards.log_sums(here)
        self.everywhere = Everywhere(self.asked_all.counts, sums, None if room is None else here)
        if softmax_library(own) is not None:
            return super().losses_of(role, scores, shift, batch, place)
        return self.readable([x[:, : len(shift)].float() + shift for x in scores], batch, place, self.everywhere)

    def readable(self, scores: list[Tensor], batch: Batch, place: Tensor, everywhere: Everywhere) -> list[Tensor]:
        """`losses_of` in PyTorch: gradients are those of all ranks' losses, values what is here of them."""
        (own, *others), t, (counts, sums, _) = scores, self.config.temperature, everywhere
        lse = of_all(own, sums[0])
        elsewhere = ((counts - batch.counts) * lse).sum()
        hard = (lse[batch.row] - own[batch.row, place]).sum() + elsewhere - elsewhere.detach()
        losses = [hard / counts.sum()]
        for other in (x.detach() for x in others):
            label = (other / t - sums[2][:, None]).exp()
            lse, here = of_all(own / t, sums[1]), label.sum(1)
            each = lse - (1 - here) * lse.detach() - (label * own / t).sum(1)
            losses.append(t**2 * (each * self.labels(counts)).sum())
        return losses

    def add(self, soft: Mapping[str, Tensor], hard: Mapping[str, Tensor], penalty: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's part of them."""
        total, parts = super().add(soft, hard, self.share * penalty)
        self.further = [parts.float(), torch.tensor([self.stop], device=self.device)]
        return total, parts

    def gradients(self, view: View) -> kernels.Gradients:
        """Of the rows that are held here, from all ranks; what every rank has of its own is summed as well."""
        leaves = [x.grad for x in (view.relations, view.book, view.map) if x is not None]
        rows, anchors, *answers = view.parts
        own = kernels.Gradients(self.guests.place, [anchors]).summed()
        ids, sums, totals = self.guests.push(own, leaves + self.further)
        for x, total in zip(leaves + self.further, totals, strict=True):
            x.copy_(total)
        if self.further:
            self.losses, self.stopped, self.further = self.further[0].double(), bool(self.further[1] > 0), []
        places = [self.own, ids, *(self.own[view.places[len(rows) + len(anchors) :]] for _ in answers)]
        return kernels.Gradients(torch.cat(places), [rows, sums, *answers])


def of_all(scores: Tensor, sums: Tensor) -> Tensor:
    """The log-sum-exp over all ranks [n], with the gradient that the scores here [n, m] have by it."""
    here = (scores.logsumexp(1) - sums).exp()
    return sums + here - here.detach()


def codebook(shards: Shards, rows: Tensor, group: int, paired: bool, coded: Tensor | None = None) -> Tensor:
    """`product.fit` of a table of which each rank holds its block, of those in `coded` [E]: at most `FITTED` rows reach
    all ranks."""
    own = exact(rows if coded is None else rows[coded[shards.low : shards.high]], group, paired)
    (everywhere,) = shards.add([torch.tensor([float(own is not None)])])
    if own is not None and everywhere == shards.world:
        books = [torch.empty_like(own) for _ in range(shards.world)]
        dist.all_gather(books, own)
        taken = ungrouped(torch.cat(books, 1).transpose(0, 1), paired)  # [16 N, W]
        if (book := exact(taken, group, paired)) is not None:
            return book
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(shards.size, device=rows.device) if coded is None else coded.nonzero()[:, 0]
    order = torch.randperm(len(ids), generator=generator).to(rows.device)[:FITTED]
    return fitted(grouped(Guests(shards, ids[order]).rows(rows), group, paired), generator)
