"""One loop for teacher, no-DS student, stage 1 and stage 2.

`run` is the way in: it finds a finished run by its id or trains it, and a run that was killed goes on where its last
checkpoint stands and ends with the same bits as one that was never disturbed.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor
from tqdm import tqdm

from kgdistil import records
from kgdistil.checkpoint import WEIGHTS, load_model, read_tensors, save_model, write_tensors
from kgdistil.compress.low_rank import low_rank
from kgdistil.config import RunConfig, check_device
from kgdistil.errors import BusyError, CheckpointError, ConfigError, KgdistilError
from kgdistil.evaluation import KnownTriples, Ranks, evaluate, rank
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.models import ComplEx, KGEModel, build_model, class_of
from kgdistil.training.engine import Engine, make_engine

log = logging.getLogger("kgdistil")
DECAY, TRIGGER = 0.96, 5  # the paper's "learning rate decay and trigger decay threshold"
CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 30.0  # how much work a killed run may lose


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
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0  # of training and validation, over all sittings
    finished: bool = False


def run(
    config: RunConfig,
    graph: Graph | None = None,
    *,
    progress: bool | None = None,
    save_ranks: bool = False,
    again: bool = False,
) -> Run:
    """The run that `config` describes: found where it is finished, resumed where it was begun, else trained.

    Weights, checkpoints and record of a graph known by name lie in `runs/` and `results/` of the checkout, those of
    any other graph, and of an installed package, in the user's data folder: `records`.

    Args:
        graph: the data set where it is loaded already.
        progress: True or False for a bar; None shows one in a terminal only.
        save_ranks: keep the test ranks beside the record, for significance tests.
        again: train even if a record and weights exist.
    Raises:
        ConfigError, CheckpointError, DataError, DeviceError: with one line that says what to do.
        BusyError: another process is training this very run.
        KgdistilError: training diverged.
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
        found = None if again else records.read_record(record)
        if found and found["graph"]["sha256"] == graph.sha256 and (folder / WEIGHTS).is_file():
            if save_ranks and not records.ranks_path(config.run_id, own).is_file():
                records.write_ranks(config.run_id, evaluate(load_model(folder, graph), graph), own)
            return Run(config, found, folder)
        if again:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        teacher = load_model(resolve(config.teacher), graph) if config.teacher else None
        start = load_model(resolve(config.student), graph) if config.student else None
        if config.rank and type(start) is ComplEx:
            start = low_rank(start, config.rank, config.seed)
        return train(config, graph, folder, teacher=teacher, start=start, progress=progress, save_ranks=save_ranks)


def resolve(name: str) -> Path:
    """The folder of a run id, or of a saved model given by its path."""
    runs = [records.model_folder(name, own) for own in records.places()]
    for folder in (*runs, Path(os.path.expanduser(name))):
        if os.path.isfile(folder / WEIGHTS):  # Path.is_file raises where a name is too long
            return folder
    where = " or ".join(dict.fromkeys(str(folder.parent) for folder in runs))
    raise CheckpointError(f"no model {name!r}: neither a finished run under {where} nor a folder with {WEIGHTS}")


def train(
    config: RunConfig,
    graph: Graph,
    folder: Path,
    *,
    teacher: KGEModel | None = None,
    start: KGEModel | None = None,
    progress: bool | None = None,
    save_ranks: bool = False,
) -> Run:
    """Train one model and leave its weights in `folder` and its record at `records.record_path`.

    Args:
        teacher: frozen in stage 1, learning in stage 2, where a copy of it is changed.
        start: the student stage 2 begins with, of which a copy is changed; drawn from the seed where None.
    """
    device = check_device(config.device)
    teacher, start = copy.deepcopy(teacher), copy.deepcopy(start)
    student = start or build_model(
        config.model,
        graph.num_entities,
        graph.num_relations,
        config.dim,
        seed=config.seed,
        **config.model_options,
    )
    check_fit(config, student, teacher, graph)
    student.to(device)
    if teacher is not None:
        teacher.to(device)
        for warning in config.compatible(teacher):
            log.warning("%s", warning)
    engine = make_engine(student, teacher, config, graph)
    state, best = Progress(), {}
    roles = {"student": student, **({"teacher": teacher} if config.role == "stage2" else {})}
    if (folder / CHECKPOINT).is_file():
        state, best = restore(folder / CHECKPOINT, config, graph, engine, roles)
    known = KnownTriples(graph.known.cpu(), graph.num_relations)
    saved_at = began = time.monotonic()
    with tqdm(
        total=config.epochs,
        initial=state.epoch,
        desc=config.run_id,
        unit="epoch",
        disable=None if progress is None else not progress,
    ) as bar:
        while not state.finished:
            rates = learning_rates(config, config.lr, state, engine.steps)
            teacher_rates = learning_rates(config, config.teacher_lr or config.lr, state, engine.steps)
            if config.alpha_last is not None:
                engine.objective = replace(engine.objective, alpha=config.alpha_at(state.epoch))
            at = time.monotonic()
            losses = engine.epoch(state.epoch, rates, teacher_rates)
            speed = len(graph.train) / (time.monotonic() - at)
            if not all(math.isfinite(x) for x in losses.values()):
                raise KgdistilError(
                    f"{config.run_id}: the loss of epoch {state.epoch + 1} is not finite; lower the "
                    f"learning rate (lr is {config.lr})"
                )
            state.epoch += 1
            last = state.epoch == config.epochs
            if state.epoch % config.check_every == 0 or last:
                used = {**roles, **({"student": engine.coded()} if config.group else {})}  # as their files hold them
                point = {
                    "epoch": state.epoch,
                    "lr": float(rates[-1]),
                    **losses,
                    "valid_mrr": rank(used["student"], graph.valid.cpu(), known).metrics()["both"]["mrr"],
                }
                if config.test_curve:
                    point["test_mrr"] = rank(used["student"], graph.test.cpu(), known).metrics()["both"]["mrr"]
                state.curve.append(point)
                if point["valid_mrr"] > state.best_mrr:
                    state.best_mrr, state.best_epoch, state.bad_checks = point["valid_mrr"], state.epoch, 0
                    best = {
                        f"{role}.{name}": x.detach().cpu().clone()
                        for role, model in used.items()
                        for name, x in model.state_dict().items()
                    }
                else:
                    state.bad_checks += 1
                    if config.schedule == "plateau" and state.bad_checks % TRIGGER == 0:
                        state.rate *= DECAY
                last = last or (config.patience > 0 and state.bad_checks >= config.patience)
            bar.update()
            bar.set_postfix_str(
                f"loss {sum(losses.values()):.4f}, valid MRR {max(state.best_mrr, 0):.3f}, {speed:,.0f} triples/s"
            )
            state.finished = last
            now = time.monotonic()
            if last or now - saved_at > CHECKPOINT_SECONDS:
                state.seconds, began, saved_at = state.seconds + now - began, now, now
                save(folder / CHECKPOINT, config, graph, engine, roles, state, best)
    for role, model in roles.items():
        model.load_state_dict({name: best[f"{role}.{name}"] for name in model.state_dict()})
    ranks = {split: rank(student, getattr(graph, split).cpu(), known) for split in ("valid", "test")}
    record = records.make_record(
        config,
        graph,
        seconds=state.seconds,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        curve=state.curve,
        parameters=student.num_parameters,
        engine=type(engine).__name__,
        metrics={split: r.metrics() for split, r in ranks.items()},
    )
    save_model(folder, student.cpu(), graph, config.run_id)
    if config.role == "stage2":
        save_model(folder / "teacher", teacher.cpu(), graph, config.run_id)
    if save_ranks:
        records.write_ranks(config.run_id, ranks["test"], records.is_own(config.dataset))
    records.write_record(record)
    (folder / CHECKPOINT).unlink(missing_ok=True)  # everything in it stands in the record and the weights now
    return Run(config, record, folder, ranks["test"])


def check_fit(config: RunConfig, student: KGEModel, teacher: KGEModel | None, graph: Graph) -> None:
    """Refuse models that are not of this config or graph.

    Raises:
        ConfigError: with what does not fit.
    """
    wanted = class_of(config.model, config.rank)
    if type(student) is not wanted or student.dim != config.dim:
        raise ConfigError(
            f"student is a {type(student).__name__} of dim {student.dim}; the run asks for "
            f"{wanted.__name__} of dim {config.dim}"
        )
    if config.rank and student.rank != config.rank:
        raise ConfigError(f"student is of rank {student.rank}; the run asks for rank {config.rank}")
    for name, model in (("student", student), ("teacher", teacher)):
        if model is not None and (model.num_entities, model.num_relations) != (
            graph.num_entities,
            graph.num_relations,
        ):
            raise ConfigError(
                f"the {name} was trained on another graph: {model.num_entities} entities and "
                f"{model.num_relations} relations, {graph.name} has {graph.num_entities} and "
                f"{graph.num_relations}"
            )
    if len(graph.train) >= 1 << 28 or graph.num_entities**2 * graph.num_relations >= 1 << 63:
        raise ConfigError(
            f"{graph.name} is too large: fewer than 2^28 training triples, and entities² × relations "
            "below 2^63, are supported"
        )


def learning_rates(config: RunConfig, rate: float, state: Progress, steps: int) -> Tensor:
    """The learning rate of each step of the coming epoch, float64 [steps]."""
    done = (state.epoch * steps + torch.arange(steps, dtype=torch.float64)) / (config.epochs * steps)
    if config.schedule == "linear":
        return rate * (1 - done)
    if config.schedule == "cosine":
        return rate * (1 + (math.pi * done).cos()) / 2
    return torch.full_like(done, rate * state.rate)


def save(
    path: Path,
    config: RunConfig,
    graph: Graph,
    engine: Engine,
    roles: dict[str, KGEModel],
    state: Progress,
    best: dict[str, Tensor],
) -> None:
    """Everything the next epoch depends on, in one file that is replaced in one move.

    The sampler has no state of its own: its numbers are a function of the seed and the step.
    """
    tensors = {f"weights.{role}.{name}": x for role, model in roles.items() for name, x in model.state_dict().items()}
    tensors |= {f"moments.{name}": x for name, x in engine.state().items()}
    tensors |= {f"best.{name}": x for name, x in best.items()}
    about = {"config": config.model_dump(), "graph_sha256": graph.sha256, "engine": type(engine).__name__}
    write_tensors(path, tensors, {**about, **vars(state)})


def restore(
    path: Path,
    config: RunConfig,
    graph: Graph,
    engine: Engine,
    roles: dict[str, KGEModel],
) -> tuple[Progress, dict[str, Tensor]]:
    """Put a checkpoint's weights and moments in place; returns where it stood and its best weights.

    Raises:
        CheckpointError: damaged, of another config or graph, or of another engine, which would end in other bits.
    """
    tensors, about = read_tensors(path)
    if about.pop("config", None) != config.model_dump():
        raise CheckpointError(f"{path} belongs to another configuration; delete it to start over")
    if about.pop("graph_sha256", None) != graph.sha256:
        raise CheckpointError(f"{path} was made on another graph than {graph.name} is now; delete it to start over")
    if about.pop("engine", None) != type(engine).__name__:
        raise CheckpointError(
            f"{path} was made by another engine than {type(engine).__name__}, so it cannot go on to "
            "the same numbers; delete it to start over, or restore the compiler or device"
        )
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}, "best": {}}
    try:
        for name, x in tensors.items():
            group, rest = name.split(".", 1)
            groups[group][rest] = x
        weights = {f"{role}.{name}": x for role, model in roles.items() for name, x in model.state_dict().items()}
        state = Progress(**about)
        sound = (
            all(type(x) is int and 0 <= x <= config.epochs for x in (state.epoch, state.best_epoch, state.bad_checks))
            and (state.finished is True or (state.finished is False and state.epoch < config.epochs))
            and state.best_epoch <= state.epoch >= len(state.curve)
            and 0 < state.rate <= 1 >= state.best_mrr >= -1
            and 0 <= state.seconds < math.inf
        )
        if not sound:
            raise ValueError("what it says of its run cannot be")
        needed = [(weights, groups["weights"]), (engine.state(), groups["moments"])]
        for mine, found in [*needed, *([(weights, groups["best"])] if state.best_epoch else [])]:
            if mine.keys() != found.keys():
                raise ValueError(f"{', '.join(sorted(mine.keys() ^ found.keys()))} missing or unknown")
        for role, model in roles.items():
            model.load_state_dict({name: groups["weights"][f"{role}.{name}"] for name in model.state_dict()})
        engine.load_state(groups["moments"])
        return state, groups["best"]
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({' '.join(str(error).split())}); delete it to start over") from None
