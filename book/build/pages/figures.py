"""Figures 1 to 3 of the paper beside ours."""

from __future__ import annotations

import pandas as pd

from book.build.html import difference, html_table, linked, number, run_link, unfolds
from book.build.pages.shown import METHOD_WORDS, Shown, none_yet, picture
from kgdistil import records
from kgdistil.paper import plots
from kgdistil.paper.cells import cells_of


def figure(shown: Shown, number: int) -> str:
    """Figure 1, 2 or 3 where its runs are there, else what makes them."""
    frame, wanted = shown.frames[f"figure{number}"], cells_of(f"figure{number}", "tuned")
    if len(frame) < (1 if number == 3 else len(wanted)) or (number == 3 and frame["method"].nunique() < 3):
        ran = frame["run"].nunique() if len(frame) else 0
        return (
            f"\n:::{{admonition}} Not run yet\n:class: note\n{ran} of {len(wanted)} runs of this figure "
            f"are recorded. The others: `python -m kgdistil.paper.reproduce --figure {number}`.\n:::\n"
        )
    words = {
        1: "MRR and parameters over the dimension",
        2: "students' MRR by their teacher's dimension",
        3: "MRR over the student's epochs with and without a teacher",
    }[number]
    if number == 3:
        last = frame.groupby("method", sort=False).last()
        numbers = ", ".join(f"{METHOD_WORDS[m]} ends at {row.test_mrr:.3f}" for m, row in last.iterrows())
    else:
        label = "teacher_dim" if number == 2 else "dim"
        numbers = ", ".join(
            f"d={r.dim}{f' from {getattr(r, label)}' if number == 2 else ''}: {r.mrr:.3f}" for r in frame.itertuples()
        )
    if number == 1 and "seconds" not in frame:
        frame = frame.assign(seconds=float("nan"))
    drawn = getattr(plots, f"figure{number}")(frame)
    listed = ", ".join(run_link(run) for run in dict.fromkeys(frame["run"]))
    command = f"`python -m kgdistil.paper.reproduce --figure {number} --again`"
    return picture(shown, f"figure{number}", drawn, f"{words}: {numbers}.") + f"\nRecords: {listed}; {command}.\n"


def figure2_said(shown: Shown) -> str:
    """What the paper says of larger teachers in Figure 2, beside our students of each."""
    frame = shown.frames["figure2"]
    if not len(frame) or frame["teacher_dim"].nunique() < 2:
        return none_yet("python -m kgdistil.paper.reproduce --figure 2")
    wide = frame.pivot(index="dim", columns="teacher_dim", values="mrr")
    said = pd.read_csv(records.results_folder() / "paper_figure2.csv").set_index("student")["larger_teacher"]
    first, *larger = wide.columns
    rows = [
        [
            f"d={dim}",
            said.get(dim, ""),
            *(f"{wide.loc[dim, t]:.4f}" for t in wide.columns),
            difference(wide.loc[dim, larger].max() - wide.loc[dim, first], 4, 0.001),
        ]
        for dim in sorted(wide.index, reverse=True)
    ]
    head = [
        "student",
        "a larger teacher, the paper says",
        *(f"ours, teacher d={t}" for t in wide.columns),
        f"best larger against d={first}",
    ]
    return html_table("Is a larger teacher better? MRR, protocol tuned", head, rows)


def figures_known(shown: Shown, number: int) -> str:
    """What of a figure of the paper stands in its tables, beside ours."""
    frame = shown.frames["figures_known"]
    frame = frame[frame["figure"] == number] if len(frame) else frame
    rows = [
        [
            f"<code>{r.cell}</code>",
            f"{r.paper:.3f}",
            "not run" if pd.isna(r.ours) else f"{r.ours:.3f}",
            "" if pd.isna(r.ours) else difference(r.difference),
            run_link(r.run) + unfolds("reproduce", r.cell),
        ]
        for r in frame.itertuples()
    ]
    head = ["cell", "the paper", "ours", "difference", "run"]
    return html_table(f"MRR of Figure {number} that the paper's tables tell", head, rows)


def figure1_paper(shown: Shown) -> str:
    """The MRR of Figure 1's runs under both protocols."""
    frames = {"paper": shown.frames["figure1_paper"], "tuned": shown.frames["figure1"]}
    if not len(frames["paper"]):
        return none_yet("python -m kgdistil.paper.reproduce --figure 1 --protocol paper")
    sizes = sorted({dim for frame in frames.values() if len(frame) for dim in frame["dim"]})
    rows = []
    for protocol, frame in frames.items():
        found = {r.dim: linked(r.mrr, r.run) for r in frame.itertuples()}
        rows.append([protocol, *(found.get(d, "not run") for d in sizes)])
    best = {protocol: frame.loc[frame["mrr"].idxmax()] for protocol, frame in frames.items() if len(frame)}
    told = "The best is " + ", ".join(f"d={r.dim} under the protocol *{p}* ({r.mrr:.3f})" for p, r in best.items())
    head = ["protocol", *(f"d={d}" for d in sizes)]
    table = html_table("Figure 1's MRR, TransE on WN18RR without a teacher", head, rows)
    return f"{told}.\n{table}{paper_again(1)}"


def paper_again(number: int) -> str:
    command = f"python -m kgdistil.paper.reproduce --figure {number} --protocol paper --again"
    return f"\nProtocol paper again: `{command}`.\n"


def figure2_paper(shown: Shown) -> str:
    """The runs of Figure 2 under the protocol *paper*, a row for each teacher and one for the students alone."""
    frame = shown.frames["figure2_paper"]
    if not len(frame):
        return none_yet("python -m kgdistil.paper.reproduce --figure 2 --protocol paper")
    sizes = list(dict.fromkeys(frame["dim"]))
    rows = []
    for dim, part in frame.groupby("teacher_dim"):
        found = {r.dim: linked(r.mrr, r.run) for r in part.itertuples()}
        rows.append([f"d={dim}", number(part["teacher_mrr"].iloc[0]), *(found.get(d, "not run") for d in sizes)])
    cells = shown.frames["table3"]
    alone = cells.query("protocol == 'paper' and model == 'TransE' and method == 'no-DS' and metric == 'mrr'")
    alone = alone.dropna(subset=["ours"]).set_index("dim")
    found = {d: linked(r.ours, r.run) for d, r in alone.iterrows()}
    rows.append(["none", "", *(found.get(d, "not run") for d in sizes)])
    head = ["teacher", "its MRR", *(f"student d={d}" for d in sizes)]
    return html_table("Figure 2 as a table, TransE on WN18RR, protocol paper", head, rows) + paper_again(2)
