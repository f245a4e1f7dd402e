"""What `results/bench/bench.json` and `gpu.json` hold, as tables and sentences for the README and the book."""

from __future__ import annotations

import json
from typing import Any

from kgdistil import records
from kgdistil.paper.bench.peers import OURS

Table = tuple[list[str], list[list[str]]]  # what stands above its columns, and its rows


def gpu() -> dict[str, Any] | None:
    """`results/bench/gpu.json`, or None where no GPU was measured."""
    path = records.results_folder() / "bench" / "gpu.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def speeds(report: dict[str, Any]) -> list[Table]:
    """Training and filtered ranking: ours, and how many times as fast that is as each peer."""
    ratio = {(r["peer"], r["model"], r["dim"]): r for r in report["ratios"]}
    peers = list(dict.fromkeys(r["peer"] for r in report["ratios"]))
    own = [r for r in report["contenders"] if r["contender"] == OURS]

    def times(peer: str, row: dict[str, Any], what: str) -> str:
        found = ratio.get((peer, row["model"], row["dim"]))
        return f"{found[what]:.{1 if found[what] < 10 else 0}f}×" if found else "–"

    tables = []
    for what, name, value in (
        ("training", "Training", lambda r: f"{r['epoch_seconds']:.3f} s/epoch"),
        ("ranking", "Filtered ranking", lambda r: f"{r['ranking_queries_per_second']:,.0f} queries/s"),
    ):
        rows = [[f"{r['model']} d={r['dim']}", value(r), *(times(p, r, what) for p in peers)] for r in own]
        tables.append(([name, OURS, *(f"vs {p}" for p in peers)], rows))
    return tables


def how_ranked(report: dict[str, Any]) -> str:
    """Which triples a timed call ranked, in which batches; older files know neither batches nor the same triples."""
    rows = [r for r in report["contenders"] if "ranked_triples" in r]
    counts = {
        who: sorted({r["ranked_triples"] for r in rows if (r["contender"] == OURS) == who}) for who in (True, False)
    }
    ours, theirs = (" or ".join(f"{n:,}" for n in counts[who]) for who in (True, False))
    if not theirs:
        return ""
    if ours != theirs:
        return f"A timed call ranked {ours} test triples of ours and {theirs} of the peers', which is not the same."
    tried = sorted({t["batch"] for r in rows for t in r.get("batches_tried", [])})
    best = f"each peer in the best of batches of {', '.join(map(str, tried))}; " if tried else ""
    return (
        f"All rank the same {ours} test triples a call, {best}what a peer sets up for it is not timed, ours is timed "
        "whole."
    )


def on_gpu(report: dict[str, Any]) -> Table:
    """A training step and the ranking of a test split on a GPU."""
    ranked = {(r["model"], r["dim"]): r for r in report["ranking"]}
    rows = []
    for step in report["training"]:
        r = ranked[step["model"], step["dim"]]
        rows.append(
            [
                f"{step['model']} d={step['dim']}",
                f"{1e3 * step['step_seconds']:.3f}",
                f"{step['thousand_epochs_seconds']:.0f}",
                f"{step['times_floor']:.1f}",
                "–" if step["busy"] is None else f"{step['busy']:.0%}",
                f"{2 * r['triples'] / r['seconds']:,.0f}",
            ]
        )
    return [report["device"], "ms a step", "1,000 epochs, s", "times the floor", "busy", "ranked queries/s"], rows
