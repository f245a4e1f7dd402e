"""The compiled comparison of every query with every candidate, held to `KGEModel.compare` and its gradients."""

import subprocess
import sys

import pytest
import torch
from test_models import VARIANTS

from kgdistil.kernels import pairs
from kgdistil.kernels.compile import compiler
from kgdistil.models import build_model

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")


def scored(compare, queries: torch.Tensor, candidates: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    """Scores, and gradients of queries and candidates."""
    leaves = [x.clone().requires_grad_() for x in (queries, candidates)]
    scores = compare(*leaves)
    scores.backward(upstream)
    return [scores.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("name, norm", VARIANTS)
@pytest.mark.parametrize("n, m", [(1, 1), (7, 16), (13, 37), (70, 300)])
def test_scores_and_gradients_equal_the_readable_ones(name, norm, n, m, monkeypatch):
    monkeypatch.setattr(pairs, "LEAST", 0.0)
    draw = torch.Generator().manual_seed(n)
    model = build_model(name, 5, 2, 6, norm=norm, offset=3.0 if name in ("TransE", "TransH", "RotatE") else 0.0)
    width = model.entities.shape[1]
    queries = torch.randn(n, width * model.query_factor, generator=draw)
    candidates, upstream = torch.randn(m, width, generator=draw), torch.randn(n, m, generator=draw)
    plain = scored(model.compare, queries, candidates, upstream)
    fast = scored(lambda q, c: pairs.compare(model, q, c), queries, candidates, upstream)
    for mine, theirs in zip(fast, plain, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    assert float(plain[1].abs().max()) > 0.1


@pytest.mark.parametrize("name", ["TransE", "TransH", "RotatE"])
def test_a_candidate_that_is_the_query_has_a_gradient_of_nothing(name):
    model = build_model(name, 5, 2, 6)
    queries = torch.zeros(1, model.entities.shape[1] * model.query_factor)
    _, to_query, to_candidate = scored(
        lambda q, c: pairs.compare(model, q, c), queries, torch.zeros(1, model.entities.shape[1]), torch.ones(1, 1)
    )
    assert not to_query.any() and not to_candidate.any()


def test_wide_models_do_not_overflow_the_stack():
    """In a process of its own, which would end. Sixteen gradients of each of TransH's 2·65,536 numbers are 8 MiB."""
    code = """if True:
        import torch
        from kgdistil.kernels import pairs
        from kgdistil.models import build_model
        model = build_model("TransH", 3, 2, 1 << 16)
        queries = model.queries(torch.tensor([0, 1]), torch.tensor([0, 1]), "tail").detach().requires_grad_()
        gradients = []
        for compare in (model.compare, lambda q, c: pairs.compare(model, q, c)):
            queries.grad = None
            compare(queries, model.entities).sum().backward()
            gradients.append(queries.grad)
        print(float((gradients[0] - gradients[1]).abs().max()))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4


def test_next_to_nothing_is_left_out_and_nothing_else(monkeypatch):
    model = build_model("RotatE", 5, 2, 6)
    draw = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(9, 12, generator=draw), torch.randn(64, 12, generator=draw)
    upstream = 1e-9 * torch.randn(9, 64, generator=draw)
    upstream[4, 17] = 1.0  # in the second tile of sixteen candidates

    def compare(q, c):
        return pairs.compare(model, q, c)

    _, to_queries, to_candidates = scored(compare, queries, candidates, upstream)
    assert to_queries.abs().sum(1).nonzero().tolist() == [[4]]
    assert set(to_candidates.abs().sum(1).nonzero()[:, 0].tolist()) <= set(range(16, 32))
    monkeypatch.setattr(pairs, "LEAST", 0.0)
    for mine, whole in zip((to_queries, to_candidates), scored(compare, queries, candidates, upstream)[1:]):
        assert torch.allclose(mine, whole, atol=1e-6)


def test_any_number_of_threads_gives_the_same_bits():
    model, before = build_model("RotatE", 5, 2, 6), torch.get_num_threads()
    draw = torch.Generator().manual_seed(1)
    given = [torch.randn(*size, generator=draw) for size in ((150, 12), (90, 12), (150, 90))]
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(scored(lambda q, c: pairs.compare(model, q, c), *given))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other))


def test_other_models_compare_as_they_say():
    class Own(type(build_model("TransE", 5, 2, 6))):
        def compare(self, q, candidates):
            return torch.full((len(q), len(candidates)), 7.0)

    assert pairs.compare(Own(5, 2, 6), torch.zeros(2, 6), torch.zeros(3, 6)).eq(7).all()
    double = build_model("TransE", 5, 2, 6).double()
    assert pairs.compare(double, *torch.zeros(2, 1, 6).double()).dtype == torch.float64
