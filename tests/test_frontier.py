"""What a byte buys: cells by bytes, simpler things of the same size, and one table of all of it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from book.build.html import interval
from kgdistil import records
from kgdistil.checkpoint import load_model
from kgdistil.compress.size import row_bytes, whole_bytes
from kgdistil.errors import ConfigError
from kgdistil.evaluation import evaluate
from kgdistil.graphs.datasets import load
from kgdistil.graphs.lists import Lists
from kgdistil.models import with_entities
from kgdistil.paper import frontier, reproduce, rivals, tasks
from kgdistil.paper import recipe as recipes
from kgdistil.paper.cells import (
    ALONE,
    COMMITTEE,
    DIMS,
    ENTITIES,
    FORMS,
    FRONTIER,
    LOW_RANK,
    OWN_LISTS,
    PAPER_MODELS,
    PATHS,
    RECIPROCAL,
    SMALL,
    TRAINED,
    Cell,
    parse,
    shape,
)
from kgdistil.paper.ensemble import joined_name, path_lists_name
from kgdistil.paper.reading import Ours
from kgdistil.paper.recipe import config, guide, joins, layers, members, needs, path_settings, recipe, trials


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of its own, and recipes that train for a moment."""
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    shared = {"loss": "softmax", "schedule": "linear", "patience": 0, "checks": 1, "search_epochs": 1, "lr": 0.1}
    shared |= {"negatives": 135, "batch_size": 512, "epochs": 2}
    table = {
        "all": shared,
        "teacher": {"lr": [0.1, 0.2], "epochs": 8},
        "distilled": {"alpha": 1.0, "lr": 0.03},
        "small-distilled": {"alpha": 1.0},
        "committee": {"alpha": 0.7, "members": 2, "epochs": 1},
    }
    monkeypatch.setattr(recipes, "recipes", lambda: {"frontier": table})


def test_bytes_decide_the_shape() -> None:
    def of(method: str, size: int, teacher: int = 2048) -> dict[str, int]:
        return shape(Cell("frontier", "wn18rr", "ComplEx", method, size, teacher))

    assert of("teacher", 2048) == {"dim": 256}
    assert of("small", 64) == of("small-distilled", 64) == {"dim": 8}  # 16 floats of 4 bytes
    assert [of("distilled", size)["group"] for size in frontier.SIZES] == [1, 2, 4, 8, 16]
    assert of("coded-alone", 16) == {"dim": 256, "group": 16}
    with pytest.raises(ConfigError, match="512 bytes are no distilled ComplEx beside one of 2048"):
        of("distilled", 512)
    for cell in frontier.cells("wn18rr") + frontier.cells("umls"):
        assert parse(str(cell)) == cell
        floats = shape(cell).get("rank") or 2 * shape(cell)["dim"]
        assert cell.bytes == (floats / 2 / shape(cell)["group"] if "group" in shape(cell) else 4 * floats)
    low = {c.bytes: shape(c) for c in frontier.cells("fb15k-237") if c.method == "low-rank"}
    assert low == {size: {"dim": 256, "group": 2, "rank": 4 * size} for size in (64, 32, 16)}
    finer = {c.method: shape(c) for c in frontier.cells("fb15k-237") if c.method in frontier.FINER}
    assert finer == {key: {"dim": 256, "group": 1, "rank": 128} for key in frontier.FINER}
    assert {c.bytes for c in frontier.cells("umls") if c.method == "distilled"} == {64, 32, 16}
    wn18rr = [c for c in frontier.cells("wn18rr") if c.method == "distilled"]
    assert {c.bytes: shape(c)["group"] for c in wn18rr} == {256: 1, 128: 2, 64: 2, 32: 2, 16: 4}


def test_the_lists_may_be_a_larger_teachers() -> None:
    def lists(size: int, of: int, dataset: str = "fb15k-237", method: str = "distilled") -> int:
        cell = Cell("frontier", dataset, "ComplEx", method, size, of)
        assert guide(cell) in needs(cell)
        return guide(cell).bytes

    assert [lists(16, 256), lists(32, 512), lists(64, 1024), lists(256, 2048)] == [512, 1024, 2048, 2048]
    assert lists(16, 256, method="small-distilled") == 512 and lists(16, 512, "wn18rr") == 512
    assert lists(16, 256, method="own-lists") == 256
    own = [c for graph in ("wn18rr", "fb15k-237", "umls") for c in frontier.cells(graph) if c.method == "own-lists"]
    assert {(c.dataset, c.bytes) for c in own} == {("fb15k-237", 64), ("fb15k-237", 32), ("fb15k-237", 16)}
    for cell in own:  # only the lists differ
        assert recipe(cell) == recipe(replace(cell, method="distilled"))


def test_a_recipe_may_be_for_one_size() -> None:
    def found(method: str, size: int, dataset: str = "fb15k-237") -> dict:
        return recipe(Cell("frontier", dataset, "ComplEx", method, size, 2048))

    for dataset, size in (("fb15k-237", 256), ("wn18rr", 128)):
        own = recipes.recipes()["frontier"]["ComplEx"][dataset][f"distilled/{size}"]
        own = {key: value for key, value in own.items() if key != "scratch"}
        assert own.items() <= found("distilled", size, dataset).items()
        for other in {256, 128, 64, 32, 16} - {size}:
            assert all(found("distilled", other, dataset).get(key) != value for key, value in own.items())


def test_a_low_rank_has_the_recipe_of_the_plain_form() -> None:
    for dataset in ("wn18rr", "fb15k-237"):
        cell = Cell("frontier", dataset, "ComplEx", "low-rank", 16, 2048)
        assert recipe(cell) == recipe(replace(cell, method="distilled"))
        alone = [recipe(replace(cell, method=method)) for method in ("low-rank-alone", "coded-alone")]
        assert alone[0]["epochs"] == alone[1]["epochs"] and len(alone[0]["lr"]) == len(alone[1]["lr"])
        made = trials(cell) or []
        assert all((t.rank, t.group, t.student) == (64, 2, t.teacher) for t in made)
    assert guide(Cell("frontier", "fb15k-237", "ComplEx", "low-rank", 16, 2048)).bytes == 2048


def test_a_teacher_comes_first_and_is_where_students_start(quick: None) -> None:
    cell = Cell("frontier", "umls", "ComplEx", "distilled", 16, 512)
    assert needs(cell) == [frontier.teacher_cell("umls", 16)] and config(cell) is None
    assert needs(Cell("frontier", "umls", "ComplEx", "coded-alone", 16, 512)) == []
    assert reproduce.main([str(cell)]) == 0
    made = config(cell)
    assert made.teacher == made.student == config(frontier.teacher_cell("umls", 16)).run_id and made.group == 4


def test_a_committee_teaches_the_first_of_its_members(quick: None) -> None:
    cell = parse("frontier/umls/ComplEx/committee/16/512")
    first, second = (replace(cell, method="distilled", seed=seed) for seed in (0, 1))
    assert needs(cell) == members(cell) == [first, second] and config(cell) is None
    assert reproduce.main([str(cell)]) == 0
    made, runs = config(cell), [config(member).run_id for member in (first, second)]
    assert made.student == runs[0] and made.teacher == joined_name(*runs)
    assert shape(cell) == shape(first) and made.run_id not in runs and tasks.recorded(made)
    graph, test = load("umls"), load("umls").test
    together = load_model(records.model_folder(made.teacher), graph).score_triples(test)
    alone = [load_model(records.model_folder(run_id), graph).score_triples(test) for run_id in runs]
    assert torch.allclose(together, (alone[0] + alone[1]) / 2, atol=1e-5) and not torch.equal(*alone)


def test_a_path_model_and_a_distilled_student_teach_by_their_lists(quick: None, tmp_path: Path) -> None:
    table = recipes.recipes()["frontier"]
    few = {"length": 2, "widest": [40], "triples": 500, "epochs": 2, "made_up": 200}
    table["paths"] = {"beside": "ComplEx/distilled/32/512", "paths": few, "unlabelled": 1.0, "alpha": 1.0}
    cell = parse("frontier/umls/ComplEx/paths/16/512")
    beside = parse("frontier/umls/ComplEx/distilled/32/512")
    assert needs(cell) == [cell.teacher, beside] and joins(cell) == [beside] and config(cell) is None
    assert reproduce.main([str(cell)]) == 0
    made = config(cell)
    assert made.teacher == path_lists_name(config(beside).run_id, path_settings(cell)) and made.group == 4
    assert made.student == config(cell.teacher).run_id and tasks.recorded(made)
    lists = Lists.load(records.model_folder(made.teacher), load("umls"))
    assert len(lists.keys) > 200 and path_settings(cell).widest == (40,)
    # its teacher is ranked and recorded by --mean: path model, embedding model and both
    assert frontier.main(["--mean", str(cell)]) == 0
    found = json.loads(frontier.mean_path("umls", "paths").read_text())
    assert found["members"] == [config(beside).run_id] and found["paths"]["length"] == 2
    assert set(found["valid"]) == set(found["test"]) == {"paths", "beside", "both"}
    assert records.read_ranks(found["ranks"]).metrics() == found["test"]["both"]


@pytest.mark.parametrize("model", ["ComplEx", "ReciprocalComplEx"])
def test_several_teachers_teach_by_their_mean(quick: None, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """So many seeds of the teacher as `teachers` says come first; their mean is ranked and recorded by `--mean`."""
    table = recipes.recipes()["frontier"]
    taught = {**table["distilled"], "teachers": 2}
    table = {**table, "distilled": taught, "teacher": {"epochs": 8}}
    monkeypatch.setattr(recipes, "recipes", lambda: {"frontier": table})
    cell = parse(f"frontier/umls/{model}/distilled/16/512")
    teachers = [replace(cell.teacher, seed=seed) for seed in (0, 1)]
    assert needs(cell) == joins(cell) == teachers and joins(replace(cell, method=OWN_LISTS)) == []
    with pytest.raises(ConfigError, match="train its teachers first, two or more"):
        frontier.measure_mean(cell)
    assert reproduce.main([str(cell)]) == 0
    runs, graph = [config(each).run_id for each in teachers], load("umls")
    assert config(cell).teacher == joined_name(*runs) and config(cell).student == runs[0]
    assert config(replace(cell, method=OWN_LISTS)).teacher == runs[0]
    assert frontier.main(["--mean", str(cell)]) == 0
    (place,) = frontier.means_of("umls")
    told = json.loads(place.read_text())
    assert place.name == f"umls-mean-{cell.teacher_size}.json"
    place.rename(place.with_name("umls-mean.json"))  # as it was called before there were several
    assert frontier.main(["--mean", str(cell)]) == 0
    assert [x.name for x in frontier.means_of("umls")] == ["umls-mean.json"], "of the same teachers there is one record"
    models = [load_model(records.model_folder(run), graph) for run in runs]
    with torch.no_grad():
        for side in ("tail", "head"):
            a, r = graph.test[:, 0], graph.test[:, 1]
            mean = sum(m.compare(m.queries(a, r, side), m.entities) for m in models) / 2
            whole = load_model(records.model_folder(joined_name(*runs)), graph)
            assert torch.allclose(whole.compare(whole.queries(a, r, side), whole.entities), mean, atol=1e-4)
    assert told["members"] == runs and told["bytes"] == 1024 and told["test"] == evaluate(whole, graph).metrics()


def test_a_point_is_the_mean_of_its_seeds() -> None:
    """Of the committed records; a comparison takes each triple's mean over them."""
    frame = frontier.points("fb15k-237")
    row = frame[(frame["method"] == "reciprocal") & (frame["bytes"] == 64)].iloc[0]
    found = Ours().seeds(parse("frontier/fb15k-237/ReciprocalComplEx/distilled/64/1024"))
    mrr = [record["test"]["both"]["mrr"] for record in found]
    assert row["seeds"] == len(found) > 1 and row["mrr"] == pytest.approx(np.mean(mrr)) and row["run"] == found[0]["id"]
    assert row["deviation"] == pytest.approx(np.std(mrr, ddof=1)) and row["ranks"].split("+") == [
        r["id"] for r in found
    ]
    assert (frame.loc[frame["trained"], "seeds"] >= 1).all()
    beside = frontier.against_distilled("fb15k-237")
    assert np.allclose(beside["gain"], beside["distilled_mrr"] - beside["mrr"])
    kept = {(r.method, r.bytes): bool(r.ranks) for r in frame.itertuples()}
    for r in beside.itertuples():
        assert pd.notna(r.p) == (kept[r.method, r.bytes] and kept[r.form, r.bytes])
        assert np.isnan(r.p) or r.low <= r.gain <= r.high
    assert interval(SimpleNamespace(low=np.nan, high=np.nan)) == "–"


def test_a_committee_is_a_rival_of_one_student_where_it_was_tried() -> None:
    tried = [c for graph in ("wn18rr", "fb15k-237", "umls") for c in frontier.cells(graph) if c.method == "committee"]
    assert {(c.dataset, c.bytes) for c in tried} == {("wn18rr", 256)} and "committee" in frontier.DISTILLED
    for cell in tried:
        alone = recipe(members(cell)[0])
        differs = {key for key, value in recipe(cell).items() if alone.get(key) != value}
        assert differs == {"members", "lr", "alpha"} and alone["epochs"] == recipe(cell)["epochs"]


@pytest.mark.parametrize("method", rivals.UNTRAINED)
def test_more_bytes_are_nearer_to_the_row(method: str) -> None:
    sizes = (16, 64)
    if method in rivals.BY_FAISS:
        pytest.importorskip("faiss", reason="FAISS comes with the extra notebooks")
        sizes = (4, 8)
    rows = torch.randn(300, 128, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        128, 128, generator=torch.Generator().manual_seed(1)
    )
    errors = []
    for size in sizes:
        made = rivals.UNTRAINED[method](rows, size, True)
        assert made.shape == rows.shape
        assert torch.equal(made, rivals.UNTRAINED[method](rows, size, True))
        errors.append(float((made - rows).square().mean()))
        if method in ("PCA", "random projection"):
            assert torch.linalg.matrix_rank(made) == size // 4
    assert 0 < errors[1] < errors[0] < float(rows.square().mean())


def test_quantisers_are_tried_for_what_they_can_do() -> None:
    """Four bits a float are the most of any code; a rotation and additive codes come nearer to rows than plain ones."""
    pytest.importorskip("faiss", reason="FAISS comes with the extra notebooks")
    assert frontier.possible(rivals.BY_FAISS, 64, 1024) == ["FAISS", "OPQ", "RQ"]
    assert frontier.possible(rivals.BY_FAISS, 32, 1024) == [*rivals.BY_FAISS]
    assert frontier.possible([*rivals.BY_FAISS, "PCA"], 64, 256) == ["PCA"]
    assert frontier.possible(rivals.BY_FAISS, 64, 10240) == ["FAISS"]
    assert [m for m in rivals.BY_FAISS if rivals.is_tried(m, 16, 480, 143_927)] == ["FAISS", "OPQ", "RQ"]
    mixed = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    mixed = mixed @ torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    for rows in (mixed, mixed[:, :30]):  # as many numbers for each code, or not
        lost = {m: float((rivals.UNTRAINED[m](rows, 4, True) - rows).square().mean()) for m in rivals.BY_FAISS}
        assert max(lost, key=lost.__getitem__) == "FAISS" and lost["FAISS"] < float(rows.square().mean())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [64, 32, 16])
def test_forms_of_low_rank_take_the_bytes_that_they_are_named_by(form: str, size: int) -> None:
    for name in (form, form + ALONE):
        made = shape(Cell(FRONTIER, "fb15k-237", RECIPROCAL, name, size, 8192))
        assert made["dim"] == 1024 and bool(made.get("whole")) == FORMS[form][1]
        codes = row_bytes(RECIPROCAL, 1024, made["group"], made["rank"])
        each = codes + whole_bytes(made.get("whole", 0), made["rank"]) / ENTITIES["fb15k-237"]
        assert size - 0.01 < each <= size
    distilled, lone = (
        dict(layers(Cell(FRONTIER, "fb15k-237", RECIPROCAL, x, size, 8192))) for x in (form, form + ALONE)
    )
    assert "frontier.ReciprocalComplEx.fb15k-237.distilled" in distilled
    assert "frontier.ReciprocalComplEx.low-rank-alone" in lone
    assert recipe(Cell(FRONTIER, "fb15k-237", RECIPROCAL, form, size, 8192))["teachers"] == 3


def test_graphs_have_as_many_entities_as_their_records_say() -> None:
    for name, count in ENTITIES.items():
        if (found := frontier.read(name)) is not None:
            assert found["graph"]["entities"] == count


def test_pca_is_the_best_projection() -> None:
    rows = torch.randn(100, 32, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 33) / 32
    best = (rivals.principal(rows, 32, False) - rows).norm()
    assert best == pytest.approx(float(torch.linalg.svdvals(rows)[8:].norm()), rel=1e-4)
    assert best < (rivals.random_projection(rows, 32, False) - rows).norm()


def test_everything_of_a_size_stands_in_one_table(quick: None) -> None:
    pytest.importorskip("faiss", reason="FAISS comes with the extra notebooks")
    assert frontier.main(["--graph", "umls", "--sizes", "16"]) == 0
    table = frontier.points("umls")
    elsewhere = {OWN_LISTS, COMMITTEE, PATHS} | set(LOW_RANK) - set(frontier.USUAL_RANK)
    assert set(table["method"]) == set(TRAINED) - elsewhere | set(rivals.UNTRAINED)
    assert set(table["bytes"]) == {512, 16}
    for row in table.itertuples():
        ranks = records.read_ranks(row.ranks)
        assert ranks.metrics()["both"]["mrr"] == pytest.approx(row.mrr)
    graph = load("umls")
    teacher = load_model(records.model_folder(config(frontier.teacher_cell("umls", 16)).run_id), graph)
    rounded = with_entities(teacher, rivals.rounded(teacher.entities.data, 16, True))
    assert table.set_index("method").loc["rounded", "mrr"] == evaluate(rounded, graph).metrics()["both"]["mrr"]
    beside = frontier.against_distilled("umls").set_index("method")
    best = table[table["method"].isin(frontier.DISTILLED)].sort_values("valid_mrr")["method"].iloc[-1]
    assert set(beside.index) == set(table["method"]) - {"teacher", best} and set(beside["form"]) == {best}
    assert np.allclose(beside["gain"], beside["distilled_mrr"] - beside["mrr"])
    assert (beside["low"] <= beside["gain"]).all() and (beside["gain"] <= beside["high"]).all()
    before = frontier.path("umls").read_bytes()
    assert frontier.main(["--graph", "umls", "--sizes", "16"]) == 0  # nothing is left to do
    assert frontier.path("umls").read_bytes() == before


def test_another_teacher_is_rounded_besides(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss", reason="FAISS comes with the extra notebooks")
    frontier.complete("umls", "16")
    kept, own = frontier.kept("umls"), frontier.points("umls").set_index("method")
    assert frontier.main(["--rounded", "frontier/umls/ComplEx/teacher/256", "--sizes", "16"]) == 0
    assert frontier.main(["--rounded", "frontier/umls/ComplEx/teacher/256", "--sizes", "16"]) == 0  # nothing is left
    rows = frontier.read("umls")["rows"]
    other = {row["method"]: row for row in rows if row.get("of") == 256}
    assert len(rows) == 2 * len(other) == 2 * len(rivals.UNTRAINED)
    best = frontier.points("umls").set_index("method")
    for method, row in other.items():
        ranks = records.read_ranks(row["ranks"])
        assert ranks.metrics()["both"]["mrr"] == row["test"]["both"]["mrr"]
        more = row["valid"]["both"]["mrr"] > own.loc[method, "valid_mrr"]
        assert best.loc[method, "ranks"] == (row["ranks"] if more else own.loc[method, "ranks"])
    assert len({row["teacher"] for row in rows}) == 2
    pd.testing.assert_frame_equal(frontier.kept("umls"), kept)  # what a budget chooses by is of a size's own teacher
    frontier.measure("umls", load("umls"), [16])
    assert frontier.read("umls")["rows"] == rows
    assert frontier.main(["--rounded", "frontier/umls/ComplEx/teacher/128", "--plan"]) == 0
    assert "frontier/umls/ComplEx/teacher/128" in capsys.readouterr().out and frontier.read("umls")["rows"] == rows


@pytest.mark.parametrize(
    "given, said",
    [
        (["--rounded", "frontier/umls/ComplEx/small/16/512"], "that is no teacher; name one, as frontier/wn18rr/"),
        (["--rounded", "tuned/wn18rr/RotatE/DS/8"], "that is no teacher"),
        (["--mean", "frontier/umls/ComplEx/distilled/16/512", "--plan"], "--mean trains nothing"),
    ],
)
def test_what_cannot_be_rounded_or_planned_is_refused(given, said, quick: None, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        frontier.main(given)
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not records.results_folder().exists()


def test_rivals_of_few_floats_are_the_best_on_validation() -> None:
    """Of the committed records: those made for the frontier, and students of the tables of as many bytes."""
    frame = frontier.points("wn18rr").set_index(["method", "bytes"])
    tables = {key: [] for key in frame.index}
    for method, size, cell in frontier.of_the_tables("wn18rr"):
        if (own := config(cell)) and tasks.recorded(own):
            valid = np.mean([record["valid"]["both"]["mrr"] for record in Ours().seeds(cell)])
            tables[method, size].append((valid, own.run_id, own.model, own.dim))
    sizes = Counter(row_bytes(model, dim) for model in PAPER_MODELS for dim in DIMS)
    assert {size: len(tables["small", size]) for size in sizes} == sizes
    beaten = [key for key, found in tables.items() if found and frame.loc[key, "run"] == max(found)[1]]
    assert beaten and all(frame.loc[key, "valid_mrr"] >= max(found)[0] for key, found in tables.items() if found)
    kept = frontier.kept("wn18rr").query("group == 0").set_index("bytes")
    for size in {size for _, size in beaten}:
        best = max(
            (key for key in frame.index if key in tables and key[0] in SMALL and key[1] == size),
            key=lambda key: frame.loc[key, "mrr"],
        )
        made = records.read_record(records.record_path(frame.loc[best, "run"]))["config"]
        assert (kept.loc[size, "model"], kept.loc[size, "dim"]) == (made["model"], made["dim"])


def test_a_budget_takes_the_form_of_low_rank_that_did_best_on_validation() -> None:
    """Of the committed records: as many bytes in numbers of two bits, and half as many in four."""
    frame = frontier.points("fb15k-237").set_index(["method", "bytes"])
    cells = [c for c in frontier.cells("fb15k-237") if c.bytes == 64 and c.method in ("low-rank", "low-rank-4bit")]
    found = [record for cell in cells for record in Ours().seeds(cell) if not record["config"]["seed"]]
    best = max(found, key=lambda record: record["valid"]["both"]["mrr"])
    assert len(found) == 2 and frame.loc[("low-rank", 64), "run"] == best["id"]
    kept = frontier.kept("fb15k-237").query("rank > 0").set_index("bytes").loc[64]
    assert (kept["group"], kept["rank"]) == (best["config"]["group"], best["config"]["rank"])


def test_a_plan_names_the_graph_as_its_records_do(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert frontier.main(["--graph", "UMLS", "--sizes", "16", "--plan"]) == 0
    told = capsys.readouterr().out
    assert all(f"frontier/umls/ComplEx/{method}/16/512" in told for method in ("distilled", "low-rank"))
    with pytest.raises(ConfigError, match="'wn18' is none of"):
        frontier.main(["--graph", "wn18", "--plan"])
