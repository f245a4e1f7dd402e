"""C++ compiled at first use for one shape, loaded with ctypes.

Each source file is compiled for one kind of score and one width. Without a C++ compiler, or with `KGDISTIL_NATIVE=0`,
the callers use PyTorch, after one log line. `CXX` names the compiler, `KGDISTIL_CACHE` the folder of compiled files,
which holds nothing but the user's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kgdistil.answer.files import user_folder
from kgdistil.errors import KgdistilError

log = logging.getLogger("kgdistil")
HERE = Path(__file__).parent
# a comparison that could trap on NaN is control flow to the compiler, and with AVX2 its loop stays scalar
FAST = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-march=native", "-mprefer-vector-width=512"]
FAST += ["-fno-math-errno", "-fno-trapping-math"]
SANITIZE = ["-g", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=undefined"]
# a small graph and a larger one, four models, dimensions 64 and 8: results/bench/readable.json
SLOWER = (
    "using PyTorch, which took 7 to 26 times as long to train and 2 to 272 times as long to rank where it was measured"
)
FAST_MATH = ["-ffast-math", "-fno-finite-math-only"]  # when compiling, never when linking: see `compiled`


# ---- compiling ------------------------------------------------------------------------------------------------------
@functools.cache
def compiler() -> str | None:
    """Path of a working C++ compiler, or None after one log line that says what to do."""
    if os.environ.get("KGDISTIL_NATIVE") == "0":
        log.info("compiled kernels are off (KGDISTIL_NATIVE=0): %s", SLOWER)
        return None
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++")):
        if path := shutil.which(name):
            return path
    log.warning("no C++ compiler found (g++ or clang++): %s", SLOWER)
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
def version(path: str) -> str:
    """What a compiler says of itself: another release under the same name makes another library."""
    return subprocess.run([path, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout


@functools.cache
def library_folder() -> Path:
    """Where libraries are kept: a folder of the user's own that no one else can write to, since loading is running.

    Where there is none, after one log line, a private one that goes with the process.
    """
    try:
        folder = own_folder("kernels", "*.so")
        for stray in folder.glob("build-*"):  # of a killed compiler
            if time.time() - stray.stat().st_mtime > 3600:
                shutil.rmtree(stray, ignore_errors=True)
        return folder
    except (OSError, KgdistilError) as error:
        log.warning("compiled kernels are not kept but built anew each time: %s", error)
        return Path(private_folder().name)


def own_folder(name: str, files: str) -> Path:
    """A folder in the cache that is the user's own, and that no one else can write to.

    Where others could, the `files` in it, a pattern, are removed.

    Raises:
        KgdistilError, OSError: it is a link or another's, or cannot be written to.
    """
    given = os.environ.get("KGDISTIL_CACHE")
    folder = (Path(given) if given else user_folder("cache")) / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not own(folder, stat.S_ISDIR):
        raise KgdistilError(f"{folder} is a link, or another user's; name another folder in KGDISTIL_CACHE")
    if os.name == "posix" and folder.stat().st_mode & 0o022:  # what lies there may be anybody's
        folder.chmod(0o700)
        for path in folder.glob(files):
            path.unlink()
    tempfile.TemporaryFile(dir=folder).close()  # raises where the folder is read-only or the disk is full
    return folder


@functools.cache
def private_folder() -> tempfile.TemporaryDirectory:
    """Made with mode 0700, removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="kgdistil-")


def own(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether a path is of that kind, no link, and this user's; known on POSIX only."""
    found = path.lstat()
    return kind(found.st_mode) and (os.name != "posix" or found.st_uid == os.getuid())


def sound(library: Path) -> bool:
    """Whether a library is this user's own, writable by no one else, and has the SHA-256 that its name ends with.

    One that was cut short would end the process when it is loaded.
    """
    private = own(library, stat.S_ISREG) and (os.name != "posix" or not library.stat().st_mode & 0o022)
    return private and hashlib.sha256(library.read_bytes()).hexdigest() == library.stem.rpartition("-")[2]


@functools.cache
def compiled(source: str, *defines: str) -> ctypes.CDLL | None:
    """The library of one source file and its -D settings, from the cache or compiled now (a few seconds).

    None, after one log line, where it cannot be built.
    """
    using = compiler()
    if using is None:
        return None
    checks = SANITIZE if os.environ.get("KGDISTIL_SANITIZE") == "1" else []  # `make sanitize`
    flags = [*FAST, *(FAST_MATH if source == "train.cpp" else []), *checks]
    texts = [(HERE / source).read_text()]
    texts += [(HERE / name).read_text() for name in re.findall(r'#include "(.*)"', texts[0])]
    try:
        parts = [*texts, *flags, *defines, using, version(using), processor()]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
        folder, name = library_folder(), f"{Path(source).stem}-{'-'.join(d.split('=')[1] for d in defines)}-{key}"
        for library in folder.glob(f"{name}-*.so"):
            if sound(library):
                return load(library)
            library.unlink()
        with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
            # linked in a second call: -ffast-math at link time would change how the whole process rounds
            code, shared = f"{scratch}/code.o", Path(scratch, "code.so")
            run(using, *flags, *(f"-D{d}" for d in defines), "-c", str(HERE / source), "-o", code)
            run(using, *checks, "-shared", "-fopenmp", code, "-lm", "-o", str(shared))
            shared.chmod(0o700)
            with shared.open("rb+") as file:
                library = folder / f"{name}-{hashlib.sha256(file.read()).hexdigest()}.so"
                os.fsync(file.fileno())
            os.replace(shared, library)
        return load(library)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        warn_once(detail.strip().splitlines()[-1])
        return None


def load(library: Path) -> ctypes.CDLL:
    """A library, and OpenMP with it, whose threads are to spin briefly at a barrier: long, they starve shared cores.

    OpenMP reads its settings once, when it is loaded; a user's own stand, and other programs do not see ours.
    """
    own = "GOMP_SPINCOUNT" in os.environ
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        return ctypes.CDLL(str(library))
    finally:
        if not own:
            del os.environ["GOMP_SPINCOUNT"]


def enough(result: Any, function: Any, _: Any) -> Any:
    """ctypes' `errcheck` of functions that return 1 where memory ran out.

    Raises:
        MemoryError: it did.
    """
    if result:
        raise MemoryError(f"{function.__name__}: not enough memory; take fewer queries or dimensions")
    return result


def check_sizes(library: ctypes.CDLL, *structures: type[ctypes.Structure]) -> None:
    """Refuse a library whose structures (`kgd_sizes`) are not as large as those that Python fills."""
    found, wanted = (ctypes.c_int64 * len(structures))(), [ctypes.sizeof(x) for x in structures]
    library.kgd_sizes(found)
    if list(found) != wanted:
        place = library._name  # noqa: SLF001 - there is no other way to its path
        raise KgdistilError(f"{place}: its structures take {list(found)} bytes, Python's {wanted}: delete it")


@functools.cache
def warn_once(reason: str) -> None:
    """One line, however many libraries cannot be built for the same reason."""
    log.warning("compiled kernels are not available (%s): %s", reason, SLOWER)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


def threads() -> int:
    """Threads the kernels use: PyTorch's own setting (`torch.set_num_threads`)."""
    return torch.get_num_threads()


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def bfloat16_where_fast(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and on processors that multiply it, else float32."""
    fast = device.type == "cuda" or any(name in processor() for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


@contextlib.contextmanager
def with_threads(count: int | None) -> Iterator[None]:
    """As many threads of PyTorch, until the end, as a checkpoint was made with; None: as many as there are."""
    before = torch.get_num_threads()
    if count not in (None, before):
        log.warning("goes on with %d thread(s), as it was begun: with %d its numbers would differ", count, before)
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)
