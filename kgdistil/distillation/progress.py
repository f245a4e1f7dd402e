"""How far several runs are and how long they will take: a bar above that of the run at work, or a line at times."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kgdistil import records
from kgdistil.config import RunConfig
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.graphs.lists import Lists
from kgdistil.graphs.queries import queries_of
from kgdistil.models import KGEModel, build_model
from kgdistil.training.base import Engine
from kgdistil.training.engine import make_engine
from kgdistil.training.loop import Progress, Shown

log = logging.getLogger("kgdistil")
STEPS, RANKED = 16, 256  # so many steps of an epoch and ranked triples say what all of them cost
LINE_SECONDS = 30.0  # between two lines where there is no terminal
TRUST = 0.05  # of the first estimate: so much training counts as much as that estimate
Checked = Callable[[str, Sequence[Mapping[str, float]]], object]  # of a run's id and its curve


@contextlib.contextmanager
def together(
    configs: Mapping[str, RunConfig],
    graph: Graph,
    teacher: KGEModel | Lists | None,
    progress: bool | None,
    checked: Checked = lambda *_: None,
) -> Iterator[Shown]:
    """What to give `training.run` as `progress` for each of several runs, in the order of their names.

    First some steps of each run that is not finished are timed, and an estimate of the whole is logged. A bar for all
    runs then stands above that of each; where there is no terminal, a line is logged every `LINE_SECONDS`. False, or
    None without a terminal and a log that takes such lines, shows and times nothing.

    Args:
        teacher: of the students, a model or lists; None: what the config named "teacher" describes.
        checked: called with a run's id and its curve when it has been validated for the first time.
    """
    if progress is False or (progress is None and not (sys.stderr.isatty() or log.isEnabledFor(logging.INFO))):
        yield False
        return
    costs, known = {}, KnownTriples(graph.known.cpu(), graph.num_relations)
    for config in configs.values():
        costs[config.run_id] = 0.0
        if records.read_record(records.record_path(config.run_id, records.is_own(config.dataset))) is None:
            if teacher is None and config.teacher:
                teacher = untrained(configs["teacher"], graph)
            costs[config.run_id] = epoch_seconds(config, graph, teacher if config.teacher else None, known)
    with Whole(configs, costs, None if progress is None else False, checked) as whole:
        yield whole.run


def epoch_seconds(
    config: RunConfig, graph: Graph, teacher: KGEModel | Lists | None, known: KnownTriples | None = None
) -> float:
    """Seconds of an epoch here, by `STEPS` steps of models that are thrown away; their numbers do not matter.

    A step of sampled softmax takes the queries of the whole graph, since it costs the more, the more answers they have.
    With the triples to filter by, the epoch's share of a validation is part of it.
    """
    whole = config.loss == "softmax" and not config.top  # else an engine may take long to make
    part = graph if whole else replace(graph, train=graph.train[: STEPS * config.batch_size])
    student = untrained(config, graph).to(config.device)
    fixed = teacher if config.role == "stage1" else copy.deepcopy(teacher)  # which may be too large to have twice
    engine = make_engine(student, fixed and fixed.to(config.device), config, part)
    rates = torch.zeros(engine.steps, dtype=torch.float64)
    if whole and engine.steps > 2 * STEPS:
        training = step_seconds(engine, rates) * engine.steps
    else:
        for epoch in range(2):  # the first one compiles and warms up
            began = time.perf_counter()
            engine.epoch(epoch, rates, rates)
        training = (time.perf_counter() - began) * samples(config, graph) / samples(config, part)
    if known is None:
        return training
    ranks = min(len(graph.valid), config.check_sample or len(graph.valid))
    ranked = graph.valid[: min(RANKED, ranks)].cpu()
    for _ in range(2):
        began = time.perf_counter()
        rank(student, ranked, known)
    validation = (time.perf_counter() - began) * ranks / max(1, len(ranked))
    return training + validation / config.check_every


class Enough(Exception):
    """An epoch that is timed has had its steps."""


def step_seconds(engine: Engine, rates: Tensor) -> float:
    """Seconds of one of an engine's steps: the mean of `STEPS`, after as many that compile and warm up."""
    ended = list[float]()

    def between() -> None:
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        ended.append(time.perf_counter())
        if len(ended) == 2 * STEPS:
            raise Enough

    engine.between = between
    with contextlib.suppress(Enough):
        engine.epoch(0, rates, rates)
    return (ended[-1] - ended[STEPS - 1]) / STEPS


def samples(config: RunConfig, graph: Graph) -> int:
    """What an epoch goes through: triples, or for sampled softmax the different queries that they answer."""
    if config.loss != "softmax":
        return len(graph.train)
    return len(queries_of(graph.train, config.answers)[0])


def untrained(config: RunConfig, graph: Graph) -> KGEModel:
    return build_model(config.model, graph.num_entities, graph.num_relations, config.dim, **config.model_options)


def about(seconds: float) -> str:
    """A time as "about 4 min", in one or two digits: more are not known."""
    unit, size = next(((u, s) for u, s in (("h", 3600), ("min", 60)) if seconds >= 1.5 * s), ("s", 1))
    number = seconds / size
    return f"about {max(1, round(number)) if size == 1 or number >= 9.5 else f'{number:.1f}'.removesuffix('.0')} {unit}"


class Whole(tqdm):
    """A bar of the seconds that all runs were estimated to take."""

    def __init__(
        self,
        configs: Mapping[str, RunConfig],
        costs: Mapping[str, float],
        disable: bool | None,
        checked: Checked = lambda *_: None,
    ) -> None:
        self.checked = checked
        self.names, self.costs = {config.run_id: name for name, config in configs.items()}, costs
        self.ahead = {config.run_id: config.epochs for config in configs.values()}
        self.expected, self.spent = sum(costs[run] * n for run, n in self.ahead.items()), 0.0
        self.began = self.told = time.monotonic()
        if new := sum(cost > 0 for cost in costs.values()):
            log.info("%d of %d runs are to be trained: %s", new, len(costs), about(self.expected))
        layout = "{desc} {percentage:3.0f}%|{bar:12}|"
        super().__init__(
            total=self.expected, desc=about(self.expected), disable=disable, leave=False, bar_format=layout
        )

    def run(self, run: str, state: Progress, **options: Any) -> tqdm:
        """The bar of one run, with what tqdm takes."""
        for before in list(self.ahead)[: list(self.ahead).index(run)]:
            self.ahead[before] = 0
        self.ahead[run] -= options["initial"]
        self.total -= self.costs[run] * options["initial"]
        bar = Epochs(**options | {"desc": self.names[run], "disable": self.disable, "leave": False})
        bar.after = lambda: self.epoch(run, options["total"], state.curve)
        return bar

    def epoch(self, run: str, epochs: int, curve: Sequence[Mapping[str, float]]) -> None:
        """One more epoch of a run is done."""
        if [check["epoch"] for check in curve] == [epochs - self.ahead[run] + 1]:
            self.checked(run, curve)
        self.ahead[run] -= 1
        self.spent += self.costs[run]
        trust, now = TRUST * self.expected, time.monotonic()
        pace = (now - self.began + trust) / max(self.spent + trust, 1e-9)
        left = about(pace * sum(self.costs[name] * n for name, n in self.ahead.items())) + " left"
        where = f"run {list(self.names).index(run) + 1} of {len(self.names)}"
        self.set_description_str(f"{where}, {left}", refresh=False)
        self.update(self.costs[run])
        if self.disable and now - self.told >= LINE_SECONDS:
            log.info("%s (%s): epoch %d of %d, %s", where, self.names[run], epochs - self.ahead[run], epochs, left)
            self.told = now


class Epochs(tqdm):
    """A bar that calls `after` when an epoch is done, shown or not."""

    after: Callable[[], None]

    def update(self, n: float | None = 1) -> bool | None:
        self.after()
        return super().update(n)
