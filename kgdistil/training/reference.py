"""One epoch in plain PyTorch: the readable truth that the compiled kernels are held to, and the path on a GPU.

On CUDA the whole step (sampling, scores, losses, backward, Adam) is captured once as a CUDA graph and replayed;
nothing crosses to the host before the epoch's losses are read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kgdistil.losses import (
    Objective,
    dual_losses,
    dual_structure,
    hard_loss,
    negative_weights,
    soft_loss,
    stage_one_loss,
    stage_two_loss,
)
from kgdistil.models import KGEModel
from kgdistil.sampling import NEGATIVE_STREAM, TripleSet, corrupt, epoch_order, stream

NAMES = ("student_soft", "student_hard", "teacher_soft", "teacher_hard", "penalty")


class ReferenceEngine:
    """Trains a student, and in stage 2 its teacher, for one epoch at a time.

    Args:
        student, teacher: models on one device, updated in place; `teacher` may be None.
        train_teacher: stage 2, in which the teacher learns too.
        triples: int64 [n, 3], the training triples. objective: the loss.
    """

    def __init__(
        self,
        student: KGEModel,
        teacher: KGEModel | None,
        train_teacher: bool,
        triples: Tensor,
        objective: Objective,
    ):
        self.objective, self.triples, self.device = objective, triples, student.entities.device
        self.known = TripleSet(triples, student.num_entities, student.num_relations)
        self.student, self.teacher, self.train_teacher = student, teacher, train_teacher
        self.trained = {"student": student, **({"teacher": teacher} if train_teacher else {})}
        cuda = self.device.type == "cuda"
        self.optimizers = {
            role: torch.optim.Adam(
                model.parameters(),
                lr=torch.zeros((), device=self.device) if cuda else 0.0,
                capturable=cuda,
                fused=cuda or None,
            )
            for role, model in self.trained.items()
        }
        self.moments: dict[str, Tensor] = {}
        for role, model in self.trained.items():
            for table, p in model.named_parameters():
                # PyTorch fills these at the first step; made here they can be saved, restored and captured
                self.optimizers[role].state[p] = {
                    "step": torch.zeros((), device=self.device if cuda else "cpu"),
                    "exp_avg": torch.zeros_like(p, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(p, requires_grad=False),
                }
                self.moments[f"{role}.{table}.m"] = self.optimizers[role].state[p]["exp_avg"]
                self.moments[f"{role}.{table}.v"] = self.optimizers[role].state[p]["exp_avg_sq"]
        # what a captured step reads: it has to stay where it is
        self.order = torch.zeros(len(triples), dtype=torch.int64, device=self.device)
        self.bases = torch.zeros(self.steps, dtype=torch.int64, device=self.device)
        self.rates = {role: torch.zeros(self.steps, device=self.device) for role in self.trained}
        self.place = torch.zeros((), dtype=torch.int64, device=self.device)
        self.sums = torch.zeros(len(NAMES), dtype=torch.float64, device=self.device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.triples) // self.objective.batch_size)

    def state(self) -> dict[str, Tensor]:
        """Adam's moments: all there is besides the weights and the epoch."""
        return dict(self.moments)

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.moments[name].copy_(value)

    def losses(self, batch: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of triples [B, 3] with the negatives of `base`, and its five parts [5] (`NAMES`)."""
        o = self.objective
        entity, is_tail, kept = corrupt(batch, o.negatives, self.known, base)
        h, r, t = (x[:, None] for x in batch.unbind(-1))
        corrupted = (torch.where(is_tail, h, entity), r, torch.where(is_tail, entity, t))
        scores, models = {}, {"student": self.student, "teacher": self.teacher}
        for role, model in models.items():
            if model is not None:
                with torch.set_grad_enabled(role in self.trained):
                    scores[role] = model.score_triples(batch), model(*corrupted)
        soft, hard = {}, {}
        for role in self.trained:
            positive, negative = scores[role]
            weight = negative_weights(negative, kept, o.weighting, o.temperature)
            if o.loss == "dual":
                other = "teacher" if role == "student" else "student"
                ends = [model.entities[batch[:, i]] for model in (models[role], models[other]) for i in (0, 2)]
                soft[role], hard[role] = dual_losses(*scores[role], weight, *scores[other], dual_structure(*ends))
                continue
            hard[role] = hard_loss(o.loss, positive, negative, weight, o.margin)
            if self.teacher is not None:
                other = scores["teacher" if role == "student" else "student"]
                soft[role] = soft_loss(o.loss, positive, negative, weight, *other)
        if o.loss == "dual":
            total = sum(soft.values()) + sum(hard.values())
        elif self.train_teacher:
            total = stage_two_loss(soft["student"], hard["student"], soft["teacher"], hard["teacher"], o.alpha, o.beta)
        elif self.teacher is not None:
            total = stage_one_loss(soft["student"], hard["student"], o.alpha)
        else:
            total = hard["student"]
        nothing = torch.zeros((), device=self.device)
        penalty = nothing
        if o.penalty:
            for model in self.trained.values():
                penalty = penalty + o.penalty * model.penalty(*model.embed(*batch.unbind(-1))).mean()
        parts = [
            soft.get("student", nothing),
            hard["student"],
            soft.get("teacher", nothing),
            hard.get("teacher", nothing),
            penalty,
        ]
        return total + penalty, torch.stack([x.detach().double() for x in parts])

    def step(self, size: int) -> None:
        """One batch of `size` triples, the `place`-th of the epoch."""
        index = self.place * self.objective.batch_size + torch.arange(size, device=self.device)
        batch = self.triples[self.order[index]]
        total, parts = self.losses(batch, self.bases.take(self.place))
        self.sums += parts * (size / len(self.triples))
        for role, optimizer in self.optimizers.items():
            optimizer.zero_grad(set_to_none=True)
            if isinstance(optimizer.param_groups[0]["lr"], Tensor):
                optimizer.param_groups[0]["lr"].copy_(self.rates[role].take(self.place))
            else:
                optimizer.param_groups[0]["lr"] = float(self.rates[role].take(self.place))
        total.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.place += 1

    def replay(self, size: int) -> None:
        """`step`, captured at its first use for this size and replayed from then on."""
        if size not in self.graphs:
            kept = {name: x.clone() for name, x in self.everything().items()}
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # PyTorch asks for warm-up steps before a capture; they are undone below
                for _ in range(3):
                    self.place.copy_(kept["place"])
                    self.step(size)
            torch.cuda.current_stream().wait_stream(side)
            self.graphs[size] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[size]):
                self.step(size)
            for name, x in self.everything().items():
                x.data.copy_(kept[name])
        self.graphs[size].replay()

    def everything(self) -> dict[str, Tensor]:
        """Every tensor a step changes."""
        tensors = {"place": self.place, "sums": self.sums, **self.moments}
        for role, model in self.trained.items():
            for table in ("entities", "relations"):
                p = getattr(model, table)
                tensors[f"{role}.{table}"] = p.data
                tensors[f"{role}.{table}.step"] = self.optimizers[role].state[p]["step"]
        return tensors

    def epoch(self, epoch: int, rates: Tensor, teacher_rates: Tensor | None = None) -> dict[str, float]:
        """Run epoch number `epoch` (from 0); rates: float64 [steps], the learning rate of each step.

        Returns the epoch's mean losses: student_soft, student_hard, teacher_soft, teacher_hard, penalty.
        """
        o, n, steps = self.objective, len(self.triples), self.steps
        self.order.copy_(epoch_order(o.seed, epoch, n, self.device))
        first = epoch * steps
        self.bases.copy_(
            stream(o.seed, NEGATIVE_STREAM, torch.arange(first, first + steps, device=self.device), self.device)
        )
        for role in self.trained:
            given = teacher_rates if role == "teacher" and teacher_rates is not None else rates
            self.rates[role].copy_(given)
            for state in self.optimizers[role].state.values():
                state["step"].fill_(first)
        self.place.zero_()
        self.sums.zero_()
        take = self.replay if self.device.type == "cuda" else self.step
        for i in range(steps):
            take(min(o.batch_size, n - i * o.batch_size))
        return dict(zip(NAMES, self.sums.tolist(), strict=True))
