"""Size and speed: Table 5, and a step against whole lists."""

from __future__ import annotations

import json

from book.build.html import difference, html_table, number, run_link
from book.build.pages.shown import Shown, none_yet
from kgdistil import records


def table5(shown: Shown) -> str:
    rows = [
        [
            f"{r.model} d={r.dim}",
            f"{int(r.parameters):,}",
            "same" if r.parameters == r.parameters_paper else f"paper {int(r.parameters_paper):,}",
            number(r.seconds, 2),
            number(r.seconds_paper, 1),
            f"{r.speedup:.2f}×",
            f"{r.speedup_paper:.2f}×",
            difference(r.speedup_difference, 2, 0.05),
            f"{r.latency_p50_us:,.0f}",
            f"{r.latency_p99_us:,.0f}",
            run_link(r.run, "record"),
        ]
        for r in shown.frames["table5"].itertuples()
    ]
    head = [
        "model",
        "parameters",
        "the paper's",
        "seconds, ours",
        "the paper",
        "speed-up, ours",
        "the paper",
        "difference",
        "one query: median µs",
        "99th percentile µs",
        "run",
    ]
    return html_table("Table 5: parameters and inference time of 93,003 triples", head, rows)


def lists_speed(shown: Shown) -> str:
    """What a step against whole lists costs, from `results/bench/lists.json`."""
    path = records.results_folder() / "bench" / "lists.json"
    if not path.is_file():
        return none_yet("python -m kgdistil.paper.bench.lists")
    bench = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [
            f"{r['model']} d={r['dim']}",
            f"{1e3 * r['seconds']:.1f}",
            f"{1e3 * r['pytorch_seconds']:,.0f}",
            f"{r['ratio']:.1f}×",
            f"{r['share_of_peak']:.0%}",
        ]
        for r in bench["rows"]
    ]
    head = ["model", "ours, ms", "PyTorch alone, ms", "as fast", "of the peak"]
    title = f"A step of {bench['queries']} queries and {bench['candidates']:,} candidates, {bench['device']}"
    return html_table(title, head, rows)


def bench_device(shown: Shown) -> str:
    bench = json.loads((records.results_folder() / "bench" / "bench.json").read_text(encoding="utf-8"))
    return str(bench["device"])
