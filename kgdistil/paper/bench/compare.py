"""`python -m kgdistil.paper.bench`: training, ranking and answering speed beside the peers, in one interleaved run.

Every contender lives in a process of its own, so that its peak memory is its own; only one works at a time. Rounds go
around the contenders (A B C, A B C, …), and the median of the rounds is kept. Results: `results/bench/`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from typing import Any, ClassVar

import pandas as pd
import torch
from tqdm import tqdm

from kgdistil import kernels, records
from kgdistil.answer.predict import top
from kgdistil.config import make_config
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.files import write_atomically, write_json
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.kernels.rank import Ranker
from kgdistil.models import build_model
from kgdistil.paper.bench.machine import copy_bandwidth, peak_flops, ranking_floor, training_floor
from kgdistil.paper.bench.peers import MODELS, CompiledTorch, EagerTorch, PyKEEN, TorchKGE, Work
from kgdistil.training.engine import make_engine

OURS = "kgdistil"
BATCH, RATE = 1024, 0.005
PAPER_TABLE5 = {"dims": (64, 32, 16, 8), "repeats": 3}
PAPER_FIGURE1 = ("TransE", (8, 16, 32, 64, 128, 256, 512))


class Ours:
    """This project as a contender: the same engine and ranker that `run` and `evaluate` use."""

    name, version = OURS, records.installed("kgdistil")
    settings: ClassVar = {"negatives": "uniform, those in T rejected (Eq. 2)", "optimiser": "Adam"}

    def prepare(self, work: Work) -> None:
        self.work, self.done = work, 0
        config = make_config(model=work.model, dim=work.dim, negatives=work.negatives, lr=work.lr, batch_size=BATCH)
        self.model = build_model(
            config.model, work.num_entities, work.num_relations, config.dim, **config.model_options
        )
        self.engine = make_engine(self.model, None, config, work)
        self.settings = {**self.settings, "engine": type(self.engine).__name__}
        self.rates = torch.full((self.engine.steps,), work.lr, dtype=torch.float64)
        self.known = KnownTriples(work.known, work.num_relations)

    def epochs(self, n: int) -> list[float]:
        taken = []
        for _ in range(n):
            began = time.perf_counter()
            self.engine.epoch(self.done, self.rates)
            taken.append(time.perf_counter() - began)
            self.done += 1
        return taken

    def rank(self, triples: torch.Tensor) -> int:
        rank(self.model, triples, self.known)
        return 2 * len(triples)


CONTENDERS = {c.name: c for c in (Ours, PyKEEN, TorchKGE, EagerTorch, CompiledTorch)}


def serve(pipe: Any, name: str, work: Work, threads: int) -> None:
    """A contender's process: does what it is told through `pipe` until told to stop."""
    torch.set_num_threads(threads)
    try:
        contender = CONTENDERS[name]()
        contender.prepare(work)
        contender.epochs(1)  # compiles and warms up
        contender.rank(work.test[:8])
        pipe.send({"version": contender.version, "settings": contender.settings})
    except (ImportError, NotImplementedError) as error:
        pipe.send({"missing": str(error)})
        return
    while (order := pipe.recv()) is not None:
        kind, amount = order
        if kind == "train":
            pipe.send(contender.epochs(amount))
        else:
            began = time.perf_counter()
            queries = contender.rank(work.test[:amount])
            pipe.send(queries / (time.perf_counter() - began))
    profile = contender.engine.phases if name == OURS and hasattr(contender.engine, "phases") else {}
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, profile))


def make_work(graph: Graph, model: str, dim: int) -> Work:
    config = make_config(model=model, dim=dim)
    return Work(
        model,
        dim,
        config.negatives,
        BATCH,
        RATE,
        graph.train,
        graph.valid,
        graph.test,
        graph.num_entities,
        graph.num_relations,
        config.gamma,
    )


def compare(graph: Graph, model: str, dim: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """One row for each contender: medians of `rounds` interleaved rounds of an epoch and a ranking."""
    work, context = make_work(graph, model, dim), multiprocessing.get_context("spawn")
    pipes, about = {}, {}
    for name in CONTENDERS:
        pipes[name], child = context.Pipe()
        context.Process(target=serve, args=(child, name, work, threads), daemon=True).start()
        child.close()  # or a process that dies would be waited for, for ever
        about[name] = pipes[name].recv()  # one after the other: preparing uses the cores as well
    present = [name for name in CONTENDERS if "missing" not in about[name]]
    epochs: dict[str, list[float]] = {name: [] for name in present}
    queries: dict[str, list[float]] = {name: [] for name in present}
    triples = {name: len(graph.test) if name == OURS else 64 for name in present}
    bandwidths = []
    for _ in range(rounds):
        bandwidths.append(copy_bandwidth(rounds=3))  # what the memory gives while these contenders are measured
        for name in present:
            pipes[name].send(("train", 5 if name == OURS else 1))  # a short epoch is measured more often
            epochs[name] += pipes[name].recv()
        for name in present:
            pipes[name].send(("rank", triples[name]))
            queries[name].append(pipes[name].recv())
    rows = []
    for name in CONTENDERS:
        row = {"contender": name, "model": model, "dim": dim}
        if name in present:
            pipes[name].send(None)
            memory, profile = pipes[name].recv()
            row |= {
                "version": about[name]["version"],
                "epoch_seconds": statistics.median(epochs[name]),
                "triples_per_second": len(graph.train) / statistics.median(epochs[name]),
                "ranking_queries_per_second": statistics.median(queries[name]),
                "ranked_triples": triples[name],
                "peak_memory_bytes": memory,
                "profile": profile,
                "copy_bytes_per_second": statistics.median(bandwidths),
                "epoch_seconds_all": epochs[name],
                "settings": about[name]["settings"],
            }
        else:
            row["missing"] = about[name]["missing"]
        rows.append(row)
    return rows


def distillation(graph: Graph, model: str, rounds: int) -> dict[str, Any]:
    """Seconds of a d=8 epoch alone, in stage 1 (teacher 64 frozen) and in stage 2, interleaved."""
    engines = {}
    for role in ("no-ds", "stage1", "stage2"):
        config = make_config(model=model, dim=8, role=role, teacher=None if role == "no-ds" else "64", lr=RATE)
        sizes = graph.num_entities, graph.num_relations
        student = build_model(model, *sizes, 8, seed=1, **config.model_options)
        teacher = None if role == "no-ds" else build_model(model, *sizes, 64, seed=2, **config.model_options)
        engines[role] = make_engine(student, teacher, config, graph)
    rates = torch.full((engines["no-ds"].steps,), RATE, dtype=torch.float64)
    taken: dict[str, list[float]] = {role: [] for role in engines}
    for epoch in range(2 * rounds + 1):
        for role, engine in engines.items():
            began = time.perf_counter()
            engine.epoch(epoch, rates)
            taken[role].append(time.perf_counter() - began)
    return {"model": model, **{f"{role}_seconds": statistics.median(x[1:]) for role, x in taken.items()}}


def inference(graph: Graph, repeats: int) -> list[dict[str, Any]]:
    """The paper's Table 5: both sides of all 93,003 triples ranked, and one-query latency; best of `repeats`."""
    known, rows = KnownTriples(graph.known, graph.num_relations), []
    triples = graph.known
    for model in tqdm(MODELS, desc="inference", disable=None):
        for dim in PAPER_TABLE5["dims"]:
            options = make_config(model=model, dim=dim).model_options
            m = build_model(model, graph.num_entities, graph.num_relations, dim, **options)
            rank(m, triples[:64], known)
            taken = []
            for _ in range(repeats):
                began = time.perf_counter()
                rank(m, triples, known)
                taken.append(time.perf_counter() - began)
            ranker, waits = Ranker(m) if kernels.rank_library(m) else None, []
            for i in range(1000):
                x = triples[i * 93 : i * 93 + 1]
                began = time.perf_counter()
                top(m, x[:, 0], x[:, 1], "tail", 10, known, ranker)
                waits.append(time.perf_counter() - began)
            waits.sort()
            rows.append(
                {
                    "model": model,
                    "dim": dim,
                    "parameters": m.num_parameters,
                    "bytes": 4 * m.num_parameters,
                    "triples": len(triples),
                    "seconds": min(taken),
                    "seconds_all": taken,
                    "queries_per_second": 2 * len(triples) / min(taken),
                    "latency_p50_us": waits[500] * 1e6,
                    "latency_p99_us": waits[990] * 1e6,
                }
            )
        teacher = rows[-len(PAPER_TABLE5["dims"])]["seconds"]
        for row in rows[-len(PAPER_TABLE5["dims"]) :]:
            row["speedup"] = teacher / row["seconds"]
    return rows


def growth(graph: Graph, repeats: int) -> list[dict[str, Any]]:
    """Seconds to rank the test split over the dimension (the paper's Figure 1); best of `repeats`."""
    known, rows = KnownTriples(graph.known, graph.num_relations), []
    name, dims = PAPER_FIGURE1
    for dim in dims:
        model = build_model(name, graph.num_entities, graph.num_relations, dim, **make_config(model=name).model_options)
        rank(model, graph.test[:64], known)
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            rank(model, graph.test, known)
            taken.append(time.perf_counter() - began)
        rows.append({"model": name, "dim": dim, "parameters": model.num_parameters, "seconds": min(taken)})
    return rows


def floors(graph: Graph, rows: list[dict[str, Any]], flops: float) -> list[dict[str, Any]]:
    """Our training step and ranking query beside their floors, by the copy bandwidth of the same rounds."""
    out = []
    for row in (r for r in rows if r["contender"] == OURS):
        config = make_config(model=row["model"], dim=row["dim"])
        model = build_model(row["model"], graph.num_entities, graph.num_relations, row["dim"])
        floor = training_floor(model, graph.train, config.negatives, BATCH)
        step = row["epoch_seconds"] / (len(graph.train) / BATCH)
        bandwidth = row["copy_bytes_per_second"]
        least = floor.seconds(bandwidth, flops)
        whole = sum(row["profile"].values())
        shares = {f"{phase}_share": seconds / whole for phase, seconds in row["profile"].items()}
        out.append(
            {
                "model": row["model"],
                "dim": row["dim"],
                "touched_entities": floor.touched,
                "bytes": floor.bytes,
                "ops": floor.ops,
                "copy_bytes_per_second": bandwidth,
                "bytes_seconds": floor.bytes / bandwidth,
                "ops_seconds": floor.ops / flops,
                "step_seconds": step,
                "times_floor": step / least,
                "ranking_ops": ranking_floor(model),
                "ranking_times_floor": flops / ranking_floor(model) / row["ranking_queries_per_second"],
                **shares,
            }
        )
    return out


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times faster this project is than each peer, in training and in ranking."""
    ours = {(r["model"], r["dim"]): r for r in rows if r["contender"] == OURS}
    out = []
    for r in rows:
        if r["contender"] != OURS and "epoch_seconds" in r:
            own = ours[r["model"], r["dim"]]
            out.append(
                {
                    "peer": r["contender"],
                    "model": r["model"],
                    "dim": r["dim"],
                    "training": r["epoch_seconds"] / own["epoch_seconds"],
                    "ranking": own["ranking_queries_per_second"] / r["ranking_queries_per_second"],
                }
            )
    return out


def plot(report: dict[str, Any], path: Any) -> None:
    """Training and ranking speed of every contender, d=64 and d=8, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    frame = pd.DataFrame([r for r in report["contenders"] if "epoch_seconds" in r])
    dims = sorted(frame["dim"].unique(), reverse=True)
    figure, axes = plt.subplots(len(dims), 2, figsize=(11, 3.4 * len(dims)), squeeze=False)
    for row, dim in zip(axes, dims, strict=True):
        for axis, value, label in (
            (row[0], "triples_per_second", "training, positive triples/s"),
            (row[1], "ranking_queries_per_second", "filtered ranking, queries/s"),
        ):
            sns.barplot(frame[frame["dim"] == dim], x="model", y=value, hue="contender", ax=axis, palette="colorblind")
            axis.set(yscale="log", xlabel="", ylabel=label, title=f"d = {dim}")
            axis.legend().set_visible(False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=5, frameon=False)
    figure.suptitle(f"WN18RR, {report['device']}")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    write_atomically(path, lambda scratch: figure.savefig(scratch, format="png", dpi=110))
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="wn18rr", help="graph to run on (default: %(default)s)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 8])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip-inference", action="store_true", help="leave out the paper's Table 5 and Figure 1")
    parser.add_argument("--output", default="bench", help="name of the files under results/bench/")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    graph, folder = load(options.dataset), records.results_folder() / "bench"
    bandwidth, flops = copy_bandwidth(), peak_flops()
    rows: list[dict[str, Any]] = []
    jobs = [(model, dim) for dim in options.dims for model in options.models]
    for model, dim in tqdm(jobs, desc="beside the peers", disable=None):
        rows += compare(graph, model, dim, options.rounds, options.threads)
    report = {
        "device": records.describe_device("cpu"),
        "dataset": graph.name,
        "graph_sha256": graph.sha256,
        "batch_size": BATCH,
        "rounds": options.rounds,
        **records.provenance(),
        "command": " ".join(["python -m kgdistil.paper.bench", *(arguments or sys.argv[1:])]),
        "copy_bytes_per_second": bandwidth,
        "matmul_flops": flops,
        "contenders": rows,
        "ratios": ratios(rows),
        "floors": floors(graph, rows, flops),
        "distillation": [distillation(graph, model, options.rounds) for model in options.models],
    }
    if not options.skip_inference:
        report["inference"] = inference(graph, PAPER_TABLE5["repeats"])
        report["growth"] = growth(graph, PAPER_TABLE5["repeats"])
    report["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(folder / f"{options.output}.json", report)
    plot(report, folder / f"{options.output}.png")
    for name in ("ratios", "floors", "distillation", "inference", "growth"):
        if name in report:
            table = pd.DataFrame(report[name]).drop(columns="seconds_all", errors="ignore").round(3)
            print(f"\n{name}\n{table.to_string()}")
    print(f"\nwritten: {records.shown(folder / options.output)}.json and .png")
    return 0
