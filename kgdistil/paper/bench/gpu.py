"""`python -m kgdistil.paper.bench.gpu`: training step and ranking on a CUDA device, beside what the device can do.

Ready to run wherever there is a GPU and the core dependencies; it needs no peer and no Jupyter. On a machine without
one it says so and writes nothing: no GPU figure is printed that was not measured. `--device cpu` runs the same lines on
the CPU, to see that they work.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import pandas as pd
import torch

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.config import check_device, make_config
from kgdistil.errors import KgdistilError
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.models import build_model
from kgdistil.paper.bench.machine import copy_bandwidth, peak_flops, training_floor
from kgdistil.paper.bench.peers import MODELS
from kgdistil.training.reference import ReferenceEngine

BATCH, RATE = 1024, 0.005


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def training(graph: Graph, name: str, dim: int, device: str, epochs: int, bandwidth: float, flops: float) -> dict:
    """Step time, share of the floor, and how much of the wall time the device was busy."""
    config = make_config(model=name, dim=dim)
    model = build_model(name, graph.num_entities, graph.num_relations, dim, **config.model_options)
    floor = training_floor(model, graph.train, config.negatives, BATCH)
    model.to(device)
    engine = ReferenceEngine(model, None, graph.train.to(device), config)
    rates = torch.full((engine.steps,), RATE, dtype=torch.float64)
    engine.epoch(0, rates)  # captures the step
    wait(device)
    began = time.perf_counter()
    for epoch in range(1, epochs + 1):
        engine.epoch(epoch, rates)
    wait(device)
    step = (time.perf_counter() - began) / (epochs * engine.steps)
    least = floor.seconds(bandwidth, flops)
    return {
        "model": name,
        "dim": dim,
        "step_seconds": step,
        "epoch_seconds": step * engine.steps,
        "thousand_epochs_seconds": 1000 * step * engine.steps,
        "floor_bytes": floor.bytes,
        "floor_ops": floor.ops,
        "times_floor": step / least,
        "bytes_per_second": floor.bytes / step,
        "busy": busy(engine, rates, device),
    }


def busy(engine: ReferenceEngine, rates: torch.Tensor, device: str) -> float | None:
    """Share of an epoch's wall time in which kernels ran, by the profiler; None on a CPU."""
    if device == "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        engine.epoch(0, rates)
        wait(device)
        wall = time.perf_counter() - began
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 / wall


def ranking(graph: Graph, name: str, dim: int, device: str, triples: int) -> dict[str, Any]:
    """Filtered ranking of the first `triples` test triples, both sides."""
    model = build_model(name, graph.num_entities, graph.num_relations, dim, **make_config(model=name).model_options)
    known, chosen = KnownTriples(graph.known, graph.num_relations), graph.test[:triples]
    model.to(device)
    rank(model, chosen[:64], known)
    wait(device)
    began = time.perf_counter()
    rank(model, chosen, known)
    wait(device)
    return {
        "dataset": graph.name,
        "model": name,
        "dim": dim,
        "triples": len(chosen),
        "seconds": time.perf_counter() - began,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--datasets", nargs=2, default=["wn18rr", "fb15k-237"], metavar=("TRAIN", "RANK"))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 8])
    parser.add_argument("--epochs", type=int, default=5, help="timed epochs")
    parser.add_argument("--triples", type=int, default=1 << 30, help="at most so many test triples are ranked")
    parser.add_argument("--output", default="gpu", help="name of the file under results/bench/")
    options = parser.parse_args(arguments)
    try:
        check_device(options.device)
        device = options.device
        to_train, to_rank = (load(name) for name in options.datasets)
    except KgdistilError as error:
        print(f"python -m kgdistil.paper.bench.gpu: {error}; nothing was measured", file=sys.stderr)
        return 1
    bandwidth, flops = copy_bandwidth(device=device), peak_flops(device=device)
    jobs = [(model, dim) for dim in options.dims for model in options.models]
    report = {
        "device": records.describe_device(device),
        **records.provenance(),
        "command": " ".join(["python -m kgdistil.paper.bench.gpu", *(arguments or sys.argv[1:])]),
        "graph_sha256": {g.name: g.sha256 for g in (to_train, to_rank)},
        "copy_bytes_per_second": bandwidth,
        "matmul_flops": flops,
        "training": [training(to_train, m, d, device, options.epochs, bandwidth, flops) for m, d in jobs],
        "ranking": [ranking(to_rank, m, d, device, options.triples) for m, d in jobs],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    for table in ("training", "ranking"):
        print(f"\n{table}\n{pd.DataFrame(report[table]).to_string()}")
    write_json(records.results_folder() / "bench" / f"{options.output}.json", report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
