"""A student answers as the model did in training: every model, every precision, ties and what may not come included."""

from pathlib import Path

import numpy as np
import pytest
import torch

import kgdistil
from kgdistil.answer import format as layout
from kgdistil.answer.equations import equation
from kgdistil.answer.files import sealed, write_json
from kgdistil.compress.size import GROUPS, PRECISIONS
from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.graph import Graph
from kgdistil.models import MODELS, build_model


def labelled(graph: Graph, name: str, precision: str, norm: int = 1) -> kgdistil.Labelled:
    """A model in which every third entity is the twin of the one before it, so that answers tie."""
    low = {"rank": 8} if name.startswith("LowRank") else {}
    sizes = graph.num_entities, graph.num_relations
    model = build_model(name, *sizes, 8, seed=3, norm=norm, offset=0.0 if "ComplEx" in name else 5.0, **low)
    with torch.no_grad():
        model.entities.mul_(3)
        model.entities[2::3] = model.entities[1::3][: len(model.entities[2::3])]
    return kgdistil.Labelled(model, graph).quantised(precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name, norm",
    [*((name, 1) for name in MODELS), ("LowRankComplEx", 1), ("LowRankReciprocal", 1), ("TransE", 2), ("RotatE", 2)],
)
def test_the_answers_of_training(umls: Graph, tmp_path: Path, name: str, norm: int, precision: str) -> None:
    trained = labelled(umls, name, precision, norm)
    trained.save(tmp_path / "s")
    student = kgdistil.load_student(tmp_path / "s")
    exact = precision in GROUPS and name != "TransH" and (name, precision) != ("RotatE", "4bit")  # which are decoded
    asked = list(range(0, umls.num_entities, 9))
    queries = [{"head": asked}, {"tail": asked}, {"head": asked, "new": True}]
    for query in queries:
        told = {"relation": 4, "k": umls.num_entities, "by": "id", "ids": True, **query}
        ours, theirs = student.predict(**told), trained.predict(**told)
        assert ours["query"] == theirs["query"].tolist() and ours["rank"] == theirs["rank"].tolist()
        if exact:
            assert ours["id"] == theirs["id"].tolist() and ours["score"] == theirs["score"].tolist()
            continue
        by_id = [dict(zip(zip(x["query"], x["id"]), x["score"])) for x in (ours, theirs)]
        assert by_id[0].keys() == by_id[1].keys()
        np.testing.assert_allclose([by_id[0][key] for key in by_id[1]], list(by_id[1].values()), rtol=1e-5, atol=1e-5)
    both = {"head": asked, "tail": asked[::-1], "by": "id", "ids": True, "k": 5}
    ours, theirs = student.predict(**both), trained.predict(**both)
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-5, atol=1e-5)
    found, wanted = student.evaluate()["both"], trained.evaluate()["both"]
    assert found == pytest.approx(wanted, abs=2e-3, rel=2e-3)


def test_twins_tie_and_the_lower_number_comes_first(umls: Graph) -> None:
    student = labelled(umls, "ComplEx", "2bit").student()
    answers = student.predict(head=0, relation=4, k=umls.num_entities, by="id", ids=True)
    place = {entity: rank for rank, entity in enumerate(answers["id"])}
    twins = [(i, i + 1) for i in range(1, umls.num_entities - 1, 3)]
    assert all(answers["score"][place[a]] == answers["score"][place[b]] and place[a] < place[b] for a, b in twins)


def test_without_the_compiled_scanner_the_answers_are_the_same(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    query = {"head": list(range(30)), "relation": 4, "k": 9, "by": "id", "ids": True}
    for precision in ("2bit", "int8"):
        wanted = labelled(umls, "RotatE", precision).student().predict(**query)
        monkeypatch.setenv("KGDISTIL_NATIVE", "0")
        found = labelled(umls, "RotatE", precision).student().predict(**query)
        monkeypatch.delenv("KGDISTIL_NATIVE")
        assert found["id"] == wanted["id"]
        np.testing.assert_allclose(found["score"], wanted["score"], rtol=0 if precision == "2bit" else 1e-5)


def test_the_querys_own_entity_is_no_answer_unless_its_relation_is_reflexive(tiny_graph: Graph) -> None:
    loops = tiny_graph.train[tiny_graph.train[:, 0] == tiny_graph.train[:, 2], 1].tolist()
    student = labelled(tiny_graph, "DistMult", "float32").student()
    assert 0 < len(set(loops)) < tiny_graph.num_relations
    for relation in range(tiny_graph.num_relations):
        answers = student.predict(head=7, relation=relation, k=30, by="id", ids=True)
        assert (7 in answers["id"]) == (relation in loops)


@pytest.mark.parametrize("name", [layout.WEIGHTS, layout.LABELS, layout.TRIPLES])
@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_that_shrinks_or_changes_while_it_is_open(
    umls: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mapped: bool
) -> None:
    """A mapped one is one line; a small one was read, and answers as before."""
    monkeypatch.setattr(layout, "SMALL", 0 if mapped else layout.SMALL)
    labelled(umls, "ComplEx", "2bit").save(tmp_path / "s")
    uses = [
        lambda s: s.predict(head="virus", relation="causes").rows(),
        lambda s: s.entities.find("fungus"),
        lambda s: list(s.entities),
        lambda s: s.predict(head="virus", relation="causes", new=True).rows(),
        lambda s: s.triples.of("train").tolist(),
        lambda s: s.labels(),
    ]
    whole = (tmp_path / "s" / name).read_bytes()
    for change in (lambda file: file.truncate(10), lambda file: file.write(bytes(64))):
        student = kgdistil.load_student(tmp_path / "s")
        before = [use(student) for use in uses]
        with (tmp_path / "s" / name).open("r+b") as file:
            change(file)
        touched = 0
        for use, wanted in zip(uses, before):
            try:
                assert use(student) == wanted
            except CheckpointError as error:
                assert mapped and name in str(error) and "since it was opened" in str(error)
                touched += 1
        assert bool(touched) == mapped
        if mapped:
            with pytest.raises(CheckpointError):
                student.save(tmp_path / "copy")
        (tmp_path / "s" / name).write_bytes(whole)


CHANGES = [
    {"offset": 10**400},
    {"epsilon": -(10**400)},
    {"offset": 0.0, "epsilon": 5e-324},
    {"num_entities": 0},
    {"num_relations": 0},
    {"offset": 1e300},
    {"version": 10**400},
    {"model": 9999 * "M"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda x: str(x)[:40])
def test_a_header_that_cannot_be_is_one_line(umls: Graph, tmp_path: Path, change: dict) -> None:
    labelled(umls, "RotatE", "float32").save(tmp_path)
    header = {**layout.read_header(tmp_path), "version": layout.VERSION, **change}
    write_json(tmp_path / layout.HEADER, sealed(header))
    with pytest.raises(CheckpointError) as caught:
        kgdistil.load_student(tmp_path).predict(head=0, relation=1, by="id")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [layout.WEIGHTS, layout.LABELS, layout.TRIPLES])
def test_a_size_of_many_digits_is_one_line(umls: Graph, tmp_path: Path, name: str) -> None:
    labelled(umls, "ComplEx", "2bit").save(tmp_path)
    header = layout.read_header(tmp_path)
    header["files"][name]["bytes"] = 10**400
    layout.write_header(tmp_path, header)
    with pytest.raises(CheckpointError, match="bytes where 1000") as caught:
        kgdistil.load_student(tmp_path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [layout.WEIGHTS, layout.LABELS, layout.TRIPLES])
@pytest.mark.parametrize("wrong", [10**400, 10**30, -64, 1 << 40])
def test_arrays_that_lie_elsewhere_are_one_line(umls: Graph, tmp_path: Path, name: str, wrong: int) -> None:
    labelled(umls, "ComplEx", "2bit").save(tmp_path)
    header = layout.read_header(tmp_path)
    for array in header["files"][name]["arrays"]:
        for spoil in (
            lambda x: [x[0], x[1], wrong],
            lambda x: [x[0], [wrong, *x[1][1:]], x[2]],
            lambda x: [x[0], [], x[2]],
        ):
            files = {key: {**about, "arrays": dict(about["arrays"])} for key, about in header["files"].items()}
            files[name]["arrays"][array] = spoil(files[name]["arrays"][array])
            layout.write_header(tmp_path, {**header, "files": files})
            with pytest.raises(CheckpointError) as caught:
                kgdistil.load_student(tmp_path).predict(head=0, relation=1, by="id", new=True)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_only_a_students_own_files_are_opened(umls: Graph, tmp_path: Path) -> None:
    labelled(umls, "ComplEx", "2bit").save(tmp_path / "s")
    header = layout.read_header(tmp_path / "s")
    files = {**header["files"], "../secret": header["files"][layout.LABELS]}
    layout.write_header(tmp_path / "s", {**header, "files": files})
    with pytest.raises(CheckpointError, match="files"):
        kgdistil.load_student(tmp_path / "s")


def test_numbers_that_are_not_finite_are_refused(umls: Graph, tmp_path: Path) -> None:
    labelled(umls, "ComplEx", "float32").save(tmp_path)
    student = kgdistil.load_student(tmp_path)
    arrays = {name: x.copy() for name, x in student.weights.arrays.items()}
    arrays["relations"][3, 2] = np.nan
    (tmp_path / layout.WEIGHTS).unlink()
    files = {**student.header["files"], layout.WEIGHTS: layout.write_arrays(tmp_path / layout.WEIGHTS, arrays)}
    layout.write_header(tmp_path, {**student.header, "files": files})
    with pytest.raises(CheckpointError, match="not finite"):
        kgdistil.load_student(tmp_path).predict(head=0, relation=1, by="id")


def test_a_folder_that_is_replaced_leaves_who_has_it_open_alone(umls: Graph, tmp_path: Path) -> None:
    labelled(umls, "ComplEx", "2bit").save(tmp_path / "s")
    student = kgdistil.load_student(tmp_path / "s")
    before = student.predict(head=0, relation=1, by="id").rows()
    labelled(umls, "DistMult", "int8").save(tmp_path / "s")
    assert student.predict(head=0, relation=1, by="id").rows() == before
    assert kgdistil.load_student(tmp_path / "s").model == "DistMult"


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3"])
def test_a_number_of_answers_that_is_none(tiny_graph: Graph, k: object) -> None:
    student = labelled(tiny_graph, "DistMult", "float32").student()
    with pytest.raises(ConfigError, match="whole number ≥ 1"):
        student.predict(head=0, relation=0, by="id", k=k)
    assert len(student.predict(head=0, relation=0, by="id", k=10**6)) >= tiny_graph.num_entities - 1


@pytest.mark.parametrize("rank", [7, 32])
def test_low_rank_queries_are_the_same_asked_alone_and_together(rank: int) -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((rank, 80)).astype(np.float32)
    query = equation("LowRankComplEx", 40, shared=shared).query
    a, r = (rng.standard_normal((50, n)).astype(np.float32) for n in (rank, 80))
    together = query(a, r, "tail")
    assert all(np.array_equal(together[i], query(a[i : i + 1], r[i : i + 1], "tail")[0]) for i in range(50))
