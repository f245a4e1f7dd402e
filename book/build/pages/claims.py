"""The paper's sentences that have a number, beside what its tables and ours give."""

from __future__ import annotations

import html

import pandas as pd

from book.build.html import difference, html_table
from book.build.pages.shown import Shown

NEAR = {"%": 3.0, "×": 0.5, "epochs": 5.0}  # a difference that is called the same, by unit


def near(shown: Shown) -> str:
    """What is called the same, in words."""
    return ", ".join(f"{value:g}\u00a0{'percentage points' if unit == '%' else unit}" for unit, value in NEAR.items())


def claims(shown: Shown) -> str:
    frame = shown.frames["claims"]

    def written(x: float, unit: str, digits: int = 1) -> str:
        return f"{x:.{digits}f}".removesuffix(".0" * (unit != "%")) + ("" if unit == "×" else "\u00a0") + unit

    rows = [
        [
            html.escape(r.sentence),
            r.section,
            f"{r.paper_says:g}" + ("" if r.unit == "×" else "\u00a0") + r.unit,
            "not in them" if pd.isna(r.from_its_tables) else written(r.from_its_tables, r.unit),
            *(
                "not run" if pd.isna(x) else f"{written(x, r.unit)} {difference(x - r.paper_says, 1, NEAR[r.unit])}"
                for x in (r.tuned, r.paper)
            ),
        ]
        for r in frame.itertuples()
    ]
    head = ["sentence", "section", "it says", "its tables give", "ours, tuned", "ours, as printed"]
    return html_table("Sentences with numbers", head, rows)
