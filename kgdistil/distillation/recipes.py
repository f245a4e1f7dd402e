"""What the notebooks train: one distillation (teacher, the student alone, stage 1, stage 2) and its variations.

What the other notebooks show of their runs is in `story`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kgdistil import records
from kgdistil.checkpoint import load_model
from kgdistil.compress.size import floats, row_bytes, whole_bytes
from kgdistil.config import RunConfig, make_config, read_config
from kgdistil.distillation import scale
from kgdistil.errors import ConfigError, KgdistilError, short
from kgdistil.evaluation import KnownTriples, evaluate
from kgdistil.graph import Graph
from kgdistil.models import MODELS, KGEModel
from kgdistil.training.loop import Run, Shown, resolve, run

# What `distil` and the notebooks take on any graph; the cells of the paper's tables have paper/reproduction.toml, whose
# head says which settings stand where. Here is what differs from `RunConfig`'s defaults, by model and graph; "*" is any
# graph, and a graph's own row refines it.
# `both` holds for teacher and student, `teacher`, `student` and `stage2` refine it. Chosen by validation MRR alone.
SETTINGS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "RotatE": {
        "*": {"both": {"weighting": "mean", "gamma": 6.0}},
        "umls": {"both": {"weighting": "self-adversarial"}, "teacher": {"gamma": 9.0}, "stage2": {"lr": 0.01}},
        "wn18rr": {"teacher": {"weighting": "self-adversarial", "gamma": 9.0}},
    },
    "TransE": {
        "*": {"both": {"lr": 0.01}},
        "umls": {"both": {"gamma": 6.0}, "student": {"lr": 0.05}},
    },
    "TransH": {
        "*": {"both": {"lr": 0.005}},
        "umls": {"both": {"gamma": 6.0}, "student": {"lr": 0.05}},
    },
    "ComplEx": {
        "*": {"both": {"weighting": "mean", "lr": 0.01}},
        "umls": {"teacher": {"penalty": 0.003}, "student": {"lr": 0.02, "penalty": 0.001}},
    },
}
SMALL_GRAPHS = {"umls": 256, "kinships": 256, "nations": 256}  # batch size where 1,024 leaves few steps an epoch
LISTS = " + lists"  # a run that goes on with whole lists has the name of the one before it and this
STEPS = {"teacher": "teacher", "no_ds": "no-DS", "stage1": "stage 1", "stage2": "stage 2"}  # field: name for people


@dataclass(frozen=True)
class Recipe:
    """Configs of the runs; `teacher` is None where `saved_teacher` names one or lists teach, `stage2` for a single
    stage."""

    teacher: RunConfig | None
    no_ds: RunConfig
    stage1: RunConfig
    stage2: RunConfig | None
    saved_teacher: str | None = None

    @property
    def final(self) -> RunConfig:
        """The run that ends the distillation."""
        return self.stage2 or self.stage1

    @property
    def configs(self) -> dict[str, RunConfig]:
        """What is trained, by the runs' names for people, in the order of training."""
        return {STEPS[name]: config for name in STEPS if (config := getattr(self, name)) is not None}

    def step(self, name: str, graph: Graph, progress: Shown = None) -> Run:
        """One run, found or trained: `teacher`, `no_ds`, `stage1` or `stage2`. Later steps need the earlier ones."""
        if name == "teacher" and self.saved_teacher:
            return read_teacher(self.saved_teacher, graph)
        config = getattr(self, name)
        if config is None:
            raise ConfigError(f"this recipe has no {STEPS[name]}: stages is 1")
        return run(config, graph, progress=progress)

    def run(self, graph: Graph, progress: Shown = None) -> dict[str, Run]:
        """All runs by their names for people, those that are finished read from disk."""
        there = [name for name in STEPS if getattr(self, name) or (name == "teacher" and self.saved_teacher)]
        return {STEPS[name]: self.step(name, graph, progress) for name in there}


def distillation(
    dataset: str = "umls",
    model: str = "RotatE",
    dim: int = 8,
    teacher_dim: int = 64,
    stages: int = 2,
    alpha: float = 0.5,
    beta: float = 0.5,
    epochs: int = 150,
    seed: int = 0,
    device: str = "cpu",
    teacher: str = "",
    *,
    batch_size: int | None = None,
    more: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of one distillation.

    Args:
        epochs: of the teacher and of each stage; the student alone gets as many as its stages together.
        teacher: a run id or the folder of a saved model, which then replaces the teacher of `teacher_dim`.
        batch_size: of all runs; None takes 1,024, or less for the graphs of `SMALL_GRAPHS`.
        more: further settings of all runs (`scale.settings`).
    Raises:
        ConfigError, CheckpointError, DeviceError: one line with the parameter, its value and what to do.
    """
    if isinstance(stages, bool) or str(stages) not in ("1", "2"):
        raise ConfigError(f"stages is {short(stages)}: it must be 1 or 2")
    if not isinstance(teacher, str):
        raise ConfigError(f"teacher is {short(teacher)}: give a run id, the folder of a saved model, or ''")
    shared = {"dataset": dataset, "model": model, "seed": seed, "device": device, "protocol": "notebook"}
    # Checked first without any setting of the table, so that an error names what the caller gave.
    plain = read_config({**shared, "dim": dim, "epochs": epochs, "alpha": alpha, "beta": beta})
    try:
        large = make_config(**shared, dim=teacher_dim).dim
    except ConfigError as error:
        raise ConfigError(str(error).replace("dim is", "teacher_dim is")) from None
    shared |= {"schedule": "linear", "patience": 0, "check_every": max(1, plain.epochs // 10), **(more or {})}
    if batch_size := batch_size or SMALL_GRAPHS.get(plain.dataset):
        shared["batch_size"] = batch_size

    of_student = settings(plain, "student")
    student = {**shared, **of_student, "dim": plain.dim}
    of_teacher = settings(plain.model_copy(update={"dim": large}), "teacher")
    own = None
    if not teacher:
        own = make_config(**{**shared, **of_teacher, "dim": large, "epochs": plain.epochs, "role": "teacher"})
    name = own.run_id if own else find_teacher(teacher)
    stage1 = make_config(**student, epochs=plain.epochs, role="stage1", teacher=name, alpha=plain.alpha)
    stage2 = None
    if int(stages) == 2:
        slower = {"lr": of_student["lr"] / 4, "teacher_lr": of_teacher["lr"] / 4, **settings(plain, "stage2", {})}
        links = {"role": "stage2", "teacher": name, "student": stage1.run_id, "alpha": plain.alpha, "beta": plain.beta}
        stage2 = make_config(**{**student, **slower, **links, "epochs": plain.epochs})
    no_ds = make_config(**student, epochs=plain.epochs * int(stages), role="no-ds")
    return Recipe(own, no_ds, stage1, stage2, None if own else name)


def on_lists(
    recipe: Recipe, epochs: int = 10, batch_size: int = scale.BATCH, further: Mapping[str, Any] | None = None
) -> dict[str, RunConfig]:
    """Both students of a distillation go on against whole lists of candidates (`lists`), beyond the paper.

    The distilled one has its teacher's distribution over a list as soft label.

    Returns:
        Their configs, by the names of the runs that they start from and " + lists".
    Raises:
        ConfigError: the number of epochs is none.
    """
    final = "stage 2" if recipe.stage2 else "stage 1"
    links: dict[str, tuple[RunConfig, dict[str, Any]]] = {
        "no-DS": (recipe.no_ds, {"role": "no-ds"}),
        final: (recipe.final, {"role": "stage1", "teacher": recipe.stage1.teacher}),
    }
    found = {}
    for name, (before, more) in links.items():
        kept = before.model_dump(include={"dataset", "model", "dim", "norm", "epsilon", "seed", "device", "protocol"})
        found[name + LISTS] = make_config(
            **kept,
            **more,
            student=before.run_id,
            loss="softmax",
            negatives=2048,
            batch_size=batch_size,
            lr=0.1 if before.dim <= 16 else 0.05,
            penalty=0.0 if MODELS[before.model].distance else 0.005,
            schedule="linear",
            patience=0,
            epochs=epochs,
            check_every=max(1, int(epochs) // 5),
            **(further or {}),
        )
    return found


def few_bits(
    dataset: str = "umls",
    model: str = "ComplEx",
    dim: int = 64,
    group: int = 4,
    alpha: float | None = None,
    epochs: int = 20,
    seed: int = 0,
    device: str = "cpu",
    teacher: str = "",
    *,
    rank: int = 0,
    whole: int = 0,
    batch_size: int = scale.BATCH,
    drawn: int = 0,
    listed: int = 0,
    lists: str = "",
    more: Mapping[str, Any] | None = None,
    fitted: Mapping[str, Mapping[str, Any]] | None = None,
) -> Recipe:
    """The recipe of a student of few bits, as on the frontier: as many floats as its teacher, `group` of them in four
    bits, trained through the rounding on whole lists of candidates (`lists`), from the teacher and alone.

    Args:
        alpha: of the student's soft loss; None: ½, and 1 where a model teaches one of low rank, which begins farther
            from it and so has the rate of what begins at random, too (so it came out on FB15k-237 and the packages).
        epochs: of the teacher; the student gets half as many, the student alone as many as both.
        drawn: candidates of a teacher's batch (`scale.drawn`), which then has more passes and still scores fewer than
            the student alone; 0: as many as the others.
        listed: drawn candidates of the student that has a teacher (`scale.listed`), which then has fewer passes, while
            the student alone scores as many candidates as both; 0: as many as the others.
        teacher: a run id or the folder of a saved model of `dim`.
        rank: floats of an entity of low rank, of which `group` share four bits; 0: as many as the teacher's.
        whole: entities of most triples that have no codes (`compress.whole`).
        lists: what `Lists.save` wrote, in place of a teacher; both students then begin at random, with equal epochs.
        more: further settings of all runs (`scale.settings`).
    Raises:
        ConfigError, CheckpointError, DeviceError: one line with the parameter, its value and what to do.
    """
    shared = {
        "dataset": dataset,
        "model": model,
        "dim": dim,
        "seed": seed,
        "device": device,
        "protocol": "notebook",
        "loss": "softmax",
        "negatives": scale.NEGATIVES,
        "batch_size": batch_size,
        "schedule": "linear",
        "patience": 0,
        **(more or {}),
    }
    epochs = make_config(**shared, epochs=epochs).epochs
    usual = -(-epochs // 2)
    half = scale.fewer(usual, listed)
    both = epochs + half * max(1, listed // scale.NEGATIVES)
    first = scale.AT_RANDOM if shared.get("accumulators") == "row" else 0.1
    coded = {"group": group, "rank": rank, "whole": whole, "check_every": max(1, usual // 5)}

    def part(name: str, **values: Any) -> RunConfig:
        return make_config(**{**shared, **values, **(fitted or {}).get(name, {})})

    alone = part("no-DS", **coded, lr=first, epochs=both, role="no-ds")
    far = bool(rank and not lists)
    alpha = alpha if alpha is not None else 1.0 if far else 0.5
    taught = {**coded, "role": "stage1", "alpha": alpha, "check_every": max(1, half // 5)}
    if lists:
        return Recipe(None, alone, part("stage 1", **taught, lr=first, epochs=both, teacher=lists), None)
    own = None
    if not teacher:
        penalty = {} if MODELS[alone.model].distance else {"penalty": 0.03}
        passes = {"negatives": drawn, "epochs": math.ceil(scale.TIMES * epochs)} if drawn else {"epochs": epochs}
        own = part("teacher", **penalty, **passes, lr=first, check_every=-(-passes["epochs"] // 2), role="teacher")
    name = own.run_id if own else find_teacher(teacher)
    taught |= {"teacher": name, "student": name, "negatives": listed or shared["negatives"]}
    stage1 = part("stage 1", **taught, lr=first if far else 0.05, epochs=half)
    return Recipe(own, alone, stage1, None, None if own else name)


def settings(config: RunConfig, part: str, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `SETTINGS` says about `part` ("teacher", "student" or "stage2") for the model, graph and dim of `config`.

    Args:
        base: {} to leave out what teacher and student share; None to start with it.
    """
    table = SETTINGS.get(config.model, {})
    values = {"lr": 0.02 if config.dim <= 16 else 0.01} if base is None else dict(base)
    for graph in ("*", config.dataset):
        row = table.get(graph, {})
        values |= (row.get("both", {}) if base is None else {}) | row.get(part, {})
    return values


def find_teacher(name: str) -> str:
    """A run id where the model is a run's, else the absolute path of its folder (a notebook may run anywhere)."""
    try:
        folder = resolve(name).resolve()
    except KgdistilError:
        home = records.checkout()
        if home is None or not os.path.isdir(home / name):  # Path.is_dir raises where a name is too long
            raise
        folder = resolve(str(home / name)).resolve()
    runs = [records.model_folder("", own).resolve() for own in records.places()]
    return folder.name if folder.parent in runs else str(folder)


def read_teacher(name: str, graph: Graph) -> Run:
    """A saved teacher as a run: ranked now, since a folder may come without its record.

    Raises:
        CheckpointError: missing, damaged, or trained on another graph.
    """
    folder = resolve(name)
    model = load_model(folder, graph)
    known = KnownTriples(graph.known.cpu(), graph.num_relations)
    paths = [records.record_path(folder.name, own) for own in records.places()]
    found = next(filter(None, map(records.read_record, paths)), {})
    config = make_config(
        dataset=found.get("config", {}).get("dataset", graph.name), model=family(model), dim=model.dim, role="teacher"
    )
    measured = {split: evaluate(model, graph, split, known=known).metrics() for split in ("valid", "test")}
    record = {"id": folder.name, "seconds": 0.0, "epochs": 0, "curve": [], **found}
    return Run(config, {**record, "parameters": model.num_parameters, **measured}, folder)


def family(model: KGEModel) -> str:
    """Which of `MODELS` a model is, or is a variant of."""
    return next(c.__name__ for c in type(model).__mro__ if c in MODELS.values())


def bytes_per_entity(config: RunConfig, entities: int = 0) -> int:
    """Bytes of one entity: of its float32 numbers, or of its codes and, shared by so many entities, of whole ones."""
    width = floats(config.model, config.dim, config.rank)
    more = -(-whole_bytes(config.whole, width) // entities) if entities and config.group else 0
    return row_bytes(config.model, config.dim, config.group, config.rank) + more


def bytes_of(done: Run) -> int:
    """`bytes_per_entity` of a run."""
    return bytes_per_entity(done.config, done.record.get("graph", {}).get("entities", 0))


def table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """One row for each run: sizes, and filtered metrics on the test split, both sides."""
    rows = {name: row(done, bytes_of(done), done.record["test"]["both"]) for name, done in runs.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def row(done: Run, size: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """A row of `table`, of a run's sizes but for the bytes of an entity."""
    sizes = {"dim": done.config.dim, "parameters": f"{done.record['parameters']:,}", "bytes per entity": size}
    return sizes | {label: f"{metrics[label.lower()]:.3f}" for label in ("MRR", "Hits@1", "Hits@3", "Hits@10")}
