"""The rule for graphs without a search (`distillation.rule`), and how it does on a graph that it was not fitted on.

    python -m kgdistil.paper.fitting search GRAPH --time 2h --bytes 16   what a search finds, in results/rules/searches/
    python -m kgdistil.paper.fitting test GRAPH [--of DATASET]           the rule of the other graphs, in left_out/
    python -m kgdistil.paper.fitting fit                                 rule.json, and results/rules/left_out.csv

GRAPH is a known graph's name or a file of triples. A search goes on where it stopped, and one that has a record is run
again by a longer --time. Settings and shares are fitted on validation triples alone. A graph whose lists change is
tested beside the search of its earlier lists, which --of names.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kgdistil import records
from kgdistil.answer.files import sealed, unsealed, write_json, write_text
from kgdistil.compress.size import GROUPS, floats
from kgdistil.distillation import recipes, rule, scale
from kgdistil.distillation.budget import Shape, alike, parse_time
from kgdistil.distillation.distil import batch_size
from kgdistil.distillation.search import PARTS, search
from kgdistil.errors import ConfigError, run_command
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import dataset_of
from kgdistil.graphs.readers import read_graph
from kgdistil.models import MODELS

MODEL, OTHERS = "ComplEx", ("ReciprocalComplEx",)  # the kind of a recipe without a search, and what else is tried
NEAR = 0.995  # trials of at least so much of the best MRR say what a graph takes
FEWEST = 3  # graphs of which a rule can be fitted
# Times the spread of a figure's logarithms. Penalties follow the data that a number learns from, which is why triples
# of an entity count most; the number of relations says least.
SPREAD = {"entities": 1.0, "relations": 2.0, "triples per entity": 0.5}


def folder(*names: str) -> Path:
    return records.results_folder().joinpath("rules", *names)


def shapes(graph: Graph, size: int) -> list[Shape]:
    """The students of so many bytes an entity, the one of one bit a number first; those of low rank, its numbers in
    more bits, have a teacher with it."""
    dim = 2 * size * GROUPS["1bit"] // MODELS[MODEL].entity_factor
    plain = alike(graph, MODEL, (dim, "1bit", 0))
    return [*plain, *((dim, name, 2 * size * GROUPS[name]) for name in ("2bit", "4bit"))]


def shared(graph: Graph, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    size = min(scale.BATCH, batch_size(graph))
    return {"dataset": dataset_of(graph), "model": MODEL, "seed": seed, "device": device, "batch_size": size}


def about(graph: Graph, device: str, **more: Any) -> dict[str, Any]:
    """What a record says of the graph and of how it was made."""
    made = {"command": records.command(), "device": records.describe_device(device), "threads": torch.get_num_threads()}
    sizes = {**graph.sizes(), "sha256": graph.sha256}
    return {
        "dataset": dataset_of(graph),
        "graph": sizes,
        "figures": rule.figures(graph),
        **more,
        **made,
        **records.provenance(),
    }


# ---- searches -------------------------------------------------------------------------------------------------------
def searched(
    graph: Graph, seconds: float, size: int, progress: bool | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Search for students of so many bytes an entity; the record that `fit` reads, with every trial."""
    with records.kept_in(records.runs_folder() / "rules"):
        found = search(graph, shared(graph, device=device), shapes(graph, size), seconds, progress, OTHERS)
        runs = found.recipe.run(graph, progress=False)
        chosen = {
            part: {split: run.record[split]["both"]["mrr"] for split in ("valid", "test")} for part, run in runs.items()
        }
    return about(graph, device, bytes=size, seconds=seconds, chosen=chosen, trials=found.trials)


def kept(found: dict[str, Any]) -> list[tuple[float, float]]:
    """Of the best student of each shape in a search: the share of its teacher's MRR at its first check, and at last."""
    best: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in complete(found, "stage 1"):
        shape = tuple(row["config"].get(name, 0) for name in ("dim", "group", "rank"))
        best[shape] = max(best.get(shape, row), row, key=lambda row: row["valid_mrr"])
    teachers = {row["id"]: row for row in complete(found, "teacher")}
    pairs = [(row, teachers[row["config"]["teacher"]]) for row in best.values()]
    return [(rule.first_share(a["checks"], b["checks"]), a["valid_mrr"] / b["valid_mrr"]) for a, b in pairs]


def read(name: str) -> list[dict[str, Any]]:
    """The records of a folder below results/rules/."""
    return [unsealed(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder(name).glob("*.json"))]


# ---- the rule -------------------------------------------------------------------------------------------------------
def fit(searches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The rule of some graphs' searches, as `distillation.rule` reads it.

    Raises:
        ConfigError: they are of fewer than `FEWEST` graphs.
    """
    graphs: dict[str, list[dict[str, Any]]] = {}
    for found in searches:
        graphs.setdefault(found["dataset"], []).append(found)
    if len(graphs) < FEWEST:
        raise ConfigError(f"a rule takes the searches of {FEWEST} graphs; results/rules/searches has {len(graphs)}")
    logs = np.log([list(found[0]["figures"].values()) for found in graphs.values()])  # [graphs, figures]
    names = list(next(iter(graphs.values()))[0]["figures"])
    pairs = [pair for several in graphs.values() for found in several for pair in kept(found)]
    terms, lost = [rule.lost(first) for first, _ in pairs], [1 - share for _, share in pairs]
    return {
        "models": [MODEL, *OTHERS],
        "scale": {
            name: round(SPREAD[name] * max(s, 0.1), 4) for name, s in zip(names, logs.std(axis=0).tolist(), strict=True)
        },
        "graphs": {
            name: {
                "figures": several[0]["figures"],
                "model": kind(several),
                "settings": {part: taken(several, part) for part in PARTS},
            }
            for name, several in graphs.items()
        },
        "share": np.linalg.lstsq(terms, lost, rcond=None)[0].round(6).tolist(),
    }


def complete(found: dict[str, Any], part: str, model: str = "") -> list[dict[str, Any]]:
    """The trials of a part that came to their end, of all kinds or of one."""
    rows = (row for row in found["trials"] if (row["part"], row["state"]) == (part, "complete"))
    return [row for row in rows if model in ("", row["config"]["model"])]


def kind(searches: list[dict[str, Any]]) -> str:
    """The kind of model whose best teachers are the best, over a graph's searches.

    Not of students: one of a shape that few trials tried has its teacher's kind, whatever that came to be.
    """
    best = {
        model: sum(
            max((row["valid_mrr"] for row in complete(found, "teacher", model)), default=0) for found in searches
        )
        for model in (MODEL, *OTHERS)
    }
    return max(best, key=best.__getitem__)


def taken(searches: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """What the best trials of a part took, in their mean over a graph's searches, of the kind that it takes."""
    best, model = [], kind(searches)
    for found in searches:
        rows = complete(found, part, model) or complete(found, part)
        high = max(row["valid_mrr"] for row in rows)
        best += [row["config"] for row in rows if row["valid_mrr"] >= NEAR * high]
    names = ["lr", "penalty", "relation_weight", "epochs"]
    names += ["alpha", "temperature"] if part == "stage 1" else ["regulariser", "schedule"]
    rows = [{name: config[name] for name in names} for config in best]
    for row, config in zip(rows, best, strict=True):
        if part != "stage 1" and config.get("accumulators") == "row":
            row["lr"] /= rule.ROW
        if part == "stage 1" and config.get("negatives", 0) > scale.NEGATIVES:
            row["epochs"] *= scale.FEWER
    return rule.together(rows, [1.0] * len(rows))


# ---- leaving one out ------------------------------------------------------------------------------------------------
def left_out(
    graph: Graph,
    found: dict[str, Any],
    searches: list[dict[str, Any]],
    progress: bool | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """What a graph's students come to by the rule of all other graphs, in the shape that its own search chose.

    Returns:
        A record: of each part the MRRs of the searched run and of the rule's; the share that was kept, and expected
        (`distil.predicted`).
    """
    known = fit(other for other in searches if other["dataset"] != found["dataset"])
    figures = rule.figures(graph)
    student = next(row["config"] for row in found["trials"] if row["chosen"] and row["part"] == "stage 1")
    named = rule.voted([other["model"] for other in known["graphs"].values()], rule.weights(figures, known))
    numbers = floats(named, student["dim"])
    fitted = {
        part: rule.checked(values) for part, values in rule.fitted(graph, known, numbers, student["rank"]).items()
    }
    given = shared(graph, device=device) | {"model": named, "dim": student["dim"], "fitted": fitted}
    given |= {name: student[name] for name in ("group", "rank")}
    more = scale.settings(graph, named, student["dim"], "softmax")
    recipe = recipes.few_bits(**given, listed=scale.listed(graph), more=more)
    with records.kept_in(records.runs_folder() / "rules"):
        runs = recipe.run(graph, progress)
        ours = {
            part: {split: run.record[split]["both"]["mrr"] for split in ("valid", "test")} for part, run in runs.items()
        }
    curves = [[check["valid_mrr"] for check in runs[part].record["curve"]] for part in ("stage 1", "teacher")]
    share = {"first": (first := rule.first_share(*curves)), "expected": rule.share(first, known)}
    share |= {split: ours["stage 1"][split] / ours["teacher"][split] for split in ("valid", "test")}
    made = {
        "bytes": found["bytes"],
        "others": sorted(known["graphs"]),
        "model": named,
        "settings": fitted,
        "rank": student["rank"],
    }
    if dataset_of(graph) != found["dataset"]:
        made["of"] = found["dataset"]
    made |= {"negatives": {part: run.config.negatives for part, run in runs.items()}}
    return about(graph, device, **made, searched=found["chosen"], ruled=ours, share=share)


def search_of(graph: Graph, searches: list[dict[str, Any]], of: str | None) -> list[dict[str, Any]]:
    """The searches of a graph, or of its earlier lists, which `of` names.

    Raises:
        ConfigError: there is none.
    """
    if found := [x for x in searches if x["dataset"] == of or (of is None and x["graph"]["sha256"] == graph.sha256)]:
        return found
    names = ", ".join(sorted({x["dataset"] for x in searches}))
    asked = of or f"{graph.name} with the SHA-256 {graph.sha256}"
    raise ConfigError(f"no search of {asked}, only of {names}: take one of these, for a graph's earlier lists by --of")


def table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row for each graph and size that was left out: the rule's MRRs as shares of the searched ones; what a student
    was expected to keep, but where that was measured in another way, and kept."""
    found = []
    for row in rows:
        parts = {
            f"{part}, {split}": row["ruled"][part][split] / row["searched"][part][split]
            for part in PARTS
            for split in ("valid", "test")
        }
        share = {"expected share": row["share"]["expected"] if "first" in row["share"] else math.nan}
        share |= {"kept share": row["share"]["test"]}
        found.append({"graph": row["dataset"], "bytes": row["bytes"], **parts, **share})
    return pd.DataFrame(found).round(4)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.fitting", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["search", "test", "fit"])
    parser.add_argument(
        "graphs", nargs="*", help="known graphs or files of triples: of a test, those that are left out"
    )
    parser.add_argument("--time", default="30min", help="of a search")
    parser.add_argument("--bytes", type=int, default=16, help="of an entity of a student that is searched for")
    parser.add_argument("--of", metavar="DATASET", help="of a test: the search of the graph's earlier lists")
    parser.add_argument("--device", default="cpu", help="that trains  [default: %(default)s]")
    given = parser.parse_args(arguments)
    searches = read("searches")
    if given.what == "fit":
        write_json(rule.RULE, fit(searches))
        write_text(folder("left_out.csv"), table(read("left_out")).to_csv(index=False))
    for source in given.graphs:
        graph = read_graph(source)
        if given.what == "search":
            record = searched(graph, parse_time(given.time), given.bytes, device=given.device)
            write_json(folder("searches", f"{record['dataset']}-{given.bytes}.json"), sealed(record))
            continue
        for found in search_of(graph, searches, given.of):
            record = left_out(graph, found, searches, device=given.device)
            write_json(folder("left_out", f"{record['dataset']}-{record['bytes']}.json"), sealed(record))
    return 0


if __name__ == "__main__":
    run_command(main)
