"""What the notebooks train: one distillation (teacher, the student alone, stage 1, stage 2) and its variations.

What the other notebooks show of their runs is in `story`.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from . import results
from .checkpoint import load_model
from .config import RunConfig, make_config, short
from .data import Graph
from .errors import ConfigError, KgdistilError
from .evaluation import KnownTriples, evaluate, rank
from .models import MODELS, KGEModel
from .predict import predict
from .training import Run, resolve, run

# What differs from `RunConfig`'s defaults, by model and graph; "*" is any graph, and a graph's own row refines it.
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
    """Configs of the runs; `teacher` is None where `saved_teacher` names one, `stage2` for a single stage."""

    teacher: RunConfig | None
    no_ds: RunConfig
    stage1: RunConfig
    stage2: RunConfig | None
    saved_teacher: str | None = None

    @property
    def final(self) -> RunConfig:
        """The run that ends the distillation."""
        return self.stage2 or self.stage1

    def step(self, name: str, graph: Graph, progress: bool | None = None) -> Run:
        """One run, found or trained: `teacher`, `no_ds`, `stage1` or `stage2`. Later steps need the earlier ones."""
        if name == "teacher" and self.saved_teacher:
            return read_teacher(self.saved_teacher, graph)
        config = getattr(self, name)
        if config is None:
            raise ConfigError(f"this recipe has no {STEPS[name]}: stages is 1")
        return run(config, graph, progress=progress)

    def run(self, graph: Graph, progress: bool | None = None) -> dict[str, Run]:
        """All runs by their names for people, those that are finished read from disk."""
        there = [name for name in STEPS if name != "stage2" or self.stage2]
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
) -> Recipe:
    """The recipe of one distillation.

    Args:
        epochs: of the teacher and of each stage; the student alone gets as many as its stages together.
        teacher: a run id or the folder of a saved model, which then replaces the teacher of `teacher_dim`.
        batch_size: of all runs; None takes 1,024, or less for the graphs of `SMALL_GRAPHS`.
    Raises:
        ConfigError, CheckpointError, DeviceError: one line with the parameter, its value and what to do.
    """
    if isinstance(stages, bool) or str(stages) not in ("1", "2"):
        raise ConfigError(f"stages is {short(stages)}: it must be 1 or 2")
    if not isinstance(teacher, str):
        raise ConfigError(f"teacher is {short(teacher)}: give a run id, the folder of a saved model, or ''")
    shared = {"dataset": dataset, "model": model, "seed": seed, "device": device, "protocol": "notebook"}
    # Checked first without any setting of the table, so that an error names what the caller gave.
    plain = make_config(**shared, dim=dim, epochs=epochs, alpha=alpha, beta=beta)
    try:
        large = make_config(**shared, dim=teacher_dim).dim
    except ConfigError as error:
        raise ConfigError(str(error).replace("dim is", "teacher_dim is")) from None
    shared |= {"schedule": "linear", "patience": 0, "check_every": max(1, plain.epochs // 10)}
    if batch_size := batch_size or SMALL_GRAPHS.get(plain.dataset):
        shared["batch_size"] = batch_size

    of_student = settings(plain, "student")
    student = {**shared, **of_student, "dim": plain.dim, "alpha": plain.alpha, "beta": plain.beta}
    of_teacher = settings(plain.model_copy(update={"dim": large}), "teacher")
    own = None
    if not teacher:
        own = make_config(**{**shared, **of_teacher, "dim": large, "epochs": plain.epochs, "role": "teacher"})
    name = own.run_id if own else find_teacher(teacher)
    stage1 = make_config(**student, epochs=plain.epochs, role="stage1", teacher=name)
    stage2 = None
    if int(stages) == 2:
        slower = {"lr": of_student["lr"] / 4, "teacher_lr": of_teacher["lr"] / 4, **settings(plain, "stage2", {})}
        links = {"role": "stage2", "teacher": name, "student": stage1.run_id}
        stage2 = make_config(**{**student, **slower, **links, "epochs": plain.epochs})
    no_ds = make_config(**student, epochs=plain.epochs * int(stages), role="no-ds")
    return Recipe(own, no_ds, stage1, stage2, None if own else name)


def on_lists(recipe: Recipe, epochs: int = 10, batch_size: int = 512) -> dict[str, RunConfig]:
    """Both students of a distillation go on against whole lists of candidates (`lists`), beyond the paper.

    The distilled one has its teacher's distribution over a list as soft label.

    Returns:
        Their configs, by the names of the runs that they start from and " + lists".
    Raises:
        ConfigError: the number of epochs is none.
    """
    final = "stage 2" if recipe.stage2 else "stage 1"
    links = {"no-DS": (recipe.no_ds, {"role": "no-ds"}),
             final: (recipe.final, {"role": "stage1", "teacher": recipe.stage1.teacher})}  # fmt: skip
    found = {}
    for name, (before, more) in links.items():
        kept = before.model_dump(include={"dataset", "model", "dim", "norm", "epsilon", "seed", "device", "protocol"})
        found[name + LISTS] = make_config(
            **kept, **more, student=before.run_id, loss="softmax", negatives=2048, batch_size=batch_size,
            lr=0.1 if before.dim <= 16 else 0.05, penalty=0.0 if MODELS[before.model].distance else 0.005,
            schedule="linear", patience=0, epochs=epochs, check_every=max(1, int(epochs) // 5),
        )  # fmt: skip
    return found


def few_bits(
    dataset: str = "umls",
    model: str = "ComplEx",
    dim: int = 64,
    group: int = 4,
    alpha: float = 0.5,
    epochs: int = 20,
    seed: int = 0,
    device: str = "cpu",
    teacher: str = "",
    *,
    rank: int = 0,
    batch_size: int = 512,
) -> Recipe:
    """The recipe of a student of few bits, as on the frontier: as many floats as its teacher, `group` of them in four
    bits, trained through the rounding on whole lists of candidates (`lists`), from the teacher and alone.

    Args:
        epochs: of the teacher; the student gets half as many, the student alone as many as both.
        teacher: a run id or the folder of a saved model of `dim`.
        rank: floats of an entity of low rank, of which `group` share four bits; 0: as many as the teacher's.
    Raises:
        ConfigError, CheckpointError, DeviceError: one line with the parameter, its value and what to do.
    """
    shared = {"dataset": dataset, "model": model, "dim": dim, "seed": seed, "device": device, "protocol": "notebook",
              "loss": "softmax", "negatives": 2048, "batch_size": batch_size, "schedule": "linear",
              "patience": 0}  # fmt: skip
    epochs = make_config(**shared, epochs=epochs).epochs
    half = -(-epochs // 2)
    own = None
    if not teacher:
        penalty = {} if MODELS[make_config(**shared).model].distance else {"penalty": 0.03}
        own = make_config(**shared, **penalty, lr=0.1, epochs=epochs, check_every=half, role="teacher")
    name = own.run_id if own else find_teacher(teacher)
    coded = {**shared, "group": group, "rank": rank, "check_every": max(1, half // 5)}
    return Recipe(
        own,
        make_config(**coded, lr=0.1, epochs=epochs + half, role="no-ds"),
        make_config(**coded, lr=0.05, alpha=alpha, epochs=half, role="stage1", teacher=name, student=name),
        None,
        None if own else name,
    )


def teacher_only(
    dataset: str = "umls",
    model: str = "RotatE",
    dim: int = 64,
    epochs: int = 150,
    seed: int = 0,
    device: str = "cpu",
) -> RunConfig:
    """The teacher of `distillation`, so that both notebooks share one run. Raises as it does."""
    return distillation(dataset, model, dim, dim, 1, epochs=epochs, seed=seed, device=device).teacher


def single_stage(
    dataset: str = "umls",
    model: str = "RotatE",
    dim: int = 8,
    teacher_dim: int = 64,
    alphas: float | Iterable[float] = (0.0, 0.3, 0.5, 0.7, 1.0),
    epochs: int = 150,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, RunConfig]:
    """Stage 1 with several α: "teacher", "no-DS" and "α = 0.3" and so on; every student has the same updates.

    Raises:
        ConfigError, DeviceError: as `distillation`; an empty list of α.
    """
    shared = {"dataset": dataset, "model": model, "dim": dim, "teacher_dim": teacher_dim, "stages": 1}
    shared |= {"epochs": epochs, "seed": seed, "device": device}
    plain = distillation(**shared)
    found = [distillation(**shared, alpha=alpha).stage1 for alpha in several("alphas", alphas)]
    return {"teacher": plain.teacher, "no-DS": plain.no_ds, **{f"α = {c.alpha:g}": c for c in found}}


def ablation(
    dataset: str = "umls",
    model: str = "RotatE",
    dim: int = 8,
    teacher_dim: int = 64,
    alpha: float = 0.5,
    beta: float = 0.5,
    epochs: int = 100,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, RunConfig]:
    """Table 6: "teacher", "no-DS", "-S2" (stage 1 alone), "-S1" (stage 2 from a random student), "first" and "DS".

    "first" is the stage 1 that DS starts from. Every other student gets as many updates as the two stages of DS.

    Args:
        epochs: of the teacher and of each stage of DS; the other students get twice as many.
    Raises:
        ConfigError, DeviceError: as `distillation`.
    """
    whole = distillation(dataset, model, dim, teacher_dim, 2, alpha, beta, epochs, seed, device)
    total = {"epochs": whole.no_ds.epochs}
    # A student that starts at random gets the rate of stage 1, not the small one that stage 2 goes on with.
    at_random = {"student": None, "lr": whole.stage1.lr}
    return {
        "teacher": whole.teacher,
        "no-DS": whole.no_ds,
        "-S2": make_config(**{**whole.stage1.model_dump(), **total}),
        "-S1": make_config(**{**whole.stage2.model_dump(), **at_random, **total}),
        "first": whole.stage1,
        "DS": whole.stage2,
    }


def by_teacher(
    dataset: str = "umls",
    model: str = "TransE",
    dims: int | Iterable[int] = (8, 4),
    teacher_dims: int | Iterable[int] = (16, 32, 64),
    epochs: int = 100,
    seed: int = 0,
    device: str = "cpu",
) -> list[Recipe]:
    """Figure 2: a two-stage distillation for each student's and each teacher's dimension.

    Raises:
        ConfigError, DeviceError: as `distillation`; an empty list of dimensions.
    """
    pairs = itertools.product(several("dims", dims), several("teacher_dims", teacher_dims))
    return [distillation(dataset, model, d, large, epochs=epochs, seed=seed, device=device) for d, large in pairs]


def several(name: str, values: Any) -> list[Any]:
    """What a notebook's parameter lists; `-p dims 4` gives one number instead.

    Raises:
        ConfigError: nothing is listed.
    """
    found = list(values) if isinstance(values, list | tuple) else [values]
    if not found:
        raise ConfigError(f"{name} is empty: give at least one number, as in -y '{{{name}: [4]}}'")
    return found


def run_all(configs: Mapping[str, RunConfig], graph: Graph, progress: bool | None = None) -> dict[str, Run]:
    """Each run by its name, found or trained, in the order given."""
    return {name: run(config, graph, progress=progress) for name, config in configs.items()}


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
        folder = resolve(str(results.root() / name)).resolve() if (results.root() / name).is_dir() else None
        if folder is None:
            raise
    return folder.name if folder.parent == results.model_folder("").resolve() else str(folder)


def read_teacher(name: str, graph: Graph) -> Run:
    """A saved teacher as a run: ranked now, since a folder may come without its record.

    Raises:
        CheckpointError: missing, damaged, or trained on another graph.
    """
    folder = resolve(name)
    model = load_model(folder, graph)
    known = KnownTriples(graph.known.cpu(), graph.num_relations)
    found = results.read_record(results.record_path(folder.name)) or {}
    config = make_config(dataset=found.get("config", {}).get("dataset", graph.name), model=family(model),
                         dim=model.dim, role="teacher")  # fmt: skip
    measured = {split: evaluate(model, graph, split, known=known).metrics() for split in ("valid", "test")}
    record = {"id": folder.name, "seconds": 0.0, "epochs": 0, "curve": [], **found}
    return Run(config, {**record, "parameters": model.num_parameters, **measured}, folder)


def family(model: KGEModel) -> str:
    """Which of `MODELS` a model is, or is a variant of."""
    return next(c.__name__ for c in type(model).__mro__ if c in MODELS.values())


# ---- what a notebook shows ------------------------------------------------------------------------------------------
def parameters(function: Any) -> dict[str, inspect.Parameter]:
    """What a notebook may set: a function's parameters but those that can only be named."""
    known = inspect.signature(function).parameters
    return {name: x for name, x in known.items() if x.kind is not inspect.Parameter.KEYWORD_ONLY}


def check_parameters(namespace: Mapping[str, Any], function: Any = distillation) -> None:
    """Refuse a name that papermill injected and `function` does not take; papermill itself only warns.

    Args:
        namespace: the notebook's `globals()`. Only the injected cell is looked at, so a cell can be run again.
    Raises:
        ConfigError: with the name, its value and the nearest parameter.
    """
    known = parameters(function)
    for cell in namespace.get("In", ()):
        if not cell.startswith("# Parameters"):  # how papermill heads the cell it injects
            continue
        targets = [t for node in ast.parse(cell).body if isinstance(node, ast.Assign) for t in node.targets]
        for name in (t.id for t in targets if isinstance(t, ast.Name) and t.id not in known):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"the parameters are {', '.join(known)}"
            raise ConfigError(f"unknown parameter {name} (= {short(namespace.get(name))}): {hint}")


def bytes_per_entity(config: RunConfig) -> int:
    """Bytes of one entity: of its float32 numbers, or of its codes."""
    floats = config.rank or MODELS[config.model].entity_factor * config.dim
    return -(-floats // (2 * config.group)) if config.group else 4 * floats


def summary(done: Run) -> str:
    """One line on a finished run."""
    record = done.record
    if not record["curve"]:
        return f"saved teacher: validation MRR {record['valid']['both']['mrr']:.3f}"
    return (
        f"validation MRR {record['valid']['both']['mrr']:.3f}, at its best after {record['best_epoch']} of "
        f"{record['epochs']} epochs; trained for {record['seconds']:.1f} s"
    )


def table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """One row for each run: sizes, and filtered metrics on the test split, both sides."""
    rows = {}
    for name, done in runs.items():
        metrics = done.record["test"]["both"]
        rows[name] = {
            "dim": done.config.dim,
            "parameters": f"{done.record['parameters']:,}",
            "bytes per entity": bytes_per_entity(done.config),
            **{label: f"{metrics[label.lower()]:.3f}" for label in ("MRR", "Hits@1", "Hits@3", "Hits@10")},
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def example_query(teacher: KGEModel, graph: Graph, among: int = 500) -> tuple[int, int, int]:
    """The first test triple whose tail the teacher ranks best when training triples are left out.

    Args:
        among: how many test triples are looked at.
    """
    triples = graph.test[:among].cpu()
    ranks = rank(teacher, triples, KnownTriples(graph.train.cpu(), graph.num_relations)).ranks()[:, 1]
    h, r, t = triples[int(ranks.argmin())].tolist()
    return h, r, t


def answers(models: Mapping[str, KGEModel], graph: Graph, query: tuple[int, int, int], k: int = 5) -> pd.DataFrame:
    """The k best tails of (h, r, ?) by each model, side by side; ✓ marks those valid or test say are true.

    Training triples are left out: the models have seen them.
    """
    h, r, _ = query
    held_out = torch.cat([graph.valid, graph.test]).cpu()
    true = {graph.entities[t] for t in held_out[(held_out[:, 0] == h) & (held_out[:, 1] == r), 2].tolist()}
    known = KnownTriples(graph.train.cpu(), graph.num_relations)
    columns = {}
    for name, model in models.items():
        found = predict(model, graph, head=h, relation=r, k=k, known=known)
        columns[name] = [n + (" ✓" if e in true else "") for n, e in zip(found["name"], found["entity"], strict=True)]
    length = max(map(len, columns.values()))
    index = pd.RangeIndex(1, length + 1, name="rank")
    return pd.DataFrame({name: pd.Series(c, index=index[: len(c)]) for name, c in columns.items()}, index=index)


def verdict(runs: Mapping[str, Run]) -> str:
    """The answer in one sentence, whichever way it came out."""
    teacher, alone, last = runs["teacher"], runs["no-DS"], list(runs.values())[-1]
    gain = last.test() - alone.test()
    small, large = (bytes_per_entity(x.config) for x in (last, teacher))
    if abs(gain) < 0.005:
        what = f"made no difference worth naming (test MRR {last.test():.3f}, {alone.test():.3f} without a teacher)"
    else:
        word = "raised" if gain > 0 else "lowered"
        what = f"{word} the student's test MRR from {alone.test():.3f} without a teacher to {last.test():.3f}"
    return (
        f"With this one seed, distillation {what}; the student takes {small} bytes per entity where the teacher takes "
        f"{large}, and reaches {last.test() / teacher.test():.0%} of its MRR ({teacher.test():.3f})."
    )
