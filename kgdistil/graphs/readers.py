"""A graph of one's own: triples from TSV, CSV, Parquet, N-Triples, Turtle, pandas or numpy, in one part or three.

Whatever the form, the labels become numbers while they are read, so 10 million triples take far less than 4 GiB. What
is not an error is counted and said in one log line: duplicates and blank lines left out, RDF literals left out,
entities that occur in valid or test only.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import logging
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch

from kgdistil.errors import DataError, KgdistilError, needs
from kgdistil.graph import NAMES, SPLITS, Graph
from kgdistil.graphs.datasets import _show, load

log = logging.getLogger("kgdistil")
COLUMNS = (
    {"head", "subject", "source", "from", "h", "s"},
    {"relation", "predicate", "relationship", "edge", "type", "label", "r", "p"},
    {"tail", "object", "target", "to", "t", "o"},
)
RDF = {".nt": "N_TRIPLES", ".ttl": "TURTLE"}  # ending: format of pyoxigraph
ENDINGS = (".tsv", ".txt", ".csv", ".parquet", *RDF)
BLOCK = 1 << 16  # triples that are Python strings at any one time
LABEL = "http://www.w3.org/2000/01/rdf-schema#label"

Source: TypeAlias = str | os.PathLike | pd.DataFrame | np.ndarray
Rows = Iterator[tuple[Any, ...]]  # where the block begins, heads, relations, tails


def read_graph(
    train: Source,
    valid: Source | None = None,
    test: Source | None = None,
    *,
    held_out: float = 0.1,
    seed: int = 0,
    columns: tuple[str, str, str] | None = None,
    names: Mapping[str, str] | str | os.PathLike | None = None,
    name: str | None = None,
) -> Graph:
    """A graph from one source, which is split here, or from three.

    Args:
        train, valid, test: files (.tsv and .txt with tabs, .csv, .parquet, .nt, .ttl), tables or arrays [n, 3] of
            labels. Only `train`: that is split. A folder with train, valid and test in any of these forms, a name that
            `kgdistil.load` knows, and "pykeen:<data set>" stand for all three.
        held_out: the share of the triples for valid, and again for test, where the graph is split here. Every entity
            and relation stays in train, so fewer are held out where the graph is thin.
        seed: of that split; the same triples and seed give the same split, in whatever order or form they come.
        columns: names of the head, relation and tail columns. Left out, a first row or column names like
            "head,relation,tail" or "subject,predicate,object" are recognised, else the first three columns count.
        names: readable names by entity label: a mapping, or a file with two tab-separated columns, label and name.
            RDF files bring their own (rdfs:label).
        name: of the graph; the file's where left out.
    Raises:
        DataError: one line that names file, line and value.
    """
    if (valid is None) != (test is None):
        raise DataError("give valid and test together, or neither to have the triples split")
    if not (isinstance(held_out, float) and 0 < held_out < 0.5):
        raise DataError(f"held_out is {held_out!r}: it must be a share between 0 and 0.5, such as 0.1")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise DataError(f"seed is {seed!r}: it must be a whole number from 0")
    sources: list[Any] = [train] if valid is None else [train, valid, test]
    if valid is None and isinstance(train, str | os.PathLike):
        whole = os.fspath(train)
        if whole.lower() in NAMES:
            return load(whole)
        if whole.lower().startswith("pykeen:"):
            return _from_pykeen(whole.split(":", 1)[1])
        if os.path.isdir(whole):
            sources = _in_folder(Path(whole))
    name = name or (Path(train).resolve().stem if isinstance(train, str | os.PathLike) else "graph")
    numbers = _Numbers()
    parts = [numbers.read(source, columns) for source in sources]
    if isinstance(names, str | os.PathLike):
        numbers.names |= _two_columns(Path(names))
    elif names is not None:
        numbers.names |= {str(label): str(text) for label, text in names.items()}
    return numbers.graph(name, parts, held_out, seed)


# ---- from labels to numbers -----------------------------------------------------------------------------------------
class _Numbers:
    """Labels numbered in the order they appear, until `graph` gives them their final ids."""

    def __init__(self) -> None:
        self.entities: dict[str, int] = _numbering()
        self.relations: dict[str, int] = _numbering()
        self.names: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()

    def read(self, source: Source, columns: tuple[str, str, str] | None) -> np.ndarray:
        """Provisional ids, int64 [n, 3], of one source; duplicates are left out."""
        what = _describe(source)
        ids = tuple(array("i") for _ in range(3))
        for start, *labels in self._rows(source, columns):
            for position, (column, words, index) in enumerate(
                zip(ids, labels, (self.entities, self.relations, self.entities))
            ):
                part = ("head", "relation", "tail")[position]
                if "" in words:
                    raise DataError(f"{what}, {_line(start, words.index(''))}: the {part} is empty; give it a label")
                try:
                    "".join(words).encode()
                except UnicodeEncodeError:  # a lone surrogate
                    row = next(i for i, word in enumerate(words) if word.encode("utf-8", "ignore").decode() != word)
                    fault = f"the {part} {_show(words[row])} cannot be written as UTF-8; correct it"
                    raise DataError(f"{what}, {_line(start, row)}: {fault}") from None
                column.extend(map(index.__getitem__, words))
        if not ids[0]:
            raise DataError(f"{what} holds no triple: it needs at least one with head, relation and tail")
        triples = np.stack([np.frombuffer(column, np.int32) for column in ids], axis=1).astype(np.int64)
        if len(triples) >= 10 and not (triples[1:] == triples[0]).any():
            entities, relations = list(self.entities), list(self.relations)
            first = ", ".join(words[i] for words, i in zip((entities, relations, entities), triples[0]))
            log.warning(
                "%s: no part of the first triple (%s) occurs again; are these the names of the columns? Then "
                "give them as columns",
                what,
                _show(first),
            )
        kept = _unique(triples)
        self.left_out["duplicate(s)"] += len(triples) - len(kept)
        return kept

    def _rows(self, source: Source, columns: tuple[str, str, str] | None) -> Rows:
        if isinstance(source, pd.DataFrame):
            return _from_table(source, columns)
        if isinstance(source, np.ndarray):
            return _from_array(source)
        path = Path(source).expanduser()
        if not path.is_file():
            hint = f"; known graphs are {', '.join(NAMES)}" if path.suffix == "" else ""
            raise DataError(f"{path} is missing or no regular file{hint}")
        ending = path.suffix.lower()
        if ending == ".parquet":
            return _from_parquet(path, columns)
        if ending in RDF:
            return self._from_rdf(path, RDF[ending])
        if ending in (".tsv", ".txt", ".csv"):
            return self._from_text(path, columns)
        raise DataError(f"{path}: unknown ending {ending!r}; name the file by its form: {', '.join(ENDINGS)}")

    def _from_text(self, path: Path, columns: tuple[str, str, str] | None) -> Rows:
        """Lines of three labels: tabs and nothing quoted, or commas with quotes as spreadsheets write them."""
        commas = path.suffix.lower() == ".csv"
        with _reading(path), open(path, encoding="utf-8-sig", newline="" if commas else "\n") as file:
            lines: Iterator[tuple[int, list[str]]]
            if commas:
                reader = csv.reader(file, strict=True)
                lines = ((reader.line_num, row) for row in reader)
            else:  # only \n and \r\n end a line, so a label may hold any other character but a tab
                lines = ((i, x.removesuffix("\n").removesuffix("\r").split("\t")) for i, x in enumerate(file, 1))
            first = next(lines, None)
            if first is None:
                return
            order, width = _columns(first[1], columns, str(path)), len(first[1])
            if order is None:
                order, lines = (0, 1, 2), itertools.chain([first], lines)
                if width != 3:
                    kind = "commas" if commas else "tabs"
                    raise DataError(
                        f"{path}, line {first[0]}: {width} column(s), separated by {kind}, in place of 3: "
                        f"{_show(str(first[1]))}; give head, relation and tail, or say which columns these are "
                        "(columns)"
                    )
            while block := list(itertools.islice(lines, BLOCK)):
                full = [(number, row) for number, row in block if row not in ([], [""])]
                self.left_out["blank line(s)"] += len(block) - len(full)
                for number, row in full:
                    if len(row) != width:
                        raise DataError(
                            f"{path}, line {number}: {len(row)} column(s) in place of {width}: {_show(str(row))}"
                        )
                if full:
                    at = [number for number, _ in full]
                    yield at, *([row[i] for _, row in full] for i in order)

    def _from_rdf(self, path: Path, form: str) -> Rows:
        """IRIs and blank nodes; a literal is no entity, and rdfs:label is kept as the readable name."""
        with needs("pyoxigraph", f"reading {path.suffix}"):
            import pyoxigraph as rdf
        entity = rdf.NamedNode | rdf.BlankNode

        def facts() -> Iterator[tuple[int, str, str, str]]:
            for number, fact in enumerate(rdf.parse(path=str(path), format=getattr(rdf.RdfFormat, form)), 1):
                ends = fact.subject, fact.object
                if all(isinstance(x, entity) for x in ends):
                    h, t = (x.value if isinstance(x, rdf.NamedNode) else f"_:{x.value}" for x in ends)
                    yield number, h, fact.predicate.value, t
                elif fact.predicate.value == LABEL and isinstance(ends[0], rdf.NamedNode):
                    self.names.setdefault(ends[0].value, ends[1].value)
                else:
                    self.left_out["triple(s) with a literal or a quoted triple"] += 1

        with _reading(path):
            found = facts()
            while block := list(itertools.islice(found, BLOCK)):
                yield tuple(map(list, zip(*block)))

    def graph(self, name: str, parts: list[np.ndarray], held_out: float, seed: int) -> Graph:
        """Final ids, sorted by label, and three splits."""
        entities, relations = sorted(self.entities), sorted(self.relations)
        final = []
        for words, index in ((entities, self.entities), (relations, self.relations)):
            table = np.empty(len(words), np.int64)
            table[np.fromiter(map(index.__getitem__, words), np.int64, len(words))] = np.arange(len(words))
            final.append(table)
        for part in parts:
            for column, table in enumerate((final[0], final[1], final[0])):
                part[:, column] = table[part[:, column]]
        if len(parts) == 1:
            parts = split(parts[0], held_out, seed)
        trained = np.unique(parts[0][:, 1])
        for what, part in zip(SPLITS[1:], parts[1:]):
            if len(unseen := np.setdiff1d(part[:, 1], trained)):
                raise DataError(
                    f"{name}: {len(unseen)} relation(s) of {what} never occur in training, such as "
                    f"{_show(relations[unseen[0]])}; remove their triples or train on some"
                )
        known = np.zeros(len(entities), bool)
        known[parts[0][:, [0, 2]]] = True
        notes = [f"{count:,} {what} left out" for what, count in self.left_out.items() if count]
        if count := int((~known).sum()):
            notes.append(f"{count:,} entities occur in valid or test only, so nothing is learnt about them")
        if notes:
            log.warning("%s: %s", name, "; ".join(notes))
        digest = hashlib.sha256()
        for words in (entities, relations):
            for word in words:
                digest.update(f"{len(word)}:{word}".encode())
        for part in parts:
            digest.update(b"|" + np.ascontiguousarray(part).data)
        at_hand = {label: self.names[label] for label in self.names.keys() & self.entities.keys()}
        train, valid, test = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
        return Graph(name, train, valid, test, tuple(entities), tuple(relations), digest.hexdigest(), at_hand)


def split(triples: np.ndarray, held_out: float, seed: int) -> list[np.ndarray]:
    """Train, valid and test, int64 [·, 3], of different triples; every entity and relation occurs in train.

    In a random order, a triple is free to be held out where its head, relation and tail have all occurred before.

    Raises:
        DataError: fewer than two triples are free.
    """
    triples = triples[np.lexsort(triples.T[::-1])]  # so that the order of the file does not matter
    shuffled = triples[np.random.default_rng(seed).permutation(len(triples))]
    needed = np.zeros(len(shuffled), bool)
    needed[np.unique(shuffled[:, [0, 2]], return_index=True)[1] // 2] = True
    needed[np.unique(shuffled[:, 1], return_index=True)[1]] = True
    free = np.flatnonzero(~needed)
    count = min(max(1, round(held_out * len(shuffled))), len(free) // 2)
    if count == 0:
        raise DataError(
            f"{len(shuffled)} triple(s) cannot be split: nearly each of them is the only one of an entity or a "
            "relation; add triples, or give train, valid and test yourself"
        )
    valid, test = free[:count], free[count : 2 * count]
    train = np.ones(len(shuffled), bool)
    train[free[: 2 * count]] = False
    return [shuffled[train], shuffled[valid], shuffled[test]]


def _unique(triples: np.ndarray) -> np.ndarray:
    """Each triple once, in order of first appearance."""
    entities, relations = (int(triples[:, c].max()) + 1 for c in ([0, 2], 1))
    if entities**2 * relations >= 1 << 63:
        raise DataError(
            f"{entities:,} entities and {relations:,} relations are too many: entities² × relations must "
            "stay below 2^63"
        )
    keys = (triples[:, 0] * relations + triples[:, 1]) * entities + triples[:, 2]
    first = np.sort(np.unique(keys, return_index=True)[1])
    return triples if len(first) == len(triples) else triples[first]


# ---- tables, arrays and files ---------------------------------------------------------------------------------------
def _from_table(table: pd.DataFrame, columns: tuple[str, str, str] | None) -> Rows:
    order = _columns([str(c) for c in table.columns], columns, "the table")
    if order is None:
        if table.shape[1] != 3:
            raise DataError(f"the table has {table.shape[1]} column(s) in place of 3: head, relation and tail")
        order = (0, 1, 2)
    for start in range(0, len(table), BLOCK):
        block = table.iloc[start : start + BLOCK, list(order)]
        yield start, *(_texts(block.iloc[:, i].tolist(), "the table", start) for i in range(3))


def _from_array(triples: np.ndarray) -> Rows:
    if triples.ndim != 2 or triples.shape[1] != 3:
        raise DataError(f"the array has shape {triples.shape} in place of [n, 3]: head, relation and tail")
    for start in range(0, len(triples), BLOCK):
        block = triples[start : start + BLOCK]
        yield start, *(_texts(block[:, i].tolist(), "the array", start) for i in range(3))


def _from_parquet(path: Path, columns: tuple[str, str, str] | None) -> Rows:
    with needs("pyarrow", "reading .parquet"):
        import pyarrow
        import pyarrow.parquet
    with _reading(path, pyarrow.ArrowException), pyarrow.parquet.ParquetFile(path) as file:
        there = file.schema_arrow.names
        order = _columns(there, columns, str(path))
        if order is None:
            if len(there) != 3:
                raise DataError(f"{path} has {len(there)} columns in place of 3: head, relation and tail")
            order = (0, 1, 2)
        start = 0
        for batch in file.iter_batches(BLOCK, columns=[there[i] for i in order]):
            found = [batch.column(there[i]).to_pylist() for i in order]
            yield start, *(_texts(column, str(path), start) for column in found)
            start += len(batch)


def _texts(values: list, what: str, start: int) -> list[str]:
    """Labels of a column: texts as they are, whole numbers as their digits."""
    for row, value in enumerate(values):
        if not isinstance(value, str):
            if isinstance(value, bool) or not isinstance(value, int):
                fault = "no label" if value is None or value != value else f"{_show(str(value))}, no text"
                raise DataError(f"{what}, row {start + row}: {fault}; a label is a text or a whole number")
            values[row] = str(value)
    return values


def _columns(there: list[str], asked: tuple[str, str, str] | None, what: str) -> tuple[int, ...] | None:
    """Where head, relation and tail stand by their names; None where `there` holds no such names."""
    if asked is not None:
        if len(asked) != 3 or len(set(asked)) != 3:
            raise DataError(f"columns is {asked!r}: it must be three names, of head, relation and tail")
        if missing := [c for c in asked if c not in there]:
            raise DataError(f"{what} has no column {_show(missing[0])}; it has {_show(', '.join(there))}")
        return tuple(there.index(c) for c in asked)
    low = [str(c).strip().lower() for c in there]
    found = [[i for i, c in enumerate(low) if c in words] for words in COLUMNS]
    return tuple(x[0] for x in found) if all(len(x) == 1 for x in found) else None


def _in_folder(folder: Path) -> list[Path]:
    """Train, valid and test of a folder, each in any form."""
    parts = []
    for part in SPLITS:
        found = [path for ending in ENDINGS if (path := folder / f"{part}{ending}").is_file()]
        if len(found) != 1:
            count = f"{len(found)} files" if found else "no file"
            raise DataError(f"{folder} holds {count} called {part}: it needs exactly one, such as {part}.tsv")
        parts += found
    return parts


def _from_pykeen(name: str) -> Graph:
    """Any PyKEEN data set by name, with its own splits."""
    with needs("pykeen", "PyKEEN's data sets"):
        from pykeen.datasets import get_dataset
    try:
        found = get_dataset(dataset=name)
        parts: list[Any] = [found.factory_dict[what] for what in ("training", "validation", "testing")]
        triples = [np.asarray(part.triples, dtype=object) for part in parts]
    except Exception as error:  # whatever a download of another library raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"PyKEEN cannot give the data set {name!r}: {reason[:200]}") from None
    return read_graph(*triples, name=name.lower())


def _two_columns(path: Path) -> dict[str, str]:
    with _reading(path), open(path, encoding="utf-8-sig", newline="\n") as file:
        rows = [line.rstrip("\r\n").split("\t") for line in file]
    if wrong := next((i for i, row in enumerate(rows, 1) if len(row) != 2), None):
        raise DataError(f"{path}, line {wrong}: {len(rows[wrong - 1])} column(s) in place of 2: label and name")
    return dict(rows)


def _numbering() -> dict[str, int]:
    """A label that is new gets the next number."""
    index: defaultdict[str, int] = defaultdict()
    index.default_factory = index.__len__
    return index


def _describe(source: Source) -> str:
    return {pd.DataFrame: "the table", np.ndarray: "the array"}.get(type(source)) or str(source)


def _line(start: int | list[int], row: int) -> str:
    return f"line {start[row]}" if isinstance(start, list) else f"row {start + row}"


@contextlib.contextmanager
def _reading(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Whatever a damaged file makes a parser raise, as one line."""
    damaged: tuple[type[Exception], ...] = (
        OSError,
        ValueError,
        SyntaxError,
        csv.Error,
        MemoryError,
        OverflowError,
        *more,
    )
    try:
        yield
    except KgdistilError:
        raise
    except UnicodeDecodeError as error:
        with open(path, "rb") as file:
            number = next((i for i, line in enumerate(file, 1) if not _is_utf8(line)), 0)
        byte = error.object[error.start]
        raise DataError(f"{path}, line {number}: byte 0x{byte:02x} is not UTF-8; save it as UTF-8") from None
    except damaged as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read {path}: {reason[:200]}") from None


def _is_utf8(line: bytes) -> bool:
    try:
        return line.decode() is not None
    except UnicodeDecodeError:
        return False
