"""Smaller numbers: float16, or int8 with one scale for each entity; and what that costs, by the same evaluation."""

from __future__ import annotations

import copy

import pandas as pd
import torch
from torch import Tensor

from .data import Graph
from .errors import ConfigError
from .evaluation import KnownTriples, evaluate
from .models import KGEModel

PRECISIONS = ("float32", "float16", "int8")
BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of one number of an entity
LARGEST_HALF = 65504.0


def check_precision(precision: str) -> str:
    """The precision itself; ConfigError where there is none of that name."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}")
    return precision


def pack(tables: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """What a file holds of the float32 tables `entities` [E, width] and `relations` [R, width].

    int8: an entity's row is round(127 · row / largest), and `entities.scale` float32 [E] holds largest / 127. The
    relations stay float16: they are few, and an angle rounded to one of 255 would cost more than it saves.

    Raises:
        ConfigError: numbers that are not finite, or too large for float16.
    """
    if check_precision(precision) == "float32":
        return dict(tables)
    large = max(float(x.abs().max()) for x in tables.values())  # NaN is not below any limit
    if not large <= LARGEST_HALF:
        raise ConfigError(f"the embeddings hold {large:g}: {precision} needs finite numbers up to {LARGEST_HALF:g}")
    packed = {name: x.detach().half() for name, x in tables.items()}
    if precision == "int8":
        rows = tables["entities"].detach()
        scale = rows.abs().amax(dim=1) / 127
        safe = scale.clamp_min(torch.finfo(torch.float32).tiny)
        packed["entities"] = (rows / safe[:, None]).round().clamp(-127, 127).to(torch.int8)
        packed["entities.scale"] = safe
    return packed


def unpack(packed: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """The float32 tables of what `pack` made.

    Raises:
        ValueError: not what `pack` makes.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}")
    types = {"entities": {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}[precision],
             "relations": torch.float32 if precision == "float32" else torch.float16}  # fmt: skip
    if precision == "int8":
        types["entities.scale"] = torch.float32
    if (found := {name: x.dtype for name, x in packed.items()}) != types:
        what = ", ".join(f"{name} {dtype}" for name, dtype in found.items()).replace("torch.", "")
        raise ValueError(f"the numbers are not {precision}: {what}")
    tables = {name: packed[name].float() for name in ("entities", "relations")}
    if precision == "int8":
        tables["entities"] *= packed["entities.scale"][:, None]
    return tables


def quantised(model: KGEModel, precision: str) -> KGEModel:
    """A copy whose numbers are those a file of that precision holds: what it answers is what a small file answers."""
    other = copy.deepcopy(model).cpu()
    other.load_state_dict(unpack(pack(dict(other.state_dict()), precision), precision))
    return other


def size(model: KGEModel, precision: str) -> int:
    """Bytes of the weights at that precision, without labels."""
    return weight_bytes(*model.entities.shape, model.relations.numel(), precision)


def weight_bytes(entities: int, width: int, relation_numbers: int, precision: str) -> int:
    """Bytes of `entities` rows of `width` numbers, a scale each for int8, and the relations' numbers."""
    scales = 4 * entities if precision == "int8" else 0
    return entities * width * BYTES[precision] + scales + relation_numbers * max(2, BYTES[precision])


def compare_precisions(model: KGEModel, graph: Graph, split: str = "test") -> pd.DataFrame:
    """Filtered metrics of one model at each precision: precision, bytes, mrr, hits@1, hits@10, mrr_loss."""
    known, rows = KnownTriples(graph.known.cpu(), graph.num_relations), []
    for precision in PRECISIONS:
        found = evaluate(quantised(model, precision), graph, split, known=known).metrics()["both"]
        rows.append({"precision": precision, "bytes": size(model, precision)}
                    | {name: found[name] for name in ("mrr", "hits@1", "hits@10")})  # fmt: skip
    table = pd.DataFrame(rows)
    table["mrr_loss"] = table["mrr"][0] - table["mrr"]
    return table
