"""Which models the kernels know, and how each compares a query with an entity: by what its own class says."""

from __future__ import annotations

import ctypes
import functools

import torch

from kgdistil.kernels.compile import compiled, log
from kgdistil.models import KGEModel

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
