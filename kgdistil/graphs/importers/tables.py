"""Tables of numbers with labels, as a model of a graph: rows in the graph's order, whatever the other library's was."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kgdistil.errors import CheckpointError, ConfigError, DataError
from kgdistil.graph import Graph
from kgdistil.graphs import labels
from kgdistil.graphs.labels import show, tidy
from kgdistil.models import MODELS, KGEModel, TransH, build_model, kind_of

Labels = tuple[Sequence[str], Sequence[str]]  # of entities and relations, in the order of their rows


class FreeTransH(TransH):
    """TransH as PyKEEN 1.11 computes it: the vector w that stands for the normal has any length, and is not scaled.

    For teachers that were trained there, and not a model to train here.
    """

    comparison = "hyperplane"

    @staticmethod
    def parts(r: Tensor) -> tuple[Tensor, Tensor]:
        translation, normal = r.chunk(2, dim=-1)
        return translation, normal


@dataclass
class Imported:
    """A model in the graph's numbering, where it comes from, and what was counted on the way."""

    model: KGEModel
    source: str
    notes: list[str] = field(default_factory=list)


def from_tables(
    name: str, tables: Mapping[str, Tensor], words: Labels, graph: Graph, source: str, **options: Any
) -> Imported:
    """Build the model and put its rows into the graph's order.

    Args:
        tables: entities [E, width] and relations [R, width] in this package's layout, and the `map` of a low rank.
        options: `norm`, `offset`, `epsilon` of the model.
    Raises:
        ConfigError: the teacher lacks entities or relations of the graph, with how many and which.
        CheckpointError: the tables are not those of such a model.
    """
    rows, notes = aligned(tables, words, graph, source)
    return Imported(build(name, rows, source, **options), source, notes)


def aligned(
    tables: Mapping[str, Tensor], words: Labels, graph: Graph, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The rows of a graph's entities and relations, float32, in its order, and what is to be said of the others."""
    rows, notes = dict(tables), []
    for what, given, wanted in zip(("entities", "relations"), words, (graph.entities, graph.relations)):
        there = [str(label) for label in given]
        index = {label: i for i, label in enumerate(there)}
        if len(there) != len(tables[what]) or len(index) != len(there):
            raise CheckpointError(
                f"{source}: {len(tables[what])} {what} with {len(there)} labels, {len(index)} of "
                "them different; each needs one label of its own"
            )
        plain = {tidy(label): i for i, label in enumerate(there)}  # as the graph's were made, which look the same
        if len(plain) == len(there):
            index = plain | index
        if missing := [label for label in wanted if label not in index]:
            example = show(", ".join(missing[:3]))
            raise ConfigError(
                f"{source} does not know {len(missing):,} of the {len(wanted):,} {what} of {graph.name}, such as "
                f"{example}; it knows {show(', '.join(there[:3]))}: give the graph it was trained on, with its labels"
            )
        rows[what] = tables[what][torch.tensor([index[label] for label in wanted])].float()
        if extra := len(there) - len(wanted):
            notes.append(f"{extra:,} of the teacher's {len(there):,} {what} do not occur in {graph.name}: left out")
        if not torch.isfinite(rows[what]).all():
            raise CheckpointError(f"{source}: the {what} hold NaN or infinity; its training diverged")
    return rows, notes


def kind_named(name: str, source: str) -> type[KGEModel]:
    """The class of a model's name; CheckpointError where none can be imported."""
    kind = kind_of(str(name))
    if kind is None:
        raise CheckpointError(f"{source}: a {show(str(name))} cannot be imported; {', '.join(MODELS)} can")
    return kind


def build(name: str, rows: Mapping[str, Tensor], source: str, **options: Any) -> KGEModel:
    """The model of tables in this package's layout.

    Raises:
        CheckpointError: their widths are not those of such a model.
    """
    kind = kind_named(name, source)
    width, relation_width = rows["entities"].shape[1], rows["relations"].shape[1]
    dim, rest = divmod(relation_width, kind.relation_factor)
    if kind.factored:
        options["rank"] = width
        fits = "map" in rows and rows["map"].shape == (width, dim * kind.entity_factor)
    else:
        fits = width == dim * kind.entity_factor
    if rest or not fits or not dim:
        raise CheckpointError(
            f"{source}: rows of {width} and {relation_width} numbers are not those of a {kind.__name__}"
        )
    model = build_model(kind.__name__, len(rows["entities"]), len(rows["relations"]), dim, **options)
    model.load_state_dict({name: table.float() for name, table in rows.items()})
    return model


def find_labels(*folders: Path | None) -> Labels:
    """Labels by row from the first folder that has another library's tables of them (`labels.TABLES`).

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    try:
        for folder in folders:
            if folder is not None and (found := labels.find_tables(folder)) is not None:
                return labels.in_order(found[0]), labels.in_order(found[1])
    except DataError as error:
        raise CheckpointError(str(error)) from None
    where = " or ".join(str(folder) for folder in folders if folder is not None)
    files = ", ".join(f"{first} and {second}" for first, (second, _) in labels.TABLES.items())
    raise CheckpointError(
        f"no labels in {where}: copy one of these pairs there, or name their folder with --labels (labels=): {files}"
    )


def as_complex(x: Tensor) -> Tensor:
    """Real and imaginary parts in turn [n, 2·d], as complex numbers [n, d]; complex ones as they are."""
    return x if x.is_complex() else torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2).contiguous())


def halves(x: Tensor) -> Tensor:
    """Complex numbers [n, d], or their parts in turn [n, 2·d], as [real | imaginary] [n, 2·d]."""
    x = as_complex(x)
    return torch.cat([x.real, x.imag], dim=1)


def stored_angles(angle: Tensor, epsilon: float = 2.0) -> Tensor:
    """RotatE's stored relations for angles [n, d]: offset 0 and ε = 2, the defaults of `build_model`."""
    angle = torch.remainder(angle.double() + math.pi, 2 * math.pi) - math.pi
    return (angle * (epsilon / angle.shape[1] / math.pi)).float()


def reason_of(error: Exception) -> str:
    """What another library's error says, in one line."""
    return str(getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__)


def a_file(path: str | os.PathLike) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # "~nobody"
        return Path(path)
