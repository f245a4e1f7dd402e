"""`python -m kgdistil.paper.bench.budgets GRAPH …`: budgets below all that the frontier measured, in three ways.

Few floats of RotatE, as a budget buys where that model is asked for; few floats of ComplEx, rounded to 4 bits when they
are trained, with a teacher of more; codes that are learned, with a teacher of as many floats. Each is distilled by the
defaults, and what `distil` keeps is ranked as its file has it. `budget.below_the_measured` follows the validation MRR.
Results: `results/bench/budgets.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.distillation.budget import FINEST, Plan, of_few_bits, plan, room
from kgdistil.distillation.distil import distil
from kgdistil.errors import ConfigError, run_command
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load

COMMAND = "python -m kgdistil.paper.bench.budgets umls kinships nations"
BUDGETS = ("4B/entity", "8B/entity", "12B/entity", "1kB", "2kB", "4kB", "8kB")
PARTS = "valid", "test"
TEACHER = 64  # dimension of a teacher of more floats than its student


def path() -> Path:
    return records.results_folder() / "bench" / "budgets.json"


def ways(graph: Graph, budget: str) -> dict[str, Plan]:
    """The students that a budget has room for, by way."""
    limit, _, each = room(graph, budget)
    if limit is None:
        raise ConfigError(f"--budgets {budget}: give sizes, as 8B/entity or 2kB")
    found = {}
    if (finest := of_few_bits(graph, limit, "ComplEx", each, (FINEST,))) and finest.dim < TEACHER:
        found["rounded"] = replace(finest, teacher_dim=TEACHER)
    if codes := of_few_bits(graph, limit, "ComplEx", each):
        found["codes"] = codes
    return {"floats": plan(graph, budget, "RotatE"), **found}


def measure(graph: Graph, student: Plan) -> dict[str, Any]:
    """MRR of what is kept, as its file has it, and how long it took."""
    began = time.monotonic()
    shape = {name: getattr(student, name) for name in ("model", "dim", "precision", "teacher_dim")}
    done = distil(graph, **shape, paths=False, progress=False)
    known = KnownTriples(graph.known.cpu(), graph.num_relations)
    mrr = {part: float(rank(done.student.model, getattr(graph, part), known).reciprocal().mean()) for part in PARTS}
    kept = done.runs[done.chosen]
    about = {"bytes": student.bytes, "chosen": done.chosen, "seconds": time.monotonic() - began}
    return {**shape, **about, "mrr": mrr, "run": kept.id, "config": kept.record["config"]}


def main(arguments: list[str] | None = None) -> int:
    """Write the graphs' rows, each as it ends, and print them.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.budgets", description=__doc__.split("\n")[0])
    parser.add_argument("graphs", nargs="+", help="known graphs")
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, metavar="SIZE", help="[default: %(default)s]")
    options = parser.parse_args(arguments)
    place, rows = path(), list[dict[str, Any]]()
    about: dict[str, Any] = {"command": records.command(), "device": records.describe_device("cpu")}
    about |= {"threads": torch.get_num_threads(), "seed": 0, **records.provenance()}
    about["graphs"] = {}
    with tempfile.TemporaryDirectory(prefix="kgd-") as scratch:
        os.environ |= {f"KGDISTIL_{name.upper()}": str(Path(scratch) / name) for name in ("runs", "results")}
        for name in options.graphs:
            graph = load(name)
            about["graphs"][name] = {**graph.sizes(), "sha256": graph.sha256}
            for budget in options.budgets:
                for way, student in ways(graph, budget).items():
                    row = {"graph": name, "budget": budget, "way": way, **measure(graph, student)}
                    rows.append(row)
                    write_json(place, {**about, "rows": rows})
                    print(json.dumps({key: row[key] for key in ("graph", "budget", "way", "mrr")}), flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
