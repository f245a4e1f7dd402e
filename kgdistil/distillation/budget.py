"""What fits into so many bytes, or milliseconds, and what is best of that by what was measured (`frontier`)."""

from __future__ import annotations

import importlib
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kgdistil import kernels
from kgdistil.compress.packing import encode
from kgdistil.compress.scan import CodedRanker
from kgdistil.compress.size import GROUPS, PART, PRECISION_OF, floats, model_bytes, row_bytes, whole_count
from kgdistil.config import make_config
from kgdistil.distillation import advice, rule, scale
from kgdistil.errors import ConfigError, needs, short
from kgdistil.graph import Graph
from kgdistil.models import MODELS, ComplEx, KGEModel, build_model
from kgdistil.students.predict import top

Shape = tuple[int, str, int]  # of a student: dimension, precision, rank
SHAPES = 4  # that a search chooses from at most, since each is trained once as ever before anything is drawn
DIMENSIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
STEPS = tuple(sorted({*DIMENSIONS, *(3 * d // 2 for d in DIMENSIONS[1:])}))  # of students of few bits
FREQUENT = 0.25  # of training triples' places, from which on the entities there are worth a sixteenth of the bytes
FINEST, COARSEST = (PRECISION_OF[choose(GROUPS.values())] for choose in (min, max))  # most and fewest bits a number
HUBS: tuple[str, Shape] = ("ComplEx", (64, FINEST, 32))  # the student whose room for whole entities says if there are
NARROW = 16  # complex numbers of a student up to which few floats, rounded to 4 bits, keep more than learned codes
WIDEST = 256  # floats of an entity up to which a student beside whole ones takes fewer bits for more of them
SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0}
ROUNDED = ("float16", "int8")  # that numbers of 32 bits are in at little cost, where they do not fit
UNMEASURED = "what such a student keeps was not measured on other graphs; what it is on this one is measured below"
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Plan:
    """What a budget buys: a student, and the dimension of the teacher it should have."""

    model: str
    dim: int
    precision: str
    teacher_dim: int
    bytes: int
    expected: str  # what it is expected to lose: what was measured on other graphs
    seconds: float | None = None  # of one query, where time is the budget
    rank: int = 0  # floats of an entity of low rank; 0: as many as the model has
    why: str = ""  # this one, and nothing larger
    whole: bool = False  # whether the entities of most triples have no codes (`whole_of`)

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", {self.seconds * 1e3:.3g} ms for the ten best answers here"
        rank = f" and rank {self.rank}" if self.rank else ""
        whole = ", those of most triples whole" if self.whole else ""
        shape = f"{self.model} of dimension {self.dim}{rank}, {self.precision}{whole}"
        return f"{shape}: {self.bytes:,} bytes of weights{time}"


def plan(
    graph: Graph, budget: str | int, model: str | None = None, teacher_dim: int = 64, few_bits: bool = False
) -> Plan:
    """The student for a budget.

    The one that kept most of its teacher's MRR on the measured frontier, of those that fit; the largest, where they
    kept the same to a hundredth. Of few bits, where such a student fits at all, though none so small was measured: few
    floats mostly keep less (`paper.bench.budgets`). Where none fits, or a model is asked for, it has float, half or
    int8 numbers: the largest dimension whose weights or answers fit, and for it the finest precision, since int8 costs
    little, which `distil` measures, and halving the dimension costs much.

    Args:
        budget: bytes, or a text such as "2MB", "500 kB" or "1GiB"; bytes of an entity, as "16B/entity", to which what
            all share may come; or the time of one query on this machine, as "2ms".
        model: its kind, where it is not the frontier's to decide.
        teacher_dim: of the teacher of such a model; on the frontier a student has as many floats as its teacher.
        few_bits: a student of few bits wherever one fits, as a search takes them.
    Raises:
        ConfigError: neither a size nor a time, or too small for any student.
    """
    limit, seconds, each = room(graph, budget)
    best = on_frontier(graph, limit, seconds, teacher_dim, each) if model is None else None
    if model is None and limit and best is None:
        best = below_the_measured(graph, limit, each, few_bits)
    if best and limit and not (each or few_bits):
        best = with_a_wider_teacher(best, teacher_dim)
    if best and (best.precision in GROUPS or not few_bits):
        return of_the_rule(graph, best, limit, each)
    kind = MODELS.get(model or "RotatE")
    if kind is None:
        raise ConfigError(f"model is {model!r}: choose one of {', '.join(MODELS)}")
    if few_bits and limit and (coded := of_few_bits(graph, limit, model or "ComplEx", each)):
        return coded
    name = kind.__name__
    dims = sorted({d for d in DIMENSIONS if d < teacher_dim} | {teacher_dim})
    waits: dict[int, float] = {}
    if seconds is not None:  # larger ones are slower still, so the first that is too slow ends the search
        for dim in dims:
            waits[dim] = patiently(graph, seconds, name, dim)
            if waits[dim] > seconds:
                break
        dims = [dim for dim in waits if waits[dim] <= seconds]
        if not dims:
            raise ConfigError(
                f"budget is {budget}: the smallest {name} of this graph takes "
                f"{1e3 * min(waits.values()):.3g} ms a query here"
            )
    sizes = {
        (dim, precision): bytes_of(graph, name, dim, precision)
        for dim in dims
        for precision in (*reversed(ROUNDED), "float32")  # the finest that fits stays
    }
    counted = {key: spent(graph, each, name, *key) for key in sizes}
    fitting = [key for key, size in counted.items() if limit is None or size <= limit]
    if not fitting:
        least = {(name, *key): size for key, size in counted.items()}
        if few_bits or (model is None and not advice.frontier(graph).empty):
            least |= shapes_of_few_bits(graph, model or "ComplEx", each)
        size, at = min((size, key) for key, size in least.items())
        give = f"{-(-size // graph.num_entities)}B/entity" if each else f"{size}B"
        takes = f"{at[0]} of dimension {at[1]} in {at[2]}, takes {bytes_of(graph, *at):,} bytes"
        raise ConfigError(f"budget is {budget}: the smallest student of this graph, {takes}; give {give} or more")
    dim, precision = fitting[-1]
    told = "the budget holds a model as large as the teacher, so no student is needed"
    if dim < teacher_dim:
        told = advice.kept(dim / teacher_dim)
    further, slower = list(sizes)[list(sizes).index((dim, precision)) + 1 :], [d for d in waits if d not in dims]
    if further:
        why = f"the next larger one, {further[0][1]} of dimension {further[0][0]}, takes {sizes[further[0]]:,} bytes"
    elif slower:
        why = f"dimension {slower[0]} takes {1e3 * waits[slower[0]]:.3g} ms a query here"
    else:
        why = "no student is larger than its teacher"
    return Plan(name, dim, precision, teacher_dim, sizes[dim, precision], told, waits.get(dim), why=why)


def on_frontier(
    graph: Graph, limit: int | None, seconds: float | None, teacher_dim: int, each: bool = False
) -> Plan | None:
    """The best student of the measured frontier that fits; None where none does, or none was measured.

    `each`: the limit is the entities' alone.
    """
    sized = limit is not None
    for row in advice.frontier(graph, sized and hubs(graph), sized).itertuples():
        if (measured := PRECISION_OF.get(row.group)) is None:
            continue
        for precision in (measured, *ROUNDED) if measured == "float32" else (measured,):
            made = {"model": row.model, "dim": row.dim, "precision": precision, "rank": row.rank}
            size, wait = bytes_of(graph, **made), None
            if limit is not None and spent(graph, each, **made) > limit:
                continue
            if seconds is not None and (wait := patiently(graph, seconds, **made)) > seconds:
                continue
            large = row.dim if row.group else teacher_dim
            why = "of the measured students that fit the budget, this one kept most: a larger one would not be better"
            why += f"; it was measured in {measured}" if precision != measured else ""
            return Plan(**made, teacher_dim=large, bytes=size, expected=row.told, seconds=wait, why=why)
    return None


def below_the_measured(graph: Graph, limit: int, each: bool, coded: bool) -> Plan | None:
    """The student of few bits for a budget that is too small for all on the frontier; None where none was measured.

    Of few complex numbers in all, those of most bits, unless codes are to be learned: see `with_a_wider_teacher`.
    """
    found = None if advice.frontier(graph).empty else of_few_bits(graph, limit, "ComplEx", each)
    if found and found.dim <= NARROW and not (each or coded):
        return of_few_bits(graph, limit, "ComplEx", each, (FINEST,)) or found
    return found


def with_a_wider_teacher(found: Plan, teacher_dim: int) -> Plan:
    """The same student, of 4 bits and at most `NARROW` complex numbers, from a teacher of more, rounded when trained.

    Codes that are learned begin as their teacher's numbers, which then are as few; such a student keeps less
    (`paper.bench.budgets`). Any other student stays.
    """
    if found.precision != FINEST or found.rank or found.dim > min(NARROW, teacher_dim - 1):
        return found
    why = f"{found.why}; so small a one has floats, and a larger teacher, until it is trained"
    return replace(found, teacher_dim=teacher_dim, expected=UNMEASURED, why=why)


def of_the_rule(graph: Graph, found: Plan, limit: int | None, each: bool) -> Plan:
    """The same student as the kind of model that a rule of the graph's figures takes, where that fits as well, one of
    low rank with fewer numbers of four bits; on graphs with hubs one `with_whole` entities.

    Of as many bytes four bits a number were the best in the one search of low ranks (FB15k-237).
    """
    kind = rule.kind(graph) if found.precision in GROUPS and found.teacher_dim == found.dim else None
    if kind is None or limit is None:
        return found
    shape = (found.dim, found.precision, found.rank)
    finer = (found.dim, FINEST, found.rank * GROUPS[FINEST] // GROUPS[found.precision]) if found.rank else shape
    for dim, precision, rank in dict.fromkeys((finer, shape)):
        size = bytes_of(graph, kind, dim, precision, rank)
        if spent(graph, each, kind, dim, precision, rank) <= limit:
            made: dict[str, Any] = {"model": kind, "precision": precision, "rank": rank, "bytes": size}
            return with_whole(graph, replace(found, **made), limit, each)
    return with_whole(graph, found, limit, each)


def with_whole(graph: Graph, found: Plan, limit: int, each: bool) -> Plan:
    """A student that fits as well, a sixteenth of whose entities' bytes is for those of most triples, where these are
    in enough.

    The others then have as many numbers as there is room for, in fewer bits: what they lose by that they lose alone.
    Of very many entities those would have one bit a number; there they have a quarter as many, of low rank, of four
    bits. Elsewhere not of low rank, where whole entities were below codes alone at most sizes (FB15k-237, `whole-2bit`,
    `whole-1bit`).
    """
    if found.rank and not (scale.listed(graph) and found.precision == FINEST):
        return found
    made, factor, own = found.model, MODELS[found.model].entity_factor, GROUPS[found.precision]
    codes = row_bytes(made, found.dim, own, found.rank) * PART // (PART + 1)
    wider = [g for g in GROUPS.values() if g > own and 2 * codes * g <= WIDEST]
    shapes: list[Shape] = [(2 * codes * g // factor, PRECISION_OF[g], 0) for g in sorted({own, *wider}, reverse=True)]
    if scale.listed(graph) and shapes[0][1] == COARSEST and issubclass(MODELS[made], ComplEx):
        shapes.insert(0, (shapes[0][0], FINEST, 2 * codes))
    if found.rank:
        shapes = [(found.dim * 2 * codes // found.rank, FINEST, 2 * codes)]
    for dim, precision, rank in shapes:
        count = whole_of(graph, made, (dim, precision, rank))
        if MODELS[made].distance or not count or frequency(graph, count) < FREQUENT:
            continue
        size = bytes_of(graph, made, dim, precision, rank, count)
        if spent(graph, each, made, dim, precision, rank, count) > limit:
            continue
        why = f"{count:,} entities stand in so many triples that they stay whole, and the others share what is left"
        told = found.expected if found.rank else UNMEASURED
        shape: dict[str, Any] = {"dim": dim, "precision": precision, "rank": rank, "bytes": size, "whole": True}
        teacher_dim = dim if found.teacher_dim == found.dim else found.teacher_dim
        return replace(found, **shape, teacher_dim=teacher_dim, why=why, expected=told)
    return found


def hubs(graph: Graph) -> bool:
    """Whether a few of very many entities stand in so many training triples that they are worth being whole."""
    return scale.listed(graph) > 0 and frequency(graph, whole_of(graph, *HUBS)) >= FREQUENT


def frequency(graph: Graph, count: int) -> float:
    """The share of the places of training triples that so many entities of most of them take."""
    times = torch.bincount(graph.train[:, [0, 2]].flatten(), minlength=graph.num_entities)
    return float(times.sort(descending=True).values[:count].sum() / times.sum())


def whole_of(graph: Graph, model: str, shape: Shape) -> int:
    """How many entities of a student of that shape are whole, for a fifteenth of its codes' bytes."""
    dim, precision, rank = shape
    width = floats(model, dim, rank)
    return whole_count(graph.num_entities, width, row_bytes(model, dim, GROUPS[precision], rank))


def shapes_of_few_bits(
    graph: Graph, model: str, each: bool, precisions: Sequence[str] = tuple(GROUPS)
) -> dict[tuple[str, int, str], int]:
    """Bytes of a budget by model, dimension and precision."""
    shapes = [
        (model, dim, x) for x in precisions for dim in STEPS if MODELS[model].entity_factor * dim % GROUPS[x] == 0
    ]
    return {shape: spent(graph, each, *shape) for shape in shapes}


def of_few_bits(
    graph: Graph, limit: int, model: str, each: bool = False, precisions: Sequence[str] = tuple(GROUPS)
) -> Plan | None:
    """The student of most bytes an entity that fits, of those the one of most floats; None where none does."""
    shapes = shapes_of_few_bits(graph, model, each, precisions)
    fitting = [(row_bytes(model, dim, GROUPS[x]), dim, x) for (_, dim, x), size in shapes.items() if size <= limit]
    if not fitting:
        return None
    _, dim, precision = max(fitting)
    size, why = bytes_of(graph, model, dim, precision), "of the students of few bits, this is the largest that fits"
    return Plan(model, dim, precision, dim, size, UNMEASURED, why=why)


def searched(graph: Graph, found: Plan, budget: str | int, kinds: Sequence[str]) -> tuple[list[str], list[Shape]]:
    """What a search may choose from beside the plan: of those kinds of model, and of the shapes that are `alike`, all
    whose students fit the budget as well. Of a time no other shape, since it was measured for the plan's alone."""
    limit, _, each = room(graph, budget)

    def fit(kind: str, shape: Shape) -> bool:
        whole = whole_of(graph, kind, shape) if found.whole else 0
        return limit is None or spent(graph, each, kind, *shape, whole) <= limit

    shape = found.dim, found.precision, found.rank
    others = [kind for kind in kinds if kind != found.model and fit(kind, shape)]
    shapes = alike(graph, found.model, shape)[1:] if limit is not None else []
    return others, [x for x in shapes if all(fit(kind, x) for kind in (found.model, *others))]


def alike(graph: Graph, model: str, shape: Shape) -> list[Shape]:
    """The shape itself, then others of few bits with as many bytes an entity, none of which takes more in all.

    Of a low rank, the map's dimension, which is the teacher's, is halved.
    """
    (dim, precision, rank), factor = shape, MODELS[model].entity_factor
    each = row_bytes(model, dim, GROUPS[precision], rank)
    others = [(2 * each * group // factor, name, 0) for name, group in GROUPS.items()]
    if factor * (dim // 2) > rank > 0:
        others = [(dim // 2, precision, rank), *others]
    fitting = [x for x in others if x != shape and x[0] and row_bytes(model, x[0], GROUPS[x[1]], x[2]) == each]
    return [shape, *(x for x in fitting if bytes_of(graph, model, *x) <= bytes_of(graph, model, *shape))][:SHAPES]


def bytes_of(graph: Graph, model: str, dim: int, precision: str, rank: int = 0, whole: int = 0) -> int:
    """Bytes of the weights of such a model of a graph."""
    return model_bytes(graph.num_entities, graph.num_relations, model, dim, precision, rank, whole)


def spent(graph: Graph, each: bool, model: str, dim: int, precision: str, rank: int = 0, whole: int = 0) -> int:
    """What of them counts for a budget: all, or `each`, what is not shared."""
    shared = shared_bytes(graph, model, dim, precision, rank) if each else 0
    return bytes_of(graph, model, dim, precision, rank, whole) - shared


def shared_bytes(graph: Graph, model: str, dim: int, precision: str, rank: int = 0) -> int:
    """Those of them that are no entity's: relations, a map, a codebook."""
    return model_bytes(0, graph.num_relations, model, dim, precision, rank)


def patiently(graph: Graph, limit: float, *size: Any, **more: Any) -> float:
    """`query_seconds`, the best of three where it is above the limit: the machine may have been busy for a moment."""
    best = query_seconds(graph, *size, **more)
    for _ in range(2):
        if best > limit:
            best = min(best, query_seconds(graph, *size, **more))
    return best


def query_seconds(
    graph: Graph, model: str, dim: int, precision: str = "float32", rank: int = 0, queries: int = 30
) -> float:
    """Median seconds to find the ten best tails of one query, by an untrained model of that size."""
    options = make_config(model=model, dim=dim).model_options
    asked = build_model(model, graph.num_entities, graph.num_relations, dim, rank=rank, **options)
    ranker = fastest(asked, precision)
    heads, relations, taken = graph.train[:, 0], graph.train[:, 1], []
    for i in range(queries + 1):
        at = slice(i % len(heads), i % len(heads) + 1)
        began = time.perf_counter()
        top(asked, heads[at], relations[at], "tail", 10, None, ranker)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def fastest(model: KGEModel, precision: str) -> kernels.Ranker | CodedRanker | None:
    """What answers a student's queries: a scan of its codes, the kernel for floats, or nothing but torch."""
    if precision in GROUPS:
        return CodedRanker(model, *encode(model, precision))
    return kernels.Ranker(model) if kernels.usable(model) and kernels.rank_library(model) else None


def room(graph: Graph, budget: str | int) -> tuple[int | None, float | None, bool]:
    """Bytes or seconds of a budget, the other one None, and whether the bytes are those of the entities alone.

    Raises:
        ConfigError: neither.
    """
    (limit, seconds), each = parse_budget(budget), "/" in str(budget)
    return limit and limit * graph.num_entities if each else limit, seconds, each


def parse_budget(budget: str | int) -> tuple[int | None, float | None]:
    """Bytes or seconds of a budget such as "2MB" or "2ms"; the other one is None. Of "16B/entity", 16.

    Raises:
        ConfigError: neither.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(us|µs|ms|s)", str(budget).strip())
    if found is None:
        return parse_size(str(budget).strip().removesuffix("/entity"), budget), None
    if float(found[1]) == 0:
        raise ConfigError(f"budget is {budget!r}: it must be more than no time at all")
    return None, float(found[1]) * SECONDS[found[2]]


def parse_size(budget: str | int, given: str | int | None = None) -> int:
    """Bytes of "2MB", "500 kB", "1GiB" or a number; `given`: what an error is to show.

    Raises:
        ConfigError: not a size.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})", str(budget).strip())
    if found is None or found[2].lower() not in UNITS or float(found[1]) == 0:
        raise ConfigError(
            f"budget is {str(given or budget)[:80]!r}: it must be a size, as 2MB or 16B/entity, or a time, as 2ms"
        )
    return int(float(found[1]) * UNITS[found[2].lower()])


def parse_time(given: str | float) -> float:
    """Seconds of "30min", "2h" or "90s", or a number of them; a text without a unit may mean minutes, and is refused.

    Raises:
        ConfigError: not a time, or none at all.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(s|min|h|)", str(given).strip())
    if found is None or isinstance(given, bool):
        raise ConfigError(f"time is {short(given)}: it must be a time, as 30min, 2h or 90s")
    if float(found[1]) == 0:
        raise ConfigError(f"time is {short(given)}: it must be more than no time at all")
    if isinstance(given, str) and not found[2]:
        raise ConfigError(f"time is {short(given)}: say {found[1]}s, {found[1]}min or {found[1]}h")
    return float(found[1]) * SECONDS[found[2]]


def search_seconds(given: str | float | None, precision: str, *teachers: Any) -> float | None:
    """The seconds of a search, where one is asked for and can be made; None for none.

    Raises:
        ConfigError: not a time, or there is a teacher already, or a student that is not of few bits.
        KgdistilError: optuna is missing.
    """
    if given is None:
        return None
    seconds = parse_time(given)
    if any(teacher is not None for teacher in teachers):
        raise ConfigError("time is for a search that trains teachers, too: leave teacher and teacher_lists out")
    if precision not in GROUPS:
        few = ", ".join(GROUPS)
        raise ConfigError(f"time is for students of few bits: precision is {precision!r}, not one of {few}")
    with needs("optuna", "a search (time)", "search"):
        importlib.import_module("optuna")
    return seconds
