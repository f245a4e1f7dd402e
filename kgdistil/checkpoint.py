"""Files that hold weights: safetensors with JSON, written whole or not at all, never pickle."""

from __future__ import annotations

import json
import mmap
import os
import zlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kgdistil.compress.packing import pack, unpack
from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.files import CHANGED, SUM, sealed, unsealed, write_atomically, write_json
from kgdistil.graph import Graph
from kgdistil.models import KGEModel, RotatE, build_model, class_of

# Of the saved model's layout: 2 adds precisions, and norms of RotatE, 3 low ranks; what needs none is written as 1.
VERSION = 3
BLANK = "00000000"
LARGEST_HEADER = 1 << 24  # bytes: parsed as JSON, they may take a gigabyte
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def write_tensors(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Tensors and a JSON description in one safetensors file, atomically, with a sum of the whole file."""
    contiguous = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    metadata = {"kgdistil": json.dumps({**description, SUM: BLANK})}

    def write(scratch: str) -> None:
        save_file(contiguous, scratch, metadata=metadata)
        with open(scratch, "rb+") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            file.seek(sum_place(content, BLANK))
            file.write(f"{zlib.crc32(content):08x}".encode())

    write_atomically(path, write)


def sum_place(content: bytes | mmap.mmap, found: str) -> int:
    """Where the sum of a file stands; it is blank while the sum is made. ValueError: nowhere."""
    end = 8 + int.from_bytes(content[:8], "little")
    mark = f'\\"{SUM}\\": \\"'.encode()
    at = content.rfind(mark + found.encode(), 0, end)
    if at < 0:
        raise ValueError(CHANGED)
    return at + len(mark)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote.

    Raises:
        CheckpointError: missing, truncated, not a safetensors file, or not one of this package's.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is not there: train it first, or name another folder")
        content = path.read_bytes()  # in one go: opened twice, a file that is replaced meanwhile would be mixed up
        size = int.from_bytes(content[:8], "little")
        if size > LARGEST_HEADER:
            raise ValueError(f"its header has {size:,} bytes, and {LARGEST_HEADER:,} may be read")
        header = json.loads(content[8 : 8 + size])
        try:
            description = json.loads(header["__metadata__"]["kgdistil"])
        except (LookupError, TypeError, ValueError, RecursionError):
            description = None
        if isinstance(description, dict) and SUM in description:  # files of earlier releases have none
            found = str(description.pop(SUM))
            at = sum_place(content, found)
            before = zlib.crc32(BLANK.encode(), zlib.crc32(memoryview(content)[:at]))
            if f"{zlib.crc32(memoryview(content)[at + len(found) :], before):08x}" != found:
                raise ValueError(CHANGED)
        tensors = safetensors.torch.load(content)
    except (SafetensorError, OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); take an unchanged copy, or delete it and train again"
        ) from None
    if not isinstance(description, dict):
        raise CheckpointError(f"{path} was not written by kgdistil; name a folder that it wrote")
    return tensors, description


def save_model(
    folder: str | os.PathLike,
    model: KGEModel,
    graph: Graph,
    run_id: str | None = None,
    *,
    precision: str = "float32",
    about: dict[str, Any] | None = None,
) -> None:
    """A model that `load_model` reads: weights, how to build it, and the graph's labels.

    Args:
        precision: one of `quantise.PRECISIONS`.
        about: JSON values that the description keeps: metrics, where the model comes from.
    Raises:
        KgdistilError: the folder cannot be written.
    """
    description = save_weights(folder, model, graph, run_id, precision=precision, about=about)
    labels = {"entities": list(graph.entities), "relations": list(graph.relations)}
    names = {"names": dict(graph.descriptions)} if graph.descriptions else {}
    write_json(Path(folder) / DESCRIPTION, sealed({**description, **labels, **names}))


def save_weights(
    folder: str | os.PathLike,
    model: KGEModel,
    graph: Graph,
    run_id: str | None = None,
    *,
    precision: str = "float32",
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """`save_model` without the labels, for who has the graph; `load_model` reads it. Returns the description."""
    newer = bool(model.rank) or precision != "float32" or (isinstance(model, RotatE) and model.norm != 1)
    sizes = ("dim", "norm", "offset", "epsilon", "num_entities", "num_relations")
    description: dict[str, Any] = {"version": 3 if model.rank else 2 if newer else 1, "model": type(model).__name__}
    description |= {name: getattr(model, name) for name in sizes}
    description |= {"graph": graph.name, "graph_sha256": graph.sha256, "run_id": run_id}
    description |= {"rank": model.rank} if model.rank else {}
    description |= {"precision": precision} if newer else {}
    description |= {"about": about} if about else {}
    write_tensors(Path(folder) / WEIGHTS, pack(model, precision), description)
    return description


def load_model(folder: str | os.PathLike, graph: Graph | None = None) -> KGEModel:
    """A saved model, on the CPU.

    Args:
        folder: what `save_model` wrote.
        graph: where given, the model must have been trained on this very graph.
    Raises:
        CheckpointError: missing, damaged, of a newer version, or trained on another graph.
    """
    return read_model(Path(folder) / WEIGHTS, graph)[0]


def read_model(path: Path, graph: Graph | None = None) -> tuple[KGEModel, dict[str, Any]]:
    """`load_model` with the description that stands beside the weights in their file."""
    tensors, about = read_tensors(path)
    version = about.get("version")
    if not isinstance(version, int):
        raise CheckpointError(f"{path} holds no model; name a folder that save_model or a finished run wrote")
    if version > VERSION:
        raise CheckpointError(f"{path} has version {version}; this kgdistil reads up to {VERSION}: update it")
    if graph is not None and (theirs := about.get("graph_sha256")) != graph.sha256:
        other = f"another graph ({about.get('graph')}, SHA-256 {str(theirs)[:12]}…)"
        raise CheckpointError(f"{path} was trained on {other} than {graph.name} ({graph.sha256[:12]}…)")
    try:
        rank = about.get("rank", 0)
        kind = class_of(about["model"], rank)
        sizes = about["num_entities"], about["num_relations"], about["dim"]
        options: dict[str, Any] = {name: about[name] for name in ("norm", "offset", "epsilon")}
        tensors = unpack(tensors, about.get("precision", "float32"), kind.paired)
        with torch.device("meta"):  # which takes no memory, however large a description says that the model is
            wanted = kind(*sizes, **(options | {"rank": rank} if kind.factored else options)).state_dict()
        if {name: x.shape for name, x in tensors.items()} != {name: x.shape for name, x in wanted.items()}:
            raise ValueError("the sizes differ")
        if not all(bool(x.isfinite().all()) for x in (*tensors.values(), torch.tensor([*options.values()]))):
            raise ValueError("its numbers are not finite")
        model = build_model(about["model"], *sizes, **options, rank=rank)
        model.load_state_dict(tensors)
    except (LookupError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not hold the model it describes ({reason}); train it again") from None
    return model, about


def read_labelled(folder: str | os.PathLike) -> tuple[KGEModel, dict[str, Any], dict[str, Any]]:
    """What `save_model` wrote: the model, its description, and the labels: `entities`, `relations`, `names`.

    Raises:
        CheckpointError: missing, damaged, of a newer version, or put together from two models.
    """
    model, about = read_model(Path(folder) / WEIGHTS)
    path = Path(folder) / DESCRIPTION
    try:
        described = unsealed(json.loads(path.read_bytes()))
        entities, relations = (tuple(described[what]) for what in ("entities", "relations"))
        names = described.get("names", {})
        texts = [*entities, *relations, *names.keys(), *names.values()]
        if not all(isinstance(x, str) for x in texts):
            raise ValueError("a label is no text")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there: it holds the labels; copy it beside {WEIGHTS}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is damaged ({reason}); export or train the student again") from None
    sizes = len(set(entities)), len(set(relations))
    if sizes != (model.num_entities, model.num_relations) or sizes != (len(entities), len(relations)):
        rows = f"{WEIGHTS} holds {model.num_entities} and {model.num_relations} embeddings"
        labels = f"{path} has {len(entities)} entity and {len(relations)} relation labels"
        raise CheckpointError(f"{labels}, {rows}: they do not belong together")
    if described.get("graph_sha256") != about.get("graph_sha256"):
        raise CheckpointError(f"{path} and {WEIGHTS} are of two different graphs; copy both from one folder")
    return model, about, {"entities": entities, "relations": relations, "names": names}
