"""The reference pages: the package's modules, the runs, this build, CONTRIBUTING and CITATION."""

from __future__ import annotations

import html
import json
import platform
from importlib.metadata import version
from pathlib import Path

import kgdistil
from book.build.html import html_table, number, run_link
from book.build.pages.shown import Shown
from book.build.sources import SOURCES, digest
from kgdistil import records


def modules(shown: Shown) -> list[str]:
    """The package's modules, in reading order: the paper's equations first, then room by room. Without the scripts of
    `kgdistil.paper`, which nobody calls but the notebooks and this book."""
    first = ["graph", "models", "losses", "sampling", "config", "evaluation", "checkpoint", "records"]
    home = Path(kgdistil.__file__).parent
    there = [p.relative_to(home).with_suffix("") for p in sorted(home.rglob("*.py"))]
    named = [".".join(p.parts) for p in there if not p.name.startswith("_") and p.parts[0] != "paper"]
    rooms = ("training", "kernels", "graphs", "compress", "answer", "students", "distillation")
    rest = sorted(set(named) - set(first), key=lambda n: (rooms.index(r) if (r := n.split(".")[0]) in rooms else -1, n))
    return ["kgdistil"] + [f"kgdistil.{name}" for name in [*first, *rest]]


def runs(shown: Shown) -> str:
    rows = [
        [
            run_link(r["id"], r["id"]),
            r["finished"].replace("T", " ").rstrip("Z"),
            f"<code>{(r['commit'] or 'none')[:10]}</code>" + (" + changes" if r["dirty"] else ""),
            f"{r['seconds']:,.0f}",
            str(r["epochs"]),
            number(r["test"]["both"]["mrr"]),
            html.escape(r["device"]),
            f"{r['versions']['torch']}, {r['versions']['numpy']}",
        ]
        for r in sorted(shown.records.values(), key=lambda r: r["finished"], reverse=True)
        if r["config"]["dataset"] != "umls"
    ]
    head = ["run", "finished (UTC)", "commit", "seconds", "epochs", "test MRR", "device", "torch, numpy"]
    return html_table("Recorded runs, the newest first", head, rows)


def executed(shown: Shown) -> str:
    """How the notebooks' outputs came about, with a table of those that were run."""
    if not shown.executed:
        return "They are shown as they are committed; this build did not run them."
    return (
        "```{nb-exec-table}\n```\n\nTheir outputs come from a run with exactly the package, notebooks and results of "
        "this build: their cache and everything they train lie in a folder named after the sum of those files, and a "
        "change of any of them starts a new one."
    )


def build(shown: Shown) -> str:
    """What this very book was built with."""
    made = {
        "commit": (records.git("rev-parse", "HEAD") or "none")[:10],
        "sum of the sources": digest(SOURCES),
        "python": platform.python_version(),
        "processor": records.describe_device("cpu"),
    }
    for name in ("kgdistil", "torch", "numpy", "pandas", "jupyter-book", "sphinx", "sphinx-book-theme"):
        made[name] = version(name)
    return html_table("This build", ["what", "value"], ([k, f"<code>{v}</code>"] for k, v in made.items()))


def contributing(shown: Shown) -> str:
    """CONTRIBUTING.md below a heading of this page."""
    text = (records.root() / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n", 1)[1]
    return text.replace("\n## ", "\n### ")


def citation(shown: Shown) -> str:
    return (records.root() / "CITATION.cff").read_text(encoding="utf-8")


def try_missing(shown: Shown) -> str:
    missing = json.loads((shown.source / "site" / "try" / "graphs.json").read_text(encoding="utf-8"))["missing"]
    return "".join(f"\n- {entry['title']}: {entry['reason']}" for entry in missing)
