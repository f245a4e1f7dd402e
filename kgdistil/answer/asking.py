"""A question by labels, and its answers: the best tails of (h, r, ?), heads of (?, r, t) and relations of (h, ?, t).

Students and models in training are asked alike; each is an `Answerer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from kgdistil.answer.answers import Answers
from kgdistil.answer.equations import Array, Side
from kgdistil.errors import ConfigError, short

Asked = str | int | Iterable[str | int]  # an array, a tensor or a Series, too
By = Literal["label", "id"]
Places = tuple[Array, Array, Array]  # entities of query i: ids[start[i]:end[i]], ascending; int64 [n], int64 [n], int32
FEW = 16  # labels that are found one by one
NOBODY = np.empty(0, np.int32)


class Names(Protocol):
    """Labels by id, and the ids of labels."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> str: ...
    def many(self, ids: Sequence[int], /) -> list[str]: ...
    def find(self, label: str, /) -> int | None: ...
    def find_all(self, labels: Sequence[str], /) -> Array: ...


class Answerer(Protocol):
    """Who can be asked."""

    @property
    def entities(self) -> Names: ...
    @property
    def relations(self) -> Names: ...
    @property
    def reflexive(self) -> frozenset[int]:
        """Relations of which a training triple leads from an entity to itself."""
        ...

    def readable_all(self, ids: list[int], labels: list[str], /) -> list[str]: ...
    def called(self, name: str, kind: str) -> int | None: ...
    def nearest(self, text: str, kind: str) -> str | None: ...
    def unseen(self, kind: str, ids: Array) -> Array: ...
    def known(self, anchor: int, relation: int, side: Side) -> Array: ...
    def known_relations(self, head: int, tail: int) -> list[int]: ...
    def best(
        self, anchor: Array, relation: Array, side: Side, k: int, leave_out: Places, allowed: Array | None
    ) -> tuple[Array, Array]: ...
    def score_relations(self, head: int, tail: int) -> Array: ...


def ask(
    who: Answerer,
    *,
    head: Asked | None = None,
    relation: Asked | None = None,
    tail: Asked | None = None,
    k: int = 10,
    new: bool = False,
    by: By = "label",
    ids: bool = False,
    unseen: bool = False,
    allowed: Any = None,
    judge: Any = None,
    best: Any = None,
) -> Answers:
    """The k most plausible answers for the open place of one query, or of a batch of them.

    Args:
        head, relation, tail: exactly two of the three. Lists ask one query for each of their items, and a single value
            beside a list holds for all of them.
        by: "label": they are labels, and a whole number is the label it is written as; "id": numbers from 0.
        new: leave out what is known.
        ids: add the column id, the answer's number.
        unseen: answer about entities and relations that stand in no training triple, too, so that nothing was learned
            of them.
        allowed: of (relation id, side) a bitmap uint64 [⌈E/64⌉] of the entities that may come.
        judge: of (anchors, relations, side, scores and ids [n, k]) the ids, −1 for what is dropped, and more columns.
        best: in place of `who.best`.
    Returns:
        Columns rank, entity (label), name (readable), score; for an open relation rank, relation, score. Best first,
        fewer rows than k only where fewer candidates remain. A batch has a first column query, from 0. Where an answer
        stands in no training triple, a column unseen says which. The query's own entity is no answer, unless training
        has a triple of that relation that leads from an entity to itself.
    Raises:
        ConfigError: not exactly two places given, an unknown label or id, one that is unseen, lists of different
            lengths, or k < 1.
    """
    given: dict[str, Any] = {"head": head, "relation": relation, "tail": tail}
    missing = [what for what, value in given.items() if value is None]
    if len(missing) != 1:
        if relation is not None:
            raise ConfigError("give exactly one of head and tail: the other one is what is asked for")
        raise ConfigError("give exactly two of head, relation and tail: the third is what is asked for")
    check_count(k)
    given = {what: plain(x) for what, x in given.items()}
    lists = {what: x for what, x in given.items() if isinstance(x, list)}
    if len({len(x) for x in lists.values()}) > 1:
        raise ConfigError(
            f"{' and '.join(lists)} have different lengths: {', '.join(str(len(x)) for x in lists.values())}"
        )
    count = len(next(iter(lists.values()))) if lists else 1
    numbers: dict[str, Array] = {}
    for what, value in given.items():
        if value is not None:
            kind = "relation" if what == "relation" else "entity"
            numbers[what] = find_all(who, lists.get(what, [value]), kind, by)
            if not unseen:
                check_seen(who, numbers[what], kind)
            if what not in lists and count != 1:
                numbers[what] = np.broadcast_to(numbers[what], (count,))
    more: dict[str, Array] = {}
    if missing == ["relation"]:
        score, answer = best_relations(who, numbers["head"], numbers["tail"], k, new)
    else:
        side: Side = "head" if missing == ["head"] else "tail"
        anchor = numbers["tail" if side == "head" else "head"]
        rows = leave_out(who, anchor, numbers["relation"], side, new)
        masks = None
        if allowed is not None and count:
            found = {r: allowed(r, side) for r in dict.fromkeys(numbers["relation"].tolist())}
            masks = (
                next(iter(found.values()))
                if len(found) == 1
                else np.stack([found[int(r)] for r in numbers["relation"]])
            )
        score, answer = (best or who.best)(anchor, numbers["relation"], side, min(k, len(who.entities)), rows, masks)
        if judge is not None:
            answer, more = judge(anchor, numbers["relation"], side, score, answer)
    return table(who, score, answer, "relation" if relation is None else "entity", bool(lists), ids, more)


def table(
    who: Answerer, score: Array, answer: Array, kind: str, batch: bool, ids: bool, more: Mapping[str, Array]
) -> Answers:
    """Answers of scores, ids and more columns [n, k]; id −1 is none."""
    there = answer >= 0
    found, scores = answer[there].tolist(), score[there].tolist()
    columns: dict[str, list[Any]] = {}
    if batch:
        columns["query"] = there.nonzero()[0].tolist()
    columns["rank"] = (there.nonzero()[1] + 1).tolist()
    if ids:
        columns["id"] = found
    if kind == "relation":
        columns["relation"] = [who.relations[x] for x in found]
    else:
        every = list(set(found)) if batch else found  # a batch has many answers more than once
        labels = who.entities.many(every)
        names = who.readable_all(every, labels)
        if batch:
            texts = dict(zip(every, zip(labels, names)))
            labels, names = ([texts[x][i] for x in found] for i in (0, 1))
        columns |= {"entity": labels, "name": names}
    columns["score"] = scores
    never = who.unseen(kind, answer[there])
    if never.any():
        columns["unseen"] = never.tolist()
    for name, values in more.items():
        columns[name] = values[there].tolist()
    return Answers(columns)


def best_relations(who: Answerer, head: Array, tail: Array, k: int, new: bool) -> tuple[Array, Array]:
    """Scores and ids [n, k] of the best relations between heads and tails, ids [n]; id −1 past the last candidate."""
    k = min(k, len(who.relations))
    score, answer = np.full((len(head), k), -np.inf, np.float32), np.full((len(head), k), -1)
    for i, (h, t) in enumerate(zip(head.tolist(), tail.tolist())):
        scores = np.array(who.score_relations(h, t))
        if new:
            scores[who.known_relations(h, t)] = -np.inf
        order = np.argsort(-scores, kind="stable")[:k]
        score[i], answer[i] = scores[order], np.where(scores[order] == -np.inf, -1, order)
    return score, answer


def leave_out(who: Answerer, anchor: Array, relation: Array, side: Side, new: bool) -> Places:
    """Who may not come: the query's own entity, unless its relation is reflexive; with `new` what is known, too."""
    found = []
    for a, r in zip(anchor.tolist(), relation.tolist()):
        own: Any = [] if r in who.reflexive else [a]
        if new:
            known = who.known(a, r, side)
            at = int(np.searchsorted(known, a))
            there = not own or (at < len(known) and known[at] == a)
            own = known if there else np.concatenate([known[:at], own, known[at:]])
        found.append(own)
    return places(found)


def places(found: Sequence[Any]) -> Places:
    """Ids that each query leaves out, as scanners take them."""
    sizes = np.array([len(x) for x in found], np.int64)
    ends = sizes.cumsum()
    return ends - sizes, ends, np.concatenate([*found, NOBODY], dtype=np.int32, casting="unsafe")


# ---- what was asked -------------------------------------------------------------------------------------------------
def check_count(k: int, what: str = "k") -> None:
    """ConfigError where k is no number of answers, or of entities among which they are found."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"{what} is {k!r}; it must be a whole number ≥ 1")


def plain(value: Any) -> Any:
    """A value or list in Python's own types: of numpy, pandas and PyTorch, and of anything else that can be listed.

    ConfigError for what has no order of its own, since answers are numbered by their question's place.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, set | frozenset | Mapping):
        raise ConfigError(f"{short(value)} has no order: give a list")
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, Iterable) and not isinstance(value, bytes) else value


def check_seen(who: Answerer, ids: Array, kind: str) -> None:
    """ConfigError where one of these entities or relations, ids [n], stands in no training triple."""
    never = ids[who.unseen(kind, ids)]
    if len(never):
        label = (who.relations if kind == "relation" else who.entities)[int(never[0])]
        raise ConfigError(
            f"the {kind} {label!r} stands in no training triple, so nothing was learned of it; unseen (--unseen) asks "
            "nevertheless"
        )


def find_all(who: Answerer, values: Sequence[Any], kind: str, by: By = "label") -> Array:
    """The ids int64 [n] of labels, or ids themselves.

    Raises:
        ConfigError: there is none of one of them.
    """
    if by == "id":
        count = len(who.relations if kind == "relation" else who.entities)
        if all(type(x) is int and 0 <= x < count for x in values):
            return np.array(values, np.int64)
    if len(values) >= FEW and by == "label" and all(type(x) is str for x in values):
        found = (who.relations if kind == "relation" else who.entities).find_all(values)
        missing = np.flatnonzero(found < 0).tolist()
        named = {value: find(who, value, kind, by) for value in dict.fromkeys(values[i] for i in missing)}
        found[missing] = [named[values[i]] for i in missing]
        return found
    return np.array([find(who, value, kind, by) for value in values], dtype=np.int64)


def find(who: Answerer, value: Any, kind: str, by: By = "label") -> int:
    """The id of a label, or of a name that only one has; or an id itself.

    Raises:
        ConfigError: there is none.
    """
    labels = who.relations if kind == "relation" else who.entities
    whole = isinstance(value, int) and not isinstance(value, bool)
    if by not in ("label", "id"):
        raise ConfigError(f"by is {by!r}: choose label or id")
    if whole and abs(int(value)) >= 10**18:
        raise ConfigError(f"no {kind} has a number of more than 18 digits")
    if by == "id":
        if whole and 0 <= int(value) < len(labels):
            return int(value)
        raise ConfigError(f"{kind} id is {short(value)}; ids go from 0 to {len(labels) - 1}")
    if not isinstance(value, str) and not whole:
        raise ConfigError(f"no {kind} is called {short(value)}; a label looks like {short(labels[0])}")
    found = labels.find(str(value))
    if found is None and not whole:
        found = who.called(value, kind)
    if found is None:
        near = who.nearest(str(value), kind)
        hint = f"did you mean {near!r}?" if near else f"a label looks like {short(labels[0])}"
        by_number = "; by='id' (--ids) asks by number" if whole else ""
        raise ConfigError(f"no {kind} is called {short(str(value) if whole else value)}; {hint}{by_number}")
    return found
