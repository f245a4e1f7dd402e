"""The paper's numbers, and the tables made of them and of our records."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest

from book.build import pages, readme
from book.build.pages.shown import Shown
from book.build.sources import EMBEDDED
from kgdistil import records
from kgdistil.answer.files import unsealed
from kgdistil.distillation import advice
from kgdistil.distillation.statistics import bootstrap, bootstrap_of_seeds, half_width, resampled
from kgdistil.paper import reading, tables
from kgdistil.paper.cells import PAPER_MODELS, PROTOCOLS, Cell, cells_of, parse
from kgdistil.paper.claims import claims_of_training
from kgdistil.paper.reading import METRICS, TABLES, paper, record_of
from kgdistil.paper.recipe import read_search, recipe, start, trials

# files of several records
SEVERAL = "accumulators", "candidates", "candidates-teachers", "distributed", "nested", "stranger"
GPU = "NVIDIA H100 80GB HBM3"
# Sums added up from the paper's text by hand of another parser: rows from the teacher down, columns TransE MRR, H@10,
# H@3, H@1, TransH MRR, … (Table 6: MRR, H@10)
ROWS = {
    3: [5.363, 4.747, 5.429, 3.735, 4.742, 1.618, 2.635],
    4: [5.912, 5.095, 5.621, 4.252, 5.079, 3.565, 4.502],
    6: [3.153, 2.957, 3.086, 2.8, 1.889, 2.703, 1.714, 0.696, 1.66],
}
COLUMNS = {
    3: [1.083, 2.649, 1.734, 0.199, 0.965, 2.431, 1.584, 0.102, 1.429, 2.32, 1.614, 0.99, 2.597, 3.41, 2.947, 2.215],
    4: [1.799, 3.021, 1.96, 1.149, 2.227, 3.473, 2.478, 1.569, 1.274, 2.468, 1.396, 0.727, 2.41, 3.72, 2.675, 1.68],
    6: [1.38, 3.376, 1.119, 2.891, 1.923, 3.069, 3.003, 3.897],
}
SECONDS = {64: 2053.8, 32: 748.4, 16: 415.3, 8: 240.1}  # Table 5, over the four models
PARAMETERS = {64: 15_726_336, 32: 7_863_168, 16: 3_931_584, 8: 1_965_792}


@pytest.fixture(scope="module")
def said() -> pd.DataFrame:
    return paper()


@pytest.fixture(scope="module")
def built() -> dict[str, pd.DataFrame]:
    return tables.build()


@pytest.mark.parametrize("number", [3, 4, 6])
def test_the_papers_numbers_add_up_both_ways(number: int, said):
    table = said[said["table"] == number]
    rows = table.groupby(["dim", "method"], sort=False)["value"].sum()
    columns = table.groupby(["model", "metric"], sort=False)["value"].sum()
    wanted = [(64, "teacher")] if number != 6 else []
    methods = ("DS", "-S1", "-S2") if number == 6 else ("no-DS", "DS")
    wanted += [(dim, method) for dim in (32, 16, 8) for method in methods]
    assert [rows[key] for key in wanted] == pytest.approx(ROWS[number], abs=1e-9)
    metrics = ("mrr", "hits@10") if number == 6 else METRICS
    order = [(model, metric) for model in PAPER_MODELS for metric in metrics]
    assert [columns[key] for key in order] == pytest.approx(COLUMNS[number], abs=1e-9)


def test_what_a_table_costs_is_added_up_from_its_records(monkeypatch):
    cell = parse("tuned/wn18rr/TransE/teacher/64")
    chain = [record_of(start(cell)), record_of(cell)]
    tried = [read_search(c)[t.run_id] for c in (start(cell), cell) for t in trials(c)]
    axes = [v for c in (start(cell), cell) for v in [[x for x in recipe(c).values() if isinstance(x, list)]]]
    assert len(tried) == sum(math.prod(map(len, of)) for of in axes)
    monkeypatch.setattr(tables, "cells_of", lambda name, protocol: [cell, cell])
    expected = sum(r["seconds"] * tables.threads(r) for r in chain + tried) / 3600
    assert tables.hours(3, "tuned") == {"one core": pytest.approx(expected)}


def test_threads_are_a_records_own_or_those_of_its_device():
    assert tables.threads({"device": "Intel Xeon, 12 thread(s)"}) == 12
    assert tables.threads({"device": "a processor", "threads": 3}) == 3
    for gpu in ({"device": "NVIDIA H100 80GB HBM3"}, {"device": "NVIDIA H100 80GB HBM3", "threads": None}):
        assert tables.threads(gpu) is None


@pytest.fixture
def of_a_gpu(tmp_path, monkeypatch):
    """`results/` in which the runs and trials of RotatE on WN18RR, and those that the README shows, are of a GPU."""
    made = tmp_path / "results"
    made.mkdir()
    for path in (records.root() / "results").iterdir():
        if path.name in ("runs", "search"):
            shutil.copytree(path, made / path.name)
        else:
            (made / path.name).symlink_to(path)
    paths = [*(made / "runs").glob("wn18rr-rotate-*.json"), made / "search" / "tuned-wn18rr-rotate.jsonl"]
    for path in paths:
        lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        changed = [unsealed(json.loads(line)) | {"device": GPU, "engine": "reference"} for line in lines]
        for record in changed:
            record["config"]["device"] = "cuda"
        path.write_text("".join(json.dumps(record) + "\n" for record in changed))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(made))


def test_records_of_a_gpu_go_through_tables_readme_and_book(of_a_gpu, tmp_path):
    spent = tables.hours(3, "tuned")
    assert set(spent) == {"one core", GPU} and all(spent.values())
    ours = reading.Ours()
    wanted = pd.read_csv(reading.folder() / "table3.csv")
    assert tables.as_csv(tables.results_table(ours, paper(), 3)) == tables.as_csv(wanted.convert_dtypes())
    text = (records.root() / "README.md").read_text(encoding="utf-8")
    assert readme.update(text) == text, "no number is another for the device it was made on"
    shown = Shown(tmp_path)
    told = pages.tables.cost(shown, 3, "tuned")
    assert f"{spent['one core']:.1f} hours of one core" in told and f"{spent[GPU]:.1f} hours of {GPU}" in told
    assert GPU in pages.front.price(shown) and GPU in pages.reference.runs(shown)
    assert pages.tables.table(shown, "table3", "tuned") and pages.front.front_table(shown)


def test_the_curves_are_of_those_that_the_teacher_does_not_help(built):
    frame = pd.concat([built["table3"], built["table4"]])
    frame = frame[(frame["protocol"] == "tuned") & (frame["metric"] == "mrr")]
    mean = frame.set_index(["dataset", "model", "dim", "method"])["ours"].to_dict()
    students = {key[:3] for key in mean if key[3] == "DS"}
    wanted = {key for key in students if mean[*key, "DS"] <= mean[*key, "no-DS"]}
    shown = built["behind"]
    assert set(shown[["dataset", "model", "dim"]].itertuples(index=False, name=None)) == wanted
    for _, rows in shown.groupby(["dataset", "model", "dim"]):
        last = {method: part["epoch"].max() for method, part in rows.groupby("method")}
        assert last["no-DS"] == last["DS"] > last["-S2"], "as many epochs, with a teacher and without"
        assert rows[rows["method"] == "DS"]["epoch"].min() > last["-S2"], "stage 2 goes on"


def test_table_5_adds_up(said):
    table = said[said["table"] == 5].pivot_table(index="dim", columns="metric", values="value", aggfunc="sum")
    assert table["seconds"].to_dict() == pytest.approx(SECONDS)
    assert table["parameters"].to_dict() == PARAMETERS


def test_every_claim_follows_from_the_papers_own_tables(built):
    """Printed to whole per cents or one decimal: a misread cell of Table 3 or 6 would show here."""
    claims = built["claims"]
    apart = (claims["paper_says"] - claims["from_its_tables"]).abs()
    assert apart[claims["unit"] == "%"].max() < 0.5
    assert apart[claims["unit"] == "×"].max() < 1, "it calls 9.06 'nearly or even more than 10'"
    assert claims["sentence"][claims["from_its_tables"].isna()].str.contains("Figure [23]").all()


def test_claims_are_judged_by_means_over_seeds(built):
    table = built["table3"]
    table = table[(table["protocol"] == "tuned") & (table["model"] == "TransE") & (table["dim"] == 8)]
    mean = table[table["metric"] == "mrr"].set_index("method")["ours"]
    claims = built["claims"].set_index("sentence")
    gain = claims.loc["TransE d=8: distillation improves MRR by", "tuned"]
    assert (table["seeds"] > 1).all() and gain == pytest.approx(100 * (mean["DS"] / mean["no-DS"] - 1))


def test_stage_2_is_done_at_the_first_epoch_near_its_best():
    def ours(cell: Cell) -> dict:
        values = (0.2, 0.31, 0.3095, 0.3105) if cell.protocol == "paper" else (0.3, 0.2)
        return {
            "curve": [{"epoch": 10 * (i + 1), "valid_mrr": x} for i, x in enumerate(values)],
            "id": "x",
            "test": {"both": {"mrr": cell.teacher_size / 1000 * (cell.protocol == "tuned")}},
        }

    enough, ratio = claims_of_training(ours)
    assert (enough["tuned"], enough["paper"]) == (10, 20)
    assert ratio["tuned"] == 32, "a larger teacher is better there"


def test_what_figures_share_with_tables_is_beside_ours(built, said):
    frame = built["figures_known"].set_index(["figure", "protocol", "cell"])
    theirs = said[said["metric"] == "mrr"].set_index(["table", "model", "method", "dim"])["value"]
    teacher, student = theirs[3, "TransE", "teacher", 64], theirs[3, "TransE", "DS", 8]
    assert frame.loc[(1, "tuned", "tuned/wn18rr/TransE/no-DS/64"), "paper"] == teacher != student
    assert frame.loc[(2, "paper", "paper/wn18rr/TransE/DS/8"), "paper"] == student
    assert set(frame.index.get_level_values("figure")) == {1, 2, 3} and frame["run"].ne("not run").all()
    row = frame.loc[(3, "tuned", "tuned/fb15k-237/RotatE/DS/32")]
    assert row["difference"] == pytest.approx(row["ours"] - theirs[4, "RotatE", "DS", 32])


def test_what_is_committed_is_what_the_records_give(built):
    for name, frame in built.items():
        path = reading.folder() / f"{name}.csv"
        assert path.is_file() and path.read_text(encoding="utf-8") == tables.as_csv(frame), (
            f"{path} is stale: run `python -m kgdistil.paper.tables`"
        )


def test_a_budget_chooses_by_the_committed_frontier():
    wanted = tables.as_csv(tables.choices())
    assert advice.KEPT.read_text(encoding="utf-8") == wanted, "run `python -m kgdistil.paper.tables`"


def test_no_record_is_dirty():
    folder = records.results_folder()
    paths = [p for name in ("runs", "frontier", "bench", "constrained") for p in (folder / name).glob("*.json")]
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in paths
        if not any(path.match(pattern) for pattern in EMBEDDED)
    }
    for path in (folder / "search").glob("*.jsonl"):
        if not any(path.match(pattern) for pattern in EMBEDDED):
            found |= {r["id"]: r for r in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    assert len(found) > 2000
    inside = [name for name in SEVERAL if name in found]
    parts = {f"{name}/{part}": record for name in inside for part, record in found.pop(name).items()}
    for name, record in (found | parts).items():
        assert record["dirty"] is False and len(record["commit"]) == 40, name


@pytest.mark.parametrize("name", ["table3", "table4", "table6", "figure1", "figure2", "figure3"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_cell_lacks_a_record(name: str, protocol: str):
    assert tables.not_run(cells_of(name, protocol)) == []


def test_the_suspect_teachers_read_as_the_pages_say(built, said):
    """README.md and book/reproduced.md: RotatE like tails alone, in all four metrics, TransH like ranks of the type."""
    ours = built["constrained"].set_index(["cell", "candidates", "side"])[[*METRICS]]
    for model, near in (("RotatE", ("every entity", "tail")), ("TransH", ("training", "both"))):
        theirs = said[(said["table"] == 4) & (said["model"] == model) & (said["method"] == "teacher")]
        apart = (
            (ours.loc[f"tuned/fb15k-237/{model}/teacher/64"] - theirs.set_index("metric")["value"]).abs().max(axis=1)
        )
        readings = apart[
            [("every entity", "both"), ("every entity", "tail"), ("training", "both"), ("training", "tail")]
        ]
        assert readings.idxmin() == near, "the page names this reading"


def test_a_cell_without_a_record_is_said_to_be_not_run(built):
    for number in TABLES:
        frame = built[f"table{number}"]
        missing = frame["run"] == "not run"
        assert frame.loc[missing, "ours"].isna().all() and frame.loc[~missing, "ours"].notna().all()


def test_a_changed_record_changes_the_tables(tmp_path, monkeypatch, built):
    """The comparison above can fail."""
    monkeypatch.setattr(reading, "record_of", lambda cell: None)
    empty = tables.build()
    assert empty["table3"]["ours"].isna().all() and empty["table3"]["run"].eq("not run").all()
    shares = empty["claims"][empty["claims"]["unit"] != "×"]
    assert shares["tuned"].isna().all() and len(shares) > 25
    assert tables.as_csv(empty["table5"]) == tables.as_csv(built["table5"]), "Table 5 is the benchmark's"


def test_the_bootstrap_finds_a_difference_and_only_a_difference():
    generator = np.random.default_rng(1)
    before = generator.random(500)
    low, high, p = bootstrap(before, before + generator.normal(0.05, 0.1, 500))
    assert 0 < low < 0.05 < high and p < 0.01
    low, high, p = bootstrap(before, before + generator.normal(0, 0.1, 500))
    assert low < 0 < high and p > 0.05
    assert bootstrap(before, before) == (0.0, 0.0, 1.0)


def test_the_bootstrap_counts_that_seeds_differ_too():
    """Seeds that lie further apart than the sides do leave open which side is better, however many triples say so."""
    generator = np.random.default_rng(2)
    before = generator.random(4000)
    near, far = (before + np.array([[-x], [0.0], [x]]) for x in (0.001, 0.05))
    low, high, p = bootstrap_of_seeds(resampled(near), resampled(near + 0.01))
    assert 0 < low < 0.01 < high and p < 0.01
    low, high, p = bootstrap_of_seeds(resampled(far), resampled(far + 0.01))
    assert low < 0 < high and p > 0.05
    after = generator.random(4000)
    one = bootstrap_of_seeds(resampled(before[None]), resampled(after[None]))
    assert one == pytest.approx(bootstrap(before, after))
    assert half_width(1.0, 3) == pytest.approx(4.303 / 3**0.5, abs=1e-3) and np.isnan(half_width(np.nan, 1))


def test_the_speed_of_a_query_is_told_beside_the_float_models(tmp_path, monkeypatch):
    run = "wn18rr-rotate-d8-stage2-s0-d8523e7a"
    (tmp_path / "runs").mkdir()
    shutil.copy(records.record_path(run), tmp_path / "runs")
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    assert tables.frontier_speed("wn18rr").empty
    rows = [
        {"model": m, "dim": 64, "bytes": b, "form": f, "run": r, "what": w, "microseconds": us}
        for m, b, f, r, w, us in (
            ("ComplEx", 512, "float32", run, "rank", 100.0),
            ("RotatE", 512, "float32", None, "rank", 400.0),
            ("ComplEx", 512, "float32", run, "top", 80.0),
            ("RotatE", 512, "float32", None, "top", 200.0),
            ("ComplEx", 16, "16 vectors a group", run, "rank", 20.0),
            ("ComplEx", 16, "FAISS fast scan", run, "top", 40.0),
            ("ComplEx", 16, "16 vectors a group, low rank", run, "rank", 25.0),
            ("ComplEx", 32, "16 vectors a group", None, "rank", 20.0),
        )
    ]
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "scan.json").write_text(json.dumps({"rows": rows}))
    frame = tables.frontier_speed("wn18rr")
    assert tables.frontier_speed("fb15k-237").empty
    assert len(frame) == 5 and set(frame["run"]) == {run}, "random weights answer at random"
    few = frame[frame["form"] == "few bits"].iloc[0]
    assert (few.complex, few.rotate, few.what) == (5.0, 20.0, "filtered rank") and 0.3 < few.mrr < 0.5
    assert list(frame[frame["form"] == "few bits of low rank"]["complex"]) == [4.0]
    faiss = frame[frame["form"] == "FAISS fast scan"].iloc[0]
    assert (faiss.complex, faiss.rotate, faiss.label) == (2.0, 5.0, "ComplEx, d = 64, FAISS fast scan")
