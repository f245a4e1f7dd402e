"""DistilE in the open: knowledge-graph embeddings distilled into students 2 to 8 times smaller.

graph = kgdistil.load("umls")
teacher = kgdistil.run(kgdistil.make_config(dataset="umls", model="RotatE", dim=64, role="teacher"), graph)
"""

from ._version import __version__
from .checkpoint import load_model, save_model
from .config import RunConfig, make_config
from .data import Graph, load
from .distil import distil
from .errors import CheckpointError, ConfigError, DataError, DeviceError, KgdistilError
from .evaluation import KnownTriples, Ranks, evaluate, rank
from .models import MODELS, KGEModel, build_model
from .predict import predict, similar
from .quantise import compare_precisions, quantised
from .readers import read_graph
from .student import Student, load_student
from .training import Run, run, train

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
