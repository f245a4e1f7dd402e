"""Which engine trains a run."""

from __future__ import annotations

from kgdistil.config import RunConfig
from kgdistil.graph import Graph
from kgdistil.graphs.lists import Lists
from kgdistil.models import KGEModel
from kgdistil.training.base import Engine
from kgdistil.training.lists import ListsEngine
from kgdistil.training.native import NativeEngine
from kgdistil.training.reference import ReferenceEngine
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine


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
