"""What reading may take: a small file that unpacks to gigabytes is refused before it is unpacked, and what is packed is
read to its last byte."""

from __future__ import annotations

import bz2
import io
import lzma
import os
from collections.abc import Callable
from typing import IO, Any

from kgdistil.errors import DataError, KgdistilError

VARIABLE = "KGDISTIL_READ_LIMIT"
LIMIT, LINES = 256 << 20, 32 << 20  # bytes that any file may unpack to, as numbers and as text
BLOCK = 1 << 16  # packed bytes that are read at a time
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


class Unpacked(io.RawIOBase):
    """A file of bz2 or xz, one part of it after another, to its last byte: Python's own readers take what is no further
    part for nothing, and half a file for the whole."""

    def __init__(self, file: IO[bytes], kind: str):
        self.make: Callable[[], Any] = {".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor}[kind]
        self.filling = b"\0" if kind == ".xz" else b""  # which may stand between two parts
        self.file, self.part, self.later = file, self.make(), False

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, b"" at the end. EOFError: cut short, or something else follows."""
        found, packed = b"", b""
        while not found:
            if self.part.eof:
                packed = self.part.unused_data.lstrip(self.filling)
                while not packed and (more := self.file.read(BLOCK)):
                    packed = more.lstrip(self.filling)
                if not packed:
                    return b""
                self.part, self.later = self.make(), True
            elif self.part.needs_input and not (packed := self.file.read(BLOCK)):
                raise EOFError("it ends before what is packed in it does")
            try:
                found, packed = self.part.decompress(packed, size), b""
            except (OSError, lzma.LZMAError):
                if not self.later:
                    raise EOFError("it is damaged, or no file of that kind") from None
                raise EOFError("a later part of it is damaged, or something else follows its end") from None
        return found


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
