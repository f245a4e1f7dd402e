"""Teachers as plain arrays with labels: in memory, or in an .npz, of which only what is asked for is unpacked."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from kgdistil.answer.files import CHANGED, SUM
from kgdistil.answer.labels import Labels
from kgdistil.compress import packing, whole
from kgdistil.errors import CheckpointError, ConfigError, KgdistilError
from kgdistil.graph import Graph
from kgdistil.graphs.importers.conventions import choose
from kgdistil.graphs.importers.tables import Imported, kind_named, reason_of
from kgdistil.graphs.limits import allow
from kgdistil.models import MODELS

OWN = ("model", "convention", "norm", "offset", "epsilon", SUM)
NEEDED = ("entities", "relations", "entity_labels", "relation_labels")
OFFSETS = "_offsets"  # ends the name of what says where packed labels begin
PARTS = ("entities_scale", "entities_book", "whole", "whole_rows", "whole_scale", "map")
WANTED = (*NEEDED, "entity_labels" + OFFSETS, "relation_labels" + OFFSETS, *PARTS, *OWN)


def from_arrays(
    model: str,
    entities: np.ndarray | Tensor,
    relations: np.ndarray | Tensor,
    entity_labels: Sequence[str],
    relation_labels: Sequence[str],
    graph: Graph,
    *,
    convention: str | None = None,
    norm: int | None = None,
    gamma: float | None = None,
    offset: float | None = None,
    epsilon: float = 2.0,
) -> Imported:
    """A teacher from arrays [E, width] and [R, width], one label a row.

    Args:
        convention: the library whose layout they have, one of `conventions.CONVENTIONS`; this package's (`models`)
            where None: complex numbers are [real | imaginary], TransH's relations [translation | normal], RotatE's
            relations x the angles π·x·dim / (offset + epsilon).
        norm: of a distance, 1 or 2; the convention's where None.
        gamma: γ by which DGL-KE, OpenKE and RotatE's own code scale angles; another name of `offset`.
    Raises:
        ConfigError, CheckpointError: shapes, labels or numbers that do not fit, or training triples that rank several
            times better when the arrays are read another way.
    """
    tables = {}
    for name, values in (("entities", entities), ("relations", relations)):
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if array.ndim != 2 or array.dtype.kind not in "fiuc" or not array.size:
            raise CheckpointError(f"{name} is {array.dtype} {array.shape}: it must be numbers [rows, width]")
        if array.dtype.kind == "c":  # real and imaginary parts in turn, as PyKEEN's
            array = np.ascontiguousarray(array, dtype=np.complex64).view(np.float32)
        tables[name] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    words = (entity_labels, relation_labels)
    return choose(
        model,
        tables,
        words,
        graph,
        "arrays",
        convention=convention,
        norm=norm,
        gamma=gamma,
        offset=offset,
        epsilon=epsilon,
    )


def read_npz(
    path: Path,
    graph: Graph,
    model: str | None = None,
    convention: str | None = None,
    norm: int | None = None,
    gamma: float | None = None,
) -> Imported:
    """Entries entities, relations, entity_labels and relation_labels; what `export_npz` writes besides, where it is
    there: model, convention, norm, offset, epsilon, the scales of int8, the codebook of few bits, a low rank's map."""
    try:
        with zipfile.ZipFile(path) as file:
            there = {name.removesuffix(".npy") for name in file.namelist()}
            values, entries = {name: _entry(file, name, path) for name in WANTED if name in there}, file.infolist()
        if missing := [name for name in NEEDED if name not in values]:
            raise CheckpointError(
                f"{path} holds no {missing[0]}; it needs entities, relations, entity_labels and relation_labels"
            )
        own = {name: values[name].item() for name in OWN if name in values}
        if SUM in own and own[SUM] != _sum(entries):
            raise CheckpointError(f"{path}: {CHANGED}; export it again")
        words = _words(values, "entity_labels"), _words(values, "relation_labels")
        name = str(own["model"]) if "model" in own else model
        if name is None:
            raise ConfigError(f"{path} does not say which model it holds: give --model, one of {', '.join(MODELS)}")
        tables = _tables(values, path, kind_named(name, str(path)).paired)
        numbers = {key: cast(own[key]) for key, cast in (("offset", float), ("epsilon", float)) if key in own}
        norm = int(own["norm"]) if norm is None and "norm" in own else norm
        if not all(math.isfinite(x) for x in numbers.values()):
            raise ValueError("offset and epsilon must be finite")
    except KgdistilError:
        raise
    except Exception as error:  # noqa: BLE001 - numpy raises whatever a damaged header leads to; it runs no code
        raise CheckpointError(f"cannot read {path}: {reason_of(error)}; arrays of objects are never read") from None
    sure = convention is None and "convention" in own
    convention = str(own["convention"]) if sure else convention
    more: dict[str, Any] = {"convention": convention, "norm": norm, "gamma": gamma, "sure": sure}
    more |= {} if gamma is not None else numbers
    return choose(name, tables, words, graph, f"arrays, {path}", **more)


def is_arrays(folder: Path) -> bool:
    """Whether it is a folder that `export_arrays` wrote."""
    return all((folder / name).is_file() for name in ("about.json", "labels.tsv", "entities.npy"))


def read_folder(folder: Path, graph: Graph) -> Imported:
    """What `students.export.export_arrays` wrote; the float32 tables are read."""
    try:
        about = json.loads((folder / "about.json").read_bytes())
        tables = {}
        for name in ("entities", "relations", "map"):
            if (folder / f"{name}.npy").exists():
                array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
                    raise ValueError(f"{name}.npy holds {array.dtype} {array.shape}, not numbers [rows, width]")
                allow(4 * array.size, folder, CheckpointError)
                tables[name] = torch.from_numpy(np.array(array, np.float32))
        text = io.StringIO((folder / "labels.tsv").read_bytes().decode("utf-8", "surrogatepass"), newline="")
        words: dict[str, list[str]] = {"entity": [], "relation": []}
        for row in csv.DictReader(text, dialect="excel-tab"):
            if int(row["id"]) != len(words[row["kind"]]):
                raise ValueError(f"labels.tsv: {row['kind']} {row['id']} does not follow the one before")
            words[row["kind"]].append(row["label"])
        name, norm, numbers = str(about["model"]), int(about["norm"]), [float(about[x]) for x in ("offset", "epsilon")]
        kind_named(name, str(folder))
        if not all(map(math.isfinite, numbers)):
            raise ValueError("offset and epsilon must be finite")
    except KgdistilError:
        raise
    except Exception as error:  # noqa: BLE001 - numpy raises whatever a damaged header leads to; it runs no code
        raise CheckpointError(f"cannot read {folder}: {reason_of(error)}; export it again") from None
    both, more = (words["entity"], words["relation"]), dict(zip(("offset", "epsilon"), numbers))
    return choose(name, tables, both, graph, f"arrays, {folder}", convention="kgdistil", norm=norm, sure=True, **more)


def _entry(file: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """One array, after a look at how large it says that it is."""
    with file.open(f"{name}.npy") as stream:
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(stream)
    needed = math.prod(shape) * dtype.itemsize
    allow(max(needed, 4 * math.prod(shape)), path, CheckpointError)
    if name in OWN and (shape != () or needed > 10_000):
        raise ValueError(f"{name} is no single value")
    if dtype.hasobject or needed > file.getinfo(f"{name}.npy").file_size:
        mend = "; save labels as texts, np.array(labels, dtype=str)" if name.endswith("labels") else ""
        raise ValueError(f"{name} holds objects or is cut short{mend}")
    with file.open(f"{name}.npy") as stream:
        return npy.read_array(stream, allow_pickle=False)


def sealed_npz(content: io.BytesIO) -> bytes:
    """The .npz that `content` holds, with an entry more: the sum by which `read_npz` tells a changed one.

    It is that of the entries' names and of the sums that zip keeps of what each unpacks to, so to verify it unpacks
    nothing. An .npz without it, as earlier releases and others write it, is taken as it is.
    """
    with zipfile.ZipFile(content, "a") as file:
        scratch = io.BytesIO()
        np.save(scratch, np.array(_sum(file.infolist())))
        file.writestr(f"{SUM}.npy", scratch.getvalue())
        file.filelist.insert(0, file.filelist.pop())  # a list of contents that is cut short has it still
    return content.getvalue()


def _sum(entries: Sequence[zipfile.ZipInfo]) -> int:
    told = sorted((x.filename, x.CRC, x.file_size) for x in entries if x.filename != f"{SUM}.npy")
    return zlib.crc32(json.dumps(told).encode())


def _words(values: dict[str, np.ndarray], name: str) -> list[str]:
    """Labels: an array of texts, or what else `label_arrays` leaves, or left: the bytes of a JSON list."""
    array, offsets = values[name], values.get(name + OFFSETS)
    if offsets is not None:
        text, ends = array.tobytes(), offsets.tolist()
        if array.dtype != np.uint8 or ends[:1] + ends[-1:] != [0, len(text)] or sorted(ends) != ends:
            raise ValueError(f"{name}{OFFSETS} do not say where labels begin")
        return [str(text[a:b], "utf-8", "surrogatepass") for a, b in itertools.pairwise(ends)]
    if array.dtype == np.uint8:
        found = json.loads(array.tobytes())
        if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
            raise ValueError("the labels are no list of texts")
        return found
    if array.ndim != 1:
        raise ValueError("the labels are no list")
    return [str(word) for word in array.astype(str).tolist()]


def label_arrays(name: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """Labels as an array of texts; where that would be large, or would lose the NUL that ends a label, as their UTF-8
    (`surrogatepass`) one after the other, uint8, and `…_offsets`, int64 [n + 1]: where each begins, and the end."""
    few = not isinstance(words, Labels) and 4 * len(words) * max(map(len, words), default=0) <= 64 << 20
    if few and not any(w.endswith("\0") for w in words):
        return {name: np.array(words)}
    packed = Labels.of(words).arrays()
    return {name: packed["text"], name + OFFSETS: packed["offsets"]}


def _tables(values: dict[str, np.ndarray], path: Path, paired: bool) -> dict[str, Tensor]:
    """The float32 tables of an .npz: unpacked as `packing.unpack` does where their precision is smaller."""
    names = [name for name in ("entities", "relations", "map") if name in values]
    if any(values[name].ndim != 2 or values[name].dtype.kind not in "fiuc" or not values[name].size for name in names):
        raise ValueError("entities and relations must be numbers [rows, width]")
    if "entities_book" in values:
        book = values["entities_book"]
        sizes = {group: name for name, group in packing.GROUPS.items()}
        precision = packing.NESTED if book.ndim == 4 else sizes.get(book.shape[-1], "")
        if book.ndim not in (3, 4) or not precision:
            raise ValueError(f"a codebook of shape {book.shape}")
        allow(4 * len(values["entities"]) * book[..., 0, :].size, path, CheckpointError)
        packed = {name: torch.from_numpy(values[name]) for name in names} | {"entities.book": torch.from_numpy(book)}
        few = {name: name.replace(".", "_") for name in (whole.NAME, "whole.rows", "whole.scale")}
        packed |= {name: torch.from_numpy(values[key]) for name, key in few.items() if key in values}
        found = packing.unpack(packed, precision, paired)
        return {name: found[name] for name in names}
    tables: dict[str, Tensor] = {}
    for name in names:
        array = values[name]
        with np.errstate(over="ignore"):  # what is infinite is refused later
            array = array.astype(np.complex64).view(np.float32) if array.dtype.kind == "c" else array.astype(np.float32)
        tables[name] = torch.from_numpy(np.ascontiguousarray(array))
    if "entities_scale" in values:
        scale = values["entities_scale"]
        if scale.dtype.kind != "f" or scale.shape != (len(tables["entities"]),):
            raise ValueError(
                f"entities_scale has shape {scale.shape}, and there are {len(tables['entities'])} entities"
            )
        tables["entities"] *= torch.from_numpy(scale.astype(np.float32))[:, None]
    return tables


def as_numbers(value: Any, what: str) -> Tensor:
    """A table of a checkpoint; ValueError where it is none, or smaller on disk than it says."""
    if not isinstance(value, Tensor) or value.ndim != 2 or not value.numel() or value.is_sparse or value.is_quantized:
        raise ValueError(f"{what} is no table of numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{what} says that it is larger than it is")
    return value.detach().float()
