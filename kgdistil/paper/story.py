"""What the notebooks show besides pictures: small tables, and the answer in a sentence made of the numbers.

`recipes` says what the notebooks train, and holds what `03_distill` shows. Sentences come out whichever way the
numbers went.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from kgdistil import records
from kgdistil.config import RunConfig, make_config
from kgdistil.distillation.recipes import Recipe, bytes_of, bytes_per_entity
from kgdistil.distillation.statistics import SAME, spread
from kgdistil.errors import ConfigError, DataError, short
from kgdistil.evaluation import KnownTriples, Ranks, evaluate, rank
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.models import KGEModel, build_model
from kgdistil.paper.methods import OF_BYTES
from kgdistil.paper.timing import seconds
from kgdistil.sampling import NEGATIVE_STREAM, TripleSet, corrupt, stream
from kgdistil.training.loop import Run

BINS = {"1": 1, "2–3": 3, "4–10": 10, "11–100": 100, "> 100": np.inf}  # of ranks, by their upper end


# ---- 01: a score, a negative, a rank --------------------------------------------------------------------------------
def candidates(model: KGEModel, graph: Graph, triple: tuple[int, int, int], k: int = 8) -> pd.DataFrame:
    """The k tails of (h, r, ?) that the model scores highest, and what each is in the filtered setting."""
    h, r, t = triple
    with torch.no_grad():
        scores = model.cpu().score_tails(torch.tensor([h]), torch.tensor([r]))[0]
    score, entity = scores.topk(min(k, len(scores)))
    known = TripleSet(graph.known.cpu(), graph.num_entities, graph.num_relations)
    true = known.contains(torch.tensor(h), torch.tensor(r), entity)
    what = ["the answer" if e == t else "true too: left out" if yes else "" for e, yes in zip(entity.tolist(), true)]
    names = [graph.readable(e) for e in entity.tolist()]
    index = pd.RangeIndex(1, len(names) + 1, name="place")
    return pd.DataFrame({"tail": names, "score": [f"{s:.2f}" for s in score.tolist()], "": what}, index=index)


def tail_ranks(model: KGEModel, graph: Graph, triples: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the tails of triples [n, 3] among all entities, float [n]: raw, and filtered."""
    raw = rank(model, triples, KnownTriples(triples[:0], graph.num_relations))
    filtered = rank(model, triples, KnownTriples(graph.known.cpu(), graph.num_relations))
    return raw.ranks()[:, 1], filtered.ranks()[:, 1]


def telling_triple(model: KGEModel, graph: Graph, k: int = 8, among: int = 500) -> tuple[int, int, int]:
    """The test triple whose tail is among the k best and climbs the most when known triples are left out."""
    triples = graph.test[:among].cpu()
    raw, filtered = tail_ranks(model, graph, triples)
    h, r, t = triples[int(np.where(raw <= k, raw - filtered, -1).argmax())].tolist()
    return h, r, t


def negatives(model: KGEModel, graph: Graph, triple: tuple[int, int, int], count: int = 4) -> pd.DataFrame:
    """The triple and `count` corruptions of it (Eq. 2) with their scores."""
    positive = torch.tensor([triple])
    known = TripleSet(graph.known.cpu(), graph.num_entities, graph.num_relations)
    entity, is_tail, _ = corrupt(positive, count, known, stream(0, NEGATIVE_STREAM, 0))
    rows = torch.cat([positive, corrupted(positive, entity, is_tail)])
    with torch.no_grad():
        scores = model.cpu().score_triples(rows).tolist()
    named = [(graph.readable(h), graph.relations[r], graph.readable(t)) for h, r, t in rows.tolist()]
    frame = pd.DataFrame(named, columns=["head", "relation", "tail"], index=["true", *["corrupted"] * count])
    return frame.assign(score=[f"{s:.2f}" for s in scores])


def corrupted(triples: torch.Tensor, entity: torch.Tensor, is_tail: torch.Tensor) -> torch.Tensor:
    """Triples [n·k, 3] of n triples and the k replacements that `corrupt` drew for each."""
    rows = triples.repeat_interleave(entity.shape[1], 0)
    tail = is_tail.flatten()
    rows[tail, 2], rows[~tail, 0] = entity.flatten()[tail], entity.flatten()[~tail]
    return rows


def rank_shares(ranks: Ranks) -> pd.DataFrame:
    """How many per cent of the triples rank in each of `BINS`, for heads and for tails."""
    found, edges = ranks.ranks(), [0.0, *BINS.values()]
    shares = {
        side: [100 * ((column > low) & (column <= high)).mean() for low, high in itertools.pairwise(edges)]
        for side, column in zip(("head", "tail"), found.T)
    }
    return pd.DataFrame(shares, index=list(BINS))


def untrained(config: RunConfig, graph: Graph) -> float:
    """The validation MRR of the config's model before its first epoch."""
    sizes = (graph.num_entities, graph.num_relations, config.dim)
    model = build_model(config.model, *sizes, seed=config.seed, **config.model_options)
    return evaluate(model, graph, "valid").metrics()["both"]["mrr"]


def of_teacher(done: Run, graph: Graph) -> str:
    """The answer of 01."""
    n = graph.num_entities
    blind = sum(1 / i for i in range(1, n + 1)) / n
    return (
        f"With this one seed, the true entity comes first for {done.test('hits@1'):.0%} of the test questions and "
        f"among the first ten for {done.test('hits@10'):.0%}: an MRR of {done.test():.3f}, where a blind order of the "
        f"{n:,} entities would have about {blind:.3f}."
    )


# ---- 02: soft labels and α ------------------------------------------------------------------------------------------
def soft_labels(teacher: KGEModel, graph: Graph, config: RunConfig, among: int = 2000) -> pd.DataFrame:
    """What the teacher says about training triples and their uniform corruptions, as stage 1 hears it.

    Args:
        config: of the student: its k, its seed, and its loss, which decides if a label is σ(score) or the score.
        among: how many training triples are looked at, the first ones.
    Returns:
        Columns triple ("true" or "corrupted") and label, a row for each.
    """
    positive = graph.train[:among].cpu()
    known = TripleSet(graph.train.cpu(), graph.num_entities, graph.num_relations)
    entity, is_tail, kept = corrupt(positive, config.negatives, known, stream(config.seed, NEGATIVE_STREAM, 0))
    negative = corrupted(positive, entity, is_tail)[kept.flatten()]
    with torch.no_grad():
        label = teacher.cpu().score_triples(torch.cat([positive, negative]))
    label = label.sigmoid() if config.loss == "cross-entropy" else label
    kind = ["true"] * len(positive) + ["corrupted"] * len(negative)
    return pd.DataFrame({"triple": kind, "label": label.numpy()})


def what_labels_say(frame: pd.DataFrame, loss: str) -> str:
    """What the soft labels add to the hard ones, in a sentence."""
    true, wrong = (frame.loc[frame["triple"] == kind, "label"] for kind in ("true", "corrupted"))
    if loss == "margin":
        overlap = (true < wrong.quantile(0.99)).mean()
        return (
            f"The scores of true triples have a mean of {true.mean():.2f}, those of corrupted ones of "
            f"{wrong.mean():.2f}; {overlap:.0%} of the true ones lie below the best 1% of the corrupted ones. A score "
            "has no 0 or 1 to repeat: the student is to copy the teacher's distance itself."
        )
    sure = ((true > 0.9).mean(), (wrong < 0.1).mean())
    said = (
        f"{sure[0]:.0%} of the true triples have a soft label above 0.9, and {sure[1]:.0%} of the corrupted ones have "
        "one below 0.1"
    )
    if min(sure) > 0.8:
        return f"{said}: by and large the soft labels repeat the hard ones, 1 and 0, and have little to add."
    which = "true" if sure[0] < sure[1] else "corrupted"
    return f"{said}: the soft labels say more than 1 and 0 do, most of it about the {which} triples."


def of_alphas(runs: Mapping[str, Run]) -> str:
    """The answer of 02: the α that validation chooses, against no-DS at equal updates."""
    students = {name: done for name, done in runs.items() if done.config.role == "stage1"}
    name = max(students, key=lambda n: students[n].record["valid"]["both"]["mrr"])
    scores = [done.test() for done in students.values()]
    best, alone = students[name].test(), runs["no-DS"].test()
    deaf = "" if students[name].config.alpha else ", not to listen to the teacher"
    return (
        f"With this one seed, validation chooses {name}{deaf}; its student has a test MRR of {best:.3f}, "
        f"{against(best - alone)} the {alone:.3f} of the student that learns as long without a teacher. Over all α the "
        f"test MRR lies between {min(scores):.3f} and {max(scores):.3f}."
    )


def against(difference: float) -> str:
    """ "above", "below", or "not worth telling from", for a difference of MRR."""
    return "not worth telling from" if abs(difference) < SAME else "above" if difference > 0 else "below"


# ---- 04: ablation ---------------------------------------------------------------------------------------------------
def of_ablation(runs: Mapping[str, Run]) -> str:
    """The answer of 04."""
    whole = runs["DS"].test()
    said = [f"{against(whole - runs[m].test())} {m} ({runs[m].test():.3f})" for m in ("-S1", "-S2", "no-DS")]
    return (
        f"With this one seed and the same number of updates, two stages (DS) reach a test MRR of {whole:.3f}: "
        f"{said[0]}, {said[1]} and {said[2]}."
    )


def recorded(name: str) -> pd.DataFrame:
    """`results/tables/<name>.csv`; an empty frame where nothing of it has run."""
    try:
        return pd.read_csv(records.results_folder() / "tables" / f"{name}.csv")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return pd.DataFrame()


def table6(frame: pd.DataFrame, protocol: str = "tuned", metric: str = "mrr") -> pd.DataFrame:
    """The recorded Table 6: a row for each model and method, the paper's number and ours for each dimension."""
    rows = frame[(frame["protocol"] == protocol) & (frame["metric"] == metric)]
    texts = rows.assign(
        paper=rows["paper"].map("{:.3f}".format), ours=[f"{x:.3f}" if pd.notna(x) else "not run" for x in rows["ours"]]
    )
    wide = texts.pivot(index=["model", "method"], columns="dim", values=["paper", "ours"])
    order = [(m, x) for m in rows["model"].unique() for x in rows["method"].unique()]
    columns = [(who, d) for d in sorted(rows["dim"].unique(), reverse=True) for who in ("paper", "ours")]
    return wide.loc[order, columns].swaplevel(axis=1).rename_axis(columns=["dim", None])


def of_table6(frame: pd.DataFrame, protocol: str = "tuned") -> str:
    """How often each stage helps by MRR, in the paper's Table 6 and in ours, by which of our cells ran."""
    if frame.empty:
        return "Table 6 has not been run here: `make reproduce TABLE=6`."
    rows = frame[(frame["protocol"] == protocol) & (frame["metric"] == "mrr")]
    said = []
    for who, column in (("in the paper", "paper"), ("here", "ours")):
        wide = rows.pivot(index=["model", "dim"], columns="method", values=column)
        for method in ("-S1", "-S2"):
            pairs = wide[["DS", method]].dropna()
            better = int((pairs["DS"] > pairs[method]).sum())
            said.append(
                f"{who} DS is above {method} in {better} of {len(pairs)} students"
                if len(pairs)
                else f"{who} DS and {method} have not been run"
            )
    return f"Recorded on {rows['dataset'].iloc[0]} ({int(rows['ours'].notna().sum())} of {len(rows)} cells ran): " + (
        "; ".join(said) + "."
    )


# ---- 05: timing -----------------------------------------------------------------------------------------------------
def benchmark() -> dict[str, Any]:
    """`results/bench/bench.json`.

    Raises:
        DataError: missing or damaged.
    """
    path = records.results_folder() / "bench" / "bench.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): `make bench` makes it") from None


def ratios(report: Mapping[str, Any], what: str) -> pd.DataFrame:
    """How many times faster this project is: a row for each dimension and model, a column for each peer.

    Args:
        what: "training" or "ranking".
    """
    frame = pd.DataFrame(report["ratios"])
    frame["text"] = frame[what].map(lambda x: f"{x:.{1 if x < 10 else 0}f}×")
    wide = frame.pivot(index=["dim", "model"], columns="peer", values="text")
    order = list(dict.fromkeys(zip(frame["dim"], frame["model"], strict=True)))
    return wide.loc[order, list(frame["peer"].unique())].fillna("–").rename_axis(columns=None)


def floors(report: Mapping[str, Any]) -> pd.DataFrame:
    """A training step beside the least time that moving its bytes takes, and where the step's time goes."""
    rows = [
        {
            "dim": f["dim"],
            "model": f["model"],
            "step, ms": f"{f['step_seconds'] * 1e3:.2f}",
            "floor, ms": f"{max(f['bytes_seconds'], f['ops_seconds']) * 1e3:.2f}",
            "times the floor": f"{f['times_floor']:.1f}",
            **{phase: f"{f[f'{phase}_share']:.0%}" for phase in ("sample", "bucket", "loss", "update")},
        }
        for f in report["floors"]
    ]
    return pd.DataFrame(rows).set_index(["dim", "model"])


def measure(
    dataset: str = "umls", model: str = "RotatE", dim: int = 8, teacher_dim: int = 64, repeats: int = 20, seed: int = 0
) -> pd.DataFrame:
    """Rank the test triples with a teacher and a student of random weights, now, on this machine's CPU.

    What a score costs does not depend on what was learned.

    Args:
        repeats: how often; the median counts.
    Raises:
        ConfigError: impossible parameters.
    """
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ConfigError(f"repeats is {short(repeats)}: it must be a whole number ≥ 1")
    configs = {
        "teacher": make_config(dataset=dataset, model=model, dim=teacher_dim, seed=seed),
        "student": make_config(dataset=dataset, model=model, dim=dim, seed=seed),
    }
    graph = load(dataset)
    known, rows = KnownTriples(graph.known, graph.num_relations), {}
    for name, c in configs.items():
        m = build_model(c.model, graph.num_entities, graph.num_relations, c.dim, seed=c.seed, **c.model_options)
        taken = seconds(functools.partial(rank, m, graph.test, known), repeats)
        rows[name] = {
            "dim": c.dim,
            "bytes per entity": bytes_per_entity(c, graph.num_entities),
            "milliseconds": taken * 1e3,
            "queries per second": 2 * len(graph.test) / taken,
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").astype({"dim": int, "bytes per entity": int})
    frame["times faster"] = frame.loc["teacher", "milliseconds"] / frame["milliseconds"]
    return frame


def of_timing(table: pd.DataFrame, report: Mapping[str, Any]) -> str:
    """The answer of 05, from the recorded benchmark."""
    small, large = table["dim"].min(), table["dim"].max()
    rows = table[table["dim"] == small]
    training = [r["training"] for r in report["ratios"]]
    ranking = [r["ranking"] for r in report["ratios"]]
    return (
        f"On {report['device']}, a student of {small} dimensions ranks {rows['speedup'].min():.1f} to "
        f"{rows['speedup'].max():.1f} times faster than a teacher of {large} ({rows['speedup_paper'].min():.1f} to "
        f"{rows['speedup_paper'].max():.1f} in the paper); against the peers, kgdistil is "
        f"{min(training):.1f} to {max(training):.0f} times as fast in training and {min(ranking):.1f} to "
        f"{max(ranking):.0f} times in filtered ranking."
    )


# ---- 06: the teacher's dimension ------------------------------------------------------------------------------------
def by_teacher(plan: list[Recipe], graph: Graph) -> pd.DataFrame:
    """Run the recipes of `recipes.by_teacher`: a frame as `tables.figure2` makes it, and `alone`, the no-DS MRR."""
    rows = []
    for recipe in plan:
        runs = recipe.run(graph)
        done = list(runs.values())[-1]
        rows.append(
            {
                "teacher_dim": runs["teacher"].config.dim,
                "dim": done.config.dim,
                "mrr": done.test(),
                "teacher_mrr": runs["teacher"].test(),
                "alone": runs["no-DS"].test(),
                "bytes per entity": bytes_of(done),
            }
        )
    return pd.DataFrame(rows)


def figure2_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each student, a column for each teacher; test MRR."""
    teachers = frame.drop_duplicates("teacher_dim").set_index("teacher_dim")["teacher_mrr"]
    wide = frame.pivot(index="dim", columns="teacher_dim", values="mrr").sort_index(ascending=False)
    wide.columns = [f"from {d} dimensions" for d in wide.columns]
    wide.index = [f"student, d = {d}" for d in wide.index]
    wide.loc["the teacher itself"] = [teachers[d] for d in sorted(teachers.index)]
    if "alone" in frame:
        wide.insert(
            0,
            "without a teacher",
            [*frame.drop_duplicates("dim").set_index("dim")["alone"].sort_index(ascending=False), np.nan],
        )
    return wide.map(lambda x: "" if pd.isna(x) else f"{x:.3f}")


def of_figure2(frame: pd.DataFrame) -> str:
    """The answer of 06: for each student, the teacher that serves it best, and what the choice is worth."""
    if frame.empty:
        return "Figure 2 has not been run here: `make reproduce FIGURE=2`."
    said = []
    for dim, rows in frame.groupby("dim", sort=False):
        best, spread = rows.loc[rows["mrr"].idxmax()], rows["mrr"].max() - rows["mrr"].min()
        text = f"the student of {dim} dimensions does best with the teacher of {int(best['teacher_dim'])} "
        text += f"(test MRR {best['mrr']:.3f}, {spread:.3f} above its worst"
        if spread < SAME:
            text = f"for the student of {dim} dimensions the teacher's size makes no difference worth naming "
            text += f"(test MRR {best['mrr']:.3f}"
        said.append(text + (f"; {best['alone']:.3f} without a teacher)" if "alone" in rows else ")"))
    return f"With one seed, {', and '.join(said)}."


# ---- 08: what a byte buys -------------------------------------------------------------------------------------------
def recorded_frontier(dataset: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The recorded points of a graph, and what the distilled student gains on each of them; empty where none ran."""
    frames = recorded("frontier"), recorded("frontier_gain")
    return tuple(f[f["dataset"] == dataset] if len(f) else f for f in frames)


def frontier_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each method, a column for each number of bytes; test MRR, of several seeds their mean and half of its
    95 % interval."""
    cells = [f"{r.mrr:.3f}{spread(r.deviation, r.seeds)}" for r in frame.itertuples()]
    wide = frame.assign(cell=cells).pivot(index="method", columns="bytes", values="cell")
    wide = wide.loc[list(frame["method"].unique()), sorted(wide.columns, reverse=True)]
    wide.columns = [f"{size:,} bytes" for size in wide.columns]
    return wide.fillna("").rename_axis(None)


def of_frontier(frame: pd.DataFrame, gains: pd.DataFrame, where: str) -> str:
    """The answer of 08 in words: the best of each size, what the teacher's lists add, and what rounding does alone."""
    if frame.empty:
        return f"On {where} the frontier has not been run: `make frontier`."
    teachers = frame[frame["method"] == "teacher"].sort_values("bytes")
    students = frame[frame["method"] != "teacher"]
    best = students.loc[students.groupby("bytes")["mrr"].idxmax()].sort_values("bytes", ascending=False)
    sizes = ", ".join(f"{r.bytes} bytes {r.mrr:.3f} ({OF_BYTES[r.method].label})" for r in best.itertuples())
    least, most = teachers.iloc[0], teachers.iloc[-1]
    told = [
        f"On {where} the teacher has a test MRR of {most.mrr:.3f} with {most.bytes:,} bytes an entity"
        + (
            f", the smallest of {len(teachers)} one of {least.mrr:.3f} with {least.bytes:,}." * (len(teachers) > 1)
            or "."
        )
        + f" The best of each size: {sizes}."
    ]
    for rival, words in (
        ("rounded", "the rounded teacher"),
        ("coded-alone", "one of few bits without a teacher"),
        ("reciprocal-alone", "one of few bits and reciprocal relations without a teacher"),
        ("low-rank-alone", "one of low rank without a teacher"),
        ("own-lists", "the one with the lists of the teacher that it starts from"),
    ):
        rows = gains[gains["method"] == rival].dropna(subset=["p"])
        if len(rows):
            better = ((rows["gain"] > 0) & (rows["p"] < 0.05)).sum()
            worse = ((rows["gain"] < 0) & (rows["p"] < 0.05)).sum()
            told.append(
                f"The distilled few-bit student is significantly (p < .05) better than {words} at {better} of "
                f"{len(rows)} sizes, worse at {worse}."
            )
    few = students.pivot(index="bytes", columns="method", values="mrr")
    if {"small", "small-distilled"} <= set(few):
        gain = (few["small-distilled"] - few["small"]).dropna()
        told.append(
            f"With few floats in place of few bits, the teacher's lists change the MRR by {gain.min():+.3f} to "
            f"{gain.max():+.3f}.".replace("-0.", "−0.")
        )
    return " ".join(told)


def of_speed(frame: pd.DataFrame, where: str) -> str:
    """What ranking costs the smallest student of few bits, the best of them, beside the floats of 64 dimensions."""
    few = frame[frame["form"].str.startswith("few bits") & (frame["what"] == "filtered rank")]
    few = few.sort_values(["bytes", "mrr"], ascending=[True, False])
    if few.empty:
        return "No student of few bits was measured."
    row = few.iloc[0]
    return (
        f"On {where} the student of {row.bytes} bytes an entity ranks a query in {row.microseconds:.1f} µs, "
        f"{row.complex:.1f} times as fast as ComplEx and {row.rotate:.1f} times as fast as RotatE of 64 dimensions in "
        "float32, each on its fastest path."
    )


def of_objectives(frame: pd.DataFrame, where: str) -> str:
    """Which objectives did better and worse than the first of their student, and which is best."""
    told = []
    for student, rows in frame.groupby("student", sort=False):
        first, best = rows.iloc[0], rows.loc[rows["mrr"].idxmax()]
        sure = rows[rows["p"] < 0.05]
        named = {sign: ", ".join(r.objective for r in sure[sure["gain"] * sign > 0].itertuples()) for sign in (1, -1)}
        told.append(
            f"A student of {student} reaches {first.mrr:.3f} with *{first.objective}*; significantly (p < .05) better: "
            f"{named[1] or 'none'}; worse: {named[-1] or 'none'}. The best is *{best.objective}* with {best.mrr:.3f}."
        )
    return f"On {where}, one seed and a short training for each objective. " + " ".join(told)
