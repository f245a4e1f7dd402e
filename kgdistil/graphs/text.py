"""Triples as lines of text: tabs, commas, and OpenKE's files, whose first line is a count."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Iterator
from typing import IO

import numpy as np

from kgdistil.errors import DataError
from kgdistil.graphs.forms import BLOCK, Columns, Form, Rows, Source, ending, find_columns, opened, reading
from kgdistil.graphs.labels import show
from kgdistil.graphs.numbering import cells

OTHERS = (  # how other files begin, and what to do
    (r"<!doctype|<html", "is of a web page; fetch the file itself"),
    (r"version https://git-lfs", "is a pointer of Git LFS; fetch the file itself with git lfs pull"),
    (r"(<|_:).*\.\s*$", "is of N-Triples; name it .nt"),
    (r"@?prefix\s|@base\s", "is of Turtle; name it .ttl"),
    (r"[\[{]", "is of JSON; write each triple as a line of three labels"),
    (r"#|%|//", "is a comment; remove such lines"),
)
ENDINGS = (".tsv", ".txt", ".csv", ".del")


def read_text(source: Source, form: Form) -> Rows:
    """Lines of three labels: tabs, or commas with quotes as spreadsheets write them.

    Only line feeds, with or without a carriage return, end a line of the first kind, so a label may hold any other
    character but a tab.
    """
    path, kind = source.path, ending(source.path)
    commas, source.quotes = kind == ".csv", kind != ".csv"
    with reading(path), opened(path) as binary:
        lines = _commas(source, binary, form) if commas else _tabs(binary)
        first = next(lines, None)
        while first is not None and _blank(first[1], form):
            form.left_out["blank line(s)"] += 1
            first = next(lines, None)
        if first is None:
            return
        if mend := _no_row(first[1], commas):
            raise DataError(f"{path}, line {first[0]}: {len(first[1])} column(s) in place of 3: {mend}")
        if len(first[1]) == 1 and first[1][0].strip().isdigit() and not commas:
            yield from _counted(source, form, lines, first[1][0].strip())
            return
        if kind == ".del":
            source.numbered = True
        named = form.header
        columns = find_columns(first[1], form, str(path), named, f", separated by {'commas' if commas else 'tabs'},")
        columns = source.settle(columns, form)
        if columns.header:
            source.names = tuple(first[1][i] for i in columns.order)
        else:
            yield [first[0]], *([first[1][i]] for i in columns.order)
        if commas:
            yield from _blocks(source, form, lines, columns, len(first[1]))
        else:
            yield from _tabbed(source, form, binary, first[0] + 1, columns, len(first[1]))


def _no_row(row: list[str], commas: bool) -> str | None:
    """What to do about a first line that is of another form than its file's name says; None where it may be right."""
    line = ("," if commas else "\t").join(row)
    if 4 * line.count("\0") > len(line):
        return "every other byte is 0, so it looks like UTF-16; save it as UTF-8"
    if len(row) > 3 and "\r" in line.rstrip("\r") and not commas:
        return f"{show(line)} has carriage returns inside; end lines with line feeds"
    if len(row) > 2:
        return None
    for start, mend in OTHERS:
        if re.match(start, line, re.I):
            return f"{show(line)} {mend}"
    for mark, name in (("\t", "tabs"), (",", "commas"), (";", "semicolons"), ("|", "bars"), (" ", "spaces")):
        if len(parts := line.split(mark.strip(" ") or None)) > 2 and all(part.strip() for part in parts[:3]):
            mend = "name it .tsv" if mark == "\t" else "name it .csv" if mark == "," else ""
            mend = mend or f"put {'commas' if commas else 'tabs'} in their place"
            return f"{show(line)} is separated by {name}; {mend}"
    return None


def _blank(row: list[str], form: Form) -> bool:
    """Whether a line holds nothing; spaces may be labels where labels are kept as they are."""
    return not any(map(str.strip, row)) and (len(row) < 2 or not form.keep_labels)


def _commas(source: Source, binary: IO[bytes], form: Form) -> Iterator[tuple[int, list[str]]]:
    file = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
    head, quote = list(itertools.islice(file, 1000)), '"'
    quoted = [line.strip() for line in head if line.strip()]
    with contextlib.suppress(csv.Error):
        if not form.keep_labels and all(len(x) > 1 and x[0] == x[-1] == "'" for x in quoted[1:] or quoted):
            widths = {len(row) for row in csv.reader(quoted, quotechar="'", strict=True, skipinitialspace=True)}
            if len(widths) == 1 and max(widths) > 2:
                quote = "'"
                form.notes.append(
                    "single quotes round fields are no part of the labels; --keep-labels (keep_labels=True) keeps them"
                )
    with contextlib.suppress(csv.Error):
        if not form.keep_labels and list(csv.reader(head)) != list(csv.reader(head, skipinitialspace=True)):
            form.notes.append(
                "spaces after commas are no part of the labels; --keep-labels (keep_labels=True) keeps them"
            )
    # A space after a comma would else be part of the label, and so would the quotes that follow it.
    lines = itertools.chain(head, file)
    reader = csv.reader(lines, quotechar=quote, strict=True, skipinitialspace=not form.keep_labels)
    end = 0
    try:
        for row in reader:
            end = reader.line_num
            yield end, row
    except csv.Error as error:
        mend = "; is a quote not closed that opens there? A quote within quotes is written twice"
        raise DataError(f"{source.what}, line {end + 1}: {error}{mend}") from None


def _tabs(file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file, 1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        yield number, text.removesuffix("\n").removesuffix("\r").split("\t")


def _tabbed(source: Source, form: Form, file: IO[bytes], number: int, columns: Columns, width: int) -> Rows:
    """The rest of a file from line `number`, without a Python string for each cell: many times faster."""
    while lines := list(itertools.islice(file, BLOCK)):
        block, count = b"".join(lines), len(lines)
        if not block.isascii():
            block.decode()  # raises where it is no UTF-8
        block = (block[:-1] if block.endswith(b"\n") else block.removesuffix(b"\r")) + b"\n"
        block = block.replace(b"\r\n", b"\n") if b"\r" in block else block
        letters = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero((letters == ord("\t")) | (letters == ord("\n")))
        found, wanted = letters[ends], [ord("\t")] * (width - 1) + [ord("\n")]
        even = len(ends) == count * width and (found.reshape(count, width) == wanted).all()
        if even and (np.diff(ends[width - 1 :: width], prepend=-1) > width).all():  # no line of tabs alone
            yield cells(range(number, number + count), block, ends, width, columns.order)
        else:
            texts = block.decode().removesuffix("\n").split("\n")
            yield from _blocks(
                source, form, ((i, x.split("\t")) for i, x in enumerate(texts, number)), columns, width, file
            )
        number += count


def _blocks(
    source: Source, form: Form, lines: Iterator, columns: Columns, width: int, rest: Iterator | None = None
) -> Rows:
    """The columns of lines; `rest`: what follows them in the file, where that is not in `lines`."""
    while block := list(itertools.islice(lines, BLOCK)):
        full = [(number, row) for number, row in block if not _blank(row, form)]
        form.left_out["blank line(s)"] += len(block) - len(full)
        for number, row in full:
            if len(row) != width:
                mend = "correct the line"
                if len(row) < width and number == full[-1][0] and next(lines if rest is None else rest, None) is None:
                    mend = "it is the last line, so the file looks cut off: fetch it again"
                elif any(cell.startswith('"') and not cell.rstrip().endswith('"') for cell in row):
                    mend = "a quote opens there that nothing closes: .tsv has no tabs or line ends within quotes"
                raise DataError(
                    f"{source.what}, line {number}: {len(row)} column(s) in place of {width}: {show(str(row))}; {mend}"
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
