"""Students of codes of whom a few entities are whole: their files, ranks and answers are those of the mixed rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_lists import a_config

import kgdistil
from kgdistil.answer import native
from kgdistil.answer.format import HEADER, read_header, write_header
from kgdistil.answer.mixed import Mixed
from kgdistil.answer.native import Codes, packed
from kgdistil.answer.weights import Weights
from kgdistil.checkpoint import load_model
from kgdistil.compress import whole
from kgdistil.compress.packing import encode, pack, quantised, size, unpack
from kgdistil.compress.scan import CodedRanker
from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.graphs.importers import import_teacher
from kgdistil.models import SIDES, build_model
from kgdistil.students.export import export
from kgdistil.students.labelled import Labelled
from kgdistil.training.loop import run

PATHS = [*native.libraries(), False]


def mixed(graph: Graph, count: int = 9, precision: str = "1bit", name: str = "ComplEx") -> Labelled:
    low = {"rank": 16} if name.startswith("LowRank") else {}
    model = build_model(name, graph.num_entities, graph.num_relations, 16, seed=3, **low)
    whole.keep_frequent(model, graph.train, count)
    return Labelled(model, graph).quantised(precision)


@pytest.mark.parametrize("precision", ["4bit", "2bit", "1bit"])
def test_whole_entities_keep_their_numbers_and_a_file_all_of_them(umls: Graph, precision: str) -> None:
    model = build_model("ComplEx", umls.num_entities, umls.num_relations, 16, seed=3)
    which = whole.keep_frequent(model, umls.train, 9)
    once = quantised(model, precision)
    error = (once.entities - model.entities).detach().abs()
    assert error[which].max() < model.entities.abs().max() / 200, "half a step of a row's largest"
    assert error[~which].max() > 3 * error[which].max()
    twice = quantised(once, precision)
    assert torch.equal(twice.entities[which], once.entities[which]), "what is rounded stays"
    assert whole.of(twice).tolist() == which.nonzero().flatten().tolist()
    packed_ = pack(model, precision)
    without = sum(x.numel() * x.element_size() for name, x in packed_.items() if not name.startswith("whole"))
    assert (
        size(model, precision) == without + 9 * (32 + 8) == sum(x.numel() * x.element_size() for x in packed_.values())
    )
    assert not len(whole.of(quantised(model, "int8"))), "of int8 nothing else is whole"
    few = {name: x[:1] if name == "whole.scale" else x for name, x in packed_.items()}
    with pytest.raises(ValueError, match="whole entities"):
        unpack(few, precision, True)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["ComplEx", "LowRankReciprocal"])
def test_ranks_and_answers_are_those_of_the_rows(umls: Graph, name: str, path: str | bool) -> None:
    model = mixed(umls, 70, "2bit", name).model
    codes, book = encode(model, "2bit")
    codes[whole.of(model).long()] = 15 - codes[whole.of(model).long()]  # what they say counts for nothing
    triples = umls.test[:200]
    known = KnownTriples(umls.known, umls.num_relations)
    expected, ranker = rank(model, triples, known), CodedRanker(model, codes, book, path)
    for column, (side, anchor, target) in enumerate(SIDES):
        queries = model.queries(triples[:, anchor], triples[:, 1], side).detach()
        spans = known.spans(triples[:, anchor], triples[:, 1], side)
        greater, equal = ranker.counts(queries, triples[:, target], spans)
        np.testing.assert_array_equal(greater, expected.greater[:, column])
        np.testing.assert_array_equal(equal, expected.equal[:, column])
        assert greater.max() > 20
        scores = model.compare(queries, model.entities).detach()
        for row, start, end in zip(scores, *spans[:2]):
            row[spans[2][start:end].long()] = -torch.inf
        for k in (1, 5, 100):
            score, best = ranker.top(queries, k, spans)
            torch.testing.assert_close(score, scores.topk(k).values, atol=1e-5, rtol=1e-5)
            there = best >= 0
            torch.testing.assert_close(score[there], scores.gather(1, best.clamp(min=0).long())[there])
        assert {len(set(row) - {-1}) for row in best.tolist()} <= {int(x) for x in there.sum(1)}, "nothing comes twice"
        assert (there.sum(1) == 100).any()


@pytest.mark.parametrize("path", PATHS)
def test_who_may_come_may_be_said(path: str | bool) -> None:
    rng = np.random.default_rng(0)
    codes, book = rng.integers(0, 16, (150, 4), np.uint8), rng.normal(size=(4, 16, 2)).astype(np.float32)
    ids, rows = np.array([3, 64, 149], np.int32), rng.integers(-127, 128, (3, 8)).astype(np.int8)
    scale = np.full(3, 1 / 64, np.float32)
    scanned = Codes(packed(codes), 150, book, np.arange(8, dtype=np.int32), native=path)
    both = Mixed(scanned, ids, rows, scale)
    dense = book[np.arange(4), codes].reshape(150, 8)
    dense[ids] = rows * scale[:, None]
    queries = rng.normal(size=(20, 8)).astype(np.float32)
    scores = queries @ dense.T
    for shape in ((150,), (20, 150)):
        may = rng.random(shape) < 0.3
        may[..., 64] = True
        room = np.zeros((*shape[:-1], 192), bool)
        room[..., :150] = may
        words = np.packbits(room, axis=-1, bitorder="little").view("<u8")
        score, best = both.top(queries, 150, allowed=words)
        for row, ids_, found, there in zip(scores, best, score, np.broadcast_to(may, (20, 150)), strict=True):
            assert sorted(ids_[ids_ >= 0]) == np.flatnonzero(there).tolist()
            np.testing.assert_allclose(found[ids_ >= 0], np.sort(row[there])[::-1], rtol=1e-4, atol=1e-5)
            assert np.isneginf(found[ids_ < 0]).all()
    goal = both.codes.scores_of(queries, np.full(20, 7))
    np.testing.assert_allclose(goal, scores[:, 7], rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="targets from -1 to 3"):
        both.counts(queries[:2], np.array([-1, 3]))
    for wrong in ((ids[::-1], rows, scale), (ids, rows[:, :4], scale), (ids + 1, rows, scale), (ids, rows, scale[:2])):
        with pytest.raises(ConfigError, match="give ids in order, int8 rows of 8, and scales"):
            Mixed(scanned, *map(np.ascontiguousarray, wrong))


def test_a_student_with_whole_entities_is_saved_asked_exported_and_grows(umls: Graph, tmp_path: Path) -> None:
    labelled = mixed(umls, 9, "2bit")
    labelled.save(tmp_path / "s")
    student, header = kgdistil.load_student(tmp_path / "s"), read_header(tmp_path / "s")
    assert header["files"]["weights.bin"]["arrays"]["whole"][1] == [9]
    assert student.weights.bytes == size(labelled.model, "2bit")
    rows = labelled.model.entities.detach().numpy()
    np.testing.assert_array_equal(student.weights.rows(np.arange(135)), rows)
    assert torch.equal(load_model(tmp_path / "s", umls).entities, labelled.model.entities)
    assert student.evaluate()["both"] == pytest.approx(labelled.evaluate()["both"], abs=1e-6)
    hub, query = umls.entities[int(whole.of(labelled.model)[0])], {"relation": umls.relations[3], "k": 135}
    assert [row["entity"] for row in student.predict(head=hub, **query).rows()] == [
        row["entity"] for row in labelled.predict(head=hub, **query).to_dict("records")
    ]
    (path,) = export(labelled, "npz", tmp_path / "s.npz")
    export(labelled, "arrays", tmp_path / "arrays")
    for place in (path, tmp_path / "arrays", tmp_path / "s"):
        assert torch.equal(import_teacher(place, umls).model.entities, labelled.model.entities)
    assert np.load(tmp_path / "arrays" / "whole.npy").tolist() == whole.of(labelled.model).tolist()
    export(mixed(umls, 0), "arrays", tmp_path / "arrays")
    assert not (tmp_path / "arrays" / "whole.npy").exists()
    with pytest.raises(ConfigError, match="9 of these entities have none: export arrays"):
        export(labelled, "faiss", tmp_path / "s.faiss")
    student.add([("new thing", umls.relations[3], hub)])
    np.testing.assert_array_equal(student.weights.rows(np.arange(135)), rows)
    student.save(tmp_path / "more")
    assert len(kgdistil.load_student(tmp_path / "more").predict(head="new thing", **query)) > 0


def test_a_reader_that_overlooks_whole_entities_refuses_them(umls: Graph, tmp_path: Path, monkeypatch) -> None:
    mixed(umls).save(tmp_path / "s")
    assert json.loads((tmp_path / "s" / HEADER).read_text())["version"] == 3
    mixed(umls, 0).save(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / HEADER).read_text())["version"] == 2
    header = read_header(tmp_path / "s")
    monkeypatch.setattr("kgdistil.answer.format.WHOLE", 2)  # an earlier release
    with pytest.raises(CheckpointError, match="has format 3; this kgdistil reads 1 to 2: update it"):
        kgdistil.load_student(tmp_path / "s")
    monkeypatch.undo()
    few = {name: x for name, x in header["files"]["weights.bin"]["arrays"].items() if name != "whole"}
    weights = {**header["files"]["weights.bin"], "arrays": few}
    write_header(tmp_path / "s", {**header, "files": {**header["files"], "weights.bin": weights}})
    with pytest.raises(CheckpointError):
        kgdistil.load_student(tmp_path / "s")


@pytest.mark.parametrize(
    "ids", [[0, 2**31 - 1, -2, 5], [0, 3, 2, 5], [0, 1, 2, 135], [-1, 1, 2, 3], [1, 1, 2, 3]], ids=str
)
def test_ids_that_are_none_of_its_entities_are_refused(umls: Graph, tmp_path: Path, ids: list[int]) -> None:
    student = mixed(umls, 4).student()
    arrays = {**student.weights.arrays, "whole": np.array(ids, np.int32)}
    with pytest.raises(CheckpointError, match="not those of a 'ComplEx'"):
        Weights(mixed(umls, 4).header(), arrays)


def test_a_run_that_keeps_entities_whole_opens_and_one_without_forgets_them(
    umls: Graph, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    first = run(a_config(dim=8, group=4, whole=9, epochs=1, batch_size=64), umls, progress=False)
    assert len(kgdistil.load_student(first.folder).predict(head=0, relation=0, k=3, by="id")) == 3
    second = run(a_config(dim=8, group=4, epochs=1, batch_size=64, student=first.id), umls, progress=False)
    assert len(whole.of(first.load(umls))) == 9 and not len(whole.of(second.load(umls)))
    with pytest.raises(ConfigError, match="TransE has no whole entities"):
        whole.keep_frequent(build_model("TransE", 135, 46, 4), umls.train, 3)


@pytest.mark.parametrize("path", PATHS)
def test_edges(path: str | bool) -> None:
    """No queries, one entity, all of them whole, more answers than entities, ties, and what does not fit."""
    rng = np.random.default_rng(1)
    for entities, count in ((1, 1), (64, 64), (65, 1), (130, 129)):
        codes, book = np.zeros((entities, 2), np.uint8), np.ones((2, 16, 2), np.float32)
        ids = np.sort(rng.permutation(entities)[:count]).astype(np.int32)
        scanned = Codes(packed(codes), entities, book, np.arange(4, dtype=np.int32), native=path)
        both = Mixed(scanned, ids, np.ones((count, 4), np.int8), np.ones(count, np.float32))
        queries = np.ones((3, 4), np.float32)
        score, best = both.top(queries, entities + 5)
        assert best[0].tolist() == [*range(entities), *[-1] * 5] and (score[:, :entities] == 4).all()
        greater, equal = both.counts(queries, np.array([0, entities // 2, entities - 1]))
        assert not greater.any() and (equal == entities - 1).all()
        assert both.top(queries[:0], 3)[1].shape == (0, 3) and not len(both.counts(queries[:0], np.zeros(0, int))[0])
        shared = np.zeros(3, np.int64), np.full(3, entities, np.int64), np.arange(entities, dtype=np.int32)
        assert (both.top(queries, 2, shared)[1] == -1).all()
        assert not both.counts(queries, np.zeros(3, int), shared)[1].any()


FIT: dict[str, Any] = {"queries": np.ones((3, 4), np.float32), "target": np.zeros(3, np.int64)}
NO_SPAN = np.zeros(3, np.int64), np.full(3, 9, np.int64), np.arange(8, dtype=np.int32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries": np.ones((3, 3), np.float32)},
        {"leave_out": NO_SPAN},
        {"allowed": np.zeros(9, np.uint64)},
        {"allowed": np.zeros(2, np.float32)},
        {"target": np.zeros(2, np.int64)},
        {"target": np.full(3, 70)},
        {"target": np.zeros(3)},
    ],
    ids=lambda wrong: str(next(iter(wrong))),
)
def test_what_does_not_fit_is_refused_as_codes_refuse_it(wrong: dict[str, Any]) -> None:
    codes, book = np.zeros((70, 2), np.uint8), np.ones((2, 16, 2), np.float32)
    scanned = Codes(packed(codes), 70, book, np.arange(4, dtype=np.int32))
    both = Mixed(scanned, np.array([7], np.int32), np.ones((1, 4), np.int8), np.ones(1, np.float32))
    given = {**FIT, **wrong}
    queries, target = given.pop("queries"), given.pop("target")
    for scanner in (scanned, both):
        with pytest.raises(ConfigError):
            scanner.counts(queries, target, **given) if "target" in wrong else scanner.top(queries, 2, **given)
