"""Ids of a step, compiled and readable: grouped, drawn, spans in a row."""

import pytest
import torch

from kgdistil import kernels
from kgdistil.graphs.queries import drawn_besides, spans
from kgdistil.kernels import ids
from kgdistil.sampling import NEGATIVE_STREAM, stream


@pytest.fixture(params=["compiled", "readable"])
def path(request, monkeypatch) -> str:
    if request.param == "readable":
        monkeypatch.setattr(ids, "compiled", lambda *_: None)
    return request.param


@pytest.mark.parametrize(
    "given", [[], [7], [5, 0, 5, 8, 8, 5, 2], [1 << 31, 3, 1 << 31, (1 << 32) - 1, 0], [1 << 32, 0]]
)
def test_ids_are_grouped(path: str, given: list[int]) -> None:
    own, order, start, place = kernels.grouped(torch.tensor(given, dtype=torch.int64))
    assert own.tolist() == sorted(set(given)) and start[0] == 0 and start[-1] == len(given)
    assert [given[i] for i in order] == sorted(given)
    for i, id_ in enumerate(own.tolist()):
        at = order[start[i] : start[i + 1]].tolist()
        assert at == [j for j, x in enumerate(given) if x == id_]  # in the order in which they stood
    assert [own[i] for i in place] == given


def test_many_ids_are_grouped_as_pytorch_does(path: str) -> None:
    given = torch.randint(0, 9_000_000, (5000,), generator=torch.Generator().manual_seed(0)) // 3000
    own, order, start, place = kernels.grouped(given)
    expected = given.unique(return_inverse=True, return_counts=True)
    assert torch.equal(own, expected[0]) and torch.equal(place, expected[1]) and torch.equal(start.diff(), expected[2])
    assert torch.equal(order, given.argsort(stable=True))


@pytest.mark.parametrize("size", [1, 50, 8_000_000])
def test_draws_are_those_of_the_stream_without_what_is_there(path: str, size: int) -> None:
    base = stream(3, NEGATIVE_STREAM, 11)
    own = torch.arange(0, min(size, 20), 3)
    found = drawn_besides(own, base, 300, size)
    assert torch.equal(found, expected_draws(own, base, size))
    assert not len(found) if size == 1 else len(found) > 100


def expected_draws(own: torch.Tensor, base: torch.Tensor, size: int) -> torch.Tensor:
    """By Python's whole numbers."""
    mask, found = (1 << 64) - 1, []
    for i in range(300):
        x = (int(base) + i * 0x9E3779B97F4A7C15) & mask
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
        found.append(((x ^ x >> 31) >> 32) * size >> 32)
    return torch.tensor([x for x in found if x not in set(own.tolist())], dtype=torch.int64)


def test_spans_are_laid_in_a_row(path: str) -> None:
    row, places = spans(torch.tensor([4, 0, 9, 2]), torch.tensor([2, 0, 1, 3]))
    assert row.tolist() == [0, 0, 2, 3, 3, 3] and places.tolist() == [4, 5, 9, 2, 3, 4]
    nothing = torch.tensor([], dtype=torch.int64)
    assert [x.tolist() for x in spans(nothing, nothing)] == [[], []]
