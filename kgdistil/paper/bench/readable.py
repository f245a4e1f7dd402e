"""`python -m kgdistil.paper.bench.readable`: what no compiler costs, the kernels beside the readable path they replace.

Epochs of a student alone and filtered ranking, in rounds that take turns, on the CPU, on a small graph and a larger
one. Results: `results/bench/readable.json`, whose ranges the log line of a machine without a compiler gives.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from kgdistil import kernels, records
from kgdistil.answer.files import write_json
from kgdistil.config import make_config
from kgdistil.errors import ConfigError, run_command
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.models import build_model
from kgdistil.training.native import NativeEngine
from kgdistil.training.reference import ReferenceEngine

GRAPHS, MODELS, DIMS = ("umls", "wn18rr"), ("TransE", "TransH", "ComplEx", "RotatE"), (64, 8)
TRAINED, RANKED = 1 << 14, 256  # triples at most: of an epoch, of a ranking


def ratio(ways: list[partial[Any]], rounds: int) -> dict[str, float]:
    """Median seconds of the compiled and the readable way, after a round that warms up, and how many times longer."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for way, so_far in zip(ways, taken):
            began = time.perf_counter()
            way()
            so_far.append(time.perf_counter() - began)
    compiled, readable = (statistics.median(so_far[1:]) for so_far in taken)
    return {"compiled": compiled, "readable": readable, "ratio": readable / compiled}


def measure(graph: Graph, rounds: int) -> list[dict[str, Any]]:
    """One row for each model and dimension: seconds of an epoch of at most `TRAINED` triples, and of a ranking.

    Raises:
        ConfigError: without a compiler there is nothing to compare.
    """
    if kernels.compiler() is None:
        raise ConfigError("this benchmark needs the compiled kernels: install g++ or clang++")
    kernels.keep_freed_memory()
    rows, known = [], KnownTriples(graph.known, graph.num_relations)
    train, test = graph.train[:TRAINED], graph.test[:RANKED]
    for name, dim in tqdm([(name, dim) for dim in DIMS for name in MODELS], desc=graph.name, disable=None):
        config = make_config(dataset=graph.name, model=name, dim=dim)
        model = build_model(name, graph.num_entities, graph.num_relations, dim, **config.model_options)
        engines = [kind(model, None, train, config) for kind in (NativeEngine, ReferenceEngine)]
        rates = torch.zeros(engines[0].steps, dtype=torch.float64)
        training = ratio([partial(engine.epoch, 0, rates) for engine in engines], rounds)
        ranking = ratio([partial(rank, model, test, known, native=native) for native in (True, False)], rounds)
        rows.append({"graph": graph.name, "model": name, "dim": dim, "training": training, "ranking": ranking})
    return rows


def spans(rows: list[dict[str, Any]]) -> str:
    """The ranges of both ratios, as the log line gives them."""
    found = {what: [round(row[what]["ratio"]) for row in rows] for what in ("training", "ranking")}
    said = {what: f"{min(x)} to {max(x)} times as long to" for what, x in found.items()}
    return f"{said['training']} train and {said['ranking']} rank"


def main(arguments: list[str] | None = None) -> int:
    """Write `results/bench/readable.json` and print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.readable", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    rows = [row for name in GRAPHS for row in measure(load(name), options.rounds)]
    about = {"rounds": options.rounds, "trained_triples": TRAINED, "ranked_triples": RANKED}
    about |= {"command": records.command(), "device": records.describe_device("cpu"), **records.provenance()}
    write_json(records.results_folder() / "bench" / "readable.json", {**about, "rows": rows})
    for row in rows:
        times = ", ".join(f"{what} {row[what]['ratio']:.1f}x" for what in ("training", "ranking"))
        print(f"{row['graph']:7s} {row['model']:7s} d={row['dim']:<3d} {times}")
    print(spans(rows))
    return 0


if __name__ == "__main__":
    run_command(main)
