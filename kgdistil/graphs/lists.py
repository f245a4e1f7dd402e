"""A teacher of any kind, by what it says: lists of candidates with scores, for queries of a graph.

A list belongs to one query, (h, r, ?) or (?, r, t). As a Parquet file it is one row for each candidate:

| column | holds |
| --- | --- |
| head | the entity that is given: h of (h, r, ?), and t of (?, r, t) |
| relation | the relation |
| side | what is asked for, `tail` or `head` |
| candidate | an entity |
| score | a number, larger for a better candidate; a soft label is the softmax of a query's scores / T |

Entities and relations are the graph's labels. Rows may stand in any order; queries that have no list are trained by
their own triples alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import torch
from torch import Tensor

from kgdistil.answer.files import write_atomically
from kgdistil.answer.labels import Labels
from kgdistil.checkpoint import read_tensors, write_tensors
from kgdistil.errors import CheckpointError, DataError, short
from kgdistil.graph import Graph
from kgdistil.graphs.cache import sum_of
from kgdistil.graphs.forms import reading
from kgdistil.sampling import GOLDEN, mix, shift_right

SIDES = ("tail", "head")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("head", "relation", "side", "candidate")] + [("score", pa.float32())]
)
KEPT = ".lists"  # the ending of what `Lists.save` writes


def keys_of(entity: Tensor, relation: Tensor, is_head: Tensor, relations: int) -> Tensor:
    """Numbers of queries, int64 [n]: (entity · R + relation) · 2, and 1 more where heads are asked for."""
    return (entity * relations + relation) * 2 + is_head


@dataclass(frozen=True)
class Lists:
    """Candidates of queries: the list of the query `keys[i]` is start[i] to start[i + 1] of `ids` and `scores`.

    keys: int64 [Q], ascending, as `keys_of` makes them.
    start: int64 [Q + 1]; ids: int32 [n], ascending within a list; scores: float32 [n].
    """

    keys: Tensor
    start: Tensor
    ids: Tensor
    scores: Tensor
    num_relations: int
    sha256: str  # of the file that they were read from
    graph_sha256: str

    def spans(self, entity: Tensor, relation: Tensor, is_head: Tensor) -> tuple[Tensor, Tensor]:
        """Where the lists of queries [n] start, and how long they are, int64 [n]; 0 for none."""
        wanted = keys_of(entity, relation, is_head, self.num_relations)
        place = torch.searchsorted(self.keys, wanted).clamp_max(len(self.keys) - 1)
        count = torch.where(self.keys[place] == wanted, self.start[place + 1] - self.start[place], 0)
        return self.start[place], count

    def beside(self, anchor: Tensor, relation: Tensor, is_head: Tensor) -> Tensor:
        """Keys of the lists of all queries but these [Q]."""
        return self.keys[~torch.isin(self.keys, keys_of(anchor, relation, is_head, self.num_relations))]

    def drawn(self, keys: Tensor, count: int, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """So many queries of those keys, by a random number: anchor, relation int64 and is_head bool [count]."""
        numbers = mix(base + torch.arange(count, device=keys.device) * GOLDEN)
        drawn = keys[(shift_right(numbers, 32) * len(keys)) >> 32]
        return drawn // 2 // self.num_relations, drawn // 2 % self.num_relations, drawn % 2 == 1

    def to(self, device: torch.device | str) -> Lists:
        """The same lists on `device`."""
        tensors = {name: getattr(self, name).to(device) for name in ("keys", "start", "ids", "scores")}
        return replace(self, **tensors)

    def save(self, folder: Path, name: str = "") -> Path:
        """As numbers, in a file of that folder whose name says of what they are."""
        path = folder / (name or f"{self.sha256[:12]}-{self.graph_sha256[:12]}{KEPT}")
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: getattr(self, name) for name in ("keys", "start", "ids", "scores")}
            about = {name: getattr(self, name) for name in ("num_relations", "sha256", "graph_sha256")}
            write_tensors(path, tensors, about)
        return path

    @classmethod
    def load(cls, path: Path, graph: Graph) -> Lists:
        """What `save` wrote.

        Raises:
            CheckpointError: damaged, or of another graph.
        """
        given: dict[str, Any] = {}
        for part in read_tensors(path):
            given |= part
        try:
            found = cls(**given)
        except TypeError:
            raise CheckpointError(f"{path} is damaged; delete it to start over") from None
        if found.graph_sha256 != graph.sha256:
            raise CheckpointError(f"{path} was made for another graph than {graph.name} is now; read the lists again")
        return found


def read_lists(path: str | Path, graph: Graph) -> Lists:
    """Lists from a Parquet file, a part of it at a time; the columns may be dictionaries.

    Raises:
        DataError: a column is missing, a label is not the graph's, a side neither head nor tail, a score no number, or
            a candidate stands twice in a list; with the file, the row (from 1) and the value.
    """
    path = Path(path)
    entities, relations, sides = _Ids(graph.entities, "entity"), _Ids(graph.relations, "relation"), _Ids(SIDES, "side")
    keys: list[np.ndarray] = []
    ids: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    row = 0
    with reading(path), path.open("rb") as raw:
        if raw.read(4) != b"PAR1":
            raise DataError(f"{path} is no Parquet file; lists are one, with the columns {', '.join(SCHEMA.names)}")
    with reading(path, pa.ArrowException), pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if missing := [name for name in SCHEMA.names if name not in names]:
            raise DataError(
                f"{path}: no column {', '.join(missing)}; lists have the columns {', '.join(SCHEMA.names)}, "
                f"and this file has {', '.join(map(short, names))}"
            )
        if many := [name for name in SCHEMA.names if names.count(name) > 1]:
            raise DataError(f"{path}: {names.count(many[0])} columns are called {many[0]}; leave one of that name")
        for batch in file.iter_batches(columns=SCHEMA.names):
            head, relation, side, candidate, score = (batch.column(name) for name in SCHEMA.names)
            where = f"{path}, row"
            given, asked = entities.of(head, where, row), relations.of(relation, where, row)
            answered = entities.of(candidate, where, row)
            heads = sides.of(side, where, row)
            try:
                values = score.cast(pa.float64()).to_numpy(zero_copy_only=False)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(f"{path}: column score is no number ({error}); write floats") from None
            if not (fine := np.isfinite(values) & (np.abs(values) < 1e30)).all():
                at = int(np.argmin(fine))
                raise DataError(f"{where} {row + at + 1}: score is {score[at].as_py()}; write a finite number")
            keys.append((given * graph.num_relations + asked) * 2 + heads)
            ids.append(answered.astype(np.int32))
            scores.append(values.astype(np.float32))
            row += len(batch)
    if not row:
        raise DataError(f"{path} holds no row: lists have one for each candidate of a query")
    key, answer, value = (np.concatenate(parts) for parts in (keys, ids, scores))
    order = np.lexsort((answer, key))
    key, answer, value = key[order], answer[order], value[order]
    if (twice := np.flatnonzero((key[1:] == key[:-1]) & (answer[1:] == answer[:-1]))).size:
        first, second = sorted(order[twice[0] : twice[0] + 2].tolist())
        raise DataError(
            f"{path}, row {second + 1}: the candidate stands in row {first + 1} for the same query; leave one out"
        )
    different, start = np.unique(key, return_index=True)
    tensors = [torch.from_numpy(x) for x in (different, np.append(start, len(key)), answer, value)]
    return Lists(tensors[0], tensors[1], tensors[2], tensors[3], graph.num_relations, sum_of(path), graph.sha256)


def write_lists(path: str | Path, parts: Iterable[pa.RecordBatch | pa.Table], *, compression: str = "zstd") -> None:
    """A Parquet file of lists, written as its parts come; it is there when all of them are.

    Args:
        parts: with the columns of the table above.
    """

    def write(scratch: str) -> None:
        with pyarrow.parquet.ParquetWriter(scratch, SCHEMA, compression=compression) as file:
            for part in parts:
                table = pa.Table.from_batches([part]) if isinstance(part, pa.RecordBatch) else part
                file.write_table(table.select(SCHEMA.names).cast(SCHEMA))

    write_atomically(Path(path), write)


class _Ids:
    """Numbers of labels, each looked up once."""

    def __init__(self, labels: Sequence[str], what: str):
        self.labels, self.what = labels, what
        self.found = {} if isinstance(labels, Labels) else {label: i for i, label in enumerate(labels)}

    def of(self, column: pa.Array, where: str, first: int) -> np.ndarray:
        """int64 [n] of a column; DataError with its row for what is no label."""
        if not pa.types.is_dictionary(column.type):
            try:
                column = column.cast(pa.string()).dictionary_encode()
            except pa.ArrowNotImplementedError:
                raise DataError(
                    f"{where} {first + 1}: {self.what} is no text but a {column.type}; write a text"
                ) from None
        words = column.dictionary.cast(pa.string()).to_pylist()
        find = self.labels.find if isinstance(self.labels, Labels) else self.found.get
        numbers = [None if word is None else find(word) for word in words]
        table = np.array([-1 if n is None else n for n in numbers] + [-1], np.int64)
        ids = table[pc.fill_null(column.indices, len(words)).to_numpy(zero_copy_only=False)]
        if (wrong := np.flatnonzero(ids < 0)).size:
            at = int(wrong[0])
            known = "tail or head" if self.what == "side" else f"a label of the graph's {self.what} table"
            raise DataError(
                f"{where} {first + at + 1}: {self.what} {short(column[at].as_py())} is not known; write {known}"
            )
        return ids
