"""From a graph to a student in one call: teacher, student alone and distilled student, the better one, quantised."""

from __future__ import annotations

import copy
import hashlib
import math
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from . import kernels, recipes, results
from .checkpoint import load_model, save_model
from .config import make_config
from .data import NAMES, Graph
from .errors import ConfigError
from .importers import import_teacher
from .models import MODELS, KGEModel, RotatE, build_model
from .predict import top
from .quantise import check_precision, compare_precisions, quantised, weight_bytes
from .student import Student
from .training import Run, resolve

SAME = 0.005  # of validation MRR: below it, two students do equally well
DIMENSIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass
class Distilled:
    """What `distil` leaves: the student to keep, all runs by name, and in words what the comparison says."""

    student: Student
    runs: dict[str, Run]
    chosen: str
    verdict: str

    @property
    def comparison(self) -> pd.DataFrame:
        """One row for each run: dim, bytes per entity, MRR, Hits@1, Hits@3 and Hits@10 on the test split."""
        return recipes.table(self.runs)

    @property
    def precisions(self) -> pd.DataFrame:
        """The chosen student's metrics on the test split at each precision."""
        return pd.DataFrame(self.student.about["precisions"])


def distil(
    graph: Graph,
    *,
    dim: int = 8,
    precision: str = "int8",
    model: str | None = None,
    teacher: str | Path | KGEModel | None = None,
    teacher_dim: int = 64,
    stages: int = 2,
    epochs: int = 150,
    seed: int = 0,
    device: str = "cpu",
    trust_pickle: bool = False,
    progress: bool | None = None,
) -> Distilled:
    """A small student of a graph, with a teacher and without one; the one with the better validation MRR is kept.

    A run that was stopped goes on where it stood when this is called again with the same values.

    Args:
        model: the kind of student; that of the teacher where left out, else RotatE.
        teacher: a model of this graph, or what `importers.import_teacher` reads; trained here with `teacher_dim` where
            None. One that was trained elsewhere may have seen triples that are held out here.
        trust_pickle: as `importers.import_teacher`.
        stages, epochs, seed, device: as `recipes.distillation`.
        precision: of the student's file.
    Raises:
        KgdistilError: one line that says what to do.
    """
    check_precision(precision)
    if isinstance(teacher, KGEModel):
        teacher = _keep(teacher, graph)
    elif teacher is not None and Path(teacher).exists():
        teacher = _keep(import_teacher(teacher, graph, trust_pickle=trust_pickle).model, graph)
    if model is None:
        model = "RotatE" if teacher is None else recipes.family(load_model(resolve(str(teacher)), graph))
    recipe = recipes.distillation(
        dataset=graph.name if graph.name in NAMES else f"{graph.name or 'graph'}-{graph.sha256[:8]}",
        model=model, dim=dim, teacher_dim=teacher_dim, stages=stages, epochs=epochs, seed=seed, device=device,
        teacher="" if teacher is None else str(teacher), batch_size=batch_size(graph),
    )  # fmt: skip
    runs = recipe.run(graph, progress)
    last = list(runs)[-1]
    valid = {name: runs[name].record["valid"]["both"]["mrr"] for name in ("no-DS", last)}
    gain = valid[last] - valid["no-DS"]
    chosen = last if gain > 0 else "no-DS"
    if gain > SAME:
        verdict = f"the teacher helped: validation MRR {valid[last]:.3f} with it, {valid['no-DS']:.3f} without"
    else:
        how = "as well" if gain >= -SAME else "better"
        verdict = f"a student trained without a teacher does {how} here: validation MRR {valid['no-DS']:.3f} without, \
{valid[last]:.3f} with it; the {'distilled' if chosen == last else 'undistilled'} one is kept"
    kept = runs[chosen]
    weights = kept.load(graph)
    table = compare_precisions(weights, graph)
    about: dict[str, Any] = {
        "trained": "alone" if chosen == "no-DS" else f"distilled ({chosen})",
        "metrics": [{"model": name, "dim": run.config.dim, **_metrics(run)} for name, run in runs.items()],
        "precisions": table.to_dict("records"),
    }
    student = Student(quantised(weights, precision), graph, precision, kept.id, about)
    return Distilled(student, runs, chosen, verdict)


def batch_size(graph: Graph) -> int | None:
    """Enough steps an epoch on a small graph: a batch of 32 to 1,024, about 1/32 of the training triples."""
    if graph.name in recipes.SMALL_GRAPHS:
        return None
    return min(1024, max(32, 1 << round(math.log2(max(1, len(graph.train) / 32)))))


@dataclass(frozen=True)
class Plan:
    """What a budget buys."""

    dim: int
    precision: str
    bytes: int
    share: float  # of the teacher's numbers per entity
    seconds: float | None = None  # of one query, where time is the budget

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", {self.seconds * 1e3:.3g} ms for the ten best answers here"
        return f"dimension {self.dim}, {self.precision}: {self.bytes:,} bytes of weights{time}"

    @property
    def expected(self) -> str:
        """What it is expected to lose: what was measured on other graphs."""
        from .advice import kept  # which needs `distil` to measure

        if self.share == 1:
            return "the budget holds a model as large as the teacher, so no student is needed"
        return kept(self.share)


def plan(graph: Graph, budget: str | int, model: str = "RotatE", teacher_dim: int = 64) -> Plan:
    """The largest dimension, and for it the finest precision, whose weights or whose answers fit into a budget.

    Dimension comes first: int8 costs a student little, which `distil` measures, and halving the dimension costs much.

    Args:
        budget: bytes, or a text such as "2MB", "500 kB" or "1GiB"; or the time of one query on this machine, as "2ms".
    Raises:
        ConfigError: neither a size nor a time, or too small for any student.
    """
    limit, seconds = parse_budget(budget)
    kind = MODELS.get(model)
    if kind is None:
        raise ConfigError(f"model is {model!r}: choose one of {', '.join(MODELS)}")
    dims = sorted({d for d in DIMENSIONS if d < teacher_dim} | {teacher_dim})
    waits: dict[int, float] = {}
    if seconds is not None:  # larger ones are slower still, so the first that is too slow ends the search
        for dim in dims:
            waits[dim] = query_seconds(graph, model, dim)
            for _ in range(2):  # too slow, or the machine was busy for a moment
                if waits[dim] > seconds:
                    waits[dim] = min(waits[dim], query_seconds(graph, model, dim))
            if waits[dim] > seconds:
                break
        dims = [dim for dim in waits if waits[dim] <= seconds]
        if not dims:
            raise ConfigError(f"budget is {budget}: the smallest {model} of this graph takes "
                              f"{1e3 * min(waits.values()):.3g} ms a query here")  # fmt: skip
    sizes = {}
    for dim in dims:
        for precision in ("int8", "float16", "float32"):  # the finest that fits stays
            relations = graph.num_relations * kind.relation_factor * dim
            sizes[dim, precision] = weight_bytes(graph.num_entities, kind.entity_factor * dim, relations, precision)
    fitting = [key for key, size in sizes.items() if limit is None or size <= limit]
    if not fitting:
        raise ConfigError(f"budget is {budget}: the smallest {model} of this graph takes {min(sizes.values()):,} bytes")
    dim, precision = fitting[-1]
    return Plan(dim, precision, sizes[dim, precision], dim / teacher_dim, waits.get(dim))


def query_seconds(graph: Graph, model: str, dim: int, queries: int = 30) -> float:
    """Median seconds to find the ten best tails of one query, by an untrained model of that size."""
    config = make_config(model=model, dim=dim)
    asked = build_model(model, graph.num_entities, graph.num_relations, dim, **config.model_options)
    ranker = kernels.Ranker(asked) if kernels.usable(asked) and kernels.rank_library(asked) else None
    heads, relations, taken = graph.train[:, 0], graph.train[:, 1], []
    for i in range(queries + 1):
        at = slice(i % len(heads), i % len(heads) + 1)
        began = time.perf_counter()
        top(asked, heads[at], relations[at], "tail", 10, None, ranker)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def parse_budget(budget: str | int) -> tuple[int | None, float | None]:
    """Bytes or seconds of a budget such as "2MB" or "2ms"; the other one is None.

    Raises:
        ConfigError: neither.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(us|µs|ms|s)", str(budget).strip())
    if found is None:
        return parse_size(budget), None
    if float(found[1]) == 0:
        raise ConfigError(f"budget is {budget!r}: it must be more than no time at all")
    return None, float(found[1]) * SECONDS[found[2]]


def parse_size(budget: str | int) -> int:
    """Bytes of "2MB", "500 kB", "1GiB" or a number.

    Raises:
        ConfigError: not a size.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})", str(budget).strip())
    if found is None or found[2].lower() not in UNITS or float(found[1]) == 0:
        raise ConfigError(f"budget is {str(budget)[:80]!r}: it must be a size, as 2MB, or a time, as 2ms")
    return int(float(found[1]) * UNITS[found[2].lower()])


def calibrated(teacher: KGEModel, graph: Graph) -> KGEModel:
    """A distance model whose score has its zero between true triples and corruptions, as soft labels σ(f) need.

    Only the constant of `offset − distance` changes, so the ranks stay. It is the one with mean σ(f) over training
    triples and as many corruptions of their tails of ½, where the cross-entropy of the two is least.
    """
    teacher = copy.deepcopy(teacher)
    triples = graph.train[torch.randperm(len(graph.train), generator=torch.Generator().manual_seed(0))[:4096]]
    false = triples.clone()
    false[:, 2] = torch.randint(graph.num_entities, (len(false),), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        distance = teacher.offset - torch.cat([teacher.score_triples(x) for x in (triples, false)]).double()
    low, high = float(distance.min()) - 50, float(distance.max()) + 50
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if (middle - distance).sigmoid().mean() > 0.5 else (middle, high)
    if isinstance(teacher, RotatE):
        teacher.epsilon += teacher.offset - high  # `range`, which decodes the angles, stays what it is
    teacher.offset = high
    return teacher


def _keep(teacher: KGEModel, graph: Graph) -> Path:
    """A model that did not come from a run, in the folder of runs, where `recipes` finds it."""
    if teacher.distance and teacher.loss == "cross-entropy" and teacher.offset == 0:
        teacher = calibrated(teacher, graph)
    digest = hashlib.sha256(graph.sha256.encode())
    for table in (teacher.entities, teacher.relations):  # another teacher is another folder, and so another run
        digest.update(table.detach().cpu().numpy().tobytes())
    folder = results.runs_folder() / "teachers" / f"{type(teacher).__name__.lower()}-{digest.hexdigest()[:12]}"
    save_model(folder, teacher, graph)
    return folder


def _metrics(run: Run) -> dict[str, float]:
    return {name: run.test(name) for name in ("mrr", "hits@1", "hits@3", "hits@10")}
