"""How a process holds the memory of large tensors: what is freed is kept, and tables lie in huge pages."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from torch import Tensor


@functools.cache
def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, for the rest of the process: a step frees large tensors and asks for them again.

    Giving them back and faulting them in anew took up to a quarter of the time of whole lists. False without glibc.
    """
    # oneDNN keeps code for a thousand shapes of matrices, megabytes each, and lists have another length at each step
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    # M_MMAP_THRESHOLD, at the largest that glibc takes, and M_TRIM_THRESHOLD: malloc.h
    return mallopt is not None and all([mallopt(-3, 32 << 20), mallopt(-1, 1 << 30)])


HUGE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
LARGE = 64 << 20  # bytes, from which a tensor is large
ADVISE, COLLAPSE = 14, 25  # MADV_HUGEPAGE and MADV_COLLAPSE: mman.h


def in_huge_pages(*tensors: Tensor) -> int:
    """Lay large tensors of the CPU in huge pages, as they are; returns the bytes of those that now are.

    A step reads rows here and there, and finds the page of each in a table of pages that is itself too large for a
    cache: of eight million entities, a step took a sixth less time so. Nothing happens where it cannot be had: outside
    Linux, before version 6.1, where memory is short, of a file.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if HUGE.exists() else None
    if madvise is None:
        return 0
    size, done = int(HUGE.read_text()), 0
    for x in tensors:
        held = x.untyped_storage()
        if x.device.type != "cpu" or held.nbytes() < LARGE:
            continue
        low, high = -(-held.data_ptr() // size) * size, (held.data_ptr() + held.nbytes()) // size * size
        given = ctypes.c_void_p(low), ctypes.c_size_t(high - low)
        done += (high - low) * (madvise(*given, ADVISE) == madvise(*given, COLLAPSE) == 0)
    return done
