"""Teachers of PyTorch-BigGraph: a checkpoint's folder with config.json and HDF5 files.

Its score is a comparison of the head with the tail after the relation's operator, so a dot product with a complex
diagonal is Re(h̄ᵀ diag(r) t): ComplEx with conjugate relations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kgdistil.errors import CheckpointError, KgdistilError, needs
from kgdistil.graph import Graph
from kgdistil.graphs.importers.conventions import choose
from kgdistil.graphs.importers.tables import Imported, reason_of
from kgdistil.graphs.labels import show
from kgdistil.graphs.limits import allow
from kgdistil.models import conjugate

PARTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "diagonal": ("diagonal",),
    "translation": ("translation",),
    "complex_diagonal": ("real", "imag"),
}  # operator: its parameters
VERSION = "checkpoint_version.txt"


def is_biggraph(folder: Path) -> bool:
    return (folder / VERSION).is_file() and (folder / "config.json").is_file()


def read_biggraph(folder: Path, graph: Graph, labels: Path | None = None) -> Imported:
    """Entities of all types and partitions, with the names that lie in the folder or in `labels`."""
    with needs("h5py", "reading PyTorch-BigGraph's checkpoints"):
        import h5py  # noqa: F401 - whether it is there
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        version = int((folder / VERSION).read_text().strip() or 0)
        tables, words = _entities(folder, labels, config, version)
        kind, relations, names, notes = _relations(folder, labels, config, version, tables.shape[1])
    except KgdistilError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes HDF5 raise
        raise CheckpointError(f"cannot read the checkpoint in {folder}: {reason_of(error)}") from None
    source = f"PyTorch-BigGraph, {folder}"
    rows = {"entities": tables, "relations": relations}
    norm = 2 if kind == "TransE" else None
    done = choose(kind, rows, (words, names), graph, source, convention="biggraph", norm=norm, sure=True)
    done.notes += notes
    return done


def _dataset(file: Path, name: str) -> Tensor:
    import h5py

    with h5py.File(file, "r") as hdf:
        found = hdf[name]
        if not isinstance(found, h5py.Dataset) or found.dtype.kind != "f" or not found.size:
            raise ValueError(f"{file.name} holds no numbers {name}")
        allow(4 * found.size, file, CheckpointError)
        return torch.from_numpy(found[...].astype("float32"))


def _names(name: str, *folders: Path | None) -> list[str]:
    for folder in folders:
        if folder is not None and (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            if not isinstance(found, list):
                raise ValueError(f"{name} is no list")
            return [str(x) for x in found]
    raise CheckpointError(
        f"{name} is not in {folders[-1]}: copy it from the folder of entities that the training read, or name that "
        "folder with --labels (labels=)"
    )


def _entities(folder: Path, labels: Path | None, config: dict[str, Any], version: int) -> tuple[Tensor, list[str]]:
    rows, words = [], []
    model = folder / f"model.v{version}.h5"
    for kind, about in sorted(config["entities"].items()):
        if about.get("featurized"):
            raise CheckpointError(
                f"{folder}: entities of type {show(kind)} are made of features; they cannot be imported"
            )
        for part in range(int(about["num_partitions"])):
            name = f"{kind}_{part}"
            table = _dataset(folder / f"embeddings_{name}.v{version}.h5", "embeddings")
            if (longest := config.get("max_norm")) is not None:  # as each look-up does there
                table = table * (float(longest) / table.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1)
            if config.get("global_emb"):
                table = table + _dataset(model, f"model/entities/{kind}/global_embedding")
            found = _names(f"entity_names_{name}.json", labels, folder)
            if len(found) != len(table):
                raise ValueError(f"entity_names_{name}.json has {len(found)} names for {len(table)} rows")
            rows.append(table)
            words += found
    return torch.cat(rows), words


def _relations(
    folder: Path, labels: Path | None, config: dict[str, Any], version: int, width: int
) -> tuple[str, Tensor, list[str], list[str]]:
    """The model that comparator and operators are, its relations' rows, their names, and what is to be said."""
    comparator, operators = config.get("comparator", "cos"), {x["operator"] for x in config["relations"]} - {"none"}
    operator = operators.pop() if operators else "none"
    kinds = {("dot", "diagonal"): "DistMult", ("dot", "none"): "DistMult", ("dot", "complex_diagonal"): "ComplEx"}
    kinds |= {(c, o): "TransE" for c in ("l2", "squared_l2") for o in ("none", "translation")}
    kind = kinds.get((comparator, operator))
    if kind is None or operators or config.get("bias"):
        raise CheckpointError(
            f"{folder}: comparator {show(str(comparator))}{' with a bias' if config.get('bias') else ''} and operator "
            f"{show(', '.join([operator, *sorted(operators)]))} are no model that can be imported; dot with diagonal "
            "or complex_diagonal, and l2 or squared_l2 with translation are"
        )
    notes = ["its scores are squared distances; the ranks are the same"] if comparator == "squared_l2" else []
    model, plain = (
        folder / f"model.v{version}.h5",
        torch.ones(1, width) if comparator == "dot" else torch.zeros(1, width),
    )
    if kind == "ComplEx":
        plain[:, width // 2 :] = 0
    if config.get("dynamic_relations"):
        names = _names("dynamic_rel_names.json", labels, folder)
        if operator == "none":
            return kind, plain.repeat(len(names), 1), names, notes
        many = {"diagonal": "diagonals", "translation": "translations"}
        sides = [
            torch.cat(
                [_dataset(model, f"model/relations/0/operator/{side}/{many.get(p, p)}") for p in PARTS[operator]], 1
            )
            for side in ("lhs", "rhs")
        ]
        notes.append(
            "its relations have one operator for each direction; the mean of the two directions' scores is taken"
        )
        left, right = sides[0], _turned(sides[1], kind)
        return kind, (left + right) / 2, names, notes
    rows = []
    for i, relation in enumerate(config["relations"]):
        if relation["operator"] == "none":
            rows.append(plain)
            continue
        parts = [_dataset(model, f"model/relations/{i}/operator/rhs/{p}") for p in PARTS[operator]]
        rows.append(_turned(torch.cat(parts)[None], kind))
    return kind, torch.cat(rows), [str(x["name"]) for x in config["relations"]], notes


def _turned(rows: Tensor, kind: str) -> Tensor:
    """Operators that act on the tail, as ours, which act on the head."""
    return conjugate(rows) if kind == "ComplEx" else -rows if kind == "TransE" else rows
