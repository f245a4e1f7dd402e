"""What a byte buys: one teacher, and everything of 256 to 16 bytes an entity that could stand in for it.

| method | what an entity is | trained |
| --- | --- | --- |
| distilled | as many floats as the teacher's, in four-bit codes | from the rounded teacher, on a teacher's lists |
| own-lists | the same, where a larger teacher's lists are to be had | on the lists of the teacher it starts from |
| committee | the same | once more, from the distilled student, on the mean lists of several of other seeds |
| paths | the same | on the lists of a path model and a distilled student, training queries' and others' |
| coded-alone | the same | without a teacher |
| low-rank | fewer floats, a map that all share, in four-bit codes | from the teacher's principal axes, on its lists |
| low-rank-alone | the same | without a teacher |
| small-distilled | fewer floats, float32 | on a teacher's lists |
| small | the same | without a teacher |
| reciprocal | as distilled, but `ReciprocalComplEx` | on the lists of one teacher, or of the mean of several |
| reciprocal-alone | the same | without a teacher |
| reciprocal-low-rank | fewer floats, a map that all share; a form of `cells.FORMS` | on the lists of that mean |
| reciprocal-low-rank-alone | the same | without a teacher |
| rounded | the teacher's row in four-bit codes | not at all |
| FAISS | the teacher's row by FAISS's product quantiser, eight bits a code | not at all |
| OPQ, RQ, LSQ | the same after a rotation that is learned; residual codes; additive ones | not at all |
| PCA, random projection | the teacher's row on fewer axes, float32 | not at all |

The trained ones are cells of `reproduce` (protocol "frontier"); for few floats the students of Tables 3, 4 and 6
(protocol "tuned") stand in where they are the better on validation. The others are made here and recorded in
`results/frontier/<graph>.json`. `python -m kgdistil.paper.frontier --graph wn18rr` does what is missing of both.
Those of low rank are the better on validation of two forms where both were tried (`FINER_SIZES`), and a rounded teacher
is that of two where a size's own and a wider one were rounded (`--rounded`).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.checkpoint import load_model
from kgdistil.compress.size import GROUPS, PRECISION_OF, floats, model_bytes
from kgdistil.config import RunConfig
from kgdistil.distillation import paths
from kgdistil.distillation.statistics import bootstrap_of_seeds, resampled
from kgdistil.errors import ConfigError, run_command
from kgdistil.evaluation import KnownTriples, evaluate
from kgdistil.graph import NAMES, Graph
from kgdistil.graphs.datasets import load
from kgdistil.models import with_entities
from kgdistil.paper import fitting
from kgdistil.paper.bench import large
from kgdistil.paper.cells import (
    ALONE,
    CODED,
    COMMITTEE,
    FRONTIER,
    GRAPHS,
    LOW_RANK,
    OWN_LISTS,
    PATHS,
    RECIPROCAL,
    SMALL,
    Cell,
    parse,
    shape,
    table_cells,
)
from kgdistil.paper.costs import print_plan
from kgdistil.paper.ensemble import join, joined_name
from kgdistil.paper.reading import Ours
from kgdistil.paper.recipe import LARGEST_TEACHER, config, guide, joins, path_settings, with_needs
from kgdistil.paper.reproduce import add_jobs, log_to_terminal, work
from kgdistil.paper.rivals import BY_FAISS, UNTRAINED, is_tried
from kgdistil.paper.tasks import has_weights
from kgdistil.training.loop import run

log = logging.getLogger("kgdistil")
MODEL = "ComplEx"
SIZES = {
    256: LARGEST_TEACHER,
    128: LARGEST_TEACHER,
    64: 1024,
    32: 512,
    16: 512,
}  # bytes of an entity: of its teacher's
# The students of few bits that have a teacher: which is best, validation says
DISTILLED = ("distilled", COMMITTEE, PATHS, "low-rank", "reciprocal", "reciprocal-low-rank")
# Smaller teachers to start from, where those are as good or better.
OTHER_SIZES = {"fb15k-237": {16: 256}, "umls": dict.fromkeys(SIZES, 512)}
# Sizes that a student of low rank is tried for, where those are not all: entities of WN18RR lie in no small subspace,
# and for 128 bytes of FB15k-237, where a plain student has as many floats, there was no time.
LOW_RANK_SIZES = {"wn18rr": (16,), "fb15k-237": (64, 32, 16), "umls": (16,)}
FINER_SIZES = {"fb15k-237": (64,)}  # that half as many numbers, in four bits each, are tried for as well

RECIPROCAL_SIZES = {256: 4096, 128: 4096, 64: 1024, 32: 512, 16: 512}  # as SIZES, of `ReciprocalComplEx`
COMMITTEE_SIZES = {"wn18rr": (256,)}  # that a committee is tried for
PATHS_SIZES = {"wn18rr": tuple(SIZES)}  # that a path model teaches
RECIPROCAL_RANKS = {"fb15k-237": (64, 32, 16)}  # sizes of its students of low rank, which start from the widest:
RECIPROCAL_WIDEST = 8192  # bytes of an entity
# The same from a teacher that a CPU trained, in four bits a number: sizes, and bytes of its entity.
BY_CPU = {"fb15k-237": (tuple(SIZES), 10240)}
BOTH_WAYS = {"distilled": "reciprocal", "coded-alone": "reciprocal-alone"}  # what its students are called
BOTH_WAYS |= {name: "reciprocal-low-rank" + ALONE * name.endswith(ALONE) for name in LOW_RANK}
USUAL_RANK = ("low-rank", "low-rank-alone")
FINER = {f"low-rank-4bit{end}": f"low-rank{end}" for end in ("", ALONE)}  # and what they are called
# Of several of a size the best on validation is shown.
ONE_OF = (*SMALL, *USUAL_RANK, *(BOTH_WAYS[name] for name in LOW_RANK))


# ---- what is trained ------------------------------------------------------------------------------------------------
def teacher_cell(dataset: str, size: int) -> Cell:
    """The teacher of students of `size` bytes: four bits a float of it for the largest, one for the smallest."""
    sizes = SIZES | OTHER_SIZES.get(dataset, {})
    return Cell(FRONTIER, dataset, MODEL, "teacher", sizes.get(size, 8 * size))


def low_rank_cells(dataset: str, sizes: Iterable[int]) -> list[Cell]:
    """Students of low rank, which start from the largest teacher; as many floats as it has are the most."""
    large = teacher_cell(dataset, max(SIZES)).bytes
    tried = [size for size in sizes if size in LOW_RANK_SIZES.get(dataset, SIZES) and 16 * size <= large]
    forms = {size: (*USUAL_RANK, *(FINER if size in FINER_SIZES.get(dataset, ()) else ())) for size in tried}
    return [Cell(FRONTIER, dataset, MODEL, method, size, large) for size in tried for method in forms[size]]


def cells(dataset: str, sizes: Iterable[int] = SIZES) -> list[Cell]:
    """The teachers and every trained student of a graph, the largest first."""
    sizes = list(sizes)
    teachers = {size: teacher_cell(dataset, size) for size in sizes}
    students = [
        Cell(FRONTIER, dataset, MODEL, method, size, teacher.bytes)
        for size, teacher in teachers.items()
        for method in possible((*CODED, *SMALL), size, teacher.bytes)
    ]
    larger = {(cell.size, cell.teacher_size) for cell in students if cell.distilled and guide(cell) != cell.teacher}
    students = [c for c in students if c.method != OWN_LISTS or (c.size, c.teacher_size) in larger]
    students = [c for c in students if c.method != COMMITTEE or c.bytes in COMMITTEE_SIZES.get(dataset, ())]
    students = [c for c in students if c.method != PATHS or c.bytes in PATHS_SIZES.get(dataset, ())]
    return [*dict.fromkeys(teachers.values()), *students, *low_rank_cells(dataset, sizes)]


def reciprocal_cells(dataset: str) -> list[Cell]:
    """What there is of `ReciprocalComplEx`, whose teachers take long: `complete` leaves them to `reproduce`."""
    students = [
        Cell(FRONTIER, dataset, RECIPROCAL, method, size, teacher)
        for size, teacher in RECIPROCAL_SIZES.items()
        for method in ("distilled", "coded-alone")
    ]
    students += [
        Cell(FRONTIER, dataset, RECIPROCAL, method, size, RECIPROCAL_WIDEST)
        for size in RECIPROCAL_RANKS.get(dataset, ())
        for method in LOW_RANK
    ]
    sizes, teacher = BY_CPU.get(dataset, ((), 0))
    students += [Cell(FRONTIER, dataset, RECIPROCAL, method, size, teacher) for size in sizes for method in FINER]
    return with_needs(students)


def possible(methods: Iterable[str], size: int, teacher: int) -> list[str]:
    """Those of the methods that make `size` bytes of a teacher's row of so many: four bits a float is the most."""
    coded = (*CODED, "rounded", *BY_FAISS)
    there = [m for m in methods if is_tried(m, size, teacher)]
    return [m for m in there if (size * 8 <= teacher if m in coded else size < teacher)]


# ---- what is not ----------------------------------------------------------------------------------------------------
def path(dataset: str) -> Path:
    return records.results_folder() / "frontier" / f"{dataset}.json"


def ranks_name(dataset: str, method: str, size: int, of: int = 0) -> str:
    """Under which the test ranks of something untrained are kept; `of` as `measure` has it."""
    return f"frontier-{dataset}-{method.replace(' ', '-')}-{size}" + f"-of-{of}" * (of > 0)


def measure(dataset: str, graph: Graph, sizes: Iterable[int] = SIZES, other: Cell | None = None) -> dict[str, Any]:
    """Evaluate everything untrained that is missing; the file is rewritten after each.

    The teachers have been trained. What was measured of another teacher is measured again. With `other`, a teacher, it
    is this one that is rounded to each size, beside the ones that sizes have: its rows say `of` how many bytes.
    """
    chosen = {size: other or teacher_cell(dataset, size) for size in sizes}
    teachers = {size: run(config(cell), graph, progress=False) for size, cell in chosen.items()}
    of = other.bytes if other is not None else 0
    rows = [
        row
        for row in (read(dataset) or {"rows": []})["rows"]
        if row["bytes"] not in teachers or row.get("of", 0) != of or row.get("teacher") == teachers[row["bytes"]].id
    ]
    known = KnownTriples(graph.known, graph.num_relations)
    for size, found in teachers.items():
        teacher = found.load(graph)
        its = evaluate(teacher, graph, known=known).metrics()["both"]["mrr"]  # other processors train other last digits
        for method in possible(UNTRAINED, size, chosen[size].bytes):
            if not is_tried(method, size, chosen[size].bytes, graph.num_entities):
                continue
            if any((row["method"], row["bytes"], row.get("of", 0)) == (method, size, of) for row in rows):
                continue
            with torch.no_grad():
                model = with_entities(teacher, UNTRAINED[method](teacher.entities.data, size, teacher.paired))
            ranks = {split: evaluate(model, graph, split, known=known) for split in ("valid", "test")}
            name = ranks_name(dataset, method, size, of)
            records.write_ranks(name, ranks["test"])
            rows.append(
                {
                    "method": method,
                    "bytes": size,
                    **({"of": of} if of else {}),
                    "teacher": found.id,
                    "teacher_mrr": its,
                    "commit": records.provenance()["commit"],
                    "command": records.command(),
                    "ranks": name,
                    **{split: r.metrics() for split, r in ranks.items()},
                }
            )
            log.info("%s of %d bytes: test MRR %.3f", method, size, rows[-1]["test"]["both"]["mrr"])
            record = {
                "graph": {**graph.sizes(), "sha256": graph.sha256},
                "command": records.command(),
                "device": records.describe_device("cpu"),
                **records.provenance(),
                "rows": rows,
            }
            write_json(path(dataset), record)
    return {"rows": rows}


def read(dataset: str) -> dict[str, Any] | None:
    """What `measure` left."""
    place = path(dataset)
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None


def measure_mean(cell: Cell, device: str = "cpu") -> dict[str, Any]:
    """Rank by the mean of several teachers, of whom a cell's student learns: a file of `means_of`.

    Or by a path model and the run that it is multiplied with, each and both: `results/frontier/<graph>-paths.json`.

    Raises:
        ConfigError: its teacher is one run, or their weights are not here.
    """
    runs = [run for each in joins(cell) if (run := config(each, device))]
    if not runs or not all(map(has_weights, runs)):
        raise ConfigError(f"{cell}: train its teachers first, two or more: `python -m kgdistil.paper.reproduce {cell}`")
    graph, members = load(cell.dataset), [run.run_id for run in runs]
    if cell.method == PATHS:
        return measure_paths(cell, graph, members[0])
    join(graph, *members)
    model = load_model(records.model_folder(joined_name(*members)), graph).to(device)
    ranks = {split: evaluate(model, graph, split) for split in ("valid", "test")}
    records.write_ranks(joined_name(*members), ranks["test"])
    record = {
        "cell": str(cell),
        "members": members,
        "bytes": floats(cell.model, model.dim) * 4,
        "graph": {**graph.sizes(), "sha256": graph.sha256},
        "command": records.command(),
        "device": records.describe_device(device),
        **records.provenance(),
        **{split: found.metrics() for split, found in ranks.items()},
    }
    same = [x for x in means_of(cell.dataset) if json.loads(x.read_text(encoding="utf-8"))["members"] == members]
    write_json(same[0] if same else mean_path(cell.dataset, f"mean-{cell.teacher_size}"), record)
    return record


def measure_paths(cell: Cell, graph: Graph, run_id: str) -> dict[str, Any]:
    """Rank by a path model, by the run beside it, and by both."""
    settings = path_settings(cell)
    began = time.monotonic()
    fitted = paths.fit(graph, settings)
    seconds = time.monotonic() - began
    both = paths.Joined(fitted, load_model(records.model_folder(run_id), graph))
    known = KnownTriples(graph.known, graph.num_relations)
    metrics: dict[str, Any] = {}
    for split in ("valid", "test"):
        triples = getattr(graph, split)
        ranks = {
            "paths": paths.Joined(fitted, both.model, share=0.0).ranks(triples, known),
            "beside": evaluate(both.model, graph, split, known=known),
            "both": both.ranks(triples, known),
        }
        metrics[split] = {name: found.metrics() for name, found in ranks.items()}
    name = f"frontier-{cell.dataset}-paths"
    records.write_ranks(name, ranks["both"])
    record = {
        "cell": str(cell),
        "members": [run_id],
        "paths": asdict(settings),
        "weights": fitted.weights.numel(),
        "seconds": round(seconds, 1),
        "ranks": name,
        "graph": {**graph.sizes(), "sha256": graph.sha256},
        "command": records.command(),
        "device": records.describe_device("cpu"),
        "threads": torch.get_num_threads(),
        **records.provenance(),
        **metrics,
    }
    write_json(mean_path(cell.dataset, PATHS), record)
    return record


def mean_path(dataset: str, of: str) -> Path:
    return path(dataset).with_name(f"{dataset}-{of}.json")


def means_of(dataset: str) -> list[Path]:
    """Of means of teachers that were ranked: `results/frontier/<graph>-mean….json`, by the bytes of a teacher."""
    return sorted(path(dataset).parent.glob(f"{dataset}-mean*.json"))


# ---- all of it in one table -----------------------------------------------------------------------------------------
def points(dataset: str, others: bool = True) -> pd.DataFrame:
    """Everything that was measured: method, bytes, trained, mrr, hits@10, valid_mrr, ranks (those kept), run.

    Of several teachers that were rounded alike the best on validation is there; with `others` False a size's own.

    Where several seeds have run the metrics are their means, `run` that of seed 0, and `deviation` that of the MRRs.
    And `weights`, the bytes of a trained student's file, which holds relations, codebooks and a map besides.
    """
    rows, ours = list[dict[str, Any]](), Ours()
    both_ways = [(BOTH_WAYS[c.method], c.bytes, c) for c in reciprocal_cells(dataset) if c.method in BOTH_WAYS]
    own = [(FINER.get(cell.method, cell.method), cell.bytes, cell) for cell in cells(dataset)]
    for method, size, cell in [*own, *both_ways, *of_the_tables(dataset)]:
        found = ours.seeds(cell)
        if not found:
            continue
        mrr = [record["test"]["both"]["mrr"] for record in found]
        row = {
            "method": method,
            "bytes": size,
            "trained": True,
            "ranks": "+".join(record["id"] for record in found if records.ranks_path(record["id"]).is_file()),
            "run": found[0]["id"],
            "weights": weights(found[0]),
            "seeds": len(found),
            "deviation": float(np.std(mrr, ddof=1)) if len(mrr) > 1 else None,
            **_metrics(*found),
        }
        same = [x for x in rows if method in ONE_OF and (x["method"], x["bytes"]) == (method, size)]
        if not same:
            rows.append(row)
        elif row["valid_mrr"] > same[0]["valid_mrr"]:
            rows[rows.index(same[0])] = row
    untrained = dict[tuple[str, int], dict[str, Any]]()
    for made in (read(dataset) or {"rows": []})["rows"]:
        key = made["method"], made["bytes"]
        row = {"method": key[0], "bytes": key[1], "trained": False, "ranks": made["ranks"]}
        row |= {"run": f"frontier/{dataset}.json", **_metrics(made)}
        better = key not in untrained or row["valid_mrr"] > untrained[key]["valid_mrr"]
        if better and (others or not made.get("of")):
            untrained[key] = row
    rows += untrained.values()
    return pd.DataFrame(rows)


def of_the_tables(dataset: str) -> Iterable[tuple[str, int, Cell]]:
    """Students of the tables 3, 4 and 6 as rivals of few floats: method, bytes of an entity, cell."""
    methods = {"no-DS": "small", "DS": "small-distilled", "-S2": "small-distilled", "-S1": "small-distilled"}
    for cell in table_cells("tuned", dataset, methods) if dataset in GRAPHS else ():
        if cell.method in methods:
            yield methods[cell.method], cell.bytes, cell


def weights(record: dict[str, Any]) -> int | None:
    """Bytes of the weights of a run, at the precision that it was trained for; None where no file has it."""
    made, graph = RunConfig(**record["config"]), record["graph"]
    precision = PRECISION_OF.get(made.group)
    sizes = graph["entities"], graph["relations"], made.model, made.dim
    return model_bytes(*sizes, precision, made.rank, made.whole) if precision else None


def _metrics(*found: dict[str, Any]) -> dict[str, float]:
    """Means over records."""
    asked = {"mrr": ("test", "mrr"), "hits@10": ("test", "hits@10"), "valid_mrr": ("valid", "mrr")}
    return {
        name: float(np.mean([record[split]["both"][metric] for record in found]))
        for name, (split, metric) in asked.items()
    }


def kept(dataset: str) -> pd.DataFrame:
    """What students of each size kept of the best teacher's test MRR, for `budget` to choose by.

    One row for few bits, one for those of low rank, one for few floats: graph, its figures (`rule.figures`), model,
    dim, group, rank, bytes; kept, the share with a teacher or without one, whichever is better; rounded, that of a
    rounded teacher.
    """
    frame, rows, measured = points(dataset, others=False), [], read(dataset)
    if measured is None or frame.empty:
        return pd.DataFrame()
    best = frame[frame["method"] == "teacher"]["mrr"].max()
    share = frame.drop_duplicates(["method", "bytes"]).set_index(["method", "bytes"])["mrr"] / best
    shapes = {(cell.method, cell.bytes): shape(cell) for cell in cells(dataset)}
    runs = frame[frame["method"].isin([*SMALL, *USUAL_RANK])].set_index(["method", "bytes"])["run"]
    made = {key: records.read_record(records.record_path(run))["config"] for key, run in runs.items()}
    for size in sorted(set(frame["bytes"]) & set(SIZES), reverse=True):
        for methods in ([m for m in CODED if m not in (OWN_LISTS, COMMITTEE, PATHS)], USUAL_RANK, SMALL):
            there = [(method, size) for method in methods if (method, size) in share]
            if len(there) == len(methods):
                like = {"model": MODEL, "group": 0, "rank": 0, **shapes[there[0]]}
                if methods in (SMALL, USUAL_RANK):  # of another kind or form, perhaps
                    best_of = made[share[there].idxmax()]
                    like = {key: best_of.get(key, value) for key, value in {**like, "dim": 0}.items()}
                rows.append(
                    {
                        "graph": dataset,
                        **figures(measured["graph"]),
                        **like,
                        "bytes": size,
                        "kept": share[there].max(),
                        "rounded": share.get(("rounded", size)),
                    }
                )
    return pd.DataFrame(rows)


def figures(sizes: Mapping[str, Any]) -> dict[str, float]:
    """`rule.figures` of a graph's sizes in a record."""
    found = {"entities": sizes["entities"], "relations": sizes["relations"]}
    return {**found, "triples per entity": sizes["train"] / sizes["entities"]}


def kept_elsewhere() -> pd.DataFrame:
    """Rows as those of `kept`, of other graphs: of `bench.large`, by test MRR, and of searches, by validation MRR.

    hubs is 1 for those of a graph of which one was measured with entities of most triples whole.
    """
    rows = []
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(large.folder().glob("*.json"))]
    teachers: dict[str, float] = {}
    for report in reports:
        name, mrr = report["runs"]["teacher"]["config"]["dataset"], report["rows"][0]["models"]["teacher"]["mrr"]
        teachers[name] = max(mrr, teachers.get(name, 0))
    for report in reports:
        made, mrrs = report["runs"]["distilled"]["config"], report["rows"][0]["models"]
        whole, size = made.get("whole", 0), report["bytes_per_entity"]["student"]
        if whole and not made["rank"]:  # has its shape from one of these rows, by `budget.with_whole`
            continue
        best = teachers[made["dataset"]]
        row = {"graph": made["dataset"].rsplit("-", 1)[0], **figures(report["graph"]), "model": MODEL}
        row |= {name: made[name] for name in ("dim", "group", "rank")} | {"bytes": size, "hubs": int(whole > 0)}
        if whole:  # as it would be of as many bytes without whole ones, from which `budget.with_whole` comes to it
            rank = 2 * size * made["group"]
            row |= {"dim": made["dim"] * rank // made["rank"], "rank": rank}
        share = max(mrrs[name]["mrr"] for name in ("distilled", "alone")) / best
        rows.append({**row, "kept": share, "rounded": mrrs["rounded"]["mrr"] / best if "rounded" in mrrs else None})
    known = {(row["graph"], row["bytes"]): row for row in rows}
    for found in fitting.read("searches"):
        name = found["dataset"].rsplit("-", 1)[0] if found["dataset"] not in NAMES else found["dataset"]
        there = known.get((name, found["bytes"]), {})  # perhaps of a later list, whose figures then stand for both
        if found["dataset"] in GRAPHS or there.get("hubs") == 0:
            continue
        sizes = figures(found["graph"])
        sizes |= {key: there.get(key) for key in (*sizes, "hubs")} if there else {}
        best = max(row["teacher"] for row in found["shapes"])
        for tried in found["shapes"]:
            row = {"graph": name, **sizes, "model": MODEL, "dim": tried["dim"]}
            row |= {"group": GROUPS[tried["precision"]], "rank": tried.get("rank", 0), "bytes": found["bytes"]}
            rows.append({**row, "kept": tried["student"] / best, "rounded": tried["rounded"] / best})
    return pd.DataFrame(rows)


def against_distilled(dataset: str) -> pd.DataFrame:
    """For each size the distilled student against each other one, by a paired bootstrap over test triples and seeds.

    The gain is that of the means over all seeds; the bootstrap has those whose ranks are kept. Where none are, there is
    no interval and no p. Distilled is what `DISTILLED` names; of those of a size the one with the best validation MRR,
    `form`.
    """

    @functools.cache
    def means(names: str) -> np.ndarray:
        return resampled(np.stack([records.read_ranks(name).reciprocal() for name in names.split("+")]))

    frame, rows = points(dataset), []
    if frame.empty:
        return frame
    for size, there in frame.groupby("bytes", sort=False):
        ours = there[there["method"].isin(DISTILLED)].sort_values("valid_mrr", ascending=False)[:1]
        for other, mine in itertools.product(there.itertuples(), ours.itertuples()):
            if other.method == mine.method:
                continue
            both = other.ranks and mine.ranks
            low, high, p = bootstrap_of_seeds(means(other.ranks), means(mine.ranks)) if both else [np.nan] * 3
            rows.append(
                {
                    "bytes": size,
                    "method": other.method,
                    "mrr": other.mrr,
                    "form": mine.method,
                    "distilled_mrr": mine.mrr,
                    "gain": mine.mrr - other.mrr,
                    "low": low,
                    "high": high,
                    "p": p,
                    "run": other.run,
                    "distilled_run": mine.run,
                }
            )
    return pd.DataFrame(rows)


def named(dataset: str) -> str:
    """Our name of a graph that has a recipe, in capitals or not.

    Raises:
        ConfigError: no such graph.
    """
    return parse(f"{FRONTIER}/{dataset}/{MODEL}/teacher/64").dataset


def complete(dataset: str = "umls", sizes: str = "64 32 16", jobs: int = 1, address: str = "") -> None:
    """Train and measure what is missing of a graph's frontier.

    Args:
        sizes: bytes of an entity, apart by spaces.
        jobs, address: where runs are trained: see `reproduce.work`.
    Raises:
        ConfigError: no such graph, or no number.
    """
    try:
        wanted = [int(size) for size in str(sizes).split()]
        if not wanted or min(wanted) < 2:
            raise ValueError
    except ValueError:
        raise ConfigError(f"sizes is {sizes!r}: give bytes of an entity, as '64 32 16'") from None
    dataset = named(dataset)
    todo = cells(dataset, wanted)
    work([cell for cell in todo if cell.method == "teacher"], "cpu", jobs, address or None)
    measure(dataset, load(dataset), wanted)
    work(todo, "cpu", jobs, address or None)


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.paper.frontier --graph wn18rr`: train and measure what is missing.

    Returns:
        0 when everything is recorded.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.frontier", description=__doc__.split("\n")[0])
    parser.add_argument("--graph", nargs="+", default=["wn18rr", "fb15k-237"])
    parser.add_argument("--sizes", nargs="+", default=[str(size) for size in SIZES], help="bytes of an entity")
    add_jobs(parser)
    parser.add_argument("--plan", action="store_true", help="say what is left and what it costs, and stop")
    parser.add_argument("--mean", type=parse, metavar="CELL", help="rank by the mean of a student's teachers, and stop")
    rounded_of = "round this teacher, besides, to each size, and stop"
    parser.add_argument("--rounded", type=parse, metavar="CELL", help=rounded_of)
    parser.add_argument("--device", default="cpu", help="that --mean ranks on (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.rounded and (options.rounded.protocol, options.rounded.method) != (FRONTIER, "teacher"):
        parser.error(
            f"--rounded {options.rounded}: that is no teacher; name one, as {FRONTIER}/wn18rr/{MODEL}/teacher/2048"
        )
    if options.mean and options.plan:
        parser.error("--mean trains nothing, so that there is no --plan of it")
    log_to_terminal()
    if options.mean:
        found = measure_mean(options.mean, options.device)
        what = "its path model and" if options.mean.method == PATHS else "the mean of"
        mrr = (found["test"]["both"] if options.mean.method == PATHS else found["test"])["both"]["mrr"]
        print(f"{options.mean}: {what} {len(found['members'])} teacher(s), test MRR {mrr:.4f}")
        return 0
    if (cell := options.rounded) is not None:
        if options.plan:
            print_plan([cell], "cpu", torch.get_num_threads(), options.jobs)
        else:
            work([cell], "cpu", options.jobs, options.ray)
            measure(cell.dataset, load(cell.dataset), map(int, options.sizes), cell)
        return 0
    for dataset in options.graph:
        if options.plan:
            print_plan(cells(named(dataset), map(int, options.sizes)), "cpu", torch.get_num_threads(), options.jobs)
        else:
            complete(dataset, " ".join(options.sizes), options.jobs, options.ray or "")
    return 0


if __name__ == "__main__":
    run_command(main)
