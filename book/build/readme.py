"""What the README shows, made from the files under `results/` and nothing else.

`python -m book.build.readme` writes the marked blocks of README.md and the picture anew; a test fails when they differ.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from book.build.lead import lead
from kgdistil import records
from kgdistil.answer.files import write_atomically, write_text
from kgdistil.answer.rendering import markdown
from kgdistil.config import RunConfig
from kgdistil.distillation import recipes
from kgdistil.distillation.statistics import spread
from kgdistil.errors import KgdistilError, run_command
from kgdistil.paper import fitting, reading
from kgdistil.paper.bench import large, readable, told
from kgdistil.paper.cells import ENTITIES
from kgdistil.paper.frontier import means_of
from kgdistil.paper.notebooks import verdict
from kgdistil.training.loop import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = {  # the distillation shown, one run of `make demo DATASET=wn18rr`: newer runs change nothing
    "teacher": "wn18rr-rotate-d64-teacher-s0-27a7222f",
    "no-DS": "wn18rr-rotate-d8-no-ds-s0-3c689f0b",
    "stage 1": "wn18rr-rotate-d8-stage1-s0-e16c93b4",
    "stage 2": "wn18rr-rotate-d8-stage2-s0-d8523e7a",
}
PICTURE = "figures/wn18rr_rotate_d8.png"
QUALITY = "figures/wn18rr_quality.png"
LINES = {  # kind and methods of `tables.quality`: the README's line of it
    ("paper", "teacher", "DS"): "the paper's RotatE: teacher, DS",
    ("ours", "teacher", "no-DS"): "RotatE, tuned: teacher, students alone",
    ("ours", "DS"): "RotatE, tuned: students distilled in two stages",
    ("ours", "rounded"): "ComplEx teacher, product-quantised only",
    ("ours", "distilled"): "ComplEx, product-quantised and distilled",
    ("ours", "paths"): "the same, taught by paths and ComplEx",
}
FEW_BITS = {  # methods of the frontier: the README's line of each on FB15k-237
    "rounded": "ComplEx teacher, product-quantised only",
    "coded-alone": "the same student without a teacher",
    "distilled": "ComplEx, product-quantised and distilled",
    "low-rank": "ComplEx of low rank, product-quantised and distilled",
    "reciprocal": "with a vector for each direction of a relation",
    "reciprocal-low-rank-alone": "both: of low rank, with a vector for each direction; without a teacher",
    "reciprocal-low-rank": "the same, distilled",
}


def recorded(record: dict[str, Any]) -> Run:
    """A run known by its record alone."""
    return Run(RunConfig(**record["config"]), record, records.model_folder(record["id"]))


def distillation() -> dict[str, Run]:
    """The runs of RUNS, by their names for people.

    Raises:
        KgdistilError: a record is missing.
    """
    found = {name: records.read_record(records.record_path(run)) for name, run in RUNS.items()}
    if missing := [RUNS[name] for name, record in found.items() if record is None]:
        raise KgdistilError(f"there is no record of {missing[0]}: `git checkout results/runs` brings it back")
    return {name: recorded(record) for name, record in found.items() if record}


def result_block() -> str:
    """The README's opening: picture, table, and what came out in one sentence."""
    runs = distillation()
    frame = recipes.table(runs)
    links = {name: f"[{name}](results/runs/{run.id}.json)" for name, run in runs.items()}
    head = [runs["teacher"].config.model, *frame.columns]
    table = markdown(head, ([links[i], *row] for i, row in zip(frame.index, frame.values)))
    return (
        f"![{alt(runs)}](results/{PICTURE})\n\n{table}\n\n{verdict(runs)}\n"
        "WN18RR, filtered ranks of both sides, realistic ties; each name links to its record."
    )


def alt(runs: dict[str, Run]) -> str:
    from kgdistil.paper.plots import alt_text

    return alt_text(runs)


def lead_block() -> str:
    """The README's opening: what a reader gains, and what did not work."""
    return lead(lambda run, text: f"[{text}]({place(run)})")


def picture_block() -> str:
    """The README's first picture: MRR by bytes of an entity, the paper's, the tuned reproduction, and few bits."""
    from kgdistil.paper import tables

    frame = tables.quality()
    words = words_of_quality(frame[frame["kind"] != "published"].astype({"bytes": int}))
    return f"![Test MRR on WN18RR against bytes per entity. {words}.](results/{QUALITY})"


def quality_block() -> str:
    """The numbers of that picture, and those of the other graphs."""
    from kgdistil.paper import story, tables

    frame, speed = tables.quality(), tables.frontier_speed("wn18rr")
    frame = frame[frame["kind"] != "published"].astype({"bytes": int})
    sizes = sorted(frame["bytes"].unique(), reverse=True)
    rows = []
    for (kind, *methods), line in LINES.items():
        mine = frame[(frame["kind"] == kind) & frame["method"].isin(methods)]
        if len(mine):
            rows.append([line, *by_size(mine, sizes)])
    table = markdown(["WN18RR, test MRR", *(f"{size} bytes" for size in sizes)], rows)
    table += f"\n\n{few_bits_table()}{of_ones_own()}{without_its_search()}"
    cost = "" if speed.empty else f"\n\n{story.of_speed(speed, 'WN18RR')} [The record](results/bench/scan.json)."
    return (
        f"{table}\n\n"
        "Bytes of one entity; filtered ranks of both sides, realistic ties. With ± a mean of several seeds and half of "
        "its 95 % interval; else one seed. Each of our numbers links to its record, a mean to that of seed 0." + cost
    )


def by_size(frame: pd.DataFrame, sizes: list[int]) -> list[str]:
    """Of a method the test MRR of each size, linked, and how far a mean may be off; "" where there is none."""
    linked = {r.bytes: f"[{r.mrr:.3f}]({place(r.run)})" if r.run else f"{r.mrr:.3f}" for r in frame.itertuples()}
    off = {r.bytes: spread(r.deviation, r.seeds) for r in frame.itertuples()}
    return [linked.get(size, "") + off.get(size, "") for size in sizes]


def few_bits_table() -> str:
    """The students of few bits on FB15k-237 by bytes of an entity."""
    frame = reading.written("frontier")
    frame = frame[(frame["dataset"] == "fb15k-237") & frame["method"].isin(list(FEW_BITS))] if len(frame) else frame
    if frame.empty:
        return ""
    sizes = sorted(frame["bytes"].unique(), reverse=True)
    rows, shared = [], ""
    wide = frame[frame["method"] == "reciprocal-low-rank"]
    if len(wide):
        least = wide["weights"] - wide["bytes"] * ENTITIES["fb15k-237"]
        shared = (
            f"\n\nThe relations, map and codebooks of the last two lines, which all entities share, take "
            f"{least.min() / 1e6:.1f} MB and more besides."
        )
    means = {place: json.loads(place.read_text(encoding="utf-8")) for place in means_of("fb15k-237")}
    if means:
        place, told = max(means.items(), key=lambda item: item[1]["valid"]["both"]["mrr"])
        mrr = f"[{told['test']['both']['mrr']:.3f}](results/frontier/{place.name})"
        shared += f" The best teacher there, the mean of {len(told['members'])} models, has {mrr}."
    for method, line in FEW_BITS.items():
        rows.append([line, *by_size(frame[frame["method"] == method], sizes)])
    return markdown(["FB15k-237, test MRR", *(f"{int(size)} bytes" for size in sizes)], rows) + shared


def of_ones_own(name: str = "packages") -> str:
    """What one command makes of a graph without a recipe: the students of `bench.large`, the largest first."""
    said = []
    for path in sorted(large.folder().glob(f"{name}*.json")):
        found, *others = large.seeds_of(path)
        mrr = {model: x["mrr"] for model, x in large.over_seeds([found, *others]).items()}
        size = found["bytes_per_entity"]
        words = f"[{mrr['distilled']:.3f}](results/large/{path.name}) with {size['student']} bytes an entity"
        words += f" (its teacher of {size['teacher']} bytes {mrr['teacher']:.3f}, alone {mrr['alone']:.3f}"
        words += f"; means of {len(others) + 1} seeds)" if others else ")"
        said.append((size["student"], found["graph"]["entities"], words))
    if not said:
        return ""
    said.sort(reverse=True)
    students = " and ".join(words for _, _, words in said)
    return (
        f"\n\nA graph without a recipe, the {name} of Debian, {said[0][1]:,} entities, by one command and no setting "
        f"by hand: test MRR {students}. One of the searches behind the rule that sets them was of this graph, "
        "and the smaller one's shape and rate were chosen by validation on it. "
        "Today the larger one's teacher would be trained at a rate that goes to nothing, as the other was."
    )


def without_its_search() -> str:
    """How students do by the rule of other graphs, beside those of a search on their own."""
    path = fitting.folder("left_out.csv")
    if not path.is_file():
        return ""
    frame = pd.read_csv(path)
    reached, names = frame["stage 1, test"], frame["graph"].str.replace(r"-[0-9a-f]{8}$", "", regex=True)
    return (
        f" By the rule of other graphs each of {names.nunique()} graphs has a student of "
        f"{reached.min():.0%} to {reached.max():.0%} of the test MRR of one by a search of its own "
        f"([graph by graph](results/rules/{path.name}))."
    )


def place(run: str) -> str:
    """Where a point's record lies: of a run, or a file of many."""
    return f"results/{run}" if run.endswith(".json") else f"results/runs/{run}.json"


def words_of_quality(frame: pd.DataFrame) -> str:
    """The points of `tables.quality` for who cannot see them."""
    return "; ".join(f"{r.kind}, {r.method}, {int(r.bytes)} bytes: {r.mrr:.3f}" for r in frame.itertuples())


def bench_block() -> str:
    """The README's tables of speeds, from `results/bench/bench.json` and, where a GPU was measured, `gpu.json`."""
    report, measured = reading.benchmark(), told.gpu()
    blocks = [
        f"WN18RR, batch {report['batch_size']}, Adam, medians of one interleaved run on {report['device']} "
        "(`make bench`, [results/bench/bench.json](results/bench/bench.json)). " + told.how_ranked(report)
    ]
    blocks += [markdown(head, rows) for head, rows in told.speeds(report)]
    if floors := [f["times_floor"] for f in report["floors"] if f["dim"] == 64]:
        said = f"{min(floors):.1f} to {max(floors):.1f} times as long as moving its bytes once."
        blocks.append(f"A d=64 training step takes {said}")
    if (path := records.results_folder() / "bench" / "readable.json").is_file():
        spans = readable.spans(json.loads(path.read_text(encoding="utf-8"))["rows"])
        blocks.append(f"Without a C++ compiler PyTorch took {spans} ([the record](results/bench/readable.json)).")
    if measured:
        blocks.append("On a GPU ([results/bench/gpu.json](results/bench/gpu.json)):")
        blocks.append(markdown(*told.on_gpu(measured)))
    else:
        said = "No GPU figure is printed here because none was measured yet"
        blocks.append(f"{said}; `python -m kgdistil.paper.bench.gpu` is ready for a machine that has one.")
    return "\n\n".join(blocks)


def reproduction_block() -> str:
    """The README's short form of Tables 3 and 4: test MRR under the tuned protocol, the paper's in brackets."""
    blocks = []
    for number, dataset in ((3, "WN18RR"), (4, "FB15k-237")):
        path = reading.folder() / f"table{number}.csv"
        frame = pd.read_csv(path)
        frame = frame[(frame["protocol"] == "tuned") & (frame["metric"] == "mrr")]
        done = int((frame["run"] != "not run").sum())
        cells = {
            (r.model, r.method, r.dim): f"{'–' if pd.isna(r.ours) else f'{r.ours:.3f}'} ({r.paper:.3f})"
            for r in frame.itertuples()
        }
        columns = [("teacher", 64), *((method, dim) for dim in (32, 16, 8) for method in ("no-DS", "DS"))]
        rows = ([model, *(cells[model, *column] for column in columns)] for model in frame["model"].unique())
        head = [f"{dataset}, {done} of {len(frame)} run", *(f"{method} {dim}" for method, dim in columns)]
        blocks.append(markdown(head, rows))
    return "\n\n".join(blocks)


def update(text: str) -> str:
    """README.md's text with its marked blocks made anew."""
    blocks = {"picture": picture_block, "lead": lead_block, "quality": quality_block, "result": result_block}
    blocks |= {"bench": bench_block, "reproduction": reproduction_block}
    for name, block in blocks.items():
        start, end = f"<!-- {name}: start -->\n", f"<!-- {name}: end -->"
        before, found, rest = text.partition(start)
        if not found or end not in rest:
            raise KgdistilError(f"README.md has no block {name}: put back the two comments that mark it")
        text = f"{before}{start}{block()}\n{end}{rest.partition(end)[2]}"
    return text


def figures() -> dict[str, Figure]:
    """The README's pictures by their place under `results/`."""
    from kgdistil.paper import plots, tables

    return {
        PICTURE: plots.distillation(distillation()),
        QUALITY: plots.quality_against_bytes(tables.quality()),
    }


def draw(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=120)


def main() -> int:
    """Write the README's blocks and pictures from the records."""
    readme = records.root() / "README.md"
    text = update(readme.read_text(encoding="utf-8"))
    write_text(readme, text)
    for name, figure in figures().items():
        path = records.results_folder() / name
        write_atomically(path, functools.partial(draw, figure))
        print(f"written: README.md and {records.shown(path)}")
    return 0


if __name__ == "__main__":
    run_command(main)
