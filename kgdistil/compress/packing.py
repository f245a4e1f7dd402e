"""Smaller numbers: float16, int8 with one scale for each entity, or four-bit codes of groups of floats (`codes`);
and what that costs, by the same evaluation."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from kgdistil.answer.mixed import right
from kgdistil.compress import nested, whole
from kgdistil.compress.nested import NESTED
from kgdistil.compress.product import codes_of, fit, rows_of
from kgdistil.compress.size import GROUPS, PRECISIONS, check_precision, precisions_for, weight_bytes
from kgdistil.errors import ConfigError
from kgdistil.models import KGEModel

LARGEST_HALF = 65504.0


def pack(model: KGEModel, precision: str) -> dict[str, Tensor]:
    """What a file holds of a model's tables `entities` [E, width] and `relations` [R, width], and a low rank's `map`.

    int8: an entity's row is round(127 · row / largest), and `entities.scale` float32 [E] holds largest / 127.
    4bit, 2bit, 1bit: `entities` uint8 [E, ⌈groups / 2⌉] holds two codes a byte, the first in the low bits, and
    `entities.book` float16 [groups, 16, g] what they stand for; exact where a group has at most sixteen vectors, as
    in a student that was trained with codes, else fitted by k-means. The relations stay float16: they are few, and an
    angle rounded to one of 255 would cost more than it saves; so does a `map`.
    Entities that the model keeps whole (`compress.whole`) are, besides, `whole` int32 [K], their ids in order,
    `whole.rows` int8 [K, width] and `whole.scale` float32 [K], as of int8; their codes say nothing.
    nested: the same of the codes that a model has (`compress.nested`), with `entities.book` [depth, groups, 16, g] and
    what students of their first ones have of their own, as named there; float32 keeps all of it beside the rows.

    Raises:
        ConfigError: numbers that are not finite, or too large for float16; groups that do not divide the width; nested
            of a model that has no codes.
    """
    if precision != NESTED and check_precision(precision) == "float32":
        return {name: x.detach() for name, x in model.state_dict().items()}
    tables = {name: x.detach() for name, x in model.named_parameters()}
    large = max(float(x.abs().max()) for x in tables.values())  # NaN is not below any limit
    if not large <= LARGEST_HALF:
        raise ConfigError(f"the embeddings hold {large:g}: {precision} needs finite numbers up to {LARGEST_HALF:g}")
    rows, packed = tables["entities"], {name: x.half() for name, x in tables.items()}
    if precision == "int8":
        scale = rows.abs().amax(dim=1) / 127
        safe = scale.clamp_min(torch.finfo(torch.float32).tiny)
        packed["entities"] = (rows / safe[:, None]).round().clamp(-127, 127).to(torch.int8)
        packed["entities.scale"] = safe
    elif precision in (*GROUPS, NESTED):
        codes, book = encode(model, precision)
        own = nested.buffers_of(model) if precision == NESTED else {}
        packed |= {name: x.half() for name, x in own.items() if name not in ("codes", "book")}
        codes = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
        packed["entities"] = codes[:, 0::2] | (codes[:, 1::2] << 4)
        packed["entities.book"] = book.half()
        if len(kept := whole.of(model)):
            numbers, scale = whole.in_bytes(rows[kept])
            packed |= {whole.NAME: kept, "whole.rows": numbers, "whole.scale": scale}
    return packed


def encode(model: KGEModel, precision: str) -> tuple[Tensor, Tensor]:
    """Codes uint8 [E, M] and codebook float32 [M, 16, g] of a model's entities, for a precision of `GROUPS`; those that
    a model has where it is nested, [depth, M, 16, g].

    Raises:
        ConfigError: groups that do not divide the width, or no codes.
    """
    if precision == NESTED:
        found = nested.buffers_of(model)
        return found["codes"], found["book"]
    rows, size = model.entities.detach(), GROUPS[precision]
    if precision not in precisions_for(rows.shape[1]):
        raise ConfigError(
            f"precision is {precision}: it takes {size} floats at a time, which do not divide the "
            f"{rows.shape[1]} floats of an entity"
        )
    coded = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    coded[whole.of(model).long().to(rows.device)] = False
    book = fit(rows if coded.all() or not coded.any() else rows[coded], size, model.paired)
    return codes_of(rows, book, model.paired), book


def unpack(packed: dict[str, Tensor], precision: str, paired: bool) -> dict[str, Tensor]:
    """The float32 tables of what `pack` made; `paired` as the model's class says.

    Raises:
        ValueError: not what `pack` makes.
    """
    if precision not in (*PRECISIONS, NESTED):
        raise ValueError(f"unknown precision {precision!r}")
    numbers = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
    few = torch.float32 if precision == "float32" else torch.float16
    types = {"relations": few} | {name: few for name in packed if name == "map"}
    types["entities"] = numbers.get(precision, torch.uint8)
    if precision == "int8":
        types["entities.scale"] = torch.float32
    elif precision in (*GROUPS, NESTED):
        types["entities.book"] = torch.float16
        if precision != NESTED and whole.NAME in packed:
            types |= {whole.NAME: torch.int32, "whole.rows": torch.int8, "whole.scale": torch.float32}
    if precision in ("float32", NESTED):
        other = {"codes": torch.uint8, whole.NAME: torch.int32}
        types |= {name: other.get(name, few) for name in packed if nested.is_buffer(name)}
    if (found := {name: x.dtype for name, x in packed.items()}) != types:
        what = ", ".join(f"{name} {dtype}" for name, dtype in found.items()).replace("torch.", "")
        raise ValueError(f"the numbers are not {precision}: {what}")
    if precision not in (*GROUPS, NESTED):
        as_is = ("codes", whole.NAME)
        tables = {name: x if name in as_is else x.float() for name, x in packed.items() if name != "entities.scale"}
        if precision == "int8":
            if packed["entities.scale"].shape != packed["entities"].shape[:1]:
                raise ValueError(
                    f"{list(packed['entities.scale'].shape)} scales for {len(packed['entities'])} entities"
                )
            tables["entities"] *= packed["entities.scale"][:, None]
        return tables
    bytes_, book = packed["entities"], packed["entities.book"].float()
    groups = book[..., 0, 0].numel()
    fits = book.ndim == 4 and book.shape[2] == 16 if precision == NESTED else book.shape[1:] == (16, GROUPS[precision])
    if bytes_.ndim != 2 or not fits or bytes_.shape[1] != -(-groups // 2):
        raise ValueError(f"codes {list(bytes_.shape)} and codebook {list(book.shape)} do not belong together")
    codes = torch.stack([bytes_ & 15, bytes_ >> 4], dim=-1).flatten(1)[:, :groups]
    shared: dict[str, Tensor] = {name: packed[name].float() for name in ("relations", "map") if name in packed}
    if precision == NESTED:
        shared |= {name: x.float() for name, x in packed.items() if nested.is_buffer(name)}
        shared |= {"codes": codes, "book": book}
    rows = rows_of(codes, book, paired)
    if whole.NAME in packed:
        kept, own, scale = (packed[name] for name in (whole.NAME, "whole.rows", "whole.scale"))
        if not right(kept.numpy(), own.numpy(), scale.numpy(), *rows.shape):
            raise ValueError(f"{list(own.shape)} numbers of {list(kept.shape)} whole entities")
        rows[kept.long()] = own * scale[:, None]
        shared[whole.NAME] = kept
    return {"entities": rows, **shared}


def quantised(model: KGEModel, precision: str) -> KGEModel:
    """A copy whose numbers are those a file of that precision holds: what it answers is what a small file answers."""
    other = copy.deepcopy(model).cpu()
    tables = unpack(pack(other, precision), precision, other.paired)
    for name in [name for name, _ in other.named_buffers() if nested.is_buffer(name)]:
        delattr(other, name)
    nested.attach(other, tables).load_state_dict(tables)
    return other


def size(model: KGEModel, precision: str) -> int:
    """Bytes of the weights at that precision, without labels."""
    entities, width = model.entities.shape
    shared = model.num_parameters - model.entities.numel()
    return weight_bytes(entities, width, shared, precision, len(whole.of(model)))
