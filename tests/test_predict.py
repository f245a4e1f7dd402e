"""Answers to (h, r, ?) and (?, r, t): the right ones, in the right order, and questions that cannot be asked."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kgdistil import evaluation, kernels
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples
from kgdistil.graph import Graph
from kgdistil.models import KGEModel, build_model
from kgdistil.students.predict import predict, similar, top


@pytest.fixture(params=["compiled", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to an answer."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "usable", lambda *_: False)
    elif kernels.compiler() is None:
        pytest.skip("no C++ compiler: the compiled path is not there")
    return request.param


def a_model(graph: Graph, name: str = "RotatE") -> KGEModel:
    return build_model(name, graph.num_entities, graph.num_relations, 4, seed=1, offset=6.0 if name == "RotatE" else 0)


def by_hand(model: KGEModel, graph: Graph, r: int, head: int | None = None, tail: int | None = None) -> torch.Tensor:
    """Scores [E] of every candidate, one triple at a time."""
    return torch.stack(
        [
            model.score_triples(torch.tensor([[e if head is None else head, r, e if tail is None else tail]]))[0]
            for e in range(graph.num_entities)
        ]
    ).detach()


@pytest.mark.parametrize("name", ["RotatE", "TransE"])
@pytest.mark.parametrize("given", [{"head": 3}, {"tail": 3}])
def test_the_best_answers_in_order(tiny_graph: Graph, path: str, name: str, given: dict) -> None:
    model = a_model(tiny_graph, name)
    scores = by_hand(model, tiny_graph, 2, **given)
    table = predict(model, tiny_graph, relation=2, k=7, by="id", **given)
    assert list(table.columns) == ["rank", "entity", "name", "score"] and list(table["rank"]) == [1, 2, 3, 4, 5, 6, 7]
    expected = scores.sort(descending=True)
    assert list(table["entity"]) == [tiny_graph.entities[e] for e in expected.indices[:7].tolist()]
    np.testing.assert_allclose(table["score"], expected.values[:7], atol=1e-5)


def test_labels_and_ids_ask_the_same(tiny_graph: Graph, path: str) -> None:
    model = a_model(tiny_graph)
    for labels, ids in (({"head": "e05"}, {"head": 5}), ({"tail": "e00"}, {"tail": np.int32(0)})):
        by_label = predict(model, tiny_graph, relation="r1", **labels)
        assert by_label.equals(predict(model, tiny_graph, relation=1, by="id", **ids))


def test_more_answers_than_entities(tiny_graph: Graph, path: str) -> None:
    for k in (30, 31, 10**12):
        table = predict(a_model(tiny_graph), tiny_graph, relation=0, head=0, k=k, by="id")
        assert sorted(table["entity"]) == sorted(tiny_graph.entities)
        assert table["score"].is_monotonic_decreasing


def test_known_triples_are_left_out(tiny_graph: Graph, path: str) -> None:
    model, known = a_model(tiny_graph), KnownTriples(tiny_graph.known, tiny_graph.num_relations)
    triples = tiny_graph.known.tolist()
    h, r, t = triples[0]
    for given, answers in (
        ({"head": h}, {x[2] for x in triples if x[:2] == [h, r]}),
        ({"tail": t}, {x[0] for x in triples if x[1:] == [r, t]}),
    ):
        taken = {tiny_graph.entities[e] for e in answers}
        everything = predict(model, tiny_graph, relation=r, k=30, by="id", **given)
        new = predict(model, tiny_graph, relation=r, k=30, known=known, by="id", **given)
        assert taken and list(new["entity"]) == [e for e in everything["entity"] if e not in taken]
        assert list(new["rank"]) == list(range(1, 31 - len(taken)))


def test_nothing_is_left_where_everything_is_known(tiny_graph: Graph, path: str) -> None:
    triples = torch.tensor([[0, 0, t] for t in range(tiny_graph.num_entities)])
    known = KnownTriples(triples, tiny_graph.num_relations)
    assert len(predict(a_model(tiny_graph), tiny_graph, relation=0, head=0, known=known, by="id")) == 0


@pytest.mark.parametrize("name", ["RotatE", "TransE"])
@pytest.mark.parametrize("side", ["head", "tail"])
def test_both_paths_agree(umls: Graph, monkeypatch: pytest.MonkeyPatch, name: str, side: str) -> None:
    if kernels.compiler() is None:
        pytest.skip("no C++ compiler: the compiled path is not there")
    model, known = a_model(umls, name), KnownTriples(umls.known, umls.num_relations)
    anchor, relation = torch.arange(60) % umls.num_entities, torch.arange(60) % umls.num_relations
    compiled = top(model, anchor, relation, side, 20, known)
    monkeypatch.setattr(kernels, "usable", lambda *_: False)
    readable = top(model, anchor, relation, side, 20, known)
    torch.testing.assert_close(compiled[0], readable[0], atol=1e-5, rtol=1e-5)
    assert (compiled[1] == readable[1]).float().mean() > 0.99  # near ties may change places


def test_whole_numbers_are_labels_unless_ids_are_asked_for(tiny_graph: Graph) -> None:
    """Sorted as text, "10" comes before "2", whose id is therefore another number."""
    graph = replace(tiny_graph, entities=tuple(sorted(str(i) for i in range(30))), relations=("0", "1", "2", "3"))
    model = a_model(graph)
    of_2 = predict(model, graph, head="2", relation="1", k=30)
    at = graph.entities.index("2")
    assert at != 2 and of_2.equals(predict(model, graph, head=at, relation=1, k=30, by="id"))
    for number in (2, np.int64(2), np.uint8(2), torch.tensor(2)):
        assert predict(model, graph, head=number, relation=1, k=30).equals(of_2)
    assert similar(model, graph, 2).equals(similar(model, graph, "2"))


@pytest.mark.parametrize("kind", [tuple, np.array, pd.Series, pd.Index, torch.tensor, iter])
def test_whatever_can_be_listed_is_a_list(tiny_graph: Graph, kind: Callable) -> None:
    graph = replace(tiny_graph, entities=tuple(f"{i:02}" for i in range(30)))
    model, ids = a_model(graph), [4, 7, 29]
    expected = predict(model, graph, head=[f"{i:02}" for i in ids], relation="r1", k=3)
    assert predict(model, graph, head=kind(ids), relation=1, k=3, by="id").equals(expected)
    if kind is not torch.tensor:
        assert predict(model, graph, head=kind(["04", "07", "29"]), relation="r1", k=3).equals(expected)


@pytest.mark.parametrize("head", [pd.NA, pd.Series(["e01", pd.NA], dtype="string"), {"e01", "e02"}, {"e01": 1}])
def test_what_is_no_label_and_no_list_is_one_line(tiny_graph: Graph, head: object) -> None:
    with pytest.raises(ConfigError):
        predict(a_model(tiny_graph), tiny_graph, head=head, relation="r1")


def test_what_was_never_trained_is_marked_and_answers_only_on_request(tiny_graph: Graph) -> None:
    train = tiny_graph.train
    graph = replace(tiny_graph, train=train[(train[:, [0, 2]] != 5).all(1) & (train[:, 1] != 3)])
    model = a_model(graph)
    for question in ({"head": "e05", "relation": "r1"}, {"tail": ["e01", "e05"], "relation": "r1"}):
        with pytest.raises(ConfigError, match="the entity 'e05' stands in no training triple"):
            predict(model, graph, **question)
        assert len(predict(model, graph, unseen=True, **question))
    with pytest.raises(ConfigError, match="the relation 'r3' stands in no training triple"):
        predict(model, graph, head="e01", relation="r3")
    with pytest.raises(ConfigError, match="the entity 'e05' stands in no training triple"):
        similar(model, graph, "e05")
    answers = predict(model, graph, head="e01", relation="r1", k=30)
    assert list(answers[answers["unseen"]]["entity"]) == ["e05"]
    relations = predict(model, graph, head="e01", tail="e02")
    assert list(relations[relations["unseen"]]["relation"]) == ["r3"]
    nothing = replace(graph, train=train[:0])  # a student that came without its triples cannot know
    assert "unseen" not in predict(model, nothing, head="e05", relation="r3", k=30)


def test_names_for_people(tiny_graph: Graph) -> None:
    graph = replace(tiny_graph, descriptions={label: f"name of {label}" for label in tiny_graph.entities[:29]})
    table = predict(a_model(graph), graph, relation="r0", head="e00", k=30).set_index("entity")
    assert table.loc["e03", "name"] == "name of e03" and table.loc["e29", "name"] == "e29"


@pytest.mark.parametrize(
    "question, line",
    [
        ({"relation": "r0"}, "give exactly one of head and tail"),
        ({"relation": 0, "head": 0, "tail": 1}, "give exactly one of head and tail"),
        ({"relation": "r0", "head": "e5"}, "no entity is called 'e5'; did you mean 'e"),
        ({"relation": "r11", "tail": "e00"}, "no relation is called 'r11'; did you mean 'r1'?"),
        (
            {"relation": "r0", "head": "Berlin, the capital"},
            "no entity is called 'Berlin, the capital'; a label looks like",
        ),
        ({"relation": 0, "by": "id", "head": 30}, "entity id is 30; ids go from 0 to 29"),
        ({"relation": 0, "by": "id", "head": -1}, "entity id is -1; ids go from 0 to 29"),
        ({"relation": 4, "head": 0, "by": "id"}, "relation id is 4; ids go from 0 to 3"),
        ({"relation": "r0", "head": 0.0}, "no entity is called 0.0; "),
        ({"relation": "r0", "head": 0}, "no entity is called '0'; "),
        ({"relation": "r0", "head": True}, "no entity is called True; "),
        ({"relation": 0, "head": "e05", "by": "id"}, "entity id is 'e05'; ids go"),
        ({"relation": "r0", "head": "e05", "by": "number"}, "by is 'number'"),
        ({"relation": "r0", "head": 10**5000}, "no entity has a number of more than 18 digits"),
        ({"relation": "r0", "head": "e00", "k": 0}, "k is 0; it must be a whole number ≥ 1"),
        ({"relation": "r0", "head": "e00", "k": 2.5}, "k is 2.5; it must be a whole number ≥ 1"),
        ({"relation": "r0", "head": "e00", "k": "5"}, "k is '5'; it must be a whole number ≥ 1"),
    ],
)
def test_a_question_that_cannot_be_asked(tiny_graph: Graph, question: dict, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        predict(a_model(tiny_graph), tiny_graph, **question)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_a_model_of_another_graph(tiny_graph: Graph, umls: Graph) -> None:
    with pytest.raises(ConfigError, match="the model knows 135 entities and 46 relations, tiny has 30 and 4; give the"):
        predict(a_model(umls), tiny_graph, relation="r0", head="e00")


def test_a_batch_asks_each_of_its_queries(tiny_graph: Graph, path: str) -> None:
    model, heads = a_model(tiny_graph), [f"e{i:02}" for i in range(20)]
    table = predict(model, tiny_graph, head=heads, relation="r1", k=4)
    assert list(table["query"]) == [i for i in range(20) for _ in range(4)]
    for i, head in enumerate(heads):
        one = predict(model, tiny_graph, head=head, relation="r1", k=4)
        rows = table[table["query"] == i]
        assert list(rows["entity"]) == list(one["entity"])
        np.testing.assert_allclose(rows["score"], one["score"], atol=1e-6)
    pairs = predict(model, tiny_graph, relation=["r0", "r3"], tail=["e05", "e06"], k=1, ids=True)
    assert [tiny_graph.entities[i] for i in pairs["id"]] == list(pairs["entity"])
    assert len(predict(model, tiny_graph, head=[], relation="r1")) == 0
    with pytest.raises(ConfigError, match="head and relation have different lengths: 2, 1"):
        predict(model, tiny_graph, head=["e00", "e01"], relation=["r0"])


def test_many_queries_stay_within_the_memory_limit(
    tiny_graph: Graph, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, anchor = a_model(tiny_graph), torch.arange(30)
    whole = top(model, anchor, anchor % 4, "tail", 30)
    monkeypatch.setattr(evaluation, "MEMORY_LIMIT", 12 * 30 * 7 * 2)  # seven queries at a time
    parts = top(model, anchor, anchor % 4, "tail", 30)
    torch.testing.assert_close(parts[0], whole[0])


@pytest.mark.parametrize("name", ["RotatE", "TransE", "ComplEx"])
def test_the_relation_between_two_entities(tiny_graph: Graph, name: str) -> None:
    model = a_model(tiny_graph, name)
    scores = torch.stack([model.score_triples(torch.tensor([[3, r, 8]]))[0] for r in range(4)]).detach()
    table = predict(model, tiny_graph, head="e03", tail="e08", k=3)
    assert list(table.columns) == ["rank", "relation", "score"]
    expected = scores.sort(descending=True)
    assert list(table["relation"]) == [tiny_graph.relations[r] for r in expected.indices[:3].tolist()]
    np.testing.assert_allclose(table["score"], expected.values[:3], atol=1e-5)
    h, _r, t = tiny_graph.train[0].tolist()
    known = KnownTriples(tiny_graph.known, tiny_graph.num_relations)
    there = {x for a, x, b in tiny_graph.known.tolist() if (a, b) == (h, t)}
    left = predict(model, tiny_graph, head=h, tail=t, known=known, by="id")
    assert set(left["relation"]) == {tiny_graph.relations[x] for x in range(4)} - {
        tiny_graph.relations[x] for x in there
    }


def test_similar_entities(tiny_graph: Graph) -> None:
    model = a_model(tiny_graph)
    with torch.no_grad():
        model.entities[7] = 3 * model.entities[4]
    table = similar(model, tiny_graph, "e04", k=40)
    assert table["entity"][0] == "e07" and table["cosine"][0] == pytest.approx(1)
    assert sorted([*table["entity"], "e04"]) == sorted(tiny_graph.entities)


@pytest.mark.gpu
def test_a_model_on_a_gpu_answers_as_on_the_cpu(tiny_graph: Graph) -> None:
    known = KnownTriples(tiny_graph.known, tiny_graph.num_relations)
    here = predict(a_model(tiny_graph), tiny_graph, relation=1, head=7, known=known, by="id")
    there = predict(a_model(tiny_graph).cuda(), tiny_graph, relation=1, head=7, known=known, by="id")
    assert list(here["entity"]) == list(there["entity"])
    np.testing.assert_allclose(here["score"], there["score"], atol=1e-4)
