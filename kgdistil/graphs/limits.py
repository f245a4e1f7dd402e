"""What reading may take: a small file that unpacks to gigabytes is refused before it is unpacked."""

from __future__ import annotations

import io
import os
from typing import Any

from kgdistil.errors import DataError, KgdistilError

VARIABLE = "KGDISTIL_READ_LIMIT"
LIMIT, LINES = 256 << 20, 32 << 20  # bytes that any file may unpack to, as numbers and as text
TIMES = 30  # and a larger one, times its own size


def allow(
    needed: int, path: str | os.PathLike, error: type[KgdistilError] = DataError, least: int | None = None
) -> None:
    """Raise `error` where `path` would take more bytes than reading may: `LIMIT`, or `TIMES` its size if that is more.

    The environment variable KGDISTIL_READ_LIMIT sets another limit. `least`: in place of `LIMIT`.
    """
    set_here = os.environ.get(VARIABLE, "")
    limit = max(LIMIT if least is None else least, TIMES * os.path.getsize(path))
    limit = int(set_here) if set_here.isdigit() else limit
    if needed > limit:
        raise error(
            f"{path} has {os.path.getsize(path):,} bytes and would take {needed:,}, more than the {limit:,} that "
            f"reading it may take; where that is meant, set {VARIABLE} to a larger number of bytes"
        )


class Counted(io.RawIOBase):
    """A stream that `allow` watches: reading raises where more comes out of `path` than may."""

    def __init__(self, stream: Any, path: str | os.PathLike):
        self.stream, self.path, self.count = stream, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self.stream.read(len(buffer))
        self.count += len(found)
        allow(self.count, self.path, least=LINES)
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        if not self.closed:
            self.stream.close()
        super().close()
