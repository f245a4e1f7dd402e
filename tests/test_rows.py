"""The rows that a step uses: into the type of its products, and back by Adagrad, compiled and readable."""

import pytest
import torch

from kgdistil.kernels import SHAPES, Gradients, adagrad, among, rows, rows_in
from kgdistil.kernels.rows import EPSILON


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["compiled", "readable"])
def path(request, monkeypatch) -> str:
    if request.param == "readable":
        monkeypatch.setattr(rows, "compiled", lambda *_: None)
    return request.param


PLACES = torch.tensor([5, 0, 5, 8, 8, 5, 2])
PARTS = [random(3, 6).to(torch.bfloat16), random(2, 6, seed=1), random(2, 6, seed=2)]


def expected() -> torch.Tensor:
    found = torch.zeros(9, 6)
    for place, row in zip(PLACES.tolist(), torch.cat([x.float() for x in PARTS]), strict=True):
        found[place] += row
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_rounded_as_pytorch_rounds_and_padded(path: str, dtype: torch.dtype) -> None:
    table, places = random(9, 6), PLACES
    found = rows_in(dtype, table, places)
    assert len(found) == SHAPES and not found[len(places) :].any()
    assert torch.equal(found[: len(places)], table[places].to(dtype))


def test_gradients_of_a_row_are_added(path: str) -> None:
    found = Gradients(PLACES, PARTS)
    assert found.ids.tolist() == [0, 2, 5, 8]
    assert torch.allclose(found.summed(), expected()[found.ids])
    one = Gradients(PLACES[:3], PARTS[:1])
    assert torch.allclose(one.summed(), torch.stack([PARTS[0][1].float(), PARTS[0][0].float() + PARTS[0][2].float()]))


@pytest.mark.parametrize("by_row", [True, False])
def test_a_step_is_adagrads_and_leaves_other_rows_alone(path: str, by_row: bool) -> None:
    table, sums, gradient = random(9, 6), random(9, 1 if by_row else 6, seed=3).abs(), expected()
    squares = gradient.square().mean(1, keepdim=True) if by_row else gradient.square()
    after = sums + squares
    moved = table - 0.1 * gradient / (after.sqrt() + EPSILON)
    used = torch.zeros(9, dtype=torch.bool).index_fill_(0, PLACES, True)
    before = table.clone(), sums.clone()
    Gradients(PLACES, PARTS).adagrad(table, sums, 0.1)
    assert torch.allclose(table[used], moved[used], atol=1e-6) and torch.allclose(sums[used], after[used])
    assert torch.equal(table[~used], before[0][~used]) and torch.equal(sums[~used], before[1][~used])


@pytest.mark.parametrize("size", [(3, 5), (300, 200)])  # of which the second is shared out among threads
@pytest.mark.parametrize("turned", [False, True])  # a view that does not lie in a row
def test_a_step_of_a_whole_tensor_is_adagrads(path: str, size: tuple[int, int], turned: bool) -> None:
    leaf, sums, gradient = (random(*size, seed=i) for i in range(3))
    leaf, sums, gradient = (x.T if turned else x for x in (leaf, sums.abs(), gradient))
    after = sums + gradient.square()
    moved = leaf - 0.1 * gradient / (after.sqrt() + EPSILON)
    leaf.grad = gradient
    adagrad(leaf, sums, 0.1)
    assert torch.allclose(leaf, moved, atol=1e-6) and torch.allclose(sums, after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_columns_of_rows_are_those_of_the_table(path: str, dtype: torch.dtype) -> None:
    table, ids, columns = random(9, 6).to(dtype), torch.tensor([8, 0, 8]), torch.tensor([5, 1, 1, 0])
    found = among(table, ids, columns, torch.full((3, 7), 9.0, dtype=dtype))
    assert torch.equal(found[:, :4], table[ids][:, columns]) and found.shape == (3, 7) and not found[:, 4:].any()
    for outside in ((torch.tensor([9]), columns), (ids[:1], torch.tensor([6]))):
        with pytest.raises(IndexError):
            among(table, *outside, torch.zeros(1, 7, dtype=dtype))
    turned, other = table.T.contiguous().T, torch.zeros(7, 3, dtype=dtype).T  # what does not lie in a row
    assert torch.equal(among(turned, ids, columns, other), found)
    assert torch.equal(among(table, ids, columns, torch.zeros(3, 7)), found.float())  # of another type
