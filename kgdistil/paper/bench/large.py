"""`python -m kgdistil.paper.bench.large graph.tsv`: a large graph from its file to a student, and what came of it.

The runs are those of `kgdistil distill graph.tsv --budget 16B/entity`: one that was stopped goes on. Afterwards the
teacher, the same rounded to the student's bytes, coded by FAISS in as many unless entities are very many, the student
alone and the distilled one rank the same test triples against all entities; differences are by the paired bootstrap
over these. Results: `results/large/<name>.json`, with the whole records of the runs; those of another seed than the
first: `results/large/seeds/<name>@<seed>.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.compress.packing import quantised
from kgdistil.compress.size import GROUPS, floats, row_bytes
from kgdistil.compress.whole import keep_frequent
from kgdistil.distillation.budget import Plan, bytes_of, plan, whole_of
from kgdistil.distillation.distil import Distilled, distil, rounded, rounded_ranks
from kgdistil.distillation.ranked import ranks_of
from kgdistil.distillation.recipes import bytes_per_entity
from kgdistil.distillation.scale import memory_needed
from kgdistil.distillation.statistics import bootstrap
from kgdistil.errors import ConfigError, run_command, short
from kgdistil.evaluation import KnownTriples, rank, sampled
from kgdistil.graph import Graph
from kgdistil.graphs.readers import read_graph
from kgdistil.models import KGEModel, with_entities
from kgdistil.paper import rivals
from kgdistil.records import results_folder
from kgdistil.students.labelled import Labelled

MODELS = {"teacher": "teacher", "no-DS": "alone", "stage 1": "distilled"}  # runs, and what the page calls them
FEWEST = 20  # triples of a relation, of which it has a row
COMPARED = 10_000  # validation triples that say which of two ways of rounding is the better
MOST_CODED = (
    1_000_000  # entities up to which FAISS codes a teacher's rows, which it takes in float32, several times over
)
SHOWN, ANSWERS = 3, 5  # queries of a relation that are shown, and answers of each


def folder() -> Path:
    return results_folder() / "large"


def path_of(name: str, seed: int = 0) -> Path:
    return folder() / "seeds" / f"{name}@{seed}.json" if seed else folder() / f"{name}.json"


def seeds_of(path: Path) -> list[dict[str, Any]]:
    """The report of a file of `folder`, and those of its other seeds."""
    others = sorted((path.parent / "seeds").glob(f"{path.stem}@*.json"))
    return [json.loads(each.read_text(encoding="utf-8")) for each in (path, *others)]


def over_seeds(reports: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each model mean test MRR and its standard error, of triples and of seeds, and how many seeds there are.

    Seeds rank the same triples, or as many of the same graph, so that these do not become more by being ranked again.
    """
    out = {}
    for name in reports[0]["rows"][0]["models"] | reports[-1]["rows"][0]["models"]:
        rows = [told["rows"][0]["models"][name] for told in reports if name in told["rows"][0]["models"]]
        mrr, se = (np.array([row[key] for row in rows]) for key in ("mrr", "se"))
        error = np.sqrt(np.square(se).mean() + spread(mrr) ** 2)
        out[name] = {"mrr": float(mrr.mean()), "se": float(error), "seeds": len(rows)}
    return out


# ---- ranks ----------------------------------------------------------------------------------------------------------
def reciprocals(done: Distilled, graph: Graph, triples: torch.Tensor) -> dict[str, np.ndarray]:
    """Reciprocal filtered ranks [n] of the same triples by each model that there is, the mean of head and tail.

    "rounded" is the teacher of as many bytes, in the student's shape or `by_bits`, as validation says.

    Models are loaded one after the other: a large table is in memory once. Where the runs ended with a sample as
    large, its ranks are kept from model to model, so that a call that is stopped goes on.
    """
    known, found = KnownTriples(graph.known.cpu(), graph.num_relations), {}
    kept, precision = done.runs["stage 1"], done.student.precision
    same = len(triples) == len(sampled(graph.test, kept.config.final_sample))
    for name, run in done.runs.items():
        ranks = ranks_of(run, graph, "test", known) if same else rank(run.load(graph), triples, known)
        found[MODELS[name]] = ranks.reciprocal()
    found |= {name: rank(model, triples, known).reciprocal() for name, model in coded(done, graph)}
    model, plain = rounded(done.runs, kept, precision, graph), by_bits(done, graph)
    if model is not None and plain is not None:
        some = sampled(graph.valid, COMPARED)
        mrr = [rank(x, some, known).reciprocal().mean() for x in (model, plain)]
        if mrr[1] > mrr[0]:
            return found | {"rounded": rank(plain, triples, known).reciprocal()}
    if model is not None:
        ranks = rounded_ranks(done.runs, kept, precision, graph, known, model) if same else rank(model, triples, known)
        found["rounded"] = ranks.reciprocal()
    return found


def by_bits(done: Distilled, graph: Graph) -> KGEModel | None:
    """Beside a student of low rank: all the teacher's numbers, in as few bits as make as many bytes, those entities
    whole that fit. None for another student, and where no such bits do."""
    kept = done.runs["stage 1"].config
    each = row_bytes(kept.model, kept.dim, kept.group, kept.rank)
    same = [precision for precision, group in GROUPS.items() if row_bytes(kept.model, kept.dim, group) == each]
    if not (kept.rank and same and "teacher" in done.runs):
        return None
    model = done.runs["teacher"].load(graph)
    keep_frequent(model, graph.train, whole_of(graph, kept.model, (kept.dim, same[0], 0)) if kept.whole else 0)
    return quantised(model, same[0])


def coded(done: Distilled, graph: Graph) -> Iterator[tuple[str, KGEModel]]:
    """The teacher in codes by each of FAISS's quantisers, of as many bytes an entity as the student's.

    None of a graph of more entities than `MOST_CODED`. Their codebooks count as nothing.
    """
    if "teacher" not in done.runs or graph.num_entities > MOST_CODED:
        return
    teacher, size = done.runs["teacher"].load(graph), bytes_per_entity(done.runs["stage 1"].config, graph.num_entities)
    rows = teacher.entities.data
    for name in rivals.BY_FAISS:
        if rivals.is_tried(name, size, 4 * rows.shape[1], len(rows)):
            yield name, with_entities(teacher, rivals.UNTRAINED[name](rows, size, teacher.paired))


def spread(x: np.ndarray) -> float:
    """The standard error of a mean over triples."""
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0


def rows_of(found: Mapping[str, np.ndarray], relation: np.ndarray, labels: Any) -> list[dict[str, Any]]:
    """One row for all triples and one for each relation that has `FEWEST` of them, the most frequent first."""
    every = np.ones(len(relation), bool)
    parts = [("all", every), *((labels[r], relation == r) for r in np.unique(relation))]
    rows = []
    for name, which in parts:
        if which.sum() < FEWEST and name != "all":
            continue
        means = {model: {"mrr": float(x[which].mean()), "se": spread(x[which])} for model, x in found.items()}
        rows.append({"relation": name, "triples": int(which.sum()), "models": means})
    return [rows[0], *sorted(rows[1:], key=lambda row: -row["triples"])]


def differences(found: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """What the distilled student has more than each other model: mean, 95 % interval and p, over triples."""
    taught, out = found["distilled"], {}
    for name, x in found.items():
        if name != "distilled":
            low, high, p = bootstrap(x, taught)
            out[name] = {"gain": float((taught - x).mean()), "low": low, "high": high, "p": p}
    return out


# ---- what it answers ------------------------------------------------------------------------------------------------
def examples(student: Labelled, graph: Graph, triples: torch.Tensor, relations: list[str]) -> list[dict[str, Any]]:
    """The best answers to (head, relation, ?) of the first few test triples of each relation."""
    asked, out = student.student(), []
    for relation in relations:
        number = list(graph.relations).index(relation)
        of_relation = triples[triples[:, 1] == number][:SHOWN]
        for head, _, tail in of_relation.tolist():
            found = asked.predict(head=head, relation=number, k=ANSWERS, by="id")
            answers = [str(x) for x in found["entity"]]
            out.append({"head": graph.entities[head], "relation": relation, "tail": graph.entities[tail]})
            out[-1] |= {"answers": answers, "scores": [round(float(x), 3) for x in found["score"]]}
    return out


def of_shape(graph: Graph, bought: Plan, text: str) -> Plan:
    """The plan with another shape, of as many bytes an entity or not.

    Raises:
        ConfigError: not a dimension, a precision of few bits and a rank.
    """
    parts = text.split(",")
    if len(parts) != 3 or parts[1] not in GROUPS or not (parts[0] + parts[2]).isdecimal():
        raise ConfigError(f"--shape {short(text)}: give a dimension, one of {', '.join(GROUPS)} and a rank or 0")
    dim, precision, rank = int(parts[0]), parts[1], int(parts[2])
    size = bytes_of(graph, bought.model, dim, precision, rank)
    return replace(bought, dim=dim, precision=precision, rank=rank, teacher_dim=dim, bytes=size, whole=False)


# ---- all of it ------------------------------------------------------------------------------------------------------
def report_of(graph: Graph, bought: Plan, done: Distilled, sample: int, relations: list[str]) -> dict[str, Any]:
    """What `results/large/<name>.json` says beside where it was made."""
    runs = {MODELS[name]: found for name, found in done.runs.items()}
    student = done.runs["stage 1"]
    triples = sampled(graph.test.cpu(), sample)
    found = reciprocals(done, graph, triples)
    width = floats(runs["teacher"].config.model, runs["teacher"].config.dim)
    memory = {name: memory_needed(run.config, graph, width) for name, run in runs.items()}
    return {
        "graph": {**graph.sizes(), "sha256": graph.sha256, "notes": list(graph.notes)},
        "plan": str(bought),
        "bytes_per_entity": {"teacher": 4 * width, "student": bytes_per_entity(student.config, graph.num_entities)},
        "student_bytes": bought.bytes,
        "memory_told": {name: sum(parts.values()) for name, parts in memory.items()},
        "runs": {name: run.record for name, run in runs.items()},
        "ranked": len(triples),
        "rows": rows_of(found, triples[:, 1].numpy(), graph.relations),
        "differences": differences(found),
        "verdict": done.verdict,
        "examples": examples(done.student, graph, triples, relations),
    }


def main(arguments: list[str] | None = None) -> int:
    """Write `results/large/<name>.json` and print its rows.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.large", description=__doc__.split("\n")[0])
    parser.add_argument("graph", type=Path, help="the graph's file")
    parser.add_argument("--name", help="of the results' file  [default: the graph's]")
    parser.add_argument("--budget", default="16B/entity")
    parser.add_argument(
        "--shape", metavar="DIM,PRECISION,RANK", help="of the student, as 128,2bit,64, in place of what the budget buys"
    )
    parser.add_argument("--epochs", type=int, help="of the teacher  [default: the recipe's]")
    parser.add_argument("--sample", type=int, default=10_000, help="test triples that are ranked at most; 0: all")
    parser.add_argument(
        "--ask", nargs="*", default=[], metavar="RELATION", help="show answers to test triples of these"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="that trains  [default: %(default)s]")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    graph = read_graph(options.graph)
    read = time.monotonic() - began
    if unknown := [name for name in options.ask if name not in graph.relations]:
        few = ", ".join(map(short, graph.relations[:5]))
        raise ConfigError(f"--ask {short(unknown[0])}: {options.graph} has no such relation; it has {few}")
    bought = plan(graph, options.budget, few_bits=True)
    if options.shape:
        bought = of_shape(graph, bought, options.shape)
    if bought.precision not in GROUPS:
        raise ConfigError(f"--budget {options.budget} buys {bought}; give one that a student of few bits fits")
    size = {name: getattr(bought, name) for name in ("model", "dim", "precision", "teacher_dim", "rank", "whole")}
    if graph.num_entities <= MOST_CODED:
        rivals.library()
    done = distil(graph, **size, epochs=options.epochs, seed=options.seed, device=options.device, paths=False)
    report = {
        **report_of(graph, bought, done, options.sample, options.ask),
        "read_seconds": round(read, 2),
        "command": records.command(),
        "device": records.describe_device(options.device),
        "threads": torch.get_num_threads(),
        **records.provenance(),
    }
    target = path_of(options.name or graph.name, options.seed)
    write_json(target, report)
    for row in report["rows"]:
        told = ", ".join(f"{name} {x['mrr']:.3f}" for name, x in row["models"].items())
        print(f"{row['relation']:16s} {row['triples']:6d} triples: {told}")
    print(f"written: {records.shown(target)}")
    return 0


if __name__ == "__main__":
    run_command(main)
