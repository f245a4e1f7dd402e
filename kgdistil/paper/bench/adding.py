"""`python -m kgdistil.paper.bench.adding`: entities that a student never saw, added from their triples.

A seeded choice of entities is held out: all triples that touch them leave the graph, on which the student of 16 bytes
is trained anew by its published recipe. Then all are added from their training triples, and their test triples ranked,
filtered by the whole graph, beside those of the published student, which was trained with them. Two more figures say
what is missing: of the published student, from which the same entities are taken after training, so that all others
know them, and of the triples of entities that have a relation which training saw without them. Defaults of adding were
chosen by validation triples: on WN18RR of the entities of another choice, `CHOSEN`, on FB15k-237 of those of choice 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from kgdistil import records
from kgdistil.answer.adding import Fitter, Links
from kgdistil.answer.files import write_json
from kgdistil.answer.format import layout
from kgdistil.answer.student import Student
from kgdistil.answer.triples import arrays
from kgdistil.answer.weights import Weights
from kgdistil.checkpoint import load_model
from kgdistil.compress.size import PRECISION_OF
from kgdistil.config import read_config
from kgdistil.errors import run_command
from kgdistil.graph import SPLITS, Graph
from kgdistil.graphs.datasets import load
from kgdistil.paper import frontier
from kgdistil.paper.cells import FRONTIER, Cell
from kgdistil.paper.recipe import config, with_needs
from kgdistil.paper.tasks import published
from kgdistil.students.labelled import Labelled
from kgdistil.training.loop import Run, run

COUNT = 1000  # entities that are held out
CHOSEN = 0  # the choice of entities by which the defaults of adding were chosen: its validation triples are ranked


def held_out(graph: Graph, choice: int, count: int = COUNT) -> np.ndarray:
    """Ids, ascending, of entities that stand in training and in what is ranked: see `ranked_split`.

    No entity of `CHOSEN` is among those of another choice.
    """
    there = np.zeros((2, graph.num_entities), bool)
    for row, split in zip(there, ("train", ranked_split(choice))):
        row[getattr(graph, split)[:, [0, 2]].numpy()] = True
    if choice != CHOSEN:
        there[:, held_out(graph, CHOSEN, count)] = False
    return np.sort(np.random.default_rng(choice).choice(np.flatnonzero(there.all(0)), count, replace=False))


def ranked_split(choice: int) -> str:
    return "valid" if choice == CHOSEN else "test"


def without(graph: Graph, held: np.ndarray, choice: int) -> Graph:
    """The graph without these entities and without every triple that touches one of them."""
    kept = np.setdiff1d(np.arange(graph.num_entities), held)
    number = np.full(graph.num_entities, -1)
    number[kept] = np.arange(len(kept))
    parts: dict[str, Any] = {}
    for split in SPLITS:
        triples = getattr(graph, split).numpy().copy()
        triples[:, [0, 2]] = number[triples[:, [0, 2]]]
        parts[split] = torch.from_numpy(triples[(triples >= 0).all(1)])
    entities = tuple(graph.entities[i] for i in kept)
    name = f"{graph.name}-without-{len(held)}-{choice}"
    sha256 = hashlib.sha256("\n".join([graph.sha256, *(graph.entities[i] for i in held)]).encode()).hexdigest()
    return replace(graph, name=name, entities=entities, sha256=sha256, descriptions={}, notes=(), **parts)


def student_cell(dataset: str) -> Cell:
    """The published student of 16 bytes."""
    return Cell(FRONTIER, dataset, frontier.MODEL, "distilled", 16, frontier.teacher_cell(dataset, 16).bytes)


def train(graph: Graph, name: str, folder: Path) -> Run:
    """The student of 16 bytes of a data set's recipe, trained with all that it needs on another graph."""
    renamed: dict[str, str] = {}
    recipes = [config(cell) for cell in with_needs([student_cell(name)])]
    with records.kept_in(folder):
        for recipe in filter(None, recipes):
            own = {"dataset": graph.name, "protocol": "adding"}
            links = {key: renamed[run_id] for key in ("teacher", "student") if (run_id := getattr(recipe, key))}
            made = read_config({**recipe.model_dump(), **own, **links})
            renamed[recipe.run_id] = made.run_id
            done = run(made, graph)
    return done


# ---- measured -------------------------------------------------------------------------------------------------------
def mrr(student: Student, graph: Graph, triples: np.ndarray) -> float:
    """Of triples [n, 3] of the whole graph, filtered by it, both sides."""
    number = student.entities.find_all(graph.entities)
    known = graph.known.numpy().copy()
    known[:, [0, 2]], asked = number[known[:, [0, 2]]], triples.copy()
    asked[:, [0, 2]] = number[triples[:, [0, 2]]]
    known = known[(known >= 0).all(1)]
    held = arrays(known, np.zeros(len(known), np.uint8), graph.num_relations)
    whole = Student(student.header, student.weights, student.entities, None, held)
    return whole.ranks(asked).metrics()["both"]["mrr"]


def related(graph: Graph, less: Graph, held: np.ndarray, triples: np.ndarray) -> np.ndarray:
    """Which triples [n, 3] have only such entities of `held` as have a training triple of a relation of `less`."""
    train = graph.train.numpy()
    found = train[np.isin(train[:, 1], less.train[:, 1].numpy())][:, [0, 2]]
    return np.asarray(~np.isin(triples[:, [0, 2]], np.setdiff1d(held, found)).any(1))


def with_rows(student: Student, rows: np.ndarray) -> Student:
    """The student, in float32, with other rows [n, width] of its last entities."""
    every = student.weights.rows(np.arange(len(student.entities)))
    every[-len(rows) :] = rows
    header = {**student.header, "precision": "float32"}
    weights = Weights(header, layout({"entities": every, "relations": student.weights.relations}))
    return Student(header, weights, student.entities)


class Timed(Fitter):
    """A fitter that keeps how long each fit took: seconds, and seconds of the processor."""

    took: ClassVar[list[tuple[float, float]]] = []

    def fit(self, rows: np.ndarray, links: Links) -> np.ndarray:
        began = time.perf_counter(), time.process_time()
        found = super().fit(rows, links)
        self.took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
        return found


def measure(dataset: str, choice: int, folder: Path) -> dict[str, Any]:
    """The row of one choice of entities."""
    from kgdistil.answer import adding

    graph, cell = load(dataset), student_cell(dataset)
    held = held_out(graph, choice)
    less = without(graph, held, choice)
    done = train(less, dataset, folder)
    precision = PRECISION_OF[done.config.group]
    triples, test = graph.train.numpy(), getattr(graph, ranked_split(choice)).numpy()
    theirs = [graph.label_triple(*x) for x in triples[np.isin(triples[:, [0, 2]], held).any(1)].tolist()]
    touches = np.isin(test[:, [0, 2]], held).any(1)

    before = Labelled(done.load(less), less, precision).student()
    student, exact = Labelled(done.load(less), less, precision).student(), Labelled(done.load(less), less).student()
    adding.Fitter, Timed.took = Timed, []  # type: ignore[misc]
    try:
        began = time.perf_counter()
        added = student.add(theirs)
        whole = time.perf_counter() - began
    finally:
        adding.Fitter = Fitter  # type: ignore[misc]
    took = 1000 * np.array(Timed.took)
    exact.add(theirs)

    old, random = before.weights.rows(np.arange(len(before.entities))), np.random.default_rng(choice)
    ids = student.entities.find_all([x for h, _, t in theirs for x in (h, t)]).reshape(-1, 2) - len(old)
    near: list[list[int]] = [[] for _ in added]
    for h, t in ids.tolist():
        if h >= 0 > t:
            near[h].append(t + len(old))
        if t >= 0 > h:
            near[t].append(h + len(old))
    means = np.array([old[x].mean(0) if x else old.mean(0) for x in near])
    model = load_model(published(cell), graph)
    trained = Labelled(model, graph, precision).student()
    kept = torch.from_numpy(np.setdiff1d(np.arange(graph.num_entities), held))
    model.entities = torch.nn.Parameter(model.entities.detach()[kept])
    lost = Labelled(model, less, precision).student()
    lost.add(theirs)
    asked = test[touches]
    known = asked[related(graph, less, held, asked)]
    return {
        "graph": graph.name,
        "sha256": graph.sha256,
        "choice": choice,
        "entities": len(held),
        "triples": len(theirs),
        "split": ranked_split(choice),
        "ranked": int(touches.sum()),
        "runs": [done.id, done.record["config"]["teacher"], done.record["config"]["student"]],
        "trained_in_run": published(cell).name,
        "precision": precision,
        "mrr": {
            "trained in": mrr(trained, graph, asked),
            "added": mrr(student, graph, asked),
            "added, float32": mrr(exact, graph, asked),
            "added where others learned with them": mrr(lost, graph, asked),
            "mean of neighbours": mrr(with_rows(student, means), graph, asked),
            "random row": mrr(with_rows(student, old[random.integers(0, len(old), len(added))]), graph, asked),
        },
        "ranked_of_trained_relations": len(known),
        "mrr_of_trained_relations": {
            "trained in": mrr(trained, graph, known),
            "added": mrr(student, graph, known),
            "added, float32": mrr(exact, graph, known),
        },
        "mrr_of_others": {
            "before": mrr(before, graph, test[~touches]),
            "after": mrr(student, graph, test[~touches]),
            "trained in": mrr(trained, graph, test[~touches]),
        },
        "fits": len(took),
        "ms": {"mean": float(took[:, 0].mean()), "p95": float(np.quantile(took[:, 0], 0.95))},
        "cpu_ms": {"mean": float(took[:, 1].mean()), "p95": float(np.quantile(took[:, 1], 0.95))},
        "seconds_in_all": whole,
    }


def adding_path() -> Path:
    return records.results_folder() / "bench" / "adding.json"


def main(arguments: list[str] | None = None) -> int:
    """Measure the choices that are asked for, and write them to `adding_path` beside those that are there.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.adding", description=__doc__.split("\n")[0])
    parser.add_argument("--graph", nargs="+", default=["wn18rr", "fb15k-237"])
    parser.add_argument("--choice", nargs="+", type=int, default=[1])
    parser.add_argument("--folder", type=Path, help="where the trained students lie [default: runs/adding]")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path, folder = adding_path(), options.folder or records.runs_folder() / "adding"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    for dataset in options.graph:
        for choice in options.choice:
            row = measure(dataset, choice, folder)
            rows = [x for x in rows if (x["graph"], x["choice"]) != (row["graph"], choice)] + [row]
            about = {"command": records.command(), "device": records.describe_device("cpu"), **records.provenance()}
            write_json(path, {**about, "rows": rows})
            print(json.dumps(row, indent=1))
    return 0


if __name__ == "__main__":
    run_command(main)
