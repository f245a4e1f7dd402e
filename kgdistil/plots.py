"""Pictures of runs. They need the `notebooks` extra, which is imported only when a picture is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .recipes import bytes_per_entity
from .training import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by every kind of colour vision
COLOURS = {"teacher": "#555555", "no-DS": "#E69F00", "stage 1": "#56B4E9", "stage 2": "#0072B2"}


def distillation(runs: Mapping[str, Run]) -> Figure:
    """Validation MRR over the student's epochs (left) and test MRR with the bytes of an entity (right).

    Args:
        runs: by name: "teacher", "no-DS", "stage 1" and, for two stages, "stage 2".
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
    level = runs["teacher"].record["valid"]["both"]["mrr"]
    left.axhline(level, color=COLOURS["teacher"], ls="--", lw=1.5)
    left.annotate("teacher", (1, level), (-2, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right", color=COLOURS["teacher"])  # fmt: skip
    start = 0
    for name in ("no-DS", "stage 1", "stage 2"):
        if name not in runs:
            continue
        curve = runs[name].record["curve"]
        if name == "stage 2":
            start = runs["stage 1"].record["epochs"]
            left.axvline(start, color="#999999", lw=1, ls=":")
            left.annotate("stage 2 begins", (start, 0), (5, 6), xycoords=("data", "axes fraction"),
                          textcoords="offset points", color="#555555", fontsize=10)  # fmt: skip
        x, y = [start + point["epoch"] for point in curve], [point["valid_mrr"] for point in curve]
        if start:  # stage 2 goes on from the best weights of stage 1
            x, y = [start, *x], [runs["stage 1"].record["valid"]["both"]["mrr"], *y]
        left.plot(x, y, color=COLOURS[name], lw=2, marker="o", ms=4, label=name)
    left.legend(frameon=False, loc="lower right")
    left.set(xlabel="epochs of the student", ylabel="validation MRR")
    left.set_title("While it learns", loc="left")

    names = list(runs)[::-1]
    values = [runs[name].test() for name in names]
    right.barh(names, values, color=[COLOURS[name] for name in names], height=0.65)
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        right.annotate(f"{value:.3f}", (value, i), (4, 0), textcoords="offset points", va="center", weight="bold")
        size = f"{bytes_per_entity(runs[name].config)} bytes"
        dark = name in ("teacher", "stage 2")
        right.annotate(size, (0, i), (6, 0), textcoords="offset points", va="center", fontsize=10,
                       color="white" if dark else "black")  # fmt: skip
    right.set(xlabel="test MRR", xlim=(0, max(values) * 1.18))
    right.tick_params(axis="y", length=0)
    right.set_title("What it ends with, and bytes per entity", loc="left")
    student, teacher = runs["no-DS"].config, runs["teacher"].config
    fig.suptitle(f"{student.model} on {student.dataset}: from {teacher.dim} to {student.dim} dimensions", weight="bold")
    sns.despine(fig)
    plt.close(fig)  # or a notebook shows it twice
    return fig


def alt_text(runs: Mapping[str, Run]) -> str:
    """`distillation` in words."""
    scores = ", ".join(f"{name} {done.test():.3f}" for name, done in runs.items())
    return f"Left: validation MRR of the student over its epochs. Right: bars of test MRR: {scores}."
