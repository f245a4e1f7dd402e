"""Every kernel at the shapes where an index goes wrong: one entity, one more or less than a vector or a block holds.

`make sanitize` runs this file with the kernels under AddressSanitizer and UBSan.
"""

import math

import pytest
import torch

from kgdistil import kernels
from kgdistil.compress.product import assign
from kgdistil.config import make_config
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.kernels import pairs
from kgdistil.models import KGEModel, build_model
from kgdistil.students.scan import Scanner
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


@pytest.mark.parametrize("groups", [2, 3, 8, 33])
@pytest.mark.parametrize("path", ["KGD_PATH=0", "KGD_PATH=1", "KGD_PATH=2"])
def test_scans(groups: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kgdistil.students import scan

    library = scan.scan_library
    monkeypatch.setattr(scan, "scan_library", lambda m: library(m, path))
    for entities in ENTITIES:
        draw = torch.Generator().manual_seed(entities)
        codes = torch.randint(16, (entities, groups), generator=draw, dtype=torch.uint8)
        tables = torch.randn(5, groups, 16, generator=draw)
        target, start = torch.randint(entities, (5,), generator=draw), torch.zeros(5, dtype=torch.int64)
        nothing = (start, start, torch.zeros(1, dtype=torch.int32))
        fast, slow = Scanner(codes), Scanner(codes, native=False)
        for k in (1, entities, entities + 2):
            for mine, theirs in zip(fast.top(tables, k, nothing), slow.top(tables, k, nothing), strict=True):
                assert torch.equal(mine, theirs)
        for mine, theirs in zip(
            fast.counts(tables, target, nothing), slow.counts(tables, target, nothing), strict=True
        ):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scans_of_what_is_not_finite_end(value: float) -> None:
    """What comes out means nothing; the process must go on, and no number that is not one may be cast to another."""
    codes = torch.arange(70, dtype=torch.uint8).remainder(16)[:, None].expand(-1, 8).contiguous()
    tables, start = torch.zeros(3, 8, 16), torch.zeros(3, dtype=torch.int64)
    tables[1, 2, 3] = value
    nothing = (start, start, torch.zeros(1, dtype=torch.int32))
    scanner = Scanner(codes)
    assert scanner.top(tables, 5, nothing)[1].shape == (3, 5)
    assert (scanner.counts(tables, torch.tensor([0, 3, 69]), nothing)[0] >= 0).all()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_nearest_vectors(size: int) -> None:
    for n in ENTITIES:
        draw = torch.Generator().manual_seed(n)
        groups, book = torch.randn(n, 3, size, generator=draw), torch.randn(3, 16, size, generator=draw)
        assert torch.equal(assign(groups, book), assign(groups, book, native=False))


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


@pytest.mark.parametrize("name, norm", SCORES)
def test_epochs(name: str, norm: int) -> None:
    for entities in (2, 17, 65):
        triples = triples_of(entities)
        graph = Graph("edge", triples, triples[:1], triples[:1], tuple(map(str, range(entities))), ("a", "b"), "0" * 64)
        for batch in (1, 7, 4096):
            config = make_config(dataset="edge", model=name, dim=3, norm=norm, negatives=3, batch_size=batch)
            student = build_model(name, entities, 2, 3, **config.model_options)
            engine = make_engine(student, None, config, graph)
            losses = engine.epoch(0, torch.full((engine.steps,), 0.01, dtype=torch.float64))
            assert all(math.isfinite(x) for x in losses.values()) and student.entities.isfinite().all()
