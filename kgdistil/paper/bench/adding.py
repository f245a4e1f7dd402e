"""`python -m kgdistil.paper.bench.adding`: entities that a student never saw, added from their triples."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgdistil import records
from kgdistil.config import read_config
from kgdistil.graph import SPLITS, Graph
from kgdistil.paper import frontier
from kgdistil.paper.cells import FRONTIER, Cell
from kgdistil.paper.recipe import config, with_needs
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
