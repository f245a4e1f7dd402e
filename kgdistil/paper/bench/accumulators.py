"""`python -m kgdistil.paper.bench.accumulators [GRAPH …]`: Adagrad with one sum of squares a row beside one a number.

ComplEx of whole lists, sampled, set as a teacher of `recipes.few_bits` is. For each of the two the learning rate is the
one of the same few with the best validation MRR at the first seed; further seeds are trained at that rate, and a paired
bootstrap over test triples compares the two. With `--group 4` it is a student of few bits, trained alone through the
rounding. Results: `results/bench/accumulators.json`, by graph.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import numpy as np
import torch

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.config import make_config
from kgdistil.distillation.recipes import few_bits
from kgdistil.distillation.statistics import bootstrap
from kgdistil.errors import run_command
from kgdistil.evaluation import evaluate
from kgdistil.graph import NAMES, Graph
from kgdistil.graphs.datasets import load
from kgdistil.graphs.readers import read_graph
from kgdistil.training.engine import make_engine
from kgdistil.training.loop import Progress, advance, prepare

RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
KINDS = ("number", "row")


def trained(graph: Graph, values: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """One run's figures, and the reciprocal ranks [n, 2] of its test triples, or of a sample."""
    config = make_config(**values)
    engine = make_engine(*prepare(config, graph, None, None), config, graph)
    began, state = time.perf_counter(), Progress()
    while state.epoch < config.epochs:
        advance(engine, state)
    seconds = time.perf_counter() - began
    model = engine.as_saved()["student"]
    valid = evaluate(model, graph, "valid", sample=config.check_sample)
    test = evaluate(model, graph, "test", sample=config.final_sample)
    scores = {f"{split}_mrr": ranks.metrics()["both"]["mrr"] for split, ranks in (("valid", valid), ("test", test))}
    numbers = engine.state()["student.entities.v"].numel()
    row = {"accumulators": config.accumulators, "lr": config.lr, "seed": config.seed, **scores}
    return {**row, "numbers": numbers, "seconds": round(seconds, 1)}, test.reciprocal()


def compared(graph: Graph, options: argparse.Namespace) -> dict[str, Any]:
    """The runs on one graph, and the difference that one sum a row makes."""
    more = {"check_sample": options.sample, "final_sample": options.sample, "answers": 256}
    recipe = few_bits(graph.name, dim=options.dim, group=options.group, epochs=options.epochs, more=more)
    assert recipe.teacher is not None
    config = recipe.no_ds.model_copy(update={"epochs": options.epochs}) if options.group else recipe.teacher
    shared = config.model_dump()
    runs: list[dict[str, Any]] = []
    reciprocal: dict[str, list[np.ndarray]] = {}
    for kind in KINDS:
        tried = [trained(graph, {**shared, "accumulators": kind, "lr": lr}) for lr in options.rates]
        best, found = max(tried, key=lambda x: x[0]["valid_mrr"])
        others = [
            trained(graph, {**shared, "accumulators": kind, "lr": best["lr"], "seed": seed})
            for seed in range(1, options.seeds)
        ]
        reciprocal[kind] = [found, *(x for _, x in others)]
        runs += [row for row, _ in (*tried, *others)]
        print(json.dumps(runs[-len(tried) - len(others) :]), flush=True)
    number, row = (np.mean(reciprocal[kind], axis=0) for kind in KINDS)
    low, high, p = bootstrap(number, row)
    return {
        "graph": {"name": graph.name, **graph.sizes(), "sha256": graph.sha256},
        "config": shared,
        "rates": list(options.rates),
        "seeds": options.seeds,
        "runs": runs,
        "test_mrr": {kind: [float(x.mean()) for x in reciprocal[kind]] for kind in KINDS},
        "difference": {"row_less_number": float((row - number).mean()), "low": low, "high": high, "p": p},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure the graphs, and write them beside those that are there.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m kgdistil.paper.bench.accumulators", description=__doc__.split("\n")[0]
    )
    parser.add_argument("graphs", nargs="+", help="known graphs, folders or files")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--group", type=int, default=0, help="floats that share four bits; 0: float32")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--sample", type=int, default=5000, help="triples of valid, and of test, that are ranked")
    options = parser.parse_args(arguments)
    path = records.results_folder() / "bench" / "accumulators.json"
    for source in options.graphs:
        graph = load(source) if source.lower() in NAMES or os.path.isdir(source) else read_graph(source)
        about = {
            "command": records.command(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "device": records.describe_device("cpu"),
            "threads": torch.get_num_threads(),
            **records.provenance(),
        }
        report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        key = graph.name + (f"/group {options.group}" if options.group else "")
        report[key] = {**about, **compared(graph, options)}
        write_json(path, report)
        print(json.dumps({name: report[key][name] for name in ("test_mrr", "difference")}), flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
