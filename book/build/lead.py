"""The opening of README and book: what a reader gains, and what did not work, from the tables under `results/`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pandas as pd

from kgdistil import records
from kgdistil.compress.size import row_bytes
from kgdistil.config import RunConfig
from kgdistil.distillation.recipes import bytes_per_entity
from kgdistil.paper.bench import large
from kgdistil.paper.cells import PATHS
from kgdistil.paper.frontier import mean_path
from kgdistil.paper.reading import written

Link = Callable[[str, str], str]  # of a run's id and a text
SURE = 0.05  # p below which a difference is called significant


def lead(link: Link) -> str:
    """Three points of a Markdown list; a part whose runs are not recorded is left out."""
    return "\n".join(f"- {point}" for point in (gained(link), at_size(), failed(link)) if point)


def at_size() -> str:
    """What one command made of a graph of millions (`paper.bench.large`)."""
    path = large.path_of("debian")
    if not path.is_file():
        return ""
    told = json.loads(path.read_text(encoding="utf-8"))
    every, sizes = told["graph"]["entities"], told["bytes_per_entity"]
    mrr = {name: f"{found['mrr']:.3f}" for name, found in told["rows"][0]["models"].items()}
    hours = sum(run["seconds"] for run in told["runs"].values()) / 3600
    student, teacher = (f"{size * every / 1e6:,.0f} MB" for size in (sizes["student"], sizes["teacher"]))
    return (
        f"**On a graph of {every:,} entities**, every file, folder and package of Debian, one command, "
        f"`kgdistil distill debian.tsv --budget {sizes['student']}B/entity`, took {hours:.1f} hours of training on "
        f"{told['threads']} cores. The student's weights take {student}, the teacher's {teacher}. Test MRR of "
        f"{told['ranked']:,} triples among all entities: {mrr['distilled']}; the teacher {mrr['teacher']}, rounded to "
        f"as many bytes {mrr['rounded']}, the student without a teacher {mrr['alone']} (`results/large/{path.name}`, "
        "with settings of before there was a rule for them)."
    )


def tuned() -> dict[tuple[str, str, str, int], pd.Series]:
    """The rows of Tables 3 and 4 that have an MRR under the protocol tuned, by graph, model, method and dimension."""
    frame = pd.concat([written("table3"), written("table4")], ignore_index=True)
    frame = frame[(frame["protocol"] == "tuned") & (frame["metric"] == "mrr")].dropna(subset=["ours"])
    return {(r["dataset"], r["model"], r["method"], r["dim"]): r for _, r in frame.iterrows()}


def gained(link: Link) -> str:
    """Students of few bits on WN18RR: the smallest, and that of the paper's smallest size, beside the paper's."""
    cells, few = tuned(), written("frontier")
    teacher, ours = (cells.get(("wn18rr", "RotatE", *key)) for key in (("teacher", 64), ("DS", 8)))
    if teacher is None or ours is None or few.empty:
        return ""
    large, size = (row_bytes("RotatE", int(row["dim"])) for row in (teacher, ours))
    few = few[few["dataset"] == "wn18rr"].set_index("bytes").sort_index()
    by_paths, few = few[few["method"] == PATHS], few[few["method"] == "distilled"]
    if size not in few.index:
        return ""
    small = few.index[0]
    own = [taught_by(few.loc[b, "run"], link) for b in dict.fromkeys((small, size))]

    def shown(row: pd.Series, column: str) -> str:
        return link(row["run"], f"{row[column]:.3f}")

    return (
        f"**On WN18RR a student of {small} bytes an entity reaches a test MRR of {shown(few.loc[small], 'mrr')}, one "
        f"of {size} bytes {shown(few.loc[size], 'mrr')}.** A RotatE teacher of {large} bytes has "
        f"{shown(teacher, 'ours')}. The paper's distilled student of {size} bytes has {ours['paper']:.3f}; ours, "
        f"distilled as in the paper, {shown(ours, 'ours')}. The small students spend fewer bits on each dimension "
        "in place of having fewer dimensions (product quantisation, learned through the rounding). Their own teachers "
        f"have {' and '.join(own)}." + from_paths(by_paths, [small, size], link)
    )


def from_paths(rows: pd.DataFrame, sizes: list[int], link: Link) -> str:
    """What students of those sizes have where a path model taught them as well."""
    there = [size for size in dict.fromkeys(sizes) if size in rows.index]
    if not there or not (place := mean_path("wn18rr", PATHS)).is_file():
        return ""
    mrr = json.loads(place.read_text(encoding="utf-8"))["test"]["both"]["both"]["mrr"]
    of = " and ".join(f"{link(rows.loc[s, 'run'], format(rows.loc[s, 'mrr'], '.3f'))} with {s} bytes" for s in there)
    return (
        " Taught by a model of the paths between entities as well, which together with such a student has "
        f"{link(f'frontier/{place.name}', f'{mrr:.3f}')}, they have {of}."
    )


def taught_by(run: str, link: Link) -> str:
    """The MRR and size of a run's teacher."""
    student = records.read_record(records.record_path(run)) or {"config": {"teacher": ""}}
    teacher = records.read_record(records.record_path(student["config"]["teacher"]))
    if teacher is None:
        return "no record"
    size = bytes_per_entity(RunConfig(**teacher["config"]))
    return f"{link(teacher['id'], format(teacher['test']['both']['mrr'], '.3f'))} with {size:,} bytes"


def failed(link: Link) -> str:
    """How little the paper's two stages gain over a student alone, and the teachers that stay out of reach."""
    cells, tested = tuned(), written("significance")
    if tested.empty:
        return ""
    tested = tested[tested["rival"] == "no-DS"]
    sure = tested[tested["p"] < SURE]
    count = {
        protocol: (int((mine > 0).sum()), int((mine < 0).sum()))
        for protocol, mine in ((p, sure[sure["protocol"] == p]["difference"]) for p in ("tuned", "paper"))
    }
    of, mean = tested["protocol"].value_counts(), tested[tested["protocol"] == "tuned"]["difference"].mean()
    far = [
        f"{model} {link(row['run'], format(row['ours'], '.3f'))} instead of {row['paper']:.3f}"
        for model in ("RotatE", "TransH")
        if (row := cells.get(("fb15k-237", model, "teacher", 64))) is not None and row["difference"] < 0
    ]
    told = (
        "**What did not work.** The paper's own way, fewer dimensions in two stages, gains little over a student that "
        f"is trained alone. Of {of.get('tuned', 0)} distilled students {count['tuned'][0]} are significantly better "
        f"(p < {SURE:g}, seed 0), {count['tuned'][1]} worse, by {mean:+.3f} MRR on average; both sides had as many "
        "updates and recorded trials, but what shaped their recipes was in places tried for the distilled side alone. "
        f"With the paper's printed settings {count['paper'][0]} of {of.get('paper', 0)} are better and "
        f"{count['paper'][1]} worse."
    ).replace(" -0.", " −0.")
    return told + (f" Its teachers on FB15k-237 stayed out of reach: {', '.join(far)}." if far else "")
