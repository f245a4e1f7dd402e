"""Triples in memory and in Parquet: tables, arrays, tensors, lists of rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import torch

from kgdistil.errors import DataError
from kgdistil.graphs.forms import BLOCK, PLACES, Form, Rows, Source, find_columns, reading, texts
from kgdistil.graphs.labels import show
from kgdistil.graphs.limits import allow


def table_or_array(value: Any) -> pd.DataFrame | np.ndarray | None:
    """Whatever holds triples in memory, as a table or an array [n, width]; None where it is something else.

    Raises:
        DataError: rows of several lengths.
    """
    if isinstance(value, pd.DataFrame | np.ndarray):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if hasattr(value, "to_pandas"):  # Arrow, polars
        found = value.to_pandas()
        return found if isinstance(found, pd.DataFrame) else None
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | dict):
        rows = [tuple(row) if isinstance(row, Iterable) and not isinstance(row, str | bytes) else row for row in value]
        lengths = [len(row) if isinstance(row, tuple) else 1 for row in rows]
        if wrong := next((i for i, length in enumerate(lengths) if length != lengths[0]), 0) or lengths[:1] == [1]:
            row = 0 if wrong is True else wrong
            raise DataError(f"the list, row {row}: {show(str(rows[row]))}; each must be (head, relation, tail)")
        array = np.empty((len(rows), lengths[0] if rows else 3), dtype=object)
        for row, cells in enumerate(rows):
            array[row] = cells
        return array
    return None


def read_table(source: Source, table: pd.DataFrame, form: Form) -> Rows:
    columns = source.settle(find_columns(list(table.columns), form, source.what, True), form)
    source.plain = False
    for start in range(0, len(table), BLOCK):
        block = table.iloc[start : start + BLOCK, list(columns.order)]
        yield start, *(texts(block.iloc[:, i].tolist(), source.what, start) for i in range(3))


def read_array(source: Source, triples: np.ndarray, form: Form) -> Rows:
    if triples.ndim != 2 or triples.shape[1] < 3 or (triples.shape[1] > 3 and form.columns is None):
        raise DataError(f"{source.what} has shape {triples.shape} in place of [n, 3]: head, relation and tail")
    if not len(triples):
        return
    columns = find_columns(range(1, triples.shape[1] + 1), form, source.what, False)
    source.settle(columns, form)
    for start in range(0, len(triples), BLOCK):
        block = triples[start : start + BLOCK]
        yield start, *(texts(block[:, i].tolist(), source.what, start) for i in columns.order)


def read_parquet(source: Source, form: Form) -> Rows:
    path = source.path
    with reading(path, pyarrow.ArrowException), open(path, "rb") as handle:
        schema = pyarrow.parquet.read_schema(handle)
        names = schema.names
        columns = source.settle(find_columns(names, form, source.what, True), form)
        source.plain = False
        wanted = [names[i] for i in columns.order]
        for what, name in zip(PLACES, wanted):
            if names.count(name) > 1:
                raise DataError(f"{path} has two columns {show(name)}, one of them the {what}'s; rename one")
            if pyarrow.types.is_nested(kind := schema.field(name).type):
                raise DataError(
                    f"{path}: the column {show(name)} is a {show(str(kind))}; give a text or a whole number"
                )
        # Dictionaries keep a text that stands in many rows once in memory.
        with pyarrow.parquet.ParquetFile(path, read_dictionary=wanted) as file:
            # Three numbers of eight bytes a row, whatever few bytes the rows are packed into.
            allow(24 * file.metadata.num_rows, path)
            start = 0
            for batch in file.iter_batches(BLOCK, columns=wanted):
                batch.validate(full=True)  # a damaged file's numbers may lie beyond its dictionary
                found = [_listed(batch.column(name)) for name in wanted]
                yield start, *(texts(column, source.what, start) for column in found)
                start += len(batch)


def _listed(column: Any) -> list:
    """A column's values; equal texts are one object."""
    if not hasattr(column, "dictionary"):
        return column.to_pylist()
    words = column.dictionary.to_pylist()
    return [None if i is None else words[i] for i in column.indices.to_pylist()]
