"""Score functions (the paper's Table 1). Larger means more plausible, everywhere in this package.

A model is two tables, `entities` [E, width] and `relations` [R, relation_width], and three short functions:

`score`      the equation, on embeddings that broadcast against each other: one triple, every tail of (h, r)
             and every head of (r, t) are the same call with other shapes;
`query`      (h, r) or (r, t) folded into one vector q, so that ranking compares q with every entity;
`compare`    q against candidates. `score(h, r, t) == compare(query(h, r, "tail"), t)` is tested for each model, and the
             same of "head" unless it is `directed`.

On the sign: the paper's Eq. 1 and 4 read f as a distance (small for true triples), its Table 1 negates the
distance and its Eq. 6 needs large values for true triples. Here f is always Table 1's, and `losses` writes
Eq. 1 with the two scores exchanged, which is the same loss.
"""

from __future__ import annotations

import copy
import importlib
import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgdistil.errors import ConfigError

Side = Literal["head", "tail"]
# What is asked for, and the columns of a triple that hold the given entity and the answer.
SIDES: tuple[tuple[Side, int, int], ...] = (("head", 2, 0), ("tail", 0, 2))


def complex_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary halves [..., d] of a complex vector stored as [..., 2·d]."""
    real, imaginary = x.chunk(2, dim=-1)
    return real, imaginary


def complex_product(a: Tensor, b: Tensor) -> Tensor:
    """a ∘ b (elementwise, complex), both stored as [..., 2·d]."""
    (ar, ai), (br, bi) = complex_parts(a), complex_parts(b)
    return torch.cat([ar * br - ai * bi, ar * bi + ai * br], dim=-1)


def conjugate(x: Tensor) -> Tensor:
    """x̄, stored as [..., 2·d]."""
    real, imaginary = complex_parts(x)
    return torch.cat([real, -imaginary], dim=-1)


class KGEModel(nn.Module):
    """A knowledge-graph embedding: what a teacher and a student have in common.

    Args:
        num_entities, num_relations: sizes E and R of the graph.
        dim: d of the paper. ComplEx, RotatE and SimplE hold 2·d floats an entity.
        norm: p of the distance, 1 or 2; RotatE takes that norm of the moduli; the dot products ignore it.
        offset: γ of `γ − distance`, zero where the loss is the margin loss, in which it cancels.
        epsilon: ε of RotatE's initialisation.
    Raises:
        ConfigError: a size or dimension below 1, or a norm other than 1 and 2.
    """

    loss: ClassVar[str] = "cross-entropy"  # the loss that the paper pairs with the model
    distance: ClassVar[bool] = False  # True: the score is offset − distance
    entity_factor: ClassVar[int] = 1  # floats an entity holds, in units of dim
    relation_factor: ClassVar[int] = 1
    query_factor: ClassVar[int] = 1  # floats of a query, in units of an entity's
    paired: ClassVar[bool] = False  # True: the halves of a row are real and imaginary parts
    directed: ClassVar[bool] = False  # True: (?, r, t) has a score of its own, and `score` is that of (h, r, ?)
    low_rank_form: ClassVar[str] = ""  # the kind that it is with fewer floats an entity, one of `ELSEWHERE`
    factored: ClassVar[bool] = False  # True: entities hold `rank` floats, and a map that all share
    rank: int = 0  # floats of an entity of low rank; 0: as many as the model has
    # What compiled kernels know of a class. Only its own body counts, since a subclass may score otherwise; where it
    # says nothing, PyTorch trains and ranks it.
    comparison: ClassVar[str | None] = None  # how `compare` works: "dot", "distance", "modulus" or "hyperplane"
    equation: ClassVar[str | None] = None  # its name in kernels/scores.h, for training

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        dim: int,
        *,
        norm: int = 1,
        offset: float = 0.0,
        epsilon: float = 2.0,
    ):
        super().__init__()
        for what, value in (("num_entities", num_entities), ("num_relations", num_relations), ("dim", dim)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{type(self).__name__}: {what} is {value!r}; it must be a whole number ≥ 1")
        if norm not in (1, 2):
            raise ConfigError(f"{type(self).__name__}: norm is {norm!r}; it must be 1 or 2")
        self.dim, self.norm, self.offset, self.epsilon = dim, norm, float(offset), float(epsilon)
        self.entities = nn.Parameter(torch.empty(num_entities, self.entity_factor * dim))
        self.relations = nn.Parameter(torch.empty(num_relations, self.relation_factor * dim))

    # ---- what a model defines -------------------------------------------------------------------
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial embeddings."""
        for table in (self.entities, self.relations):
            self.draw(table, len(table), generator)

    def draw(self, rows: Tensor, count: int, generator: torch.Generator | None) -> None:
        """Draw the next rows of a table of `count` (Glorot and Bengio 2010, uniform)."""
        bound = math.sqrt(6 / (count + rows.shape[1]))
        nn.init.uniform_(rows, -bound, bound, generator=generator)

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """f_r(h, t) of embeddings [..., width] that broadcast; returns scores [...]."""
        raise NotImplementedError

    def query(self, anchor: Tensor, r: Tensor, side: Side) -> Tensor:
        """q [..., query width] of (h, r, ?) for side "tail" or (?, r, t) for side "head"."""
        raise NotImplementedError

    def towards(self, r: Tensor, side: Side) -> Tensor:
        """What of relations [..., relation width] a query for that side uses: of a directed model, a half."""
        return r

    def compare(self, q: Tensor, candidates: Tensor) -> Tensor:
        """Scores [n, m] of queries [n, query width] against candidate entities [m, width]."""
        return q @ candidates.T

    def between(self, h: Tensor, t: Tensor) -> Tensor:
        """q [..., relation width] of (h, ?, t): a dot product's score is q · r, whatever the relation."""
        return h * t

    def directions(self, relations: Tensor) -> Tensor:
        """What `between` is compared with, of relations [R, width]: those of (t, ?, h) come last where they are others
        than those of (h, ?, t)."""
        return relations

    def penalty(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """What the regulariser adds to each positive triple [B] of embeddings [B, ·] (weight left out)."""
        return self.entity_penalty(h) + self.relation_penalty(r) + self.entity_penalty(t)

    def entity_penalty(self, x: Tensor) -> Tensor:
        """An entity's part of it [B]. Dot-product models: Σ|x|³, N3 of Lacroix et al. 2018. Distances have none, but
        TransH its own."""
        return (
            0 * x.sum(-1) if self.distance else Cubes.apply(x, self.modulus(x.detach()))
        )  # nothing has a gradient, too

    def relation_penalty(self, r: Tensor) -> Tensor:
        """A relation's part of it [B]."""
        return KGEModel.entity_penalty(self, r)

    def modulus(self, x: Tensor) -> Tensor:
        """|x| of each coordinate: complex models override it."""
        return x.abs()

    def rows(self, entities: Tensor) -> Tensor:
        """What entities [n, width] stand for in the score: a low rank maps them first."""
        return entities

    # ---- what every model has -------------------------------------------------------------------
    @property
    def num_entities(self) -> int:
        return self.entities.shape[0]

    @property
    def num_relations(self) -> int:
        return self.relations.shape[0]

    @property
    def num_parameters(self) -> int:
        """Floats in all (Table 5)."""
        return self.entities.numel() + self.relations.numel()

    def forward(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Scores of ids h, r, t (int64, shapes that broadcast)."""
        return self.score(*self.embed(h, r, t))

    def embed(self, h: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [..., width] of ids [...]."""
        return F.embedding(h, self.entities), F.embedding(r, self.relations), F.embedding(t, self.entities)

    def score_triples(self, triples: Tensor) -> Tensor:
        """Scores [n] of triples [n, 3]."""
        return self(*triples.unbind(-1))

    def score_tails(self, h: Tensor, r: Tensor) -> Tensor:
        """Scores [n, E] of every tail for (h, r), ids [n]."""
        return self.compare(self.queries(h, r, "tail"), self.entities)

    def score_heads(self, r: Tensor, t: Tensor) -> Tensor:
        """Scores [n, E] of every head for (r, t), ids [n]."""
        return self.compare(self.queries(t, r, "head"), self.entities)

    def queries(self, anchor: Tensor, r: Tensor, side: Side) -> Tensor:
        """Query vectors [n, query width] of ids [n]; the anchor is the entity that is given."""
        return self.query(F.embedding(anchor, self.entities), F.embedding(r, self.relations), side)


class TransE(KGEModel):
    """Bordes et al. 2013: f = −‖h + r − t‖ₚ.

    Entities start at unit length and are free after that: DistilE does not say that it restores the length in each
    step as the TransE paper does, and most implementations since do not.
    """

    loss, distance = "margin", True
    comparison, equation = "distance", "TransE"

    @torch.no_grad()
    def draw(self, rows: Tensor, count: int, generator: torch.Generator | None) -> None:
        """Uniform in ±6/√d, then unit length, as in the TransE paper's algorithm 1."""
        bound = 6 / math.sqrt(self.dim)
        nn.init.uniform_(rows, -bound, bound, generator=generator).copy_(F.normalize(rows, dim=-1))

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.offset - torch.linalg.vector_norm(h + r - t, self.norm, dim=-1)

    def query(self, anchor: Tensor, r: Tensor, side: Side) -> Tensor:
        return anchor + r if side == "tail" else anchor - r

    def compare(self, q: Tensor, candidates: Tensor) -> Tensor:
        return self.offset - torch.cdist(q, candidates, p=self.norm, compute_mode="donot_use_mm_for_euclid_dist")


class TransH(TransE):
    """Wang et al. 2014: f = −‖h⊥ + d_r − t⊥‖ₚ with x⊥ = x − (w·x)w on the hyperplane of unit normal w.

    A relation holds [d_r | w], 2·d floats; w is scaled to unit length wherever it is used.
    """

    relation_factor, query_factor = 2, 2
    comparison, equation = "hyperplane", "TransH"

    @staticmethod
    def parts(r: Tensor) -> tuple[Tensor, Tensor]:
        """Translation d_r and unit normal w, each [..., d]."""
        translation, normal = r.chunk(2, dim=-1)
        return translation, F.normalize(normal, dim=-1)

    def reset(self, generator: torch.Generator | None = None) -> None:
        super().reset(generator)
        with torch.no_grad():
            self.relations.copy_(torch.cat([F.normalize(x, dim=-1) for x in self.relations.chunk(2, -1)], -1))

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        d, w = self.parts(r)
        return super().score(on_hyperplane(h, w), d, on_hyperplane(t, w))

    def query(self, anchor: Tensor, r: Tensor, side: Side) -> Tensor:
        d, w = self.parts(r)
        point, w = torch.broadcast_tensors(super().query(on_hyperplane(anchor, w), d, side), w)
        return torch.cat([point, w], dim=-1)

    def compare(self, q: Tensor, candidates: Tensor) -> Tensor:
        point, w = q.chunk(2, dim=-1)
        projected = on_hyperplane(candidates, w[:, None])
        return self.offset - torch.linalg.vector_norm(point[:, None] - projected, self.norm, dim=-1)

    def entity_penalty(self, x: Tensor) -> Tensor:
        """TransH's soft constraint on entities: [‖e‖² − 1]₊."""
        return (x.square().sum(-1) - 1).relu()

    def relation_penalty(self, r: Tensor) -> Tensor:
        """TransH's soft constraint on relations: [(w·d_r)²/‖d_r‖² − ε²]₊, ε = 10⁻³."""
        d, w = self.parts(r)
        orthogonality = (w * d).sum(-1).square() / d.square().sum(-1).clamp_min(1e-12)
        return (orthogonality - 1e-6).relu()


class ComplEx(KGEModel):
    """Trouillon et al. 2016: f = Re(hᵀ diag(r) t̄)."""

    entity_factor = relation_factor = 2
    paired = True
    low_rank_form = "LowRankComplEx"
    comparison, equation = "dot", "ComplEx"

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return (complex_product(h, r) * t).sum(-1)

    def query(self, anchor: Tensor, r: Tensor, side: Side) -> Tensor:
        return complex_product(anchor, r if side == "tail" else conjugate(r))

    def between(self, h: Tensor, t: Tensor) -> Tensor:
        return complex_product(conjugate(h), t)

    def modulus(self, x: Tensor) -> Tensor:
        return safe_hypot(*complex_parts(x))

    def dura(self, x: Tensor, r: Tensor) -> Tensor:
        """An entity's part [B] of DURA (Zhang et al. 2020, weighted as in its code): ½|x|² + 1½|x ∘ r|², with relations
        [B, 2·d] as `towards` gives them."""
        of_x, of_r = (self.modulus(part).square() for part in (self.rows(x), r))
        return (of_x * (0.5 + 1.5 * of_r)).sum(-1)


class ReciprocalComplEx(ComplEx):
    """ComplEx with a vector of its own for each direction of a relation (Lacroix et al. 2018): (h, r, ?) takes the
    first, (?, r, t) the second. A triple's score is the first one's, its penalty the mean of both.
    """

    relation_factor, directed = 4, True
    low_rank_form = "LowRankReciprocal"
    comparison = "dot"

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return super().score(h, r.chunk(2, -1)[0], t)

    def query(self, anchor: Tensor, r: Tensor, side: Side) -> Tensor:
        return super().query(anchor, self.towards(r, side), side)

    def towards(self, r: Tensor, side: Side) -> Tensor:
        return r.chunk(2, -1)[side == "head"]

    def directions(self, relations: Tensor) -> Tensor:
        first, second = relations.chunk(2, -1)
        return torch.cat([first, conjugate(second)])

    def relation_penalty(self, r: Tensor) -> Tensor:
        return super().relation_penalty(r.unflatten(-1, (2, -1))).mean(-1)


class RotatE(KGEModel):
    """Sun et al. 2019: f = γ − Σᵢ|hᵢ rᵢ − tᵢ| with |rᵢ| = 1, so a relation is d angles.

    Table 1 prints the squared norm; the RotatE paper's experiments, its code and this class sum the moduli
    (norm 1). Norm 2, the Euclidean distance, is PyKEEN's RotatE: for teachers that were trained there.
    A stored relation value x means the angle π·x/range, range = (γ + ε)/d, as in the RotatE paper's code.
    """

    distance, entity_factor, paired = True, 2, True
    comparison, equation = "modulus", "RotatE"

    @property
    def range(self) -> float:
        return (self.offset + self.epsilon) / self.dim

    def draw(self, rows: Tensor, count: int, generator: torch.Generator | None) -> None:
        """Uniform in ±(γ + ε)/d; ConfigError where that is nothing."""
        if self.range <= 0:
            raise ConfigError(f"RotatE: offset + epsilon is {self.offset + self.epsilon}; it must be above 0")
        nn.init.uniform_(rows, -self.range, self.range, generator=generator)

    def rotation(self, r: Tensor) -> Tensor:
        """Unit complex numbers [..., 2·d] of stored relations [..., d]."""
        angle = r * (math.pi / self.range)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.offset - self.distance_from_zero(complex_product(h, self.rotation(r)) - t)

    def query(self, anchor: Tensor, r: Tensor, side: Side) -> Tensor:
        rotation = self.rotation(r)
        return complex_product(anchor, rotation if side == "tail" else conjugate(rotation))

    def compare(self, q: Tensor, candidates: Tensor) -> Tensor:
        if self.norm == 2:
            return self.offset - torch.cdist(q, candidates, compute_mode="donot_use_mm_for_euclid_dist")
        return self.offset - self.distance_from_zero(q[:, None] - candidates)

    def distance_from_zero(self, x: Tensor) -> Tensor:
        """Norm p of the moduli of complex vectors [..., 2·d]."""
        if self.norm == 2:
            return torch.linalg.vector_norm(x, dim=-1)
        return safe_hypot(*complex_parts(x)).sum(-1)


class DistMult(KGEModel):
    """Yang et al. 2015: f = Σᵢ hᵢ rᵢ tᵢ. Beyond the paper: what adding a model takes."""

    comparison, equation = "dot", "DistMult"

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return (h * r * t).sum(-1)

    def query(self, anchor: Tensor, r: Tensor, side: Side) -> Tensor:
        return anchor * r


class SimplE(KGEModel):
    """Kazemi and Poole 2018: f = ½(⟨h₁, r, t₂⟩ + ⟨t₁, r⁻¹, h₂⟩); entities hold [e₁ | e₂], relations [r | r⁻¹]."""

    entity_factor = relation_factor = 2
    comparison, equation = "dot", "SimplE"

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return (self.query(h, r, "tail") * t).sum(-1)

    def query(self, anchor: Tensor, r: Tensor, side: Side) -> Tensor:
        (first, second), (forward, backward) = anchor.chunk(2, -1), r.chunk(2, -1)
        if side == "tail":
            return torch.cat([second * backward, first * forward], -1) / 2
        return torch.cat([second * forward, first * backward], -1) / 2

    def between(self, h: Tensor, t: Tensor) -> Tensor:
        (first, second), (third, fourth) = h.chunk(2, -1), t.chunk(2, -1)
        return torch.cat([first * fourth, second * third], -1) / 2


class Cubes(torch.autograd.Function):
    """Σ|x|³ over the last dimension of x [..., W], of its moduli [..., W or W / 2]; its gradient is 3|x|x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, modulus: Tensor) -> Tensor:
        ctx.save_for_backward(x, modulus)
        return (modulus.square() * modulus).sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        x, modulus = ctx.saved_tensors
        weight = (3 * upstream)[..., None] * modulus
        return torch.cat([weight] * (x.shape[-1] // modulus.shape[-1]), -1) * x, None


def on_hyperplane(x: Tensor, w: Tensor) -> Tensor:
    """x − (w·x)w: x [..., d] projected along the unit normal w [..., d]."""
    return x - (x * w).sum(-1, keepdim=True) * w


def safe_hypot(a: Tensor, b: Tensor) -> Tensor:
    """√(a² + b²) whose gradient at the origin is zero, not NaN."""
    square = a.square() + b.square()
    return square.clamp_min(1e-30).sqrt()


def with_entities(model: KGEModel, rows: Tensor) -> KGEModel:
    """A copy of the model with other entities, as many as there are rows [n, width]."""
    rows = rows.detach().float().contiguous()
    return copy.deepcopy(model, {id(model.entities): nn.Parameter(rows)})  # its own rows are not copied first


KINDS = (TransE, TransH, ComplEx, RotatE, DistMult, SimplE, ReciprocalComplEx)
MODELS: dict[str, type[KGEModel]] = {c.__name__: c for c in KINDS}

# Kinds that live with what makes them, by their module: a file may name one, and a rank asks for one.
LOW = "kgdistil.compress.low_rank"
ELSEWHERE = {"LowRankComplEx": LOW, "LowRankReciprocal": LOW, "FreeTransH": "kgdistil.graphs.importers"}


def kind_of(name: str) -> type[KGEModel] | None:
    """The class of that name, in capitals or not; None where there is none."""
    if name.lower() in (known := {key.lower(): c for key, c in MODELS.items()}):
        return known[name.lower()]
    there = next((key for key in ELSEWHERE if key.lower() == name.lower()), None)
    return getattr(importlib.import_module(ELSEWHERE[there]), there) if there else None


def class_of(name: str, rank: int = 0) -> type[KGEModel]:
    """The class of a model's name, in capitals or not; of its low-rank form where there is a rank.

    Raises:
        ConfigError: no such model, or none of low rank.
    """
    found = kind_of(str(name))
    if found is None:
        raise ConfigError(f"model is {name!r}; choose one of {', '.join(MODELS)}")
    if rank and not found.factored:
        if not found.low_rank_form:
            able = ", ".join(key for key, c in MODELS.items() if c.low_rank_form)
            raise ConfigError(f"rank is {rank}, but only {able} can have one: leave it out")
        found = class_of(found.low_rank_form)
    return found


def build_model(
    name: str, num_entities: int, num_relations: int, dim: int, *, seed: int = 0, rank: int = 0, **options: Any
) -> KGEModel:
    """A freshly drawn model, the same for the same seed on every device.

    Args:
        name: one of `MODELS`, upper or lower case.
        rank: floats of an entity of low rank; 0: as many as the model has.
        options: `norm`, `offset`, `epsilon` of `KGEModel`.
    Raises:
        ConfigError: no such model, or impossible sizes.
    """
    kind = class_of(name, rank)
    model = kind(num_entities, num_relations, dim, **options, **({"rank": rank} if kind.factored else {}))
    model.reset(torch.Generator().manual_seed(seed))
    return model
