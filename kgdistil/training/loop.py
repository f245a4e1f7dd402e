"""One loop for teacher, no-DS student, stage 1 and stage 2.

`run` is the way in: it finds a finished run by its id or trains it, and a run that was killed goes on where its last
checkpoint stands and ends with the same bits as one that was never disturbed: on the same processor and versions, with
the same engine, type of matrix products and kernels, all of which a checkpoint names. The compiled engine's sums do not
depend on the number of threads; where PyTorch's do, a run goes on with as many as it was begun with. On a GPU sampled
softmax adds gradients in no fixed order, so that there the same run ends close by.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor
from tqdm import tqdm

from kgdistil import kernels, records
from kgdistil.answer.format import HEADER
from kgdistil.answer.format1 import sum_in
from kgdistil.checkpoint import WEIGHTS, load_model, read_tensors, save_model, write_tensors
from kgdistil.compress.low_rank import low_rank
from kgdistil.config import RunConfig, check_device
from kgdistil.errors import BusyError, CheckpointError, ConfigError, KgdistilError
from kgdistil.evaluation import KnownTriples, Ranks, evaluate, rank, sampled
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.graphs.lists import KEPT, Lists
from kgdistil.models import ComplEx, KGEModel, build_model, class_of
from kgdistil.training.base import Engine
from kgdistil.training.engine import make_engine

log = logging.getLogger("kgdistil")
DECAY, TRIGGER = 0.96, 5  # the paper's "learning rate decay and trigger decay threshold"
CHECKPOINT, CHECKPOINT_SECONDS = "checkpoint.safetensors", 30.0  # how much work a killed run may lose
OF_RANKS, PARTS_OF_RANKS = "checkpoint.json", "checkpoints"  # that of several ranks: `distributed.keeping`
WRITING, LONGEST = 0.05, 8  # the share of the time that may go into large ones, so that up to 8 × as much may be lost
BAR = "{desc} {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} epochs, {elapsed}<{remaining}{postfix}"
Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and the rest
Shown = bool | Callable[..., tqdm] | None  # what makes a bar, of run id, `Progress` and what tqdm takes; or see `run`


@dataclass
class Run:
    """A finished run: its record (`records.record_path`) and the folder of its weights."""

    config: RunConfig
    record: dict[str, Any]
    folder: Path
    ranks: Ranks | None = field(default=None, repr=False)  # of the test split; None for a run found on disk

    @property
    def id(self) -> str:
        return self.config.run_id

    def load(self, graph: Graph | None = None) -> KGEModel:
        """The run's model: the student of a distillation, at the epoch with the best validation MRR."""
        return load_model(self.folder, graph)

    def test(self, metric: str = "mrr", side: str = "both") -> float:
        """A test metric of the record: "mrr", "mr", "hits@1", "hits@3" or "hits@10"."""
        return self.record["test"][side][metric]


@dataclass
class Progress:
    """What changes from epoch to epoch besides weights and moments; a checkpoint holds it as JSON."""

    epoch: int = 0  # epochs done
    rate: float = 1.0  # what the plateau schedule has left of the learning rate
    best_mrr: float = -1.0
    best_epoch: int = 0
    bad_checks: int = 0  # validations since the best one
    best: dict[str, Tensor] = field(default_factory=dict)  # its weights; in a checkpoint these are tensors
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0  # of training and validation, over all sittings
    finished: bool = False
    sources: dict[str, str] = field(default_factory=dict)  # see `sources_of`
    threads: list[int] = field(default_factory=list)  # one after the other, where `kernels.again` found other cores


def run(
    config: RunConfig,
    graph: Graph | None = None,
    *,
    progress: Shown = None,
    save_ranks: bool = False,
    again: bool = False,
) -> Run:
    """The run that `config` describes: found where it is finished, resumed where it was begun, else trained.

    Weights, checkpoints and record of a graph known by name lie in `runs/` and `results/` of the checkout, those of
    any other graph, and of an installed package, in the user's data folder: `records`.

    Args:
        graph: the data set where it is loaded already.
        progress: True or False for a bar, None for one in a terminal only, or what makes one (`Shown`); it may raise.
        save_ranks: keep the test ranks beside the record, for significance tests.
        again: train even if a record and weights exist.
    Raises:
        ConfigError, CheckpointError, DataError, DeviceError: with one line that says what to do.
        ConfigError: training diverged. BusyError: another process is training this very run.
    """
    graph = load(config.dataset) if graph is None else graph
    own = records.is_own(config.dataset)
    folder, record = records.model_folder(config.run_id, own), records.record_path(config.run_id, own)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(folder / ".lock", timeout=0).acquire()
    except filelock.Timeout:
        raise BusyError(f"{folder}: another process is training this run; wait for it or stop it") from None
    except OSError as error:
        raise KgdistilError(f"cannot write {folder}: {error.strerror}; earlier files are untouched") from None
    with held:
        for stray in folder.rglob(".*"):  # half-written files of a killed process
            if stray.name != ".lock" and stray.is_file():
                stray.unlink()
        found = records.read_record(record)
        for name, value in config.model_dump(exclude={"device"}).items() if found else ():
            other = found["config"].get(name, value)
            if other != value:  # an id ends with eight digits of a sum, which two configs may share
                raise CheckpointError(
                    f"{record} is of another run whose id is the same: {name} is {other!r} there and {value!r} here; "
                    "take another seed, or name other folders in KGDISTIL_RUNS and KGDISTIL_RESULTS"
                )
        if found and not again and found["graph"]["sha256"] == graph.sha256 and (folder / WEIGHTS).is_file():
            check_sources(record, config, found.get("sources", {}))
            forget(folder)
            if save_ranks and not records.ranks_path(config.run_id, own).is_file():
                ranks = evaluate(load_model(folder, graph), graph, sample=config.final_sample)
                records.write_ranks(config.run_id, ranks, own)
            return Run(config, found, folder)
        if again:
            forget(folder)
        if (folder / OF_RANKS).is_file() and not (folder / CHECKPOINT).is_file():
            log.warning("%s: torchrun goes on there; one process begins anew", folder / OF_RANKS)
        read: Any = Lists.load if str(config.teacher).endswith(KEPT) else load_model
        teacher = read(resolve(config.teacher), graph) if config.teacher else None
        start = load_model(resolve(config.student), graph) if config.student else None
        if config.rank and isinstance(start, ComplEx) and not start.rank:
            start = low_rank(start, config.rank, config.seed)
        return train(config, graph, folder, teacher=teacher, start=start, progress=progress, save_ranks=save_ranks)


def resolve(name: str) -> Path:
    """The folder of a run id, or of a saved model given by its path."""
    runs = [records.model_folder(name, own) for own in records.places()]
    for folder in (*runs, Path(os.path.expanduser(name))):
        if any(os.path.isfile(x) for x in (folder / WEIGHTS, folder / HEADER, *[folder] * (folder.suffix == KEPT))):
            return folder
    where = " or ".join(dict.fromkeys(str(folder.parent) for folder in runs))
    raise CheckpointError(f"no model {name!r}: neither a finished run under {where} nor a folder with {WEIGHTS}")


def train(
    config: RunConfig,
    graph: Graph,
    folder: Path,
    *,
    teacher: KGEModel | Lists | None = None,
    start: KGEModel | None = None,
    progress: Shown = None,
    save_ranks: bool = False,
) -> Run:
    """Train one model and leave its weights in `folder` and its record at `records.record_path`.

    Args:
        teacher: frozen in stage 1, learning in stage 2; lists of sampled softmax are neither.
        start: the student stage 2 begins with; drawn from the seed where None. Of both, copies are changed, but they
            themselves by softmax, which trains tables too large to have twice.
    """
    path = folder / CHECKPOINT
    saved = read_checkpoint(path, config, graph) if path.is_file() else None
    threads = (saved[1] if saved else {}).get("arithmetic", {}).get("threads")
    with kernels.with_threads(threads):
        engine = make_engine(*prepare(config, graph, teacher, start), config, graph)
        state, saved = restore(path, saved, engine) if saved else Progress(), None  # nothing of the file is kept
        state.sources = state.sources or sources_of(config)
        state.threads = state.threads or [torch.get_num_threads()]
        known = KnownTriples(graph.known.cpu(), graph.num_relations)
        saved_at, pause = (began := time.monotonic()), CHECKPOINT_SECONDS

        def keep(always: bool = False) -> None:
            nonlocal began, saved_at, pause
            if not threads:
                kernels.again()
            if state.threads[-1] != torch.get_num_threads():
                state.threads.append(torch.get_num_threads())
            now = time.monotonic()
            if always or now - saved_at > pause:
                state.seconds, began = state.seconds + now - began, now
                save(path, engine, graph, state)
                saved_at = time.monotonic()
                times = (saved_at - now) / WRITING / max(CHECKPOINT_SECONDS, 1e-9)
                pause = CHECKPOINT_SECONDS * min(LONGEST, max(1.0, times))

        engine.between = keep
        given: dict[str, Any] = {"total": config.epochs, "initial": state.epoch, "bar_format": BAR}
        given["desc"] = f"{config.model} {config.dim} {config.role}"  # its id would leave the bar no room
        hidden = None if progress is None else not progress
        with progress(config.run_id, state, **given) if callable(progress) else tqdm(**given, disable=hidden) as bar:
            while not state.finished:
                at = time.monotonic()
                losses = advance(engine, state)
                speed = len(graph.train) / (time.monotonic() - at)
                if state.epoch % config.check_every == 0 or state.epoch == config.epochs:
                    validate(engine, graph, known, state, losses, rank)
                state.finished = state.epoch == config.epochs or 0 < config.patience <= state.bad_checks
                loss, mrr = sum(losses.values()) - losses["lr"], max(state.best_mrr, 0)
                bar.set_postfix_str(f"valid MRR {mrr:.3f}, loss {loss:.4f}, {speed:,.0f} triples/s", refresh=False)
                bar.update()
                keep(state.finished)
        engine.between = lambda: None  # or the two would hold each other, and all that an engine remembers
        return finish(folder, engine, graph, known, state, save_ranks)


def prepare(
    config: RunConfig, graph: Graph, teacher: KGEModel | Lists | None, start: KGEModel | None
) -> tuple[KGEModel, KGEModel | Lists | None]:
    """Student and teacher on the config's device, of what was given as `train` says."""
    device = check_device(config.device)
    sizes = graph.num_entities, graph.num_relations, config.dim
    own = (lambda model: model) if config.loss == "softmax" else copy.deepcopy
    student = own(start) or build_model(config.model, *sizes, seed=config.seed, **config.model_options)
    model = teacher if isinstance(teacher, KGEModel) else None
    check_fit(config, student, model, graph)
    if model is not None and model.dim < student.dim:
        log.warning("the student (dim %d) is larger than its teacher (dim %d)", student.dim, model.dim)
    return student.to(device), teacher and own(teacher).to(device)


def advance(engine: Engine, state: Progress) -> dict[str, float]:
    """One epoch: the learning rate of its last step ("lr") and its mean losses.

    Raises:
        ConfigError: a loss is not finite.
    """
    config = engine.config
    rates = learning_rates(config, config.lr, state, engine.steps)
    teacher_rates = learning_rates(config, config.teacher_lr or config.lr, state, engine.steps)
    losses = engine.epoch(state.epoch, rates, teacher_rates)
    state.epoch += 1
    if not all(math.isfinite(x) for x in losses.values()):
        hint = f"lower the learning rate (lr is {config.lr})"
        raise ConfigError(f"{config.run_id}: the loss of epoch {state.epoch} is not finite; {hint}")
    return {"lr": float(rates[-1]), **losses}


def validate(engine: Engine, graph: Graph, known: KnownTriples, state: Progress, losses: dict, rank: Any) -> None:
    """Rank the valid split, keep the weights where they are the best so far, else count towards the next decay."""
    models = engine.as_saved()
    splits = ("valid", "test") if engine.config.test_curve else ("valid",)
    sample = engine.config.check_sample
    ranks = {split: rank(models["student"], sampled(getattr(graph, split).cpu(), sample), known) for split in splits}
    scores = {f"{split}_mrr": found.metrics()["both"]["mrr"] for split, found in ranks.items()}
    scores |= {f"{split}_mrr_se": found.standard_error() for split, found in ranks.items() if sample}
    state.curve.append({"epoch": state.epoch, **losses, **scores})
    better = scores["valid_mrr"] > state.best_mrr
    state.best_epoch = state.epoch if better or sample else state.best_epoch
    if better:
        state.best_mrr, state.bad_checks = scores["valid_mrr"], 0
        if not sample:
            state.best = {name: x.detach().cpu().clone() for name, x in weights_of(models).items()}
        return
    state.bad_checks += 1
    if engine.config.schedule == "plateau" and state.bad_checks % TRIGGER == 0:
        state.rate *= DECAY


def finish(folder: Path, engine: Engine, graph: Graph, known: KnownTriples, state: Progress, save_ranks: bool) -> Run:
    """Save the best weights, rank them (of a sample: kept where killed), write the record; the checkpoint goes last."""
    config, models = engine.config, engine.as_saved() if engine.config.check_sample else engine.trained
    if not config.check_sample:
        load_weights(models, state.best)
    student, sample, own = models["student"], config.final_sample, records.is_own(config.dataset)
    for role, model in models.items():  # before its ranks, which must be newer: `distillation.ranked`
        save_model(folder if role == "student" else folder / role, model.cpu(), graph, config.run_id)
        model.to(config.device)
    ranks = dict[str, Ranks]()
    for split, name in ("valid", f"{config.run_id}-valid"), ("test", config.run_id):
        path, triples = records.ranks_path(name, own), sampled(getattr(graph, split).cpu(), sample)
        kept = sample and path.is_file() and path.stat().st_mtime > (folder / CHECKPOINT).stat().st_mtime
        ranks[split] = records.read_ranks(name, own) if kept else rank(student, triples, known)
        if sample or (save_ranks and split == "test"):
            records.write_ranks(name, ranks[split], own)
    records.write_record(record := record_of(engine, graph, state, ranks, student.num_parameters))
    forget(folder)  # everything in it stands in the record and the weights now
    return Run(config, record, folder, ranks["test"])


def record_of(engine: Engine, graph: Graph, state: Progress, ranks: dict[str, Ranks], parameters: int) -> dict:
    """The record of a run that ended so."""
    parts = ranks.items() if engine.config.final_sample else ()
    return records.make_record(
        engine.config,
        graph,
        **{name: getattr(state, name) for name in ("seconds", "best_epoch", "curve")},
        **{"epochs": state.epoch, "parameters": parameters, **bits(engine)},
        sources=state.sources,
        turns=state.threads,
        metrics={split: r.metrics() for split, r in ranks.items()},
        sampled={split: {"triples": len(r.greater), "mrr_se": r.standard_error()} for split, r in parts},
    )


def sources_of(config: RunConfig) -> dict[str, str]:
    """What the teacher and the model that the student begins with hold, by the sums of their files, as far as there."""
    found = {}
    for role, name in {"teacher": config.teacher, "student": config.student}.items():
        with contextlib.suppress(CheckpointError):
            if name:
                path = resolve(name)
                found[role] = sum_in(next(x for x in (path / HEADER, path / WEIGHTS, path) if x.is_file()))
    return {role: x for role, x in found.items() if x}


def check_sources(path: Path, config: RunConfig, then: Mapping[str, str]) -> None:
    """Refuse what another teacher has taught than the one that is there now.

    Raises:
        CheckpointError: with its name.
    """
    for role, now in sources_of(config).items():
        if then.get(role, now) != now:
            there = f"{getattr(config, role)} ({role}) holds another model now than when {path} was written"
            raise CheckpointError(f"{there}; delete that file to train anew, or put the model back")


def forget(folder: Path) -> None:
    """Remove what a run would go on from, of one process or several ranks."""
    for name in (CHECKPOINT, OF_RANKS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / PARTS_OF_RANKS, ignore_errors=True)


def check_fit(config: RunConfig, student: KGEModel, teacher: KGEModel | None, graph: Graph) -> None:
    """Refuse models that are not of this config or graph.

    Raises:
        ConfigError: with what does not fit.
    """
    wanted = class_of(config.model, config.rank)
    if type(student) is not wanted or student.dim != config.dim:
        asked = f"the run asks for {wanted.__name__} of dim {config.dim}"
        raise ConfigError(f"student is a {type(student).__name__} of dim {student.dim}; {asked}")
    if config.rank and student.rank != config.rank:
        raise ConfigError(f"student is of rank {student.rank}; the run asks for rank {config.rank}")
    sizes = graph.num_entities, graph.num_relations
    for name, model in (("student", student), ("teacher", teacher)):
        if model is not None and (model.num_entities, model.num_relations) != sizes:
            raise ConfigError(
                f"the {name} was trained on another graph: {model.num_entities} entities and {model.num_relations} "
                f"relations, {graph.name} has {sizes[0]} and {sizes[1]}"
            )
    if len(graph.train) >= 1 << 28 or graph.num_entities**2 * graph.num_relations >= 1 << 63:
        limits = "fewer than 2^28 training triples, and entities² × relations below 2^63"
        raise ConfigError(f"{graph.name} is too large: {limits}, are supported")


def learning_rates(config: RunConfig, rate: float, state: Progress, steps: int) -> Tensor:
    """The learning rate of each step of the coming epoch, float64 [steps]."""
    done = (state.epoch * steps + torch.arange(steps, dtype=torch.float64)) / (config.epochs * steps)
    if config.schedule == "linear":
        return rate * (1 - done)
    if config.schedule == "cosine":
        return rate * (1 + (math.pi * done).cos()) / 2
    return torch.full_like(done, rate * state.rate)


def weights_of(models: Mapping[str, KGEModel]) -> dict[str, Tensor]:
    """All weights by "role.table"."""
    return {f"{role}.{name}": x for role, model in models.items() for name, x in model.state_dict().items()}


def load_weights(models: Mapping[str, KGEModel], weights: Mapping[str, Tensor]) -> None:
    """Put back what `weights_of` gave."""
    for role, model in models.items():
        model.load_state_dict({name: weights[f"{role}.{name}"] for name in model.state_dict()})


def save(path: Path, engine: Engine, graph: Graph, state: Progress) -> None:
    """Everything the next epoch depends on, in one file that is replaced in one move.

    The sampler has no state of its own: its numbers are a function of the seed and the step.
    """
    about = vars(state) | {"config": engine.config.model_dump(), "graph_sha256": graph.sha256, **bits(engine)}
    groups = {"weights": weights_of(engine.trained), "moments": engine.state(), "best": about.pop("best")}
    tensors = {f"{group}.{name}": x for group, found in groups.items() for name, x in found.items()}
    write_tensors(path, tensors, about)


def bits(engine: Engine) -> dict[str, Any]:
    """What decides the last bits besides the config."""
    return {"engine": type(engine).__name__, "arithmetic": dict(engine.arithmetic)}


def read_checkpoint(path: Path, config: RunConfig, graph: Graph) -> Checkpoint:
    """What `save` wrote: tensors, and the rest.

    Raises:
        CheckpointError: damaged, or of another config or graph.
    """
    tensors, about = read_tensors(path)
    if about.pop("config", None) != config.model_dump():
        raise CheckpointError(f"{path} belongs to another configuration; delete it to start over")
    if about.pop("graph_sha256", None) != graph.sha256:
        raise CheckpointError(f"{path} was made on another graph than {graph.name} is now; delete it to start over")
    check_sources(path, config, about.get("sources", {}))
    arithmetic = about.setdefault("arithmetic", {})
    if not isinstance(arithmetic, dict) or arithmetic.get("threads", 1) not in range(1, 1025):
        raise CheckpointError(f"{path} is damaged (arithmetic); delete it to start over")
    return tensors, about


def restore(path: Path, saved: Checkpoint, engine: Engine) -> Progress:
    """Put a checkpoint's weights and moments in place; returns where it stood.

    Raises:
        CheckpointError: damaged, or made by another engine or arithmetic, which would end in other bits.
    """
    (tensors, about), mine = saved, bits(engine)
    if mine != (theirs := {name: about.pop(name, None) for name in mine}):
        words = ([x["engine"], *(f"{k} {v}" for k, v in (x["arithmetic"] or {}).items())] for x in (theirs, mine))
        there, here = (", ".join(map(str, each)) for each in words)
        raise CheckpointError(
            f"{path} was made with {there}, and here it is {here}, which ends in other numbers; go on "
            "with the processor, compiler and device it was begun with, or delete it to start over"
        )
    try:
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}, "best": {}}
        for name, x in tensors.items():
            group, rest = name.split(".", 1)
            groups[group][rest] = x.clone() if group == "best" else x
        state, epochs = Progress(**about, best=groups["best"]), engine.config.epochs
        sound = (
            all(type(x) is int and 0 <= x <= epochs for x in (state.epoch, state.best_epoch, state.bad_checks))
            and (state.finished is True or (state.finished is False and state.epoch < epochs))
            and state.best_epoch <= state.epoch >= len(state.curve)
            and 0 < state.rate <= 1 >= state.best_mrr >= -1
            and 0 <= state.seconds < math.inf
        )
        if not sound:
            raise ValueError("what it says of its run cannot be")
        needed = {"weights": (weights := weights_of(engine.trained)), "moments": engine.state()}
        needed["best"] = weights if state.best_epoch and not engine.config.check_sample else {}
        for group, own in needed.items():
            if own.keys() != groups[group].keys():
                raise ValueError(f"{', '.join(sorted(own.keys() ^ groups[group].keys()))} missing or unknown")
        load_weights(engine.trained, groups["weights"])
        engine.load_state(groups["moments"])
        return state
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({' '.join(str(error).split())}); delete it to start over") from None
