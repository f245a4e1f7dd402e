"""Entities that keep their numbers among coded ones: the few that stand in most triples.

A code says little of a section, a licence or a library that thousands depend on, and each of their triples asks for it.
They are so few that their rows, in int8 with a scale each, take less than a byte for each entity of the graph (outliers
in higher precision, as Dettmers et al. 2022 keep features of language models). A model that has such entities keeps
their ids as a buffer, `whole` int32 [K], ascending; its file has their rows besides the codes of all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kgdistil.errors import ConfigError
from kgdistil.kernels import said
from kgdistil.models import KGEModel

NAME = "whole"


def frequent(triples: Tensor, entities: int, count: int) -> Tensor:
    """Which entities stand in most of the triples [n, 3], bool [E]; the lower id first where two are level."""
    found = torch.zeros(entities, dtype=torch.bool, device=triples.device)
    times = torch.bincount(triples[:, [0, 2]].flatten(), minlength=entities)
    return found.index_fill_(0, times.argsort(descending=True, stable=True)[:count], True)


def of(model: KGEModel) -> Tensor:
    """Ids int32 [K] of the entities that a model keeps whole; none of most models."""
    return dict(model.named_buffers()).get(NAME, torch.empty(0, dtype=torch.int32))


def keep_frequent(model: KGEModel, triples: Tensor, count: int, entities: int = 0) -> Tensor | None:
    """`frequent` [E], which a file of codes of this model will keep whole from now on, and no others; None for none.
    A model that has some rows of `entities` keeps the ids of all.

    Raises:
        ConfigError: a model that is not compared by inner products.
    """
    if len(of(model)):
        delattr(model, NAME)
    if not count:
        return None
    if said(model, "comparison") != "dot":
        raise ConfigError(f"{type(model).__name__} has no whole entities: take a model of inner products")
    which = frequent(triples, entities or model.num_entities, count)
    model.register_buffer(NAME, which.nonzero().flatten().int())
    return which


def in_bytes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, W] as int8 [n, W] and scales float32 [n], of eight bits each, so that to do it again changes nothing."""
    scale = (rows.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny).bfloat16().float()
    return (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def rounded(rows: Tensor) -> Tensor:
    """Rows [n, W] as `in_bytes` holds them."""
    numbers, scale = in_bytes(rows)
    return numbers * scale[:, None]


def keep(parts: Sequence[Tensor], table: Tensor, places: Tensor, which: Tensor) -> None:
    """Put back the table's rows at places [n] in parts [n, W in all] of decoded ones, of those in `which` [n]."""
    sizes = [len(part) for part in parts]
    for part, at, own in zip(parts, places.split(sizes), which.split(sizes), strict=True):
        part.copy_(torch.where(own[:, None], table.index_select(0, at).to(part.dtype), part))


def without(parts: Sequence[Tensor], which: Tensor) -> list[Tensor]:
    """Gradients [n, W in all] of which those in `which` [n] are nothing to a codebook."""
    each = which.split([len(part) for part in parts])
    return [part.masked_fill(own[:, None], 0) for part, own in zip(parts, each, strict=True)]
