"""Every table and figure of the paper beside ours, from `results/` and nothing else.

`build` makes the frames; `python -m kgdistil.tables` writes them to `results/tables/`, and a test fails when what is
committed there differs.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import advice, constrained, objectives, results
from .checkpoint import write_atomically
from .codes import SIXTEEN
from .errors import run_command
from .evaluation import bootstrap
from .frontier import against_distilled, kept, points
from .models import MODELS as MODEL_CLASSES
from .reproduce import (
    DIMS,
    GRAPHS,
    MODELS,
    PROTOCOLS,
    Cell,
    cells_of,
    config,
    read_search,
    table_cells,
    trials,
    with_needs,
)

METRICS = ("mrr", "hits@10", "hits@3", "hits@1")  # in the paper's order
TABLES = {3: "wn18rr", 4: "fb15k-237", 6: "wn18rr"}


# ---- reading --------------------------------------------------------------------------------------------------------
def folder() -> Path:
    return results.results_folder() / "tables"


def paper() -> pd.DataFrame:
    """The paper's numbers, one a row: table, dataset, model, dim, method, metric, value."""
    return pd.read_csv(results.results_folder() / "paper.csv", dtype={"dim": "Int64"})


def record_of(cell: Cell) -> dict[str, Any] | None:
    """The cell's record; None where it has not been run."""
    found = config(cell)
    return found and results.read_record(results.record_path(found.run_id))


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
    return record and record["test"][side][metric]


# ---- tables ---------------------------------------------------------------------------------------------------------
def table2(ours: Ours, said: pd.DataFrame) -> pd.DataFrame:
    """Sizes of the graphs as their loaded files give them."""
    rows = said[said["table"] == 2][["dataset", "metric", "value"]].rename(columns={"value": "paper"})
    read: dict[str, dict[str, Any]] = {}
    for protocol in PROTOCOLS:
        for name, dataset in (("table3", "wn18rr"), ("table4", "fb15k-237")):
            for cell in cells_of(name, protocol):
                if dataset not in read and (record := ours(cell)):
                    read[dataset] = record
    counted = [read[r.dataset]["graph"][r.metric] if r.dataset in read else None for r in rows.itertuples()]
    rows = rows.assign(paper=rows["paper"].astype(int), ours=pd.array(counted, dtype="Int64"))
    runs = [read[name]["id"] if name in read else "not run" for name in rows["dataset"]]
    return rows.assign(difference=rows["ours"] - rows["paper"], run=runs)


def results_table(ours: Ours, said: pd.DataFrame, number: int) -> pd.DataFrame:
    """Table 3, 4 or 6: one row for each protocol, cell and metric of the paper, ours beside it.

    `ours` is the mean over `seeds` seeds, `deviation` their standard deviation; both are empty where nothing ran.
    """
    rows = []
    for protocol in PROTOCOLS:
        for r in said[said["table"] == number].itertuples():
            records = ours.seeds(Cell(protocol, r.dataset, r.model, r.method, int(r.dim)))
            values = [value(record, r.metric) for record in records]
            mean = float(np.mean(values)) if values else None
            rows.append({
                "protocol": protocol, "dataset": r.dataset, "model": r.model, "dim": int(r.dim), "method": r.method,
                "metric": r.metric, "paper": r.value, "ours": mean,
                "difference": None if mean is None else mean - r.value,
                "seeds": len(values), "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "run": records[0]["id"] if records else "not run",
                "cell": str(Cell(protocol, r.dataset, r.model, r.method, int(r.dim))),
            })  # fmt: skip
    return pd.DataFrame(rows).convert_dtypes()


def benchmark() -> dict[str, Any]:
    """What `python -m kgdistil.bench` left."""
    return json.loads((results.results_folder() / "bench" / "bench.json").read_text(encoding="utf-8"))


def table5(said: pd.DataFrame) -> pd.DataFrame:
    """Parameters and inference time of 93,003 triples, from the benchmark's file."""
    measured = {(r["model"], r["dim"]): r for r in benchmark()["inference"]}
    wide = said[said["table"] == 5].pivot_table(index=["model", "dim"], columns="metric", values="value", sort=False)
    rows = []
    for (model, dim), theirs in wide.iterrows():
        own = measured[model, dim]
        rows.append({
            "model": model, "dim": dim,
            "parameters_paper": theirs["parameters"], "parameters": own["parameters"],
            "seconds_paper": theirs["seconds"], "seconds": own["seconds"],
            "speedup_paper": theirs["speedup"], "speedup": own["speedup"],
            "bytes": own["bytes"], "latency_p50_us": own["latency_p50_us"], "latency_p99_us": own["latency_p99_us"],
            "parameters_difference": own["parameters"] - int(theirs["parameters"]),
            "seconds_difference": own["seconds"] - theirs["seconds"],
            "speedup_difference": own["speedup"] - theirs["speedup"], "run": "bench/bench.json",
        })  # fmt: skip
    return pd.DataFrame(rows).convert_dtypes()


def sides(ours: Ours) -> pd.DataFrame:
    """Test metrics of every run of Tables 3, 4 and 6 on the head side, the tail side, both, and the mean of two ranks.

    The last is what the paper's text describes. This table settles which one its numbers can be.
    """
    rows = []
    for protocol in PROTOCOLS:
        cells = dict.fromkeys(c for n in TABLES for c in cells_of(f"table{n}", protocol))
        for cell in cells:
            if record := ours(cell):
                for side, found in record["test"].items():
                    about = {"cell": str(cell), "dataset": cell.dataset, "model": cell.model, "dim": cell.dim}
                    rows.append({**about, "method": cell.method, "side": side, **found, "run": record["id"]})
    return pd.DataFrame(rows)


def read_constrained(said: pd.DataFrame) -> pd.DataFrame:
    """Test metrics of Table 4's cells by what is ranked against (`constrained.CANDIDATES`) and by side; and the
    paper's MRR of the cell."""
    theirs = said[(said["table"] == 4) & (said["metric"] == "mrr")].set_index(["model", "method", "dim"])["value"]
    rows = []
    for cell in constrained.table4():
        found = constrained.read(cell)
        for candidates, by_side in (found or {"test": {}})["test"].items():
            for side, metrics in by_side.items():
                rows.append({"cell": str(cell), "model": cell.model, "dim": cell.dim, "method": cell.method,
                             "candidates": candidates, "side": side, **metrics,
                             "paper": theirs[cell.model, cell.method, cell.dim], "run": found["id"]})  # fmt: skip
    return pd.DataFrame(rows)


def reciprocal_ranks(record: dict[str, Any]) -> np.ndarray:
    """Mean of a test triple's two reciprocal ranks, float [n]: their mean is the MRR."""
    return results.read_ranks(record["id"]).reciprocal()


def significance(ours: Ours) -> pd.DataFrame:
    """DS against no-DS and against −S2 for every student, by a paired bootstrap over test triples (seed 0)."""
    rows = []
    for protocol in PROTOCOLS:
        for dataset in GRAPHS:
            for model in MODELS:
                for dim in DIMS:
                    for rival in ("no-DS", "-S2"):
                        pair = [Cell(protocol, dataset, model, method, dim) for method in (rival, "DS")]
                        records = [ours(cell) for cell in pair]
                        if None in records:
                            continue
                        low, high, p = bootstrap(*map(reciprocal_ranks, records))
                        before, after = (value(r, "mrr") for r in records)
                        rows.append({
                            "protocol": protocol, "dataset": dataset, "model": model, "dim": dim, "rival": rival,
                            "rival_mrr": before, "ds_mrr": after, "difference": after - before, "low": low,
                            "high": high, "p": p, "rival_run": records[0]["id"], "ds_run": records[1]["id"],
                        })  # fmt: skip
    return pd.DataFrame(rows)


def whole_lists(ours: Ours) -> pd.DataFrame:
    """What going on with whole lists added to teachers and students that have a start, by a paired bootstrap."""
    rows = []
    for dataset in GRAPHS:
        for cell in (c for c in table_cells("tuned", dataset, ("no-DS", "-S2")) if c.start):
            records = [ours(c) for c in (cell.start, cell)]
            if None in records:
                continue
            low, high, p = bootstrap(*map(reciprocal_ranks, records))
            before, after = (value(r, "mrr") for r in records)
            rows.append({
                "dataset": dataset, "model": cell.model, "dim": cell.dim, "method": cell.method, "start_mrr": before,
                "mrr": after, "difference": after - before, "low": low, "high": high, "p": p,
                "start_run": records[0]["id"], "run": records[1]["id"],
            })  # fmt: skip
    return pd.DataFrame(rows)


# ---- figures --------------------------------------------------------------------------------------------------------
def figure1(ours: Ours, protocol: str = "tuned") -> pd.DataFrame:
    """MRR, size and seconds to rank the test split over the dimension, of a model trained alone."""
    seconds, rows = {(r["model"], r["dim"]): r["seconds"] for r in benchmark().get("growth", [])}, []
    for cell in cells_of("figure1", protocol):
        if record := ours(cell):
            rows.append({"model": cell.model, "dim": cell.dim, "mrr": value(record, "mrr"),
                         "parameters": record["parameters"], "seconds": seconds.get((cell.model, cell.dim)),
                         "run": record["id"]})  # fmt: skip
    return pd.DataFrame(rows)


def figure2(ours: Ours, protocol: str = "tuned") -> pd.DataFrame:
    """Students of one size from teachers of several."""
    rows = []
    for cell in cells_of("figure2", protocol):
        record, teacher = ours(cell), ours(cell.teacher)
        if record and teacher:
            rows.append({"teacher_dim": cell.teacher_dim, "dim": cell.dim, "mrr": value(record, "mrr"),
                         "teacher_mrr": value(teacher, "mrr"), "run": record["id"]})  # fmt: skip
    return pd.DataFrame(rows)


def figure3(ours: Ours, protocol: str = "tuned") -> pd.DataFrame:
    """Validation and test MRR over epochs with and without the teacher, as `curves`."""
    return curves(ours, cells_of("figure3", protocol)).drop(columns=["dataset", "model", "dim"], errors="ignore")


def behind(ours: Ours, *tables: pd.DataFrame) -> pd.DataFrame:
    """Curves (`curves`, seed 0) of the tuned students whose mean MRR in these tables is no higher with a teacher."""
    cells = []
    for table in tables:
        table = table[(table["protocol"] == "tuned") & (table["metric"] == "mrr")]
        pairs = table.pivot(index=["dataset", "model", "dim"], columns="method", values="ours")
        pairs = pairs[["no-DS", "DS"]].dropna()
        for dataset, model, dim in pairs.index[pairs["DS"] <= pairs["no-DS"]]:
            cells += [Cell("tuned", dataset, model, method, dim) for method in ("no-DS", "-S2", "DS")]
    return curves(ours, cells).drop(columns="test_mrr", errors="ignore")


def curves(ours: Ours, cells: Iterable[Cell]) -> pd.DataFrame:
    """Validation and test MRR over the epochs of cells; stage 2 (DS) goes on where stage 1 (−S2) of its size ends.

    `part` is "start" for the epochs of the run that a cell goes on from, where it has one.
    """
    rows, ended = [], {}
    for cell in cells:
        links = [link for link in (cell.start, cell) if link]
        records = [ours(link) for link in links]
        if None in records:
            continue
        student = cell.dataset, cell.model, cell.dim
        offset = ended.get(student, 0) if cell.method == "DS" else 0
        for link, record in zip(links, records, strict=True):
            part = "start" if link == cell.start else "whole"
            for point in record["curve"]:
                rows.append({"dataset": cell.dataset, "model": cell.model, "dim": cell.dim, "method": cell.method,
                             "part": part, "epoch": offset + point["epoch"], "valid_mrr": point["valid_mrr"],
                             "test_mrr": point.get("test_mrr"), "run": record["id"]})  # fmt: skip
            offset += record["epochs"]
        if cell.method == "-S2":
            ended[student] = offset
    return pd.DataFrame(rows)


def figures_known(ours: Ours, said: pd.DataFrame) -> pd.DataFrame:
    """MRR of the cells of Figures 1 to 3 that stand in the paper's tables too; its figures print no numbers."""
    theirs = said[said["table"].isin([3, 4]) & (said["metric"] == "mrr")]
    theirs = {(r.dataset, r.model, r.method, int(r.dim)): r.value for r in theirs.itertuples()}
    rows = []
    for number, protocol in itertools.product((1, 2, 3), PROTOCOLS):
        for cell in cells_of(f"figure{number}", protocol):
            method = "teacher" if (number, cell.dim) == (1, 64) else cell.method  # the paper's one of 64 dimensions
            record, paper_says = ours(cell), theirs.get((cell.dataset, cell.model, method, cell.dim))
            if paper_says is not None and cell.teacher_dim == 64:
                mrr = value(record, "mrr")
                rows.append({"figure": number, "protocol": protocol, "cell": str(cell), "paper": paper_says,
                             "ours": mrr, "difference": None if mrr is None else mrr - paper_says,
                             "run": record["id"] if record else "not run"})  # fmt: skip
    return pd.DataFrame(rows)


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
    for metric, said in zip(METRICS, (39, 47, 29, 24)):
        add("Q1", f"TransE d=8 no-DS reaches this share of its teacher's {names[metric]}", said,
            lambda f, m=metric: share(f, "TransE", 8, "no-DS", m))  # fmt: skip
    for model, said in (("TransH", 71.0), ("ComplEx", 85.3)):
        add("Q1", f"{model} MRR falls by this much from the teacher to d=8 no-DS", said,
            lambda f, x=model: 100 - share(f, x, 8, "no-DS", "mrr"))  # fmt: skip
    for model, metric, said in (
        ("TransE", "mrr", 64.5), ("TransE", "hits@1", 255.6), ("ComplEx", "mrr", 197.8),
        ("ComplEx", "hits@10", 155.2), ("ComplEx", "hits@1", 209.1), ("RotatE", "mrr", 96.4),
        ("RotatE", "hits@1", 127.7),
    ):  # fmt: skip
        add("Q1", f"{model} d=8: distillation improves {names[metric]} by", said,
            lambda f, x=model, m=metric: gain(f, x, 8, m))  # fmt: skip
    for metric, said in zip(METRICS, (98.8, 63.4, 69.6, 162.0)):
        add("Q1", f"d=8, average improvement of {names[metric]} over the four models", said,
            lambda f, m=metric: float(np.mean([gain(f, x, 8, m) for x in MODELS])))  # fmt: skip
    for metric, said in (("mrr", 10), ("hits@3", 10), ("hits@1", 25)):
        add("Q1", f"TransH d=32 student surpasses its teacher's {names[metric]} by", said,
            lambda f, m=metric: share(f, "TransH", 32, "DS", m) - 100)  # fmt: skip
    for metric, said in zip(METRICS, (91, 93, 94, 94)):
        add("Q1", f"RotatE d=16 student reaches this share of its teacher's {names[metric]}", said,
            lambda f, m=metric: share(f, "RotatE", 16, "DS", m))  # fmt: skip
    for metric, said in (("mrr", 23), ("hits@10", 28)):
        add("Q3", f"RotatE d=8 without stage 1 reaches this share of DS's {names[metric]}", said,
            lambda f, m=metric: share(f, "RotatE", 8, "-S1", m, 8, "DS"))  # fmt: skip
    for dim, said in ((32, 4), (16, 5), (8, 10)):
        add("Q3", f"TransE d={dim}: MRR falls by this much without stage 2", said,
            lambda f, d=dim: 100 - share(f, "TransE", d, "-S2", "mrr", d, "DS"))  # fmt: skip
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
        rows.append({"section": where, "sentence": sentence, "unit": "%", "paper_says": number,
                     "from_its_tables": how(of_paper), **own})  # fmt: skip
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
        rows.append({"section": "Q2", "sentence": sentence, "unit": "×", "paper_says": number,
                     "from_its_tables": theirs, "tuned": own, "paper": own})  # fmt: skip
    return rows


def claims_of_training(ours: Ours) -> list[dict[str, Any]]:
    """Rows of `claims_table` that the paper reads off Figures 2 and 3, which it prints as pictures without numbers."""

    def enough(protocol: str) -> float | None:
        """Epochs of stage 2 after which validation MRR is within .001 of its best."""
        record = ours(Cell(protocol, "fb15k-237", "RotatE", "DS", 32))
        best = max(point["valid_mrr"] for point in record["curve"]) if record else 0
        return record and next(p["epoch"] for p in record["curve"] if p["valid_mrr"] > best - 0.001)

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
        rows.append({"section": where, "sentence": sentence, "unit": unit, "paper_says": number,
                     "from_its_tables": None, **{protocol: how(protocol) for protocol in PROTOCOLS}})  # fmt: skip
    return rows


# ---- one picture ----------------------------------------------------------------------------------------------------
def written(name: str) -> pd.DataFrame:
    """One of `results/tables/*.csv`; an empty frame for a table that has no row yet."""
    try:
        return pd.read_csv(folder() / f"{name}.csv")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def quality(dataset: str = "wn18rr", model: str = "RotatE") -> pd.DataFrame:
    """Test MRR against bytes of an entity: kind ("ours", "paper" or "published"), method, model, bytes, mrr, run.

    Ours are the tuned cells of `model` and, with the methods of `plots.FRONTIER`, students of few bits; published
    models of any dimension have no bytes.
    """
    cells = written("table3" if dataset == "wn18rr" else "table4")
    cells = cells[(cells["protocol"] == "tuned") & (cells["model"] == model) & (cells["metric"] == "mrr")]
    cells = cells.assign(bytes=4 * MODEL_CLASSES[model].entity_factor * cells["dim"])
    few = written("frontier")
    few = few[(few["dataset"] == dataset) & few["method"].isin(("distilled", "rounded"))] if len(few) else few
    said = pd.read_csv(results.results_folder() / "published.csv")
    said = said[said["dataset"] == dataset]
    parts = [
        cells.assign(kind="paper", mrr=cells["paper"], run=""),
        cells.assign(kind="ours", mrr=cells["ours"]).dropna(subset=["mrr"]),
        few.assign(kind="ours"),
        said.assign(kind="published", bytes=4 * said["floats"], method=""),
    ]
    columns = ["kind", "method", "model", "bytes", "mrr", "run"]
    return pd.concat([part.reindex(columns=columns) for part in parts if len(part)], ignore_index=True)


# ---- writing --------------------------------------------------------------------------------------------------------
def build() -> dict[str, pd.DataFrame]:
    """All frames by the name of their file."""
    ours, said = Ours(), paper()
    of_cells = {f"table{n}": results_table(ours, said, n) for n in TABLES}
    return {
        "table2": table2(ours, said),
        **of_cells,
        "table5": table5(said),
        "sides": sides(ours),
        "constrained": read_constrained(said),
        "significance": significance(ours),
        "behind": behind(ours, of_cells["table3"], of_cells["table4"]),
        "whole_lists": whole_lists(ours),
        "figure1": figure1(ours),
        "figure1_paper": figure1(ours, "paper"),
        "figure2": figure2(ours),
        "figure2_paper": figure2(ours, "paper"),
        "figure3": figure3(ours),
        "figures_known": figures_known(ours, said),
        "claims": claims_table(ours, said),
        "frontier": of_both(points),
        "frontier_gain": of_both(against_distilled),
        "frontier_speed": of_both(frontier_speed),
        "objectives": of_both(objectives.points),
    }


SPEED = ["label", "form", "bytes", "what", "microseconds", "complex", "rotate", "mrr", "run"]
TASKS = {"rank": "filtered rank", "top": "ten best answers"}
FORMS = {f"{SIXTEEN} vectors a group": "few bits", f"{SIXTEEN} vectors a group, low rank": "few bits of low rank"}


def frontier_speed(dataset: str) -> pd.DataFrame:
    """`results.scan_path` by model: microseconds of a query, how many times as fast as the float models of 64
    dimensions that is, and the test MRR of the run that was measured; rows of random weights are left out."""
    path = results.scan_path(dataset)
    if not path.is_file():
        return pd.DataFrame(columns=SPEED)
    frame = pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["rows"])
    for model in ("ComplEx", "RotatE"):
        large = frame[(frame["form"] == "float32") & (frame["model"] == model) & (frame["dim"] == 64)]
        frame[model.lower()] = frame["what"].map(large.set_index("what")["microseconds"]) / frame["microseconds"]
    frame = frame[frame["run"].notna()]
    records = {run: results.read_record(results.record_path(run)) for run in frame["run"].unique()}
    frame["mrr"] = [value(records[run], "mrr") for run in frame["run"]]
    words = [FORMS.get(form, form) for form in frame["form"]]
    frame["label"] = [f"{r.model}, d = {r.dim}, {word}" for r, word in zip(frame.itertuples(), words)]
    return frame.assign(form=words, what=frame["what"].map(TASKS))[SPEED]


def of_both(make: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """A frame of `frontier` or `objectives` for both graphs."""
    frames = {dataset: make(dataset) for dataset in GRAPHS}
    return pd.concat([f.assign(dataset=d) for d, f in frames.items() if len(f)] or [pd.DataFrame({"dataset": []})])


def as_csv(frame: pd.DataFrame) -> str:
    """CSV with six significant digits, so that it reads and compares well."""
    text = io.StringIO()
    frame.to_csv(text, index=False, float_format="%.6g", lineterminator="\n")
    return text.getvalue()


def not_run(cells: Iterable[Cell]) -> list[str]:
    """Addresses of the cells, and of those they need, that have no record."""
    return [str(cell) for cell in with_needs(cells) if record_of(cell) is None]


def core_hours(number: int, protocol: str) -> float:
    """Hours of one core that the recorded runs of Table 3, 4 or 6 took, with what they need and their searches."""
    cells = with_needs(cells_of(f"table{number}", protocol))
    spent = {record["id"]: record for record in map(record_of, cells) if record}
    for cell in cells:
        found = read_search(cell)
        spent |= {trial.run_id: found[trial.run_id] for trial in trials(cell) or () if trial.run_id in found}
    threads = {name: int(re.search(r"(\d+) thread", record["device"])[1]) for name, record in spent.items()}
    return sum(threads[name] * record["seconds"] for name, record in spent.items()) / 3600


def main() -> int:
    """Write `results/tables/*.csv`, and the frontier that a budget chooses from."""
    written = {folder() / f"{name}.csv": frame for name, frame in build().items()}
    written[advice.FRONTIER] = of_both(kept).drop(columns="dataset")
    for path, frame in written.items():
        write_atomically(path, lambda scratch, f=frame: Path(scratch).write_text(as_csv(f), encoding="utf-8"))
        print(f"written: {results.shown(path)}, {len(frame)} rows")
    return 0


if __name__ == "__main__":
    run_command(main)
