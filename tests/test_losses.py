"""Eq. 1–11 against scalar loops written from the paper's text, weights, and who learns from whom."""

import math

import pytest
import torch
from test_models import COMPILED

from kgdistil import kernels, losses
from kgdistil.config import make_config
from kgdistil.models import build_model
from kgdistil.training.native import NativeEngine
from kgdistil.training.reference import ReferenceEngine

B, K, MARGIN = 7, 4, 1.3
ENGINES = [
    ReferenceEngine,
    pytest.param(
        NativeEngine,
        marks=pytest.mark.skipif(kernels.compiler() is None, reason="there is no C++ compiler"),
    ),
]


@pytest.fixture
def scores() -> dict[str, torch.Tensor]:
    """Scores of a student and a teacher for B triples and their K corruptions, and weights with zeros."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 2 * torch.randn(*shape, generator=generator)

    weight = draw(B, K).relu()
    assert (weight == 0).any() and (weight > 0).any()
    return {"p": draw(B), "n": draw(B, K), "w": weight, "tp": draw(B), "tn": draw(B, K)}


def sigmoid(x: float) -> float:
    return math.exp(x) / (1 + math.exp(x))


def cross_entropy(label: float, score: float) -> float:
    return -(label * math.log(sigmoid(score)) + (1 - label) * math.log(1 - sigmoid(score)))


def naive(equation: str, s: dict[str, torch.Tensor]) -> float:
    """One equation as the paper prints it, summed over the batch; a distance is minus a score."""
    p, n, w, tp, tn = (s[key].tolist() for key in ("p", "n", "w", "tp", "tn"))
    total = 0.0
    for i in range(len(p)):
        match equation:
            case "1":  # [f(h, t) − f(h', t') + γ]₊ with distances f
                total += sum(w[i][j] * max(0, -p[i] + n[i][j] + MARGIN) for j in range(K))
            case "4":  # |fᵀ − fˢ| of the triple and of each corruption
                total += abs(-tp[i] + p[i]) + sum(w[i][j] * abs(-tn[i][j] + n[i][j]) for j in range(K))
            case "6":  # −(y log p + (1 − y) log(1 − p))
                total += cross_entropy(1, p[i]) + sum(w[i][j] * cross_entropy(0, n[i][j]) for j in range(K))
            case "8":  # the same with the teacher's p in place of y
                total += cross_entropy(sigmoid(tp[i]), p[i])
                total += sum(w[i][j] * cross_entropy(sigmoid(tn[i][j]), n[i][j]) for j in range(K))
    return total


@pytest.mark.parametrize("equation", ["1", "4", "6", "8"])
def test_equations(equation, scores):
    p, n, w, tp, tn = scores.values()
    ours = {
        "1": lambda: losses.margin_hard_loss(p, n, w, MARGIN),
        "4": lambda: losses.margin_soft_loss(p, n, w, tp, tn),
        "6": lambda: losses.cross_entropy_hard_loss(p, n, w),
        "8": lambda: losses.cross_entropy_soft_loss(p, n, w, tp, tn),
    }[equation]()
    assert ours.item() == pytest.approx(naive(equation, scores) / B, rel=1e-5)  # the mean over the batch
    kind = "margin" if equation in "14" else "cross-entropy"
    by_name = losses.hard_loss(kind, p, n, w, MARGIN) if equation in "16" else losses.soft_loss(kind, p, n, w, tp, tn)
    assert by_name.item() == ours.item()


def test_stages_combine_as_printed():
    soft, hard, teacher_soft, teacher_hard = torch.tensor([2.0, 3.0, 5.0, 7.0])
    assert losses.stage_one_loss(soft, hard, 0.25).item() == 0.25 * 2 + 0.75 * 3
    assert losses.stage_one_loss(soft, hard, 0.0) == hard and losses.stage_one_loss(soft, hard, 1.0) == soft
    both = losses.stage_two_loss(soft, hard, teacher_soft, teacher_hard, 0.25, 0.5)
    assert both.item() == 0.25 * 2 + 0.75 * 3 + 0.5 * 5 + 0.5 * 7
    assert losses.stage_two_loss(soft, hard, teacher_soft, teacher_hard, 0.0, 1.0) == hard + teacher_soft
    assert losses.stage_two_loss(soft, hard, teacher_soft, teacher_hard, 1.0, 0.0) == soft + teacher_hard


def test_what_a_step_minimises_follows_from_who_has_losses():
    soft, hard = {"student": torch.tensor(2.0), "teacher": torch.tensor(5.0)}, {"student": torch.tensor(3.0)}
    both = hard | {"teacher": torch.tensor(7.0)}
    assert losses.total_loss({}, hard, 0.25, 0.5).item() == 3
    assert losses.total_loss({"student": soft["student"]}, hard, 0.25, 0.5).item() == 0.25 * 2 + 0.75 * 3
    assert losses.total_loss(soft, both, 0.25, 0.5).item() == 0.25 * 2 + 0.75 * 3 + 0.5 * 5 + 0.5 * 7
    assert losses.total_loss(soft, both, None, None).item() == 2 + 3 + 5 + 7  # DualDE


@pytest.mark.parametrize("mode", ["sum", "mean", "self-adversarial"])
def test_weights(mode):
    negative = torch.tensor([[1.0, 2.0, -1.0], [0.5, 300.0, -300.0], [1.0, 1.0, 1.0]], requires_grad=True)
    kept = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    weight = losses.negative_weights(negative, kept, mode, temperature=0.5)
    assert not weight.requires_grad and weight.shape == negative.shape
    assert (weight[~kept] == 0).all()
    if mode == "sum":
        assert (weight[kept] == 1).all()
    elif mode == "mean":
        torch.testing.assert_close(weight[kept], torch.full((5,), 1 / 3))
    else:
        torch.testing.assert_close(weight.sum(1), torch.tensor([1.0, 1.0, 0.0]))
        a, b = math.exp(0.5), math.exp(1.0)
        torch.testing.assert_close(weight[0, :2], torch.tensor([a / (a + b), b / (a + b)]))


@pytest.mark.parametrize("mode", ["sum", "mean", "self-adversarial"])
@pytest.mark.parametrize("kind", ["margin", "cross-entropy"])
def test_dropped_corruptions_count_nothing(kind, mode, scores):
    p, n, _, tp, tn = scores.values()
    kept = torch.rand(B, K, generator=torch.Generator().manual_seed(1)) < 0.5
    results = []
    for value in (0.0, 1e6):  # whatever the score of a dropped corruption
        negative = torch.where(kept, n, value).requires_grad_()
        weight = losses.negative_weights(negative, kept, mode)
        total = losses.hard_loss(kind, p, negative, weight, MARGIN)
        total = total + losses.soft_loss(kind, p, negative, weight, tp, torch.where(kept, tn, -value))
        total.backward()
        assert (negative.grad[~kept] == 0).all() and (negative.grad[kept] != 0).any()
        results.append(total.item())
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["margin", "cross-entropy"])
def test_losses_are_stable_at_large_scores(kind):
    p = torch.tensor([1e4, -1e4, 1e30], requires_grad=True)
    n = torch.tensor([[-1e4], [1e4], [-1e30]], requires_grad=True)
    weight = torch.ones(3, 1)
    hard = losses.hard_loss(kind, p, n, weight, 1.0)
    wrong = 2e4 + 1 if kind == "margin" else 2e4  # only the second triple is scored wrongly
    assert hard.item() == pytest.approx(wrong / 3)
    soft = losses.soft_loss(kind, p, n, weight, p.detach() / 2, n.detach() / 2)
    (hard + soft).backward()
    assert soft.isfinite() and p.grad.isfinite().all() and n.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["margin", "cross-entropy"])
def test_soft_labels_are_constants(kind, scores):
    p, n, w, tp, tn = (x.clone().requires_grad_() for x in scores.values())
    losses.soft_loss(kind, p, n, w.detach(), tp, tn).backward()
    assert tp.grad is None and tn.grad is None
    assert p.grad.abs().sum() > 0 and n.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["margin", "cross-entropy"])
def test_the_soft_loss_is_least_where_the_student_equals_its_teacher(kind, scores):
    p, n, w = (scores[key].clone().requires_grad_() for key in ("p", "n", "w"))
    losses.soft_loss(kind, p, n, w.detach(), p.detach(), n.detach()).backward()
    torch.testing.assert_close(p.grad, torch.zeros(B), atol=1e-7, rtol=0)
    torch.testing.assert_close(n.grad, torch.zeros(B, K), atol=1e-7, rtol=0)


# ---- in an engine: Eq. 5 and 11, and who moves ----------------------------------------------------------------------
def engine(kind, make, stage: int, graph, model: str = "DistMult", **changes):
    """An engine over the tiny graph with a student of dim 8 and, in stages 1 and 2, a teacher of dim 16."""
    sizes = graph.num_entities, graph.num_relations
    student = build_model(model, *sizes, 8, seed=1)
    teacher = build_model(model, *sizes, 16, seed=2) if stage else None
    settings = {"loss": kind, "model": model, "penalty": 0.0, "batch_size": 64, "seed": 4, "negatives": 5}
    roles = {"role": f"stage{stage}", "teacher": "t", "alpha": 0.3} if stage else {}
    own = {"beta": 0.6} if stage == 2 else {}
    return make(student, teacher, graph.train, make_config(**{**settings, **roles, **own, **changes}))


def run(e, epochs: int = 1, rate: float = 0.01) -> list[dict[str, float]]:
    return [e.epoch(i, torch.full((e.steps,), rate, dtype=torch.float64)) for i in range(epochs)]


@pytest.mark.parametrize("kind", ["margin", "cross-entropy"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_engine_minimises_eq_5_and_eq_11(kind, stage, tiny_graph):
    e = engine(kind, ReferenceEngine, stage, tiny_graph, penalty=0.1)
    total, parts = e.losses(tiny_graph.train[:50], torch.tensor(99))
    student_soft, student_hard, teacher_soft, teacher_hard, penalty = parts.tolist()
    expected = (
        student_hard + penalty,
        0.3 * student_soft + 0.7 * student_hard + penalty,
        0.3 * student_soft + 0.7 * student_hard + 0.6 * teacher_soft + 0.4 * teacher_hard + penalty,
    )[stage]
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert penalty > 0 and student_hard > 0 and (student_soft > 0) == (stage > 0)
    assert (teacher_soft > 0) == (teacher_hard > 0) == (stage == 2)


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("kind", ["margin", "cross-entropy"])
@pytest.mark.parametrize("model", dict(COMPILED))
def test_stage_one_leaves_the_teacher_bit_identical(make, kind, model, tiny_graph):
    e = engine(kind, make, 1, tiny_graph, model)
    student, teacher = e.models.values()
    before = [x.detach().clone() for x in teacher.parameters()]
    start = student.entities.detach().clone()
    run(e, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters()))
    assert all(x.grad is None for x in teacher.parameters())
    assert not torch.equal(start, student.entities)
    assert not any(name.startswith("teacher") for name in e.state())


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("kind", ["margin", "cross-entropy"])
def test_in_stage_two_each_learner_has_a_weight_of_its_own(make, kind, tiny_graph):
    def moments(**weights):
        e = engine(kind, make, 2, tiny_graph, batch_size=1000, **weights)  # one step
        run(e)
        return {name: x.clone() for name, x in e.state().items() if name.endswith("m")}

    base, alpha, beta = moments(), moments(alpha=0.9), moments(beta=0.1)
    for name, x in base.items():
        assert torch.equal(x, alpha[name]) == name.startswith("teacher")
        assert torch.equal(x, beta[name]) == name.startswith("student")
        assert x.abs().sum() > 0


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("kind", ["margin", "cross-entropy"])
def test_alpha_zero_is_training_without_a_teacher(make, kind, tiny_graph):
    alone, zero, half = (
        engine(kind, make, stage, tiny_graph, **more)
        for stage, more in ((0, {}), (1, {"alpha": 0.0}), (1, {"alpha": 0.5}))
    )
    hard = [run(e, epochs=3)[-1]["student_hard"] for e in (alone, zero, half)]
    assert hard[1] == pytest.approx(hard[0], rel=1e-5) and hard[2] != pytest.approx(hard[0], rel=1e-5)


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("kind", ["margin", "cross-entropy"])
def test_alpha_one_teaches_the_teachers_scores(make, kind, tiny_graph):
    def distance(epochs: int, alpha: float) -> float:
        """Mean |student's − teacher's score| of the training triples."""
        e = engine(kind, make, 1, tiny_graph, alpha=alpha)
        for p in e.models["teacher"].parameters():
            p.data *= 4
        run(e, epochs, rate=0.03)
        student, teacher = (model.score_triples(tiny_graph.train) for model in e.models.values())
        return (student - teacher).abs().mean().item()

    assert distance(40, alpha=1.0) < 0.8 * min(distance(0, alpha=1.0), distance(40, alpha=0.0))
