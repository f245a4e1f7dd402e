"""Training against whole lists: the queries, the losses, and runs that are resumed, coded and distilled."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kgdistil import records
from kgdistil.compress import product, whole
from kgdistil.compress.low_rank import low_rank
from kgdistil.compress.packing import quantised
from kgdistil.config import make_config
from kgdistil.distillation import scale
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, evaluate, sampled
from kgdistil.graph import Graph
from kgdistil.graphs import remembered
from kgdistil.graphs.queries import like_known, queries_of, scores_of
from kgdistil.kernels import bfloat16_where_fast
from kgdistil.kernels.softmax import Everywhere, softmax_library, softmax_losses, softmax_sums
from kgdistil.losses import softmax_hard_loss, softmax_soft_loss
from kgdistil.models import build_model
from kgdistil.sampling import MADE_UP_STREAM, stream
from kgdistil.training import loop
from kgdistil.training.engine import make_engine
from kgdistil.training.loop import run
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))


def a_config(**values):
    shared = {
        "dataset": "umls",
        "model": "ComplEx",
        "dim": 16,
        "loss": "softmax",
        "lr": 0.1,
        "negatives": 200,
        "batch_size": 256,
        "epochs": 6,
        "check_every": 2,
        "schedule": "linear",
        "patience": 0,
    }
    return make_config(**{**shared, **values})


def test_queries_hold_every_answer_once(tiny_graph: Graph) -> None:
    anchor, relation, is_head, start, count, answers = queries_of(tiny_graph.train)
    found = set()
    for i in range(len(anchor)):
        for other in answers[start[i] : start[i] + count[i]].tolist():
            a, r = int(anchor[i]), int(relation[i])
            found.add((other, r, a, "head") if is_head[i] else (a, r, other, "tail"))
    expected = {(*t, side) for t in tiny_graph.train.tolist() for side in ("head", "tail")}
    assert found == expected and len(answers) == 2 * len(tiny_graph.train)
    queries = set(zip(anchor.tolist(), relation.tolist(), is_head.tolist()))
    assert len(queries) == len(anchor)


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_a_query_of_many_answers_is_taken_as_several(tiny_graph: Graph, most: int) -> None:
    found, every = queries_of(tiny_graph.train, most), queries_of(tiny_graph.train)
    anchor, relation, is_head, start, count, answers = found
    assert int(count.max()) == min(most, int(every[4].max())) and int(count.min()) > 0
    assert torch.equal(answers, every[5]) and len(anchor) == int((-(-every[4] // most)).sum())
    places = torch.cat([torch.arange(s, s + c) for s, c in zip(start.tolist(), count.tolist())])
    assert torch.equal(places.sort().values, torch.arange(len(answers)))  # each answer once
    keys = [tuple(x) for x in torch.stack([anchor, relation, is_head.long()], 1).tolist()]
    for key, *span in zip(zip(*(x.tolist() for x in every[:3])), every[3].tolist(), every[4].tolist()):
        own = [i for i, other in enumerate(keys) if other == tuple(map(int, key))]
        assert sum(count[i] for i in own) == span[1] and min(start[i] for i in own) == span[0]


def test_each_direction_of_reciprocal_relations_is_predicted_among_both(tiny_graph: Graph) -> None:
    sizes, values = (tiny_graph.num_entities, tiny_graph.num_relations, 4), {"model": "ReciprocalComplEx", "dim": 4}
    found, steps = build_model("ReciprocalComplEx", *sizes, seed=0), []
    for weight in (0.0, 0.5):
        config = a_config(**values, negatives=100, relation_weight=weight, batch_size=1000)
        engine = make_engine(build_model("ReciprocalComplEx", *sizes, seed=0), None, config, tiny_graph)
        engine.half = torch.float32
        steps.append(engine.epoch(0, torch.zeros(engine.steps, dtype=torch.float64))["penalty"])
    h, r, t = tiny_graph.train.unbind(-1)
    by_hand = torch.zeros(2)
    for i in range(2):  # a relation's second vector is that of (?, r, t)
        anchor, answer = (h, t) if i == 0 else (t, h)
        rows = found.entities[answer]
        tail, head = (found.query(found.entities[anchor][:, None], found.relations[None], s) for s in ("tail", "head"))
        scores = torch.cat([(tail * rows[:, None]).sum(-1), (head * rows[:, None]).sum(-1)], 1)
        by_hand[i] = F.cross_entropy(scores, r + i * tiny_graph.num_relations).detach()
    assert steps[1] - steps[0] == pytest.approx(0.5 * by_hand.mean().item(), rel=1e-5)


@pytest.mark.parametrize("model", ["ComplEx", "LowRankComplEx", "ReciprocalComplEx"])
def test_dura_weighs_what_a_relation_makes_of_both_ends(tiny_graph: Graph, model: str) -> None:
    rank = {"rank": 3} if model == "LowRankComplEx" else {}
    values = {"model": model.removeprefix("LowRank"), "dim": 4, **rank, "negatives": 100, "batch_size": 1000}
    config = a_config(**values, penalty=0.5, regulariser="dura")
    found = build_model(model, tiny_graph.num_entities, tiny_graph.num_relations, 4, seed=0, **rank)
    engine = make_engine(copy.deepcopy(found), None, config, tiny_graph)
    penalty = engine.epoch(0, torch.zeros(engine.steps, dtype=torch.float64))["penalty"]
    rows = torch.complex(*found.rows(found.entities).detach().chunk(2, -1))
    both = found.relations.detach().chunk(found.relation_factor // 2, -1)
    h, r, t = tiny_graph.train.unbind(-1)
    wanted = 0.0
    for relations in (both[0], both[-1]):
        turn = torch.complex(*relations.chunk(2, -1))[r]
        ends = [0.5 * x.abs().square() + 1.5 * (x * turn).abs().square() for x in (rows[h], rows[t])]
        wanted += sum(x.sum(-1).mean().item() for x in ends) / 2
    assert penalty == pytest.approx(0.5 * wanted, rel=1e-5)


@pytest.mark.parametrize("model", ["ComplEx", "DistMult", "SimplE", "LowRankComplEx"])
def test_relations_are_predicted_by_the_score(tiny_graph: Graph, model: str) -> None:
    rank = {"rank": 3} if model == "LowRankComplEx" else {}
    found = build_model(model, tiny_graph.num_entities, tiny_graph.num_relations, 4, seed=0, **rank).double()
    h, r, t = tiny_graph.train.unbind(-1)
    between = found.between(found.entities[h], found.entities[t])
    torch.testing.assert_close((between * found.relations[r]).sum(-1), found(h, r, t))
    if model != "LowRankComplEx":
        config = a_config(model=model, dim=4, negatives=100, relation_weight=0.5, batch_size=1000)
        plain = config.model_copy(update={"relation_weight": 0})
        steps = {}
        for given in (config, plain):
            student = build_model(model, tiny_graph.num_entities, tiny_graph.num_relations, 4, seed=0)
            engine = make_engine(student, None, given, tiny_graph)
            engine.half = torch.float32
            steps[given.relation_weight] = engine.epoch(0, torch.zeros(engine.steps, dtype=torch.float64))
        logits = between @ found.relations.T  # each triple is an answer of two queries
        wanted = 0.5 * F.cross_entropy(logits, r)
        assert steps[0.5]["penalty"] - steps[0]["penalty"] == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("expected", [(0.3, 0.7), (1.0, 0.0)])
def test_compiled_losses_equal_the_readable_ones(
    dtype, taught: bool, temperature: float, threads: int, expected: tuple[float, float]
) -> None:
    """Losses and gradients; scores beyond the candidates, which hold anything, count nothing."""
    draw = torch.Generator().manual_seed(0)
    n, m, beyond = 37, 83, 13
    scores, other = (
        torch.cat([8 * torch.randn(n, m, generator=draw), torch.full((n, beyond), 1e4)], 1).to(dtype) for _ in range(2)
    )
    scores[5], other[7] = 300.0, -300.0
    scores[6, 3] = 200.0  # all others' powers are nothing
    count = torch.randint(1, 6, (n,), generator=draw)
    place = torch.randint(m, (int(count.sum()),), generator=draw)
    place[-1] = place[-2] if count[-1] > 1 else place[-1]  # one candidate may stand for two answers
    shift = torch.rand(m, generator=draw)
    row = torch.arange(n).repeat_interleave(count)
    labels = torch.rand(n, generator=draw).softmax(0)  # what a query counts need not be its answers
    if softmax_library(scores) is None:
        pytest.skip("no compiler")
    before, found = torch.get_num_threads(), {}
    torch.set_num_threads(threads)
    for name in ("compiled", "readable"):
        x = scores.detach().clone().requires_grad_()
        given = other if taught else None
        if name == "compiled":
            start = F.pad(count.cumsum(0), (1, 0))
            hard, soft = softmax_losses(x, given, shift, start, place, labels, temperature, expected)
        else:
            wide = x[:, :m].double() + shift
            hard, soft = softmax_hard_loss(wide, row, place), torch.zeros(())
            if taught:
                soft = softmax_soft_loss(wide, other[:, :m].double() + shift, labels, temperature)
        (0.3 * hard + 0.7 * soft).backward()
        found[name] = hard.item(), soft.item(), x.grad
    torch.set_num_threads(before)
    assert found["compiled"][:2] == pytest.approx(found["readable"][:2], rel=1e-5)
    assert not found["compiled"][2][:, m:].any()
    near = {"rtol": 1e-4, "atol": 1e-8} if dtype == torch.float32 else {"rtol": 1 / 128, "atol": 1e-8}
    torch.testing.assert_close(found["compiled"][2], found["readable"][2], **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("taught", "temperature"), [(False, 1.0), (True, 1.0), (True, 2.0)])
def test_parts_of_the_candidates_add_up(dtype: torch.dtype, taught: bool, temperature: float) -> None:
    """Losses and gradients of processes that have some candidates each, one of them none of the likely ones."""
    draw = torch.Generator().manual_seed(0)
    n, m, cut = 17, 40, 23
    scores, other = (8 * torch.randn(n, m, generator=draw).to(dtype) for _ in range(2))
    scores[3, :cut] = -200.0
    shift, labels = torch.rand(m, generator=draw), torch.rand(n, generator=draw).softmax(0)
    known = torch.rand(n, m, generator=draw) < 0.1
    known[:, 5] = True
    known[0, :cut] = torch.arange(cut) == 5
    known[0, 7] = True  # in whose place `found` puts the fifth once more
    counts, weights = known.sum(1), (0.3, 0.7)
    if softmax_library(scores) is None:
        pytest.skip("no compiler")

    def found(low: int, high: int, sums: torch.Tensor | None, kept: bool) -> tuple:
        x, given = scores[:, low:high].contiguous(), other[:, low:high].contiguous() if taught else None
        here, slopes = known[:, low:high], torch.full_like(x, torch.nan)
        own = softmax_sums(x, given, shift[low:high], temperature, slopes if kept else None)
        place, start = here.nonzero()[:, 1].contiguous(), F.pad(here.sum(1).cumsum(0), (1, 0))
        if low == 0:
            place[1] = place[0]  # one candidate may stand for two answers
        everywhere = None if sums is None else Everywhere(counts, sums, own if kept else None)
        asked = x, given, shift[low:high], start, place, labels, temperature, weights, slopes, everywhere
        return own, *softmax_losses(*asked), slopes.float()

    _, hard, soft, whole = found(0, m, None, False)
    parts = [(0, cut), (cut, m)]
    sums = torch.stack([found(*part, None, False)[0] for part in parts]).logsumexp(0)
    for kept in {False, not taught}:
        first, second = (found(*part, sums, kept)[1:] for part in parts)
        assert float(first[0] + second[0]) == pytest.approx(float(hard), rel=1e-5)
        assert float(first[1] + second[1]) == pytest.approx(float(soft), rel=1e-4, abs=1e-6)
        near = {"rtol": 1e-4, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1 / 64, "atol": 1e-7}
        torch.testing.assert_close(torch.cat([first[2], second[2]], 1), whole, **near)


def test_losses_against_their_definition() -> None:
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row, place = torch.tensor([0, 0, 2]), torch.tensor([1, 5, 6])
    p = scores.softmax(1)
    expected = -float(torch.stack([p[0, 1], p[0, 5], p[2, 6]]).log().mean())
    assert softmax_hard_loss(scores, row, place) == pytest.approx(expected)
    count = torch.tensor([2, 0, 1])
    label, own = (other / 2).softmax(1), (scores / 2).log_softmax(1)
    expected = -4 * ((label * own).sum(1) * torch.tensor([2, 0, 1])).sum() / 3
    assert softmax_soft_loss(scores, other, count / count.sum(), 2.0) == pytest.approx(float(expected))


class Touched(TorchDispatchMode):
    """Bytes of the tensors that operations make, and the operations that are given as many rows as the graph has."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.made, self.whole = rows, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = {x.untyped_storage().data_ptr() for x in given}
        made = [x for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.made += sum(x.nbytes for x in made if x.untyped_storage().data_ptr() not in there)
        if any(self.rows in x.shape for x in (*given, *made)):
            self.whole.add(function.overloadpacket.__name__)
        return out


@pytest.mark.parametrize("values", [{"accumulators": "row"}, {}, {"group": 4}, {"rank": 8}], ids=str)
def test_a_step_costs_the_same_whatever_the_number_of_entities(values: dict) -> None:
    triples = torch.randint(1000, (2000, 3), generator=torch.Generator().manual_seed(0))
    triples[:, 1] %= 5
    made = {}
    for size in (10_000, 1_000_000):
        sizes = size, 5, 8
        role = {"role": "stage1", "teacher": "t", "alpha": 0.5} if "group" in values else {}
        config = a_config(dim=8, negatives=500, batch_size=64, **values, **role)
        student, teacher = (build_model("ComplEx", *sizes, **(config.model_options if i else {})) for i in (1, 0))
        engine = SampledSoftmaxEngine(student, teacher if role else None, triples, config)
        before = student.entities.detach().clone()
        with Touched(size) as touched:
            engine.step(torch.arange(64), torch.tensor(7), {"student": 0.1})
        # rows are taken out and put back: nothing else ever sees a table
        assert touched.whole <= {"index_select", "index_add_", "index_copy_", "detach", "alias"}
        made[size] = touched.made
        moved = (student.entities.detach() != before).any(1)
        assert 500 < int(moved.sum()) < 1500
    assert made[1_000_000] == pytest.approx(made[10_000], rel=0.05)  # some of the few are drawn twice


def test_one_accumulator_a_row_is_the_mean_of_its_squares(tiny_graph: Graph) -> None:
    rows = {}
    for kind in ("number", "row"):
        config = a_config(dim=4, negatives=30, batch_size=512, accumulators=kind, accumulator=1e-3)
        model = build_model("ComplEx", 30, 4, 4, seed=3)
        engine = make_engine(model, None, config, tiny_graph)
        before = model.entities.detach().clone()
        engine.epoch(0, torch.full((1,), 0.1, dtype=torch.float64))
        rows[kind] = engine.moments["student.entities.v"], before - model.entities.detach()
    (full, step), (mean, own) = rows["number"], rows["row"]
    assert mean.shape == (30, 1) and torch.allclose(mean[:, 0], full.mean(1))
    gradient = step * full.sqrt() / 0.1
    assert torch.allclose(own, 0.1 * gradient / mean.sqrt(), atol=1e-6)


def test_a_sample_is_ranked_with_its_error_and_the_last_weights_are_kept(umls: Graph) -> None:
    config = a_config(check_sample=100, final_sample=300, epochs=4, accumulators="row", group=4)
    done = run(config, umls, progress=False)
    again = run(config.model_copy(update={"seed": 1}), umls, progress=False)
    assert done.record["best_epoch"] == done.record["epochs"] == 4 and len(done.ranks.greater) == 300
    assert [set(row) > {"valid_mrr", "valid_mrr_se"} for row in done.record["curve"]] == [True] * 2
    model, known = done.load(umls), KnownTriples(umls.known, umls.num_relations)
    found = evaluate(model, umls, "valid", known=known, sample=100)
    last = done.record["curve"][-1]
    assert (last["valid_mrr"], last["valid_mrr_se"]) == (found.metrics()["both"]["mrr"], found.standard_error())
    whole = evaluate(model, umls, known=known)
    sample = evaluate(model, umls, known=known, sample=300)
    assert done.record["test"] == sample.metrics() and done.record["sampled"]["test"]["triples"] == 300
    error = done.record["sampled"]["test"]["mrr_se"]
    assert error == pytest.approx(whole.reciprocal().std() / 300**0.5, rel=0.1)
    assert abs(done.test() - whole.metrics()["both"]["mrr"]) < 3 * error
    kept = {tuple(t) for t in sampled(umls.test, 300).tolist()}
    assert len(kept) == 300 and kept <= {tuple(t) for t in umls.test.tolist()} and sampled(umls.test, 0) is umls.test
    assert len(again.ranks.greater) == 300  # of the same triples, whatever the seed, so that runs can be compared
    plain = run(a_config(epochs=2), umls, progress=False).record
    assert "sampled" not in plain and "valid_mrr_se" not in plain["curve"][0]


@pytest.mark.parametrize("within", [True, False])
def test_ranks_of_a_sample_outlive_a_kill(within: bool, umls: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    config = a_config(check_sample=100, final_sample=300, epochs=2, check_every=2)
    whole = run(config, umls, progress=False)
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "other" / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "other" / "results"))
    asked, ranked = list[int](), loop.rank

    def counted(model: Any, triples: torch.Tensor, known: KnownTriples) -> Any:
        asked.append(len(triples))
        if within and len(asked) == 3:
            raise KeyboardInterrupt
        return ranked(model, triples, known)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "rank", counted)
    with monkeypatch.context() as patch:
        patch.setattr(records, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, umls, progress=False)
    assert asked == [100, 300, 300]
    done = run(config, umls, progress=False)
    assert asked == [100, 300, 300] + [300] * within, "what was ranked is not ranked again"
    assert {x: done.record[x] for x in ("valid", "test", "sampled")} == {
        x: whole.record[x] for x in ("valid", "test", "sampled")
    }
    run(config, umls, progress=False, again=True)
    assert asked[-3:] == [100, 300, 300], "of other weights"


@pytest.mark.parametrize("begin", [0.0, 1e-5])
@pytest.mark.parametrize("name, rank", [("ComplEx", 0), ("ComplEx", 6), ("DistMult", 0), ("TransE", 0), ("RotatE", 0)])
def test_a_step_over_all_entities_is_adagrad_on_the_full_softmax(
    tiny_graph: Graph, name: str, rank: int, begin: float
) -> None:
    extra = {"lr": 0.1, "negatives": 30, "batch_size": 512, "penalty": 0.01 if name in ("ComplEx", "DistMult") else 0}
    extra |= {"rank": rank, "accumulator": begin, **({"shared": 1.0} if rank else {})}
    config = a_config(dataset="tiny", model=name, dim=4, **extra)
    options = config.model_options
    model, plain = (build_model(name, 30, 4, 4, seed=3, **options).double() for _ in range(2))
    engine = make_engine(model, None, config, tiny_graph)
    assert isinstance(engine, SampledSoftmaxEngine) and engine.steps == 1
    engine.half = torch.float64
    for key, x in engine.moments.items():
        engine.moments[key] = x.double()
    losses = engine.epoch(0, torch.full((1,), 0.1, dtype=torch.float64))
    h, r, t = tiny_graph.train.unbind(1)
    hard = F.cross_entropy(plain.score_tails(h, r), t) / 2 + F.cross_entropy(plain.score_heads(r, t), h) / 2
    penalty = config.penalty * plain.penalty(*plain.embed(h, r, t)).mean()
    optimizer = torch.optim.Adagrad(plain.parameters(), lr=0.1, initial_accumulator_value=begin)
    (hard + penalty).backward()
    optimizer.step()
    assert losses["student_hard"] == pytest.approx(hard.item()) and losses["penalty"] == pytest.approx(penalty.item())
    for mine, theirs in zip(model.parameters(), plain.parameters()):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("name", ["ComplEx", "ReciprocalComplEx"])
@pytest.mark.parametrize("regulariser", ["n3", "dura"])
def test_a_low_rank_has_the_penalty_of_what_it_stands_for(tiny_graph: Graph, name: str, regulariser: str) -> None:
    """N3 of complex numbers and the softmax over relations: what the mapped rows have, whoever computes them."""
    values = {"dataset": "tiny", "model": name, "dim": 4, "negatives": 30, "batch_size": 512, "lr": 0.1}
    values |= {"penalty": 0.01, "relation_weight": 1.0, "regulariser": regulariser}
    low = build_model(name, 30, 4, 4, seed=3, rank=6)
    plain = build_model(name, 30, 4, 4)
    with torch.no_grad():
        plain.entities.copy_(low.rows(low.entities))
        plain.relations.copy_(low.relations)
    rates = torch.full((1,), 0.1, dtype=torch.float64)
    ranks = {low: {"rank": 6}, plain: {}}
    found = [make_engine(model, None, a_config(**values, **more), tiny_graph) for model, more in ranks.items()]
    one, other = (engine.epoch(0, rates) for engine in found)
    assert one == pytest.approx(other, rel=1e-3 if found[0].half == torch.bfloat16 else 1e-5)


def test_frequent_entities_are_those_of_most_triples() -> None:
    triples = torch.tensor([[0, 0, 4], [1, 0, 4], [3, 1, 4], [3, 0, 2]])
    assert whole.frequent(triples, 6, 1).nonzero().flatten().tolist() == [4]
    assert whole.frequent(triples, 6, 3).nonzero().flatten().tolist() == [0, 3, 4]  # of three that are level the first
    assert whole.frequent(triples, 6, 99).all()


def test_where_all_entities_are_whole_nothing_is_rounded_in_training(umls: Graph) -> None:
    found = {}
    for name, more in {"plain": {}, "whole": {"group": 4, "whole": 135}, "coded": {"group": 4}}.items():
        model = build_model("ComplEx", umls.num_entities, umls.num_relations, 8, seed=0)
        engine = make_engine(model, None, a_config(dim=8, penalty=0.01, relation_weight=1.0, **more), umls)
        before = {key: x.clone() for key, x in engine.moments.items()}
        losses = engine.epoch(0, torch.full((engine.steps,), 0.1, dtype=torch.float64))
        found[name] = losses, model.entities.detach(), engine, before
    assert found["plain"][0] == found["whole"][0] != found["coded"][0]
    assert torch.equal(found["plain"][1], found["whole"][1])
    moved = {
        name: not torch.equal(found[name][2].moments["student.codebook"], found[name][3]["student.codebook"])
        for name in ("whole", "coded")
    }
    assert moved == {"whole": False, "coded": True}, "what is whole teaches the codebook nothing"


def test_what_is_saved_has_codes_but_for_what_is_whole(umls: Graph) -> None:
    done = run(a_config(dim=8, group=4, whole=9, epochs=2, batch_size=64), umls, progress=False)
    rows, kept = done.load(umls).entities.detach(), whole.frequent(umls.train, 135, 9)
    groups = product.grouped(rows[~kept], 4, True)
    assert torch.equal(quantised(done.load(umls), "1bit").entities[kept], rows[kept]), "the file loses nothing of them"
    assert max(len(column.unique(dim=0)) for column in groups.unbind(1)) <= 16
    steps = rows[kept] / (rows[kept].abs().amax(1, keepdim=True) / 127)
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert len(steps.round().unique()) > 32  # of 144 numbers


def test_whole_entities_and_depth_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"whole is 3: it takes a dot product \(ComplEx\) of depth 1 \(2\)"):
        make_config(model="ComplEx", loss="softmax", group=4, depth=2, whole=3)
    with pytest.raises(ConfigError, match=r"whole is 3: it takes a dot product \(RotatE\)"):
        make_config(model="RotatE", loss="softmax", group=4, whole=3)
    with pytest.raises(ConfigError, match="whole is 3, but only codes \\(group\\) leave entities whole"):
        make_config(model="ComplEx", loss="softmax", whole=3)


def test_an_engine_takes_the_alpha_of_the_epoch(umls: Graph) -> None:
    weights = []
    for values in ({"alpha": 1.0, "alpha_last": 0.0}, {"alpha": 0.0}, {"alpha": 1.0}):
        config = a_config(role="stage1", teacher="t", dim=4, epochs=2, **values)
        student, teacher = (build_model("ComplEx", umls.num_entities, umls.num_relations, 4, seed=s) for s in (1, 2))
        engine = make_engine(student, teacher, config, umls)
        engine.epoch(1, torch.full((engine.steps,), 0.1, dtype=torch.float64))  # the second of two
        weights.append(student.entities.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_sample_stands_for_all(umls: Graph) -> None:
    model = build_model("ComplEx", umls.num_entities, umls.num_relations, 8, seed=0)
    engine = make_engine(model, None, a_config(dim=8, negatives=40), umls)
    answers = torch.tensor([3, 5, 5, 9])
    sums = []
    for base in range(2000):
        candidates, place, shift = engine.candidates(answers, torch.tensor(base * 1_000_003))
        assert torch.equal(candidates[place], answers)
        assert len(set(candidates[:3].tolist()) & set(candidates[3:].tolist())) == 0  # an answer is never drawn as well
        sums.append(float((shift.exp() * torch.arange(135.0)[candidates]).sum()))
    assert sum(sums) / 2000 == pytest.approx(135 * 134 / 2, rel=0.01)  # unbiased for a sum over all entities


def test_training_learns_and_coding_costs_little(umls: Graph) -> None:
    teacher = run(a_config(role="teacher", epochs=15, penalty=0.01, lr=0.2), umls, progress=False)
    assert teacher.test() > 0.7
    coded = {"group": 4, "lr": 0.02, "student": teacher.id}
    student = run(a_config(role="stage1", teacher=teacher.id, alpha=1.0, **coded), umls, progress=False)
    model = student.load(umls)
    assert torch.equal(quantised(model, "1bit").entities, model.entities.half().float())  # sixteen vectors a group
    assert evaluate(model, umls).metrics() == student.record["test"]  # what was ranked is what was saved
    assert student.test() > teacher.test() - 0.08
    rounded = evaluate(quantised(teacher.load(umls), "1bit"), umls).metrics()["both"]["mrr"]
    assert student.test() > rounded - 0.01
    second = a_config(role="stage2", teacher=teacher.id, **coded | {"student": student.id, "lr": 0.005})
    assert run(second, umls, progress=False).test() > 0.65


def test_any_model_may_go_on_from_another(umls: Graph) -> None:
    first = make_config(dataset="umls", model="RotatE", dim=4, role="no-ds", epochs=5, lr=0.05, check_every=5)
    start = run(first, umls, progress=False)
    going_on = a_config(model="RotatE", dim=4, epochs=1, lr=1e-6, check_every=1, student=start.id)
    assert run(going_on, umls, progress=False).test() == pytest.approx(start.test(), abs=2e-3)
    assert run(going_on.model_copy(update={"lr": 0.05, "epochs": 8}), umls, progress=False).test() > start.test()


def test_a_low_rank_learns_from_the_teacher_it_starts_from(umls: Graph) -> None:
    teacher = run(a_config(role="teacher", epochs=15, penalty=0.01, lr=0.2), umls, progress=False)
    low = {"rank": 8, "group": 2, "student": teacher.id}
    student = run(a_config(role="stage1", teacher=teacher.id, alpha=1.0, lr=0.05, **low), umls, progress=False)
    model = student.load(umls)
    assert model.rank == 8 and student.record["parameters"] == 135 * 8 + 8 * 32 + 46 * 32
    assert torch.equal(quantised(model, "2bit").entities, model.entities.half().float())  # the file loses nothing
    assert evaluate(model, umls).metrics() == student.record["test"]
    start = low_rank(teacher.load(umls), 8)
    assert not torch.equal(model.map, start.map)  # it is trained as well
    rounded = evaluate(quantised(start, "2bit"), umls).metrics()["both"]["mrr"]
    assert student.test() > rounded + 0.05
    other = a_config(role="stage1", teacher=teacher.id, **{**low, "rank": 4, "student": student.id})
    with pytest.raises(ConfigError, match="of rank 8; the run asks for rank 4"):
        run(other, umls, progress=False)


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("role", ["no-ds", "stage1", "stage2"])
def test_a_resumed_run_ends_with_the_same_bits(
    umls: Graph, monkeypatch: pytest.MonkeyPatch, role: str, rank: int
) -> None:
    from kgdistil.training import loop

    teacher = run(a_config(role="teacher", epochs=2), umls, progress=False)
    extra = {} if role == "no-ds" else {"teacher": teacher.id}
    config = a_config(role=role, group=4, rank=rank, student=teacher.id, **extra)
    whole = run(config, umls, progress=False).load(umls)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    saved = loop.save

    def save_and_die(*args) -> None:
        saved(*args)
        if args[3].epoch == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(config, umls, progress=False, again=True)
    monkeypatch.setattr(loop, "save", saved)
    folder = loop.records.model_folder(config.run_id)
    assert (folder / loop.CHECKPOINT).is_file()
    loop.records.record_path(config.run_id).unlink()
    again = run(config, umls, progress=False).load(umls)
    for mine, theirs in zip(again.parameters(), whole.parameters()):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("values", [{"group": 4, "check_sample": 50}, {"accumulators": "row"}], ids=str)
def test_a_run_stopped_within_its_epochs_ends_with_the_same_bits(
    umls: Graph, monkeypatch: pytest.MonkeyPatch, values: dict
) -> None:
    """A large graph's epoch may take longer than what may be lost."""
    from kgdistil.training import loop

    config = a_config(epochs=2, check_every=1, batch_size=512, **values)
    whole = run(config, umls, progress=False)
    expected = {name: x.clone() for name, x in whole.load(umls).state_dict().items()}
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    saved, stops, places = loop.save, 0, set()

    def save_and_die(path, engine, graph, state) -> None:
        saved(path, engine, graph, state)
        places.add((state.epoch, int(engine.moments["done"])))
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", save_and_die)
    loop.records.record_path(config.run_id).unlink()
    while True:
        try:
            again = run(config, umls, progress=False)
            break
        except KeyboardInterrupt:
            stops += 1
    steps = -(-len(queries_of(umls.train)[0]) // 512)
    assert stops == 2 * steps and places == {(e, i) for e in (0, 1) for i in range(1, steps)} | {(1, 0), (2, 0)}
    assert [row["student_hard"] for row in again.record["curve"]] == [
        row["student_hard"] for row in whole.record["curve"]
    ]
    for name, x in again.load(umls).state_dict().items():
        assert torch.equal(x, expected[name])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"accumulators": "column"}, "accumulators is 'column'"),
        ({"group": 3}, "group is 3"),
        ({"group": 4, "dim": 1}, "must divide the 1 × 2 floats"),
        ({"group": 3}, "group is 3: input should be 0, 1, 2, 4, 8 or 16"),
        ({"group": 2, "loss": "cross-entropy"}, "only loss softmax takes it"),
        ({"accumulator": 1e-6, "loss": "cross-entropy"}, "only loss softmax takes it"),
        ({"student": "x", "loss": "cross-entropy"}, "only stage 2 and loss softmax start from a model"),
        ({"rank": 33}, "at most its 16 × 2 floats"),
        ({"rank": 4, "model": "RotatE"}, "only ComplEx, ReciprocalComplEx takes one"),
        ({"rank": 6, "group": 4}, "must divide the 6 floats"),
        ({"temperature": 0}, "temperature is 0"),
    ],
)
def test_what_cannot_be_is_said(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        a_config(**values)


def test_made_up_queries_are_such_as_the_graph_holds(umls):
    """Each asks of an entity what the graph asks of another that shares a relation and side with it; few are known."""
    anchor, relation, is_head, *_ = queries_of(umls.train)
    known = set(zip(anchor.tolist(), relation.tolist(), is_head.tolist()))
    asked = {}
    for a, r, side in known:
        asked.setdefault(a, set()).add((r, side))
    made = [like_known(anchor, relation, is_head, stream(0, MADE_UP_STREAM, epoch)) for epoch in (0, 0, 1)]
    assert all(torch.equal(x, y) for x, y in zip(made[0], made[1]))
    assert not torch.equal(made[0][0], made[2][0])
    found = set(zip(*(x.tolist() for x in made[0])))
    assert len(found - known) > len(found) / 3
    for a, r, side in found:
        assert any((r, side) in other and other & asked[a] for other in asked.values())


def test_made_up_queries_have_the_teachers_lists_as_their_label(umls, monkeypatch):
    """The soft loss is that of the graph's queries and, half as much, of as many others; the hard one as without."""
    draw = {"num_entities": umls.num_entities, "num_relations": umls.num_relations, "dim": 4}
    student, teacher = (build_model("ComplEx", **draw, seed=seed) for seed in (0, 1))
    given = {"dataset": "umls", "model": "ComplEx", "dim": 4, "loss": "softmax", "negatives": 512, "role": "stage1"}
    given |= {"teacher": "t", "batch_size": 64, "alpha": 0.25, "lr": 1e-6, "temperature": 2.0}
    found = []
    for unlabelled in (0.0, 0.5):
        engine = make_engine(student, teacher, make_config(**given, unlabelled=unlabelled), umls)
        with monkeypatch.context() as patched:
            calls = []
            spy = lambda *given, of=engine.losses_of, calls=calls: calls.append((given, of(*given))) or calls[-1][1]
            patched.setattr(engine, "losses_of", spy)
            engine.epoch(0, torch.full((engine.steps,), 1e-6))
        found.append(calls[0])
    (plain, (hard, soft)), (more, (hard_too, soft_too)) = found
    assert hard.item() == pytest.approx(hard_too.item(), rel=1e-3)
    count, known = more[3].counts, plain[3].counts
    assert len(count) == 2 * len(known) and sorted(count[count > 0].tolist()) == sorted(known.tolist())
    own, other = more[1]
    m, alone = len(more[2]), (count == 0).float()
    of_made = softmax_soft_loss(own[:, :m].float(), other[:, :m].float(), alone / alone.sum(), 2.0)
    assert soft_too.item() == pytest.approx((soft.item() + 0.5 * of_made.item()) / 1.5, rel=1e-3)


def test_made_up_queries_need_a_teacher_and_no_lists_of_its_best():
    given = {"dataset": "umls", "model": "ComplEx", "loss": "softmax", "unlabelled": 1.0}
    with pytest.raises(ConfigError, match="unlabelled is 1.0, but only stages 1 and 2 have a teacher"):
        make_config(**given)
    with pytest.raises(ConfigError, match="unlabelled is 1.0, but top is 4: set one of them to 0"):
        make_config(**given, role="stage1", teacher="t", top=4)


@pytest.mark.parametrize("values", [{}, {"group": 1, "rank": 8}], ids=str)
def test_what_a_wide_teacher_says_is_computed_once(
    tiny_graph: Graph, monkeypatch: pytest.MonkeyPatch, values: dict
) -> None:
    """The same student comes of it as of a teacher that is asked in every step, which it then is not."""
    asked = a_config(role="stage1", teacher="t", alpha=0.7, negatives=3, batch_size=5, epochs=90, **values)
    done, calls = {}, []
    monkeypatch.setattr(remembered, "scores_of", lambda *x: calls.append(x) or scores_of(*x))
    for wide in (1 << 20, 16):
        monkeypatch.setattr(remembered, "WIDE", wide)
        teacher, student = (
            build_model("ComplEx", tiny_graph.num_entities, tiny_graph.num_relations, 16, seed=s) for s in (1, 2)
        )
        student = low_rank(student, 8) if values else student
        engine = make_engine(student, teacher, asked, tiny_graph)
        engine.half = torch.float32
        losses = [engine.epoch(i, torch.full((engine.steps,), 0.1, dtype=torch.float64)) for i in range(3)]
        done[wide] = student.entities.data.clone(), losses, dict(engine.arithmetic)
    (before, losses, plain), (after, others, told) = done.values()
    assert len(calls) == 1 and "teacher" not in plain and told == {**plain, "teacher": "remembered"}
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert [list(x.values()) for x in others] == [pytest.approx(list(x.values()), rel=1e-5) for x in losses]


def test_what_is_remembered_of_a_teacher_is_told_and_has_a_limit(tiny_graph: Graph, monkeypatch) -> None:
    config = a_config(role="stage1", teacher="t", negatives=tiny_graph.num_entities)
    queries = len(queries_of(tiny_graph.train)[0])
    size = queries * tiny_graph.num_entities * bfloat16_where_fast(torch.device("cpu")).itemsize
    wide = remembered.WIDE
    assert scale.memory_needed(config, tiny_graph, wide)["the teacher's scores"] == size
    assert "the teacher's scores" not in scale.memory_needed(config, tiny_graph, wide - 1)
    changes = (
        {"top": 1},
        {"unlabelled": 0.5},
        {"epochs": 1},
        {"role": "stage2"},
        {"model": "TransE"},
        {"device": "cuda"},
    )
    for change in changes:
        assert "the teacher's scores" not in scale.memory_needed(config.model_copy(update=change), tiny_graph, wide)
    monkeypatch.setattr(remembered, "MOST", size - 1)
    assert "the teacher's scores" not in scale.memory_needed(config, tiny_graph, wide)


def test_a_teacher_whose_scores_find_no_room_is_asked_anew(tiny_graph: Graph, monkeypatch, caplog) -> None:
    """In training, after a line, and so no run is refused for them."""
    config = a_config(role="stage1", teacher="t", negatives=tiny_graph.num_entities)
    teacher, student = (
        build_model("ComplEx", tiny_graph.num_entities, tiny_graph.num_relations, 16, seed=s) for s in (1, 2)
    )
    monkeypatch.setattr(remembered, "WIDE", 16)
    assert make_engine(student, teacher, config, tiny_graph).said is not None and not caplog.records
    size = scale.memory_needed(config, tiny_graph, 16)["the teacher's scores"]
    for free, said in ((size + 3 * teacher.entities.nbytes, True), (size + 3 * teacher.entities.nbytes - 1, False)):
        monkeypatch.setattr(remembered, "available", lambda free=free: free)
        engine = make_engine(student, teacher, config, tiny_graph)
        assert (engine.said is not None) == said == ("teacher" in engine.arithmetic)
    assert "the teacher's scores take 0.0 GiB, and 0.0 are free" in caplog.text
    whole = sum(scale.memory_needed(config, tiny_graph, 2048).values())
    assert scale.check_memory({"distilled": config}, tiny_graph, whole - 1, 2048) == ""


def test_an_engine_is_gone_with_its_run(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it remembers takes gigabytes, and a process may train many."""
    made: list[weakref.ref] = []
    monkeypatch.setattr(loop, "make_engine", lambda *x: (made.append(weakref.ref(y := make_engine(*x))), y)[1])
    gc.disable()
    try:
        run(a_config(epochs=1, check_every=1), umls, progress=False)
        assert len(made) == 1 and made[0]() is None
    finally:
        gc.enable()
