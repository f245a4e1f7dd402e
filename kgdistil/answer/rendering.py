"""Tables for people: Markdown, HTML and plain text, each from a head and rows; and values for JSON."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable
from typing import Any

Rows = Iterable[Iterable[Any]]


def printable(line: str) -> str:
    """A line without characters that could steer the terminal; spaces of any width are none."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else "\ufffd" for c in line)


def text(value: Any) -> str:
    """A value as people read it: four decimals, thousands apart, no character that would steer a terminal, and quotes
    where spaces at an end would not be seen."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    shown = printable(str(value))
    return shown if shown == shown.strip() else f'"{shown}"'


def markdown(head: Iterable[Any], rows: Rows) -> str:
    """A Markdown table; all but the first column are aligned right."""
    head = list(head)
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(text(cell) for cell in line) + " |" for line in lines)


def plain(head: Iterable[Any], rows: Rows) -> str:
    """A table for a terminal; columns of numbers are aligned right."""
    rows = [list(row) for row in rows]
    cells = [[text(cell) for cell in line] for line in (list(head), *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(isinstance(x, int | float) for x in column) for column in zip(*rows, strict=True)]
    right = right or [False] * len(widths)
    lines = (
        (x.rjust(w) if numeric else x.ljust(w) for x, w, numeric in zip(line, widths, right, strict=True))
        for line in cells
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def tag(name: str, inside: str, **attributes: str) -> str:
    """An HTML element; `inside` is HTML, attributes are escaped; `class_` is written class."""
    listed = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(v)}"' for key, v in attributes.items())
    return f"<{name}{listed}>{inside}</{name}>"


def html_table(caption: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML, whose first column heads the rows, in a box that scrolls on a narrow screen."""
    first = tag("tr", "".join(tag("th", cell, scope="col") for cell in head))
    body = "".join(
        tag("tr", tag("th", row[0], scope="row") + "".join(tag("td", cell) for cell in row[1:]))
        for row in map(list, rows)
    )
    inside = tag("caption", html.escape(caption)) + tag("thead", first) + tag("tbody", body)
    box = tag(
        "div", tag("table", inside, class_="table"), class_="scroll", tabindex="0", role="region", aria_label=caption
    )
    return f"\n{box}\n"


def finite(value: Any) -> Any:
    """A value as JSON has it: NaN and infinity are null there."""
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    if value is None or isinstance(value, str | int):
        return value
    return float(value) if math.isfinite(value) else None
