"""The book's pages from results that are full, partly there, or missing: no page needs an edit when runs land."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from book.build import site, try_it
from book.build.lead import lead
from book.build.pages import PIECES, claims, figures, front, frontier, large, pieces, reproduced, results, rules, tables
from book.build.pages.reproduced import READINGS
from book.build.pages.shown import Shown
from book.build.try_it import export_graphs
from kgdistil import DataError, build_model, load_student, records
from kgdistil.answer.files import write_json
from kgdistil.paper import plots, reading
from kgdistil.paper import tables as paper_tables
from kgdistil.students.labelled import Labelled

RUN = "wn18rr-rotate-d8-stage2-s0-d8523e7a"
ABOUT = {"dataset": "wn18rr", "model": "RotatE", "dim": 8}
SURE = {"low": -0.03, "high": -0.01, "p": 0.0005}


def rows(text: str) -> list[list[str]]:
    """The cells of every row of a page's tables, tags left out."""
    found = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    cells = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in found)
    return [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def row(text: str, first: str) -> list[str]:
    """The row that begins so, but for its first cell."""
    (found,) = (cells for cells in rows(text) if cells and cells[0] == first)
    return found[1:]


def made(names, *values) -> pd.DataFrame:
    return pd.DataFrame([dict(zip(names.split(), line, strict=True)) for line in values])


def copied(folder, *own):
    """`results/` with tables, and whatever `own` names, that a test may change; the rest is linked."""
    made = folder / "results"
    made.mkdir()
    for path in (records.root() / "results").iterdir():
        if path.name in ("tables", "large", *own):
            shutil.copytree(path, made / path.name)
        elif path.name != "students":
            (made / path.name).symlink_to(path)
    return made


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """A copy of `results/` in which every cell has run, ours being .05 above the paper."""
    folder = copied(tmp_path) / "tables"
    for name in ("table3", "table4", "table6"):
        frame = pd.read_csv(folder / f"{name}.csv")
        frame = frame.assign(ours=frame["paper"] + 0.05, difference=0.05, seeds=3, deviation=0.002, run=RUN)
        frame.to_csv(folder / f"{name}.csv", index=False)
    sizes = pd.read_csv(folder / "table2.csv")
    cell = {**ABOUT, "cell": "tuned/wn18rr/RotatE/DS/8", "method": "DS", "run": RUN}
    of_frontier = {"dataset": "wn18rr", "hits@10": 0.5, "valid_mrr": 0.3, "run": RUN, "weights": None}
    of_frontier |= {"seeds": 3, "deviation": 0.002}
    gain = {"dataset": "wn18rr", "method": "rounded", "run": RUN, "distilled_run": RUN}
    asked = {"dataset": "wn18rr", "what": "filtered rank", "run": RUN}
    tried = {"dataset": "wn18rr", "hits@10": 0.5, "valid_mrr": 0.3, "run": RUN}
    slow = {"dataset": "wn18rr", "model": "TransE", "dim": 8, "part": "whole", "run": RUN}
    new = {
        "table2": sizes.assign(ours=sizes["paper"] + (np.arange(len(sizes)) == 0)),
        "sides": made("side mrr", ("both", 0.3), ("tail", 0.22), ("mean_of_two_ranks", 0.1)).assign(**cell),
        "significance": made("protocol rival rival_mrr ds_mrr difference", ("tuned", "no-DS", 0.3, 0.28, -0.02)).assign(
            **ABOUT, **SURE, rival_run=RUN, ds_run=RUN
        ),
        "whole_lists": made(
            "method dim start_mrr mrr difference low high p", ("teacher", 64, 0.46, 0.48, 0.02, 0.01, 0.03, 0.0005)
        ).assign(dataset="wn18rr", model="RotatE", start_run=RUN, run=RUN),
        "frontier": made(
            "method bytes trained mrr",
            *(("teacher", 2048, True, 0.5), ("distilled", 16, True, 0.45), ("rounded", 16, False, 0.4)),
            *(("distilled", 64, True, 0.48), ("rounded", 64, False, 0.479)),
        ).assign(**of_frontier),
        "frontier_gain": made(
            "bytes mrr distilled_mrr form gain low high p",
            (16, 0.4, 0.45, "low-rank", 0.05, 0.04, 0.06, 0.0005),
            (64, 0.479, 0.48, "distilled", 0.001, -0.009, 0.011, 0.6),
        ).assign(**gain),
        "frontier_speed": made(
            "label form bytes complex rotate microseconds mrr",
            ("few bits of 16", "few bits", 16, 9.9, 40.0, 10.0, 0.45),
            ("float32 of 512", "float32", 512, 1.0, 4.0, 99.0, 0.47),
        ).assign(**asked),
        "objectives": made(
            "student objective mrr gain low high p",
            *(
                (kind, name, 0.3 + gain, gain, low, high, p)
                for kind in ("few floats", "few bits")
                for name, gain, low, high, p in (
                    ("first", 0, None, None, None),
                    ("better", 0.02, 0.01, 0.03, 0.001),
                    ("worse", -0.02, -0.03, -0.01, 0.001),
                    ("same", 0.001, -0.01, 0.01, 0.9),
                )
            ),
        ).assign(**tried),
        "figure1": made("dim mrr", (8, 0.108), (16, 0.116)).assign(run=RUN),
        "figure1_paper": made("dim mrr", (8, 0.108)).assign(run=RUN),
        "figure2_paper": made("teacher_dim dim mrr teacher_mrr", (128, 8, 0.123, 0.456), (64, 16, 0.123, 0.456)).assign(
            run=RUN
        ),
        "figure3": made(
            "method part epoch valid_mrr test_mrr",
            *((m, part, e, 0.2, 0.3) for m in ("no-DS", "-S2", "DS") for e, part in ((10, "start"), (20, "whole"))),
        ).assign(run=RUN),
        "behind": made(
            "method epoch valid_mrr", *((m, e, 0.1 + e / 100) for m in ("no-DS", "-S2", "DS") for e in (1, 2))
        ).assign(**slow),
    }
    new["frontier"].loc[new["frontier"]["trained"], "weights"] = 1000 * new["frontier"]["bytes"]
    for name, frame in new.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    return Shown(tmp_path / "source")


def pictures(shown) -> set[str]:
    return {path.name for path in (shown.source / "site" / "pictures").glob("*.svg")}


def test_templates_may_call_what_is_listed_and_nothing_else(tmp_path):
    found = pieces(Shown(tmp_path))
    assert len(found) == sum(len(names.split()) for names in PIECES.values()), "two pieces have one name"
    called = set()
    for page in (records.root() / "book").glob("*.md"):
        called |= set(re.findall(r"<<\s*(\w+)\(", page.read_text())) | set(
            re.findall(r"in (\w+)\(\) %>", page.read_text())
        )
    assert called == set(found), "a piece that no page calls, or a call of no piece"


def test_a_full_table_shows_ours_the_difference_the_record_and_the_command(shown):
    text = tables.table(shown, "table3", "tuned")
    assert text.count("<table") == 4
    rotate = text[text.index("RotatE on WN18RR") :]
    mrr, *_, run = row(rotate, "d=8 DS")
    assert mrr == "0.268 ± 0.002 ▲ +0.050 paper 0.218"
    assert "python -m kgdistil.paper.reproduce tuned/wn18rr/RotatE/DS/8" in run and f'href="../runs/{RUN}.json"' in text


def test_what_differs_is_listed_the_farthest_first(shown):
    assert len(rows(reproduced.not_reproduced(shown, "tuned"))) == 1 + 56
    for number, name in enumerate(("table3", "table4")):  # another order in each
        frame = shown.frames[name]
        shown.frames[name] = frame.assign(difference=0.02 + (frame.index * 7919 + number) % 97 / 1000)
    listed = [float(cells[3].split()[1]) for cells in rows(reproduced.not_reproduced(shown, "tuned"))[1:]]
    assert len(listed) == 56 and listed == sorted(listed, reverse=True) and listed[0] > listed[-1]
    shown.frames["table4"] = shown.frames["table4"].assign(difference=0.005)
    assert len(rows(reproduced.not_reproduced(shown, "tuned"))) == 1 + 28


def test_students_that_gain_are_counted(shown):
    assert row(results.does_it_pay(shown), "WN18RR, tuned") == ["12 of 12", "12 of 12"]
    frame = shown.frames["table3"]
    shown.frames["table3"] = frame.assign(ours=frame["ours"].where(frame["method"] != "DS", 0))
    assert row(results.does_it_pay(shown), "WN18RR, tuned") == ["12 of 12", "0 of 12"]


def test_the_side_that_is_nearest_to_the_paper_is_named(shown):
    assert row(reproduced.sides(shown), "tuned/wn18rr/RotatE/DS/8")[-1] == "tail", ".22 is nearest to .218"
    plain = reproduced.sides(shown)
    frame = shown.frames["sides"]
    shown.frames["sides"] = frame.assign(dataset="fb15k-237", mrr=[0.2, 0.1, 0.3])  # .297 in the paper
    assert row(reproduced.sides(shown), "tuned/wn18rr/RotatE/DS/8")[-1] == "mean of two ranks"
    counted = reproduced.sides(shown).partition("<div")[0]
    assert "1 of 1" in counted and "1 of 1" not in plain.partition("<div")[0], "FB15k-237 alone is summed up"
    shown.frames["sides"] = shown.frames["sides"].assign(cell="paper/fb15k-237/RotatE/DS/8")
    assert "1 of 1" not in reproduced.sides(shown), "and the protocol tuned alone"


def test_the_legend_of_the_curves_lies_inside_the_picture(shown):
    drawn = plots.behind(shown.frames["behind"].assign(student="one"))
    drawn.canvas.draw()
    legend = drawn.legends[0].get_window_extent()
    assert drawn.bbox.y0 <= legend.y0 < legend.y1 <= drawn.bbox.y1 and drawn.bbox.x0 <= legend.x0 < legend.x1
    assert len(drawn.legends[0].get_texts()) == 3


def constrained_frame(apart: dict[tuple[str, str], float], **of_models: float) -> pd.DataFrame:
    """Ours among Table 4's cells: the paper's numbers and so much by candidates and side, and by model on all."""
    said = pd.read_csv(records.root() / "results" / "paper.csv")
    said = said[(said["table"] == 4) & said["metric"].isin(reading.METRICS)]
    wide = said.pivot_table(index=["model", "dim", "method"], columns="metric", values="value", sort=False)
    return pd.DataFrame(
        {
            "cell": f"tuned/fb15k-237/{model}/{method}/{dim:.0f}",
            "model": model,
            "dim": int(dim),
            "method": method,
            "candidates": candidates,
            "side": side,
            "paper": values["mrr"],
            "run": RUN,
            **(values + more + of_models.get(model, 0)).to_dict(),
        }
        for (model, dim, method), values in wide.iterrows()
        for (candidates, side), more in apart.items()
    )


APART = {
    ("every entity", "both"): -0.1,
    ("every entity", "tail"): 0.01,
    ("training", "both"): -0.05,
    ("training", "tail"): 0.2,
    ("all splits", "both"): -0.053,
}


def test_suspect_numbers_stand_beside_each_reading_of_ours(shown):
    shown.frames["constrained"] = constrained_frame(APART, TransH=0.055)
    text = reproduced.suspects(shown)
    listed = rows(text)
    assert len(listed) == 1 + 2 * (1 + len(READINGS)) and f"../constrained/{RUN}.json" in text
    first, *ours = (cells for cells in listed[1:6])
    assert first[1] == "0.420" and [cells[1] for cells in ours] == ["0.320", "0.430", "0.370", "0.620"]
    assert [cells[-1] for cells in ours] == ["0.100", "0.010", "0.050", "0.200"], (
        "the largest difference of four metrics"
    )
    assert [cells[-1] for cells in listed[7:]] == ["0.045", "0.065", "0.005", "0.255"]


def test_every_cell_of_table_4_is_shown_in_each_reading(shown):
    shown.frames["constrained"] = frame = constrained_frame(APART, TransH=0.055, ComplEx=0.1)
    text = reproduced.readings(shown)
    assert row(text, "RotatE") == ["4 of 4 tails alone", "3 of 3 tails alone"]
    assert (
        row(text, "TransH")[0].startswith("4 of 4 both sides, type") and row(text, "ComplEx")[0] == "4 of 4 both sides"
    )
    assert row(text, "RotatE d=8 DS")[:3] == ["0.297", "0.197 ▼ −0.100", "0.307 ▲ +0.010"]
    assert len(rows(text)) == 5 + 1 + 28 and "readings-dark.svg" in pictures(shown)
    drawn = plots.readings(reproduced.by_reading(frame), [*READINGS])
    panel = drawn.axes[list(frame["model"].unique()).index("RotatE")]
    lines = {line.get_label(): list(line.get_ydata()) for line in panel.get_lines()}
    assert lines["tails alone"] == pytest.approx([0.307, 0.375, 0.42, 0.43])
    assert [0.297, 0.365, 0.41, 0.42] in lines.values() and [0.256, 0.297, 0.365] in lines.values()


def test_answers_that_no_type_allows_are_counted(shown):
    assert re.findall(r"[\d,]+(?=%| \w| each)", reproduced.unseen(shown)) == ["4,881", "24", "2,000", "10", "20,466"]


def test_suspect_models_stand_beside_what_is_published(shown):
    text = reproduced.suspects_published(shown)
    assert row(text, "RotatE d=32 DS") == ["0.410", "0.460", "0.310, RotatE by IterDE", "0.337, RotatE (any dimension)"]
    assert row(text, "TransH d=16 DS")[:2] == ["0.337", "0.387"] and len(rows(text)) == 1 + 8


def test_larger_teachers_stand_beside_what_the_paper_says_of_them(shown):
    found = {32: (0.25, 0.2502, 0.2504), 8: (0.18, 0.17, 0.175)}
    points = [(t, d, mrr) for d, values in found.items() for t, mrr in zip((64, 128, 256), values, strict=True)]
    shown.frames["figure2"] = pd.DataFrame(points, columns=["teacher_dim", "dim", "mrr"])
    text = figures.figure2_said(shown)
    said = pd.read_csv(records.root() / "results" / "paper_figure2.csv").set_index("student")["larger_teacher"]
    assert row(text, "d=32") == [said[32], "0.2500", "0.2502", "0.2504", "≈ +0.0004"]
    assert row(text, "d=8") == [said[8], "0.1800", "0.1700", "0.1750", "▼ −0.0050"]


def test_claims_show_their_unit(shown):
    shown.frames["claims"] = made(
        "sentence section unit paper_says from_its_tables tuned paper",
        ("a", "Q1", "%", 10, 9.9, 7.5, None),
        ("b", "Q2", "×", 5, 5.04, 3.5, 5),
        ("c", "Q2", "epochs", 50, None, 3, 47),
    )
    text = claims.claims(shown).replace("\u00a0", " ")
    assert row(text, "a") == ["Q1", "10 %", "9.9 %", "7.5 % ≈ −2.5", "not run"]
    assert row(text, "b") == ["Q2", "5×", "5×", "3.5× ▼ −1.5", "5× ≈ +0.0"]
    assert row(text, "c") == ["Q2", "50 epochs", "not in them", "3 epochs ▼ −47.0", "47 epochs ≈ −3.0"]


def test_results_at_a_glance(shown):
    assert row(results.significance(shown), "RotatE d=8 on WN18RR, tuned")[3:] == [
        "▼ −0.020",
        "−0.030 … −0.010",
        "0.0005",
    ]
    assert row(results.whole_lists(shown), "RotatE d=64 teacher, WN18RR")[2] == "▲ +0.020"
    first, *others = rows(results.table2(shown))[1:]
    assert first[3] == "▲ +1" and {cells[3] for cells in others} == {"same"}
    assert (
        "0.126" in results.behind(shown) and "0.175" in results.behind(shown) and "behind-dark.svg" in pictures(shown)
    )
    shown.frames["behind"] = pd.DataFrame()
    assert "0.126" not in results.behind(shown)
    listed = rows(results.published(shown))[1:]
    said = pd.read_csv(records.root() / "results" / "published.csv")
    assert [cells[4:6] for cells in listed] == [
        ["–" if pd.isna(x) else f"{x:.3f}" for x in line] for line in said[["mrr", "hits@10"]].to_numpy()
    ]
    assert RUN in pieces(shown)["runs"]()


def test_hours_and_figures(shown):
    hours = paper_tables.hours(3, "paper")["one core"]
    assert (
        hours > 0
        and f"{hours:.1f}" in tables.cost(shown, 3, "paper")
        and "PROTOCOL=paper" in tables.cost(shown, 3, "paper")
    )
    assert [cells[1:] for cells in rows(figures.figure1_paper(shown))[1:]] == [
        ["0.108 record", "not run"],
        ["0.108 record", "0.116 record"],
    ]
    listed = rows(figures.figure2_paper(shown))[1:]
    assert [cells[1] for cells in listed] == ["0.456", "0.456", ""]
    assert [cells[2] for cells in listed] == ["not run", "0.123 record", "0.126 record"], "alone: the paper's and .05"
    assert "0.300" in figures.figure(shown, 3) and "figure3-dark.svg" in pictures(shown)


def test_seeds_are_compared_by_the_standard_error_of_their_means(shown):
    frame = shown.frames["table3"]
    frame = frame[(frame["model"] == "RotatE") & (frame["protocol"] == "tuned")]
    shown.frames["table4"] = frame[:0]
    assert row(results.seeds(shown), "RotatE d=8 on WN18RR, tuned")[1:4] == [
        "0.161 ± 0.002 seed 0",
        "0.268 ± 0.002 seed 0",
        "▲ +0.107",
    ]
    for distilled, better, worse in ((0.3, 0, 0), (0.2, 0, 3), (0.4, 3, 0)):
        shown.frames["table3"] = frame.assign(ours=frame["method"].map({"DS": distilled}).fillna(0.3))
        assert re.findall(r"\b\d+\b", results.seeds(shown).partition("<div")[0]) == ["3", str(better), str(worse)]


def test_students_that_more_seeds_turn_around_are_named(shown):
    assert "1 of 1" in results.turned(shown) and "RotatE d=8 on WN18RR" in results.turned(shown), "−.02, and +.107"
    shown.frames["significance"] = shown.frames["significance"].assign(difference=0.02)
    assert "0 of 1" in results.turned(shown) and "RotatE" not in results.turned(shown)


def test_the_frontier_is_told_in_words_a_picture_and_tables(shown):
    text = frontier.frontier(shown, "wn18rr")
    assert text.count("<table") == 3 and f'href="../runs/{RUN}.json"' in text
    assert 'href="../frontier/wn18rr.json"' not in text and "frontier-wn18rr-dark.svg" in pictures(shown)
    assert row(text, "16 bytes")[2:5] == ["0.450 record , low rank", "▲ +0.050", "+0.040 … +0.060"]
    assert "0.450 ±\N{NO-BREAK SPACE}0.005 / 0.500" in text, "4.30 standard errors of three seeds"
    whole = rows(text[text.index("Whole files") :])[1:]
    assert [cells[0] for cells in whole] == ["16 kB", "64 kB", "2,048 kB"]
    text = frontier.frontier_speed(shown, "wn18rr")
    assert row(text, "few bits of 16")[2:5] == ["10.0", "9.9×", "40.0×"]
    assert "frontier-speed-wn18rr-dark.svg" in pictures(shown)
    assert "9.9" in frontier.aimed(shown) and "missed" in frontier.aimed(shown)
    shown.frames["frontier_speed"] = shown.frames["frontier_speed"].assign(complex=10.1)
    assert "10.1" in frontier.aimed(shown) and "reached" in frontier.aimed(shown)


def test_how_a_student_of_few_bits_was_trained_follows_its_config(shown):
    config = shown.records[RUN]["config"]
    config |= {"alpha": 0.7, "penalty": 0.02, "top": 16, "epochs": 10, "dim": 64, "rank": 64, "model": "ComplEx"}
    assert row(frontier.trained(shown, "wn18rr"), "16 bytes, distilled record")[0] == "64 × 2 bits, mapped to 128"
    assert row(frontier.trained(shown, "wn18rr"), "16 bytes, distilled record")[3:] == ["0.7", "0.02", "16", "10"]


def test_objectives_are_told_in_words_a_picture_and_a_table(shown):
    text = frontier.objectives(shown, "wn18rr")
    listed = rows(text)[1:]
    assert len(listed) == 8 and {cells[0] for cells in listed} == {"few floats, 64 bytes", "few bits, 64 bytes"}
    assert [cells[4] for cells in listed[:4]] == ["–", "▲ +0.020", "▼ −0.020", "≈ +0.001"]
    assert "objectives-wn18rr-dark.svg" in pictures(shown)


def test_the_opening_follows_the_records(shown):
    told = lead(lambda run, text: f"[{text}]({run})")
    for mrr in ("[0.450]", "[0.480]", "[0.528]", "0.218", "[0.268]"):
        assert mrr in told, "few bits of 16 and of 64 bytes, the teacher, and the paper's student beside ours"
    failed = told[told.index("- **What") :]
    assert re.findall(r"Of (\d+) distilled students (\d+) .*?, (\d+) worse", failed) == [("1", "0", "1")]
    path = records.results_folder() / "tables" / "frontier.csv"
    frame = pd.read_csv(path)
    frame.assign(mrr=frame["mrr"].replace(0.45, 0.4321)).to_csv(path, index=False)
    assert "0.432" in lead(lambda run, text: text)
    path.write_text("\n")
    large.path_of("debian").unlink(missing_ok=True)
    assert lead(lambda run, text: f"[{text}]({run})") == failed, "what has not run is left out"
    models = {name: {"mrr": 0.5} for name in ("teacher", "rounded", "alone")} | {"distilled": {"mrr": 0.41}}
    told = {"graph": {"entities": 2_000_000}, "bytes_per_entity": {"teacher": 512, "student": 16}, "threads": 2}
    told |= {
        "ranked": 500,
        "rows": [{"models": models}],
        "runs": {name: {"seconds": 3600.0} for name in ("teacher", "alone")},
    }
    large.path_of("debian").parent.mkdir(exist_ok=True)
    large.path_of("debian").write_text(json.dumps(told))
    told = lead(lambda run, text: text)
    assert "2,000,000 entities" in told and "take 32 MB, the teacher's 1,024 MB" in told and "2.0 hours" in told
    assert "among all entities: 0.410" in told


def test_what_has_not_run_says_so_and_how_to_run_it(tmp_path, monkeypatch):
    folder = copied(tmp_path, "bench") / "tables"
    for name in ("table3", "table4", "table6"):
        frame = pd.read_csv(folder / f"{name}.csv")
        frame = frame.assign(ours=np.nan, difference=np.nan, seeds=0, deviation=np.nan, run="not run")
        frame.to_csv(folder / f"{name}.csv", index=False)
    for path in folder.glob("*.csv"):
        if path.stem not in ("table2", "table3", "table4", "table5", "table6", "claims", "figures_known"):
            path.write_text("\n")
    (tmp_path / "results" / "constrained").unlink()
    (tmp_path / "results" / "bench" / "lists.json").unlink()
    shutil.rmtree(tmp_path / "results" / "large", ignore_errors=True)
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    shown = Shown(tmp_path / "source")
    call = pieces(shown)
    commands = {
        **{("figure", n): f"kgdistil.paper.reproduce --figure {n}" for n in (1, 2, 3)},
        **{(name, "wn18rr"): "make frontier DATASET=wn18rr" for name in ("sizes", "frontier", "trained")},
        **dict.fromkeys((("sides",), ("suspects",), ("readings",), ("unseen",)), ""),
        **{(name,): "" for name in ("significance", "behind", "whole_lists", "lists_recipe", "seeds", "aimed")},
        **{(f"figure{n}_paper",): f"--figure {n} --protocol paper" for n in (1, 2)},
        ("frontier_speed", "wn18rr"): "kgdistil.paper.bench.scan --graph wn18rr",
        ("objectives", "wn18rr"): "kgdistil.paper.objectives --graph wn18rr",
        ("lists_speed",): "kgdistil.paper.bench.lists",
        ("not_reproduced", "paper"): "make reproduce TABLE=3 PROTOCOL=paper",
    }
    for (name, *arguments), command in commands.items():
        text = call[name](*arguments)
        assert "Not run yet" in text and command in text, name
    assert row(call["does_it_pay"](), "WN18RR, tuned")[1] == "not run" and call["lead"]() == ""
    cells = [cell for line in rows(call["table"]("table6", "paper")) for cell in line]
    assert "not run" in " ".join(cells) and not {"nan", "None"} & {word for cell in cells for word in cell.split()}
    assert "0.385" in call["quality_picture"](), "the notebook's runs stand in"


def test_every_number_of_the_price_follows_the_records(tmp_path, monkeypatch):
    copied(tmp_path, "runs")
    path = tmp_path / "results" / "runs" / f"{RUN}.json"
    before = front.price(Shown(tmp_path))
    record = json.loads(path.read_text())
    record["test"]["both"]["mrr"] = 0.4444
    path.write_text(json.dumps(record))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    after = front.price(Shown(tmp_path))
    assert "0.444" in after and "0.444" not in before


def test_scale_on_paper_follows_its_constants(tmp_path, monkeypatch):
    folder = copied(tmp_path, "bench")
    given = json.loads((folder / "scale.json").read_text()) | {"machines": [1, 4], "bits_per_second": 8e9}
    given["memory_bytes"] = 5 << 30
    given["graphs"] = [
        {"name": "A", "entities": 3_000_000, "triples": 6_000_000},
        {"name": "B", "entities": 6_000_000, "like": "A"},
        {"name": "C", "entities": 1_000_000, "triples": 50_000_000},
    ]
    (folder / "scale.json").unlink()  # a link
    (folder / "scale.json").write_text(json.dumps(given))
    bench = json.loads((folder / "bench" / "bench.json").read_text()) | {"matmul_flops": 1e11}
    (folder / "bench" / "bench.json").write_text(json.dumps(bench))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    call = pieces(Shown(tmp_path))
    head, *body = rows(call["scale_table"]())
    found = {(name, machines): cells for name, machines, *cells in body}
    assert head[3:7] == ["MB sent a step", "ms on the wire", "ms of arithmetic", "minutes an epoch"]
    # (2 · 4 bytes · 128 numbers + 24) · 3 / 4 · 512 queries; 6 · 128 · 512 · (2,048 + 512) / 4 operations; 12 M queries
    assert found["A", "4"][1:5] == ["0.4", "0.40", "2.52", f"{12e6 / 512 * (0.402432 + 2.516582) / 6e4:,.1f}"]
    assert found["A", "1"][1:3] == ["0.0", "0.00"] and [x[-1] for x in found.values()][:2] == ["memory", "arithmetic"]
    alone = 4 * 2.516582 * 12e6 / 512 / 6e4  # minutes of A
    assert [found[name, "1"][4] for name in "AB"] == [f"{alone:,.1f}", f"{2 * alone:,.1f}"], "B is as dense as A"
    assert found["C", "4"][-1] == "memory", "triples are on every machine"
    given["bits_per_second"] = 1e9
    (folder / "scale.json").write_text(json.dumps(given))
    again = {(name, machines): cells for name, machines, *cells in rows(call["scale_table"]())[1:]}
    assert again["A", "4"][-1] == "network" and again["A", "1"][-1] == "memory"
    assert f"from {(5 << 30) / 146e6:,.0f} million on" in call["scale_limits"](), "24 + 24 + 98 bytes a triple"


def test_what_ranks_were_measured_to_do_follows_the_record(tmp_path, monkeypatch):
    path = copied(tmp_path, "bench") / "bench" / "distributed.json"
    report = json.loads(path.read_text())
    report["bytes"]["found"] = [{"ranks": 2, "steps": 5, "bytes": 1234, "formula": 5678}]
    report["kills"]["found"] |= {"restarted": 19, "same": 18}
    report["hosts"]["found"] |= {"by_torchrun": {"killed": 1, "exit_codes": [0, 0], "test_mrr": 0.25}, "test_mrr": 0.25}
    report["speed/made-up/float32/2048"] = {
        "found": {
            "graph": "made-up",
            "queries": 2048,
            "products": "float32",
            "triples_a_second": {"one process of two threads": 1000, "two ranks of one thread": 810},
            "ratio": 0.81,
        }
    }
    path.write_text(json.dumps(report))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    call = pieces(Shown(tmp_path))
    text = call["scale_measured"]()
    assert rows(text)[1:] == [["2", "5", "1,234", "5,678"]]
    assert "1 rank of the second was killed after a checkpoint: both ended well, with the same metrics." in text
    report["hosts"]["found"]["test_mrr"] = 0.5
    path.write_text(json.dumps(report))
    assert "both ended well, with other metrics." in call["scale_measured"]()
    assert "started 19 again" in text and "and 18 ended" in text and "rank_memory-light.svg" in text
    assert (tmp_path / "site" / "pictures" / "rank_memory-dark.svg").is_file()
    hosts = json.loads((path.parent / "hosts.json").read_text())
    hosts["found"] |= {"runs": 7, "killed": 13, "recorded_once": True, "same_bits": False}
    (path.parent / "hosts.json").unlink()
    (path.parent / "hosts.json").write_text(json.dumps(hosts))
    assert "7 runs as Ray tasks" in (text := call["scale_measured"]()) and "lost all its 13 processes" in text
    assert "each was recorded once, but not with the bits" in text
    found = rows(call["scale_speed"]())
    assert ["made-up", "float32", "2,048", "1,000", "810", "0.81"] in found
    one, two = report["speed/wn18rr/bfloat16/2048"]["found"]["triples_a_second"].values()
    assert ["wn18rr", "bfloat16", "2,048", f"{one:,}", f"{two:,}", f"{two / one:.2f}"] in found


def test_the_contents_list_the_notebooks_that_are_there():
    with_two, without = site.toc(["01_teacher", "03_distill"]), site.toc([])
    files = [c["file"] for part in with_two["parts"] for c in part["chapters"]]
    assert "notebooks/01_teacher" in files and "book/method" in files
    assert all(part["caption"] != "Notebooks" for part in without["parts"])


def test_launch_buttons_wait_for_the_address(tmp_path, monkeypatch):
    (tmp_path / "_config.yml").write_text((records.root() / "_config.yml").read_text())
    monkeypatch.setattr(records, "root", lambda: tmp_path)
    assert "launch_buttons" not in site.configuration(tmp_path)
    text = (tmp_path / "_config.yml").read_text().replace('url: ""', "url: https://github.com/someone/kgdistil")
    (tmp_path / "_config.yml").write_text(text)
    filled = site.configuration(tmp_path)
    assert filled["launch_buttons"] and filled["html"]["use_edit_page_button"]


def test_students_of_other_graphs_appear_where_their_weights_are(wn18rr, tmp_path, monkeypatch):
    student = build_model("TransE", wn18rr.num_entities, wn18rr.num_relations, 8)
    Labelled(student, wn18rr).save(tmp_path / "results" / "students" / "wn18rr-transe-d8")
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(try_it, "umls_entries", lambda folder: [{"title": "UMLS"}])
    export_graphs(tmp_path / "try")
    written = json.loads((tmp_path / "try" / "graphs.json").read_text())
    assert [entry["title"] for entry in written["graphs"]] == ["UMLS", "WN18RR, TransE, 8 dimensions"]
    shown = load_student(tmp_path / "try" / "wn18rr-transe-d8" / "student")
    assert (shown.model, len(shown.entities), shown.has_triples) == ("TransE", wn18rr.num_entities, True)

    for size, dim in (("2B", 2), ("16B", 16)):  # of few bits the largest, and before the others
        small = build_model("ComplEx", wn18rr.num_entities, wn18rr.num_relations, dim)
        Labelled(small, wn18rr, "4bit").save(tmp_path / "results" / "students" / f"wn18rr-complex-{size}")
    export_graphs(tmp_path / "try")
    written = json.loads((tmp_path / "try" / "graphs.json").read_text())
    assert [entry["title"] for entry in written["graphs"][1:]] == [
        "WN18RR, ComplEx, 16 bytes an entity",
        "WN18RR, TransE, 8 dimensions",
    ]
    assert load_student(tmp_path / "try" / "wn18rr-complex-16B" / "student").weights.blocks.shape[1:] == (16, 64)
    shutil.rmtree(tmp_path / "results" / "students" / "wn18rr-complex-16B")
    shutil.rmtree(tmp_path / "results" / "students" / "wn18rr-complex-2B")

    def absent(name):
        raise DataError("no network")

    monkeypatch.setattr(try_it, "load", absent)
    export_graphs(tmp_path / "try")
    written = json.loads((tmp_path / "try" / "graphs.json").read_text())
    assert written["missing"] == [{"title": "WN18RR, TransE, 8 dimensions", "reason": "no network"}]


# ---- a graph of millions --------------------------------------------------------------------------------------------
def test_the_page_of_a_large_graph_shows_what_was_measured_and_what_was_not(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(large, "path_of", lambda name: tmp_path / f"{name}.json")
    models = {"teacher": 0.5, "rounded": 0.3, "alone": 0.35, "distilled": 0.45}
    found = {name: {"mrr": mrr, "se": 0.01} for name, mrr in models.items()}
    rows = [{"relation": name, "triples": n, "models": found} for name, n in (("all", 90), ("depends", 60))]
    graph = {"entities": 12_345, "relations": 3, "train": 7_200, "valid": 10, "test": 90, "sha256": "ab" * 32}
    run = {"graph": graph, "epochs": 4, "seconds": 1_800.0}
    told = {"graph": graph, "plan": "a plan", "read_seconds": 37.2, "device": "a processor", "ranked": 90, "rows": rows}
    told |= {"runs": {name: run for name in models if name != "rounded"}, "memory_told": dict.fromkeys(models, 1 << 30)}
    told["differences"] = {"alone": {"gain": 0.1, "low": 0.08, "high": 0.12, "p": 0.001}}
    told["bytes_per_entity"] = {"teacher": 512, "student": 16}
    told["examples"] = [{"head": "a", "relation": "depends", "tail": "b", "answers": ["b", "c"]}]
    (tmp_path / "packages.json").write_text(json.dumps(told))
    graphs = large.large_graphs(shown)
    assert "12,345 entities" in graphs and "read in 37 s" in graphs
    assert "512 bytes an entity, 6 MB in all, the student 16, 0 MB" in graphs and "Not run yet" in graphs  # debian
    cost = large.large_cost(shown)
    assert "0.50" in cost and ">16<" in cost and "1.00" in cost  # hours, triples a second, GiB
    monkeypatch.setattr(large.step, "path_of", lambda name: tmp_path / f"step-{name}.json")
    assert "bench.step --large debian.tsv" in large.large_step(shown)
    row = {"seconds": 0.008, "product_seconds": 0.004, "pytorch_seconds": 0.02, "triples_a_second": 50_000.0}
    row |= {"kind": "teacher", "drawn": 2_048, "candidates": 2_900, "products": "bfloat16"}
    (tmp_path / "step-debian.json").write_text(json.dumps({"device": "a processor", "rows": [row]}))
    monkeypatch.setattr(large.candidates, "path", lambda of: tmp_path / f"candidates-{of}.json")
    made = large.large_step(shown)
    assert all(x in made for x in (">2,048<", ">2,900<", ">8.0<", ">50,000<", ">100,000<", ">20,000<"))
    assert "150,000 triples a second; none of these reaches it." in made
    row["triples_a_second"] = 150_000.0
    (tmp_path / "step-debian.json").write_text(json.dumps({"device": "a processor", "rows": [row]}))
    assert "these reach it: teacher, 2,048 drawn." in large.large_step(shown)
    assert "bench.candidates packages.tsv dim=" in made
    rows = [{"negatives": 512, "passes": 28, "mrr": 0.3791, "gain": -0.011, "low": -0.013, "high": -0.009}]
    rows[0]["seconds"] = 2520.0
    told = {"dim": 60, "device": "a processor", "rows": [{**rows[0], "negatives": 2048, "mrr": 0.39}, *rows]}
    (tmp_path / "candidates-teachers.json").write_text(json.dumps({"packages": told}))
    made = large.large_step(shown)
    assert all(x in made for x in (">512<", ">28<", ">42<", ">0.379<", "-0.013"))
    quality = large.large_quality(shown)
    assert "0.450 ± 0.020" in quality and "+0.100 (+0.080 to +0.120)" in quality and "large_packages" in quality
    assert "b · c" in large.large_answers(shown)


def test_a_graph_of_ones_own_has_a_frontier_of_all_its_sizes(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(frontier.large, "folder", lambda: tmp_path)
    assert "--budget 64B/entity" in frontier.frontier_large(shown)
    for size, mrr in ((16, 0.3), (64, 0.36)):
        models = {"teacher": 0.4, "rounded": mrr / 2, "alone": mrr - 0.05, "distilled": mrr}
        rows = [{"relation": "all", "models": {name: {"mrr": x, "se": 0.001} for name, x in models.items()}}]
        told = {"bytes_per_entity": {"teacher": 512, "student": size}, "ranked": 500, "graph": {"entities": 1000}}
        (tmp_path / f"packages-{size}.json").write_text(json.dumps(told | {"rows": rows}))
    page = frontier.frontier_large(shown)
    assert "90% with 64 bytes, of one of 512, 75% with 16 bytes, of one of 512." in page
    assert "0.310 ± 0.002" in page and "frontier-packages" in page and "seeds" not in page
    for seed, mrr in ((1, 0.32), (2, 0.34)):  # of a later list, and with a rival that the first has not
        models = {"teacher": 0.42, "alone": 0.2, "distilled": mrr, "OPQ": 0.1 * seed}
        rows = [{"relation": "all", "models": {name: {"mrr": x, "se": 0.001} for name, x in models.items()}}]
        gains = {name: {"gain": mrr - x, "low": mrr - x - 0.01, "high": mrr - x + 0.01} for name, x in models.items()}
        told = {"bytes_per_entity": {"teacher": 512, "student": 16}, "ranked": 500, "rows": rows}
        told |= {"graph": {"entities": 1001, "train": 9001, "sha256": "b"}, "differences": gains}
        write_json(frontier.large.path_of("packages-16", seed), told)
        (first := json.loads((tmp_path / "packages-16.json").read_text()))["graph"] |= {"train": 9000, "sha256": "a"}
        write_json(
            tmp_path / "packages-16.json", first | {"differences": {"alone": {"gain": 0.05, "low": 0, "high": 1}}}
        )
    page = frontier.frontier_large(shown)
    assert "0.320 ± 0.023" in page and "0.150 ± 0.100" in page, "errors of the triples and of seeds"
    assert "means of 3 seeds (fewer of: teacher, rounded; teacher, rotated and product quantised (FAISS OPQ))" in page
    assert "on 2 days, 9,000 and 9,001 training triples" in page
    assert "FAISS OPQ) +0.130 … +0.150" in page and "+0.000 … +1.000" in page
    assert "77% with 16 bytes" in page


def test_a_student_by_its_candidates_is_compared_with_the_first(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(frontier.bench, "path", lambda: tmp_path / "candidates.json")
    assert "bench.candidates" in frontier.candidates(shown)
    first = {"negatives": 2048, "passes": 9, "seconds": 450, "mrr": 0.3, "gain": 0.0, "low": 0.0, "high": 0.0}
    second = {"negatives": 8192, "passes": 3, "seconds": 300, "mrr": 0.32, "gain": 0.02, "low": 0.01, "high": 0.03}
    told = {"precision": "1bit", "device": "a processor", "teacher_mrr": 0.4, "rows": [first, second]}
    (tmp_path / "candidates.json").write_text(json.dumps({"own": told}))
    page = frontier.candidates(shown)
    assert "own, 1bit" in page and "8,192" in page and "0.80" in page and "a processor" in page
    assert page.count("+0.020") == 1 and "+0.010 … +0.030" in page and "+0.000" not in page


def test_the_rule_stands_beside_what_searches_found(shown, tmp_path, monkeypatch):
    page = rules.rule_searches(shown)
    assert "umls, 16 bytes" in page and "DURA" in page and "student alone" in page
    (found,) = (x for x in rules.fitting.read("searches") if x["dataset"] == "umls")
    best = max(row["valid_mrr"] for row in rules.fitting.complete(found, "teacher"))
    assert f"{best:.3f}" in page
    parts = {"teacher": 0.9, "stage 1": 0.8, "no-DS": 0.7}
    searched = {part: {"valid": x, "test": x} for part, x in parts.items()}
    told = {"dataset": "own", "bytes": 16, "searched": searched, "share": {"first": 0.7, "expected": 0.9, "test": 0.8}}
    rows = [{**told, "ruled": {part: {"valid": x, "test": x * f} for part, x in parts.items()}} for f in (0.99, 0.9)]
    monkeypatch.setattr(rules.fitting, "read", lambda name: rows)
    page = rules.rule_left_out(shown)
    assert "97% of the searched ones in 1 of 2 tests" in page and "within 0.05 of what was expected in 0 of 2" in page
    before = [{**row, "share": {"expected": 0.8, "test": 0.8}} for row in rows[:1]]  # measured in another way
    monkeypatch.setattr(rules.fitting, "read", lambda name: before + rows[1:])
    assert "what was expected in 0 of 1" in rules.rule_left_out(shown)
    monkeypatch.setattr(rules.fitting, "read", lambda name: rows)
    assert "own, 16 bytes" in page and "<td>99%</td>" in page.replace(' class="number"', "")
    again = {"dataset": "own", "bytes": 16, "chosen": {**searched, "teacher": {"valid": 1.0, "test": 1.0}}}
    monkeypatch.setattr(rules.fitting, "read", lambda name: rows[:1] if name == "left_out" else [again])
    assert "Searched again since" not in page and "Searched again since" in rules.rule_left_out(shown)
    assert "Later lists" not in rules.rule_left_out(shown)
    later = [{**rows[0], "dataset": "newer", "of": "own", "others": []}]
    monkeypatch.setattr(rules.fitting, "read", lambda name: later if name == "left_out" else [again])
    page = rules.rule_left_out(shown)
    assert "beside the search of earlier ones: newer of own." in page and "before all others" not in page
    voted = [{**rows[0], "others": ["far"]}]
    searches = [{**again, "dataset": name} for name in ("own", "far", "near")]
    monkeypatch.setattr(rules.fitting, "read", lambda name: voted if name == "left_out" else searches)
    assert "before all others had a vote: own." in rules.rule_left_out(shown)
    monkeypatch.setattr(rules.fitting, "read", lambda name: voted if name == "left_out" else searches[:2])
    assert "had a vote" not in rules.rule_left_out(shown)
    monkeypatch.setattr(rules.fitting, "read", lambda name: [])
    assert "Not run yet" in rules.rule_left_out(shown) and "Not run yet" in rules.rule_searches(shown)


def test_reciprocal_relations_stand_beside_plain_ones_of_as_many_bytes(shown):
    page = frontier.reciprocal(shown)
    assert page.count("<tr>") > 10 and "8,192 bytes" in page and "H100" in page
    run = next(c for c in frontier.reciprocal_cells("fb15k-237") if (c.method, c.size) == ("distilled", 64))
    mrr = [record["test"]["both"]["mrr"] for record in frontier.Ours().seeds(run)]
    assert len(mrr) > 1 and f"{sum(mrr) / len(mrr):.3f}" in page and f", {len(mrr)} seeds" in page
    assert "one seed" in page and "the mean of 3 teachers" in page and "24,576 bytes" in page
    shown.records.clear()
    assert "kgdistil.paper.reproduce" in frontier.reciprocal(shown)


def test_of_students_of_one_size_the_best_is_served(tmp_path, monkeypatch):
    """Of few bits the largest; of those the one with the highest test MRR, whatever its name; then 8 dimensions."""
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    told = {"a-16B": 0.9, "b-32B": 0.4, "c-32B": 0.3, "d-32B-low-rank": 0.9, "e-d8": 0.1}
    for name in told:
        (tmp_path / "students" / f"wn18rr-{name}").mkdir(parents=True)
    monkeypatch.setattr(try_it, "read_header", lambda path: {"metrics": [{"mrr": told[path.name[7:]]}]})
    assert [path.name for path in try_it.served()] == ["wn18rr-b-32B", "wn18rr-e-d8"]
