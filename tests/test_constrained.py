"""Type-constrained ranks of recorded cells: trained where weights are missing, and refused where they are others."""

import os

import pytest
import torch
from test_reproduce import cell

from kgdistil import load, records
from kgdistil.answer.files import sealed, write_json
from kgdistil.checkpoint import load_model
from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.evaluation import KnownTriples
from kgdistil.graph import Graph
from kgdistil.paper import constrained, tasks
from kgdistil.paper.cells import parse
from kgdistil.paper.constrained import rank_seen, roles
from kgdistil.paper.reading import record_of
from kgdistil.paper.recipe import config
from kgdistil.paper.reproduce import work


@pytest.fixture(scope="module")
def fb15k() -> Graph:
    if not os.environ.get("KGDISTIL_DATA"):
        pytest.skip("KGDISTIL_DATA is not set: it names the folder that holds FB15k-237.tar.gz")
    return load("fb15k-237")


@pytest.fixture
def trained_cell(small):
    """A distilled student of a small graph, with its record."""
    mine = cell("DS")
    work([mine], "cpu", show=False)
    return mine


def test_candidates_seen_in_the_role_make_better_ranks(trained_cell, capsys):
    graph = load("nations")
    constrained.complete([trained_cell])
    record = constrained.read(trained_cell)
    every, training, told = (record["test"][name] for name in constrained.CANDIDATES)
    assert every == records.read_record(records.record_path(record["id"]))["test"]
    model = tasks.weights_of(trained_cell, graph)
    seen = roles(graph.train, graph.num_relations, graph.num_entities)
    ranks = rank_seen(model, graph.test, KnownTriples(graph.known, graph.num_relations), seen)
    assert training == ranks.metrics() != told and training["both"]["mrr"] > every["both"]["mrr"]
    assert record["graph"]["sha256"] == graph.sha256 and {"commit", "command", "device", "versions"} <= set(record)
    assert f"{trained_cell}: test MRR among every entity {every['both']['mrr']:.3f}" in capsys.readouterr().out
    outside = {
        side: sum(not seen[side][r, e] for r, e in graph.test[:, [1, column]].tolist())
        for side, column in (("head", 0), ("tail", 2))
    }
    assert record["unseen"] == {"training": outside, "all splits": {"head": 0, "tail": 0}} and sum(outside.values()) > 0
    before = constrained.path(record["id"]).stat().st_mtime_ns
    constrained.complete([trained_cell])
    assert constrained.path(record["id"]).stat().st_mtime_ns == before, "what is recorded is left"
    assert "0 of 1 cells are to be ranked" in capsys.readouterr().out


def test_the_command_takes_cells_or_else_all_of_table_4(monkeypatch):
    asked = []
    monkeypatch.setattr(constrained, "complete", lambda cells, again: asked.append((list(map(str, cells)), again)))
    one = "tuned/fb15k-237/RotatE/teacher/64"
    assert constrained.main([one, "--again"]) == constrained.main([]) == 0
    assert asked[0] == ([one], True) and len(asked[1][0]) == 28 and asked[1][1] is False


def test_what_has_lost_its_weights_is_trained_again_to_the_same_ranks(trained_cell):
    graph = load("nations")
    before = constrained.measure(trained_cell, graph)["test"]
    for folder in records.runs_folder().glob("models/*"):
        (folder / "model.safetensors").unlink()
    constrained.complete([trained_cell], again=True)
    assert constrained.read(trained_cell)["test"] == before


def test_other_weights_than_the_records_are_refused(trained_cell):
    graph, path = load("nations"), records.record_path(config(trained_cell).run_id)
    record = records.read_record(path)
    record["test"]["both"]["mrr"] += 0.01
    write_json(path, sealed(record))
    with pytest.raises(
        CheckpointError,
        match=r"other weights; run `python -m kgdistil.paper.reproduce tuned/nations/TransE/DS/4 --again`",
    ):
        constrained.measure(trained_cell, graph)
    assert constrained.read(trained_cell) is None
    path.unlink()
    with pytest.raises(CheckpointError, match=f"no record: run `python -m kgdistil.paper.reproduce {trained_cell}`"):
        constrained.measure(trained_cell, graph)


def test_a_cell_without_a_search_is_told_what_makes_it(small):
    with pytest.raises(ConfigError, match=r"no recorded search: run `python -m kgdistil.paper.reproduce tuned/nations"):
        constrained.complete([cell("DS")])


@pytest.mark.parametrize("model", ["TransE", "TransH", "ComplEx", "RotatE"])
def test_the_published_students_have_the_committed_ranks(model, fb15k):
    committed = constrained.read(parse(f"tuned/fb15k-237/{model}/DS/8"))
    published = load_model(tasks.published(parse(committed["cell"])), fb15k)
    known = KnownTriples(fb15k.known, fb15k.num_relations)
    with torch.no_grad():
        seen = roles(fb15k.train, fb15k.num_relations, fb15k.num_entities)
        ranks = rank_seen(published, fb15k.test, known, seen).metrics()
    for side, metrics in ranks.items():
        assert metrics == pytest.approx(committed["test"]["training"][side], abs=1e-4 * 1000 ** (side == "mr"))


def test_published_weights_are_those_of_their_own_run_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path))
    ours = parse("tuned/fb15k-237/RotatE/DS/8")
    assert tasks.folder_of(ours) == tasks.published(ours)
    for other in ("tuned/fb15k-237/RotatE/no-DS/8", "tuned/fb15k-237/RotatE/-S2/8", "paper/fb15k-237/RotatE/DS/8"):
        assert tasks.folder_of(parse(other)) is None, other


def test_every_cell_of_table_4_has_its_ranks_of_the_type():
    there = {path.stem for path in (records.results_folder() / "constrained").iterdir()}
    assert there == {constrained.read(mine)["id"] for mine in constrained.table4()}, "none of runs that are replaced"
    for mine in constrained.table4():
        record = constrained.read(mine)
        assert record is not None, f"run `python -m kgdistil.paper.constrained {mine}`"
        assert record["dirty"] is False and len(record["commit"]) == 40, record["id"]
        assert record["test"]["every entity"] == record_of(mine)["test"], "the very run, on the machine it ran on"
