"""What other programs get is what PyTorch answers."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from kgdistil import cli
from kgdistil.answer.labels import Labels
from kgdistil.compress.size import GROUPS, PRECISIONS
from kgdistil.errors import CheckpointError, ConfigError, KgdistilError
from kgdistil.graph import Graph
from kgdistil.graphs.importers import import_teacher
from kgdistil.graphs.readers import read_graph
from kgdistil.models import MODELS, KGEModel, build_model, kind_of
from kgdistil.students.export import export
from kgdistil.students.labelled import Labelled, load_labelled

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


def same_bits(one: KGEModel, other: KGEModel) -> None:
    assert type(one) is type(other)
    assert [getattr(one, x) for x in ("norm", "offset", "epsilon")] == [
        getattr(other, x) for x in ("norm", "offset", "epsilon")
    ]
    for (name, mine), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*MODELS, "LowRankComplEx", "LowRankReciprocal"])
def test_arrays_of_every_precision_come_back_bit_for_bit(
    tiny_graph: Graph, tmp_path: Path, name: str, precision: str
) -> None:
    rank = {"rank": 4} if name.startswith("LowRank") else {}
    model = build_model(name, tiny_graph.num_entities, tiny_graph.num_relations, 4, seed=2, norm=2, offset=3.1, **rank)
    student = Labelled(model, tiny_graph).quantised(precision)
    student.save(tmp_path / "folder")
    student = load_labelled(tmp_path / "folder")
    (path,) = export(student, "npz", tmp_path / "s.npz")
    export(student, "arrays", tmp_path / "arrays")
    for place in (path, tmp_path / "arrays", tmp_path / "folder"):
        same_bits(import_teacher(place, tiny_graph).model, student.model)
    with np.load(path, allow_pickle=False) as file:
        assert str(file["model"]) == name and file["entities"].dtype == (
            "uint8" if precision.endswith("bit") else precision
        )
    if precision.endswith("bit"):  # what the docstring says of codes, in numpy alone
        codes, book, columns = (np.load(tmp_path / "arrays" / f"{x}.npy") for x in ("codes", "codebook", "columns"))
        rows = np.empty((len(codes), len(columns)), np.float32)
        rows[:, columns] = book[np.arange(len(book)), codes].reshape(len(codes), -1)
        np.testing.assert_array_equal(rows, student.model.entities.detach())


def test_the_shell_brings_four_bits_back(tiny_graph: Graph, tmp_path: Path) -> None:
    graph = tmp_path / "graph"
    graph.mkdir()
    for split in ("train", "valid", "test"):
        rows = ["\t".join(tiny_graph.label_triple(*x)) for x in getattr(tiny_graph, split).tolist()]
        (graph / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    own = read_graph(graph)
    student = a_student(own, "ComplEx", "4bit")
    student.save(tmp_path / "student")
    for form, place in (("npz", tmp_path / "s.npz"), ("arrays", tmp_path / "arrays")):
        there, back = ["export", tmp_path / "student", "--to", form, "-o", place], tmp_path / f"from-{form}"
        for command in (there, ["import", place, "--graph", graph, "-o", back]):
            done = CliRunner().invoke(cli.main, [str(x) for x in command])
            assert done.exit_code == 0, done.output
        same_bits(load_labelled(back).model, student.model)


def test_labels_of_any_kind_come_back_with_arrays(tiny_graph: Graph, tmp_path: Path) -> None:
    words = ('a "b"', "c\td", "e\nf", "g\r", "\ud800", "", *tiny_graph.entities[6:])
    student = Labelled(a_student(tiny_graph, "TransE").model, dataclasses.replace(tiny_graph, entities=words))
    for older in (a_student(tiny_graph, "ComplEx", "1bit"), student):  # what is there of another student goes
        export(older, "arrays", tmp_path)
    assert not (tmp_path / "codes.npy").exists()
    same_bits(import_teacher(tmp_path, student.graph).model, student.model)
    for name, damage in (("entities.npy", b"x"), ("labels.tsv", b"kind\tid\nentity\t7\n"), ("about.json", b"[]")):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(damage)
        with pytest.raises(CheckpointError, match="export it again"):
            import_teacher(tmp_path, student.graph)
        (tmp_path / name).write_bytes(content)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("form", ["arrays", "npz"])
def test_packed_labels_are_exported_as_they_lie(monkeypatch, tiny_graph: Graph, tmp_path: Path, form, named) -> None:
    words = ['a "b"', "c\td", "g\r", "\ud800", "", "é\0", *tiny_graph.entities[6:]]
    names = {"": "none", "é\0": 'two\n"lines"'} if named else {}
    graph = dataclasses.replace(tiny_graph, entities=Labels.of(words), descriptions=names)
    student = Labelled(a_student(tiny_graph, "TransE", "float32").model, graph)
    plain = dataclasses.replace(graph, entities=tuple(words))

    def refuse(*_: object) -> None:
        raise AssertionError("a label became a string")

    with monkeypatch.context() as patched:
        patched.setattr("kgdistil.students.export.ROWS", 5)
        for way in ("__iter__", "__getitem__", "many") if not named else ():
            patched.setattr(Labels, way, refuse)
        export(student, form, tmp_path / "s.npz")
    same_bits(import_teacher(tmp_path / "s.npz", plain).model, student.model)
    if form == "npz":
        with np.load(tmp_path / "s.npz") as found:
            assert found["entity_labels_offsets"][1] == len('a "b"')
        return
    with (tmp_path / "s.npz" / "labels.tsv").open(encoding="utf-8", errors="surrogatepass", newline="") as file:
        kinds, ids, labels, also = zip(*csv.reader(file, "excel-tab"), strict=True)
    assert [*labels[1:]] == [*words, *graph.relations] and [*kinds[1:]].count("relation") == len(graph.relations)
    assert [*ids[1:]] == [str(i) for x in (words, graph.relations) for i in range(len(x))]
    assert [*also[1:]] == [names.get(x, "") for x in words] + [""] * len(graph.relations)


def test_onnx_of_many_entities(monkeypatch, tiny_graph: Graph, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    student = a_student(tiny_graph, "TransE")
    student = Labelled(student.model, dataclasses.replace(tiny_graph, entities=Labels.of(tiny_graph.entities)))
    assert [path.name for path in export(student, "onnx", tmp_path / "a")] == ["tails.onnx", "heads.onnx", "labels.tsv"]
    monkeypatch.setattr("kgdistil.students.export.MOST", 100)
    with pytest.raises(ConfigError, match="less than 2 GiB, and these weights take [0-9,]+ bytes: export arrays"):
        export(student, "onnx", tmp_path / "b")


def test_where_labels_begin_is_checked(tiny_graph: Graph, tmp_path: Path) -> None:
    words = Labels.of([f"e{i:04}" for i in range(tiny_graph.num_entities)])
    student = Labelled(a_student(tiny_graph, "TransE").model, dataclasses.replace(tiny_graph, entities=words))
    export(student, "npz", tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as found:
        values = {name: x for name, x in found.items() if name != "sum"}
    for wrong in (values["entity_labels_offsets"][:-1], values["entity_labels_offsets"][::-1]):
        np.savez(tmp_path / "t.npz", **{**values, "entity_labels_offsets": wrong})
        with pytest.raises(CheckpointError, match="do not say where labels begin"):
            import_teacher(tmp_path / "t.npz", tiny_graph)


@pytest.mark.parametrize(
    "name, norm", [x for x in KINDS if x != ("RotatE", 1)] + [("TransH", 2), ("DistMult", 1), ("LowRankComplEx", 1)]
)
def test_pykeen_scores_as_the_student(tiny_graph: Graph, tmp_path: Path, name: str, norm: int) -> None:
    pytest.importorskip("pykeen")
    from pykeen.triples import TriplesFactory

    rank = {"rank": 4} if name.startswith("LowRank") else {}
    model = build_model(
        name, tiny_graph.num_entities, tiny_graph.num_relations, 4, seed=2, norm=norm, offset=3.0, **rank
    )
    student = Labelled(model, tiny_graph).quantised("int8")
    export(student, "pykeen", tmp_path)
    theirs = torch.load(tmp_path / "trained_model.pkl", weights_only=False)
    factory = TriplesFactory.from_path_binary(tmp_path / "training_triples")
    assert factory.entity_to_id == {label: i for i, label in enumerate(tiny_graph.entities)}
    assert factory.mapped_triples.tolist() == tiny_graph.train.tolist()
    with torch.no_grad():
        found = theirs.score_hrt(tiny_graph.known)[:, 0]
        wanted = student.model.score_triples(tiny_graph.known)
        brought = import_teacher(tmp_path, tiny_graph, trust_pickle=True).model.score_triples(tiny_graph.known)
    torch.testing.assert_close(found, wanted - (model.offset if model.distance else 0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(brought, found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", GROUPS)
@pytest.mark.parametrize("name", ["ComplEx", "LowRankComplEx", "DistMult", "SimplE"])
def test_faiss_answers_as_the_student(tiny_graph: Graph, tmp_path: Path, name: str, precision: str) -> None:
    faiss = pytest.importorskip("faiss")
    dim = 4 if kind_of(name).entity_factor == 2 else 12  # 12 floats in groups of 4: an odd number of groups
    rank = {"rank": 8} if name.startswith("LowRank") else {}
    model = build_model(name, tiny_graph.num_entities, tiny_graph.num_relations, dim, seed=2, **rank)
    student = Labelled(model, tiny_graph).quantised(precision)
    (path,) = export(student, "faiss", tmp_path / "s.faiss")
    index, ours = faiss.read_index(str(path)), student.student()
    for side in ("head", "tail"):
        query = {"relation": list(tiny_graph.relations), side: list(tiny_graph.entities[:4])}
        score, found = index.search(ours.vectors(**query), 30)
        for i in range(4):
            one = {key: values[i] for key, values in query.items()}
            answers = ours.predict(**one, k=30, ids=True)
            own = ours.entities.find(one[side])
            kept = [(e, x) for e, x in zip(found[i], score[i]) if e != own or one["relation"] in reflexive(tiny_graph)]
            np.testing.assert_allclose([x for _, x in kept], answers["score"], rtol=1e-5, atol=1e-6)
            scores = dict(zip(answers["id"], answers["score"]))  # the same entities; of ties in any order
            np.testing.assert_allclose([scores[e] for e, _ in kept], answers["score"], rtol=1e-5, atol=1e-6)


def reflexive(graph: Graph) -> set[str]:
    return {graph.relations[r] for h, r, t in graph.train.tolist() if h == t}


def test_forms_that_a_student_cannot_have(tiny_graph: Graph, tmp_path: Path) -> None:
    pytest.importorskip("faiss"), pytest.importorskip("pykeen")
    with pytest.raises(ConfigError, match="inner products, which RotatE does not"):
        export(a_student(tiny_graph, "RotatE", "1bit"), "faiss", tmp_path / "s.faiss")
    with pytest.raises(ConfigError, match=r"holds codes \(.*\), and this student int8"):
        export(a_student(tiny_graph, "ComplEx"), "faiss", tmp_path / "s.faiss")
    for name in ("SimplE", "RotatE"):
        with pytest.raises(ConfigError, match=f"PyKEEN has no {name} of norm 1 that scores as this one"):
            export(a_student(tiny_graph, name), "pykeen", tmp_path / "p")
    student = a_student(tiny_graph, "ComplEx", "1bit").student()
    for query in ({}, {"head": tiny_graph.entities[0], "tail": tiny_graph.entities[1]}):
        with pytest.raises(ConfigError, match="exactly one of head and tail"):
            student.vectors(relation=tiny_graph.relations[0], **query)
    assert not list(tmp_path.iterdir())


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


def test_the_browsers_folder_is_the_student(tiny_graph: Graph, tmp_path: Path) -> None:
    student = a_student(tiny_graph, "TransE", "float16")
    files = export(student, "browser", tmp_path / "page")
    assert {path.name for path in files} == {path.name for path in (tmp_path / "page").iterdir()}
    same_bits(load_labelled(tmp_path / "page").model, student.model)


def test_a_form_or_place_that_cannot_be(tiny_graph: Graph, tmp_path: Path) -> None:
    student = a_student(tiny_graph, "TransE")
    with pytest.raises(ConfigError, match="no form 'pdf': choose one of onnx, npz, arrays, pykeen, faiss, browser"):
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
