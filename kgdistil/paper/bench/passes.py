"""`python -m kgdistil.paper.bench.passes GRAPH`: a few passes of each run of a large graph's recipe, killed on the way.

Teacher, student alone and distilled student are set as `kgdistil distill GRAPH --budget …` sets them, but for the
number of passes. Each is trained by a process of its own; the teacher's is killed while it trains and again while its
test triples are ranked, the distilled student's while it trains, and each goes on when it is started again. Results:
`results/bench/passes-<graph>.json`, by run what a pass and a validation take, its peak of memory beside what was told,
and how much work each kill lost.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.compress.size import floats
from kgdistil.config import RunConfig
from kgdistil.distillation import recipes, scale
from kgdistil.distillation.budget import Plan, plan, whole_of
from kgdistil.distillation.distil import few_bits_arguments
from kgdistil.errors import KgdistilError, run_command
from kgdistil.evaluation import KnownTriples, evaluate
from kgdistil.graph import Graph
from kgdistil.graphs.readers import read_graph
from kgdistil.training.loop import CHECKPOINT, run

PASSES = {"teacher": 2, "no-DS": 1, "stage 1": 1}
KILLS = {"teacher": ("training", "ranking"), "no-DS": (), "stage 1": ("training",)}
WITHIN = 150  # seconds after the first checkpoint, or the valid ranks, in which a kill falls
RANKED = 2000  # of a run that is not killed while it ranks


def path_of(name: str) -> Path:
    return records.results_folder() / "bench" / f"passes-{name}.json"


def configs_of(graph: Graph, bought: Plan) -> tuple[dict[str, RunConfig], dict[str, RunConfig]]:
    """The recipe's runs, and what is trained of them here."""
    shape = bought.dim, bought.precision, bought.rank
    given = few_bits_arguments(graph, bought.model, shape)
    given |= {"whole": whole_of(graph, bought.model, shape)} if bought.whole else {}
    whole = recipes.few_bits(**given).configs
    few, teacher = dict[str, RunConfig](), ""
    for name, config in whole.items():
        change: dict[str, Any] = {"epochs": PASSES[name], "check_every": PASSES[name], "protocol": "passes"}
        if "ranking" not in KILLS[name]:
            change["final_sample"] = min(RANKED, config.final_sample or RANKED)
        if config.teacher:
            change |= {"teacher": teacher, "student": teacher}
        few[name] = config.model_copy(update=change)
        teacher = few[name].run_id if name == "teacher" else teacher
    return whole, few


# ---- one run, in a process of its own -------------------------------------------------------------------------------
def status(name: str) -> int:
    """Bytes that this process says of itself."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{name}:")[1].split()[0]) << 10


def one(graph: Graph, config: RunConfig, width: int) -> dict[str, Any]:
    """Train it, or go on, and measure: the peak of memory of this process's part, and a validation."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = status("VmRSS")
    done = run(config, graph)
    peak = status("VmHWM")
    model, known = done.load(graph), KnownTriples(graph.known, graph.num_relations)
    times = []
    for _ in range(2):  # the first reads what the second has at hand, as a validation between two passes has
        at = time.monotonic()
        evaluate(model, graph, "valid", known=known, sample=config.check_sample)
        times.append(time.monotonic() - at)
    needed = scale.memory_needed(config, graph, width)
    return {"before": before, "peak": peak, "told": needed, "check_seconds": times[1]}


# ---- the process that starts and kills it ---------------------------------------------------------------------------
def started(arguments: Sequence[str], part: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kgdistil.paper.bench.passes", *arguments, "--one", part, str(folder)]
    with (folder / "log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)


def killed(process: subprocess.Popen[str], kind: str, config: RunConfig) -> dict[str, Any]:
    """Kill it some time after the first checkpoint, or after the valid ranks: what it did since what lies on disk."""
    folder = records.model_folder(config.run_id, True)
    kept = folder / CHECKPOINT if kind == "training" else records.ranks_path(f"{config.run_id}-valid", True)
    end = math.inf
    while time.monotonic() < end:
        if process.poll() is not None:
            raise KgdistilError(f"the run ended with {process.returncode} before it was killed: its passes are too few")
        if end == math.inf and kept.is_file():
            end = time.monotonic() + random.uniform(0, WITHIN)
        time.sleep(0.1)
    process.kill()
    process.wait()
    return {"while": kind, "lost_seconds": round(time.time() - kept.stat().st_mtime, 1)}


def measure(arguments: Sequence[str], graph: Graph, bought: Plan, folder: Path) -> list[dict[str, Any]]:
    """A row for each run."""
    (whole, few), rows = configs_of(graph, bought), []
    for name, config in few.items():
        kills, began = [], time.monotonic()
        # ranks of all triples take seconds, and are not kept on the way
        for kind in (kind for kind in KILLS[name] if kind == "training" or config.final_sample):
            kills.append(killed(started(arguments, name, folder), kind, config))
            print(name, kills[-1], flush=True)
        process = started(arguments, name, folder)
        said = process.communicate()[0]
        if process.returncode:
            raise KgdistilError(f"{name} ended with {process.returncode}: {(folder / 'log').read_text()[-2000:]}")
        found, record = json.loads(said.splitlines()[-1]), records.read_record(records.record_path(config.run_id, True))
        a_pass = (record["seconds"] - found["check_seconds"]) / config.epochs
        row: dict[str, Any] = {"run": name, "config": config.model_dump(), "passes": whole[name].epochs}
        row |= {"pass_seconds": a_pass, "triples_a_second": round(len(graph.train) / a_pass)}
        row |= {"check_every": whole[name].check_every}
        rows.append(row | found | {"kills": kills, "wall_seconds": time.monotonic() - began})
        print(json.dumps({key: x for key, x in rows[-1].items() if key != "config"}), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Write `results/bench/passes-<graph>.json` and print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.passes", description=__doc__.split("\n")[0])
    parser.add_argument("graph", help="the graph's file")
    parser.add_argument("--budget", default="16B/entity", help="of the student  [default: %(default)s]")
    one_of = "train this run in this process, keep it in FOLDER and print what it took"
    parser.add_argument("--one", nargs=2, metavar=("RUN", "FOLDER"), help=one_of)
    options = parser.parse_args(arguments)
    graph = read_graph(options.graph)
    bought = plan(graph, options.budget, few_bits=True)
    if options.one:
        name, folder = options.one
        with records.kept_in(Path(folder)):
            found = one(graph, configs_of(graph, bought)[1][name], floats(bought.model, bought.dim))
        print(json.dumps(found))
        return 0
    given = [str(Path(options.graph).resolve()), "--budget", options.budget]
    with tempfile.TemporaryDirectory(prefix="kgd-") as scratch, records.kept_in(Path(scratch)):
        rows = measure(given, graph, bought, Path(scratch))
    about: dict[str, Any] = {
        "graph": {"name": graph.name, **graph.sizes(), "sha256": graph.sha256},
        "plan": str(bought),
    }
    about |= {"command": records.command(), "device": records.describe_device("cpu")}
    about |= {"threads": torch.get_num_threads(), **records.provenance()}
    write_json(path_of(graph.name), about | {"rows": rows})
    return 0


if __name__ == "__main__":
    run_command(main)
