"""A teacher that looks at paths: how well those from one entity to another speak for a relation between them.

For a query (h, r, ?) an entity t that paths of up to L triples lead to, in either direction of each, has the score

    s(t) = Σ_p [w_rp · log(1 + n_p) + v_rp] + a_r · log(1 + n_r(t)) + b_r · log(1 + n(t))

over the different paths p from h to t, each a sequence of relations: n_p is how many there are, n_r(t) how many triples
answer some query of r with t, n(t) how many t has (one from t to itself twice). All other entities share the score o_r.
The weights are those of greatest likelihood, a softmax over all entities, of training triples that are taken out of the
graph while their own query is asked. Paths as features are the path ranking algorithm's (Lao and Cohen 2010); queries
of r are of one direction. `Joined` multiplies these probabilities with those of an embedding model, which ranks what no
path leads to; `lists` keeps the best of each query: of the training queries, each asked without its own triple, which
only the embedding model has learned, and of others that the graph might be asked, whose answers it lacks.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from kgdistil.distillation.progress import LINE_SECONDS, about
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, Ranks, count_scores, sampled, score_all
from kgdistil.graph import Graph
from kgdistil.graphs.lists import Lists, keys_of
from kgdistil.graphs.queries import like_known, queries_of, spans
from kgdistil.models import SIDES, KGEModel, Side
from kgdistil.sampling import MADE_UP_STREAM, stream

log = logging.getLogger("kgdistil")
# Queries that are asked at once, and scores with all entities that they have: a block's memory is used again.
BLOCK, SCORES = 500, 4e6
NONE = -1  # no triple is left out, or no answer known
# Triples of an entity, and walks from it, that paths of several triples lead from at most; walks of a block; features
# that are kept to learn from (12 bytes each)
MOST, FAR, WALKS, FEATURES = 1000, 2e6, 4e6, 250e6
# What all lists of a graph may take, in walks: some ten minutes on one core. To compare a query with so many entities
# takes as long as a walk. And training triples that there are at least.
COST, ENTITIES, LEAST = 6e9, 9, 10_000
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
        train = graph.train.cpu()
        different = train.unique(dim=0)  # else a triple that is taken out would still be there
        self.train = train if len(different) == len(train) else different
        h, r, t = self.train.numpy().T
        self.entities, self.kinds = graph.num_entities, 2 * graph.num_relations
        source, target, kind = np.r_[h, t], np.r_[t, h], np.r_[r, r + graph.num_relations]
        order = np.argsort(source, kind="stable")
        self.target, self.kind = target[order], kind[order]
        self.triple = np.tile(np.arange(len(h)), 2)[order]
        self.count = np.bincount(source, minlength=self.entities)
        self.start = np.cumsum(self.count) - self.count
        self.answer, self.answers = np.unique(target * self.kinds + kind, return_counts=True)
        self.walked: dict[Settings, np.ndarray] = {}

    def answered(self, entity: np.ndarray, kind: np.ndarray) -> np.ndarray:
        """n_r(t), int64 [n]."""
        key = entity * self.kinds + kind
        place = np.searchsorted(self.answer, key).clip(max=len(self.answer) - 1)
        return np.where(self.answer[place] == key, self.answers[place], 0)

    def blocks(self, asked: Asked, settings: Settings, most: int = BLOCK) -> Iterator[Asked]:
        """Queries as many at a time as there is memory for, at most so many."""
        walks = np.cumsum(np.minimum(self.walks(settings)[asked.anchor], FAR))
        begin = 0
        while begin < len(walks):
            before = walks[begin - 1] if begin else 0
            end = max(begin + 1, min(begin + most, int(np.searchsorted(walks, before + WALKS))))
            yield asked.some(slice(begin, end))
            begin = end

    def walks(self, settings: Settings) -> np.ndarray:
        """How many paths are walked from each entity, float64 [E], those that use a triple twice in turn among them: of
        one triple alone where there are more than `FAR`."""
        if settings in self.walked:
            return self.walked[settings]
        source = np.repeat(np.arange(self.entities), self.count)
        found = np.zeros(self.entities)
        for length in range(1, settings.length + 1):
            ahead: np.ndarray = np.ones(self.entities)
            for step in reversed(range(length)):
                ahead = np.bincount(source, weights=ahead[self.target], minlength=self.entities)
                if step:
                    ahead[self.count > settings.widest[step - 1]] = 0
            found += ahead if length == 1 else np.where(self.count <= MOST, ahead, 0)
        return self.walked.setdefault(settings, np.where(found <= FAR, found, self.count))

    def paths(self, start: np.ndarray, without: np.ndarray, settings: Settings) -> tuple[np.ndarray, ...]:
        """What paths lead to from entities [n], none by way of triples `without` [n] or the same triple twice in turn.

        Returns:
            query, entity, path and how many, int64 [m], ascending; a path is its kinds, each + 1, as digits of a
            number whose base is one more than there are kinds.
        """
        query, at = np.arange(len(start)), start
        last, path = np.full(len(start), NONE), np.zeros(len(start), np.int64)
        parts, far = [], self.walks(settings)[start] > self.count[start]
        for step in range(settings.length):
            if step:
                fine = (self.count[at] <= settings.widest[step - 1]) & far[query]
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

    def sides(self, relations: int) -> list[tuple[Side, np.ndarray]]:
        """Which of them, bool [n], ask for a tail, and which for a head."""
        return [("tail", self.kind < relations), ("head", self.kind >= relations)]

    def keys(self, relations: int) -> Tensor:
        """Those of `Lists`, int64 [n]."""
        anchor, kind = torch.from_numpy(self.anchor), torch.from_numpy(self.kind)
        return keys_of(anchor, kind % relations, kind >= relations, relations)

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

    feature int32, times float32, of int32 [m]: the candidate that each belongs to; query, entity int64 [c], popular
    float32 [c, 2] of the candidates; kind, answer int64 [n] of the queries.
    """

    feature: Tensor
    times: Tensor
    of: Tensor
    query: Tensor
    entity: Tensor
    popular: Tensor
    kind: Tensor
    answer: Tensor
    left: Tensor  # float32 [n]: how many entities no path leads to, known answers aside


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
        others = self.known(asked, known)
        fine = ~np.isin(key, others)
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
        counts = self.edges.answered(entity, asked.kind[query]), self.edges.count[entity]
        popular = np.log1p(np.stack([x - itself for x in counts], axis=1))
        of = (np.cumsum(first) - 1).astype(np.int32)
        found = feature.astype(np.int32), np.log1p(times[fine]).astype(np.float32), of, query, entity
        size = len(asked.anchor)
        taken = np.bincount(query, minlength=size) + np.bincount(others // self.edges.entities, minlength=size)
        left = (self.edges.entities - taken).clip(min=1).astype(np.float32)
        made = [torch.from_numpy(x) for x in (*found, popular.astype(np.float32), asked.kind, asked.answer, left)]
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
        each = self.others[found.kind] - found.left.log()
        return found.query, found.entity, self.scores(found) - each[found.query]


def told(blocks: Iterable[Asked], total: int, what: str, progress: bool | None) -> Iterator[Asked]:
    """The blocks, with a bar in a terminal or a line at times; of how many queries."""
    began, done = time.monotonic(), 0
    last = began
    with tqdm(total=total, desc=what, leave=False, disable=None if progress is None else not progress) as bar:
        for block in blocks:
            yield block
            done, now = done + len(block.anchor), time.monotonic()
            bar.update(len(block.anchor))
            if bar.disable and progress is not False and now - last > LINE_SECONDS:
                left = about((now - began) * (total - done) / done)
                log.info("%s: %s of %s queries, %s left", what, f"{done:,}", f"{total:,}", left)
                last = now


def affordable(graph: Graph) -> Settings | None:
    """The longest paths whose lists take at most `COST`; None where not even two triples do, or of a small graph."""
    if len(graph.train) < LEAST:
        return None
    edges, further = Edges(graph), made_up(graph, Settings.made_up).anchor
    queries = 2 * len(edges.train) + len(further)
    for settings in (Settings(length=length) for length in (4, 3, 2)):
        walks = edges.walks(settings)
        cost = (walks * edges.count).sum() + walks[further].sum() + queries * graph.num_entities / ENTITIES
        if fits(edges, settings) and cost <= COST:
            return settings
    return None


def fits(edges: Edges, settings: Settings) -> bool:
    """Whether numbers of 63 bits tell all paths of a block of queries apart."""
    paths = (edges.kinds + 1) ** settings.length
    return max(BLOCK * edges.entities, edges.kinds) * paths < 1 << 63


def fit(graph: Graph, settings: Settings | None = None, seed: int = 0, progress: bool | None = None) -> Paths:
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
    some = draw.choice(len(edges.train), min(settings.triples, len(edges.train)), replace=False)
    asked = both_sides(edges.train[torch.from_numpy(some)], graph.num_relations, some)
    asked = asked.some(draw.permutation(len(asked.anchor)))
    known = KnownTriples(graph.train.cpu(), graph.num_relations)
    led = []
    for block in edges.blocks(asked, settings):
        query, entity, path, _ = edges.paths(block.anchor, block.without, settings)
        right = entity == block.answer[query]
        led.append(block.kind[query[right]] * base**settings.length + path[right])
    different, times = np.unique(np.concatenate(led), return_counts=True)
    vocabulary = torch.from_numpy(different[times >= settings.least])
    model = Paths(edges, settings, vocabulary, graph.num_relations)
    blocks, features = list[Reached](), 0
    for block in told(edges.blocks(asked, settings), len(asked.anchor), "paths", progress):
        blocks.append(model.reach(block, known))
        if (features := features + len(blocks[-1].feature)) > FEATURES:
            break  # those that are left say nothing: the order is random
    queries = sum(len(block.kind) for block in blocks)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.lr)
    for epoch in range(settings.epochs):
        total = 0.0
        for i in draw.permutation(len(blocks)).tolist():
            losses = model.loss(blocks[i])
            (losses.mean() + settings.decay * model.weights.square().sum() / len(blocks)).backward()
            optimiser.step()
            optimiser.zero_grad()
            total += float(losses.detach().sum())
        log.info("paths, epoch %d: loss %.4f, %d paths", epoch + 1, total / queries, len(vocabulary))
    return model


class Joined:
    """A path model and an embedding model as one: the product of their probabilities, of the latter's a power."""

    def __init__(self, paths: Paths, model: KGEModel, share: float | None = None):
        self.paths, self.model = paths, model
        self.share = paths.settings.share if share is None else share

    def blocks(self, asked: Asked) -> Iterator[Asked]:
        """Queries of as many scores as are kept at a time."""
        most = max(1, min(BLOCK, int(SCORES // self.paths.edges.entities)))
        return self.paths.edges.blocks(asked, self.paths.settings, most)

    @torch.no_grad()
    def scores(self, asked: Asked, known: KnownTriples) -> Tensor:
        """Their logarithm, but for a constant of each query, float32 [n, E]."""
        scores = torch.zeros(len(asked.anchor), self.paths.edges.entities)
        anchor, relation = torch.from_numpy(asked.anchor), torch.from_numpy(asked.kind % self.paths.relations)
        for side, of_side in asked.sides(self.paths.relations):
            which = torch.from_numpy(np.flatnonzero(of_side))
            if self.share and len(which):
                queries = self.model.queries(anchor[which], relation[which], side)
                scores[which] = self.share * score_all(self.model, queries)
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
                return torch.cat([self.scores(block, known) for block in self.blocks(asked.some(part.numpy()))])

            filtered = known.spans(triples[:, anchor], triples[:, 1], side)
            counted = count_scores(
                score, self.model.num_entities, torch.arange(len(triples)), triples[:, target], filtered
            )
            counts.append(counted)
        greater, equal = (np.stack([x.numpy() for x in column], axis=1) for column in zip(*counts, strict=True))
        return Ranks(greater, equal)

    def best(self, asked: Asked, known: KnownTriples, progress: bool | None = None) -> tuple[Tensor, Tensor]:
        """The best candidates of each query and their log-probabilities, int64 and float32 [n, kept]."""
        kept = min(self.paths.settings.kept, self.paths.edges.entities)
        ids, values = [torch.empty(0, kept, dtype=torch.int64)], [torch.empty(0, kept)]
        for block in told(self.blocks(asked), len(asked.anchor), "lists", progress):
            scores = self.scores(block, known)
            other = torch.from_numpy(self.paths.known(block, known))
            scores[other // scores.shape[1], other % scores.shape[1]] = -torch.inf
            found = scores.topk(kept)
            ids.append(found.indices)
            values.append(found.values - scores.logsumexp(1, keepdim=True))
        return torch.cat(ids), torch.cat(values)


def made_up(graph: Graph, most: int) -> Asked:
    """Queries that the graph might be asked (`like_known`) and has no answer to, at most so many."""
    anchor, relation, is_head, *_ = queries_of(graph.train.cpu())
    size, found = graph.num_relations, torch.empty(0, dtype=torch.int64)
    own = keys_of(anchor, relation, is_head, size)
    for turn in range(TURNS):
        new = keys_of(*like_known(anchor, relation, is_head, stream(0, MADE_UP_STREAM, turn)), size)
        before, found = len(found), torch.cat([found, new]).unique()
        if len(found) >= most or len(found) == before:
            break
    found = sampled(found[~torch.isin(found, own)], most)
    kind = found // 2 % size + size * (found % 2)
    none = np.full(len(found), NONE)
    return Asked((found // 2 // size).numpy(), kind.numpy(), none, none)


def lists(graph: Graph, joined: Joined, progress: bool | None = None) -> Lists:
    """The lists of all training queries and of `made_up` ones.

    A training query is asked once for each of its answers, without that answer's triple; its list is the mean of the
    probabilities, of which as many are kept as of others, and one more for each answer.
    """
    size, settings = graph.num_relations, joined.paths.settings
    known = KnownTriples(graph.train.cpu(), size)
    train = joined.paths.edges.train
    asked = both_sides(train, size, np.arange(len(train)))
    further = made_up(graph, settings.made_up)
    ids, values = joined.best(asked, known, progress)
    more_ids, more_values = joined.best(further, known, progress)
    keys, query, count = asked.keys(size).unique(return_inverse=True, return_counts=True)
    place, entry = (query[:, None] * graph.num_entities + ids).flatten().unique(return_inverse=True)
    shares = (values.exp() / count[query][:, None]).flatten()
    mean = torch.zeros(len(place)).index_add(0, entry, shares)
    query, ids = place // graph.num_entities, place % graph.num_entities
    order = mean.argsort(descending=True)
    order = order[query[order].argsort(stable=True)]  # a query's best first
    rank = torch.arange(len(order)) - torch.searchsorted(query, torch.arange(len(keys)))[query[order]]
    kept = order[(rank < settings.kept + count[query[order]]) & (mean[order] > 0)].sort().values
    key = torch.cat([keys[query[kept]], further.keys(size).repeat_interleave(more_ids.shape[1])])
    ids, scores = torch.cat([ids[kept], more_ids.flatten()]), torch.cat([mean[kept].log(), more_values.flatten()])
    order = ids.argsort()
    order = order[key[order].argsort(stable=True)]
    keys, count = key[order].unique_consecutive(return_counts=True)
    start = F.pad(count.cumsum(0), (1, 0))
    return Lists(keys, start, ids[order].int(), scores[order].float(), size, "", graph.sha256)


def sum_of(model: str, settings: Settings) -> str:
    """What the lists of a model's run are told by: 64 hexadecimal digits."""
    return hashlib.sha256(f"{model} {sorted(asdict(settings).items())}".encode()).hexdigest()
