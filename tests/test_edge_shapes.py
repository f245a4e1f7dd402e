"""Every kernel at the shapes where an index goes wrong: one entity, one more or less than a vector or a block holds.

`make sanitize` runs this file with the kernels under AddressSanitizer and UBSan.
"""

import math

import numpy as np
import pytest
import torch

from kgdistil import kernels
from kgdistil.answer import native
from kgdistil.compress.product import assign, codes_of, rows_in, rows_of, straight_through
from kgdistil.config import make_config
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.kernels import pairs
from kgdistil.models import KGEModel, build_model
from kgdistil.training.engine import make_engine

pytestmark = pytest.mark.skipif(kernels.compiler() is None, reason="there is no C++ compiler")
ENTITIES = (1, 2, 15, 16, 17, 63, 64, 65, 129)
SCORES = [("ComplEx", 1), ("TransE", 1), ("TransE", 2), ("TransH", 1), ("RotatE", 1)]


def made(name: str, entities: int, dim: int, norm: int = 1) -> KGEModel:
    return build_model(name, entities, 2, dim, seed=entities, norm=norm)


def triples_of(entities: int, n: int = 40) -> torch.Tensor:
    draw = torch.Generator().manual_seed(entities)
    return torch.stack([torch.randint(size, (n,), generator=draw) for size in (entities, 2, entities)], 1).unique(dim=0)


@pytest.mark.parametrize("name, norm", SCORES)
@pytest.mark.parametrize("dim", [1, 3])
def test_ranks_and_answers(name: str, norm: int, dim: int) -> None:
    for entities in ENTITIES:
        model, triples = made(name, entities, dim, norm), triples_of(entities)
        known = KnownTriples(triples, 2)
        with torch.no_grad():
            ranks = [rank(model, triples, known, native=native).metrics() for native in (True, False)]
            assert ranks[0]["both"]["mrr"] == pytest.approx(ranks[1]["both"]["mrr"], abs=1e-3)
            queries = model.queries(triples[:, 0], triples[:, 1], "tail")
            scores, best = kernels.Ranker(model).top(
                queries, entities + 3, known.spans(triples[:, 0], triples[:, 1], "tail")
            )
        assert (best < entities).all() and (best[:, entities:] == -1).all() and (scores[best < 0] == -math.inf).all()


@pytest.mark.parametrize("comparison", ["dot", "distance", "modulus"])
@pytest.mark.parametrize("groups", [2, 3, 8, 33])
@pytest.mark.parametrize("path", native.libraries())
def test_scans(comparison: str, groups: int, path: str) -> None:
    for entities in ENTITIES:
        draw = np.random.default_rng(entities)
        codes = native.packed(draw.integers(16, size=(entities, groups)).astype(np.uint8))
        about = codes, entities, draw.normal(size=(groups, 16, 2)).astype(np.float32), np.arange(groups * 2), comparison
        queries = draw.normal(size=(5, groups * 2)).astype(np.float32)
        target = draw.integers(entities, size=5)
        start = np.zeros(5, np.int64)
        known = start, start + 1, target[:1].astype(np.int32)
        allowed = draw.integers(1 << 63, size=(5, len(codes)), dtype=np.uint64)
        fast, slow = (native.Codes(*about, native=path) for path in (path, False))
        for k in (1, entities, entities + 2):
            for mine, theirs in zip(fast.top(queries, k, known, allowed), slow.top(queries, k, known, allowed)):
                assert np.array_equal(mine, theirs)
        for mine, theirs in zip(fast.counts(queries, target, known), slow.counts(queries, target, known)):
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", native.libraries())
def test_scans_of_what_is_not_finite_end(value: float, path: str) -> None:
    """What comes out means nothing; the process must go on, and no number that is not one may be cast to another."""
    codes = np.repeat(np.arange(70, dtype=np.uint8)[:, None] % 16, 8, 1)
    book = np.zeros((8, 16, 1), np.float32)
    book[2, 3] = value
    scanner = native.Codes(native.packed(codes), 70, book, np.arange(8), native=path)
    queries = np.ones((3, 8), np.float32)
    assert scanner.top(queries, 5)[1].shape == (3, 5)
    assert (scanner.counts(queries, np.array([0, 3, 69]))[0] >= 0).all()


@pytest.mark.parametrize("comparison", native.KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("path", native.libraries())
def test_rows(comparison: str, dtype: type, path: str) -> None:
    for entities in ENTITIES:
        for n in (1, 9):
            draw = np.random.default_rng(entities)
            rows = draw.integers(-9, 9, size=(entities, 4)).astype(dtype)
            scale = np.ones(entities, np.float32) if dtype == np.int8 else None
            queries = draw.integers(-9, 9, size=(n, 8 if comparison == "hyperplane" else 4)).astype(np.float32)
            target = draw.integers(entities, size=n)
            for norm in (1, 2):
                about = native.tiled(rows), entities, scale, comparison, norm
                fast, slow = (native.Floats(*about, native=path) for path in (path, False))
                for mine, theirs in zip(fast.top(queries, 20), slow.top(queries, 20)):
                    np.testing.assert_allclose(mine, theirs, rtol=1e-6)  # sums of whole numbers are exact
                assert fast.counts(queries, target)[0].shape == (n,)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_nearest_vectors(size: int) -> None:
    for n in ENTITIES:
        draw = torch.Generator().manual_seed(n)
        groups, book = torch.randn(n, 3, size, generator=draw), torch.randn(3, 16, size, generator=draw)
        assert torch.equal(assign(groups, book), assign(groups, book, native=False))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("paired", [True, False])
def test_rows_of_a_step(size: int, paired: bool) -> None:
    for rows in ENTITIES:
        table, book = torch.randn(rows, 4 * size), torch.randn(4, 16, size)
        places = torch.arange(rows).flip(0)
        codes = codes_of(table, book, paired, places)
        assert torch.equal(rows_in(torch.bfloat16, codes, book, paired)[:rows], rows_of(codes, book, paired).bfloat16())
        assert torch.equal(kernels.rows_in(torch.bfloat16, table, places)[:rows], table[places].bfloat16())
        parts = [table[: rows // 2].bfloat16(), table[rows // 2 :]]
        whole, sums = torch.cat([x.float() for x in parts]), torch.ones(rows, 1)
        assert straight_through(parts, codes, book, paired).sum().item() == pytest.approx(whole.sum().item(), abs=1e-2)
        gradients = kernels.Gradients(places, parts)
        assert torch.equal(gradients.summed(), whole.flip(0))
        gradients.adagrad(torch.zeros(rows, 4 * size), sums, 0.1)
        assert torch.allclose(sums[:, 0], 1 + whole.flip(0).square().mean(1))


@pytest.mark.parametrize("name, norm", [x for x in SCORES if x[0] != "ComplEx"])
def test_pairs(name: str, norm: int) -> None:
    for n, m in ((1, 1), (2, 15), (3, 17), (17, 65)):
        model = made(name, 5, 3, norm)
        width = model.entities.shape[1]
        draw = torch.Generator().manual_seed(m)
        queries = torch.randn(n, width * model.query_factor, generator=draw).requires_grad_()
        candidates = torch.randn(m, width, generator=draw).requires_grad_()
        scores = pairs.compare(model, queries, candidates)
        scores.sum().backward()
        assert torch.allclose(scores, model.compare(queries, candidates), rtol=1e-4, atol=1e-4)
        assert queries.grad is not None and queries.grad.isfinite().all()


LISTS: dict = {"loss": "softmax", "accumulators": "row"}
PREDICTING = LISTS | {"penalty": 0.1, "relation_weight": 0.5}
LOW = PREDICTING | {"rank": 2, "group": 1, "role": "no-ds"}


@pytest.mark.parametrize(
    "name, norm, more",
    [(*score, more) for score in SCORES for more in ({}, LISTS)]
    + [(name, 1, more) for name in ("ComplEx", "ReciprocalComplEx") for more in (PREDICTING, LOW)],
)
def test_epochs(name: str, norm: int, more: dict) -> None:
    for entities in (2, 17, 65):
        triples = triples_of(entities)
        graph = Graph("edge", triples, triples[:1], triples[:1], tuple(map(str, range(entities))), ("a", "b"), "0" * 64)
        for batch in (1, 7, 4096):
            config = make_config(dataset="edge", model=name, dim=3, norm=norm, negatives=3, batch_size=batch, **more)
            student = build_model(name, entities, 2, 3, **config.model_options)
            engine = make_engine(student, None, config, graph)
            losses = engine.epoch(0, torch.full((engine.steps,), 0.01, dtype=torch.float64))
            assert all(math.isfinite(x) for x in losses.values()) and student.entities.isfinite().all()
