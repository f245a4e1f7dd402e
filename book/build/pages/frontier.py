"""What a byte buys: every way to fill an entity's bytes, what a query costs, what a soft label should say."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from book.build.html import difference, html_table, interval, linked, number, run_link
from book.build.pages.shown import Shown, none_yet, picture
from kgdistil import records
from kgdistil.compress.size import floats, row_bytes
from kgdistil.config import RunConfig
from kgdistil.distillation.recipes import bytes_per_entity
from kgdistil.distillation.statistics import SAME, spread
from kgdistil.paper import plots, story
from kgdistil.paper.bench import candidates as bench
from kgdistil.paper.bench import large
from kgdistil.paper.bench import nested as sizes_of_one
from kgdistil.paper.cells import CODED, GRAPHS, PATHS, parse
from kgdistil.paper.frontier import DISTILLED, mean_path, means_of, reciprocal_cells, weights
from kgdistil.paper.methods import OF_BYTES, TITLES
from kgdistil.paper.reading import Ours

LARGE = {"teacher": "teacher", "rounded": "rounded", "alone": "coded-alone", "distilled": "distilled"}  # method of each
FORM = {  # of a distilled student of few bits
    "low-rank": ", low rank",
    "committee": ", ensemble of teachers",
    "paths": ", taught by paths",
    "reciprocal": ", reciprocal relations",
}
AIM = 10  # times as fast as ComplEx of 64 dimensions a query of the smallest student was to be


def of_frontier(shown: Shown, dataset: str, name: str = "frontier") -> pd.DataFrame:
    """The rows of a graph."""
    frame = shown.frames[name]
    return frame[frame["dataset"] == dataset] if len(frame) else frame


def sizes(shown: Shown, dataset: str) -> str:
    """The sizes of the students of a graph, in bytes of an entity."""
    frame = of_frontier(shown, dataset)
    if frame.empty:
        return none_yet(f"make frontier DATASET={dataset}")
    most, *rest = sorted(frame.loc[frame["method"] != "teacher", "bytes"].unique(), reverse=True)
    return f"{most} bytes an entity" + (f" down to {rest[-1]}" if rest else "")


def trained(shown: Shown, dataset: str) -> str:
    """How each distilled student of few bits was trained, from the configs of its runs."""
    frame = of_frontier(shown, dataset)
    if frame.empty:
        return none_yet(f"make frontier DATASET={dataset}")
    rows = []
    for r in frame[frame["method"].isin((*DISTILLED, "own-lists"))].itertuples():
        config = shown.records[r.run]["config"]
        first, guide = (shown.records.get(config[role] or "", {}).get("config") for role in ("student", "teacher"))
        width, low = floats(config["model"], config["dim"]), config.get("rank") or 0
        numbers = low or width
        rows.append(
            [
                f"{r.bytes} bytes, <code>{r.method}</code> {run_link(r.run, 'record')}",
                f"{numbers} × {8 * r.bytes / numbers:g} bits" + (f", mapped to {width}" if low else ""),
                f"d={first['dim']}" if first else "–",
                f"d={guide['dim']}" if guide else "paths" if r.method == PATHS else "an ensemble",
                f"{config['alpha']:g}",
                f"{config['penalty']:g}",
                str(config.get("top") or "–"),
                str(config["epochs"]),
            ]
        )
    head = ["student", "an entity", "starts from", "soft labels of", "α", "penalty", "top", "epochs"]
    return html_table(f"How the distilled students of few bits were trained on {TITLES[dataset]}", head, rows)


def beaten(shown: Shown) -> str:
    """In how many comparisons with another way to fill the same bytes the distilled student of few bits is ahead."""
    gains = shown.frames["frontier_gain"]
    if not len(gains):
        return none_yet("make frontier")
    gains = gains[~gains["method"].isin((*DISTILLED, "own-lists"))]
    missing, gains = gains["p"].isna().sum(), gains.dropna(subset=["p"])
    sure, more = gains[gains["p"] < 0.05]["gain"], f" {missing} more have no interval." if missing else ""
    return (
        f"Of {len(gains)} comparisons on {' and '.join(TITLES[name] for name in gains['dataset'].unique())} it is "
        f"significantly better (p < .05) in {(sure > 0).sum()} and significantly worse in {(sure < 0).sum()}." + more
    )


def ensemble(shown: Shown, dataset: str = "wn18rr") -> str:
    """The student of an ensemble beside the one that it goes on from; nothing where it has not run."""
    gains = of_frontier(shown, dataset, "frontier_gain")
    gains = gains[(gains["form"] == "committee") & (gains["method"] == "distilled")] if len(gains) else gains
    if gains.empty:
        return "It has not run here."
    r = gains.iloc[0]
    return (
        f"With {r.bytes} bytes an entity it reaches {linked(r.distilled_mrr, r.distilled_run)} where the student that "
        f"it goes on from has {linked(r.mrr, r.run)}: {r.gain:+.3f}, with a 95 % interval of {interval(r)}."
    )


def paths(shown: Shown, dataset: str = "wn18rr") -> str:
    """A path model, the embedding model beside it and both together as teachers, and their students by bytes."""
    place, frame = mean_path(dataset, PATHS), of_frontier(shown, dataset)
    mine = frame[frame["method"] == PATHS] if len(frame) else frame
    if not place.is_file() or mine.empty:
        return none_yet(f"make frontier DATASET={dataset}")
    found = json.loads(place.read_text(encoding="utf-8"))
    plain = frame[frame["method"] == "distilled"].set_index("bytes")
    own = {"paths": "a path model", "beside": "the distilled student beside it", "both": "both, multiplied"}
    rows = [
        [words, number(found["valid"][k]["both"]["mrr"]), number(found["test"][k]["both"]["mrr"]), "", ""]
        for k, words in own.items()
    ]
    for r in mine.sort_values("bytes", ascending=False).itertuples():
        before = plain.loc[r.bytes] if r.bytes in plain.index else None
        without = "" if before is None else f"{number(before['mrr'])} {run_link(before['run'], 'record')}"
        more = "" if before is None else f"{r.mrr - before['mrr']:+.3f}"
        student = f"{number(r.mrr)} {run_link(r.run, 'record')}"
        rows.append([f"a student of {r.bytes} bytes", number(r.valid_mrr), student, without, more])
    head = ["model", "validation MRR", "test MRR", "distilled without paths", "difference"]
    minutes, length = f"{found['seconds'] / 60:.0f} minutes on {found['threads']} thread(s)", found["paths"]["length"]
    triples = min(found["paths"]["triples"], found["graph"]["train"])
    return html_table(f"What paths teach on {TITLES[dataset]}", head, rows) + (
        f"\n\nPaths of up to {length} triples; their weights were learned in {minutes}, from "
        f"{triples:,} training triples (<code>results/frontier/{place.name}</code>)."
    )


def aimed(shown: Shown) -> str:
    """Whether a query of the smallest students is as many times faster as was aimed at, on each graph measured."""
    frame, told = shown.frames["frontier_speed"], []
    if not len(frame):
        return none_yet("python -m kgdistil.paper.bench.scan")
    few = frame[frame["form"].str.startswith("few bits") & (frame["what"] == "filtered rank")]
    for dataset, rows in few.groupby("dataset", sort=False):
        r = rows[rows["bytes"] == rows["bytes"].min()].sort_values("complex").iloc[-1]
        verdict = "reached" if r.complex >= AIM else "missed"
        told.append(f"on {TITLES[dataset]} {r.complex:.1f} times with {r.bytes} bytes ({verdict})")
    return f"The aim was {AIM} times; {', '.join(told)}."


def frontier(shown: Shown, dataset: str) -> str:
    """Picture, words and tables of a graph's frontier, or what makes them."""
    frame, gains = of_frontier(shown, dataset), of_frontier(shown, dataset, "frontier_gain")
    if frame.empty:
        return none_yet(f"make frontier DATASET={dataset}")
    said = pd.read_csv(records.results_folder() / "published.csv")
    table = shown.frames["table3" if dataset == "wn18rr" else "table4"]
    paper = table.query("protocol == 'tuned' and metric == 'mrr' and model == 'RotatE' and method == 'DS'")
    others = pd.concat(
        [
            said[said["dataset"] == dataset].assign(kind="published", bytes=4 * said["floats"]),
            paper.assign(kind="paper", bytes=[row_bytes("RotatE", dim) for dim in paper["dim"]], mrr=paper["paper"]),
        ]
    )
    words = story.of_frontier(frame, gains, TITLES[dataset])
    drawn = picture(shown, f"frontier-{dataset}", plots.frontier(frame, others), words)
    sizes = sorted(frame["bytes"].unique(), reverse=True)
    seen = [f"{number(r.mrr)}{spread(r.deviation, r.seeds)}" for r in frame.itertuples()]
    cell = {
        (r.method, r.bytes): f"{mrr} / {number(r.hits)} {run_link(r.run, 'record')}"
        for r, mrr in zip(frame.rename(columns={"hits@10": "hits"}).itertuples(), seen, strict=True)
    }
    called = {method: style.label for method, style in OF_BYTES.items()} | {"teacher": "teacher, float32"}
    rows = [
        [f"{called[method]}<br><code>{method}</code>", *(cell.get((method, size), "–") for size in sizes)]
        for method in called
        if (frame["method"] == method).any()
    ]
    table = html_table(
        f"Test MRR / Hits@10 on {TITLES[dataset]} by bytes of an entity; with ± a mean of several seeds, half of the "
        "MRR's 95 % interval (Student's t) and the record of the first",
        ["method", *(f"{size:,} bytes" for size in sizes)],
        rows,
    )
    rows = [
        [
            f"{r.bytes} bytes",
            called[r.method],
            linked(r.mrr, r.run),
            linked(r.distilled_mrr, r.distilled_run) + FORM.get(r.form, ""),
            difference(r.gain),
            interval(r),
            number(r.p, 4),
        ]
        for r in gains.itertuples()
    ]
    head = ["size", "rival", "its MRR", "distilled, few bits", "difference", "95 % interval", "p"]
    beside = html_table(f"The distilled few-bit student against every rival on {TITLES[dataset]}", head, rows)
    files = frame[frame["method"].isin(("teacher", *DISTILLED, "small-distilled"))]
    files = files.dropna(subset=["weights"]).sort_values("weights")
    rows = [
        [
            f"{r.weights / 1000:,.0f} kB",
            called[r.method],
            f"{r.bytes:,} bytes",
            f"{number(r.mrr)}{spread(r.deviation, r.seeds)} {run_link(r.run, 'record')}",
        ]
        for r in files.itertuples()
    ]
    head = ["all weights", "method", "of an entity", "test MRR"]
    whole = html_table(f"Whole files on {TITLES[dataset]}: entities, relations, codebooks and maps", head, rows)
    return f"\n{words}\n{drawn}\n{table}\n{beside}\n{whole}\n"


def frontier_large(shown: Shown, name: str = "packages") -> str:
    """Picture and table of what students of each size have on a graph of one's own, from `results/large`."""
    reports = [large.seeds_of(path) for path in sorted(large.folder().glob(f"{name}*.json"))]
    if not reports:
        return none_yet(
            f"python -m kgdistil.paper.bench.large {name}.tsv --sample 0 --budget 64B/entity --name {name}-64"
        )
    rows, kept = [], dict[int, str]()
    for seeds in reports:
        first, found = seeds[0], large.over_seeds(seeds)
        size, teacher = (first["bytes_per_entity"][x] for x in ("student", "teacher"))
        for model, mean in found.items():
            each = teacher if model == "teacher" else size
            rows.append({"method": LARGE.get(model, model), "bytes": each, **mean, "half": 2 * mean["se"]})
        kept[size] = (
            f"{found['distilled']['mrr'] / found['teacher']['mrr']:.0%} with {size} bytes, of one of {teacher:,}"
        )
    frame = pd.DataFrame(rows).drop_duplicates(["method", "bytes"])
    sizes = sorted(frame["bytes"].unique(), reverse=True)
    ranked, entities = reports[0][0]["ranked"], reports[0][0]["graph"]["entities"]
    called = {method: style.label for method, style in OF_BYTES.items()} | {"teacher": "teacher, float32"}
    cell = {(r.method, r.bytes): f"{r.mrr:.3f} ± {r.half:.3f}" for r in frame.itertuples()}
    shares = ", ".join(kept[size] for size in sizes if size in kept)
    words = f"On {name}, {entities:,} entities, the distilled student keeps of its teacher's test MRR {shares}."
    table = [
        [called[method], *(cell.get((method, size), "–") for size in sizes)]
        for method in called
        if (frame["method"] == method).any()
    ]
    head = ["method", *(f"{size:,} bytes" for size in sizes)]
    title = f"Test MRR on {name} by bytes of an entity, {ranked:,} triples against all entities, two standard errors"
    drawn = picture(shown, f"frontier-{name}", plots.frontier(frame), words)
    return f"\n{words}\n{drawn}\n{html_table(title, head, table)}\n{''.join(map(seeds_said, reports))}"


def seeds_said(seeds: list[dict[str, Any]]) -> str:
    """Of a graph of one's own, what several seeds of a size are, and the least by which the student leads."""
    if len(seeds) == 1:
        return ""
    found, size = large.over_seeds(seeds), seeds[0]["bytes_per_entity"]["student"]
    fewer = [OF_BYTES[LARGE.get(x, x)].label for x, mean in found.items() if mean["seeds"] < len(seeds)]
    said = f"\nWith {size} bytes these are means of {len(seeds)} seeds"
    said += f" (fewer of: {'; '.join(fewer)})" * bool(fewer)
    sums = {told["graph"]["sha256"]: told["graph"]["train"] for told in seeds}
    if len(sums) > 1:
        triples = " and ".join(f"{x:,}" for x in sums.values())
        said += f", of the lists as they were on {len(sums)} days, {triples} training triples"
    parts = []
    for name in found:
        gains = [told["differences"][name] for told in seeds if name in told["differences"]]
        if gains and name != "teacher":
            least = min(gains, key=lambda x: x["gain"])
            parts.append(f"{OF_BYTES[LARGE.get(name, name)].label} {interval(SimpleNamespace(**least))}")
    return (
        f"{said}. The least that the distilled student has more in any seed, as 95 % intervals: {', '.join(parts)}.\n"
    )


def candidates(shown: Shown) -> str:
    """Students by how many candidates a batch draws, from `bench.candidates`."""
    if not bench.path().is_file():
        return none_yet("python -m kgdistil.paper.bench.candidates packages.tsv TEACHER 2048:9 8192:3 --whole")
    found, rows = json.loads(bench.path().read_text(encoding="utf-8")), []
    for name, told in found.items():
        for i, r in enumerate(told["rows"]):
            seen = (difference(r["gain"]), interval(SimpleNamespace(**r))) if i else ("–",) * 2
            about = [f"{name}, {told['precision']}", f"{r['negatives']:,}", str(r["passes"])]
            share = number(r["mrr"] / told["teacher_mrr"], 2)
            rows.append([*about, f"{r['seconds'] / 60:.0f}", number(r["mrr"]), share, *seen])
    head = ["graph", "candidates", "passes", "minutes", "test MRR", "of the teacher's", "difference", "95 % interval"]
    devices = ", ".join(sorted({told["device"] for told in found.values()}))
    return html_table(f"A student by how many candidates a batch draws, {devices}", head, rows)


def nested(shown: Shown) -> str:
    """A row for each nested student: its sizes beside students trained for one size, from `bench.nested`."""
    about, found = list[str](), of_nested()
    alone: dict[str, dict[int, str]] = {}  # by graph and size
    for graph, kind, told in found:
        alone.setdefault(graph, {}).update(
            (r["bytes"], linked(r["rival_mrr"], r["rival_run"])) for r in told["rows"] if "rival" in r
        )
        near = [str(r["bytes"]) for r in told["rows"] if r.get("gain", -1) >= -SAME]
        apart = [str(r["bytes"]) for r in told["rows"] if r.get("gain", 0) < -SAME]
        about.append(
            f"- On {graph}, with {kind}, trained on {told['device']}, one student is within {SAME} of those "
            f"trained for one size, or above them, at {' and '.join(near) or 'none of these'} bytes"
            + (f"; at {' and '.join(apart)} bytes it is further below." if apart else ".")
        )
    if not found:
        return none_yet("python -m kgdistil.paper.bench.nested frontier/wn18rr/ComplEx/distilled/16/512")
    sizes = sorted({r["bytes"] for *_, told in found for r in told["rows"]})
    rows = [
        [graph, "trained for one size", *(of.get(size, "–") for size in sizes)] for graph, of in alone.items() if of
    ]
    for graph, kind, told in found:
        cells = {r["bytes"]: number(r["test"]["both"]["mrr"]) for r in told["rows"]}
        for r in (r for r in told["rows"] if "rival" in r):
            apart_by = f"{difference(r['gain'], near=SAME)}<br>{interval(SimpleNamespace(**r))}"
            cells[r["bytes"]] = f"{cells[r['bytes']]}<br>{apart_by}"
        rows.append([graph, kind, *(cells.get(size, "–") for size in sizes)])
    head = ["graph", "made of", *(f"{size} bytes" for size in sizes)]
    title = "One nested student, every size: test MRR, difference from one trained for that size, 95 % interval"
    lines = "\n".join(about)
    return f"{lines}\n\n{html_table(title, head, rows)}\n"


def of_nested() -> list[tuple[str, str, dict[str, Any]]]:
    """What `bench.nested` found, sizes that were trained in turn first: the graph's title, what the student is made of,
    and the report."""
    path, found = sizes_of_one.path(), list[tuple[str, str, dict[str, Any]]]()
    for told in json.loads(path.read_text(encoding="utf-8")).values() if path.is_file() else ():
        cell = parse(told["cell"])
        taught = parse(told["teacher"]).bytes if "teacher" in told else cell.teacher_size
        made = f"{floats(cell.model, cell.dim)} floats and a teacher of {taught:,} bytes"
        if begun := [parse(each).bytes for each in told.get("spread", [])]:
            made += (
                f", beginning as {len(begun)} teachers of {' and '.join(f'{n:,}' for n in dict.fromkeys(begun))} bytes"
            )
        if "trainings" in told:
            rates = dict.fromkeys(f"{c['lr']:g}" for x in told["trainings"] if (c := x["run"]["config"])["spread"])
            made += (
                f", its sizes trained one after another, those of more floats at the best rate of {', '.join(rates)}"
            )
        found.append((TITLES[cell.dataset], made, told))
    return sorted(found, key=lambda each: "trainings" not in each[2])


def coarse(shown: Shown) -> str:
    """What is found and what a query takes where a nested student is asked coarse to fine, from `bench.nested`."""
    tables = list[str]()
    for graph, made, told in of_nested():
        measured, rows = told.get("coarse", {"rows": []}), []
        whole = {r["entities"]: r["seconds"] for r in measured["rows"] if not r["shortlist"]}
        for r in measured["rows"]:
            ratio = "–" if not r["shortlist"] else f"{whole[r['entities']] / r['seconds']:.1f}"
            same = f"{r['same']:.1%}" if "same" in r and r["shortlist"] else "–"
            listed = f"{r['shortlist']:,}" if r["shortlist"] else "none: all by all codes"
            rows.append([f"{r['entities']:,}", listed, f"{1e3 * r['seconds']:.2f} ms", ratio, same])
        if rows:
            head = ["entities", "shortlist", "a query", "times faster", "of its ten best found"]
            tables.append(html_table(f"{graph}, a nested student of {made}, {measured['device']}", head, rows) + "\n")
    command = "python -m kgdistil.paper.bench.nested frontier/wn18rr/ComplEx/distilled/16/512 --coarse"
    return "\n".join(tables) or none_yet(command)


def reciprocal(shown: Shown) -> str:
    """Teachers and students of `ReciprocalComplEx` that have a record, beside the best ComplEx of as many bytes."""
    rows, devices, ours = [], set[str](), Ours()
    for dataset in GRAPHS:
        frame = of_frontier(shown, dataset)
        cells = sorted(reciprocal_cells(dataset), key=lambda c: (c.method != "teacher", -c.bytes))
        for cell in (c for c in cells if not c.seed):
            found = [r for r in ours.seeds(cell) if r["id"] in shown.records]
            if not found:
                continue
            devices |= {record["device"] for record in found}
            plain = cell.method if cell.method in (*CODED, "teacher") else "low-rank-alone"
            kinds = {name for name in DISTILLED if not name.startswith("reciprocal")} if cell.distilled else {plain}
            same = frame[frame["method"].isin(kinds) & (frame["bytes"] == cell.bytes)] if len(frame) else frame
            best = same.loc[same["valid_mrr"].idxmax()] if len(same) else None
            beside = "–" if best is None else linked(best["mrr"], best["run"])
            about = [TITLES[dataset], cell.method, f"{cell.bytes:,} bytes"]
            file = f"{(weights(found[0]) or 0) / 1e6:.1f} MB"
            mrrs = [r["test"]["both"]["mrr"] for r in found]
            rows.append([*about, file, mean_of_seeds(mrrs, found[0]["id"]), beside])
        for place in means_of(dataset):
            told = json.loads(place.read_text(encoding="utf-8"))
            if not set(told["members"]) & set(shown.records):
                continue
            mrr = linked(told["test"]["both"]["mrr"], f"frontier/{place.name}")
            about = [TITLES[dataset], f"the mean of {len(told['members'])} teachers", f"{told['bytes']:,} bytes"]
            rows.append([*about, "–", mrr, "–"])
    if not rows:
        return none_yet("python -m kgdistil.paper.reproduce frontier/fb15k-237/ReciprocalComplEx/distilled/64/1024")
    head = ["graph", "method", "an entity", "weights in all", "test MRR", "ComplEx of that size"]
    return html_table(f"A vector for each direction of a relation, trained on {', '.join(sorted(devices))}", head, rows)


def mean_of_seeds(values: list[float], run: str) -> str:
    """A mean, linked to the first run, with the 95 % interval that Student's t gives it where there are several."""
    mean = linked(float(np.mean(values)), run)
    if len(values) < 2:
        return f"{mean}, one seed"
    return f"{mean}{spread(float(np.std(values, ddof=1)), len(values))}, {len(values)} seeds"


def frontier_speed(shown: Shown, dataset: str) -> str:
    """What a query costs by bytes of an entity, in words, a picture and a table."""
    frame = of_frontier(shown, dataset, "frontier_speed")
    if frame.empty:
        return none_yet(f"python -m kgdistil.paper.bench.scan --graph {dataset}")
    words = story.of_speed(frame, TITLES[dataset])
    drawn = picture(shown, f"frontier-speed-{dataset}", plots.speed(frame, TITLES[dataset]), words)
    rows = [
        [
            r.label,
            str(r.bytes),
            r.what,
            f"{r.microseconds:.1f}",
            f"{r.complex:.1f}×",
            f"{r.rotate:.1f}×",
            linked(r.mrr, r.run),
        ]
        for r in frame.itertuples()
    ]
    head = ["model", "bytes", "task", "µs a query", "as fast as ComplEx, d = 64", "as RotatE, d = 64", "MRR"]
    return f"\n{words}\n{drawn}\n{html_table(f'What a query costs on {TITLES[dataset]}', head, rows)}\n"


def objectives(shown: Shown, dataset: str) -> str:
    """What a soft label should say: the objectives of a graph side by side."""
    frame = of_frontier(shown, dataset, "objectives")
    if frame.empty:
        return none_yet(f"python -m kgdistil.paper.objectives --graph {dataset}")
    words = story.of_objectives(frame, TITLES[dataset])
    drawn = picture(shown, f"objectives-{dataset}", plots.objectives(frame), words)
    made = {r.run: shown.records[r.run] for r in frame.itertuples()}
    size = {run: bytes_per_entity(RunConfig(**x["config"]), x["graph"]["entities"]) for run, x in made.items()}
    rows = [
        [
            f"{r.student}, {size[r.run]} bytes",
            r.objective,
            linked(r.mrr, r.run),
            number(r.hits),
            *(("–",) * 3 if pd.isna(r.p) else (difference(r.gain), interval(r), f"{r.p:.4f}")),
        ]
        for r in frame.rename(columns={"hits@10": "hits"}).itertuples()
    ]
    head = ["student", "objective", "test MRR", "Hits@10", "difference from its first", "95 % interval", "p"]
    for (student, run), same in frame.groupby(["student", "run"], sort=False):
        if len(same) > 1:
            alpha = shown.records[run]["config"]["alpha"]
            named = " and ".join(f"*{name}*" for name in same["objective"])
            words += f" For {student} {named} are one run: the search chose α = {alpha:g}."
    return f"\n{words}\n{drawn}\n{html_table(f'Objectives on {TITLES[dataset]}, as many updates', head, rows)}\n"
