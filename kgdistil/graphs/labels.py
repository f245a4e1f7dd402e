"""Labels and their numbers. Those that look the same are one label, unless they are kept as they are.

| written | read |
| --- | --- |
| spaces at an end, several in a row, or of other kinds | none at an end, one inside, a plain one |
| characters without width, as U+180E, U+200B and marks of direction; control characters, as NUL | left out |
| accents composed or not (NFC, NFD) | NFC |
| quotes `"` round a field of a .tsv, or `'` round all fields of a .csv | no part of the label |
| other quotes at an end, percent-encoding (`%20`) | left apart, and said where another label differs in no more |
| small and large letters, line breaks inside, variants of one character (U+FE0F) | left apart |
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from kgdistil.errors import DataError

# No width, and no part of a word: soft hyphen, zero-width space, byte order mark, marks of direction and the like; and
# control characters but those that end a line.
INVISIBLE = dict.fromkeys(
    (0xAD, 0x34F, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
) | dict.fromkeys((*range(9), *range(0x0E, 0x1C), *range(0x7F, 0x85), *range(0x86, 0xA0)))
SPACES = dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x2800, 0x3000, 0x3164, 0xFFA0], " ")
QUOTES = "\"'`´‘’‚“”„«»‹›"
DOUBTFUL = f"^[{QUOTES}]|[{QUOTES}]$|%"  # labels that `nearly_alike` looks at
# Beside white space: joiners, which letters of Persian and emoji need, but which at an end join nothing.
ENDS = "\u200c\u200d \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"
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
    """The label in NFC, plain single spaces for others, nothing invisible, and no space at either end."""
    if not label.isascii() or not label.isprintable():
        label = unicodedata.normalize("NFC", label.translate(INVISIBLE).translate(SPACES)).strip(ENDS)
    return re.sub("  +", " ", label.strip()) if "  " in label else label.strip()


def unquoted(label: str) -> str:
    """What stands between quotes that pandas and R put round a field: `"The ""Weird"" One"`."""
    if len(label) > 1 and label[0] == label[-1] == '"' and '"' not in label[1:-1].replace('""', ""):
        return label[1:-1].replace('""', '"')
    return label


def nearly_alike(doubtful: Iterable[str], there: Container[str]) -> list[tuple[str, str]]:
    """Labels that differ from another only in quotes at an end or in percent-encoding, each with the other.

    Args:
        doubtful: the labels that `DOUBTFUL` matches, sorted.
        there: all labels.
    """
    found, plain = [], dict[str, str]()
    for label in doubtful:
        bare = tidy(unquote(label).strip(QUOTES))
        other = bare if bare in there else plain.setdefault(bare, label)
        if other != label:
            found.append((label, other))
    return found


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
