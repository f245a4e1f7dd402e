"""`python -m kgdistil.paper.bench.nested CELL --depth 4`: one training, every size, beside a training for each.

CELL is a distilled student of few bits of the frontier, the smallest size. The nested student is trained as it is, from
the same teacher, but with codes of that depth, and in as many passes as the students of all its sizes have together.
Each of those is the frontier's own, from whatever teacher it has; differences are those of test ranks, by the paired
bootstrap over triples. Results: `results/bench/nested.json`, by graph.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.compress.nested import DEPTHS, shorter
from kgdistil.distillation.statistics import bootstrap
from kgdistil.errors import ConfigError, run_command
from kgdistil.evaluation import KnownTriples, evaluate
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.paper.cells import Cell, parse
from kgdistil.paper.frontier import cells
from kgdistil.paper.reading import record_of
from kgdistil.paper.recipe import config
from kgdistil.paper.reproduce import log_to_terminal
from kgdistil.training.loop import run


def path() -> Path:
    return records.results_folder() / "bench" / "nested.json"


def rivals(cell: Cell, depth: int) -> dict[int, Cell]:
    """By depth the frontier's student of as many bytes, of the same method.

    Raises:
        ConfigError: one of them has no record, or no ranks.
    """
    made = {other.bytes: other for other in cells(cell.dataset) if other.method == cell.method}
    found = {d: made[d * cell.bytes] for d in DEPTHS if d <= depth and d * cell.bytes in made}
    for other in found.values():
        record = record_of(other)
        if record is None or not records.ranks_path(record["id"]).is_file():
            raise ConfigError(f"{other} has no ranks: `python -m kgdistil.paper.reproduce {other}`")
    return found


def measured(cell: Cell, depth: int, graph: Graph) -> dict[str, Any]:
    """The nested student's run, and a row for each of its sizes."""
    others, usual = rivals(cell, depth), config(cell)
    if usual is None or not usual.group:
        raise ConfigError(f"{cell} is no student of few bits: give one, as frontier/wn18rr/ComplEx/distilled/16/512")
    teacher = config(cell.teacher)
    if teacher is not None:
        run(teacher, graph)
    passes = usual.epochs * sum(d <= depth for d in DEPTHS)
    more = {"depth": depth, "epochs": passes, "check_every": max(1, passes // 5), "protocol": "nested"}
    done = run(usual.model_copy(update=more), graph)
    model, known, rows = done.load(graph), KnownTriples(graph.known, graph.num_relations), []
    for d in [d for d in DEPTHS if d <= depth]:
        ranks = {split: evaluate(shorter(model, d), graph, split, known=known) for split in ("valid", "test")}
        row: dict[str, Any] = {"depth": d, "bytes": d * cell.bytes}
        row |= {split: found.metrics() for split, found in ranks.items()}
        if d in others and (record := record_of(others[d])):
            low, high, p = bootstrap(records.read_ranks(record["id"]).reciprocal(), ranks["test"].reciprocal())
            gain = row["test"]["both"]["mrr"] - record["test"]["both"]["mrr"]
            row |= {"rival": str(others[d]), "rival_run": record["id"], "gain": gain, "low": low, "high": high, "p": p}
            row |= {"rival_mrr": record["test"]["both"]["mrr"]}
        rows.append(row)
        print(json.dumps({name: x for name, x in row.items() if name not in ("valid", "test")}), flush=True)
    return {"teacher_mrr": run(teacher, graph).test("mrr") if teacher else None, "run": done.record, "rows": rows}


def main(arguments: list[str] | None = None) -> int:
    """Measure one graph's nested student, and write it beside what is there.

    Returns:
        0.
    Raises:
        ConfigError: a cell that is no student of few bits, or whose rivals have no ranks.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.nested", description=__doc__.split("\n")[0])
    parser.add_argument("cell", type=parse, help="the smallest student, as frontier/wn18rr/ComplEx/distilled/16/512")
    parser.add_argument("--depth", type=int, choices=[d for d in DEPTHS if d > 1], default=4, help="codes of a group")
    options = parser.parse_args(arguments)
    log_to_terminal()
    graph = load(options.cell.dataset)
    found = measured(options.cell, options.depth, graph)
    report = json.loads(path().read_text(encoding="utf-8")) if path().is_file() else {}
    about: dict[str, Any] = {
        "cell": str(options.cell),
        "graph": {**graph.sizes(), "sha256": graph.sha256},
        "command": records.command(),
        "device": records.describe_device("cpu"),
        **records.provenance(),
    }
    write_json(path(), {**report, options.cell.dataset: {**about, **found}})
    return 0


if __name__ == "__main__":
    run_command(main)
