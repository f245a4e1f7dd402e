"""Which engine trains a run."""

from __future__ import annotations

from kgdistil.config import RunConfig
from kgdistil.graph import Graph
from kgdistil.graphs.lists import Lists
from kgdistil.graphs.remembered import remembered
from kgdistil.models import KGEModel
from kgdistil.training.base import Engine
from kgdistil.training.lists import ListsEngine
from kgdistil.training.native import NativeEngine
from kgdistil.training.reference import ReferenceEngine
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine


def make_engine(student: KGEModel, teacher: KGEModel | Lists | None, config: RunConfig, graph: Graph) -> Engine:
    """The engine of sampled softmax for that loss; else the compiled one on a CPU with a compiler, PyTorch elsewhere;
    both models are on one device."""
    triples = graph.train.to(student.entities.device)
    if isinstance(teacher, Lists):
        return ListsEngine(student, teacher, triples, config)
    if config.loss == "softmax":
        engine = SampledSoftmaxEngine(student, teacher, triples, config)
        if said := remembered(teacher, config, *engine.asked):
            engine.said, engine.models = said, engine.trained
        return engine
    compiled = NativeEngine.can(student, teacher, config)
    return (NativeEngine if compiled else ReferenceEngine)(student, teacher, triples, config)
