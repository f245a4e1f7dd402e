"""Top-k answers and filtered ranks over entities that are four-bit codes, or rows of numbers, wherever they lie.

`scan.cpp` is compiled when the package is built, once for each instruction set (setup.py); the best library that this
processor can run is taken. Without one, or with `KGDISTIL_NATIVE=0`, numpy does the same, after one log line.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgdistil.errors import ConfigError, KgdistilError

log = logging.getLogger("kgdistil")
Array = NDArray[Any]
Known = tuple[Array, Array, Array]  # start and end int64 [n], ids int32: what to leave out of query i, ascending

KINDS = ("dot", "distance", "modulus", "hyperplane")
LEVELS = ("plain", "avx2", "avx512")  # of `kgd_level`; elsewhere than on x86-64 there is but the first
BLOCK, LANES, MOST_GROUPS = 64, 16, 512
NUMBERS = 1 << 21  # scores that numpy holds at a time, in a handful of arrays: about 40 MB
# How many times numpy's path took the compiled one's time for the ten best of one query, one thread of a Zen 5 with
# AVX-512, 32 groups of ComplEx, random codes: 32 against 0.33 ms with 1,000,000 entities; with 40,943, 75 times.
SLOWER = 97


# ---- libraries ------------------------------------------------------------------------------------------------------
class Job(ctypes.Structure):
    """Mirrors scan.cpp."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("entities", "scale", "queries", "book", "columns", "target", "goal")]
        + [(name, ctypes.c_void_p) for name in ("known_start", "known_end", "known", "allowed")]
        + [(name, ctypes.c_void_p) for name in ("greater", "equal", "score", "best")]
        + [(name, ctypes.c_int64) for name in ("n", "num_entities", "width", "next_allowed", "groups", "size", "row")]
        + [(name, ctypes.c_int32) for name in ("kind", "squared", "type", "threads", "k", "unused")]
    )


@functools.cache
def libraries() -> dict[str, ctypes.CDLL]:
    """The compiled libraries that this processor can run, the best one last; empty where none was built."""
    checked = os.environ.get("KGDISTIL_SANITIZE") == "1"  # `make sanitize`
    folder = Path(os.environ.get("KGDISTIL_CACHE", ""), "kgdistil", "answer") if checked else Path(__file__).parent
    found: dict[str, ctypes.CDLL] = {}
    for level, name in enumerate(LEVELS):
        try:
            library = ctypes.CDLL(str(folder / f"_scan_{name}.so"))
        except OSError:  # it was not built
            continue
        if level == 0:
            best = library.kgd_level()
        elif not found or level > best:
            break
        library.kgd_size.restype = ctypes.c_int64
        if library.kgd_size() != ctypes.sizeof(Job):
            place = library._name  # noqa: SLF001 - there is no other way to its path
            raise KgdistilError(f"{place} is of another release: install kgdistil again")
        for function in (library.kgd_codes, library.kgd_listed, library.kgd_rows):
            function.argtypes, function.errcheck = [ctypes.POINTER(Job)], _enough
        found[name] = library
    return found


@functools.cache
def default() -> str | None:
    """The name of the library to use, or None after one log line."""
    off = os.environ.get("KGDISTIL_NATIVE") == "0"
    if not off and libraries():
        return list(libraries())[-1]
    why = "KGDISTIL_NATIVE=0" if off else "it was not built: install kgdistil where there is a C++ compiler"
    log.warning("the compiled scanner is off (%s): numpy answers, about %d times slower", why, SLOWER)
    return None


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _enough(result: Any, function: Any, _: Any) -> Any:
    if result:
        raise MemoryError(f"{function.__name__}: not enough memory; ask fewer queries at a time, or a smaller k")
    return result


def _address(x: Array) -> int:
    return x.__array_interface__["data"][0]


def _refuse(what: str, x: Any, wanted: str) -> None:
    found = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else repr(x)
    raise ConfigError(f"{what} is {found}; it must be {wanted}")


def _as(what: str, x: Any, dtype: type, *shapes: tuple[int | None, ...]) -> Array:
    """`x` itself where it is contiguous and of that type, else such a copy; None fits any length.

    Raises:
        ConfigError: another shape, or a type that does not fit.
    """
    if not isinstance(x, np.ndarray):
        x = np.asarray(x)
    if not any(len(s) == x.ndim and all(a in (None, b) for a, b in zip(s, x.shape)) for s in shapes) or (
        x.dtype != dtype and not np.can_cast(x.dtype, dtype, "same_kind")
    ):
        _refuse(what, x, f"{np.dtype(dtype)} " + " or ".join(str(list(s)).replace("None", "any") for s in shapes))
    if x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned:
        return x
    return np.require(x, dtype, ["C", "A"])


def _mapped(what: str, x: Any, dtypes: tuple[type, ...], shape: tuple[int | None, ...], of_more: bool = False) -> Array:
    """`x` as it lies, at any address, never copied; `of_more`: it may be the first rows of longer blocks."""
    fits = isinstance(x, np.ndarray) and x.ndim == len(shape) and all(a in (None, b) for a, b in zip(shape, x.shape))
    inner = x[0] if fits and of_more and len(x) and x.strides[0] >= x[0].nbytes else x
    if not fits or x.dtype not in dtypes or not inner.flags.c_contiguous:
        names = " or ".join(str(np.dtype(d)) for d in dtypes)
        _refuse(what, x, f"contiguous {names} {str(list(shape)).replace('None', 'any')}")
    return x.view(np.ndarray)


def _missing(allowed: Array, first: int, count: int) -> Array:
    """Whose bits are not set, bool [.., count], from entity `first` on, a multiple of 64."""
    words = np.ascontiguousarray(allowed[..., first // BLOCK : -(-(first + count) // BLOCK)], "<u8")
    return np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[..., :count] == 0


# ---- layouts --------------------------------------------------------------------------------------------------------
def packed(codes: Array) -> Array:
    """Codes uint8 [E, M] from 0 to 15 as `Codes` takes them, uint8 [⌈E/64⌉, ⌈M/2⌉, 64]."""
    entities, groups = codes.shape
    room = np.zeros((-(-entities // BLOCK) * BLOCK, -(-groups // 2) * 2), np.uint8)
    room[:entities, :groups] = codes
    steps = room[:, 0::2] | room[:, 1::2] << 4
    return np.ascontiguousarray(steps.reshape(-1, BLOCK, steps.shape[1]).transpose(0, 2, 1))


def tiled(rows: Array) -> Array:
    """Rows [E, W] as `Floats` takes them, [⌈E/16⌉, W, 16]."""
    room = np.zeros((-(-len(rows) // LANES) * LANES, rows.shape[1]), rows.dtype)
    room[: len(rows)] = rows
    return np.ascontiguousarray(room.reshape(-1, LANES, rows.shape[1]).transpose(0, 2, 1))


# ---- what both kinds of entities share ------------------------------------------------------------------------------
class Scanner:
    """Questions and answers of `Codes` and `Floats`; their `_scores` are numpy's path."""

    num_entities: int
    width: int  # of a query
    _function: str
    _squared: bool  # scores are −√ of what the library adds up, so that sums may be compared in their place
    _chunk = 1 << 14  # entities whose scores numpy makes at a time

    def _start(self, num_entities: int, comparison: str, norm: int, native: str | bool | None, **fields: Any) -> None:
        """Choose the library and keep what every call hands to it."""
        if num_entities < 1 or num_entities >= 1 << 31 or norm not in (1, 2):
            raise ConfigError(f"{num_entities} entities, norm {norm}: at least one and below 2³¹, and norm 1 or 2")
        self.num_entities, self.comparison, self.norm = num_entities, comparison, norm
        name = default() if native in (None, True) else native or None
        if name is not None and name not in libraries():
            raise ConfigError(f"native is {name!r}; this processor and build have {', '.join(libraries()) or 'none'}")
        self.library, self.native = libraries()[name] if name else None, name or False
        self._job = Job(kind=KINDS.index(comparison), squared=norm == 2, num_entities=num_entities, **fields)

    def top(
        self,
        queries: Array,
        k: int,
        leave_out: Known | None = None,
        allowed: Array | None = None,
        threads: int | None = None,
    ) -> tuple[Array, Array]:
        """The k best entities of each query: scores float32 and ids int32 [n, k], best first, of ties the lower id.

        Past the last candidate stand −inf and −1. A score that is no number is no candidate.

        Args:
            queries: float32 [n, width]. leave_out: `Known`.
            allowed: bits of the entities that may come, uint64 [⌈E/64⌉] or [n, ⌈E/64⌉]: bit e % 64 of word e // 64.
            threads: at most; None: as many as cores. Small questions take one.
        Raises:
            ConfigError: k below 1, or arrays of another shape or type. MemoryError: too many answers at a time.
        """
        if k < 1:
            raise ConfigError(f"k = {k}: ask for at least one entity")
        queries, known, allowed = self.checked(queries, leave_out, allowed)
        n, blocks = len(queries), -(-self.num_entities // BLOCK)
        score, best = np.empty((n, k), np.float32), np.empty((n, k), np.int32)
        if self.library is None:
            self._best(queries, known, allowed, score, best)
        else:
            more: dict[str, Any] = {"k": k, "score": _address(score), "best": _address(best)}
            if allowed is not None:
                more.update(allowed=_address(allowed), next_allowed=blocks if allowed.ndim == 2 else 0)
            self._run(queries, known, threads, more)
        return (-np.sqrt(-score) if self._squared else score), best

    def counts(
        self,
        queries: Array,
        target: Array,
        leave_out: Known | None = None,
        threads: int | None = None,
        allowed: Array | None = None,
        goal: Array | None = None,
    ) -> tuple[Array, Array]:
        """How many entities score above, and how many equal to, the target of each query; int32 [n] each.

        Args:
            queries: float32 [n, width]. target: int64 [n]; it does not count itself.
            leave_out: `Known`, whether the target is among them or not.
            allowed: as of `top`, the same for all queries: who is counted.
            goal: float32 [n], what the targets score, where they lie elsewhere (target −1) or are known already; of
                a distance of norm 2 to codes minus the square. None: as they lie here.
        Raises:
            ConfigError: arrays of another shape or type, targets that are no entities.
        """
        queries, known, allowed = self.checked(queries, leave_out, allowed)
        target = self.targets(target, len(queries), 0 if goal is None else -1)
        if allowed is not None and allowed.ndim > 1:
            _refuse("allowed", allowed, "the same for all queries")
        if goal is not None:
            goal = _as("goal", goal, np.float32, (len(queries),))
        greater, equal = np.zeros((2, len(queries)), np.int32)
        if self.library is None:
            self._count(queries, known, target, greater, equal, allowed, goal)
        else:
            more = {"target": _address(target), "greater": _address(greater), "equal": _address(equal)}
            more |= {name: _address(x) for name, x in (("allowed", allowed), ("goal", goal)) if x is not None}
            self._run(queries, known, threads, more)
        return greater, equal

    def scores_of(self, queries: Array, entities: Array) -> Array:
        """Scores float32 [n] of each query and its own entity [n], as `counts` compares them, by numpy's path."""
        found = np.empty(len(queries), np.float32)
        for n, e in enumerate(entities):
            first = e // BLOCK * BLOCK
            last = min(first + BLOCK, self.num_entities)
            found[n] = self._scores(self._prepared(queries[n : n + 1]), first, last)[0, e - first]
        return found

    def checked(
        self, queries: Array, leave_out: Known | None, allowed: Array | None = None
    ) -> tuple[Array, Known | None, Array | None]:
        """What `top` and `counts` are given, in the types that the library takes; ConfigError where it does not fit."""
        queries = _as("queries", queries, np.float32, (None, self.width))
        n, blocks = len(queries), -(-self.num_entities // BLOCK)
        if allowed is not None:
            allowed = _as("allowed", allowed, np.uint64, (blocks,), (n, blocks))
        return queries, self._known(n, leave_out), allowed

    def targets(self, target: Array, n: int, least: int = 0) -> Array:
        """Int64 [n]; ConfigError where they are no entities."""
        target = _as("target", target, np.int64, (n,))
        if len(target) and not least <= target.min() <= target.max() < self.num_entities:
            raise ConfigError(f"targets from {target.min()} to {target.max()}; there are {self.num_entities} entities")
        return target

    def _known(self, n: int, known: Known | None) -> Known | None:
        if known is None:
            return None
        start, end = (_as(f"leave_out's {what}", x, np.int64, (n,)) for what, x in zip(("start", "end"), known))
        ids = _as("leave_out's ids", known[2], np.int32, (None,))
        low, high = (
            min(start.tolist(), default=0),
            max(end.tolist(), default=0),
        )  # of a few in a fraction of numpy's time
        if low < 0 or high > len(ids):
            raise ConfigError(f"leave_out's spans reach from {low} to {high}; there are {len(ids)} ids")
        return start, end, ids

    def _run(
        self, queries: Array, known: Known | None, threads: int | None, more: dict[str, Any], function: str = ""
    ) -> None:
        job = Job.from_buffer_copy(self._job)
        job.queries, job.n = _address(queries), len(queries)
        job.threads = cores() if threads is None else threads
        if known is not None:
            job.known_start, job.known_end, job.known = map(_address, known)
        for name, value in more.items():
            setattr(job, name, value)
        getattr(self.library, function or self._function)(job)

    # ---- numpy's path ----
    def _prepared(self, queries: Array) -> Array:
        return queries

    def _scores(self, prepared: Array, first: int, last: int) -> Array:
        """Scores [n, last − first] of entities first to last; first is a multiple of 64."""
        raise NotImplementedError

    def _parts(
        self, queries: Array, known: Known | None, target: Array | None = None
    ) -> Iterator[tuple[slice, int, Array, Array]]:
        """Queries and entities part by part: the queries' slice, the first entity, scores, and what is left out."""
        few = max(1, NUMBERS // 8 // self._chunk)
        for i in range(0, len(queries), few):
            part = slice(i, min(i + few, len(queries)))
            prepared = self._prepared(queries[part])
            for first in range(0, self.num_entities, self._chunk):
                last = min(first + self._chunk, self.num_entities)
                out = np.zeros((part.stop - part.start, last - first), bool)
                for row, n in zip(out, range(part.start, part.stop)):
                    ids = known[2][known[0][n] : known[1][n]] if known is not None else np.empty(0, np.int32)
                    row[ids[np.searchsorted(ids, first) : np.searchsorted(ids, last)] - first] = True
                    if target is not None and first <= target[n] < last:
                        row[target[n] - first] = True
                yield part, first, self._scores(prepared, first, last), out

    def _best(self, queries: Array, known: Known | None, allowed: Array | None, score: Array, best: Array) -> None:
        k = score.shape[1]
        score[:], best[:] = -np.inf, -1
        for part, first, found, left_out in self._parts(queries, known):
            if allowed is not None:
                left_out[:] |= _missing(allowed if allowed.ndim == 1 else allowed[part], first, found.shape[1])
            for row, out, into, ids in zip(found, left_out, score[part], best[part]):
                held = int((ids >= 0).sum())
                at = np.flatnonzero(~out & ((row > into[-1]) if held == k else (row == row)))
                if len(at) > k:  # the k-th best, and all that tie with it
                    at = at[row[at] >= -np.partition(-row[at], k - 1)[k - 1]]
                both = np.concatenate([into[:held], row[at]]), np.concatenate([ids[:held], at + first])
                order = np.lexsort((both[1], -both[0]))[:k]
                into[: len(order)], ids[: len(order)] = both[0][order], both[1][order]

    def _count(
        self,
        queries: Array,
        known: Known | None,
        target: Array,
        greater: Array,
        equal: Array,
        allowed: Array | None,
        goal: Array | None,
    ) -> None:
        goal = self.scores_of(queries, target) if goal is None else goal
        for part, first, found, out in self._parts(queries, known, target):
            bar = goal[part, None]
            if allowed is not None:
                out[:] |= _missing(allowed, first, found.shape[1])
            greater[part] += ((found > bar) & ~out).sum(1, dtype=np.int32)
            equal[part] += ((found == bar) & ~out).sum(1, dtype=np.int32)


# ---- codes ----------------------------------------------------------------------------------------------------------
class Codes(Scanner):
    """Entities of M four-bit codes each; scores are sums over the groups of what a code stands for.

    A query becomes a table [M, 16]: of inner products, of −|q − b| or −(q − b)², or of −√(Re² + Im²), made in float32,
    coordinate by coordinate. A score is group m into partial sum m mod 4, (p₀ + p₁) + (p₂ + p₃): the same bits on every
    machine and path.

    Args:
        packed: uint8 [⌈E/64⌉, ⌈M/2⌉, 64]; byte e of step s holds code 2s of an entity in its low, 2s + 1 in its high
            four bits. May be a read-only memory map, and the first steps of more: it is used where it lies.
        book: float32 [M, 16, g], what the codes stand for. columns: int32 [M·g], where in a query they are wanted.
        comparison: "dot", "distance" or "modulus" (pairs of real and imaginary part, side by side in a group).
        norm: 1 or 2, of distances; with "modulus" 2 is the Euclidean distance too.
        width: of a query; None: M·g.
        native: the library's name in `libraries`; False: numpy; None: the best there is.
    Raises:
        ConfigError: arrays of another shape or type, an unknown comparison or norm.
    """

    _function = "kgd_codes"

    def __init__(
        self,
        packed: Array,
        num_entities: int,
        book: Array,
        columns: Array,
        comparison: str = "dot",
        norm: int = 1,
        width: int | None = None,
        native: str | bool | None = None,
    ):
        if comparison not in KINDS[:3]:
            raise ConfigError(f"comparison is {comparison!r}; codes know dot, distance and modulus")
        book = _as("book", book, np.float32, (None, 16, None))
        groups, _, size = book.shape
        if not 2 <= groups <= MOST_GROUPS or not size or (comparison == "modulus" and size % 2):
            even = ", of an even size for modulus" if comparison == "modulus" else ""
            raise ConfigError(f"book is {list(book.shape)}: codes come in 2 to {MOST_GROUPS} groups{even}")
        self.packed = _mapped("packed", packed, (np.uint8,), (-(-num_entities // BLOCK), -(-groups // 2), BLOCK), True)
        self.columns = _as("columns", columns, np.int32, (groups * size,))
        self.width = groups * size if width is None else width
        if not 0 <= self.columns.min() <= self.columns.max() < self.width:
            raise ConfigError(
                f"columns reach from {self.columns.min()} to {self.columns.max()} of {self.width} numbers"
            )
        if comparison == "modulus" and norm == 2:
            comparison = "distance"
        self.book = np.ascontiguousarray(book.transpose(0, 2, 1))
        self._squared = comparison == "distance" and norm == 2
        about = {"book": _address(self.book), "columns": _address(self.columns), "entities": _address(self.packed)}
        sizes = {"width": self.width, "groups": groups, "size": size, "row": self.packed.strides[0]}
        self._start(num_entities, comparison, norm, native, **about, **sizes)

    def _prepared(self, queries: Array) -> Array:
        """Tables float32 [n, M, 16]."""
        groups, size, _ = self.book.shape
        at = queries[:, self.columns].reshape(len(queries), groups, size)
        made = np.zeros((len(queries), groups, 16), np.float32)
        with np.errstate(all="ignore"):  # numbers that are none are the caller's; the library says nothing either
            if self.comparison == "dot":
                for i in range(size):
                    made += at[..., i, None] * self.book[:, i]
                return made
            apart = [at[..., i, None] - self.book[:, i] for i in range(size)]
            if self.comparison == "modulus":
                for real, imaginary in zip(apart[0::2], apart[1::2]):
                    made += np.sqrt(real * real + imaginary * imaginary)
            else:
                for x in apart:
                    made += x * x if self.norm == 2 else np.abs(x)
            return -made

    def best_of(self, queries: Array, listed: Array, k: int, threads: int | None = None) -> tuple[Array, Array]:
        """`top` among the entities that are listed for each query alone, and the same bits of their scores.

        Args:
            listed: int32 [n, m], different ones; −1 is none.
        Raises:
            ConfigError: k below 1, or entities that are none.
        """
        if k < 1:
            raise ConfigError(f"k = {k}: ask for at least one entity")
        queries, listed = _as("queries", queries, np.float32, (None, self.width)), np.sort(listed, axis=1)
        listed = _as("listed", listed, np.int32, (len(queries), None))
        n, m = listed.shape
        self.targets(listed.ravel(), n * m, -1)
        score, best = np.full((n, k), -np.inf, np.float32), np.full((n, k), -1, np.int32)
        first = (listed < 0).sum(1)
        if self.library is None:
            for row in range(n):
                ids = listed[row, first[row] :]
                found = self.scores_of(np.broadcast_to(queries[row], (len(ids), self.width)), ids)
                order = np.lexsort((ids, -found))[: min(k, int((found == found).sum()))]
                score[row, : len(order)], best[row, : len(order)] = found[order], ids[order]
        else:
            spans = m * np.arange(n) + first, m * np.arange(1, n + 1), np.ascontiguousarray(listed).ravel()
            more = {"k": k, "score": _address(score), "best": _address(best)}
            self._run(queries, self._known(n, spans), threads, more, "kgd_listed")
        return (-np.sqrt(-score) if self._squared else score), best

    def scores_of(self, queries: Array, entities: Array) -> Array:
        found, groups = np.empty(len(queries), np.float32), len(self.book)
        few = max(1, NUMBERS // (16 * groups))
        for part in (slice(i, i + few) for i in range(0, len(queries), few)):
            prepared, at = self._prepared(queries[part]), np.asarray(entities[part])
            bytes_ = self.packed[at // BLOCK, :, at % BLOCK]  # [n, ⌈M/2⌉]
            codes = np.stack([bytes_ & 15, bytes_ >> 4], axis=-1).reshape(len(at), -1)[:, :groups]
            each, sums = np.take_along_axis(prepared, codes[:, :, None], axis=2)[..., 0], np.zeros((4, len(at)), "f4")
            with np.errstate(all="ignore"):
                for m in range(groups):
                    sums[m % 4] += each[:, m]
                found[part] = (sums[0] + sums[1]) + (sums[2] + sums[3])
        return found

    def _scores(self, prepared: Array, first: int, last: int) -> Array:
        bytes_ = self.packed[first // BLOCK : -(-last // BLOCK)]
        part = np.zeros((4, len(prepared), len(bytes_) * BLOCK), np.float32)
        with np.errstate(all="ignore"):
            for m in range(prepared.shape[1]):
                step = bytes_[:, m // 2].reshape(-1)
                part[m % 4] += prepared[:, m].take(step >> 4 if m % 2 else step & 15, axis=1)
            return ((part[0] + part[1]) + (part[2] + part[3]))[:, : last - first]


# ---- rows -----------------------------------------------------------------------------------------------------------
class Floats(Scanner):
    """Entities that are rows of W numbers, in tiles of sixteen.

    Args:
        tiles: [⌈E/16⌉, W, 16] of float32, float16 or int8; may be a read-only memory map: it is used where it lies.
        scale: float32 [E], by which rows of int8 are multiplied; None otherwise.
        comparison: "dot" Σ qᵢeᵢ, "distance" −‖q − e‖ₚ, "modulus" the same of complex numbers, [real | imaginary], or
            "hyperplane" −‖q − (e − (w·e)w)‖ₚ, whose queries are [q | w].
        norm: p, 1 or 2.
        native: as of `Codes`.
    Raises:
        ConfigError: arrays of another shape or type, an unknown comparison or norm.
    """

    _function, _squared = "kgd_rows", False

    def __init__(
        self,
        tiles: Array,
        num_entities: int,
        scale: Array | None = None,
        comparison: str = "dot",
        norm: int = 1,
        native: str | bool | None = None,
    ):
        if comparison not in KINDS:
            raise ConfigError(f"comparison is {comparison!r}; rows know {', '.join(KINDS)}")
        types = (np.float32, np.float16, np.int8)
        self.tiles = _mapped("tiles", tiles, types, (-(-num_entities // LANES), None, LANES))
        row = self.tiles.shape[1]
        if not row or (comparison == "modulus" and row % 2):
            raise ConfigError(f"tiles are {list(self.tiles.shape)}: rows of {row} numbers do not make a {comparison}")
        self.scale = None
        if (scale is None) == (self.tiles.dtype == np.int8):
            raise ConfigError(f"tiles are {self.tiles.dtype}: rows of int8, and only they, have a scale")
        if scale is not None:
            self.scale = _mapped("scale", scale, (np.float32,), (num_entities,))
        if comparison == "modulus" and norm == 2:
            comparison = "distance"
        self.width = row * (2 if comparison == "hyperplane" else 1)
        about = {"entities": _address(self.tiles), "scale": None if self.scale is None else _address(self.scale)}
        sizes = {"width": self.width, "row": row, "type": types.index(self.tiles.dtype.type)}
        self._start(num_entities, comparison, norm, native, **about, **sizes)

    _chunk = 1 << 12

    def _scores(self, prepared: Array, first: int, last: int) -> Array:
        tiles = self.tiles[first // LANES : -(-last // LANES)]
        row, scale = tiles.shape[1], None
        if self.scale is not None:
            scale = np.zeros(len(tiles) * LANES, np.float32)
            scale[: last - first] = self.scale[first:last]
        numbers = (tiles[:, i].reshape(-1).astype(np.float32) for i in range(row))
        rows = [x if scale is None else x * scale for x in numbers]
        q = prepared.T[:, :, None]  # [width, n, 1]
        s = np.zeros((len(prepared), len(tiles) * LANES), np.float32)
        with np.errstate(all="ignore"):
            if self.comparison == "dot":
                for i, x in enumerate(rows):
                    s += q[i] * x
                return s[:, : last - first]
            if self.comparison == "modulus":
                for i in range(row // 2):
                    s -= np.sqrt((q[i] - rows[i]) ** 2 + (q[row // 2 + i] - rows[row // 2 + i]) ** 2)
                return s[:, : last - first]
            along = np.zeros_like(s)
            if self.comparison == "hyperplane":
                for i, x in enumerate(rows):
                    along += q[row + i] * x
            for i, x in enumerate(rows):
                u = q[i] - x
                if self.comparison == "hyperplane":
                    u += along * q[row + i]
                s += u * u if self.norm == 2 else np.abs(u)
            return (-np.sqrt(s) if self.norm == 2 else -s)[:, : last - first]
