"""Training against whole lists: for each query (h, r, ?) and (?, r, t) the softmax over all entities, or many.

This is beyond the paper. Its losses look at a few corruptions of one triple, on which a good teacher's soft labels are
all near zero; here a query's answers compete with every candidate at once (Joulin et al. 2017, Lacroix et al. 2018),
and a soft label is the teacher's distribution over the same candidates (Hinton et al. 2015). The entities may
be kept in four-bit codes (`codes`): the student then trains through the rounding that its file has.

A batch is `batch_size` different queries, each with all its training answers. Its candidates are those answers and
k entities drawn for the whole batch, whose scores stand for all others; k ≥ E takes every entity. The learning rates
are Adagrad's, whose sums of squares begin at `accumulator`: at 0, the first step moves every number by the whole rate,
those of the drawn entities as well, however small their gradients, which a model that has learned already does not
need. Products of matrices are taken in bfloat16 where the processor has it.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from kgdistil import kernels
from kgdistil.compress.product import Through, assign, decode, fit, grouped, ungrouped
from kgdistil.kernels.pairs import compare
from kgdistil.losses import Objective, list_hard_loss, list_soft_loss, stage_one_loss, stage_two_loss
from kgdistil.models import KGEModel
from kgdistil.sampling import GOLDEN, NEGATIVE_STREAM, epoch_order, mix, shift_right, stream

NAMES = ("student_soft", "student_hard", "teacher_soft", "teacher_hard", "penalty")


class ListEngine:
    """`reference.ReferenceEngine` for whole lists: same arguments, same epochs.

    Args:
        student, teacher: models on one device, updated in place; `teacher` may be None.
        train_teacher: stage 2, in which the teacher learns too.
        triples: int64 [n, 3], the training triples.
        objective: `negatives` is k, `group` the floats that share four bits (0: none), of the student alone.
    """

    def __init__(
        self,
        student: KGEModel,
        teacher: KGEModel | None,
        train_teacher: bool,
        triples: Tensor,
        objective: Objective,
    ):
        self.objective, self.device = objective, student.entities.device
        self.models = {"student": student, **({"teacher": teacher} if teacher is not None else {})}
        self.trained = ["student"] + (["teacher"] if train_teacher else [])
        self.half = bfloat16_where_fast(self.device)
        if self.device.type == "cpu":
            kernels.keep_freed_memory()
        self.anchor, self.relation, self.is_head, self.start, self.count, self.answers = queries_of(triples)
        self.top = best_of(teacher, self.anchor, self.relation, self.is_head, objective.top) if objective.top else None
        self.tensors: dict[str, Tensor] = {}
        for role in self.trained:
            for table, x in self.models[role].named_parameters():
                self.tensors[f"{role}.{table}.v"] = torch.full_like(x.data, objective.accumulator)
        if objective.group:
            book = fit(grouped(student.entities.data, objective.group, student.paired))
            self.tensors |= {"student.book": book, "student.book.v": torch.full_like(book, objective.accumulator)}

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.anchor) // self.objective.batch_size)

    def state(self) -> dict[str, Tensor]:
        """Adagrad's sums of squares and the codebook: all there is besides the weights and the epoch."""
        return dict(self.tensors)

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.tensors[name].copy_(value)

    def coded(self) -> KGEModel:
        """The student as its file will hold it: a copy whose entities are what their codes say."""
        student = copy.deepcopy(self.models["student"])
        if self.objective.group:
            groups = grouped(student.entities.data, self.objective.group, student.paired)
            book = self.tensors["student.book"]
            student.entities.data = ungrouped(decode(assign(groups, book), book), student.paired)
        return student

    def epoch(self, epoch: int, rates: Tensor, teacher_rates: Tensor | None = None) -> dict[str, float]:
        """Run epoch number `epoch` (from 0); rates: float64 [steps], the learning rate of each step.

        Returns the epoch's mean losses for a triple: student_soft, student_hard, teacher_soft, teacher_hard, penalty.
        """
        order = epoch_order(self.objective.seed, epoch, len(self.anchor), self.device)
        given = {"student": rates.tolist(), "teacher": (rates if teacher_rates is None else teacher_rates).tolist()}
        sums = torch.zeros(len(NAMES), dtype=torch.float64)
        for i, batch in enumerate(order.split(self.objective.batch_size)):
            base = stream(self.objective.seed, NEGATIVE_STREAM, epoch * self.steps + i, self.device)
            sums += self.step(batch, base, {role: given[role][i] for role in self.trained})
        return dict(zip(NAMES, (sums / len(self.answers)).tolist(), strict=True))

    def step(self, batch: Tensor, base: Tensor, rates: dict[str, float]) -> Tensor:
        """One batch of queries int64 [n]; returns the five losses, each times the batch's number of triples."""
        o = self.objective
        batch = batch[self.is_head[batch].sort(stable=True).indices]  # tail queries first
        count = self.count[batch]
        row = torch.arange(len(batch), device=self.device).repeat_interleave(count)
        within = torch.arange(len(row), device=self.device) - (count.cumsum(0) - count)[row]
        answers = self.answers[self.start[batch][row] + within]
        candidates, place, shift = self.candidates(answers, base, None if self.top is None else self.top[batch])
        views = {role: View(self, role, batch, candidates, role in self.trained) for role in self.models}
        scores = {role: view.scores() + shift for role, view in views.items()}
        soft, hard = {}, {}
        for role in self.trained:
            hard[role] = list_hard_loss(scores[role], row, place)
            if len(self.models) == 2:
                other = scores["teacher" if role == "student" else "student"]
                soft[role] = list_soft_loss(scores[role], other, count, o.temperature)
        if "teacher" in self.trained:
            total = stage_two_loss(soft["student"], hard["student"], soft["teacher"], hard["teacher"], o.alpha, o.beta)
        elif soft:
            total = stage_one_loss(soft["student"], hard["student"], o.alpha)
        else:
            total = hard["student"]
        nothing = torch.zeros((), device=self.device)
        penalty = nothing
        if o.penalty:
            penalty = o.penalty * sum(views[role].penalty(row, place) for role in self.trained)
        (total + penalty).backward()
        for role in self.trained:
            views[role].update(rates[role])
        parts = [
            soft.get("student", nothing),
            hard["student"],
            soft.get("teacher", nothing),
            hard.get("teacher", nothing),
            penalty,
        ]
        return len(row) * torch.stack([x.detach().double() for x in parts]).cpu()

    def candidates(self, answers: Tensor, base: Tensor, top: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [m] of a batch's candidates, the answers' places among them, and what to add to the scores [m].

        Each drawn entity stands for (E − chosen) / drawn others, so log of that is added to its score; chosen are the
        answers and what the teacher puts first, `top` [n, k].
        """
        size, k = self.models["student"].num_entities, self.objective.negatives
        if k >= size:
            return torch.arange(size, device=self.device), answers, torch.zeros(size, device=self.device)
        chosen = answers if top is None else torch.cat([answers, top.flatten().long()])
        own, place = chosen.unique(return_inverse=True)
        place = place[: len(answers)]
        bits = mix(base + torch.arange(k, device=self.device) * GOLDEN)
        drawn = (shift_right(bits, 32) * size) >> 32
        drawn = drawn[~torch.isin(drawn, own)]
        shift = torch.zeros(len(own) + len(drawn), device=self.device)
        shift[len(own) :] = math.log(max(1, size - len(own)) / max(1, len(drawn)))
        return torch.cat([own, drawn]), place, shift


class View:
    """The rows of one model that a batch uses, and their way back."""

    def __init__(self, engine: ListEngine, role: str, batch: Tensor, candidates: Tensor, trained: bool):
        self.engine, self.role, self.model = engine, role, engine.models[role]
        self.tails = int((~engine.is_head[batch]).sum())
        self.num_candidates = len(candidates)
        self.ids = torch.cat([candidates, engine.anchor[batch]])
        self.latent = self.model.entities.data[self.ids].requires_grad_(trained)
        self.relations = self.model.relations.detach().requires_grad_(trained)
        self.book, rows = None, self.latent
        if engine.objective.group and role == "student":
            self.book = engine.tensors["student.book"].detach().requires_grad_(trained)
            groups = grouped(rows, engine.objective.group, self.model.paired)
            rows = ungrouped(Through.apply(groups, self.book), self.model.paired)
        self.map = getattr(self.model, "map", None)  # of a low rank: the model's functions use it themselves
        if self.map is not None:
            self.map.requires_grad_(trained).grad = None
        self.rows, self.anchors = rows[: len(candidates)], rows[len(candidates) :]
        self.relation = self.relations[engine.relation[batch]]

    def scores(self) -> Tensor:
        """Scores [n, m] of the batch's queries against its candidates, float32."""
        parts = ((slice(None, self.tails), "tail"), (slice(self.tails, None), "head"))
        queries = torch.cat([self.model.query(self.anchors[part], self.relation[part], side) for part, side in parts])
        if self.model.distance:
            return compare(self.model, queries, self.rows)
        half = self.engine.half
        return self.model.compare(queries.to(half), self.rows.to(half)).to(self.rows.dtype)

    def penalty(self, row: Tensor, place: Tensor) -> Tensor:
        """The model's regulariser, the mean over the batch's triples."""
        return self.model.penalty(self.anchors[row], self.relation[row], self.rows[place]).mean()

    def update(self, rate: float) -> None:
        """One step of Adagrad (Duchi et al. 2011) on the rows that were used."""
        tensors = self.engine.tensors
        ids, inverse = self.ids.unique(return_inverse=True)
        gradient = self.latent.grad.new_zeros(len(ids), self.latent.shape[1])
        gradient.index_add_(0, inverse, self.latent.grad)
        v = tensors[f"{self.role}.entities.v"]
        squares = v[ids].addcmul_(gradient, gradient)
        v[ids] = squares
        self.model.entities.data.index_add_(0, ids, gradient.div_(squares.sqrt_().add_(1e-10)), alpha=-rate)
        others = [(self.model.relations.data, self.relations, f"{self.role}.relations.v", rate)]
        shared = rate * self.engine.objective.shared
        if self.book is not None:
            others.append((tensors["student.book"], self.book, "student.book.v", shared))
        if self.map is not None:
            others.append((self.map.data, self.map, f"{self.role}.map.v", shared))
        for value, leaf, name, own_rate in others:
            squares = tensors[name].addcmul_(leaf.grad, leaf.grad)
            value.addcdiv_(leaf.grad, squares.sqrt().add_(1e-10), value=-own_rate)


def queries_of(triples: Tensor) -> tuple[Tensor, ...]:
    """The different queries of triples [n, 3], and their answers.

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
    relation = key % (2 * size)
    return (
        key // (2 * size),
        relation % size,
        relation >= size,
        count.cumsum(0) - count,
        count,
        torch.cat([t, h])[order],
    )


@torch.no_grad()
def best_of(model: KGEModel, anchor: Tensor, relation: Tensor, is_head: Tensor, k: int) -> Tensor:
    """The k best entities of each query [Q] by a model, known ones among them: int32 [Q, k]."""
    best = torch.empty(len(anchor), min(k, model.num_entities), dtype=torch.int32, device=anchor.device)
    for side, which in (("tail", (~is_head).nonzero()[:, 0]), ("head", is_head.nonzero()[:, 0])):
        for rows in which.split(256 if model.distance else 2048):
            scores = model.compare(model.queries(anchor[rows], relation[rows], side), model.entities)
            best[rows] = scores.topk(best.shape[1]).indices.to(torch.int32)
    return best


def bfloat16_where_fast(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and on processors that multiply it, else float32."""
    fast = device.type == "cuda" or any(name in kernels.processor() for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if fast else torch.float32
