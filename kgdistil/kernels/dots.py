"""Scores of ComplEx and the way back from them without autograd, whose many small functions take their time beside the
products of a small step: queries, N3 and what predicts relations, of `rows.cpp`, and products of matrices."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kgdistil.kernels.compile import pointer, threads
from kgdistil.kernels.rows import SHAPES, Between, Products, rows_library
from kgdistil.kernels.softmax import softmax_library, softmax_losses
from kgdistil.models import ComplEx, KGEModel, ReciprocalComplEx, conjugate


class Dots:
    """Scores of a batch's queries against its candidates.

    Args:
        x: float32 [n, W], the entities that are given, the first `tails` in queries for tails, the others for heads.
        relations: float32 [R, .], of which each query takes one of ids int64 [n].
        rows: [m, W], the candidates, float32 or bfloat16.
        shared: float32 [W, ..], the map of entities of low rank to where relations act; it takes queries back.
    Attributes:
        scores: [n, m], as `rows`.
    """

    def __init__(
        self,
        model: ComplEx,
        library: ctypes.CDLL,
        x: Tensor,
        relations: Tensor,
        ids: Tensor,
        tails: int,
        rows: Tensor,
        shared: Tensor | None = None,
    ):
        self.given, self.relations, self.ids = (each.detach().contiguous() for each in (x, relations, ids))
        self.rows, self.tails, self.model, self.library = rows.detach(), tails, model, library
        self.map = None if shared is None else shared.detach()
        self.x = self.through(self.given)
        self.slopes: tuple[Tensor, ...] = ()  # what N3 has of x, relations and answers
        self.predicted: tuple[Tensor, ...] = ()  # what relations are predicted by
        self.queries = torch.empty_like(self.x, dtype=rows.dtype if shared is None else torch.float32)
        library.kgd_products(self.job(self.queries))
        self.back = self.queries if self.map is None else (self.queries @ self.map.T).to(rows.dtype)
        self.scores = self.back @ rows.T

    def through(self, entities: Tensor) -> Tensor:
        """Entities [n, W] where relations act."""
        return entities if self.map is None else entities @ self.map

    def job(self, queries: Tensor, **more: int | None) -> object:
        """`Products` of rows.cpp."""
        sizes = {"n": len(self.x), "d": self.x.shape[1] // 2, "tails": self.tails, "R": len(self.relations)}
        sizes |= {"directed": self.model.directed, "half": queries.dtype == torch.bfloat16, "threads": threads()}
        at = {"x": self.x, "r": self.relations, "ids": self.ids, "queries": queries}
        return ctypes.byref(Products(**sizes, **{name: pointer(x) for name, x in at.items()}, **more))

    @torch.no_grad()
    def penalty(self, count: Tensor, answers: Tensor, begins: Tensor, by: float) -> Tensor:
        """N3, the mean over triples: of queries with so many answers each int64 [n], and of answers [u, W], the j-th of
        which stands begins[j + 1] - begins[j] times. `give` adds the gradients of `by` times that."""
        directions, width, answers = 1 + self.model.directed, self.x.shape[1], self.through(answers)
        sizes = [len(rows) for rows in (self.x, self.relations, answers)]
        own, of_relation, others = weights = self.x.new_zeros(sum(sizes)).split(sizes)
        given = pointer(count), pointer(self.ids), sizes[0], pointer(begins), sizes[2], directions
        self.library.kgd_shares(*given, *(pointer(x) for x in weights))
        sums = self.x.new_empty(sizes[0] + directions * sizes[1] + sizes[2])
        self.slopes, done = tuple(torch.empty_like(rows) for rows in (self.x, self.relations, answers)), 0
        parts = (self.x, own, 1), (self.relations, of_relation, directions), (answers, others, 1)
        for (rows, counts, each), slopes in zip(parts, self.slopes, strict=True):
            form = len(rows) * each, width, each, by, threads()
            self.library.kgd_cubes(pointer(rows), pointer(counts), *form, pointer(sums[done:]), pointer(slopes))
            done += form[0]
        return sums.sum()

    @torch.no_grad()
    def relation_loss(self, triples: tuple[Tensor, ...], answers: Tensor, by: float) -> Tensor:
        """−log softmax of each triple's relation, as the engine has it, the mean over triples. `give` adds the
        gradients of `by` times that.

        Args:
            triples: int64: where those of each query begin, and the last ones end [n + 1]; of each its query and its
                answer [a]; an order of them by their answers [a], and where those of each one begin in it [u + 1].
            answers: [u, W].
        """
        begins, row, *_ = triples
        n, width, dtype = len(row), self.x.shape[1], self.rows.dtype
        found = torch.empty(n + -n % SHAPES, width, dtype=dtype)
        found[n:] = 0
        self.between = (*triples, self.through(answers))
        self.library.kgd_between(self.job_between(found))
        table, target = self.model.directions(self.relations).to(dtype), self.ids[row]
        if self.model.directed:
            target[int(begins[self.tails]) :] += len(self.relations)
        scores = found @ table.T
        slopes, each = torch.zeros_like(scores), torch.arange(n + 1)
        weights, shift = (by, 0.0), torch.zeros(len(table))
        losses = softmax_losses(scores[:n], None, shift, each, target, None, 1.0, weights, slopes[:n])
        assert losses is not None
        self.predicted = slopes, found, table
        return losses[0]

    def job_between(self, found: Tensor, **more: int | None) -> object:
        """`Between` of rows.cpp."""
        begins, row, answer, order, start, y = self.between
        at = {"begins": begins, "row": row, "answer": answer, "order": order, "start": start, "x": self.x, "y": y}
        turned = len(self.x) if self.model.directed else self.tails
        sizes = {"n": len(self.x), "u": len(y), "d": self.x.shape[1] // 2, "turned": turned, "threads": threads()}
        half, at = found.dtype == torch.bfloat16, at | {"between": found}
        return ctypes.byref(Between(**sizes, half=half, **{name: pointer(x) for name, x in at.items()}, **more))

    @torch.no_grad()
    def give(
        self,
        gradient: Tensor,
        rows: Tensor,
        x: Tensor,
        relations: Tensor,
        answers: Tensor,
        shared: Tensor | None = None,
    ) -> None:
        """Add to what they were made of the gradients, by those of the scores [n, m]; once."""
        of_back, of_each = gradient @ self.rows, self.x.new_empty(len(self.x), self.relations.shape[1])
        of_queries = self.through(of_back if self.map is None else of_back.float())
        add = bool(self.slopes)
        of_x, of_relations, *of_answers = self.slopes or (torch.empty_like(self.x), torch.zeros_like(self.relations))
        self.library.kgd_products_back(self.job(of_queries, of_x=pointer(of_x), of_r=pointer(of_each), add=add))
        sizes = len(of_each), of_each.shape[1], threads()
        self.library.kgd_by_id(pointer(of_each), pointer(self.ids), *sizes, pointer(of_relations))
        if self.predicted:
            slopes, between, table = self.predicted
            of_answers = of_answers or [torch.zeros_like(self.between[-1])]
            of_each, to = slopes @ table, {"of_x": pointer(of_x), "of_y": pointer(of_answers[0])}
            self.library.kgd_between_back(self.job_between(of_each, **to))
            first, *second = (slopes.T @ between).split(len(relations))
            of_relations += torch.cat([first, *map(conjugate, second)], 1)
        found = [gradient.T @ self.back, of_x, of_relations, *of_answers]
        leaves = [rows, x, relations, answers][: len(found)]
        if self.map is not None and shared is not None:
            pairs = [(of_back.float(), self.queries), (self.given, of_x)]
            pairs += [(answers, slopes) for slopes in of_answers]
            found = [found[0], of_x @ self.map.T, of_relations, *(slopes @ self.map.T for slopes in of_answers)]
            found.append(torch.stack([a.T @ b for a, b in pairs]).sum(0))
            leaves.append(shared)
        for leaf, slopes in zip(leaves, found, strict=True):
            leaf.grad = slopes if leaf.grad is None else leaf.grad.add_(slopes)


def dots_in(
    model: KGEModel, x: Tensor, relations: Tensor, ids: Tensor, tails: int, rows: Tensor, shared: Tensor | None = None
) -> Dots | None:
    """`Dots` of a model; None for another than `ComplEx` and `ReciprocalComplEx`, or where nothing can be compiled."""
    if not isinstance(model, ComplEx) or type(model) not in (ComplEx, ReciprocalComplEx):
        return None
    if (relations.dtype, ids.dtype) != (torch.float32, torch.int64):
        return None
    if softmax_library(rows) is None or (library := rows_library(x)) is None:
        return None
    with torch.no_grad():
        return Dots(model, library, x, relations, ids, tails, rows, shared)
