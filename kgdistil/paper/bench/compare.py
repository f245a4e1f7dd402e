"""`python -m kgdistil.paper.bench`: training, ranking and answering speed beside the peers, in one interleaved run.

Every contender lives in a process of its own, so that its peak memory is its own; only one works at a time. Rounds go
around the contenders (A B C, A B C, …), and the median of the rounds is kept. All rank the same triples, the peers in
the best of several batch sizes, and what a call sets up is left out of its time. Results: `results/bench/`. What is
measured is kept in `runs/bench/` as it comes: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from tqdm import tqdm

from kgdistil import kernels, records
from kgdistil.answer.files import write_atomically, write_json
from kgdistil.config import make_config
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.kernels.rank import Ranker
from kgdistil.models import build_model
from kgdistil.paper.bench.machine import copy_bandwidth, peak_flops, ranking_floor, training_floor
from kgdistil.paper.bench.peers import MODELS, OURS, CompiledTorch, EagerTorch, Peer, PyKEEN, TorchKGE, Work
from kgdistil.students.predict import top
from kgdistil.training.engine import make_engine

BATCH, RATE = 1024, 0.005
RANKED, TRIED = 256, 32  # test triples that a call ranks, and that a batch size is tried on
REPEATS = 5  # our epochs and rankings a round: they are short
PAPER_TABLE5 = {"dims": (64, 32, 16, 8), "parts": 3}
PAPER_FIGURE1 = ("TransE", (8, 16, 32, 64, 128, 256, 512))
Tick = Callable[[str], None]  # told of each step of the benchmark when it begins


def silent(step: str) -> None:
    """Shows nothing."""


class Ours:
    """This project as a contender: the same engine and ranker that `run` and `evaluate` use."""

    name, version = OURS, records.installed("kgdistil")
    sizes: tuple[int, ...] = ()
    settings: ClassVar = {
        "negatives": "uniform, those in T rejected (Eq. 2)",
        "optimiser": "Adam",
        "ranking": "evaluation.rank, all it does within the timing",
    }

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

    def ready(self, triples: torch.Tensor, size: int) -> None:
        self.triples = triples

    def rank(self) -> torch.Tensor:
        return torch.from_numpy(rank(self.model, self.triples, self.known).ranks())


CONTENDERS = {c.name: c for c in (Ours, PyKEEN, TorchKGE, EagerTorch, CompiledTorch)}


def queries_per_second(contender: Peer, triples: torch.Tensor, size: int) -> float:
    """Of one ranking; what it sets up is not timed."""
    contender.ready(triples, size)
    began = time.perf_counter()
    return contender.rank().numel() / (time.perf_counter() - began)


def try_sizes(contender: Peer, triples: torch.Tensor) -> dict[int, float]:
    """Queries per second of a contender in batches of each of its sizes, until two in a row are half the best.

    The best of several rankings where they are short, after one to warm up: a moment's noise must not choose a size.
    """
    rates: dict[int, float] = {}
    slow = 0
    for size in contender.sizes:
        queries_per_second(contender, triples[:size], size)
        chosen, until, rates[size] = triples[: max(size, TRIED)], time.perf_counter() + 0.5, 0.0
        while not rates[size] or time.perf_counter() < until:
            rates[size] = max(rates[size], queries_per_second(contender, chosen, size))
        slow = slow + 1 if rates[size] < max(rates.values()) / 2 else 0
        if slow == 2:
            break
    return rates


def serve(pipe: Any, name: str, work: Work, triples: torch.Tensor, threads: int) -> None:
    """A contender's process: does what it is told through `pipe` until told to stop."""
    torch.set_num_threads(threads)
    try:
        contender = CONTENDERS[name]()
        contender.prepare(work)
        contender.epochs(1)  # compiles and warms up
        queries_per_second(contender, triples[:8], 8)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # before sizes are tried that need more
        rates = try_sizes(contender, triples)
    except (ImportError, NotImplementedError) as error:
        pipe.send({"missing": str(error)})
        return
    size = max(rates, key=rates.__getitem__, default=0)
    pipe.send(
        {
            "version": contender.version,
            "settings": contender.settings,
            "peak_memory_bytes": memory,
            "ranking_batch": size or None,
            "batches_tried": [{"batch": n, "queries_per_second": rate} for n, rate in rates.items()],
        }
    )
    while (order := pipe.recv()) is not None:
        kind, times = order
        if kind == "train":
            pipe.send(contender.epochs(times))
        else:
            pipe.send([queries_per_second(contender, triples, size) for _ in range(times)])
    profile = contender.engine.phases if name == OURS and hasattr(contender.engine, "phases") else {}
    pipe.send(profile)


def some(triples: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the triples, or all where there are fewer; always the same ones."""
    return triples[torch.randperm(len(triples), generator=torch.Generator().manual_seed(0))[:count]]


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


def compare(
    graph: Graph, model: str, dim: int, rounds: int, threads: int, ranked: int = RANKED, tick: Tick = silent
) -> list[dict[str, Any]]:
    """One row for each contender: medians of `rounds` interleaved rounds of an epoch and a ranking."""
    work, triples = make_work(graph, model, dim), some(graph.test, ranked)
    # Forked from a process that holds nothing yet. One started afresh would count the peak of this one as its own.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pipes, about = {}, {}
    for name in CONTENDERS:
        tick(f"{model} d={dim}: {name} gets ready")
        pipes[name], child = context.Pipe()
        context.Process(target=serve, args=(child, name, work, triples, threads), daemon=True).start()
        child.close()  # or a process that dies would be waited for, for ever
        about[name] = pipes[name].recv()  # one after the other: preparing uses the cores as well
    present = [name for name in CONTENDERS if "missing" not in about[name]]
    taken: dict[str, dict[str, list[float]]] = {name: {"train": [], "rank": []} for name in present}
    bandwidths = []
    for _ in range(rounds):
        bandwidths.append(copy_bandwidth(rounds=3))  # what the memory gives while these contenders are measured
        for kind in ("train", "rank"):
            for name in CONTENDERS:
                tick(f"{model} d={dim}: {name}, {kind}")
                if name in present:
                    pipes[name].send((kind, REPEATS if name == OURS else 1))
                    taken[name][kind] += pipes[name].recv()
    rows = []
    for name in CONTENDERS:
        row = {"contender": name, "model": model, "dim": dim, **about[name]}
        if name in present:
            pipes[name].send(None)
            seconds = statistics.median(taken[name]["train"])
            row |= {
                "epoch_seconds": seconds,
                "triples_per_second": len(graph.train) / seconds,
                "ranking_queries_per_second": statistics.median(taken[name]["rank"]),
                "ranked_triples": len(triples),
                "profile": pipes[name].recv(),
                "copy_bytes_per_second": statistics.median(bandwidths),
                "epoch_seconds_all": taken[name]["train"],
                "ranking_queries_per_second_all": taken[name]["rank"],
            }
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


def inference(graph: Graph, model: str, tick: Tick = silent) -> list[dict[str, Any]]:
    """The paper's Table 5: both sides of all 93,003 triples ranked, and one-query latency.

    The triples are ranked in parts that go around the dimensions, so that a slow minute slows all of them.
    """
    known, triples, rows = KnownTriples(graph.known, graph.num_relations), graph.known, []
    models, taken = {}, {}
    for dim in PAPER_TABLE5["dims"]:
        options = make_config(model=model, dim=dim).model_options
        models[dim], taken[dim] = build_model(model, graph.num_entities, graph.num_relations, dim, **options), []
        rank(models[dim], triples[:64], known)
    for part in triples.chunk(PAPER_TABLE5["parts"]):
        for dim, m in models.items():
            tick(f"Table 5: {model} d={dim}")
            began = time.perf_counter()
            rank(m, part, known)
            taken[dim].append(time.perf_counter() - began)
    for dim, m in models.items():
        seconds = sum(taken[dim])
        ranker, waits = Ranker(m) if kernels.rank_library(m) else None, []
        for i in range(1000):
            x = triples[i * len(triples) // 1000][None]
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
                "seconds": seconds,
                "seconds_of_parts": taken[dim],
                "queries_per_second": 2 * len(triples) / seconds,
                "latency_p50_us": waits[500] * 1e6,
                "latency_p99_us": waits[990] * 1e6,
                "speedup": sum(taken[PAPER_TABLE5["dims"][0]]) / seconds,
            }
        )
    return rows


def growth(graph: Graph, repeats: int = 3, tick: Tick = silent) -> list[dict[str, Any]]:
    """Seconds to rank the test split over the dimension (the paper's Figure 1); best of `repeats`."""
    known, rows = KnownTriples(graph.known, graph.num_relations), []
    name, dims = PAPER_FIGURE1
    for dim in dims:
        tick(f"Figure 1: d={dim}")
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
    figure.suptitle(f"{report['dataset']}, {report['device']}")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    write_atomically(path, lambda scratch: figure.savefig(scratch, format="png", dpi=110))
    plt.close(figure)


class Parts:
    """What is measured so far, kept in a file, so that the same command goes on where it was stopped.

    Args:
        path: the file. key: all that decides what is measured; a file of another key is not gone on with.
    """

    def __init__(self, path: Path, key: dict[str, Any]):
        self.path, self.done = path, {"key": json.loads(json.dumps(key)), "seconds": 0.0, "parts": {}}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if found.get("key") == self.done["key"]:
            self.done = found

    def __contains__(self, name: str) -> bool:
        return name in self.done["parts"]

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """The part of this name, measured and written if it is not there yet."""
        if name not in self:
            began = time.perf_counter()
            self.done["parts"][name] = measure()
            self.done["seconds"] += time.perf_counter() - began
            write_json(self.path, self.done)
        return self.done["parts"][name]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="wn18rr", help="graph to run on (default: %(default)s)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 8])
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; the median counts (%(default)s)")
    parser.add_argument("--triples", type=int, default=RANKED, help="test triples that all rank a call (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip-inference", action="store_true", help="leave out the paper's Table 5 and Figure 1")
    parser.add_argument("--output", default="bench", help="name of the files under results/bench/")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    graph, folder = load(options.dataset), records.results_folder() / "bench"
    about = records.provenance()
    about["versions"] |= {name: records.installed(name) for name in ("pykeen", "torchkge")}
    head = {
        "device": records.describe_device("cpu"),
        "threads": options.threads,
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "dataset": graph.name,
        "graph_sha256": graph.sha256,
        "batch_size": BATCH,
        "rounds": options.rounds,
        "config": {
            "models": options.models,
            "dims": options.dims,
            "learning_rate": RATE,
            "negatives": {model: make_config(model=model).negatives for model in options.models},
            "margin": {model: make_config(model=model).gamma for model in options.models},
            "ranked_triples": min(options.triples, len(graph.test)),
            "triples_a_batch_is_tried_on": TRIED,
            "inference": not options.skip_inference,
        },
        **about,
    }
    parts = Parts(records.runs_folder() / "bench" / f"{options.output}.json", head)
    jobs: dict[str, tuple[int, Callable[[Tick], Any]]] = {}  # by name the steps that it shows, and what it does
    for dim in options.dims:
        for model in options.models:
            jobs[f"{model} {dim}"] = (
                len(CONTENDERS) * (1 + 2 * options.rounds),
                lambda tick, m=model, d=dim: compare(
                    graph, m, d, options.rounds, options.threads, options.triples, tick
                ),
            )
    for model in options.models:
        jobs[f"distillation {model}"] = 0, lambda tick, m=model: distillation(graph, m, options.rounds)
        if not options.skip_inference:
            steps = PAPER_TABLE5["parts"] * len(PAPER_TABLE5["dims"])
            jobs[f"inference {model}"] = steps, lambda tick, m=model: inference(graph, m, tick)
    if not options.skip_inference:
        jobs["growth"] = len(PAPER_FIGURE1[1]), lambda tick: growth(graph, tick=tick)
    machine = parts("machine", lambda: {"copy_bytes_per_second": copy_bandwidth(), "matmul_flops": peak_flops()})
    left = sum(steps for name, (steps, _) in jobs.items() if name not in parts)
    found = {}
    with tqdm(total=left, disable=None) as bar:

        def tick(step: str) -> None:
            bar.set_description(step, refresh=False)
            bar.update()

        for name, (_, job) in jobs.items():
            found[name] = parts(name, lambda job=job: job(tick))
    rows = [row for dim in options.dims for model in options.models for row in found[f"{model} {dim}"]]
    report = {
        **head,
        "command": " ".join(["python -m kgdistil.paper.bench", *(arguments or sys.argv[1:])]),
        **machine,
        "contenders": rows,
        "ratios": ratios(rows),
        "floors": floors(graph, rows, machine["matmul_flops"]),
        "distillation": [found[f"distillation {model}"] for model in options.models],
    }
    if not options.skip_inference:
        report["inference"] = [row for model in options.models for row in found[f"inference {model}"]]
        report["growth"] = found["growth"]
    report["seconds"] = round(parts.done["seconds"], 1)
    report["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(folder / f"{options.output}.json", report)
    plot(report, folder / f"{options.output}.png")
    parts.path.unlink()
    for name in ("ratios", "floors", "distillation", "inference", "growth"):
        if name in report:
            table = pd.DataFrame(report[name]).drop(columns="seconds_of_parts", errors="ignore").round(3)
            print(f"\n{name}\n{table.to_string()}")
    print(f"\nwritten: {records.shown(folder / options.output)}.json and .png")
    return 0
