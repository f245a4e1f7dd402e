"""`python -m kgdistil.paper.bench.scan`: what a query costs a student of few bits, beside float models and FAISS.

Filtered ranks of a graph's test triples and the ten best answers of the same queries, in rounds that take turns, on the
CPU. Trained weights are used where their runs lie on this machine or they are published, else random ones, and the file
says which: how many entities come near the target, and so have to be looked at twice, depends on them. `--train` trains
what is missing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kgdistil import kernels, records
from kgdistil.answer.files import write_json
from kgdistil.answer.student import holds_student
from kgdistil.checkpoint import load_model
from kgdistil.compress.product import SIXTEEN, codes_of, fit, grouped
from kgdistil.compress.scan import CodedRanker
from kgdistil.config import make_config
from kgdistil.errors import ConfigError, run_command
from kgdistil.evaluation import KnownTriples
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.models import SIDES, KGEModel, build_model
from kgdistil.paper import frontier
from kgdistil.paper.cells import FRONTIER, Cell
from kgdistil.paper.recipe import config, with_needs
from kgdistil.paper.tasks import published
from kgdistil.records import results_folder
from kgdistil.training.loop import run


def scan_path(dataset: str) -> Path:
    """What `kgdistil.paper.bench.scan` measured on a graph."""
    return results_folder() / "bench" / ("scan.json" if dataset == "wn18rr" else f"scan-{dataset}.json")


FLOATS = (("RotatE", 64), ("ComplEx", 64), ("RotatE", 8), ("ComplEx", 8))


def float_cell(graph: str, name: str, dim: int) -> Cell:
    return Cell("tuned", graph, name, "teacher" if dim == 64 else "no-DS", dim)


def coded_cells(graph: str) -> list[Cell]:
    """The distilled students of few bits: of every size, and of low rank."""
    plain = [
        Cell(FRONTIER, graph, frontier.MODEL, "distilled", size, frontier.teacher_cell(graph, size).bytes)
        for size in frontier.SIZES
    ]
    return plain + [cell for cell in frontier.low_rank_cells(graph, frontier.SIZES) if cell.method == "low-rank"]


def trained(graph: Graph, cell: Cell) -> tuple[KGEModel, str | None]:
    """The cell's model and its run where its weights are here or published; else one of random weights, and None."""
    found, dim = config(cell), cell.dim
    if found is not None:
        places = [records.model_folder(found.run_id)] + [published(cell)] * (cell.protocol == FRONTIER)
        for folder in filter(holds_student, places):
            return load_model(folder, graph), found.run_id
    settings = make_config(dataset=graph.name, model=cell.model, dim=dim)
    return build_model(cell.model, graph.num_entities, graph.num_relations, dim, **settings.model_options), None


def faiss_top(codes: torch.Tensor, book: torch.Tensor, queries: torch.Tensor, k: int) -> Callable[[], Any] | None:
    """FAISS's fast scan over the same codes; None without FAISS. It does not filter, and rounds tables to 8 bits."""
    try:
        import faiss
    except ImportError:
        return None
    groups, _, size = book.shape
    index = faiss.IndexPQFastScan(groups * size, groups, 4, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(book.numpy().ravel(), index.pq.centroids)
    index.is_trained = True
    rows = torch.stack([book[m][codes[:, m].long()] for m in range(groups)], dim=1).flatten(1)
    index.add(rows.numpy())
    faiss.omp_set_num_threads(kernels.threads())
    asked = queries.contiguous().numpy()
    return lambda: index.search(asked, k)


def measure(graph: Graph, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of a query, the median of the rounds: rank (filtered), top (ten answers), by model and size."""
    known = KnownTriples(graph.known, graph.num_relations)
    triples = graph.test
    work: list[tuple[dict[str, Any], Callable[[], Any]]] = []

    def add(ranker: Any, scored: KGEModel, **about: Any) -> None:
        for side, anchor, target in reversed(SIDES):
            queries = scored.queries(triples[:, anchor], triples[:, 1], side).detach()
            spans = known.spans(triples[:, anchor], triples[:, 1], side)
            calls: dict[str, Callable[[], Any]] = {
                "rank": lambda q=queries, t=triples[:, target], s=spans: ranker.counts(q, t, s),
                "top": lambda q=queries, s=spans: ranker.top(q, 10, s),
            }
            for what, call in calls.items():
                work.append(({**about, "what": what, "side": side, "seconds": [], "queries": len(triples)}, call))

    for name, dim in FLOATS:
        model, run_id = trained(graph, float_cell(graph.name, name, dim))
        if not kernels.usable(model) or kernels.rank_library(model) is None:
            raise ConfigError("the benchmark of the scan needs the compiled kernels: install g++ or clang++")
        add(
            kernels.Ranker(model),
            model,
            model=name,
            dim=dim,
            bytes=4 * model.entities.shape[1],
            form="float32",
            run=run_id,
        )
    for cell in coded_cells(graph.name):
        model, run_id = trained(graph, cell)
        if cell.method == "low-rank" and run_id is None:
            continue  # random weights have no rank that is low
        size, few = cell.bytes, f"{SIXTEEN} vectors a group" + (", low rank" if cell.method == "low-rank" else "")
        rows = model.entities.detach()
        book = fit(rows, rows.shape[1] // (2 * size), model.paired)
        codes = codes_of(rows, book, model.paired)
        about = {"model": cell.model, "dim": model.dim, "bytes": size, "run": run_id}
        add(CodedRanker(model, codes, book), model, form=few, **about)
        if cell.method == "low-rank":
            continue
        for side, anchor, _ in reversed(SIDES):
            queries = model.queries(triples[:, anchor], triples[:, 1], side).detach()
            call = faiss_top(codes, book, grouped(queries, queries.shape[1], model.paired)[:, 0], 10)
            if call is not None:
                row: dict[str, Any] = {**about, "form": "FAISS fast scan", "what": "top", "side": side, "seconds": []}
                work.append(({**row, "queries": len(triples)}, call))
    for _ in tqdm(range(rounds + 1), desc="rounds"):
        for row, call in work:
            began = time.perf_counter()
            call()
            row["seconds"].append(time.perf_counter() - began)
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row, _ in work:
        key = tuple(row[k] for k in ("model", "dim", "bytes", "form", "run", "what"))
        microseconds = 1e6 * statistics.median(row["seconds"][1:]) / row["queries"]
        names = ("model", "dim", "bytes", "form", "run", "what")
        merged.setdefault(key, dict(zip(names, key), microseconds=0.0))["microseconds"] += microseconds / 2
    return list(merged.values())


def main(arguments: list[str] | None = None) -> int:
    """Write `results.scan_path` of the graph and print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.scan", description=__doc__.split("\n")[0])
    parser.add_argument("--graph", default="wn18rr")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", action="store_true", help="first train what has no weights here (half an hour)")
    options = parser.parse_args(arguments)
    graph = load(options.graph)
    if options.train:
        floats = [float_cell(graph.name, name, dim) for name, dim in FLOATS]
        for cell in with_needs([*floats, *coded_cells(graph.name)]):
            if (found := config(cell)) is not None:
                run(found, graph)
    rows = measure(graph, options.rounds)
    report = {
        "graph": {**graph.sizes(), "sha256": graph.sha256},
        "rounds": options.rounds,
        "command": records.command(),
        "device": records.describe_device("cpu"),
        **records.provenance(),
        "rows": rows,
    }
    write_json(scan_path(graph.name), report)
    for row in rows:
        print(
            f"{row['model']:8s} {row['bytes']:5d} bytes  {row['form']:28s} {row['what']:5s} "
            f"{row['microseconds']:8.1f} µs a query{'' if row['run'] else '  (random weights)'}"
        )
    return 0


if __name__ == "__main__":
    run_command(main)
