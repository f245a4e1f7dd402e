"""Ranking entities that are product-quantised (`compress.product`) without decoding them.

A query becomes a table of what each code of each sub-vector would add to the score, and the score of an entity is the
sum of the M entries that its codes choose (asymmetric distance computation, Jégou et al. 2011). `answer.native` does
it; here it is given PyTorch's tensors, and `tables` says readably what it adds up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kgdistil import kernels
from kgdistil.answer.equations import equation
from kgdistil.answer.mixed import Mixed
from kgdistil.answer.native import MOST_GROUPS, Codes, packed
from kgdistil.compress import whole
from kgdistil.compress.product import grouped
from kgdistil.errors import ConfigError
from kgdistil.models import KGEModel, Side, kind_of


def tables(model: KGEModel, queries: Tensor, codebook: Tensor) -> Tensor:
    """Look-up tables float32 [n, M, 16] of queries [n, query width] for the codebook [M, 16, g], or a deep one
    [depth, M / depth, 16, g] of a dot product.

    Their sums are the model's scores without its offset; for norm 2 minus the square of the distance, which puts the
    entities in the same order.

    Raises:
        ConfigError: a score that is no sum over sub-vectors, or sub-vectors that do not fit the model.
    """
    kind, name, depth = kernels.said(model, "comparison"), type(model).__name__, 1
    if codebook.ndim == 4 and kind == "dot":
        depth, codebook = len(codebook), codebook.flatten(0, 1)
    groups, size = len(codebook) // depth, codebook.shape[-1]
    if kind not in ("dot", "distance", "modulus"):
        raise ConfigError(
            f"{name} has no look-up tables: its class names no comparison that sums over the coordinates; take "
            "ComplEx, DistMult, SimplE, TransE or RotatE"
        )
    if groups * size != model.entities.shape[1] or (kind == "modulus" and size % 2):
        even = " and even, so that complex numbers stay whole" if kind == "modulus" else ""
        raise ConfigError(
            f"{groups} sub-vectors of {size} do not make {name}'s {model.entities.shape[1]} numbers of an entity; "
            f"the product must be equal{even}"
        )
    rows = grouped(queries, size, model.paired).repeat(1, depth, 1)[:, :, None]  # [n, M, 1, g]
    if kind == "dot":
        return (rows * codebook).sum(-1)
    apart = rows - codebook
    if model.norm == 2:
        return -apart.square().sum(-1)
    return -(torch.hypot(apart[..., 0::2], apart[..., 1::2]) if kind == "modulus" else apart.abs()).sum(-1)


class CodedRanker:
    """`kernels.Ranker` for a model whose entities are codes: the same calls.

    Args:
        model: float32 on the CPU, its entities what the codes stand for, or whole ones (`compress.whole`).
        codes: uint8 [E, M] from 0 to 15, M from 2 to 512. codebook: float32, as of `tables`.
        native: as of `answer.native.Codes`; False takes numpy's path.
    Raises:
        ConfigError: codes of another form, or a model that has no `tables`.
    """

    def __init__(self, model: KGEModel, codes: Tensor, codebook: Tensor, native: str | bool | None = None):
        tables(model, model.queries(torch.zeros(1).long(), torch.zeros(1).long(), "tail"), codebook)  # refuses at once
        depth, codebook = (len(codebook), codebook.flatten(0, 1)) if codebook.ndim == 4 else (1, codebook)
        shaped = codes.ndim == 2 and len(codes) and 2 <= codes.shape[1] <= MOST_GROUPS
        if not shaped or codes.dtype != torch.uint8 or codes.max() > 15 or codes.shape[1] != len(codebook):
            raise ConfigError(
                f"codes are {codes.dtype} {list(codes.shape)}; they must be uint8 [entities, {len(codebook)}], from 0 "
                f"to 15, 2 to {MOST_GROUPS} for each entity"
            )
        width = codebook[:, 0].numel() // depth
        columns = grouped(torch.arange(width)[None], codebook.shape[2], model.paired)
        scanned = Codes(
            packed(codes.numpy()),
            len(codes),
            codebook.detach().numpy(),
            columns.flatten().repeat(depth).int().numpy(),
            str(kernels.said(model, "comparison")),
            model.norm,
            width,
            native=native,
        )
        self.codes: Codes | Mixed = scanned
        if len(kept := whole.of(model)):
            self.codes = Mixed(scanned, kept.numpy(), *(x.numpy() for x in whole.in_bytes(model.entities.data[kept])))
        sizes = {name: getattr(model, name) for name in ("norm", "offset", "epsilon")}
        shared = model.state_dict().get("map")
        own = kind_of(type(model).__name__) is not type(model)
        self.model, self.equation = model, None
        if not own:
            numbers = None if shared is None else shared.numpy(force=True)
            self.equation = equation(type(model).__name__, model.dim, **sizes, shared=numbers)

    def queries(self, anchor: Tensor, relation: Tensor, side: Side) -> Tensor:
        """Query vectors [n, width] of ids [n], the bits that a student has: numpy and PyTorch differ in sines."""
        if self.equation is None:
            return self.model.queries(anchor, relation, side)
        rows, relations = (x.numpy(force=True) for x in (self.model.entities[anchor], self.model.relations[relation]))
        return torch.from_numpy(self.equation.query(rows, relations, side))

    def counts(self, queries: Tensor, target: Tensor, known: kernels.Known) -> tuple[Tensor, Tensor]:
        """As `kernels.Ranker.counts`."""
        start, end, ids = (x.numpy() for x in known)
        found = self.codes.counts(queries.numpy(), target.numpy(), (start, end, ids), threads=kernels.threads())
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    def top(self, queries: Tensor, k: int, known: kernels.Known) -> tuple[Tensor, Tensor]:
        """As `kernels.Ranker.top`."""
        start, end, ids = (x.numpy() for x in known)
        score, best = self.codes.top(queries.numpy(), k, (start, end, ids), threads=kernels.threads())
        return torch.from_numpy(score), torch.from_numpy(best)
