"""A model with its graph, saved as a student's folder, which answers by itself (`kgdistil.answer`)."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kgdistil.answer import format1
from kgdistil.answer.answers import Answers
from kgdistil.answer.calibration import NONE
from kgdistil.answer.folder import replace_folder
from kgdistil.answer.format import HEADER, LABELS, layout
from kgdistil.answer.format1 import FILES, TRIPLES
from kgdistil.answer.labels import Labels
from kgdistil.answer.student import Student, load_student, located, replacing, seen
from kgdistil.answer.triples import arrays as triple_arrays
from kgdistil.answer.weights import Weights
from kgdistil.checkpoint import read_labelled, save_model, write_tensors
from kgdistil.compress import packing
from kgdistil.compress.scan import CodedRanker
from kgdistil.errors import ConfigError, ForeignModelError
from kgdistil.evaluation import KnownTriples, evaluate
from kgdistil.graph import SPLITS, Graph
from kgdistil.models import KGEModel, kind_of
from kgdistil.students import predict as answers
from kgdistil.students.calibration import fit

log = logging.getLogger("kgdistil")


@dataclass
class Labelled:
    """A model that knows its labels. `graph` has no triples where the folder holds none.

    `precision` is what `save` writes; the model's float32 numbers are those of a file of that precision.
    `about`: JSON values: where it comes from, its run, its metrics by precision. `calibration`: what `calibrate` fits.
    """

    model: KGEModel
    graph: Graph
    precision: str = "float32"
    run_id: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None

    @property
    def has_triples(self) -> bool:
        return len(self.graph.train) > 0

    def predict(self, *, new: bool = False, **query: Any) -> pd.DataFrame:
        """`kgdistil.predict` for this model; `new` leaves out the triples of the graph, which needs them.

        `probability` and `coverage` are those of `Student.predict`.

        Raises:
            ConfigError: as `kgdistil.predict`, and `new` where the triples are not at hand.
        """
        if query.get("probability") or query.get("coverage") is not None:
            if self.calibration is None:
                raise ConfigError(NONE)
            return self.student().predict(new=new, **query).to_pandas()
        query = {name: x for name, x in query.items() if name not in ("probability", "coverage")}
        known = self._known if new else None
        return answers.predict(self.model, self.graph, known=known, ranker=self._ranker, **query)

    def similar(self, entity: str | int, k: int = 10, **how: Any) -> pd.DataFrame:
        """The k most similar entities: `kgdistil.students.predict.similar`."""
        return answers.similar(self.model, self.graph, entity, k, **how)

    def evaluate(self, split: str = "test") -> dict[str, dict[str, float]]:
        """Filtered metrics of a split of the graph's triples, as `Ranks.metrics`.

        Raises:
            ConfigError: no such split, or the triples are not at hand.
        """
        if split not in SPLITS:
            raise ConfigError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
        return evaluate(self.model, self.graph, split, known=self._known).metrics()

    def quantised(self, precision: str) -> Labelled:
        """The same student at another precision."""
        model = packing.quantised(self.model, precision)
        return replace(self, model=model, precision=precision, calibration=None)

    def calibrate(self) -> None:
        """Fit `calibration` on the validation triples, or say in a log line why it cannot be."""
        try:
            self.calibration = fit(self.student())
        except (ConfigError, ForeignModelError) as error:
            log.info("no calibrated probabilities: %s", error)

    def student(self) -> Student:
        """The same as it answers without PyTorch, in memory: what `save` writes.

        Raises:
            ForeignModelError: a model of one's own, whose equation `kgdistil.answer` does not know.
        """
        model, graph = self.model, self.graph
        if kind_of(type(model).__name__) is not type(model):
            raise ForeignModelError(f"{type(model).__name__} is no model that answers without PyTorch")
        header, triples = self.header(), None
        if self.has_triples:
            header |= seen(graph.train.numpy(force=True), graph.num_entities, graph.num_relations)
            split = np.repeat(np.arange(len(SPLITS)), [len(getattr(graph, split)) for split in SPLITS])
            triples = triple_arrays(graph.known.numpy(force=True), split, graph.num_relations)
        packed = {name: x.numpy(force=True) for name, x in packing.pack(model, self.precision).items()}
        names = [graph.descriptions.get(label, "") for label in graph.entities] if graph.descriptions else None
        weights = Weights(header, layout(packed))
        return Student(header, weights, Labels.of(graph.entities), None if names is None else Labels.of(names), triples)

    def header(self) -> dict[str, Any]:
        """What `student.json` says, but for the files."""
        model, graph = self.model, self.graph
        sizes = ("dim", "norm", "offset", "epsilon", "num_entities", "num_relations", "rank")
        header: dict[str, Any] = {"model": type(model).__name__, **{name: getattr(model, name) for name in sizes}}
        header |= {"precision": self.precision, "graph": graph.name, "graph_sha256": graph.sha256}
        header |= {} if self.calibration is None else {"calibration": self.calibration}
        return header | {"run_id": self.run_id, "about": self.about, "relations": list(graph.relations)}

    def save(self, folder: str | os.PathLike) -> None:
        """A folder that `kgdistil.load_student` opens, and `load_model`; a model of one's own is for `load_labelled`.

        A student that the folder holds is replaced in one move, other files in it stay.

        Raises:
            BusyError: another process is changing the folder. KgdistilError: it cannot be written.
        """
        try:
            self.student().save(folder)
        except ForeignModelError:
            with replacing(folder := Path(folder).expanduser()):
                replace_folder(folder, self._write, (*FILES, LABELS, HEADER))

    def _write(self, folder: Path) -> None:
        if self.has_triples:
            parts = {split: getattr(self.graph, split).to(torch.int32) for split in SPLITS}
            write_tensors(folder / TRIPLES, parts, {"graph_sha256": self.graph.sha256})
        save_model(folder, self.model, self.graph, self.run_id, precision=self.precision, about=self.about)

    @functools.cached_property
    def _ranker(self) -> CodedRanker | None:
        """Codes are scanned as they are, which is several times faster than scoring the numbers they stand for.

        One log line for a student whose codes cannot be.
        """
        if self.precision not in (*packing.GROUPS, packing.NESTED):
            return None
        try:
            return CodedRanker(self.model, *packing.encode(self.model, self.precision))
        except ConfigError as error:  # a model without tables, or of a single group
            log.warning("its codes cannot be scanned, so its float32 numbers are, which is slower: %s", error)
            return None

    @functools.cached_property
    def _known(self) -> KnownTriples:
        if not self.has_triples:
            raise ConfigError(f"this student came without its triples ({TRIPLES}), which are needed here")
        return KnownTriples(self.graph.known, self.graph.num_relations)


class Own(Student):
    """A student of a class of one's own, which PyTorch scores: for the commands."""

    def __init__(self, labelled: Labelled):
        graph, header = labelled.graph, labelled.header()
        super().__init__(header, None, Labels.of(graph.entities))
        self.labelled = labelled

    def predict(
        self, *, typed: bool = False, candidates: Any = None, shortlist: int | None = None, **query: Any
    ) -> Answers:
        if typed or candidates is not None or shortlist is not None:
            how = "typed, candidates and shortlist"
            raise ConfigError(f"{self.model} is no model of this package: it answers without {how}")
        return Answers.of(self.labelled.predict(**query).to_dict("records"))

    def similar(self, entity: Any, k: int = 10, **how: Any) -> Answers:
        return Answers.of(self.labelled.similar(entity, k, **how).to_dict("records"))

    def evaluate(self, split: str = "test") -> dict[str, dict[str, float]]:
        return self.labelled.evaluate(split)


def open_own(folder: str | os.PathLike) -> Student:
    """A student of a class of one's own, which `kgdistil.load_student` refuses."""
    return Own(load_labelled(folder))


def load_labelled(folder: str | os.PathLike) -> Labelled:
    """The model and graph of a student's folder, of any format.

    Raises:
        CheckpointError: missing, damaged, of a newer version, or put together from two students.
    """
    folder = located(folder)
    model, about, labels = read_labelled(folder)
    if (folder / HEADER).is_file():
        found = load_student(folder)
        parts = {split: found.triples.of(split) for split in SPLITS} if found.has_triples else None
    else:
        parts = format1.read_triples(folder / TRIPLES, dict(about))
    nothing = np.empty((0, 3), np.int64)
    train, valid, test = (torch.from_numpy((parts[x] if parts else nothing).astype(np.int64)) for x in SPLITS)
    sha256, extra = str(about.get("graph_sha256")), about.get("about")
    graph = Graph(
        str(about.get("graph")), train, valid, test, labels["entities"], labels["relations"], sha256, labels["names"]
    )
    kept = extra if isinstance(extra, dict) else {}
    precision, run_id = about.get("precision", "float32"), about.get("run_id")
    return Labelled(model, graph, precision, run_id, kept, about.get("calibration"))
