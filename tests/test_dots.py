"""Scores of ComplEx without autograd: `kgdistil.kernels.dots`, and what a step asks of a batch."""

import pytest
import torch

from kgdistil import kernels
from kgdistil.config import make_config
from kgdistil.graphs.queries import batch_of, queries_of
from kgdistil.kernels import dots_in
from kgdistil.models import ComplEx, build_model
from kgdistil.training.engine import make_engine

pytestmark = pytest.mark.skipif(kernels.compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def given(name: str, tails: int, rank: int = 0) -> tuple[ComplEx, dict[str, torch.Tensor], torch.Tensor]:
    """A model of dimension 6, leaves of a step of seven queries, nine candidates and three answers; most queries have
    one relation, and none has relation 1; the third entity is all zeros."""
    model, width = build_model(name, 9, 4, 6), rank or 12
    draw = torch.Generator().manual_seed(tails)
    sizes = {"rows": (9, width), "x": (7, width), "relations": tuple(model.relations.shape), "answers": (3, width)}
    sizes |= {"shared": (rank, 12)} if rank else {}
    leaves = {leaf: torch.randn(*size, generator=draw) for leaf, size in sizes.items()}
    leaves["x"][2] = 0
    return model, {leaf: x.requires_grad_() for leaf, x in leaves.items()}, torch.tensor([2, 2, 0, 2, 2, 3, 2])


@pytest.mark.parametrize("name", ["ComplEx", "ReciprocalComplEx"])
@pytest.mark.parametrize("tails", [0, 3, 7])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("penalised", [True, False])
@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_gradients_are_those_of_autograd(
    name: str, tails: int, threads: int, penalised: bool, rank: int, weight: float
) -> None:
    model, leaves, ids = given(name, tails, rank)
    rows, x, relations, answers, *shared = leaves.values()
    torch.set_num_threads(threads)
    dots = dots_in(model, x, relations, ids, tails, rows, *shared)
    assert dots is not None
    counts, begins, by = torch.tensor([1, 2, 1, 1, 3, 1, 1]), torch.tensor([0, 4, 9, 10]), 0.3
    through = shared[0] if shared else torch.eye(12)
    (a, b), (c, d) = (y.tensor_split([tails]) for y in (x @ through, relations[ids]))
    scores = torch.cat([model.query(a, c, "tail"), model.query(b, d, "head")]) @ through.T @ rows.T
    torch.testing.assert_close(dots.scores, scores.detach())
    upstream = torch.randn(7, 9, generator=torch.Generator().manual_seed(1))
    total = (scores * upstream).sum()
    if penalised:
        own, others = counts / 10, torch.tensor([4, 5, 1]) / 10
        n3 = (own * (model.entity_penalty(x @ through) + model.relation_penalty(relations[ids]))).sum()
        n3 = n3 + (others * model.entity_penalty(answers @ through)).sum()
        torch.testing.assert_close(dots.penalty(counts, answers.detach(), begins, by), n3.detach())
        total = total + by * n3
    if weight:  # of triples with the answers, in this order, of seven queries with as many as `counts` says
        answer = torch.tensor([0, 1, 2, 1, 0, 1, 1, 0, 0, 1])
        row, order = torch.arange(7).repeat_interleave(counts), answer.sort(stable=True).indices
        of_queries = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        pair = (x @ through)[row], (answers @ through)[answer]
        heads, target = row >= tails, ids[row]
        if model.directed:
            target = target + heads * len(relations)
        else:
            pair = tuple(torch.where(heads[:, None], *y) for y in (pair[::-1], pair))
        predicted = model.between(*pair) @ model.directions(relations).T
        loss = torch.nn.functional.cross_entropy(predicted, target)
        triples = of_queries, row, answer, order, begins
        torch.testing.assert_close(dots.relation_loss(triples, answers.detach(), weight), loss.detach())
        total = total + weight * loss
    total.backward()
    found = {leaf: y.detach().clone().requires_grad_() for leaf, y in leaves.items()}
    found["x"].grad = torch.ones_like(x)  # what there is stays
    dots.give(upstream, *found.values())
    torch.testing.assert_close(found["x"].grad - 1, x.grad, rtol=1e-5, atol=1e-5)
    assert not any(y.grad.requires_grad for y in found.values() if y.grad is not None), (
        "their sums of squares would keep every step"
    )
    for leaf in (name for name in leaves if name != "x"):
        torch.testing.assert_close(found[leaf].grad, leaves[leaf].grad, rtol=1e-5, atol=1e-5)


def test_products_of_bfloat16_are_near() -> None:
    model, leaves, ids = given("ComplEx", 3)
    rows, x, relations, answers = (y.detach() for y in leaves.values())
    exact, half = (dots_in(model, x, relations, ids, 3, rows.to(dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert exact is not None and half is not None and half.scores.dtype == torch.bfloat16
    torch.testing.assert_close(half.scores.float(), exact.scores, rtol=2**-5, atol=2**-3)
    upstream, found = torch.randn(7, 9, generator=torch.Generator().manual_seed(1)), []
    for dots in (exact, half):
        found.append([y.clone().requires_grad_() for y in (rows.to(dots.scores.dtype), x, relations, answers)])
        dots.give(upstream.to(dots.scores.dtype), *found[-1])
    for own, other in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(other.grad.float(), own.grad, rtol=2**-5, atol=2**-3)
        assert own.grad.abs().sum() > 1


def test_other_models_are_left_to_autograd(monkeypatch) -> None:
    class Own(ComplEx):
        def query(self, anchor: torch.Tensor, r: torch.Tensor, side: str) -> torch.Tensor:
            return anchor

    x, ids = torch.zeros(2, 12), torch.zeros(2, dtype=torch.int64)
    for model in (Own(9, 3, 6), build_model("DistMult", 9, 3, 12), build_model("TransE", 9, 3, 12)):
        assert dots_in(model, x, model.relations.data, ids, 1, x) is None
    model = build_model("ComplEx", 9, 3, 6)
    assert dots_in(model, x, torch.zeros(3, 12).double(), ids, 1, x) is None
    assert dots_in(model, x, model.relations.data, ids, 1, x) is not None
    monkeypatch.setattr(kernels.rows, "compiled", lambda *_: None)
    assert dots_in(model, x, model.relations.data, ids, 1, x) is None


@pytest.mark.parametrize("name", ["ComplEx", "ReciprocalComplEx"])
@pytest.mark.parametrize(
    "more",
    [
        {"penalty": 0.03},
        {"penalty": 0.03, "accumulators": "row", "unlabelled": 0.5, "role": "stage1", "teacher": "x"},
        {"penalty": 0.0, "group": 2, "role": "stage1", "teacher": "x", "alpha": 0.7, "temperature": 2.0},
        {"penalty": 0.03, "relation_weight": 0.2, "group": 4},
        {"penalty": 0.03, "regulariser": "dura", "relation_weight": 0.1},
        {"penalty": 0.01, "role": "stage2", "teacher": "x", "student": "y", "beta": 0.3},
        {"penalty": 0.03, "rank": 5, "group": 1, "role": "stage1", "teacher": "x", "relation_weight": 0.1},
    ],
)
def test_a_step_is_that_of_autograd(umls, monkeypatch, name: str, more: dict) -> None:
    config = make_config(
        dataset="umls", model=name, dim=6, loss="softmax", lr=0.05, negatives=30, batch_size=40, **more
    )
    found, taken = [], list[bool]()
    for left in (False, True):
        own = (
            (lambda *_: None) if left else (lambda *given: taken.append(dots_in(*given) is not None) or dots_in(*given))
        )
        monkeypatch.setattr(kernels, "dots_in", own)
        sizes = umls.num_entities, umls.num_relations, 6
        models = [build_model(name, *sizes, seed=seed, rank=rank) for seed, rank in ((0, more.get("rank", 0)), (1, 0))]
        engine = make_engine(models[0], models[1] if "teacher" in more else None, config, umls)
        engine.half = torch.float32
        losses = engine.epoch(0, torch.full((engine.steps,), 0.05))
        assert not any(x.requires_grad for x in engine.moments.values())
        found.append((losses, [x.data for model in models for x in model.parameters()]))
    assert taken and all(taken)
    (own, mine), (others, theirs) = found
    assert own == pytest.approx(others, rel=1e-3)
    for a, b in zip(mine, theirs, strict=True):
        assert float((a - b).abs().mean()) < 1e-3 * float(b.abs().mean())


def test_a_batch_is_the_same_compiled_and_readable(umls, monkeypatch) -> None:
    queries = queries_of(umls.train, 16)
    ids = torch.randperm(len(queries[0]), generator=torch.Generator().manual_seed(0))[:70]
    compiled = batch_of(queries, ids)
    monkeypatch.setattr(kernels.ids, "compiled", lambda *_: None)
    readable = batch_of(queries, ids)
    for name, a, b in zip(compiled._fields, compiled, readable, strict=True):
        assert a == b if name == "tails" else torch.equal(a, b), name
    assert 0 < compiled.tails < 70 and not queries[2][compiled.ids[: compiled.tails]].any()
    assert compiled.begins.diff().tolist() == compiled.counts.tolist() and compiled.begins[0] == 0
    known = {tuple(row) for row in umls.train.tolist()}
    for i, answer in zip(compiled.row.tolist(), compiled.answers.tolist(), strict=True):
        anchor, relation = int(compiled.anchor[i]), int(compiled.relation[i])
        assert ((anchor, relation, answer) if i < compiled.tails else (answer, relation, anchor)) in known


def test_ids_outside_a_table_are_refused(umls) -> None:
    """Compiled functions would read, and write, beyond it."""
    config = make_config(dataset="umls", model="ComplEx", dim=4, loss="softmax", negatives=30, batch_size=400)
    for sizes in ((40, umls.num_relations), (umls.num_entities, 3)):
        engine = make_engine(build_model("ComplEx", *sizes, 4), None, config, umls)
        with pytest.raises(IndexError):
            engine.epoch(0, torch.full((engine.steps,), 0.05))
    model, leaves, ids = given("ReciprocalComplEx", 3)
    rows, x, relations, _ = (y.detach() for y in leaves.values())
    for wrong in (-1, 4):
        with pytest.raises(IndexError, match="outside its table"):
            dots_in(model, x, relations, ids.index_fill(0, torch.tensor([5]), wrong), 3, rows)
        for dtype in (torch.float32, torch.bfloat16):
            with pytest.raises(IndexError, match="outside its table"):
                kernels.rows_in(dtype, relations, torch.tensor([0, wrong]))


def test_what_is_asked_of_columns_with_gaps_is_the_same(umls) -> None:
    queries = [x.repeat_interleave(2)[::2] if x.dtype == torch.bool else x for x in queries_of(umls.train)]
    answers = queries[5].repeat_interleave(2)[::2]
    ids = torch.arange(0, len(queries[0]), 7)
    found, expected = batch_of([*queries[:5], answers], ids), batch_of(queries_of(umls.train), ids)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if torch.is_tensor(a))
    assert found.tails == expected.tails
