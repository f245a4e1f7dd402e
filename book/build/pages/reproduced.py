"""What did not reproduce, and which ranks the paper reports."""

from __future__ import annotations

import html
from collections import Counter

import pandas as pd

from book.build.html import NEAR, again, difference, html_table, number, ranks_link, unfolds
from book.build.pages.shown import METHOD_WORDS, METRICS, Shown, none_yet, picture
from kgdistil import records
from kgdistil.compress.size import floats
from kgdistil.paper import constrained, plots, reading
from kgdistil.paper.methods import TITLES

TYPED = "both sides, type-constrained"
READINGS = {  # how the ranks of a table may have been taken: the candidates of `constrained`, and the side
    "both sides": ("every entity", "both"),
    "tails alone": ("every entity", "tail"),
    TYPED: ("training", "both"),
    "tails alone, type-constrained": ("training", "tail"),
}


def by_reading(frame: pd.DataFrame) -> pd.DataFrame:
    """The MRR of each cell of `tables.read_constrained` in each of READINGS, a column each."""
    columns = ["cell", "model", "dim", "method", "paper", "run"]
    keys = frame.set_index(["candidates", "side"])
    parts = [keys.loc[key].set_index(columns)["mrr"].rename(name) for name, key in READINGS.items()]
    return pd.concat(parts, axis=1).reset_index()


def not_reproduced(shown: Shown, protocol: str) -> str:
    """Cells of Tables 3 and 4 whose MRR is not the paper's, the farthest first."""
    frame = pd.concat([shown.frames["table3"], shown.frames["table4"]], ignore_index=True)
    frame = frame[(frame["protocol"] == protocol) & (frame["metric"] == "mrr")].dropna(subset=["ours"])
    if frame.empty:
        return none_yet("make reproduce TABLE=3" + (" PROTOCOL=paper" if protocol == "paper" else ""))
    far = frame[frame["difference"].abs() >= NEAR]
    far = far.reindex(far["difference"].astype(float).abs().sort_values(ascending=False).index)
    rows = [
        [
            f"{r.model} d={r.dim} {METHOD_WORDS[r.method]}, {TITLES[r.dataset]}",
            number(r.paper),
            number(r.ours),
            difference(r.difference),
            again(r),
        ]
        for r in far.itertuples()
    ]
    above = int((far["difference"] > 0).sum())
    counts = (
        f"Of {len(frame)} cells that have run, {len(frame) - len(far)} are within {NEAR:g} of the paper's MRR, "
        f"{above} lie above and {len(far) - above} below it."
    )
    head = ["cell", "the paper", "ours", "difference", "run"]
    return f"{counts}\n{html_table(f'MRR that differs, protocol {protocol}', head, rows)}"


def sides(shown: Shown) -> str:
    """Teachers, or whatever has run, on each side, beside the paper's number."""
    frame, words = shown.frames["sides"], {"mean_of_two_ranks": "mean of two ranks"}
    if not len(frame):
        return none_yet("python -m kgdistil.paper.reproduce --table 3")
    paper = reading.paper()
    said = {
        (r.dataset, r.model, int(r.dim), r.method): r.value
        for r in paper[paper["table"].isin([3, 4]) & (paper["metric"] == "mrr")].itertuples()
    }
    wide = frame.pivot_table(
        index=["cell", "dataset", "model", "dim", "method"], columns="side", values="mrr", sort=False
    ).reset_index()
    sides = list(frame["side"].unique())
    rows: list[list[str]] = []
    nearest: dict[str, list[str]] = {}
    for r in wide.to_dict("records"):
        theirs = said.get((r["dataset"], r["model"], r["dim"], r["method"]))
        near = "–" if theirs is None else min((abs(r[side] - theirs), side) for side in sides)[1]
        if r["dataset"] == "fb15k-237" and r["cell"].startswith("tuned/") and theirs is not None:
            nearest.setdefault(r["model"], []).append(words.get(near, near))
        rows.append(
            [
                f"<code>{r['cell']}</code>",
                number(theirs if theirs is not None else float("nan")),
                *(number(r[s]) for s in sides),
                words.get(near, near),
            ]
        )
    each = [
        f"{model} {Counter(near).most_common(1)[0][0]} ({Counter(near).most_common(1)[0][1]} of {len(near)} cells)"
        for model, near in nearest.items()
    ]
    words_of_each = "By side alone, the paper's numbers on FB15k-237 are nearest to these of ours, protocol tuned: "
    told = f"{words_of_each}{', '.join(each)}.\n\n" if each else ""
    head = ["cell", "the paper", *(words.get(s, s) for s in sides), "nearest to the paper"]
    return told + html_table("MRR by side of the query", head, rows)


def suspects(shown: Shown) -> str:
    """All metrics of the teachers whose numbers in the paper lie above anything published, on each side, among
    every entity and among those of the type."""
    frame, paper, rows, told, told_all = shown.frames["constrained"], reading.paper(), [], [], []
    for model in ("RotatE", "TransH"):
        cell = f"tuned/fb15k-237/{model}/teacher/64"
        ours = frame[frame["cell"] == cell] if len(frame) else frame
        if not len(ours):
            return none_yet(f"python -m kgdistil.paper.constrained {cell}")
        said = paper[(paper["table"] == 4) & (paper["model"] == model) & (paper["method"] == "teacher")]
        said = said.set_index("metric")["value"]
        rows.append([f"{model} d=64, the paper", *(number(said[m]) for m in METRICS), ""])
        apart = {}
        for words, (candidates, side) in READINGS.items():
            one = ours[(ours["candidates"] == candidates) & (ours["side"] == side)].iloc[0]
            apart[words] = max(abs(one[m] - said[m]) for m in METRICS)
            rows.append(
                [
                    f"ours, {words} {ranks_link(one['run'])}",
                    *(number(one[m]) for m in METRICS),
                    number(apart[words]),
                ]
            )
        types = ours[ours["side"] == "both"].set_index("candidates")["mrr"]
        told_all.append(f"{model} {types['all splits']:.3f} instead of {types['training']:.3f}")
        near = min(apart, key=lambda name: apart[name])
        told.append(f"the paper's {model} is nearest to our {near} (at most {apart[near]:.3f} apart)")
    words = (
        f"Over all four metrics, {' and '.join(told)}. Where the test split says too what stands on a side, as in "
        f"OpenKE, the type-constrained MRR of both sides is {', '.join(told_all)}."
    )
    head = ["", *METRICS.values(), "largest difference"]
    return f"{words}\n\n{html_table('Teachers on FB15k-237, by candidates and side', head, rows)}"


def unseen(shown: Shown) -> str:
    """How many answers of FB15k-237's test split training does not have on that side of their relation."""
    found = constrained.read(constrained.table4()[0])
    if found is None:
        return none_yet("python -m kgdistil.paper.constrained")
    n, told = found["graph"]["test"], found["unseen"]["training"]
    heads, tails = (f"{told[side]:,} {side}s ({told[side] / n:.0%})" for side in ("head", "tail"))
    return f"{heads} and {tails} of {n:,} each"


def readings(shown: Shown) -> str:
    """Each cell of Table 4 in the ways that its ranks may have been taken: a picture, how near, and the table."""
    frame = shown.frames["constrained"]
    if not len(frame):
        return none_yet("python -m kgdistil.paper.constrained")
    wide = by_reading(frame)
    far = wide[[*READINGS]].sub(wide["paper"], axis=0).abs()
    near = wide.assign(near=far.idxmin(axis=1))
    counts = [
        [
            model,
            *(
                ", ".join(f"{n} of {len(some)} {name}" for name, n in Counter(some["near"]).most_common())
                for some in (part[part["method"] != "no-DS"], part[part["method"] == "no-DS"])
            ),
        ]
        for model, part in near.groupby("model", sort=False)
    ]
    title = "Which reading of ours is nearest to the paper's MRR, by number of cells"
    nearest = html_table(title, ["model", "teacher and DS", "no-DS"], counts)
    words = "MRR over the dimension for each model, ours in four readings and the paper's. The table has the numbers."
    drawn = picture(shown, "readings", plots.readings(wide, [*READINGS]), words)
    rows = [
        [
            f"{r['model']} d={r['dim']} {METHOD_WORDS[r['method']]}",
            number(r["paper"]),
            *(f"{number(r[name])}<br>{difference(r[name] - r['paper'])}" for name in READINGS),
            ranks_link(r["run"]) + unfolds("constrained", r["cell"]),
        ]
        for r in wide.to_dict("records")
    ]
    head = ["cell", "the paper", *(f"ours, {name}" for name in READINGS), "run"]
    return f"{drawn}\n{nearest}\n{html_table('MRR of Table 4 by candidates and side', head, rows)}"


def suspects_published(shown: Shown) -> str:
    """The models whose numbers on FB15k-237 are in doubt beside the best published of the model and size."""
    frame, said = shown.frames["table4"], pd.read_csv(records.results_folder() / "published.csv")
    frame = frame[(frame["protocol"] == "tuned") & (frame["metric"] == "mrr") & (frame["method"] != "no-DS")]
    said, rows = said[said["dataset"] == "fb15k-237"].sort_values("mrr"), []
    for r in frame[frame["model"].isin(["RotatE", "TransH"])].sort_values("model", kind="stable").itertuples():
        width = floats(r.model, r.dim)
        same = said[said["model"].str.contains(r.model) & (said["floats"] == width)]
        any_size = said[said["model"].str.contains(r.model)]
        best = [
            f"{x.iloc[-1]['mrr']:.3f}, {html.escape(x.iloc[-1]['model'])}" if len(x) else "none known"
            for x in (same, any_size)
        ]
        rows.append([f"{r.model} d={r.dim} {METHOD_WORDS[r.method]}", number(r.paper), number(r.ours), *best])
    head = ["cell", "the paper", "ours, both sides", "best published of that size", "best published of any size"]
    return html_table("MRR on FB15k-237 beside what is published for the model", head, rows)
