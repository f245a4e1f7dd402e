"""Answers to (h, r, ?) and (?, r, t): the right ones, in the right order, and questions that cannot be asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kgdistil import evaluation, kernels
from kgdistil.answer.predict import predict, similar, top
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples
from kgdistil.graph import Graph
from kgdistil.models import KGEModel, build_model


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
    table = predict(model, tiny_graph, relation=2, k=7, **given)
    assert list(table.columns) == ["rank", "entity", "name", "score"] and list(table["rank"]) == [1, 2, 3, 4, 5, 6, 7]
    expected = scores.sort(descending=True)
    assert list(table["entity"]) == [tiny_graph.entities[e] for e in expected.indices[:7].tolist()]
    np.testing.assert_allclose(table["score"], expected.values[:7], atol=1e-5)


def test_labels_and_ids_ask_the_same(tiny_graph: Graph, path: str) -> None:
    model = a_model(tiny_graph)
    assert predict(model, tiny_graph, relation="r1", head="e05").equals(predict(model, tiny_graph, relation=1, head=5))
    assert predict(model, tiny_graph, relation="r1", tail="e00").equals(predict(model, tiny_graph, relation=1, tail=0))


def test_more_answers_than_entities(tiny_graph: Graph, path: str) -> None:
    for k in (30, 31, 10**12):
        table = predict(a_model(tiny_graph), tiny_graph, relation=0, head=0, k=k)
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
        everything = predict(model, tiny_graph, relation=r, k=30, **given)
        new = predict(model, tiny_graph, relation=r, k=30, known=known, **given)
        assert taken and list(new["entity"]) == [e for e in everything["entity"] if e not in taken]
        assert list(new["rank"]) == list(range(1, 31 - len(taken)))


def test_nothing_is_left_where_everything_is_known(tiny_graph: Graph, path: str) -> None:
    triples = torch.tensor([[0, 0, t] for t in range(tiny_graph.num_entities)])
    known = KnownTriples(triples, tiny_graph.num_relations)
    assert len(predict(a_model(tiny_graph), tiny_graph, relation=0, head=0, known=known)) == 0


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


def test_names_for_people(tiny_graph: Graph) -> None:
    graph = replace(tiny_graph, descriptions={label: f"name of {label}" for label in tiny_graph.entities[:29]})
    table = predict(a_model(graph), graph, relation=0, head=0, k=30).set_index("entity")
    assert table.loc["e03", "name"] == "name of e03" and table.loc["e29", "name"] == "e29"


@pytest.mark.parametrize(
    "question, line",
    [
        ({"relation": 0}, "give exactly one of head and tail"),
        ({"relation": 0, "head": 0, "tail": 1}, "give exactly one of head and tail"),
        ({"relation": 0, "head": "e5"}, "no entity is called 'e5'; did you mean 'e"),
        ({"relation": "r11", "tail": 0}, "no relation is called 'r11'; did you mean 'r1'?"),
        (
            {"relation": 0, "head": "Berlin, the capital"},
            "no entity is called 'Berlin, the capital'; a label looks like",
        ),
        ({"relation": 0, "head": 30}, "entity id is 30; ids go from 0 to 29"),
        ({"relation": 0, "head": -1}, "entity id is -1; ids go from 0 to 29"),
        ({"relation": 4, "head": 0}, "relation id is 4; ids go from 0 to 3"),
        ({"relation": 0, "head": 0.0}, "no entity is called 0.0; "),
        ({"relation": 0, "head": 0, "k": 0}, "k is 0; it must be a whole number ≥ 1"),
        ({"relation": 0, "head": 0, "k": 2.5}, "k is 2.5; it must be a whole number ≥ 1"),
        ({"relation": 0, "head": 0, "k": "5"}, "k is '5'; it must be a whole number ≥ 1"),
    ],
)
def test_a_question_that_cannot_be_asked(tiny_graph: Graph, question: dict, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        predict(a_model(tiny_graph), tiny_graph, **question)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_a_model_of_another_graph(tiny_graph: Graph, umls: Graph) -> None:
    with pytest.raises(ConfigError, match="the model knows 135 entities and 46 relations, tiny has 30 and 4; give the"):
        predict(a_model(umls), tiny_graph, relation=0, head=0)


def test_a_batch_asks_each_of_its_queries(tiny_graph: Graph, path: str) -> None:
    model, heads = a_model(tiny_graph), [f"e{i:02}" for i in range(20)]
    table = predict(model, tiny_graph, head=heads, relation="r1", k=4)
    assert list(table["query"]) == [i for i in range(20) for _ in range(4)]
    for i, head in enumerate(heads):
        one = predict(model, tiny_graph, head=head, relation=1, k=4)
        rows = table[table["query"] == i]
        assert list(rows["entity"]) == list(one["entity"])
        np.testing.assert_allclose(rows["score"], one["score"], atol=1e-6)
    pairs = predict(model, tiny_graph, relation=[0, "r3"], tail=[5, 6], k=1, ids=True)
    assert [tiny_graph.entities[i] for i in pairs["id"]] == list(pairs["entity"])
    assert len(predict(model, tiny_graph, head=[], relation="r1")) == 0
    with pytest.raises(ConfigError, match="head and relation have different lengths: 2, 1"):
        predict(model, tiny_graph, head=[0, 1], relation=[0])


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
    table = predict(model, tiny_graph, head=3, tail="e08", k=3)
    assert list(table.columns) == ["rank", "relation", "score"]
    expected = scores.sort(descending=True)
    assert list(table["relation"]) == [tiny_graph.relations[r] for r in expected.indices[:3].tolist()]
    np.testing.assert_allclose(table["score"], expected.values[:3], atol=1e-5)
    h, _r, t = tiny_graph.train[0].tolist()
    known = KnownTriples(tiny_graph.known, tiny_graph.num_relations)
    there = {x for a, x, b in tiny_graph.known.tolist() if (a, b) == (h, t)}
    left = predict(model, tiny_graph, head=h, tail=t, known=known)
    assert set(left["relation"]) == {tiny_graph.relations[x] for x in range(4)} - {
        tiny_graph.relations[x] for x in there
    }


def test_probabilities_only_where_the_loss_gives_them(tiny_graph: Graph) -> None:
    for name in ("RotatE", "ComplEx"):
        table = predict(a_model(tiny_graph, name), tiny_graph, head=0, relation=0, probability=True)
        np.testing.assert_allclose(table["probability"], 1 / (1 + np.exp(-table["score"])), rtol=1e-6)
    with pytest.raises(ConfigError, match="margin loss, whose scores have no zero"):
        predict(a_model(tiny_graph, "TransE"), tiny_graph, head=0, relation=0, probability=True)


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
    here = predict(a_model(tiny_graph), tiny_graph, relation=1, head=7, known=known)
    there = predict(a_model(tiny_graph).cuda(), tiny_graph, relation=1, head=7, known=known)
    assert list(here["entity"]) == list(there["entity"])
    np.testing.assert_allclose(here["score"], there["score"], atol=1e-4)
