"""Rows, or codes, of entities that come after training: fitted to their triples while all that was learned stays.

A new entity has queries: of a triple (new, r, t) the query that t and r make for its head, of (h, r, new) for its tail.
Its row x minimises, over its queries qᵢ with scores s(qᵢ, x),

    Σᵢ [log(e^s(qᵢ, x) + Zᵢ) − s(qᵢ, x)]  +  Σᵢ [log Σⱼ e^s(qⱼ, x) − s(qᵢ, x)]  +  w Σₖ log(1 + e^s(qₖ, x) / Zₖ)
    +  λ/2 (x − μ)ᵀ C⁻¹ (x − μ):

as the answer of a query it stands above the other answers, of which Zᵢ = Σₑ e^s(qᵢ, e); where it asks, its answers
stand above the others, whose qⱼ are of the same relation and side; it stays below the answers of the queries qₖ that
training had, which without this it would push aside; and it lies where rows lie, with their mean μ and covariance C.
Sums over entities are those of the nearest ones, found by a scan, and of a sample of the rest; k, of all relations, is
a sample of which the ones that x comes nearest to answering count singly.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kgdistil.answer import asking
from kgdistil.answer.answers import Answers
from kgdistil.answer.equations import Array, Side
from kgdistil.answer.format import blocks, rows_of
from kgdistil.answer.triples import Triples
from kgdistil.answer.triples import added as with_triples
from kgdistil.answer.weights import Weights
from kgdistil.errors import BusyError, ConfigError, KgdistilError, short

if TYPE_CHECKING:
    from kgdistil.answer.student import Student

log = logging.getLogger("kgdistil")
SAMPLE, NEAREST = 256, 64  # entities of a sum: drawn at random, and the nearest
PRIOR, SHRUNK = 0.1, 0.5  # λ, and how far the covariance is drawn towards a multiple of the identity
STEPS, TOLERANCE = 6, 0.1  # of Newton's method after each of two scans, at most; less to gain than this is enough
MOST = 256  # triples of an entity that are fitted; of more, as many are drawn
SWEEPS, APART = 4, 1.0  # over the codes; what the distance to a row counts beside its loss when codes are chosen
CROWD, HEARD = 8192, 384  # queries of training; those that a row comes nearest to answering, and as many of the rest
WEIGHT = 0.7  # of a query of training beside a triple of the new entity
EFFORT = 1 << 30  # scores that may be taken to know the crowd
LIGHT = 1e-3  # shares that the Hessian leaves out
SPREAD = 4096  # rows that mean and covariance are of
SIDES: tuple[Side, Side] = ("head", "tail")  # where the new entity stands


@dataclass
class Links:
    """Triples of a new entity: the other entities [n], relations [n], and where it stands itself [n]: 0 head, 1 tail.

    Entities from E on are new ones themselves.
    """

    others: Array
    relations: Array
    sides: Array

    def of(self, chosen: Array) -> Links:
        return Links(self.others[chosen], self.relations[chosen], self.sides[chosen])

    @property
    def on(self) -> tuple[Array, Array]:
        """Which have the new entity as head, and which as tail."""
        return self.sides == 0, self.sides == 1


@dataclass
class Crowd:
    """Queries [n, query width] of training, log Z of each [n], and how many each stands for [n]."""

    queries: Array
    rivals: Array
    counts: Array

    def of(self, chosen: Array, times: float = 1) -> Crowd:
        return Crowd(self.queries[chosen], self.rivals[chosen], self.counts[chosen] * np.float32(times))


@dataclass
class Task:
    """What a row is fitted to: queries [n, query width] in parts, a relation and side each, and in each what is true.

    `counts`: log of how many entities each stands for [n]. `starts`, `sizes`: of the parts. `often`: true ones of each.
    `true`: where these are. `rivals`: log Z of each of them. `crowd`: see there.
    `stands_for`: how many triples each of the entity's does.
    """

    queries: Array
    counts: Array
    starts: Array
    sizes: Array
    often: Array
    true: Array
    rivals: Array
    crowd: Crowd
    stands_for: float

    def loss(self, scores: Array) -> tuple[float, Array, Array]:
        """Of scores [n] of a row: the loss, the share of each query in its part [n], and how far below 1 the share of
        the row among the rivals of each true query is."""
        raised = scores + self.counts
        most = np.maximum.reduceat(raised, self.starts)
        share = np.exp(raised - np.repeat(most, self.sizes))
        sums, own = np.add.reduceat(share, self.starts), scores[self.true]
        total = self.often @ (most + np.log(sums)) - 2 * own.sum() + np.logaddexp(self.rivals, own).sum()
        below = 1 / (1 + np.exp(np.minimum(own - self.rivals, 80)))
        return total * self.stands_for, share / np.repeat(sums, self.sizes), below


class Fitter:
    """Fits rows of new entities to the weights of a student.

    `never`: ids of entities of which training learned nothing; no sum and no prior counts them.
    """

    def __init__(self, weights: Weights, triples: Triples | None = None, never: Sequence[int] = (), seed: int = 0):
        self.weights, self.equation, self.random = weights, weights.equation, np.random.default_rng(seed)
        count, learned = weights.num_entities, min(weights.num_entities, SPREAD)
        drawn = np.unique(self.random.integers(0, count, 2 * learned) if count > SPREAD else np.arange(count))
        drawn = self.random.permutation(drawn[~np.isin(drawn, np.asarray(never, np.int64))])[:SPREAD]
        rows = weights.rows(drawn).astype(np.float64)
        self.sample, self.mean = rows[:SAMPLE].astype(np.float32), rows.mean(0)
        spread = (rows - self.mean).T @ (rows - self.mean) / max(1, len(rows) - 1)
        spread *= 1 - SHRUNK
        spread[np.diag_indices_from(spread)] += SHRUNK * max(np.trace(spread) / len(spread), 1e-6)
        self.prior = PRIOR * np.linalg.inv(spread)
        if weights.coded:
            groups = len(weights.book) // weights.depth
            self.columns = weights.columns[: groups * weights.book.shape[2]].reshape(groups, -1)
        self.triples = triples
        self.share = np.log((count - NEAREST) / len(self.sample)) if count > NEAREST + SAMPLE else 0.0

    # ---- scores -----------------------------------------------------------------------------------------------------
    def queries(self, rows: Array, relations: Array, side: Side) -> Array:
        """Queries [n, query width] whose answer stands at a side, of rows [n, width] and relations [n]."""
        return self.equation.query(rows, self.weights.relations[relations], side)

    def scores(self, queries: Array, rows: Array) -> Array:
        """Scores [n, m] of queries [n] and rows [m], without the offset."""
        if self.equation.comparison == "dot":
            return queries @ rows.T
        return self.equation.compare(queries[:, None], rows[None]) - self.equation.offset

    def slopes(self, queries: Array, x: Array) -> tuple[Array, Array, Array | None]:
        """Of queries [n] and a row x: scores [n], their gradients [n, width], and how strongly each bends [n, width].

        What bends a distance grows without limit where it is 0, so it is that of one a little further off.
        """
        kind = self.equation.comparison
        if kind == "dot":
            return queries @ x, queries, None
        normal = None
        if kind == "hyperplane":
            queries, normal = np.split(queries, 2, axis=1)
            x = x - (normal @ x)[:, None] * normal
        apart = queries - x
        if kind == "modulus":
            size = np.sqrt(sum(part * part for part in np.split(apart, 2, axis=1)))
            score, size = -size.sum(1), np.tile(size, 2)
        elif self.equation.norm == 2:
            size = np.sqrt((apart * apart).sum(1, keepdims=True))
            score, size = -size[:, 0], np.broadcast_to(size, apart.shape)
        else:
            size = np.abs(apart)
            score = -size.sum(1)
        size = np.maximum(size, 1e-3 + 0.1 * size.mean(1, keepdims=True))
        slope = apart / size
        if normal is not None:
            slope = slope - (slope * normal).sum(1, keepdims=True) * normal
        return score, slope, 1 / size

    # ---- one entity -------------------------------------------------------------------------------------------------
    def fit(self, rows: Array, links: Links) -> Array:
        """What is stored of an entity: its row float32 [width], or the bytes of its codes.

        Args:
            rows: [n, width] of the others.
        """
        stands_for = 1.0  # of a hub each triple that is drawn stands for several
        if len(rows) > MOST:
            chosen = np.sort(self.random.choice(len(rows), MOST, replace=False))
            stands_for, rows, links = len(rows) / MOST, rows[chosen], links.of(chosen)
        order = np.lexsort((links.relations, links.sides))
        rows, links = rows[order], links.of(order)
        asked = np.concatenate(
            [self.queries(rows[on], links.relations[on], SIDES[i]) for i, on in enumerate(links.on) if on.any()]
        )
        rivals = self.rivals(asked)
        x = self.start(asked, rivals)
        for again in (False, True):
            task = self.task(x, asked, rivals, links, self.heard(x if again else None), stands_for)
            x, bend = self.newton(x, task)
        if not self.weights.coded:
            return x.astype(np.float32)
        return packed(self.rounded(x, bend))

    def rivals(self, asked: Array) -> Array:
        """log Zᵢ of queries [n]."""
        nearest, _ = self.weights.scanner.top(asked, min(NEAREST, self.weights.num_entities), threads=1)
        rest = self.scores(asked, self.sample) + self.share
        rest[rest - self.share >= nearest[:, -1:]] = -np.inf
        return log_sum(np.concatenate([nearest, rest], axis=1))

    @functools.cached_property
    def crowd(self) -> Crowd:
        """Queries of training, of both sides and all relations; without triples each entity asks for any relation."""
        half, triples = max(64, min(CROWD, EFFORT // self.weights.num_entities) // 2), self.triples
        learned = np.empty(0, int) if triples is None else np.flatnonzero(triples.split == 0)  # none to be ranked later
        if triples is None or not len(learned):
            every = self.weights.num_entities
            relations = self.random.integers(0, len(self.weights.relations), 2 * half)
            rows = self.sample[self.random.integers(0, len(self.sample), 2 * half)]
        else:
            every, at = len(learned), learned[self.random.integers(0, len(learned), 2 * half)]
            relations = np.searchsorted(triples.first, at, "right") - 1
            ids = np.concatenate([triples.tail[at[:half]], triples.head[at[half:]]])
            rows = self.weights.rows(ids)
        queries = np.concatenate(
            [self.queries(rows[on], relations[on], side) for on, side in zip((slice(half), slice(half, None)), SIDES)]
        )
        return Crowd(queries, self.rivals(queries), np.full(2 * half, WEIGHT * every / half, np.float32))

    def heard(self, x: Array | None) -> Crowd:
        """The queries of the crowd that a row x comes nearest to answering, and some that stand for the others."""
        crowd, every = self.crowd, np.arange(len(self.crowd.queries))
        nearest, rest = every[:0], every
        if x is not None and len(every) > 2 * HEARD:
            score, _, _ = self.slopes(crowd.queries, x.astype(np.float32))
            order = np.argpartition(crowd.rivals - score, HEARD)
            nearest, rest = order[:HEARD], np.sort(order[HEARD:])
        some = rest[:: max(1, len(rest) // HEARD)]
        parts = crowd.of(nearest), crowd.of(some, len(rest) / max(1, len(some)))
        return Crowd(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(crowd)))

    def task(self, x: Array, asked: Array, rivals: Array, links: Links, crowd: Crowd, stands_for: float) -> Task:
        """What is to be minimised, by the entities that are nearest where a row x asks."""
        found, counts, sizes = [], [], []
        place = 0
        for i, on in enumerate(links.on):
            kinds, often = np.unique(links.relations[on], return_counts=True)
            if not len(kinds):
                continue
            mine = self.queries(np.broadcast_to(x.astype(np.float32), (len(kinds), len(x))), kinds, SIDES[1 - i])
            score, nearest = self.weights.scanner.top(mine, min(NEAREST, self.weights.num_entities), threads=1)
            far = self.scores(mine, self.sample) < score[:, -1:]
            near = self.weights.rows(nearest.reshape(-1)).reshape(*nearest.shape, -1)
            for j, relation in enumerate(kinds.tolist()):
                part = np.concatenate([near[j], self.sample[far[j]]])
                own = asked[place : place + often[j]]
                place += often[j]
                found += [self.queries(part, np.full(len(part), relation), SIDES[i]), own]
                counts.append(
                    np.repeat(np.array([0, self.share, 0], np.float32), [len(near[j]), far[j].sum(), often[j]])
                )
                sizes.append((len(part), often[j]))
        at = np.array(sizes)
        starts = np.concatenate([[0], np.cumsum(at.sum(1))])
        true = np.concatenate([np.arange(end - n, end) for end, (_, n) in zip(starts[1:], sizes)])
        often, counts_ = at[:, 1].astype(np.float32), np.concatenate(counts).astype(np.float32)
        return Task(np.concatenate(found), counts_, starts[:-1], at.sum(1), often, true, rivals, crowd, stands_for)

    def start(self, asked: Array, rivals: Array) -> Array:
        """Where to begin: the ridge regression that lifts each score over its rivals, or the mean of what is asked."""
        if self.equation.comparison == "dot":
            return self.mean
        return (asked.mean(0)[: len(self.mean)] + self.mean / len(asked)) / (1 + 1 / len(asked))

    def newton(self, x: Array, task: Task) -> tuple[Array, Array]:
        """Newton's method with a Hessian that is positive: the row, and the Hessian there."""
        value, further = self.value(x, task)
        slope, bend = further()
        for _ in range(STEPS):
            step, size = np.linalg.solve(bend, slope), 1.0
            if step @ slope < TOLERANCE:
                break
            while (found := self.value(x - size * step, task))[0] > value - size * (step @ slope) / 10 and size > 1e-2:
                size /= 2
            x, (value, further) = x - size * step, found
            slope, bend = further()
        return x, bend

    def value(self, x: Array, task: Task) -> tuple[float, Callable[[], tuple[Array, Array]]]:
        """What is minimised at x, and what finds its gradient and a Hessian that is positive."""
        score, lift, curve = self.slopes(task.queries, x.astype(np.float32))
        value, share, below = task.loss(score)
        away, crowd = x - self.mean, task.crowd
        pull = self.prior @ away
        heard, push, _ = self.slopes(crowd.queries, x.astype(np.float32))
        value += crowd.counts @ np.logaddexp(0, heard - crowd.rivals) + away @ pull / 2

        def further() -> tuple[Array, Array]:
            often, own = task.stands_for * task.often, lift[task.true]
            weight = share * np.repeat(often, task.sizes)
            above = 1 / (1 + np.exp(np.minimum(crowd.rivals - heard, 80)))
            slope = pull + weight @ lift + (crowd.counts * above) @ push - task.stands_for * (1 + below) @ own
            loud, heavy = np.flatnonzero(above > LIGHT), np.flatnonzero(share > LIGHT)
            near, heft = push[loud], (crowd.counts * above * (1 - above))[loud]
            part = np.repeat(np.arange(len(task.sizes)), task.sizes)[heavy]
            means = ((part == np.arange(len(task.sizes))[:, None]) * share[heavy]) @ lift[heavy]
            bend = self.prior + (lift[heavy].T * weight[heavy]) @ lift[heavy] - (means.T * often) @ means
            bend += (own.T * (task.stands_for * below * (1 - below))) @ own + (near.T * heft) @ near
            if curve is not None:
                bend[np.diag_indices_from(bend)] += task.stands_for * (1 + below) @ curve[task.true]
            return slope, bend

        return float(value), further

    # ---- codes ------------------------------------------------------------------------------------------------------
    def rounded(self, x: Array, bend: Array) -> Array:
        """Codes [groups] of a row: those that lose the least of what is minimised, by its Hessian there.

        The nearest codes lose more; but what the triples do not ask for may be asked, so that the distance counts too.
        Of a nested student the first ones of all groups come first, since they are a student, too.
        """
        bend = bend + APART * np.trace(bend) / len(x) * np.eye(len(x))
        codes = list[Array]()
        for books in self.weights.books(self.weights.depth):
            left = x.copy()
            for i, book in enumerate(books):
                if i == len(codes):
                    codes.append(self.level(left, bend, book))
                left[self.columns] -= book[np.arange(len(book)), codes[i]]
        return np.concatenate(codes)

    def level(self, x: Array, bend: Array, book: Array) -> Array:
        """`rounded` by one codebook of each group."""
        columns, tried = self.columns, book - x[self.columns][:, None]  # [groups, 16, g]: what each vector leaves
        own = bend[columns[:, :, None], columns[:, None]]
        alone, pulls = ((tried @ own) * tried).sum(-1) / 2, bend[columns]
        code, away = (tried**2).sum(-1).argmin(1), np.zeros_like(x)
        away[columns] = tried[np.arange(len(book)), code]
        for _ in range(SWEEPS):
            before = code.copy()
            for m, at in enumerate(columns):
                pull = pulls[m] @ away - own[m] @ away[at]
                code[m] = (alone[m] + tried[m] @ pull).argmin()
                away[at] = tried[m, code[m]]
            if (code == before).all():
                break
        return code

    def row(self, stored: Array) -> Array:
        """The float32 row [width] of what is stored."""
        return self.weights.decoded(stored[None])[0] if self.weights.coded else stored


def packed(code: Array) -> Array:
    """The bytes of codes [groups]."""
    code = np.pad(code, (0, len(code) % 2)).astype(np.uint8)
    return code[0::2] | code[1::2] << 4


def log_sum(x: Array) -> Array:
    """log Σ eˣ over the last axis."""
    most = x.max(-1, keepdims=True)
    return np.log(np.exp(x - most).sum(-1)) + most[..., 0]


# ---- a student that grows -------------------------------------------------------------------------------------------
def grown(student: Student, triples: Any, places: Sequence[str] | None = None) -> tuple[Student, Answers]:
    """A student with the new entities of some triples, in memory; what it holds of the others is as it was.

    Returns:
        The student, itself where there is nothing new, and a row for each new entity: id, entity, triples.
    Raises:
        ConfigError: as `Student.add`.
    """
    if student.weights is None:
        raise ConfigError(f"a {student.model} of a class of one's own cannot be extended")
    student.check_all()
    labels, found = resolved(student, triples, places)
    old, weights = len(student.entities), student.weights
    is_new = (found[:, [0, 2]] >= old).any(1)
    known = np.zeros(len(found), bool)
    if student.has_triples:
        known[~is_new] = [t in student.triples.answers(h, r, "tail") for h, r, t in found[~is_new].tolist()]
    if known.any():
        log.info("%d of the triples were known already", known.sum())
    if (~is_new & ~known).any():
        log.warning(
            "%d of the triples are of entities that were there before: their rows stay as they are, and the triples "
            "are known from now on",
            (~is_new & ~known).sum(),
        )
    found = found[~known]
    if not len(found):
        return student, Answers({"id": [], "entity": [], "triples": []})
    rows, guessed = fitted(student, found, len(labels))
    if guessed.any():
        several = ", ".join(labels[i] for i in np.flatnonzero(guessed)[:3].tolist())
        log.warning(
            "%d of the new entities (%s%s) have no triple with an entity that was trained: their rows are guesses",
            guessed.sum(),
            several,
            ", …" * bool(guessed.sum() > 3),
        )
    header = {**student.header, "num_entities": old + len(labels)}
    header["reflexive"] = sorted({*student.reflexive, *found[found[:, 0] == found[:, 2], 1].tolist()})
    added = hashlib.sha256(f"{student.graph_sha256} {labels} {found.tolist()}".encode(errors="surrogatepass"))
    header["graph_sha256"] = added.hexdigest()
    header["about"] = {**student.about, "added": student.about.get("added", 0) + len(labels)}
    names = student.names.added([""] * len(labels)) if student.names is not None else None
    held = None
    if student.has_triples:
        held = with_triples(student.triples, found)
    more = type(student)(header, Weights(header, extended(weights, rows)), student.entities.added(labels), names, held)
    count = np.bincount(
        np.concatenate([found[:, 0], found[found[:, 0] != found[:, 2], 2]]), minlength=old + len(labels)
    )
    ids = range(old, old + len(labels))
    return more, Answers({"id": [*ids], "entity": labels, "triples": count[old:].tolist()})


def resolved(student: Student, triples: Any, places: Sequence[str] | None) -> tuple[list[str], Array]:
    """The labels that are new, in the order in which they come, and the triples int64 [n, 3] without repetitions."""
    if hasattr(triples, "to_numpy"):
        triples = triples.to_numpy()
    given = [*asking.plain(triples)]
    where = lambda i: f"{places[i]}: " if places is not None else f"triple {i + 1}: "
    for i, triple in enumerate(given):
        parts = asking.plain(triple)
        if not isinstance(parts, list) or len(parts) != 3:
            raise ConfigError(f"{where(i)}{short(triple)} is no triple of head, relation and tail")
        for value in parts:
            if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
                raise ConfigError(f"{where(i)}{short(value)} is no label; a label is a text or a whole number")
        given[i] = [str(value) for value in parts]
    if not given:
        raise ConfigError("no triples were given; give (head, relation, tail) of entities that are new")
    relations: dict[str, int] = {}
    for i, (_, relation, _) in enumerate(given):
        if relation not in relations:
            try:
                relations[relation] = asking.find(student, relation, "relation")
            except ConfigError as error:
                raise ConfigError(f"{where(i)}{error}; a relation cannot be added") from None
    texts = list(dict.fromkeys(x for h, _, t in given for x in (h, t)))
    numbers = dict(zip(texts, student.entities.find_all(texts).tolist()))
    if student.names is not None:  # a readable name that only one has is as good as its label
        for text in [x for x in texts if numbers[x] < 0]:
            if len(same := student.names.all(text)) == 1:
                numbers[text] = same[0]
    new = [text for text in texts if numbers[text] < 0]
    numbers |= {text: len(student.entities) + i for i, text in enumerate(new)}
    found = [(numbers[h], relations[r], numbers[t]) for h, r, t in given]
    return new, np.array([*dict.fromkeys(found)], np.int64).reshape(-1, 3)


def fitted(student: Student, found: Array, count: int) -> tuple[Array, Array]:
    """Of `count` new entities and triples [n, 3]: what is stored of each, and which are guesses, bool.

    First those with triples of trained entities, then those with triples of these, and so on; then, once more and with
    all triples, those with triples of other new ones. What a relation asks that training never saw is arbitrary, but
    the same for all of its triples: entities that have no other relation are fitted to it.
    """
    weights, old = student.weights, len(student.entities)
    useful = found[:, 0] != found[:, 2]
    for at in (0, 2):
        useful &= ~student.unseen("entity", found[:, at])
    learned = useful & ~student.unseen("relation", found[:, 1])
    served = np.arange(old + count) < old
    served[found[learned][:, [0, 2]]] = True
    useful = learned | (useful & ~served[found[:, [0, 2]]].all(1))
    links: list[list[tuple[int, int, int]]] = [[] for _ in range(count)]
    for h, r, t in found[useful].tolist():
        if h >= old:
            links[h - old].append((t, r, 0))
        if t >= old:
            links[t - old].append((h, r, 1))
    fitter = Fitter(weights, student.triples if student.has_triples else None, [*student.never["entity"]])
    nothing = fitter.mean.astype(np.float32)
    stored = [packed(fitter.rounded(fitter.mean, fitter.prior)) if weights.coded else nothing] * count
    rows = np.tile(fitter.row(stored[0]) if count else nothing, (count, 1))
    ready, guessed = np.zeros(count, bool), np.zeros(count, bool)

    def fit(i: int) -> None:
        usable = [x for x in links[i] if x[0] < old or ready[x[0] - old]]
        mine = Links(*np.array(usable).T)
        there = np.empty((len(usable), rows.shape[1]), np.float32)
        is_old = mine.others < old
        there[is_old], there[~is_old] = weights.rows(mine.others[is_old]), rows[mine.others[~is_old] - old]
        stored[i] = fitter.fit(there, mine)
        rows[i] = fitter.row(stored[i])

    while not ready.all():
        now = [i for i in np.flatnonzero(~ready).tolist() if any(x[0] < old or ready[x[0] - old] for x in links[i])]
        if not now:
            guessed, ready = ~ready, np.ones(count, bool)
            break
        for i in now:
            fit(i)
        ready[now] = True
    for i, own in enumerate(links):
        if any(x[0] >= old for x in own):
            fit(i)
    return np.stack(stored) if count else np.empty((0, weights.blocks.shape[1])), guessed


def extended(weights: Weights, stored: Array) -> dict[str, Array]:
    """The arrays of weights with further entities: numbers float32 [n, width], or bytes of codes."""
    arrays, count, size = dict(weights.arrays), weights.num_entities, weights.blocks.shape[2]
    if weights.scale is not None:
        scale = np.maximum(np.abs(stored).max(1, initial=0) / 127, np.finfo(np.float32).tiny).astype(np.float32)
        stored = np.rint(stored / scale[:, None]).clip(-127, 127)
        arrays["entities.scale"] = np.concatenate([weights.scale, scale])
    whole = count // size
    rest = rows_of(weights.blocks[whole:], count - whole * size)
    last = blocks(np.concatenate([rest, stored.astype(weights.blocks.dtype)]), size)
    return arrays | {"entities": np.concatenate([weights.blocks[:whole], last])}


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While this holds, no other process adds to a folder, calibrates it or replaces it.

    Raises:
        BusyError: another process does.
    """
    import filelock

    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BusyError(f"{folder}: another process is changing it; try again") from None
    except OSError as error:
        raise KgdistilError(f"cannot write {folder}: {error.strerror}; it is as it was") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / ".lock").unlink()  # while it is held: who waits on it finds it gone and makes another
        lock.release()
