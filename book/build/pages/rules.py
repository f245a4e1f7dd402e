"""Settings without a search: what searches found, and how a rule of them does on a graph that is left out."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from book.build.html import html_table, number
from book.build.pages.shown import Shown, none_yet, picture
from kgdistil.paper import fitting, plots
from kgdistil.paper.bench import budgets, stranger

PARTS = {"teacher": "teacher", "stage 1": "student, distilled", "no-DS": "student alone"}
CHOSEN = {"stage 1": "distilled", "no-DS": "alone", "paths": "taught by paths"}  # what `distil` keeps
AIM = 0.97  # of the searched MRR is what the rule is to reach
WAYS = {
    "floats": "few floats of RotatE",
    "rounded": "few floats of ComplEx, rounded",
    "codes": "codes that are learned",
}
CLOSE = 0.05  # the share that a student keeps is to be foretold so closely


def rule_searches(shown: Shown) -> str:
    """What searches found on each graph, beside the recipe's own settings."""
    rows = []
    for found in fitting.read("searches"):
        for part, word in PARTS.items():
            trials = fitting.complete(found, part)
            best = max(trials, key=lambda row: row["valid_mrr"])
            config = best["config"]
            penalty = f"{config['regulariser'].upper()} {config['penalty']:.2g}" if config["penalty"] else "none"
            taught = f"{config['alpha']:.2g}, {config['temperature']:.2g}" if part == "stage 1" else "–"
            settings = [config["model"], f"{config['lr']:.2g}", penalty, f"{config['relation_weight']:g}"]
            rows.append(
                [
                    f"{found['dataset']}, {found['bytes']} bytes",
                    word,
                    f"{sum(row['part'] == part for row in found['trials'])}",
                    number(trials[0]["valid_mrr"]),
                    number(best["valid_mrr"]),
                    *settings,
                    str(config["epochs"]),
                    taught,
                ]
            )
    if not rows:
        return none_yet("python -m kgdistil.paper.fitting search GRAPH")
    head = [
        "graph and size",
        "part",
        "trials",
        "first",
        "best",
        "model",
        "rate",
        "penalty",
        "relations",
        "epochs",
        "α, T",
    ]
    title = (
        "What searches found, by validation MRR; first: the recipe's own settings, a student's from the best teacher"
    )
    return html_table(title, head, rows)


def rule_left_out(shown: Shown) -> str:
    """The rule of all other graphs on each graph, beside a search on that graph itself."""
    tests = fitting.read("left_out")
    frame = fitting.table(tests)
    if frame.empty:
        return none_yet("python -m kgdistil.paper.fitting test GRAPH")
    rows = [
        [
            f"{row['graph']}, {row['bytes']} bytes",
            *(f"{row[f'{part}, test']:.0%}" for part in PARTS),
            "–" if pd.isna(row["expected share"]) else f"{row['expected share']:.0%}",
            f"{row['kept share']:.0%}",
        ]
        for row in frame.to_dict("records")
    ]
    head = ["left out", *(f"{word}: of the searched" for word in PARTS.values()), "share expected", "share kept"]
    table = html_table("The rule on a graph that it was not fitted on, by test MRR", head, rows)
    reached = int((frame["stage 1, test"] >= AIM).sum())
    told = frame.dropna(subset="expected share")
    near = int(((told["expected share"] - told["kept share"]).abs() <= CLOSE).sum())
    text = f"\nStudents reach {AIM:.0%} of the searched ones in {reached} of {len(frame)} tests; what a student "
    text += f"keeps of its teacher came within {CLOSE:g} of what was expected in {near} of {len(told)}."
    if len(told) < len(frame):
        text += " The others' expectations were not measured in this way."
    text += "\n"
    chosen = {(found["dataset"], found["bytes"]): found.get("chosen") for found in fitting.read("searches")}
    older = [x["dataset"] for x in tests if chosen.get((x["dataset"], x["bytes"])) not in (None, x["searched"])]
    if older:
        text += f"\nSearched again since: {', '.join(older)}. Such a row stands beside the earlier "
        text += "search, by the rule of that day.\n"
    later = [f"{x['dataset']} of {x['of']}" for x in tests if "of" in x]
    if later:
        text += f"\nLater lists, beside the search of earlier ones: {', '.join(later)}.\n"
    names = {found["dataset"] for found in fitting.read("searches")}
    fewer = [x["dataset"] for x in tests if names - {x.get("of", x["dataset"]), *x.get("others", names)}]
    if fewer:
        text += f"\nMeasured before all others had a vote: {', '.join(fewer)}.\n"
    alt = "MRR by the rule as a share of the searched one: " + ", ".join(f"{row[0]} {row[2]}" for row in rows) + "."
    return text + picture(shown, "rule", plots.left_out(frame, PARTS, AIM), alt) + table


def strangers(shown: Shown) -> str:
    """What a user's one command makes of a graph that the rule does not know, beside what was published of it."""
    path = stranger.path_of()
    if not path.is_file():
        return none_yet("python -m kgdistil.paper.bench.stranger wn18rr fb15k-237")
    rows = []
    for name, found in json.loads(path.read_text(encoding="utf-8")).items():
        mrr = {row["model"]: number(row["mrr"]) for row in found["metrics"]}
        published = "–" if found["published"] is None else number(found["published"])
        ours = [f"{mrr[found['chosen']]} ({CHOSEN[found['chosen']]})", *(mrr[part] for part in PARTS)]
        share = [f"{found['predicted']['share']:.0%}", f"{kept(found):.0%}"] if found["predicted"] else ["–", "–"]
        rows.append([f"{name}, {found['budget']}", published, *ours, *share, f"{found['seconds'] / 60:.0f}"])
    head = ["graph as a stranger", "ComplEx of full size, published", "student that is kept", *PARTS.values()]
    head += ["share told", "share kept"]
    title = "A graph that the rule does not know, by one command, test MRR"
    return html_table(title, [*head, "minutes in all"], rows)


def small_budgets(shown: Shown) -> str:
    """What is kept of budgets so small that the frontier measured none of them, in three ways."""
    if not budgets.path().is_file():
        return none_yet(budgets.COMMAND)
    frame = pd.DataFrame(json.loads(budgets.path().read_text(encoding="utf-8"))["rows"])
    rows = []
    for (graph, budget), mine in frame.groupby(["graph", "budget"], sort=False):
        by_way = mine.set_index("way")
        best = max(row["mrr"]["valid"] for _, row in mine.iterrows())
        cells = []
        for way in WAYS:
            if way not in by_way.index:
                cells.append("–")
                continue
            row = by_way.loc[way]
            mrr = number(row["mrr"]["test"])
            shape = f"{row['dim']}, {row['precision']}"
            cells.append(f"{f'<strong>{mrr}</strong>' if row['mrr']['valid'] == best else mrr} ({shape})")
        rows.append([f"{graph}, {budget}", *cells])
    title = "Budgets below what was measured, test MRR (dimension, precision); bold: the best on validation"
    return html_table(title, ["graph, budget", *WAYS.values()], rows)


def kept(found: dict[str, Any]) -> float:
    """The share of its teacher's test MRR that the distilled student keeps."""
    mrr = {row["model"]: row["mrr"] for row in found["metrics"]}
    return mrr["stage 1"] / mrr["teacher"]
