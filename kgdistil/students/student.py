"""A student to take away: a model with its labels and its numbers, saved in one folder that answers by itself."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kgdistil.answer.folder import replace_folder
from kgdistil.answer.rendering import markdown
from kgdistil.checkpoint import DESCRIPTION, WEIGHTS, read_labelled, read_tensors, save_model, write_tensors
from kgdistil.compress import packing
from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.evaluation import KnownTriples, evaluate
from kgdistil.files import write_text
from kgdistil.graph import SPLITS, Graph
from kgdistil.models import KGEModel
from kgdistil.students import predict as answers
from kgdistil.students.scan import CodedRanker

log = logging.getLogger("kgdistil")
TRIPLES, CARD = "triples.safetensors", "README.md"
FILES = (TRIPLES, DESCRIPTION, CARD, WEIGHTS)  # the weights last: where they are, all is


@dataclass
class Student:
    """A model that knows its labels. `graph` has no triples where the folder holds none.

    `precision` is what `save` writes; the model's float32 numbers are those of a file of that precision.
    `about`: JSON values: where it comes from, its run, its metrics by precision.
    """

    model: KGEModel
    graph: Graph
    precision: str = "float32"
    run_id: str | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def has_triples(self) -> bool:
        return len(self.graph.train) > 0

    def predict(self, *, new: bool = False, **query: Any) -> pd.DataFrame:
        """`kgdistil.predict` for this student; `new` leaves out the triples of the graph, which needs them.

        Raises:
            ConfigError: as `kgdistil.predict`, and `new` where the triples are not at hand.
        """
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

    def quantised(self, precision: str) -> Student:
        """The same student at another precision."""
        return replace(self, model=packing.quantised(self.model, precision), precision=precision)

    def save(self, folder: str | os.PathLike) -> None:
        """Weights, label tables, triples and a card in `folder`; `load_student` reads them, `load_model` the weights.

        A student that the folder holds is replaced in one move, other files in it stay.

        Raises:
            KgdistilError: the folder cannot be written.
        """
        replace_folder(Path(folder).expanduser(), self._write, FILES)

    def _write(self, folder: Path) -> None:
        if self.has_triples:
            parts = {split: getattr(self.graph, split).to(torch.int32) for split in SPLITS}
            write_tensors(folder / TRIPLES, parts, {"graph_sha256": self.graph.sha256})
        save_model(folder, self.model, self.graph, self.run_id, precision=self.precision, about=self.about)
        write_text(folder / CARD, self.card())

    def card(self) -> str:
        """The model card, in Markdown."""
        model, graph = self.model, self.graph
        rank = f" and rank {model.rank}" if hasattr(model, "rank") else ""
        lines = [
            f"# {type(model).__name__} of dimension {model.dim}{rank} on {graph.name}",
            "",
            f"A knowledge-graph embedding of {model.num_entities:,} entities and {model.num_relations:,} relations, "
            f"{self.precision}: {packing.size(model, self.precision):,} bytes of weights. Made by kgdistil.",
            "",
            f"- run: {self.run_id or 'not a run of kgdistil'}",
            f"- graph: SHA-256 {graph.sha256}",
        ]
        lines += [f"- {name}: {value}" for name, value in self.about.items() if isinstance(value, str | int | float)]
        for name, rows in self.about.items():
            if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
                lines += [
                    "",
                    f"## {name.capitalize()}",
                    "",
                    markdown(rows[0], ([row.get(name, "") for name in rows[0]] for row in rows)),
                ]
        lines += [
            "",
            "Filtered ranks of the test triples, head and tail side together, realistic ties.",
            "",
            "```python",
            "import kgdistil",
            "",
            'student = kgdistil.load_student(".")',
            f"student.predict(head={graph.entities[0]!r}, relation={graph.relations[0]!r}, k=5)",
            "```",
            "",
        ]
        return "\n".join(lines)

    @functools.cached_property
    def _ranker(self) -> CodedRanker | None:
        """Codes are scanned as they are, which is several times faster than scoring the numbers they stand for.

        One log line for a student whose codes cannot be.
        """
        if self.precision not in packing.GROUPS:
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


def half_saved(folder: Path) -> bool:
    """Whether all that a folder holds is what a killed `Student.save` leaves where it cannot replace the folder."""
    there = {path.name for path in folder.iterdir()}
    scratch = {name for name in there if name.startswith(tuple(f".{x}." for x in (*FILES, f"{folder.name}")))}
    return there - scratch <= {*FILES[:-1]} and (CARD not in there or DESCRIPTION in there)


def load_student(folder: str | os.PathLike) -> Student:
    """What `Student.save` or `save_model` wrote.

    Raises:
        CheckpointError: missing, damaged, of a newer version, or put together from two students.
    """
    model, about, labels = read_labelled(folder)
    train, valid, test = _read_triples(Path(folder) / TRIPLES, model, about.get("graph_sha256"))
    sha256, extra = str(about.get("graph_sha256")), about.get("about")
    graph = Graph(
        str(about.get("graph")), train, valid, test, labels["entities"], labels["relations"], sha256, labels["names"]
    )
    kept = extra if isinstance(extra, dict) else {}
    return Student(model, graph, about.get("precision", "float32"), about.get("run_id"), kept)


def _read_triples(path: Path, model: KGEModel, sha256: Any) -> list[torch.Tensor]:
    """The three splits, int64 [n, 3]; empty ones where there is no file."""
    if not path.is_file():
        return [torch.empty(0, 3, dtype=torch.int64) for _ in SPLITS]
    tensors, about = read_tensors(path)
    if about.get("graph_sha256") != sha256:
        raise CheckpointError(f"{path} and {WEIGHTS} are of two different graphs; copy both from one folder")
    sizes = torch.tensor([model.num_entities, model.num_relations, model.num_entities])
    for split in SPLITS:
        x = tensors.get(split)
        if x is None or x.dtype != torch.int32 or x.ndim != 2 or x.shape[1] != 3 or ((x < 0) | (x >= sizes)).any():
            raise CheckpointError(f"{path} is damaged: {split} holds no triples of this graph; train the student again")
    return [tensors[split].long() for split in SPLITS]
