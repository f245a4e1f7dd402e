"""Teachers trained elsewhere: PyKEEN, LibKGE, or plain arrays with labels, as a model of one's own graph.

Rows are put into the graph's order by label, so nothing depends on how the other library numbered them. Reading never
runs code that a file brings: arrays are read without pickle, LibKGE's checkpoints with torch's weights-only loading.
PyKEEN's `trained_model.pkl` is a pickle, which can run anything: it is refused unless the caller says that it is to be
trusted.
"""

from __future__ import annotations

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgdistil.checkpoint import WEIGHTS, read_labelled
from kgdistil.errors import CheckpointError, ConfigError, needs
from kgdistil.graph import Graph
from kgdistil.graphs.labels import show
from kgdistil.models import MODELS, KGEModel, TransH, build_model

PYKEEN_MODEL, PYKEEN_TRIPLES = "trained_model.pkl", "training_triples"
INERT = "kge.config.Config"  # the one class a LibKGE checkpoint names; an empty shell stands in for it
TOLERANCE = 1e-3  # what a length that the other library keeps at 1 may be off


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


def import_teacher(
    source: str | os.PathLike, graph: Graph, *, model: str | None = None, trust_pickle: bool = False
) -> Imported:
    """A teacher from a file or folder of any known kind.

    Args:
        source: a result folder of PyKEEN, a checkpoint of LibKGE (.pt), an .npz, or a folder of this package.
        model: what an .npz without that entry holds.
        trust_pickle: the file comes from oneself or someone trusted: a pickle may run code.
    Raises:
        CheckpointError, ConfigError: one line that says what is wrong and what to do.
    """
    path = Path(source).expanduser()
    if (path / WEIGHTS).is_file():
        found, _, labels = read_labelled(path)
        tables = {"entities": found.entities.detach(), "relations": found.relations.detach()}
        options = {name: getattr(found, name) for name in ("norm", "offset", "epsilon")}
        kind, source = type(found).__name__, f"kgdistil, {path}"
        return from_tables(kind, tables, labels["entities"], labels["relations"], graph, source, **options)
    if (path / PYKEEN_MODEL).is_file():
        return _pykeen_folder(path, graph, trust_pickle)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _npz(path, graph, model)
    if path.suffix.lower() == ".pt" and path.is_file():
        return _libkge(path, graph)
    raise CheckpointError(
        f"{path} is no teacher: it must be a folder with {PYKEEN_MODEL} (PyKEEN) or {WEIGHTS} (kgdistil), a .pt file "
        "(LibKGE) or an .npz"
    )


def from_arrays(
    model: str,
    entities: np.ndarray | Tensor,
    relations: np.ndarray | Tensor,
    entity_labels: Sequence[str],
    relation_labels: Sequence[str],
    graph: Graph,
    *,
    norm: int = 1,
    offset: float = 0.0,
    epsilon: float = 2.0,
) -> Imported:
    """A teacher from arrays [E, width] and [R, width] in this package's layout (`models`), one label a row.

    Complex numbers are [real | imaginary], TransH's relations [translation | normal]; RotatE's relations x are the
    angles π·x·dim / (offset + epsilon).

    Raises:
        ConfigError, CheckpointError: shapes, labels or numbers that do not fit.
    """
    tables = {}
    for name, values in (("entities", entities), ("relations", relations)):
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if array.ndim != 2 or array.dtype.kind not in "fiu" or not len(array):
            raise CheckpointError(f"{name} is {array.dtype} {array.shape}: it must be numbers [rows, width]")
        tables[name] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return from_tables(
        model, tables, entity_labels, relation_labels, graph, "arrays", norm=norm, offset=offset, epsilon=epsilon
    )


def from_tables(
    name: str,
    tables: Mapping[str, Tensor],
    entity_labels: Sequence[str],
    relation_labels: Sequence[str],
    graph: Graph,
    source: str,
    **options: Any,
) -> Imported:
    """Build the model and put its rows into the graph's order.

    Raises:
        ConfigError: the teacher lacks entities or relations of the graph, with how many and which.
        CheckpointError: the tables are not those of such a model.
    """
    kind = {key.lower(): c for key, c in (MODELS | {"FreeTransH": FreeTransH}).items()}.get(str(name).lower())
    if kind is None:
        raise CheckpointError(f"{source}: a {show(str(name))} cannot be imported; {', '.join(MODELS)} can")
    rows, notes = {}, []
    for what, given, wanted in (
        ("entities", entity_labels, graph.entities),
        ("relations", relation_labels, graph.relations),
    ):
        labels = [str(label) for label in given]
        index = {label: i for i, label in enumerate(labels)}
        if len(labels) != len(tables[what]) or len(index) != len(labels):
            raise CheckpointError(
                f"{source}: {len(tables[what])} {what} with {len(labels)} labels, {len(index)} of "
                "them different; each needs one label of its own"
            )
        if missing := [label for label in wanted if label not in index]:
            example = show(", ".join(missing[:3]))
            raise ConfigError(
                f"{source} does not know {len(missing):,} of the {len(wanted):,} {what} of {graph.name}, such as "
                f"{example}; it knows {show(', '.join(labels[:3]))}: give the graph it was trained on, with its labels"
            )
        rows[what] = tables[what].float()[torch.tensor([index[label] for label in wanted])]
        if extra := len(labels) - len(wanted):
            notes.append(f"{extra:,} of the teacher's {len(labels):,} {what} do not occur in {graph.name}: left out")
        if not torch.isfinite(rows[what]).all():
            raise CheckpointError(f"{source}: the {what} hold NaN or infinity; its training diverged")
    dim, rest = divmod(rows["entities"].shape[1], kind.entity_factor)
    if rest or rows["relations"].shape[1] != dim * kind.relation_factor:
        raise CheckpointError(
            f"{source}: rows of {rows['entities'].shape[1]} and {rows['relations'].shape[1]} numbers "
            f"are not those of a {kind.__name__}"
        )
    model = build_model(kind.__name__, len(rows["entities"]), len(rows["relations"]), dim, **options)
    model.load_state_dict(rows)
    return Imported(model, source, notes)


# ---- PyKEEN ---------------------------------------------------------------------------------------------------------
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
    norm, options = getattr(model.interaction, "p", 1), {}
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
        _unit(_complex(relations[0]).abs(), f"{source}: the rotations")
        relation = _angles(_complex(relations[0]).angle())
        entities = _halves(entities)
    elif interaction == "ComplEx":
        relation, entities = _halves(relations[0]), _halves(entities)
    else:
        relation = relations[0]
    tables = {"entities": entities, "relations": relation}
    return from_tables(interaction, tables, labels[0], labels[1], graph, source, **options)


def _pykeen_folder(folder: Path, graph: Graph, trust_pickle: bool) -> Imported:
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
            maps.append({_unquoted(label): int(number) for number, label in pairs})
        except (OSError, EOFError, ValueError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            raise CheckpointError(f"cannot read {path}: {reason}; save the result folder from PyKEEN again") from None
    with needs("pykeen", "reading a PyKEEN model"):
        import pykeen.models  # noqa: F401
    try:
        model = torch.load(folder / PYKEEN_MODEL, map_location="cpu", weights_only=False)
    except Exception as error:  # noqa: BLE001 - whatever a pickle raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"cannot read {folder / PYKEEN_MODEL}: {reason}; save it from PyKEEN again") from None
    return from_pykeen(model, graph, tuple(maps), f"PyKEEN, {folder}")


def _unquoted(label: str) -> str:
    """A field as pandas writes it: quoted where it holds a quote, tab or line end."""
    return label[1:-1].replace('""', '"') if len(label) > 1 and label[0] == label[-1] == '"' else label


# ---- LibKGE ---------------------------------------------------------------------------------------------------------
class _Inert:
    """Stands in for a class that a checkpoint names: it keeps the attributes and has no behaviour."""


def _libkge(path: Path, graph: Graph) -> Imported:
    """A checkpoint of LibKGE (`kge package` adds the labels; else entity_ids.del and relation_ids.del beside it)."""
    try:
        with torch.serialization.safe_globals([(_Inert, INERT)]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        options = vars(checkpoint["config"])["options"]
        name = options["model"]
        state = checkpoint["model"][0]
        entities, relations = (state[f"_{what}_embedder._embeddings.weight"] for what in ("entity", "relation"))
        if not all(isinstance(x, Tensor) and x.ndim == 2 for x in (entities, relations)):
            raise ValueError("the embeddings are no tables")
        norm = options.get(name, {}).get("l_norm", 1.0)
        meta = checkpoint.get("dataset", {}).get("meta") or {}
    except Exception as error:  # noqa: BLE001 - torch's loader raises whatever a damaged file leads to; it never runs the file's code
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(
            f"{path} is no LibKGE checkpoint that can be read without running code from it ({reason})"
        ) from None
    kind = {"transe": "TransE", "complex": "ComplEx", "rotate": "RotatE", "distmult": "DistMult"}.get(str(name).lower())
    if kind is None:
        raise CheckpointError(
            f"{path}: LibKGE's {show(str(name))} cannot be imported; transe, complex, rotate and distmult can"
        )
    if kind in ("TransE", "RotatE") and norm not in (1, 2):
        raise CheckpointError(f"{path}: its distance has norm {show(str(norm))}; norms 1 and 2 can be imported")
    labels = []
    for what in ("entity_ids", "relation_ids"):
        found = meta.get(what)
        labels.append(list(found) if isinstance(found, list | tuple) else _ids_file(path.with_name(f"{what}.del")))
    if kind == "RotatE":
        relations = _angles(torch.remainder(relations.float() + math.pi, 2 * math.pi) - math.pi)
    tables = {"entities": entities, "relations": relations}
    norms = {"norm": int(norm)} if kind in ("TransE", "RotatE") else {}
    return from_tables(kind, tables, labels[0], labels[1], graph, f"LibKGE, {path}", **norms)


def _ids_file(path: Path) -> list[str]:
    """Labels in the order of their numbers, from LibKGE's "number, tab, label" lines."""
    try:
        rows = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
        numbered = {int(number): label for number, label in rows}
        return [numbered[i] for i in range(len(rows))]
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is not there, and the checkpoint holds no labels: copy it from LibKGE's data "
            "folder, or package the checkpoint with `kge package`"
        ) from None
    except (OSError, ValueError, LookupError) as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None


# ---- arrays ---------------------------------------------------------------------------------------------------------
def _npz(path: Path, graph: Graph, model: str | None) -> Imported:
    """Entries entities, relations, entity_labels, relation_labels; model, norm, offset, epsilon and entities_scale
    where they are there, as `export` writes them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
        entities, relations = values["entities"], values["relations"]
        if "entities_scale" in values:
            entities = entities.astype(np.float32) * values["entities_scale"][:, None]
        labels = [values[name].astype(str).tolist() for name in ("entity_labels", "relation_labels")]
        name = str(values["model"]) if "model" in values else model
        options: dict[str, Any] = {
            key: cast(values[key])
            for key, cast in (("norm", int), ("offset", float), ("epsilon", float))
            if key in values
        }
    except KeyError as error:
        raise CheckpointError(
            f"{path} holds no {error.args[0]}; it needs entities, relations, entity_labels and relation_labels"
        ) from None
    except (
        OSError,
        ValueError,
        TypeError,
        IndexError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"cannot read {path}: {reason}; arrays of objects are never read") from None
    if name is None:
        raise ConfigError(f"{path} does not say which model it holds: give --model, one of {', '.join(MODELS)}")
    found = from_arrays(name, entities, relations, labels[0], labels[1], graph, **options)
    found.source = f"arrays, {path}"
    return found


# ---- numbers of other libraries -------------------------------------------------------------------------------------
def _complex(x: Tensor) -> Tensor:
    return x if x.is_complex() else torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())


def _halves(x: Tensor) -> Tensor:
    """Complex numbers [n, d] as [real | imaginary] [n, 2·d]."""
    x = _complex(x)
    return torch.cat([x.real, x.imag], dim=1)


def _angles(angle: Tensor, epsilon: float = 2.0) -> Tensor:
    """RotatE's stored relations for angles [n, d]: offset 0 and ε = 2, the defaults of `build_model`."""
    return (angle.double() * (epsilon / angle.shape[1] / math.pi)).float()


def _unit(length: Tensor, what: str) -> None:
    worst = float((length - 1).abs().max())
    if not worst < TOLERANCE:
        raise ConfigError(
            f"{what} should have length 1 and are off by up to {worst:.2g}; this variant cannot be imported"
        )
