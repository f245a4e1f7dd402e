"""DistilE in the open: knowledge-graph embeddings distilled into students 2 to 8 times smaller.

graph = kgdistil.load("umls")
teacher = kgdistil.run(kgdistil.make_config(dataset="umls", model="RotatE", dim=64, role="teacher"), graph)

Each name is imported when it is first used (PEP 562), so that `import kgdistil` is quick.
"""

import importlib
import os
import sys
import time
from typing import Any

from ._version import __version__


def _spins() -> str:
    """How often a thread looks for work before it sleeps: long where nobody else wants the cores now, or no more than
    an eighth of them, since to wake it takes longer than most pieces of a step (results/bench/waits.json). What ran a
    minute ago, as a first run of two did, is in the machine's load still, and says nothing of now."""
    looks = []
    try:
        for _ in range(3):  # in one of which nobody else, a short piece of work, is at it
            with open("/proc/loadavg", encoding="ascii") as file:
                looks.append(int(file.read().split()[3].split("/")[0]) - 1)  # but for this process
            time.sleep(0.001)
    except (OSError, ValueError, IndexError):  # where no system says so
        return "1000"
    return "20000" if 8 * min(looks) <= (os.cpu_count() or 1) else "1000"


if "torch" not in sys.modules:
    # Threads that spin long at a barrier keep other processes from the cores. OpenMP reads this when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", _spins())
    # A step's rows lie anywhere in a table of gigabytes: with pages of 2 MB their addresses are found sooner.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

PLACES = {
    "students.precisions": ["compare_precisions"],
    "students.predict": ["predict", "similar"],
    "answer.student": ["Student", "load_student"],
    "students.labelled": ["Labelled", "load_labelled"],
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

__all__ = ["__version__", *_place]  # noqa: PLE0604 - all of them texts


def __getattr__(name: str) -> Any:
    if name not in _place:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_place[name]}"), name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith(__name__):
            raise
        raise ImportError(f'kgdistil.{name} needs {error.name}: pip install "kgdistil[train]"') from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
