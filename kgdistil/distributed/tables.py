"""Models of which a rank holds some rows: drawn, read, and put together in one file, never whole in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kgdistil.answer.files import SUM
from kgdistil.answer.format1 import VERSION, WEIGHTS, check_sum
from kgdistil.checkpoint import built, check_graph, load_model, save_model
from kgdistil.compress.low_rank import low_rank
from kgdistil.compress.product import SLICE
from kgdistil.config import RunConfig
from kgdistil.distributed.shards import Shards
from kgdistil.errors import CheckpointError
from kgdistil.graph import Graph
from kgdistil.models import ComplEx, KGEModel, class_of, with_entities
from kgdistil.training.loop import check_fit, resolve


def prepare(config: RunConfig, graph: Graph, shards: Shards) -> tuple[KGEModel, KGEModel | None]:
    """Student and teacher of a run, the rows of this rank, as `loop.prepare` makes them.

    Raises:
        CheckpointError, ConfigError: as there.
    """
    teacher = opened(resolve(config.teacher), graph, shards) if config.teacher else None
    student = opened(resolve(config.student), graph, shards) if config.student else drawn(config, graph, shards)
    if config.rank and isinstance(student, ComplEx) and not student.rank:
        student = low_rank(student, config.rank, config.seed, together=lambda x: shards.add([x])[0])
    rows = range(shards.high - shards.low)  # in place of labels, of which only the number counts
    check_fit(config, student, teacher, replace(graph, entities=rows))  # type: ignore[arg-type]
    return student.to(config.device), teacher and teacher.to(config.device)


def drawn(config: RunConfig, graph: Graph, shards: Shards) -> KGEModel:
    """The rows of this rank of what `build_model` draws, which is gone through in blocks."""
    kind = class_of(config.model, config.rank)
    model = kind(shards.high - shards.low, graph.num_relations, config.dim, **config.model_options)

    @torch.no_grad()
    def draw(rows: Tensor, count: int, generator: torch.Generator | None) -> None:
        if rows is not model.entities:
            return kind.draw(model, rows, count, generator)
        for begin in range(0, shards.size, SLICE):
            block = rows.new_empty(min(SLICE, shards.size - begin), rows.shape[1])
            kind.draw(model, block, shards.size, generator)
            low, high = max(begin, shards.low), min(begin + len(block), shards.high)
            if low < high:
                rows[low - shards.low : high - shards.low] = block[low - begin : high - begin]
        return None

    model.draw = draw  # type: ignore[method-assign]
    model.reset(torch.Generator().manual_seed(config.seed))
    del model.draw
    return model


def opened(folder: Path, graph: Graph, shards: Shards) -> KGEModel:
    """The rows of this rank of a saved model; only one whose numbers are packed is read as a whole.

    Raises:
        CheckpointError: damaged, or trained on another graph.
    """
    path, about, tensors = folder / WEIGHTS, dict[str, Any](), dict[str, Tensor]()
    if path.is_file():
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("kgdistil", "{}"))
                check_whole(path, about)
                if about.get("precision", "float32") == "float32":
                    rows = file.get_slice("entities")[shards.low : shards.high]
                    tensors = {name: file.get_tensor(name) for name in set(file.keys()) - {"entities"}}
                    tensors["entities"] = rows
        except (OSError, SafetensorError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); take an unchanged copy, or train it again") from None
    if not tensors:
        model = load_model(folder, graph)
        return with_entities(model, model.entities[shards.low : shards.high].clone())
    check_graph(path, about, graph)
    return built(path, tensors, {**about, "num_entities": shards.high - shards.low})


def check_whole(path: Path, about: dict[str, Any]) -> None:
    """ValueError where a file is of a newer version, or not as it was written: it is read in blocks."""
    if int(about.get("version", 0)) > VERSION:
        raise ValueError(f"version {about['version']}, and up to {VERSION} is read: update kgdistil")
    if not (found := about.pop(SUM, None)):  # files of earlier releases have none
        return
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        file.seek(0)
        check_sum(file.read(8 + size), iter(lambda: file.read(1 << 24), b""), found)


def save_whole(folder: Path, model: KGEModel, graph: Graph, run_id: str, shards: Shards) -> None:
    """What `save_model` writes of the whole model, by rank 0: the others' rows reach it in parts, which it keeps on
    disk until they are in the file."""
    rows = model.entities.data
    scratch, whole = folder / ".entities", torch.empty(0)
    if shards.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        whole = torch.from_file(str(scratch), shared=True, size=shards.size * rows.shape[1]).view(shards.size, -1)
        whole[: shards.high] = rows.cpu()
    for begin in range(0, shards.block, SLICE):
        for other in range(1, shards.world):
            low = other * shards.block + begin
            high = min(low + SLICE, (other + 1) * shards.block, shards.size)
            if low < high and shards.rank == 0:
                part = rows.new_empty(high - low, rows.shape[1])
                dist.recv(part, other)
                whole[low:high] = part.cpu()
            elif low < high and shards.rank == other:
                dist.send(rows[low - shards.low : high - shards.low].contiguous(), 0)
                shards.sent += (high - low) * rows.shape[1] * 4
    if shards.rank == 0:
        save_model(folder, with_entities(model, whole).cpu(), graph, run_id)
        scratch.unlink()
