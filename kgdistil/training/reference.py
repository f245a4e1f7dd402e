"""One epoch in plain PyTorch: the readable truth that the compiled kernels are held to, and the path on a GPU.

On CUDA the whole step (sampling, scores, losses, backward, Adam) is captured once as a CUDA graph and replayed;
nothing crosses to the host before the epoch's losses are read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kgdistil.config import Dual, RunConfig
from kgdistil.losses import PARTS, dual_losses, dual_structure, hard_loss, negative_weights, soft_loss
from kgdistil.models import KGEModel
from kgdistil.sampling import NEGATIVE_STREAM, TripleSet, corrupt, epoch_order, stream
from kgdistil.training.base import Engine

OTHER = {"student": "teacher", "teacher": "student"}  # whose scores are the soft labels
Scores = tuple[Tensor, Tensor]  # of a batch's triples [B] and of their corruptions [B, k]


class ReferenceEngine(Engine):
    """Negative sampling with margin, cross-entropy or DualDE's losses, on any device.

    Args:
        student, teacher: models on one device, updated in place; `teacher` may be None.
        triples: int64 [n, 3], the training triples.
        config: loss margin, cross-entropy or dual; stage 2 trains the teacher too.
    """

    def __init__(self, student: KGEModel, teacher: KGEModel | None, triples: Tensor, config: RunConfig):
        super().__init__(student, teacher, len(triples), config)
        self.triples = triples
        self.known = TripleSet(triples, student.num_entities, student.num_relations)
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
        self.sums = torch.zeros(len(PARTS), dtype=torch.float64, device=self.device)
        self.take = self.replay if cuda else self.step
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @property
    def arithmetic(self) -> dict[str, str | int]:
        """PyTorch shares sums out among its threads, so that on a CPU their number decides the last bits."""
        threads = {"threads": torch.get_num_threads()} if self.device.type == "cpu" else {}
        return {**super().arithmetic, **threads}

    def losses(self, batch: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of triples [B, 3] with the negatives of `base`, and its five parts [5] (`PARTS`)."""
        config = self.config
        entity, is_tail, kept = corrupt(batch, config.negatives, self.known, base)
        h, r, t = (x[:, None] for x in batch.unbind(-1))
        corrupted = (torch.where(is_tail, h, entity), r, torch.where(is_tail, entity, t))
        scores: dict[str, Scores] = {}
        for role, model in self.models.items():
            with torch.set_grad_enabled(role in self.trained):
                scores[role] = model.score_triples(batch), model(*corrupted)
        soft, hard = {}, {}
        for role in self.trained:
            positive, negative = scores[role]
            weight = negative_weights(negative, kept, config.weighting, config.temperature)
            if isinstance(config.objective, Dual):
                soft[role], hard[role] = self.dual(role, batch, scores, weight)
                continue
            hard[role] = hard_loss(config.loss, positive, negative, weight, config.gamma)
            if len(self.models) == 2:
                soft[role] = soft_loss(config.loss, positive, negative, weight, *scores[OTHER[role]])
        penalty = torch.zeros((), device=self.device)
        if config.penalty:
            for model in self.trained.values():
                penalty = penalty + config.penalty * model.penalty(*model.embed(*batch.unbind(-1))).mean()
        return self.add(soft, hard, penalty)

    def dual(self, role: str, batch: Tensor, scores: dict[str, Scores], weight: Tensor) -> tuple[Tensor, Tensor]:
        """DualDE's soft and hard loss of a role."""
        pair = self.models[role], self.models[OTHER[role]]
        ends = [model.entities[batch[:, i]] for model in pair for i in (0, 2)]
        return dual_losses(*scores[role], weight, *scores[OTHER[role]], dual_structure(*ends))

    def step(self, size: int) -> None:
        """One batch of `size` triples, the `place`-th of the epoch."""
        index = self.place * self.config.batch_size + torch.arange(size, device=self.device)
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

            def undo() -> None:
                for name, x in self.everything().items():
                    x.copy_(kept[name])

            self.graphs[size] = capture(lambda: self.step(size), undo)
        self.graphs[size].replay()

    def everything(self) -> dict[str, Tensor]:
        """Every tensor that a step may change: of the models, of their optimisers, and where the epoch stands."""
        tensors = {"place": self.place, "sums": self.sums}
        for role, model in self.trained.items():
            tensors |= {f"{role}.{name}": x for name, x in model.state_dict().items()}  # detached: they share memory
            for name, p in model.named_parameters():
                tensors |= {f"{role}.{name}.{part}": x for part, x in self.optimizers[role].state[p].items()}
        return tensors

    def epoch(self, epoch: int, rates: Tensor, teacher_rates: Tensor | None = None) -> dict[str, float]:
        """Run epoch number `epoch` (from 0); rates: float64 [steps], the learning rate of each step.

        Returns the epoch's mean losses: student_soft, student_hard, teacher_soft, teacher_hard, penalty.
        """
        self.begin(epoch)
        seed, size, n, steps = self.config.seed, self.config.batch_size, len(self.triples), self.steps
        self.order.copy_(epoch_order(seed, epoch, n, self.device))
        first = epoch * steps
        self.bases.copy_(
            stream(seed, NEGATIVE_STREAM, torch.arange(first, first + steps, device=self.device), self.device)
        )
        for role in self.trained:
            given = teacher_rates if role == "teacher" and teacher_rates is not None else rates
            self.rates[role].copy_(given)
            for state in self.optimizers[role].state.values():
                state["step"].fill_(first)
        self.place.zero_()
        self.sums.zero_()
        for i in range(steps):
            self.take(min(size, n - i * size))
        return dict(zip(PARTS, self.sums.tolist(), strict=True))


def capture(step: Callable[[], None], undo: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A step as a CUDA graph; `undo` puts back what a step changes."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # PyTorch asks for warm-up steps before a capture
        for _ in range(3):
            step()
            undo()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        step()
    undo()
    return graph
