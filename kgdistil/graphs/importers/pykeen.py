"""Teachers of PyKEEN: a model object, or the folder that `PipelineResult.save_to_directory` wrote.

Its `trained_model.pkl` is a pickle, which can run anything: it is refused unless the caller says that it is to be
trusted.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kgdistil.errors import CheckpointError, ConfigError, needs
from kgdistil.graph import Graph
from kgdistil.graphs.importers.tables import Imported, as_complex, from_tables, halves, stored_angles
from kgdistil.graphs.labels import show, unquoted

PYKEEN_MODEL, PYKEEN_TRIPLES = "trained_model.pkl", "training_triples"
TOLERANCE = 1e-3  # what a length that the other library keeps at 1 may be off


def from_pykeen(model: Any, graph: Graph, factory: Any, source: str = "PyKEEN") -> Imported:
    """A PyKEEN model object: TransE, TransH, ComplEx, RotatE or DistMult. Its scores are PyKEEN's own.

    Args:
        factory: its triples factory, or (entity_to_id, relation_to_id).
    Raises:
        ConfigError: another model, or one that this package's equations do not cover.
    """
    maps = factory if isinstance(factory, tuple) else (factory.entity_to_id, factory.relation_to_id)
    labels = [[label for label, _ in sorted(table.items(), key=lambda item: item[1])] for table in maps]
    interaction = type(getattr(model, "interaction", None)).__name__.removesuffix("Interaction")
    if interaction not in ("TransE", "TransH", "ComplEx", "RotatE", "DistMult"):
        raise ConfigError(
            f"{source}: PyKEEN's {type(model).__name__} cannot be imported; TransE, TransH, ComplEx, "
            "RotatE and DistMult can"
        )
    if getattr(model, "use_inverse_triples", False):
        raise ConfigError(
            f"{source}: it was trained with inverse triples, so its head and tail side are two models; "
            "train it without create_inverse_triples"
        )
    norm, options = 2 if interaction == "RotatE" else getattr(model.interaction, "p", 1), {}  # its RotatE ignores p
    if interaction in ("TransE", "TransH", "RotatE"):
        if norm not in (1, 2) or model.interaction.power_norm:
            power = f"norm {norm}{', to that power' if model.interaction.power_norm else ''}"
            raise ConfigError(f"{source}: its distance is {power}; norms 1 and 2 can be imported")
        options = {"norm": int(norm)}
    training = model.training
    model.eval()  # no dropout
    try:
        with torch.no_grad():
            (entities,), relations = (
                [part(indices=None).detach().cpu() for part in parts]
                for parts in (model.entity_representations, model.relation_representations)
            )
    except ValueError:
        raise ConfigError(f"{source}: an entity has several representations; such a model cannot be imported") from None
    finally:
        model.train(training)
    if interaction == "TransH":
        normal, translation = relations  # in the order in which its equation takes them apart
        relation, interaction = torch.cat([translation, normal], dim=1), "FreeTransH"
    elif interaction == "RotatE":
        _unit(as_complex(relations[0]).abs(), f"{source}: the rotations")
        relation = stored_angles(as_complex(relations[0]).angle())
        entities = halves(entities)
    elif interaction == "ComplEx":
        relation, entities = halves(relations[0]), halves(entities)
    else:
        relation = relations[0]
    tables = {"entities": entities, "relations": relation}
    return from_tables(interaction, tables, (labels[0], labels[1]), graph, source, **options)


def read_pykeen(folder: Path, graph: Graph, trust_pickle: bool) -> Imported:
    """What `PipelineResult.save_to_directory` wrote."""
    if not trust_pickle:
        raise CheckpointError(
            f"{folder / PYKEEN_MODEL} is a pickle, which can run any code when it is read: if it is your own or from "
            "someone you trust, say so with --trust-pickle (trust_pickle=True in Python)"
        )
    maps = []
    for what in ("entity", "relation"):
        path = folder / PYKEEN_TRIPLES / f"{what}_to_id.tsv.gz"
        try:
            with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
                head, *lines = file.read().removesuffix("\n").split("\n")
            if head.rstrip("\r") != "id\tlabel":
                raise ValueError(f"the first line is {show(head)}")
            pairs = (line.removesuffix("\r").split("\t", 1) for line in lines)
            maps.append({unquoted(label): int(number) for number, label in pairs})
        except (OSError, EOFError, ValueError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            raise CheckpointError(f"cannot read {path}: {reason}; save the result folder from PyKEEN again") from None
    with needs("pykeen", "reading a PyKEEN model"):
        import pykeen.models  # noqa: F401 - whether it is there
    try:
        model = torch.load(folder / PYKEEN_MODEL, map_location="cpu", weights_only=False)
    except Exception as error:  # noqa: BLE001 - whatever a pickle raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"cannot read {folder / PYKEEN_MODEL}: {reason}; save it from PyKEEN again") from None
    return from_pykeen(model, graph, tuple(maps), f"PyKEEN, {folder}")


def _unit(length: Tensor, what: str) -> None:
    worst = float((length - 1).abs().max())
    if not worst < TOLERANCE:
        raise ConfigError(
            f"{what} should have length 1 and are off by up to {worst:.2g}; this variant cannot be imported"
        )
