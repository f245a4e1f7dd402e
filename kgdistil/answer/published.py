"""Students that come with a checkout, asked by name, and what of their data sets is at hand: names and triples."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kgdistil.answer.files import user_folder
from kgdistil.answer.labels import Labels
from kgdistil.answer.triples import SPLITS
from kgdistil.answer.triples import arrays as triple_arrays
from kgdistil.errors import CheckpointError, DataError, KgdistilError, short

log = logging.getLogger("kgdistil")
DATA_VARIABLE = "KGDISTIL_DATA"
PUBLISHED = {"wn18rr": "WN18RR", "fb15k-237": "FB15k-237"}  # our name: the author's name
SHA256 = {
    "WN18RR.tar.gz": "1eb9152f804c140d163462c0d49f65e5a0b30ab5fbb375c5e3353c11a6249060",
    "FB15k-237.tar.gz": "311df7930f842a02979eaa7a802484a6afe62303c07f915f1e6edbc30cbe05e8",
    "WN18RR-entity2text.txt": "8f5c6f11753dafa879917b9bdf73d398ceb3bd4bed8d5553177e1e0f2c37521f",
    "FB15k-237-entity2text.txt": "16beedcfad3d32696e8b0b98cfa0f5eeb144f5142225f227a64fd9ce37447da5",
}


# ---- students -------------------------------------------------------------------------------------------------------
def students_folder() -> Path:
    """Where a checkout keeps its published students: `results/students/`, or below KGDISTIL_RESULTS."""
    return Path(os.environ.get("KGDISTIL_RESULTS") or Path(__file__).parents[2] / "results") / "students"


def found(student: str | os.PathLike) -> Path:
    """The folder of a student; a name for which nothing lies here is that of a published one.

    Raises:
        CheckpointError: there is none of that name.
    """
    folder = Path(student)
    name = os.fsdecode(student).rstrip(os.sep)
    if os.path.exists(folder) or Path(name).name != name or len(name) > 100:
        return folder
    if os.path.isdir(students_folder() / name):
        return students_folder() / name
    if not (there := names()):
        return folder
    raise CheckpointError(f"no folder and no student of the name {short(name)}: published ones are {', '.join(there)}")


def names() -> list[str]:
    """Of the published students; none without a checkout."""
    return sorted(path.name for path in students_folder().glob("*/"))


def is_published(folder: Path, graph_sha256: str, graph: str) -> bool:
    """Whether a student is one of the published ones, and its data set known."""
    known = graph in PUBLISHED and SHA256[f"{PUBLISHED[graph]}.tar.gz"] == graph_sha256
    return known and students_folder().resolve() in folder.resolve().parents


# ---- their data sets ------------------------------------------------------------------------------------------------
def names_of(graph: str, entities: Labels) -> Labels | None:
    """What people call the entities of a data set, by id; None, after one line, where that is not at hand."""
    file = f"{PUBLISHED[graph]}-entity2text.txt"
    try:
        content = at_hand(file, cache_folder())
    except KgdistilError as error:
        log.warning("%s", error)
        return None
    if content is None:
        how = f"kgdistil.load({graph!r}) fetches them; or put {file} into a folder and name that in {DATA_VARIABLE}"
        log.warning("the readable names of %s are not at hand, so a label looks like %r: %s", graph, entities[0], how)
        return None
    return Borrowed(content, entities)


class Borrowed(Labels):
    """The names of the file of a data set, looked up by label; they are put in order when they are first searched."""

    def __init__(self, content: bytes, entities: Labels):
        self._content, self._entities, self._count = content, entities, len(entities)

    @functools.cached_property
    def _by_label(self) -> dict[str, str]:
        return dict(line.split("\t", 1) for line in self._content.decode().removesuffix("\n").split("\n"))

    def many(self, ids: Iterable[int]) -> list[str]:
        return [self._by_label.get(label, "") for label in self._entities.many(ids)]

    def _label(self, i: int) -> str:
        return self.many([i])[0]

    def __getattr__(self, name: str) -> Any:  # of what `Labels` keeps
        if name not in ("_arrays", "_text", "_offsets", "_order", "_touch"):
            raise AttributeError(name)
        vars(self).update(vars(Labels.of(self.many(range(self._count)))))
        return vars(self)[name]


def triples_of(graph: str, entities: Labels, relations: Labels) -> Mapping[str, np.ndarray]:
    """The triples of a data set, as a student's folder holds them.

    Raises:
        DataError: the archive is not at hand, or damaged.
    """
    file = f"{PUBLISHED[graph]}.tar.gz"
    content = at_hand(file, cache_folder())
    if content is None:
        raise DataError(
            f"published students come without triples, which are needed here: put {file} into a folder and name that "
            f"in {DATA_VARIABLE}"
        )
    parts = [part.decode().split() for part in unpacked(file, content).values()]  # its labels have no spaces
    numbers = [{label: i for i, label in enumerate(labels)} for labels in (entities, relations)]
    columns = [[numbers[c % 2][x] for part in parts for x in part[c::3]] for c in range(3)]
    split = np.repeat(np.arange(len(SPLITS)), [len(part) // 3 for part in parts])
    return triple_arrays(np.array(columns).T, split, len(relations))


def unpacked(file: str, content: bytes) -> dict[str, bytes]:
    """The three splits of an archive. They are read by name into memory: no path inside it ever reaches the disk.

    Raises:
        DataError: it is none, or lacks one of them.
    """
    import io
    import tarfile  # with what it unpacks, too much for a start

    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            # Where one is a folder, extractfile gives None: AttributeError.
            return {split: archive.extractfile(f"{split}.txt").read() for split in SPLITS}  # type: ignore[union-attr]
    except (tarfile.TarError, zlib.error, OSError, EOFError, KeyError, AttributeError) as error:
        raise DataError(f"{file} is no archive with train.txt, valid.txt and test.txt: {error}") from None


def at_hand(file: str, cache: Path | None) -> bytes | None:
    """The bytes of a published file that is here, or None; a damaged one in `cache` counts as absent."""
    if folder := os.environ.get(DATA_VARIABLE):
        if not (local := Path(folder).expanduser()).is_dir():
            raise DataError(f"{DATA_VARIABLE} names {short(folder)}, which is no folder; correct or unset it")
        if (local / file).is_file():
            content = read(local / file)
            if (sum_ := sha256(content)) != SHA256[file]:
                fault = f"has SHA-256 {sum_} in place of {SHA256[file]}"
                raise DataError(f"{local / file} {fault}; replace it, or remove it to have it downloaded")
            return content
    if cache and (cache / file).is_file() and sha256(content := read(cache / file)) == SHA256[file]:
        return content
    return None


def cache_folder(folder: Path | None = None) -> Path | None:
    """The folder of downloads, the user's where none is given; None without a home."""
    try:
        return user_folder("cache") if folder is None else Path(folder).expanduser()
    except KgdistilError:
        return None


def read(path: str | os.PathLike) -> bytes:
    """A file's bytes; DataError where it cannot be read."""
    if not os.path.isfile(path):  # a named pipe would never end
        raise DataError(f"{path} is missing or no regular file")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
