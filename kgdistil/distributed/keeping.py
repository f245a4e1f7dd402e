"""Checkpoints of several ranks by torch.distributed.checkpoint, in safetensors: as many others may go on from them.

Each lies in a folder of its own, below the run's, which all ranks share; `checkpoint.json` names the one that is whole,
and says what else the next step depends on.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from kgdistil.answer.files import sealed, unsealed, write_json
from kgdistil.distributed.engine import ShardedEngine
from kgdistil.distributed.shards import lost
from kgdistil.errors import CheckpointError
from kgdistil.graph import Graph
from kgdistil.graphs.cache import sum_of
from kgdistil.training.loop import (
    CHECKPOINT,
    OF_RANKS,
    PARTS_OF_RANKS,
    Progress,
    bits,
    check_sources,
    sources_of,
    weights_of,
)

log = logging.getLogger("kgdistil")
ABOUT, FOLDER = OF_RANKS, PARTS_OF_RANKS


def mesh_of(device: str) -> DeviceMesh:
    """All ranks in a row."""
    return init_device_mesh(torch.device(device).type, (dist.get_world_size(),))


def held(engine: ShardedEngine, best: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name; each rank holds a part of those of entities."""
    groups = {"weights": weights_of(engine.trained), "moments": engine.state(), "best": best}
    return {f"{group}.{name}": x.detach() for group, found in groups.items() for name, x in found.items()}


def spread(tensors: dict[str, Tensor], size: int, mesh: DeviceMesh) -> dict[str, Tensor]:
    """The tensors, those of `size` entities as parts of a whole; their memory is the same."""

    def part(x: Tensor) -> Tensor:
        shape, stride = torch.Size((size, x.shape[1])), (x.shape[1], 1)
        return DTensor.from_local(x, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    return {name: part(x) if ".entities" in name else x for name, x in tensors.items()}


def save(folder: Path, engine: ShardedEngine, graph: Graph, state: Progress, sent: int, mesh: DeviceMesh) -> None:
    """Everything the next step depends on; the one before goes only when this one is whole."""
    done = int(engine.moments["done"])
    name = f"{state.epoch}-{done}"
    path, first = folder / FOLDER / name, engine.shards.rank == 0
    about = {key: x for key, x in vars(state).items() if key != "best"}
    about |= {"folder": name, "sent": sent, "config": engine.config.model_dump(exclude={"device"}), **kept(engine)}
    if first:  # what a killed run began with other ranks
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    engine.shards.add([engine.moments["done"].cpu()])  # nobody writes before
    tensors = spread(held(engine, {k: x.to(engine.device) for k, x in state.best.items()}), graph.num_entities, mesh)
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True))
    found: list[Any] = [None] * engine.shards.world
    dist.all_gather_object(found, {file.name: sum_of(file) for file in share(path, engine)})
    about["sums"] = {name: x for sums in found for name, x in sums.items()}
    if first:
        write_json(folder / ABOUT, sealed({**about, "graph_sha256": graph.sha256, "best": bool(state.best)}))
        for other in (folder / FOLDER).iterdir():
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)


def kept(engine: ShardedEngine) -> dict[str, Any]:
    """What of `bits` stays the same on other ranks and threads."""
    found = bits(engine)
    return found | {"arithmetic": {k: x for k, x in found["arithmetic"].items() if k not in ("ranks", "threads")}}


def share(path: Path, engine: ShardedEngine) -> list[Path]:
    """The files of a checkpoint that this rank sums."""
    return sorted(path.glob("*.safetensors"))[engine.shards.rank :: engine.shards.world]


def restore(folder: Path, engine: ShardedEngine, graph: Graph, mesh: DeviceMesh) -> tuple[Progress, int]:
    """Where a run stands: what `save` wrote last, put in place, or its beginning; and the bytes sent until then.

    Raises:
        CheckpointError: damaged, of another config, graph or teacher, or made by other kernels or products.
    """
    path = folder / ABOUT
    if not path.is_file():
        if (folder / CHECKPOINT).is_file():
            log.warning("%s: one process goes on there; ranks begin anew", folder / CHECKPOINT)
        return Progress(sources=sources_of(engine.config)), 0
    mend = f"delete it and {folder / FOLDER} to start over"
    try:
        about: dict[str, Any] = unsealed(json.loads(path.read_text(encoding="utf-8")))
        name, sent, best = about.pop("folder"), int(about.pop("sent")), about.pop("best")
        if about.pop("config") != engine.config.model_dump(exclude={"device"}):
            raise CheckpointError(f"{path} belongs to another configuration; {mend}")
        if about.pop("graph_sha256") != graph.sha256:
            raise CheckpointError(f"{path} was made on another graph than {graph.name} is now; {mend}")
        check_sources(path, engine.config, about.get("sources", {}))
        mine = kept(engine)
        if (theirs := {key: about.pop(key, mine[key]) for key in mine}) != mine:  # none before 0.3
            raise CheckpointError(f"{path} was made with {theirs}, and here it is {mine}: go on with those, or {mend}")
        parts, sums = folder / FOLDER / Path(name).name, about.pop("sums", {})  # none before 0.3
        for file in share(parts, engine) if sums else ():
            if sum_of(file) != sums[file.name]:
                raise ValueError(f"{file.name} is not what was written")
        state = Progress(**about)
        if best:
            state.best = {k: torch.empty_like(x) for k, x in weights_of(engine.trained).items()}
        tensors = held(engine, state.best)
        dcp.load(spread(tensors, graph.num_entities, mesh), storage_reader=HuggingFaceStorageReader(str(parts)))
        state.best = {k: x.cpu() for k, x in state.best.items()}
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, dcp.CheckpointException) as error:
        if lost(error):
            raise
        raise CheckpointError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); {mend}") from None
    return state, sent
