"""One epoch in plain PyTorch: the readable truth that the compiled kernels are held to, and the path on a GPU.

On CUDA the whole step (sampling, scores, losses, backward, Adam) is captured once as a CUDA graph and replayed;
nothing crosses to the host before the epoch's losses are read.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kgdistil.config import Dual, RunConfig
from kgdistil.kernels.adam import Adam
from kgdistil.losses import PARTS, dual_losses, dual_structure, hard_loss, negative_weights, soft_loss
from kgdistil.models import KGEModel
from kgdistil.sampling import NEGATIVE_STREAM, TripleSet, corrupt, epoch_order, stream
from kgdistil.training.base import Engine

OTHER = {"student": "teacher", "teacher": "student"}  # whose scores are the soft labels
Scores = tuple[Tensor, Tensor]  # of a batch's triples [B] and of their corruptions [B, k]
Ends = dict[str, tuple[Tensor, Tensor, Tensor]]  # by role, rows [B, W] of the triples' heads, relations and tails


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
        # what a captured step reads: it has to stay where it is
        self.order = torch.zeros(len(triples), dtype=torch.int64, device=self.device)
        self.bases = torch.zeros(self.steps, dtype=torch.int64, device=self.device)
        self.place = torch.zeros((), dtype=torch.int64, device=self.device)
        used = min(config.batch_size, len(triples)) * (config.negatives + 2)
        self.adam = {role: Adam(model, self.steps, used, self.place) for role, model in self.trained.items()}
        self.moments = {f"{role}.{name}": x for role in self.adam for name, x in self.adam[role].moments.items()}
        self.sums = torch.zeros(len(PARTS), dtype=torch.float64, device=self.device)
        self.take = self.replay if self.device.type == "cuda" else self.step
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
        n, k = entity.shape
        ids = torch.cat([batch[:, 0], batch[:, 2], entity.flatten()])
        scores, ends = dict[str, Scores](), Ends()
        for role, model in self.models.items():
            rows, place = self.adam[role].take(ids) if role in self.adam else (model.entities, ids)
            h, t, drawn = place[:n, None], place[n : 2 * n, None], place[2 * n :].view(n, k)
            with torch.set_grad_enabled(role in self.trained):
                r = F.embedding(batch[:, 1], model.relations)
                ends[role] = F.embedding(h[:, 0], rows), r, F.embedding(t[:, 0], rows)
                corrupted = torch.where(is_tail, h, drawn), torch.where(is_tail, drawn, t)
                h, t = (F.embedding(x, rows) for x in corrupted)
                scores[role] = model.score(*ends[role]), model.score(h, r[:, None], t)
        soft, hard = {}, {}
        for role in self.trained:
            positive, negative = scores[role]
            weight = negative_weights(negative, kept, config.weighting, config.temperature)
            if isinstance(config.objective, Dual):
                structure = dual_structure(*(ends[name][i] for name in (role, OTHER[role]) for i in (0, 2)))
                soft[role], hard[role] = dual_losses(*scores[role], weight, *scores[OTHER[role]], structure)
                continue
            hard[role] = hard_loss(config.loss, positive, negative, weight, config.gamma)
            if len(self.models) == 2:
                soft[role] = soft_loss(config.loss, positive, negative, weight, *scores[OTHER[role]])
        penalty = torch.zeros((), device=self.device)
        if config.penalty:
            for role, model in self.trained.items():
                penalty = penalty + config.penalty * model.penalty(*ends[role]).mean()
        return self.add(soft, hard, penalty)

    def step(self, size: int) -> None:
        """One batch of `size` triples, the `place`-th of the epoch."""
        index = self.place * self.config.batch_size + torch.arange(size, device=self.device)
        batch = self.triples[self.order[index]]
        total, parts = self.losses(batch, self.bases.take(self.place))
        self.sums += parts * (size / len(self.triples))
        total.backward()
        for adam in self.adam.values():
            adam.step()
        self.place += 1

    def replay(self, size: int) -> None:
        """`step`, captured at its first use for this size and replayed from then on."""
        if size not in self.graphs:
            kept = [(x, x.clone()) for x in self.everything()]
            self.graphs[size] = capture(lambda: self.step(size), lambda: [x.copy_(before) for x, before in kept])
        self.graphs[size].replay()

    def everything(self) -> list[Tensor]:
        """All that a step may change: models (detached, in the same memory), moments, and where the epoch stands."""
        found = [self.place, self.sums]
        for role, adam in self.adam.items():
            found += [*self.trained[role].state_dict().values(), *adam.moments.values(), adam.last]
        return found

    def epoch(self, epoch: int, rates: Tensor, teacher_rates: Tensor | None = None) -> dict[str, float]:
        self.begin(epoch)
        seed, size, n, steps = self.config.seed, self.config.batch_size, len(self.triples), self.steps
        self.order.copy_(epoch_order(seed, epoch, n, self.device))
        first = epoch * steps
        index = torch.arange(first, first + steps, device=self.device)
        self.bases.copy_(stream(seed, NEGATIVE_STREAM, index, self.device))
        self.place.zero_()
        for role, adam in self.adam.items():
            adam.begin(teacher_rates if role == "teacher" and teacher_rates is not None else rates, first)
        self.sums.zero_()
        for i in range(steps):
            self.take(min(size, n - i * size))
        for adam in self.adam.values():
            adam.end()
        return dict(zip(PARTS, self.sums.tolist(), strict=True))


def capture(step: Callable[[], None], undo: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A step as a CUDA graph; `undo` puts back what a step changes."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # PyTorch asks for warm-up steps before a capture
        for _ in range(3):
            step()
            undo()
    torch.cuda.current_stream().wait_stream(side)
    collecting = gc.isenabled()
    gc.disable()  # an older graph that is freed in the middle of a capture ends it
    try:
        with torch.cuda.graph(graph):
            step()
    finally:
        if collecting:
            gc.enable()
    undo()
    return graph
