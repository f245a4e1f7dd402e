"""`python -m kgdistil.paper.bench.waits`: how long a thread that has nothing to do should spin before it sleeps.

A teacher's step (`bench.step.beside`) in two shapes, on quiet cores and beside busy processes, for each count of spins
(`GOMP_SPINCOUNT`, which OpenMP reads when it is loaded, so that each has a process of its own), in rounds that take
turns. Results: `results/bench/waits.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kgdistil import kernels, records
from kgdistil.answer.files import write_json
from kgdistil.errors import run_command
from kgdistil.graphs.datasets import load
from kgdistil.paper.bench.step import beside

WAITS = (0, 1000, 5000, 20000)
SHAPES = {"teacher": {"dim": 128, "negatives": 2048}, "teacher of a large graph": {"dim": 64, "negatives": 512}}


def path() -> Path:
    return records.results_folder() / "bench" / "waits.json"


def of_one(name: str, steps: int) -> dict[str, list[dict[str, Any]]]:
    """In this process, which has its count of spins already."""
    kernels.keep_freed_memory()
    graph = load(name)
    return {kind: beside(graph, steps, **shape) for kind, shape in SHAPES.items()}


def measure(name: str, steps: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each shape, count of spins, number of threads and of busy processes: the median over rounds."""
    taken: dict[tuple[str, int, int, int], list[float]] = {}
    command = [sys.executable, "-m", "kgdistil.paper.bench.waits", "--graph", name, "--steps", str(steps), "--one"]
    for _ in tqdm(range(rounds), desc="rounds", disable=None):
        for wait in WAITS:
            env = os.environ | {"GOMP_SPINCOUNT": str(wait)}
            said = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
            for kind, rows in json.loads(said).items():
                for row in rows:
                    taken.setdefault((kind, wait, row["busy"], row["threads"]), []).append(row["seconds"])
    head = "kind", "spins", "busy", "threads"
    return [
        dict(zip(head, about, strict=True)) | {"seconds": statistics.median(found), "seconds_all": found}
        for about, found in taken.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """Write `results/bench/waits.json` and print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.waits", description=__doc__.split("\n")[0])
    parser.add_argument("--graph", default="fb15k-237")
    parser.add_argument("--steps", type=int, default=81)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", action="store_true", help="measure in this process and print it")
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(of_one(options.graph, options.steps)))
        return 0
    rows = measure(options.graph, options.steps, options.rounds)
    about = {"graph": options.graph, "steps": options.steps, "rounds": options.rounds, "command": records.command()}
    write_json(path(), about | {"device": records.describe_device("cpu"), **records.provenance(), "rows": rows})
    for row in rows:
        where = f"{row['spins']} spins, {row['threads']} thread(s), {row['busy']} busy process(es)"
        print(f"{row['kind']}, {where}: {1e3 * row['seconds']:.1f} ms")
    return 0


if __name__ == "__main__":
    run_command(main)
