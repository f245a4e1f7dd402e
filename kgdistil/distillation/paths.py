"""A teacher that looks at paths: how well those from one entity to another speak for a relation between them.

For a query (h, r, ?) an entity t that paths of up to L triples lead to, in either direction of each, has the score

    s(t) = Σ_p [w_rp · log(1 + n_p) + v_rp] + a_r · log(1 + n_r(t)) + b_r · log(1 + n(t))

over the different paths p from h to t, each a sequence of relations: n_p is how many there are, n_r(t) how many triples
answer some query of r with t, n(t) how many t has. All other entities share the score o_r. The weights are those of
greatest likelihood, a softmax over all entities, of training triples that are taken out of the graph while their own
query is asked. Paths as features are the path ranking algorithm's (Lao and Cohen 2010); queries of r are of one
direction. `join` multiplies its probabilities with those of an embedding model, which ranks what no path leads to, and
keeps the best of each query as `Lists`: of the training queries, each asked without its own triple, and of others that
the graph might be asked, whose answers it lacks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, Ranks, count_scores, sampled
from kgdistil.graph import Graph
from kgdistil.graphs.lists import Lists
from kgdistil.graphs.queries import like_known, queries_of, spans
from kgdistil.models import SIDES, KGEModel, Side
from kgdistil.sampling import MADE_UP_STREAM, stream

log = logging.getLogger("kgdistil")
BLOCK = 500  # queries that are asked at once
NONE = -1  # no triple is left out, or no answer known
MOST = 1000  # triples of an entity that paths of several triples lead from
# Walks that all lists of a graph take at most, some twenty minutes on one core, and training triples at least
WALKS, LEAST = 1.5e9, 10_000
TURNS = 64  # in which further queries are made up, at most


@dataclass(frozen=True)
class Settings:
    """How far paths go, and how their weights are learned."""

    length: int = 3  # triples of a path, at most
    widest: tuple[int, ...] = (300, 80, 40)  # triples of an entity that a path's second, third, … step may start from
    triples: int = 50_000  # that the weights are learned from, at most
    least: int = 5  # times that a path has to lead to an answer of a relation, to have weights of its own
    epochs: int = 12
    lr: float = 0.02
    decay: float = 5e-5  # of the weights' squares
    share: float = 1.0  # exponent of the embedding model's probabilities
    made_up: int = 300_000  # queries without a training answer that get a list, at most
    kept: int = 12  # candidates of a list


class Edges:
    """A graph's training triples as edges in both directions, those of an entity side by side.

    An edge's kind is its relation, and R more where it leads from tail to head; its triple is its number in training.
    """

    def __init__(self, graph: Graph):
        h, r, t = graph.train.cpu().numpy().T
        self.entities, self.kinds = graph.num_entities, 2 * graph.num_relations
        source, target, kind = np.r_[h, t], np.r_[t, h], np.r_[r, r + graph.num_relations]
        order = np.argsort(source, kind="stable")
        self.target, self.kind = target[order], kind[order]
        self.triple = np.tile(np.arange(len(h)), 2)[order]
        self.count = np.bincount(source, minlength=self.entities)
        self.start = np.cumsum(self.count) - self.count
        self.answered = np.bincount(target * self.kinds + kind, minlength=self.entities * self.kinds)  # n_r(t)

    def walks(self, settings: Settings) -> np.ndarray:
        """How many paths lead from each entity, float64 [E], those that use a triple twice in turn among them."""
        source = np.repeat(np.arange(self.entities), self.count)
        found = np.zeros(self.entities)
        for length in range(1, settings.length + 1):
            ahead: np.ndarray = np.ones(self.entities)
            for step in reversed(range(length)):
                ahead = np.bincount(source, weights=ahead[self.target], minlength=self.entities)
                if step:
                    ahead[self.count > settings.widest[step - 1]] = 0
            found += ahead if length == 1 else np.where(self.count <= MOST, ahead, 0)
        return found

    def paths(self, start: np.ndarray, without: np.ndarray, settings: Settings) -> tuple[np.ndarray, ...]:
        """What paths lead to from entities [n], none by way of triples `without` [n] or the same triple twice in turn.

        Returns:
            query, entity, path and how many, int64 [m], ascending; a path is its kinds, each + 1, as digits of a
            number whose base is one more than there are kinds.
        """
        query, at = np.arange(len(start)), start
        last, path = np.full(len(start), NONE), np.zeros(len(start), np.int64)
        parts = []
        for step in range(settings.length):
            if step:
                fine = (self.count[at] <= settings.widest[step - 1]) & (self.count[start[query]] <= MOST)
                query, at, last, path = query[fine], at[fine], last[fine], path[fine]
            count = self.count[at]
            of = np.repeat(np.arange(len(at)), count)
            edge = np.arange(len(of)) + (self.start[at] - np.cumsum(count) + count)[of]
            triple, target = self.triple[edge], self.target[edge]
            fine = (triple != last[of]) & (triple != without[query[of]]) & (target != start[query[of]])
            of, edge = of[fine], edge[fine]
            query, at, last = query[of], target[fine], triple[fine]
            path = path[of] * (self.kinds + 1) + self.kind[edge] + 1
            parts.append((query, at, path))
        query, at, path = (np.concatenate(x) for x in zip(*parts, strict=True))
        size = (self.kinds + 1) ** settings.length
        key, times = np.unique((query * self.entities + at) * size + path, return_counts=True)
        return key // size // self.entities, key // size % self.entities, key % size, times


@dataclass(frozen=True)
class Asked:
    """Queries [n]: the entity that is given, the kind that is asked for, and where it is known, the answer and the
    number of the training triple that is taken out for it; else `NONE`."""

    anchor: np.ndarray
    kind: np.ndarray
    answer: np.ndarray
    without: np.ndarray

    def blocks(self) -> Iterator[Asked]:
        """Some at a time."""
        for i in range(0, len(self.anchor), BLOCK):
            yield self.some(slice(i, i + BLOCK))

    def sides(self, relations: int) -> list[tuple[Side, np.ndarray]]:
        """Which of them, bool [n], ask for a tail, and which for a head."""
        return [("tail", self.kind < relations), ("head", self.kind >= relations)]

    def some(self, which: slice | np.ndarray) -> Asked:
        return Asked(self.anchor[which], self.kind[which], self.answer[which], self.without[which])


def both_sides(triples: Tensor, relations: int, numbers: np.ndarray | None = None) -> Asked:
    """Each triple [n, 3] as (h, r, ?) and (?, r, t), of numbers [n] among the training triples."""
    h, r, t = triples.cpu().numpy().T
    without = np.full(len(h), NONE) if numbers is None else numbers
    return Asked(np.r_[h, t], np.r_[r, r + relations], np.r_[t, h], np.tile(without, 2))


@dataclass(frozen=True)
class Reached:
    """What paths lead to, for a block's queries: features of candidates, and the candidates.

    feature int64, times float32, of [m]: the candidate that each belongs to; query, entity int64, popular float32 of
    the candidates [c], [c, 2].
    """

    feature: Tensor
    times: Tensor
    of: Tensor
    query: Tensor
    entity: Tensor
    popular: Tensor
    kind: Tensor
    answer: Tensor


class Paths(nn.Module):
    """The weights.

    Args:
        vocabulary: int64 [V], ascending, kind · base^L + path, of the paths that have weights of their own; those of
            others are their kind's and length's.
    """

    def __init__(self, edges: Edges, settings: Settings, vocabulary: Tensor, relations: int):
        super().__init__()
        self.edges, self.settings, self.relations = edges, settings, relations
        self.vocabulary, self.base = vocabulary, edges.kinds + 1
        self.weights = nn.Parameter(torch.zeros(len(vocabulary) + edges.kinds * settings.length, 2))
        self.popular = nn.Parameter(torch.zeros(edges.kinds, 2))
        self.others = nn.Parameter(torch.zeros(edges.kinds))

    def reach(self, asked: Asked, known: KnownTriples) -> Reached:
        """What paths lead to, without other answers that are known."""
        query, entity, path, times = self.edges.paths(asked.anchor, asked.without, self.settings)
        key = query * self.edges.entities + entity
        fine = ~np.isin(key, self.known(asked, known))
        query, entity, path, key = query[fine], entity[fine], path[fine], key[fine]
        wanted = asked.kind[query] * self.base**self.settings.length + path
        own = self.vocabulary.numpy()
        place = np.searchsorted(own, wanted).clip(max=max(0, len(own) - 1))
        length = np.searchsorted(self.base ** np.arange(self.settings.length + 1), path, side="right") - 1
        shared = len(own) + asked.kind[query] * self.settings.length + length
        feature = np.where(own[place] == wanted, place, shared) if len(own) else shared
        first = np.r_[True, key[1:] != key[:-1]] if len(key) else np.zeros(0, bool)
        query, entity = query[first], entity[first]
        itself = (entity == asked.answer[query]) & (asked.without[query] != NONE)
        counts = self.edges.answered[entity * self.edges.kinds + asked.kind[query]], self.edges.count[entity]
        popular = np.log1p(np.stack([x - itself for x in counts], axis=1))
        found = feature, np.log1p(times[fine]).astype(np.float32), np.cumsum(first) - 1, query, entity
        made = [torch.from_numpy(x) for x in (*found, popular.astype(np.float32), asked.kind, asked.answer)]
        return Reached(*made)

    def known(self, asked: Asked, known: KnownTriples) -> np.ndarray:
        """Known answers, query · E + entity, of the queries [n], their own ones not among them."""
        parts = []
        for side, of_side in asked.sides(self.relations):
            which = np.flatnonzero(of_side)
            anchor, relation = (torch.from_numpy(x[which]) for x in (asked.anchor, asked.kind % self.relations))
            start, end, ids = known.spans(anchor, relation, side)
            row, place = spans(start, end - start)
            entity, query = ids[place].numpy().astype(np.int64), which[row.numpy()]
            other = entity != asked.answer[query]
            parts.append(query[other] * self.edges.entities + entity[other])
        return np.concatenate(parts)

    def scores(self, found: Reached) -> Tensor:
        """s(t) of the candidates, float32 [c]."""
        w, v = F.embedding(found.feature, self.weights).unbind(1)
        of_paths = torch.zeros(len(found.query)).index_add(0, found.of, w * found.times + v)
        return of_paths + (self.popular[found.kind[found.query]] * found.popular).sum(1)

    def normaliser(self, found: Reached, scores: Tensor) -> Tensor:
        """log (Σ exp s(t) + exp o) of each query, float32 [n]."""
        others, size = self.others[found.kind], len(found.kind)
        most = others.detach().scatter_reduce(0, found.query, scores.detach(), "amax")
        total = torch.zeros(size).index_add(0, found.query, (scores - most[found.query]).exp())
        return most + (total + (others - most).exp()).log()

    def loss(self, found: Reached) -> Tensor:
        """−log of the probability of each query's answer, or of all that no path leads to where it is among them."""
        scores = self.scores(found)
        right = found.entity == found.answer[found.query]
        goal = self.others[found.kind].index_put((found.query[right],), scores[right])
        return self.normaliser(found, scores) - goal

    @torch.no_grad()
    def above(self, asked: Asked, known: KnownTriples) -> tuple[Tensor, Tensor, Tensor]:
        """Query, entity int64 [c] and by how much log p(entity) is above that of an entity that no path leads to, each
        of which has an equal share of what is left to them."""
        found = self.reach(asked, known)
        left = self.edges.entities - torch.bincount(found.query, minlength=len(found.kind))
        each = self.others[found.kind] - left.clamp_min(1).log()
        return found.query, found.entity, self.scores(found) - each[found.query]


def affordable(graph: Graph) -> Settings | None:
    """The longest paths whose lists take at most `WALKS`; None where not even two triples do, or of a small graph."""
    if len(graph.train) < LEAST:
        return None
    edges = Edges(graph)
    for length in (4, 3, 2):
        settings = Settings(length=length)
        if fits(edges, settings):
            walks = edges.walks(settings)
            if (walks * edges.count).sum() + settings.made_up * walks.mean() <= WALKS:
                return settings
    return None


def fits(edges: Edges, settings: Settings) -> bool:
    """Whether numbers of 63 bits tell all paths of a block of queries apart."""
    paths = (edges.kinds + 1) ** settings.length
    return max(BLOCK * edges.entities, edges.kinds) * paths < 1 << 63


def fit(graph: Graph, settings: Settings | None = None, seed: int = 0) -> Paths:
    """Learn the weights from training triples alone.

    Raises:
        ConfigError: the settings ask for paths of no length, or of too many kinds.
    """
    settings, edges = settings or Settings(), Edges(graph)
    base = edges.kinds + 1
    if not 1 <= settings.length <= len(settings.widest) + 1:
        raise ConfigError(f"length is {settings.length}: give 1 to {len(settings.widest) + 1}, as widest has numbers")
    if not fits(edges, settings):
        raise ConfigError(f"length is {settings.length}: {graph.num_relations} relations make too many such paths")
    draw = np.random.default_rng(seed)
    some = draw.choice(len(graph.train), min(settings.triples, len(graph.train)), replace=False)
    asked = both_sides(graph.train[torch.from_numpy(some)], graph.num_relations, some)
    asked = asked.some(draw.permutation(len(asked.anchor)))
    known = KnownTriples(graph.train.cpu(), graph.num_relations)
    led = []
    for block in asked.blocks():
        query, entity, path, _ = edges.paths(block.anchor, block.without, settings)
        right = entity == block.answer[query]
        led.append(block.kind[query[right]] * base**settings.length + path[right])
    different, times = np.unique(np.concatenate(led), return_counts=True)
    vocabulary = torch.from_numpy(different[times >= settings.least])
    model = Paths(edges, settings, vocabulary, graph.num_relations)
    blocks = [model.reach(block, known) for block in asked.blocks()]
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.lr)
    for epoch in range(settings.epochs):
        total = 0.0
        for i in draw.permutation(len(blocks)).tolist():
            losses = model.loss(blocks[i])
            (losses.mean() + settings.decay * model.weights.square().sum() / len(blocks)).backward()
            optimiser.step()
            optimiser.zero_grad()
            total += float(losses.detach().sum())
        log.info("paths, epoch %d: loss %.4f, %d paths", epoch + 1, total / len(asked.anchor), len(vocabulary))
    return model


class Joined:
    """A path model and an embedding model as one: the product of their probabilities, of the latter's a power."""

    def __init__(self, paths: Paths, model: KGEModel, share: float | None = None):
        self.paths, self.model = paths, model
        self.share = paths.settings.share if share is None else share

    @torch.no_grad()
    def scores(self, asked: Asked, known: KnownTriples) -> Tensor:
        """Their logarithm, but for a constant of each query, float32 [n, E]."""
        scores = torch.zeros(len(asked.anchor), self.paths.edges.entities)
        anchor, relation = torch.from_numpy(asked.anchor), torch.from_numpy(asked.kind % self.paths.relations)
        for side, of_side in asked.sides(self.paths.relations):
            which = torch.from_numpy(np.flatnonzero(of_side))
            if self.share and len(which):
                queries = self.model.queries(anchor[which], relation[which], side)
                scores[which] = self.share * self.model.compare(queries, self.model.entities).float()
        query, entity, above = self.paths.above(asked, known)
        scores[query, entity] += above
        return scores

    def ranks(self, triples: Tensor, known: KnownTriples) -> Ranks:
        """Filtered ranks of triples [n, 3], head and tail side, as `evaluation.rank`."""
        size, counts = self.paths.relations, []
        for side, anchor, target in SIDES:
            given = triples[:, anchor].numpy(), (triples[:, 1] + (0 if side == "tail" else size)).numpy()
            asked = Asked(*given, triples[:, target].numpy(), np.full(len(triples), NONE))

            def score(part: Tensor, asked: Asked = asked) -> Tensor:
                return torch.cat([self.scores(block, known) for block in asked.some(part.numpy()).blocks()])

            filtered = known.spans(triples[:, anchor], triples[:, 1], side)
            counted = count_scores(
                score, self.model.num_entities, torch.arange(len(triples)), triples[:, target], filtered
            )
            counts.append(counted)
        greater, equal = (np.stack([x.numpy() for x in column], axis=1) for column in zip(*counts, strict=True))
        return Ranks(greater, equal)

    def best(self, asked: Asked, known: KnownTriples) -> tuple[Tensor, Tensor]:
        """The best candidates of each query and their log-probabilities, int64 and float32 [n, kept]."""
        ids, values = [], []
        for block in asked.blocks():
            scores = self.scores(block, known)
            other = torch.from_numpy(self.paths.known(block, known))
            scores[other // scores.shape[1], other % scores.shape[1]] = -torch.inf
            found = scores.topk(min(self.paths.settings.kept, scores.shape[1]))
            ids.append(found.indices)
            values.append(found.values - scores.logsumexp(1, keepdim=True))
        return torch.cat(ids), torch.cat(values)


def made_up(graph: Graph, most: int) -> Asked:
    """Queries that the graph might be asked (`like_known`) and has no answer to, at most so many."""
    anchor, relation, is_head, *_ = queries_of(graph.train.cpu())
    size, found = graph.num_relations, torch.empty(0, dtype=torch.int64)
    own = (anchor * size + relation) * 2 + is_head
    for turn in range(TURNS):
        new, asked, heads = like_known(anchor, relation, is_head, stream(0, MADE_UP_STREAM, turn))
        before, found = len(found), torch.cat([found, (new * size + asked) * 2 + heads]).unique()
        if len(found) >= most or len(found) == before:
            break
    found = sampled(found[~torch.isin(found, own)], most)
    kind = found // 2 % size + size * (found % 2)
    none = np.full(len(found), NONE)
    return Asked((found // 2 // size).numpy(), kind.numpy(), none, none)


def lists(graph: Graph, joined: Joined) -> Lists:
    """The lists of all training queries and of `made_up` ones.

    A training query is asked once for each of its answers, without that answer's triple; its list is the mean of the
    probabilities, of which as many are kept as of others, and one more for each answer.
    """
    size, settings = graph.num_relations, joined.paths.settings
    known = KnownTriples(graph.train.cpu(), size)
    asked = both_sides(graph.train, size, np.arange(len(graph.train)))
    further = made_up(graph, settings.made_up)
    ids, values = joined.best(asked, known)
    more_ids, more_values = joined.best(further, known)
    keys, query, count = keys_of(asked, size).unique(return_inverse=True, return_counts=True)
    place, entry = (query[:, None] * graph.num_entities + ids).flatten().unique(return_inverse=True)
    shares = (values.exp() / count[query][:, None]).flatten()
    mean = torch.zeros(len(place)).index_add(0, entry, shares)
    query, ids = place // graph.num_entities, place % graph.num_entities
    order = mean.argsort(descending=True)
    order = order[query[order].argsort(stable=True)]  # a query's best first
    rank = torch.arange(len(order)) - torch.searchsorted(query, torch.arange(len(keys)))[query[order]]
    kept = order[(rank < settings.kept + count[query[order]]) & (mean[order] > 0)].sort().values
    key = torch.cat([keys[query[kept]], keys_of(further, size).repeat_interleave(more_ids.shape[1])])
    ids, scores = torch.cat([ids[kept], more_ids.flatten()]), torch.cat([mean[kept].log(), more_values.flatten()])
    order = ids.argsort()
    order = order[key[order].argsort(stable=True)]
    keys, count = key[order].unique_consecutive(return_counts=True)
    start = F.pad(count.cumsum(0), (1, 0))
    return Lists(keys, start, ids[order].int(), scores[order].float(), size, "", graph.sha256)


def keys_of(asked: Asked, relations: int) -> Tensor:
    """Those of `Lists`, int64 [n]."""
    anchor, kind = torch.from_numpy(asked.anchor), torch.from_numpy(asked.kind)
    return (anchor * relations + kind % relations) * 2 + (kind >= relations)


def sum_of(model: str, settings: Settings) -> str:
    """What the lists of a model's run are told by: 64 hexadecimal digits."""
    return hashlib.sha256(f"{model} {sorted(asdict(settings).items())}".encode()).hexdigest()
