"""How many bytes it takes: one entity, or all weights of a model, as float32 numbers or smaller.

Every other module asks here. A precision is what a file's numbers are; a group (0: float32) is how many floats share
four bits in training, and has a precision where a file can hold it.
"""

from __future__ import annotations

from kgdistil.errors import ConfigError
from kgdistil.models import MODELS

GROUPS = {"4bit": 1, "2bit": 2, "1bit": 4}  # floats of an entity that share four bits
BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0} | {name: 0.5 / g for name, g in GROUPS.items()}  # of one float
PRECISIONS = tuple(BYTES)
PART = 15  # bytes of an entity's codes for one of whole entities, so that both together are sixteen
PRECISION_OF = {0: "float32"} | {group: name for name, group in GROUPS.items()}  # of a model trained with a group


def check_precision(precision: str) -> str:
    """The precision itself; ConfigError where there is none of that name."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}")
    return precision


def precisions_for(width: int) -> list[str]:
    """Those that rows of `width` floats can have: groups must divide them."""
    return [name for name in PRECISIONS if width % GROUPS.get(name, 1) == 0]


def floats(model: str, dim: int, rank: int = 0) -> int:
    """Floats of one entity of such a model: its rank, where it is of low rank."""
    return rank or MODELS[model].entity_factor * dim


def row_bytes(model: str, dim: int, group: int = 0, rank: int = 0) -> int:
    """Bytes of one entity of such a model: of its float32 numbers, or of the four-bit codes of its groups."""
    width = floats(model, dim, rank)
    return -(-width // (2 * group)) if group else 4 * width


def entity_bytes(width: int, precision: str) -> float:
    """Bytes of one entity of `width` floats in a file, a scale for int8 among them; codebooks, which all share, are
    not."""
    if precision in GROUPS:
        return -(-width // GROUPS[precision] // 2)
    return width * BYTES[precision] + (4 if precision == "int8" else 0)


def weight_bytes(entities: int, width: int, shared: int, precision: str, whole: int = 0) -> int:
    """Bytes of a file's weights: `entities` rows of `width` floats, a codebook's vectors, and `shared` numbers, which
    are those of the relations and of a low rank's map; and, of codes, the rows of so many whole entities."""
    book = 2 * 16 * width + whole_bytes(whole, width) if precision in GROUPS else 0
    return int(entities * entity_bytes(width, precision)) + book + shared * (4 if precision == "float32" else 2)


def whole_bytes(count: int, width: int) -> int:
    """Bytes of so many entities that codes leave whole: `width` numbers of a byte, a scale and an id (`whole`)."""
    return count * (width + 8)


def whole_count(entities: int, width: int, codes: int) -> int:
    """How many entities of `width` floats may be whole, where one byte an entity goes to them for `PART` of codes."""
    return entities * (codes // PART) // (width + 8)


def model_bytes(
    entities: int, relations: int, model: str, dim: int, precision: str, rank: int = 0, whole: int = 0
) -> int:
    """`weight_bytes` of such a model of a graph of that size."""
    shared = relations * MODELS[model].relation_factor * dim + rank * floats(model, dim)
    return weight_bytes(entities, floats(model, dim, rank), shared, precision, whole)
