"""An engine: models by role, who of them learns, moments, how losses add up, and what the loop asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kgdistil.config import RunConfig
from kgdistil.errors import ConfigError
from kgdistil.losses import total_loss
from kgdistil.models import KGEModel
from kgdistil.sampling import INDEX_BITS


class Engine:
    """Trains a student, and in stage 2 its teacher, for one epoch at a time: on one device, updated in place.

    Args:
        student, teacher: `teacher` may be None; stage 2 trains it too, stage 1 leaves it as it is.
        samples: of an epoch, of which a step takes `batch_size`.
        config: loss, rates of the soft labels, seed.
    Raises:
        ConfigError: too many samples.
    """

    def __init__(self, student: KGEModel, teacher: KGEModel | None, samples: int, config: RunConfig):
        if samples >= 1 << INDEX_BITS:
            raise ConfigError(f"{samples:,} triples or queries are too many to train: give fewer than 2^{INDEX_BITS}")
        self.config, self.samples, self.device = config, samples, student.entities.device
        self.models = {"student": student, **({} if teacher is None else {"teacher": teacher})}
        self.trained = {role: m for role, m in self.models.items() if role == "student" or config.role == "stage2"}
        self.weights: dict[str, float | None] = {}
        self.begin(0)
        self.moments: dict[str, Tensor] = {}
        self.between: Callable[[], object] = lambda: None  # called where `state` is enough to go on within an epoch

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.samples // self.config.batch_size)

    @property
    def arithmetic(self) -> dict[str, str | int]:
        """What decides the last bits besides config and engine: a run goes on only where it is the same."""
        return {"products": "float32"}

    def epoch(self, epoch: int, rates: Tensor, teacher_rates: Tensor | None = None) -> dict[str, float]:
        """Run epoch number `epoch` (from 0); rates: float64 [steps], the learning rate of each step.

        Returns the epoch's mean losses: student_soft, student_hard, teacher_soft, teacher_hard, penalty.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """The optimiser's moments and what else is learned: all there is besides the weights and the epoch."""
        return dict(self.moments)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name, value in state.items():
            self.moments[name].copy_(value)

    def as_saved(self) -> dict[str, KGEModel]:
        """The models that learn as their files will hold them, by role."""
        return self.trained

    def begin(self, epoch: int) -> None:
        """What the soft labels count from here on, by role: α and β (Eq. 5 and 11)."""
        self.weights = {"student": self.config.alpha_at(epoch), "teacher": self.config.beta}

    def add(self, soft: Mapping[str, Tensor], hard: Mapping[str, Tensor], penalty: Tensor) -> tuple[Tensor, Tensor]:
        """What a step minimises, and its parts [5] (`PARTS`), float64 without gradient."""
        nothing = torch.zeros((), device=self.device)
        parts = [losses.get(role, nothing) for role in ("student", "teacher") for losses in (soft, hard)]
        total = total_loss(soft, hard, self.weights["student"], self.weights["teacher"]) + penalty
        return total, torch.stack([x.detach() for x in (*parts, penalty)]).double()
