"""Negatives (Eq. 2) and the order of an epoch: pure functions, uniform, and never a triple of T."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kgdistil.sampling import (
    ATTEMPTS,
    GOLDEN,
    NEGATIVE_STREAM,
    ORDER_STREAM,
    TripleSet,
    corrupt,
    epoch_order,
    mix,
    stream,
)

U64 = (1 << 64) - 1
SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def graphs(draw) -> tuple[torch.Tensor, int, int]:
    """Different triples [n, 3] of a random small graph, from nearly empty to complete, and its sizes E and R."""
    entities, relations = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    cells = st.integers(0, entities * relations * entities - 1)
    codes = torch.tensor(draw(st.lists(cells, min_size=1, max_size=60, unique=True)))
    h, rest = codes // (relations * entities), codes % (relations * entities)
    return torch.stack([h, rest // entities, rest % entities], dim=1), entities, relations


def split_mix(x: int) -> int:
    """SplitMix64's output function in Python's integers (Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & U64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & U64
    return x ^ (x >> 31)


def naive_corrupt(triples: list[list[int]], k: int, true: set[tuple[int, ...]], entities: int, base: int):
    """`corrupt`, one draw at a time: [(entity, is_tail, kept)] in the order of triples and corruptions."""
    found = []
    for place in range(len(triples) * k):
        h, r, t = triples[place // k]
        for attempt in range(ATTEMPTS):
            bits = split_mix((base + (32 * place + attempt) * 0x9E3779B97F4A7C15) & U64)
            entity, is_tail = (bits >> 32) * entities >> 32, bool(bits & 1)
            kept = ((h, r, entity) if is_tail else (entity, r, t)) not in true
            if kept:
                break
        found.append((entity, is_tail, kept))
    return found


def draw_negatives(triples, k, entities, relations, seed=0, step=0):
    base = stream(seed, NEGATIVE_STREAM, step)
    return corrupt(triples, k, TripleSet(triples, entities, relations), base)


def chi_square_is_plausible(counts: torch.Tensor) -> bool:
    """Whether counts [cells] may come from equal probabilities: within six standard deviations of what is expected."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    return ((counts - expected) ** 2 / expected).sum() < freedom + 6 * math.sqrt(2 * freedom)


def test_numbers_are_split_mix_64():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    ours = mix(1234567 + torch.arange(1, 6) * GOLDEN)
    assert (
        [x & U64 for x in ours.tolist()]
        == published
        == [split_mix((1234567 + i * 0x9E3779B97F4A7C15) & U64) for i in range(1, 6)]
    )


@given(graphs(), st.integers(1, 6), SEEDS, st.integers(0, 10**9))
def test_corruptions_of_any_graph(graph, k, seed, step):
    triples, entities, relations = graph
    entity, is_tail, kept = draw_negatives(triples, k, entities, relations, seed, step)
    assert entity.shape == is_tail.shape == kept.shape == (len(triples), k)
    assert entity.dtype == torch.int64 and is_tail.dtype == kept.dtype == torch.bool
    true = {tuple(x) for x in triples.tolist()}
    for row, (h, r, t) in enumerate(triples.tolist()):
        for e, tail, keep in zip(*(x[row].tolist() for x in (entity, is_tail, kept))):
            assert 0 <= e < entities
            corrupted = (h, r, e) if tail else (e, r, t)
            assert keep == (corrupted not in true)  # so the triple itself is never kept
    base = stream(seed, NEGATIVE_STREAM, step).item()
    found = zip(*(x.flatten().tolist() for x in (entity, is_tail, kept)))
    assert list(found) == naive_corrupt(triples.tolist(), k, true, entities, base)


@given(graphs(), SEEDS)
def test_membership(graph, seed):
    triples, entities, relations = graph
    true = {tuple(x) for x in triples.tolist()}
    everything = torch.cartesian_prod(*map(torch.arange, (entities, relations, entities)))
    everything = everything[epoch_order(seed, 0, len(everything))]
    known = TripleSet(torch.cat([triples, triples]), entities, relations)
    assert known.contains(*everything.T).tolist() == [tuple(x) in true for x in everything.tolist()]


def test_a_pure_function_of_seed_and_step(tiny_graph):
    def draw(**at):
        return draw_negatives(tiny_graph.train, 5, 30, 4, **at)

    first = draw(seed=3, step=7)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(seed=3, step=7)))
    for other in (draw(seed=3, step=8), draw(seed=4, step=7)):
        assert (first[0] == other[0]).float().mean() < 0.2  # by chance one in thirty
        assert 0.4 < (first[1] == other[1]).float().mean() < 0.6
    # the first triples of a batch do not depend on what follows them
    known = TripleSet(tiny_graph.train, 30, 4)
    part = corrupt(tiny_graph.train[:9], 5, known, stream(3, NEGATIVE_STREAM, 7))
    assert all(torch.equal(a[:9], b) for a, b in zip(first, part))


@pytest.mark.parametrize("seeds, steps", [((0, 1), (0, 0)), ((0, 0), (0, 1)), ((0, 1), (1, 0))])
def test_streams_share_no_numbers(seeds, steps):
    """Neighbouring seeds, steps and kinds do not walk the same counter."""
    numbers = [
        stream(seed, kind, step) + torch.arange(10_000) * GOLDEN
        for seed, step in zip(seeds, steps)
        for kind in (ORDER_STREAM, NEGATIVE_STREAM)
    ]
    assert len(torch.cat(numbers).unique()) == 40_000


@pytest.mark.parametrize("triple", [(3, 0, 11), (5, 0, 5)])
def test_entities_and_sides_are_uniform(triple):
    triples, entities = torch.tensor([triple]), 20
    entity, is_tail, kept = draw_negatives(triples, 40_000, entities, 1)
    assert kept.all()  # eight draws in a row at one true triple in twenty: one in 10¹⁰
    counts = torch.bincount((entity + entities * is_tail).flatten(), minlength=2 * entities)
    h, _, t = triple
    assert counts[h] == counts[entities + t] == 0  # the triple itself
    others = torch.ones(2 * entities, dtype=torch.bool)
    others[[h, entities + t]] = False
    assert chi_square_is_plausible(counts[others].double())


def test_steps_and_places_are_uniform_too():
    """One number from each of many steps, as a single triple of a small batch sees them."""
    triples = torch.tensor([[0, 0, 1], [2, 0, 3]])
    known = TripleSet(triples, 10, 1)
    draws = [corrupt(triples, 1, known, stream(0, NEGATIVE_STREAM, step)) for step in range(4000)]
    for place, (h, t) in enumerate(((0, 1), (2, 3))):
        cells = torch.stack([e[place, 0] + 10 * tail[place, 0] for e, tail, _ in draws])
        counts = torch.bincount(cells, minlength=20).double()
        assert counts[h] == counts[10 + t] == 0
        assert chi_square_is_plausible(counts[counts > 0])


def test_where_every_corruption_is_true_all_are_dropped():
    complete = torch.cartesian_prod(torch.arange(6), torch.tensor([0]), torch.arange(6))
    sparse = torch.tensor([[0, 1, 1]])
    triples = torch.cat([complete, sparse])
    _, _, kept = draw_negatives(triples, 8, 6, 2)
    assert not kept[:-1].any() and kept[-1].all()
    _, _, kept = draw_negatives(torch.tensor([[0, 0, 0]]), 3, 1, 1)  # one entity, one relation
    assert not kept.any()


def test_a_nearly_full_relation_is_redrawn():
    """Half of the draws are true: after eight attempts one in 256 is given up, not one in two."""
    pairs = torch.cartesian_prod(torch.arange(40), torch.tensor([0]), torch.arange(40))
    triples = pairs[epoch_order(0, 0, len(pairs))[:800]]
    _, _, kept = draw_negatives(triples, 20, 40, 1)
    assert 0.5**ATTEMPTS / 3 < 1 - kept.float().mean() < 0.5**ATTEMPTS * 3


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 1023, 4097, 86_835])
def test_the_order_of_an_epoch_is_a_permutation(count):
    order = epoch_order(1, 2, count)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(count))
    assert torch.equal(order, epoch_order(1, 2, count))
    if count > 5:
        assert not torch.equal(order, epoch_order(1, 3, count))
        assert not torch.equal(order, epoch_order(2, 2, count))
        assert abs((order.diff() > 0).float().mean() - 0.5) < 0.2  # neither ascending nor descending


def test_every_triple_comes_first_equally_often():
    orders = torch.stack([epoch_order(0, epoch, 6) for epoch in range(3000)])
    for place in range(6):
        assert chi_square_is_plausible(torch.bincount(orders[:, place], minlength=6).double())
