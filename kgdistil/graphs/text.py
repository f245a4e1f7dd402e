"""Triples as lines of text: tabs, commas, and OpenKE's files, whose first line is a count."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
from collections.abc import Iterator

from kgdistil.errors import DataError
from kgdistil.graphs.forms import BLOCK, Columns, Form, Rows, Source, ending, find_columns, opened, reading
from kgdistil.graphs.labels import show

ENDINGS = (".tsv", ".txt", ".csv", ".del")


def read_text(source: Source, form: Form) -> Rows:
    """Lines of three labels: tabs, or commas with quotes as spreadsheets write them.

    Only line feeds, with or without a carriage return, end a line of the first kind, so a label may hold any other
    character but a tab.
    """
    path, kind = source.path, ending(source.path)
    commas, source.quotes = kind == ".csv", kind != ".csv"
    with reading(path), opened(path) as binary:
        file = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="" if commas else "\n")
        lines = _commas(file, form) if commas else _tabs(file)
        first = next(lines, None)
        while first is not None and first[1] in ([], [""]):
            form.left_out["blank line(s)"] += 1
            first = next(lines, None)
        if first is None:
            return
        if len(first[1]) == 1 and first[1][0].strip().isdigit() and not commas:
            yield from _counted(source, form, lines, first[1][0].strip())
            return
        if kind == ".del":
            source.numbered = True
        named = form.header
        columns = find_columns(first[1], form, str(path), named, f", separated by {'commas' if commas else 'tabs'},")
        columns = source.settle(columns, form)
        if not columns.header:
            yield [first[0]], *([first[1][i]] for i in columns.order)
        if commas:
            yield from _blocks(source, form, lines, columns, len(first[1]))
        else:
            yield from _tabbed(source, form, file, first[0] + 1, columns, len(first[1]))


def _commas(file: io.TextIOWrapper, form: Form) -> Iterator[tuple[int, list[str]]]:
    head = list(itertools.islice(file, 1000))
    with contextlib.suppress(csv.Error):
        if not form.keep_labels and list(csv.reader(head)) != list(csv.reader(head, skipinitialspace=True)):
            form.notes.append(
                "spaces after commas are no part of the labels; --keep-labels (keep_labels=True) keeps them"
            )
    # A space after a comma would else be part of the label, and so would the quotes that follow it.
    lines = itertools.chain(head, file)
    reader = csv.reader(lines, strict=True, skipinitialspace=not form.keep_labels)
    return ((reader.line_num, row) for row in reader)


def _tabs(file: io.TextIOWrapper) -> Iterator[tuple[int, list[str]]]:
    return ((i, x.removesuffix("\n").removesuffix("\r").split("\t")) for i, x in enumerate(file, 1))


def _tabbed(source: Source, form: Form, file: io.TextIOWrapper, number: int, columns: Columns, width: int) -> Rows:
    """The rest of a file from line `number`, without a list for each line: several times faster."""
    while block := list(itertools.islice(file, BLOCK)):
        text = "".join(block)
        text = text.removesuffix("\n") if text.endswith("\n") else text.removesuffix("\r")
        lines = (text + "\n").replace("\r\n", "\n").removesuffix("\n").split("\n")
        if {line.count("\t") for line in lines} == {width - 1}:
            cells = "\t".join(lines).split("\t")
            yield list(range(number, number + len(lines))), *(cells[i::width] for i in columns.order)
        else:
            rows = ((i, line.split("\t")) for i, line in enumerate(lines, number))
            yield from _blocks(source, form, rows, columns, width)
        number += len(block)


def _blocks(source: Source, form: Form, lines: Iterator, columns: Columns, width: int) -> Rows:
    while block := list(itertools.islice(lines, BLOCK)):
        full = [(number, row) for number, row in block if row not in ([], [""])]
        form.left_out["blank line(s)"] += len(block) - len(full)
        for number, row in full:
            if len(row) != width:
                raise DataError(
                    f"{source.what}, line {number}: {len(row)} column(s) in place of {width}: {show(str(row))}"
                )
        if full:
            at = [number for number, _ in full]
            yield at, *([row[i] for _, row in full] for i in columns.order)


def _counted(source: Source, form: Form, lines: Iterator, count: str) -> Rows:
    """OpenKE's train2id.txt: how many triples there are, then head, tail and relation as numbers."""
    source.numbered = source.sure = True
    order, found = tuple((form.order or "htr").index(c) for c in "hrt"), 0
    rows = ((number, cells[0].split() if len(cells) == 1 else cells) for number, cells in lines)
    for block in _blocks(source, form, rows, Columns(order, False, True), 3):
        if word := next((x for column in block[1:] for x in column if not x.isdigit()), None):
            raise DataError(
                f"{source.what}: its first line is a count, {count}, as in OpenKE's files, so its labels must be "
                f"numbers; {show(word)} is none"
            )
        found += len(block[1])
        yield block
    if found != int(count):
        raise DataError(f"{source.what}: its first line says {count} triples, and {found} follow; it was cut short")
