"""Several teachers as one: an ensemble whose score is the mean of theirs, and lists of a path model and one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from kgdistil import records
from kgdistil.checkpoint import WEIGHTS, load_model, save_model
from kgdistil.compress import nested
from kgdistil.distillation import paths
from kgdistil.errors import ConfigError
from kgdistil.graph import Graph
from kgdistil.graphs.lists import KEPT
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


def joined_name(*teachers: str, codes: str = "") -> str:
    """The folder of several teachers as one, which may have the codes of a run."""
    return "joined-" + hashlib.sha256("+".join([*teachers, *filter(None, [codes])]).encode()).hexdigest()[:8]


def join(graph: Graph, *teachers: str, codes: str = "", size: int = 0) -> None:
    """Save the mean of teachers, given by their runs, under `joined_name`; with the codes of a student's run, whose
    groups have `size` floats, for one of more codes to begin as (`nested.carried`)."""
    folder, read = records.model_folder(joined_name(*teachers, codes=codes)), records.model_folder
    if not (folder / WEIGHTS).is_file():
        whole = joined([load_model(read(t), graph) for t in teachers])
        save_model(folder, nested.carried(whole, load_model(read(codes), graph), size) if codes else whole, graph)


def path_lists_name(teacher: str, settings: paths.Settings) -> str:
    """Under which the lists of a path model and of a run are kept."""
    return f"paths-{paths.sum_of(teacher, settings)[:8]}{KEPT}"


def write_path_lists(graph: Graph, teacher: str, settings: paths.Settings) -> None:
    """Save `paths.lists` of a run under `path_lists_name`."""
    place = records.model_folder(path_lists_name(teacher, settings))
    if not place.is_file():
        model = load_model(records.model_folder(teacher), graph)
        found = paths.lists(graph, paths.Joined(paths.fit(graph, settings), model))
        place.parent.mkdir(parents=True, exist_ok=True)
        replace(found, sha256=paths.sum_of(teacher, settings)).save(place.parent, place.name)
