"""Ranking entities that are product-quantised (`compress.product`) without decoding them.

A query becomes a table of what each code of each sub-vector would add to the score, and the score of an entity is the
sum of the M entries that its codes choose (asymmetric distance computation, Jégou et al. 2011). `kernels/scan.cpp` adds
up most entities in bytes and only those near the target in float32; the results are those of float32 throughout.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgdistil import evaluation, kernels
from kgdistil.compress.product import SIXTEEN, decode, grouped, ungrouped
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, Ranks
from kgdistil.models import SIDES, KGEModel

TABLE_BYTES = 64 << 20  # of the look-up tables that are made at a time
SUBVECTORS = (2, 512)  # of an entity, the fewest and most: each has a code


def tables(model: KGEModel, queries: Tensor, codebook: Tensor) -> Tensor:
    """Look-up tables float32 [n, M, 16] of queries [n, query width] for the codebook [M, 16, g].

    Their sums are the model's scores without its offset; for TransE with norm 2 minus the square of the distance,
    which puts the entities in the same order.

    Raises:
        ConfigError: a score that is no sum over sub-vectors, or sub-vectors that do not fit the model.
    """
    kind, (groups, _, size), name = kernels.said(model, "comparison"), codebook.shape, type(model).__name__
    if kind not in ("dot", "distance", "modulus") or (kind == "modulus" and model.norm == 2):
        raise ConfigError(
            f"{name} with norm {model.norm} has no look-up tables: its class names no comparison that sums over the "
            "coordinates; take ComplEx, DistMult, SimplE, TransE or RotatE with norm 1"
        )
    if groups * size != model.entities.shape[1] or (kind == "modulus" and size % 2):
        even = " and even, so that complex numbers stay whole" if kind == "modulus" else ""
        raise ConfigError(
            f"{groups} sub-vectors of {size} do not make {name}'s {model.entities.shape[1]} numbers of an entity; "
            f"the product must be equal{even}"
        )
    rows = grouped(queries, size, model.paired).transpose(0, 1)  # [M, n, g]
    if kind == "dot":
        made = torch.bmm(rows, codebook.transpose(1, 2))
    elif kind == "modulus":
        # one complex number at a time: sums over a short last dimension are slow in PyTorch
        apart = ((rows[..., i, None] - codebook[:, None, :, i]).square() for i in range(size))  # [M, n, 16] each
        made = -sum(((real + imaginary).sqrt() for real, imaginary in zip(apart, apart)), start=torch.zeros(()))
    else:
        apart = (rows[..., i, None] - codebook[:, None, :, i] for i in range(size))
        made = -sum((x.abs() if model.norm == 1 else x.square() for x in apart), start=torch.zeros(()))
    return made.transpose(0, 1).contiguous()


class Scanner(kernels.Ranker):
    """Counts and top-k answers of tables [n, M, 16] against entities of four-bit codes, laid out once.

    Args:
        codes: uint8 [E, M] from 0 to 15, on the CPU; M from 2 to 512.
        native: False takes the readable path; None the compiled one where there is a compiler.
        codebook: float32 [M, 16, g] for scores that are inner products. The compiled path then wants query vectors
            [n, M·g] in place of tables, which it makes itself (`made_of` is not None), and sets the sub-vectors
            in order.
        paired: vectors are [real | imaginary].
    Raises:
        ConfigError: codes of another form.
    """

    def __init__(self, codes: Tensor, native: bool | None = None, codebook: Tensor | None = None, paired: bool = False):
        least, most = SUBVECTORS
        shaped = codes.ndim == 2 and len(codes) and least <= codes.shape[1] <= most
        if not shaped or codes.dtype != torch.uint8 or codes.max() > 15:
            raise ConfigError(
                f"codes are {codes.dtype} of shape {list(codes.shape)}; they must be uint8 [entities, sub-vectors] "
                f"from 0 to 15, with {least} to {most} sub-vectors"
            )
        self.codes, self.num_entities = codes.contiguous(), len(codes)
        self.library = None if native is False else scan_library(codes.shape[1])
        self.made_of: tuple[Tensor, Tensor] | None = None
        if self.library is not None and codebook is not None:
            codebook = codebook.detach()
            order = codebook.var(1).sum(1).argsort(descending=True)  # those that decide most come first
            columns = grouped(torch.arange(codebook[:, 0].numel())[None], codebook.shape[2], paired)[0, order]
            self.made_of = codebook[order].transpose(1, 2).contiguous(), columns.to(torch.int32).contiguous()
            self.codes = self.codes[:, order].contiguous()
        if self.library is not None:
            size = self.library.kgd_bytes(self.num_entities)
            self.tiles = torch.empty(size + 64, dtype=torch.uint8)
            self.tiles = self.tiles[-self.tiles.data_ptr() % 64 :]  # vectors of 64 bytes need an address they divide
            self.library.kgd_tiles(self.codes.data_ptr(), len(codes), kernels.threads(), self.tiles.data_ptr())

    def job(self, queries: Tensor, known: kernels.Known, **more: Any) -> kernels.Job:
        if self.made_of is not None:
            codebook, columns = self.made_of
            more.update(book=codebook.data_ptr(), columns=columns.data_ptr(), size=codebook.shape[1])
        return super().job(queries, known, **more)

    def counts(self, tables: Tensor, target: Tensor, known: kernels.Known) -> tuple[Tensor, Tensor]:
        """How many entities score above, and how many equal to, the target of each query; int32 [n] each.

        Args:
            tables: float32 [n, M, 16], finite as their sums are; vectors where there is a codebook. target: int64 [n].
            known: what to leave out of each query, the target among them.
        """
        if self.library is not None:
            return super().counts(tables, target, known)
        return evaluation.count_scores(self.scores, self.num_entities, tables, target, known)

    def top(self, tables: Tensor, k: int, known: kernels.Known) -> tuple[Tensor, Tensor]:
        """The k best entities of each table: scores, and ids int32 (−1: none), [n, k]; of ties the lower id first.

        Raises:
            ConfigError: k below 1.
        """
        kernels.check_k(k)
        if self.library is not None:
            return super().top(tables, k, known)
        best = torch.full((len(tables), k), -torch.inf), torch.full((len(tables), k), -1, dtype=torch.int32)
        for i, (start, end) in enumerate(zip(*known[:2], strict=True)):
            free = torch.ones(self.num_entities, dtype=torch.bool)
            free[known[2][start:end].long()] = False
            ids = free.nonzero()[:, 0]
            score, order = self.scores(tables[i : i + 1])[0, ids].sort(descending=True, stable=True)
            for into, row in zip(best, (score, ids[order].to(torch.int32))):
                into[i, : len(ids)] = row[:k]
        return best

    def scores(self, tables: Tensor) -> Tensor:
        """Scores [n, E] of tables [n, M, 16], added up in the order of scan.cpp: group m into partial sum m mod 4."""
        part = torch.zeros(4, len(tables), self.num_entities)
        for m, codes in enumerate(self.codes.T):
            part[m % 4] += tables[:, m].index_select(1, codes.long())
        return (part[0] + part[1]) + (part[2] + part[3])


class CodedRanker:
    """`kernels.Ranker` for a model whose entities are codes: the same calls, with query vectors in place of tables.

    Args:
        model: float32 on the CPU, its entities what the codes stand for. codes: uint8 [E, M].
        codebook: float32 [M, 16, g].
    Raises:
        ConfigError: `tables` or `Scanner` cannot take this model or these codes.
    """

    def __init__(self, model: KGEModel, codes: Tensor, codebook: Tensor, native: bool | None = None):
        tables(model, model.queries(torch.zeros(1).long(), torch.zeros(1).long(), "tail"), codebook)  # refuses at once
        self.model, self.codebook = model, codebook
        self.scanner = Scanner(codes, native, None if model.distance else codebook, model.paired)

    def rows(self, queries: Tensor) -> Tensor:
        """Tables of queries, or what the scanner makes them of."""
        return tables(self.model, queries, self.codebook) if self.scanner.made_of is None else queries

    def counts(self, queries: Tensor, target: Tensor, known: kernels.Known) -> tuple[Tensor, Tensor]:
        """As `Scanner.counts`, of queries float32 [n, query width]."""
        return self.scanner.counts(self.rows(queries), target, known)

    def top(self, queries: Tensor, k: int, known: kernels.Known) -> tuple[Tensor, Tensor]:
        """As `Scanner.top`, of queries float32 [n, query width]; scores without the model's offset."""
        score, best = self.scanner.top(self.rows(queries), k, known)
        squared = kernels.said(self.model, "comparison") == "distance" and self.model.norm == 2
        return -(-score).sqrt() if squared else score, best


def scan_library(groups: int, *defines: str) -> ctypes.CDLL | None:
    """The compiled scan.cpp for entities of so many codes, or None."""
    library = kernels.compiled("scan.cpp", f"KGD_GROUPS={groups}", *defines)
    if library is not None:
        kernels.declare(library)
        library.kgd_bytes.argtypes, library.kgd_bytes.restype = [ctypes.c_int64], ctypes.c_int64
    return library


@torch.no_grad()
def rank_codes(
    model: KGEModel,
    codes: Tensor,
    codebook: Tensor,
    triples: Tensor,
    known: KnownTriples,
    *,
    native: bool | None = None,
) -> Ranks:
    """Filtered ranks of triples [n, 3] where every entity, the given one too, is what its codes [E, M] stand for.

    Args:
        model: float32 on the CPU; its relations and equation are used, its entities are not.
        codes: uint8 [E, M]. codebook: float32 [M, 16, g], the sixteen vectors of each sub-vector.
        native: False takes the readable path.
    Raises:
        ConfigError: `tables` or `Scanner` cannot take this model or these codes.
    """
    ranker = CodedRanker(model, codes, codebook, native)
    block = max(1, TABLE_BYTES // (4 * SIXTEEN * codes.shape[1]))
    counts = np.empty((2, len(triples), 2), dtype=np.int32)
    for column, (side, anchor, target) in enumerate(SIDES):
        for i in range(0, len(triples), block):
            part = triples[i : i + block]
            entities = ungrouped(decode(codes[part[:, anchor]], codebook), model.paired)
            queries = model.query(entities, model.relations[part[:, 1]], side)
            spans = known.spans(part[:, anchor], part[:, 1], side)
            found = ranker.counts(queries, part[:, target], spans)
            counts[:, i : i + block, column] = torch.stack(found).numpy()
    return Ranks(*counts)
