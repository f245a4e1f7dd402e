"""What the loop asks of an engine, and which engine trains a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from kgdistil.config import RunConfig
from kgdistil.graph import Graph
from kgdistil.graphs.lists import Lists
from kgdistil.models import KGEModel
from kgdistil.training.lists import ListsEngine
from kgdistil.training.native import NativeEngine
from kgdistil.training.reference import ReferenceEngine
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine


class Engine(Protocol):
    """Trains a student, and in stage 2 its teacher, for one epoch at a time."""

    between: Callable[[], object]  # called within an epoch, where `state` is all that is needed to go on

    @property
    def config(self) -> RunConfig:
        """What it was made for."""

    @property
    def trained(self) -> Mapping[str, KGEModel]:
        """The models that learn, by role: "student", in stage 2 "teacher" too."""

    @property
    def steps(self) -> int:
        """Steps of an epoch."""

    @property
    def arithmetic(self) -> Mapping[str, str | int]:
        """What decides the last bits besides config and engine."""

    def epoch(self, epoch: int, rates: Tensor, teacher_rates: Tensor | None = None) -> dict[str, float]:
        """Run epoch number `epoch` (from 0); rates: float64 [steps], the learning rate of each step.

        Returns the epoch's mean losses: student_soft, student_hard, teacher_soft, teacher_hard, penalty.
        """

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on besides weights and epoch."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""

    def as_saved(self) -> Mapping[str, KGEModel]:
        """The models that learn as their files will hold them, by role."""


def make_engine(student: KGEModel, teacher: KGEModel | Lists | None, config: RunConfig, graph: Graph) -> Engine:
    """The engine of sampled softmax for that loss; else the compiled one on a CPU with a compiler, PyTorch elsewhere.

    Both models are on one device, where the training triples are taken.
    """
    triples = graph.train.to(student.entities.device)
    if isinstance(teacher, Lists):
        return ListsEngine(student, teacher, triples, config)
    if config.loss == "softmax":
        return SampledSoftmaxEngine(student, teacher, triples, config)
    kind = NativeEngine if NativeEngine.can(student, teacher, config) else ReferenceEngine
    return kind(student, teacher, triples, config)
