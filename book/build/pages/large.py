"""A graph of eight million entities, and its packages alone: what each step cost, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from book.build.html import html_table
from book.build.pages.rules import PARTS
from book.build.pages.shown import Shown, none_yet, picture
from kgdistil import records
from kgdistil.paper import plots
from kgdistil.paper.bench import candidates, passes, step
from kgdistil.paper.bench.large import FEWEST, path_of
from kgdistil.paper.methods import OF_BYTES
from kgdistil.paper.rivals import BY_FAISS
from kgdistil.training.loop import CHECKPOINT_SECONDS, LONGEST

STEP = "python -m kgdistil.paper.bench.step"
BENCH = "python -m kgdistil.paper.bench.large"
PACKAGES = f"{BENCH} packages.tsv --sample 0 --ask depends source section"
COMMANDS = {
    "debian": f"{BENCH} debian.tsv --ask in_package in_folder depends section",
    "packages": PACKAGES,
    "packages-64": f"{PACKAGES} --budget 64B/entity --name packages-64",
}
WORDS = {
    "teacher": "teacher",
    "rounded": "teacher, rounded",
    "alone": "student alone",
    "distilled": "student, distilled",
}
GIB = 1 << 30
AIM = 150_000  # triples a second of a teacher of the largest graph


def each(made: Callable[[str, dict[str, Any]], str], missing: Callable[[str], str] = lambda command: "") -> str:
    """What is made of each graph's results, or what `missing` says of the command that makes them."""
    parts = []
    for name, command in COMMANDS.items():
        path = path_of(name)
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        parts.append(missing(command) if told is None else made(name, told))
    return "".join(parts)


def in_order(models: dict[str, Any]) -> Iterator[str]:
    return (name for name in WORDS if name in models)


def large_graphs(shown: Shown) -> str:
    """Sizes of the graphs, and what reading took."""

    def made(name: str, told: dict[str, Any]) -> str:
        graph = told["graph"]
        splits = f"{graph['train']:,} training, {graph['valid']:,} validation and {graph['test']:,} test triples"
        text = f"\n- **{name}**: {graph['entities']:,} entities, {graph['relations']} relations, {splits}; SHA-256 "
        text += f"`{graph['sha256'][:16]}…`; read in {told['read_seconds']:.0f} s."
        text += f" What the budget buys: {told['plan']}."
        each = told["bytes_per_entity"]
        sizes = {name: size * graph["entities"] / 1e6 for name, size in each.items()}
        text += (
            f" The teacher takes {each['teacher']:,} bytes an entity, {sizes['teacher']:,.0f} MB in all, the student "
        )
        return f"{text}{each['student']}, {sizes['student']:,.0f} MB.\n"

    return each(made, none_yet)


def large_cost(shown: Shown) -> str:
    """Time and memory of each run."""

    def made(name: str, told: dict[str, Any]) -> str:
        rows = []
        for model in in_order(told["runs"]):
            run = told["runs"][model]
            speed = run["graph"]["train"] * run["epochs"] / run["seconds"]
            memory = f"{told['memory_told'][model] / GIB:.2f}"
            rows.append([WORDS[model], str(run["epochs"]), f"{run['seconds'] / 3600:.2f}", f"{speed:,.0f}", memory])
        head = ["run", "epochs", "hours", "triples a second", "GiB told"]
        return html_table(f"{name}: what training cost, {told['device']}", head, rows)

    return each(made)


def large_reading(shown: Shown) -> str:
    """What a file costs to be read, and to be read again from its copy: `bench.reading`."""
    path = records.results_folder() / "bench" / "reading.json"
    if not path.is_file():
        return none_yet("python -m kgdistil.paper.bench.reading packages.tsv debian.tsv")
    told, rows = json.loads(path.read_text(encoding="utf-8")), []
    for row in told["rows"]:
        about = [row["file"].removesuffix(".tsv"), f"{row['bytes'] / 1e6:,.0f}", f"{row['sizes']['entities']:,}"]
        took = [f"{row[x]['seconds']:.1f}" for x in ("first", "again")]
        peak = [f"{row[x]['peak_bytes'] / GIB:.2f}" for x in ("first", "again")]
        rows.append([*about, took[0], peak[0], took[1], peak[1]])
    head = ["graph", "MB of text", "entities", "seconds to read", "GiB at the peak", "again, seconds", "again, GiB"]
    return html_table(f"Reading a graph, and its copy, {told['device']}", head, rows)


def large_passes(shown: Shown) -> str:
    """What today's recipe takes on the largest graph, from a few passes of each run: `bench.passes`."""
    path = passes.path_of("debian")
    if not path.is_file():
        return none_yet("python -m kgdistil.paper.bench.passes debian.tsv")
    told, rows = json.loads(path.read_text(encoding="utf-8")), []
    for row in told["rows"]:
        check = f"{row['check_seconds']:.0f}"
        share = f"{row['check_seconds'] / row['pass_seconds']:.1%}"
        used, needed = row["peak"] - row["before"], sum(row["told"].values())
        memory = [f"{used / GIB:.1f}", f"{needed / GIB:.1f}", f"{row['peak'] / GIB:.1f}"]
        time = [str(row["passes"]), f"{row['pass_seconds']:.0f}", f"{row['triples_a_second']:,}"]
        rows.append([PARTS[row["run"]], *time, check, share, *memory])
    head = ["run", "passes of the recipe", "seconds of a pass", "triples a second", "seconds of a validation"]
    head += ["of a pass", "GiB used at the peak", "GiB told", "GiB of the process"]
    table = html_table(f"debian: a few passes with today's settings, {told['device']}", head, rows)
    hours = sum(row["passes"] * row["pass_seconds"] for row in told["rows"]) / 3600
    lost = [f"{kill['lost_seconds']:.0f} s ({kill['while']})" for row in told["rows"] for kill in row["kills"]]
    first, last = told["rows"][0], told["rows"][-1]
    drawn = [row["config"]["negatives"] for row in (first, last)]
    return (
        f"{table}\nThe distilled student, with {drawn[1]:,} candidates drawn, takes "
        f"{last['pass_seconds'] / first['pass_seconds']:.1f} times as long a pass as the teacher with {drawn[0]:,}. "
        f"All passes of the recipe take {hours:.1f} hours at that pace; reading, rounding, the last ranks and saving "
        f"come on top. Killed at a random moment of up to {passes.WITHIN:.0f} s after its first checkpoint, or of its "
        f"last ranks, and started again, a run had lost what it did in the last {', '.join(lost)}. A checkpoint is due "
        f"after {CHECKPOINT_SECONDS * LONGEST:.0f} s at the latest.\n"
    )


def large_step(shown: Shown) -> str:
    """What the steps of teachers of the largest graph are made of, from `results/bench/step-debian.json`."""
    path = step.path_of("debian")
    if not path.is_file():
        return none_yet(f"{STEP} --large debian.tsv")
    bench = json.loads(path.read_text(encoding="utf-8"))
    names = {"seconds": "", "product_seconds": ", its matrix products alone", "pytorch_seconds": ", in eager PyTorch"}
    rows = [
        [
            row["kind"],
            *(f"{row[key]:,}" for key in ("drawn", "candidates")),
            f"{1e3 * row['seconds']:.1f}",
            *(f"{row['triples_a_second'] * row['seconds'] / row[key]:,.0f}" for key in names),
        ]
        for row in bench["rows"]
    ]
    title = f"A teacher's step on debian, {bench['device']}, {bench['rows'][0]['products']}"
    head = [
        "step of",
        "drawn",
        "candidates, with answers",
        "ms",
        *(f"triples a second{name}" for name in names.values()),
    ]
    fast = [f"{row['kind']}, {row['drawn']:,} drawn" for row in bench["rows"] if row["triples_a_second"] >= AIM]
    reached = f"these reach it: {'; '.join(fast)}" if fast else "none of these reaches it"
    return html_table(title, head, rows) + f"\nThe aim was {AIM:,} triples a second; {reached}.\n" + by_drawn()


def by_drawn() -> str:
    """Teachers by how many candidates a batch draws, from `bench.candidates`."""
    path, parts = candidates.path("teachers"), list[str]()
    if not path.is_file():
        return none_yet("python -m kgdistil.paper.bench.candidates packages.tsv dim=60 2048:28 512:45 256:57")
    for name, told in json.loads(path.read_text(encoding="utf-8")).items():
        rows = []
        for i, r in enumerate(told["rows"]):
            took = f"{r['seconds'] / 60:.0f}"
            rows.append([f"{r['negatives']:,}", str(r["passes"]), took, f"{r['mrr']:.3f}", gain(r) if i else "–"])
        title = f"Teachers of {name}, dimension {told['dim']}, by how many candidates a batch draws, {told['device']}"
        parts.append(html_table(title, ["drawn", "passes", "minutes, with validation", "test MRR", "difference"], rows))
    return "".join(parts)


def large_quality(shown: Shown) -> str:
    """MRR of the four models by relation, with a picture."""

    def made(name: str, told: dict[str, Any]) -> str:
        models = list(in_order(told["rows"][0]["models"]))
        rows = [
            [row["relation"], f"{row['triples']:,}", *(interval(row["models"][model]) for model in models)]
            for row in told["rows"]
        ]
        title = f"{name}: test MRR by relation, {told['ranked']:,} triples against all entities"
        table = html_table(title, ["relation", "triples", *(WORDS[model] for model in models)], rows)
        alt = f"Test MRR of {', '.join(WORDS[model] for model in models)} by relation on {name}."
        figure = plots.by_relation(told["rows"], {model: WORDS[model] for model in models})
        fewest = f"\nA relation with fewer than {FEWEST} of these triples has no row of its own.\n"
        drawn = picture(shown, f"large_{name}", figure, alt, "Bars are two standard errors.")
        return table + fewest + drawn + gains(told)

    return each(made)


def interval(found: dict[str, float]) -> str:
    """A mean and twice its standard error."""
    return f"{found['mrr']:.3f} ± {2 * found['se']:.3f}"


def gain(found: dict[str, Any]) -> str:
    """A difference and its interval."""
    return f"{found['gain']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def gains(told: dict[str, Any]) -> str:
    """What the distilled student has more than the others."""
    called = {name: f"the {word}" for name, word in WORDS.items()}
    called |= {name: OF_BYTES[name].label for name in BY_FAISS}
    parts = [f"than {called[name]} {gain(x)}" for name, x in told["differences"].items()]
    return f"\nThe distilled student has, with 95 % intervals by the paired bootstrap, {', '.join(parts)}.\n"


def large_answers(shown: Shown) -> str:
    """What the student answers to test queries."""

    def made(name: str, told: dict[str, Any]) -> str:
        rows = [[x["head"], x["relation"], x["tail"], " · ".join(x["answers"])] for x in told["examples"]]
        head = ["head", "relation", "the test triple's tail", "the student's best, from all entities"]
        return html_table(f"{name}: what the student answers", head, rows) if rows else ""

    return each(made)
