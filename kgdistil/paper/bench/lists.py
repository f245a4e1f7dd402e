"""`python -m kgdistil.paper.bench.lists`: a step against whole lists for distances, compiled and in PyTorch alone.

All scores of 512 queries and 2,048 candidates and the gradients of a softmax over them, in rounds that take turns, on
the CPU. Dot products are not here: for them both sides are one matrix product. Results: `results/bench/lists.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kgdistil import kernels, records
from kgdistil.answer.files import write_json
from kgdistil.config import make_config
from kgdistil.errors import ConfigError, run_command
from kgdistil.kernels.pairs import compare
from kgdistil.models import KGEModel, build_model
from kgdistil.paper.bench.machine import GRADIENT_OPS, SCORE_OPS, peak_flops

MODELS, DIMS = ("TransE", "TransH", "RotatE"), (64, 8)
QUERIES, CANDIDATES = 512, 2048
WAYS = {"kgdistil": compare, "PyTorch": lambda model, queries, rows: model.compare(queries, rows)}


def seconds_of_a_step(way: str, model: KGEModel, queries: Tensor, rows: Tensor, right: Tensor) -> float:
    """Seconds of the scores [n, m] of queries and rows, their cross-entropy and its gradients."""
    queries.grad = rows.grad = None
    began = time.perf_counter()
    torch.nn.functional.cross_entropy(WAYS[way](model, queries, rows), right).backward()
    return time.perf_counter() - began


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row for each model and dimension: median seconds of a step by each way, and what of them the arithmetic is.

    Raises:
        ConfigError: without a compiler there is nothing to compare.
    """
    if kernels.compiler() is None:
        raise ConfigError("this benchmark needs the compiled kernels: install g++ or clang++")
    kernels.keep_freed_memory()
    flops, out, draw = peak_flops(), [], torch.Generator().manual_seed(0)
    right = torch.randint(CANDIDATES, (QUERIES,), generator=draw)
    for name, dim in tqdm([(name, dim) for dim in DIMS for name in MODELS], desc="whole lists", disable=None):
        model = build_model(name, CANDIDATES, 11, dim, **make_config(model=name).model_options)
        relation = torch.randint(11, (QUERIES,), generator=draw)
        queries = model.queries(right, relation, "tail").detach().requires_grad_()
        rows = model.entities.detach().requires_grad_()
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds + 1):  # the first one warms up
            for way, so_far in taken.items():
                so_far.append(seconds_of_a_step(way, model, queries, rows, right))
        ours, theirs = (statistics.median(taken[way][1:]) for way in WAYS)
        ops = QUERIES * rows.numel() * (SCORE_OPS[name] + 2 * GRADIENT_OPS[name])
        out.append(
            {
                "model": name,
                "dim": dim,
                "seconds": ours,
                "pytorch_seconds": theirs,
                "ratio": theirs / ours,
                "ops": ops,
                "share_of_peak": ops / ours / flops,
                "seconds_all": taken,
            }
        )
    return out


def main(arguments: list[str] | None = None) -> int:
    """Write `results/bench/lists.json` and print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.lists", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    rows = measure(options.rounds)
    report = {
        "queries": QUERIES,
        "candidates": CANDIDATES,
        "rounds": options.rounds,
        "command": records.command(),
        "device": records.describe_device("cpu"),
        **records.provenance(),
        "rows": rows,
    }
    write_json(records.results_folder() / "bench" / "lists.json", report)
    for row in rows:
        print(
            f"{row['model']:7s} d={row['dim']:<3d} {1e3 * row['seconds']:7.1f} ms a step, PyTorch alone "
            f"{1e3 * row['pytorch_seconds']:8.1f} ms, {row['ratio']:5.1f}x; "
            f"{row['share_of_peak']:.0%} of the machine's peak"
        )
    return 0


if __name__ == "__main__":
    run_command(main)
