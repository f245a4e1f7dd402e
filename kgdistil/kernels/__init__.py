"""Fast paths on the CPU: C++ compiled at first use for one model and dimension, loaded with ctypes.

`train.cpp` runs one epoch, `rank.cpp` counts filtered ranks and finds top-k answers, `scan.cpp` does so over entities
of four-bit codes, `codes.cpp` finds those codes, and `pairs.cpp` (see `pairs`) scores lists of candidates. All are held
to the readable modules by the tests. Without a C++ compiler, or with `KGDISTIL_NATIVE=0`, the callers use PyTorch,
after one log line. `CXX` names the compiler, `KGDISTIL_CACHE` the folder of the compiled files.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor

from ..errors import ConfigError
from ..losses import Objective
from ..models import FACTORED, MODELS, KGEModel, RotatE, TransE, TransH
from ..sampling import TripleSet

log = logging.getLogger("kgdistil")
# OpenMP's threads wait at a barrier by spinning, which starves each other when the cores are shared: spin briefly.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
HERE = Path(__file__).parent
FAST = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-march=native", "-mprefer-vector-width=512"]
FAST_MATH = ["-ffast-math", "-fno-finite-math-only"]  # when compiling, never when linking: see `compiled`
DOT, DISTANCE, MODULUS, HYPERPLANE = range(4)


# ---- compiling ------------------------------------------------------------------------------------------------------
@functools.cache
def compiler() -> str | None:
    """Path of a working C++ compiler, or None after one log line that says what to do."""
    if os.environ.get("KGDISTIL_NATIVE") == "0":
        log.info("compiled kernels are off (KGDISTIL_NATIVE=0): using PyTorch")
        return None
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++")):
        if path := shutil.which(name):
            return path
    log.warning("no C++ compiler found (g++ or clang++): using PyTorch, which is several times slower")
    return None


@functools.cache
def processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.platform() + platform.processor()


@functools.cache
def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, for the rest of the process: a step frees large tensors and asks for them again.

    Giving them back and faulting them in anew took up to a quarter of the time of whole lists. False without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    # M_MMAP_THRESHOLD, at the largest that glibc takes, and M_TRIM_THRESHOLD: malloc.h
    return mallopt is not None and all([mallopt(-3, 32 << 20), mallopt(-1, 1 << 30)])


@functools.cache
def compiled(source: str, *defines: str) -> ctypes.CDLL | None:
    """The library of one source file and its -D settings, from the cache or compiled now (a few seconds).

    None, after one log line, where it cannot be built.
    """
    if compiler() is None:
        return None
    flags = FAST + (FAST_MATH if source == "train.cpp" else [])
    texts = [(HERE / name).read_text() for name in (source, "scores.h", "tiles.h")]
    key = hashlib.sha256("\0".join([*texts, *flags, *defines, compiler(), processor()]).encode()).hexdigest()[:20]
    folder = Path(os.environ.get("KGDISTIL_CACHE", platformdirs.user_cache_dir("kgdistil"))) / "kernels"
    library = folder / f"{Path(source).stem}-{'-'.join(d.split('=')[1] for d in defines)}-{key}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                # linked in a second call: -ffast-math at link time would change how the whole process rounds
                code, shared = f"{scratch}/code.o", f"{scratch}/code.so"
                run(compiler(), *flags, *(f"-D{d}" for d in defines), "-c", str(HERE / source), "-o", code)
                run(compiler(), "-shared", "-fopenmp", code, "-lm", "-o", shared)
                os.replace(shared, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        warn_once(detail.strip().splitlines()[-1])
        return None


@functools.cache
def warn_once(reason: str) -> None:
    """One line, however many libraries cannot be built for the same reason."""
    log.warning("compiled kernels are not available, using PyTorch: %s", reason)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


def threads() -> int:
    """Threads the kernels use: PyTorch's own setting (`torch.set_num_threads`)."""
    return torch.get_num_threads()


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def usable(*models: KGEModel | None) -> bool:
    """Whether every model given is float32 on the CPU, of a kind the kernels know."""
    return all(
        m is None
        or (
            type(m) in (MODELS.get(type(m).__name__), *FACTORED.values())  # a class of one's own may bear the same name
            and not (type(m) is RotatE and m.norm == 2)  # an imported teacher's; they sum the moduli
            and m.entities.device.type == "cpu"
            and m.entities.dtype == torch.float32
        )
        for m in models
    )


# ---- training -------------------------------------------------------------------------------------------------------
class Learner(ctypes.Structure):
    """Mirrors `Learner` of train.cpp."""

    _fields_ = (
        [("ops", ctypes.c_void_p)]
        + [(f"{table}{part}", ctypes.c_void_p) for table in ("entity", "relation") for part in ("", "_m", "_v")]
        + [
            ("num_entities", ctypes.c_int64),
            ("num_relations", ctypes.c_int64),
            ("rates", ctypes.c_void_p),
            ("offset", ctypes.c_float),
            ("scale", ctypes.c_float),
            ("penalty", ctypes.c_float),
            ("trained", ctypes.c_int32),
            ("weight", ctypes.c_float),
        ]
    )


class Epoch(ctypes.Structure):
    """Mirrors `Epoch` of train.cpp."""

    _fields_ = [
        ("triples", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("first_step", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("num_keys", ctypes.c_int64),
        ("bitmap", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("bitmap_bits", "batch", "k", "margin_loss", "weighting", "threads")),
        ("seed", ctypes.c_uint64),
        ("epoch", ctypes.c_uint64),
        ("margin", ctypes.c_float),
        ("temperature", ctypes.c_float),
        ("student", ctypes.POINTER(Learner)),
        ("teacher", ctypes.POINTER(Learner)),
        ("losses", ctypes.c_double * 5),
        ("phases", ctypes.c_double * 4),
    ]


def train_library(model: KGEModel) -> ctypes.CDLL | None:
    library = compiled(
        "train.cpp", f"KGD_MODEL={type(model).__name__}", f"KGD_DIM={model.dim}", f"KGD_NORM={model.norm}"
    )
    if library is not None:
        library.kgd_ops.restype = ctypes.c_void_p
        library.kgd_epoch.argtypes = [ctypes.POINTER(Epoch)]
    return library


class NativeEngine:
    """`reference.ReferenceEngine`, compiled: same arguments, same numbers up to rounding.

    Args:
        student, teacher: float32 models on the CPU, updated in place; `teacher` may be None.
        train_teacher: stage 2, in which the teacher learns too.
        triples: int64 [n, 3], the training triples. objective: the loss.
    """

    def __init__(
        self,
        student: KGEModel,
        teacher: KGEModel | None,
        train_teacher: bool,
        triples: Tensor,
        objective: Objective,
    ):
        self.objective, self.triples = objective, triples.to(torch.int32).contiguous()
        known = TripleSet(triples, student.num_entities, student.num_relations)
        self.keys = known.keys
        # one bit for each hashed key answers most questions; 48 bits a triple keep false alarms near 2 %
        self.bitmap_bits = max(10, (48 * len(triples) - 1).bit_length())
        place = (known.keys * (0x9E3779B97F4A7C15 - (1 << 64))) >> (64 - self.bitmap_bits)
        place = place & ((1 << self.bitmap_bits) - 1)
        bits = torch.zeros(1 << self.bitmap_bits, dtype=torch.bool)
        bits[place] = True
        self.bitmap = pack_bits(bits)
        self.models, self.moments, self.libraries = {"student": student}, {}, {}
        if teacher is not None:
            self.models["teacher"] = teacher
        self.trained = ["student"] + (["teacher"] if train_teacher else [])
        for role, model in self.models.items():
            self.libraries[role] = train_library(model)
            if role in self.trained:
                for table in ("entities", "relations"):
                    for part in ("m", "v"):
                        self.moments[f"{role}.{table}.{part}"] = torch.zeros_like(getattr(model, table).data)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.triples) // self.objective.batch_size)

    def state(self) -> dict[str, Tensor]:
        """Adam's moments: all there is besides the weights and the epoch."""
        return dict(self.moments)

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.moments[name].copy_(value)

    def epoch(self, epoch: int, rates: Tensor, teacher_rates: Tensor | None = None) -> dict[str, float]:
        """Run epoch number `epoch` (from 0); rates: float64 [steps], the learning rate of each step.

        Returns the epoch's mean losses: student_soft, student_hard, teacher_soft, teacher_hard, penalty.
        """
        o, kept = self.objective, []
        learners = {}
        for role, model in self.models.items():
            tables = [model.entities.data, model.relations.data]
            rate = (rates if role == "student" or teacher_rates is None else teacher_rates).double().contiguous()
            kept.append(rate)
            moments = [
                [pointer(self.moments.get(f"{role}.{table}.{part}")) for part in ("m", "v")]
                for table in ("entities", "relations")
            ]
            learners[role] = Learner(
                self.libraries[role].kgd_ops(),
                pointer(tables[0]),
                *moments[0],
                pointer(tables[1]),
                *moments[1],
                model.num_entities,
                model.num_relations,
                pointer(rate),
                model.offset if model.distance else 0.0,
                torch.pi / model.range if isinstance(model, RotatE) else 1.0,
                o.penalty,
                role in self.trained,
                o.alpha if role == "student" else o.beta,
            )
        call = Epoch(
            pointer(self.triples),
            len(self.triples),
            epoch * self.steps,
            pointer(self.keys),
            len(self.keys),
            pointer(self.bitmap),
            self.bitmap_bits,
            min(o.batch_size, len(self.triples)),  # working memory is made for a whole batch
            o.negatives,
            o.loss == "margin",
            ("sum", "mean", "self-adversarial").index(o.weighting),
            threads(),
            o.seed % (1 << 64),
            epoch,
            o.margin,
            o.temperature,
            ctypes.pointer(learners["student"]),
            ctypes.pointer(learners["teacher"]) if "teacher" in learners else None,
        )
        self.libraries["student"].kgd_epoch(ctypes.byref(call))
        self.phases = dict(zip(("sample", "bucket", "loss", "update"), call.phases, strict=True))  # seconds
        names = ("student_soft", "student_hard", "teacher_soft", "teacher_hard", "penalty")
        return dict(zip(names, call.losses, strict=True))


def pack_bits(bits: Tensor) -> Tensor:
    """bool [n], n a multiple of 64, as int64 [n / 64], bit i of word w being entry 64·w + i."""
    return torch.from_numpy(np.packbits(bits.numpy(), bitorder="little").view("int64"))


# Entities to leave out of query i: ids[start[i]:end[i]], ascending; start and end int64 [n], ids int32.
Known = tuple[Tensor, Tensor, Tensor]


# ---- ranking --------------------------------------------------------------------------------------------------------
class Job(ctypes.Structure):
    """Mirrors `Job` of scan.cpp, and of rank.cpp, which knows no book."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("tiles", "queries", "target", "known_start", "known_end", "known")]
        + [
            ("n", ctypes.c_int64),
            ("num_entities", ctypes.c_int64),
            ("threads", ctypes.c_int32),
            ("k", ctypes.c_int32),
        ]
        + [(name, ctypes.c_void_p) for name in ("greater", "equal", "best_score", "best", "book", "columns")]
        + [("size", ctypes.c_int64)]
    )


def for_vectors(size: int) -> Tensor:
    """Uninitialised float32 [size] at an address that vectors of 64 bytes divide."""
    room = torch.empty(size + 16)
    return room[(-room.data_ptr() % 64) // 4 :][:size]


class Ranker:
    """Counts and top-k answers of queries against one model's entities, tiled once.

    Args:
        model: float32, on the CPU (`usable`).
    """

    def __init__(self, model: KGEModel):
        self.num_entities, self.width = model.entities.shape
        self.query_width = self.width * model.query_factor
        self.library = rank_library(model)
        self.tiles = for_vectors(-(-self.num_entities // 16) * 16 * self.width)
        self.library.kgd_tiles(
            pointer(model.entities.data.contiguous()), self.num_entities, threads(), pointer(self.tiles)
        )

    def job(self, queries: Tensor, known: Known, **more) -> Job:
        start, end, ids = known
        return Job(
            tiles=pointer(self.tiles),
            queries=pointer(queries),
            known_start=pointer(start),
            known_end=pointer(end),
            known=pointer(ids),
            n=len(queries),
            num_entities=self.num_entities,
            threads=threads(),
            **more,
        )

    def counts(self, queries: Tensor, target: Tensor, known: Known) -> tuple[Tensor, Tensor]:
        """How many entities score above, and how many equal to, the target of each query; int32 [n] each.

        Args:
            queries: float32 [n, query width]. target: int64 [n].
            known: what to leave out of each query, the target among them.
        """
        queries, target = queries.contiguous(), target.contiguous()
        greater, equal = torch.empty(2, len(queries), dtype=torch.int32).unbind()
        self.library.kgd_rank(
            ctypes.byref(
                self.job(queries, known, target=pointer(target), greater=pointer(greater), equal=pointer(equal))
            )
        )
        return greater, equal

    def top(self, queries: Tensor, k: int, known: Known) -> tuple[Tensor, Tensor]:
        """The k best entities of each query: scores without the model's offset, and ids int32 (−1: none), [n, k].

        Raises:
            ConfigError: k below 1.
        """
        check_k(k)
        queries = queries.contiguous()
        score, best = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int32)
        self.library.kgd_top(ctypes.byref(self.job(queries, known, k=k, best_score=pointer(score), best=pointer(best))))
        return score, best


def check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k = {k}: ask for at least one entity")


def rank_library(model: KGEModel) -> ctypes.CDLL | None:
    library = comparison("rank.cpp", model)
    return library and declare(library)


def comparison(source: str, model: KGEModel) -> ctypes.CDLL | None:
    """The library of a source that includes tiles.h, for how this model compares a query with an entity."""
    kind = {TransE: DISTANCE, TransH: HYPERPLANE, RotatE: MODULUS}.get(type(model), DOT)
    return compiled(source, f"KGD_KIND={kind}", f"KGD_NORM={model.norm}", f"KGD_WIDTH={model.entities.shape[1]}")


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """The same library, rank.cpp's or scan.cpp's, whose functions now know their arguments."""
    library.kgd_tiles.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p]
    library.kgd_rank.argtypes = library.kgd_top.argtypes = [ctypes.POINTER(Job)]
    library.kgd_tiles.restype = library.kgd_rank.restype = library.kgd_top.restype = None
    return library


# ---- four-bit codes -------------------------------------------------------------------------------------------------
def nearest(groups: Tensor, book: Tensor) -> Tensor | None:
    """`codes.assign`, compiled: codes uint8 [n, M] of groups [n, M, g] and book [M, 16, g], or None if it cannot."""
    if groups.device.type != "cpu" or groups.dtype != torch.float32 or book.dtype != torch.float32:
        return None
    library = compiled("codes.cpp", f"KGD_GROUP={groups.shape[2]}")
    if library is None:
        return None
    n, m, _ = groups.shape
    groups, book = groups.detach().contiguous(), book.detach().contiguous()
    squares, codes = book.square().sum(-1), torch.empty(n, m, dtype=torch.uint8)
    address, size = ctypes.c_void_p, ctypes.c_int64
    library.kgd_assign.argtypes = [address, size, size, address, address, ctypes.c_int32, address]
    library.kgd_assign.restype = None
    library.kgd_assign(pointer(groups), n, m, pointer(book), pointer(squares), threads(), pointer(codes))
    return codes
