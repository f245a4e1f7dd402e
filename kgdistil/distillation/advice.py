"""What students kept of their teacher's MRR on the graphs where that was measured; `budget.plan` chooses by it.

Two files lie beside this one. advice.csv, by `python -m kgdistil.paper.kept`: students of few dimensions on the small
graphs, one row for each graph and dimension, RotatE, the distilled or undistilled student with the better validation
MRR, test MRR before its numbers are rounded. kept.csv, by `python -m kgdistil.paper.tables`: what
`frontier.kept` says of the large graphs, students of few bits and of few floats.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

MEASURED, KEPT = (Path(__file__).with_name(name) for name in ("advice.csv", "kept.csv"))


def kept(share: float) -> str:
    """In words, what students of that share of their teacher's dimension kept; the nearest share that was measured."""
    if not MEASURED.is_file():
        return "what such a student loses was not measured"
    table = pd.read_csv(MEASURED)
    shares = table["dim"] / table["teacher_dim"]
    near = min(shares.unique(), key=lambda x: abs(x - share))
    there = table[shares == near]
    low, high = f"{there['kept'].min():.0%}", f"{there['kept'].max():.0%}"
    span = low if low == high else f"{low} to {high}"
    return (
        f"students of 1/{1 / near:.0f} of the dimension kept {span} of their teacher's MRR on "
        f"{', '.join(there['graph'])}; what it is on this graph is measured below"
    )


def frontier(entities: int) -> pd.DataFrame:
    """What `frontier.kept` found on the measured graph nearest in size, the best first; empty where nothing ran.

    A column `told` says it in words.
    """
    try:
        table = pd.read_csv(KEPT)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return pd.DataFrame(columns=["kept", "bytes"])
    distance = (table["entities"] / entities).map(math.log).abs()
    table = table[distance == distance.min()].sort_values(["kept", "bytes"], ascending=False)
    return table.assign(
        told=[
            f"on {row.graph}, the measured graph nearest in size, a student of {row.bytes} bytes an entity kept "
            f"{row.kept:.0%} of its teacher's MRR; what it is on this graph is measured below"
            for row in table.itertuples()
        ]
    )
