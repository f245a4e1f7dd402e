"""Pictures of runs. They need the `notebooks` extra, which is imported only when a picture is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kgdistil import records
from kgdistil.distillation.recipes import LISTS, bytes_of
from kgdistil.distillation.statistics import half_width
from kgdistil.paper.methods import COLOURS, OF_BYTES, TEACHERS
from kgdistil.training.loop import Run

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from IPython.display import Image
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of one triple's score and one negative's


def distillation(runs: Mapping[str, Run]) -> Figure:
    """Validation MRR over the student's epochs (left) and test MRR with the bytes of an entity (right).

    Args:
        runs: by name: "teacher", "no-DS", "stage 1" and, for two stages, "stage 2"; and those that went on with lists.
    """

    fig, (left, right) = subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2))
    level(left, runs["teacher"])
    for name in ("no-DS", "stage 1"):
        curve(left, runs[name], color=COLOURS[name], label=name)
    if "stage 2" in runs:
        second_stage(left, runs["stage 1"])
        curve(left, runs["stage 2"], runs["stage 1"], color=COLOURS["stage 2"], label="stage 2")
    for name in (name for name in runs if name.endswith(LISTS)):
        before = runs[name.removesuffix(LISTS)]
        at = runs["no-DS"].record["epochs"]  # as many as both stages have
        ends = [x.record["valid"]["both"]["mrr"] for x in (before, runs[name])]
        left.plot(
            [at, at + runs[name].record["epochs"]],
            ends,
            color=colour(name),
            lw=2,
            ls=":",
            marker="*",
            ms=11,
            markevery=[1],
            label=name,
        )
    left.legend(frameon=False, loc="lower right")
    left.set(xlabel="epochs of the student", ylabel="validation MRR")
    left.set_title("While it learns", loc="left")

    bars(right, runs)
    student, teacher = runs["no-DS"].config, runs["teacher"].config
    fig.suptitle(
        f"{student.model} on {student.dataset}: from {teacher.dim} to {student.dim} dimensions",
        weight="bold",
        parse_math=False,
    )
    return finished(fig)


def alt_text(runs: Mapping[str, Run]) -> str:
    """`distillation` and `ablation` in words."""
    scores = {name: done.test() for name, done in runs.items()}
    return in_words("Left: validation MRR of the student over its epochs. Right: bars of test MRR", scores)


def in_words(what: str, values: Mapping[str, float]) -> str:
    """An alt text: what is drawn, and the numbers."""
    return f"{what}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()) + "."


def show(figure: Figure, name: str, alt: str) -> Image:
    """Save a notebook's picture as `runs/<name>.png`, and give it for display with its alt text."""
    from IPython.display import Image

    path = records.runs_folder() / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return Image(filename=path, width=min(900, round(82 * figure.get_figwidth())), alt=alt)  # px; letters of one size


# ---- parts of a picture ---------------------------------------------------------------------------------------------
def subplots(*shape: int, **options: Any) -> tuple[Figure, Any]:
    """`plt.subplots` in the style of all pictures."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        return plt.subplots(*shape, layout="constrained", **options)


def finished(figure: Figure) -> Figure:
    """The figure without the frame's right and top, and closed, or a notebook shows it twice."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.despine(figure)
    plt.close(figure)
    return figure


def colour(name: str) -> str:
    """Of a run, by its name; one that went on with lists has that of the run before it."""
    return COLOURS[name.removesuffix(LISTS)]


def level(axis: Axes, teacher: Run) -> None:
    """The teacher's validation MRR as a dashed line."""
    y = teacher.record["valid"]["both"]["mrr"]
    axis.axhline(y, color=COLOURS["teacher"], ls="--", lw=1.5)
    axis.annotate(
        "teacher",
        (1, y),
        (-2, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        color=COLOURS["teacher"],
    )


def curve(axis: Axes, done: Run, before: Run | None = None, **style: Any) -> None:
    """Validation MRR over epochs. A run that goes on from the best weights of `before` is drawn behind it."""
    x, y = [p["epoch"] for p in done.record["curve"]], [p["valid_mrr"] for p in done.record["curve"]]
    if before:
        start = before.record["epochs"]
        x, y = [start, *(start + e for e in x)], [before.record["valid"]["both"]["mrr"], *y]
    axis.plot(x, y, **{"lw": 2, "marker": "o", "ms": 4, **style})


def second_stage(axis: Axes, first: Run) -> None:
    """A dotted line where stage 2 begins."""
    start = first.record["epochs"]
    axis.axvline(start, color="#999999", lw=1, ls=":")
    axis.annotate(
        "stage 2 begins",
        (start, 0),
        (5, 6),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color="#555555",
        fontsize=10,
    )


def over_dimensions(axis: Axes, dims: list[int]) -> None:
    """A logarithmic x axis with a tick at each dimension and nowhere else."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(dims, [str(d) for d in dims])
    axis.minorticks_off()


def legend_beside_the_paper(fig: Figure, marks: list[Any]) -> None:
    """A legend below the picture: `marks`, and that solid is ours and dashed is the paper's."""
    from matplotlib.lines import Line2D

    marks = [
        *marks,
        Line2D([], [], color="#777777", lw=2.2, label="ours"),
        Line2D([], [], color="#777777", lw=1.3, ls="--", marker="o", mfc="white", label="the paper"),
    ]
    fig.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)


def bars(axis: Axes, runs: Mapping[str, Run]) -> None:
    """Test MRR of each run, its bar holding the bytes of an entity."""
    names = list(runs)[::-1]
    values = [runs[name].test() for name in names]
    axis.barh(names, values, color=[colour(name) for name in names], height=0.65)
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        axis.annotate(f"{value:.3f}", (value, i), (4, 0), textcoords="offset points", va="center", weight="bold")
        size = f"{bytes_of(runs[name])} bytes"
        dark = name.removesuffix(LISTS) in ("teacher", "stage 2", "DS")
        axis.annotate(
            size,
            (0, i),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color="white" if dark else "black",
        )
    axis.set(xlabel="test MRR", xlim=(0, max(values) * 1.18))
    axis.tick_params(axis="y", length=0)
    axis.set_title("What it ends with, and bytes per entity", loc="left")


# ---- pictures of the other notebooks --------------------------------------------------------------------------------
def teacher(done: Run, shares: pd.DataFrame, untrained: float) -> Figure:
    """Validation MRR over epochs (left) and where the true entity of a test triple ranks (right).

    Args:
        untrained: the validation MRR before the first epoch.
        shares: `story.rank_shares`: percentages by bin of ranks (rows) and side (columns).
    """

    fig, (left, right) = subplots(1, 2, figsize=(11, 4.2))
    curve(left, done, color=COLOURS["teacher"])
    first = done.record["curve"][0]
    left.plot(
        [0, first["epoch"]],
        [untrained, first["valid_mrr"]],
        color=COLOURS["teacher"],
        lw=1,
        ls=":",
        marker="o",
        ms=4,
        mfc="white",
    )
    left.set(xlabel="epochs", ylabel="validation MRR", ylim=(0, None))
    left.set_title("While it learns", loc="left")
    sides = {"head": "#56B4E9", "tail": "#0072B2"}
    shares.plot.bar(ax=right, rot=0, width=0.75, color=[sides[side] for side in shares.columns])
    right.legend(title="asked for", frameon=False)
    right.set(xlabel="filtered rank of the true entity", ylabel="% of the test triples")
    right.set_title("What it ends with", loc="left")
    fig.suptitle(
        f"{done.config.model} on {done.config.dataset}, {done.config.dim} dimensions", weight="bold", parse_math=False
    )
    return finished(fig)


def alphas(runs: Mapping[str, Run]) -> Figure:
    """Students by α: validation MRR over epochs (left), validation and test MRR at the end (right).

    Args:
        runs: of `recipes.single_stage`.
    """
    import seaborn as sns

    fig, (left, right) = subplots(1, 2, figsize=(11, 4.2))
    of_alpha = sorted((r for n, r in runs.items() if r.config.role == "stage1"), key=lambda r: r.config.alpha)
    level(left, runs["teacher"])
    for done, colour in zip(of_alpha, sns.color_palette("viridis", len(of_alpha)), strict=True):
        curve(left, done, color=colour, label=f"{done.config.alpha:g}")
    curve(left, runs["no-DS"], color=COLOURS["no-DS"], label="no-DS", lw=1.2, ls="--", marker="")
    left.legend(title="α", frameon=False, loc="lower right", ncols=2)
    left.set(xlabel="epochs of the student", ylabel="validation MRR")
    left.set_title("While it learns", loc="left")
    x = [done.config.alpha for done in of_alpha]
    right.plot(
        x,
        [done.record["valid"]["both"]["mrr"] for done in of_alpha],
        color=COLOURS["stage 1"],
        marker="o",
        mfc="white",
        ls="--",
        label="validation",
    )
    right.plot(x, [done.test() for done in of_alpha], color=COLOURS["stage 2"], marker="o", lw=2, label="test")
    right.axhline(runs["no-DS"].test(), color=COLOURS["no-DS"], lw=1.5, label="no-DS, test")
    right.set(xlabel="α, what the soft label counts", ylabel="MRR")
    right.legend(frameon=False)
    right.set_title("What it ends with", loc="left")
    student, large = runs["no-DS"].config, runs["teacher"].config
    fig.suptitle(
        f"{student.model} on {student.dataset}: from {large.dim} to {student.dim} dimensions",
        weight="bold",
        parse_math=False,
    )
    return finished(fig)


def soft_labels(frame: pd.DataFrame, loss: str) -> Figure:
    """Histogram of what the teacher says about true triples and about corruptions.

    Args:
        frame: `story.soft_labels`: columns triple and label.
        loss: "cross-entropy", where a label is a probability, or "margin", where it is a score.
    """
    import seaborn as sns

    fig, axis = subplots(figsize=(8, 3.8))
    sns.histplot(
        frame,
        x="label",
        hue="triple",
        bins=40,
        stat="percent",
        common_norm=False,
        ax=axis,
        palette={"true": "#0072B2", "corrupted": "#E69F00"},
    )
    sns.move_legend(axis, "upper center", title=None, frameon=False)
    axis.set(xlabel="the teacher's " + ("probability" if loss == "cross-entropy" else "score"), ylabel="% of its kind")
    return finished(fig)


def ablation(runs: Mapping[str, Run], first: Run) -> Figure:
    """Validation MRR over the student's epochs (left) and test MRR (right) by the method names of Table 6.

    Args:
        runs: "teacher", "no-DS", "-S2", "-S1" and "DS".
        first: the stage 1 that DS goes on from.
    """

    fig, (left, right) = subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2))
    level(left, runs["teacher"])
    second_stage(left, first)
    for name in ("no-DS", "-S2", "-S1"):
        curve(left, runs[name], color=COLOURS[name], label=name)
    curve(left, first, color=COLOURS["DS"], lw=1, ls="--", marker="")
    curve(left, runs["DS"], first, color=COLOURS["DS"], label="DS (its stage 1 dashed)")
    left.legend(frameon=False, loc="center right")
    left.set(xlabel="epochs of the student", ylabel="validation MRR")
    left.set_title("While it learns", loc="left")
    bars(right, runs)
    student, large = runs["no-DS"].config, runs["teacher"].config
    fig.suptitle(
        f"{student.model} on {student.dataset}: from {large.dim} to {student.dim} dimensions",
        weight="bold",
        parse_math=False,
    )
    return finished(fig)


def table5(frame: pd.DataFrame) -> Figure:
    """Time to rank (left) and how many times faster than the teacher (right), by dimension: the paper's Table 5.

    Args:
        frame: `tables.table5`.
    """
    from matplotlib.lines import Line2D

    fig, axes = subplots(1, 2, figsize=(11, 4.4))
    colours = dict(zip(frame["model"].unique(), ("#0072B2", "#E69F00", "#009E73", "#CC79A7")))
    dims = sorted(frame["dim"].unique())
    titles = {"seconds": "Seconds to rank the paper's triples", "speedup": f"Times faster than {dims[-1]} dimensions"}
    for axis, (column, title) in zip(axes, titles.items()):
        for model, colour in colours.items():
            rows = frame[frame["model"] == model]
            axis.plot(rows["dim"], rows[f"{column}_paper"], color=colour, ls="--", lw=1.3, marker="o", mfc="white")
            axis.plot(rows["dim"], rows[column], color=colour, lw=2.2, marker="o")
        over_dimensions(axis, dims)
        axis.set_xlabel("dimension")
        axis.set_title(title, loc="left")
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    marks = [Line2D([], [], color=colour, lw=2.2, marker="o", label=model) for model, colour in colours.items()]
    legend_beside_the_paper(fig, marks)
    return finished(fig)


def peers(ratios: pd.DataFrame) -> Figure:
    """How many times faster this project is than each peer, in training (left) and in ranking (right).

    Args:
        ratios: of `results/bench/bench.json`: peer, model, dim, training, ranking.
    """

    fig, axes = subplots(1, 2, figsize=(11, 4), sharey=True)
    marks = dict(zip(sorted(ratios["dim"].unique(), reverse=True), "os^D"))
    colours = dict(zip(ratios["model"].unique(), ("#0072B2", "#E69F00", "#009E73", "#CC79A7")))
    names = list(ratios["peer"].unique())
    for axis, column in zip(axes, ("training", "ranking")):
        for row in ratios.itertuples():  # a point for each model, side by side around its peer's line
            y = names.index(row.peer) + 0.15 * (list(colours).index(row.model) - (len(colours) - 1) / 2)
            axis.plot(getattr(row, column), y, marks[row.dim], color=colours[row.model], ms=7)
        axis.axvline(1, color="#777777", lw=1, ls="--")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("times faster (1: the same)")
        axis.set_title(column.capitalize(), loc="left")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    for model, colour in colours.items():
        axes[0].plot([], [], "o", color=colour, label=model)
    for dim, mark in marks.items():
        axes[0].plot([], [], mark, color="#777777", label=f"d = {dim}")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return finished(fig)


# ---- the paper's tables and figures, from the frames of tables.py ---------------------------------------------------
def beside_the_paper(frame: pd.DataFrame, protocol: str = "tuned", metric: str = "mrr") -> Figure:
    """A results table as curves over the dimension: one panel for each model, the paper dashed, ours solid.

    Args:
        frame: Table 3, 4 or 6 as `tables.results_table` makes it.
    """
    from matplotlib.lines import Line2D

    frame = frame[(frame["protocol"] == protocol) & (frame["metric"] == metric)]
    models, methods = list(frame["model"].unique()), [m for m in frame["method"].unique() if m != "teacher"]
    fig, axes = subplots(1, len(models), figsize=(3.1 * len(models), 3.9))
    for axis, model in zip(axes, models, strict=True):
        of_model = frame[frame["model"] == model]
        for method in methods:
            rows = of_model[of_model["method"] == method]
            axis.plot(rows["dim"], rows["paper"], color=COLOURS[method], ls="--", lw=1.3, marker="o", mfc="white")
            done = rows.dropna(subset=["ours"])
            axis.plot(done["dim"], done["ours"].astype(float), color=COLOURS[method], lw=2.2, marker="o")
        for row in of_model[of_model["method"] == "teacher"].itertuples():
            axis.plot(row.dim, row.paper, color=COLOURS["teacher"], marker="D", mfc="white", ls="")
            if row.run != "not run":
                axis.plot(row.dim, row.ours, color=COLOURS["teacher"], marker="D", ls="")
        dims = sorted(of_model["dim"].unique())
        over_dimensions(axis, dims)
        axis.set_ylim(bottom=0)
        axis.set_title(model, loc="left")
        axis.set_xlabel("dimension")
    axes[0].set_ylabel({"mrr": "test MRR"}.get(metric, f"test {metric.capitalize()}"))
    marks = [Line2D([], [], color=COLOURS[m], lw=2.2, marker="o", label=m) for m in methods]
    if (frame["method"] == "teacher").any():
        marks.append(Line2D([], [], color=COLOURS["teacher"], marker="D", ls="", label="teacher"))
    legend_beside_the_paper(fig, marks)
    return finished(fig)


def figure1(frame: pd.DataFrame) -> Figure:
    """MRR, size and, where given, ranking time over the dimension (the paper's Figure 1).

    Args:
        frame: `tables.figure1`: dim, mrr, parameters, seconds.
    """

    panels = {"mrr": "test MRR", "parameters": "parameters", "seconds": "seconds to rank the test triples"}
    panels = {column: label for column, label in panels.items() if column in frame and frame[column].notna().any()}
    fig, axes = subplots(1, len(panels), figsize=(3.7 * len(panels), 3.6))
    for axis, (column, label), colour in zip(axes, panels.items(), ("#0072B2", "#E69F00", "#CC79A7")):
        axis.plot(frame["dim"], frame[column], marker="o", lw=2, color=colour)
        over_dimensions(axis, list(frame["dim"]))
        axis.set_ylim(bottom=0)
        axis.set(xlabel="dimension")
        axis.set_title(label, loc="left")
    return finished(fig)


def figure2(frame: pd.DataFrame) -> Figure:
    """Students by the dimension of their teacher (the paper's Figure 2).

    Args:
        frame: `tables.figure2`: teacher_dim, dim, mrr; a column `alone` is the same student without a teacher.
    """
    import seaborn as sns

    fig, axis = subplots(figsize=(6.5, 4))
    shown = frame.assign(student=[f"d = {d}" for d in frame["dim"]], teacher=frame["teacher_dim"].astype(str))
    sns.barplot(shown, x="student", y="mrr", hue="teacher", palette="viridis", ax=axis)
    if "alone" in frame:
        for i, value in enumerate(frame.drop_duplicates("dim")["alone"]):
            line = axis.hlines(value, i - 0.45, i + 0.45, color=COLOURS["no-DS"], lw=2.5)
        line.set_label("without one")
    axis.set(xlabel="student", ylabel="test MRR")
    axis.legend(title="teacher's dimension", frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.22))
    return finished(fig)


def figure3(frame: pd.DataFrame) -> Figure:
    """Validation (thin) and test MRR (thick) over epochs, with and without the teacher (the paper's Figure 3).

    Args:
        frame: `tables.figure3`: method, part, epoch, valid_mrr, test_mrr.
    """

    fig, axis = subplots(figsize=(8, 4.2))
    names = {"no-DS": "without a teacher", "-S2": "stage 1", "DS": "stage 2"}
    for method, label in names.items():
        rows = frame[frame["method"] == method]
        axis.plot(rows["epoch"], rows["test_mrr"], color=COLOURS[method], lw=2.4, label=f"{label}, test")
        axis.plot(rows["epoch"], rows["valid_mrr"], color=COLOURS[method], lw=1, ls=":", label=f"{label}, validation")
    marks = {"stage 2 begins": frame[frame["method"] == "-S2"], "whole lists begin": frame[frame["part"] == "start"]}
    for height, (what, before) in zip((6, 22), marks.items()):
        if len(before):
            at = before["epoch"].max()
            axis.axvline(at, color="#777777", lw=1, ls="--")
            place: dict[str, Any] = {
                "xycoords": ("data", "axes fraction"),
                "textcoords": "offset points",
                "ha": "right",
            }
            axis.annotate(what, (at, 0), (-5, height), **place)
    axis.set(xlabel="epochs of the student", ylabel="MRR (the axis does not begin at 0)")
    fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return finished(fig)


def behind(frame: pd.DataFrame) -> Figure:
    """Validation MRR over epochs, alone and distilled, a panel for each student.

    Args:
        frame: `tables.behind` with a column `student`, its name.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    names = {"no-DS": "without a teacher", "-S2": "stage 1", "DS": "stage 2"}
    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        grid = sns.relplot(
            frame.assign(by=frame["method"].map(names)),
            x="epoch",
            y="valid_mrr",
            kind="line",
            hue="by",
            col="student",
            col_wrap=2,
            height=3,
            aspect=1.4,
            lw=2,
            palette={name: COLOURS[m] for m, name in names.items()},
            facet_kws={"sharex": False, "sharey": False},
        )
    grid.set_titles("")
    for title, axis in grid.axes_dict.items():
        highest = frame[frame["student"] == title]["valid_mrr"].max()
        axis.set_ylim(0.8 * highest, 1.02 * highest)
        axis.set_title(title, loc="left", fontsize=11)
    grid.set_axis_labels("epochs of the student", "validation MRR")
    grid.figure.set_layout_engine("constrained")  # which makes room for a legend outside
    sns.move_legend(grid, "outside upper center", ncols=3, title=None, frameon=False)
    plt.close(grid.figure)
    return grid.figure


def readings(frame: pd.DataFrame, names: list[str]) -> Figure:
    """MRR over the dimension of teacher and distilled students, a panel for each model: ours in several readings, and
    the paper's, with its students alone.

    Args:
        frame: model, dim, method, paper, and a column for each of `names`.
    """

    models, frame = list(dict.fromkeys(frame["model"])), frame.sort_values("dim")
    styles = dict(zip(names, (("#0072B2", "-"), ("#D55E00", "-"), ("#56B4E9", "--"), ("#E69F00", "--"))))
    fig, axes = subplots(2, 2, figsize=(7.6, 7), sharey=True)
    for axis, model in zip(axes.flat, models):
        rows = frame[frame["model"] == model]
        last, alone = rows[rows["method"] != "no-DS"], rows[rows["method"] == "no-DS"]
        for name, (shade, line) in styles.items():
            axis.plot(last["dim"], last[name], color=shade, ls=line, lw=2, label=name)
        for part, mark, label in ((last, "o", "the paper, teacher and DS"), (alone, "v", "the paper, no-DS")):
            axis.plot(
                part["dim"],
                part["paper"],
                color="#262626" if mark == "o" else "#777777",
                ls="",
                marker=mark,
                ms=8,
                mfc="white",
                mew=2,
                label=label,
            )
        over_dimensions(axis, list(last["dim"]))
        axis.set_title(model, loc="left")
        axis.set(xlabel="dimension", ylabel="MRR on FB15k-237")
        axis.label_outer()
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return finished(fig)


def frontier(frame: pd.DataFrame, others: pd.DataFrame | None = None) -> Figure:
    """Test MRR over the bytes of an entity: a line for each method, and one for the teachers; bars are 95 % intervals.

    Args:
        frame: method, mrr and bytes, as `frontier.points` makes it, and `half`, those of the intervals, or seeds and
            deviation.
        others: kind ("paper" or "published"), model, bytes (missing: left out), mrr.
    """

    fig, axis = subplots(figsize=(7.2, 6.2))
    if others is not None:
        placed = others.dropna(subset=["bytes"])
        for kind, mark, label in (("published", "x", "published elsewhere"), ("paper", "*", "the paper's DS (RotatE)")):
            rows = placed[placed["kind"] == kind]
            axis.scatter(
                rows["bytes"],
                rows["mrr"],
                marker=mark,
                s=40 if mark == "x" else 130,
                color="#888888",
                facecolor="#888888" if mark == "x" else "none",
                label=label,
                zorder=2,
            )
    styles = {"teacher": TEACHERS} | OF_BYTES
    for method, (colour, line, mark, label) in styles.items():
        rows = frame[frame["method"] == method].sort_values("bytes")
        if len(rows):
            look = {"color": colour, "ls": line, "marker": mark, "ms": 7, "lw": 2, "zorder": 3}
            axis.errorbar(rows["bytes"], rows["mrr"], half_widths(rows), capsize=3, elinewidth=1, label=label, **look)
    axis.set_xscale("log", base=2)
    ticks = sorted(frame["bytes"].unique())
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set(xlabel="bytes per entity", ylabel="test MRR")
    fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return finished(fig)


def half_widths(rows: pd.DataFrame) -> list[float]:
    """Of the intervals of `frontier`'s rows; NaN where there is none."""
    if "half" in rows:
        return list(rows["half"])
    return [half_width(r.deviation, r.seeds) for r in rows.itertuples()] if "seeds" in rows else [math.nan] * len(rows)


def speed(frame: pd.DataFrame, where: str) -> Figure:
    """Test MRR over the microseconds of a filtered rank: students of few bits by bytes, and float models.

    Args:
        frame: label, form, bytes, what, microseconds, mrr, as `tables.frontier_speed` makes it. where: the graph.
    """

    fig, axis = subplots(figsize=(7.2, 4.6))
    ranked = frame[frame["what"] == "filtered rank"].sort_values("bytes")
    kinds = (
        ("few bits of low rank", "#7E3FBF", "-", "o"),
        ("few bits", "#009E73", "-", "o"),
        ("float32", "#777777", "", "D"),
    )
    drawn = [kind for kind in kinds if (ranked["form"] == kind[0]).any()]
    for form, colour, style, mark in drawn:
        rows = ranked[ranked["form"] == form]
        axis.plot(rows["microseconds"], rows["mrr"], color=colour, ls=style, marker=mark, ms=8, lw=2, label=form)
        for row in rows.itertuples():
            name = row.label.removesuffix(", float32") if form == "float32" else f"{row.bytes} bytes"
            above = form == drawn[0][0]  # the kinds lie close together: names on either side
            axis.annotate(
                name,
                (row.microseconds, row.mrr),
                (0, 9 if above else -19),
                textcoords="offset points",
                fontsize=11,
                ha="center",
                color="#555555",
            )
    axis.set_xscale("log")
    axis.margins(x=0.12)
    axis.set_ylim(bottom=0, top=1.15 * ranked["mrr"].max())
    axis.set(xlabel=f"microseconds a query (filtered rank, {where})", ylabel="test MRR")
    axis.legend(frameon=False, loc="lower left")
    return finished(fig)


def calibration(students: Sequence[Mapping[str, Any]]) -> Figure:
    """For each graph how often answers are true that are given with a probability; and how often answer sets hold.

    Args:
        students: two of `students` in results/bench/calibration.json, as `paper.bench.calibration` writes it.
    """

    fig, axes = subplots(1, len(students) + 1, figsize=(13, 4.6))
    kinds = {"before": ("#D55E00", "s", "σ(score)"), "after": ("#0072B2", "o", "calibrated")}
    for axis, student in zip(axes, students):
        axis.plot([0, 1], [0, 1], color="#999999", lw=1, ls=":")
        told = student["test"]["both"]
        for when, (colour, mark, name) in kinds.items():
            x, y, n = zip(*((b["probability"], b["true"], b["answers"]) for b in told[when]["tenths"]))
            label = f"{name}: error {told[when]['error']:.3f}"
            axis.plot(x, y, color=colour, lw=2, zorder=2)
            axis.scatter(
                x, y, [20 + 280 * (each / sum(n)) ** 0.5 for each in n], colour, marker=mark, label=label, zorder=3
            )
        axis.set(xlabel="probability given", ylabel="share that is true", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
        axis.set_title(student["student"], loc="left")
        axis.legend(*axis.get_legend_handles_labels(), frameon=False, loc="upper left", markerscale=0.5)
    for student, (colour, line, mark, _) in zip(students, (OF_BYTES["distilled"], OF_BYTES["small-distilled"])):
        rows = [row for row in student["sets"] if row["side"] == "both"]
        style = {"color": colour, "ls": line, "marker": mark, "ms": 8, "lw": 2, "label": student["student"]}
        axes[-1].plot([row["asked"] for row in rows], [row["median"] for row in rows], **style)
        for row in rows:
            held = f"{100 * row['covered']:.1f} % held"
            place = ((row["asked"], row["median"]), (-5, 7))
            axes[-1].annotate(held, *place, textcoords="offset points", ha="right", color=colour, fontsize=10)
    axes[-1].set_yscale("log")
    axes[-1].margins(y=0.3)
    levels = [row["asked"] for row in students[0]["sets"] if row["side"] == "both"]
    axes[-1].set_xticks(levels, [f"{100 * level:.0f} %" for level in levels])
    axes[-1].set(xlabel="coverage asked for", ylabel="entities in a set, median")
    axes[-1].set_xlim(levels[0] - 0.08, levels[-1] + 0.02)
    axes[-1].legend(frameon=False, loc="lower right")
    return finished(fig)


def by_relation(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Figure:
    """Test MRR of each model by relation, with two standard errors.

    Args:
        rows: those of a file of results/large, as `paper.bench.large` writes it.
        names: of the models, by their names there.
    """
    fig, axis = subplots(figsize=(9, 1.6 + 0.42 * len(rows)))
    styles = {"teacher": TEACHERS, "rounded": OF_BYTES["rounded"]}
    styles |= {"alone": OF_BYTES["coded-alone"], "distilled": OF_BYTES["distilled"]}
    for i, row in enumerate(rows):
        for j, (model, name) in enumerate(names.items()):
            found, place = row["models"][model], -i + 0.24 - 0.16 * j
            style = {"color": styles[model].colour, "marker": styles[model].marker, "ms": 7, "ls": ""}
            axis.errorbar(found["mrr"], place, xerr=2 * found["se"], label=name if i == 0 else None, **style)
    axis.set_yticks([-i for i in range(len(rows))], [f"{row['relation']} ({row['triples']:,})" for row in rows])
    axis.set(xlabel="test MRR against all entities", xlim=(0, 1))
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return finished(fig)


def left_out(frame: pd.DataFrame, parts: Mapping[str, str], aim: float) -> Figure:
    """What the rule's settings reach of the searched ones on each graph that it was not fitted on.

    Args:
        frame: as `fitting.table` makes it.
        parts: names of its parts in the picture.
        aim: a share that is drawn as a line.
    """
    fig, axis = subplots(figsize=(7.2, 1.8 + 0.5 * len(frame)))
    axis.axvline(aim, color="#999999", lw=1, ls=":")
    for j, (part, name) in enumerate(parts.items()):
        places = [-i + 0.2 - 0.2 * j for i in range(len(frame))]
        axis.plot(frame[f"{part}, test"], places, "o", ms=8, color=COLOURS[part], label=name)
    axis.set_yticks([-i for i in range(len(frame))], [f"{r.graph}, {r.bytes} bytes" for r in frame.itertuples()])
    axis.set_xlabel("test MRR by the rule of the other graphs, share of the searched")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return finished(fig)


def rank_memory(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Megabytes of one rank's share of the tables, beside those of a single rank divided by the ranks."""
    fig, axis = subplots(figsize=(6, 3.2))
    names = [str(row["ranks"]) for row in rows]
    axis.bar(names, [row["tables"] / 1e6 for row in rows], width=0.5, color="#0072B2", label="measured")
    even = [rows[0]["tables"] / row["ranks"] / 1e6 for row in rows]
    axis.plot(names, even, "_", color="#D55E00", ms=44, mew=2, label="a single rank's ÷ ranks")
    axis.set(xlabel="ranks", ylabel="MB of a rank", ylim=(0, None))
    axis.legend(frameon=False, markerscale=0.5)
    return finished(fig)


def objectives(frame: pd.DataFrame) -> Figure:
    """What each objective gains over the first of its student, with 95 % intervals; a panel for each kind of student.

    Args:
        frame: student, objective, mrr, gain, low, high, as `objectives.points` makes it.
    """

    kinds = list(frame["student"].unique())
    heights = [int((frame["student"] == kind).sum()) for kind in kinds]
    fig, axes = subplots(
        len(kinds),
        figsize=(7.2, 1.4 + 0.33 * sum(heights)),
        squeeze=False,
        height_ratios=heights,
    )
    for axis, kind in zip(axes[:, 0], kinds):
        rows = frame[frame["student"] == kind].iloc[::-1].reset_index(drop=True)
        first = rows.iloc[-1]
        axis.axvline(0, color="#999999", lw=1)
        for i, row in enumerate(rows.itertuples()):
            colour = "#0072B2" if row.low > 0 else "#D55E00" if row.high < 0 else "#777777"  # the first has no interval
            axis.plot([row.low, row.high], [i, i], color=colour, lw=2)
            axis.plot(row.gain, i, "o", ms=8, color=colour)
        axis.set_yticks(range(len(rows)), [f"{r.objective}  {r.mrr:.3f}" for r in rows.itertuples()])
        axis.set(xlabel=f"test MRR above “{first.objective}”", title=f"a student of {kind}")
    return finished(fig)


# ---- the book's own pictures ----------------------------------------------------------------------------------------
FEW_BITS = {"distilled": "#009E73", "paths": "#000000"}  # where DS has the colour that `OF_BYTES` gives it


def quality_against_bytes(frame: pd.DataFrame) -> Figure:
    """Test MRR over the bytes of one entity: ours filled, the paper's hollow, published models as crosses.

    Args:
        frame: kind ("ours", "paper" or "published"), method, model, bytes (missing: only the highest is drawn), mrr.
            Ours may be methods of `OF_BYTES` as well, of students of few bits.
    """
    from matplotlib.lines import Line2D

    fig, axis = subplots(figsize=(6.6, 5))
    published = frame[frame["kind"] == "published"]
    placed = published.dropna(subset=["bytes"])
    axis.scatter(placed["bytes"], placed["mrr"], marker="x", color="#888888", zorder=2)
    for row in published[published["bytes"].isna()].nlargest(1, "mrr").itertuples():  # of any dimension
        axis.axhline(row.mrr, color="#888888", ls=":", lw=1)
        axis.annotate(
            f"best published {row.model}: {row.mrr:.3f}",
            (1, row.mrr),
            (-2, 4),
            ha="right",
            fontsize=10,
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color="#555555",
        )
    for kind, face, style, width in (("paper", "none", "--", 1.2), ("ours", None, "-", 2.2)):
        for method in ("no-DS", "DS", "teacher"):
            rows = frame[(frame["kind"] == kind) & (frame["method"] == method)].sort_values("bytes")
            axis.plot(
                rows["bytes"],
                rows["mrr"].astype(float),
                color=COLOURS[method],
                ls=style,
                lw=width,
                ms=8,
                marker="D" if method == "teacher" else "o",
                mfc=face or COLOURS[method],
                zorder=3,
            )
    few = [method for method in OF_BYTES if method in set(frame["method"])]
    for method in few:
        colour, style, mark, _ = OF_BYTES[method]
        rows = frame[frame["method"] == method].sort_values("bytes")
        axis.plot(
            rows["bytes"],
            rows["mrr"].astype(float),
            color=FEW_BITS.get(method, colour),
            ls=style,
            lw=2.2,
            ms=8,
            marker=mark,
            zorder=3,
        )
    sizes = sorted(frame.loc[frame["kind"] != "published", "bytes"].astype(int).unique())
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set(xlabel="bytes per entity", ylabel="test MRR")
    marks = [
        Line2D([], [], color=COLOURS[m], marker=s, ls="", ms=8, label=label)
        for m, s, label in (
            ("teacher", "D", "teacher"),
            ("no-DS", "o", "student alone (no-DS)"),
            ("DS", "o", "distilled student (DS)"),
        )
    ]
    marks += [
        Line2D(
            [],
            [],
            color=FEW_BITS.get(m, OF_BYTES[m].colour),
            ls=OF_BYTES[m].line,
            lw=2.2,
            marker=OF_BYTES[m].marker,
            ms=8,
            label=OF_BYTES[m].label,
        )
        for m in few
    ]
    marks += [
        Line2D([], [], color="#777777", lw=2.2, marker="o", label="ours"),
        Line2D([], [], color="#777777", lw=1.2, ls="--", marker="o", mfc="none", label="the paper"),
        Line2D([], [], color="#888888", marker="x", ls="", label="published elsewhere"),
    ]
    fig.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False)
    return finished(fig)


def loss_pictures() -> dict[str, tuple[Figure, str]]:
    """What each loss does to a score, drawn with `losses` itself: the figure and its words, by name."""
    import torch

    from kgdistil import losses

    scores, one = torch.linspace(-6, 6, 241), torch.ones(1, 1)
    silent, teacher = one * -1e4, one[0] * -1.0  # a negative so implausible that it costs nothing; a doubtful teacher
    colours = [COLOURS["no-DS"], COLOURS["-S1"], COLOURS["stage 2"]]

    def weighted(p: torch.Tensor, n: torch.Tensor, alpha: float) -> torch.Tensor:
        soft = losses.cross_entropy_soft_loss(p, silent, one * 0, teacher, silent)
        return losses.stage_one_loss(soft, losses.cross_entropy_hard_loss(p, silent, one * 0), alpha)

    def likely(p: torch.Tensor, share: float) -> torch.Tensor:
        label = one[0] * torch.tensor(share).logit()
        return losses.cross_entropy_soft_loss(p, silent, one * 0, label, silent)

    panels: dict[str, tuple[str, str, dict[str, Loss]]] = {
        "margin_hard": (
            "score of the negative, the true triple having 0",
            "The margin loss over a negative's score: zero while the negative stays γ below the true triple, then "
            "rising with slope one.",
            {f"γ = {g:g}": lambda p, n, g=g: losses.margin_hard_loss(one[0] * 0, n, one, g) for g in (0.5, 1.0, 6.0)},
        ),
        "margin_soft": (
            "student's score",
            "The soft loss over the student's score: a V whose tip is the teacher's score; it pulls equally hard "
            "however far the student is.",
            {
                f"teacher says {t:g}": lambda p, n, t=t: losses.margin_soft_loss(p, n, one * 0, one[0] * t, one * t)
                for t in (-3.0, 0.0, 3.0)
            },
        ),
        "cross_entropy_hard": (
            "score",
            "Cross entropy over the score: it falls for a true triple and rises for a negative, and flattens out where "
            "the score is right.",
            {
                "true triple, y = 1": lambda p, n: losses.cross_entropy_hard_loss(p, silent, one),
                "negative, y = 0": lambda p, n: losses.cross_entropy_hard_loss(-silent[0], n, one),
            },
        ),
        "cross_entropy_soft": (
            "student's score",
            "The soft loss over the student's score: a valley whose floor lies where the student's probability is the "
            "teacher's.",
            {f"teacher says p = {share:g}": lambda p, n, share=share: likely(p, share) for share in (0.05, 0.5, 0.95)},
        ),
        "stage_one": (
            "student's score of a true triple",
            "The weighted loss over the student's score of a true triple that the teacher doubts: the larger α, the "
            "closer the lowest point lies to the teacher's score.",
            {f"α = {a:g}": lambda p, n, a=a: weighted(p, n, a) for a in (0.3, 0.5, 0.7)},
        ),
    }
    found = {}
    for name, (label, words, lines) in panels.items():
        fig, axis = subplots(figsize=(5.8, 3.1))
        axis.set(xlabel=label, ylabel="loss")
        for (text, loss), shade in zip(lines.items(), colours[::-2] if len(lines) == 2 else colours):
            values = [float(loss(score.view(1), score.view(1, 1))) for score in scores]
            axis.plot(scores, values, lw=2.2, color=shade, label=text)
        if name == "stage_one":
            axis.axvline(float(teacher), color="#777777", lw=1, ls=":")
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axis.annotate("the teacher's score", (float(teacher), 1), (5, -12), color="#555555", fontsize=10, **place)
        found[name] = fig, words
    found["stage_two"] = (
        two_stages(),
        "Scores of one true triple while both losses are followed: in stage one the teacher stands still and the "
        "student comes to it; in stage two both move.",
    )
    for fig, _ in found.values():
        fig.axes[0].legend(frameon=False, fontsize=10)
        finished(fig)
    return found


def two_stages() -> Figure:
    """Student's and teacher's score of one true triple over steps of gradient descent on each stage's loss."""
    import torch

    from kgdistil import losses

    one = torch.ones(1, 1)
    silent = one * -1e4
    fig, axis = subplots(figsize=(5.8, 3.1))
    axis.set(xlabel="steps of gradient descent", ylabel="score of one true triple")
    for name, style in (("stage one", "--"), ("stage two", "-")):
        pair = torch.tensor([[-2.0], [1.0]], requires_grad=True)  # student, teacher
        path = [pair.detach().clone()]
        for _ in range(60):
            student, teacher = pair
            soft = [
                losses.cross_entropy_soft_loss(a, silent, one * 0, b, silent)
                for a, b in ((student, teacher), (teacher, student))
            ]
            hard = [losses.cross_entropy_hard_loss(x, silent, one * 0) for x in (student, teacher)]
            if name == "stage one":
                loss = losses.stage_one_loss(soft[0], hard[0], 0.7)
            else:
                loss = losses.stage_two_loss(soft[0], hard[0], soft[1], hard[1], 0.7, 0.7)
            (gradient,) = torch.autograd.grad(loss, pair)
            pair = (pair - 0.3 * gradient).detach().requires_grad_()
            path.append(pair.detach().clone())
        for i, (who, shade) in enumerate((("student", COLOURS["stage 2"]), ("teacher", COLOURS["teacher"]))):
            axis.plot([float(step[i]) for step in path], color=shade, ls=style, lw=2.2, label=f"{who}, {name}")
    return fig
