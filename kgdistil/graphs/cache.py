"""Graphs that took long to read, as arrays that are mapped when the same files are read again.

They lie in the folder `graphs` of the user's cache folder, or of the one that KGDISTIL_CACHE names, which holds nothing
but the user's own. Delete it to have the files read anew. It is used only where every byte of the files, everything
that was asked, and the code that reads are what they were.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import stat
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from kgdistil.answer.files import SUM, sealed, unsealed, write_json
from kgdistil.answer.format import Arrays, write_arrays
from kgdistil.answer.labels import Labels
from kgdistil.errors import KgdistilError
from kgdistil.graph import SPLITS, Graph
from kgdistil.graphs.labels import TABLES
from kgdistil.kernels.compile import own, own_folder

log = logging.getLogger("kgdistil")
LEAST = 1_000_000  # triples of a graph that is kept
SMALLEST = 1 << 20  # bytes of files that may hold so many, packed
MOST = 4 << 30  # bytes that are kept; what was not read for longest goes first


def sum_of(path: Path) -> str:
    """XXH3 of a file's bytes."""
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def sum_of_all(path: Path, but: Sequence[str] = ()) -> str:
    """XXH3 of a file, or of all files in a folder but hidden ones, and those in some folders below."""
    leave = tuple(f"{folder}{os.sep}" for folder in but)
    inside = (found for found in sorted(path.rglob("*")) if not found.name.startswith(".") and found.is_file())
    files = [found for found in inside if not os.path.realpath(found).startswith(leave)] if path.is_dir() else [path]
    told = "".join(f"{os.path.relpath(found, path)} {sum_of(found)}\n" for found in files)
    return xxhash.xxh3_128_hexdigest(told.encode(errors="surrogatepass"))


@functools.cache
def reader() -> str:
    """What the same bytes depend on, to become the same graph: the code that reads, and two libraries' tables."""
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return f"{xxhash.xxh3_128_hexdigest(b''.join(code))} {unicodedata.unidata_version} {np.__version__}"


def stamps(paths: Sequence[Path]) -> list[tuple[int, int, int]]:
    return [(found.st_size, found.st_mtime_ns, found.st_ino) for found in map(os.stat, paths)]


@dataclass
class Copy:
    """Where the graph of some files is kept."""

    paths: list[Path]
    seen: list[tuple[int, int, int]]  # the files when their sums were taken
    folder: Path
    key: str

    @classmethod
    def of(cls, sources: Sequence[Any], options: Mapping[str, Any]) -> Copy | None:
        """The place for what is read with such options; None where nothing is kept."""
        if not all(isinstance(source, str | os.PathLike) for source in sources):
            return None
        paths = [Path(os.path.expanduser(source)) for source in sources]
        if not all(map(os.path.isfile, paths)) or sum(path.stat().st_size for path in paths) < SMALLEST:
            return None
        try:
            beside = {path.parent / name for path in paths for pair in TABLES.items() for name in (pair[0], pair[1][0])}
            paths += sorted(path for path in beside if path.is_file())
            seen, folder = stamps(paths), own_folder("graphs", "*")
            about = [reader(), len(sources), dict(options), [(path.name, sum_of(path)) for path in paths]]
            return cls(paths, seen, folder, xxhash.xxh3_128_hexdigest(json.dumps(about, default=str).encode()))
        except (OSError, KgdistilError) as error:
            log.info("large graphs are read anew each time: %s", error)
            return None

    def load(self) -> Graph | None:
        """The graph, from its copy; None without a sound one."""
        header, arrays = (self.folder / f"{self.key}.{ending}" for ending in ("json", "bin"))
        try:
            for path in (header, arrays):
                if not own(path, stat.S_ISREG) or (os.name == "posix" and path.stat().st_mode & 0o022):
                    raise ValueError(f"{path} is another's, or others can write to it")
            written = json.loads(header.read_bytes())
            if not isinstance(written, dict):
                raise ValueError(f"{header} holds no JSON object")
            about, found = unsealed(written), Arrays(arrays, written["file"])
            if SUM not in written:
                raise ValueError(f"{header} has no sum")
            found.touch()  # all of it, a fraction of a second
            train, valid, test = (torch.from_numpy(found[part].astype(np.int64)) for part in SPLITS)
            labels = [Labels(found[f"{what}_text"], found[f"{what}_offsets"]) for what in ("entity", "relation")]
            entities, relations = (x.kept() for x in labels)
            notes = tuple(about["notes"])
            graph = Graph(about["name"], train, valid, test, entities, relations, about["sha256"], notes=notes)
            os.utime(arrays)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError, KgdistilError) as error:
            log.warning("the copy of %s is made anew: %s", self.paths[0], error)
            return None
        log.info("%s: read from its copy in %s; delete that folder to have the file read", graph.name, self.folder)
        return graph

    def keep(self, graph: Graph) -> None:
        """Keep a large graph; one log line where that cannot be."""
        if len(graph.train) + len(graph.valid) + len(graph.test) < LEAST:
            return
        arrays = {part: getattr(graph, part).numpy().astype(np.int32) for part in SPLITS}
        for what, labels in (("entity", graph.entities), ("relation", graph.relations)):
            arrays |= {f"{what}_{name}": array for name, array in Labels.of(labels).arrays().items()}
        scratch = self.folder / f".{secrets.token_hex(4)}"
        try:
            if stamps(self.paths) != self.seen:
                return  # it changed while it was read
            for path in self.folder.glob(".*"):  # of a killed process
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink(missing_ok=True)
            about: dict[str, Any] = {"name": graph.name, "sha256": graph.sha256, "notes": list(graph.notes)}
            about["file"] = write_arrays(scratch, arrays)
            scratch.chmod(0o600)
            scratch.replace(self.folder / f"{self.key}.bin")
            write_json(header := self.folder / f"{self.key}.json", sealed(about))
            header.chmod(0o600)
            self._make_room()
        except (OSError, KgdistilError) as error:
            log.warning("no copy of %s is kept, so it is read anew each time: %s", self.paths[0], error)
        finally:
            scratch.unlink(missing_ok=True)

    def _make_room(self) -> None:
        left = MOST
        for path in sorted(self.folder.glob("*.bin"), key=lambda path: path.stat().st_mtime, reverse=True):
            left -= path.stat().st_size
            if left < 0 and path.stem != self.key:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                    path.with_suffix(".json").unlink()
