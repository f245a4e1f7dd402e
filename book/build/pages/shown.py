"""What every page is made of: the written tables, the records, names for people, and pictures for both themes."""

from __future__ import annotations

import functools
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from book.build.html import save_svg, tag
from kgdistil import records
from kgdistil.answer.files import write_atomically
from kgdistil.paper.reading import written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {"mrr": "MRR", "hits@10": "Hits@10", "hits@3": "Hits@3", "hits@1": "Hits@1"}
METHOD_WORDS = {"teacher": "teacher", "no-DS": "no-DS", "DS": "DS", "-S1": "−S1", "-S2": "−S2"}


class Shown:
    """`results/` as a build found it.

    Attributes:
        source: the folder that Jupyter Book reads, where pictures are written.
        frames: `results/tables/*.csv` by name; an empty frame where nothing of a table has run.
        records: every run record by its id.
        executed: whether the build runs the notebooks; else they are shown as they are committed.
    """

    def __init__(self, source: Path, executed: bool = True):
        self.source, self.executed = source, executed
        self.frames: dict[str, pd.DataFrame] = _Tables()
        self.records: dict[str, dict[str, Any]] = {record["id"]: record for record in records.read_records()}


class _Tables(dict[str, pd.DataFrame]):
    """Tables read when they are first asked for."""

    def __missing__(self, name: str) -> pd.DataFrame:
        self[name] = written(name)
        return self[name]


def picture(shown: Shown, name: str, figure: Figure, alt: str, caption: str = "") -> str:
    """The figure as SVG, once for a light and once for a dark page."""
    images = ""
    for theme in ("light", "dark"):
        path = shown.source / "site" / "pictures" / f"{name}-{theme}.svg"
        write_atomically(path, functools.partial(save_svg, figure, theme))
        images += f'<img class="only-{theme}" src="../pictures/{path.name}" alt="{html.escape(alt)}">'
    wide = "picture wide" if figure.get_figwidth() > 9 else "picture"
    box = tag("div", images, class_="scroll", tabindex="0", role="region", aria_label=f"picture {name}")
    return "\n\n" + tag("figure", box + tag("figcaption", caption) * bool(caption), class_=wide) + "\n\n"


def none_yet(command: str) -> str:
    return (
        f"\n:::{{admonition}} Not run yet\n:class: note\nNo run of this kind is recorded. To make them: "
        f"`{command}`.\n:::\n"
    )
