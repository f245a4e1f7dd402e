"""The runtime's scanner: every path held to float64 arithmetic, and to each other to the last bit."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgdistil.answer import native
from kgdistil.answer.native import Codes, Floats, packed, tiled
from kgdistil.errors import ConfigError

PATHS = list(native.libraries())  # plain, and what else this processor has
ALL = [*PATHS, False]
KINDS = [("dot", 1), ("distance", 1), ("distance", 2), ("modulus", 1), ("modulus", 2)]
SHAPES = [(1, 2), (63, 3), (64, 7), (65, 8), (331, 33), (1000, 32), (90, 258), (130, 512)]
HOW = ["normal", "whole numbers", "equal", "zero", "huge ranges", "tiny", "far off", "one group decides", "one is wide"]

needs_build = pytest.mark.skipif(not PATHS, reason="the scanner was not built: python setup.py build_ext --inplace")


def some_codes(seed: int, entities: int, groups: int) -> np.ndarray:
    codes = np.random.default_rng(seed).integers(16, size=(entities, groups)).astype(np.uint8)
    codes[entities // 2 :] = codes[: entities - entities // 2].copy()  # every entity but one has a twin
    return codes


def some_tables(seed: int, n: int, groups: int, how: str) -> np.ndarray:
    """Tables float32 [n, M, 16]."""
    draw = np.random.default_rng(seed)
    made, scale = draw.normal(size=(n, groups, 16)), draw.normal(size=(n, groups, 1))
    made = {
        "whole numbers": made.round(),
        "equal": np.broadcast_to(scale, made.shape),
        "zero": 0 * made,
        "huge ranges": made * np.exp(10 * scale.clip(-3, 3)) * 1e20,
        "tiny": made * 1e-42,
        "far off": 1000 * scale + 0.001 * made,
        "one is wide": made * np.where(np.arange(groups) == 1, 12, 1)[:, None],  # as in trained codebooks
        "one group decides": made * np.where(np.arange(groups) == 0, 1e6, 1)[:, None],
    }.get(how, made)
    return made.astype(np.float32)


def of_tables(codes: np.ndarray, made: np.ndarray, path: str | bool) -> tuple[Codes, np.ndarray]:
    """Codes, and queries whose tables are these: query i is the i-th unit vector, a group's vectors its tables."""
    n, groups, _ = made.shape
    columns = np.tile(np.arange(n, dtype=np.int32), groups)
    book = np.ascontiguousarray(made.transpose(1, 2, 0))
    return Codes(packed(codes), len(codes), book, columns, width=n, native=path), np.eye(n, dtype=np.float32)


def spans(seed: int, entities: int, n: int, target: np.ndarray) -> native.Known:
    """What to leave out: much of some queries, nothing of others; every second query knows its target."""
    draw, known, start = np.random.default_rng(seed), [], [0]
    for i in range(n):
        chosen = draw.random(entities) < (0, 0.02, 0.5, 1)[i % 4]
        chosen[target[i]] |= bool(i % 2)
        known.append(np.flatnonzero(chosen))
        start.append(start[-1] + len(known[-1]))
    ends = np.array(start)
    return ends[:-1].copy(), ends[1:].copy(), np.concatenate([*known, [0]]).astype(np.int32)


def free(known: native.Known, entities: int) -> np.ndarray:
    out = np.ones((len(known[0]), entities), bool)
    for row, start, end in zip(out, *known[:2]):
        row[known[2][start:end]] = False
    return out


def words(allowed: np.ndarray) -> np.ndarray:
    """Bits [..., E] as uint64 [..., ⌈E/64⌉]."""
    room = [(0, 0)] * (allowed.ndim - 1) + [(0, -allowed.shape[-1] % 64)]
    return np.packbits(np.pad(allowed, room), axis=-1, bitorder="little").view("<u8")


def same(mine: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(a.view(np.int32), b.view(np.int32)) for a, b in zip(mine, theirs, strict=True))


def exact(codes: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Scores [n, E] in float64."""
    return made.astype(np.float64)[:, np.arange(codes.shape[1]), codes].sum(-1)


def assert_best(scores: np.ndarray, candidates: np.ndarray, found: tuple[np.ndarray, np.ndarray], slack: float) -> None:
    """Answers are those of a full sort of float64 scores, and in order."""
    for row, there, score, best in zip(scores, candidates, *found):
        count = min(len(score), int(there.sum()))
        assert (best[count:] == -1).all() and (score[count:] == -np.inf).all()
        ids = best[:count]
        assert there[ids].all() and len(set(ids.tolist())) == count
        np.testing.assert_allclose(score[:count], np.sort(row[there])[::-1][:count], rtol=1e-5, atol=slack)
        np.testing.assert_allclose(score[:count], row[ids], rtol=1e-5, atol=slack)
        pairs = list(zip((-score[:count]).tolist(), ids.tolist()))
        assert pairs == sorted(pairs)  # of ties the lower id first


def assert_between(
    scores: np.ndarray, others: np.ndarray, target: np.ndarray, counts: tuple, slack: np.ndarray
) -> None:
    """Counts lie between those of scores surely above and possibly above, in float64."""
    ahead = scores - np.take_along_axis(scores, target[:, None], 1)
    others = others & (np.arange(scores.shape[1]) != target[:, None])
    greater, equal = counts
    assert (greater >= ((ahead > slack) & others).sum(1)).all()
    assert (greater + equal <= ((ahead >= -slack) & others).sum(1)).all() and (equal >= 0).all()


def test_layouts():
    codes, rows = some_codes(1, 70, 5), np.arange(70 * 3, dtype=np.float32).reshape(70, 3)
    lain, tiles = packed(codes), tiled(rows)
    assert lain.shape == (2, 3, 64) and tiles.shape == (5, 3, 16)
    for e in range(128):
        for m in range(6):
            there = codes[e, m] if e < 70 and m < 5 else 0
            assert lain[e // 64, m // 2, e % 64] >> m % 2 * 4 & 15 == there
    for e in range(80):
        assert (tiles[e // 16, :, e % 16] == (rows[e] if e < 70 else 0)).all()


@pytest.mark.parametrize("entities, groups", SHAPES)
@pytest.mark.parametrize("how", HOW)
def test_counts_and_answers_of_every_path(entities, groups, how):
    codes, made = some_codes(groups, entities, groups), some_tables(groups, 9, groups, how)
    target = np.random.default_rng(1).integers(entities, size=9)
    known = spans(groups, entities, 9, target)
    k = min(10, entities + 3)
    scores, size = exact(codes, made), np.abs(made.astype(np.float64)).max(-1).sum(-1, keepdims=True)
    slack = size * 2.0**-22 * groups**0.5 + 1e-44
    first = None
    for path in ALL:
        coded, queries = of_tables(codes, made, path)
        counts, top = coded.counts(queries, target, known), coded.top(queries, k, known)
        if first is None:
            first = *counts, *top
            assert_between(scores, free(known, entities), target, counts, slack)
            twins = (codes == codes[target][:, None]).all(-1) & free(known, entities)
            twins[np.arange(9), target] = False
            assert (counts[1] >= twins.sum(1)).all()
            assert_best(scores, free(known, entities), top, float(slack.max()))
        assert same(first, (*counts, *top)), path
        allowed = np.random.default_rng(2).random((9, entities)) < 0.3
        some = coded.top(queries, k, known, words(allowed))
        assert_best(scores, free(known, entities) & allowed, some, float(slack.max()))
        shared = coded.top(queries, k, known, words(allowed[0]))
        assert same([x[0] for x in some], [x[0] for x in shared])
        assert_best(scores, free(known, entities) & allowed[0], shared, float(slack.max()))


@pytest.mark.parametrize("comparison, norm", KINDS)
@pytest.mark.parametrize("groups, size", [(6, 1), (7, 2), (5, 4), (3, 8)])
def test_scores_of_every_comparison(comparison, norm, groups, size):
    """The columns of a query lie anywhere, as [real | imaginary] does."""
    if comparison == "modulus" and size == 1:
        pytest.skip("half a complex number is no group")
    draw = np.random.default_rng(size)
    codes, width = some_codes(size, 200, groups), groups * size + 3
    columns = draw.permutation(width)[: groups * size].astype(np.int32)
    book = draw.normal(size=(groups, 16, size)).astype(np.float32)
    queries = draw.normal(size=(11, width)).astype(np.float32)
    rows = book.astype(np.float64)[np.arange(groups), codes].reshape(200, -1)
    scores = compared(queries.astype(np.float64)[:, columns], rows, comparison, norm, side_by_side=True)
    results = []
    for path in ALL:
        coded = Codes(packed(codes), 200, book, columns, comparison, norm, width, native=path)
        results.append((*coded.top(queries, 12), *coded.counts(queries, np.arange(11) * 7)))
        assert same(results[0], results[-1]), path
    assert_best(scores, np.ones_like(scores, bool), results[0][:2], 1e-5)


def compared(queries, rows, comparison, norm, side_by_side=False) -> np.ndarray:
    """Scores [n, E] in float64; complex numbers lie side by side, or as [real | imaginary]."""
    if comparison == "dot":
        return queries @ rows.T
    if comparison == "hyperplane":
        point, normal = np.split(queries, 2, axis=1)
        apart = point[:, None] - (rows - (normal @ rows.T)[..., None] * normal[:, None])
    else:
        apart = queries[:, None] - rows
    if comparison == "modulus":
        real_first = np.split(apart, 2, axis=-1)
        apart = np.hypot(*((apart[..., 0::2], apart[..., 1::2]) if side_by_side else real_first))
    return -np.linalg.norm(apart, norm, axis=-1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_counted_as_float32_counts_them(bad):
    """Bytes cannot stand for them, and an infinite range must not be cast to a whole number."""
    codes, made = some_codes(3, 300, 20), some_tables(3, 9, 20, "normal")
    target = np.arange(9) * 30
    for queries in (np.arange(0, 9, 2), np.arange(9)):
        book = made.copy()
        book[queries, 7, 3] = bad
        results = []
        for path in ALL:
            coded, _ = of_tables(codes, made, path)
            asked = np.eye(9, dtype=np.float32)
            asked[queries, 0] = bad
            results.append((*coded.counts(asked, target), *coded.top(asked, 5)))
            assert results[-1][3].max() < 300
            assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(results[0], results[-1])), path


@needs_build
@pytest.mark.parametrize("groups", [5, 32, 101])
@pytest.mark.parametrize("how", ["normal", "whole numbers", "far off"])
def test_targets_at_every_depth_of_many_entities(groups, how):
    """How a query is passed changes from chunk to chunk with how many entities come near its target."""
    entities, depths = 9001, (0, 1, 3, 10, 40, 150, 600, 1500, 4500, 8999)
    codes, made = some_codes(groups, entities, groups), some_tables(groups, 40, groups, how)
    made *= np.linspace(2, 0.1, groups, dtype=np.float32)[:, None] ** 2
    scores = exact(codes, made)
    order = np.argsort(-scores, axis=1, kind="stable")
    target = np.array([row[depths[i % len(depths)]] for i, row in enumerate(order)])
    results = []
    for path in ALL:
        coded, queries = of_tables(codes, made, path)
        results.append((*coded.counts(queries, target), *coded.top(queries, 3)))
        assert same(results[0], results[-1]), path
    assert results[0][0].max() > 4000 and (results[0][0] < 5).any()
    slack = np.abs(made).max(-1).sum(-1, keepdims=True) * 2.0**-22 * groups**0.5
    assert_between(scores, np.ones_like(scores, bool), target, results[0][:2], slack)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    entities=st.integers(1, 700),
    groups=st.sampled_from([2, 3, 5, 8, 13]),
    n=st.integers(0, 11),
    k=st.integers(1, 900),
    threads=st.integers(1, 3),
    how=st.sampled_from(["normal", "whole numbers", "huge ranges", "far off", "one is wide"]),
)
def test_random_shapes(seed, entities, groups, n, k, threads, how):
    codes, made = some_codes(seed, entities, groups), some_tables(seed, max(n, 1), groups, how)
    target = np.random.default_rng(seed).integers(entities, size=n)
    known, results = spans(seed, entities, n, target), []
    for path in ALL:
        coded, queries = of_tables(codes, made, path)
        counts = coded.counts(queries[:n], target, known, threads=threads)
        results.append((*counts, *coded.top(queries[:n], k, known, threads=threads)))
        assert same(results[0], results[-1]), path
        assert results[-1][2].shape == (n, k)


@needs_build
@pytest.mark.parametrize("path", PATHS)
def test_a_read_only_map_at_an_odd_address(path, tmp_path: Path):
    codes, made = some_codes(5, 500, 9), some_tables(5, 4, 9, "normal")
    coded, queries = of_tables(codes, made, path)
    file = tmp_path / "codes"
    file.write_bytes(b"odd" + packed(codes).tobytes())
    lain = np.memmap(file, np.uint8, "r", offset=3, shape=(8, 5, 64))
    columns = np.tile(np.arange(4, dtype=np.int32), 9)
    mapped = Codes(lain, 500, np.ascontiguousarray(made.transpose(1, 2, 0)), columns, width=4, native=path)
    assert np.shares_memory(mapped.packed, lain) and same(mapped.top(queries, 9), coded.top(queries, 9))
    rows = np.random.default_rng(1).normal(size=(3, 5, 16)).astype(np.float32)
    file.write_bytes(b"odd" + rows.tobytes())
    lain = np.memmap(file, np.float32, "r", offset=3, shape=rows.shape)
    asked = np.ones((2, 5), np.float32)
    assert same(Floats(lain, 40, native=path).top(asked, 9), Floats(rows, 40, native=path).top(asked, 9))


@needs_build
def test_many_entities_and_any_number_of_threads_give_the_same():
    """Above two megabytes the blocks of one query, and the queries of a list, are dealt out to threads."""
    entities = 2**20 + 3
    draw = np.random.default_rng(6)
    lain = draw.integers(256, size=(-(-entities // 64), 4, 64), dtype=np.uint8)
    lain[-1, :, 3:] = 0
    lain[5:9], lain[-9:-5] = lain[4], lain[4]  # ties near both ends
    book = draw.normal(size=(7, 16, 1)).astype(np.float32)
    queries = draw.normal(size=(11, 7)).astype(np.float32)
    e = np.full(11, 4 * 64 + 5)
    results = []
    for path in PATHS:
        coded = Codes(lain, entities, book, np.arange(7, dtype=np.int32), native=path)
        for threads in (1, 2, 3) if path == PATHS[-1] else (2,):
            for some in (queries, queries[:1]):
                results.append((*coded.top(some, 300, threads=threads), *coded.counts(some, e[: len(some)])))
                assert same([x[:1] for x in results[0]], [x[:1] for x in results[-1]])
                assert same(results[-1], [x[: len(some)] for x in results[0]])
    assert (results[0][3] >= 8).all()
    score, best = Codes(lain, entities, book, np.arange(7, dtype=np.int32), native=False).top(queries[:1], 300)
    assert same((score, best), [x[:1] for x in results[0][:2]])


# ---- rows -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("entities, groups", SHAPES)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("path", ALL)
def test_the_best_of_those_that_are_listed(entities, groups, how, path):
    """As `top` of them alone, to the last bit, in whatever order they come; the codes may be the first of more."""
    n, k = 5, 7
    codes, made = some_codes(groups, entities, groups), some_tables(groups, n, groups, how)
    scanned, queries = of_tables(codes, made, path)
    draw, listed = np.random.default_rng(1), np.full((n, min(entities, 40) + 2), -1, np.int32)
    allowed = np.zeros((n, entities), bool)
    for row, bits, count in zip(listed, allowed, (0, 1, 5, 20, 40)):
        some = draw.permutation(entities)[:count]
        row[draw.permutation(len(row))[: len(some)]], bits[some] = some, True
    found = scanned.best_of(queries, listed, k)
    assert same(found, scanned.top(queries, k, None, words(allowed)))
    longer = np.concatenate([scanned.packed, draw.integers(256, size=(len(scanned.packed), 3, 64), dtype="u1")], axis=1)
    first = longer[:, : scanned.packed.shape[1]]
    book = scanned.book.transpose(0, 2, 1)
    part = Codes(first, entities, book, scanned.columns, width=n, native=path)
    assert not first.flags.c_contiguous or len(first) == 1
    assert same(part.best_of(queries, listed, k), found) and same(part.top(queries, k), scanned.top(queries, k))
    assert same(part.counts(queries, np.zeros(n, int)), scanned.counts(queries, np.zeros(n, int)))


@pytest.mark.parametrize("comparison, norm", [*KINDS, ("hyperplane", 1), ("hyperplane", 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("entities, width", [(1, 2), (16, 6), (63, 4), (65, 32), (700, 10)])
def test_rows(comparison, norm, dtype, entities, width):
    draw = np.random.default_rng(entities)
    stored = draw.normal(size=(entities, width)) * (30 if dtype == np.int8 else 1)
    stored = stored.round().clip(-127, 127).astype(dtype) if dtype == np.int8 else stored.astype(dtype)
    stored[entities // 2 :] = stored[: entities - entities // 2].copy()
    scale = None
    rows = stored.astype(np.float32)
    if dtype == np.int8:
        scale = (draw.random(entities) / 30).astype(np.float32)
        scale[entities // 2 :] = scale[: entities - entities // 2].copy()
        rows = rows * scale[:, None]
    queries = draw.normal(size=(13, width * (2 if comparison == "hyperplane" else 1))).astype(np.float32)
    scores = compared(queries.astype(np.float64), rows.astype(np.float64), comparison, norm)
    target = draw.integers(entities, size=13)
    known = spans(entities, entities, 13, target)
    allowed = draw.random((13, entities)) < 0.5
    slack = 1e-5 * max(1, width) ** 0.5
    for path in ALL:
        floats = Floats(tiled(stored), entities, scale, comparison, norm, native=path)
        assert_best(scores, free(known, entities), floats.top(queries, 12, known), slack)
        assert_best(scores, np.ones_like(allowed), floats.top(queries[:3], 5)[:2], slack)
        assert_best(scores, free(known, entities) & allowed, floats.top(queries, 12, known, words(allowed)), slack)
        counts = floats.counts(queries, target, known)
        assert_between(scores, free(known, entities), target, counts, slack)
        twins = (rows == rows[target][:, None]).all(-1) & free(known, entities)
        twins[np.arange(13), target] = False
        assert (counts[1] >= twins.sum(1)).all()
        first = known[0][:1], known[1][:1], known[2]
        assert same([x[:1] for x in counts], floats.counts(queries[:1], target[:1], first))


@pytest.mark.parametrize("path", ALL)
def test_halves_of_every_value(path):
    """All float16 numbers, subnormal ones too, by whatever converts them."""
    values = np.arange(1 << 16).astype(np.uint16).view(np.float16)
    values = values[~np.isnan(values)]
    floats = Floats(tiled(values[:, None]), len(values), native=path)
    score, best = floats.top(np.ones((1, 1), np.float32), len(values))
    assert np.array_equal(score[0], values[best[0]].astype(np.float32))
    assert np.array_equal(score[0], -np.sort(-values.astype(np.float32)))


@pytest.mark.parametrize("path", ALL)
def test_many_rows(path):
    draw = np.random.default_rng(4)
    rows = draw.normal(size=(20_001, 40)).astype(np.float16)
    queries = draw.normal(size=(70, 40)).astype(np.float32)
    scores = queries.astype(np.float64) @ rows.T.astype(np.float64)
    target = np.argsort(-scores, axis=1)[:, 9]
    floats = Floats(tiled(rows), 20_001, native=path)
    for threads in (1, 2):
        assert_best(scores, np.ones_like(scores, bool), floats.top(queries, 10, threads=threads), 1e-4)
        counts = floats.counts(queries, target, threads=threads)
        assert_between(scores, np.ones_like(scores, bool), target, counts, np.full((70, 1), 1e-4))
        assert same([x[:2] for x in counts], floats.counts(queries[:2], target[:2], threads=threads))


# ---- what is refused ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ALL)
def test_what_does_not_fit_is_refused_in_one_line(path):
    codes, made = some_codes(1, 70, 4), some_tables(1, 3, 4, "normal")
    coded, queries = of_tables(codes, made, path)
    book, columns, lain = np.zeros((4, 16, 2), np.float32), np.arange(8, dtype=np.int32), packed(codes)
    floats = Floats(np.zeros((5, 4, 16), np.float32), 70, native=path)
    start = np.zeros(3, np.int64)
    refused = [
        lambda: coded.top(queries, 0),
        lambda: coded.top(queries[:, :2], 1),
        lambda: coded.top(queries.astype(complex), 1),
        lambda: coded.top(queries[0], 1),
        lambda: coded.top(queries, 1, allowed=np.zeros(1, np.uint64)),
        lambda: coded.top(queries, 1, (start, start[:2], np.zeros(1, np.int32))),
        lambda: coded.top(queries, 1, (start, start + 2, np.zeros(1, np.int32))),
        lambda: coded.counts(queries, np.array([0, 1, 70])),
        lambda: coded.counts(queries, np.array([0, 1])),
        lambda: floats.top(np.zeros((1, 5), np.float32), 1),
        lambda: Codes(lain[:1], 70, book, columns, native=path),
        lambda: Codes(lain, 70, book, columns + 1, native=path),
        lambda: Codes(lain, 70, book, columns, "hyperplane", native=path),
        lambda: Codes(lain, 70, book[:, :, :1], columns[:4], "modulus", native=path),
        lambda: Codes(lain, 70, book, columns, norm=3, native=path),
        lambda: Codes(lain[:, :, ::-1], 70, book, columns, native=path),
        lambda: Codes(lain, 70, np.zeros((513, 16, 1), np.float32), np.arange(513), native=path),
        lambda: Floats(np.zeros((5, 4, 16), np.int8), 70, native=path),
        lambda: Floats(np.zeros((5, 4, 16)), 70, native=path),
        lambda: Floats(np.zeros((5, 3, 16), np.float32), 70, None, "modulus", native=path),
        lambda: Codes(lain, 70, book, columns, native="mmx"),
        lambda: Floats(np.zeros((0, 4, 16), np.float32), 0, native=path),
    ]
    for ask in refused:
        with pytest.raises(ConfigError) as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ALL)
def test_listed_entities_that_are_none_are_refused(path):
    scanned, queries = of_tables(some_codes(0, 70, 8), some_tables(0, 2, 8, "normal"), path)
    for listed, why in (([[0, 70], [1, 2]], "targets from 0 to 70"), ([[0], [1], [2]], r"listed is .*\[3, 1\]")):
        with pytest.raises(ConfigError, match=why):
            scanned.best_of(queries, np.array(listed, np.int32), 3)
    with pytest.raises(ConfigError, match="k = 0"):
        scanned.best_of(queries, np.zeros((2, 1), np.int32), 0)
    book, columns = scanned.book.transpose(0, 2, 1)[:4], scanned.columns[:8]
    with pytest.raises(ConfigError, match="packed is uint8"):  # steps that lie apart
        Codes(scanned.packed[:, ::2], 70, book, columns, width=2, native=path)


@needs_build
def test_too_many_answers_are_no_crash():
    """The library tells of memory that is not there; Python raises it."""
    with pytest.raises(MemoryError, match="fewer queries"):
        native._enough(1, native.libraries()[PATHS[0]].kgd_codes, ())


def test_without_the_library_numpy_answers_after_one_line(monkeypatch, caplog):
    codes, made = some_codes(1, 70, 4), some_tables(1, 3, 4, "normal")
    native.default.cache_clear()
    monkeypatch.setenv("KGDISTIL_NATIVE", "0")
    for _ in range(2):
        coded, queries = of_tables(codes, made, True)
        assert coded.library is None and coded.top(queries, 2)[1].shape == (3, 2)
    native.default.cache_clear()
    assert len([r for r in caplog.records if "times slower" in r.getMessage()]) == 1
