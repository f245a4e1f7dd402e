"""A graph of one's own: triples from text, tables, RDF and arrays, in one part or three.

Whatever the form, the labels become numbers while they are read, so 10 million triples take far less than 4 GiB. What
is not an error is counted and said, each in one log line, and stays in `Graph.notes`: duplicates and blank lines left
out, labels that became one, columns left out, entities that occur in valid or test only, answers that leak.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from kgdistil.config import short
from kgdistil.errors import DataError, needs
from kgdistil.graph import NAMES, SPLITS, Graph
from kgdistil.graphs import checks
from kgdistil.graphs.cache import Copy
from kgdistil.graphs.datasets import load
from kgdistil.graphs.forms import PACKED, PLACES, SURE, Form, Source, ending, opened, reading, refuse, stem, word
from kgdistil.graphs.labels import DOUBTFUL, find_tables, nearly_alike, show, tidy, unquoted
from kgdistil.graphs.numbering import TEXT as STRINGS
from kgdistil.graphs.numbering import Numbered, Numbering, Pool, Read, encoded, feed, kept, ranked
from kgdistil.graphs.ogb import find_parts, read_parts
from kgdistil.graphs.rdf import FORMATS, read_rdf
from kgdistil.graphs.tables import read_array, read_parquet, read_table, table_or_array
from kgdistil.graphs.text import ENDINGS as TEXT
from kgdistil.graphs.text import read_text

log = logging.getLogger("kgdistil")
ENDINGS = (*TEXT, ".parquet", *FORMATS)
MISSING = {"nan", "NaN", "NA", "N/A", "<NA>", "None", "null", "NULL"}
VALIDATION = ("dev", "val", "validation")  # what others call that part
OPENKE = "{}2id.txt"  # what OpenKE calls its three parts
SHARE, MOST = 0.1, 50_000  # of the triples that are held out where no share is given

Triples: TypeAlias = (
    str | os.PathLike | pd.DataFrame | np.ndarray | torch.Tensor | Numbered | Iterable[Iterable[str | int]]
)


def read_graph(
    train: Triples,
    valid: Triples | None = None,
    test: Triples | None = None,
    *,
    held_out: float | None = None,
    seed: int | None = None,
    columns: tuple[str | int, str | int, str | int] | None = None,
    order: str | None = None,
    header: bool | None = None,
    keep_labels: bool = False,
    drop_overlap: bool = False,
    names: Mapping[str, str] | str | os.PathLike | None = None,
    name: str | None = None,
) -> Graph:
    """A graph from one source, which is split here, or from three.

    Args:
        train, valid, test: files (.tsv and .txt with tabs, .csv, .parquet, RDF as .nt, .ttl, .nq, .trig, .jsonld, .rdf,
            .del of LibKGE, train2id.txt of OpenKE; .gz, .bz2, .xz or .zst after the ending), tables, arrays or tensors
            [n, 3], or lists of rows. Only `train`: that is split. A folder with train, valid and test in any of these
            forms or as OGB publishes it (`ogb`), a name that `kgdistil.load` knows, and "pykeen:<data set>" stand for
            all three. Numbers become labels where another library's tables of numbers and labels lie in the file's
            folder (`labels.TABLES`).
        held_out: the share of the triples for valid, and again for test, where the graph is split here. Left out, a
            tenth, but at most 50,000 triples each. Every entity and relation stays in train, so fewer are held out
            where the graph is thin.
        seed: of that split, 0 where left out; the same triples and seed give the same split, in whatever order or form
            they come.
        columns: names of the head, relation and tail columns, or their numbers, counted from 1. Left out, a first row
            or column names like "head,relation,tail" or "subject,predicate,object" are recognised, else there must be
            three columns.
        order: of three columns without names: "htr" for head, tail, relation. Left out, "hrt", which is refused where
            another order fits the triples far better.
        header: whether the first line of a text file names the columns. Left out, it is found out, and said where its
            words are no usual ones; refused where it may as well be a triple.
        keep_labels: labels that differ in spaces at their ends, in how many or which spaces, in invisible characters,
            in how accents are composed (NFC or NFD), or in quotes round a field of a .tsv, stay apart. Left out, they
            are one label, in its plainest form (`labels`). IRIs of RDF stay as they are in any case.
        drop_overlap: leave triples out of valid that stand in train, and out of test that stand in train or valid.
        names: readable names by entity label: a mapping, or a file with two tab-separated columns, label and name.
            RDF files bring their own (rdfs:label).
        name: of the graph; the file's where left out.
    Raises:
        DataError: one line that names file, line and value.
    """
    if (valid is None) != (test is None):
        raise DataError("give valid and test together, or neither to have the triples split")
    if held_out is not None and not (isinstance(held_out, float) and 0 < held_out < 0.5):
        raise DataError(f"held_out is {short(held_out)}: it must be a share between 0 and 0.5, such as 0.1")
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**63):
        raise DataError(f"seed is {short(seed)}: it must be a whole number from 0")
    form = Form(None if columns is None else tuple(columns), order, header, keep_labels)
    sources: list[Any] = [train] if valid is None else [train, valid, test]
    split = {"held_out": held_out, "seed": seed}
    sides = {"valid": valid, "test": test}
    if isinstance(train, str | os.PathLike) and os.path.isdir(os.path.expanduser(train)):
        refuse(DataError, f"{train} is a folder, of which all three are read", **sides)
    if valid is None and isinstance(train, str | os.PathLike):
        whole = os.fspath(train)
        more = {"columns": columns, "order": order, "header": header, "names": names}
        more |= {"keep_labels": keep_labels or None, "drop_overlap": drop_overlap or None}
        if (published := _published(whole, **split, **more)) is not None:
            return published
        if os.path.isdir(folder := os.path.expanduser(whole)):
            parts = find_parts(Path(folder))
            sources = list(read_parts(Path(folder), parts) if parts else _in_folder(Path(folder)))
    if len(sources) > 1:
        refuse(DataError, "what has valid and test is not split here", **split)
    seed = seed or 0
    if name is None and isinstance(train, str | os.PathLike):
        name = stem(Path(os.path.abspath(os.path.expanduser(train))))
    name = name or "graph"
    options = {"held_out": held_out, "seed": seed, "columns": columns, "order": order, "header": header, "name": name}
    options |= {"keep_labels": keep_labels, "drop_overlap": drop_overlap}
    copy = Copy.of(sources, options) if names is None else None
    if copy is not None and (graph := copy.load()) is not None:
        return _said(graph)
    reader = _Reader(form)
    for i, source in enumerate(sources):
        reader.read(source, "" if len(sources) == 1 else f"{SPLITS[i]}-")
    reader.settle(name)
    if isinstance(names, str | os.PathLike):
        form.names |= _two_columns(Path(names), form)
    elif names is not None:
        form.names |= {str(label): str(text) for label, text in names.items()}
    graph = _said(reader.graph(name, held_out, seed, drop_overlap, given=names is not None))
    if copy is not None and not form.names:
        copy.keep(graph)
    return graph


def _said(graph: Graph) -> Graph:
    for note in graph.notes:
        log.warning("%s: %s", graph.name, note)
    return graph


# ---- from labels to numbers -----------------------------------------------------------------------------------------
class _Reader:
    """Sources whose labels are numbered in the order they appear, until `graph` gives them their final ids."""

    def __init__(self, form: Form):
        self.form, self.labels = form, Numbering()
        self.parts: list[np.ndarray] = []  # int64 [n, 3] of numbers in `labels`
        self.sources: list[Source] = []

    def read(self, given: Triples, part: str) -> None:
        """One source more."""
        source, rows = self._open(given, part)
        found = Read()
        try:
            for block in rows:
                found.add(*(block if isinstance(block[-1], np.ndarray) else self._encoded(source, *block)))
        except DataError:
            self._number(source, found)  # a label above that is at fault is named first
            raise
        numbers = self._number(source, found)
        if not found.blocks:
            raise DataError(f"{source.what} holds no triple: it needs at least one with head, relation and tail")
        self.parts.append(found.triples(numbers))
        self.sources.append(source)

    def _encoded(self, source: Source, start: Any, *columns: list[str]) -> Any:
        try:
            return encoded(start, *columns)
        except UnicodeEncodeError:
            clean = self._clean(source)
            for what, column in zip(PLACES, columns):
                for row, label in enumerate(map(clean, column)):
                    line = f"line {start[row]}" if isinstance(start, list) else f"row {start + row}"
                    if not label:
                        raise DataError(_empty(source, line, what)) from None
                    if label.encode("utf-8", "replace").decode() != label:
                        raise DataError(
                            f"{source.what}, {line}: the {what} {show(label)} cannot be written as UTF-8; correct it"
                        ) from None
            raise  # pragma: no cover - a surrogate that cleaning leaves out

    def _number(self, source: Source, found: Read) -> np.ndarray:
        """The numbers of what was read so far."""
        found.merge()
        numbers, changed = self.labels.number(found.pool.words, self._clean(source))
        if place := found.first(numbers < 0):
            raise DataError(_empty(source, place[0], PLACES[place[1]]))
        if not self.labels.example and changed.any() and (place := found.first(changed)):
            self.labels.example = place[2]
        return numbers

    def _open(self, given: Triples, part: str) -> tuple[Source, Iterable]:
        form = self.form
        if isinstance(given, Numbered):
            return Source(given.what, sure=True, raw=True), [given.part()]
        if not isinstance(given, str | os.PathLike):
            value = table_or_array(given)
            if value is None:
                raise DataError(f"{type(given).__name__} holds no triples: give a file, a table, an array or a list")
            if isinstance(value, pd.DataFrame):
                source = Source("the table")
                return source, read_table(source, value, form)
            source = Source("the list" if isinstance(given, list | tuple) else "the array")
            return source, read_array(source, value, form)
        path = Path(os.path.expanduser(given))
        if not os.path.isfile(path):  # False for a name that is too long, too
            hint = f"; known graphs are {', '.join(NAMES)}" if path.suffix == "" else ""
            shown = str(path) if len(str(path)) < 300 else show(str(path))
            raise DataError(f"{shown} is missing or no regular file{hint}")
        source, kind = Source(str(path), path), ending(path)
        if kind == ".parquet":
            return source, read_parquet(source, form)
        if kind in FORMATS:
            return source, read_rdf(source, form, part)
        if kind in TEXT:
            return source, read_text(source, form)
        raise DataError(
            f"{path}: unknown ending {show(kind)}; name the file by its form: {', '.join(ENDINGS)}, packed or not as "
            f"{', '.join(PACKED)}"
        )

    def _clean(self, source: Source) -> Callable[[str], str]:
        if self.form.keep_labels or source.raw:
            return str
        return (lambda label: tidy(unquoted(tidy(label)))) if source.quotes else tidy

    def settle(self, name: str) -> None:
        """Numbers of another library as labels, the order of the columns, and a first line that is none of triples."""
        self._look_up()
        if not all(source.sure for source in self.sources):
            together = _together([p for p, source in zip(self.parts, self.sources) if not source.sure])
            if found := checks.likely_order(together):
                a, b, c = (len(np.unique(together[:, column])) for column in range(3))
                raise DataError(
                    f"{name}: the columns look like {', '.join(PLACES['hrt'.index(x)] for x in found)}: read as head, "
                    f"relation, tail they hold {b:,} relations between {a:,} heads and {c:,} tails; give "
                    f'--order {found} (order="{found}"), or --order hrt where that is meant'
                )
            if doubt := checks.doubtful_order(together):
                self.form.notes.append(doubt)
        self._first_rows()

    def _first_rows(self) -> None:
        """A first row that names columns in words nobody knew is left out where that is certain, and said if likely."""
        firsts = [tuple(part[0]) for part in self.parts]
        words = [self.labels.pool.some(part[0]) for part in self.parts]
        for i, (part, source) in enumerate(zip(self.parts, self.sources)):
            if source.names:
                self.parts[i] = self._without_names(part, source)
            if not source.plain:
                continue
            first = show(", ".join(words[i]))
            head, relation, tail = (part[1:] == part[0]).any(0)
            named = word(words[i][1]) in SURE
            alone = len(part) > 3 and not any((part[1:] == number).any() for number in part[0])
            again = firsts.count(firsts[i]) > 1 and not any((x[1:, 1] == part[0, 1]).any() for x in self.parts)
            if len(part) > 1 and not relation and (named or again):
                self.parts[i] = part[1:]
                self.form.notes.append(
                    f"{source.what}: the first row ({first}) is taken for the columns' names, not for a triple; "
                    "--no-header (header=False) reads it as one"
                )
            elif len(part) > 1 and not (head or tail) and (named or ((alone or len(part) >= 10) and not relation)):
                which = "none of its three labels occurs" if alone else "its head and tail do not occur there"
                self.form.notes.append(
                    f"{source.what}: the first row ({first}) is read as a triple, but {which} again; if it names the "
                    "columns, give --header (header=True)"
                )
            elif not relation and len(part) >= 10 * len(np.unique(part[:, 1])):
                self.form.notes.append(
                    f"{source.what}: the first row ({first}) is read as a triple, but its relation does not occur "
                    "again; if it names the columns, give --header (header=True)"
                )

    def _without_names(self, part: np.ndarray, source: Source) -> np.ndarray:
        """A part without the rows that repeat the columns' names, as files that were put together have them.

        Raises:
            DataError: those names may be a triple.
        """
        clean, words = self._clean(source), self.labels.pool.words
        names = np.array([pc.index(words, pa.scalar(clean(name), STRINGS)).as_py() for name in source.names])
        again = (part == names).all(1)
        there = [(part[~again, column] == name).any() for column, name in enumerate(names)]
        if again.any() and not there[1] and not again.all():
            self.form.left_out["repetition(s) of the columns' names"] += int(again.sum())
            return part[~again]
        if self.form.header is None and self.form.columns is None and all(there):
            raise DataError(
                f"{source.what}: the first row ({show(', '.join(source.names))}) may name the columns or be a triple, "
                "as its labels stand in others, too; say --header (header=True) or --no-header (header=False)"
            )
        return part

    def _look_up(self) -> None:
        """Labels for numbers, where all labels are numbers of tables that lie beside the files."""
        folders = {source.path.parent for source in self.sources}
        if len(folders) != 1 or any(not source.path.name or source.raw for source in self.sources):
            return
        tables = find_tables(folders.pop())
        numbered = any(source.numbered for source in self.sources)
        if tables is None:
            if numbered:
                self.form.notes.append("no table of labels lies beside the triples, so their numbers are the labels")
            return
        together = _together(self.parts)
        used = [np.unique(together[:, column]) for column in range(3)]
        values = [set(self.labels.pool.some(ids)) for ids in used]
        entities, relations = tables
        order = next(
            (
                order
                for order in ("hrt", "htr", "rht")
                if all(
                    values[column] <= (relations if letter == "r" else entities).keys()
                    for column, letter in enumerate(order)
                )
                and (order == "hrt" or not all(source.sure for source in self.sources))
            ),
            None,
        )
        if order is None:
            if numbered:
                raise DataError(
                    f"{self.sources[0].what}: not all of its numbers stand in the tables of labels beside it; is the "
                    "order of its columns another (--order)?"
                )
            return
        names = set(entities.values()), set(relations.values())
        if not numbered and values[1] <= names[1] and values[0] <= names[0] and values[2] <= names[0]:
            return  # labels that are numbers, as in WN18RR
        place = [order.index(x) for x in "hrt"]
        self.parts = [part[:, place] for part in self.parts]
        unsure = order == "hrt" and not all(source.sure for source in self.sources)
        if unsure and values[2] <= relations.keys() and checks.likely_order(together):
            return  # both orders fit the tables: `settle` asks
        if order != "hrt":
            self.form.notes.append(f"the tables of labels beside the triples fit the order {order}, so that is taken")
        lookup = np.empty((2, len(self.labels.pool)), np.int64)
        for row, table in enumerate((entities, relations)):
            ids = np.unique(np.concatenate([used[i] for i in range(3) if (order[i] == "r") == bool(row)]))
            texts = pa.array([table[number] for number in self.labels.pool.some(ids)], STRINGS)
            lookup[row, ids] = numbers = self.labels.number(texts, str if self.form.keep_labels else tidy)[0]
            if (numbers < 0).any():
                raise DataError(f"{self.sources[0].what}: a label in the tables beside it is empty; give it one")
        for part in self.parts:
            for column, row in enumerate((0, 1, 0)):
                part[:, column] = lookup[row][part[:, column]]
        for source in self.sources:
            source.sure, source.plain = True, False

    def graph(self, name: str, held_out: float | None, seed: int, drop_overlap: bool, given: bool) -> Graph:
        """Final ids, sorted by label, and three splits."""
        form, tables, numbers = self.form, list[pa.Array](), list[np.ndarray]()
        for columns in ((0, 2), (1,)):
            used = np.zeros(len(self.labels.pool), bool)
            for part in self.parts:
                for column in columns:
                    used[part[:, column]] = True
            table, number = ranked(self.labels.pool, used)
            tables.append(table)
            numbers.append(number)
        self.labels.pool = Pool()  # half a gigabyte for eight million labels
        pa.default_memory_pool().release_unused()
        entities, relations = map(kept, tables)
        parts: list[np.ndarray] = []
        while self.parts:
            part = self.parts.pop(0)
            for column in range(3):
                part[:, column] = numbers[column % 2][part[:, column]]
            found = _unique(part, len(entities), len(relations))
            form.left_out["duplicate(s)"] += len(part) - len(found)
            parts.append(found)
        notes = list[str]()
        if len(parts) == 1:
            count = len(parts[0])
            parts = split(parts.pop(), held_out or SHARE, seed, MOST if held_out is None else None)
            if held_out is None and round(SHARE * count) > len(parts[1]) == MOST:
                notes.append(
                    f"{MOST:,} triples each are held out for validation and for test, in place of {SHARE:.0%} "
                    f"({round(SHARE * count):,}); --held-out {SHARE} (held_out={SHARE}) holds that many out"
                )
        elif drop_overlap:
            parts, count = checks.without_overlap(parts, len(relations), len(entities))
            form.left_out["triple(s) of valid or test that stand in an earlier part"] += count
        trained = _flags(parts[0][:, [1]], len(relations))
        for what, part, source in zip(SPLITS[1:], parts[1:], self.sources[1:] or self.sources * 2):
            if len(unseen := np.flatnonzero(_flags(part[:, [1]], len(relations)) & ~trained)):
                first = source.plain and unseen[0] == part[0, 1]
                raise DataError(
                    f"{name}: {len(unseen)} relation(s) of {what} never occur in training, such as "
                    f"{show(relations[unseen[0]])}; remove their triples or train on some"
                    + (", or say --header where the first line names the columns" if first else "")
                )
        notes = self._notes(parts, tables, entities, relations) + notes
        at_hand = self._names(form, entities, given, notes)
        digest = hashlib.sha256()
        for table in tables:
            feed(digest, table)
        for part in parts:
            digest.update(b"|" + np.ascontiguousarray(part).data)
        train, valid, test = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
        return Graph(name, train, valid, test, entities, relations, digest.hexdigest(), at_hand, tuple(notes))

    def _notes(
        self, parts: list[np.ndarray], tables: list[pa.Array], entities: Sequence[str], relations: Sequence[str]
    ) -> list[str]:
        """What is to be said of the graph."""
        found = [f"{count:,} {what} left out" for what, count in self.form.left_out.items() if count]
        if count := int((~_flags(parts[0][:, [0, 2]], len(entities))).sum()):
            found.append(f"{count:,} entities occur in valid or test only, so nothing is learnt about them")
        found = ["; ".join(found)] if found else []
        found += self.form.notes + self._labels_changed() + self._left_apart(tables, (entities, relations))
        return found + _gaps(parts, entities) + checks.leaks(parts, relations, len(entities))

    def _labels_changed(self) -> list[str]:
        changed, merged = self.labels.changed, self.labels.merged
        if not len(changed):
            return []
        raw = self.labels.example or changed.some([0])[0]
        became = f", by which {merged:,} became one with another" if merged else ""
        return [
            f"{len(changed):,} label(s) lost spaces, quotes or invisible characters, or were composed anew, "
            f"such as {show(raw, 40)}{became}; --keep-labels (keep_labels=True) leaves them as they are"
        ]

    def _left_apart(self, tables: list[pa.Array], there: Iterable[Sequence[str]]) -> list[str]:
        found: list[tuple[str, str]] = []
        for table, labels in zip(tables, there):
            doubtful = table.filter(pc.match_substring_regex(table, DOUBTFUL)).to_pylist()
            found += nearly_alike(doubtful, _lookup(labels) if doubtful else ())
        if self.form.keep_labels or not found:
            return []
        example = " and ".join(show(label, 40) for label in found[0])
        return [
            f"{len(found):,} label(s) differ from another only in quotes or percent-encoding, such as {example}; they "
            "stay apart: write them alike where one thing is meant"
        ]

    def _names(self, form: Form, entities: Sequence[str], given: bool, notes: list[str]) -> dict[str, str]:
        """Readable names of the entities; said where those that were given are of no entity."""
        if not form.names:
            return {}
        clean, there = str if form.keep_labels else tidy, _lookup(entities)
        names = {label if label in there else clean(label): text for label, text in form.names.items()}
        found = {label: text for label, text in names.items() if label in there}
        if given and found and (others := [label for label in names if label not in there]):
            notes.append(
                f"{len(others):,} of the {len(names):,} names given are of no entity, such as that of "
                f"{show(others[0], 40)}, and are left out"
            )
        if given and (taken := [x for x, text in found.items() if text != x and text in there]):
            notes.append(
                f"{len(taken):,} name(s) are the label of another entity, such as {show(found[taken[0]], 40)} of "
                f"{show(taken[0], 40)}: who asks for it gets the one with that label"
            )
        for text in found.values():
            if text.encode("utf-8", "replace").decode() != text:
                raise DataError(f"the name {show(text)} cannot be written as UTF-8; correct it")
        if given and names and not found:
            swapped = sum(clean(text) in there for text in names.values())
            mend = "its two columns are the other way round" if swapped else "they must be labels of the graph"
            notes.append(
                f"none of the {len(names):,} names given is of an entity: the labels there are like "
                f"{show(next(iter(names)), 40)}, those of the graph like {show(entities[0], 40)}; {mend}"
            )
        return found


def _empty(source: Source, line: str, what: str) -> str:
    return f"{source.what}, {line}: the {what} is empty; give it a label"


def _together(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _flags(ids: np.ndarray, count: int) -> np.ndarray:
    """Which of so many numbers occur, bool."""
    found = np.zeros(count, bool)
    found[ids] = True
    return found


def _lookup(labels: Sequence[str]) -> Container[str]:
    """Labels for many questions whether one is there."""
    return set(labels) if isinstance(labels, tuple) else labels


def _gaps(parts: list[np.ndarray], entities: Sequence[str]) -> list[str]:
    """A line where many things may be one entity, since programs write the same word for each that is missing."""
    there = _lookup(entities)
    ids = sorted(entities.index(label) for label in MISSING if label in there)
    if not ids:
        return []
    count = sum(int(np.isin(part[:, [0, 2]], ids).any(1).sum()) for part in parts)
    return [f"{count:,} triple(s) have the head or tail {show(entities[ids[0]])}; if it is missing there, remove them"]


def split(triples: np.ndarray, held_out: float, seed: int, most: int | None = None) -> list[np.ndarray]:
    """Train, valid and test, int64 [·, 3], of different triples; every entity and relation occurs in train.

    In a random order, a triple is free to be held out where its head, relation and tail have all occurred before.

    Args:
        triples: different ones, entities² × relations below 2^63.
        most: triples in each of valid and test.
    Raises:
        DataError: fewer than two triples are free.
    """
    entities, relations = int(max(triples[:, 0].max(), triples[:, 2].max())) + 1, int(triples[:, 1].max()) + 1
    keys = _keys(triples, entities, relations)
    del triples  # millions of them are half a gigabyte
    keys.sort()  # so that the order of the file does not matter
    keys = keys[np.random.default_rng(seed).permutation(len(keys))]
    needed = np.zeros(len(keys), bool)
    pairs, tails = np.divmod(keys, entities)
    heads, kinds = np.divmod(pairs, relations)
    del pairs
    for count, columns in ((entities, (heads, tails)), (relations, (kinds,))):
        first = np.full(count, len(keys))
        for ids in columns:
            np.minimum.at(first, ids, np.arange(len(keys)))
        needed[first[first < len(keys)]] = True
    del heads, kinds, tails
    free = np.flatnonzero(~needed)
    count = min(max(1, round(held_out * len(keys))), len(free) // 2, most or len(free))
    if count == 0:
        raise DataError(
            f"{len(keys)} triple(s) cannot be split: nearly each of them is the only one of an entity or a "
            "relation; add triples, or give train, valid and test yourself"
        )
    train = np.ones(len(keys), bool)
    train[free[: 2 * count]] = False
    return [_triples(keys[at], entities, relations) for at in (train, free[:count], free[count : 2 * count])]


def _triples(keys: np.ndarray, entities: int, relations: int) -> np.ndarray:
    """The triples [n, 3] of `_keys`."""
    made = np.empty((len(keys), 3), np.int64)
    rest, made[:, 2] = np.divmod(keys, entities)
    made[:, 0], made[:, 1] = np.divmod(rest, relations)
    return made


def _keys(triples: np.ndarray, entities: int, relations: int) -> np.ndarray:
    """One number int64 [n] for each triple, which sorts as (head, relation, tail) does."""
    keys = triples[:, 0] * relations
    keys += triples[:, 1]
    keys *= entities
    keys += triples[:, 2]
    return keys


def _unique(triples: np.ndarray, entities: int, relations: int) -> np.ndarray:
    """Each triple once, in order of first appearance."""
    if entities**2 * relations >= 1 << 63:
        raise DataError(
            f"{entities:,} entities and {relations:,} relations are too many: entities² × relations must "
            "stay below 2^63"
        )
    keys = _keys(triples, entities, relations)
    found = np.sort(keys)
    if not (found[1:] == found[:-1]).any():
        return triples
    return triples[np.sort(np.unique(keys, return_index=True)[1])]


def _in_folder(folder: Path) -> list[Path]:
    """Train, valid and test of a folder, each in any form."""
    if (folder / OPENKE.format("train")).is_file():
        for path in (found := [folder / OPENKE.format(part) for part in SPLITS]):
            if not path.is_file():
                raise DataError(f"{folder} holds no {path.name}; give it, or train2id.txt alone to have that split")
        return found
    if (folder / "entity_ids.del").is_file() and all((folder / f"{part}.del").is_file() for part in SPLITS):
        return [folder / f"{part}.del" for part in SPLITS]  # what LibKGE made of the text files that lie beside them
    parts = []
    for part in SPLITS:
        names = [f"{part}{kind}{packed}" for kind in ENDINGS for packed in ("", *PACKED)]
        found = [folder / name for name in names if (folder / name).is_file()]
        if len(found) != 1:
            count = f"{len(found)} files" if found else "no file"
            other = next((x for x in sorted(folder.iterdir()) if part == "valid" and x.stem in VALIDATION), None)
            mend = f"; rename {other.name}" if other and not found else ""
            raise DataError(f"{folder} holds {count} called {part}: it needs exactly one, such as {part}.tsv{mend}")
        parts += found
    return parts


def _from_pykeen(name: str) -> Graph:
    """Any PyKEEN data set by name, with its own splits."""
    with needs("pykeen", "PyKEEN's data sets"):
        from pykeen.datasets import get_dataset
    try:
        found = get_dataset(dataset=name)
        parts = [_of_factory(name, found.factory_dict[what]) for what in ("training", "validation", "testing")]
    except Exception as error:  # noqa: BLE001 - whatever a download of another library raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"PyKEEN cannot give the data set {show(name)}: {reason[:200]}") from None
    return read_graph(*parts, name=name.lower(), keep_labels=True)


def _of_factory(name: str, factory: Any) -> Numbered:
    """A TriplesFactory's numbers, and its labels; of one that has none, the numbers are the labels."""
    triples, labels = factory.mapped_triples.numpy().astype(np.int64), list[pa.Array]()
    for what, columns in (("entity", [0, 2]), ("relation", [1])):
        table: dict[str, int] | None = getattr(factory, f"{what}_to_id", None)
        ids = (
            np.arange(triples[:, columns].max() + 1)
            if table is None
            else np.fromiter(table.values(), np.int64, len(table))
        )
        labels.append(pa.array(ids).cast(STRINGS) if table is None else pa.array(list(table), STRINGS))
        place = np.full(ids.max() + 1, -1)
        place[ids] = np.arange(len(ids))
        triples[:, columns] = place[triples[:, columns]]
    return Numbered(f"PyKEEN's {name}", labels[0], labels[1], triples)


def _published(name: str, **options: Any) -> Graph | None:
    """A known graph, or one of PyKEEN's; None for any other name."""
    if name.lower() not in NAMES and not name.lower().startswith("pykeen:"):
        return None
    refuse(DataError, f"{name} is read as it was published", **options)
    return load(name) if name.lower() in NAMES else _from_pykeen(name.split(":", 1)[1])


def _two_columns(path: Path, form: Form) -> dict[str, str]:
    with reading(path), opened(path) as file:
        lines = file.read().decode("utf-8-sig").removesuffix("\n").split("\n")
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    if lines == [""]:
        raise DataError(f"{path} is empty: it must have a label, a tab and a name a line")
    if wrong := next((i for i, row in enumerate(rows, 1) if len(row) != 2), None):
        raise DataError(f"{path}, line {wrong}: {len(rows[wrong - 1])} column(s) in place of 2: label and name")
    clean, found = str if form.keep_labels else unquoted, dict[str, str]()
    for number, (label, text) in enumerate(rows, 1):
        if found.setdefault(clean(label), clean(text)) != clean(text):
            before = f"{show(found[clean(label)])} and {show(clean(text))}"
            raise DataError(f"{path}, line {number}: {show(label)} is called {before}; give it one name")
    return found
