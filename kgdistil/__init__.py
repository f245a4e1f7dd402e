"""DistilE in the open: knowledge-graph embeddings distilled into students 2 to 8 times smaller.

graph = kgdistil.load("umls")
teacher = kgdistil.run(kgdistil.make_config(dataset="umls", model="RotatE", dim=64, role="teacher"), graph)
"""

from ._version import __version__
from .checkpoint import load_model, save_model
from .config import RunConfig, make_config
from .data import Graph, load
from .errors import CheckpointError, ConfigError, DataError, DeviceError, KgdistilError
from .evaluation import KnownTriples, Ranks, evaluate, rank
from .models import MODELS, KGEModel, build_model
from .predict import predict
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
    "__version__",
    "build_model",
    "evaluate",
    "load",
    "load_model",
    "make_config",
    "predict",
    "rank",
    "run",
    "save_model",
    "train",
]
