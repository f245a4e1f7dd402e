"""`train.cpp`: one epoch of negative sampling; `training.native` fills in what it takes."""

from __future__ import annotations

import ctypes

from kgdistil.kernels.compile import check_sizes, compiled, enough
from kgdistil.kernels.kinds import said, usable
from kgdistil.models import KGEModel


class Learner(ctypes.Structure):
    """Mirrors `Learner` of train.cpp."""

    _fields_ = [
        ("ops", ctypes.c_void_p),
        *((f"{table}{part}", ctypes.c_void_p) for table in ("entity", "relation") for part in ("", "_m", "_v")),
        *((name, ctypes.c_int64) for name in ("num_entities", "num_relations")),
        ("rates", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("offset", "scale", "penalty")),
        ("trained", ctypes.c_int32),
        ("weight", ctypes.c_float),
    ]


class Epoch(ctypes.Structure):
    """Mirrors `Epoch` of train.cpp."""

    _fields_ = [
        ("triples", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("first_step", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("num_keys", ctypes.c_int64),
        ("bitmap", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("bitmap_bits", "batch", "k", "margin_loss", "weighting", "threads")),
        *((name, ctypes.c_uint64) for name in ("seed", "epoch")),
        *((name, ctypes.c_float) for name in ("margin", "temperature")),
        *((role, ctypes.POINTER(Learner)) for role in ("student", "teacher")),
        ("losses", ctypes.c_double * 5),
        ("phases", ctypes.c_double * 4),
    ]


def train_library(model: KGEModel) -> ctypes.CDLL | None:
    """The compiled train.cpp for a model; None where scores.h lacks its equation, or there is no compiler."""
    equation = said(model, "equation")
    if not usable(model) or equation is None:
        return None
    library = compiled("train.cpp", f"KGD_MODEL={equation}", f"KGD_DIM={model.dim}", f"KGD_NORM={model.norm}")
    if library is not None:
        check_sizes(library, Learner, Epoch)
        library.kgd_ops.restype = ctypes.c_void_p
        library.kgd_epoch.argtypes, library.kgd_epoch.errcheck = [ctypes.POINTER(Epoch)], enough
    return library
