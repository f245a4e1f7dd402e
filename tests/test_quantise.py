"""Precisions: what is stored, what it costs, and students that come back from their folder as they went."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kgdistil
from kgdistil.answer.files import sealed, unsealed
from kgdistil.answer.format import CARD, HEADER, TRIPLES
from kgdistil.answer.student import load_student
from kgdistil.checkpoint import VERSION, WEIGHTS, read_tensors, write_tensors
from kgdistil.compress.packing import PRECISIONS, pack, quantised, size, unpack
from kgdistil.errors import CheckpointError, ConfigError, KgdistilError
from kgdistil.evaluation import evaluate
from kgdistil.graph import Graph
from kgdistil.models import MODELS, build_model
from kgdistil.students.labelled import Labelled, load_labelled
from kgdistil.students.precisions import compare_precisions


def a_model(graph: Graph, name: str = "RotatE", **options):
    options.setdefault("offset", 6.0 if name == "RotatE" else 0.0)
    return build_model(name, graph.num_entities, graph.num_relations, 4, seed=1, **options)


def test_int8_is_within_half_a_step(tiny_graph: Graph) -> None:
    model = a_model(tiny_graph)
    tables = dict(model.state_dict())
    tables["entities"][3] = 0  # a row of zeros has no scale of its own
    again = unpack(pack(model, "int8"), "int8", True)
    step = tables["entities"].abs().amax(1, keepdim=True) / 127
    assert ((again["entities"] - tables["entities"]).abs() <= step / 2 + 1e-7).all()
    assert (again["entities"][3] == 0).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_saved_student_answers_as_before(tmp_path: Path, tiny_graph: Graph, name: str, precision: str) -> None:
    student = Labelled(a_model(tiny_graph, name), tiny_graph, about={"trained": "alone"}).quantised(precision)
    student.save(tmp_path)
    again = load_labelled(tmp_path)
    assert again.precision == precision and again.about == {"trained": "alone"}
    assert again.graph.entities == tiny_graph.entities
    assert sorted(again.graph.train.tolist()) == sorted(tiny_graph.train.tolist())
    assert again.predict(head="e03", relation="r1", k=30).equals(student.predict(head="e03", relation="r1", k=30))
    found, wanted = again.evaluate(), evaluate(student.model, tiny_graph).metrics()
    assert all(found[side] == pytest.approx(wanted[side]) for side in wanted)
    assert sum(x.nbytes for x in load_student(tmp_path).packed().values()) == size(student.model, precision)
    assert f"{precision}: {size(student.model, precision):,} bytes" in (tmp_path / CARD).read_text()


def test_the_loss_is_measured(umls: Graph) -> None:
    model = a_model(umls, "ComplEx")
    table = compare_precisions(model, umls).set_index("precision")
    assert list(table.index) == list(PRECISIONS) and table["bytes"].is_monotonic_decreasing
    for precision in PRECISIONS:
        assert table["mrr"][precision] == evaluate(quantised(model, precision), umls).metrics()["both"]["mrr"]
    assert table["mrr_loss"]["float32"] == 0 and table["mrr_loss"].abs().max() < 0.02


def test_numbers_that_do_not_fit(tiny_graph: Graph) -> None:
    model = a_model(tiny_graph)
    with pytest.raises(ConfigError, match="precision is 'int4': choose one of"):
        quantised(model, "int4")
    with pytest.raises(ConfigError, match="1bit: it takes 4 floats at a time, which do not divide the 6 floats"):
        quantised(build_model("TransE", 30, 4, 6), "1bit")
    for value in (1e5, float("nan"), float("inf")):
        with torch.no_grad():
            model.entities[0, 0] = value
        with pytest.raises(ConfigError, match="needs finite numbers up to 65504"):
            quantised(model, "float16")


def test_rotate_with_the_euclidean_norm_is_not_mistaken_for_the_other(tmp_path: Path, tiny_graph: Graph) -> None:
    save_format_1(Labelled(a_model(tiny_graph, norm=2), tiny_graph), tmp_path)
    assert read_tensors(tmp_path / WEIGHTS)[1]["version"] == 2  # a version 1 reader would take it for norm 1
    assert load_student(tmp_path).weights.equation.norm == 2
    assert load_labelled(tmp_path).model.norm == 2


def test_without_its_triples_a_student_still_answers(tmp_path: Path, tiny_graph: Graph) -> None:
    Labelled(a_model(tiny_graph), tiny_graph).save(tmp_path)
    (tmp_path / TRIPLES).unlink()
    student = load_labelled(tmp_path)
    assert len(student.predict(head=0, relation=0, k=3, by="id")) == 3
    with pytest.raises(ConfigError, match="without its triples"):
        student.evaluate()


def test_a_newer_version_and_files_of_two_students(tmp_path: Path, tiny_graph: Graph, umls: Graph) -> None:
    for name, graph in (("a", tiny_graph), ("b", umls)):
        save_format_1(Labelled(a_model(graph), graph), tmp_path / name)
    (tmp_path / "a" / "model.json").write_bytes((tmp_path / "b" / "model.json").read_bytes())
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_labelled(tmp_path / "a")
    tensors, about = read_tensors(tmp_path / "b" / WEIGHTS)
    write_tensors(tmp_path / "b" / WEIGHTS, tensors, {**about, "version": VERSION + 1})
    with pytest.raises(
        CheckpointError, match=f"has version {VERSION + 1}; this kgdistil reads up to {VERSION}: update"
    ):
        load_labelled(tmp_path / "b")
    Labelled(a_model(umls), umls).save(tmp_path / "new")
    header = unsealed(json.loads((tmp_path / "new" / HEADER).read_text()))
    (tmp_path / "new" / HEADER).write_text(json.dumps(sealed({**header, "version": 4})))
    with pytest.raises(CheckpointError, match="has format 4; this kgdistil reads 1 to 3: update it"):
        load_student(tmp_path / "new")


def save_format_1(student: Labelled, folder: Path) -> None:
    """As earlier releases did, and as students of a class of one's own still are saved."""
    folder.mkdir(exist_ok=True)
    student._write(folder)


def damage(data: st.DataObject, content: bytes) -> bytes:
    """Cut, overwrite or insert somewhere."""
    at = data.draw(st.integers(0, len(content)))
    junk = data.draw(st.binary(max_size=20))
    return data.draw(
        st.sampled_from(
            [content[:at], content[:at] + junk + content[at + len(junk) :], content[:at] + junk + content[at:]]
        )
    )


@pytest.fixture(scope="module", params=[1, 2])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a student, of either format."""
    rows = torch.tensor([[0, 0, 1], [1, 0, 2], [2, 0, 0]])
    graph = Graph("three", rows, rows[:1], rows[1:2], ("a", "b", "ü"), ("r",), "1" * 64)
    folder = tmp_path_factory.mktemp("whole")
    student = Labelled(build_model("RotatE", 3, 1, 2), graph).quantised("int8")
    save_format_1(student, folder) if request.param == 1 else student.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".md"}


@settings(max_examples=450)
@given(st.data())
def test_a_damaged_student_is_one_line_or_still_works(tmp_path_factory, whole: dict[str, bytes], data) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    victim = data.draw(st.sampled_from(sorted(whole)))
    for path in folder.iterdir():
        path.unlink()
    for name, content in whole.items():
        (folder / name).write_bytes(damage(data, content) if name == victim else content)
    try:
        for student in (load_student(folder), load_labelled(folder)):
            student.predict(head=0, relation=0, by="id")
            student.evaluate()
    except KgdistilError as error:
        assert "\n" not in str(error)


@settings(max_examples=100)
@given(
    st.sampled_from(
        [
            "version",
            "model",
            "dim",
            "norm",
            "offset",
            "epsilon",
            "num_entities",
            "precision",
            "about",
            "entities",
            "relations",
            "names",
            "graph",
            "run_id",
            "graph_sha256",
            "files",
            "unseen",
            "reflexive",
            "rank",
            "num_relations",
        ]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x),
    ),
)
def test_any_value_in_a_description(tmp_path_factory, whole: dict[str, bytes], key: str, value) -> None:
    folder = tmp_path_factory.getbasetemp() / "described"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    if HEADER in whole:
        header = unsealed(json.loads((folder / HEADER).read_text()))
        (folder / HEADER).write_text(json.dumps(sealed({**header, key: value})))
    else:
        tensors, about = read_tensors(folder / WEIGHTS)
        write_tensors(folder / WEIGHTS, tensors, {**about, key: value})
        described = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**described, key: value}))
    try:
        asked = load_student(folder)
        asked.predict(head=0, relation=0, by="id")
        asked.card()
        student = load_labelled(folder)
        student.predict(head=0, relation=0, by="id")
        kgdistil.compare_precisions(student.model, student.graph)
    except KgdistilError as error:
        assert "\n" not in str(error)
