"""Teachers of DGL-KE: a folder with `<data>_<model>_entity.npy`, `…_relation.npy` and config.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.graph import Graph
from kgdistil.graphs.importers.conventions import choose
from kgdistil.graphs.importers.tables import Imported, find_labels, reason_of
from kgdistil.graphs.labels import show

KINDS: dict[str, tuple[str, int | None]] = {
    "TransE": ("TransE", 2),
    "TransE_l1": ("TransE", 1),
    "TransE_l2": ("TransE", 2),
    "DistMult": ("DistMult", None),
    "ComplEx": ("ComplEx", None),
    "RotatE": ("RotatE", None),
    "SimplE": ("SimplE", None),
}  # their name of a model: ours, and its norm


def is_dglke(folder: Path) -> bool:
    return any(folder.glob("*_entity.npy"))


def read_dglke(
    folder: Path,
    graph: Graph,
    model: str | None = None,
    convention: str | None = None,
    norm: int | None = None,
    gamma: float | None = None,
    labels: Path | None = None,
) -> Imported:
    """Entities and relations by DGL-KE's numbers; labels from entities.tsv and relations.tsv there, or in `labels`."""
    found = sorted(folder.glob("*_entity.npy"))
    if len(found) != 1:
        raise CheckpointError(f"{folder} holds {len(found)} files *_entity.npy: it needs exactly one")
    path = found[0]
    config: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        try:
            config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"cannot read {folder / 'config.json'}: {reason_of(error)}") from None
    named = re.search(r"_(TransE_l[12]|[A-Za-z]+)_entity\.npy$", path.name)
    theirs = config.get("model_name") or (named[1] if named and named[1] in KINDS else model or (named and named[1]))
    if theirs not in KINDS:
        raise CheckpointError(f"{folder}: DGL-KE's {show(str(theirs))} cannot be imported; {', '.join(KINDS)} can")
    kind, their_norm = KINDS[theirs]
    tables = {
        "entities": _array(path),
        "relations": _array(path.with_name(path.name.removesuffix("entity.npy") + "relation.npy")),
    }
    if gamma is None and isinstance(config.get("gamma"), int | float):
        gamma = float(config["gamma"])
    if kind == "RotatE" and gamma is None:
        raise ConfigError(f"{folder} has no config.json that says γ, by which RotatE's angles are scaled: give --gamma")
    done = choose(
        kind,
        tables,
        find_labels(labels, folder),
        graph,
        f"DGL-KE, {folder}",
        convention=convention or "dgl-ke",
        norm=norm or their_norm,
        gamma=gamma if kind in ("TransE", "RotatE") else None,
        sure="model_name" in config and convention is None,
    )
    if kind == "SimplE":
        done.notes.append("DGL-KE cuts SimplE's scores off at ±20, which is left out here")
    return done


def _array(path: Path) -> Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # a header that says more than there is fails here
        if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
            raise ValueError(f"it holds {array.dtype} {array.shape}, not numbers [rows, width]")
        return torch.from_numpy(np.array(array, dtype=np.float32))
    except Exception as error:  # noqa: BLE001 - numpy raises whatever a damaged header leads to; it runs no code
        raise CheckpointError(f"cannot read {path}: {reason_of(error)}") from None
