"""Size and speed: Table 5, the peers, a GPU, and a step against whole lists."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from book.build.html import difference, html_table, number, run_link
from book.build.pages.shown import Shown, none_yet
from kgdistil import records
from kgdistil.paper import reading
from kgdistil.paper.bench import told
from kgdistil.paper.bench import waits as spun
from kgdistil.paper.bench.step import path_of


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


def step_speed(shown: Shown) -> str:
    """What a whole step of sampled softmax costs, from `results/bench/step.json`, and beside it in float32."""
    told = list[str]()
    for path in filter(Path.is_file, (path_of(), path_of(products="float32"))):
        bench = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            [
                r["kind"],
                f"{1e3 * r['seconds']:.1f}",
                f"{1e3 * r['pytorch_seconds']:.1f}",
                f"{r['ratio']:.1f}×",
                f"{r['share_of_peak']:.0%}",
                f"{r['outside_products']:.0%}",
            ]
            for r in bench["rows"]
        ]
        head = ["step of", "ours, ms", "eager PyTorch, ms", "as fast", "of the peak", "outside matrix products"]
        about = f"ComplEx on {bench['graph']['name']}, {bench['device']}, products in {bench['rows'][0]['products']}"
        told += [html_table(f"A step of sampled softmax, {about}", head, rows), *busy_speed(bench)]
    return "\n\n".join(told) or none_yet("python -m kgdistil.paper.bench.step")


def busy_speed(bench: dict[str, Any]) -> list[str]:
    """A step beside busy processes, by the number of threads, and the number that training chooses."""
    if not (rows := bench.get("beside")):
        return []
    threads = sorted({r["threads"] for r in rows})
    shown = []
    for busy in sorted({int(r["busy"]) for r in rows}):
        own = {r["threads"]: r for r in rows if r["busy"] == busy}
        chosen = own[threads[0]]["chosen"]
        name = others(busy) if busy else "no"
        shown.append([name, *(f"{1e3 * own[n]['seconds']:.1f}" for n in threads), str(chosen)])
    return [
        html_table("A teacher's step beside other work, ms", ["beside", *map(str, threads), "threads chosen"], shown)
    ]


def others(busy: int) -> str:
    return "one busy process" if busy == 1 else f"{busy} busy processes"


def waits(shown: Shown) -> str:
    """A step by how long idle threads spin before they sleep, from `bench.waits`."""
    if not spun.path().is_file():
        return none_yet("python -m kgdistil.paper.bench.waits")
    bench = json.loads(spun.path().read_text(encoding="utf-8"))
    taken = {(r["kind"], r["spins"], int(r["busy"]), r["threads"]): r["seconds"] for r in bench["rows"]}
    kinds, spins, busy, threads = ([*dict.fromkeys(parts)] for parts in zip(*taken, strict=True))
    columns = [(0, max(threads)), *itertools.product([n for n in busy if n], sorted(threads, reverse=True))]
    rows = [
        [kind, f"{count:,}", *(f"{1e3 * taken[kind, count, *column]:.1f}" for column in columns)]
        for kind in kinds
        for count in spins
    ]
    named = [f"{others(busy) if busy else 'quiet'}, {n} thread{'s' * (n > 1)}" for busy, n in columns]
    title = f"A step by how often an idle thread looks for work before it sleeps, ms, {bench['device']}"
    return html_table(title, ["step of", "spins", *named], rows)


def bench_device(shown: Shown) -> str:
    return str(reading.benchmark()["device"])


def peers_speed(shown: Shown) -> str:
    """How fast this project trains and ranks beside the peers, and how that was measured."""
    report = reading.benchmark()
    tables = [html_table(f"{head[0]}, {report['device']}", ["", *head[1:]], rows) for head, rows in told.speeds(report)]
    return "\n\n".join([*tables, told.how_ranked(report)])


def peers_differ(shown: Shown) -> str:
    """What of a peer's work could not be made the same, as the record has it."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in reading.benchmark()["contenders"]:
        if differs := row.get("settings", {}).get("differs"):
            models = said.setdefault((row["contender"], differs), [])
            models += [row["model"]] * (row["model"] not in models)
    return "\n".join(f"- {peer} ({', '.join(models)}): {differs}" for (peer, differs), models in said.items())


def gpu_speed(shown: Shown) -> str:
    """Our steps and rankings on a GPU, where one was measured."""
    report = told.gpu()
    if report is None:
        return none_yet("python -m kgdistil.paper.bench.gpu")
    head, rows = told.on_gpu(report)
    return html_table(f"Training and filtered ranking, {head[0]}", ["", *head[1:]], rows)
