"""What the notebooks train beside one distillation, and how they check their parameters."""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import torch

from kgdistil.config import RunConfig, make_config
from kgdistil.distillation.recipes import Recipe, bytes_per_entity, distillation
from kgdistil.distillation.statistics import SAME
from kgdistil.errors import ConfigError, short
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.models import KGEModel
from kgdistil.students.predict import predict
from kgdistil.training.loop import Run, run


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
    shared: dict[str, Any] = {"dataset": dataset, "model": model, "dim": dim, "teacher_dim": teacher_dim, "stages": 1}
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
        ConfigError: nothing is listed, or something twice.
    """
    found = list(values) if isinstance(values, list | tuple) else [values]
    if not found:
        raise ConfigError(f"{name} is empty: give at least one number, as in -y '{{{name}: [4]}}'")
    if twice := [x for i, x in enumerate(found) if x in found[:i]]:
        raise ConfigError(f"{name} lists {short(twice[0])} twice: give each once")
    return found


def run_all(configs: Mapping[str, RunConfig], graph: Graph, progress: bool | None = None) -> dict[str, Run]:
    """Each run by its name, found or trained, in the order given."""
    return {name: run(config, graph, progress=progress) for name, config in configs.items()}


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


def summary(done: Run) -> str:
    """One line on a finished run."""
    record = done.record
    if not record["curve"]:
        return f"saved teacher: validation MRR {record['valid']['both']['mrr']:.3f}"
    return (
        f"validation MRR {record['valid']['both']['mrr']:.3f}, at its best after {record['best_epoch']} of "
        f"{record['epochs']} epochs; trained for {record['seconds']:.1f} s"
    )


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
        found = predict(model, graph, head=h, relation=r, k=k, known=known, by="id", unseen=True)
        columns[name] = [n + (" ✓" if e in true else "") for n, e in zip(found["name"], found["entity"], strict=True)]
    length = max(map(len, columns.values()))
    index = pd.RangeIndex(1, length + 1, name="rank")
    return pd.DataFrame({name: pd.Series(c, index=index[: len(c)]) for name, c in columns.items()}, index=index)


def verdict(runs: Mapping[str, Run]) -> str:
    """The answer in one sentence, whichever way it came out."""
    teacher, alone, last = runs["teacher"], runs["no-DS"], list(runs.values())[-1]
    gain = last.test() - alone.test()
    small, large = (bytes_per_entity(x.config) for x in (last, teacher))
    if abs(gain) < SAME:
        what = f"made no difference worth naming (test MRR {last.test():.3f}, {alone.test():.3f} without a teacher)"
    else:
        word = "raised" if gain > 0 else "lowered"
        what = f"{word} the student's test MRR from {alone.test():.3f} without a teacher to {last.test():.3f}"
    return (
        f"With this one seed, distillation {what}; the student takes {small} bytes per entity where the teacher takes "
        f"{large}, and reaches {last.test() / teacher.test():.0%} of its MRR ({teacher.test():.3f})."
    )
