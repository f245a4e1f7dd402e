"""From a graph to a student in one call: teacher, student alone and distilled student, the better one, quantised."""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kgdistil import kernels, records
from kgdistil.answer.files import write_json
from kgdistil.checkpoint import load_model, save_model
from kgdistil.compress.low_rank import low_rank
from kgdistil.compress.packing import GROUPS, check_precision, quantised
from kgdistil.compress.size import PART, PRECISION_OF, entity_bytes, whole_bytes
from kgdistil.compress.whole import keep_frequent
from kgdistil.config import RunConfig
from kgdistil.distillation import paths as path_model
from kgdistil.distillation import recipes, rule, scale
from kgdistil.distillation.budget import Shape, search_seconds, whole_of
from kgdistil.distillation.progress import together
from kgdistil.distillation.ranked import ranks_of
from kgdistil.distillation.recipes import LISTS, Recipe
from kgdistil.distillation.statistics import bootstrap
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, Ranks, rank, sampled
from kgdistil.graph import NAMES, Graph
from kgdistil.graphs.datasets import dataset_of
from kgdistil.graphs.importers import Imported, import_teacher
from kgdistil.graphs.lists import KEPT, Lists, read_lists
from kgdistil.graphs.queries import queries_of
from kgdistil.models import ComplEx, KGEModel, RotatE
from kgdistil.students.labelled import Labelled
from kgdistil.students.precisions import compare_precisions
from kgdistil.students.predict import has_probabilities
from kgdistil.training.loop import Run, resolve, run

log = logging.getLogger("kgdistil")
METRICS = ("mrr", "hits@1", "hits@3", "hits@10")
SEARCHED = "ComplEx", "ReciprocalComplEx"  # kinds of model that a search may take
PATHS = "paths"  # the run of a student that paths taught
TRIED, WORTH = 2000, 0.005  # validation triples that say whether paths help, and MRR that they have to add
PATH_EPOCHS = 12  # of a student that they teach, at least
LEAST = 6  # validation triples for a claim: of five, even a sign test (2 · ½⁵) leaves more than 5 % to chance


@dataclass
class Distilled:
    """What `distil` leaves: the student to keep, all runs by name, and what the comparison says.

    `gain`: the validation MRR that the teacher added; `low`, `high`: its 95 % interval by the paired bootstrap over
    validation triples, `p` for none at all. `verdict` says it in words.
    """

    student: Labelled
    runs: dict[str, Run]
    chosen: str
    verdict: str
    gain: float
    low: float
    high: float
    p: float
    trials: list[dict[str, Any]] = field(default_factory=list)  # of a search, a row each: `search.Search.rows`

    @property
    def comparison(self) -> pd.DataFrame:
        """One row for each run: dim, bytes per entity, MRR, Hits@1, Hits@3 and Hits@10 on the test split.

        Where the student has as many dimensions as its teacher, the teacher's numbers are ranked at the student's
        precision, too: "rounded".
        """
        rows = {}
        for row in self.student.about["metrics"]:
            done = self.runs[row["model"] if row["model"] in self.runs else "teacher"]
            rows[row["model"]] = recipes.row(done, row["bytes per entity"], row)
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def precisions(self) -> pd.DataFrame:
        """The chosen student's metrics on the test split at each precision."""
        return pd.DataFrame(self.student.about["precisions"])


@kernels.with_free_threads()
def distil(
    graph: Graph,
    *,
    dim: int = 8,
    precision: str = "int8",
    model: str | None = None,
    teacher: str | Path | KGEModel | Imported | None = None,
    teacher_lists: str | Path | None = None,
    teacher_dim: int = 64,
    stages: int = 2,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    rank: int = 0,
    whole: bool = False,
    softmax_epochs: int = 10,
    paths: bool = True,
    trust_pickle: bool = False,
    teacher_options: Mapping[str, Any] | None = None,
    time: str | float | None = None,
    shapes: Sequence[Shape] = (),
    models: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Distilled:
    """A small student of a graph, with a teacher and without one; the one with the best validation MRR is kept.

    A student of fewer dimensions is distilled as in the paper (`recipes.distillation`), goes on with sampled softmax
    (`recipes.on_lists`), and its numbers are rounded to the precision afterwards. One of the teacher's
    dimension and of 4bit, 2bit or 1bit trains through the rounding (`recipes.few_bits`). A run that was stopped goes
    on where it stood when this is called again with the same values. All runs lie where `kgdistil.run` leaves them.

    Args:
        model: the kind of student; that of the teacher where left out, else RotatE, and for few bits that of the rule,
            or ComplEx.
        teacher: a model of this graph, what `importers.import_teacher` reads, or gave; trained here with `teacher_dim`
            where None. One that was trained elsewhere may have seen triples that are held out here.
        rank: floats of an entity of low rank, for few bits; 0: as many as the teacher's.
        whole: leave the entities of most triples whole, for a fifteenth more of the codes' bytes (`compress.whole`).
        softmax_epochs: of sampled softmax after those of the paper; 0: the paper alone. Few bits have no others.
        paths: let a path model teach a student of few bits once more, where the graph is one's own, of 10,000 training
            triples at least and fewer entities than `scale.LARGE`, and that model helps (`by_paths`).
        trust_pickle: as `importers.import_teacher`.
        teacher_lists: in place of a teacher, a Parquet file of what any model says: `graphs.lists`. For few bits.
        teacher_options: how a teacher's file is to be read: other arguments of `importers.import_teacher`. Its model is
            `model` where neither they nor the file say it.
        stages, epochs, seed, device: as `recipes.distillation`, or `recipes.few_bits`, which has one stage; their
            epochs where None.
        precision: of the student's file.
        time: seconds, or a text as "30min", for a search for the settings of teacher and students, few bits only
            (`search`); None: none. What was spent counts, so that the same call goes on, and more time adds to it.
        shapes: dimension, precision and rank of other students that the search may choose.
        models: kinds beside `model` that it may choose; None: ComplEx or ReciprocalComplEx where `model` is left out.
        progress: True or False for a bar of all runs and one of each; None: in a terminal, else lines of the log.
    Raises:
        KgdistilError: one line that says what to do.
    """
    check_precision(precision)
    seconds = search_seconds(time, precision, teacher, teacher_lists)
    teacher_dim = teacher_dim if seconds is None else dim
    notes = list(graph.notes)
    teacher = _brought(teacher, graph, notes, {"model": model, "trust_pickle": trust_pickle}, teacher_options or {})
    given = None if teacher is None else load_model(resolve(str(teacher)), graph)
    lists = None
    if teacher_lists is not None:
        if teacher is not None or precision not in GROUPS:
            few = ", ".join(GROUPS)
            raise ConfigError(f"teacher_lists takes the place of a teacher, and a precision of {few}: {precision!r}")
        lists, teacher_dim = read_lists(teacher_lists, graph), dim
        log.info("%s: %s lists", teacher_lists, f"{len(lists.keys):,}")
        notes.append(f"taught by {len(lists.keys):,} lists of {Path(teacher_lists).name}, sha256 {lists.sha256}")
    coded = precision in GROUPS and dim == (teacher_dim if given is None else given.dim)
    check_shape(coded, rank, whole, given)
    free, passes = model is None, scale.epochs(graph, epochs, coded)
    if model is None:
        kind = ((rule.kind(graph) if lists is None else None) or "ComplEx") if coded else "RotatE"
        model = kind if given is None else recipes.family(given)
    shared: dict[str, Any] = {
        "dataset": dataset_of(graph),
        "model": model,
        "dim": dim,
        "seed": seed,
        "device": device,
        "teacher": "" if teacher is None else str(teacher),
        **({} if passes is None else {"epochs": passes}),
    }
    if coded:
        taught = "" if lists is None else str(lists.save(records.runs_folder(records.is_own(graph.name)) / "teachers"))
        made = few_bits_arguments(graph, model, (dim, precision, rank), epochs, taught)
        made |= {"whole": whole_count_of(graph, model, (dim, precision, rank))} if whole else {}
        recipe = recipes.few_bits(**shared | made)
        shared |= {name: made[name] for name in ("batch_size", "fitted")}  # of any shape that a search tries
    else:
        own = None if graph.name in recipes.SMALL_GRAPHS else batch_size(graph)
        more = scale.settings(graph, model, teacher_dim, "cross-entropy")
        recipe = recipes.distillation(**shared, teacher_dim=teacher_dim, stages=stages, batch_size=own, more=more)
    searched = None
    if seconds is not None:
        from kgdistil.distillation.search import search

        others = [kind for kind in SEARCHED if free and kind != model] if models is None else models
        shared |= {"whole": True} if whole else {}
        searched = search(graph, shared, [(dim, precision, rank), *shapes], seconds, progress, others)
        recipe = searched.recipe
    last, further = list(recipe.configs)[-1], {}
    if softmax_epochs and not coded:
        more = scale.settings(graph, model, teacher_dim, "softmax")
        further = recipes.on_lists(recipe, softmax_epochs, min(scale.BATCH, batch_size(graph)), more)
    if line := scale.check_memory(recipe.configs | further, graph):
        log.info("memory: %s", line)
    foretold = coded and recipe.teacher is not None
    runs = trained(recipe, further, graph, lists or given, progress, foretold)
    if paths and coded and lists is None and graph.name not in NAMES and not scale.large(graph):
        runs |= by_paths(runs[last], runs.get("teacher"), graph, progress, PATH_EPOCHS if epochs is None else 1)
    valid = {name: done.record["valid"]["both"]["mrr"] for name, done in runs.items()}
    forms = ("no-DS", "no-DS" + LISTS), (last, last + LISTS, PATHS)
    alone, taught = (max((n for n in names if n in valid), key=valid.__getitem__) for names in forms)
    gain = valid[taught] - valid[alone]
    chosen = taught if gain > 0 else alone
    known = KnownTriples(graph.known.cpu(), graph.num_relations)
    first, second = (ranks_of(runs[name], graph, "valid", known).reciprocal() for name in (alone, taught))
    low, high, p = bootstrap(first, second)
    which = "distilled" if chosen == taught else "undistilled"
    verdict = (
        f"{found(low, high, len(first))}: validation MRR {valid[taught]:.3f} with it, {valid[alone]:.3f} "
        f"without; the difference is {gain:+.3f}, {low:+.3f} to {high:+.3f} with 95 % confidence over "
        f"{len(first)} triples; the {which} one is kept"
    )
    if taught == PATHS:
        verdict += (
            f"; paths taught it in {runs[PATHS].config.epochs} passes that the one without a teacher did not have"
        )
    kept, large = runs[chosen], scale.large(graph)
    precision = PRECISION_OF[kept.config.group] if coded else precision  # a search may have chosen another
    metrics = [
        {"model": name, "dim": done.config.dim}
        | {"bytes per entity": recipes.bytes_per_entity(done.config, graph.num_entities)}
        | {metric: done.test(metric) for metric in METRICS}
        for name, done in runs.items()
    ]
    metrics[1:1] = _rounded(runs, kept, precision, graph, known)
    weights = kept.load(graph)
    if chosen.endswith(LISTS) and weights.distance and has_probabilities(weights):
        weights = calibrated(weights, graph)  # a softmax says nothing about where the score has its zero
    ranks = {name: ranks_at(kept, weights, name, graph, known) for name in ("float32", precision)} if large else {}
    table = compare_precisions(weights, graph, ranks=ranks, known=known)
    about: dict[str, Any] = {
        "trained": "alone" if chosen == alone else f"distilled ({chosen})",
        "chosen": chosen,
        "verdict": verdict,
        "gain": {"gain": gain, "low": low, "high": high, "p": p},
        "metrics": metrics,
        "precisions": table.to_dict("records"),
        "notes": notes,
    }
    about |= {"search": searched.told} if searched else {}
    expected = predicted(runs["teacher"], runs["stage 1"].record["curve"]) if foretold else None
    about |= {"predicted": expected} if expected else {}
    student = Labelled(quantised(weights, precision), graph, precision, kept.id, about)
    student.calibrate()
    return Distilled(student, runs, chosen, verdict, gain, low, high, p, searched.trials if searched else [])


def by_paths(distilled: Run, teacher: Run | None, graph: Graph, progress: bool | None, least: int) -> dict[str, Run]:
    """The student once more, on the lists of a path model and of the distilled one, or its teacher: "paths".

    Of these two the one that validation says is the better. Nothing where there are too many paths
    (`paths.affordable`), or where both models together rank a sample of the validation triples hardly better than that
    one alone, which is kept beside the lists' place. What paths say is learned in one go: a call that is stopped
    meanwhile begins there again. This run comes on top of the updates that the student alone has as well.

    Args:
        least: epochs.
    """
    if (settings := path_model.affordable(graph)) is None:
        return {}
    own = records.is_own(distilled.config.dataset)
    beside = max((distilled, teacher or distilled), key=lambda run: run.record["valid"]["both"]["mrr"])
    kept, total = records.runs_folder(own) / "teachers", path_model.sum_of(beside.folder.name, settings)
    place = kept / f"{total[:12]}-{graph.sha256[:12]}{KEPT}"
    before = distilled.config
    change: dict[str, Any] = {"teacher": str(place), "unlabelled": 1.0, "alpha": 0.8, "alpha_last": None, "top": 0}
    change |= {"negatives": scale.NEGATIVES, "batch_size": max(32, before.batch_size // 2)}
    change |= {"epochs": (epochs := max(before.epochs, least)), "check_every": max(1, epochs // 5)}
    config = before.model_copy(update=change)
    done = records.read_record(records.record_path(config.run_id, own)) is not None
    if not done and not place.is_file():
        if (no := place.with_suffix(".json")).is_file():
            log.info("%s says that paths are of no use here", no)
            return {}
        log.info("paths of up to %d triples: learning what they say", settings.length)
        both = path_model.Joined(path_model.fit(graph, settings, progress=progress), beside.load(graph))
        known, some = KnownTriples(graph.known.cpu(), graph.num_relations), sampled(graph.valid.cpu(), TRIED)
        mrr = [float(x.reciprocal().mean()) for x in (both.ranks(some, known), rank(both.model, some, known))]
        log.info("with paths %d validation triples have an MRR of %.3f, without %.3f", len(some), *mrr)
        made = path_model.lists(graph, both, progress) if mrr[0] >= mrr[1] + WORTH else None
        if made is None or not len(made.beside(*queries_of(graph.train)[:3])):
            write_json(no, {"with paths": mrr[0], "without": mrr[1], "triples": len(some)})
            return {}
        replace(made, sha256=total).save(kept, place.name)
    return {PATHS: run(config, graph, progress=progress)}


def _brought(
    teacher: str | Path | KGEModel | Imported | None,
    graph: Graph,
    notes: list[str],
    how: dict[str, Any],
    options: Mapping[str, Any],
) -> str | Path | None:
    """A folder or a run of this package, where what was given is kept; what is to be known of it joins the notes.

    Raises:
        ConfigError: options of a file, and there is none.
    """
    if isinstance(teacher, str | Path) and os.path.exists(teacher):  # Path.exists raises for long names
        teacher = import_teacher(teacher, graph, **how, **options)
    elif options:
        raise ConfigError(f"{', '.join(options)}: this says how a teacher's file is read; name it as teacher")
    if isinstance(teacher, Imported):
        for note in teacher.notes:
            log.warning("%s: %s", teacher.source, note)
        notes += teacher.notes
        return _keep(teacher.model, graph)
    return _keep(teacher, graph) if isinstance(teacher, KGEModel) else teacher


def few_bits_arguments(
    graph: Graph, model: str, shape: Shape, epochs: int | None = None, lists: str = ""
) -> dict[str, Any]:
    """Arguments of `recipes.few_bits` for a shape, as the rule and the size of the graph have them.

    Args:
        epochs: of the teacher, where somebody asked for so many.
        lists: as `recipes.few_bits`.
    """
    (dim, precision, rank), passes = shape, scale.epochs(graph, epochs, True)
    given: dict[str, Any] = {"dataset": dataset_of(graph), "model": model, "dim": dim, "rank": rank, "lists": lists}
    given |= {"group": GROUPS[precision], "batch_size": min(scale.BATCH, batch_size(graph))}
    given |= {} if passes is None else {"epochs": passes}
    given["fitted"] = {} if lists else rule.defaults(graph, model, dim, passes, rank)
    given["drawn"] = scale.drawn(graph) if epochs is None else 0  # who asks for passes gets as many
    given["listed"] = 0 if lists else scale.listed(graph)
    return {**given, "more": scale.settings(graph, model, dim, "softmax")}


def whole_count_of(graph: Graph, model: str, shape: Shape) -> int:
    """`whole_of`; ConfigError where it is none."""
    if count := whole_of(graph, model, shape):
        return count
    raise ConfigError(f"whole is True, but that shape has no room for one: codes take at least {PART} bytes an entity")


def check_shape(coded: bool, rank: int, whole: bool, given: KGEModel | None) -> None:
    """ConfigError where a rank, or whole entities, are of no student of few bits, or the rank is not a teacher's."""
    for name, value in (("rank", rank), ("whole", whole)):
        if value and not coded:
            few = ", ".join(GROUPS)
            raise ConfigError(f"{name} is {value}: it takes a precision of {few} and the teacher's dimension")
    if coded and given is not None and given.rank not in (0, rank):
        raise ConfigError(f"rank is {rank}, and the teacher of low rank {given.rank}: give that, or another dimension")


def trained(
    recipe: Recipe,
    further: dict[str, RunConfig],
    graph: Graph,
    teacher: KGEModel | Lists | None,
    progress: bool | None,
    foretold: bool,
) -> dict[str, Run]:
    """All runs by name.

    Args:
        further: runs after those of the recipe; teacher: of the students, where it is not one of the runs.
        foretold: the student is trained before the one alone, and it is told what it is expected to keep.
    """

    def tell(run_id: str, curve: Sequence[Mapping[str, float]]) -> None:
        of_student = foretold and run_id == recipe.stage1.run_id
        if of_student and (found := predicted(recipe.step("teacher", graph, False), curve)):
            told = "the student has %.0f%% of its teacher's MRR so far; it is expected to keep %.0f%%"
            log.info(told, *(100 * x for x in found.values()))

    order = sorted(recipe.configs, key=lambda name: foretold and name == "no-DS")
    with together({name: recipe.configs[name] for name in order} | further, graph, teacher, progress, tell) as shown:
        for name in ("teacher", "stage1") if foretold else ():
            recipe.step(name, graph, shown)
        runs = recipe.run(graph, shown)
        return runs | {name: run(config, graph, progress=shown) for name, config in further.items()}


def predicted(teacher: Run, curve: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """What the first validation of a student of few bits says about it; None without a rule.

    Args:
        curve: of the student's run, as its record holds it.
    Returns:
        first: the share of its teacher's validation MRR that it had then; share: what it is expected to keep.
    """
    if (known := rule.rule()) is None:
        return None
    first = rule.first_share(*([check["valid_mrr"] for check in x] for x in (curve, teacher.record["curve"])))
    return {"first": round(first, 4), "share": round(rule.share(first, known), 4)}


def found(low: float, high: float, triples: int) -> str:
    """What a 95 % interval of the teacher's gain over so many triples allows to say."""
    if triples < LEAST or low <= 0 <= high:
        return "no significant difference between the students with and without a teacher"
    return "the teacher helped" if low > 0 else "a student trained without a teacher does better here"


def batch_size(graph: Graph) -> int:
    """Enough steps an epoch on a small graph: a batch of 32 to 1,024, about 1/32 of the training triples."""
    return min(1024, max(32, 1 << round(math.log2(max(1, len(graph.train) / 32)))))


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
    options = [getattr(teacher, name) for name in ("norm", "offset", "epsilon", "rank")]
    digest = hashlib.sha256(f"{graph.sha256} {options}".encode())
    for name, table in teacher.state_dict().items():  # another teacher is another folder, and so another run
        digest.update(name.encode() + table.cpu().numpy().tobytes())
    folder = (
        records.runs_folder(records.is_own(graph.name))
        / "teachers"
        / f"{type(teacher).__name__.lower()}-{digest.hexdigest()[:12]}"
    )
    save_model(folder, teacher, graph)
    return folder


def rounded(runs: Mapping[str, Run], kept: Run, precision: str, graph: Graph) -> KGEModel | None:
    """The teacher's own numbers at the student's precision, and of its low rank: what bytes buy without training.

    None where the student has other dimensions, or no model as teacher.
    """
    if "teacher" not in runs or runs["teacher"].config.dim != kept.config.dim or precision == "float32":
        return None
    teacher, rank = runs["teacher"].load(graph), kept.config.rank
    if recipes.family(teacher) != kept.config.model or (teacher.rank not in (0, rank)):
        return None
    if rank and not teacher.rank and isinstance(teacher, ComplEx):
        teacher = low_rank(teacher, rank, kept.config.seed)
    return quantised(keeping(teacher, graph, kept.config), precision)


def keeping(model: KGEModel, graph: Graph, student: RunConfig) -> KGEModel:
    """The model itself, of which as many entities will stay whole as of the student."""
    keep_frequent(model, graph.train, student.whole)
    return model


def _rounded(
    runs: Mapping[str, Run], kept: Run, precision: str, graph: Graph, known: KnownTriples
) -> list[dict[str, Any]]:
    """A row of its metrics on the test split, where there is one."""
    if (model := rounded(runs, kept, precision, graph)) is None:
        return []
    both = rounded_ranks(runs, kept, precision, graph, known, model).metrics()["both"]
    width = model.entities.shape[1]
    size = int(entity_bytes(width, precision)) + -(-whole_bytes(kept.config.whole, width) // graph.num_entities)
    row = {"model": "rounded", "dim": model.dim, "bytes per entity": size}
    return [row | {metric: both[metric] for metric in METRICS}]


def ranks_at(kept: Run, weights: KGEModel, precision: str, graph: Graph, known: KnownTriples) -> Ranks:
    """The test ranks of a run's weights at a precision."""
    plain = precision == "float32"
    load = (lambda: weights) if plain else functools.partial(quantised, weights, precision)
    return ranks_of(kept, graph, "test", known, name="" if plain else f"{kept.id}-{precision}", load=load)


def rounded_ranks(
    runs: Mapping[str, Run], kept: Run, precision: str, graph: Graph, known: KnownTriples, model: KGEModel
) -> Ranks:
    """The test ranks of what `rounded` returns."""
    teacher = runs["teacher"]
    # one from elsewhere may share its id with another, but not its folder
    base = teacher.id if teacher.config.final_sample else f"{kept.id}-{teacher.folder.name}"
    shape = kept.config
    more = f"-{shape.whole}" * (shape.whole > 0) + f"-s{shape.seed}" * (shape.rank > 0 and shape.seed > 0)
    name = f"{base}-rounded-{precision}-{shape.rank}{more}"
    return ranks_of(kept, graph, "test", known, name=name, load=lambda: model, after=teacher.folder)
