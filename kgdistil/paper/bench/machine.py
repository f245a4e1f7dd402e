"""What the machine can do, measured, and the least work a training step must do, worked out in the open."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kgdistil.models import KGEModel
from kgdistil.paper.timing import seconds
from kgdistil.sampling import NEGATIVE_STREAM, TripleSet, corrupt, epoch_order, stream


def copy_bandwidth(rounds: int = 5, device: str = "cpu") -> float:
    """Bytes per second of a large copy, read plus written, on all threads: the median of several."""
    source = torch.ones(1 << 26, device=device)  # 256 MiB, several times any cache
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source), rounds, device)


def peak_flops(rounds: int = 5, device: str = "cpu") -> float:
    """float32 operations per second of a large matrix product: the median of several."""
    n = 2048 if device == "cpu" else 8192
    a, b = torch.ones(2, n, n, device=device).unbind()
    return 2 * n**3 / seconds(lambda: a @ b, rounds, device)


# float operations to compare one query with one entity, for each float an entity holds
SCORE_OPS = {"TransE": 3, "TransH": 6, "ComplEx": 2, "RotatE": 4}  # RotatE: (2 sub, 2 mul-add, 1 root, 1 add) / 2, up
GRADIENT_OPS = {"TransE": 3, "TransH": 10, "ComplEx": 2, "RotatE": 6}  # for the query, and again for the entity
ADAM_OPS = 12


@dataclass(frozen=True)
class Floor:
    """The least a training step must do: `bytes` moved and `ops` done, averaged over the steps of an epoch."""

    touched: float  # distinct entities a step reads
    bytes: float
    ops: float

    def seconds(self, bandwidth: float, flops: float) -> float:
        """The longer of the two: nothing that does this work is faster."""
        return max(self.bytes / bandwidth, self.ops / flops)


def ranking_floor(model: KGEModel) -> float:
    """Operations of one filtered-ranking query: it has to be compared with every entity.

    The table is read once for many queries, so bytes do not count.
    """
    return model.entities.numel() * SCORE_OPS[type(model).__name__]


def training_floor(model: KGEModel, train: torch.Tensor, negatives: int, batch_size: int) -> Floor:
    """Bytes and operations of one step of `model` on this graph.

    Bytes: each distinct entity and relation of the step has its weight and Adam's two moments read and written once,
    4 bytes each, 24 bytes a float. Ids, queries and gradients are taken to stay in cache. A dense Adam, which the
    peers use, moves 24 to 28 bytes for every float of the whole table instead.
    Operations: one score and two gradients for each positive and negative, and Adam for each touched float.
    """
    name, width = type(model).__name__, model.entities.shape[1]
    known = TripleSet(train, model.num_entities, model.num_relations)
    order, steps = epoch_order(0, 0, len(train)), len(train) // batch_size
    touched = relations = 0.0
    for step in range(steps):
        batch = train[order[step * batch_size : (step + 1) * batch_size]]
        entity, _, _ = corrupt(batch, negatives, known, stream(0, NEGATIVE_STREAM, step))
        touched += torch.cat([batch[:, 0], batch[:, 2], entity.flatten()]).unique().numel() / steps
        relations += batch[:, 1].unique().numel() / steps
    floats = touched * width + relations * model.relations.shape[1]
    scored = batch_size * (1 + negatives) * width
    return Floor(touched, 24 * floats, scored * (SCORE_OPS[name] + 2 * GRADIENT_OPS[name]) + ADAM_OPS * floats)
