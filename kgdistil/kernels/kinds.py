"""Which models the kernels know, and how each compares a query with an entity."""

from __future__ import annotations

import ctypes

import torch

from kgdistil.kernels.compile import compiled
from kgdistil.models import MODELS, KGEModel, RotatE, TransE, TransH, kind_of

DOT, DISTANCE, MODULUS, HYPERPLANE = range(4)


def usable(*models: KGEModel | None) -> bool:
    """Whether every model given is float32 on the CPU, of a kind the kernels know."""
    return all(
        m is None
        or (
            type(m)
            in (
                MODELS.get(type(m).__name__),
                m.factored and kind_of(type(m).__name__),
            )  # a class of one's own may bear the same name
            and not (type(m) is RotatE and m.norm == 2)  # an imported teacher's; they sum the moduli
            and m.entities.device.type == "cpu"
            and m.entities.dtype == torch.float32
        )
        for m in models
    )


def comparison(source: str, model: KGEModel) -> ctypes.CDLL | None:
    """The library of a source that includes tiles.h, for how this model compares a query with an entity."""
    kind = {TransE: DISTANCE, TransH: HYPERPLANE, RotatE: MODULUS}.get(type(model), DOT)
    return compiled(source, f"KGD_KIND={kind}", f"KGD_NORM={model.norm}", f"KGD_WIDTH={model.entities.shape[1]}")
