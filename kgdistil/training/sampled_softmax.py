"""Softmax over many candidates: for each query (h, r, ?) and (?, r, t) its answers against all entities, or a sample.

With k ≥ E this is KvsAll (1-vs-all for a query of one answer) with a softmax over the candidates (Joulin et al. 2017,
Lacroix et al. 2018); with fewer it is a sampled softmax. It is beyond the paper, whose losses look at a few corruptions
of one triple, on which a good teacher's soft labels are all near zero. Here a query's answers compete with every
candidate at once, and a soft label is the teacher's distribution over the same candidates (Hinton et al. 2015). The
entities may be product-quantised (`compress.product`): the student then trains through the rounding that its file has,
by a straight-through estimator.

A batch is `batch_size` different queries, each with all its training answers. Its candidates are those answers and
k entities drawn for the whole batch, whose scores stand for all others. The learning rates are Adagrad's, whose sums of
squares begin at `accumulator`: at 0, the first step moves every number by the whole rate, which a model that has
learned does not need. An entity may have one sum for its whole row (`accumulators`), as in DGL-KE (Zheng et al. 2020).
Products of matrices are taken in bfloat16 where the processor has it. Relations may be predicted as well, (h, ?, t),
for dot products (Chen et al. 2021). A step reads and changes the rows that it uses: neither time nor memory grow with
E. A batch may hold as many made-up queries again (`unlabelled`), which have a soft label only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kgdistil import kernels
from kgdistil.compress import nested, whole
from kgdistil.compress.product import rows_in, rows_of, straight_through
from kgdistil.config import RunConfig
from kgdistil.graphs.queries import Batch, batch_of, best_of, candidates, like_known, queries_of
from kgdistil.graphs.remembered import Remembered
from kgdistil.kernels import pairs
from kgdistil.kernels.softmax import Everywhere, arithmetic, softmax_losses
from kgdistil.losses import PARTS, softmax_hard_loss, softmax_soft_loss
from kgdistil.models import ComplEx, KGEModel, with_entities
from kgdistil.sampling import MADE_UP_STREAM, NEGATIVE_STREAM, epoch_order, stream
from kgdistil.training.base import Engine


class SampledSoftmaxEngine(Engine):
    """KvsAll and sampled softmax, by Adagrad.

    Args:
        student, teacher: as `Engine`; triples: int64 [n, 3], the training triples.
        config: loss softmax; `negatives` is k, `group` the floats that share a codebook, of the student alone.
    """

    share = 1.0  # of the batch's triples, whose answers are here
    everywhere: Everywhere | None = None  # what all processes have of a batch's queries
    depth = 1  # of the codes of the student that a step trains
    said: Remembered | None = None  # in place of a wide teacher
    rows = slice(None)  # of all entities, those that are here

    def __init__(self, student: KGEModel, teacher: KGEModel | None, triples: Tensor, config: RunConfig):
        queries = queries_of(triples, config.answers)
        super().__init__(student, teacher, len(queries[0]), config)
        self.anchor, self.relation, self.is_head, self.start, self.count, self.answers = queries
        self.size, self.half = student.num_entities, kernels.bfloat16_where_fast(self.device)
        if self.device.type == "cpu":
            kernels.keep_freed_memory()
        self.asked = self.anchor, self.relation, self.is_head
        self.top = best_of(teacher, *self.asked, config.top) if config.top and teacher is not None else None
        if config.unlabelled:
            self.start, self.count = (torch.cat([x, torch.zeros_like(x)]) for x in (self.start, self.count))
        for role, model in self.trained.items():
            for table, x in model.named_parameters():
                start = x.data[:, :1] if table == "entities" and config.accumulators == "row" else x.data
                self.moments[f"{role}.{table}.v"] = torch.full_like(start, config.accumulator)
        self.slopes: dict[str, Tensor | None] = {}  # gradients of scores that are without autograd
        # how far an epoch is: its steps done and the sums of their losses
        self.moments["done"] = torch.zeros((), dtype=torch.int64)
        self.moments["sums"] = torch.zeros(len(PARTS), dtype=torch.float64, device=self.device)
        self.whole = whole.keep_frequent(student, triples, config.whole)  # which entities have no codes
        self.first = nested.begun(student)  # codes, which stay
        if config.group:
            learned = nested.learned(student, config.group, config.depth, self.whole, config.spread)
            self.moments |= learned | {f"{x}.v": torch.full_like(y, config.accumulator) for x, y in learned.items()}

    @property
    def arithmetic(self) -> dict[str, str | int]:
        """What a record says of how sums were made."""
        found = arithmetic(list(self.models.values()), self.config.group, self.half)
        return {**found, "teacher": "remembered"} if self.said else found

    def as_saved(self) -> dict[str, KGEModel]:
        """The student product-quantised: a copy whose entities are what their codes say."""
        if not self.config.group:
            return self.trained
        student, kept = self.models["student"], None if self.whole is None else self.whole[self.rows]
        coded = nested.as_coded(student, self.moments, kept, self.first)
        return {**self.trained, "student": with_entities(student, coded)}

    def epoch(self, epoch: int, rates: Tensor, teacher_rates: Tensor | None = None) -> dict[str, float]:
        self.begin(epoch)
        seed, order = self.config.seed, epoch_order(self.config.seed, epoch, self.samples, self.device)
        if self.config.unlabelled:
            made = self.made_up(stream(seed, MADE_UP_STREAM, epoch, self.device))
            self.anchor, self.relation, self.is_head = (torch.cat(pair) for pair in zip(self.asked, made, strict=True))
        given = {"student": rates.tolist(), "teacher": (rates if teacher_rates is None else teacher_rates).tolist()}
        batches, done, sums = order.split(self.config.batch_size), self.moments["done"], self.moments["sums"]
        numbers = epoch * self.steps + torch.arange(self.steps, device=self.device)
        bases = stream(seed, NEGATIVE_STREAM, numbers, self.device)
        for i in range(int(done), len(batches)):
            sums += self.step(batches[i], bases[i], {role: given[role][i] for role in self.trained})
            done += 1
            if i + 1 < len(batches):
                self.between()
        losses = (sums / len(self.answers)).tolist()  # read once, at the end
        done.zero_(), sums.zero_()
        return dict(zip(PARTS, losses, strict=True))

    def step(self, batch: Tensor, base: Tensor, rates: dict[str, float]) -> Tensor:
        """One batch of queries int64 [n]; the five losses, each times the batch's number of triples."""
        self.depth = nested.drawn(base, self.config.depth, self.first)
        queries = self.batch_of(torch.cat([batch, batch + self.samples]) if self.config.unlabelled else batch)
        ids, place, shift = self.candidates(queries.answers, base, self.best(queries.ids))
        views = {role: View(self, role, queries, ids, place, role in self.trained) for role in self.models}
        scores = {role: view.scores() for role, view in views.items()}
        if self.said:
            scores["teacher"] = self.said.among(queries.ids, ids, scores["student"])
        soft, hard = dict[str, Tensor](), dict[str, Tensor]()
        for role in self.trained:
            others = [scores[name] for name in scores if name != role]
            hard[role], *found = self.losses_of(role, [scores[role], *others], shift, queries, place)
            soft |= {role: found[0]} if found else {}
        penalty, weight = torch.zeros((), device=self.device), self.config.relation_weight
        for view in (views[role] for role in self.trained if self.share):
            penalty = penalty + (self.config.penalty * view.penalty(queries) if self.config.penalty else 0)
            penalty = penalty + (weight * view.relation_loss(queries) if weight else 0)
        total, parts = self.add(soft, hard, penalty)
        if total.requires_grad:
            total.backward()
        for role in self.trained:
            views[role].update(rates[role])
        return len(queries.row) * parts

    def batch_of(self, ids: Tensor) -> Batch:
        """The batch of queries int64 [n]."""
        return batch_of((self.anchor, self.relation, self.is_head, self.start, self.count, self.answers), ids)

    def made_up(self, base: Tensor) -> tuple[Tensor, ...]:
        """As many queries again as the graph's, by an epoch's random number: anchor, relation and is_head [Q]."""
        return like_known(*self.asked, base)

    def best(self, batch: Tensor) -> Tensor | None:
        """What the teacher puts first for queries [n], where that is to be among the candidates."""
        return None if self.top is None else self.top[batch]

    def losses_of(self, role: str, scores: list[Tensor], shift: Tensor, batch: Batch, place: Tensor) -> list[Tensor]:
        """Hard loss of the first scores, soft one by the other model's; `slopes`: gradients where autograd is off."""
        own, other, t = scores[0], scores[1] if len(scores) > 1 else None, self.config.temperature
        soft = 0.0 if other is None else self.weights[role] or 0.0
        labels = None if other is None else self.labels((self.everywhere or batch).counts)
        slopes = self.slopes[role] = self.slopes.get(role, None if own.requires_grad else torch.empty_like(own))
        given = own, other, shift, batch.begins, place, labels, t, (1 - soft, soft)  # counted as `add` will
        if (found := softmax_losses(*given, slopes, self.everywhere)) is not None:
            return [*found][: len(scores)]
        own, *others = (x[:, : len(shift)].float() + shift for x in scores)
        hard = softmax_hard_loss(own, batch.row, place)
        return [hard, *(softmax_soft_loss(own, x, self.labels(batch.counts), t) for x in others)]

    def labels(self, count: Tensor) -> Tensor:
        """What each query counts in the soft loss, float32 [n]: its share of the answers; made-up ones count alike."""
        known, made, weight = count / count.sum().clamp_min(1), count == 0, self.config.unlabelled
        return (known + weight * made / made.sum()) / (1 + weight) if weight else known

    def candidates(self, answers: Tensor, base: Tensor, top: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `graphs.queries.candidates`; `top` [n, k] is what the teacher puts first."""
        return candidates(answers, base, self.config.negatives, self.size, top)

    def table(self, role: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """A table and the places [n] in it of entities [n]; where it is spread over several processes, a part of it."""
        return self.models[role].entities.data, ids

    def gradients(self, view: View) -> kernels.Gradients:
        """Those of the table's rows that a view used."""
        return kernels.Gradients(view.places, view.parts)


class View:
    """The rows of one model that a batch uses, and their way back: its candidates, in the type of products of matrices,
    its given entities, and once more those candidates that are answers. Each is a leaf, its gradient goes to the rows.
    """

    given = property(lambda self: self.model.rows(self.anchors))  # what they stand for in the score
    found = property(lambda self: self.model.rows(self.answers))

    def __init__(
        self, engine: SampledSoftmaxEngine, role: str, batch: Batch, candidates: Tensor, place: Tensor, trained: bool
    ):
        self.engine, self.role, self.model = engine, role, engine.models[role]
        self.tails, m = batch.tails, len(candidates)
        table, places = engine.table(role, torch.cat([candidates, batch.anchor]))
        answers, self.order, self.begins, self.answer = kernels.grouped(place if trained else place[:0])
        self.places = torch.cat([places, places[answers]])
        dtype = table.dtype if self.model.distance else engine.half
        self.book, self.kept, self.of = None, None, ""
        if engine.config.group and role == "student":
            self.of, paired = nested.of(engine.depth, engine.config.depth), self.model.paired
            self.book = engine.moments["student.codebook" + self.of].detach()
            codes = nested.codes_of(table, nested.books(engine.moments, engine.depth), paired, places, engine.first)
            self.codes = torch.cat([codes, codes[answers]])
            rows, near = rows_in(dtype, codes[:m], self.book, paired), rows_of(self.codes[m:], self.book, paired)
            if engine.whole is not None:
                self.kept = engine.whole[torch.cat([candidates, batch.anchor, candidates[answers]])]
                whole.keep([rows[:m], near], table, self.places, self.kept)
        else:
            near = kernels.rows_in(table.dtype, table, self.places[m:], 1)
            rows = kernels.rows_in(dtype, table, places[:m])
        self.rows = (rows[:m] if self.model.distance else rows).requires_grad_(trained)
        self.anchors, self.answers = (x.requires_grad_(trained) for x in near.split([len(batch.ids), len(answers)]))
        relations = engine.moments.get(f"{role}.relations{self.of}", self.model.relations)
        self.relations = relations.detach().requires_grad_(trained)
        self.map = getattr(self.model, "map", None)  # of a low rank
        if self.map is not None:
            self.map.requires_grad_(trained).grad = None
        self.relation_ids, self.inner = batch.relation, getattr(self.model, "inner", self.model)

    def scores(self) -> Tensor:
        """Scores [n, m or more] of the batch's queries against its candidates; what stands beyond them is nothing."""
        asked = self.anchors, self.relations, self.relation_ids, self.tails, self.rows, self.map
        self.dots = kernels.dots_in(self.inner, *asked)
        if self.dots is not None:
            return self.dots.scores
        self.relation = F.embedding(self.relation_ids, self.relations)  # whose gradient is summed fast
        (tail, head), (of_tail, of_head) = (x.tensor_split([self.tails]) for x in (self.given, self.relation))
        queries = torch.cat([self.inner.query(tail, of_tail, "tail"), self.inner.query(head, of_head, "head")])
        if self.model.distance:
            return pairs.compare(self.model, queries, self.rows)
        queries = queries if self.map is None else queries @ self.map.T
        return self.model.compare(queries.to(self.engine.half), self.rows)

    def penalty(self, batch: Batch) -> Tensor:
        """The model's regulariser, the mean over the batch's triples."""
        model, count = self.inner, batch.counts
        if self.engine.config.regulariser == "dura" and isinstance(model, ComplEx):
            tail, head = F.embedding(self.relation_ids, self.relations).tensor_split([self.tails])
            relation = torch.cat([model.towards(tail, "tail"), model.towards(head, "head")])
            answers = model.dura(F.embedding(self.answer, self.found), F.embedding(batch.row, relation))
            return ((count * model.dura(self.given, relation)).sum() + answers.sum()) / count.sum()
        if self.dots is not None:
            return self.dots.penalty(count, self.answers, self.begins, self.engine.share * self.engine.config.penalty)
        own, others = count / count.sum(), self.begins.diff() / count.sum()
        of_query = model.entity_penalty(self.given) + model.relation_penalty(self.relation)
        return (own * of_query).sum() + (others * model.entity_penalty(self.found)).sum()

    def relation_loss(self, batch: Batch) -> Tensor:
        """−log softmax of each triple's relation among all of them (Chen et al. 2021, Eq. 3), the mean over triples;
        of a directed model among those of both directions, and a query for heads reads its triple backwards."""
        row = batch.row
        if self.dots is not None:
            triples = batch.begins, row, self.answer, self.order, self.begins
            by = self.engine.share * self.engine.config.relation_weight
            return self.dots.relation_loss(triples, self.answers, by)
        anchors, answers = F.embedding(row, self.given), F.embedding(self.answer, self.found)
        backwards, target, half = row >= self.tails, self.relation_ids[row], self.engine.half
        if self.model.directed:
            target = target + len(self.relations) * backwards
        else:
            anchors, answers = (torch.where(backwards[:, None], *x) for x in ((answers, anchors), (anchors, answers)))
        scores = self.inner.between(anchors, answers).to(half) @ self.model.directions(self.relations).to(half).T
        return F.cross_entropy(scores.float(), target)

    def update(self, rate: float) -> None:
        """One step of Adagrad (Duchi et al. 2011) on the rows that were used."""
        if self.dots is not None and (slopes := self.engine.slopes.pop(self.role)) is not None:
            self.dots.give(slopes, self.rows, self.anchors, self.relations, self.answers, self.map)
        tensors, near = self.engine.moments, [x.grad for x in (self.anchors, self.answers) if x.grad is not None]
        self.parts = [self.rows.grad[: len(self.places) - len(self.anchors) - len(self.answers)], *near]
        self.places = self.places[: sum(map(len, self.parts))]  # where nothing asks for the answers' own
        if self.book is not None:
            codes = self.codes[: len(self.places)]
            parts = self.parts if self.kept is None else whole.without(self.parts, self.kept[: len(codes)])
            self.book.grad = straight_through(parts, codes, self.book, self.model.paired)
            if self.engine.config.spread:
                self.book.grad[..., nested.seen(self.book.shape[-1], self.engine.depth, self.engine.config.depth) :] = 0
        table, sums = self.model.entities.data, tensors[f"{self.role}.entities.v"]
        self.engine.gradients(self).adagrad(table, sums, rate)
        others = {"relations" + self.of: self.relations, "codebook" + self.of: self.book, "map": self.map}
        for name, leaf in ((name, x) for name, x in others.items() if x is not None):
            own_rate = rate if leaf is self.relations else rate * self.engine.config.shared
            kernels.adagrad(leaf, tensors[f"{self.role}.{name}.v"], own_rate)
