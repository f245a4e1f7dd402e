"""Answers: the best tails of (h, r, ?), heads of (?, r, t) and relations of (h, ?, t); similar entities."""

from __future__ import annotations

import bisect
import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import torch
import torch.nn.functional as F

from kgdistil import evaluation, kernels
from kgdistil.config import short
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, score_all
from kgdistil.graph import Graph
from kgdistil.models import KGEModel, Side
from kgdistil.students.scan import CodedRanker

Asked = str | int | Iterable[str | int]  # an array, a tensor or a Series, too
By = Literal["label", "id"]
COMPARED = 1000  # labels that are compared with one that does not exist
LONGEST = 200  # characters of a label for which another is suggested
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
    probability: bool = False,
    by: By = "label",
    ids: bool = False,
    unseen: bool = False,
    ranker: Ranker | None = None,
) -> pd.DataFrame:
    """The k most plausible answers for the open place of one query, or of a batch of them.

    Args:
        head, relation, tail: exactly two of the three. Lists ask one query for each of their items, and a single value
            beside a list holds for all of them.
        by: "label": they are labels, and a whole number is the label it is written as; "id": numbers in
            `graph.entities` and `graph.relations`.
        known: where given, its triples are left out of the answers (`KnownTriples(graph.train, …)` for new facts).
        probability: add that column, σ(score): how likely the model holds the triple to be true rather than a
            random corruption, which is what the cross-entropy loss trains.
        ids: add the column id, the answer's number in `graph.entities` or `graph.relations`.
        unseen: answer about entities and relations that stand in no training triple, too, so that nothing was learned
            of them.
        ranker: what finds the best entities, made before (`top`).
    Returns:
        A table with columns rank, entity (label), name (readable), score; for an open relation rank, relation, score.
        Best first, fewer rows than k only where fewer candidates remain. A batch has a first column query, from 0.
        Where an answer stands in no training triple, a column unseen says which.
    Raises:
        ConfigError: not exactly two places given, an unknown label or id, one that is unseen, lists of different
            lengths, k < 1, a model of another graph, or a probability asked of a model trained with the margin loss.
    """
    if (model.num_entities, model.num_relations) != (graph.num_entities, graph.num_relations):
        raise ConfigError(
            f"the model knows {model.num_entities} entities and {model.num_relations} relations, {graph.name} has "
            f"{graph.num_entities} and {graph.num_relations}; give the graph it was trained on"
        )
    given: dict[str, Any] = {"head": head, "relation": relation, "tail": tail}
    missing = [what for what, value in given.items() if value is None]
    if len(missing) != 1:
        if relation is not None:
            raise ConfigError("give exactly one of head and tail: the other one is what is asked for")
        raise ConfigError("give exactly two of head, relation and tail: the third is what is asked for")
    check_count(k)
    if probability and not has_probabilities(model):
        raise ConfigError(
            f"this {type(model).__name__} was trained with the margin loss, whose scores have no zero and so are no "
            "probabilities; leave probability out"
        )
    given = {what: plain(x) for what, x in given.items()}
    lists = {what: x for what, x in given.items() if isinstance(x, list)}
    if len({len(x) for x in lists.values()}) > 1:
        raise ConfigError(
            f"{' and '.join(lists)} have different lengths: {', '.join(str(len(x)) for x in lists.values())}"
        )
    count = len(next(iter(lists.values()))) if lists else 1
    numbers = {}
    for what, value in given.items():
        if value is not None:
            kind, labels = ("relation", graph.relations) if what == "relation" else ("entity", graph.entities)
            numbers[what] = torch.tensor(find_all(lists.get(what, [value]), labels, kind, by), dtype=torch.int64)
            if not unseen:
                check_seen(numbers[what], graph, kind)
            if what not in lists:
                numbers[what] = numbers[what].expand(count)
    if missing == ["relation"]:
        score, answer = top_relations(model, numbers["head"], numbers["tail"], k, known)
    else:
        side: Side = "head" if missing == ["head"] else "tail"
        score, answer = top(
            model, numbers["tail" if side == "head" else "head"], numbers["relation"], side, k, known, ranker
        )
    rows = [
        (query, i + 1, a, *((graph.relations[a],) if relation is None else (graph.entities[a], graph.readable(a))), s)
        for query, (answers, scores) in enumerate(zip(answer.tolist(), score.tolist(), strict=True))
        for i, (a, s) in enumerate(zip(answers, scores, strict=True))
        if a >= 0
    ]
    labelled = ["relation"] if relation is None else ["entity", "name"]
    table = pd.DataFrame(rows, columns=["query", "rank", "id", *labelled, "score"])
    seen = graph.seen["relation" if relation is None else "entity"]
    if not seen[table["id"].tolist()].all():
        table["unseen"] = ~seen[table["id"].tolist()].numpy()
    if probability:
        table["probability"] = torch.tensor(table["score"].tolist(), dtype=torch.float64).sigmoid().tolist()
    return table.drop(columns=[*([] if lists else ["query"]), *([] if ids else ["id"])])


def has_probabilities(model: KGEModel) -> bool:
    """Whether σ(score) means something: a dot product, or a distance that carries the γ of the cross-entropy loss.

    Of a dot product that was trained on whole lists it is a rough guess: they leave the zero open.
    """
    return not model.distance or model.offset != 0


def check_count(k: int) -> None:
    """ConfigError where k is no number of answers."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"k is {k!r}; it must be a whole number ≥ 1")


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
    check_count(k)
    at = find(plain(entity), graph.entities, "entity", by)
    if not unseen:
        check_seen(torch.tensor([at]), graph, "entity")
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
def top_relations(
    model: KGEModel, head: torch.Tensor, tail: torch.Tensor, k: int, known: KnownTriples | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and ids [n, k] of the best relations between heads and tails, ids [n]; id −1 past the last candidate."""
    k, found = min(k, model.num_relations), []
    every = torch.arange(model.num_relations)
    for h, t in zip(head.tolist(), tail.tolist(), strict=True):
        score = torch.cat([model(torch.tensor(h), r, torch.tensor(t)) for r in every.split(1 << 16)])
        if known is not None:
            start, end, ids = known.spans(torch.full_like(every, h), every, "tail")
            taken = [r for r, (a, b) in enumerate(zip(start.tolist(), end.tolist())) if a < b and t in ids[a:b]]
            score[taken] = -torch.inf
        found.append(score.topk(k))
    if not found:
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
    score, relation = (torch.stack(x) for x in zip(*found))
    return score, relation.masked_fill(score == -torch.inf, -1)


def plain(value: Any) -> Any:
    """A value or list in Python's own types: of numpy, pandas and PyTorch, and of anything else that can be listed.

    ConfigError for what has no order of its own, since answers are numbered by their question's place.
    """
    if isinstance(value, set | frozenset | Mapping):
        raise ConfigError(f"{short(value)} has no order: give a list")
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else value


def check_seen(found: torch.Tensor, graph: Graph, kind: str) -> None:
    """ConfigError where one of these entities or relations, ids [n], stands in no training triple."""
    never = found[~graph.seen[kind][found]]
    if len(never):
        label = (graph.relations if kind == "relation" else graph.entities)[int(never[0])]
        raise ConfigError(
            f"the {kind} {label!r} stands in no training triple, so nothing was learned of it; unseen (--unseen) asks "
            "nevertheless"
        )


def find_all(values: Sequence[str | int], labels: tuple[str, ...], kind: str, by: By = "label") -> list[int]:
    """The ids of labels or ids; for many of them by one table.

    Raises:
        ConfigError: there is none.
    """
    index = {label: i for i, label in enumerate(labels)} if len(values) >= 16 and by == "label" else {}
    return [index[v] if isinstance(v, str) and v in index else find(v, labels, kind, by) for v in values]


def find(value: str | int, labels: tuple[str, ...], kind: str, by: By = "label") -> int:
    """The id of a label, or an id itself.

    Raises:
        ConfigError: there is none.
    """
    if by not in ("label", "id"):
        raise ConfigError(f"by is {by!r}: choose label or id")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and abs(int(value)) >= 10**18:
        raise ConfigError(f"no {kind} has a number of more than 18 digits")
    if by == "id":
        if whole and 0 <= int(value) < len(labels):
            return int(value)
        raise ConfigError(f"{kind} id is {short(value)}; ids go from 0 to {len(labels) - 1}")
    if whole:
        value = str(value)
    try:
        return labels.index(value)  # anything else is not there
    except (ValueError, TypeError):  # pandas.NA is neither equal nor unequal to a text
        near = nearest(value, labels) if isinstance(value, str) else None
        hint = f"did you mean {near!r}?" if near else f"a label looks like {short(labels[0])}"
        raise ConfigError(
            f"no {kind} is called {short(value)}; {hint}" + ("; by='id' (--ids) asks by number" if whole else "")
        ) from None


def nearest(value: str, labels: Sequence[str]) -> str | None:
    """The label that may have been meant, in a time that does not grow with the number of labels; None without one.

    Of more than `COMPARED`, in the order of their characters as a graph has them: one that is one letter more, less or
    other, or two exchanged (Norvig), else the most similar of those that begin alike.
    """
    if len(value) > LONGEST:
        return None
    if len(labels) > COMPARED:
        letters = set(value).union(*labels[:: len(labels) // COMPARED])
        for edit in edits(value, sorted(letters)):
            at = bisect.bisect_left(labels, edit)
            if at < len(labels) and labels[at] == edit:
                return edit
        at = max(0, bisect.bisect_left(labels, value) - COMPARED // 2)
        labels = labels[at : at + COMPARED]
    found = difflib.get_close_matches(value, [x for x in labels if len(x) <= LONGEST], 1)
    return found[0] if found else None


def edits(value: str, letters: Sequence[str]) -> Iterator[str]:
    """What one slip of the fingers makes of a text."""
    parts = [(value[:i], value[i:]) for i in range(len(value) + 1)]
    yield from (a + b[1] + b[0] + b[2:] for a, b in parts if len(b) > 1)
    for (a, b), letter in itertools.product(parts, ("", *letters)):
        yield a + letter + b[1:]
        yield a + letter + b


@torch.no_grad()
def top(
    model: KGEModel,
    anchor: torch.Tensor,
    relation: torch.Tensor,
    side: Side,
    k: int,
    known: KnownTriples | None = None,
    ranker: Ranker | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and ids [n, k] of the best entities for n queries, ids [n]; id −1 past the last candidate.

    Args:
        k: how many; the number of entities where that is less.
        ranker: a `kernels.Ranker(model)` or `scan.CodedRanker` made before, for many small calls.
    """
    k, device = min(k, model.num_entities), model.entities.device
    if not len(anchor):
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
    if ranker is None and kernels.usable(model) and kernels.rank_library(model) is not None:
        ranker = kernels.Ranker(model)
    rows = max(1, evaluation.MEMORY_LIMIT // 2 // (12 * (k if ranker else model.num_entities)))
    if len(anchor) > rows:
        parts = [top(model, a, r, side, k, known, ranker) for a, r in zip(anchor.split(rows), relation.split(rows))]
        score, entity = (torch.cat(x) for x in zip(*parts))
        return score, entity
    queries = model.queries(anchor.to(device), relation.to(device), side)
    if known is not None:
        spans = known.spans(anchor.cpu(), relation.cpu(), side)
    else:
        spans = (torch.zeros(len(anchor), dtype=torch.int64),) * 2 + (torch.zeros(1, dtype=torch.int32),)
    if ranker is not None:
        score, entity = ranker.top(queries, k, spans)
        return score + (model.offset if model.distance else 0.0), entity.long()
    scores = score_all(model, queries)
    for i, (start, end) in enumerate(zip(*spans[:2], strict=True)):
        scores[i, spans[2][start:end].long()] = -torch.inf
    score, entity = scores.topk(k, dim=1)
    return score, entity.masked_fill(score == -torch.inf, -1)
