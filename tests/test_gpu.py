"""The CUDA path held to the CPU's, and what a captured step may not do."""

from collections.abc import Callable

import pytest
import torch
from test_models import VARIANTS
from torch.utils._python_dispatch import TorchDispatchMode

from kgdistil.compress.low_rank import low_rank
from kgdistil.config import make_config
from kgdistil.evaluation import KnownTriples, Ranks, rank
from kgdistil.kernels import adam
from kgdistil.models import MODELS, KGEModel, build_model
from kgdistil.sampling import NEGATIVE_STREAM, TripleSet, corrupt, epoch_order, stream
from kgdistil.students.predict import top
from kgdistil.training import reference
from kgdistil.training.base import Engine
from kgdistil.training.reference import ReferenceEngine
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine

SETTINGS = {"loss": "cross-entropy", "negatives": 4, "batch_size": 64, "seed": 3}  # three steps, one short
STAGES = [{}, {"role": "stage1", "teacher": "t", "alpha": 0.25}, {"role": "stage2", "teacher": "t", "alpha": 0.25}]


def make_models(name: str, graph, norm: int = 1, dims: tuple[int, ...] = (8, 16)) -> list[KGEModel]:
    """A student and its teacher on the CPU, off the grid where gradients jump."""
    models = []
    for dim in dims:
        offset = 2.0 if MODELS[name].distance else 0.0
        model = build_model(name, graph.num_entities, graph.num_relations, dim, norm=norm, offset=offset)
        noise = torch.Generator().manual_seed(dim)
        for p in model.parameters():
            p.data += 0.3 * torch.randn(p.shape, generator=noise)
        models.append(model)
    return models


def make_engine(device: str, name: str, graph, norm: int = 1, stage: int = 2, **changes) -> ReferenceEngine:
    kind = "ComplEx" if name == "low rank" else name
    student, teacher = (model.to(device) for model in make_models(kind, graph, norm))
    if name == "low rank":
        student, teacher = (low_rank(model.cpu(), 6).to(device) for model in (student, teacher))
    penalty = 0.0 if name in ("TransE", "RotatE") else 0.01
    config = make_config(**{"model": kind, "penalty": penalty, **SETTINGS, **STAGES[stage], **changes})
    return ReferenceEngine(student, teacher if stage else None, graph.train.to(device), config)


def run(
    engine: ReferenceEngine | SampledSoftmaxEngine, epochs: int, rate: float = 0.0, first: int = 0
) -> list[dict[str, float]]:
    rates = rate * torch.linspace(1, 0.5, engine.steps, dtype=torch.float64)
    return [engine.epoch(epoch, rates, rates / 2) for epoch in range(first, first + epochs)]


def tensors(engine: Engine) -> dict[str, torch.Tensor]:
    """Weights and moments, copied to the CPU."""
    weights = {f"{role}.{name}": p for role, m in engine.trained.items() for name, p in m.named_parameters()}
    return {key: x.detach().cpu().clone() for key, x in (weights | engine.state()).items()}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for key, x in one.items():
        assert (x - other[key]).abs().max() <= tolerance * x.abs().max(), key


class IntegersRead(TorchDispatchMode):
    """Counts the whole numbers that Python reads out of tensors."""

    count = 0

    def __torch_dispatch__(self, function: Callable, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.int64:
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("enough", [0, 8])
def test_a_step_reads_no_index_on_the_host(tiny_graph, monkeypatch, enough):
    """What the host reads while a step is captured would be frozen into every replay; CUDA refuses it."""
    monkeypatch.setattr(adam, "ENOUGH", enough)  # rows alone, or whole tables
    engine = make_engine("cpu", "RotatE", tiny_graph)
    with IntegersRead() as integers:
        engine.step(64)
    assert integers.count == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name, norm", VARIANTS)
@pytest.mark.parametrize("loss", ["margin", "cross-entropy"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_gradients_equal_the_cpus(name, norm, loss, stage, tiny_graph):
    """Moments are sums of gradients; at learning rate 0 roundings are not amplified from step to step."""
    for weighting in ("sum", "mean", "self-adversarial"):
        engines = [
            make_engine(device, name, tiny_graph, norm, stage, loss=loss, weighting=weighting)
            for device in ("cpu", "cuda")
        ]
        cpu, cuda = (run(engine, 2) for engine in engines)
        for a, b in zip(cpu, cuda):
            assert b == pytest.approx(a, rel=1e-5, abs=1e-9)
        assert_close(*map(tensors, engines), tolerance=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("enough", [0, 8])
@pytest.mark.parametrize("name", MODELS)
def test_weights_equal_the_cpus_after_epochs(name, enough, tiny_graph, monkeypatch):
    monkeypatch.setattr(adam, "ENOUGH", enough)
    engines = [make_engine(device, name, tiny_graph) for device in ("cpu", "cuda")]
    cpu, cuda = (run(engine, 3, rate=0.01) for engine in engines)
    assert cuda[-1] == pytest.approx(cpu[-1], rel=1e-4, abs=1e-9)
    assert_close(*map(tensors, engines), tolerance=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_negatives_and_orders_equal_the_cpus_bit_for_bit(seed, tiny_graph):
    draws = []
    for device in ("cpu", "cuda"):
        triples = tiny_graph.train.to(device)
        known = TripleSet(triples, tiny_graph.num_entities, tiny_graph.num_relations)
        draws.append(
            [
                *corrupt(triples, 25, known, stream(seed, NEGATIVE_STREAM, 10**6, device)),
                epoch_order(seed, 7, 100_003, device),
            ]
        )
    for a, b in zip(*draws):
        assert b.is_cuda and torch.equal(a, b.cpu())


class OnTheSpot:
    """Stands for a CUDA graph: to replay is to step."""

    def __init__(self, step: Callable[[], None]):
        self.replay = step


def warmed_up(step: Callable[[], None], undo: Callable[[], None]) -> OnTheSpot:
    """As `reference.capture`, where a capture runs what it records, which is more than CUDA does."""
    for _ in range(4):
        step()
        undo()
    return OnTheSpot(step)


@pytest.mark.parametrize("enough", [0, 8])
@pytest.mark.parametrize("name", [*MODELS, "low rank"])
def test_the_warm_up_of_a_capture_leaves_no_trace(name, enough, tiny_graph, monkeypatch):
    """Whatever a step changes is put back, the map that the entities of a low rank share included."""
    monkeypatch.setattr(adam, "ENOUGH", enough)
    monkeypatch.setattr(reference, "capture", warmed_up)
    eager, replayed = (make_engine("cpu", name, tiny_graph) for _ in range(2))
    replayed.take = replayed.replay
    losses = [run(engine, 3, rate=0.01) for engine in (eager, replayed)]
    assert losses[0] == losses[1] and sorted(replayed.graphs) == [32, 64]
    assert_close(tensors(eager), tensors(replayed), tolerance=0)


@pytest.mark.gpu
@pytest.mark.parametrize("enough", [0, 8])
@pytest.mark.parametrize("name", [*MODELS, "low rank"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_replayed_steps_equal_eager_ones(name, stage, enough, tiny_graph, monkeypatch):
    monkeypatch.setattr(adam, "ENOUGH", enough)
    eager, replayed = (make_engine("cuda", name, tiny_graph, stage=stage) for _ in range(2))
    eager.take = eager.step
    losses = [run(engine, 4, rate=0.01) for engine in (eager, replayed)]
    assert sorted(replayed.graphs) == [32, 64] and not eager.graphs  # 160 = 64 + 64 + 32
    for a, b in zip(*losses):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-9)
    assert_close(tensors(eager), tensors(replayed), tolerance=1e-3)


@pytest.mark.gpu
def test_stage_one_leaves_the_teacher_bit_identical(tiny_graph):
    engine = make_engine("cuda", "ComplEx", tiny_graph, stage=1)
    before = engine.models["teacher"].entities.detach().clone()
    run(engine, 2, rate=0.01)
    assert torch.equal(before, engine.models["teacher"].entities)


@pytest.mark.gpu
def test_the_seed_decides(tiny_graph):
    one, same, other = (make_engine("cuda", "RotatE", tiny_graph, seed=seed) for seed in (3, 3, 4))
    for engine in (one, same, other):
        run(engine, 2, rate=0.01)
    assert_close(tensors(one), tensors(same), tolerance=0)
    assert not torch.equal(one.models["student"].entities, other.models["student"].entities)


@pytest.mark.gpu
def test_a_resumed_engine_ends_with_the_same_bits(tiny_graph):
    whole = make_engine("cuda", "RotatE", tiny_graph)
    run(whole, 2, rate=0.01)
    half = tensors(whole)
    run(whole, 2, rate=0.01, first=2)
    resumed = make_engine("cuda", "RotatE", tiny_graph)
    for role, model in resumed.trained.items():
        model.load_state_dict({name: half[f"{role}.{name}"] for name in ("entities", "relations")})
    resumed.load_state({key: half[key] for key in resumed.state()})
    run(resumed, 2, rate=0.01, first=2)
    assert_close(tensors(whole), tensors(resumed), tolerance=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name, norm", VARIANTS)
def test_ranks_and_answers_equal_the_cpus(name, norm, tiny_graph):
    known = KnownTriples(tiny_graph.known, tiny_graph.num_relations)
    anchor, relation = tiny_graph.test[:, 0], tiny_graph.test[:, 1]
    ranks: list[Ranks] = []
    answers = []
    for device in ("cpu", "cuda"):
        model = make_models(name, tiny_graph, norm)[0]
        model.entities.data[15:] = model.entities.data[:15].clone()  # ties
        ranks.append(rank(model.to(device), tiny_graph.test, known, native=False))
        answers.append(top(model, anchor, relation, "tail", 5, known)[0].cpu())
    assert (ranks[0].greater == ranks[1].greater).all() and (ranks[0].equal == ranks[1].equal).all()
    assert ranks[0].equal.sum() > 0
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-5)


# ---- sampled softmax -------------------------------------------------------------------------------------------------
SOFTMAX = [*VARIANTS, ("low rank", 1), ("ComplEx of codes", 1), ("low rank of codes", 1)]


def softmax_engine(device: str, name: str, graph, norm: int = 1, stage: int = 2, **changes) -> SampledSoftmaxEngine:
    """One whose products are float32 on every device, so that devices can be compared."""
    low, coded = name.startswith("low rank"), name.endswith("of codes")
    kind = "ComplEx" if low or coded else name
    student, teacher = make_models(kind, graph, norm, dims=(8, 8))
    values = {"model": kind, "loss": "softmax", "dim": 8, "negatives": 20, "batch_size": 32, "accumulator": 0.01}
    values |= {"penalty": 0.0 if kind in ("TransE", "RotatE") else 0.01} | ({"rank": 8} if low else {}) | STAGES[stage]
    config = make_config(**{**values, **({"group": 2} if coded else {}), **changes})
    models = low_rank(student, 8) if low else student, teacher if stage else None
    engine = SampledSoftmaxEngine(*(m and m.to(device) for m in models), graph.train.to(device), config)
    engine.half = torch.float32
    return engine


@pytest.mark.parametrize("name, norm", SOFTMAX)
@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_sampled_softmax_resumes_from_its_state(device, name, norm, stage, tiny_graph):
    whole, resumed = (softmax_engine(device, name, tiny_graph, norm, stage) for _ in range(2))
    run(whole, 2, rate=0.05)
    half = tensors(whole)
    run(whole, 2, rate=0.05, first=2)
    for role, model in resumed.trained.items():
        model.load_state_dict({table: half[f"{role}.{table}"] for table, _ in model.named_parameters()})
    resumed.load_state({key: half[key] for key in resumed.state()})
    run(resumed, 2, rate=0.05, first=2)
    assert_close(tensors(whole), tensors(resumed), tolerance=0 if device == "cpu" else 1e-2)  # a GPU adds in any order


@pytest.mark.gpu
@pytest.mark.parametrize("name, norm", SOFTMAX)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_sampled_softmax_equals_the_cpus(name, norm, stage, tiny_graph):
    cpu, cuda = (softmax_engine(device, name, tiny_graph, norm, stage) for device in ("cpu", "cuda"))
    cuda.load_state(cpu.state())  # one codebook for both: k-means may take another turn
    for engine in (cpu, cuda):
        engine.losses = run(engine, 1, rate=1e-3)
    assert cuda.losses[0] == pytest.approx(cpu.losses[0], rel=1e-3, abs=1e-6)
    assert_close(tensors(cpu), tensors(cuda), tolerance=1e-2)
    assert cpu.arithmetic["products"] == cuda.arithmetic["products"] == "float32"
    assert "threads" in cpu.arithmetic and "threads" not in cuda.arithmetic


@pytest.mark.gpu
def test_sampled_softmax_learns_in_bfloat16(tiny_graph):
    engine = softmax_engine("cuda", "low rank of codes", tiny_graph, stage=1, top=3)
    engine.half = torch.bfloat16
    losses = run(engine, 20, rate=0.1)
    assert losses[-1]["student_hard"] < losses[0]["student_hard"]
    assert engine.as_saved()["student"].entities.is_cuda
