"""Entities of few floats and one map that all of them share: ComplEx of low rank."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kgdistil.errors import ConfigError
from kgdistil.models import ComplEx, ReciprocalComplEx, Side


class LowRankComplEx(ComplEx):
    """ComplEx whose entities lie in one subspace: f = Re((x A)ᵀ diag(r) conj(y A)) with x, y of `rank` floats each.

    The map A [rank, 2·dim] is shared, so an entity costs what its `rank` floats cost, while relations act in all `dim`
    complex dimensions. A query is taken back through Aᵀ, so that ranking compares `rank` floats too. (A Tucker
    decomposition, as TuckER of Balažević et al. 2019, whose core is ComplEx's.)

    Args:
        rank: floats of an entity, at most 2·dim.
    Raises:
        ConfigError: as `KGEModel`, or another rank.
    """

    paired, factored, comparison = False, True, "dot"

    def __init__(self, num_entities: int, num_relations: int, dim: int, *, rank: int, **options: Any):
        super().__init__(num_entities, num_relations, dim, **options)
        if not isinstance(rank, int) or not 1 <= rank <= self.entities.shape[1]:
            raise ConfigError(f"{type(self).__name__}: rank is {rank!r}; it must be a whole number from 1 to 2 × {dim}")
        self.rank = rank
        self.entities = nn.Parameter(torch.empty(num_entities, rank))
        self.map = nn.Parameter(torch.empty(rank, self.entity_factor * dim))

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Entities and relations as ComplEx, the rows of the map orthonormal."""
        super().reset(generator)
        with torch.no_grad():
            nn.init.orthogonal_(self.map, generator=generator)

    @property
    def num_parameters(self) -> int:
        return super().num_parameters + self.map.numel()

    def rows(self, entities: Tensor) -> Tensor:
        return entities @ self.map

    @functools.cached_property
    def inner(self) -> ComplEx:
        """What compares `rows`: the model that this is a form of."""
        kind = ReciprocalComplEx if isinstance(self, ReciprocalComplEx) else ComplEx
        return kind(1, 1, self.dim, norm=self.norm, offset=self.offset, epsilon=self.epsilon)

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return super().score(self.rows(h), r, self.rows(t))

    def query(self, anchor: Tensor, r: Tensor, side: Side) -> Tensor:
        return super().query(self.rows(anchor), r, side) @ self.map.T

    def between(self, h: Tensor, t: Tensor) -> Tensor:
        return super().between(self.rows(h), self.rows(t))

    def entity_penalty(self, x: Tensor) -> Tensor:
        return super().entity_penalty(self.rows(x))


class LowRankReciprocal(LowRankComplEx, ReciprocalComplEx):
    """The same of `ReciprocalComplEx`."""

    comparison = "dot"


@torch.no_grad()
def low_rank(
    model: ComplEx, rank: int, seed: int = 0, together: Callable[[Tensor], Tensor] = lambda x: x
) -> LowRankComplEx:
    """The nearest model of that rank: the entities' principal axes, turned at random.

    Where several processes hold rows of a model, `together` sums a matrix over them.

    Principal without centring, since scores are inner products. Turned, each of the `rank` floats varies as much as
    the others, so that as many bits suit each of them.

    Raises:
        ConfigError: another model than ComplEx, or a rank that is larger than its 2·dim floats.
    """
    if type(model) not in (ComplEx, ReciprocalComplEx):
        raise ConfigError(f"rank is {rank}, but the model to start from is a {type(model).__name__}: take a ComplEx")
    sizes = model.num_entities, model.num_relations, model.dim
    kind = LowRankReciprocal if isinstance(model, ReciprocalComplEx) else LowRankComplEx
    found = kind(*sizes, rank=rank, norm=model.norm, offset=model.offset, epsilon=model.epsilon)
    rows = model.entities.double()
    axes = torch.linalg.eigh(together(rows.T @ rows)).eigenvectors.flip(1).T[:rank]
    turn = torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found.map.data = (torch.linalg.qr(turn).Q.to(axes.device) @ axes).float().contiguous()
    found.entities.data = model.entities @ found.map.T
    found.relations.data = model.relations.detach().clone()
    return found
