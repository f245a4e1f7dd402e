"""Filtered ranks against a naive loop and PyKEEN, ties, top-k answers, and bounded memory."""

import copy
import functools
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_models import VARIANTS, directions, naive_score

from kgdistil import evaluation, kernels
from kgdistil.config import make_config
from kgdistil.errors import KgdistilError
from kgdistil.evaluation import KnownTriples, Ranks, evaluate, rank
from kgdistil.graph import Graph
from kgdistil.models import MODELS, KGEModel, build_model
from kgdistil.paper.constrained import rank_seen, roles
from kgdistil.students.predict import top
from kgdistil.training.reference import ReferenceEngine

needs_compiler = pytest.mark.skipif(kernels.compiler() is None, reason="there is no C++ compiler")
needs_pykeen = pytest.mark.skipif(importlib.util.find_spec("pykeen") is None, reason="PyKEEN is missing")
PATHS = [pytest.param(True, marks=needs_compiler, id="native"), pytest.param(False, id="readable")]
TIES = ("optimistic", "realistic", "pessimistic")


def tied_model(name: str, norm: int = 1, entities: int = 37, relations: int = 2) -> KGEModel:
    """A model full of exact ties, whose scores round nowhere: every embedding is a small multiple of ¼.

    RotatE's rotations cannot be exact; there, ties come from equal entities alone.
    """
    model = build_model(name, entities, relations, 8, seed=1, norm=norm, offset=2.0)
    numbers = torch.Generator().manual_seed(entities)
    for p in model.parameters() if name != "RotatE" else ():
        p.data = torch.randint(-3, 4, p.shape, generator=numbers) / 4
    if name == "TransH":
        model.relations.data[:, 8:] = torch.eye(8)[torch.arange(relations) % 8]
    model.entities.data[entities // 2 :] = model.entities.data[: entities - entities // 2].clone()
    return model


def graph(entities: int, n: int = 25) -> tuple[torch.Tensor, torch.Tensor]:
    """Triples to rank [≤ n, 3], the last entity among them, and all known ones: some queries have many answers."""
    numbers = torch.Generator().manual_seed(7)
    triples = torch.stack([torch.randint(m, (n,), generator=numbers) for m in (entities, 2, entities)], dim=1)
    last = entities - 1
    triples = torch.cat([triples, torch.tensor([[0, 0, last], [last, 1, 0], [last, 0, last]])]).unique(dim=0)
    crowd = torch.cartesian_prod(torch.tensor([0]), torch.tensor([0]), torch.arange(entities))
    more = torch.randint(entities, (n, 3), generator=numbers) % torch.tensor([entities, 2, entities])
    return triples, torch.cat([triples, crowd, more]).unique(dim=0)


def naive_counts(model: KGEModel, triples: torch.Tensor, known: torch.Tensor, others: dict | None = None) -> Ranks:
    """Every candidate scored alone, in Python's numbers; `others`: whether (relation, entity, side) is none."""
    true = {tuple(x) for x in known.tolist()}
    counts = np.zeros((2, len(triples), 2), dtype=np.int32)
    asked = directions(model, "ComplEx") if model.directed else [model, model]
    score = functools.cache(lambda side, *triple: naive_score(asked[1 - side], *triple))
    for i, (h, r, t) in enumerate(triples.tolist()):
        for side in (0, 1):
            for e in range(model.num_entities):
                candidate = (e, r, t) if side == 0 else (h, r, e)
                no_candidate = others and others[r, e, ("head", "tail")[side]]
                if candidate not in true and candidate != (h, r, t) and not no_candidate:
                    ahead = score(side, *candidate) - score(side, h, r, t)
                    counts[0, i, side] += ahead > 1e-6
                    counts[1, i, side] += abs(ahead) <= 1e-6
    return Ranks(*counts)


def assert_same(one: Ranks, other: Ranks) -> None:
    np.testing.assert_array_equal(one.greater, other.greater)
    np.testing.assert_array_equal(one.equal, other.equal)


# ---- counting -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("native", PATHS)
@pytest.mark.parametrize("name, norm", VARIANTS)
@pytest.mark.parametrize("entities", [1, 16, 37])
def test_counts_equal_a_naive_loop(name, norm, entities, native):
    model = tied_model(name, norm, entities)
    triples, known = graph(entities)
    ranks = rank(model, triples, KnownTriples(known, 2), native=native)
    assert ranks.greater.shape == ranks.equal.shape == (len(triples), 2)
    expected = naive_counts(model, triples, known)
    assert_same(ranks, expected)
    assert entities == 1 or (expected.equal.sum() > 0 and expected.greater.sum() > 0)


@pytest.mark.parametrize("native", PATHS)
@pytest.mark.parametrize("name, norm", VARIANTS)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_type_constrained_counts_equal_a_naive_loop(name, norm, share, native):
    """Candidates are the entities seen in the role and the true one, though it was not seen there."""
    model = tied_model(name, norm)
    triples, known = graph(37)
    seen = {side: torch.rand(2, 37, generator=torch.Generator().manual_seed(5)) < share for side in ("head", "tail")}
    ranks = rank_seen(model, triples, KnownTriples(known, 2), seen, native=native)
    others = {(r, e, side): not seen[side][r, e] for r in range(2) for e in range(37) for side in ("head", "tail")}
    expected = naive_counts(model, triples, known, others)
    assert_same(ranks, expected)
    everyone = rank(model, triples, KnownTriples(known, 2), native=native)
    if share == 1.0:
        assert_same(ranks, everyone)
    else:
        assert ranks.greater.sum() < everyone.greater.sum()
        assert (ranks.greater.sum() > 0) == (share > 0)
    alone = rank_seen(model, triples, KnownTriples(triples[:0], 2), seen, native=native)
    assert_same(alone, naive_counts(model, triples, triples[:0], others))


def test_type_constrained_counts_in_small_pieces(monkeypatch):
    model, (triples, known) = tied_model("TransH"), graph(37)
    seen = roles(known[::3], 2, 37)
    whole = rank_seen(model, triples, KnownTriples(known, 2), seen, native=False)
    monkeypatch.setattr(evaluation, "MEMORY_LIMIT", 1)
    assert_same(rank_seen(model, triples, KnownTriples(known, 2), seen, native=False), whole)


def test_roles_are_what_stands_on_a_side_of_a_relation():
    seen = roles(torch.tensor([[0, 0, 1], [2, 0, 1], [3, 1, 3]]), 2, 5)
    assert [(r, e) for r, e in seen["head"].nonzero().tolist()] == [(0, 0), (0, 2), (1, 3)]
    assert [(r, e) for r, e in seen["tail"].nonzero().tolist()] == [(0, 1), (1, 3)]


@pytest.mark.parametrize("native", PATHS)
@pytest.mark.parametrize("name", MODELS)
def test_where_all_entities_are_equal_every_candidate_ties(name, native):
    model = build_model(name, 37, 2, 8, offset=2.0)
    model.entities.data[:] = model.entities.data[0].clone()
    triples, known = graph(37)
    ranks = rank(model, triples, KnownTriples(known, 2), native=native)
    for i, (h, r, t) in enumerate(triples.tolist()):
        heads, tails = (
            {tuple(x) for x in known.tolist() if (x[1], x[c]) == (r, anchor)} for c, anchor in ((2, t), (0, h))
        )
        assert ranks.greater[i].tolist() == [0, 0]
        assert ranks.equal[i].tolist() == [37 - len(heads), 37 - len(tails)]


@needs_compiler
@pytest.mark.parametrize("name, norm", [("TransE", 1), ("TransH", 2), ("ComplEx", 1), ("SimplE", 1)])
def test_paths_agree_on_many_entities_and_queries(name, norm):
    """More candidates than the cache holds at once, and more queries than share a pass."""
    model = tied_model(name, norm, entities=20_001)
    triples, known = graph(20_001, n=150)
    lookup = KnownTriples(known, 2)
    native, readable = (rank(model, triples, lookup, native=native) for native in (True, False))
    assert_same(native, readable)
    assert native.equal.sum() > 1000


@pytest.mark.parametrize("native", PATHS)
def test_a_low_rank_is_ranked_as_the_rows_it_stands_for(native):
    model, plain = build_model("ComplEx", 37, 2, 8, rank=6), build_model("ComplEx", 37, 2, 8)
    model.entities.data *= torch.arange(1, 38)[:, None] / 10  # no near ties
    plain.entities.data, plain.relations.data = model.rows(model.entities).detach().clone(), model.relations.data
    triples, known = graph(37)
    found = [rank(m, triples, KnownTriples(known, 2), native=native) for m in (model, plain)]
    assert_same(*found)
    assert kernels.usable(model) and found[0].greater.max() > 10


@needs_compiler
def test_any_number_of_threads_counts_the_same():
    model, (triples, known) = build_model("RotatE", 5000, 2, 8, offset=2.0), graph(5000, n=200)
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(rank(model, triples, KnownTriples(known, 2), native=True))
    torch.set_num_threads(before)
    assert_same(*results)


@pytest.mark.parametrize("limit", [1, 20_000])
def test_the_readable_path_in_small_pieces(limit, monkeypatch):
    model, (triples, known) = tied_model("TransH"), graph(37)
    whole = rank(model, triples, KnownTriples(known, 2), native=False)
    monkeypatch.setattr(evaluation, "MEMORY_LIMIT", limit)
    assert_same(rank(model, triples, KnownTriples(known, 2), native=False), whole)


@pytest.mark.parametrize("native", PATHS)
@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), 1e30])
@pytest.mark.parametrize("table", ["entities", "relations"])
def test_a_model_without_an_order_is_refused(table, bad, native):
    """Scores that are NaN beat nothing and are beaten by nothing: such a model would rank first everywhere."""
    model, (triples, known) = build_model("ComplEx", 37, 2, 8), graph(37)
    getattr(model, table).data[1, 3] = bad
    with pytest.raises(KgdistilError, match=r"NaN or .*learning rate"):
        rank(model, triples, KnownTriples(known, 2), native=native)


@pytest.mark.parametrize("native", PATHS)
@pytest.mark.parametrize("name", MODELS)
def test_large_embeddings_that_are_ranked_have_an_order(name, native):
    model, (triples, known) = build_model(name, 37, 2, 8, offset=2.0), graph(37)
    for p in model.parameters() if name != "RotatE" else [model.entities]:
        p.data *= 9e9 / p.abs().max()
    ranks = rank(model, triples, KnownTriples(known, 2), native=native)
    assert 8 < ranks.ranks().mean() < 30 and ranks.equal.sum() < 20


@pytest.mark.parametrize("native", PATHS)
def test_a_triple_that_stands_in_two_splits_counts_once(native):
    model, (triples, known) = tied_model("DistMult"), graph(37)
    ranks = [rank(model, triples, KnownTriples(x, 2), native=native) for x in (known, known.repeat(2, 1))]
    assert_same(*ranks)


@pytest.mark.parametrize("native", PATHS)
def test_a_triple_does_not_compete_with_itself(native):
    """As with `KnownTriples` of the training triples only."""
    model, (triples, _) = build_model("RotatE", 37, 2, 8, offset=2.0), graph(37)
    ranks = rank(model, triples, KnownTriples(triples[:1], 2), native=native)
    assert ranks.equal.sum() == 0


def test_evaluate_ranks_one_split_against_all_three(tiny_graph):
    model = tied_model("TransE", entities=30, relations=4)
    everything = torch.cat([tiny_graph.train, tiny_graph.valid, tiny_graph.test])
    assert_same(evaluate(model, tiny_graph), naive_counts(model, tiny_graph.test, everything))
    lookup = KnownTriples(everything, 4)
    assert_same(evaluate(model, tiny_graph, "valid", known=lookup), rank(model, tiny_graph.valid, lookup))


# ---- metrics --------------------------------------------------------------------------------------------------------
def test_metrics_by_hand():
    ranks = Ranks(np.array([[0, 1], [9, 3]]), np.array([[0, 2], [2, 0]]))
    assert ranks.ranks("optimistic").tolist() == [[1, 2], [10, 4]]
    assert ranks.ranks().tolist() == ranks.ranks("realistic").tolist() == [[1, 3], [11, 4]]
    assert ranks.ranks("pessimistic").tolist() == [[1, 4], [12, 4]]
    found = ranks.metrics()
    assert found["both"] == pytest.approx(
        {"mr": 19 / 4, "mrr": (1 + 1 / 3 + 1 / 11 + 1 / 4) / 4, "hits@1": 0.25, "hits@3": 0.5, "hits@10": 0.75}
    )
    assert found["head"] == pytest.approx(
        {"mr": 6, "mrr": (1 + 1 / 11) / 2, "hits@1": 0.5, "hits@3": 0.5, "hits@10": 0.5}
    )
    assert found["tail"] == pytest.approx(
        {"mr": 3.5, "mrr": (1 / 3 + 1 / 4) / 2, "hits@1": 0, "hits@3": 0.5, "hits@10": 1}
    )
    # the paper's own wording: ranks 2 and 7.5 for the two triples
    assert found["mean_of_two_ranks"] == pytest.approx(
        {"mr": 19 / 4, "mrr": (1 / 2 + 1 / 7.5) / 2, "hits@1": 0, "hits@3": 0.5, "hits@10": 1}
    )
    assert ranks.metrics("optimistic")["both"]["hits@10"] == 1


@functools.cache
def pykeen_model() -> type:
    """A PyKEEN model that scores with one of ours: filtering, ranking and metrics are PyKEEN's."""
    from pykeen.models import Model

    class Wrapped(Model):
        def __init__(self, ours, **about):
            super().__init__(**about)
            self.ours = ours

        def score_hrt(self, hrt_batch, **_):
            return self.ours.score_triples(hrt_batch)[:, None]

        def score_t(self, hr_batch, **_):
            return self.ours.score_tails(*hr_batch.T)

        def score_h(self, rt_batch, **_):
            return self.ours.score_heads(*rt_batch.T)

        def score_r(self, ht_batch, **_):
            raise NotImplementedError

        def collect_regularization_term(self):
            return 0.0

        def _get_entity_len(self, *, mode):
            return self.ours.num_entities

        def _reset_parameters_(self):
            pass

    return Wrapped


@needs_pykeen
@pytest.mark.parametrize("native", PATHS)
@pytest.mark.parametrize("kind", ["ties", "random", "trained"])
@pytest.mark.parametrize("name", MODELS)
def test_metrics_are_pykeens(name, kind, native, tiny_graph):
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.triples import CoreTriplesFactory

    if kind == "ties":
        model = tied_model(name, entities=30, relations=4)
    else:
        model = build_model(name, 30, 4, 8, seed=2, offset=2.0 if MODELS[name].distance else 0.0)
    if kind == "trained":
        engine = ReferenceEngine(model, None, tiny_graph.train, make_config(model=name, batch_size=64))
        for epoch in range(5):
            engine.epoch(epoch, torch.full((engine.steps,), 0.02, dtype=torch.float64))
    factory = CoreTriplesFactory(tiny_graph.train, num_entities=30, num_relations=4)
    theirs = RankBasedEvaluator().evaluate(
        pykeen_model()(model, triples_factory=factory, random_seed=0),
        tiny_graph.test,
        batch_size=7,
        use_tqdm=False,
        additional_filter_triples=[tiny_graph.train, tiny_graph.valid],
    )
    ours = rank(model, tiny_graph.test, KnownTriples(tiny_graph.known, 4), native=native)
    assert (ours.equal.sum() > 0) == (kind == "ties")
    names = {"mr": "arithmetic_mean_rank", "mrr": "inverse_harmonic_mean_rank"}
    names |= {f"hits@{k}": f"hits_at_{k}" for k in (1, 3, 10)}
    for ties in TIES:
        for side in ("head", "tail", "both"):
            expected = {key: theirs.get_metric(f"{side}.{ties}.{name}") for key, name in names.items()}
            assert ours.metrics(ties)[side] == pytest.approx(expected, abs=1e-6)


# ---- the best answers -----------------------------------------------------------------------------------------------
def best_by_sorting(model, anchor, relation, side: str, k: int, known: torch.Tensor):
    """Scores and ids [n, k] in Python: by score, then by id; −inf and −1 past the last candidate."""
    scores = (model.score_tails(anchor, relation) if side == "tail" else model.score_heads(relation, anchor)).tolist()
    true = {tuple(x) for x in known.tolist()}
    rows = []
    for a, r, row in zip(anchor.tolist(), relation.tolist(), scores):
        left = [e for e in range(len(row)) if ((a, r, e) if side == "tail" else (e, r, a)) not in true]
        order = sorted(left, key=lambda e: (-row[e], e))[:k]
        rows.append([(row[e], e) for e in order] + [(-float("inf"), -1)] * (k - len(order)))
    return torch.tensor(rows).unbind(-1)


@pytest.mark.parametrize("native", PATHS)
@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("name, norm", VARIANTS)
def test_the_best_answers(name, norm, kind, native, monkeypatch):
    if not native:
        monkeypatch.setattr(kernels, "usable", lambda *models: False)
    offset = 2.0 if MODELS[name].distance else 0.0
    random = functools.partial(build_model, name, 37, 2, 8, seed=3, offset=offset)
    model = tied_model(name, norm) if kind == "ties" else random(norm=norm)
    triples, known = graph(37)
    for side, column in (("head", 2), ("tail", 0)):
        anchor, relation = triples[:, column], triples[:, 1]
        for k in (1, 10, 37, 50):
            expected_score, expected = best_by_sorting(model, anchor, relation, side, min(k, 37), known)
            score, entity = top(model, anchor, relation, side, k, KnownTriples(known, 2))
            torch.testing.assert_close(score, expected_score, rtol=1e-5, atol=1e-5)
            if native or kind == "random":  # PyTorch puts ties in any order
                assert torch.equal(entity, expected.long())
        assert (entity[:, -1] == -1).all() and (entity[:, 0] >= 0).sum() >= 20


@needs_compiler
def test_more_answers_than_entities():
    model, known = build_model("ComplEx", 5, 2, 8), torch.tensor([[0, 0, 3]])
    queries = model.queries(torch.tensor([0]), torch.tensor([0]), "tail").detach()
    spans = KnownTriples(known, 2).spans(torch.tensor([0]), torch.tensor([0]), "tail")
    score, entity = kernels.Ranker(model).top(queries, 8, spans)
    assert sorted(entity[0, :4].tolist()) == [0, 1, 2, 4] and (entity[0, 4:] == -1).all()
    assert (score[0, 4:] == -torch.inf).all()


@needs_compiler
@pytest.mark.parametrize("name", MODELS)
def test_the_best_answers_among_many_are_torchs(name):
    model = build_model(name, 3001, 2, 8, seed=3, offset=2.0 if MODELS[name].distance else 0.0)
    anchor, relation = torch.arange(13), torch.arange(13) % 2
    nothing = KnownTriples(torch.tensor([[3000, 1, 3000]]), 2)
    score, entity = top(model, anchor, relation, "tail", 10, nothing)
    expected = model.score_tails(anchor, relation).topk(10)
    torch.testing.assert_close(score, expected.values, rtol=1e-5, atol=1e-5)
    assert (entity == expected.indices).float().mean() > 0.95  # neighbours may swap by rounding
    torch.testing.assert_close(model(anchor[:, None], relation[:, None], entity), expected.values)


# ---- memory ---------------------------------------------------------------------------------------------------------
MEMORY = """
import resource, torch
from kgdistil import evaluation, kernels
from kgdistil.config import make_config
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.models import build_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

def setting(entities, n):
    triples = torch.stack([torch.randint(m, (n,)) for m in (entities, 3, entities)], dim=1)
    return build_model("RotatE", entities, 3, 64, offset=6.0), triples, KnownTriples(triples, 3)

rank(*setting(1000, 4), native=False)  # whatever is loaded at the first use
model, triples, known = setting(50_000, 4)
before, usual, evaluation.MEMORY_LIMIT = peak(), evaluation.MEMORY_LIMIT, 64 << 20
rank(model, triples, known, native=False)
print(peak() - before)

evaluation.MEMORY_LIMIT = usual
model, triples, known = setting(1_000_000, 40)
readable = rank(model, triples[:1], known, native=False)
assert readable.greater.max() < 1_000_000
if kernels.compiler():
    native = rank(model, triples, known, native=True)
    assert abs(native.greater[0] - readable.greater[0]).max() < 100  # neighbours may swap by rounding
print(peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's unit")
def test_a_million_entities_rank_within_two_gibibytes():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    growth, peak = (int(line) / 2**20 for line in done.stdout.split())
    assert growth < 64  # the limit
    assert 500 < peak < 2048  # the embeddings alone are half a GiB


def test_a_score_that_may_overflow_is_refused(tiny_graph: Graph) -> None:
    """Of a low rank it multiplies five numbers, two of them of the map."""
    known = KnownTriples(tiny_graph.known, tiny_graph.num_relations)
    for kind, rank_ in (("ComplEx", 0), ("ComplEx", 6), ("ReciprocalComplEx", 6)):
        model = build_model(kind, 30, 4, 8, seed=1, rank=rank_)
        for factor, sound in ((1e3, True), (5e9, not rank_), (1e11, False)):
            scaled = copy.deepcopy(model)
            for table in scaled.parameters():
                table.data.mul_(factor / float(table.data.abs().max()))
            if sound:
                rank(scaled, tiny_graph.test, known)
                continue
            with pytest.raises(KgdistilError, match="so nothing can be ranked"):
                rank(scaled, tiny_graph.test, known)
