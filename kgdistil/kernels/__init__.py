"""Fast paths on the CPU: C++ compiled at first use, loaded with ctypes.

`rank.cpp` counts filtered ranks and finds top-k answers, `codes.cpp` finds four-bit codes, `pairs.cpp` scores each
query with each candidate, `softmax.cpp` makes losses of such scores, `rows.cpp` brings rows to a step and its gradients
back, `ids.cpp` says whose they are, and `train.cpp` runs one epoch of negative sampling (`kgdistil.training.native`).
All are held to the readable modules by the tests. `dots.py` is a step of ComplEx of these parts, without autograd.
`adam.py`, on any device, is Adam of the rows that a step uses; `free.py` counts the cores that are free; `memory.py`
has a process keep what it frees.
"""

from .compile import (
    bfloat16_where_fast,
    compiled,
    compiler,
    pointer,
    processor,
    threads,
    with_threads,
)
from .dots import Dots, dots_in
from .free import again, free_threads, with_free_threads
from .ids import asked, drawn, grouped, spans
from .kinds import check_equation, comparison, said, usable
from .memory import keep_freed_memory
from .nearest import by_code, decoded, nearest, nearest_library
from .rank import Job, Known, Ranker, for_vectors, rank_library
from .rows import SHAPES, Gradients, adagrad, among, rows_in, rows_library

__all__ = [
    "SHAPES",
    "Dots",
    "Gradients",
    "Job",
    "Known",
    "Ranker",
    "adagrad",
    "again",
    "among",
    "asked",
    "bfloat16_where_fast",
    "by_code",
    "check_equation",
    "comparison",
    "compiled",
    "compiler",
    "decoded",
    "dots_in",
    "drawn",
    "for_vectors",
    "free_threads",
    "grouped",
    "keep_freed_memory",
    "nearest",
    "nearest_library",
    "pointer",
    "processor",
    "rank_library",
    "rows_in",
    "rows_library",
    "said",
    "spans",
    "threads",
    "usable",
    "with_free_threads",
    "with_threads",
]
