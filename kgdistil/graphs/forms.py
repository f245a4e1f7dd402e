"""What all readers share: how the columns are told apart, how a file is opened, and errors as one line."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import lzma
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from kgdistil.answer.lines import MAGIC
from kgdistil.config import short
from kgdistil.errors import DataError, KgdistilError
from kgdistil.graphs.labels import show, text_of, tidy, unquoted
from kgdistil.graphs.limits import Counted, Unpacked

COLUMNS = (
    "head subject source src from start h s head_id subject_id source_id start_id entity1 e1 node1 id1 head_entity",
    "relation predicate relationship relation_type edge edge_type type label property rel r p relation_id predicate_id",
    "tail object target dst to end t o tail_id object_id target_id end_id entity2 e2 node2 id2 tail_entity",
)
WORDS = tuple({word.replace("_", "") for word in words.split()} for words in COLUMNS)
SURE = {
    "relation",
    "predicate",
    "relationship",
    "relationtype",
    "edgetype",
    "rel",
    "property",
}  # hardly ever a relation
PLACES = ("head", "relation", "tail")
PACKED = (".gz", ".bz2", ".xz", ".zst")
OTHERS = {  # what a file that is no text begins with, and what to do
    b"\xff\xfe": "it looks like UTF-16; save it as UTF-8",
    b"\xfe\xff": "it looks like UTF-16; save it as UTF-8",
    b"PK": "it looks like a zip or a spreadsheet; unpack it, or save it as .csv",
    b"PAR1": "it looks like Parquet; name it .parquet",
}
BLOCK = 1 << 16  # triples that are Python strings at any one time

Rows = Iterator[tuple[Any, ...]]  # where the block begins, and its three columns


@dataclass
class Form:
    """How sources are to be read, as `read_graph` was told, and what was found on the way."""

    columns: tuple[str | int, ...] | None = None
    order: str | None = None
    header: bool | None = None
    keep_labels: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.columns is not None and (len(self.columns) != 3 or len(set(self.columns)) != 3):
            raise DataError(
                f"columns is {short(self.columns)}: it must be three names or numbers, of head, relation and tail"
            )
        if self.order is not None:
            if not isinstance(self.order, str) or sorted(self.order) != ["h", "r", "t"]:
                raise DataError(f"order is {short(self.order)}: it must be htr, or another order of the three letters")
            if self.columns is not None:
                raise DataError("give columns or order: the columns' names or numbers say the order already")


@dataclass
class Columns:
    """Where head, relation and tail stand, whether the first row is names, and whether somebody said so."""

    order: tuple[int, ...]
    header: bool
    sure: bool


@dataclass
class Source:
    """One source of triples: its name in error lines, and what its reader finds out when it reads the first row.

    `sure`: somebody said which column is which. `plain`: the first row may be the columns' names all the same.
    `numbered`: its labels are numbers of another library's tables. `raw`: labels are kept as they are.
    """

    what: str
    path: Path = Path()  # where it is a file
    sure: bool = False
    plain: bool = False
    numbered: bool = False
    quotes: bool = False
    raw: bool = False
    names: tuple[str, ...] = ()  # what the first row calls the three columns, where it is no triple

    def settle(self, columns: Columns, form: Form) -> Columns:
        self.sure, self.plain = columns.sure, not columns.header and form.header is None
        return columns


def word(name: Any) -> str:
    """A column's name as `WORDS` has it."""
    return "".join(c for c in unquoted(tidy(str(name))).lower() if c not in " _-:#.")


def names_columns(row: Sequence[str]) -> bool:
    """Whether three cells are words for head, relation and tail."""
    return len(row) == 3 and all(word(x) in words for x, words in zip(row, WORDS))


def find_columns(first: Sequence[Any], form: Form, what: str, named: bool | None, kind: str = "") -> Columns:
    """Where the columns are, by what was asked, else by their names, else the three that there are.

    Args:
        first: the first row, or a table's names.
        named: True: these are names; False: they are a triple; None: to be found out.
    """
    there = [str(name) for name in first]
    low = [[i for i, name in enumerate(there) if word(name) in words] for words in WORDS]
    known = tuple(x[0] for x in low) if named is not False and all(len(x) == 1 for x in low) else None
    if form.columns is not None:
        asked, tidied = [str(c) for c in form.columns], [unquoted(tidy(name)) for name in there]
        if named is not False and set(asked) <= set(tidied):
            if twice := [c for c in asked if tidied.count(c) > 1]:
                raise DataError(f"{what} has two columns {show(twice[0])}; rename one of them")
            found = Columns(tuple(tidied.index(c) for c in asked), True, True)
        elif all(c.isascii() and c.isdigit() and len(c) < 6 for c in asked):
            numbers = tuple(int(c) for c in asked)
            if 0 in numbers or max(numbers) > len(there):
                mend = ", such as 1,2,3" if max(numbers) > len(there) else ": " + ",".join(str(n + 1) for n in numbers)
                raise DataError(
                    f"{what} has the columns 1 to {len(there)}, and {','.join(asked)} was asked for; they are counted "
                    f"from 1{mend}"
                )
            header = bool(named) or (named is None and known is not None)
            found = Columns(tuple(n - 1 for n in numbers), header, True)
        else:
            missing = next((c for c in asked if c not in tidied), None)
            if missing is None:
                raise DataError(
                    f"{what}: columns are given by name, so its first row is their names: leave --no-header "
                    "(header=False) out, or give numbers, counted from 1"
                )
            raise DataError(
                f"{what} has no column {show(missing)}; it has {show(', '.join(there))}; give three of these names, or "
                "numbers, counted from 1"
            )
    elif known is not None:
        found = Columns(known, True, True)
        if form.order and "".join("hrt"[known.index(i)] for i in sorted(known)) != form.order:
            raise DataError(f"{what} names its columns {show(', '.join(there))}, which is not the order {form.order}")
    elif len(there) == 3:
        found = Columns(tuple((form.order or "hrt").index(c) for c in "hrt"), bool(named), form.order is not None)
    else:
        places = [str(i) for i, cell in enumerate(there, 1) if not _is_number(cell)]
        mend = ",".join(places if len(places) == 3 else "123")
        which = f", or say by number which these are: --columns {mend} (columns=({mend.replace(',', ', ')}))"
        raise DataError(
            f"{what}{'' if named else ', line 1'}: {len(there)} column(s){kind} in place of 3: {show(str(there))}; "
            f"give head, relation and tail{which if len(there) > 3 else ''}"
        )
    if others := [name for i, name in enumerate(there) if i not in found.order]:
        which = ", ".join(map(show, others[:5])) if found.header else f"{len(others)} of {len(there)}"
        form.notes.append(f"{what}: column(s) left out: {which}")
    return found


def _is_number(cell: str) -> bool:
    """Whether a cell is more likely a weight or a row's number than a label."""
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return not cell


def texts(values: list, what: str, start: int) -> list[str]:
    """Labels of a column: texts as they are, whole numbers as their digits."""
    for row, value in enumerate(values):
        if type(value) is not str and (text := text_of(value)) is None:
            gap = value is None or type(value).__name__ in ("NAType", "NaTType") or value is not value
            gap = gap or (isinstance(value, float) and value != value)
            fault = "no label" if gap else f"{show(str(value))}, no text"
            raise DataError(f"{what}, row {start + row}: {fault}; a label is a text or a whole number")
        if type(value) is not str:
            values[row] = text
    return values


def ending(path: Path) -> str:
    """The form's ending, in small letters, whatever packed the file."""
    return (Path(path.stem) if path.suffix.lower() in PACKED else path).suffix.lower()


def stem(path: Path) -> str:
    """The file's name without its endings."""
    return Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where its name ends in one of `PACKED` or it begins as such a file does."""
    packed = path.suffix.lower()
    if packed not in PACKED:
        with open(path, "rb") as file:
            head = file.read(max(map(len, MAGIC)))
        packed = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")
    if not packed:
        with open(path, "rb") as file:
            yield file
        return
    with contextlib.ExitStack() as stack:
        stream: Any
        if packed == ".zst":
            import pyarrow

            stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
        elif packed == ".gz":
            stream = stack.enter_context(gzip.open(path, "rb"))
        else:
            stream = Unpacked(stack.enter_context(open(path, "rb")), packed)
        yield stack.enter_context(io.BufferedReader(Counted(stream, path), 1 << 16))


@contextlib.contextmanager
def reading(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Whatever a damaged file makes a parser raise, as one line."""
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError)
    kinds += (RecursionError, csv.Error, zlib.error, lzma.LZMAError, *more)
    try:
        yield
    except KgdistilError:
        raise
    except UnicodeDecodeError as error:
        with opened(path) as file:
            number = next((i for i, line in enumerate(file, 1) if not is_utf8(line)), 0)
        with opened(path) as file:
            head = file.read(4)
        mend = next((mend for magic, mend in OTHERS.items() if head.startswith(magic)), "save it as UTF-8")
        byte = error.object[error.start]
        raise DataError(f"{path}, line {number}: byte 0x{byte:02x} is not UTF-8; {mend}") from None
    except kinds as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        packed = isinstance(error, EOFError | zlib.error | lzma.LZMAError | gzip.BadGzipFile)
        mend = "; fetch or make it anew, or name it as what it is" if packed else ""
        raise DataError(f"cannot read {path}: {reason[:200]}{mend}") from None


def is_utf8(line: bytes) -> bool:
    try:
        return line.decode() is not None
    except UnicodeDecodeError:
        return False


def refuse(error: type[KgdistilError], why: str, **options: object) -> None:
    """That error where an option is given (not None) which nothing would read."""
    if given := [f"{name} is {short(value)}" for name, value in options.items() if value is not None]:
        raise error(f"{given[0]}: {why}; leave it out")
