"""The memory that is free, and how a process holds that of large tensors."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path


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


def available() -> int:
    """Bytes of memory that are free here, for this process's group where one is set to less."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, LookupError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 62
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free
