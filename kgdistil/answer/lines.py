"""Files with one question, or one label, a line; and the answers to a file of questions."""

from __future__ import annotations

import csv
import importlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from kgdistil.answer import asking, calibration
from kgdistil.answer.rendering import finite
from kgdistil.errors import ConfigError, DataError, needs, short

if TYPE_CHECKING:
    from kgdistil.answer.student import Student

log = logging.getLogger("kgdistil")
LONGEST = 1 << 20  # bytes of a line
MAGIC = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\0": ".xz", b"(\xb5/\xfd": ".zst"}  # no text begins so
MAGIC |= {b"BZh%d1AY&SY" % level: ".bz2" for level in range(1, 10)}
ZIP = b"PK\x03\x04"
TOGETHER, MOST = 1000, 100_000  # queries that are asked at a time, and the answers they may have
BITMAPS = 1 << 26  # bytes of who may come, one bit for each entity and query
GROUP = 1 << 17  # rows of Parquet that are written at a time
PLACES = (("head", "entity"), ("relation", "relation"), ("tail", "entity"))
Columns = dict[str, list[Any]]


def read_lines(
    file: BinaryIO, name: str, skipped: Callable[[DataError], None] | None = None
) -> Iterator[tuple[int, str]]:
    r"""The lines of a file from 1, as UTF-8, without the byte order mark and \n or \r\n.

    Raises:
        DataError: a byte that is no UTF-8, or a line of more than `LONGEST` bytes; `skipped`, where given, is told so
            instead.
    """
    for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
        fault = f"it has more than {LONGEST:,} bytes; give one label or query a line" * (len(line) == LONGEST)
        try:
            text = "" if fault else line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            packed = number == 1 and line.startswith((*MAGIC, ZIP))
            fault = "it is packed; unpack it first" if packed else ""
            fault = fault or f"byte 0x{line[error.start]:02x} is not UTF-8; save it as UTF-8"
        if not fault:
            yield number, text.removesuffix("\n").removesuffix("\r")
            continue
        wrong = DataError(f"{name}, line {number}: {fault}")
        if skipped is None:
            raise wrong
        skipped(wrong)
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST)


def triples_of(path: Path) -> tuple[list[list[str]], list[str]]:
    """The triples of a file, and where each stands: head, relation and tail, apart by tabs, or in a .csv by commas.

    A first line of these three words is left out, and so are blank lines.

    Raises:
        DataError: missing or empty, or a line that is no triple.
    """
    marks = path.suffix.lower() == ".csv"
    found, places = [], []
    try:
        with path.open("rb") as file:
            for number, text in read_lines(file, str(path)):
                place = f"{path}, line {number}"
                cells = next(csv.reader([text], strict=True), []) if marks else text.split("\t")
                if not text.strip() or (
                    number == 1 and [x.strip().lower() for x in cells] == ["head", "relation", "tail"]
                ):
                    continue
                if len(cells) != 3 or "" in cells:
                    mend = f"give head, relation and tail, separated by {'commas' if marks else 'tabs'}"
                    raise DataError(f"{place}: {short(text)} has {len([x for x in cells if x])} label(s) of 3; {mend}")
                found.append(cells)
                places.append(place)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; it must be a file with a triple a line") from None
    except csv.Error as error:
        raise DataError(f"{place}: {error}; is a quote not closed?") from None
    if not found:
        raise DataError(f"{path} holds no triple: it needs at least one, head, relation and tail, on a line of its own")
    return found, places


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
        return asking.find(student, number_of(text, kind) if ids else text, kind, "id" if ids else "label")
    except ConfigError as error:
        raise DataError(f"{name}, line {number}: {error}") from None


# ---- files of questions ---------------------------------------------------------------------------------------------
class Query(NamedTuple):
    """A line: its number, and what stands at head, relation and tail, of which one is asked for."""

    line: int
    given: Sequence[str]
    asked: int


def parse(student: Student, number: int, text: str, ids: bool = False) -> Query:
    """A line of head, relation and tail with a tab between them.

    The place that is asked for is empty or, where none is, "?". Of two columns, one must be a relation and the other
    none: what stands before a relation is a head, what stands behind one a tail.

    Raises:
        ConfigError: another number of columns, or not exactly one place that is asked for.
    """
    given = text.split("\t")
    if len(given) == 2 and not ids:
        relations = [bool(x) and (x in student.relations or student.called(x, "relation") is not None) for x in given]
        if sum(relations) == 1:
            given = ["", *given] if relations[0] else [*given, ""]
    if len(given) != 3:
        raise ConfigError(
            f"{len(given)} column{'s' * (len(given) > 1)} in {short(text)}: write head, relation and tail with a tab "
            "between them, and leave what is asked for empty"
        )
    asked = [i for i, x in enumerate(given) if not x] or [i for i, x in enumerate(given) if x == "?"]
    if len(asked) != 1:
        raise ConfigError(f"{short(text)} leaves {len(asked)} places empty: leave exactly one empty, or write ? there")
    return Query(number, given, asked[0])


def answer_lines(
    student: Student,
    file: BinaryIO,
    name: str,
    *,
    ids: bool = False,
    skip_errors: bool = False,
    **options: Any,
) -> Iterator[tuple[int, Columns]]:
    """The answers to a file of queries (`parse`), some thousands at a time: how many queries, and columns line, head,
    relation, tail, rank, score, and what else `Student.predict` tells. The columns are those of the first.

    A first line that reads head, relation, tail names the columns.

    Args:
        ids: what is given are ids.
        skip_errors: leave out lines that cannot be answered or read, with a log line for each.
        options: of `Student.predict`.
    Raises:
        DataError: a line that cannot be answered, after the answers of those before it; an empty file.
        ConfigError: as `Student.predict`.
    """
    k = options.get("k", 10 if options.get("coverage") is None else calibration.MOST)
    asking.check_count(k)
    of_entities = "typed", "candidates", "probability", "coverage", "shortlist"
    chosen = [what for what in of_entities if options.get(what) not in (None, False)]
    size = max(1, min(TOGETHER, MOST // k))
    if options.get("typed"):
        size = max(1, min(size, 8 * BITMAPS // len(student.entities)))
    columns, more, any_ = None, True, False

    def skipped(fault: DataError) -> None:
        nonlocal any_
        any_ = True
        log.warning("%s", fault)

    lines = read_lines(file, name, skipped if skip_errors else None)
    while more:
        queries: list[Query] = []
        fault: DataError | None = None
        while fault is None and len(queries) < size:
            try:
                if (found := next(lines, None)) is None:
                    more = False
                    break
            except DataError as error:
                fault = error
                break
            number, text = found
            if number == 1 and text.casefold().split("\t") == ["head", "relation", "tail"]:
                continue
            any_ = True
            try:
                query = parse(student, number, text, ids)
                if chosen and query.asked == 1:
                    of = (
                        f"{chosen[0]} is of entities, leave it"
                        if len(chosen) == 1
                        else f"{' and '.join(chosen)} are of entities, leave them"
                    )
                    raise ConfigError(f"the relation is asked for: {of} out")
                queries.append(query)
            except ConfigError as error:
                fault = faulty(name, number, error, skip_errors)
        numbers, queries, wrong = numbered(student, name, queries, ids, options.get("unseen", False), skip_errors)
        if queries:
            given = answered(student, queries, numbers, {"ids": ids, **options})
            columns = columns or list(given)
            yield len(queries), {column: given.get(column) or [None] * len(given["line"]) for column in columns}
        if wrong or fault:
            raise wrong or fault  # type: ignore[misc]
    if not any_:
        raise DataError(f"{name} is empty: it needs at least one query, as head, relation and an empty tail")
    if columns is None:  # all were skipped
        yield 0, answered(student, [], np.empty((0, 3), np.int64), {"ids": ids, **options})


def faulty(name: str, number: int, error: ConfigError, skip: bool) -> DataError | None:
    """The error of a line; None after it was logged."""
    fault = DataError(f"{name}, line {number}: {error}")
    if not skip:
        return fault
    log.warning("%s", fault)
    return None


def numbered(
    student: Student, name: str, queries: list[Query], ids: bool, unseen: bool, skip: bool
) -> tuple[np.ndarray, list[Query], DataError | None]:
    """The ids [n, 3] of queries, −1 where one is asked for, up to the first that has none; with what is wrong there."""

    def find(some: Sequence[Query]) -> np.ndarray:
        found = np.full((len(some), 3), -1)
        for place, (what, kind) in enumerate(PLACES):
            at = [i for i, query in enumerate(some) if query.asked != place]
            texts: list[Any] = [some[i].given[place] for i in at]
            if ids:
                texts = [number_of(text, what) for text in texts]
            found[at, place] = asking.find_all(student, texts, kind, "id" if ids else "label")
            if not unseen:
                asking.check_seen(student, found[at, place], kind)
        return found

    try:
        return find(queries), queries, None
    except ConfigError:
        good: list[Query] = []
        for query in queries:
            try:
                find([query])
                good.append(query)
            except ConfigError as error:
                if fault := faulty(name, query.line, error, skip):
                    return find(good), good, fault
        return find(good), good, None


def answered(student: Student, queries: list[Query], numbers: np.ndarray, options: dict[str, Any]) -> Columns:
    """The answers to queries of which ids [n, 3] are known, in their order."""
    asked = np.array([query.asked for query in queries])
    parts: list[Columns] = []
    for place in np.unique(asked).tolist() or [2]:
        rows = np.flatnonzero(asked == place)
        given = {what: numbers[rows, i] for i, (what, _) in enumerate(PLACES) if i != place}
        found = student.predict(by="id", **given, **options).by_name
        query, best = found.pop("query", []), found.pop("relation" if place == 1 else "entity", [])
        part: Columns = {"line": [queries[rows[q]].line for q in query]}
        for i, (what, kind) in enumerate(PLACES):
            labels = student.relations if kind == "relation" else student.entities
            if i != place:
                own = [labels[x] for x in given[what].tolist()]
            part[what] = best if i == place else [own[q] for q in query]
        names = found.pop("name", None)
        part |= {"rank": found.pop("rank", []), "score": found.pop("score", [])}
        if student.names is not None:
            part["name"] = names or best
        if any(student.never.values()):
            part["unseen"] = found.pop("unseen", [False] * len(best))
        parts.append(part | found)
    if len(parts) == 1:
        return parts[0]
    merged = {name: [x for part in parts for x in part[name]] for name in parts[0]}
    order = sorted(range(len(merged["line"])), key=merged["line"].__getitem__)
    return {name: [column[i] for i in order] for name, column in merged.items()}


def number_of(text: str, what: str) -> int:
    """An id that was given as text."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ConfigError(f"{what} is {text[:40]!r}: with --ids it must be an id, a whole number from 0")
    return int(text)


# ---- files of answers -----------------------------------------------------------------------------------------------
def escaped(text: str) -> str:
    """A text in which what is not printable stands as in JSON: tabs and ends of lines, and what steers a terminal."""
    return (
        text
        if text.isprintable()
        else re.sub(r"[^ -~]", lambda m: m[0] if m[0].isprintable() else json.dumps(m[0])[1:-1], text)
    )


def tsv(columns: Columns) -> bytes:
    """Rows with tabs; numbers have six digits."""
    shown: list[list[str]] = []
    for column in columns.values():
        first = next((x for x in column if x is not None), None)
        if isinstance(first, str):
            shown.append([x if x and x.isprintable() else escaped(x or "") for x in column])
        elif isinstance(first, float):
            shown.append(["" if x is None else f"{x:.6g}" for x in column])
        else:
            shown.append(["" if x is None else str(x).lower() for x in column])
    return "".join(f"{line}\n" for line in map("\t".join, zip(*shown))).encode()


def json_lines(columns: Columns) -> bytes:
    """A JSON object a line; what is no finite number is null."""
    rows = (json.dumps(finite(dict(zip(columns, row))), ensure_ascii=False) for row in zip(*columns.values()))
    return "".join(f"{escaped(row)}\n" for row in rows).encode()


def writer(form: str) -> Callable[[BinaryIO], Text | Parquet]:
    """What writes answers as tsv, jsonl or parquet into a file; KgdistilError where a library is missing."""
    if form == "parquet":
        with needs("pyarrow", "Parquet"):
            importlib.import_module("pyarrow.parquet")
        return Parquet
    return lambda file: Text(file, json_lines if form == "jsonl" else tsv)


class Text:
    """Answers as `tsv` or `json_lines`, at once."""

    def __init__(self, file: BinaryIO, render: Callable[[Columns], bytes]):
        self.file, self.render, self.begun, self.told = file, render, False, render is not tsv

    def write(self, columns: Columns) -> None:
        if not self.begun and self.render is tsv:
            self.file.write("\t".join(columns).encode() + b"\n")
        if not self.told and any(
            isinstance(x, str) and not x.isprintable() for column in columns.values() for x in column
        ):
            log.warning(
                "labels with ends of lines, tabs and the like are escaped as in JSON; jsonl has them as they are"
            )
            self.told = True
        self.begun = True
        self.file.write(self.render(columns))
        self.file.flush()

    def close(self) -> None:
        self.file.flush()


class Parquet:
    """Answers in row groups of about `GROUP`; the file is whole once it is closed."""

    def __init__(self, file: BinaryIO):
        import pyarrow.parquet

        self.file, self.arrow = file, pyarrow
        self.writer: Any = None
        self.waiting: list[Any] = []

    def write(self, columns: Columns) -> None:
        kinds = {"line": "int64", "rank": "int32", "id": "int64", "score": "float32", "unseen": "bool_"}
        kind = lambda name: (
            self.arrow.float64() if name == "probability" else getattr(self.arrow, kinds.get(name, "string"))()
        )
        text = lambda x: x.encode("utf-8", "backslashreplace").decode() if isinstance(x, str) else x
        schema = self.arrow.schema([(name, kind(name)) for name in columns])
        if self.writer is None:
            self.writer = self.arrow.parquet.ParquetWriter(self.file, schema)
        self.waiting.append(self.arrow.table({name: list(map(text, x)) for name, x in columns.items()}, schema))
        if sum(len(table) for table in self.waiting) >= GROUP:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.writer.write_table(self.arrow.concat_tables(self.waiting))
            self.waiting = []

    def close(self) -> None:
        if self.writer is not None:
            self.flush()
            self.writer.close()
