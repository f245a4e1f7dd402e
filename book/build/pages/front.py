"""The front page: what a reader gains, what did not work, and how much has run."""

from __future__ import annotations

import pandas as pd

from book.build import readme
from book.build.html import html_table, run_link
from book.build.lead import lead as opening
from book.build.pages.shown import Shown, picture
from kgdistil.distillation import recipes
from kgdistil.distillation.statistics import SAME
from kgdistil.paper import plots, tables
from kgdistil.paper.cells import PROTOCOLS, cells_of
from kgdistil.paper.methods import TITLES
from kgdistil.paper.reading import TABLES, record_of
from kgdistil.training.loop import Run


def lead(shown: Shown) -> str:
    """What a reader gains, and what did not work: the README's opening, with links of the book."""
    return opening(run_link)


def price(shown: Shown) -> str:
    """What one distillation buys and costs, in two sentences."""
    runs = readme.distillation()
    teacher, alone, last = (runs[name] for name in ("teacher", "no-DS", list(runs)[-1]))
    small, large = (recipes.bytes_per_entity(x.config) for x in (last, teacher))
    gain = last.test() - alone.test()
    told = "and nothing beyond that size: the same student trained alone is as good"
    if abs(gain) >= SAME:
        told = f"while the same student trained alone reaches {alone.test():.3f}" + (
            ", so here the teacher did not pay" if gain < 0 else ", so the teacher pays"
        )
    seconds = sum(run.record["seconds"] for name, run in runs.items() if name != "no-DS")
    return (
        f"It buys an entity of {small} bytes instead of {large}, {large / small:g} times less. It costs "
        f"{1 - last.test() / teacher.test():.0%} of the teacher's MRR ({last.test():.3f} instead of "
        f"{teacher.test():.3f}) and the training of teacher and student in turn ({seconds / 60:.0f} minutes on "
        f"{last.record['device']}), {told} ({about(last)}, one seed)."
    )


def about(run: Run) -> str:
    return f"{run.config.model} on {TITLES[run.config.dataset]}"


def front_table(shown: Shown) -> str:
    """The four runs of that distillation."""
    runs = readme.distillation()
    frame = recipes.table(runs)
    frame = frame[["MRR", "Hits@10", "bytes per entity", "dim", "parameters", "Hits@1", "Hits@3"]]
    rows = ([run_link(runs[name].id, name), *map(str, row)] for name, row in zip(frame.index, frame.values))
    what = f"{about(runs['teacher'])}, test split, filtered ranks of both sides"
    return html_table(what, ["run", *frame.columns], rows)


def quality_picture(shown: Shown, model: str = "RotatE", dataset: str = "wn18rr") -> str:
    """MRR against bytes per entity: the tuned cells where they have run, else the notebook's runs."""
    frame = tables.quality(dataset, model)
    if not {"teacher", "no-DS", "DS"} & set(frame.loc[frame["kind"] == "ours", "method"]):
        runs, names = readme.distillation(), {"teacher": "teacher", "no-DS": "no-DS", "stage 2": "DS"}
        rows = [
            {"kind": "ours", "method": method, "bytes": recipes.bytes_per_entity(run.config), "mrr": run.test()}
            for run, method in ((runs[name], method) for name, method in names.items())
        ]
        frame = pd.concat([frame, pd.DataFrame(rows)])
    said, points = frame[frame["kind"] == "published"], frame[frame["kind"] != "published"]
    words = readme.words_of_quality(points)
    alt = f"Test MRR of {model} on {TITLES[dataset]} against bytes per entity. {words}."
    beyond = '; few bits: <a href="frontier.html">ComplEx, product-quantised</a>'
    beyond = beyond if "distilled" in set(points["method"]) else ""
    caption = (
        f"Quality against size: {model} on {TITLES[dataset]}{beyond}. Filled: our runs; hollow: the paper; crosses: "
        f"{said['model'].nunique() - 1} models published elsewhere"
        ' (<a href="results.html#published-models">sources</a>).'
    )
    return picture(shown, "quality", plots.quality_against_bytes(frame), alt, caption)


def progress(shown: Shown) -> str:
    """How much of the reproduction has run."""
    lines = []
    for protocol in PROTOCOLS:
        cells = dict.fromkeys(c for n in TABLES for c in cells_of(f"table{n}", protocol))
        done = sum(record_of(cell) is not None for cell in cells)
        lines.append(f"{done} of {len(cells)} cells of the protocol *{protocol}*")
    return "Of Tables 3, 4 and 6 there have run " + " and ".join(lines) + "; the others are marked *not run*."
