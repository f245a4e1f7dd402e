"""Files that hold weights: safetensors with JSON, written whole or not at all, never pickle."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kgdistil.answer import format1
from kgdistil.answer.files import SUM, write_atomically
from kgdistil.answer.format import HEADER
from kgdistil.answer.format1 import BLANK, VERSION, WEIGHTS, sum_place
from kgdistil.answer.student import load_student
from kgdistil.compress import nested, packing, whole
from kgdistil.errors import CheckpointError, ConfigError, short
from kgdistil.graph import Graph
from kgdistil.models import KGEModel, RotatE, class_of


def write_tensors(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Tensors and a JSON description in one safetensors file, atomically, with a sum of the whole file."""
    contiguous = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    metadata = {"kgdistil": json.dumps({**description, SUM: BLANK})}

    def write(scratch: str) -> None:
        try:
            save_file(contiguous, scratch, metadata=metadata)
        except SafetensorError as error:
            raise OSError(error) from None
        with open(scratch, "rb+") as file:
            header, crc = file.read(8), 0
            header += file.read(int.from_bytes(header, "little"))
            file.seek(0)
            while part := file.read(1 << 24):  # a large file is never in memory as a whole
                crc = zlib.crc32(part, crc)
            file.seek(sum_place(header, BLANK))
            file.write(f"{crc:08x}".encode())

    write_atomically(path, write)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote.

    Raises:
        CheckpointError: missing, truncated, not a safetensors file, or not one of this package's.
    """
    arrays, description = format1.read_tensors(path)
    return {name: torch.from_numpy(x) for name, x in arrays.items()}, description


def save_model(
    folder: str | os.PathLike,
    model: KGEModel,
    graph: Graph,
    run_id: str | None = None,
    *,
    precision: str = "float32",
    about: dict[str, Any] | None = None,
) -> None:
    """A model that `load_model` reads: weights, how to build it, and the graph's labels, in format 1.

    Args:
        precision: one of `quantise.PRECISIONS`.
        about: JSON values that the description keeps: metrics, where the model comes from.
    Raises:
        KgdistilError: the folder cannot be written.
    """
    newer = bool(model.rank) or precision != "float32" or (isinstance(model, RotatE) and model.norm != 1)
    sizes = ("dim", "norm", "offset", "epsilon", "num_entities", "num_relations")
    packed = packing.pack(model, precision)
    description: dict[str, Any] = {"version": 4 if whole.NAME in packed else 3 if model.rank else 1 + newer}
    description |= {"model": type(model).__name__, **{name: getattr(model, name) for name in sizes}}
    description |= {"graph": graph.name, "graph_sha256": graph.sha256, "run_id": run_id}
    description |= {"rank": model.rank} if model.rank else {}
    description |= {"precision": precision} if newer else {}
    description |= {"about": about} if about else {}
    write_tensors(Path(folder) / WEIGHTS, packed, description)
    format1.write_labels(Path(folder), description, graph.entities, graph.relations, graph.descriptions)


def load_model(folder: str | os.PathLike, graph: Graph | None = None) -> KGEModel:
    """A saved model, on the CPU.

    Args:
        folder: what `save_model` wrote.
        graph: where given, the model must have been trained on this very graph.
    Raises:
        CheckpointError: missing, damaged, of a newer version, or trained on another graph.
    """
    folder = Path(folder)
    if os.path.isfile(folder / HEADER):
        model, about, _ = read_labelled(folder)
        check_graph(folder, about, graph)
        return model
    return read_model(folder / WEIGHTS, graph)[0]


def read_model(path: Path, graph: Graph | None = None) -> tuple[KGEModel, dict[str, Any]]:
    """`load_model` with the description that stands beside the weights in their file."""
    tensors, about = read_tensors(path)
    version = about.get("version")
    if not isinstance(version, int):
        raise CheckpointError(f"{path} holds no model; name a folder that save_model or a finished run wrote")
    if version > VERSION:
        raise CheckpointError(f"{path} has version {short(version)}; this kgdistil reads up to {VERSION}: update it")
    check_graph(path, about, graph)
    return built(path, tensors, about), about


def check_graph(path: Path, about: Mapping[str, Any], graph: Graph | None) -> None:
    """CheckpointError where a model was trained on another graph than the one given."""
    if graph is not None and (theirs := about.get("graph_sha256")) != graph.sha256:
        other = f"another graph ({about.get('graph')}, SHA-256 {str(theirs)[:12]}…)"
        raise CheckpointError(f"{path} was trained on {other} than {graph.name} ({graph.sha256[:12]}…)")


def built(path: Path, tensors: dict[str, Tensor], about: Mapping[str, Any]) -> KGEModel:
    """The model of packed tensors and their description.

    Raises:
        CheckpointError: they do not belong together.
    """
    try:
        rank = about.get("rank", 0)
        kind = class_of(about["model"], rank)
        sizes = about["num_entities"], about["num_relations"], about["dim"]
        options: dict[str, Any] = {name: about[name] for name in ("norm", "offset", "epsilon")}
        tensors = packing.unpack(tensors, about.get("precision", "float32"), kind.paired)
        with torch.device("meta"):  # which takes no memory, however large a description says that the model is
            model = nested.attach(kind(*sizes, **(options | {"rank": rank} if kind.factored else options)), tensors)
        if {name: x.shape for name, x in tensors.items()} != {name: x.shape for name, x in model.state_dict().items()}:
            raise ValueError("the sizes differ")
        if not all(bool(x.isfinite().all()) for x in (*tensors.values(), torch.tensor([*options.values()]))):
            raise ValueError("its numbers are not finite")
        model.load_state_dict(tensors, assign=True)  # a large table is not copied
    except (LookupError, TypeError, ValueError, RuntimeError, ConfigError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not hold the model it describes ({reason}); train it again") from None
    return model


def read_labelled(folder: str | os.PathLike) -> tuple[KGEModel, Mapping[str, Any], dict[str, Any]]:
    """A student's folder of any format: the model, its description, and the labels: `entities`, `relations`, `names`.

    Raises:
        CheckpointError: missing, damaged, of a newer version, or put together from two models.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / HEADER):
        model, about = read_model(folder / WEIGHTS)
        return model, about, format1.read_labels(folder, about)
    student = load_student(folder)
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in student.packed().items()}
    return built(folder, tensors, student.header), student.header, student.labels()
