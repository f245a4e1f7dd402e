"""The processor, and how many threads to train with beside other processes: as many as there are free cores.

Threads that share a core wait for each other at every barrier, so that two beside one busy process take longer than one
(results/bench/step.json).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch

log = logging.getLogger("kgdistil")
LOOK = 0.25  # seconds for which the cores are looked at, while this process sleeps
AGAIN = 30.0  # seconds until they are looked at once more


def idle() -> list[float]:
    """Seconds in which each core that this process may use did nothing since the machine started; [] where no system
    says so."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        tick, mine = os.sysconf("SC_CLK_TCK"), os.sched_getaffinity(0)
        rows = [line.split() for line in lines if line[:3] == "cpu" and line[3:4].isdigit()]
        return [(int(row[4]) + int(row[5])) / tick for row in rows if int(row[0][3:]) in mine]
    except (OSError, ValueError, IndexError, AttributeError):
        return []


def free_threads(most: int | None = None) -> int:
    """Threads of PyTorch that find a core free now: one at least, `most` at most, or as many as there are; all of them
    where the user said how many (`OMP_NUM_THREADS`) or no system says what is busy."""
    most = most or torch.get_num_threads()
    if most == 1 or os.environ.get("OMP_NUM_THREADS") or not (before := idle()):
        return most
    began = time.monotonic()
    time.sleep(LOOK)
    after, took = idle(), time.monotonic() - began
    if len(after) != len(before):
        return most
    free = sum(min(1.0, max(0.0, b - a) / took) for a, b in zip(before, after, strict=True))
    return max(1, min(most, math.floor(free + 0.5)))


class Choice:
    """The number of threads, chosen when it is made, and again at times."""

    def __init__(self) -> None:
        self.most = torch.get_num_threads()
        self.choose()

    def choose(self) -> None:
        before, count = torch.get_num_threads(), free_threads(self.most)
        self.at = time.monotonic()
        if count != before:
            told = "%d of %d cores are free: training takes %d thread(s); OMP_NUM_THREADS says otherwise"
            log.info(told, count, self.most, count)
            torch.set_num_threads(count)


_choices: list[Choice] = []


@contextlib.contextmanager
def with_free_threads() -> Iterator[None]:
    """As many threads of PyTorch as find a core free, until the end; what trains meanwhile asks `again` at times."""
    before = torch.get_num_threads()
    _choices.append(Choice())
    try:
        yield
    finally:
        _choices.pop()
        torch.set_num_threads(before)


def again() -> None:
    """Choose anew, where `with_free_threads` chose and that was a while ago: what was busy then may be no more."""
    if _choices and time.monotonic() - _choices[-1].at > AGAIN:
        _choices[-1].choose()


def describe_device(device: str) -> str:
    """The processor by name, its vectors, since a cloud gives several generations one name, and how much is used."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"
