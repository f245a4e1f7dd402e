"""A student's folder, format 2 or 3: opened and memory-mapped, not loaded.

    student.json    what it is: model, sizes, relations, where each array lies, and the sums of each block of each file
    weights.bin     entities, relations, codebook: `layout`; which entities training saw
    labels.bin      the entities' labels, sorted by code point, and readable names (`labels.Labels`)
    triples.bin     the graph's triples, where the student carries them (`Triples`)
    README.md       the card

Arrays are little-endian, each at a multiple of 64 bytes. Nothing in these files is code or is unpacked, every size is
held to the file's before an array is used, and every block to its sum when it is first touched. Format 3 has whole
entities (`mixed`), which a reader of format 2 would overlook; without them 2 is written.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kgdistil.answer import calibration
from kgdistil.answer.files import CHANGED, SUM, sealed, unsealed, write_json
from kgdistil.errors import CheckpointError, short

VERSION, WHOLE = 2, 3  # WHOLE: of a student that has whole entities
HEADER, WEIGHTS, LABELS, TRIPLES, CARD = "student.json", "weights.bin", "labels.bin", "triples.bin", "README.md"
FILES = (CARD, TRIPLES, LABELS, WEIGHTS, HEADER)  # the header last: where it is, all is
LARGEST_HEADER = 64 << 20  # bytes: parsed as JSON, they take several times as many
ALIGNED, BLOCK = 64, 1 << 18  # bytes
SMALL = 8 << 20  # bytes of a file that is read whole, in a few milliseconds
TYPES = ("|u1", "|i1", "<f2", "<f4", "<i4", "<u4", "<i8", "<u8")
MEND = "take an unchanged copy, or train the student again"


# ---- arrays in files ------------------------------------------------------------------------------------------------
def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write arrays one after the other, flushed to disk; returns what `Arrays` wants to know of them."""
    places: dict[str, Any] = {}
    with path.open("xb") as file:
        for name, given in arrays.items():
            array = np.ascontiguousarray(given, given.dtype.newbyteorder("<"))
            file.write(bytes(-file.tell() % ALIGNED))
            places[name] = [array.dtype.str, list(array.shape), file.tell()]
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        sums = [xxhash.xxh3_64_hexdigest(block) for block in iter(lambda: file.read(BLOCK), b"")]
    return {"bytes": path.stat().st_size, "sums": sums, "arrays": places}


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of one file, read-only: views of its memory map, or of the bytes of a small one, which stay.

    Raises:
        CheckpointError: the file is missing, of another size, or not as it was described.
    """

    handle: int | None = None  # of a file that is mapped

    def __init__(self, path: Path, about: Any):
        self.path = path
        try:
            places, self.sums, self.size = about["arrays"], about["sums"], about["bytes"]
            if not isinstance(self.sums, list) or not all(isinstance(x, str) for x in self.sums):
                raise ValueError("no sums")
            if not path.is_file():
                raise CheckpointError(f"{path} is not there: copy the student's whole folder")
            with path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != self.size or len(self.sums) != -(-found // BLOCK):
                    raise CheckpointError(f"{path} has {found} bytes where {short(self.size)} were written: {MEND}")
                self.map: bytes | mmap.mmap = b""
                if found <= SMALL:
                    self.map = file.read(found)
                else:
                    self.handle = os.dup(file.fileno())
                    self.map, self.opened = mmap.mmap(self.handle, 0, access=mmap.ACCESS_READ), self._state()
            self.views = {name: self._view(*place) for name, place in places.items()}
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
            raise CheckpointError(f"{path} is not what {HEADER} says ({str(error)[:200]}): {MEND}") from None
        self.unread = bytearray(b"\1" * len(self.sums))  # blocks that were not held to their sums yet

    def _view(self, kind: str, shape: list[int], start: int) -> np.ndarray:
        if kind not in TYPES or start < 0 or start % ALIGNED or any(not isinstance(x, int) or x < 0 for x in shape):
            raise ValueError(f"an array of {kind} at {start}")
        count = 1
        for x in shape:
            count *= x
        return np.frombuffer(self.map, kind, count, start).reshape(shape) if count else np.empty(shape, kind)

    def _state(self) -> tuple[int, int]:
        assert self.handle is not None
        found = os.fstat(self.handle)
        return found.st_size, found.st_mtime_ns

    def __del__(self) -> None:
        if self.handle is not None:
            os.close(self.handle)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.views[name]

    def __iter__(self) -> Any:
        return iter(self.views)

    def __len__(self) -> int:
        return len(self.views)

    def touch(self, start: int = 0, end: int | None = None) -> None:
        """Hold bytes to their sums, each block once, before they are used.

        Raises:
            CheckpointError: the file was changed.
        """
        first, last = start // BLOCK, len(self.unread) if end is None else -(-end // BLOCK)
        self.check_unchanged()
        at = self.unread.find(1, first, last)
        while at >= 0:
            block = memoryview(self.map)[at * BLOCK : (at + 1) * BLOCK]
            if xxhash.xxh3_64_hexdigest(block) != self.sums[at]:
                where = f"in bytes {at * BLOCK} to {at * BLOCK + len(block)}"
                raise CheckpointError(f"{self.path}: {CHANGED} ({where}): {MEND}")
            self.unread[at] = 0
            at = self.unread.find(1, at, last)

    def check_unchanged(self) -> None:
        """CheckpointError where a mapped file shrank or was written to since it was opened.

        To read what is gone would end the process.
        """
        if self.handle is None or (state := self._state()) == self.opened:
            return
        what = "has shrunk" if state[0] < self.size else "was written to"
        raise CheckpointError(f"{self.path} {what} since it was opened: {MEND}")

    def offset(self, name: str) -> int:
        """Where in the file an array begins, in bytes."""
        view = self.views[name]
        if not view.size:
            return 0
        return view.__array_interface__["data"][0] - np.frombuffer(self.map, np.uint8).__array_interface__["data"][0]


# ---- the header -----------------------------------------------------------------------------------------------------
whole = lambda x: isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 1 << 48
finite = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= 1e30  # NaN is not
counted = lambda x: whole(x) and x > 0
text = lambda x: isinstance(x, str)
either = lambda right: lambda x: x is None or right(x)
listed = lambda right: lambda x: isinstance(x, list) and all(map(right, x))
mapped = lambda right: lambda x: isinstance(x, dict) and all(map(right, x.values()))
RIGHT: dict[str, Callable[[Any], bool]] = {  # what a header may say
    **dict.fromkeys(("model", "precision", "graph", "graph_sha256"), text),
    **dict.fromkeys(("dim", "norm", "num_entities", "num_relations"), counted),
    "rank": whole,
    **dict.fromkeys(("offset", "epsilon"), finite),
    "run_id": either(text),
    "about": either(lambda x: isinstance(x, dict)),
    "relations": listed(text),
    "reflexive": either(listed(whole)),
    "unseen": either(mapped(listed(whole))),
    "calibration": either(calibration.right),
    "files": lambda x: mapped(lambda y: isinstance(y, dict))(x) and set(x) <= {WEIGHTS, LABELS, TRIPLES},
}


def read_header(folder: Path) -> dict[str, Any]:
    """`student.json`.

    Raises:
        CheckpointError: missing, damaged, or of a newer version.
    """
    path = folder / HEADER
    try:
        if path.stat().st_size > LARGEST_HEADER:
            raise ValueError(f"it has more than {LARGEST_HEADER:,} bytes")
        sealed_ = json.loads(path.read_bytes())
        header = unsealed(sealed_)
        if SUM not in sealed_:
            raise ValueError(CHANGED)
        version = header["version"]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there: name a student's folder") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({' '.join(str(error).split())[:200]}): {MEND}") from None
    if not isinstance(version, int) or version not in (VERSION, WHOLE):
        raise CheckpointError(f"{path} has format {short(version)}; this kgdistil reads 1 to {WHOLE}: update it")
    if wrong := [name for name, right in RIGHT.items() if not right(header.get(name))]:
        raise CheckpointError(f"{path} is damaged ({wrong[0]} is no {wrong[0]}): {MEND}")
    return header


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    arrays = header.get("files", {}).get(WEIGHTS, {}).get("arrays", {})
    write_json(folder / HEADER, sealed({**header, "version": WHOLE if "whole.rows" in arrays else VERSION}))


# ---- how entities lie -----------------------------------------------------------------------------------------------
def blocks(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows [E, W] as [⌈E/size⌉, W, size], padded with zeros."""
    count, width = rows.shape
    made = np.zeros((-(-count // size), width, size), rows.dtype)
    whole = count // size
    made[:whole] = rows[: whole * size].reshape(whole, size, width).transpose(0, 2, 1)
    if count % size:
        made[whole, :, : count % size] = rows[whole * size :].T
    return made


def rows_of(made: np.ndarray, count: int) -> np.ndarray:
    """The rows [E, W] of what `blocks` made of them."""
    return made.transpose(0, 2, 1).reshape(-1, made.shape[1])[:count]


def layout(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of weights.bin, of those that `kgdistil.compress.packing.pack` makes: entities as they are scanned.

    Codes lie in blocks of 64 entities: uint8 [⌈E/64⌉, steps, 64], where the byte of entity 64·b + e at step s holds
    code 2s in its low and code 2s + 1 in its high four bits; of a nested student the first codes of all groups come
    before the second ones, and `book_d` and `relations_d` are those of the student of d codes a group. Other numbers
    lie in tiles of 16: [⌈E/16⌉, width, 16]. Whole entities are `whole` int32 [K], ids in order, `whole.rows` int8
    [K, width] and `whole.scale` float32 [K].
    """
    coded = packed["entities"].dtype == np.uint8
    return {**packed, "entities": blocks(packed["entities"], 64 if coded else 16)}
