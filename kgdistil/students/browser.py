"""Models as files that a web page reads: a JSON header and float32 arrays. `book/site/try/kge.mjs` reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from kgdistil.compress.packing import GROUPS, pack
from kgdistil.errors import ConfigError
from kgdistil.files import write_bytes, write_json
from kgdistil.graph import SPLITS, Graph
from kgdistil.kernels import said
from kgdistil.models import KGEModel, RotatE

FORMAT = 1  # of the files; kge.mjs refuses any other
SCORED = ("TransE", "TransH", "ComplEx", "LowRankComplEx", "RotatE", "DistMult", "SimplE")  # what kge.mjs knows


def export(
    model: KGEModel,
    graph: Graph,
    folder: Path,
    about: dict[str, object] | None = None,
    precision: str = "float32",
) -> None:
    """Write `model.json`, `entities.f32`, `relations.f32` and a low rank's `map.f32` (little-endian, row after row).

    Args:
        about: more of what the header shall say, plain JSON values.
        precision: one of `quantise.GROUPS` writes codes, `entities.u8` and `book.f32`, in place of `entities.f32`.
    Raises:
        ConfigError: a model that kge.mjs cannot score, or one of another graph.
    """
    name = type(model).__name__
    if name not in SCORED or said(model, "comparison") is None:  # a class of one's own may bear a known name
        raise ConfigError(f"{name} has no score in the browser; export one of {', '.join(SCORED)}")
    if (model.num_entities, model.num_relations) != (graph.num_entities, graph.num_relations):
        raise ConfigError(
            f"the model has {model.num_entities} entities and {model.num_relations} relations, "
            f"{graph.name} has {graph.num_entities} and {graph.num_relations}"
        )
    header = {
        "format": FORMAT,
        "model": name,
        "dim": model.dim,
        "norm": model.norm,
        "offset": model.offset,
        "range": model.range if isinstance(model, RotatE) else None,
        "entities": list(model.entities.shape),
        "relations": list(model.relations.shape),
        "graph": graph.sha256,
        **(about or {}),
    }
    write_array(folder / "relations.f32", model.relations.detach().cpu().numpy().astype("<f4"))
    if model.factored:
        write_array(folder / "map.f32", model.state_dict()["map"].cpu().numpy().astype("<f4"))
    if precision in GROUPS:
        packed = pack(model, precision)
        header |= {"group": GROUPS[precision], "paired": model.paired}
        write_array(folder / "entities.u8", packed["entities"].numpy())
        write_array(folder / "book.f32", packed["entities.book"].numpy().astype("<f4"))
    else:
        write_array(folder / "entities.f32", model.entities.detach().cpu().numpy().astype("<f4"))
    write_json(folder / "model.json", header)


def export_graph(graph: Graph, folder: Path) -> None:
    """Write `names.json` (readable names by id) and `triples.i32`: train, valid, test, ids head, relation, tail."""
    names = {
        "format": FORMAT,
        "graph": graph.sha256,
        "entities": unique_names(graph),
        "labels": list(graph.entities),
        "relations": [r.strip("_").replace("_", " ") for r in graph.relations],
        "splits": {split: len(getattr(graph, split)) for split in SPLITS},
    }
    triples = torch.cat([getattr(graph, split).cpu() for split in SPLITS])
    write_array(folder / "triples.i32", triples.numpy().astype("<i4"))
    write_json(folder / "names.json", names)


def unique_names(graph: Graph) -> list[str]:
    """A readable name for each entity; those that several share carry their label as well."""
    names = [graph.readable(e) for e in range(graph.num_entities)]
    names = [name.replace("_", " ") if name == label else name for name, label in zip(names, graph.entities)]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({label})" if name in shared else name for name, label in zip(names, graph.entities)]


def write_array(path: Path, values: np.ndarray) -> None:
    write_bytes(path, np.ascontiguousarray(values).tobytes())
