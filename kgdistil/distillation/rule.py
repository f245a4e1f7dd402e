"""What a graph takes without a search, by its figures: settings, and the share of its teacher that a student keeps.

rule.json lies beside this file: what searches found on graphs of different kinds, by `python -m kgdistil.paper.fitting
fit`. Settings for another graph are those graphs' means, of which each counts the more, the nearer its figures are.
Without the file, and for a graph known by name, whose recipes have records, there are none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kgdistil.compress.size import floats
from kgdistil.distillation import scale
from kgdistil.graph import NAMES, Graph
from kgdistil.graphs.queries import queries_of

RULE = Path(__file__).with_name("rule.json")
NONE = 1e-5  # a penalty of 0 among logarithms
CHOICES = ("relation_weight", "regulariser", "schedule")  # settings that are one of few values
WIDTH = 0.5  # narrow, since settings belong together: a mean of unlike graphs' fits none of them
# A teacher is shown so many training triples at most, and as many as take so many products of numbers (`products`),
# chosen so that it should end with its students within an hour on two cores; but of any graph `PASSES`. The passes of
# all runs are cut alike.
TRIPLES, PRODUCTS, PASSES = 16e6, 1.5e13, 10
ROW = 4.0  # times the rate of what begins at random, where a row has one sum of squares (`recipes.few_bits`)
# "models" that were tried, "scale" (of log figures), "graphs" (figures, model and settings of parts), "share"
Rule = Mapping[str, Any]


def figures(graph: Graph) -> dict[str, float]:
    """Those that a rule goes by."""
    sizes = {"entities": float(graph.num_entities), "relations": float(graph.num_relations)}
    return {**sizes, "triples per entity": len(graph.train) / graph.num_entities}


def weights(found: Mapping[str, float], rule: Rule) -> list[float]:
    """What each graph of the rule counts: exp(−½ Σ ((log x − log x_g) / ws)²) over the figures x, s their spread, w
    `WIDTH`."""
    squares = [distance(found, graph["figures"], rule["scale"]) for graph in rule["graphs"].values()]
    return [math.exp((min(squares) - x) / 2 / WIDTH**2) for x in squares]


def distance(found: Mapping[str, float], other: Mapping[str, float], scale: Mapping[str, float]) -> float:
    """How unlike two graphs are: Σ (log(x / x_g) / s)² over the figures x."""
    return sum((math.log(found[x] / other[x]) / s) ** 2 for x, s in scale.items())


def voted(values: Sequence[Any], counts: Sequence[float]) -> Any:
    """The value that counts most."""
    return max(values, key=lambda value: sum(w for x, w in zip(values, counts, strict=True) if x == value))


def kind(graph: Graph) -> str | None:
    """The kind of model that a graph takes; None without a rule, and for a graph known by name."""
    if graph.name in NAMES or (known := rule()) is None:
        return None
    return voted([other["model"] for other in known["graphs"].values()], weights(figures(graph), known))


def settings(found: Mapping[str, float], rule: Rule) -> dict[str, dict[str, Any]]:
    """Settings of each part ("teacher", "stage 1", "no-DS") for a graph of such figures."""
    graphs, counts = list(rule["graphs"].values()), weights(found, rule)
    return {part: together([graph["settings"][part] for graph in graphs], counts) for part in graphs[0]["settings"]}


def together(settings: Sequence[Mapping[str, Any]], counts: Sequence[float]) -> dict[str, Any]:
    """One part's settings of several graphs as one. A penalty is that of graphs with the regulariser that is taken."""
    made = {name: mean(name, [x[name] for x in settings], counts) for name in settings[0]}
    alike = [x.get("regulariser") == made.get("regulariser") for x in settings]
    if not all(alike):
        own = [(x["penalty"], w) for x, w, same in zip(settings, counts, alike, strict=True) if same]
        made["penalty"] = mean("penalty", *zip(*own, strict=True))
    return made


def mean(name: str, values: Sequence[Any], counts: Sequence[float]) -> Any:
    """Of a setting: where it is one of few values, the one that counts most; else the mean, or that of logarithms."""
    if name in CHOICES:
        return voted(values, counts)
    if name == "alpha":
        return round(float(np.average(values, weights=counts)), 2)
    found = math.exp(np.average([math.log(max(NONE, x)) for x in values], weights=counts))
    if name == "epochs":
        return max(1, round(found))
    return float(f"{found:.2g}") if found >= 2 * NONE else 0.0


def share(first: float, rule: Rule) -> float:
    """The share of its teacher's MRR that a distilled student is expected to keep.

    Args:
        first: the share that it had when it was validated for the first time, after a fifth of its passes.
    """
    return float(np.clip(1 - np.dot(rule["share"], lost(first)), 0, 1.1))


def lost(first: float) -> list[float]:
    """What a lost share is linear in."""
    return [1.0, 1 - first]


def first_share(student: Sequence[float], teacher: Sequence[float]) -> float:
    """What a student's first check, by MRR, has of its teacher's last one: on a large graph of the same triples."""
    return student[0] / max(teacher[-1], 1e-9)


def rule() -> Rule | None:
    """What rule.json says; None where nothing was fitted."""
    return json.loads(RULE.read_text(encoding="utf-8")) if RULE.is_file() else None


def defaults(graph: Graph, model: str, dim: int, epochs: int | None = None, rank: int = 0) -> dict[str, dict[str, Any]]:
    """The settings that a student of few bits and its teacher take; {} for those of `recipes.few_bits`.

    Args:
        epochs: what was asked for, in place of the rule's.
        rank: of the student, 0 for none.
    """
    if graph.name in NAMES or (known := rule()) is None or model not in known["models"]:
        return {}
    found = fitted(graph, known, floats(model, dim), rank)
    return {part: checked(values, epochs) for part, values in found.items()}


def fitted(graph: Graph, rule: Rule, numbers: int, rank: int = 0) -> dict[str, dict[str, Any]]:
    """`settings` for a graph and so many numbers of an entity of the teacher, at its rates and within those bounds.

    A student of low rank has the rate and the soft loss of `recipes.few_bits`, and more passes than others. The student
    alone scores at least as many candidates as teacher and student together.
    """
    found, listed = settings(figures(graph), rule), scale.listed(graph)
    shown = TRIPLES / max(1, len(graph.train))
    if shown > PASSES:  # else the bound below changes nothing, and the queries of so many triples take long to count
        shown = min(shown, PRODUCTS / products(graph, numbers, found["teacher"]))
    usual = found["teacher"]["epochs"]
    most = max(PASSES, shown) / usual
    for part, values in found.items():
        values["epochs"] = max(1, round(values["epochs"] * min(1.0, most)))
        if most < 1 and "schedule" in values:  # fewer than a constant rate takes
            values["schedule"] = "linear"
        if part != "stage 1" and scale.large(graph):
            values["lr"] *= ROW
    taught = found["stage 1"]
    if not rank:
        taught["epochs"] = scale.fewer(taught["epochs"], listed)
    else:
        least = scale.MORE * taught["epochs"] if listed else min(found["teacher"]["epochs"], -(-usual // 2))
        taught["epochs"] = max(taught["epochs"], least)
        del taught["alpha"], taught["lr"]
    both = found["teacher"]["epochs"] + taught["epochs"] * max(1, listed // scale.NEGATIVES)
    found["no-DS"]["epochs"] = max(found["no-DS"]["epochs"], both)
    return found


def products(graph: Graph, numbers: int, teacher: Mapping[str, Any]) -> float:
    """Products of numbers that the scores of one pass of a teacher take at most: of its queries with a batch's
    candidates, and of its triples with the relations of both directions where these are predicted."""
    answers = 2 * len(graph.train)
    queries = len(queries_of(graph.train)[0]) if answers else 1
    listed = min(graph.num_entities, scale.NEGATIVES + scale.BATCH * answers / queries)
    predicted = 2 * graph.num_relations * answers if teacher.get("relation_weight") else 0
    return numbers * (queries * listed + predicted)


def checked(values: dict[str, Any], epochs: int | None = None) -> dict[str, Any]:
    """Settings as those of a run, which is validated five times; without epochs, where others were asked for."""
    if epochs is not None:
        return {name: value for name, value in values.items() if name != "epochs"}
    return {**values, "check_every": max(1, values["epochs"] // 5)}
