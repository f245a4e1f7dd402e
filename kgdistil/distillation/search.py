"""Recipes that fit themselves: a stated time goes into trials of a teacher, its student and the student alone.

A trial is a run as any other, of settings that optuna draws (`Search.config`); one whose validation MRR lies below the
median of the others at the same share of its epochs is ended early. The first trials are what `recipes.few_bits` does,
so that a search ends no lower. A third of the time is the teacher's, a third its student's, and the student alone gets
what its rival had, and no known setting less than the teacher. Nothing but the validation split decides.

What was tried stands in a journal in the folder of runs, with the seconds that it took. A search that was stopped goes
on in the midst of its trial; one that is given more time goes on at its end. A trial is drawn with a seed of its own,
so that which trials come, but not how many, is a function of graph, settings and seed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import filelock
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState
from tqdm import tqdm

from kgdistil import records
from kgdistil.compress.size import GROUPS
from kgdistil.config import RunConfig, read_config
from kgdistil.distillation import recipes, rule, scale
from kgdistil.distillation.budget import Shape, whole_of
from kgdistil.distillation.progress import LINE_SECONDS, Epochs, about, epoch_seconds, untrained
from kgdistil.distillation.recipes import Recipe
from kgdistil.errors import BusyError, CheckpointError, ConfigError
from kgdistil.evaluation import KnownTriples
from kgdistil.graph import Graph
from kgdistil.models import MODELS, ComplEx
from kgdistil.training.loop import Progress, run

log = logging.getLogger("kgdistil")
optuna.logging.set_verbosity(optuna.logging.WARNING)
PARTS = ("teacher", "stage 1", "no-DS")  # the runs' names for people, in the order of searching
CHECKS = 5  # validations of a trial
FULL = 4  # as many trials of the largest shape fit into a part's time: their epochs are cut where they would not
LONGER = (1, 2, 4, 8)  # times the recipe's epochs: "epochs" of what is drawn
STARTUP, COMPARED, SPARED = 5, 2, 1  # trials before the sampler learns, and before one is ended; its checks before
PAUSE = 5.0  # seconds, of which a search that is killed may forget that they were spent
FAILURES = 5  # that no trial ended well before
LR, PENALTY, TEMPERATURE = (0.01, 1.0), (1e-5, 0.3), (0.5, 4.0)  # evenly by their logarithms
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "RUNNING": "stopped", "FAIL": "failed"}
ALPHA, RELATION_WEIGHT = (0.1, 1.0), (0.0, 0.1, 1.0, 4.0)
REGULARISERS, SCHEDULES = ("n3", "dura"), ("linear", "constant")  # of models without a teacher
# What was best on graphs of different kinds is tried after the recipe's own settings, for longer; "lr" is times the
# recipe's. Models without a teacher are of FB15k-237, WN18RR, Debian's packages and Kinships, students of FB15k-237,
# WN18RR, UMLS and Kinships. The first without a teacher was tried on FB15k-237 and the genes so far.
WITHOUT = ("model", "lr", "penalty", "regulariser", "relation_weight", "schedule")
TAUGHT = ("lr", "penalty", "relation_weight", "alpha", "temperature")
KNOWN = {
    WITHOUT: (
        ("ReciprocalComplEx", 2.0, 0.05, "n3", 1.0, "linear"),
        ("ReciprocalComplEx", 1.0, 0.05, "n3", 1.0, "constant"),
        ("ReciprocalComplEx", 1.0, 0.1, "dura", 0.1, "linear"),
        ("ReciprocalComplEx", 1.0, 0.01, "n3", 0.0, "linear"),
        ("ComplEx", 1.0, 0.005, "n3", 4.0, "linear"),
    ),
    TAUGHT: (
        (2.0, 0.0, 0.0, 1.0, 1.0),
        (1.0, 0.0, 0.0, 0.3, 1.0),
        (0.5, 0.0, 1.0, 0.7, 3.0),
        (5.0, 0.01, 1.0, 0.4, 1.0),
    ),
}


def search(
    graph: Graph,
    shared: Mapping[str, Any],
    shapes: list[Shape],
    seconds: float,
    progress: bool | None = None,
    models: Sequence[str] = (),
) -> Found:
    """Search for as long as there is time, of which earlier sittings may have spent a part.

    Args:
        shared: what `recipes.few_bits` is given for every shape.
        shapes: of students, each with a teacher of its dimension; the first is the one to take without a search.
        progress: as for `distil`.
        models: kinds beside that of `shared`, which comes first; a student is of its teacher's kind.
    Raises:
        ConfigError: no trial of a part ends well. CheckpointError: the journal is damaged.
        BusyError: another process is at this very search.
    """
    shared = {key: value for key, value in shared.items() if key not in ("dim", "teacher")}
    return Search(graph, shared, shapes, seconds, progress, models).found()


def has_begun(trial: optuna.trial.FrozenTrial) -> bool:
    return trial.state != TrialState.WAITING


class Stopped(Exception):
    """The time of a part is up; its trial may go on when there is more."""


@dataclass
class Found:
    """What a search leaves: the recipe, whose runs are finished; a row for each trial; what to tell people."""

    recipe: Recipe
    trials: list[dict[str, Any]]
    told: list[str]


class Alone(JournalFileOpenLock):
    """No lock for each line: `found` holds one all the while, which is gone with a process that is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Search:
    """One search, of a graph and a kind of student."""

    def __init__(
        self,
        graph: Graph,
        shared: Mapping[str, Any],
        shapes: list[Shape],
        seconds: float,
        progress: bool | None,
        models: Sequence[str] = (),
    ) -> None:
        self.graph, self.shared, self.seconds, self.progress = graph, shared, seconds, progress
        self.models = [shared["model"], *models]
        self.shapes = {
            f"{dim} {precision} {rank}".removesuffix(" 0"): (dim, precision, rank) for dim, precision, rank in shapes
        }
        self.dims = list(dict.fromkeys(dim for dim, _, _ in shapes))
        space = [PARTS, CHECKS, LONGER, STARTUP, COMPARED, SPARED, LR, PENALTY, TEMPERATURE, ALPHA, RELATION_WEIGHT]
        space += [REGULARISERS, SCHEDULES, list(KNOWN.values())]
        given: list[Any] = [graph.sha256, {**self.shared, "device": None}, shapes, space, self.models]
        given += [listed] if (listed := scale.listed(graph)) else []
        self.key = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]
        self.own = records.is_own(self.shared["dataset"])
        self.path = records.runs_folder(self.own) / "search" / f"{self.key}.log"
        self.studies: dict[str, optuna.Study] = {}
        self.told = time.monotonic()
        for shape in shapes:
            scale.check_memory(self.recipe(shape).configs, graph)

    def found(self) -> Found:
        """What `search` finds."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = filelock.FileLock(f"{self.path}.held", timeout=0).acquire()
        except filelock.Timeout:
            raise BusyError(f"{self.path}: another process is at this search; wait for it or stop it") from None
        hidden, layout = None if self.progress is None else not self.progress, "{desc} {percentage:3.0f}%|{bar:12}|"
        with held, tqdm(total=self.seconds, disable=hidden, leave=False, bar_format=layout) as self.bar:
            self.open()
            for part in PARTS:
                self.search(part)
                log.info("%s", self.summary(part))
        student, alone = (self.ended(part)[0].user_attrs["config"] for part in ("stage 1", "no-DS"))
        teachers = (trial.user_attrs for trial in self.ended("teacher"))
        teacher = next(about["config"] for about in teachers if about["id"] == student["teacher"])
        recipe = Recipe(read_config(teacher), read_config(alone), read_config(student), None)
        return Found(recipe, list(self.rows(recipe)), [self.summary(part) for part in PARTS])

    # ---- what a trial is
    def recipe(self, shape: Shape, teacher: str = "", model: str = "") -> Recipe:
        """What is trained for a shape without a search; `model` where it is not the first kind."""
        dim, precision, rank = shape
        kind = model or self.models[0]
        more = scale.settings(self.graph, kind, dim, "softmax")
        made: dict[str, Any] = {"dim": dim, "rank": rank, "group": GROUPS[precision], "teacher": teacher, "more": more}
        made["listed"] = scale.listed(self.graph)
        if self.shared.get("fitted"):  # one of low rank has settings of its own
            made["fitted"] = rule.defaults(self.graph, kind, dim, self.shared.get("epochs"), rank)
        made |= {"whole": whole_of(self.graph, kind, shape)} if self.shared.get("whole") else {}
        return recipes.few_bits(**{**self.shared, "model": kind, **made})

    def defaults(self, part: str) -> list[dict[str, Any]]:
        """The settings of the first trials: the recipe's, for each teacher's dimension or student's shape."""
        name = "dim" if part == "teacher" else "shape"
        found = []
        for value in self.dims if part == "teacher" else self.shapes:
            shape = next(x for key, x in self.shapes.items() if value in (key, x[0]))
            config = self.recipe(shape).configs[part]
            drawn: dict[str, Any] = {"lr": config.lr, "penalty": max(config.penalty, PENALTY[0])}
            drawn |= {"model": self.models[0]} if len(self.models) > 1 else {}
            drawn |= {
                "relation_weight": config.relation_weight,
                "alpha": config.alpha,
                "temperature": config.temperature,
                "regulariser": config.regulariser,
                "schedule": config.schedule,
            }
            found.append({name: value, **drawn, "epochs": 1})
        return found

    def known(self, part: str) -> list[dict[str, Any]]:
        """Those of `KNOWN` for the best of `defaults`, for longer."""
        defaults, found = self.defaults(part), list[dict[str, Any]]()
        best, *_ = [defaults[t.number] for t in self.ended(part) if t.number < len(defaults)] or defaults or [{}]
        names = TAUGHT if part == "stage 1" else WITHOUT
        for values in KNOWN[names] if best and not MODELS[self.models[0]].distance else ():
            other = {**best, **dict(zip(names, values, strict=True)), "epochs": LONGER[min(1, len(LONGER) - 1)]}
            other |= {
                "lr": min(max(best["lr"] * other["lr"], LR[0]), LR[1]),
                "penalty": max(other["penalty"], PENALTY[0]),
            }
            if len(self.models) == 1:
                other.pop("model", None)
            found += [other] if other.get("model", self.models[0]) in self.models else []
        return found

    def first(self, part: str) -> int:
        """How many trials are neither ended early nor by the clock: the recipe's, and for the student alone those of
        `KNOWN` as far as the teacher had one to its end."""
        if part != "no-DS":
            return len(self.dims if part == "teacher" else self.shapes)
        known = range(len(self.dims), len(self.dims) + len(self.known("teacher")))
        had = [known.index(trial.number) + 1 for trial in self.ended("teacher") if trial.number in known]
        return len(self.shapes) + max(had, default=0)

    def most(self, part: str) -> int:
        """Epochs of which `FULL` trials fit into a part's time, by steps that are timed once for a study."""
        study = self.studies[part]
        if "epoch" not in study.user_attrs:
            configs = self.recipe(max(self.shapes.values())).configs
            config, known = configs[part], KnownTriples(self.graph.known.cpu(), self.graph.num_relations)
            teacher = untrained(configs["teacher"], self.graph) if config.teacher else None
            study.set_user_attr("epoch", epoch_seconds(config, self.graph, teacher, known))
        return max(1, int(self.seconds / len(PARTS) / FULL / study.user_attrs["epoch"]))

    def config(self, part: str, trial: optuna.Trial) -> RunConfig:
        """The run of a trial, of what is drawn for it.

        Raises:
            ConfigError: a student whose teacher could not be trained.
        """
        if part == "teacher":
            dim = trial.suggest_categorical("dim", self.dims)
            shape = next(shape for shape in self.shapes.values() if shape[0] == dim)
        else:
            shape = self.shapes[trial.suggest_categorical("shape", list(self.shapes))]
        longer = trial.suggest_categorical("epochs", LONGER)
        drawn: dict[str, Any] = {"lr": trial.suggest_float("lr", *LR, log=True)}
        if not MODELS[self.shared["model"]].distance:
            drawn["penalty"] = trial.suggest_float("penalty", *PENALTY, log=True)
            drawn["penalty"] *= drawn["penalty"] >= 2 * PENALTY[0]  # none at all
            if self.graph.num_relations > 1:
                drawn["relation_weight"] = trial.suggest_categorical("relation_weight", RELATION_WEIGHT)
        if part != "stage 1":
            drawn["schedule"] = trial.suggest_categorical("schedule", SCHEDULES)
            if "penalty" in drawn and issubclass(MODELS[self.shared["model"]], ComplEx):
                drawn["regulariser"] = trial.suggest_categorical("regulariser", REGULARISERS)
        if part == "stage 1":
            drawn["alpha"] = trial.suggest_float("alpha", *ALPHA)
            drawn["temperature"] = trial.suggest_float("temperature", *TEMPERATURE, log=True)
        drawn = {name: x if isinstance(x, str) else float(f"{x:.2g}") for name, x in drawn.items()}
        teacher, model = "", self.models[0]
        if part == "stage 1":
            if (best := self.best("teacher", shape[0])) is None:
                raise ConfigError(f"no teacher of dimension {shape[0]} could be trained")
            teacher, model = best["id"], best["config"]["model"]
        elif len(self.models) > 1:
            model = trial.suggest_categorical("model", self.models)
        config = self.recipe(shape, teacher, model).configs[part]
        epochs = min(longer * config.epochs, self.most(part))
        checks = {"protocol": f"search-{self.key}", "epochs": epochs, "check_every": max(1, epochs // CHECKS)}
        return config.model_copy(update={**drawn, **checks})

    # ---- the search
    def open(self) -> None:
        """The studies of the parts, of which the journal holds what was tried before.

        Raises:
            CheckpointError: the journal is damaged.
        """
        if self.path.is_file() and (whole := self.path.read_bytes()).rpartition(b"\n")[2]:
            self.path.write_bytes(whole[: whole.rfind(b"\n") + 1])  # the line at which a machine went down
        try:
            storage = JournalStorage(JournalFileBackend(str(self.path), Alone(str(self.path))))
            for part in PARTS:
                self.studies[part] = optuna.create_study(
                    storage=storage,
                    study_name=part,
                    direction="maximize",
                    load_if_exists=True,
                    pruner=optuna.pruners.MedianPruner(COMPARED, SPARED),
                )
                for trial in self.studies[part].get_trials(False):  # what optuna takes as it stands
                    told, checks = trial.user_attrs, trial.intermediate_values.values()
                    sum([told.get("seconds", 0.0), *(trial.values or ()), *checks])
                    if "config" in told:
                        read_config(told["config"])
        except (ValueError, LookupError, TypeError, AssertionError, AttributeError, ConfigError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(f"{self.path} is damaged ({reason}); delete it to search anew") from None

    def search(self, part: str) -> None:
        """Trials of a part until its time is up and one ended well, those first that were begun before.

        Raises:
            ConfigError: none did, with what was wrong with the last one.
        """
        study = self.studies[part]
        self.enqueue(part)
        for begun in study.get_trials(states=(TrialState.RUNNING,)):
            if begun.number >= self.first(part) and self.left(part) <= 0 and self.ended(part):
                continue
            self.draw_by(part, begun.number)
            self.trial(part, optuna.Trial(study, begun._trial_id))  # noqa: SLF001 - there is no other way to go on
        while self.left(part) > 0 or self.ahead(part) or not self.ended(part):
            failed = study.get_trials(False, (TrialState.FAIL,))
            known = len(self.known(part))  # they share the recipe's rate, and so its failure
            if len(failed) >= FAILURES + known and not self.ended(part):
                raise ConfigError(f"no trial of {part} ended well; the last one: {failed[-1].user_attrs['why']}")
            self.draw_by(part, len(study.get_trials(False)))
            self.trial(part, study.ask())

    def enqueue(self, part: str) -> None:
        """Put what is tried first before what is drawn: `defaults`, and `known` once all of these are over."""
        study, defaults = self.studies[part], self.defaults(part)
        for values in defaults:
            study.enqueue_trial(values, skip_if_exists=True)
        over = [trial.number for trial in study.get_trials(False) if trial.state.is_finished()]
        for values in self.known(part) if set(range(len(defaults))) <= set(over) else ():
            study.enqueue_trial(values, skip_if_exists=True)

    def draw_by(self, part: str, number: int) -> None:
        """A sampler for the trial of that number alone: one for all would begin again where a search goes on."""
        seed = self.shared["seed"] + number
        self.studies[part].sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)

    def trial(self, part: str, trial: optuna.Trial) -> None:
        """One trial to its end, or to that of its part's time; its weights stay where they are the best so far."""
        study = self.studies[part]
        before, began, saved = trial.user_attrs.get("seconds", 0.0), time.monotonic(), time.monotonic()
        checks, first = len(study.trials[trial.number].intermediate_values), self.first(part)
        deadline = began + self.left(part) if trial.number >= first and self.ended(part) else math.inf

        def watch(progress: Progress) -> None:
            nonlocal saved, checks
            now, new = time.monotonic(), progress.curve[checks:]
            over = now > deadline and progress.epoch < config.epochs
            if not (new or over or now - saved >= PAUSE):
                return
            trial.set_user_attr("seconds", round(before + now - began, 2))
            for check in new:
                trial.report(check["valid_mrr"], checks)
                checks += 1
            saved = now
            self.show(part, trial.number)
            if trial.number >= first and new and trial.should_prune():
                raise optuna.TrialPruned
            if over:
                raise Stopped

        def bar(_: str, progress: Progress, **given: Any) -> Epochs:
            made = Epochs(**given | {"disable": True})
            made.after = lambda: watch(progress)
            return made

        outcome: dict[str, Any] = {}
        try:
            drawn = trial.user_attrs.get("config")
            config = read_config(drawn) if drawn else self.config(part, trial)
            trial.set_user_attr("config", config.model_dump())
            trial.set_user_attr("id", config.run_id)
            done = run(config, self.graph, progress=bar)
            outcome["values"] = done.record["valid"]["both"]["mrr"]
        except optuna.TrialPruned:
            outcome["state"] = TrialState.PRUNED
        except Stopped:
            return
        except ConfigError as error:  # diverged, or without a teacher
            outcome["state"] = TrialState.FAIL
            trial.set_user_attr("why", str(error))
        trial.set_user_attr("seconds", round(before + time.monotonic() - began, 2))
        study.tell(trial, **outcome)
        self.enqueue(part)
        self.show(part, trial.number)
        self.tidy()

    def tidy(self) -> None:
        """Remove the weights and records of trials that are over and neither the best of their kind nor its teacher."""
        kept, over = set[str | None](), set[str]()
        for part, study in self.studies.items():
            for trial in study.get_trials(False):
                if "id" in trial.user_attrs:
                    (over.add if trial.state.is_finished() else kept.add)(trial.user_attrs["id"])
                    kept |= set() if trial.state.is_finished() else {trial.user_attrs["config"]["teacher"]}
            for kind in self.dims if part == "teacher" else self.shapes:
                if best := self.best(part, kind):
                    kept |= {best["id"], best["config"]["teacher"]}
        for run_id in filter(lambda x: records.model_folder(x, self.own).is_dir(), over - kept):
            shutil.rmtree(records.model_folder(run_id, self.own), ignore_errors=True)
            records.record_path(run_id, self.own).unlink(missing_ok=True)
            for name in (run_id, f"{run_id}-valid"):
                records.ranks_path(name, self.own).unlink(missing_ok=True)

    # ---- where it stands
    def ended(self, part: str) -> list[optuna.trial.FrozenTrial]:
        """The trials of a part that came to their end, the best first."""
        found = self.studies[part].get_trials(False, (TrialState.COMPLETE,))
        return sorted(found, key=lambda trial: -trial.values[0])

    def best(self, part: str, kind: int | str) -> dict[str, Any] | None:
        """ "id" and "config" of the best teacher of a dimension, or student of a shape; None where there is none."""
        fit = (t for t in self.ended(part) if kind in (t.params.get("dim"), t.params.get("shape")))
        return next((trial.user_attrs for trial in fit), None)

    def ahead(self, part: str) -> bool:
        """Whether a trial of the recipe's has not begun."""
        waiting = self.studies[part].get_trials(False, (TrialState.WAITING,))
        return any(trial.number < self.first(part) for trial in waiting)

    def spent(self, part: str) -> float:
        """Seconds, of all sittings."""
        return sum(trial.user_attrs.get("seconds", 0.0) for trial in self.studies[part].get_trials(False))

    def left(self, part: str) -> float:
        """Seconds of a part's share that are left; the student alone has as many as the distilled one took."""
        share = self.seconds / len(PARTS)
        return (max(share, self.spent("stage 1")) if part == "no-DS" else share) - self.spent(part)

    def show(self, part: str, number: int) -> None:
        """How far it is: in the bar, or in a line of the log at times."""
        ahead = PARTS[PARTS.index(part) :]
        left = about(sum(max(0.0, self.left(name)) for name in ahead))
        best = f", best validation MRR {found[0].values[0]:.3f}" if (found := self.ended(part)) else ""
        line = f"{part}, trial {number + 1}{best}, {left} left"
        self.bar.n = min(self.bar.total, sum(map(self.spent, PARTS)))
        self.bar.set_description_str(line)
        if self.bar.disable and self.progress is not False and time.monotonic() - self.told >= LINE_SECONDS:
            log.info("search: %s", line)
            self.told = time.monotonic()

    def rows(self, recipe: Recipe) -> Iterator[dict[str, Any]]:
        """What is known of each trial: part, number, state, validation MRR at its checks and at the best, settings."""
        chosen = {config.run_id for config in recipe.configs.values()}
        for part, study in self.studies.items():
            for trial in filter(has_begun, study.get_trials(False)):
                about, mrrs = trial.user_attrs, [x for _, x in sorted(trial.intermediate_values.items())]
                yield {
                    "part": part,
                    "trial": trial.number,
                    "state": STATES[trial.state.name],
                    "id": about.get("id"),
                    "chosen": about.get("id") in chosen,
                    "valid_mrr": max(mrrs, default=None) if trial.values is None else trial.values[0],
                    "checks": mrrs,
                    "seconds": about.get("seconds", 0.0),
                    **({"why": about["why"]} if "why" in about else {}),
                    "config": about.get("config"),
                }

    def summary(self, part: str) -> str:
        """What was found for a part, in a line."""
        best = self.ended(part)[0]
        states = [STATES[trial.state.name] for trial in filter(has_begun, self.studies[part].get_trials(False))]
        counts = ", ".join(f"{states.count(state)} {state}" for state in STATES.values() if state in states)
        drawn = best.params | {name: best.user_attrs["config"][name] for name in best.params if name != "shape"}
        settings = ", ".join(f"{name} {value}" for name, value in drawn.items())
        took = about(self.spent(part)).removeprefix("about ")
        return (
            f"{part}: {len(states)} trials in {took} ({counts}); best validation MRR {best.values[0]:.3f}: {settings}"
        )
