"""Students of codes of whom a few entities are whole: their files, ranks and answers are those of the mixed rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

import kgdistil
from kgdistil.answer import native
from kgdistil.answer.format import HEADER, read_header, write_header
from kgdistil.answer.mixed import Mixed
from kgdistil.answer.native import Codes, packed
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
        assert {len(row) for row in map(set, best.tolist())} >= {100}, "nothing comes twice"


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


def test_a_reader_that_overlooks_whole_entities_refuses_them(umls: Graph, tmp_path: Path) -> None:
    import json

    mixed(umls).save(tmp_path / "s")
    assert json.loads((tmp_path / "s" / HEADER).read_text())["version"] == 3
    mixed(umls, 0).save(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / HEADER).read_text())["version"] == 2
    header = read_header(tmp_path / "s")
    write_header(tmp_path / "s", {**header, "precision": "int8"})
    with pytest.raises(CheckpointError):
        kgdistil.load_student(tmp_path / "s")
