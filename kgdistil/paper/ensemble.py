"""Several teachers as one: an ensemble whose score is the mean of theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from kgdistil import records
from kgdistil.checkpoint import WEIGHTS, load_model, save_model
from kgdistil.errors import ConfigError
from kgdistil.graph import Graph
from kgdistil.models import ComplEx, KGEModel, ReciprocalComplEx


def joined(models: Sequence[KGEModel]) -> KGEModel:
    """One model whose score is the mean of theirs: several teachers as one, their rows side by side.

    Raises:
        ConfigError: other models than those of ComplEx's kind, of several kinds, or of different graphs.
    """
    sizes = {(type(m), m.num_entities, m.num_relations) for m in models}
    first = models[0]
    if len(sizes) != 1 or type(first) not in (ComplEx, ReciprocalComplEx):
        raise ConfigError(
            f"cannot join {', '.join(type(m).__name__ for m in models)}: give ComplEx models of one kind and graph"
        )
    whole = type(first)(first.num_entities, first.num_relations, sum(m.dim for m in models))
    for name, share, parts in (("entities", 1, 2), ("relations", 1 / len(models), first.relation_factor)):
        each = zip(*(getattr(m, name).detach().chunk(parts, -1) for m in models), strict=True)
        getattr(whole, name).data = share * torch.cat([torch.cat(part, -1) for part in each], -1)
    return whole


def joined_name(*teachers: str) -> str:
    """The folder of several teachers as one."""
    return "joined-" + hashlib.sha256("+".join(teachers).encode()).hexdigest()[:8]


def join(graph: Graph, *teachers: str) -> None:
    """Save the mean of teachers, given by their runs, under `joined_name`."""
    folder = records.model_folder(joined_name(*teachers))
    if not (folder / WEIGHTS).is_file():
        save_model(folder, joined([load_model(records.model_folder(t), graph) for t in teachers]), graph)
