"""Folders of the Open Graph Benchmark as they are published: ogbl-wikikg2, ogbl-biokg, and others laid out alike.

`split/time` or `split/random` holds train.pt, valid.pt and test.pt, dictionaries of numbers; where `head_type` and
`tail_type` stand beside them, each type of entity is numbered from 0. `mapping` holds the labels of the numbers. An
entity of a type is called "type:label" here, since two types may share labels.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import torch

from kgdistil.errors import DataError
from kgdistil.graph import SPLITS
from kgdistil.graphs.forms import PLACES, opened, reading
from kgdistil.graphs.labels import show
from kgdistil.graphs.numbering import TEXT, Numbered

# What a file may name besides tensors, texts and containers: an array of whole numbers, as NumPy 1 and 2 pickle it
RECONSTRUCT = np.empty(0).__reduce__()[0]
SAFE: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in "bhilqBHILQ"}]
SAFE += [(RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
MEND = "fetch it again, or give the triples as .tsv"
PLAIN = "fetch it again, or move mapping away to have numbers as labels"


def find_parts(folder: Path) -> list[Path]:
    """Train, valid and test of a folder of this form; [] where it is of another."""
    found = [path.parent for path in sorted(folder.glob("split/*/train.pt"))]
    if len(found) > 1:
        raise DataError(f"{folder} holds the splits {', '.join(x.name for x in found)}: leave only one of them there")
    paths = [found[0] / f"{part}.pt" for part in SPLITS] if found else []
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{missing[0]} is missing: {MEND}")
    return paths


def read_parts(folder: Path, paths: list[Path]) -> list[Numbered]:
    """The three parts, each number as the label that `mapping` has for it, or as itself where there is no mapping.

    Raises:
        DataError: a file is damaged, or holds what is not of this form.
    """
    loaded = [_load(path) for path in paths]
    kinds = sorted({kind for _, types in loaded for column in types for kind in column.dictionary.to_pylist()}) or [""]
    codes, sizes, most = [], np.zeros(len(kinds), np.int64), -1
    for path, (triples, types) in zip(paths, loaded):
        if (kinds == [""]) == bool(types):
            raise DataError(f"{path} has no head_type and tail_type, unlike the files beside it: {MEND}")
        kind = np.zeros((len(triples), 2), np.int64)  # the place in `kinds` of each head's and each tail's type
        for side, column in enumerate(types):
            place = np.array([kinds.index(x) for x in column.dictionary.to_pylist()], np.int64)
            kind[:, side] = place[column.indices.to_numpy()]
        codes.append(kind)
        np.maximum.at(sizes, kind, triples[:, [0, 2]] + 1)
        most = max(most, int(triples[:, 1].max(initial=-1)))
    tables = [_labels(folder, f"{kind}_entidx2*" if kind else "nodeidx2*", n) for kind, n in zip(kinds, sizes.tolist())]
    offsets = np.cumsum([0, *map(len, tables)])
    joined = (
        pc.binary_join_element_wise(pa.scalar(x, TEXT), t, pa.scalar(":", TEXT)) if x else t
        for x, t in zip(kinds, tables)
    )
    entities, relations = pa.concat_arrays(list(joined)), _labels(folder, "rel*2rel*", most + 1)
    for (triples, _), kind in zip(loaded, codes):
        triples[:, [0, 2]] += offsets[kind]
    return [Numbered(str(path), entities, relations, triples) for path, (triples, _) in zip(paths, loaded)]


def _load(path: Path) -> tuple[np.ndarray, list[pa.DictionaryArray]]:
    """A file's triples, int64 [n, 3], and the types of heads and tails where it has them."""
    try:
        with torch.serialization.safe_globals(SAFE):
            found = torch.load(path, map_location="cpu", weights_only=True)
        columns = [np.asarray(found[place]) for place in PLACES]
        types = [pa.array(found[f"{side}_type"], TEXT) for side in ("head", "tail") if f"{side}_type" in found]
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes torch, NumPy and Arrow raise
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own line says how to run whatever stands there
            reason = "it is damaged, or names something else than arrays of whole numbers"
        raise DataError(f"{path} holds no triples of the Open Graph Benchmark ({reason[:200]}): {MEND}") from None
    wanted, shapes = columns[0].shape, [x.shape for x in columns] + [(len(x),) for x in types]
    if len(wanted) != 1 or any(shape != wanted for shape in shapes) or len(types) == 1:
        raise DataError(f"{path}: its columns have the shapes {', '.join(map(str, shapes))}: {MEND}")
    for place, column in zip(PLACES, columns):
        whole = column.dtype.kind in "iu"
        wrong = [] if whole else [column.dtype]
        wrong += [x for x in (column.min(), column.max()) if not 0 <= x < 1 << 31] if whole and len(column) else []
        if wrong:
            raise DataError(f"{path}: the column {place} holds {wrong[0]}, not numbers from 0 below 2^31: {MEND}")
    for column in types:
        if odd := [x for x in pc.unique(column).to_pylist() if x is None or not re.fullmatch(r"[\w-]+", x)]:
            raise DataError(f"{path}: {show(str(odd[0]))} is no name of a type of entity: {MEND}")
    return np.stack(columns, 1).astype(np.int64), [column.dictionary_encode() for column in types]


def _labels(folder: Path, name: str, needed: int) -> pa.Array:
    """The labels of the numbers from 0, of the table in `mapping` that is called so; digits where there are none."""
    tables = folder / "mapping"
    paths = sorted(tables.glob(f"{name}.csv*"))
    if not any(tables.glob("*.csv*")):
        return pa.array(np.arange(needed)).cast(TEXT)
    if not paths:
        raise DataError(f"{tables} holds no {name}.csv.gz: {PLAIN}")
    if len(paths) > 1:
        raise DataError(f"{tables} holds {' and '.join(x.name for x in paths)}: leave only one of them there")
    path = paths[0]
    types: dict[str, Any] = {"number": pa.int64(), "label": TEXT}
    with reading(path, pa.ArrowException), opened(path) as file:
        text = file.read()
        if not text.endswith(b"\n"):  # of a label that was cut off, the rest would be taken for it
            last = show(text[-80:].decode(errors="replace").rsplit("\n", 1)[-1])
            raise DataError(f"{path} ends within a line, {last}: fetch it again, or end that line where it is whole")
        table = pa.csv.read_csv(
            pa.BufferReader(text),
            pa.csv.ReadOptions(skip_rows=1, column_names=list(types)),
            convert_options=pa.csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False),
        ).combine_chunks()
    numbers = table["number"].to_numpy()
    order = np.argsort(numbers)
    if (numbers[order] != np.arange(len(numbers))).any():
        raise DataError(f"{path} does not number its {len(numbers)} labels from 0 without gaps; correct it")
    if needed > len(numbers):
        raise DataError(f"{path} has {len(numbers)} labels, but {needed - 1} is a number in the parts: fetch it again")
    found = pa.concat_arrays(table["label"].chunks).take(pa.array(order))
    code = found.dictionary_encode().indices.to_numpy()
    first = np.unique(code, return_index=True)[1][code]  # codes are given in order
    if (wrong := np.flatnonzero((first < np.arange(len(code))) | pc.equal(found, "").to_numpy(False))).size:
        at = int(wrong[0])
        twice = f", and {first[at]} has it, too" if first[at] < at else ""
        raise DataError(f"{path}: the label of {at} is {show(found[at].as_py())}{twice}: {PLAIN}")
    return found
