"""A student: its folder opened, asked, extended."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kgdistil.answer import asking, calibration, format1, published
from kgdistil.answer.answers import Answers
from kgdistil.answer.asking import Places
from kgdistil.answer.equations import Array, Side
from kgdistil.answer.folder import recover, replace_folder
from kgdistil.answer.format import (
    CARD,
    FILES,
    HEADER,
    LABELS,
    MEND,
    TRIPLES,
    WEIGHTS,
    Arrays,
    layout,
    read_header,
    rows_of,
    write_arrays,
    write_header,
)
from kgdistil.answer.labels import Labels
from kgdistil.answer.ranks import Ranks
from kgdistil.answer.rendering import markdown
from kgdistil.answer.triples import SPLITS, Triples
from kgdistil.answer.triples import arrays as triple_arrays
from kgdistil.answer.weights import SLICE, Weights
from kgdistil.errors import CheckpointError, ConfigError, short

SIDES: tuple[tuple[Side, int, int], ...] = (("head", 2, 0), ("tail", 0, 2))
RETRIES = 10  # of a folder that is replaced while it is opened
RANKED = 1024  # queries that are ranked at a time


class Student:
    """A student that answers where it lies. Open one with `load_student`.

    `about`: JSON values: where it comes from, its metrics. `entities`, `relations`: labels by id.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        weights: Any,
        entities: Labels,
        names: Labels | None = None,
        triples: Mapping[str, Array] | Callable[[], Mapping[str, Array]] | None = None,
        files: Sequence[Arrays] = (),
    ):
        self.header = header
        self.model, self.dim, self.precision = header["model"], header["dim"], header.get("precision", "float32")
        self.rank, self.run_id = header.get("rank", 0), header.get("run_id")
        self.graph, self.graph_sha256 = str(header.get("graph")), str(header.get("graph_sha256"))
        self.about: dict[str, Any] = header.get("about") or {}
        self.weights, self.entities, self.names = weights, entities, names
        self.relations = Labels.of(header["relations"])
        if len(self.relations) != header["num_relations"]:
            raise ValueError(f"{len(self.relations)} relations of {header['num_relations']}")
        if (told := header.get("calibration")) and len(told["head"]) != len(self.relations):
            raise ValueError(f"calibration of {len(told['head'])} relations")
        self.reflexive = frozenset(header.get("reflexive") or ())
        self.never = {kind: frozenset((header.get("unseen") or {}).get(kind, ())) for kind in ("entity", "relation")}
        self._triples, self._files, self._sound = triples, files, False
        self.folder: Path | None = None  # where it was opened

    # ---- asking -----------------------------------------------------------------------------------------------------
    def predict(
        self,
        *,
        typed: bool = False,
        candidates: Sequence[Any] | None = None,
        probability: bool = False,
        coverage: float | None = None,
        shortlist: int | None = None,
        **query: Any,
    ) -> Answers:
        """The best answers for the open place of a query, or of a batch: `asking.ask`.

        Args:
            probability: add that column: how likely an answer is true, as validation triples were; 1 where it is in the
                graph. What is true but not in the graph counted as false (`answer.calibration`).
            coverage: as many answers as a set needs that holds the missing one of a query with that probability, for
                the relation where validation had enough triples, else for the side. At most k, or 1,000 where k is left
                out; a log line, and `Answers.cut`, tell of sets that are larger.
            typed: only entities that were seen in that role of that relation in training.
            candidates: only these entities, labels or with by="id" ids.
            shortlist: coarse to fine, of a nested student: all entities are ranked by their first codes, and only so
                many of the best by all of them. Faster where entities are very many; an answer that the first codes put
                far behind is missed. None: all are ranked by all.
        Raises:
            ConfigError: as `asking.ask`; `new`, `typed`, `probability` and `coverage` where the student came without
                its triples; the latter two where it was never calibrated, or where the relation is asked for; a
                shortlist below k, of a student that is not nested, or beside coverage.
        """
        self.check()
        if shortlist is not None:
            self._check_shortlist(shortlist, query.get("k", 10), coverage, query.get("relation"))
        cuts: list[int] = []
        if probability or coverage is not None:
            if query.get("relation") is None:
                raise ConfigError("the relation is asked for: probability and coverage are of entities, leave them out")
            most = query.get("k", 10 if coverage is None else calibration.MOST)
            asking.check_count(most)
            query["judge"] = calibration.of(self).judge(self, probability, coverage, most, cuts)
            query["k"] = most + (coverage is not None)  # one more, to see what is cut
            _ = self.triples  # refuses at once
        allowed = None
        if typed or candidates is not None:
            listed = None
            if query.get("relation") is None:
                raise ConfigError(
                    "the relation is asked for: typed and candidates choose among entities, leave them out"
                )
            if typed:
                _ = self.triples  # refuses at once
            if candidates is not None:
                listed = asking.find_all(self, asking.plain(candidates), "entity", query.get("by", "label"))
            allowed = lambda relation, side: self._allowed(relation, side, typed, listed)
        if query.get("new"):
            _ = self.triples  # refuses at once
        if shortlist is not None:
            query["best"] = functools.partial(self.best, shortlist=shortlist)
        found = asking.ask(self, allowed=allowed, **query)
        found.cut = sum(cuts)
        return found

    def _check_shortlist(self, shortlist: int, k: int, coverage: float | None, relation: Any) -> None:
        """ConfigError where all entities cannot be ranked by their first codes, or must not be."""
        if relation is None:
            raise ConfigError("the relation is asked for: a shortlist is of entities, leave it out")
        if coverage is not None:
            raise ConfigError("coverage counts on all entities, and a shortlist misses some: leave one of them out")
        asking.check_count(k)
        asking.check_count(shortlist, "shortlist")
        if shortlist < k:
            raise ConfigError(
                f"shortlist is {shortlist:,}, and k is {k:,} answers of it: give a larger one, or a smaller k"
            )
        _ = self.weights.coarsest  # refuses at once

    def vectors(self, *, relation: Any, head: Any = None, tail: Any = None, by: asking.By = "label") -> Array:
        """Query vectors float32 [n, width] of (head, relation, ?) or (?, relation, tail), for an exported FAISS index.

        Lists of n labels, or one. Of codes the columns stand as their groups do, one after the other.

        Raises:
            ConfigError: not exactly one of head and tail, or an unknown label.
        """
        self.check()
        if (head is None) == (tail is None):
            raise ConfigError("give exactly one of head and tail: the other one is what is asked for")
        ids = []
        for kind, given in (("entity", tail if head is None else head), ("relation", relation)):
            listed = asking.plain(given)
            ids.append(asking.find_all(self, listed if isinstance(listed, list) else [listed], kind, by))
        found = self.weights.queries(*np.broadcast_arrays(*ids), "head" if head is None else "tail")
        return np.ascontiguousarray(found[:, self.weights.columns]) if self.weights.coded else found

    def similar(self, entity: Any, k: int = 10, *, by: asking.By = "label", unseen: bool = False) -> Answers:
        """The k entities whose embeddings point most nearly the same way: rank, entity, name, cosine.

        Raises:
            ConfigError: an unknown label or id, one that is unseen, or k < 1.
        """
        asking.check_count(k)
        self.check()
        at = asking.find(self, asking.plain(entity), "entity", by)
        if not unseen:
            asking.check_seen(self, np.array([at]), "entity")
        rows = self.weights.equation.rows
        own, count = rows(self.weights.rows(np.array([at])))[0], len(self.entities)
        cosine = np.empty(count, np.float32)
        for start in range(0, count, SLICE):
            part = rows(self.weights.rows(np.arange(start, min(start + SLICE, count))))
            size = np.linalg.norm(part, axis=1) * np.linalg.norm(own)
            cosine[start : start + len(part)] = part @ own / np.maximum(size, np.float32(1e-8))
        cosine[at] = -np.inf
        best = np.argsort(-cosine, kind="stable")[: min(k, count - 1)].tolist()
        return Answers(
            {
                "rank": list(range(1, len(best) + 1)),
                "entity": [self.entities[e] for e in best],
                "name": [self.readable(e) for e in best],
                "cosine": cosine[best].tolist(),
            }
        )

    def evaluate(self, split: str = "test") -> dict[str, dict[str, float]]:
        """Filtered metrics of a split of the graph's triples, as `Ranks.metrics`.

        Raises:
            ConfigError: no such split, or the triples are not at hand.
        """
        if split not in SPLITS:
            raise ConfigError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
        return self.ranks(self.triples.of(split)).metrics()

    def ranks(self, triples: Array) -> Ranks:
        """Filtered ranks of triples [n, 3] (ids) against every entity, head and tail side."""
        self.check()
        counts = np.empty((2, len(triples), 2), np.int32)
        for column, (side, anchor, target) in enumerate(SIDES):
            for i in range(0, len(triples), RANKED):
                part = triples[i : i + RANKED]
                known = [self.triples.answers(int(x[anchor]), int(x[1]), side) for x in part]
                queries = self.weights.queries(part[:, anchor], part[:, 1], side)
                found = self.weights.scanner.counts(queries, part[:, target], asking.places(known))
                counts[:, i : i + len(part), column] = np.stack(found)
        return Ranks(*counts)

    # ---- what `asking` wants to know --------------------------------------------------------------------------------
    def readable(self, entity: int) -> str:
        """A name a person can read; the label where no name is at hand."""
        name = self.names[entity] if self.names is not None else ""
        return name or self.entities[entity]

    def readable_all(self, ids: list[int], labels: list[str]) -> list[str]:
        """Names of entities by id; `labels` are theirs."""
        if self.names is None:
            return list(labels)
        return [name or label for name, label in zip(self.names.many(ids), labels)]

    def called(self, name: str, kind: str) -> int | None:
        """The one entity of that name, or of a name that goes on after a comma; the relation but for its underscores,
        or whose path ends so.

        Raises:
            ConfigError: several are called so.
        """
        if kind == "relation":
            written = lambda label: label.strip("_").replace("_", " ").casefold()
            labels = [written(label) for label in self.relations]
            found = [i for i, label in enumerate(labels) if label == written(name)]
            ending = f"/{written(name).lstrip('/')}"  # of a path, as Freebase has them
            found = found or [i for i, label in enumerate(labels) if label.endswith(ending)]
        elif self.names is None:
            return None
        else:
            found = self.names.all(name) or self.names.prefix(f"{name}, ", 6)
        if len(found) > 1:
            shown = lambda i: f"{self.entities[i]} ({self.readable(i)[:60]})"
            several = "; ".join(self.relations[i] if kind == "relation" else shown(i) for i in found[:5])
            raise ConfigError(f"several are called {name!r}: {several}{' …' * (len(found) > 5)}: give a label")
        return found[0] if found else None

    def nearest(self, text: str, kind: str) -> str | None:
        """The label, or else the readable name, that may have been meant."""
        near = (self.relations if kind == "relation" else self.entities).nearest(text)
        return self.names.nearest(text, ", ") if near is None and kind == "entity" and self.names else near

    def unseen(self, kind: str, ids: Array) -> Array:
        never = self.never[kind]
        return np.array([x in never for x in ids.tolist()], bool) if never else np.zeros(len(ids), bool)

    def known(self, anchor: int, relation: int, side: Side) -> Array:
        return self.triples.answers(anchor, relation, side)

    def known_relations(self, head: int, tail: int) -> list[int]:
        return self.triples.relations(head, tail)

    def best(
        self,
        anchor: Array,
        relation: Array,
        side: Side,
        k: int,
        leave_out: Places,
        allowed: Array | None,
        shortlist: int = 0,
    ) -> tuple[Array, Array]:
        queries = self.weights.queries(anchor, relation, side)
        if 0 < shortlist < self.weights.num_entities:
            coarse = self.weights.coarsest
            first = coarse.queries(anchor, relation, side)
            listed = coarse.scanner.top(first, shortlist, leave_out, allowed)[1]
            score, answer = self.weights.scanner.best_of(queries, listed, k)
        else:
            score, answer = self.weights.scanner.top(queries, k, leave_out, allowed)
        return score + np.float32(self.weights.equation.offset), answer

    def score_relations(self, head: int, tail: int) -> Array:
        return self.weights.score_relations(head, tail)

    # ---- smaller ----------------------------------------------------------------------------------------------------
    def shorter(self, size: int) -> Student:
        """The student of `size` bytes an entity, of one that was trained for several: its first codes, in memory.

        It has no folder until it is saved. What was measured of this one, and its calibration, are not the other's:
        `kgdistil calibrate` fits it anew.

        Raises:
            ConfigError: no such size.
        """
        self.check_all()
        arrays = {name: np.ascontiguousarray(x) for name, x in self.weights.shorter(size).items()}
        header = {name: x for name, x in self.header.items() if name != "files"}
        if size != self.weights.blocks.shape[1]:
            header = {name: x for name, x in header.items() if name not in ("about", "calibration")}
            header["about"] = {"cut": f"the first {size} of {self.weights.blocks.shape[1]} bytes an entity"}
        return Student(header, Weights(header, arrays), self.entities, self.names, self._triples, self._files)

    # ---- growing ----------------------------------------------------------------------------------------------------
    def add(self, triples: Any, *, save: bool = True, places: Sequence[str] | None = None) -> Answers:
        """Learn new entities from their triples: each gets the row, or the codes, that fit them; all others stay.

        The triples count as training from now on. A student that was opened from a folder replaces it in one move.

        Args:
            triples: rows of head, relation, tail: labels as they are to be kept (`kgdistil add` tidies those of a
                file), of entities also readable names that only one has.
            save: False leaves the folder as it is.
            places: of each triple, where it was read, for error lines.
        Returns:
            A row for each new entity: id, entity, triples (their number).
        Raises:
            ConfigError: no triples, something that is no triple of labels, or a relation that the student has not.
            BusyError: another process is changing the folder.
            KgdistilError: the folder cannot be written.
        """
        from kgdistil.answer import adding

        if self.folder is None or not save:
            grown, found = adding.grown(self, triples, places)
        elif published.is_published(self.folder, self.graph_sha256, self.graph):
            raise ConfigError(f"{self.folder} is a published student, which stays as it is: save it elsewhere first")
        else:
            with adding.alone(self.folder):
                recover(Path(os.path.realpath(self.folder)))
                before = load_student(self.folder)  # what another process has added meanwhile is kept
                grown, found = adding.grown(before, triples, places)
                if grown is not before:
                    grown.replace(self.folder)
                    grown = load_student(self.folder)
        self.__dict__ = grown.__dict__
        return found

    # ---- files ------------------------------------------------------------------------------------------------------
    @property
    def has_triples(self) -> bool:
        """Whether its folder holds them."""
        return isinstance(self._triples, Mapping)

    @property
    def triples(self) -> Triples:
        if isinstance(self._triples, Arrays):
            self._triples.check_unchanged()
        return self._sorted

    @functools.cached_property
    def _sorted(self) -> Triples:
        if self._triples is None:
            raise ConfigError(f"this student came without its triples ({TRIPLES}), which are needed here")
        if isinstance(self._triples, Arrays):
            self._triples.touch()
        found = self._triples() if callable(self._triples) else self._triples
        try:
            return Triples(found, len(self.entities), len(self.relations))
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"the student's triples are damaged ({str(error)[:200]}): {MEND}") from None

    def borrow(self) -> None:
        """Take what a published student came without from its data set, where that is at hand: names, and triples."""
        if self.names is None:
            self.names = published.names_of(self.graph, self.entities)
        if self._triples is None:
            self._triples = lambda: published.triples_of(self.graph, self.entities, self.relations)

    def save(self, folder: str | os.PathLike) -> None:
        """Write the student as a folder of format 2 or 3; one that is there is replaced in one move, other files stay.

        Raises:
            BusyError: another process is changing the folder. KgdistilError: it cannot be written.
        """
        folder = Path(folder).expanduser()
        with replacing(folder):
            self.replace(folder)

    def replace(self, folder: Path) -> None:
        """`save` for those who hold the folder's lock (`adding.alone`)."""
        self.check_all()
        replace_folder(folder, self._write, (*FILES, *format1.FILES))

    def _write(self, folder: Path) -> None:
        arrays: dict[str, Mapping[str, Array]] = {WEIGHTS: self.weights.arrays, LABELS: self.entities.arrays()}
        if self.names is not None and not published.is_published(folder, self.graph_sha256, self.graph):
            arrays[LABELS] = {**arrays[LABELS], **{f"names.{key}": x for key, x in self.names.arrays().items()}}
        if isinstance(self._triples, Mapping):
            arrays[TRIPLES] = self._triples
        (folder / CARD).write_text(self.card(), encoding="utf-8")
        files = {name: write_arrays(folder / name, x) for name, x in arrays.items()}
        write_header(folder, {**self.header, "files": files})

    def card(self) -> str:
        """The model card, in Markdown."""
        rank = f" and rank {self.rank}" if self.rank else ""
        size = self.weights.bytes
        lines = [
            f"# {self.model} of dimension {self.dim}{rank} on {self.graph}",
            "",
            f"A knowledge-graph embedding of {len(self.entities):,} entities and {len(self.relations):,} relations, "
            f"{self.precision}: {size:,} bytes of weights, which is what a budget counts; labels take "
            f"{sum(x.nbytes for x in self.entities.arrays().values()):,} more. Made by kgdistil.",
            "",
            f"- run: {self.run_id or 'not a run of kgdistil'}",
            f"- graph: SHA-256 {self.graph_sha256}",
        ]
        lines += [f"- {name}: {value}" for name, value in self.about.items() if isinstance(value, str | int | float)]
        for name, rows in self.about.items():
            if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
                table = markdown(rows[0], ([row.get(name, "") for name in rows[0]] for row in rows))
                lines += ["", f"## {name.capitalize()}", "", table]
        lines += [
            "",
            "Filtered ranks of the test triples, head and tail side together, realistic ties.",
            "",
            "```python",
            "import kgdistil",
            "",
            'student = kgdistil.load_student(".")',
            f"student.predict(head={self.entities[0]!r}, relation={self.relations[0]!r}, k=5)",
            "```",
            "",
        ]
        return "\n".join(lines)

    def packed(self) -> dict[str, Array]:
        """The weights as files of format 1 have them: a row for each entity."""
        self.check()
        arrays = dict(self.weights.arrays)
        return {**arrays, "entities": rows_of(arrays["entities"], self.weights.num_entities)}

    def labels(self) -> dict[str, Any]:
        """`entities`, `relations`, and `names` by label."""
        entities = self.entities.kept()
        names = {} if self.names is None else {label: name for label, name in zip(entities, self.names) if name}
        return {"entities": entities, "relations": tuple(self.relations), "names": names}

    def check_all(self) -> None:
        """Hold all numbers to their sums."""
        for file in self._files:
            file.unread[:] = b"\1" * len(file.unread)  # what was right when it was opened may not be so now
            file.touch()
        self.check()

    def check(self) -> None:
        """Hold the numbers to their sums before they are first used, and the files to their sizes."""
        for file in self._files:
            file.check_unchanged()
        if self._files and not self._sound:
            self._files[0].touch()
            if not self.weights.finite():
                raise CheckpointError(f"{self._files[0].path}: its numbers are not finite: {MEND}")
            self._sound = True

    def _allowed(self, relation: int, side: Side, typed: bool, listed: Array | None) -> Array:
        """A bitmap uint64 [⌈E/64⌉] of the entities that may come."""
        found = np.zeros(-(-len(self.entities) // 64) * 64, bool)
        if typed:
            found[self.triples.seen(relation, side)] = True
        if listed is not None:
            within = np.zeros_like(found)
            within[listed] = True
            found = found & within if typed else within
        return np.packbits(found, bitorder="little").view("<u8")


def load_student(folder: str | os.PathLike) -> Student:
    """A student's folder, opened: of format 2 or 3 where it lies, of format 1 read into memory.

    Args:
        folder: or the name of a published student, in a checkout.
    Raises:
        CheckpointError: missing, damaged, of a newer version, or put together from two students.
    """
    folder = located(folder)
    if os.path.isfile(folder / HEADER):
        student = open_whole(folder)
        if published.is_published(folder, student.graph_sha256, student.graph):
            student.borrow()
    else:
        student = read_format1(folder)
    student.folder = folder
    return student


def located(folder: str | os.PathLike) -> Path:
    """The folder of a student, or of a published one by its name; CheckpointError where there is none."""
    folder = published.found(folder)
    if not holds_student(folder):
        what = f"holds no student: {HEADER} is not there" if os.path.isdir(folder) else "is not there"
        there = published.names()
        named = f", or a published student: {', '.join(there)}" if there else ""
        raise CheckpointError(f"{folder} {what}; name a student's folder{named}")
    return folder


def read_format1(folder: Path) -> Student:
    """A folder of format 1, in memory."""
    packed, about = format1.read_tensors(folder / format1.WEIGHTS)
    version = about.get("version")
    if not isinstance(version, int):
        raise CheckpointError(f"{folder / format1.WEIGHTS} holds no model; name a folder that holds a student")
    if version > format1.VERSION:
        told = f"{folder} has version {short(version)}; this kgdistil reads up to {format1.VERSION}"
        raise CheckpointError(f"{told}: update it")
    labels = format1.read_labels(folder, about)
    split = format1.read_triples(folder / format1.TRIPLES, about)
    header = {"precision": "float32", "rank": 0, **about, "relations": list(labels["relations"])}
    header.pop("calibration", None)  # of later formats alone
    try:
        if packed["entities"].shape[:1] != (about["num_entities"],) or packed["entities"].ndim != 2:
            raise ValueError("the sizes differ")
        if split is not None:
            header |= seen(split["train"], about["num_entities"], about["num_relations"])
        weights = Weights(header, layout(packed))
        if not weights.finite():
            raise ValueError("its numbers are not finite")
    except (LookupError, TypeError, ValueError) as error:
        reason = f"{folder / format1.WEIGHTS} does not hold the model it describes"
        raise CheckpointError(f"{reason} ({' '.join(str(error).split())}); train it again") from None
    names = [labels["names"].get(label, "") for label in labels["entities"]] if labels["names"] else None
    sorted_ = None
    if split is not None:
        parts = [np.full(len(split[x]), i, np.uint8) for i, x in enumerate(SPLITS)]
        sorted_ = triple_arrays(np.concatenate(list(split.values())), np.concatenate(parts), about["num_relations"])
    return Student(header, weights, Labels.of(labels["entities"]), None if names is None else Labels.of(names), sorted_)


def labels_of(arrays: Mapping[str, Array], prefix: str) -> Labels:
    """Labels by what `Labels.arrays` named their arrays."""
    text, offsets, order = (arrays.get(prefix + name) for name in ("text", "offsets", "order"))
    if text is None or offsets is None:
        raise ValueError("no labels")
    if isinstance(arrays, Arrays) and arrays.handle is None:
        arrays.touch()
    if not isinstance(arrays, Arrays) or arrays.handle is None:
        return Labels(text, offsets, order)
    first, begin, file = arrays.offset(prefix + "offsets"), arrays.offset(prefix + "text"), arrays

    def touch(number: int, start: int, end: int) -> None:
        file.touch(first + 8 * number, first + 8 * number + 16)
        file.touch(begin + start, begin + end)

    try:
        return Labels(text, offsets, order, touch)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from None


def holds_student(folder: Path) -> bool:
    """Whether a folder holds a student, of any format."""
    return any(os.path.isfile(folder / name) for name in (HEADER, format1.WEIGHTS))


def replacing(folder: Path) -> contextlib.AbstractContextManager[None]:
    """`adding.alone` with a student that a folder holds; BusyError where another process changes it."""
    from kgdistil.answer import adding

    return adding.alone(folder) if holds_student(folder) and os.access(folder, os.W_OK) else contextlib.nullcontext()


def half_saved(folder: Path) -> bool:
    """Whether all that a folder holds is what a killed `Student.save` leaves where it cannot replace the folder."""
    there, names = {path.name for path in folder.iterdir()}, (*FILES, *format1.FILES)
    scratch = {name for name in there if name.startswith(tuple(f".{x}." for x in (*names, folder.name)))}
    return there - scratch <= {*names} - {HEADER, format1.WEIGHTS} and (there - scratch != {CARD})


def seen(train: Array, entities: int, relations: int) -> dict[str, Any]:
    """What the header says of training triples [n, 3]: reflexive relations, and who stands in none, by id."""
    if not len(train):
        return {}
    there = {"entity": np.zeros(entities, bool), "relation": np.zeros(relations, bool)}
    there["entity"][train[:, [0, 2]]] = there["relation"][train[:, 1]] = True
    never = {kind: np.flatnonzero(~x).tolist() for kind, x in there.items()}
    reflexive = np.unique(train[train[:, 0] == train[:, 2], 1]).tolist()
    return {"reflexive": reflexive, "unseen": {kind: ids for kind, ids in never.items() if ids}}


def open_whole(folder: Path) -> Student:
    """`open_folder`, once more where the folder was replaced meanwhile, so that its files are not of one student."""
    stamp = lambda: (found := os.stat(folder / HEADER)) and (found.st_ino, found.st_mtime_ns)
    for _ in range(RETRIES):
        before = stamp()
        try:
            student = open_folder(folder)
        except CheckpointError:
            if stamp() == before:
                raise
        else:
            if stamp() == before:
                return student
    return open_folder(folder)


def open_folder(folder: Path) -> Student:
    """A folder of format 2 or 3."""
    header = read_header(folder)
    try:
        there = {name: about for name, about in header["files"].items() if name != TRIPLES or (folder / name).exists()}
        files = {name: Arrays(folder / name, about) for name, about in there.items()}
        weights, labels = files[WEIGHTS], files[LABELS]
        found = Weights(header, weights)
        entities = labels_of(labels, "")
        names = labels_of(labels, "names.") if "names.text" in labels else None
        if len(entities) != found.num_entities or (names is not None and len(names) != len(entities)):
            raise CheckpointError(f"{folder / LABELS} and {WEIGHTS} are of different sizes: {MEND}")
        return Student(
            header,
            found,
            entities,
            names,
            files.get(TRIPLES),
            (weights, *(x for x in files.values() if x is not weights)),
        )
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{folder / HEADER} is damaged ({' '.join(str(error).split())[:200]}): {MEND}") from None
