"""What students kept of their teacher's MRR on the graphs where that was measured; `budget.plan` chooses by it.

Two files lie beside this one. advice.csv, by `python -m kgdistil.paper.kept`: students of few dimensions on the small
graphs, one row for each graph and dimension, RotatE, the distilled or undistilled student with the better validation
MRR, test MRR before its numbers are rounded. kept.csv, by `python -m kgdistil.paper.tables`: what
`frontier.kept` says of WN18RR and FB15k-237, students of few bits and of few floats by test MRR, and `kept_elsewhere`
of other graphs: by test MRR where `bench.large` has a record, else by the validation MRR of a search.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kgdistil.distillation import rule
from kgdistil.graph import Graph

ALIKE = 2  # places of a share that tell students from one another
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


def frontier(graph: Graph, hubs: bool = False, sized: bool = True) -> pd.DataFrame:
    """What `frontier.kept` found of graphs like this one, the best first; empty where nothing ran.

    Of each size, the students of the graph whose figures are nearest (`rule.distance`), of those where it was
    measured. Sizes compare as on the nearest graph of most sizes, whose best students keep `order`, and students of a
    size by the share of its best one; of those alike the largest comes first, whose teacher is larger, too. A column
    `told` says it in words.

    Args:
        hubs: a few of very many entities stand in many triples; what was measured on such a graph, beside entities
            that are whole, counts for such graphs only.
        sized: for a budget of bytes: few floats only where no few bits of that size kept as much on the same graph.
    """
    try:
        table = pd.read_csv(KEPT)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return pd.DataFrame(columns=["kept", "bytes"])
    if "hubs" in table and not hubs:
        table = table[table["hubs"] != 1]
    if sized:
        few = table["kept"].where(table["group"] > 0).groupby([table["graph"], table["bytes"]]).transform("max")
        table = table[(table["group"] > 0) | ~(table["kept"] <= few)]
    own, known = rule.figures(graph), rule.rule()
    scale = known["scale"] if known else dict.fromkeys(own, 1.0)
    table = table.assign(far=[rule.distance(own, row, scale) for row in table.to_dict("records")])
    sizes = table.groupby("graph")["bytes"].transform("nunique")
    whole = table[sizes == sizes.max()]
    whole = whole[whole["far"] == whole["far"].min()]
    table["order"] = table["bytes"].map(whole.groupby("bytes")["kept"].max())
    table = table[table["far"] == table.groupby("bytes")["far"].transform("min")].dropna(subset="order")
    table["order"] *= table["kept"] / table.groupby("bytes")["kept"].transform("max")
    table["order"] = table["order"].round(ALIKE)
    table = table.sort_values(["order", "bytes", "kept"], ascending=False)
    return table.assign(
        told=[
            f"on {row.graph}, the measured graph most like this one, a student of {row.bytes} bytes an entity kept "
            f"{row.kept:.0%} of its teacher's MRR; what it is on this graph is measured below"
            for row in table.itertuples()
        ]
    )
