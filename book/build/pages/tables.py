"""Tables 3, 4 and 6 beside the paper's."""

from __future__ import annotations

from book.build.html import again, html_table
from book.build.html import beside as cell_beside
from book.build.pages.shown import METHOD_WORDS, METRICS, Shown, picture
from kgdistil.paper import plots, tables
from kgdistil.paper.methods import TITLES


def cost(shown: Shown, number: int, protocol: str) -> str:
    """How long the recorded runs of a table took."""
    hours = tables.hours(number, protocol)
    cores = hours.pop(tables.ONE_CORE)
    took = "".join(f" and {spent:.1f} hours of {device}" for device, spent in hours.items())
    return (
        f"The runs of this table, their starts and their searches took {cores:.1f} hours of one core{took} by their "
        f"records, so about {cores / 2:.1f} hours of two{' besides' * bool(took)}: `make reproduce TABLE={number} "
        f"{'PROTOCOL=paper ' * (protocol == 'paper')}JOBS=2`."
    )


def table(shown: Shown, name: str, protocol: str) -> str:
    """Table 3, 4 or 6, one table for each model: ours, below it the paper's and the difference."""
    frame = shown.frames[name][shown.frames[name]["protocol"] == protocol]
    metrics = list(dict.fromkeys(frame["metric"]))
    blocks = []
    for model, rows in frame.groupby("model", sort=False):
        lines = []
        for (dim, method), cell in rows.groupby(["dim", "method"], sort=False):
            by = {r.metric: r for r in cell.itertuples()}
            one = next(iter(by.values()))
            lines.append([f"d={dim} {METHOD_WORDS[method]}", *(cell_beside(by[m]) for m in metrics), again(one)])
        what = f"{model} on {TITLES[frame['dataset'].iloc[0]]}, protocol {protocol}"
        blocks.append(html_table(what, ["", *(METRICS[m] for m in metrics), "run"], lines))
    return "\n".join(blocks)


def beside(shown: Shown, name: str, protocol: str) -> str:
    frame = shown.frames[name]
    ran = frame[(frame["protocol"] == protocol) & frame["ours"].notna()]
    cells = frame[frame["protocol"] == protocol]["cell"].nunique()
    alt = (
        f"MRR over the dimension for each model: the paper dashed, ours solid; {ran['cell'].nunique()} of "
        f"{cells} cells have run. The numbers are in the tables below."
    )
    return picture(shown, f"{name}-{protocol}", plots.beside_the_paper(frame, protocol), alt)


def epochs(shown: Shown, name: str, protocol: str) -> str:
    """The most epochs that a run of a table may take."""
    frame = shown.frames[name]
    runs = set(frame[frame["protocol"] == protocol]["run"]) & set(shown.records)
    return str(max((shown.records[run]["config"]["epochs"] for run in runs), default="–"))
