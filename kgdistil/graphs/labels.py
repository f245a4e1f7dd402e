"""Labels and their numbers. Those that look the same are one label, unless they are kept as they are."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kgdistil.errors import DataError

# No width, and no part of a word: zero-width space, word joiner, byte order mark, soft hyphen, direction marks.
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad\u200e\u200f"))
SPACES = dict.fromkeys(map(ord, "\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))), " ")
ENDS = "\u200c\u200d"  # joiners: letters of Persian and emoji need them, but at an end they join nothing
TABLES = {  # files of other libraries that number labels: entities, relations, whether the label stands first
    "entity2id.txt": ("relation2id.txt", True),  # OpenKE
    "entity_ids.del": ("relation_ids.del", False),  # LibKGE
    "entities.dict": ("relations.dict", False),  # RotatE's code, DGL-KE
    "entities.tsv": ("relations.tsv", False),  # DGL-KE
    "ent2ix.json": ("rel2ix.json", True),  # TorchKGE's two dictionaries
    "entity_to_id.json": ("relation_to_id.json", True),
}


def show(value: str, limit: int = 80) -> str:
    """A value as an error line quotes it."""
    return repr(value if len(value) <= limit else value[:limit] + "…")


def tidy(label: str) -> str:
    """The label in NFC, plain spaces for others, nothing invisible, and no space at either end."""
    if not label.isascii():
        label = unicodedata.normalize("NFC", label).translate(INVISIBLE).translate(SPACES)
        return label.strip().strip(ENDS).strip()
    return label.strip()


def unquoted(label: str) -> str:
    """What stands between quotes that pandas and R put round a field: `"The ""Weird"" One"`."""
    if len(label) > 1 and label[0] == label[-1] == '"' and '"' not in label[1:-1].replace('""', ""):
        return label[1:-1].replace('""', '"')
    return label


class LabelFault(Exception):
    """A label that cannot be: (as it was read, what is wrong with it)."""


class Labels:
    """Labels in the order in which they first appeared; `ids` has the number of each."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.changed: dict[str, str] = {}  # as it was read: as it is kept
        self.unseen: set[str] = set()  # labels that came out of changed ones alone

    def numbers(self, clean: Callable[[str], str] = str) -> dict[str, int]:
        """A mapping from labels as one source has them, to their numbers, that grows as it is asked."""
        return _Raw(self, clean)

    @property
    def merged(self) -> int:
        """How many labels became one with another."""
        return len(self.changed) - len(self.unseen)


class _Raw(dict):
    def __init__(self, labels: Labels, clean: Callable[[str], str]):
        super().__init__()
        self.labels, self.clean = labels, clean

    def __missing__(self, raw: str) -> int:
        label, labels = self.clean(raw), self.labels
        if not label:
            raise LabelFault(raw, "is empty; give it a label")
        try:
            label.encode()
        except UnicodeEncodeError:  # a lone surrogate
            raise LabelFault(raw, f"{show(label)} cannot be written as UTF-8; correct it") from None
        if label == raw:
            labels.unseen.discard(label)
        elif raw not in labels.changed:
            labels.changed[raw] = label
            if label not in labels.ids:
                labels.unseen.add(label)
        self[raw] = number = labels.ids.setdefault(label, len(labels.ids))
        return number


def find_tables(folder: Path) -> tuple[dict[str, str], dict[str, str]] | None:
    """Labels by number, as text, of entities and relations, from another library's files in a folder; None without.

    Raises:
        DataError: such a file is damaged.
    """
    for first, (second, label_first) in TABLES.items():
        if (folder / first).is_file() and (folder / second).is_file():
            return read_table(folder / first, label_first), read_table(folder / second, label_first)
    return None


def read_table(path: Path, label_first: bool) -> dict[str, str]:
    """One of `TABLES`: lines "label, tab, number" or "number, tab, label", a count first in OpenKE's; or a JSON object.

    The column that is a numbering decides which is which, and `label_first` where both are.

    Raises:
        DataError: another form, a number or label twice, or numbers with gaps.
    """
    try:
        rows: list[tuple[str, ...]]
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            rows = [(str(label), str(number)) for label, number in json.loads(text).items()]
        else:
            lines = [line for line in text.replace("\r\n", "\n").split("\n") if line]
            if lines and re.fullmatch(r"\s*\d+\s*", lines[0]):
                if int(lines[0]) != len(lines) - 1:
                    raise ValueError(f"its first line says {lines[0].strip()}, and {len(lines) - 1} lines follow")
                lines = lines[1:]
            tabs = all("\t" in line for line in lines)
            split = lambda line: line.split("\t") if tabs else line.rsplit(None, 1)
            rows = [tuple(unquoted(cell) for cell in split(line)) for line in lines]
            if any(len(row) != 2 for row in rows):
                raise ValueError("a line has not two columns, label and number")
    except (OSError, ValueError, AttributeError, RecursionError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise DataError(f"cannot read {path}: {reason}") from None
    numbering = {str(i) for i in range(len(rows))}
    fits = [rows and {row[column] for row in rows} == numbering for column in (0, 1)]
    if not any(fits):
        raise DataError(f"{path} does not number its {len(rows)} labels from 0 without gaps; correct it")
    at = 1 if (label_first and fits[1]) or not fits[0] else 0
    found = {row[at]: row[1 - at] for row in rows}
    if len(set(found.values())) != len(rows):
        raise DataError(f"{path} has a label twice; each needs a number of its own")
    return found


def in_order(table: dict[str, str]) -> list[str]:
    """The labels of `read_table` by number."""
    return [table[str(i)] for i in range(len(table))]


def text_of(value: Any) -> str | None:
    """A cell as a label: a text as it is, a whole number as its digits; None where it is neither."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return str(value.__index__())
    except (TypeError, ValueError):
        return None
