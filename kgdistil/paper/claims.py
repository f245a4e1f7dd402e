"""The sentences of the paper that hold numbers: what its tables give for them, and what ours give.

The numbers typed here are the paper's, each beside its sentence and how it follows from the tables; ours are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from kgdistil.paper.cells import DIMS, PAPER_MODELS, PROTOCOLS, Cell
from kgdistil.paper.reading import METRICS, Ours, figure2, table5, value

# ---- the sentences with numbers in them -----------------------------------------------------------------------------
Find = Callable[..., float]  # find(model, dim, method, metric="mrr"): a number of Table 3 or 6


def gain(find: Find, model: str, dim: int, metric: str = "mrr") -> float:
    """By how many per cent DS is above no-DS."""
    return 100 * (find(model, dim, "DS", metric) / find(model, dim, "no-DS", metric) - 1)


def share(find: Find, model: str, dim: int, method: str, metric: str, *whole: Any) -> float:
    """A number as a percentage of another: the teacher's, or that of `whole` (dim, method)."""
    return 100 * find(model, dim, method, metric) / find(model, *(whole or (64, "teacher")), metric)


def claims() -> list[tuple[str, str, float, Callable[[Find], float]]]:
    """Section, sentence, the number it prints (per cent), and how the number follows from Tables 3 and 6."""
    found: list[tuple[str, str, float, Callable[[Find], float]]] = []

    def add(where: str, sentence: str, said: float, how: Callable[[Find], float]) -> None:
        found.append((where, sentence, said, how))

    names = {"mrr": "MRR", "hits@10": "Hits@10", "hits@3": "Hits@3", "hits@1": "Hits@1"}
    said: float
    for metric, said in zip(METRICS, (39, 47, 29, 24)):
        add(
            "Q1",
            f"TransE d=8 no-DS reaches this share of its teacher's {names[metric]}",
            said,
            lambda f, m=metric: share(f, "TransE", 8, "no-DS", m),
        )
    for model, said in (("TransH", 71.0), ("ComplEx", 85.3)):
        add(
            "Q1",
            f"{model} MRR falls by this much from the teacher to d=8 no-DS",
            said,
            lambda f, x=model: 100 - share(f, x, 8, "no-DS", "mrr"),
        )
    for model, metric, said in (
        ("TransE", "mrr", 64.5),
        ("TransE", "hits@1", 255.6),
        ("ComplEx", "mrr", 197.8),
        ("ComplEx", "hits@10", 155.2),
        ("ComplEx", "hits@1", 209.1),
        ("RotatE", "mrr", 96.4),
        ("RotatE", "hits@1", 127.7),
    ):
        add(
            "Q1",
            f"{model} d=8: distillation improves {names[metric]} by",
            said,
            lambda f, x=model, m=metric: gain(f, x, 8, m),
        )
    for metric, said in zip(METRICS, (98.8, 63.4, 69.6, 162.0)):
        add(
            "Q1",
            f"d=8, average improvement of {names[metric]} over the four models",
            said,
            lambda f, m=metric: float(np.mean([gain(f, x, 8, m) for x in PAPER_MODELS])),
        )
    for metric, said in (("mrr", 10), ("hits@3", 10), ("hits@1", 25)):
        add(
            "Q1",
            f"TransH d=32 student surpasses its teacher's {names[metric]} by",
            said,
            lambda f, m=metric: share(f, "TransH", 32, "DS", m) - 100,
        )
    for metric, said in zip(METRICS, (91, 93, 94, 94)):
        add(
            "Q1",
            f"RotatE d=16 student reaches this share of its teacher's {names[metric]}",
            said,
            lambda f, m=metric: share(f, "RotatE", 16, "DS", m),
        )
    for metric, said in (("mrr", 23), ("hits@10", 28)):
        add(
            "Q3",
            f"RotatE d=8 without stage 1 reaches this share of DS's {names[metric]}",
            said,
            lambda f, m=metric: share(f, "RotatE", 8, "-S1", m, 8, "DS"),
        )
    for dim, said in ((32, 4), (16, 5), (8, 10)):
        add(
            "Q3",
            f"TransE d={dim}: MRR falls by this much without stage 2",
            said,
            lambda f, d=dim: 100 - share(f, "TransE", d, "-S2", "mrr", d, "DS"),
        )
    return found


def claims_table(ours: Ours, said: pd.DataFrame) -> pd.DataFrame:
    """Each claim: what the sentence says, what the paper's own tables give, what ours give, and in which unit.

    Ours are means over seeds, as in Table 3.
    """
    theirs = said[said["table"].isin([3, 6]) & (said["dataset"] == "wn18rr")]
    lookup = {(r.model, int(r.dim), r.method, r.metric): r.value for r in theirs[::-1].itertuples()}  # Table 3 wins

    def of_paper(model: str, dim: int, method: str, metric: str = "mrr") -> float:
        return lookup[model, dim, method, metric]

    def of_ours(protocol: str) -> Find:
        def find(model: str, dim: int, method: str, metric: str = "mrr") -> float:
            records = ours.seeds(Cell(protocol, "wn18rr", model, method, dim))
            if not records:
                raise LookupError(f"{protocol}/{model}/{method}/{dim} not run")
            return float(np.mean([value(record, metric) for record in records]))

        return find

    def recomputed(how: Callable[[Find], float], find: Find) -> float | None:
        try:
            return how(find)
        except LookupError:
            return None

    rows = []
    for where, sentence, number, how in claims():
        own = {protocol: recomputed(how, of_ours(protocol)) for protocol in PROTOCOLS}
        rows.append(
            {
                "section": where,
                "sentence": sentence,
                "unit": "%",
                "paper_says": number,
                "from_its_tables": how(of_paper),
                **own,
            }
        )
    return pd.DataFrame(rows + claims_of_cost(said) + claims_of_training(ours))


def claims_of_cost(said: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of `claims_table` that follow from Table 5; what a model costs depends on no protocol."""
    frame, rows = table5(said), []
    large = frame[frame["dim"] == 64].set_index("model")
    slower = {
        16: "d=64 takes this many times as long as d=16",
        8: "d=64 takes nearly or more than this many times as long as d=8 (the abstract: more than)",
    }
    for column, dim, number, sentence in (
        *(("parameters", d, 64 / d, f"d={d}: parameters, and memory, fall by this many times") for d in DIMS),
        *(("seconds", d, number, f"Inference: {slower[d]}, mean of four models") for d, number in ((16, 5), (8, 10))),
    ):
        small = frame[frame["dim"] == dim].set_index("model")
        theirs, own = ((large[c] / small[c]).mean() for c in (f"{column}_paper", column))
        rows.append(
            {
                "section": "Q2",
                "sentence": sentence,
                "unit": "×",
                "paper_says": number,
                "from_its_tables": theirs,
                "tuned": own,
                "paper": own,
            }
        )
    return rows


def claims_of_training(ours: Ours) -> list[dict[str, Any]]:
    """Rows of `claims_table` that the paper reads off Figures 2 and 3, which it prints as pictures without numbers."""

    def enough(protocol: str) -> float | None:
        """Epochs of stage 2 after which validation MRR is within .001 of its best."""
        record = ours(Cell(protocol, "fb15k-237", "RotatE", "DS", 32))
        best = max(point["valid_mrr"] for point in record["curve"]) if record else 0
        return next(p["epoch"] for p in record["curve"] if p["valid_mrr"] > best - 0.001) if record else None

    def ratio(protocol: str) -> float | None:
        """Dimension of the teacher with the best student of 8, by that of the student."""
        frame = figure2(ours, protocol)
        frame = frame[frame["dim"] == 8] if len(frame) else frame
        return frame.loc[frame["mrr"].idxmax(), "teacher_dim"] / 8 if len(frame) > 1 else None

    rows = []
    for where, sentence, unit, number, how in (
        ("Q2", "Figure 3: epochs that are enough for stage 2 to converge", "epochs", 50, enough),
        ("Q1", "Figure 2: the best student of 8 dimensions has a teacher this many times as large", "×", 8, ratio),
    ):
        rows.append(
            {
                "section": where,
                "sentence": sentence,
                "unit": unit,
                "paper_says": number,
                "from_its_tables": None,
                **{protocol: how(protocol) for protocol in PROTOCOLS},
            }
        )
    return rows
