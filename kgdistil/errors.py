"""The errors a user can meet. Each message is one line: what is wrong, where, the value, what to do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


class KgdistilError(Exception):
    """Base of every error this package raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        """What IPython, and so a notebook, shows: the one line instead of a page of traceback."""
        return [f"{type(self).__name__}: {self}"]


class DataError(KgdistilError):
    """A graph cannot be read, fetched or used."""


class ConfigError(KgdistilError):
    """A parameter is unknown, impossible, or does not fit the others."""


class CheckpointError(KgdistilError):
    """A saved model or run is missing, damaged, foreign, or belongs to another graph or configuration."""


class ForeignModelError(CheckpointError):
    """A saved model of a class that is not one of this package's own."""


class DeviceError(KgdistilError):
    """The device asked for is not there or cannot do the work."""


class BusyError(KgdistilError):
    """Another process is doing this very work."""


def run_command(main: Callable[[], int]) -> NoReturn:
    """End the process with what `main` returns, or with the one line of an error of this package."""
    try:
        sys.exit(main())
    except KgdistilError as error:
        sys.exit(str(error))


@contextlib.contextmanager
def needs(package: str, what: str, extra: str = "own") -> Iterator[None]:
    """An optional dependency that is missing, as one line that says how to get it."""
    try:
        yield
    except ImportError:
        raise KgdistilError(f'{what} needs {package}: pip install "kgdistil[{extra}]"') from None


def short(value: Any) -> str:
    """`repr`, cut to what a line can hold."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
