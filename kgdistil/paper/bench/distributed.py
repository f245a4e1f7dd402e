"""`python -m kgdistil.paper.bench.distributed [PART …]`: training on several ranks, on this machine.

    bytes     what steps sent, as counted, beside the formula of `distributed.engine`, for 1, 2, 3 and 4 ranks
    memory    peak memory of a rank for 1, 2 and 4 of them, on a made-up graph, beside a run whose tables are tiny
    kills     a rank killed by SIGKILL at random moments; torchrun starts all again; the metrics beside a run left alone
    hosts     two network namespaces as two hosts: bytes that crossed the wire beside those counted, and a host that
              never comes back (only as root)
    speed     two ranks of one thread beside one process of two threads (on quiet cores)
    quality   test MRR of one process and of two ranks, over seeds

Each run is a process, or several, of `python -m kgdistil.train`; its record is what is read.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.config import RunConfig, make_config
from kgdistil.distributed import keeping
from kgdistil.distributed.engine import ShardedEngine
from kgdistil.distributed.shards import Shards
from kgdistil.distributed.tables import drawn
from kgdistil.errors import ConfigError, run_command
from kgdistil.graphs.datasets import load
from kgdistil.models import build_model
from kgdistil.sampling import epoch_order
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine, queries_of

SMALL: dict[str, Any] = {
    "model": "ComplEx",
    "loss": "softmax",
    "dim": 16,
    "lr": 0.1,
    "negatives": 60,
    "batch_size": 64,
    "patience": 0,
    "accumulators": "number",  # on a large graph, too
    "answers": 0,
}
KILLED: dict[str, Any] = {**SMALL, "epochs": 20, "check_every": 5}
EVERY = ("--keep-every", "0.1")
HOSTS = {**SMALL, "dim": 256, "epochs": 20, "check_every": 5}
MADE_UP = 300_000  # entities of the graph that memory is measured on
LARGE = {**SMALL, "negatives": 2000, "batch_size": 1024, "epochs": 1, "check_sample": 20, "final_sample": 20}
USUAL = {**SMALL, "dim": 64, "negatives": 4000, "batch_size": 1024, "schedule": "linear", "accumulator": 1e-3}

LEARNT = {**USUAL, "lr": 0.4, "negatives": 2048, "batch_size": 512, "accumulator": 0.0, "penalty": 0.03}  # for quality


# ---- runs ------------------------------------------------------------------------------------------------------------
def flags(graph: str, settings: dict[str, Any], *more: str) -> list[str]:
    given = [x for name, value in settings.items() for x in (f"--{name.replace('_', '-')}", str(value))]
    return ["-m", "kgdistil.train", graph, *given, *more]


def ranks_of(world: int, arguments: Sequence[str], restarts: int = 0) -> list[str]:
    """The command of torchrun."""
    how = ["--nproc-per-node", str(world), "--max-restarts", str(restarts), "--monitor-interval", "0.1"]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", *how, *arguments]


PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def started(
    command: list[str], folder: Path, threads: int = 1, variables: dict[str, str] = PASSIVE
) -> subprocess.Popen:
    """A process whose runs and records lie in a folder; what it says goes to `log` there."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {"KGDISTIL_RUNS": str(folder / "runs"), "KGDISTIL_RESULTS": str(folder / "results")}
    quiet = {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env={**os.environ, **places, **quiet, **variables}, stdout=log, stderr=log)


def record_in(folder: Path) -> dict[str, Any]:
    """The record of the one run there.

    Raises:
        RuntimeError: there is none, with what was said.
    """
    found = list((folder / "results" / "runs").glob("*.json"))
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} records in {folder}: {(folder / 'log').read_text()[-3000:]}")
    return json.loads(found[0].read_text(encoding="utf-8"))


def done(command: list[str], folder: Path, threads: int = 1, variables: dict[str, str] = PASSIVE) -> dict[str, Any]:
    started(command, folder, threads, variables).wait()
    return record_in(folder)


def metrics(record: dict[str, Any]) -> dict[str, Any]:
    """What two runs of one command must have in common."""
    return {name: record[name] for name in ("valid", "test", "curve", "epochs", "best_epoch")}


# ---- bytes -----------------------------------------------------------------------------------------------------------
def step_bytes(engine: SampledSoftmaxEngine, batch: Tensor, world: int) -> int:
    """The bytes that `distributed.engine` says a step of queries takes on `world` ranks, worked out on one process."""
    anchors, each = len(set(engine.anchor[batch].tolist())), 24 * (world - 1) * len(batch)
    total = 0
    for role, model in engine.models.items():
        rows = 4 * model.entities.shape[1] * (world - 1) * anchors
        total += 2 * rows if role in engine.trained else rows
        if role in engine.trained:
            tables = [x.numel() for name, x in model.named_parameters() if name != "entities"]
            book = engine.moments.get(f"{role}.codebook")
            numbers = sum(tables) + (0 if book is None else book.numel()) + (6 if role == "student" else 0)
            total += 8 * (world - 1) * numbers + each
    return total


def epoch_bytes(config: RunConfig, world: int) -> tuple[int, int]:
    """Bytes of the first epoch by the formula, and its steps."""
    graph = load(config.dataset)
    model = build_model(config.model, graph.num_entities, graph.num_relations, config.dim, **config.model_options)
    engine = SampledSoftmaxEngine(model, None, graph.train, config)
    batches = epoch_order(config.seed, 0, engine.samples).split(config.batch_size)
    return sum(step_bytes(engine, x, world) for x in batches), len(batches)


def count_bytes(folder: Path) -> list[dict[str, Any]]:
    """Of the steps of one epoch."""
    rows = []
    for world in (1, 2, 3, 4):
        config = make_config(dataset="umls", **{**SMALL, "epochs": 1})
        expected, steps = epoch_bytes(config, world)
        counted = in_ranks(world, folder / str(world), config)
        rows.append({"ranks": world, "steps": steps, "bytes": counted, "formula": expected})
    return rows


def in_ranks(world: int, folder: Path, config: RunConfig) -> int:
    """What the steps of the first epoch sent, as counted."""
    folder.mkdir(parents=True)
    mp.spawn(one_epoch, (world, str(folder), config), nprocs=world)
    return sum(int(path.read_text()) for path in folder.glob("*.bytes"))


def one_epoch(rank: int, world: int, folder: str, config: RunConfig) -> None:
    """A rank of `in_ranks`."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    graph = load(config.dataset)
    shards = Shards(graph.num_entities)
    engine = ShardedEngine(drawn(config, graph, shards), None, graph.train, config, shards)
    shards.sent = 0
    engine.epoch(0, torch.full((engine.steps,), config.lr, dtype=torch.float64))
    (Path(folder) / f"{rank}.bytes").write_text(str(shards.sent))
    dist.destroy_process_group()


# ---- memory ----------------------------------------------------------------------------------------------------------
def made_up(path: Path, entities: int = MADE_UP) -> str:
    """A file of random triples in which every entity stands, three each."""
    random_ = np.random.default_rng(0)
    heads = np.repeat(np.arange(entities), 3)
    triples = np.stack([heads, random_.integers(8, size=len(heads)), random_.integers(entities, size=len(heads))], 1)
    path.write_text("".join(f"e{h}\tr{r}\te{t}\n" for h, r, t in triples.tolist()))
    return str(path)


def measure_memory(folder: Path, entities: int = MADE_UP) -> list[dict[str, Any]]:
    """The highest peak of a rank, with tables of 2 × 64 numbers a row and of 2 × 1; their difference is the tables."""
    graph = made_up(folder / "made-up.tsv", entities)
    rows: list[dict[str, Any]] = []
    for world in (1, 2, 4):
        peaks = {}
        for dim in (1, 64):
            record = done(ranks_of(world, flags(graph, {**LARGE, "dim": dim})), folder / f"{world}-{dim}")
            peaks[dim] = max(record["distributed"]["peak_bytes"])
        tables = 2 * 4 * 2 * 63 * entities  # weights and Adagrad's sums, of 63 complex numbers
        row = {"ranks": world, "entities": entities, "peak_bytes": peaks[64], "without_tables": peaks[1]}
        rows.append({**row, "tables": peaks[64] - peaks[1], "tables_in_all": tables})
    return rows


# ---- kills -----------------------------------------------------------------------------------------------------------
def workers(of: int) -> list[int]:
    """The processes that torchrun has started."""
    try:
        return [int(x) for x in Path(f"/proc/{of}/task/{of}/children").read_text().split()]
    except OSError:
        return []


def progress(folder: Path) -> float:
    """Epochs that the last checkpoint of the one run there has behind it; 0 where there is none."""
    try:
        epoch, steps = json.loads(next(folder.glob(f"runs/models/*/{keeping.ABOUT}")).read_text())["folder"].split("-")
    except (OSError, StopIteration):
        return 0.0
    return int(epoch) + int(steps) / steps_of_an_epoch()


@functools.cache
def steps_of_an_epoch() -> int:
    return -(-len(queries_of(load("umls").train)[0]) // SMALL["batch_size"])


def killed(folder: Path, world: int, target: float, pause: float, draw: random.Random) -> dict[str, Any]:
    """A run of which one rank is killed so many seconds after a checkpoint beyond that epoch."""
    run_ = started(ranks_of(world, flags("umls", KILLED, *EVERY), 3), folder)
    struck: dict[str, Any] = {}
    while run_.poll() is None and not struck:
        time.sleep(0.01)
        if (kept := progress(folder)) > target and (pids := workers(run_.pid)):
            time.sleep(pause)
            struck = {"after_epochs": kept, "rank": draw.randrange(len(pids))}
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[struck["rank"]], signal.SIGKILL)
    code = run_.wait()
    if code:
        raise RuntimeError(f"torchrun ended with {code}: {(folder / 'log').read_text()[-3000:]}")
    restarts = (folder / "log").read_text().count("local_rank: ")  # torchrun names the rank that failed
    return {**struck, "restarts": restarts, "record": record_in(folder)}


def kill_ranks(folder: Path, times: int, world: int = 2) -> dict[str, Any]:
    """Runs with a killed rank beside one left alone."""
    draw, rows = random.Random(0), list[dict[str, Any]]()
    alone = done(ranks_of(world, flags("umls", KILLED, *EVERY)), folder / "alone")
    while len(rows) < times:
        target, pause = draw.uniform(0, 0.9 * KILLED["epochs"]), draw.uniform(0, 0.2)
        found = killed(folder / str(len(rows)), world, target, pause, draw)
        same = metrics(found.pop("record")) == metrics(alone)
        rows.append({**found, "same": same})
        print(rows[-1], flush=True)
    about = {"ranks": world, "seconds": alone["seconds"], "test_mrr": alone["test"]["both"]["mrr"]}
    struck = sum(row["restarts"] > 0 for row in rows)
    return {**about, "restarted": struck, "same": sum(row["same"] for row in rows), "times": rows}


# ---- hosts -----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces and a cable between them; the names of both.

    Raises:
        ConfigError: not root, or no `ip`.
    """
    names, cables = [f"kgd{os.getpid()}{i}" for i in "ab"], [f"kgdv{os.getpid() % 10000}{i}" for i in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, stderr=subprocess.PIPE)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for i, (name, cable) in enumerate(zip(names, cables, strict=True)):
            ip("link", "set", cable, "netns", name, "name", "cable")
            ip("-n", name, "addr", "add", f"10.213.7.{i + 1}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"two hosts need root and iproute2 ({error})") from None
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def on_hosts(names: list[str], arguments: list[str], folder: Path) -> list[subprocess.Popen]:
    """One rank on each host."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "10.213.7.1", "MASTER_PORT": "29511", "GLOO_SOCKET_IFNAME": "cable"}
    command = [sys.executable, *arguments]
    return [
        started(["ip", "netns", "exec", name, *command], folder, variables={**PASSIVE, "RANK": str(i), **shared})
        for i, name in enumerate(names)
    ]


def by_torchrun(names: list[str], arguments: list[str], folder: Path, restarts: int = 0) -> list[subprocess.Popen]:
    """The same by torchrun, one on each host."""
    variables = {**PASSIVE, "GLOO_SOCKET_IFNAME": "cable", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    how = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(restarts), "--monitor-interval", "0.1"]
    how += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "10.213.7.1:29512", "--rdzv-id", "kgdistil"]
    command = [sys.executable, "-m", "torch.distributed.run", *how]
    processes = []
    for i, name in enumerate(names):
        own = ["--local-addr", f"10.213.7.{i + 1}", "--rdzv-conf", f"is_host={int(not i)}"]
        line = ["ip", "netns", "exec", name, *command, *own, *arguments]
        processes.append(started(line, folder, variables=variables))
    return processes


def kill_on_host(names: list[str], folder: Path) -> dict[str, Any]:
    """A run by torchrun on two hosts, on the second of which the rank is killed after a checkpoint."""
    both = by_torchrun(names, flags("umls", HOSTS, *EVERY), folder, restarts=1)
    while not list(folder.glob(f"runs/models/*/{keeping.ABOUT}")):
        time.sleep(0.05)
    ranks = workers(both[1].pid)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    codes = [process.wait() for process in both]
    return {"killed": len(ranks), "exit_codes": codes, "test_mrr": record_in(folder)["test"]["both"]["mrr"]}


def wire(names: list[str]) -> int:
    """Bytes that both hosts have sent."""
    file = "/sys/class/net/cable/statistics/tx_bytes"
    read = (subprocess.run(["ip", "netns", "exec", n, "cat", file], check=True, capture_output=True) for n in names)
    return sum(int(x.stdout) for x in read)


def use_hosts(folder: Path) -> dict[str, Any]:
    """A run on two hosts, and one whose second host goes while it trains and never comes back."""
    with two_hosts() as names:
        before = wire(names)
        for process in on_hosts(names, flags("umls", HOSTS), folder / "whole"):
            process.wait()
        crossed = wire(names) - before
        record = record_in(folder / "whole")
        first, second = on_hosts(names, flags("umls", HOSTS, *EVERY, "--timeout", "5"), folder / "lost")
        there = folder / "lost"
        while not list(there.glob(f"runs/models/*/{keeping.ABOUT}")):
            time.sleep(0.05)
        began = time.monotonic()
        subprocess.run(["ip", "-n", names[1], "link", "set", "cable", "down"], check=True)  # no word, no goodbye
        code = first.wait()
        seconds = time.monotonic() - began
        second.kill()
        second.wait()
        said = [line for line in (there / "log").read_text().splitlines() if line.startswith("kgdistil: ")]
        kept = json.loads(next(there.glob(f"runs/models/*/{keeping.ABOUT}")).read_text())
    with two_hosts() as names:  # whose cable is whole
        restarted = kill_on_host(names, folder / "torchrun")
    alone = done(ranks_of(1, flags("umls", HOSTS)), there)
    return {
        "crossed_bytes": crossed,
        "counted_bytes": record["distributed"]["bytes_sent"],
        "test_mrr": record["test"]["both"]["mrr"],
        "lost": {"exit_code": code, "seconds": round(seconds, 1), "said": said, "kept_epoch": kept["epoch"]},
        "by_torchrun": restarted,
        "goes_on_alone": {"ranks": alone["distributed"]["ranks"], "test_mrr": alone["test"]["both"]["mrr"]},
    }


# ---- speed and quality -----------------------------------------------------------------------------------------------
def speed(folder: Path, graph: str, queries: int, rounds: int = 3) -> dict[str, Any]:
    """Training triples a second with batches of so many queries, from the time that three further epochs take: medians
    over rounds that take turns. Two threads wait for each other as they do for whoever trains; a rank has one."""
    rates: dict[str, list[int]] = {"one process of two threads": [], "two ranks of one thread": []}
    products = ""
    for round_, (name, rate) in ((i, x) for i in range(rounds) for x in rates.items()):
        times, train = [], 0
        for epochs in (1, 4):
            settings = {
                **USUAL,
                "batch_size": queries,
                "epochs": epochs,
                "check_every": epochs,
                "check_sample": 1,
                "final_sample": 1,
            }
            arguments, here = flags(graph, settings), folder / f"{name[:3]}{epochs}-{round_}"
            if name.startswith("one"):
                record = done([sys.executable, *arguments], here, 2, {})
            else:
                record = done(ranks_of(2, arguments), here)
            times.append(record["seconds"])
            train, products = record["graph"]["train"], record["arithmetic"]["products"]
        rate.append(round(3 * train / (times[1] - times[0])))
    middle = {name: round(statistics.median(rate)) for name, rate in rates.items()}
    one, two = middle.values()
    ratio = round(two / one, 3)
    about = {"graph": graph, "queries": queries, "products": products}
    return {**about, "triples_a_second": middle, "ratio": ratio, "rounds": rates}


def quality(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Test MRR by seed, of one process and of two ranks, and how far apart they are beside what seeds are apart."""
    settings = {**LEARNT, "epochs": options.epochs, "check_every": options.epochs}
    settings |= {"check_sample": options.sample, "final_sample": options.sample}
    rows, sizes = list[dict[str, Any]](), dict[str, Any]()
    for seed in range(options.seeds):
        arguments = flags(options.graph, {**settings, "seed": seed})
        one = done([sys.executable, *arguments], folder / f"one{seed}", 2)
        two = done(ranks_of(2, arguments), folder / f"two{seed}")
        rows.append({"seed": seed, "one_process": one["test"]["both"]["mrr"], "two_ranks": two["test"]["both"]["mrr"]})
        sizes = one["graph"]
        print(rows[-1], flush=True)
    mrr = {name: [row[name] for row in rows] for name in ("one_process", "two_ranks")}
    apart: dict[str, Any] = {"two_less_one": statistics.mean(mrr["two_ranks"]) - statistics.mean(mrr["one_process"])}
    if len(rows) > 1:
        apart["sd_of_seeds"] = {name: statistics.stdev(x) for name, x in mrr.items()}
    return {"graph": {"name": Path(options.graph).stem, **sizes}, "config": settings, "rows": rows, **apart}


PARTS: dict[str, Callable[[Path, argparse.Namespace], Any]] = {
    "bytes": lambda folder, _: count_bytes(folder),
    "memory": lambda folder, _: measure_memory(folder),
    "kills": lambda folder, options: kill_ranks(folder, options.kills),
    "hosts": lambda folder, _: use_hosts(folder),
    "speed": lambda folder, options: speed(folder, options.graph, options.queries, options.rounds),
    "quality": quality,
}


def main(arguments: list[str] | None = None) -> int:
    """Write the measurements and print them.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m kgdistil.paper.bench.distributed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: the first four")
    parser.add_argument("-o", "--output", type=Path, help="default: results/bench/distributed.json")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--graph", default="wn18rr", help="for speed and quality")
    parser.add_argument("--rounds", type=int, default=3, help="for speed")
    parser.add_argument("--queries", type=int, default=USUAL["batch_size"], help="of a batch, for speed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="for quality")
    parser.add_argument("--sample", type=int, default=0, help="for quality, ranked triples; 0: all")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        raise ConfigError(f"unknown part {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    path = options.output or records.results_folder() / "bench" / "distributed.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in options.parts or list(PARTS)[:4]:
            folder, load_ = Path(scratch) / part, os.getloadavg()[0]
            folder.mkdir()
            found = PARTS[part](folder, options)
            about = {
                "command": records.command(),
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "load_average": load_,
            }
            about |= {"device": records.describe_device("cpu"), **records.provenance()}
            name = f"{part}/{Path(options.graph).stem}" if part in ("speed", "quality") else part
            # the processor decides on the type of products
            name += f"/{found['products']}/{found['queries']}" if part == "speed" else ""
            report[name] = {**about, "found": found}
            print(json.dumps({name: found}, indent=1), flush=True)
            write_json(path, report)
    return 0


if __name__ == "__main__":
    run_command(main)
