"""Every table and figure of the paper beside ours, from `results/` and nothing else.

`build` makes the frames; `python -m kgdistil.paper.tables` writes them to `results/tables/`, and a test fails when
what is committed there differs.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from kgdistil import records
from kgdistil.answer.files import write_text
from kgdistil.compress.product import SIXTEEN
from kgdistil.compress.size import row_bytes
from kgdistil.distillation import advice
from kgdistil.distillation.statistics import bootstrap
from kgdistil.errors import run_command
from kgdistil.paper import constrained, objectives
from kgdistil.paper.bench.scan import scan_path
from kgdistil.paper.cells import (
    DIMS,
    GRAPHS,
    PAPER_MODELS,
    PROTOCOLS,
    Cell,
    cells_of,
    table_cells,
)
from kgdistil.paper.claims import claims_table
from kgdistil.paper.frontier import against_distilled, kept, kept_elsewhere, points
from kgdistil.paper.reading import TABLES, Ours, benchmark, figure2, folder, paper, record_of, table5, value, written
from kgdistil.paper.recipe import read_search, start, trials, with_needs


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
            rows.append(
                {
                    "protocol": protocol,
                    "dataset": r.dataset,
                    "model": r.model,
                    "dim": int(r.dim),
                    "method": r.method,
                    "metric": r.metric,
                    "paper": r.value,
                    "ours": mean,
                    "difference": None if mean is None else mean - r.value,
                    "seeds": len(values),
                    "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    "run": records[0]["id"] if records else "not run",
                    "cell": str(Cell(protocol, r.dataset, r.model, r.method, int(r.dim))),
                }
            )
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
                rows.append(
                    {
                        "cell": str(cell),
                        "model": cell.model,
                        "dim": cell.dim,
                        "method": cell.method,
                        "candidates": candidates,
                        "side": side,
                        **metrics,
                        "paper": theirs[cell.model, cell.method, cell.dim],
                        "run": found["id"],
                    }
                )
    return pd.DataFrame(rows)


def reciprocal_ranks(record: dict[str, Any]) -> np.ndarray:
    """Mean of a test triple's two reciprocal ranks, float [n]: their mean is the MRR."""
    return records.read_ranks(record["id"]).reciprocal()


def significance(ours: Ours) -> pd.DataFrame:
    """DS against no-DS and against −S2 for every student, by a paired bootstrap over test triples (seed 0)."""
    rows = []
    for protocol in PROTOCOLS:
        for dataset in GRAPHS:
            for model in PAPER_MODELS:
                for dim in DIMS:
                    for rival in ("no-DS", "-S2"):
                        pair = [Cell(protocol, dataset, model, method, dim) for method in (rival, "DS")]
                        records = [ours(cell) for cell in pair]
                        if None in records:
                            continue
                        first, second = map(reciprocal_ranks, records)
                        low, high, p = bootstrap(first, second)
                        before, after = (value(r, "mrr") for r in records)
                        rows.append(
                            {
                                "protocol": protocol,
                                "dataset": dataset,
                                "model": model,
                                "dim": dim,
                                "rival": rival,
                                "rival_mrr": before,
                                "ds_mrr": after,
                                "difference": after - before,
                                "low": low,
                                "high": high,
                                "p": p,
                                "rival_run": records[0]["id"],
                                "ds_run": records[1]["id"],
                            }
                        )
    return pd.DataFrame(rows)


def whole_lists(ours: Ours) -> pd.DataFrame:
    """What going on with whole lists added to teachers and students that have a start, by a paired bootstrap."""
    rows = []
    for dataset in GRAPHS:
        for cell in (c for c in table_cells("tuned", dataset, ("no-DS", "-S2")) if start(c)):
            records = [ours(c) for c in (start(cell), cell)]
            if None in records:
                continue
            first, second = map(reciprocal_ranks, records)
            low, high, p = bootstrap(first, second)
            before, after = (value(r, "mrr") for r in records)
            rows.append(
                {
                    "dataset": dataset,
                    "model": cell.model,
                    "dim": cell.dim,
                    "method": cell.method,
                    "start_mrr": before,
                    "mrr": after,
                    "difference": after - before,
                    "low": low,
                    "high": high,
                    "p": p,
                    "start_run": records[0]["id"],
                    "run": records[1]["id"],
                }
            )
    return pd.DataFrame(rows)


# ---- figures --------------------------------------------------------------------------------------------------------
def figure1(ours: Ours, protocol: str = "tuned") -> pd.DataFrame:
    """MRR, size and seconds to rank the test split over the dimension, of a model trained alone."""
    seconds, rows = {(r["model"], r["dim"]): r["seconds"] for r in benchmark().get("growth", [])}, []
    for cell in cells_of("figure1", protocol):
        if record := ours(cell):
            rows.append(
                {
                    "model": cell.model,
                    "dim": cell.dim,
                    "mrr": value(record, "mrr"),
                    "parameters": record["parameters"],
                    "seconds": seconds.get((cell.model, cell.dim)),
                    "run": record["id"],
                }
            )
    return pd.DataFrame(rows)


def figure3(ours: Ours, protocol: str = "tuned") -> pd.DataFrame:
    """Validation and test MRR over epochs with and without the teacher, as `curves`."""
    return curves(ours, cells_of("figure3", protocol)).drop(columns=["dataset", "model", "dim"], errors="ignore")


def behind(ours: Ours, *tables: pd.DataFrame) -> pd.DataFrame:
    """Curves (`curves`, seed 0) of the tuned students whose mean MRR in these tables is no higher with a teacher."""
    cells = []
    for table in tables:
        tuned = table[(table["protocol"] == "tuned") & (table["metric"] == "mrr")]
        pairs = tuned.pivot(index=["dataset", "model", "dim"], columns="method", values="ours")
        pairs = pairs[["no-DS", "DS"]].dropna()
        for dataset, model, dim in pairs.index[pairs["DS"] <= pairs["no-DS"]]:
            cells += [Cell("tuned", dataset, model, method, dim) for method in ("no-DS", "-S2", "DS")]
    return curves(ours, cells).drop(columns="test_mrr", errors="ignore")


def curves(ours: Ours, cells: Iterable[Cell]) -> pd.DataFrame:
    """Validation and test MRR over the epochs of cells; stage 2 (DS) goes on where stage 1 (−S2) of its size ends.

    `part` is "start" for the epochs of the run that a cell goes on from, where it has one.
    """
    rows: list[dict[str, Any]] = []
    ended: dict[tuple[str, str, int], int] = {}
    for cell in cells:
        links = [link for link in (start(cell), cell) if link]
        records = [ours(link) for link in links]
        if None in records:
            continue
        student = cell.dataset, cell.model, cell.dim
        offset = ended.get(student, 0) if cell.method == "DS" else 0
        for link, record in zip(links, records, strict=True):
            part = "whole" if link == cell else "start"
            for point in record["curve"]:
                rows.append(
                    {
                        "dataset": cell.dataset,
                        "model": cell.model,
                        "dim": cell.dim,
                        "method": cell.method,
                        "part": part,
                        "epoch": offset + point["epoch"],
                        "valid_mrr": point["valid_mrr"],
                        "test_mrr": point.get("test_mrr"),
                        "run": record["id"],
                    }
                )
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
            if paper_says is not None and cell.teacher_size == 64:
                mrr = value(record, "mrr")
                rows.append(
                    {
                        "figure": number,
                        "protocol": protocol,
                        "cell": str(cell),
                        "paper": paper_says,
                        "ours": mrr,
                        "difference": None if mrr is None else mrr - paper_says,
                        "run": record["id"] if record else "not run",
                    }
                )
    return pd.DataFrame(rows)


def quality(dataset: str = "wn18rr", model: str = "RotatE") -> pd.DataFrame:
    """Test MRR against bytes of an entity: kind ("ours", "paper" or "published"), method, model, bytes, mrr, run, seeds
    and their deviation.

    Ours are the tuned cells of `model` and, with the methods of `methods.OF_BYTES`, students of few bits; published
    models of any dimension have no bytes.
    """
    cells = written("table3" if dataset == "wn18rr" else "table4")
    cells = cells[(cells["protocol"] == "tuned") & (cells["model"] == model) & (cells["metric"] == "mrr")]
    cells = cells.assign(bytes=[row_bytes(model, dim) for dim in cells["dim"]])
    few = written("frontier")
    few = few[(few["dataset"] == dataset) & few["method"].isin(("distilled", "paths", "rounded"))] if len(few) else few
    said = pd.read_csv(records.results_folder() / "published.csv")
    said = said[said["dataset"] == dataset]
    parts = [
        cells.assign(kind="paper", mrr=cells["paper"], run="", seeds=1),
        cells.assign(kind="ours", mrr=cells["ours"]).dropna(subset=["mrr"]),
        few.assign(kind="ours"),
        said.assign(kind="published", bytes=4 * said["floats"], method=""),
    ]
    columns = ["kind", "method", "model", "bytes", "mrr", "run", "seeds", "deviation"]
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
    path = scan_path(dataset)
    if not path.is_file():
        return pd.DataFrame(columns=SPEED)
    frame = pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["rows"])
    for model in ("ComplEx", "RotatE"):
        large = frame[(frame["form"] == "float32") & (frame["model"] == model) & (frame["dim"] == 64)]
        frame[model.lower()] = frame["what"].map(large.set_index("what")["microseconds"]) / frame["microseconds"]
    frame = frame[frame["run"].notna()]
    found = {run: records.read_record(records.record_path(run)) for run in frame["run"].unique()}
    frame["mrr"] = [value(found[run], "mrr") for run in frame["run"]]
    words = [FORMS.get(form, form) for form in frame["form"]]
    frame["label"] = [f"{r.model}, d = {r.dim}, {word}" for r, word in zip(frame.itertuples(), words)]
    return frame.assign(form=words, what=frame["what"].map(TASKS))[SPEED]


def of_both(make: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """A frame of `frontier` or `objectives` for both graphs."""
    frames = {dataset: make(dataset) for dataset in GRAPHS}
    return pd.concat([f.assign(dataset=d) for d, f in frames.items() if len(f)] or [pd.DataFrame({"dataset": []})])


def choices() -> pd.DataFrame:
    """What a budget chooses from: students of these graphs and of others."""
    return pd.concat([of_both(kept).drop(columns="dataset"), kept_elsewhere()])


def as_csv(frame: pd.DataFrame) -> str:
    """CSV with six significant digits, so that it reads and compares well."""
    text = io.StringIO()
    frame.to_csv(text, index=False, float_format="%.6g", lineterminator="\n")
    return text.getvalue()


def not_run(cells: Iterable[Cell]) -> list[str]:
    """Addresses of the cells, and of those they need, that have no record."""
    return [str(cell) for cell in with_needs(cells) if record_of(cell) is None]


ONE_CORE = "one core"


def threads(record: dict[str, Any]) -> int | None:
    """Threads of the processor that a run was trained on; None for one that was trained on a GPU."""
    if "threads" in record:
        return record["threads"]
    found = re.search(r", (\d+) thread\(s\)$", record["device"])  # where records of before 0.2 have them
    return int(found[1]) if found else None


def hours(number: int, protocol: str) -> dict[str, float]:
    """Hours that the recorded runs of Table 3, 4 or 6 took, with what they need and their searches.

    By what they were spent on: ONE_CORE, a run of n threads counting n times, and each GPU by its name.
    """
    cells = with_needs(cells_of(f"table{number}", protocol))
    runs = {record["id"]: record for record in map(record_of, cells) if record}
    for cell in cells:
        found = read_search(cell)
        runs |= {trial.run_id: found[trial.run_id] for trial in trials(cell) or () if trial.run_id in found}
    spent = {ONE_CORE: 0.0}
    for record in runs.values():
        cores = threads(record)
        on = record["device"] if cores is None else ONE_CORE
        spent[on] = spent.get(on, 0.0) + (cores or 1) * record["seconds"] / 3600
    return spent


def main() -> int:
    """Write `results/tables/*.csv`, and the frontier that a budget chooses from."""
    written = {folder() / f"{name}.csv": frame for name, frame in build().items()}
    of_checkout = records.results_folder() == records.root() / "results"  # else the package's own file stays
    written[advice.KEPT if of_checkout else folder() / advice.KEPT.name] = choices()
    for path, frame in written.items():
        write_text(path, as_csv(frame))
        print(f"written: {records.shown(path)}, {len(frame)} rows")
    return 0


if __name__ == "__main__":
    run_command(main)
