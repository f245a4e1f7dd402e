"""C++ compiled at first use for one shape, loaded with ctypes.

Each source file is compiled for one kind of score and one width. Without a C++ compiler, or with `KGDISTIL_NATIVE=0`,
the callers use PyTorch, after one log line. `CXX` names the compiler, `KGDISTIL_CACHE` the folder of compiled files.
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

import platformdirs
import torch
from torch import Tensor

log = logging.getLogger("kgdistil")
# OpenMP's threads wait at a barrier by spinning, which starves each other when the cores are shared: spin briefly.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
HERE = Path(__file__).parent
FAST = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-march=native", "-mprefer-vector-width=512"]
FAST_MATH = ["-ffast-math", "-fno-finite-math-only"]  # when compiling, never when linking: see `compiled`


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
