"""Pieces of HTML: tables, links to records, signed differences, pictures for light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kgdistil.answer.rendering import html_table as html_table
from kgdistil.answer.rendering import tag as tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR = 0.01  # a difference of MRR or Hits@k that is called the same
# A picture is drawn once, in matplotlib's colours for a white page, and written as SVG twice. The copy for dark pages
# differs only in these colours, which would be too dark on black; all others stand out on both.
IN_THE_DARK = {
    "#262626": "#e6e6e6",
    "#555555": "#b0b0b0",
    "#777777": "#a0a0a0",
    "#0072b2": "#4a9fe8",
    "#56b4e9": "#a6dcff",
    "#7b3fbf": "#b98cf0",
    "#ffffff": "#121212",
}


# ---- pages ----------------------------------------------------------------------------------------------------------
def run_link(run: str, text: str = "") -> str:
    """A link to the copy of a record, of a run or of a graph's frontier, on the site; "not run" as it is."""
    if run == "not run" or not isinstance(run, str):
        return tag("span", "not run", class_="not-run")
    if run.endswith(".json"):
        return tag("a", text or run, href=f"../{run}", title=run)
    return tag("a", text or run.rsplit("-", 1)[1], href=f"../runs/{run}.json", title=run)


def ranks_link(run: str) -> str:
    """A link to the copy of what `constrained` recorded of a run."""
    return tag("a", "record", href=f"../constrained/{run}.json", title=run)


def difference(value: float, digits: int = 3, near: float = NEAR) -> str:
    """A signed number; colour, sign and, for the eye that sees neither, an arrow say which way it goes."""
    kind, arrow = ("same", "≈") if abs(value) < near else ("above", "▲") if value > 0 else ("below", "▼")
    return tag("span", f"{arrow} {value:+.{digits}f}".replace("-", "−"), class_=kind)


def number(value: Any, digits: int = 3) -> str:
    return "–" if pd.isna(value) else f"{value:,.{digits}f}"


def linked(value: Any, run: str, text: str = "record") -> str:
    """A metric and the record that it comes from."""
    return f"{number(value)} {run_link(run, text)}"


def interval(row: Any) -> str:
    """The ends of a bootstrap interval, where there is one."""
    return "–" if pd.isna(row.low) else f"{row.low:+.3f} … {row.high:+.3f}".replace("-", "−")


def beside(row: Any) -> str:
    """Ours, and below it the paper's and the difference."""
    theirs = tag("small", f"paper {row.paper:.3f}")
    if pd.isna(row.ours):
        return tag("span", "–", class_="not-run") + "<br>" + theirs
    spread = "" if pd.isna(row.deviation) else tag("small", f" ± {row.deviation:.3f}")
    return f"{tag('strong', number(row.ours))}{spread}<br>{difference(row.difference)}<br>{theirs}"


def again(row: Any) -> str:
    """The record of a cell and the command that makes it."""
    seeds = f", {row.seeds} seeds" if row.seeds > 1 else ""
    return f"{run_link(row.run)}{seeds}{unfolds('reproduce', row.cell)}"


def unfolds(module: str, cell: str) -> str:
    """The command that makes something of a cell."""
    command = tag("code", f"python -m kgdistil.paper.{module} {cell} --again")
    return tag("details", tag("summary", "command", aria_label=f"command for {cell}") + command)


def save_svg(figure: Figure, theme: str, path: str) -> None:
    """The figure on nothing; its greys and dark blue turned light for a dark page."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "kgdistil"}):
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
    if theme == "dark":
        text = Path(path).read_text(encoding="utf-8")
        for light, dark in IN_THE_DARK.items():
            text = text.replace(light, dark)
        text = text.replace("<svg ", '<svg fill="#e6e6e6" ', 1)  # of what has no colour, black otherwise
        Path(path).write_text(text, encoding="utf-8")
