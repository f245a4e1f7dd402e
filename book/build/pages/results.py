"""Results at a glance: does the teacher help, what whole lists add, how sure the differences are."""

from __future__ import annotations

import html

import pandas as pd

from book.build.html import difference, html_table, interval, linked, number, run_link
from book.build.pages.shown import METHOD_WORDS, Shown, none_yet, picture
from kgdistil import records
from kgdistil.paper import plots
from kgdistil.paper.cells import PROTOCOLS
from kgdistil.paper.methods import TITLES


def does_it_pay(shown: Shown) -> str:
    """In how many cells distillation beat the student alone: the paper and ours."""
    lines = []
    for name, dataset in (("table3", "WN18RR"), ("table4", "FB15k-237")):
        frame = shown.frames[name]
        for protocol in PROTOCOLS:
            mine = frame[(frame["protocol"] == protocol) & (frame["metric"] == "mrr")]
            wins = [f"{dataset}, {protocol}"]
            for who in ("paper", "ours"):
                pairs = mine.pivot(index=["model", "dim"], columns="method", values=who)[["no-DS", "DS"]].dropna()
                count = f"{int((pairs['DS'] > pairs['no-DS']).sum())} of {len(pairs)}"
                wins.append(count if len(pairs) else "not run")
            lines.append(wins)
    head = ["graph, protocol", "the paper", "ours"]
    return html_table("Students whose MRR is higher with a teacher than without", head, lines)


def behind(shown: Shown) -> str:
    """Where the teacher does not help under the protocol tuned: which students, by how much, and their curves."""
    frame, told = shown.frames["behind"], []
    cells = pd.concat([shown.frames["table3"], shown.frames["table4"]])
    cells = cells[(cells["protocol"] == "tuned") & (cells["metric"] == "mrr")]
    cells = cells.set_index(["dataset", "model", "dim", "method"])["ours"]
    if cells.isna().all():
        return none_yet("python -m kgdistil.paper.reproduce --table 3 4")
    if not len(frame):
        return "Under the protocol **tuned** every student that has run is better with its teacher than without."
    frame = frame.assign(student=[f"{r.model} d={r.dim}, {TITLES[r.dataset]}" for r in frame.itertuples()])
    for key, part in frame.groupby(["dataset", "model", "dim"], sort=False):
        alone, last = cells[(*key, "no-DS")], cells[(*key, "DS")]
        told.append(f"{part['student'].iloc[0]} ({number(alone)} alone, {number(last)} with a teacher)")
    few = "; ".join(told)
    words = f"Under the protocol **tuned** all students but {len(told)} end higher with a teacher: {few}."
    alt = f"Validation MRR over epochs, alone and distilled, of {len(told)} students: {few}."
    return words + picture(shown, "behind", plots.behind(frame), alt)


def whole_lists(shown: Shown) -> str:
    """What the last epochs against whole lists added to each run that has them."""
    frame = shown.frames["whole_lists"]
    if not len(frame):
        return none_yet("python -m kgdistil.paper.reproduce --table 3 4")
    rows = [
        [
            f"{r.model} d={r.dim} {METHOD_WORDS[r.method]}, {TITLES[r.dataset]}",
            linked(r.start_mrr, r.start_run),
            linked(r.mrr, r.run),
            difference(r.difference),
            interval(r),
            f"{r.p:.4f}",
        ]
        for r in frame.itertuples()
    ]
    gains = frame["difference"]
    told = (
        f"In {len(frame)} runs they changed the test MRR by {gains.min():+.3f} to {gains.max():+.3f}, "
        f"{gains.mean():+.3f} on average."
    ).replace("-", "−")
    head = ["run", "MRR of its start", "MRR after whole lists", "difference", "95 % interval", "p"]
    return told + "\n" + html_table("Before and after whole lists, paired bootstrap over test triples", head, rows)


def lists_recipe(shown: Shown) -> str:
    """How long, and against how many candidates, the runs of `whole_lists` go on."""
    frame = shown.frames["whole_lists"]
    if not len(frame):
        return none_yet("python -m kgdistil.paper.reproduce --table 3 4")
    configs = [shown.records[run]["config"] for run in frame["run"]]
    frame = frame.assign(**{name: [config[name] for config in configs] for name in ("epochs", "negatives")})
    usual = frame["negatives"].mode()[0]
    alone, other = frame[frame["method"] == "no-DS"], frame[frame["negatives"] != usual]
    most = (
        f"A student alone goes on for {span(alone[alone['negatives'] == usual]['epochs'])} epochs, against {usual:,} "
        "entities drawn for each batch"
    )
    exceptions = other[other["method"] == "no-DS"]
    told = [
        f"{r.model} d={r.dim} on {TITLES[r.dataset]} for {r.epochs} against {r.negatives:,}"
        for r in exceptions.itertuples()
    ]
    return "; ".join([most, *told]) + "."


def span(values: pd.Series) -> str:
    """ "10", or "10 to 15"."""
    return f"{values.min()}" if values.min() == values.max() else f"{values.min()} to {values.max()}"


def table2(shown: Shown) -> str:
    """Sizes of the graphs."""
    frame = shown.frames["table2"]
    wide = [
        [
            f"{TITLES[r.dataset]}, {r.metric}",
            f"{int(r.paper):,}",
            "not run" if pd.isna(r.ours) else f"{int(r.ours):,}",
            "" if pd.isna(r.ours) else "same" if r.ours == r.paper else difference(r.ours - r.paper, 0),
            run_link(r.run),
        ]
        for r in frame.itertuples()
    ]
    head = ["graph", "the paper", "ours", "difference", "run that read it"]
    return html_table("Table 2: sizes of the graphs", head, wide)


def significance(shown: Shown) -> str:
    frame = shown.frames["significance"]
    if not len(frame):
        return none_yet("python -m kgdistil.paper.reproduce --table 3")
    rows = [
        [
            f"{r.model} d={r.dim} on {TITLES[r.dataset]}, {r.protocol}",
            METHOD_WORDS[r.rival],
            linked(r.rival_mrr, r.rival_run),
            linked(r.ds_mrr, r.ds_run),
            difference(r.difference),
            interval(r),
            f"{r.p:.4f}",
        ]
        for r in frame.itertuples()
    ]
    head = ["student", "rival", "its MRR", "MRR of DS", "difference", "95 % interval", "p"]
    return html_table("Distilled (DS) against its rivals, paired bootstrap over test triples", head, rows)


def seeds(shown: Shown) -> str:
    """The student alone and distilled where both have run with several seeds: means, and how far seeds differ."""
    rows, clear = [], {True: 0, False: 0}
    for name in ("table3", "table4"):
        frame = shown.frames[name]
        frame = frame[(frame["metric"] == "mrr") & (frame["seeds"] > 1) & frame["method"].isin(["no-DS", "DS"])]
        for (protocol, dataset, model, dim), pair in frame.groupby(["protocol", "dataset", "model", "dim"], sort=False):
            if len(pair) < 2:
                continue
            alone, last = (pair[pair["method"] == method].iloc[0] for method in ("no-DS", "DS"))
            error = sum(r.deviation**2 / r.seeds for r in (alone, last)) ** 0.5
            if abs(last.ours - alone.ours) > 2 * error:
                clear[last.ours > alone.ours] += 1
            rows.append(
                [
                    f"{model} d={dim} on {TITLES[dataset]}, {protocol}",
                    str(min(alone.seeds, last.seeds)),
                    *(f"{number(r.ours)} ± {r.deviation:.3f} {run_link(r.run, 'seed 0')}" for r in (alone, last)),
                    difference(last.ours - alone.ours),
                    f"{error:.3f}",
                ]
            )
    if not rows:
        wanted = " ".join(f"tuned/wn18rr/RotatE/{method}/8@1" for method in ("no-DS", "DS"))
        return none_yet(f"python -m kgdistil.paper.reproduce {wanted}")
    told = (
        f"Of {len(rows)} students, {clear[True]} are better with the teacher by more than twice the standard error "
        f"of the difference of the means, and {clear[False]} without."
    )
    head = ["student", "seeds", "MRR alone", "MRR of DS", "difference", "standard error"]
    return told + "\n" + html_table("Distilled (DS) and alone, mean and deviation over seeds", head, rows)


def turned(shown: Shown) -> str:
    """Which students more seeds turned around under the protocol tuned, by the sign of the difference to no-DS."""
    first, cells = shown.frames["significance"], pd.concat([shown.frames["table3"], shown.frames["table4"]])
    cells = cells[(cells["protocol"] == "tuned") & (cells["metric"] == "mrr") & (cells["seeds"] > 1)]
    means = cells.pivot(index=["dataset", "model", "dim"], columns="method", values="ours")
    if not len(first) or not {"DS", "no-DS"} <= set(means):
        return ""
    first = first[(first["protocol"] == "tuned") & (first["rival"] == "no-DS")].set_index(["dataset", "model", "dim"])
    both = pd.concat([first["difference"], means["DS"] - means["no-DS"]], axis=1, join="inner").dropna()
    other = [
        f"{model} d={dim} on {TITLES[dataset]} ({one:+.4f} by seed 0, {mean:+.4f} by the means)".replace("-0.", "−0.")
        for (dataset, model, dim), (one, mean) in zip(both.index, both.to_numpy(), strict=True)
        if one * mean < 0
    ]
    return f"More seeds turned {len(other)} of {len(both)} around" + (f": {'; '.join(other)}." if other else ".")


def published(shown: Shown) -> str:
    said = pd.read_csv(records.results_folder() / "published.csv")
    rows = [
        [
            html.escape(r.model),
            TITLES[r.dataset],
            "any" if pd.isna(r.floats) else str(int(4 * r.floats)),
            r.teacher,
            number(r.mrr),
            number(r.hits),
            html.escape(r.source),
        ]
        for r in said.rename(columns={"hits@10": "hits"}).itertuples()
    ]
    head = ["model", "graph", "bytes per entity", "teacher", "MRR", "Hits@10", "read in"]
    return html_table("Models published elsewhere, as their sources state them", head, rows)
