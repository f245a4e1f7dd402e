"""What a wide teacher says of a graph's queries, computed once: its scores of all entities, looked up in every pass."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from kgdistil.config import RunConfig
from kgdistil.graphs.queries import queries_of, scores_of
from kgdistil.kernels import among, bfloat16_where_fast
from kgdistil.kernels.memory import available
from kgdistil.models import KGEModel

log = logging.getLogger("kgdistil")
WIDE, MOST = 2048, 8 << 30  # numbers of an entity from which on looking up is the faster; bytes of scores at most
LATER = 3  # tables as large as the teacher's, at most, that training makes after this was decided


def bytes_remembered(config: RunConfig, queries: int, entities: int, width: int) -> int:
    """Bytes of the scores of a teacher whose entities have so many numbers; 0 where it is asked anew in every step.

    So it is on a GPU, where it learns as well, for queries that are made up, and where fewer scores are asked for.
    """
    few = config.epochs * config.negatives < 2 * entities
    if config.loss != "softmax" or config.role != "stage1" or config.device != "cpu" or width < WIDE or few:
        return 0
    size = queries * entities * bfloat16_where_fast(torch.device("cpu")).itemsize
    return 0 if config.top or config.unlabelled or size > MOST else size


def bytes_of_scores(config: RunConfig, triples: Tensor, entities: int, width: int) -> int:
    """`bytes_remembered` of a graph's training triples, whose queries are counted only where that decides."""
    if not bytes_remembered(config, 1, entities, width):
        return 0
    return bytes_remembered(config, len(queries_of(triples, config.answers)[0]), entities, width)


class Remembered:
    """A teacher's scores [Q, E], made at the first question.

    Args:
        model: a dot product; queries: their anchors, relations and whether heads are asked for, each [Q].
    """

    def __init__(self, model: KGEModel, anchor: Tensor, relation: Tensor, is_head: Tensor):
        self.model, self.queries, self.scores = model, (anchor, relation, is_head), torch.empty(0)

    @torch.no_grad()
    def among(self, ids: Tensor, candidates: Tensor, like: Tensor) -> Tensor:
        """The scores of queries ids [n] and entities candidates [m], in the shape and type of `like` [n, m or more]."""
        if not len(self.scores):
            self.scores = like.new_empty(len(self.queries[0]), self.model.num_entities)
            for rows, found in scores_of(self.model, *self.queries, like.dtype):
                self.scores[rows] = found
        return among(self.scores, ids, candidates, like)


def remembered(
    model: KGEModel | None, config: RunConfig, anchor: Tensor, relation: Tensor, is_head: Tensor
) -> Remembered | None:
    """What a teacher says of queries [Q]; None where it is asked anew in every step, as where its scores find no room
    beside what training has yet to make: the best weights, the entities as coded and as they are ranked."""
    width = 0 if model is None or model.distance else model.entities.shape[1]
    if model is None or not (size := bytes_remembered(config, len(anchor), model.num_entities, width)):
        return None
    if size + LATER * model.entities.nbytes > (free := available()):
        told = "the teacher's scores take %.1f GiB, and %.1f are free: it is asked in every step, which takes longer"
        log.warning(told, size / (1 << 30), free / (1 << 30))
        return None
    return Remembered(model, anchor, relation, is_head)
