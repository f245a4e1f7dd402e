"""The students that a clone holds: the weights they always had, now with labels, asked by name."""

import hashlib
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import kgdistil
from kgdistil import cli, records
from kgdistil.answer import published
from kgdistil.answer.format import CARD, FILES, TRIPLES
from kgdistil.answer.student import open_folder
from kgdistil.checkpoint import load_model
from kgdistil.errors import CheckpointError, ConfigError, DataError
from kgdistil.graph import Graph
from kgdistil.models import build_model
from kgdistil.paper import tasks
from kgdistil.paper.cells import Cell
from kgdistil.students.labelled import load_labelled

SMALL = "wn18rr-complex-16B"
TENSORS = {  # SHA-256 of the weights as they were published first, without labels: `summed`
    "fb15k-237-complex-16B": "3541c409aa82860c0d2368ef2e615dee39a1b2e2d7d79324583591246d5f4cd8",
    "fb15k-237-complex-16B-low-rank": "76ecfc12a2e925188a224364a6cbc1165f8c26fdfda3cc66a067c331dafba4db",
    "fb15k-237-complex-32B": "395d5a7dc6aee540c1f0d968f5de2f17edb4bc064f95b4fac8ff4f2e6d7e1334",
    "fb15k-237-complex-32B-low-rank": "7499b535d49732615c58c858d8f69eb1ecddd62378e8fa7e3b0c870426fbfb63",
    "fb15k-237-complex-d8": "f62e7a9c052fd420702cb1e3dd8065e97ad2432eadafb432efc2468a68846666",
    "fb15k-237-reciprocalcomplex-32B": "2b64a1e3739d4b4816acfe666cf104b7b9d37218c1d273ddf64bf58bc97c37c9",
    "fb15k-237-rotate-d8": "f25c4977dbc5314842be0d5ce942b2a50f2a4a98950a20a66de728985ea9b2e9",
    "fb15k-237-transe-d8": "9d40586a9a36ec15a7463535faaed69b52861d72a0cfbac624dd4e7907c5cecf",
    "fb15k-237-transh-d8": "7ab303f5caecdfef4d52f3f0d3690ee50dd03cebd3f8c0714293563786852960",
    "wn18rr-complex-16B": "8b0d759f5a13b0d47ca6711199eeb48521232177eeb523e95d1f31ad2c76ff4c",
    "wn18rr-complex-16B-low-rank": "40fa29e7750d4a77b82d8577a2226f2657035f3c0d092626dc2b4e6a05f294cc",
    "wn18rr-complex-d8": "614a61fd7d20e0a7e5c6baf7d34cc2915e26e0563ab2f0fb75fb94f77e4d6c66",
    "wn18rr-complex-paths-16B": "80f429e5ae553ace0013f60343dd8c192db4b80c8ca2234dc6eff5355e706b11",
    "wn18rr-rotate-d8": "e1f208d072f6a00a4b6b19e81827e7333bcf96987caf8fc1dafb0e7585f094e4",
    "wn18rr-transe-d8": "80af553c8668eb473b8e590763198f840727652bc2792e7f6146a7951f6968c7",
    "wn18rr-transh-d8": "ae8ba68ec4e5d592faecac2a228bbf54329d221c9241d5a17a624d9bd6c5c060",
}
at_hand = pytest.mark.skipif(not os.environ.get("KGDISTIL_DATA"), reason="KGDISTIL_DATA names no folder")


def call(*arguments: object):
    return CliRunner().invoke(cli.main, [str(x) for x in arguments])


@pytest.fixture(autouse=True)
def from_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KGDISTIL_RESULTS", raising=False)
    monkeypatch.setattr(published, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KGDISTIL_DATA", raising=False)


def summed(arrays: dict[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        x = arrays[name]
        total.update(f"{name} {x.dtype.str} {list(x.shape)}\n".encode())
        total.update(x.tobytes())
    return total.hexdigest()


# ---- what is committed ----------------------------------------------------------------------------------------------
def test_the_weights_are_those_that_were_published(nothing_at_hand: None) -> None:
    there = sorted(path.name for path in published.students_folder().iterdir())
    assert there == sorted(TENSORS)
    for name, total in TENSORS.items():
        student = kgdistil.load_student(published.students_folder() / name)
        assert summed(student.packed()) == total, name
        record = json.loads(records.record_path(student.run_id).read_text())
        assert record["config"]["dim"] == student.dim and record["graph"]["sha256"] == student.graph_sha256
        told = dict(student.about["metrics"][0])
        assert {key: told[key] for key in record["test"]["both"]} == record["test"]["both"]


def test_neither_triples_nor_glosses_are_published(nothing_at_hand: None) -> None:
    for name in TENSORS:
        folder = published.students_folder() / name
        student = kgdistil.load_student(folder)
        assert {path.name for path in folder.iterdir()} == {*FILES} - {TRIPLES}
        assert not student.has_triples and student.names is None
        assert (
            f"{student.weights.bytes:,} bytes of weights, which is what a budget counts" in (folder / CARD).read_text()
        )


@at_hand
def test_labels_and_what_training_saw_are_the_graphs(wn18rr: Graph) -> None:
    student = kgdistil.load_student(SMALL)
    assert tuple(student.entities) == wn18rr.entities and tuple(student.relations) == wn18rr.relations
    never = {kind: set(np.flatnonzero(~x.numpy()).tolist()) for kind, x in wn18rr.seen.items()}
    assert never["entity"] and {kind: set(ids) for kind, ids in student.never.items()} == never
    loops = wn18rr.train[wn18rr.train[:, 0] == wn18rr.train[:, 2], 1]
    assert student.reflexive == set(loops.tolist())
    assert load_model(published.students_folder() / SMALL, wn18rr).dim == 64


def test_what_is_published_is_made_so(umls: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    model = build_model("TransE", umls.num_entities, umls.num_relations, 8, seed=3)
    both = {"mr": 5.0, "mrr": 0.5, "hits@1": 0.3, "hits@3": 0.6, "hits@10": 0.9}
    done = SimpleNamespace(id="umls-1", load=lambda graph: model, record={"test": {"both": both}}, config=None)
    cell = Cell("tuned", "umls", "TransE", "DS", 8, 64)
    tasks.publish(cell, done, umls)
    student = kgdistil.load_student("umls-transe-d8")
    assert student.run_id == "umls-1" and student.about["metrics"] == [{"model": "TransE", "dim": 8, **both}]
    assert not student.has_triples and student.names is None and tuple(student.entities) == umls.entities
    assert not (tasks.published(cell) / TRIPLES).exists()
    assert load_model(tasks.published(cell), umls).entities.equal(model.entities)


# ---- asked by name --------------------------------------------------------------------------------------------------
@at_hand
def test_the_example_of_the_readme() -> None:
    told = call("predict", SMALL, "--head", "dog", "--relation", "hypernym", "-k", 3, "--json")
    rows = json.loads(told.stdout)
    assert len(rows) == 3 and rows[0]["name"] != rows[0]["entity"], told.output
    ours = kgdistil.load_student(published.students_folder() / SMALL)
    assert rows == ours.predict(head="10023039", relation="_hypernym", k=3, ids=True).rows()
    near = json.loads(call("similar", SMALL, "dog", "-k", 2, "--json").stdout)
    assert len(near) == 2 and near[0]["name"] == ours.readable(ours.entities.find(near[0]["entity"]))


@at_hand
def test_several_of_a_name_are_told_apart() -> None:
    line = call("predict", SMALL, "--head", "bank", "--relation", "hypernym").stderr
    assert line.count("bank, ") > 1 and "give a label" in line


@at_hand
def test_the_end_of_a_path_names_a_relation_where_it_is_the_only_one() -> None:
    student = kgdistil.load_student("fb15k-237-complex-16B")
    name = lambda text: student.relations[student.called(text, "relation")]
    assert name("prequel") == "/film/film/prequel" == name("/film/prequel")
    assert student.called("quel", "relation") is None
    line = call("predict", "fb15k-237-complex-16B", "--head", "Titanic", "--relation", "genre").stderr
    assert "several are called 'genre'" in line and "/film/film/genre" in line


@at_hand
def test_the_data_set_lends_its_triples() -> None:
    """Held to what is recorded: the ranks are those of the run."""
    student = kgdistil.load_student(SMALL)
    record = json.loads(records.record_path(student.run_id).read_text())
    metrics = json.loads(call("evaluate", SMALL, "--json").stdout)
    assert metrics["both"]["mrr"] == pytest.approx(record["test"]["both"]["mrr"], abs=2e-4)
    known = student.known(student.entities.find("10023039"), student.relations.find("_hypernym"), "tail")
    new = student.predict(head="10023039", relation="_hypernym", new=True, k=20, ids=True)
    assert len(known) and not set(new["id"]) & set(known.tolist())


def test_without_the_data_set_labels_answer(nothing_at_hand: None) -> None:
    told = call("predict", SMALL, "--head", "10023039", "--relation", "hypernym", "-k", 2, "--json")
    assert told.exit_code == 0 and len(json.loads(told.stdout)) == 2
    assert len(told.stderr.splitlines()) == 1 and "'00001740'" in told.stderr and "KGDISTIL_DATA" in told.stderr
    said = call("evaluate", SMALL)
    assert said.exit_code == 1 and "WN18RR.tar.gz" in said.stderr.splitlines()[-1]
    with pytest.raises(DataError, match="WN18RR.tar.gz"):
        kgdistil.load_student(SMALL).predict(head="10023039", relation="_hypernym", new=True)
    assert load_labelled(SMALL).graph.num_entities == 40943


def test_a_data_set_that_is_damaged_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "WN18RR-entity2text.txt").write_text("10023039\tcat")
    monkeypatch.setenv("KGDISTIL_DATA", str(tmp_path))
    told = call("predict", SMALL, "--head", "10023039", "--relation", "hypernym", "-k", 2)
    assert told.exit_code == 0 and "has SHA-256" in told.stderr and "cat" not in told.stdout


def test_a_name_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="published ones are .*wn18rr-complex-16B"):
        kgdistil.load_student("wn18rr-complex-8B")
    monkeypatch.chdir(tmp_path)
    Path(SMALL).mkdir()  # what lies here comes first
    for ask in (kgdistil.load_student, load_labelled):
        with pytest.raises(CheckpointError, match="holds no student: student.json is not there.*wn18rr-complex-16B"):
            ask(SMALL)
    with pytest.raises(CheckpointError, match="no/where is not there.*or a published student"):
        kgdistil.load_student(tmp_path / "no" / "where")
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))  # no checkout
    with pytest.raises(CheckpointError, match="is not there; name a student's folder$"):
        kgdistil.load_student("wn18rr-complex-d8")


@at_hand
def test_a_name_with_a_slip_is_mended_and_names_are_put_in_order_only_when_they_are_searched() -> None:
    student = kgdistil.load_student(SMALL)
    at = student.entities.find("02084071")
    student.predict(head=at, relation=1, by="id")
    assert student.readable(at).startswith("domestic dog, ") and "_order" not in vars(student.names)
    with pytest.raises(ConfigError, match="did you mean 'dog'"):
        student.predict(head="dgo", relation="hypernym")
    assert "_order" in vars(student.names) and student.names[-1] == student.readable(len(student.entities) - 1)
    assert tuple(student.names) == tuple(student.names.many(range(len(student.names))))
    with pytest.raises(IndexError):
        student.names[len(student.names)]
    copied = pickle.loads(pickle.dumps(student.names))
    assert copied.all(student.readable(at)) == [at]


@at_hand
def test_what_is_borrowed_is_not_written_where_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone stays free of glosses, whatever is saved there; a copy of one's own keeps them."""
    student = kgdistil.load_student(SMALL)
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    for folder, named in ((published.students_folder() / SMALL, False), (tmp_path / "mine", True)):
        student.save(folder)
        found = open_folder(folder)
        assert (found.names is not None) == named and not found.has_triples
        assert not (folder / TRIPLES).exists() and b"informal term" not in (folder / CARD).read_bytes()
