"""Folders of format 1, as earlier releases wrote them: safetensors and JSON, read whole, without PyTorch."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kgdistil.answer import triples as sorted_triples
from kgdistil.answer.files import CHANGED, SUM, sealed, unsealed, write_atomically, write_json
from kgdistil.answer.format import LABELS, Arrays, write_arrays
from kgdistil.answer.labels import Labels
from kgdistil.errors import CheckpointError, short

BLANK = "00000000"
LARGEST_HEADER = 1 << 24  # bytes: parsed as JSON, they may take a gigabyte
WEIGHTS, DESCRIPTION, TRIPLES = "model.safetensors", "model.json", "triples.safetensors"
FILES = (TRIPLES, DESCRIPTION, WEIGHTS)  # the weights last: where they are, all is
TYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
VERSION = 4  # of weights: 2 adds precisions and norms of RotatE, 3 low ranks, 4 whole entities; without them it is 1


def sum_place(content: bytes | bytearray | Any, found: str) -> int:
    """Where the sum of a file stands; it is blank while the sum is made. ValueError: nowhere."""
    end = 8 + int.from_bytes(content[:8], "little")
    mark = f'\\"{SUM}\\": \\"'.encode()
    at = content.rfind(mark + found.encode(), 0, end)
    if at < 0:
        raise ValueError(CHANGED)
    return at + len(mark)


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and description of a safetensors file that `kgdistil.checkpoint.write_tensors` wrote.

    Raises:
        CheckpointError: missing, truncated, not a safetensors file, or not one of this package's.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is not there: train it first, or name another folder")
        with path.open("rb") as file:  # once: opened twice, a file replaced meanwhile would be mixed up
            content = bytearray(os.fstat(file.fileno()).st_size)
            del content[file.readinto(content) :]
        size = int.from_bytes(content[:8], "little")
        if size > LARGEST_HEADER:
            raise ValueError(f"its header has {size:,} bytes, and {LARGEST_HEADER:,} may be read")
        header = json.loads(content[8 : 8 + size])
        try:
            description = json.loads(header["__metadata__"]["kgdistil"])
        except (LookupError, TypeError, ValueError, RecursionError):
            description = None
        if isinstance(description, dict) and SUM in description:  # files of earlier releases have none
            check_sum(memoryview(content), [], str(description.pop(SUM)))
        arrays = {name: view(content, 8 + size, about) for name, about in header.items() if name != "__metadata__"}
        if 8 + size + sum(x.nbytes for x in arrays.values()) != len(content):
            raise ValueError(f"its arrays are not the {len(content) - 8 - size:,} bytes that follow its header")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); take an unchanged copy, or delete it and train again"
        ) from None
    if not isinstance(description, dict):
        raise CheckpointError(f"{path} was not written by kgdistil; name a folder that it wrote")
    return arrays, description


def check_sum(first: memoryview | bytes, rest: Iterable[bytes], found: str) -> None:
    """Hold a file, its header in the first part of it, to the sum that it says. ValueError: changed."""
    at = sum_place(getattr(first, "obj", first), found)
    crc = zlib.crc32(first[at + len(found) :], zlib.crc32(BLANK.encode(), zlib.crc32(first[:at])))
    for block in rest:
        crc = zlib.crc32(block, crc)
    if f"{crc:08x}" != found:
        raise ValueError(CHANGED)


def sum_in(path: Path) -> str:
    """The sum that stands in a file of tensors, or of JSON, by which its content is told; "" where none does."""
    try:
        if path.suffix == ".json":
            return str(json.loads(path.read_bytes()).get(SUM, ""))
        with path.open("rb") as file:
            header = json.loads(file.read(min(LARGEST_HEADER, int.from_bytes(file.read(8), "little"))))
        return str(json.loads(header["__metadata__"]["kgdistil"]).get(SUM, ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""


def view(content: bytearray, base: int, about: dict[str, Any]) -> np.ndarray:
    """One array of a safetensors file; ValueError where it does not lie inside."""
    kind, (start, end) = np.dtype(TYPES[about["dtype"]]).newbyteorder("<"), about["data_offsets"]
    count = 1
    for x in about["shape"]:
        if not isinstance(x, int) or x < 0:
            raise ValueError(f"a shape of {short(about['shape'])}")
        count *= x
    if not 0 <= start <= end <= len(content) - base or end - start != count * kind.itemsize:
        raise ValueError("an array lies outside the file")
    found = np.frombuffer(content, kind, count, base + start) if count else np.empty(0, kind)
    return (found if found.flags.aligned else found.copy()).reshape(about["shape"])


def write_labels(
    folder: Path, about: Mapping[str, Any], entities: Sequence[str], relations: Sequence[str], names: Mapping[str, str]
) -> None:
    """The description of weights, with labels: lists in it, or, of millions of entities, arrays beside it.

    Raises:
        KgdistilError: the folder cannot be written.
    """
    described: dict[str, Any] = {**about, "entities": entities, "relations": list(relations)}
    if isinstance(entities, Labels):
        place = folder / LABELS
        write_atomically(place, lambda scratch: described.update(entities=_write(Path(scratch), entities)))
    else:
        described["entities"] = list(entities)
    write_json(folder / DESCRIPTION, sealed({**described, **({"names": dict(names)} if names else {})}))


def _write(path: Path, labels: Labels) -> dict[str, Any]:
    path.unlink()
    return write_arrays(path, labels.arrays())


def read_labels(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """`entities`, `relations` and `names` (label to name) beside the weights that `about` describes.

    Raises:
        CheckpointError: missing, damaged, or of another model.
    """
    path = folder / DESCRIPTION
    try:
        described = unsealed(json.loads(path.read_bytes()))
        relations, names, entities = tuple(described["relations"]), described.get("names", {}), described["entities"]
        if isinstance(entities, dict):  # many
            arrays = Arrays(folder / LABELS, entities)
            arrays.touch()
            entities = Labels(arrays["text"], arrays["offsets"], arrays.get("order"))
        else:
            entities = tuple(entities)
        texts = [*(entities if isinstance(entities, tuple) else ()), *relations, *names.keys(), *names.values()]
        if not all(isinstance(x, str) for x in texts):
            raise ValueError("a label is no text")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there: it holds the labels; copy it beside {WEIGHTS}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is damaged ({reason}); export or train the student again") from None
    different = len(set(entities)) if isinstance(entities, tuple) else len(entities)
    sizes, wanted = (different, len(set(relations))), (about.get("num_entities"), about.get("num_relations"))
    if sizes != wanted or sizes != (len(entities), len(relations)):
        rows = f"{WEIGHTS} holds {wanted[0]} and {wanted[1]} embeddings"
        labels = f"{path} has {len(entities)} entity and {len(relations)} relation labels"
        raise CheckpointError(f"{labels}, {rows}: they do not belong together")
    if described.get("graph_sha256") != about.get("graph_sha256"):
        raise CheckpointError(f"{path} and {WEIGHTS} are of two different graphs; copy both from one folder")
    return {"entities": entities, "relations": relations, "names": names}


def read_triples(path: Path, about: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The three splits, int32 [n, 3], by name; None where there is no file.

    Raises:
        CheckpointError: damaged, or of another graph.
    """
    if not path.is_file():
        return None
    found, described = read_tensors(path)
    if described.get("graph_sha256") != about.get("graph_sha256"):
        raise CheckpointError(f"{path} and {WEIGHTS} are of two different graphs; copy both from one folder")
    sizes = np.array([about["num_entities"], about["num_relations"], about["num_entities"]])
    for split in sorted_triples.SPLITS:
        x = found.get(split)
        if x is None or x.dtype != np.int32 or x.ndim != 2 or x.shape[1] != 3 or ((x < 0) | (x >= sizes)).any():
            raise CheckpointError(f"{path} is damaged: {split} holds no triples of this graph; train the student again")
    return {split: found[split] for split in sorted_triples.SPLITS}
