"""`python -m kgdistil.paper.bench.step`: a step of sampled softmax beside the same step in eager PyTorch.

ComplEx on FB15k-237: a teacher, one that predicts relations as well, a student of few bits through its rounding, and
that with a teacher besides; in rounds that take turns. With `--large` another graph, and only its teachers' steps, in
the shape that graphs of millions are trained in.
`--negatives` are how many candidates a batch draws. The peer is what a library such as LibKGE does: autograd over
looked-up rows with sparse gradients, float32 products, `torch.optim.Adagrad`, with the candidates of our step given to
it. Results: `results/bench/step.json`, with `--large` `step-<graph>.json`; on a processor without fast bfloat16, whose
products are ours as the peer's, with `-float32` after the name.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from kgdistil import kernels, records
from kgdistil.answer.files import write_json
from kgdistil.compress.product import assign, decode, grouped, ungrouped
from kgdistil.config import RunConfig, make_config
from kgdistil.distillation import scale
from kgdistil.errors import run_command
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.graphs.readers import read_graph
from kgdistil.losses import softmax_hard_loss, softmax_soft_loss
from kgdistil.models import KGEModel, build_model
from kgdistil.paper.timing import seconds
from kgdistil.sampling import NEGATIVE_STREAM, epoch_order, stream
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine

TEACHERS = {"teacher": (0, False, 0.0), "teacher, relations predicted": (0, False, 1.0)}
# group, whether taught, and what the prediction of relations weighs
KINDS = {**TEACHERS, "student, alone": (4, False, 0.0), "student, taught": (4, True, 0.0)}
OF_LARGE = {"dim": 64, "accumulators": "row", "answers": 256, "penalty": 0.03}  # as results/large/debian.json
TURN = 8  # steps of a turn
BUSY = (0, 1, 3)  # processes beside which a step is measured
LARGE = 2048  # sides of the matrices whose product says what the machine can do


class Eager:
    """The peer's step, from the same numbers."""

    def __init__(self, engine: SampledSoftmaxEngine):
        self.engine, self.config = engine, engine.config
        student = engine.models["student"]
        self.tables = [x.detach().clone().requires_grad_() for x in (student.entities, student.relations)]
        others = []
        if self.config.group:
            others.append(engine.moments["student.codebook"].clone().requires_grad_())
        self.book = others[0] if others else None
        self.optimizer = torch.optim.Adagrad([*self.tables, *others], lr=self.config.lr)

    def scores(self, model: KGEModel, anchors: Tensor, relations: Tensor, rows: Tensor, tails: int) -> Tensor:
        parts = [model.query(anchors[:tails], relations[:tails], "tail")]
        parts.append(model.query(anchors[tails:], relations[tails:], "head"))
        return torch.cat(parts) @ rows.T

    def step(self, given: dict[str, Any]) -> None:
        student, teacher = self.engine.models["student"], self.engine.models.get("teacher")
        ids, row, place, shift = (given[name] for name in ("candidates", "row", "place", "shift"))
        anchor, relation, count, tails = (given[name] for name in ("anchor", "relation", "counts", "tails"))
        entities, relations = self.tables
        rows = F.embedding(torch.cat([ids, anchor]), entities, sparse=True)
        if self.book is not None:
            groups = grouped(rows, self.config.group, student.paired)
            coded = decode(assign(groups.detach(), self.book.detach(), native=False), self.book)
            rows = ungrouped(groups + (coded - groups).detach() + coded - coded.detach(), student.paired)
        looked_up, anchors = rows[: len(ids)], rows[len(ids) :]
        relation_rows = F.embedding(relation, relations, sparse=True)
        scores = self.scores(student, anchors, relation_rows, looked_up, tails) + shift
        loss = softmax_hard_loss(scores, row, place)
        if teacher is not None:
            with torch.no_grad():
                other = self.scores(
                    teacher, teacher.entities[anchor], teacher.relations[relation], teacher.entities[ids], tails
                )
            soft = softmax_soft_loss(scores, other + shift, count / count.sum(), self.config.temperature)
            loss = self.config.alpha * soft + (1 - self.config.alpha) * loss
        anchors, answers = anchors[row], looked_up[place]
        loss = loss + self.config.penalty * student.penalty(anchors, relation_rows[row], answers).mean()
        if weight := self.config.relation_weight:
            backwards = row >= tails
            heads, others = (torch.where(backwards[:, None], *x) for x in ((answers, anchors), (anchors, answers)))
            loss = loss + weight * F.cross_entropy(student.between(heads, others) @ relations.T, relation[row])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def engine_of(graph: Graph, config: RunConfig, taught: bool) -> SampledSoftmaxEngine:
    sizes = config.model, graph.num_entities, graph.num_relations, config.dim
    student, teacher = build_model(*sizes, seed=0), build_model(*sizes, seed=1) if taught else None
    engine = SampledSoftmaxEngine(student, teacher, graph.train, config)
    engine.begin(0)
    return engine


def batch_of(engine: SampledSoftmaxEngine, queries: Tensor, base: Tensor) -> dict[str, Any]:
    """What our step works out of a batch, for the peer."""
    batch = engine.batch_of(queries)
    candidates, place, shift = engine.candidates(batch.answers, base)
    return batch._asdict() | {"candidates": candidates, "place": place, "shift": shift}


def measure(
    graph: Graph, rounds: int, dim: int = 128, queries: int = 512, negatives: int = scale.NEGATIVES, large: bool = False
) -> list[dict[str, Any]]:
    """One row for each kind of step: median seconds of ours and of the peer's, the matrix products within ours, and the
    training triples that ours takes a second."""
    kernels.keep_freed_memory()
    out = []
    for kind, (group, taught, weight) in tqdm((TEACHERS if large else KINDS).items(), desc="steps", disable=None):
        values: dict[str, Any] = {"dataset": graph.name, "model": "ComplEx", "dim": dim, "loss": "softmax", "lr": 0.05}
        values |= {"negatives": negatives, "batch_size": queries, "penalty": 0.005, "group": group}
        values |= {"relation_weight": weight}
        values |= OF_LARGE if large else {}
        values |= {"role": "stage1", "teacher": "x"} if taught else {}
        engine = engine_of(graph, make_config(**values), taught)
        peer = Eager(engine)
        order = epoch_order(0, 0, engine.samples).split(queries)
        taken: dict[str, list[float]] = {"kgdistil": [], "PyTorch": []}
        listed, triples = [], []
        for i in range(rounds + 1):  # the first one warms up
            bases = [stream(0, NEGATIVE_STREAM, i * TURN + j) for j in range(TURN)]
            batches = [order[(i * TURN + j) % (len(order) - 1)] for j in range(TURN)]
            given = [batch_of(engine, *both) for both in zip(batches, bases, strict=True)]
            listed += [len(each["candidates"]) for each in given]
            triples += [len(each["row"]) for each in given]
            for batch, base in zip(batches, bases, strict=True):
                taken["kgdistil"].append(clocked(functools.partial(engine.step, batch, base, {"student": 0.05})))
            for each in given:
                taken["PyTorch"].append(clocked(functools.partial(peer.step, each)))
        ours, theirs = (statistics.median(times[TURN:]) for times in taken.values())
        wide, columns, steps, half = 2 * engine.config.dim, int(statistics.median(listed)), engine.steps, engine.half
        del engine, peer  # of a large graph there is no room for two
        shapes = [(queries, columns, 2 if taught else 1)]  # with products of a forward and two backward
        shapes += [(int(statistics.median(triples)), graph.num_relations, 1)] if weight else []
        ops = sum(2 * rows * against * wide * (forwards + 2) for rows, against, forwards in shapes)
        sides = [[torch.ones(*size, dtype=half) for size in ((n, wide), (m, wide), (n, m))] for n, m, _ in shapes]

        def products() -> list[Tensor]:
            done = []
            for (q, k, g), (*_, forwards) in zip(sides, shapes, strict=True):  # noqa: B023 - called at once
                done += [*(q @ k.T for _ in range(forwards)), g @ k, g.T @ q]
            return done

        alone = seconds(products, rounds, "cpu")
        square = torch.ones(LARGE, LARGE, dtype=half)
        peak = 2 * LARGE**3 / seconds(lambda: square @ square, 5, "cpu")  # noqa: B023 - called at once
        row = {
            "kind": kind,
            "drawn": negatives,
            "candidates": columns,
            "seconds": ours,
            "pytorch_seconds": theirs,
            "ratio": theirs / ours,
        }
        row |= {"products": str(half).removeprefix("torch."), "ops": ops, "share_of_peak": ops / ours / peak}
        row |= {"product_seconds": alone, "triples_a_second": len(graph.train) / steps / ours}
        out.append(row | {"outside_products": max(0.0, 1 - alone / ours), "seconds_all": taken})
    return out


def beside(graph: Graph, rounds: int, **shape: int) -> list[dict[str, Any]]:
    """Median seconds of a teacher's step, plain and beside busy processes, for each number of threads."""
    out, before = [], torch.get_num_threads()
    values: dict[str, Any] = {"dataset": graph.name, "model": "ComplEx", "loss": "softmax", "lr": 0.05}
    values |= {"dim": 128, "negatives": 2048, "batch_size": 512, "penalty": 0.005, **shape}
    engine = engine_of(graph, make_config(**values), False)
    order = epoch_order(0, 0, engine.samples).split(512)
    for busy in BUSY:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            chosen = kernels.free_threads()
            for count in range(1, before + 1):
                torch.set_num_threads(count)
                taken = []
                for i in range(rounds):
                    given = order[i % len(order)], stream(0, NEGATIVE_STREAM, i), {"student": 0.05}
                    taken.append(clocked(functools.partial(engine.step, *given)))
                row = {"busy": busy, "threads": count, "chosen": chosen, "seconds": statistics.median(taken)}
                out.append(row | {"seconds_all": taken})
        finally:
            torch.set_num_threads(before)
            for other in others:
                other.kill()
                other.wait()
    return out


def path_of(large: str = "", products: str = "bfloat16") -> Path:
    """Of the results, of a large graph where there is a name, and of the type of products."""
    parts = "step", large, "" if products == "bfloat16" else products
    return records.results_folder() / "bench" / ("-".join(filter(None, parts)) + ".json")


def clocked(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> int:
    """Write `results/bench/step.json` and print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.step", description=__doc__.split("\n")[0])
    parser.add_argument("--graph", default="fb15k-237")
    parser.add_argument("--large", type=Path, metavar="FILE", help="a graph's file in place of --graph")
    parser.add_argument("--rounds", type=int, default=21, help=f"of {TURN} steps each way")
    parser.add_argument(
        "--negatives", type=int, nargs="+", default=[scale.NEGATIVES], help="a row of each kind for each"
    )
    options = parser.parse_args(arguments)
    graph = read_graph(options.large) if options.large else load(options.graph)
    large, rows = options.large is not None, list[dict[str, Any]]()
    for negatives in options.negatives:
        rows += measure(graph, options.rounds, negatives=negatives, large=large)
    report = {
        "graph": {"name": graph.name, "sha256": graph.sha256},
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "command": records.command(),
        "device": records.describe_device("cpu"),
        **records.provenance(),
        "rows": rows,
        "beside": [] if options.large else beside(graph, options.rounds),
    }
    write_json(path_of(options.large.stem if options.large else "", rows[0]["products"]), report)
    for row in rows:
        print(
            f"{row['kind']:28s} {row['drawn']:5d} drawn "
            f"{1e3 * row['seconds']:6.1f} ms, eager PyTorch {1e3 * row['pytorch_seconds']:6.1f} ms, "
            f"{row['ratio']:4.1f}x; {row['share_of_peak']:.0%} of the peak, "
            f"{row['outside_products']:.0%} outside matrix products; {row['triples_a_second']:,.0f} triples a second"
        )
    for row in report["beside"]:
        where = f"beside {row['busy']} busy process(es), {row['threads']} thread(s)"
        print(f"{where}: {1e3 * row['seconds']:.1f} ms; {row['chosen']} would be taken")
    return 0


if __name__ == "__main__":
    run_command(main)
