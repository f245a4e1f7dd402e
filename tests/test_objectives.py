"""Objectives beyond the paper: DualDE's losses, the teacher's best as candidates, a falling α, several teachers."""

import pytest
import torch
import torch.nn.functional as F

from kgdistil import records
from kgdistil.config import make_config
from kgdistil.errors import ConfigError
from kgdistil.graph import Graph
from kgdistil.graphs import queries
from kgdistil.graphs.queries import best_of, queries_of
from kgdistil.losses import dual_losses, dual_structure
from kgdistil.models import build_model
from kgdistil.paper import objectives
from kgdistil.paper.ensemble import joined
from kgdistil.training.engine import make_engine
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine

LISTS = {"model": "ComplEx", "dim": 4, "loss": "softmax", "role": "stage1", "teacher": "t", "negatives": 5}


# ---- DualDE ---------------------------------------------------------------------------------------------------------
def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def test_duals_losses_against_their_definition() -> None:
    draw = torch.Generator().manual_seed(0)
    positive, other_positive, structure = (torch.randn(3, generator=draw) for _ in range(3))
    negative, other_negative, weight = (torch.randn(3, 2, generator=draw) for _ in range(3))
    soft, hard = dual_losses(positive, negative, weight, other_positive, other_negative, structure)
    expected_soft = expected_hard = 0.0
    sigmoid = lambda x: float(x.sigmoid())
    for i in range(3):
        p, q = sigmoid(positive[i]), sigmoid(other_positive[i])
        expected_soft += q * (huber(p, q) + float(structure[i])) / 3
        expected_hard += (1 - q) * float(F.softplus(-positive[i])) / 3
        for j in range(2):
            p, q, w = sigmoid(negative[i, j]), sigmoid(other_negative[i, j]), float(weight[i, j])
            expected_soft += (1 - q) * huber(p, q) * w / 3
            expected_hard += q * float(F.softplus(negative[i, j])) * w / 3
    assert float(soft) == pytest.approx(expected_soft, rel=1e-5) and float(hard) == pytest.approx(
        expected_hard, rel=1e-5
    )


def test_structure_is_angle_and_ratio_of_lengths() -> None:
    h, t = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])  # a right angle, a ratio of 2
    other_h, other_t = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])  # no angle, a ratio of 1
    assert dual_structure(h, t, other_h, other_t).tolist() == [huber(0, 1) + huber(2, 1)]
    assert dual_structure(5 * h, 5 * t, h, t).tolist() == [0]  # length as such is free, and so is the dimension


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("name", ["ComplEx", "RotatE"])
def test_an_engine_minimises_dual_losses(stage: str, name: str, tiny_graph: Graph) -> None:
    config = make_config(model=name, dim=4, loss="dual", role=stage, teacher="t", penalty=0, weighting="mean")
    student, teacher = (
        build_model(name, tiny_graph.num_entities, tiny_graph.num_relations, d, seed=d, **config.model_options)
        for d in (4, 8)
    )
    before = teacher.entities.clone()
    engine = make_engine(student, teacher, config, tiny_graph)
    rates = torch.full((engine.steps,), 0.02, dtype=torch.float64)
    losses = [engine.epoch(i, rates, rates) for i in range(30)]
    assert (
        losses[-1]["student_soft"] + losses[-1]["student_hard"] < losses[0]["student_soft"] + losses[0]["student_hard"]
    )
    assert torch.equal(teacher.entities, before) == (stage == "stage1")


# ---- whole lists ----------------------------------------------------------------------------------------------------
def test_the_teachers_best_are_candidates(umls: Graph) -> None:
    student, teacher = (build_model("ComplEx", umls.num_entities, umls.num_relations, d, seed=d) for d in (4, 8))
    engine = SampledSoftmaxEngine(student, teacher, umls.train, make_config(**LISTS, top=3))
    scores = teacher.compare(teacher.queries(engine.anchor[:1], engine.relation[:1], "tail"), teacher.entities)
    assert not engine.is_head[0] and set(engine.top[0].tolist()) == set(scores[0].topk(3).indices.tolist())
    batch = torch.tensor([0, 7, len(engine.anchor) - 1])
    answers = torch.cat([engine.answers[engine.start[i] : engine.start[i] + engine.count[i]] for i in batch])
    ids, place, shift = engine.candidates(answers, torch.tensor(1), engine.top[batch])
    assert torch.equal(ids[place], answers) and len(ids.unique()) == len(ids)
    chosen = torch.isin(ids, torch.cat([answers, engine.top[batch].flatten().long()]))
    assert set(engine.top[batch].flatten().tolist()) <= set(ids.tolist())
    assert (shift[chosen] == 0).all() and (shift[~chosen] > 0).all() and 0 < int((~chosen).sum()) <= 5
    assert best_of(teacher, engine.anchor, engine.relation, engine.is_head, 10**6).shape[1] == umls.num_entities


def test_a_teacher_is_not_asked_for_days(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = build_model("ComplEx", umls.num_entities, umls.num_relations, 4)
    asked = queries_of(umls.train)[:3]
    whole = best_of(teacher, *asked, 3)
    monkeypatch.setattr(queries, "AT_ONCE", 7 * umls.num_entities)
    assert torch.equal(best_of(teacher, *asked, 3), whole)
    monkeypatch.setattr(queries, "MOST", len(asked[0]) * umls.num_entities - 1)
    with pytest.raises(ConfigError, match=f"top is 3: .* {len(asked[0]):,} queries against {umls.num_entities} enti"):
        best_of(teacher, *asked, 3)


def test_alpha_falls_evenly(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(**LISTS, alpha=1.0, alpha_last=0.0, epochs=5)
    assert [config.alpha_at(i) for i in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert make_config(**LISTS, alpha=0.3, epochs=5).alpha_at(4) == 0.3
    assert make_config(**LISTS, alpha=1.0, alpha_last=0.0, epochs=1).alpha_at(0) == 1


def test_several_teachers_are_one_whose_score_is_their_mean(umls: Graph) -> None:
    models = [build_model("ComplEx", umls.num_entities, umls.num_relations, d, seed=d) for d in (4, 6, 2)]
    expected = torch.stack([m.score_triples(umls.test) for m in models]).mean(0)
    whole = joined(models)
    assert whole.dim == 12 and torch.allclose(whole.score_triples(umls.test), expected, atol=1e-6)
    for others in (
        [models[0], build_model("ComplEx", 5, 2, 4)],
        [build_model("TransE", 5, 2, 4)],
        [build_model("ComplEx", 5, 2, 4, rank=3)],
    ):
        with pytest.raises(ConfigError, match="cannot join"):
            joined(others)


@pytest.mark.parametrize(
    "values, line",
    [
        ({"role": "stage1", "teacher": "t", "top": 3}, "top is 3, but only loss softmax takes it"),
        ({"loss": "softmax", "role": "no-ds", "alpha_last": 0.0}, "alpha_last is 0.0, but only stages 1 and 2"),
        ({"loss": "dual", "role": "no-ds"}, "loss is 'dual', but no-ds has no teacher: choose 'cross-entropy'"),
        ({"loss": "softmax", "role": "stage1", "teacher": "t", "top": -1}, "top is -1: "),
    ],
)
def test_what_cannot_be_is_said(values: dict, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(model="ComplEx", **values)
    assert line in str(error.value)


# ---- side by side ---------------------------------------------------------------------------------------------------
def test_all_objectives_run_with_as_many_updates(umls: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("KGDISTIL_RUNS", "KGDISTIL_RESULTS"):
        monkeypatch.setenv(name, str(tmp_path / name))
    from kgdistil.training.loop import run

    short = {"dataset": "umls", "model": "ComplEx", "dim": 8, "epochs": 2, "batch_size": 128, "lr": 0.05}
    softmax = {**short, "loss": "softmax", "negatives": 60}
    teacher = make_config(**softmax, role="teacher")
    other = make_config(**softmax, role="teacher", seed=1)
    run(teacher, umls, progress=False), run(other, umls, progress=False)
    made = {
        objectives.start_cell("umls", "few floats"): make_config(
            **{**softmax, "dim": 4}, role="stage1", teacher=teacher.run_id
        ),
        objectives.start_cell("umls", "few bits"): make_config(
            **softmax, role="stage1", teacher=teacher.run_id, student=teacher.run_id, group=4
        ),
        objectives.LOGISTIC: make_config(**{**short, "dim": 4}, role="stage1", teacher="another"),
        objectives.SECOND_TEACHER: other,
    }
    monkeypatch.setattr(objectives, "start_of", lambda dataset, cell: made[cell].model_dump())
    monkeypatch.setattr(objectives, "EPOCHS", {"few floats": 2, "few bits": 2})
    objectives.complete("umls")
    frame = objectives.points("umls")
    assert list(frame["objective"]) == list(objectives.OBJECTIVES) + objectives.possible("few bits")
    assert set(frame["objective"][frame["student"] == "few bits"]).isdisjoint({"the paper's", "DualDE"})
    first = ~frame["student"].duplicated()
    assert (frame["gain"][first] == 0).all() and frame["p"][first].isna().all() and frame["p"][~first].notna().all()
    assert frame["mrr"].between(0, 1).all() and frame["run"].is_unique
    updates = {}
    for row in frame.itertuples():
        todo = objectives.runs("umls", row.student, row.objective, umls)
        assert todo[-1].run_id == row.run and records.record_path(row.run).is_file()
        updates[row.student, row.objective] = sum(c.epochs * objectives.steps_of(c, umls) for c in todo)
    whole = objectives.steps_of(make_config(**softmax, role="teacher"), umls)
    assert all(
        abs(n - 2 * whole) <= (len(umls.train) // 128 if "paper" in o or o == "DualDE" else 0)
        for (_, o), n in updates.items()
    )
    objectives.complete("umls")  # nothing is missing
    assert len(objectives.points("umls")) == len(frame)
