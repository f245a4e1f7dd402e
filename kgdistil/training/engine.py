"""Which engine trains a run."""

from __future__ import annotations

from kgdistil.config import RunConfig
from kgdistil.graph import Graph
from kgdistil.models import KGEModel
from kgdistil.training.native import NativeEngine, train_library
from kgdistil.training.reference import ReferenceEngine
from kgdistil.training.sampled_softmax import ListEngine

Engine = NativeEngine | ReferenceEngine | ListEngine


def make_engine(student: KGEModel, teacher: KGEModel | None, config: RunConfig, graph: Graph) -> Engine:
    """The engine of whole lists for softmax; else the compiled one on a CPU with a compiler, PyTorch elsewhere."""
    if config.loss == "softmax":
        triples = graph.train.to(student.entities.device)
        return ListEngine(student, teacher, config.role == "stage2", triples, config.objective)
    native = config.loss != "dual" and all(m is None or train_library(m) for m in (student, teacher))
    engine = NativeEngine if native else ReferenceEngine
    return engine(student, teacher, config.role == "stage2", graph.train.to(student.entities.device), config.objective)
