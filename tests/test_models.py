"""Score functions: sizes, equations, shapes, gradients, and what adding a model takes."""

import cmath
import importlib.util
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from kgdistil import cli, kernels, load_labelled, predict
from kgdistil.compress.low_rank import LowRankComplEx, low_rank
from kgdistil.config import make_config
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.kernels.pairs import compare
from kgdistil.kernels.train import train_library
from kgdistil.models import MODELS, KGEModel, TransE, build_model, conjugate
from kgdistil.training.reference import ReferenceEngine

VARIANTS = [(name, norm) for name in MODELS for norm in ((1, 2) if name in ("TransE", "TransH") else (1,))]
COMPILED = [(name, norm) for name, norm in VARIANTS if "equation" in vars(MODELS[name])]  # of negative sampling
LOW_RANK = ("LowRankComplEx", "LowRankReciprocal")
EVERY = [*VARIANTS, *((name, 1) for name in LOW_RANK)]
TABLE_5 = {  # parameters on WN18RR for d = 64, 32, 16, 8
    "TransE": (2_621_056, 1_310_528, 655_264, 327_632),
    "TransH": (2_621_760, 1_310_880, 655_440, 327_720),
    "ComplEx": (5_242_112, 2_621_056, 1_310_528, 655_264),
    "RotatE": (5_241_408, 2_620_704, 1_310_352, 655_176),
}


RECIPROCAL = {"ReciprocalComplEx": "ComplEx", "LowRankReciprocal": "LowRankComplEx"}


def directions(model: KGEModel, name: str) -> list[KGEModel]:
    """The models of that name that (h, r, ?) and (?, r, t) are asked of."""
    sizes, rank = (model.num_entities, model.num_relations, model.dim), {"rank": model.rank} if model.rank else {}
    found = [build_model(name, *sizes, **rank) for _ in range(2)]
    for one, relations in zip(found, model.relations.chunk(2, -1), strict=True):
        one.load_state_dict(model.state_dict() | {"relations": relations})
    return found


def naive_score(model: KGEModel, h: int, r: int, t: int) -> float:
    """The score of one triple with Python's numbers, from the papers that introduced the models."""
    x, relation, y = (row.tolist() for row in (model.entities[h], model.relations[r], model.entities[t]))
    d = model.dim
    if name := RECIPROCAL.get(type(model).__name__):
        return naive_score(directions(model, name)[0], h, r, t)

    def minus_distance(difference: list[float]) -> float:
        if model.norm == 1:
            return model.offset - sum(abs(u) for u in difference)
        return model.offset - math.sqrt(sum(u * u for u in difference))

    def complex_vector(v: list[float]) -> list[complex]:
        return [complex(a, b) for a, b in zip(v[:d], v[d:])]

    match type(model).__name__:
        case "TransE":  # −‖h + r − t‖
            return minus_distance([x[i] + relation[i] - y[i] for i in range(d)])
        case "TransH":  # −‖(h − wᵀh w) + d_r − (t − wᵀt w)‖, ‖w‖ = 1
            translation, normal = relation[:d], relation[d:]
            length = math.sqrt(sum(u * u for u in normal))
            w = [u / length for u in normal]
            wx, wy = (sum(a * b for a, b in zip(w, v)) for v in (x, y))
            return minus_distance([(x[i] - wx * w[i]) + translation[i] - (y[i] - wy * w[i]) for i in range(d)])
        case "LowRankComplEx":  # that of ComplEx, of (x A, r, y A)
            x, y = ([sum(a * b for a, b in zip(v, column)) for column in model.map.T.tolist()] for v in (x, y))
            parts = zip(*map(complex_vector, (x, relation, y)))
            return sum(a * b * c.conjugate() for a, b, c in parts).real
        case "ComplEx":  # Re(Σ h r t̄)
            parts = zip(*map(complex_vector, (x, relation, y)))
            return sum(a * b * c.conjugate() for a, b, c in parts).real
        case "RotatE":  # γ − Σ |h e^{iθ} − t|, θ = π · stored / ((γ + ε) / d)
            span = (model.offset + model.epsilon) / d
            turned = [a * cmath.exp(1j * math.pi * v / span) for a, v in zip(complex_vector(x), relation)]
            return model.offset - sum(abs(a - b) for a, b in zip(turned, complex_vector(y)))
        case "DistMult":  # Σ h r t
            return sum(x[i] * relation[i] * y[i] for i in range(d))
        case "SimplE":  # ½ (⟨head of h, r, tail of t⟩ + ⟨head of t, r⁻¹, tail of h⟩)
            forward = sum(x[i] * relation[i] * y[d + i] for i in range(d))
            return (forward + sum(y[i] * relation[d + i] * x[d + i] for i in range(d))) / 2
    raise NotImplementedError(type(model).__name__)


def shaken(name: str, entities: int = 9, relations: int = 3, dim: int = 5, **options) -> KGEModel:
    """A model off its initial grid: lengths, normals and angles are arbitrary."""
    given = {"offset": 1.5, **({"rank": 6} if name in LOW_RANK else {}), **options}
    model = build_model(name, entities, relations, dim, seed=1, **given)
    noise = torch.Generator().manual_seed(2)
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=noise)
    return model


@pytest.mark.parametrize("name", TABLE_5)
@pytest.mark.parametrize("place, dim", list(enumerate((64, 32, 16, 8))))
def test_parameter_counts_are_those_of_table_5(name, place, dim):
    model = MODELS[name](40_943, 11, dim)
    assert model.num_parameters == sum(p.numel() for p in model.parameters()) == TABLE_5[name][place]


@pytest.mark.parametrize("name, norm", EVERY)
def test_triples_tails_and_heads_agree_with_the_papers_equation(name, norm):
    model = shaken(name, norm=norm)
    ids = [(h, r, t) for h in range(9) for r in range(3) for t in range(9)]
    naive = torch.tensor([naive_score(model, *x) for x in ids]).view(9, 3, 9)
    triples = torch.tensor(ids)
    h, r = (x.flatten() for x in torch.meshgrid(torch.arange(9), torch.arange(3), indexing="ij"))
    torch.testing.assert_close(model.score_triples(triples).view(9, 3, 9), naive, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.score_tails(h, r).view(9, 3, 9), naive, rtol=1e-5, atol=1e-5)
    heads = model.score_heads(r, h).view(9, 3, 9).permute(2, 1, 0)  # [t, r, h] -> [h, r, t]
    if name in RECIPROCAL:
        assert not torch.allclose(heads, naive)
        naive = directions(model, RECIPROCAL[name])[1].score_triples(triples).view(9, 3, 9)
    torch.testing.assert_close(heads, naive, rtol=1e-5, atol=1e-5)


def test_reciprocal_relations_whose_directions_are_alike_are_plain_ones():
    plain, both = shaken("ComplEx"), shaken("ReciprocalComplEx")
    both.entities.data, both.relations.data = plain.entities.data, plain.relations.data.repeat(1, 2)
    h, r, t = plain.embed(*torch.tensor([[0, 1], [2, 1], [3, 3]]))
    two = both.relations[torch.tensor([2, 1])]
    for side in ("head", "tail"):
        assert torch.equal(both.query(h, two, side), plain.query(h, r, side))
    torch.testing.assert_close(both.penalty(h, two, t), plain.penalty(h, r, t))
    for vector in both.directions(two).chunk(2):  # the second is that of (t, ?, h)
        torch.testing.assert_close((both.between(h, t) * vector).sum(-1), plain.score(h, r, t))
        h, t, r = t, h, conjugate(r)
    torch.testing.assert_close(both.score(h, two, t), plain.score(h, r, t))


@pytest.mark.parametrize("name, norm", EVERY)
def test_shapes_broadcast(name, norm):
    model = shaken(name, norm=norm)
    h, r, t = (torch.randint(n, (4, 1), generator=torch.Generator().manual_seed(n)) for n in (9, 3, 8))
    corrupted = torch.arange(7).expand(4, 7)
    assert model(h, r, corrupted).shape == model(corrupted, r, t).shape == (4, 7)
    assert model.queries(h[:, 0], r[:, 0], "tail").shape == (
        4,
        model.query_factor * model.entities.shape[1],
    )
    torch.testing.assert_close(model(h, r, corrupted)[2, 5], model(h[2, 0], r[2, 0], torch.tensor(5)))


@pytest.mark.parametrize("name, norm", EVERY)
@pytest.mark.parametrize("place", ["anywhere", "all rows zero", "distance zero"])
def test_gradients_are_finite(name, norm, place):
    model = shaken(name, norm=norm)
    if place == "all rows zero":
        for p in model.parameters():
            p.data.zero_()
    if place == "distance zero":  # t is exactly the query of (h, r), for TransH on a hyperplane through all
        width = model.entities.shape[1]
        if name == "TransH":
            model.entities.data[:, 0] = model.relations.data[:, 0] = 0
            model.relations.data[:, width:] = F.one_hot(torch.tensor(0), width).float()
        model.entities.data[1] = model.queries(torch.tensor([0]), torch.tensor([0]), "tail")[0, :width].detach()
        if model.distance:
            assert model(*torch.tensor([0, 0, 1])).item() == pytest.approx(model.offset, abs=1e-6)
    h, r, t = (torch.tensor([x]) for x in (0, 0, 1))
    for scores in (model(h, r, t), model.score_tails(h, r), model.score_heads(r, t)):
        model.zero_grad()
        scores.sum().backward()
        for p in model.parameters():
            assert p.grad.isfinite().all()
    model.zero_grad()
    model.penalty(*model.embed(h, r, t)).sum().backward()
    for p in model.parameters():
        assert p.grad is None or p.grad.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_the_weights(name):
    one, same, other = (build_model(name, 9, 3, 4, seed=seed) for seed in (5, 5, 6))
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters()):
        assert torch.equal(a, b) and not torch.equal(a, c)
        assert a.isfinite().all() and a.std() > 0
    assert type(build_model(name.upper(), 9, 3, 4)) is MODELS[name]


@torch.no_grad()
def test_initial_embeddings_are_the_papers():
    transe, transh = (build_model(name, 50, 20, 8) for name in ("TransE", "TransH"))
    for rows in (transe.entities, transe.relations, transh.entities, *transh.relations.chunk(2, -1)):
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))
    rotate = build_model("RotatE", 500, 20, 8, offset=6.0, epsilon=2.0)
    for table in (rotate.entities, rotate.relations):  # uniform in ±(γ + ε)/d = ±1
        assert table.abs().max() <= 1 and table.abs().mean() == pytest.approx(0.5, abs=0.1)
    moduli = rotate.rotation(rotate.relations).view(20, 2, 8).norm(dim=1)
    torch.testing.assert_close(moduli, torch.ones(20, 8))
    complex_rows = build_model("ComplEx", 500, 20, 8).entities  # Glorot: uniform in ±√(6 / (500 + 16))
    assert 0.99 < complex_rows.abs().max() / math.sqrt(6 / 516) <= 1


def test_transh_normals_are_unit_wherever_they_are_used():
    model = shaken("TransH")
    _, w = model.parts(model.relations)
    torch.testing.assert_close(w.norm(dim=-1), torch.ones(3))
    stretched = shaken("TransH")
    stretched.relations.data[:, model.dim :] *= 7
    triples = torch.tensor([[0, 1, 2], [3, 2, 4]])
    torch.testing.assert_close(model.score_triples(triples), stretched.score_triples(triples))


def test_penalties_are_the_papers():
    h, t = torch.tensor([[0.6, 0.9]]), torch.tensor([[0.1, 0.2]])
    transh = MODELS["TransH"](2, 1, 2)
    # d_r = (3, 4), w = (0, 2)/2: (w·d)²/‖d‖² = 16/25; ‖h‖² − 1 = 0.17; ‖t‖ < 1 costs nothing
    penalty = transh.penalty(h, torch.tensor([[3.0, 4.0, 0.0, 2.0]]), t)
    assert penalty.item() == pytest.approx(0.17 + 16 / 25 - 1e-6)
    assert transh.penalty(t, torch.tensor([[3.0, 0.0, 0.0, 2.0]]), t).item() == 0
    n3 = MODELS["DistMult"](2, 1, 2).penalty(h, -h, t)
    assert n3.item() == pytest.approx(2 * (0.6**3 + 0.9**3) + 0.1**3 + 0.2**3)
    c = torch.tensor([[3.0, 4.0]])  # |3 + 4i| = 5
    assert MODELS["ComplEx"](2, 1, 1).penalty(c, c, 0 * c).item() == pytest.approx(250)


@torch.no_grad()
def test_a_low_rank_keeps_what_its_axes_hold():
    """At the full rank the same scores; at a lower one the nearest table of that rank, with floats that vary alike."""
    model = build_model("ComplEx", 60, 3, 8, seed=4)
    model.entities.data *= torch.arange(1, 17) / 16  # some axes hold more than others
    triples = torch.cartesian_prod(torch.arange(60), torch.arange(3), torch.arange(60))
    whole, part = low_rank(model, 16), low_rank(model, 6)
    torch.testing.assert_close(whole.score_triples(triples), model.score_triples(triples), atol=1e-6, rtol=1e-4)
    left = part.entities @ part.map - model.entities
    assert left.norm() == pytest.approx(float(torch.linalg.svdvals(model.entities)[6:].norm()), rel=1e-4)
    torch.testing.assert_close(part.map @ part.map.T, torch.eye(6), atol=1e-5, rtol=0)
    spread, axes = part.entities.square().mean(0), torch.linalg.svdvals(model.entities)[:6].square() / 60
    assert spread.max() / spread.min() < axes.max() / axes.min()
    assert torch.equal(part.map, low_rank(model, 6).map) and not torch.equal(part.map, low_rank(model, 6, seed=1).map)
    assert part.num_parameters == 60 * 6 + 6 * 16 + 3 * 16 == sum(p.numel() for p in part.parameters())
    assert type(build_model("complex", 60, 3, 8, rank=6)) is LowRankComplEx


@pytest.mark.parametrize("rank", [-1, 17, 2.0, "six"])
def test_ranks_that_are_none(rank):
    with pytest.raises(ConfigError, match="from 1 to 2 × 8"):
        build_model("ComplEx", 9, 3, 8, rank=rank)


def test_only_complex_has_a_low_rank():
    with pytest.raises(ConfigError, match="only ComplEx, ReciprocalComplEx can have one"):
        build_model("TransE", 9, 3, 8, rank=4)
    with pytest.raises(ConfigError, match="start from is a TransE"):
        low_rank(build_model("TransE", 9, 3, 8), 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("TransX", 9, 3, 4), "TransX.*TransE, TransH"),
        ((None, 9, 3, 4), "None"),
        (("TransE", 0, 3, 4), "num_entities is 0"),
        (("TransE", 9, -1, 4), "num_relations is -1"),
        (("RotatE", 9, 3, 0), "dim is 0"),
        (("RotatE", 9, 3, "eight"), "dim is 'eight'"),
        (("RotatE", 9, 3, 8.0), "dim is 8.0"),
    ],
)
def test_bad_names_and_sizes(arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_model(*arguments)


@pytest.mark.parametrize("norm", [0, 3, "1", None])
def test_bad_norms(norm):
    with pytest.raises(ConfigError, match="norm is"):
        build_model("TransE", 9, 3, 4, norm=norm)


def test_rotate_needs_a_range():
    with pytest.raises(ConfigError, match="epsilon"):
        build_model("RotatE", 9, 3, 4, offset=0.0, epsilon=0.0)


NEW_MODEL = """
from kgdistil.models import MODELS, KGEModel


class SquaredTransE(KGEModel):
    '''All that a new model takes: f = γ − ‖h + r − t‖².'''

    loss, distance = "margin", True

    def score(self, h, r, t):
        return self.offset - (h + r - t).square().sum(-1)

    def query(self, anchor, r, side):
        return anchor + r if side == "tail" else anchor - r

    def compare(self, q, candidates):
        return self.offset - (q[:, None] - candidates).square().sum(-1)


MODELS["SquaredTransE"] = SquaredTransE
"""


@pytest.fixture
def new_model(tmp_path, monkeypatch, own_folders):
    """The class of a module of one's own, as CONTRIBUTING.md describes it; gone again afterwards."""
    monkeypatch.setitem(MODELS, "SquaredTransE", None)  # so that what stood there, nothing, is put back
    (tmp_path / "my_model.py").write_text(NEW_MODEL, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("my_model", tmp_path / "my_model.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    kernels.kinds.slower.cache_clear()
    return MODELS["SquaredTransE"]


def test_one_class_is_enough_for_a_new_model(tiny_graph, new_model, caplog):
    model = new_model(tiny_graph.num_entities, tiny_graph.num_relations, 8)
    model.reset(torch.Generator().manual_seed(0))
    engine = ReferenceEngine(model, None, tiny_graph.train, make_config(loss="margin", batch_size=32))
    rates = torch.full((engine.steps,), 0.02, dtype=torch.float64)
    losses = [engine.epoch(epoch, rates)["student_hard"] for epoch in range(8)]
    assert losses[-1] < 0.8 * losses[0]
    ranks = rank(model, tiny_graph.train, KnownTriples(tiny_graph.known, tiny_graph.num_relations)).ranks()
    known = set(map(tuple, tiny_graph.known.tolist()))
    for i, (h, r, t) in enumerate(tiny_graph.train.tolist()):  # as the score says, whatever a kernel might think
        score = model.score_tails(torch.tensor([h]), torch.tensor([r]))[0].tolist()
        assert ranks[i, 1] == 1 + sum(score[e] > score[t] for e in range(30) if (h, r, e) not in known)
    assert ranks.mean() < 13  # of 30: it has learnt something
    best = predict(model, tiny_graph, head="e03", relation="r1", k=30)["score"].tolist()
    by_hand = model.score_tails(torch.tensor([3]), torch.tensor([1]))[0].detach()
    torch.testing.assert_close(torch.tensor(best), by_hand.sort(descending=True).values)
    pairs = compare(model, model.entities[:5], model.entities[:7])
    torch.testing.assert_close(pairs, model.compare(model.entities[:5], model.entities[:7]))
    assert [r.levelname for r in caplog.records if "SquaredTransE: no compiled kernel" in r.getMessage()] == ["WARNING"]


@pytest.mark.parametrize("base", [KGEModel, TransE])
def test_a_model_whose_equations_do_not_agree_is_refused_before_it_is_ranked(tiny_graph, base):
    """A distance that inherits the dot product's `compare`, or another distance's."""

    class Other(base):
        distance = True

        def score(self, h, r, t):
            return self.offset - (h + r - t).abs().pow(1.5).sum(-1)

        def query(self, anchor, r, side):
            return anchor + r if side == "tail" else anchor - r

    model = Other(tiny_graph.num_entities, tiny_graph.num_relations, 8)
    model.reset(torch.Generator().manual_seed(0))
    known = KnownTriples(tiny_graph.known, tiny_graph.num_relations)
    with pytest.raises(ConfigError, match="would be ranked by another equation"):
        rank(model, tiny_graph.test, known)


def test_every_command_works_with_a_new_model(tiny_graph, new_model, tmp_path):
    lines = [f"{h}\t{r}\t{t}" for h, r, t in (tiny_graph.label_triple(*x) for x in tiny_graph.known.tolist())]
    (tmp_path / "triples.tsv").write_text("\n".join(lines) + "\n")

    def kgdistil(*arguments):
        return CliRunner().invoke(cli.main, [str(tmp_path / x) if x in ("triples.tsv", "s") else x for x in arguments])

    made = kgdistil("distill", "triples.tsv", "--model", "SquaredTransE", "--epochs", "3", "--dim", "2", "-o", "s")
    assert made.exit_code == 0, made.output
    assert made.stderr.count("no compiled kernel") == 1
    student = load_labelled(tmp_path / "s")
    assert type(student.model) is new_model and student.precision == "int8"
    assert len(student.similar("e03", 4)) == 4 and {row["precision"] for row in student.about["precisions"]} >= {"2bit"}
    (tmp_path / "q.tsv").write_text("e03\tr1\t\n\tr0\te04\n")
    batch = ["predict", "s", "--batch", str(tmp_path / "q.tsv")]
    assert len(kgdistil(*batch).stdout.splitlines()) == 21
    for command in (["predict", "s", "--head", "e03", "--relation", "r1"], ["evaluate", "s"], ["similar", "s", "e03"]):
        assert kgdistil(*command).exit_code == 0
    npz = str(tmp_path / "s.npz")
    assert kgdistil("export", "s", "--to", "npz", "-o", npz).exit_code == 0
    with np.load(npz) as file:
        assert str(file["model"]) == "SquaredTransE"
    for form in ("onnx", "browser"):
        refused = kgdistil("export", "s", "--to", form, "-o", str(tmp_path / form))
        assert refused.exit_code == 1 and len(refused.stderr.splitlines()) == 1 and not (tmp_path / form).exists()
    student.quantised("2bit").save(tmp_path / "few")
    few = load_labelled(tmp_path / "few")
    assert few.evaluate()["both"] == student.quantised("2bit").evaluate()["both"]


def test_what_a_class_inherits_says_nothing_about_its_kernels(new_model):
    """A subclass may score otherwise; one that says how it compares is known, and told from its equation."""
    own = type("Mine", (MODELS["TransE"],), {})
    assert not kernels.usable(own(5, 2, 8)) and train_library(own(5, 2, 8)) is None
    says = type("Mine", (MODELS["TransE"],), {"comparison": "distance"})
    assert kernels.usable(says(5, 2, 8)) and train_library(says(5, 2, 8)) is None
    known = KnownTriples(torch.tensor([[0, 0, 1]]), 2)
    with pytest.raises(ConfigError, match="leave native out"):  # not a dot product, because nothing else was said
        rank(build_model("SquaredTransE", 5, 2, 8), torch.tensor([[0, 0, 1]]), known, native=True)
