"""Functions of several ranks, each a process, for tests: gloo on this machine."""

import os
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kgdistil.config import RunConfig
from kgdistil.distributed import keeping
from kgdistil.distributed.engine import ShardedEngine
from kgdistil.distributed.ranking import rank
from kgdistil.distributed.run import agree, train
from kgdistil.distributed.shards import Shards
from kgdistil.evaluation import KnownTriples, Ranks
from kgdistil.graph import Graph
from kgdistil.models import KGEModel, build_model, with_entities

RATES = {"student": 0.1, "teacher": 0.05}


PRELOADED = ["kgdistil.distributed.run", "kgdistil.compress.low_rank"]  # imported once: a rank begins at once


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function of this module returns on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        if forkserver._forkserver._preload_modules != PRELOADED:  # another test's, which imported something else
            forkserver._forkserver._stop()
            forkserver.set_forkserver_preload(PRELOADED)
        mp.start_processes(
            one_rank, (world, folder, dict(os.environ), function, arguments), world, start_method="forkserver"
        )
        return [torch.load(Path(folder) / f"{number}.pt", weights_only=False) for number in range(world)]


def one_rank(number: int, world: int, folder: str, variables: dict, function: Callable, arguments: tuple) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=world)
    torch.save(function(*arguments), Path(folder) / f"{number}.pt")
    dist.destroy_process_group()


def agreed(config: RunConfig, graph: Graph, of_last: dict[str, Any]) -> None:
    """What `agree` says where the last rank has other settings."""
    last = dist.get_rank() == dist.get_world_size() - 1
    agree(config.model_copy(update=of_last) if last else config, graph)


def models(config: RunConfig, size: int) -> list[KGEModel | None]:
    """Student and teacher, the same each time."""
    student = build_model(config.model, size, 4, config.dim, seed=1, **config.model_options)
    teacher = build_model(config.model, size, 4, 2 * config.dim, seed=2) if config.teacher else None
    return [student, teacher]


def state(engine: Any) -> dict[str, torch.Tensor]:
    """Weights and moments."""
    weights = {f"{role}.{name}": x for role, m in engine.models.items() for name, x in m.state_dict().items()}
    return {name: x.detach().clone() for name, x in {**weights, **engine.moments}.items()}


def steps(engine: Any, batches: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[int]]:
    """The losses of some steps, and the bytes that each sent."""
    engine.half, losses, sent = torch.float32, [], [0]
    for i, batch in enumerate(batches):
        losses.append(engine.step(batch, torch.tensor(7 + i), RATES))
        sent.append(engine.shards.sent if hasattr(engine, "shards") else 0)
    return losses, torch.tensor(sent).diff().tolist()


def sharded_steps(configs: list[RunConfig], size: int, triples: torch.Tensor, batches: list[torch.Tensor]) -> list[Any]:
    """For each config: what the engine holds here, the losses, and the bytes of each step."""
    found = []
    for config in configs:
        shards = Shards(size)
        own = [m and with_entities(m, m.entities[shards.low : shards.high]) for m in models(config, size)]
        engine = ShardedEngine(own[0], own[1], triples, config, shards)
        shards.sent = 0
        losses, sent = steps(engine, batches)
        found.append((state(engine), losses, sent))
    return found


def sharded_ranks(models: list[KGEModel], triples: torch.Tensor, every: torch.Tensor) -> list[list[Ranks]]:
    """For each model, its ranks of triples by the kernel and by PyTorch."""
    shards, known = Shards(models[0].num_entities), KnownTriples(every, models[0].num_relations)
    own = [with_entities(m, m.entities[shards.low : shards.high]) for m in models]
    return [[rank(m, triples, known, shards=shards, native=native) for native in (None, False)] for m in own]


class StopError(Exception):
    pass


def sharded_run(config: RunConfig, graph: Graph, folder: Path, saves: int) -> dict[str, Any] | None:
    """The record of a run, or None where it is left after so many checkpoints, one of which is made in each step."""
    count, save = 0, keeping.save

    def counted(*arguments: Any) -> None:
        nonlocal count
        save(*arguments)
        count += 1
        if count == saves:
            raise StopError

    keeping.save = counted
    try:
        return train(config, graph, folder, Shards(graph.num_entities), 0.0)
    except StopError:
        return None
    finally:
        keeping.save = save
