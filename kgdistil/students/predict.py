"""Answers of a model in training, as `kgdistil.answer` gives those of a student; and its best entities in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from kgdistil import evaluation, kernels
from kgdistil.answer import asking
from kgdistil.answer.asking import Asked, By
from kgdistil.answer.labels import Labels
from kgdistil.compress.scan import CodedRanker
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, score_all
from kgdistil.graph import Graph
from kgdistil.models import KGEModel, Side

Ranker = kernels.Ranker | CodedRanker


def predict(
    model: KGEModel,
    graph: Graph,
    *,
    relation: Asked | None = None,
    head: Asked | None = None,
    tail: Asked | None = None,
    k: int = 10,
    known: KnownTriples | None = None,
    by: By = "label",
    ids: bool = False,
    unseen: bool = False,
    ranker: Ranker | None = None,
) -> pd.DataFrame:
    """The k most plausible answers for the open place of one query, or of a batch of them: `answer.asking.ask`.

    Args:
        head, relation, tail, k, by, ids, unseen: as `ask`.
        known: where given, its triples are left out of the answers (`KnownTriples(graph.train, …)` for new facts).
        ranker: what finds the best entities, made before (`top`).
    Returns:
        The answers as a table.
    Raises:
        ConfigError: as `ask`, or a model of another graph.
    """
    if (model.num_entities, model.num_relations) != (graph.num_entities, graph.num_relations):
        raise ConfigError(
            f"the model knows {model.num_entities} entities and {model.num_relations} relations, {graph.name} has "
            f"{graph.num_entities} and {graph.num_relations}; give the graph it was trained on"
        )
    asked: dict[str, Any] = {"relation": relation, "head": head, "tail": tail, "k": k, "by": by}
    found = asking.ask(Asking(model, graph, known, ranker), new=known is not None, ids=ids, unseen=unseen, **asked)
    return found.to_pandas()


class Texts(Sequence[str]):
    """A graph's labels as `answer.asking.Names`."""

    def __init__(self, labels: Sequence[str]):
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: Any) -> Any:
        return self.labels[at]

    def many(self, ids: Sequence[int]) -> list[str]:
        return [self.labels[i] for i in ids]

    def find(self, label: str) -> int | None:
        try:
            return self.labels.index(label)
        except ValueError:
            return None

    def find_all(self, labels: Sequence[str]) -> np.ndarray:
        index = {label: i for i, label in enumerate(self.labels)}
        return np.array([index.get(label, -1) for label in labels])


class Asking:
    """A model and its graph as `answer.asking.Answerer`."""

    def __init__(self, model: KGEModel, graph: Graph, known: KnownTriples | None = None, ranker: Ranker | None = None):
        self.model, self.graph, self.triples, self.ranker = model, graph, known, ranker
        self.entities, self.relations = (
            labels if isinstance(labels, Labels) else Texts(labels) for labels in (graph.entities, graph.relations)
        )

    @functools.cached_property
    def reflexive(self) -> frozenset[int]:
        train = self.graph.train
        return frozenset(train[train[:, 0] == train[:, 2], 1].tolist())

    def readable_all(self, ids: list[int], labels: list[str]) -> list[str]:
        return [self.graph.descriptions.get(label, label) for label in labels]

    def called(self, name: str, kind: str) -> int | None:
        return None

    def nearest(self, text: str, kind: str) -> str | None:
        return Labels.of(self.graph.relations if kind == "relation" else self.graph.entities).nearest(text)

    def unseen(self, kind: str, ids: np.ndarray) -> np.ndarray:
        return ~self.graph.seen[kind].numpy()[ids]

    def known(self, anchor: int, relation: int, side: Side) -> np.ndarray:
        assert self.triples is not None
        start, end, ids = self.triples.spans(torch.tensor([anchor]), torch.tensor([relation]), side)
        return ids[int(start) : int(end)].numpy(force=True)

    def known_relations(self, head: int, tail: int) -> list[int]:
        return [r for r in range(len(self.relations)) if tail in self.known(head, r, "tail")]

    def best(
        self, anchor: Any, relation: Any, side: Side, k: int, leave_out: asking.Places, allowed: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        start, end, ids = map(torch.from_numpy, leave_out)
        anchor, relation = (torch.from_numpy(np.array(x)) for x in (anchor, relation))
        score, answer = top(self.model, anchor, relation, side, k, (start, end, ids), self.ranker)
        return score.numpy(force=True), answer.numpy(force=True)

    @torch.no_grad()
    def score_relations(self, head: int, tail: int) -> np.ndarray:
        every = torch.arange(len(self.relations)).split(1 << 16)
        scores = [self.model(torch.tensor(head), r, torch.tensor(tail)) for r in every]
        return torch.cat(scores).numpy(force=True)


def has_probabilities(model: KGEModel) -> bool:
    """Whether σ(score) means something: a dot product, or a distance that carries the γ of the cross-entropy loss.

    Of a dot product that was trained on whole lists it is a rough guess: they leave the zero open.
    """
    return not model.distance or model.offset != 0


@torch.no_grad()
def similar(
    model: KGEModel, graph: Graph, entity: str | int, k: int = 10, *, by: By = "label", unseen: bool = False
) -> pd.DataFrame:
    """The k entities whose embeddings point most nearly the same way: rank, entity, name, cosine.

    Args:
        by, unseen: as `predict`.
    Raises:
        ConfigError: an unknown label or id, one that is unseen, or k < 1.
    """
    asking.check_count(k)
    who = Asking(model, graph)
    at = asking.find(who, asking.plain(entity), "entity", by)
    if not unseen:
        asking.check_seen(who, np.array([at]), "entity")
    cosine = torch.cat(
        [
            F.cosine_similarity(model.rows(block), model.rows(model.entities[at][None]))
            for block in model.entities.split(1 << 18)
        ]
    )
    cosine[at] = -torch.inf
    value, near = cosine.topk(min(k, len(cosine) - 1))
    rows = [
        (i, graph.entities[e], graph.readable(e), c) for i, (e, c) in enumerate(zip(near.tolist(), value.tolist()), 1)
    ]
    return pd.DataFrame(rows, columns=["rank", "entity", "name", "cosine"])


@torch.no_grad()
def top(
    model: KGEModel,
    anchor: torch.Tensor,
    relation: torch.Tensor,
    side: Side,
    k: int,
    known: KnownTriples | kernels.Known | None = None,
    ranker: Ranker | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and ids [n, k] of the best entities for n queries, ids [n]; id −1 past the last candidate.

    Args:
        k: how many; the number of entities where that is less.
        known: what is left out.
        ranker: a `kernels.Ranker(model)` or `compress.scan.CodedRanker` made before, for many small calls.
    """
    k, device = min(k, model.num_entities), model.entities.device
    if not len(anchor):
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
    if ranker is None and kernels.usable(model) and kernels.rank_library(model) is not None:
        ranker = kernels.Ranker(model)
    if known is None:
        known = (torch.zeros(len(anchor), dtype=torch.int64),) * 2 + (torch.zeros(1, dtype=torch.int32),)
    spans = known.spans(anchor.cpu(), relation.cpu(), side) if isinstance(known, KnownTriples) else known
    rows = max(1, evaluation.MEMORY_LIMIT // 2 // (12 * (k if ranker else model.num_entities)))
    if len(anchor) > rows:
        each = zip(*(x.split(rows) for x in (anchor, relation, *spans[:2])))
        parts = [top(model, a, r, side, k, (start, end, spans[2]), ranker) for a, r, start, end in each]
        score, entity = (torch.cat(x) for x in zip(*parts))
        return score, entity
    if isinstance(ranker, CodedRanker):
        queries = ranker.queries(anchor, relation, side)
    else:
        queries = model.queries(anchor.to(device), relation.to(device), side)
    if ranker is not None:
        score, entity = ranker.top(queries, k, spans)
        return score + (model.offset if model.distance else 0.0), entity.long()
    scores = score_all(model, queries)
    for i, (start, end) in enumerate(zip(*spans[:2], strict=True)):
        scores[i, spans[2][start:end].long()] = -torch.inf
    score, entity = scores.topk(k, dim=1)
    return score, entity.masked_fill(score == -torch.inf, -1)
