"""Answers: the best tails of (h, r, ?) and the best heads of (?, r, t)."""

from __future__ import annotations

import difflib

import pandas as pd
import torch

from . import kernels
from .data import Graph
from .errors import ConfigError
from .evaluation import KnownTriples, score_all
from .models import KGEModel, Side


def predict(
    model: KGEModel,
    graph: Graph,
    *,
    relation: str | int,
    head: str | int | None = None,
    tail: str | int | None = None,
    k: int = 10,
    known: KnownTriples | None = None,
) -> pd.DataFrame:
    """The k most plausible entities for the open end of one query.

    Args:
        head, relation, tail: labels or ids; exactly one of head and tail is given.
        known: where given, its triples are left out of the answers (`KnownTriples(graph.train, …)` for new facts).
    Returns:
        A table with columns rank, entity (label), name (readable), score; best first, fewer rows than k only
        where fewer candidates remain.
    Raises:
        ConfigError: both or neither end given, an unknown label or id, k < 1, or a model of another graph.
    """
    if (model.num_entities, model.num_relations) != (graph.num_entities, graph.num_relations):
        raise ConfigError(
            f"the model knows {model.num_entities} entities and {model.num_relations} relations, {graph.name} has "
            f"{graph.num_entities} and {graph.num_relations}; give the graph it was trained on"
        )
    if (head is None) == (tail is None):
        raise ConfigError("give exactly one of head and tail: the other one is what is asked for")
    if not isinstance(k, int) or k < 1:
        raise ConfigError(f"k is {k!r}; it must be a whole number ≥ 1")
    side: Side = "tail" if tail is None else "head"
    anchor = find(tail if head is None else head, graph.entities, "entity")
    r = find(relation, graph.relations, "relation")
    score, entity = top(model, torch.tensor([anchor]), torch.tensor([r]), side, k, known)
    rows = [
        (i + 1, graph.entities[e], graph.readable(e), s)
        for i, (e, s) in enumerate(zip(entity[0].tolist(), score[0].tolist(), strict=True))
        if e >= 0
    ]
    return pd.DataFrame(rows, columns=["rank", "entity", "name", "score"])


def find(value: str | int, labels: tuple[str, ...], what: str) -> int:
    """The id of a label or id.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(value, int):
        if 0 <= value < len(labels):
            return value
        raise ConfigError(f"{what} id is {value}; ids go from 0 to {len(labels) - 1}")
    try:
        return labels.index(value)
    except ValueError:
        near = difflib.get_close_matches(str(value), labels, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"a label looks like {labels[0]!r}"
        raise ConfigError(f"no {what} is called {value!r}; {hint}") from None


@torch.no_grad()
def top(
    model: KGEModel,
    anchor: torch.Tensor,
    relation: torch.Tensor,
    side: Side,
    k: int,
    known: KnownTriples | None = None,
    ranker: kernels.Ranker | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and ids [n, k] of the best entities for n queries, ids [n]; id −1 past the last candidate.

    Args:
        k: how many; the number of entities where that is less.
        ranker: a `kernels.Ranker(model)` made before, for many small calls.
    """
    k, device = min(k, model.num_entities), model.entities.device
    queries = model.queries(anchor.to(device), relation.to(device), side)
    if known is not None:
        spans = known.spans(anchor.cpu(), relation.cpu(), side)
    else:
        spans = (torch.zeros(len(anchor), dtype=torch.int64),) * 2 + (torch.zeros(1, dtype=torch.int32),)
    if ranker is None and kernels.usable(model) and kernels.rank_library(model) is not None:
        ranker = kernels.Ranker(model)
    if ranker is not None:
        score, entity = ranker.top(queries, k, spans)
        return score + (model.offset if model.distance else 0.0), entity.long()
    scores = score_all(model, queries)
    for i, (start, end) in enumerate(zip(*spans[:2], strict=True)):
        scores[i, spans[2][start:end].long()] = -torch.inf
    score, entity = scores.topk(k, dim=1)
    return score, entity.masked_fill(score == -torch.inf, -1)
