"""Teachers in PyTorch's files: LibKGE's checkpoints, and what OpenKE and TorchKGE save of a model (its state).

They are read with torch's weights-only loading, which runs nothing that a file brings.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kgdistil.errors import CheckpointError, ConfigError, DataError
from kgdistil.graph import Graph
from kgdistil.graphs.importers.arrays import as_numbers
from kgdistil.graphs.importers.conventions import choose
from kgdistil.graphs.importers.tables import Imported, Labels, find_labels, reason_of
from kgdistil.graphs.labels import in_order, read_table, show
from kgdistil.graphs.limits import allow

INERT = "kge.config.Config"  # the one class a LibKGE checkpoint names; an empty shell stands in for it
LIBKGE = {"transe": "TransE", "complex": "ComplEx", "rotate": "RotatE", "distmult": "DistMult"}
SQUARED = "its scores are squared distances; the ranks are the same"


class _Inert:
    """Stands in for a class that a checkpoint names: it keeps the attributes and has no behaviour."""


def read_checkpoint(
    path: Path,
    graph: Graph,
    model: str | None = None,
    convention: str | None = None,
    norm: int | None = None,
    gamma: float | None = None,
    labels: Path | None = None,
) -> Imported:
    """What LibKGE, OpenKE or TorchKGE left, told apart by what stands in it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                allow(sum(entry.file_size for entry in file.infolist()), path, CheckpointError)
        with torch.serialization.safe_globals([(_Inert, INERT)]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - torch raises whatever a damaged file leads to; it runs no code
        raise CheckpointError(
            f"{path} is no checkpoint that can be read without running code from it ({reason_of(error)[:160]})"
        ) from None
    try:
        if isinstance(found, dict) and isinstance(found.get("config"), _Inert):
            return _libkge(path, found, graph, labels, norm)
        state = {str(name).removeprefix("model."): value for name, value in dict(_state(found)).items()}
        for read, mark in ((_openke, "ent_embeddings.weight"), (_openke, "ent_re_embeddings.weight")):
            if mark in state:
                return read(path, state, graph, labels, model, convention, norm, gamma)
        if "ent_emb.weight" in state or "re_ent_emb.weight" in state:
            return _torchkge(path, state, graph, labels, model, convention, norm)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {reason_of(error)}") from None
    raise CheckpointError(f"{path} is no checkpoint of LibKGE, and holds no embeddings that OpenKE or TorchKGE name so")


def _state(found: Any) -> Any:
    for name in ("state_dict", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            return found[name]
    return found if isinstance(found, dict) else {}


def _libkge(path: Path, checkpoint: dict[str, Any], graph: Graph, labels: Path | None, norm: int | None) -> Imported:
    """A checkpoint of LibKGE (`kge package` adds the labels; else entity_ids.del and relation_ids.del beside it)."""
    options = vars(checkpoint["config"])["options"]
    name, state = options["model"], checkpoint["model"][0]
    kind = LIBKGE.get(str(name).lower())
    if kind is None:
        raise CheckpointError(f"{path}: LibKGE's {show(str(name))} cannot be imported; {', '.join(LIBKGE)} can")
    tables = {
        what: as_numbers(state[f"_{one}_embedder._embeddings.weight"], what)
        for one, what in (("entity", "entities"), ("relation", "relations"))
    }
    theirs = options.get(name, {}).get("l_norm", 1.0)
    if kind in ("TransE", "RotatE") and theirs not in (1, 2):
        raise CheckpointError(f"{path}: its distance has norm {show(str(theirs))}; norms 1 and 2 can be imported")
    meta = checkpoint.get("dataset", {}).get("meta") or {}
    words: list[list[str]] = []
    for what in ("entity_ids", "relation_ids"):
        there = meta.get(what)
        words.append(list(there) if isinstance(there, list | tuple) else _ids_file(path, labels, f"{what}.del"))
    norms = norm or (int(theirs) if kind in ("TransE", "RotatE") else None)
    source = f"LibKGE, {path}"
    return choose(kind, tables, (words[0], words[1]), graph, source, convention="libkge", norm=norms, sure=True)


def _ids_file(path: Path, labels: Path | None, name: str) -> list[str]:
    """Labels in the order of their numbers, from LibKGE's "number, tab, label" lines."""
    there = next((x for x in (labels and labels / name, path.with_name(name)) if x and x.is_file()), None)
    if there is None:
        raise CheckpointError(
            f"{path.with_name(name)} is not there, and the checkpoint holds no labels: copy it from LibKGE's data "
            "folder, or name that folder with --labels, or package the checkpoint with `kge package`"
        )
    try:
        return in_order(read_table(there, label_first=False))
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _weights(state: dict[str, Any], *names: str) -> Tensor:
    """Tables side by side."""
    return torch.cat([as_numbers(state[f"{name}.weight"], name) for name in names], dim=1)


def _asked(path: Path, library: str, model: str | None) -> str:
    if str(model).lower() not in ("transe", "distmult"):
        raise ConfigError(f"{path}: {library} saves TransE and DistMult alike: give --model TransE or --model DistMult")
    return str(model)


def _openke(
    path: Path,
    state: dict[str, Any],
    graph: Graph,
    labels: Path | None,
    model: str | None,
    convention: str | None,
    norm: int | None,
    gamma: float | None,
) -> Imported:
    """OpenKE's `save_checkpoint`. Its TransE scales entities and relations to length 1 unless norm_flag is False."""
    margin = float(state["margin"]) if "margin" in state else gamma
    scale: dict[str, Any] = {"gamma": margin}
    if "ent_re_embeddings.weight" in state:
        kind, scale = "ComplEx", {}
        entities = _weights(state, "ent_re_embeddings", "ent_im_embeddings")
        relations = _weights(state, "rel_re_embeddings", "rel_im_embeddings")
    else:
        others = sorted({name.split(".")[0] for name in state} - {"ent_embeddings", "rel_embeddings", *NUMBERS})
        if others:
            raise CheckpointError(
                f"{path}: OpenKE's models with {', '.join(others)[:100]} cannot be imported; TransE, DistMult, ComplEx "
                "and RotatE can"
            )
        entities, relations = _weights(state, "ent_embeddings"), _weights(state, "rel_embeddings")
        if "rel_embedding_range" in state:
            kind, whole = "RotatE", float(state["rel_embedding_range"]) * relations.shape[1]
            scale["epsilon"] = whole - (margin or 0.0)
            scale["gamma"] = margin or 0.0
        else:
            kind = _asked(path, "OpenKE", model)
    words = find_labels(labels, path.parent)
    tables = {"entities": entities, "relations": relations}
    source, sure = f"OpenKE, {path}", kind == "RotatE"
    return choose(kind, tables, words, graph, source, convention=convention or "openke", norm=norm, sure=sure, **scale)


NUMBERS = (
    "margin",
    "zero_const",
    "pi_const",
    "rel_embedding_range",
    "ent_embedding_range",
    "embedding_range",
)  # of an OpenKE model, beside its tables


def _torchkge(
    path: Path,
    state: dict[str, Any],
    graph: Graph,
    labels: Path | None,
    model: str | None,
    convention: str | None,
    norm: int | None,
) -> Imported:
    """TorchKGE's `model.state_dict()`. Its models but ComplEx scale entities to length 1."""
    if "sc_ent_emb.weight" in state or not {"rel_emb.weight", "re_rel_emb.weight"} & state.keys():
        raise CheckpointError(f"{path}: of TorchKGE's models TransE, TransH, DistMult and ComplEx can be imported")
    if "proj_mat.weight" in state or "ent_proj_vect.weight" in state:
        raise CheckpointError(f"{path}: of TorchKGE's models TransE, TransH, DistMult and ComplEx can be imported")
    if "re_ent_emb.weight" in state:
        kind, entities = "ComplEx", _weights(state, "re_ent_emb", "im_ent_emb")
        relations = _weights(state, "re_rel_emb", "im_rel_emb")
    elif "norm_vect.weight" in state:
        kind, entities, relations = "TransH", _weights(state, "ent_emb"), _weights(state, "rel_emb", "norm_vect")
    else:
        kind = _asked(path, "TorchKGE", model)
        entities, relations = _weights(state, "ent_emb"), _weights(state, "rel_emb")
    words: Labels = find_labels(labels, path.parent)
    tables = {"entities": entities, "relations": relations}
    done = choose(kind, tables, words, graph, f"TorchKGE, {path}", convention=convention or "torchkge", norm=norm)
    if done.model.distance and done.model.norm == 2:
        done.notes.append(SQUARED)
    return done
