"""Which models the kernels know, and how each compares a query with an entity: by what its own class says."""

from __future__ import annotations

import ctypes
import functools

import torch

from kgdistil.errors import ConfigError
from kgdistil.kernels.compile import compiled, log
from kgdistil.models import KGEModel, Side

KINDS = ("dot", "distance", "modulus", "hyperplane")  # in the order of KGD_KIND in tiles.h


def said(model: KGEModel, what: str) -> str | None:
    """What a model's class says in its own body (`comparison`, `equation`); what it inherits may not hold for it."""
    return vars(type(model)).get(what)


def usable(*models: KGEModel | None) -> bool:
    """Whether every model given is float32 on the CPU, and compares as the kernels can.

    One log line for each class that does not compare so, and is therefore slower.
    """
    return all(m is None or _usable(m) for m in models)


def _usable(model: KGEModel) -> bool:
    if model.entities.device.type != "cpu" or model.entities.dtype != torch.float32:
        return False
    kind = said(model, "comparison")
    if kind in KINDS and not (kind == "modulus" and model.norm == 2):  # an imported RotatE: they sum the moduli
        return True
    slower(type(model).__name__ + (f" with norm {model.norm}" if kind in KINDS else ""))
    return False


@torch.no_grad()
def check_equation(model: KGEModel) -> None:
    """Hold a model to its own equation before it is ranked: ranks are made of `query` and `compare`.

    Raises:
        ConfigError: they do not give the scores of `score`, as where a distance inherits the dot product's `compare`.
    """
    few = torch.arange(min(8, model.num_entities), device=model.entities.device)
    h, r, t = few, few % model.num_relations, few.flip(0)
    wanted = model(h, r, t)
    sides: tuple[tuple[Side, torch.Tensor, torch.Tensor], ...] = (("tail", h, t), ("head", t, h))
    for side, anchor, answer in sides[: 1 if model.directed else 2]:
        found = model.compare(model.queries(anchor, r, side), model.entities[answer]).diagonal()
        if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3, equal_nan=True):
            name = type(model).__name__
            raise ConfigError(
                f"{name}: compare(query(…, {side!r}), …) gives other scores than score, so {name} would be ranked by "
                "another equation; write all three in the class, as CONTRIBUTING.md says"
            )


@functools.cache
def slower(name: str) -> None:
    log.warning("%s: no compiled kernel has this score, so PyTorch trains and ranks it, which is slower", name)


def comparison(source: str, model: KGEModel) -> ctypes.CDLL | None:
    """The library of a source that includes tiles.h, for how this model compares a query with an entity.

    None where it cannot be had: `usable`, `compiled`.
    """
    if not usable(model):
        return None
    kind = KINDS.index(said(model, "comparison"))
    return compiled(source, f"KGD_KIND={kind}", f"KGD_NORM={model.norm}", f"KGD_WIDTH={model.entities.shape[1]}")
