"""What the templates under `book/` may call: pieces of pages made from `results/`, so that no number is typed."""

from __future__ import annotations

import functools
import html
import json
import platform
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

import kgdistil
from book.build import readme
from book.build.html import (
    NEAR,
    again,
    beside,
    difference,
    html_table,
    number,
    ranks_link,
    run_link,
    save_svg,
    tag,
    unfolds,
)
from book.build.sources import SOURCES, digest
from kgdistil import records
from kgdistil.compress.size import floats, row_bytes
from kgdistil.distillation import recipes
from kgdistil.files import write_atomically
from kgdistil.paper import constrained, plots, reading, story, tables
from kgdistil.paper.cells import PROTOCOLS, cells_of
from kgdistil.paper.frontier import DISTILLED
from kgdistil.paper.reading import TABLES, record_of, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"wn18rr": "WN18RR", "fb15k-237": "FB15k-237", "umls": "UMLS"}
METRICS = {"mrr": "MRR", "hits@10": "Hits@10", "hits@3": "Hits@3", "hits@1": "Hits@1"}
METHOD_WORDS = {"teacher": "teacher", "no-DS": "no-DS", "DS": "DS", "-S1": "−S1", "-S2": "−S2"}
FORM = {"low-rank": ", low rank", "committee": ", from three such"}  # of a distilled student of few bits
TYPED = "both sides, type-constrained"
READINGS = {  # how the ranks of a table may have been taken: the candidates of `constrained`, and the side
    "both sides": ("every entity", "both"),
    "tails alone": ("every entity", "tail"),
    TYPED: ("training", "both"),
    "tails alone, type-constrained": ("training", "tail"),
}
FIGURE_2_SAYS = {32: "is slightly better", 16: "is no better", 8: "is worse"}  # the paper, of its students


def readings(frame: pd.DataFrame) -> pd.DataFrame:
    """The MRR of each cell of `tables.read_constrained` in each of READINGS, a column each."""
    columns = ["cell", "model", "dim", "method", "paper", "run"]
    keys = frame.set_index(["candidates", "side"])
    parts = [keys.loc[key].set_index(columns)["mrr"].rename(name) for name, key in READINGS.items()]
    return pd.concat(parts, axis=1).reset_index()


class Pages:
    """What the templates may call. Each public method returns Markdown or HTML made from `results/`."""

    def __init__(self, source: Path):
        self.source = source  # where pictures are written
        self.frames = {
            name: written(name)
            for name in (
                "table2",
                "table3",
                "table4",
                "table5",
                "table6",
                "sides",
                "constrained",
                "significance",
                "behind",
                "figure1",
                "figure1_paper",
                "figure2",
                "figure2_paper",
                "figure3",
                "figures_known",
                "claims",
                "whole_lists",
                "frontier",
                "frontier_gain",
                "frontier_speed",
                "objectives",
            )
        }
        self.records = {record["id"]: record for record in records.read_records()}
        self.shown = readme.distillation(*readme.SHOWN)

    # -- front page
    def price(self) -> str:
        """What distillation buys and costs, in two sentences."""
        teacher, alone, last = (self.shown[name] for name in ("teacher", "no-DS", list(self.shown)[-1]))
        small, large = (recipes.bytes_per_entity(x.config) for x in (last, teacher))
        gain = last.test() - alone.test()
        told = "and nothing beyond that size: the same student trained alone is as good"
        if abs(gain) >= 0.005:
            told = f"while the same student trained alone reaches {alone.test():.3f}" + (
                ", so here the teacher did not pay" if gain < 0 else ", so the teacher pays"
            )
        seconds = sum(run.record["seconds"] for name, run in self.shown.items() if name != "no-DS")
        return (
            f"It buys an entity of {small} bytes instead of {large}, {large / small:g} times less. It costs "
            f"{1 - last.test() / teacher.test():.0%} of the teacher's MRR ({last.test():.3f} instead of "
            f"{teacher.test():.3f}) and the training of teacher and student in turn ({seconds / 60:.0f} minutes on "
            f"{last.record['device']}), {told} ({readme.SHOWN[1]} on {NAMES[readme.SHOWN[0]]}, one seed)."
        )

    def front_table(self) -> str:
        rows = []
        frame = recipes.table(self.shown)
        frame = frame[["MRR", "Hits@10", "bytes per entity", "dim", "parameters", "Hits@1", "Hits@3"]]
        for name, row in zip(frame.index, frame.values):
            rows.append([run_link(self.shown[name].id, name), *map(str, row)])
        what = f"{readme.SHOWN[1]} on {NAMES[readme.SHOWN[0]]}, test split, filtered ranks of both sides"
        return html_table(what, ["run", *frame.columns], rows)

    def quality_picture(self, model: str = "RotatE", dataset: str = "wn18rr") -> str:
        """MRR against bytes per entity: the tuned cells where they have run, else the notebook's runs."""
        frame = tables.quality(dataset, model)
        if not {"teacher", "no-DS", "DS"} & set(frame.loc[frame["kind"] == "ours", "method"]):
            runs = {
                method: self.shown[name]
                for name, method in (("teacher", "teacher"), ("no-DS", "no-DS"), ("stage 2", "DS"))
            }
            rows = [
                {"kind": "ours", "method": method, "bytes": recipes.bytes_per_entity(run.config), "mrr": run.test()}
                for method, run in runs.items()
            ]
            frame = pd.concat([frame, pd.DataFrame(rows)])
        said, points = frame[frame["kind"] == "published"], frame[frame["kind"] != "published"]
        words = readme.words_of_quality(points)
        alt = f"Test MRR of {model} on {NAMES[dataset]} against bytes per entity. {words}."
        beyond = '; few bits: <a href="frontier.html">ComplEx in four-bit codes</a>'
        beyond = beyond if "distilled" in set(points["method"]) else ""
        caption = (
            f"Quality against size: {model} on {NAMES[dataset]}{beyond}. Filled: our runs; hollow: the paper; crosses: "
            f"{said['model'].nunique() - 1} models published elsewhere"
            ' (<a href="results.html#published-models">sources</a>).'
        )
        return self.picture("quality", plots.quality_against_bytes(frame), alt, caption)

    def published(self) -> str:
        said = pd.read_csv(records.results_folder() / "published.csv")
        rows = [
            [
                html.escape(r.model),
                NAMES[r.dataset],
                "any" if pd.isna(r.floats) else str(int(4 * r.floats)),
                r.teacher,
                number(r.mrr),
                number(r._6),
                html.escape(r.source),
            ]
            for r in said.itertuples()
        ]
        head = ["model", "graph", "bytes per entity", "teacher", "MRR", "Hits@10", "read in"]
        return html_table("Models published elsewhere, as their sources state them", head, rows)

    def progress(self) -> str:
        """How much of the reproduction has run."""
        lines = []
        for protocol in PROTOCOLS:
            cells = dict.fromkeys(c for n in TABLES for c in cells_of(f"table{n}", protocol))
            done = sum(record_of(cell) is not None for cell in cells)
            lines.append(f"{done} of {len(cells)} cells of the protocol *{protocol}*")
        return "Of Tables 3, 4 and 6 there have run " + " and ".join(lines) + "; the others are marked *not run*."

    def cost(self, number: int, protocol: str) -> str:
        """How long the recorded runs of a table took."""
        hours = tables.core_hours(number, protocol)
        return (
            f"The runs of this table, their starts and their searches took {hours:.1f} hours of one core by their "
            f"records, so about {hours / 2:.1f} hours of two: `make reproduce TABLE={number} "
            f"{'PROTOCOL=paper ' * (protocol == 'paper')}JOBS=2`."
        )

    # -- pictures
    def picture(self, name: str, figure: Figure, alt: str, caption: str = "") -> str:
        """The figure as SVG, once for a light and once for a dark page."""
        images = ""
        for theme in ("light", "dark"):
            path = self.source / "site" / "pictures" / f"{name}-{theme}.svg"
            write_atomically(path, functools.partial(save_svg, figure, theme))
            images += f'<img class="only-{theme}" src="../pictures/{path.name}" alt="{html.escape(alt)}">'
        wide = "picture wide" if figure.get_figwidth() > 9 else "picture"
        box = tag("div", images, class_="scroll", tabindex="0", role="region", aria_label=f"picture {name}")
        return "\n\n" + tag("figure", box + tag("figcaption", caption) * bool(caption), class_=wide) + "\n\n"

    def loss(self, name: str) -> str:
        figure, words = self.losses()[name]
        return self.picture(f"loss-{name}", figure, words, words)

    @functools.cache  # noqa: B019 - one instance lives as long as the build
    def losses(self) -> dict[str, tuple[Figure, str]]:
        return plots.loss_pictures()

    def beside(self, name: str, protocol: str) -> str:
        frame = self.frames[name]
        ran = frame[(frame["protocol"] == protocol) & frame["ours"].notna()]
        cells = frame[frame["protocol"] == protocol]["cell"].nunique()
        alt = (
            f"MRR over the dimension for each model: the paper dashed, ours solid; {ran['cell'].nunique()} of "
            f"{cells} cells have run. The numbers are in the tables below."
        )
        return self.picture(f"{name}-{protocol}", plots.beside_the_paper(frame, protocol), alt)

    def figure(self, number: int) -> str:
        """Figure 1, 2 or 3 where its runs are there, else what makes them."""
        frame, wanted = self.frames[f"figure{number}"], cells_of(f"figure{number}", "tuned")
        if len(frame) < (1 if number == 3 else len(wanted)) or (number == 3 and frame["method"].nunique() < 3):
            ran = frame["run"].nunique() if len(frame) else 0
            return (
                f"\n:::{{admonition}} Not run yet\n:class: note\n{ran} of {len(wanted)} runs of this figure "
                f"are recorded. The others: `python -m kgdistil.paper.reproduce --figure {number}`.\n:::\n"
            )
        words = {
            1: "MRR and parameters over the dimension",
            2: "students' MRR by their teacher's dimension",
            3: "MRR over the student's epochs with and without a teacher",
        }[number]
        if number == 3:
            last = frame.groupby("method", sort=False).last()
            numbers = ", ".join(f"{METHOD_WORDS[m]} ends at {row.test_mrr:.3f}" for m, row in last.iterrows())
        else:
            label = "teacher_dim" if number == 2 else "dim"
            numbers = ", ".join(
                f"d={r.dim}{f' from {getattr(r, label)}' if number == 2 else ''}: {r.mrr:.3f}"
                for r in frame.itertuples()
            )
        if number == 1 and "seconds" not in frame:
            frame = frame.assign(seconds=float("nan"))
        drawn = getattr(plots, f"figure{number}")(frame)
        listed = ", ".join(run_link(run) for run in dict.fromkeys(frame["run"]))
        command = f"`python -m kgdistil.paper.reproduce --figure {number} --again`"
        return self.picture(f"figure{number}", drawn, f"{words}: {numbers}.") + f"\nRecords: {listed}; {command}.\n"

    def figure2_said(self) -> str:
        """What the paper says of larger teachers in Figure 2, beside our students of each."""
        frame = self.frames["figure2"]
        if not len(frame) or frame["teacher_dim"].nunique() < 2:
            return self.none_yet("python -m kgdistil.paper.reproduce --figure 2")
        wide, said = frame.pivot(index="dim", columns="teacher_dim", values="mrr"), FIGURE_2_SAYS
        first, *larger = wide.columns
        rows = [
            [
                f"d={dim}",
                said.get(dim, ""),
                *(f"{wide.loc[dim, t]:.4f}" for t in wide.columns),
                difference(wide.loc[dim, larger].max() - wide.loc[dim, first], 4, 0.001),
            ]
            for dim in sorted(wide.index, reverse=True)
        ]
        head = [
            "student",
            "a larger teacher, the paper says",
            *(f"ours, teacher d={t}" for t in wide.columns),
            f"best larger against d={first}",
        ]
        return html_table("Is a larger teacher better? MRR, protocol tuned", head, rows)

    def figures_known(self, number: int) -> str:
        """What of a figure of the paper stands in its tables, beside ours."""
        frame = self.frames["figures_known"]
        frame = frame[frame["figure"] == number] if len(frame) else frame
        rows = [
            [
                f"<code>{r.cell}</code>",
                f"{r.paper:.3f}",
                "not run" if pd.isna(r.ours) else f"{r.ours:.3f}",
                "" if pd.isna(r.ours) else difference(r.difference),
                run_link(r.run) + unfolds("reproduce", r.cell),
            ]
            for r in frame.itertuples()
        ]
        return html_table(
            f"MRR of Figure {number} that the paper's tables tell",
            ["cell", "the paper", "ours", "difference", "run"],
            rows,
        )

    def figure1_paper(self) -> str:
        """The MRR of Figure 1's runs under both protocols."""
        frames = {"paper": self.frames["figure1_paper"], "tuned": self.frames["figure1"]}
        if not len(frames["paper"]):
            return self.none_yet("python -m kgdistil.paper.reproduce --figure 1 --protocol paper")
        sizes = sorted({dim for frame in frames.values() if len(frame) for dim in frame["dim"]})
        rows = []
        for protocol, frame in frames.items():
            found = {r.dim: f"{number(r.mrr)} {run_link(r.run, 'record')}" for r in frame.itertuples()}
            rows.append([protocol, *(found.get(d, "not run") for d in sizes)])
        table = html_table(
            "Figure 1's MRR, TransE on WN18RR without a teacher", ["protocol", *(f"d={d}" for d in sizes)], rows
        )
        return table + self.paper_again(1)

    def paper_again(self, number: int) -> str:
        command = f"python -m kgdistil.paper.reproduce --figure {number} --protocol paper --again"
        return f"\nProtocol paper again: `{command}`.\n"

    def figure2_paper(self) -> str:
        """The runs of Figure 2 under the protocol *paper*, a row for each teacher and one for the students alone."""
        frame = self.frames["figure2_paper"]
        if not len(frame):
            return self.none_yet("python -m kgdistil.paper.reproduce --figure 2 --protocol paper")
        sizes = list(dict.fromkeys(frame["dim"]))
        rows = []
        for dim, part in frame.groupby("teacher_dim"):
            found = {r.dim: f"{number(r.mrr)} {run_link(r.run, 'record')}" for r in part.itertuples()}
            rows.append([f"d={dim}", number(part["teacher_mrr"].iloc[0]), *(found.get(d, "not run") for d in sizes)])
        cells = self.frames["table3"]
        alone = (
            cells[
                (cells["protocol"] == "paper")
                & (cells["model"] == "TransE")
                & (cells["method"] == "no-DS")
                & (cells["metric"] == "mrr")
            ]
            .dropna(subset=["ours"])
            .set_index("dim")
        )
        found = {d: f"{number(r.ours)} {run_link(r.run, 'record')}" for d, r in alone.iterrows()}
        rows.append(["none", "", *(found.get(d, "not run") for d in sizes)])
        head = ["teacher", "its MRR", *(f"student d={d}" for d in sizes)]
        return html_table("Figure 2 as a table, TransE on WN18RR, protocol paper", head, rows) + self.paper_again(2)

    # -- tables of results
    def table(self, name: str, protocol: str) -> str:
        """Table 3, 4 or 6, one table for each model: ours, below it the paper's and the difference."""
        frame = self.frames[name][self.frames[name]["protocol"] == protocol]
        metrics = list(dict.fromkeys(frame["metric"]))
        blocks = []
        for model, rows in frame.groupby("model", sort=False):
            lines = []
            for (dim, method), cell in rows.groupby(["dim", "method"], sort=False):
                by = {r.metric: r for r in cell.itertuples()}
                one = next(iter(by.values()))
                lines.append([f"d={dim} {METHOD_WORDS[method]}", *(beside(by[m]) for m in metrics), again(one)])
            what = f"{model} on {NAMES[frame['dataset'].iloc[0]]}, protocol {protocol}"
            blocks.append(html_table(what, ["", *(METRICS[m] for m in metrics), "run"], lines))
        return "\n".join(blocks)

    def table2(self) -> str:
        """Sizes of the graphs."""
        frame = self.frames["table2"]
        wide = [
            [
                f"{NAMES[r.dataset]}, {r.metric}",
                f"{int(r.paper):,}",
                "not run" if pd.isna(r.ours) else f"{int(r.ours):,}",
                "" if pd.isna(r.ours) else "same" if r.ours == r.paper else difference(r.ours - r.paper, 0),
                run_link(r.run),
            ]
            for r in frame.itertuples()
        ]
        head = ["graph", "the paper", "ours", "difference", "run that read it"]
        return html_table("Table 2: sizes of the graphs", head, wide)

    def table5(self) -> str:
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
            for r in self.frames["table5"].itertuples()
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

    def lists_speed(self) -> str:
        """What a step against whole lists costs, from `results/bench/lists.json`."""
        path = records.results_folder() / "bench" / "lists.json"
        if not path.is_file():
            return self.none_yet("python -m kgdistil.paper.bench.lists")
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

    def bench_device(self) -> str:
        bench = json.loads((records.results_folder() / "bench" / "bench.json").read_text(encoding="utf-8"))
        return str(bench["device"])

    def claims(self) -> str:
        frame = self.frames["claims"]
        near = {"%": 3.0, "×": 0.5, "epochs": 5.0}  # a difference that is called the same

        def shown(x: float, unit: str, digits: int = 1) -> str:
            return f"{x:.{digits}f}".removesuffix(".0" * (unit != "%")) + ("" if unit == "×" else "\u00a0") + unit

        rows = [
            [
                html.escape(r.sentence),
                r.section,
                f"{r.paper_says:g}" + ("" if r.unit == "×" else "\u00a0") + r.unit,
                "not in them" if pd.isna(r.from_its_tables) else shown(r.from_its_tables, r.unit),
                *(
                    "not run" if pd.isna(x) else f"{shown(x, r.unit)} {difference(x - r.paper_says, 1, near[r.unit])}"
                    for x in (r.tuned, r.paper)
                ),
            ]
            for r in frame.itertuples()
        ]
        head = ["sentence", "section", "it says", "its tables give", "ours, tuned", "ours, as printed"]
        return html_table("Sentences with numbers", head, rows)

    def sides(self) -> str:
        """Teachers, or whatever has run, on each side, beside the paper's number."""
        frame, words = self.frames["sides"], {"mean_of_two_ranks": "mean of two ranks"}
        if not len(frame):
            return self.none_yet("python -m kgdistil.paper.reproduce --table 3")
        paper = reading.paper()
        said = {
            (r.dataset, r.model, int(r.dim), r.method): r.value
            for r in paper[paper["table"].isin([3, 4]) & (paper["metric"] == "mrr")].itertuples()
        }
        wide = frame.pivot_table(
            index=["cell", "dataset", "model", "dim", "method"], columns="side", values="mrr", sort=False
        ).reset_index()
        sides = [side for side in frame["side"].unique()]
        rows: list[list[str]] = []
        nearest: dict[str, list[str]] = {}
        for r in wide.to_dict("records"):
            theirs = said.get((r["dataset"], r["model"], r["dim"], r["method"]))
            near = "–" if theirs is None else min(sides, key={s: abs(r[s] - theirs) for s in sides}.__getitem__)
            if r["dataset"] == "fb15k-237" and r["cell"].startswith("tuned/") and theirs is not None:
                nearest.setdefault(r["model"], []).append(words.get(near, near))
            rows.append(
                [
                    f"<code>{r['cell']}</code>",
                    number(theirs if theirs is not None else float("nan")),
                    *(number(r[s]) for s in sides),
                    words.get(near, near),
                ]
            )
        each = [
            f"{model} {Counter(near).most_common(1)[0][0]} ({Counter(near).most_common(1)[0][1]} of {len(near)} cells)"
            for model, near in nearest.items()
        ]
        words_of_each = "By side alone, the paper's numbers on FB15k-237 are nearest to these of ours, protocol tuned: "
        told = f"{words_of_each}{', '.join(each)}.\n\n" if each else ""
        head = ["cell", "the paper", *(words.get(s, s) for s in sides), "nearest to the paper"]
        return told + html_table("MRR by side of the query", head, rows)

    def suspects(self) -> str:
        """All metrics of the teachers whose numbers in the paper lie above anything published, on each side, among
        every entity and among those of the type."""
        frame, paper, rows, told, told_all = self.frames["constrained"], reading.paper(), [], [], []
        for model in ("RotatE", "TransH"):
            cell = f"tuned/fb15k-237/{model}/teacher/64"
            ours = frame[frame["cell"] == cell] if len(frame) else frame
            if not len(ours):
                return self.none_yet(f"python -m kgdistil.paper.constrained {cell}")
            said = paper[(paper["table"] == 4) & (paper["model"] == model) & (paper["method"] == "teacher")]
            said = said.set_index("metric")["value"]
            rows.append([f"{model} d=64, the paper", *(number(said[m]) for m in METRICS), ""])
            apart = {}
            for words, (candidates, side) in READINGS.items():
                one = ours[(ours["candidates"] == candidates) & (ours["side"] == side)].iloc[0]
                apart[words] = max(abs(one[m] - said[m]) for m in METRICS)
                rows.append(
                    [
                        f"ours, {words} {ranks_link(one['run'])}",
                        *(number(one[m]) for m in METRICS),
                        number(apart[words]),
                    ]
                )
            types = ours[ours["side"] == "both"].set_index("candidates")["mrr"]
            told_all.append(f"{model} {types['all splits']:.3f} instead of {types['training']:.3f}")
            near = min(apart, key=apart.__getitem__)
            told.append(f"the paper's {model} is nearest to our {near} (at most {apart[near]:.3f} apart)")
        words = (
            f"Over all four metrics, {' and '.join(told)}. Where the test split says too what stands on a side, as in "
            f"OpenKE, the type-constrained MRR of both sides is {', '.join(told_all)}."
        )
        head = ["", *METRICS.values(), "largest difference"]
        return f"{words}\n\n{html_table('Teachers on FB15k-237, by candidates and side', head, rows)}"

    def unseen(self) -> str:
        """How many answers of FB15k-237's test split training does not have on that side of their relation."""
        found = constrained.read(constrained.table4()[0])
        if found is None:
            return self.none_yet("python -m kgdistil.paper.constrained")
        n, told = found["graph"]["test"], found["unseen"]["training"]
        heads, tails = (f"{told[side]:,} {side}s ({told[side] / n:.0%})" for side in ("head", "tail"))
        return f"{heads} and {tails} of {n:,} each"

    def readings(self) -> str:
        """Each cell of Table 4 in the ways that its ranks may have been taken: a picture, how near, and the table."""
        frame = self.frames["constrained"]
        if not len(frame):
            return self.none_yet("python -m kgdistil.paper.constrained")
        wide = readings(frame)
        far = wide[[*READINGS]].sub(wide["paper"], axis=0).abs()
        near = wide.assign(near=far.idxmin(axis=1))
        counts = [
            [
                model,
                *(
                    ", ".join(f"{n} of {len(some)} {name}" for name, n in Counter(some["near"]).most_common())
                    for some in (part[part["method"] != "no-DS"], part[part["method"] == "no-DS"])
                ),
            ]
            for model, part in near.groupby("model", sort=False)
        ]
        title = "Which reading of ours is nearest to the paper's MRR, by number of cells"
        nearest = html_table(title, ["model", "teacher and DS", "no-DS"], counts)
        words = (
            "MRR over the dimension for each model, ours in four readings and the paper's. The table has the numbers."
        )
        picture = self.picture("readings", plots.readings(wide, [*READINGS]), words)
        rows = [
            [
                f"{r['model']} d={r['dim']} {METHOD_WORDS[r['method']]}",
                number(r["paper"]),
                *(f"{number(r[name])}<br>{difference(r[name] - r['paper'])}" for name in READINGS),
                ranks_link(r["run"]) + unfolds("constrained", r["cell"]),
            ]
            for r in wide.to_dict("records")
        ]
        head = ["cell", "the paper", *(f"ours, {name}" for name in READINGS), "run"]
        return f"{picture}\n{nearest}\n{html_table('MRR of Table 4 by candidates and side', head, rows)}"

    def suspects_published(self) -> str:
        """The models whose numbers on FB15k-237 are in doubt beside the best published of the model and size."""
        frame, said = self.frames["table4"], pd.read_csv(records.results_folder() / "published.csv")
        frame = frame[(frame["protocol"] == "tuned") & (frame["metric"] == "mrr") & (frame["method"] != "no-DS")]
        said, rows = said[said["dataset"] == "fb15k-237"].sort_values("mrr"), []
        for r in frame[frame["model"].isin(["RotatE", "TransH"])].sort_values("model", kind="stable").itertuples():
            width = floats(r.model, r.dim)
            same = said[said["model"].str.contains(r.model) & (said["floats"] == width)]
            any_size = said[said["model"].str.contains(r.model)]
            best = [
                f"{x.iloc[-1]['mrr']:.3f}, {html.escape(x.iloc[-1]['model'])}" if len(x) else "none known"
                for x in (same, any_size)
            ]
            rows.append([f"{r.model} d={r.dim} {METHOD_WORDS[r.method]}", number(r.paper), number(r.ours), *best])
        head = ["cell", "the paper", "ours, both sides", "best published of that size", "best published of any size"]
        return html_table("MRR on FB15k-237 beside what is published for the model", head, rows)

    def significance(self) -> str:
        frame = self.frames["significance"]
        if not len(frame):
            return self.none_yet("python -m kgdistil.paper.reproduce --table 3")
        rows = [
            [
                f"{r.model} d={r.dim} on {NAMES[r.dataset]}, {r.protocol}",
                METHOD_WORDS[r.rival],
                f"{number(r.rival_mrr)} {run_link(r.rival_run, 'record')}",
                f"{number(r.ds_mrr)} {run_link(r.ds_run, 'record')}",
                difference(r.difference),
                f"{r.low:+.3f} … {r.high:+.3f}",
                f"{r.p:.4f}",
            ]
            for r in frame.itertuples()
        ]
        head = ["student", "rival", "its MRR", "MRR of DS", "difference", "95 % interval", "p"]
        return html_table("Distilled (DS) against its rivals, paired bootstrap over test triples", head, rows)

    def seeds(self) -> str:
        """The student alone and distilled where both have run with several seeds: means, and how far seeds differ."""
        rows, clear = [], {True: 0, False: 0}
        for name in ("table3", "table4"):
            frame = self.frames[name]
            frame = frame[(frame["metric"] == "mrr") & (frame["seeds"] > 1) & frame["method"].isin(["no-DS", "DS"])]
            for (protocol, dataset, model, dim), pair in frame.groupby(
                ["protocol", "dataset", "model", "dim"], sort=False
            ):
                if len(pair) < 2:
                    continue
                alone, last = (pair[pair["method"] == method].iloc[0] for method in ("no-DS", "DS"))
                error = sum(r.deviation**2 / r.seeds for r in (alone, last)) ** 0.5
                if abs(last.ours - alone.ours) > 2 * error:
                    clear[last.ours > alone.ours] += 1
                rows.append(
                    [
                        f"{model} d={dim} on {NAMES[dataset]}, {protocol}",
                        str(min(alone.seeds, last.seeds)),
                        *(f"{number(r.ours)} ± {r.deviation:.3f} {run_link(r.run, 'seed 0')}" for r in (alone, last)),
                        difference(last.ours - alone.ours),
                        f"{error:.3f}",
                    ]
                )
        if not rows:
            wanted = " ".join(f"tuned/wn18rr/RotatE/{method}/8@1" for method in ("no-DS", "DS"))
            return self.none_yet(f"python -m kgdistil.paper.reproduce {wanted}")
        told = (
            f"Of {len(rows)} students, {clear[True]} are better with the teacher by more than twice the standard error "
            f"of the difference of the means, and {clear[False]} without."
        )
        head = ["student", "seeds", "MRR alone", "MRR of DS", "difference", "standard error"]
        return told + "\n" + html_table("Distilled (DS) and alone, mean and deviation over seeds", head, rows)

    def whole_lists(self) -> str:
        """What the last epochs against whole lists added to each run that has them."""
        frame = self.frames["whole_lists"]
        if not len(frame):
            return self.none_yet("python -m kgdistil.paper.reproduce --table 3 4")
        rows = [
            [
                f"{r.model} d={r.dim} {METHOD_WORDS[r.method]}, {NAMES[r.dataset]}",
                f"{number(r.start_mrr)} {run_link(r.start_run, 'record')}",
                f"{number(r.mrr)} {run_link(r.run, 'record')}",
                difference(r.difference),
                f"{r.low:+.3f} … {r.high:+.3f}",
                f"{r.p:.4f}",
            ]
            for r in frame.itertuples()
        ]
        gains = frame["difference"]
        told = (
            f"In {len(frame)} runs they changed the test MRR by {gains.min():+.3f} to {gains.max():+.3f}, "
            f"{gains.mean():+.3f} on average."
        )
        head = ["run", "MRR of its start", "MRR after whole lists", "difference", "95 % interval", "p"]
        return told + "\n" + html_table("Before and after whole lists, paired bootstrap over test triples", head, rows)

    # -- beyond the paper
    def of_frontier(self, dataset: str, name: str = "frontier") -> pd.DataFrame:
        """The rows of a graph."""
        frame = self.frames[name]
        return frame[frame["dataset"] == dataset] if len(frame) else frame

    def few_bits(self, dataset: str = "wn18rr", model: str = "RotatE", dim: int = 8) -> str:
        """What students of few bits add to the paper's, in a paragraph; nothing where they have not run."""
        frame, cells = self.of_frontier(dataset), self.frames["table3" if dataset == "wn18rr" else "table4"]
        few = frame[frame["method"] == "distilled"].sort_values("bytes") if len(frame) else frame
        mine = cells[
            (cells["protocol"] == "tuned")
            & (cells["model"] == model)
            & (cells["metric"] == "mrr")
            & (cells["method"] == "DS")
            & (cells["dim"] == dim)
        ].dropna(subset=["ours"])
        if few.empty or mine.empty:
            return ""
        small, ds, size = few.iloc[0], mine.iloc[0], row_bytes(model, dim)
        mean = f", the mean of {ds.seeds} seeds, here seed 0" if ds.seeds > 1 else ""
        teacher = self.records[self.records[small.run]["config"]["teacher"]]
        return (
            f"**Fewer bits beat fewer floats.** A student that keeps its teacher's dimension and gives each group of "
            f"numbers four bits reaches an MRR of {number(small.mrr)} with {small.bytes} bytes an entity "
            f"({run_link(small.run, 'record')}); the tuned {dim}-dimensional {model}, distilled in two stages, "
            f"reaches {number(ds.ours)} with {size} ({run_link(ds.run, 'record')}{mean}), in the paper "
            f"{number(ds.paper)}. The teacher of the former has {number(teacher['test']['both']['mrr'])} "
            f"({run_link(teacher['id'], 'record')}). "
            "[What a byte buys](frontier.md) compares them with everything simpler."
        )

    def frontier(self, dataset: str) -> str:
        """Picture, words and tables of a graph's frontier, or what makes them."""
        frame, gains = self.of_frontier(dataset), self.of_frontier(dataset, "frontier_gain")
        if frame.empty:
            return self.none_yet(f"make frontier DATASET={dataset}")
        said = pd.read_csv(records.results_folder() / "published.csv")
        table = self.frames["table3" if dataset == "wn18rr" else "table4"]
        paper = table[
            (table["protocol"] == "tuned")
            & (table["metric"] == "mrr")
            & (table["model"] == "RotatE")
            & (table["method"] == "DS")
        ]
        others = pd.concat(
            [
                said[said["dataset"] == dataset].assign(kind="published", bytes=4 * said["floats"]),
                paper.assign(
                    kind="paper", bytes=[row_bytes("RotatE", dim) for dim in paper["dim"]], mrr=paper["paper"]
                ),
            ]
        )
        words = story.of_frontier(frame, gains, NAMES[dataset])
        drawn = self.picture(f"frontier-{dataset}", plots.frontier(frame, others), words)
        sizes = sorted(frame["bytes"].unique(), reverse=True)
        cell = {
            (r.method, r.bytes): f"{number(r.mrr)} / {number(r.hits)} {run_link(r.run, 'record')}"
            for r in frame.rename(columns={"hits@10": "hits"}).itertuples()
        }
        called = {method: style[3] for method, style in plots.FRONTIER.items()} | {"teacher": "teacher, float32"}
        rows = [
            [f"{called[method]}<br><code>{method}</code>", *(cell.get((method, size), "–") for size in sizes)]
            for method in called
            if (frame["method"] == method).any()
        ]
        table = html_table(
            f"Test MRR / Hits@10 on {NAMES[dataset]} by bytes of an entity",
            ["method", *(f"{size:,} bytes" for size in sizes)],
            rows,
        )
        rows = [
            [
                f"{r.bytes} bytes",
                called[r.method],
                number(r.mrr) + " " + run_link(r.run, "record"),
                f"{number(r.distilled_mrr)} {run_link(r.distilled_run, 'record')}" + FORM.get(r.form, ""),
                difference(r.gain),
                f"{r.low:+.3f} … {r.high:+.3f}",
                f"{r.p:.4f}",
            ]
            for r in gains.itertuples()
        ]
        head = ["size", "rival", "its MRR", "distilled, few bits", "difference", "95 % interval", "p"]
        beside = html_table(f"The distilled few-bit student against every rival on {NAMES[dataset]}", head, rows)
        files = frame[frame["method"].isin(("teacher", *DISTILLED, "small-distilled"))]
        files = files.dropna(subset=["weights"]).sort_values("weights")
        rows = [
            [
                f"{r.weights / 1000:,.0f} kB",
                called[r.method],
                f"{r.bytes:,} bytes",
                number(r.mrr) + " " + run_link(r.run, "record"),
            ]
            for r in files.itertuples()
        ]
        head = ["all weights", "method", "of an entity", "test MRR"]
        whole = html_table(f"Whole files on {NAMES[dataset]}: entities, relations, codebooks and maps", head, rows)
        return f"\n{words}\n{drawn}\n{table}\n{beside}\n{whole}\n"

    def frontier_speed(self, dataset: str) -> str:
        """What a query costs by bytes of an entity, in words, a picture and a table."""
        frame = self.of_frontier(dataset, "frontier_speed")
        if frame.empty:
            return self.none_yet(f"python -m kgdistil.paper.bench.scan --graph {dataset}")
        words = story.of_speed(frame, NAMES[dataset])
        drawn = self.picture(f"frontier-speed-{dataset}", plots.speed(frame, NAMES[dataset]), words)
        rows = [
            [
                r.label,
                str(r.bytes),
                r.what,
                f"{r.microseconds:.1f}",
                f"{r.complex:.1f}×",
                f"{r.rotate:.1f}×",
                number(r.mrr) + " " + run_link(r.run, "record"),
            ]
            for r in frame.itertuples()
        ]
        head = ["model", "bytes", "task", "µs a query", "as fast as ComplEx, d = 64", "as RotatE, d = 64", "MRR"]
        return f"\n{words}\n{drawn}\n{html_table(f'What a query costs on {NAMES[dataset]}', head, rows)}\n"

    def objectives(self, dataset: str) -> str:
        """What a soft label should say: the objectives of a graph side by side."""
        frame = self.of_frontier(dataset, "objectives")
        if frame.empty:
            return self.none_yet(f"python -m kgdistil.paper.objectives --graph {dataset}")
        words = story.of_objectives(frame, NAMES[dataset])
        drawn = self.picture(f"objectives-{dataset}", plots.objectives(frame), words)
        rows = [
            [
                r.student,
                r.objective,
                number(r.mrr) + " " + run_link(r.run, "record"),
                number(r.hits),
                *(("–",) * 3 if pd.isna(r.p) else (difference(r.gain), f"{r.low:+.3f} … {r.high:+.3f}", f"{r.p:.4f}")),
            ]
            for r in frame.rename(columns={"hits@10": "hits"}).itertuples()
        ]
        head = ["student", "objective", "test MRR", "Hits@10", "difference from its first", "95 % interval", "p"]
        return f"\n{words}\n{drawn}\n{html_table(f'Objectives on {NAMES[dataset]}, as many updates', head, rows)}\n"

    def not_reproduced(self, protocol: str) -> str:
        """Cells of Tables 3 and 4 whose MRR is not the paper's, the farthest first."""
        frame = pd.concat([self.frames["table3"], self.frames["table4"]], ignore_index=True)
        frame = frame[(frame["protocol"] == protocol) & (frame["metric"] == "mrr")].dropna(subset=["ours"])
        if frame.empty:
            return self.none_yet("make reproduce TABLE=3" + (" PROTOCOL=paper" if protocol == "paper" else ""))
        far = frame[frame["difference"].abs() >= NEAR]
        far = far.reindex(far["difference"].astype(float).abs().sort_values(ascending=False).index)
        rows = [
            [
                f"{r.model} d={r.dim} {METHOD_WORDS[r.method]}, {NAMES[r.dataset]}",
                number(r.paper),
                number(r.ours),
                difference(r.difference),
                again(r),
            ]
            for r in far.itertuples()
        ]
        above = int((far["difference"] > 0).sum())
        counts = (
            f"Of {len(frame)} cells that have run, {len(frame) - len(far)} are within {NEAR:g} of the paper's MRR, "
            f"{above} lie above and {len(far) - above} below it."
        )
        return (
            counts
            + "\n"
            + html_table(
                f"MRR that differs, protocol {protocol}", ["cell", "the paper", "ours", "difference", "run"], rows
            )
        )

    def does_it_pay(self) -> str:
        """In how many cells distillation beat the student alone: the paper and ours."""
        lines = []
        for name, dataset in (("table3", "WN18RR"), ("table4", "FB15k-237")):
            frame = self.frames[name]
            for protocol in PROTOCOLS:
                mine = frame[(frame["protocol"] == protocol) & (frame["metric"] == "mrr")]
                wins = [f"{dataset}, {protocol}"]
                for who in ("paper", "ours"):
                    pairs = mine.pivot(index=["model", "dim"], columns="method", values=who)[["no-DS", "DS"]].dropna()
                    count = f"{int((pairs['DS'] > pairs['no-DS']).sum())} of {len(pairs)}"
                    wins.append(count if len(pairs) else "not run")
                lines.append(wins)
        return html_table(
            "Students whose MRR is higher with a teacher than without", ["graph, protocol", "the paper", "ours"], lines
        )

    def behind(self) -> str:
        """Where the teacher does not help under the protocol tuned: which students, by how much, and their curves."""
        frame, told = self.frames["behind"], []
        cells = pd.concat([self.frames["table3"], self.frames["table4"]])
        cells = cells[(cells["protocol"] == "tuned") & (cells["metric"] == "mrr")]
        cells = cells.set_index(["dataset", "model", "dim", "method"])["ours"]
        if cells.isna().all():
            return self.none_yet("python -m kgdistil.paper.reproduce --table 3 4")
        if not len(frame):
            return "Under the protocol **tuned** every student that has run is better with its teacher than without."
        frame = frame.assign(student=[f"{r.model} d={r.dim}, {NAMES[r.dataset]}" for r in frame.itertuples()])
        for key, part in frame.groupby(["dataset", "model", "dim"], sort=False):
            alone, last = cells[(*key, "no-DS")], cells[(*key, "DS")]
            told.append(f"{part['student'].iloc[0]} ({number(alone)} alone, {number(last)} with a teacher)")
        few = "; ".join(told)
        words = f"Under the protocol **tuned** all students but {len(told)} end higher with a teacher: {few}."
        alt = f"Validation MRR over epochs, alone and distilled, of {len(told)} students: {few}."
        return words + self.picture("behind", plots.behind(frame), alt)

    def none_yet(self, command: str) -> str:
        return (
            f"\n:::{{admonition}} Not run yet\n:class: note\nNo run of this kind is recorded. To make them: "
            f"`{command}`.\n:::\n"
        )

    # -- reference
    def modules(self) -> list[str]:
        """The package's modules, in reading order: the paper's equations first, then room by room."""
        first = ["graph", "models", "losses", "sampling", "config", "evaluation", "checkpoint", "records"]
        home = Path(kgdistil.__file__).parent
        there = [p.relative_to(home).with_suffix("") for p in sorted(home.rglob("*.py"))]
        named = [".".join(p.parts) for p in there if not p.name.startswith("_") and "bench" not in p.parts]
        rooms = ("training", "kernels", "graphs", "compress", "answer", "distillation", "paper")
        rest = sorted(
            set(named) - set(first), key=lambda n: (rooms.index(r) if (r := n.split(".")[0]) in rooms else -1, n)
        )
        return ["kgdistil"] + [f"kgdistil.{name}" for name in [*first, *rest]]

    def runs(self) -> str:
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
            for r in sorted(self.records.values(), key=lambda r: r["finished"], reverse=True)
            if r["config"]["dataset"] != "umls"
        ]
        head = ["run", "finished (UTC)", "commit", "seconds", "epochs", "test MRR", "device", "torch, numpy"]
        return html_table("Recorded runs, the newest first", head, rows)

    def build(self) -> str:
        """What this very book was built with."""
        from importlib.metadata import version

        made = {
            "commit": (records.git("rev-parse", "HEAD") or "none")[:10],
            "sum of the sources": digest(SOURCES),
            "python": platform.python_version(),
            "processor": records.describe_device("cpu"),
        }
        for name in ("kgdistil", "torch", "numpy", "pandas", "jupyter-book", "sphinx", "sphinx-book-theme"):
            made[name] = version(name)
        return html_table("This build", ["what", "value"], ([k, f"<code>{v}</code>"] for k, v in made.items()))

    def contributing(self) -> str:
        """CONTRIBUTING.md below a heading of this page."""
        text = (records.root() / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n", 1)[1]
        return text.replace("\n## ", "\n### ")

    def citation(self) -> str:
        return (records.root() / "CITATION.cff").read_text(encoding="utf-8")

    def try_missing(self) -> str:
        missing = json.loads((self.source / "site" / "try" / "graphs.json").read_text(encoding="utf-8"))["missing"]
        return "".join(f"\n- {entry['title']}: {entry['reason']}" for entry in missing)
