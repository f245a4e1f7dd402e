"""A student at work: tables and pictures of what lies in results/bench: answer, calibration, adding, serve, labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kgdistil import records
from kgdistil.errors import ConfigError, short
from kgdistil.graph import Graph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREEN, GREY, BLUE, ORANGE = "#009E73", "#999999", "#0072B2", "#D55E00"
PEERS = {"FAISS fast scan": "FAISS fast scan", "usearch, exact, int8": "usearch, int8", "numpy": "numpy"}


def measured(name: str) -> dict[str, Any] | None:
    """A file of results/bench, None where it was never measured."""
    path = records.results_folder() / "bench" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def check_newcomer(graph: Graph, head: str, newcomer: str) -> None:
    """Refuse a head that the graph has not, and a newcomer that it has.

    Raises:
        ConfigError: with the name.
    """
    if head not in graph.entities:
        raise ConfigError(f"head is {short(head)}, no entity of {graph.name}: give one, as {graph.entities[0]}")
    if newcomer in graph.entities:
        raise ConfigError(f"newcomer is {short(newcomer)}, which {graph.name} has already: give a new name")


# ---- what an answer costs -------------------------------------------------------------------------------------------
COSTS = ["student", "entities", "first answer", "from the shell", "one query, median", "99th percentile", "in a batch"]
MEMORY = ["student", "files", "memory of its own", "resident in all"]


def milliseconds(value: float) -> str:
    """Three figures, in the unit that suits."""
    if value >= 1:
        return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
    return f"{1000 * value:.3g} µs"


def costs(report: dict[str, Any]) -> list[list[str]]:
    """Rows of `COSTS`."""
    rows = []
    for row in report["rows"]:
        ours = row["ours"]
        times = ours["first_answer_ms"], row["shell_ms"]["median"], *ours["single_ms"].values(), ours["batch_ms"]
        shown = [milliseconds(x) for x in (*times[:4], times[-1])]
        rows.append([row["student"], f"{row['entities']:,}", *shown])
    return rows


def memory(report: dict[str, Any]) -> list[list[str]]:
    """Rows of `MEMORY`."""
    names = ("file_bytes", "anonymous_bytes", "resident_bytes")
    return [[row["student"], *(f"{row['ours'][name] / 1e6:,.0f} MB" for name in names)] for row in report["rows"]]


def contenders(report: dict[str, Any]) -> Iterator[tuple[str, str, float, float, float]]:
    """Student, contender, ms of one query, ms of one in a batch, share of our answers."""
    for row in report["rows"]:
        ours = row["ours"]
        yield row["student"], "kgdistil", ours["scan_ms"]["p50"], ours["scan_batch_ms"], 1.0
        for name, found in row["peers"].items():
            if "not_run" not in found:
                yield row["student"], name, found["single_ms"]["p50"], found["batch_ms"], found["recall"]


def answer_cost(report: dict[str, Any]) -> Figure:
    """Milliseconds of the ten best answers of one query, and of one in a batch, beside the peers."""
    from kgdistil.paper.plots import finished, subplots

    students = [row["student"] for row in report["rows"]]
    figure, axes = subplots(1, 2, figsize=(11, 1.1 + 1.15 * len(students)), sharey=True)
    found = list(contenders(report))
    marks = {"kgdistil": (GREEN, "o"), "FAISS fast scan": (BLUE, "D"), "FAISS IVF fast scan": (BLUE, "v")}
    marks |= {"usearch, exact, int8": (ORANGE, "s"), "numpy": (GREY, "X")}
    for axis, place, title in zip(axes, (2, 3), ("one query", "one of a batch")):
        for name, (colour, mark) in marks.items():
            rows = [row for row in found if row[1] == name]
            axis.plot(
                [row[place] for row in rows],
                [students.index(row[0]) for row in rows],
                ls="",
                marker=mark,
                ms=11 if name == "kgdistil" else 9,
                color=colour,
                label=name,
            )
        axis.set_xscale("log")
        axis.set(xlabel=f"ms, {title}", ylim=(len(students) - 0.4, -0.6))
        axis.grid(axis="x", color="#dddddd", lw=0.8)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(students)), [f"{r['student']}\n{r['entities']:,} entities" for r in report["rows"]])
    handles, names = axes[1].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=len(names))
    return finished(figure)


def cost_in_words(report: dict[str, Any]) -> str:
    """The picture in a sentence for each student."""
    said = []
    for student in dict.fromkeys(row[0] for row in contenders(report)):
        each = [
            f"{n} {milliseconds(one)} and {milliseconds(b)}" for s, n, one, b, _ in contenders(report) if s == student
        ]
        said.append(f"{student}, one query and one of a batch: {', '.join(each)}")
    return "; ".join(said) + "."


# ---- probabilities, sets, labels ------------------------------------------------------------------------------------
CALIBRATED = [
    "student",
    "answers that are right",
    "error of σ(score)",
    "calibrated",
    "of the first answer",
    "weighted by triples",
]
SETS = ["student", "asked", "covered", "entities in a set, mean", "median"]
LOOKED_UP = ["structure", "on disk", "made in", "opened in", "exact", "prefix", "near miss"]


def calibrated(report: dict[str, Any]) -> list[list[str]]:
    """Rows of `CALIBRATED`: expected calibration errors on test, both sides."""
    rows = []
    for student in report["students"]:
        told = student["test"]["both"]
        after = told["after"]
        errors = told["before"]["error"], after["error"], after["error_of_the_best"], after["error_by_triples"]
        rows.append([student["student"], f"{told['true']:.1%}", *(f"{x:.3f}" for x in errors)])
    return rows


def answer_sets(report: dict[str, Any]) -> list[list[str]]:
    """Rows of `SETS`, both sides."""
    return [
        [x["student"], f"{row['asked']:.0%}", f"{row['covered']:.1%}", f"{row['mean']:,.0f}", f"{row['median']:,.0f}"]
        for x in report["students"]
        for row in x["sets"]
        if row["side"] == "both"
    ]


def looked_up(report: dict[str, Any]) -> list[list[str]]:
    """Rows of `LOOKED_UP`, of the largest number of labels that was measured."""
    rows = []
    for row in report["rows"]:
        if row.get("labels") != report["labels"] or "not_run" in row:
            continue
        times = [milliseconds(row[x]["microseconds"] / 1000) if x in row else "–" for x in ("find", "prefix", "near")]
        opened = milliseconds(1000 * row["open_seconds"])
        rows.append([row["library"], f"{row['bytes'] / 1e6:,.0f} MB", f"{row['build_seconds']:.1f} s", opened, *times])
    return rows


# ---- entities that come later ----------------------------------------------------------------------------------------
ADDED = ["graph", "test triples", "how", "MRR", "of trained in"]
HURT = ["graph", "other test triples before", "after", "an entity, mean", "95th percentile", "of processor time"]


def added(report: dict[str, Any]) -> list[list[str]]:
    """Rows of `ADDED`: each way to a row for entities that training never saw; and of those whose relations it saw."""
    rows = []
    for row in report["rows"]:
        kinds = [("", row["ranked"], row["mrr"])]
        if (fewer := row.get("ranked_of_trained_relations", row["ranked"])) < row["ranked"]:
            kinds += [(", of trained relations", fewer, row["mrr_of_trained_relations"])]
        for of, ranked, mrrs in kinds:
            whole = mrrs["trained in"]
            rows += [[row["graph"], f"{ranked:,}", how + of, f"{x:.3f}", f"{x / whole:.0%}"] for how, x in mrrs.items()]
    return rows


def hurt(report: dict[str, Any]) -> list[list[str]]:
    """Rows of `HURT`: MRR of the triples of old entities, and the time of a fit."""
    rows = []
    for row in report["rows"]:
        times = row["ms"]["mean"], row["ms"]["p95"], row["cpu_ms"]["mean"]
        others = [f"{row['mrr_of_others'][when]:.4f}" for when in ("before", "after")]
        rows.append([row["graph"], *others, *map(milliseconds, times)])
    return rows


# ---- over HTTP ------------------------------------------------------------------------------------------------------
SERVED = ["student", "under load for", "requests a second", "median", "99th percentile", "memory before", "after"]


def served(report: dict[str, Any]) -> list[list[str]]:
    """Rows of `SERVED`."""
    rows = []
    for row in report["rows"]:
        times = [milliseconds(row["milliseconds"][x]) for x in ("p50", "p99")]
        held = [f"{row['memory'][when]['resident'] / 1e6:.0f} MB" for when in ("before", "after")]
        about = [row["student"], f"{row['seconds']:,.0f} s", f"{row['requests_per_second']:,.0f}"]
        rows.append([*about, *times, *held])
    return rows
