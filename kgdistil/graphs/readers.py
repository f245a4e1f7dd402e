"""A graph of one's own: triples from text, tables, RDF and arrays, in one part or three.

Whatever the form, the labels become numbers while they are read, so 10 million triples take far less than 4 GiB. What
is not an error is counted and said, each in one log line, and stays in `Graph.notes`: duplicates and blank lines left
out, labels that became one, columns left out, entities that occur in valid or test only, answers that leak.
"""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch

from kgdistil.config import short
from kgdistil.errors import DataError, needs
from kgdistil.graph import NAMES, SPLITS, Graph
from kgdistil.graphs import checks
from kgdistil.graphs.datasets import load
from kgdistil.graphs.forms import PACKED, PLACES, SURE, Form, Source, ending, opened, reading, stem, word
from kgdistil.graphs.labels import LabelFault, Labels, find_tables, nearly_alike, show, tidy, unquoted
from kgdistil.graphs.rdf import FORMATS, read_rdf
from kgdistil.graphs.tables import read_array, read_parquet, read_table, table_or_array
from kgdistil.graphs.text import ENDINGS as TEXT
from kgdistil.graphs.text import read_text

log = logging.getLogger("kgdistil")
ENDINGS = (*TEXT, ".parquet", *FORMATS)
MISSING = {"nan", "NaN", "NA", "N/A", "<NA>", "None", "null", "NULL"}
VALIDATION = ("dev", "val", "validation")  # what others call that part
OPENKE = "{}2id.txt"  # what OpenKE calls its three parts

Triples: TypeAlias = str | os.PathLike | pd.DataFrame | np.ndarray | torch.Tensor | Iterable[Iterable[str | int]]


def read_graph(
    train: Triples,
    valid: Triples | None = None,
    test: Triples | None = None,
    *,
    held_out: float = 0.1,
    seed: int = 0,
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
            forms, a name that `kgdistil.load` knows, and "pykeen:<data set>" stand for all three. Numbers become labels
            where another library's tables of numbers and labels lie in the file's folder (`labels.TABLES`).
        held_out: the share of the triples for valid, and again for test, where the graph is split here. Every entity
            and relation stays in train, so fewer are held out where the graph is thin.
        seed: of that split; the same triples and seed give the same split, in whatever order or form they come.
        columns: names of the head, relation and tail columns, or their numbers, counted from 1. Left out, a first row
            or column names like "head,relation,tail" or "subject,predicate,object" are recognised, else there must be
            three columns.
        order: of three columns without names: "htr" for head, tail, relation. Left out, "hrt", which is refused where
            another order fits the triples far better.
        header: whether the first line of a text file names the columns. Left out, it is found out, and said.
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
    if not (isinstance(held_out, float) and 0 < held_out < 0.5):
        raise DataError(f"held_out is {short(held_out)}: it must be a share between 0 and 0.5, such as 0.1")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise DataError(f"seed is {short(seed)}: it must be a whole number from 0")
    form = Form(None if columns is None else tuple(columns), order, header, keep_labels)
    sources: list[Any] = [train] if valid is None else [train, valid, test]
    if valid is None and isinstance(train, str | os.PathLike):
        whole = os.fspath(train)
        if whole.lower() in NAMES:
            return load(whole)
        if whole.lower().startswith("pykeen:"):
            return _from_pykeen(whole.split(":", 1)[1])
        if os.path.isdir(folder := os.path.expanduser(whole)):
            sources = _in_folder(Path(folder))
    if name is None and isinstance(train, str | os.PathLike):
        name = stem(Path(os.path.abspath(os.path.expanduser(train))))
    name = name or "graph"
    reader = _Reader(form)
    for i, source in enumerate(sources):
        reader.read(source, "" if len(sources) == 1 else f"{SPLITS[i]}-")
    reader.settle(name)
    if isinstance(names, str | os.PathLike):
        form.names |= _two_columns(Path(names), form)
    elif names is not None:
        form.names |= {str(label): str(text) for label, text in names.items()}
    return reader.graph(name, held_out, seed, drop_overlap, given=names is not None)


# ---- from labels to numbers -----------------------------------------------------------------------------------------
class _Reader:
    """Sources whose labels are numbered in the order they appear, until `graph` gives them their final ids."""

    def __init__(self, form: Form):
        self.form, self.labels = form, Labels()
        self.parts: list[np.ndarray] = []  # int64 [n, 3] of numbers in `labels`
        self.sources: list[Source] = []

    def read(self, given: Triples, part: str) -> None:
        """One source more."""
        source, rows = self._open(given, part)
        columns, numbers = tuple(array("i") for _ in range(3)), None
        for start, *words in rows:
            if numbers is None:  # only the first row says how labels are to be cleaned
                numbers = self.labels.numbers(self._clean(source))
            for position, (column, labels) in enumerate(zip(columns, words)):
                try:
                    column.extend(map(numbers.__getitem__, labels))
                except LabelFault as fault:
                    raw, what = fault.args
                    row = labels.index(raw)
                    line = f"line {start[row]}" if isinstance(start, list) else f"row {start + row}"
                    raise DataError(f"{source.what}, {line}: the {PLACES[position]} {what}") from None
        if not columns[0]:
            raise DataError(f"{source.what} holds no triple: it needs at least one with head, relation and tail")
        self.parts.append(np.stack([np.frombuffer(column, np.int32) for column in columns], axis=1).astype(np.int64))
        self.sources.append(source)

    def _open(self, given: Triples, part: str) -> tuple[Source, Iterable]:
        form = self.form
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

    def _clean(self, source: Source) -> Any:
        if self.form.keep_labels or source.raw:
            return str
        return (lambda label: tidy(unquoted(tidy(label)))) if source.quotes else tidy

    def settle(self, name: str) -> None:
        """Numbers of another library as labels, the order of the columns, and a first line that is none of triples."""
        words = list(self.labels.ids)
        self._look_up(words)
        if not all(source.sure for source in self.sources):
            together = np.concatenate([p for p, source in zip(self.parts, self.sources) if not source.sure])
            if found := checks.likely_order(together):
                a, b, c = (len(np.unique(together[:, column])) for column in range(3))
                raise DataError(
                    f"{name}: the columns look like {', '.join(PLACES['hrt'.index(x)] for x in found)}: read as head, "
                    f"relation, tail they hold {b:,} relations between {a:,} heads and {c:,} tails; give "
                    f'--order {found} (order="{found}"), or --order hrt where that is meant'
                )
            if doubt := checks.doubtful_order(together):
                self.form.notes.append(doubt)
        self._first_rows(words)

    def _first_rows(self, words: list[str]) -> None:
        """A first row that names columns in words nobody knew is left out where that is certain, and said if likely."""
        firsts = [tuple(part[0]) for part in self.parts]
        others = set(np.concatenate([part[1:, 1] for part in self.parts]))
        for i, (part, source) in enumerate(zip(self.parts, self.sources)):
            if not source.plain:
                continue
            first = show(", ".join(words[x] for x in part[0]))
            head, relation, tail = (part[1:] == part[0]).any(0)
            named = word(words[part[0, 1]]) in SURE
            alone = len(part) > 3 and not np.isin(part[0], part[1:]).any()
            if len(part) > 1 and not relation and (named or (firsts.count(firsts[i]) > 1 and part[0, 1] not in others)):
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

    def _look_up(self, words: list[str]) -> None:
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
        together = np.concatenate(self.parts)
        values = [{words[i] for i in np.unique(together[:, column])} for column in range(3)]
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
        lookup = np.empty((2, len(words)), np.int64)
        for row, table in enumerate((entities, relations)):
            clean = self.labels.numbers(str if self.form.keep_labels else tidy)
            for word_ in set().union(*(values[i] for i in range(3) if (order[i] == "r") == bool(row))):
                lookup[row, self.labels.ids[word_]] = clean[table[word_]]
        for part in self.parts:
            for column, row in enumerate((0, 1, 0)):
                part[:, column] = lookup[row][part[:, column]]
        for source in self.sources:
            source.sure, source.plain = True, False
        words[:] = list(self.labels.ids)

    def graph(self, name: str, held_out: float, seed: int, drop_overlap: bool, given: bool) -> Graph:
        """Final ids, sorted by label, and three splits."""
        form, words = self.form, list(self.labels.ids)
        together = np.concatenate(self.parts)
        tables = []
        for columns in ([0, 2], 1):
            used = np.unique(together[:, columns])
            labels = sorted(words[i] for i in used)
            number = np.empty(len(words), np.int64)
            number[[self.labels.ids[label] for label in labels]] = np.arange(len(labels))
            tables.append((labels, number))
        (entities, entity_number), (relations, relation_number) = tables
        del together
        parts = []
        for part in self.parts:
            for column, number in enumerate((entity_number, relation_number, entity_number)):
                part[:, column] = number[part[:, column]]
            kept = _unique(part, len(entities), len(relations))
            form.left_out["duplicate(s)"] += len(part) - len(kept)
            parts.append(kept)
        if len(parts) == 1:
            parts = split(parts[0], held_out, seed)
        elif drop_overlap:
            parts, count = checks.without_overlap(parts, len(relations), len(entities))
            form.left_out["triple(s) of valid or test that stand in an earlier part"] += count
        trained = np.unique(parts[0][:, 1])
        for what, part, source in zip(SPLITS[1:], parts[1:], self.sources[1:] or self.sources * 2):
            if len(unseen := np.setdiff1d(part[:, 1], trained)):
                first = source.plain and unseen[0] == part[0, 1]
                raise DataError(
                    f"{name}: {len(unseen)} relation(s) of {what} never occur in training, such as "
                    f"{show(relations[unseen[0]])}; remove their triples or train on some"
                    + (", or say --header where the first line names the columns" if first else "")
                )
        notes = [f"{count:,} {what} left out" for what, count in form.left_out.items() if count]
        known = np.zeros(len(entities), bool)
        known[parts[0][:, [0, 2]]] = True
        if count := int((~known).sum()):
            notes.append(f"{count:,} entities occur in valid or test only, so nothing is learnt about them")
        notes = ["; ".join(notes)] if notes else []
        notes += form.notes + self._labels_changed() + self._left_apart(entities, relations) + _gaps(parts, entities)
        notes += checks.leaks(parts, relations, len(entities))
        at_hand = self._names(form, entities, given, notes)
        for note in notes:
            log.warning("%s: %s", name, note)
        digest = hashlib.sha256()
        for labels in (entities, relations):
            for label in labels:
                digest.update(f"{len(label)}:{label}".encode())
        for part in parts:
            digest.update(b"|" + np.ascontiguousarray(part).data)
        train, valid, test = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
        return Graph(
            name, train, valid, test, tuple(entities), tuple(relations), digest.hexdigest(), at_hand, tuple(notes)
        )

    def _labels_changed(self) -> list[str]:
        changed, merged = self.labels.changed, self.labels.merged
        if not changed:
            return []
        raw = next(iter(changed))
        became = f", by which {merged:,} became one with another" if merged else ""
        return [
            f"{len(changed):,} label(s) lost spaces, quotes or invisible characters, or were composed anew, "
            f"such as {show(raw, 40)}{became}; --keep-labels (keep_labels=True) leaves them as they are"
        ]

    def _left_apart(self, *tables: list[str]) -> list[str]:
        found = [] if self.form.keep_labels else [pair for labels in tables for pair in nearly_alike(labels)]
        if not found:
            return []
        example = " and ".join(show(label, 40) for label in found[0])
        return [
            f"{len(found):,} label(s) differ from another only in quotes or percent-encoding, such as {example}; they "
            "stay apart: write them alike where one thing is meant"
        ]

    def _names(self, form: Form, entities: list[str], given: bool, notes: list[str]) -> dict[str, str]:
        """Readable names of the entities; said where those that were given are of no entity."""
        clean = str if form.keep_labels else tidy
        names = {label if label in self.labels.ids else clean(label): text for label, text in form.names.items()}
        there = set(entities)
        found = {label: text for label, text in names.items() if label in there}
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


def _gaps(parts: list[np.ndarray], entities: list[str]) -> list[str]:
    """A line where many things may be one entity, since programs write the same word for each that is missing."""
    ids = [i for i, label in enumerate(entities) if label in MISSING]
    if not ids:
        return []
    count = sum(int(np.isin(part[:, [0, 2]], ids).any(1).sum()) for part in parts)
    return [f"{count:,} triple(s) have the head or tail {show(entities[ids[0]])}; if it is missing there, remove them"]


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


def _unique(triples: np.ndarray, entities: int, relations: int) -> np.ndarray:
    """Each triple once, in order of first appearance."""
    if entities**2 * relations >= 1 << 63:
        raise DataError(
            f"{entities:,} entities and {relations:,} relations are too many: entities² × relations must "
            "stay below 2^63"
        )
    keys = (triples[:, 0] * relations + triples[:, 1]) * entities + triples[:, 2]
    first = np.sort(np.unique(keys, return_index=True)[1])
    return triples if len(first) == len(triples) else triples[first]


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
        factories: list[Any] = [found.factory_dict[what] for what in ("training", "validation", "testing")]
        train, valid, test = (np.asarray(factory.triples, dtype=object) for factory in factories)
    except Exception as error:  # noqa: BLE001 - whatever a download of another library raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"PyKEEN cannot give the data set {show(name)}: {reason[:200]}") from None
    return read_graph(train, valid, test, name=name.lower(), order="hrt", keep_labels=True)


def _two_columns(path: Path, form: Form) -> dict[str, str]:
    with reading(path), opened(path) as file:
        lines = file.read().decode("utf-8-sig").removesuffix("\n").split("\n")
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    if wrong := next((i for i, row in enumerate(rows, 1) if len(row) != 2), None):
        raise DataError(f"{path}, line {wrong}: {len(rows[wrong - 1])} column(s) in place of 2: label and name")
    clean = str if form.keep_labels else unquoted
    return {clean(label): clean(text) for label, text in rows}
