"""What a soft label should say: objectives side by side, for one student of few floats and one of few bits.

Everything but the objective is the frontier's: the teachers (on WN18RR that of 512 bytes for both students), and the
settings that its searches and those of the paper's tables chose. Each gets the same number of updates. The settings
were searched for the objectives marked with a star, the others take them over.

| objective | what differs |
| --- | --- |
| the paper's* | Eq. 5 with Eq. 6 and 8: uniform corruptions, a fixed α (few floats only, as the next) |
| DualDE | `losses.dual_losses`: weights by the teacher's confidence, Huber's distance, structure |
| no teacher | whole lists, α = 0 |
| whole lists* | softmax over a large sample of entities, α as searched |
| soft labels alone, both halved | α = 1, α = ½ |
| from soft to hard | α falls from 1 to 0 |
| soft labels twice as flat | T = 2 |
| the teacher's best | sixteen candidates of each query are those its teacher puts first, beside the sampled ones |
| two teachers | the mean score of two (`models.joined`) |
| both stages | half of the epochs in stage 1, half in stage 2, where the teacher learns too |

`python -m kgdistil.paper.objectives --graph wn18rr` trains what is missing.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from typing import Any

import pandas as pd

from kgdistil import records
from kgdistil.config import RunConfig, read_config
from kgdistil.distillation.statistics import bootstrap
from kgdistil.errors import ConfigError, run_command
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.graphs.queries import queries_of
from kgdistil.paper.cells import FRONTIER, Cell
from kgdistil.paper.ensemble import join, joined_name
from kgdistil.paper.frontier import teacher_cell
from kgdistil.paper.recipe import config
from kgdistil.paper.reproduce import log_to_terminal
from kgdistil.paper.tasks import recorded
from kgdistil.training.loop import run

log = logging.getLogger("kgdistil")

PROTOCOL = "objectives"
EPOCHS = {"few floats": 10, "few bits": 5}  # of whole lists
START = {"few floats": ("small-distilled", 64), "few bits": ("distilled", 16)}  # method of the frontier, bytes
SMALLER_TEACHER = {("wn18rr", "few floats"): 512}  # bytes; elsewhere the frontier's own
LOGISTIC = Cell("tuned", "", "ComplEx", "-S2", 8)
SECOND_TEACHER = Cell("tuned", "", "ComplEx", "teacher", 64)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "the paper's": {"loss": "cross-entropy"},
    "DualDE": {"loss": "dual"},
    "no teacher": {"alpha": 0.0},
    "whole lists": {},
    "soft labels alone": {"alpha": 1.0},
    "both halved": {"alpha": 0.5},
    "from soft to hard": {"alpha": 1.0, "alpha_last": 0.0},
    "soft labels twice as flat": {"temperature": 2.0},
    "the teacher's best": {"top": 16},
    "two teachers": {"teacher": "joined"},
    "both stages": {"role": "stage2"},
}


def possible(student: str) -> list[str]:
    """The objectives a kind of student can have: the logistic ones train no codes."""
    return [name for name in OBJECTIVES if student == "few floats" or "loss" not in OBJECTIVES[name]]


def start_cell(dataset: str, student: str) -> Cell:
    """The cell of the frontier that a kind of student takes its settings from."""
    method, size = START[student]
    teacher = SMALLER_TEACHER.get((dataset, student)) or teacher_cell(dataset, size).bytes
    return Cell(FRONTIER, dataset, "ComplEx", method, size, teacher)


def start_of(dataset: str, cell: Cell) -> dict[str, Any]:
    """The settings that the search of a cell chose.

    Raises:
        ConfigError: it was not searched yet.
    """
    found = config(replace(cell, dataset=dataset))
    if found is None:
        raise ConfigError(
            f"{replace(cell, dataset=dataset)} has no settings yet: `python -m kgdistil.paper.frontier "
            f"--graph {dataset}` and `python -m kgdistil.paper.reproduce --table 3 4` find them"
        )
    return found.model_dump()


def steps_of(settings: RunConfig, graph: Graph) -> int:
    """Updates of an epoch."""
    samples = queries_of(graph.train)[0] if settings.loss == "softmax" else graph.train
    return -(-len(samples) // settings.batch_size)


def runs(dataset: str, student: str, name: str, graph: Graph) -> list[RunConfig]:
    """The runs of one objective, the last of which counts; all have the updates of `EPOCHS` epochs of whole lists.

    Raises:
        ConfigError: what it starts from was not searched yet.
    """
    change, lists = dict(OBJECTIVES[name]), start_of(dataset, start_cell(dataset, student))
    shared = {
        "protocol": f"{PROTOCOL}/{student}/{name}",
        "schedule": "linear",
        "patience": 0,
        "teacher": lists["teacher"],
    }
    if "loss" in change:
        made = read_config({**start_of(dataset, LOGISTIC), **shared, **change})
        updates = EPOCHS[student] * steps_of(read_config(lists), graph)
        epochs = round(updates / steps_of(made, graph))
    else:
        made, epochs = read_config({**lists, **shared}), EPOCHS[student]
        if change.get("teacher"):
            change["teacher"] = joined_name(lists["teacher"], start_of_second(dataset))
    second = change.get("role") == "stage2"
    change |= {"epochs": epochs // 2 if second else epochs, "check_every": epochs}
    if not second:
        return [read_config({**made.model_dump(), **change})]
    first = read_config({**made.model_dump(), **change, "role": "stage1", "protocol": f"{PROTOCOL}/first"})
    rest = {"epochs": epochs - epochs // 2, "student": first.run_id, "lr": first.lr / 2, "teacher_lr": first.lr / 4}
    return [first, read_config({**made.model_dump(), **change, **rest})]


def start_of_second(dataset: str) -> str:
    """The run of the second teacher."""
    return read_config(start_of(dataset, SECOND_TEACHER)).run_id


def complete(dataset: str = "wn18rr") -> None:
    """Train what is missing of a graph, one after the other.

    Raises:
        ConfigError: the frontier or the tables that it builds on were not run. BusyError: another process trains one.
    """
    graph = load(dataset)
    every = [(student, name) for student in START for name in possible(student)]
    for student, name in every:
        if recorded(runs(dataset, student, name, graph)[-1]):
            continue
        if OBJECTIVES[name].get("teacher"):
            join(graph, start_of(dataset, start_cell(dataset, student))["teacher"], start_of_second(dataset))
        for settings in runs(dataset, student, name, graph):
            last = run(settings, graph, save_ranks=True)
        log.info("done: %s, %s, test MRR %.3f", student, name, last.test("mrr"))


def points(dataset: str) -> pd.DataFrame:
    """What was measured: student, objective, mrr, hits@10, valid_mrr, run, and against the first objective that its
    student has the gain, its 95 % interval (low, high) and p by a paired bootstrap over test triples."""
    found = {r["config"]["protocol"]: r for r in records.read_records() if r["config"]["dataset"] == dataset}
    rows: list[dict[str, Any]] = []
    for student in START:
        there = [found[x] for name in possible(student) if (x := f"{PROTOCOL}/{student}/{name}") in found]
        ranks = [records.read_ranks(record["id"]).reciprocal() for record in there]
        for record, own in zip(there, ranks, strict=True):
            test = record["test"]["both"]
            low, high, p = bootstrap(ranks[0], own) if own is not ranks[0] else (None, None, None)
            rows.append(
                {
                    "student": student,
                    "objective": record["config"]["protocol"].split("/")[2],
                    "mrr": test["mrr"],
                    "hits@10": test["hits@10"],
                    "valid_mrr": record["valid"]["both"]["mrr"],
                    "gain": test["mrr"] - there[0]["test"]["both"]["mrr"],
                    "low": low,
                    "high": high,
                    "p": p,
                    "run": record["id"],
                }
            )
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.paper.objectives --graph wn18rr`: train what is missing.

    Returns:
        0 when everything is recorded.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.objectives", description=__doc__.split("\n")[0])
    parser.add_argument("--graph", default="wn18rr")
    options = parser.parse_args(arguments)
    log_to_terminal()
    complete(options.graph)
    print(points(options.graph).to_string(index=False))
    return 0


if __name__ == "__main__":
    run_command(main)
