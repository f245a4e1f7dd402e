"""What other programs get is what PyTorch answers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kgdistil.compress.size import PRECISIONS
from kgdistil.errors import CheckpointError, ConfigError, KgdistilError
from kgdistil.graph import Graph
from kgdistil.graphs.importers import import_teacher
from kgdistil.models import build_model
from kgdistil.students.export import export
from kgdistil.students.labelled import Labelled

KINDS = [("TransE", 1), ("TransH", 1), ("ComplEx", 1), ("RotatE", 1), ("RotatE", 2)]


def a_student(graph: Graph, name: str, precision: str = "int8", norm: int = 1) -> Labelled:
    offset = 6.0 if name == "RotatE" else 0.0
    model = build_model(name, graph.num_entities, graph.num_relations, 4, seed=2, norm=norm, offset=offset)
    return Labelled(model, graph).quantised(precision)


@pytest.mark.parametrize("name, norm", KINDS)
def test_onnx_gives_pytorchs_scores(tiny_graph: Graph, tmp_path: Path, name: str, norm: int) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    student = a_student(tiny_graph, name, norm=norm)
    files = export(student, "onnx", tmp_path / "onnx")
    assert [path.name for path in files] == ["tails.onnx", "heads.onnx", "labels.json"]
    ids, relations = torch.arange(30), torch.arange(30) % 4
    wanted = student.model.score_tails(ids, relations), student.model.score_heads(relations, ids)
    for path, place, scores in zip(files, ("head", "tail"), wanted):
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {place: ids.numpy(), "relation": relations.numpy()})
        np.testing.assert_allclose(found, scores.detach(), atol=1e-5)
    labels = json.loads(files[2].read_text())
    assert labels["entities"] == list(tiny_graph.entities) and labels["relations"] == list(tiny_graph.relations)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_npz_comes_back(tiny_graph: Graph, tmp_path: Path, precision: str) -> None:
    student = a_student(tiny_graph, "RotatE", precision)
    (path,) = export(student, "npz", tmp_path / "s.npz")
    again = import_teacher(path, tiny_graph).model
    torch.testing.assert_close(again.score_triples(tiny_graph.test), student.model.score_triples(tiny_graph.test))
    with np.load(path, allow_pickle=False) as file:
        assert file["entities"].dtype == precision and str(file["model"]) == "RotatE"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["ComplEx", "TransE", "LowRankComplEx"])
def test_npz_of_every_precision_comes_back(tiny_graph: Graph, tmp_path: Path, name: str, precision: str) -> None:
    rank = {"rank": 4} if name == "LowRankComplEx" else {}
    model = build_model(name, tiny_graph.num_entities, tiny_graph.num_relations, 4, seed=2, **rank)
    student = Labelled(model, tiny_graph).quantised(precision)
    (path,) = export(student, "npz", tmp_path / "s.npz")
    again = import_teacher(path, tiny_graph).model
    for mine, theirs in zip(student.model.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs)
    student.save(tmp_path / "folder")
    assert torch.equal(import_teacher(tmp_path / "folder", tiny_graph).model.entities, student.model.entities)


def test_a_changed_npz_is_refused_or_still_the_same(tiny_graph: Graph, tmp_path: Path) -> None:
    student = a_student(tiny_graph, "RotatE", norm=2)
    (path,) = export(student, "npz", tmp_path / "s.npz")
    content, wanted = path.read_bytes(), import_teacher(path, tiny_graph).model
    generator, refused = torch.Generator().manual_seed(0), 0
    bits = torch.randperm(8 * len(content), generator=generator)
    # Some anywhere, and some where zip says what there is: there a lost entry is lost without a word.
    start = 8 * content.index(b"PK\1\2")
    for at in [*bits[:40].tolist(), *bits[bits >= start][:160].tolist()]:
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            found = import_teacher(path, tiny_graph).model
        except KgdistilError:
            refused += 1
        else:  # the bit was of a date, or of another field that says nothing
            assert found.norm == 2 and all(torch.equal(a, b) for a, b in zip(found.parameters(), wanted.parameters()))
    assert refused > 60


def test_an_npz_that_lost_or_won_an_entry_is_refused(tiny_graph: Graph, tmp_path: Path) -> None:
    (path,) = export(a_student(tiny_graph, "RotatE", norm=2), "npz", tmp_path / "s.npz")
    with np.load(path) as file:
        entries = dict(file)
    for changed in ({k: x for k, x in entries.items() if k != "norm"}, {**entries, "norm": np.array(1)}):
        np.savez(path, **changed)
        with pytest.raises(CheckpointError, match=r"s.npz: it was damaged or changed since it was written; export it"):
            import_teacher(path, tiny_graph)
    np.savez(path, **{k: x for k, x in entries.items() if k != "sum"})  # as earlier releases wrote it
    assert import_teacher(path, tiny_graph).model.norm == 2


def test_npz_keeps_labels_that_numpy_would_lose(tiny_graph: Graph, tmp_path: Path) -> None:
    words = ("x", "x\0", "y" * 1_000_000, *tiny_graph.entities[3:])
    graph = dataclasses.replace(tiny_graph, entities=words)
    student = Labelled(a_student(tiny_graph, "TransE").model, graph)
    (path,) = export(student, "npz", tmp_path / "s.npz")
    assert torch.equal(import_teacher(path, graph).model.entities, student.model.entities)


@pytest.mark.parametrize("name, norm", KINDS)
def test_the_browsers_files_hold_the_student(tiny_graph: Graph, tmp_path: Path, name: str, norm: int) -> None:
    student = a_student(tiny_graph, name, norm=norm)
    files = {path.name: path for path in export(student, "browser", tmp_path / "page")}
    header = json.loads(files["model.json"].read_text())
    assert (header["model"], header["norm"], header["graph"]) == (name, norm, tiny_graph.sha256)
    written = np.fromfile(files["entities.f32"], "<f4").reshape(header["entities"])
    np.testing.assert_array_equal(written, student.model.entities.detach())
    assert json.loads(files["names.json"].read_text())["labels"] == list(tiny_graph.entities)


def test_a_form_or_place_that_cannot_be(tiny_graph: Graph, tmp_path: Path) -> None:
    student = a_student(tiny_graph, "TransE")
    with pytest.raises(ConfigError, match="no form 'pdf': choose one of onnx, npz, browser"):
        export(student, "pdf", tmp_path)
    with pytest.raises(ConfigError, match=r"name a file that ends in .npz"):
        export(student, "npz", tmp_path / "out")
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for form in ("onnx", "browser"):
        for place in (tmp_path / "file", tmp_path / "loop", Path("/dev/null")):
            with pytest.raises(ConfigError, match=f"is no folder: {form} needs one; name a new or an empty one"):
                export(student, form, place)


@pytest.mark.parametrize("form", ["onnx", "browser"])
def test_a_students_own_folder_is_left_to_it(tiny_graph: Graph, tmp_path: Path, form: str) -> None:
    a_student(tiny_graph, "TransE").save(tmp_path / "student")
    before = {path.name: path.read_bytes() for path in (tmp_path / "student").iterdir()}
    with pytest.raises(ConfigError, match=f"holds a student: {form} needs a folder of its own"):
        export(a_student(tiny_graph, "TransE"), form, tmp_path / "student")
    assert {path.name: path.read_bytes() for path in (tmp_path / "student").iterdir()} == before
