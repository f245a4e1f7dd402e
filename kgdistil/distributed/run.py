"""`python -m kgdistil.train GRAPH --loss softmax …`: one run, on one process or, below torchrun, on several ranks.

    torchrun --nproc-per-node 2 --max-restarts 9 -m kgdistil.train graph/ --model ComplEx --loss softmax --dim 64

The options are the fields of a run's config, the same on one process. All ranks read the graph and share the folders of
runs and records. What a rank holds beside its N-th of the entities (weights, Adagrad's sums, the best weights, the
teacher): triples, queries, relations, codebooks, map. A run that was stopped, or lost a rank, goes on where its last
checkpoint stands, with as many ranks or others, as the same command says.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint import CheckpointException
from tqdm import tqdm

from kgdistil import records
from kgdistil.answer.format1 import WEIGHTS
from kgdistil.config import FLAT, RunConfig, make_config
from kgdistil.distillation import scale
from kgdistil.distributed import keeping, tables
from kgdistil.distributed.engine import ShardedEngine
from kgdistil.distributed.ranking import rank
from kgdistil.distributed.shards import Shards, lost
from kgdistil.errors import BusyError, CheckpointError, ConfigError, KgdistilError
from kgdistil.evaluation import KnownTriples, sampled
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import dataset_of
from kgdistil.graphs.lists import KEPT
from kgdistil.graphs.readers import read_graph
from kgdistil.training.loop import (
    BAR,
    CHECKPOINT_SECONDS,
    Progress,
    advance,
    check_sources,
    forget,
    load_weights,
    record_of,
    resolve,
    run,
    validate,
)

OF_RANKS = {  # options, in seconds: the default, the least, and what they are
    "timeout": (60.0, 1e-3, "seconds after which a silent one is given up"),
    "keep-every": (CHECKPOINT_SECONDS, 0.0, "seconds between checkpoints"),
}
LINE_SECONDS = 30.0  # between two lines where there is no terminal
COUNTS = "group", "depth"  # one of a few numbers each, which a config does not read from text


def main(arguments: list[str] | None = None) -> int:
    """Train a run, or find it finished, and print its test metrics.

    Returns:
        0; 130 where it was stopped.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.train", description=__doc__.split("\n")[0])
    parser.add_argument("graph", help="a known graph, a folder of train, valid and test, or a file of triples")
    for name in FLAT:
        if name != "dataset":
            parser.add_argument(f"--{name.replace('_', '-')}")
    for name, (seconds, _, what) in OF_RANKS.items():
        parser.add_argument(f"--{name}", type=float, help=f"of several ranks: {what}  [default: {seconds:g}]")
    options = vars(parser.parse_args(arguments))
    ranks, number = "RANK" in os.environ, int(os.environ.get("RANK", "0"))
    source, (timeout, every) = options.pop("graph"), (seconds_of(parser, options, name, ranks) for name in OF_RANKS)
    logging.getLogger("kgdistil").setLevel(logging.ERROR if number else logging.WARNING)  # the first speaks for all
    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: int(given[name]) for name in COUNTS if given.get(name, "").isdecimal()}
    config = make_config(dataset=source, **given)
    graph = read_graph(source)
    usual = scale.settings(graph, config.model, config.dim, config.loss)
    config = make_config(**{"dataset": source, **usual, **given})
    config = config.model_copy(update={"dataset": dataset_of(graph)})  # other files of that name are other graphs
    if config.device == "cpu":
        world, here = (int(os.environ.get(name, "1")) if ranks else 1 for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        teacher = teacher_width(config)
        line = scale.check_memory({config.role: config}, graph, teacher=teacher, ranks=world, here=here)
        if line and not number:
            print(f"kgdistil: {line}", file=sys.stderr, flush=True)
    try:
        if ranks:
            record = on_ranks(config, graph, timeout, every)
        else:
            record = run(config, graph, progress=lambda _, __, **bar: Epochs(**bar)).record
    except KeyboardInterrupt:
        if dist.is_initialized():  # its threads would end with a line of their own
            dist.destroy_process_group()
        if number == 0:
            print("kgdistil: stopped; the same command goes on at its last checkpoint, if it has one", file=sys.stderr)
        return 130
    if number == 0:
        own = records.is_own(config.dataset)
        print(f"{record['id']}: test MRR {record['test']['both']['mrr']:.4f}, epoch {record['best_epoch']}")
        print(f"weights in {records.model_folder(record['id'], own)}, record {records.record_path(record['id'], own)}")
    return 0


def teacher_width(config: RunConfig) -> int | None:
    """Numbers of an entity of the run's teacher, by its file; None where it has none, or packed ones, or is gone, which
    a finished run does without."""
    if not config.teacher or config.teacher.endswith(KEPT):
        return None
    try:
        with safe_open(resolve(config.teacher) / WEIGHTS, "pt") as file:
            return file.get_slice("entities").get_shape()[1]
    except (CheckpointError, OSError, SafetensorError):  # what is wrong is said where it is opened
        return None


def seconds_of(parser: argparse.ArgumentParser, options: dict[str, Any], name: str, ranks: bool) -> float:
    """What was given of `OF_RANKS`, or its default; an error of the parser where it is no time or nothing reads it."""
    usual, least, _ = OF_RANKS[name]
    given = options.pop(name.replace("-", "_"))
    if given is not None and not least <= given <= 1e9:
        parser.error(f"--{name} is {given}: give seconds, {least:g} or more")
    if given is not None and not ranks:
        parser.error(f"--{name} is of several ranks: start them with torchrun, or leave it out")
    return usual if given is None else given


class Epochs(tqdm):
    """The bar of a run; where there is no terminal, a line at times says how far it is and how long the rest takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"disable": None, "bar_format": BAR} | options)
        self.done = self.first = options["initial"]
        self.told = self.began = time.monotonic()

    def update(self, n: float | None = 1) -> bool | None:
        self.done, now = self.done + n, time.monotonic()
        if self.disable and now - self.told >= LINE_SECONDS:
            left = (now - self.began) / (self.done - self.first) * (self.total - self.done)
            line = f"epoch {self.done} of {self.total}, about {self.format_interval(left)} left"
            print(line, file=sys.stderr, flush=True)
            self.told = now
        return super().update(n)


def on_ranks(config: RunConfig, graph: Graph, timeout: float, every: float) -> dict[str, Any]:
    """The record of a run on the ranks that torchrun started, of which this process is one.

    Raises:
        KgdistilError: a rank is lost, besides what `loop.run` raises.
    """
    if config.loss != "softmax" or config.top or config.unlabelled or str(config.teacher).endswith(KEPT):
        asked = "--loss softmax, without --top and --unlabelled, and with a model as teacher"
        raise ConfigError(f"several ranks train with {asked}")
    if config.device.startswith("cuda"):
        config = config.model_copy(update={"device": f"cuda:{os.environ.get('LOCAL_RANK', '0')}"})
        torch.cuda.set_device(config.device)
    own = records.is_own(config.dataset)
    folder = records.model_folder(config.run_id, own)
    try:
        join("cpu:gloo,cuda:nccl" if config.device != "cpu" else "gloo", datetime.timedelta(seconds=timeout))
        agree(config, graph)
        record = found_or_trained(config, graph, folder, Shards(graph.num_entities), every)
        dist.destroy_process_group()  # its threads abort a process that ends while they run
        return record
    except KgdistilError:
        if dist.is_initialized():  # its threads would end with a line of their own
            dist.destroy_process_group()
        raise
    except (RuntimeError, CheckpointException) as error:
        if not lost(error):
            raise
        print(f"kgdistil: {where_it_stands(folder)}", file=sys.stderr, flush=True)
        os._exit(1)  # threads of a broken process group may never end


def join(backend: str, timeout: datetime.timedelta) -> None:
    """Meet the other ranks. One store of torchrun serves all attempts, where addresses of an earlier one would be read;
    over several machines TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each attempt its own."""
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def agree(config: RunConfig, graph: Graph) -> None:
    """ConfigError on every rank where one was given something else: its steps would be another run's."""
    own = config.model_dump(exclude={"device"}) | {"graph": graph.sha256}
    given: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(given, own)
    for number, other in enumerate(given):
        if differ := [name for name in own if other.get(name) != given[0].get(name)]:
            there, here = (x.get(differ[0]) for x in (other, given[0]))
            raise ConfigError(f"{differ[0]} is {there!r} on rank {number}, {here!r} on rank 0: give all ranks the same")


def where_it_stands(folder: Path) -> str:
    """What to say where a rank is gone."""
    stands = "its last checkpoint" if (folder / keeping.ABOUT).is_file() else "its beginning"
    rank = os.environ.get("RANK", "0")
    return f"rank {rank} lost the others; the run stands at {stands}, where the same command goes on with any ranks"


def found_or_trained(config: RunConfig, graph: Graph, folder: Path, shards: Shards, every: float) -> dict[str, Any]:
    """The record, of a finished run where all ranks find one."""
    path = records.record_path(config.run_id, records.is_own(config.dataset))
    found = records.read_record(path)
    same = found is not None and found["graph"]["sha256"] == graph.sha256 and (folder / WEIGHTS).is_file()
    if int(shards.add([torch.tensor([int(same)], device=config.device)])[0]) == shards.world:
        check_sources(path, config, found.get("sources", {}))
        if not shards.rank:
            forget(folder)
        return found
    if shards.rank:
        return train(config, graph, folder, shards, every)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            return train(config, graph, folder, shards, every)
    except filelock.Timeout:
        raise BusyError(f"{folder}: another process is training this run; wait for it or stop it") from None


def train(config: RunConfig, graph: Graph, folder: Path, shards: Shards, every: float) -> dict[str, Any]:
    """`loop.train` on all ranks: the weights of the whole in `folder`, and the record, which is returned."""
    student, teacher = tables.prepare(config, graph, shards)
    engine = ShardedEngine(student, teacher, graph.train.to(config.device), config, shards)
    mesh = keeping.mesh_of(config.device)
    state, before = keeping.restore(folder, engine, graph, mesh)
    known, ranking = KnownTriples(graph.known, graph.num_relations), functools.partial(rank, shards=shards)
    began = saved = time.monotonic()

    def sent() -> int:
        """Bytes that all ranks sent, in all sittings."""
        return before + int(shards.add([torch.tensor([shards.sent], device=config.device)])[0])

    def keep(always: bool = False) -> None:
        nonlocal began, saved
        if always or engine.stopped:  # all ranks know, since the step before
            now = time.monotonic()
            state.seconds, began = state.seconds + now - began, now
            keeping.save(folder, engine, graph, state, sent(), mesh)
            saved, engine.stopped = time.monotonic(), False
        engine.stop = float(shards.rank == 0 and time.monotonic() - saved >= every)

    engine.between = keep
    hidden = True if shards.rank else None
    bar = Epochs(total=config.epochs, initial=state.epoch, desc=f"{shards.world} ranks", disable=hidden)
    while not state.finished:
        losses = advance(engine, state)
        if not shards.rank:
            bar.update()
        if state.epoch % config.check_every == 0 or state.epoch == config.epochs:
            validate(engine, graph, known, state, losses, ranking)
        state.finished = state.epoch == config.epochs or 0 < config.patience <= state.bad_checks
        keep(state.finished)
    bar.close()
    return finish(folder, engine, graph, ranking, known, state, sent())


def finish(
    folder: Path, engine: ShardedEngine, graph: Graph, ranking: Any, known: KnownTriples, state: Progress, sent: int
) -> dict[str, Any]:
    """`loop.finish`: rank the best weights, put the parts together, write the record; the checkpoint goes last."""
    config, shards, models = engine.config, engine.shards, engine.trained
    if config.check_sample:
        models = engine.as_saved()
    else:
        load_weights(models, state.best)
    student, sample = models["student"], config.final_sample
    ranks = {split: ranking(student, sampled(getattr(graph, split), sample), known) for split in ("valid", "test")}
    peaks = torch.zeros(shards.world, dtype=torch.int64, device=config.device)
    peaks[shards.rank] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (peaks,) = shards.add([peaks])
    rows = (shards.size - len(student.entities)) * student.entities.shape[1]  # of the others
    record = record_of(engine, graph, state, ranks, student.num_parameters + rows)
    about = {"ranks": shards.world, "backend": dist.get_backend(), "bytes_sent": sent, "peak_bytes": peaks.tolist()}
    record["distributed"] = about
    for role, model in models.items():
        into = folder if role == "student" else folder / role
        tables.save_whole(into, model, graph, config.run_id, shards)
    if shards.rank == 0:
        records.write_record(record)
        forget(folder)
    return record
