"""How long the paper's runs take: what is left, and what all of it would be from nothing."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch

from kgdistil import records
from kgdistil.config import RunConfig
from kgdistil.distillation.progress import epoch_seconds, untrained
from kgdistil.paper.cells import (
    CODED,
    LOW_RANK,
    Cell,
)
from kgdistil.paper.recipe import (
    base,
    config,
    finish,
    read_search,
    recipe,
    trials,
    with_needs,
)
from kgdistil.paper.tasks import graph_of, recorded


class Costs:
    """Seconds of an epoch by what decides them, from records of this device or else from timing a part of one."""

    def __init__(self, device: str):
        self.device, self.known = device, {}
        here = records.describe_device(device)
        for record in records.read_records():
            if record["device"] == here and record["epochs"]:
                self.known[self.key(record["config"])] = record["seconds"] / record["epochs"]

    @staticmethod
    def key(values: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(
            values.get(k) or 0 for k in ("dataset", "model", "dim", "role", "negatives", "loss", "group", "rank")
        )

    def epoch(self, run_config: RunConfig) -> float:
        key = self.key(run_config.model_dump())
        if key not in self.known:
            graph = graph_of(run_config.dataset)
            large = run_config.model_copy(update={"dim": run_config.dim if run_config.group else 64})
            teacher = untrained(large, graph) if run_config.teacher else None
            self.known[key] = epoch_seconds(run_config, graph, teacher)
        return self.known[key]

    def cell(self, cell: Cell, left: bool = True) -> float:
        """Seconds the cell takes, its search included; `left`: without what is recorded. Chains are judged by shape."""
        spec, own = recipe(cell), config(cell, self.device)
        if left and own and recorded(own):
            return 0.0
        axes = [value for value in spec.values() if isinstance(value, list)]
        above = recipe(replace(cell, method="-S2")) if cell.method in ("DS", "-S1") else {}
        shape = {k: v[0] if isinstance(v, list) else v for k, v in (above | spec).items()}
        link = {"teacher": "64"} if cell.distilled else {}
        link |= {"student": "64"} if cell.distilled and cell.method in (*CODED, *LOW_RANK) else {}
        like = finish({**shape, **base(cell, device=self.device), **link, "lr": 0.01})
        number = functools.reduce(lambda n, axis: n * len(axis), axes, 1) if axes else 0
        if left and number:
            found, mine = read_search(cell), trials(cell, self.device) or []
            number -= sum(t.run_id in found for t in mine)
        return self.epoch(like) * (like.epochs + number * spec["search_epochs"])


def print_plan(cells: list[Cell], device: str, threads: int, jobs: int, whole: bool = False) -> None:
    """What is left and what it costs on this machine; `whole`: and what all would cost, recorded or not."""
    torch.set_num_threads(threads)
    costs, everything = Costs(device), with_needs(cells)
    seconds = {cell: costs.cell(cell) for cell in everything}
    missing = [cell for cell in everything if seconds[cell]]
    print(f"{len(everything) - len(missing)} of {len(everything)} cells are recorded.")
    if whole:
        cost = sum(costs.cell(cell, left=False) for cell in everything)
        print(f"From nothing they would take about {cost / 60 / jobs:.0f} min.")
    for cell in missing:
        print(f"  {cell!s:40s} {seconds[cell] / 60:6.1f} min")
    if missing:
        print(
            f"Together about {sum(seconds.values()) / 60 / jobs:.0f} min with {jobs} process(es) of {threads} "
            "thread(s); validations come on top.",
            flush=True,
        )
