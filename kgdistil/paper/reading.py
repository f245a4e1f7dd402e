"""The paper's numbers and our records, cell by cell: what tables and claims are made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from kgdistil import records
from kgdistil.paper.cells import Cell, cells_of
from kgdistil.paper.recipe import config

METRICS = ("mrr", "hits@10", "hits@3", "hits@1")  # in the paper's order
TABLES = {3: "wn18rr", 4: "fb15k-237", 6: "wn18rr"}


# ---- reading --------------------------------------------------------------------------------------------------------
def folder() -> Path:
    return records.results_folder() / "tables"


def paper() -> pd.DataFrame:
    """The paper's numbers, one a row: table, dataset, model, dim, method, metric, value."""
    return pd.read_csv(records.results_folder() / "paper.csv", dtype={"dim": "Int64"})


def record_of(cell: Cell) -> dict[str, Any] | None:
    """The cell's record; None where it has not been run."""
    found = config(cell)
    return records.read_record(records.record_path(found.run_id)) if found else None


class Ours:
    """Our records by cell, read once."""

    def __init__(self) -> None:
        self.records: dict[Cell, dict[str, Any] | None] = {}

    def __call__(self, cell: Cell) -> dict[str, Any] | None:
        if cell not in self.records:
            self.records[cell] = record_of(cell)
        return self.records[cell]

    def seeds(self, cell: Cell, most: int = 10) -> list[dict[str, Any]]:
        """Records of the cell with seeds 0, 1, 2, … as far as they go."""
        found = []
        for seed in range(most):
            record = self(replace(cell, seed=seed))
            if record is None:
                break
            found.append(record)
        return found


def value(record: dict[str, Any] | None, metric: str, side: str = "both") -> float | None:
    return record["test"][side][metric] if record else None


def benchmark() -> dict[str, Any]:
    """What `python -m kgdistil.paper.bench` left."""
    return json.loads((records.results_folder() / "bench" / "bench.json").read_text(encoding="utf-8"))


def table5(said: pd.DataFrame) -> pd.DataFrame:
    """Parameters and inference time of 93,003 triples, from the benchmark's file."""
    measured = {(r["model"], r["dim"]): r for r in benchmark()["inference"]}
    wide = said[said["table"] == 5].pivot_table(index=["model", "dim"], columns="metric", values="value", sort=False)
    rows = []
    for (model, dim), theirs in wide.iterrows():
        own = measured[model, dim]
        rows.append(
            {
                "model": model,
                "dim": dim,
                "parameters_paper": theirs["parameters"],
                "parameters": own["parameters"],
                "seconds_paper": theirs["seconds"],
                "seconds": own["seconds"],
                "speedup_paper": theirs["speedup"],
                "speedup": own["speedup"],
                "bytes": own["bytes"],
                "latency_p50_us": own["latency_p50_us"],
                "latency_p99_us": own["latency_p99_us"],
                "parameters_difference": own["parameters"] - int(theirs["parameters"]),
                "seconds_difference": own["seconds"] - theirs["seconds"],
                "speedup_difference": own["speedup"] - theirs["speedup"],
                "run": "bench/bench.json",
            }
        )
    return pd.DataFrame(rows).convert_dtypes()


# ---- one picture ----------------------------------------------------------------------------------------------------
def written(name: str) -> pd.DataFrame:
    """One of `results/tables/*.csv`; an empty frame for a table that has no row yet."""
    try:
        return pd.read_csv(folder() / f"{name}.csv")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def figure2(ours: Ours, protocol: str = "tuned") -> pd.DataFrame:
    """Students of one size from teachers of several."""
    rows = []
    for cell in cells_of("figure2", protocol):
        record, teacher = ours(cell), ours(cell.teacher)
        if record and teacher:
            rows.append(
                {
                    "teacher_dim": cell.teacher_size,
                    "dim": cell.dim,
                    "mrr": value(record, "mrr"),
                    "teacher_mrr": value(teacher, "mrr"),
                    "run": record["id"],
                }
            )
    return pd.DataFrame(rows)
