"""DistilE in the open: knowledge-graph embeddings distilled into students 2 to 8 times smaller.

graph = kgdistil.load("umls")
teacher = kgdistil.run(kgdistil.make_config(dataset="umls", model="RotatE", dim=64, role="teacher"), graph)

Each name is imported when it is first used (PEP 562), so that `import kgdistil` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .answer.precisions import compare_precisions
    from .answer.predict import predict, similar
    from .answer.student import Student, load_student
    from .checkpoint import load_model, save_model
    from .compress.packing import quantised
    from .config import RunConfig, make_config
    from .distillation.distil import distil
    from .errors import CheckpointError, ConfigError, DataError, DeviceError, KgdistilError
    from .evaluation import KnownTriples, Ranks, evaluate, rank
    from .graph import Graph
    from .graphs.datasets import load
    from .graphs.readers import read_graph
    from .models import MODELS, KGEModel, build_model
    from .training.loop import Run, run, train

PLACES = {
    "answer.precisions": ["compare_precisions"],
    "answer.predict": ["predict", "similar"],
    "answer.student": ["Student", "load_student"],
    "checkpoint": ["load_model", "save_model"],
    "compress.packing": ["quantised"],
    "config": ["RunConfig", "make_config"],
    "distillation.distil": ["distil"],
    "errors": ["CheckpointError", "ConfigError", "DataError", "DeviceError", "KgdistilError"],
    "evaluation": ["KnownTriples", "Ranks", "evaluate", "rank"],
    "graph": ["Graph"],
    "graphs.datasets": ["load"],
    "graphs.readers": ["read_graph"],
    "models": ["MODELS", "KGEModel", "build_model"],
    "training.loop": ["Run", "run", "train"],
}
_place = {name: place for place, names in PLACES.items() for name in names}

__all__ = [
    "MODELS",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "Graph",
    "KGEModel",
    "KgdistilError",
    "KnownTriples",
    "Ranks",
    "Run",
    "RunConfig",
    "Student",
    "__version__",
    "build_model",
    "compare_precisions",
    "distil",
    "evaluate",
    "load",
    "load_model",
    "load_student",
    "make_config",
    "predict",
    "quantised",
    "rank",
    "read_graph",
    "run",
    "save_model",
    "similar",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _place:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_place[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
