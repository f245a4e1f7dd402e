"""Files with one question, or one label, a line; and the answers to a file of questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kgdistil.answer import asking
from kgdistil.errors import ConfigError, DataError

if TYPE_CHECKING:
    from kgdistil.answer.student import Student

LONGEST = 1 << 20  # bytes of a line


def read_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    r"""The lines of a file from 1, as UTF-8, without the byte order mark and \n or \r\n.

    Raises:
        DataError: a byte that is no UTF-8, or a line of more than `LONGEST` bytes.
    """
    for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
        if len(line) == LONGEST:
            raise DataError(
                f"{name}, line {number}: it has more than {LONGEST:,} bytes; give one label or query a line"
            )
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8; save it as UTF-8"
            ) from None


def entities_of(student: Student, path: Path, ids: bool = False) -> list[Any]:
    """The entities that stand in a file, one a line: labels, or with `ids` ids.

    Raises:
        DataError: missing or empty, or a line that names no entity.
    """
    found = []
    try:
        with path.open("rb") as file:
            for number, text in read_lines(file, str(path)):
                at = at_line(str(path), number, student, text, "entity", ids)
                found.append(at if ids else student.entities[at])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; it must be a file with an entity a line") from None
    if not found:
        raise DataError(f"{path} is empty: it needs at least one entity, one a line")
    return found


def at_line(name: str, number: int, student: Student, text: str, kind: str, ids: bool) -> int:
    """The id of what stands in a line; DataError with the line where it is none."""
    if not text:
        raise DataError(f"{name}, line {number}: blank line; remove it")
    try:
        value: Any = int(text) if ids and text.isascii() and text.isdigit() and len(text) < 19 else text
        return asking.find(student, value, kind, "id" if ids else "label")
    except ConfigError as error:
        raise DataError(f"{name}, line {number}: {error}") from None
