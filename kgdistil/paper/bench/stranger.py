"""`python -m kgdistil.paper.bench.stranger GRAPH …`: a known graph as one that nobody here has seen.

Its files lie in a folder of another name, the rule is that of all other graphs' searches, and the command is a user's:
`kgdistil distill FOLDER --budget 64B/entity`. What a budget buys was measured on all graphs, this one among them.
Results: `results/bench/stranger.json`, by graph, beside what LibKGE published for its tuned ComplEx of full size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.errors import KgdistilError, run_command
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.paper import fitting
from kgdistil.students.labelled import load_labelled

PUBLISHED = {"wn18rr": 0.475, "fb15k-237": 0.348}  # ComplEx, test MRR: https://github.com/uma-pi1/kge, README
COMMAND = """
import sys
from pathlib import Path
from kgdistil.cli import main
from kgdistil.distillation import rule
rule.RULE = Path(sys.argv[1])
main(sys.argv[2:])
"""


def path_of() -> Path:
    return records.results_folder() / "bench" / "stranger.json"


def renamed(graph: Graph, folder: Path) -> Path:
    """The graph's three files in a folder whose name says nothing."""
    (place := folder / "graph").mkdir()
    names = graph.entities, graph.relations, graph.entities
    for split, file in (("train", "train.txt"), ("valid", "valid.txt"), ("test", "test.txt")):
        with (place / file).open("w", encoding="utf-8") as out:
            for triple in getattr(graph, split).tolist():
                out.write("\t".join(labels[i] for labels, i in zip(names, triple, strict=True)) + "\n")
    return place


def measure(name: str, budget: str, folder: Path) -> dict[str, Any]:
    """What one command made of a graph, and how long it took."""
    graph, rule, student = load(name), folder / "rule.json", folder / "student"
    others = [found for found in fitting.read("searches") if found["graph"]["sha256"] != graph.sha256]
    write_json(rule, known := fitting.fit(others))
    words = ["distill", str(renamed(graph, folder)), "--budget", budget, "-o", str(student)]
    place = {f"KGDISTIL_{x.upper()}": str(folder / x) for x in ("runs", "results")}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", COMMAND, str(rule), *words], env=os.environ | place, check=False)
    if done.returncode:
        raise KgdistilError(f"{name}: the command ended with {done.returncode}")
    seconds, made = time.monotonic() - began, load_labelled(student)
    about = {key: made.about[key] for key in ("chosen", "verdict", "gain", "metrics", "predicted")}
    return {
        "graph": {"name": name, **graph.sizes(), "sha256": graph.sha256},
        "others": sorted(known["graphs"]),
        "budget": budget,
        "seconds": seconds,
        **about,
        "published": PUBLISHED.get(name),
        "runs": [json.loads(path.read_text()) for path in sorted((folder / "results" / "runs").glob("*.json"))],
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the graphs' results beside what is there, and print them.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.stranger", description=__doc__.split("\n")[0])
    parser.add_argument("graphs", nargs="+", help="known graphs")
    parser.add_argument("--budget", default="64B/entity", help="[default: %(default)s]")
    options = parser.parse_args(arguments)
    for name in options.graphs:
        with tempfile.TemporaryDirectory(prefix="kgd-") as scratch:
            found = measure(name, options.budget, Path(scratch))
        about: dict[str, Any] = {"command": records.command(), "device": records.describe_device("cpu")}
        about |= {"threads": torch.get_num_threads(), **records.provenance()}
        report = json.loads(path_of().read_text(encoding="utf-8")) if path_of().is_file() else {}
        write_json(path_of(), {**report, name: {**about, **found}})
        print(json.dumps({key: found[key] for key in ("seconds", "chosen", "metrics", "published")}), flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
