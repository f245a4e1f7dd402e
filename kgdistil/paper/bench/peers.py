"""The peers the benchmark is measured against, each at its best reasonable settings.

Every peer does the same job, a :class:`Work`: training epochs with Adam, and filtered ranking of both sides of given
triples against all entities. ``prepare`` and ``ready`` set up, untimed; ``epochs`` times each epoch by itself; the
caller times ``rank``. Where a library's default costs time that this project does not spend either (normalising every
entity after each step, weight regularisers, rejection of negatives that are known triples), the peer runs without it.
What remains different is stated in ``settings``, which belongs into the results file. The caller sets torch's thread
count.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kgdistil.evaluation import KnownTriples

OURS = "kgdistil"
MARGIN_MODELS = ("TransE", "TransH")
MODELS = (*MARGIN_MODELS, "ComplEx", "RotatE")
SIZES = (1, 4, 16, 64, 256)  # triples a batch that a peer's ranking may be tried with
BLOCK = 512 << 20  # bytes that a peer's batch of candidates may take, of which it keeps several


@dataclass(frozen=True)
class Work:
    """One training and ranking job, the same for everybody.

    ``model`` is one of :data:`MODELS` (TransE and TransH with the L1 norm), ``dim`` the paper's d: ComplEx and RotatE
    hold 2·d floats an entity. ``negatives`` are per positive; ``train``, ``valid`` and ``test`` are int64 [n, 3] in the
    order (head, relation, tail). ``margin`` is γ of Eq. 1, and of RotatE's score γ - distance; ComplEx has none.
    """

    model: str
    dim: int
    negatives: int
    batch_size: int
    lr: float
    train: Tensor
    valid: Tensor
    test: Tensor
    num_entities: int
    num_relations: int
    margin: float

    @property
    def known(self) -> Tensor:
        """All true triples, the filter of the filtered ranking: int64 [n, 3]."""
        return torch.cat((self.train, self.valid, self.test))


class Peer(Protocol):
    """What the benchmark asks of a peer; constructing one raises ImportError where its library is missing."""

    name: str
    version: str
    settings: dict[str, Any]
    sizes: tuple[int, ...]  # triples a batch of `rank` to try; empty where it has no such choice

    def prepare(self, work: Work) -> None:
        """Build model, optimiser and loops; NotImplementedError where the library lacks the model. Untimed."""

    def epochs(self, n: int) -> list[float]:
        """Train n more epochs over all of ``work.train`` and return the seconds of each; no evaluation inside."""

    def ready(self, triples: Tensor, size: int) -> None:
        """Set up the ranking of int64 [n, 3] triples in batches of `size`. Untimed."""

    def rank(self) -> Tensor:
        """Filtered ranks [n, 2], of heads and tails among all entities, of the triples of `ready`."""


def _floats(work: Work) -> int:
    """Floats an entity holds, as in the paper: d, or 2·d for the complex models."""
    return work.dim if work.model in MARGIN_MODELS else 2 * work.dim


def _fitting(work: Work) -> tuple[int, ...]:
    """The batches whose candidates, a row of all entities for each triple, fit into `BLOCK`."""
    row = 4 * work.num_entities * _floats(work)
    return tuple(size for size in SIZES if size == 1 or size * row <= BLOCK)


def _check(work: Work) -> None:
    if work.model not in MODELS:
        raise NotImplementedError(f"no peer has a model {work.model!r}; choose one of {', '.join(MODELS)}")


class PyKEEN:
    """PyKEEN's models, its sLCWA training loop and its rank-based evaluator."""

    name = "PyKEEN"

    def __init__(self) -> None:
        self.version = version("pykeen")
        self.settings: dict[str, Any] = {}

    def prepare(self, work: Work) -> None:
        _check(work)
        from pykeen import losses, models
        from pykeen.evaluation import RankBasedEvaluator
        from pykeen.training import SLCWATrainingLoop
        from pykeen.triples import CoreTriplesFactory

        class TimedLoop(SLCWATrainingLoop):
            """Times each epoch itself, so that what ``train`` sets up once per call is not charged to PyKEEN."""

            def _train_epoch(self, *args: Any, **kwargs: Any) -> float:
                start = time.perf_counter()
                loss = super()._train_epoch(*args, **kwargs)
                self.seconds.append(time.perf_counter() - start)
                return loss

        # It warns on every CPU evaluation about a memory search that fixed batch and slice sizes leave nothing to do.
        logging.getLogger("torch_max_mem").setLevel(logging.ERROR)
        none = {"weight": 0.0}
        options: dict[str, dict[str, Any]] = {
            "TransE": {"scoring_fct_norm": 1, "entity_constrainer": None},
            "TransH": {
                "scoring_fct_norm": 1,
                "regularizer": "no",
                "regularizer_kwargs": none,
                "relation_regularizer": "no",
                "relation_regularizer_kwargs": none,
            },
            "ComplEx": {"regularizer": None},
            "RotatE": {},
        }
        margin = work.model in MARGIN_MODELS
        self.work = work
        self.done = 0
        self.sizes = SIZES[:-1]  # it takes the entities in slices, so that a batch of any size stays small
        self.factory = CoreTriplesFactory(work.train, work.num_entities, work.num_relations)
        self.model = getattr(models, work.model)(
            triples_factory=self.factory,
            embedding_dim=work.dim,
            loss=losses.MarginRankingLoss(margin=work.margin) if margin else losses.SoftplusLoss(),
            random_seed=0,
            **options[work.model],
        )
        self.loop = TimedLoop(
            model=self.model,
            triples_factory=self.factory,
            optimizer="adam",
            optimizer_kwargs={"lr": work.lr, "fused": True},
            negative_sampler="basic",
            negative_sampler_kwargs={"num_negs_per_pos": work.negatives},
            automatic_memory_optimization=False,
        )
        self.evaluator = RankBasedEvaluator(filtered=True, metrics=["mrr"], add_defaults=False, clear_on_finalize=False)
        self.settings = {
            "training": "SLCWATrainingLoop, BasicNegativeSampler, no filter, num_workers 0, no sub-batches, no bars",
            "loss": type(self.model.loss).__name__,
            "optimiser": "Adam, fused",
            "model options": {k: v for k, v in options[work.model].items() if "kwargs" not in k},
            "timing": "epochs inside train(), its set-up excluded; gc.freeze() makes its gc.collect() cheap",
            "ranking": "RankBasedEvaluator, filtered, metric mrr only, slices of 8 MiB; its filter triples are made "
            "before the timing",
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "differs": "negatives that are known triples are not rejected"
            + {"RotatE": "; relations hold 2·d floats, the score is the L2 norm of the whole vector without γ"}.get(
                work.model, ""
            ),
        }

    def epochs(self, n: int) -> list[float]:
        self.loop.seconds = []
        gc.collect()
        # PyKEEN collects garbage after each epoch; frozen, the objects of everything else loaded here cost it nothing.
        gc.freeze()
        try:
            self.loop.train(
                self.factory,
                num_epochs=self.done + n,
                batch_size=self.work.batch_size,
                continue_training=self.done > 0,
                use_tqdm=False,
                num_workers=0,
                pin_memory=False,
            )
        finally:
            gc.unfreeze()
        self.done += n
        return self.loop.seconds

    def ready(self, triples: Tensor, size: int) -> None:
        from pykeen.evaluation.evaluator import prepare_filter_triples

        self.model.eval()
        # Blocks [size, slice, floats] of 8 MiB stay near the caches: measured faster than all entities at once.
        slices = min(max(1, 2**21 // (size * _floats(self.work))), self.work.num_entities)
        self.job = {
            "mapped_triples": triples,
            "batch_size": size,
            "slice_size": slices,
            "all_pos_triples": prepare_filter_triples(triples, additional_filter_triples=[self.work.known]),
        }

    def rank(self) -> Tensor:
        from pykeen.evaluation.evaluator import evaluate
        from tqdm import tqdm

        # What RankBasedEvaluator.evaluate calls once the triples to filter are known.
        evaluate(
            evaluator=self.evaluator,
            model=self.model,
            targets=("head", "tail"),
            progress_bar=tqdm(disable=True),
            restrict_entities_to=None,
            mode=None,
            **self.job,
        )
        columns = (self.evaluator.ranks[side, "realistic"] for side in ("head", "tail"))
        return torch.stack([torch.from_numpy(np.concatenate(column)) for column in columns], 1)


class TorchKGE:
    """TorchKGE's models, sampler, data loader and link-prediction evaluator; it has no RotatE."""

    name = "TorchKGE"

    def __init__(self) -> None:
        self.version = version("torchkge")
        self.settings: dict[str, Any] = {}

    def prepare(self, work: Work) -> None:
        _check(work)
        import torchkge
        from torchkge.sampling import UniformNegativeSampler
        from torchkge.utils import DataLoader, l1_dissimilarity

        if work.model == "RotatE":
            raise NotImplementedError(f"TorchKGE {self.version} has no RotatE")
        torch.manual_seed(0)
        size = (work.dim, work.num_entities, work.num_relations)
        if work.model == "TransE":
            self.model = torchkge.TransEModel(*size, dissimilarity_type="L1")
        else:
            self.model = getattr(torchkge, f"{work.model}Model")(*size)
        if work.model == "TransH":
            self.model.dissimilarity = l1_dissimilarity
        self.work, self.sizes = work, _fitting(work)
        self.graph = self._graph(work.known, None)
        train = self._graph(work.train, self.graph)
        self.loader = DataLoader(train, batch_size=work.batch_size)
        self.sampler = UniformNegativeSampler(train, n_neg=work.negatives)
        self.loss = torchkge.MarginLoss(work.margin) if work.model in MARGIN_MODELS else torchkge.LogisticLoss()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=work.lr, fused=True)
        self.settings = {
            "training": "its DataLoader (does not shuffle), UniformNegativeSampler, its documented loop",
            "loss": type(self.loss).__name__,
            "optimiser": "Adam, fused",
            "ranking": "LinkPredictionEvaluator under no_grad; its graph is made before the timing",
            "parameters": sum(p.numel() for p in trained),
            "differs": "negatives that are known triples are not rejected, and are never the first entity"
            + {
                "TransE": "; normalises the entities of each batch, and all once an epoch",
                "TransH": "; as TransE; L1 by setting model.dissimilarity; candidates projected before the timing",
            }.get(work.model, ""),
        }

    def _graph(self, triples: Tensor, filters: Any) -> Any:
        import torchkge

        head, relation, tail = triples.t().contiguous()
        return torchkge.KnowledgeGraph(
            kg={"heads": head, "tails": tail, "relations": relation},
            ent2ix={i: i for i in range(self.work.num_entities)},
            rel2ix={i: i for i in range(self.work.num_relations)},
            **{}
            if filters is None
            else {name: getattr(filters, name) for name in ("dict_of_heads", "dict_of_tails", "dict_of_rels")},
        )

    def epochs(self, n: int) -> list[float]:
        seconds = []
        for _ in range(n):
            start = time.perf_counter()
            running = 0.0
            for head, tail, relation in self.loader:
                negative_head, negative_tail = self.sampler.corrupt_batch(head, tail, relation)
                self.optimizer.zero_grad()
                positive, negative = self.model(head, tail, relation, negative_head, negative_tail)
                loss = self.loss(positive, negative)
                loss.backward()
                self.optimizer.step()
                running += loss.item()
            self.model.normalize_parameters()
            seconds.append(time.perf_counter() - start)
        return seconds

    @torch.no_grad()
    def ready(self, triples: Tensor, size: int) -> None:
        from torchkge import LinkPredictionEvaluator

        self.size = size
        self.evaluator = LinkPredictionEvaluator(self.model, self._graph(triples, self.graph))
        if self.work.model == "TransH":  # what evaluate_projections does, one entity after the other
            entities, normals = self.model.ent_emb.weight, self.model.norm_vect.weight
            for mine, normal in zip(self.model.projected_entities.data, normals, strict=True):
                mine.copy_(entities - (entities @ normal)[:, None] * normal)
            self.model.evaluated_projections = True

    @torch.no_grad()
    def rank(self) -> Tensor:
        self.evaluator.evaluate(b_size=self.size, verbose=False)
        return torch.stack([self.evaluator.filt_rank_true_heads, self.evaluator.filt_rank_true_tails], 1)


class _Net(nn.Module):
    """The four score functions of Table 1, as one writes them in PyTorch; a larger score is more plausible.

    Each score compares a candidate entity with a query made of the known entity and the relation, for both sides.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.model, self.margin = work.model, work.margin
        wide = _floats(work)
        self.entity = nn.Embedding(work.num_entities, wide)
        self.relation = nn.Embedding(work.num_relations, work.dim if work.model == "RotatE" else wide)
        if work.model == "TransH":
            self.normal = nn.Embedding(work.num_relations, work.dim)
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)

    def project(self, x: Tensor, relation: Tensor) -> Tensor:
        """TransH's projection of x [n, ..., d] along the unit normal of relation [n]."""
        w = functional.normalize(self.normal(relation), dim=-1)
        w = w.view(len(w), *[1] * (x.dim() - 2), -1)
        return x - (x * w).sum(-1, keepdim=True) * w

    def query(self, known: Tensor, relation: Tensor, tail: bool) -> Tensor:
        """The point [n, floats] near which the missing tail (or head) of (known [n, floats], relation [n]) lies."""
        r = self.relation(relation)
        if self.model in MARGIN_MODELS:
            known = self.project(known, relation) if self.model == "TransH" else known
            return known + r if tail else known - r
        a, b = r.chunk(2, -1) if self.model == "ComplEx" else (r.cos(), r.sin())
        b = b if tail else -b
        x, y = known.chunk(2, -1)
        return torch.cat((x * a - y * b, x * b + y * a), -1)

    def score(self, query: Tensor, candidates: Tensor, relation: Tensor) -> Tensor:
        """Scores [n, k] of candidates [n or 1, k, floats] for query [n, floats]."""
        if self.model == "TransH":
            candidates = self.project(candidates, relation)
        if self.model == "ComplEx":
            return (query.unsqueeze(1) * candidates).sum(-1)
        apart = query.unsqueeze(1) - candidates
        if self.model == "RotatE":
            return self.margin - torch.hypot(*apart.chunk(2, -1)).sum(-1)
        return -apart.abs().sum(-1)

    def loss(self, triples: Tensor, negatives: Tensor) -> Tensor:
        """Eq. 1 or 6 (mean) for triples [n, 3]; negatives [n, k] replace heads in the first half, tails in the rest."""
        head, relation, tail = triples.unbind(1)
        half = len(triples) // 2
        # One lookup: with three, autograd fills and adds three dense gradients of the whole table.
        rows = self.entity(torch.cat((head, tail, negatives.flatten())))
        heads, tails, others = rows.split((len(head), len(tail), negatives.numel()))
        others = others.view(*negatives.shape, -1)
        ask_tail = self.query(heads, relation, True)
        ask = torch.cat((self.query(tails[:half], relation[:half], False), ask_tail[half:]))
        positive = self.score(ask_tail, tails.unsqueeze(1), relation)
        negative = self.score(ask, others, relation)
        if self.model in MARGIN_MODELS:
            return functional.relu(self.margin - positive + negative).mean()
        # Of RotatE, score() already holds γ.
        return functional.softplus(torch.cat((-positive, negative), 1)).mean()


class EagerTorch:
    """Plain eager PyTorch: dense embeddings, autograd, Adam, and ranking by broadcasting against all entities."""

    name = "eager PyTorch"

    def __init__(self) -> None:
        self.version = torch.__version__
        self.settings: dict[str, Any] = {}

    def prepare(self, work: Work) -> None:
        _check(work)
        torch.manual_seed(0)
        self.work, self.net = work, _Net(work)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=work.lr, fused=True)
        self.loss: Callable[[Tensor, Tensor], Tensor] = self.net.loss
        self.scores: Callable[[Tensor, Tensor, bool], Tensor] = self.score_all
        self.sizes = SIZES if work.model in ("TransE", "ComplEx") else _fitting(work)  # cdist and matmul need no room
        self.known = KnownTriples(work.known, work.num_relations)
        self.settings = {
            "training": "randperm, randint negatives for heads of half a batch and tails of the rest, one dense lookup",
            "loss": "margin" if work.model in MARGIN_MODELS else "softplus",
            "optimiser": "Adam, fused",
            "ranking": "cdist (TransE, TransH), matmul (ComplEx), broadcasting (RotatE); what to filter is looked up "
            "before the timing",
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "differs": "negatives that are known triples are not rejected",
        }

    def epochs(self, n: int) -> list[float]:
        work, seconds = self.work, []
        for _ in range(n):
            start = time.perf_counter()
            for chosen in torch.randperm(len(work.train)).split(work.batch_size):
                negatives = torch.randint(work.num_entities, (len(chosen), work.negatives))
                loss = self.loss(work.train[chosen], negatives)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            seconds.append(time.perf_counter() - start)
        return seconds

    def score_all(self, known: Tensor, relation: Tensor, tail: bool) -> Tensor:
        """Scores [n, entities] of every tail of (known, relation), or of every head."""
        entities = self.net.entity.weight
        query = self.net.query(self.net.entity(known), relation, tail)
        if self.work.model == "ComplEx":
            return query @ entities.T
        if self.work.model == "RotatE":
            return self.net.score(query, entities.unsqueeze(0), relation)
        if self.work.model == "TransH":
            projected = self.net.project(entities.expand(len(known), -1, -1), relation)
            return -torch.cdist(query.unsqueeze(1), projected, p=1).squeeze(1)
        return -torch.cdist(query, entities, p=1)

    def ready(self, triples: Tensor, size: int) -> None:
        """For each batch and side: the triples, the column of the answer, and the row and entity of each known one."""
        self.batches = []
        for batch in triples.split(size):
            for side, anchor, answer in (("head", 2, 0), ("tail", 0, 2)):
                start, end, ids = self.known.spans(batch[:, anchor], batch[:, 1], side)
                rows = torch.arange(len(batch)).repeat_interleave(end - start)
                others = torch.cat([ids[i:j] for i, j in zip(start.tolist(), end.tolist(), strict=True)]).long()
                self.batches.append((batch, anchor, answer, (rows, others)))

    @torch.inference_mode()
    def rank(self) -> Tensor:
        """Filtered realistic ranks [n, 2] of heads and tails: ties count half."""
        columns: dict[int, list[Tensor]] = {0: [], 2: []}
        for batch, anchor, answer, known in self.batches:
            scores = self.scores(batch[:, anchor], batch[:, 1], anchor == 0)
            true = scores.gather(1, batch[:, answer, None])
            scores[known] = -torch.inf
            # The true entity was masked with the rest: only other entities are left to tie with it.
            columns[answer].append(1 + (scores > true).sum(1) + (scores == true).sum(1) / 2)
        return torch.stack([torch.cat(column) for column in columns.values()], 1)


class CompiledTorch(EagerTorch):
    """The same PyTorch with the loss, its gradient, and the scores of a ranking under torch.compile."""

    name = "compiled PyTorch"

    def prepare(self, work: Work) -> None:
        super().prepare(work)
        self.loss = torch.compile(self.net.loss, dynamic=False)
        # Compile now, untimed, for the full batch and the last, shorter one.
        for rows in {min(work.batch_size, len(work.train)), len(work.train) % work.batch_size or work.batch_size}:
            self.loss(work.train[:rows], torch.randint(work.num_entities, (rows, work.negatives))).backward()
        self.optimizer.zero_grad()
        self.settings["training"] += "; torch.compile(dynamic=False), compiled before the timing"
        self.settings["ranking"] = self.settings["ranking"].replace(
            "cdist (TransE, TransH)", "broadcasting (TransE, TransH)"
        )
        self.settings["ranking"] += "; torch.compile(dynamic=True) fuses the broadcast, compiled before the timing"
        # Fused, a broadcast keeps nothing: no block limits its batches, and it is faster than cdist.
        self.scores, self.sizes = torch.compile(self.score_all, dynamic=True), SIZES
        for rows in (1, 4):  # of one row torch makes code of its own
            self.ready(work.train[:rows], rows)
            self.rank()

    def score_all(self, known: Tensor, relation: Tensor, tail: bool) -> Tensor:
        if self.work.model == "ComplEx":
            return super().score_all(known, relation, tail)
        entities = self.net.entity.weight
        return self.net.score(self.net.query(self.net.entity(known), relation, tail), entities.unsqueeze(0), relation)
