"""Four-bit codes: grouping, codebooks, and the gradient that goes straight through."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kgdistil import kernels
from kgdistil.compress import product
from kgdistil.compress.packing import GROUPS, pack, quantised, unpack
from kgdistil.compress.product import (
    assign,
    codes_of,
    decode,
    exact,
    fit,
    grouped,
    rows_in,
    rows_of,
    straight_through,
    ungrouped,
)
from kgdistil.compress.size import entity_bytes
from kgdistil.models import build_model


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(st.integers(1, 9), st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.booleans())
def test_grouping_is_undone(rows: int, size: int, groups: int, paired: bool) -> None:
    x = random(rows, 8 * groups)
    assert torch.equal(ungrouped(grouped(x, size, paired), paired), x)
    assert grouped(x, size, paired).shape == (rows, 8 * groups // size, size)


def test_a_complex_number_stays_in_one_group() -> None:
    x = torch.arange(8.0)[None]  # real parts 0 … 3, imaginary parts 4 … 7
    assert grouped(x, 2, True)[0].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert grouped(x, 2, False)[0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_each_group_takes_the_nearest_vector() -> None:
    groups, book = random(50, 3, 2), random(3, 16, 2, seed=1)
    distance = (groups[:, :, None] - book).square().sum(-1)
    assert torch.equal(assign(groups, book).long(), distance.argmin(-1))
    chosen = decode(assign(groups, book), book)
    assert torch.allclose((groups - chosen).square().sum(-1), distance.amin(-1))


def test_sixteen_vectors_are_kept_exactly_and_more_are_fitted() -> None:
    book = random(5, 16, 4)
    codes = torch.randint(16, (3000, 5), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    codes[0] = 0
    groups = decode(codes, book)
    assert torch.equal(
        decode(assign(groups, fit(groups.flatten(1), 4, False)), fit(groups.flatten(1), 4, False)), groups
    )
    many = random(3000, 5, 1)
    error = (many - decode(assign(many, fit(many[..., 0], 1, False)), fit(many[..., 0], 1, False))).square().mean()
    assert error < 0.0135  # the best quantiser of a normal number to 16 levels has .0095 (Max 1960); even levels .0115
    assert torch.equal(fit(many[..., 0], 1, False, seed=3), fit(many[..., 0], 1, False, seed=3))


def test_a_table_is_coded_in_slices_and_fitted_on_some_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "SLICE", 64)
    monkeypatch.setattr(product, "FITTED", 500)
    rows = random(1000, 8)
    book = fit(rows, 2, True)
    codes = codes_of(rows, book, True)
    assert torch.equal(codes, assign(grouped(rows, 2, True), book))
    coded = rows_of(codes, book, True)
    assert torch.equal(coded, ungrouped(decode(codes, book), True))
    assert torch.equal(rows_of(codes_of(coded, found := fit(coded, 2, True), True), found, True), coded)
    late = coded.clone()
    late[700:, 0] = torch.arange(300.0)  # more than sixteen, beyond the first rows
    assert exact(coded, 2, True) is not None and exact(late, 2, True) is None


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("paired", [True, False])
def test_the_gradient_of_a_codebook_is_summed_by_code(paired: bool, native: bool, monkeypatch) -> None:
    if not native:
        monkeypatch.setattr(kernels, "by_code", lambda *_: None)
    rows, book = random(6, 4), random(2, 16, 2, seed=1)
    codes = codes_of(rows, book, paired)
    gradient = random(6, 4, seed=2)
    parts = [gradient[:3].to(torch.bfloat16), gradient[3:5], gradient[5:]]
    expected = torch.zeros(2, 16, 2)
    for code, row in zip(codes.tolist(), grouped(torch.cat([x.float() for x in parts]), 2, paired), strict=True):
        for m in range(2):
            expected[m, code[m]] += row[m]
    assert torch.allclose(straight_through(parts, codes, book, paired), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("paired", [True, False])
def test_rows_for_products_are_what_their_codes_say_and_padded(paired: bool, dtype, monkeypatch) -> None:
    table, book = random(70, 12), random(6, 16, 2, seed=1)
    places = torch.tensor([69, 3, 3, 0, 41])
    codes = codes_of(table, book, paired, places)
    assert torch.equal(codes, assign(grouped(table[places], 2, paired), book, native=False))
    found = rows_in(dtype, codes, book, paired)
    assert found.dtype == dtype and len(found) % kernels.SHAPES == 0 and not found[5:].any()
    assert torch.equal(found[:5], rows_of(codes, book, paired).to(dtype))
    monkeypatch.setattr(kernels, "nearest", lambda *_: None)
    assert torch.equal(codes_of(table, book, paired, places), codes)


@pytest.mark.parametrize("precision", GROUPS)
@pytest.mark.parametrize("name", ["ComplEx", "RotatE", "TransE"])
def test_a_coded_model_is_stored_without_loss(name: str, precision: str) -> None:
    model = build_model(name, 70, 3, 12, seed=1)
    coded = quantised(model, precision)
    again = quantised(coded, precision)
    assert torch.equal(again.entities, coded.entities) and torch.equal(again.relations, coded.relations)
    assert not torch.equal(coded.entities, model.entities)
    width = model.entities.shape[1]
    assert pack(model, precision)["entities"].nbytes == 70 * entity_bytes(width, precision)
    assert entity_bytes(width, precision) == -(-width // (2 * GROUPS[precision]))


def test_codes_of_another_table_are_refused() -> None:
    model = build_model("ComplEx", 70, 3, 12, seed=1)
    packed, other = pack(model, "2bit"), pack(build_model("ComplEx", 70, 3, 8, seed=1), "2bit")
    with pytest.raises(ValueError, match="do not belong together"):
        unpack(packed | {"entities.book": other["entities.book"]}, "2bit", True)
    with pytest.raises(ValueError, match="the numbers are not 2bit"):
        unpack({name: packed[name] for name in ("entities", "relations")}, "2bit", True)


@pytest.mark.parametrize("size, n", [(1, 40), (2, 33), (4, 7), (8, 16)])
def test_the_compiled_search_finds_the_nearest(size: int, n: int) -> None:
    if kernels.compiler() is None:
        pytest.skip("no C++ compiler")
    groups, book = random(n, 6, size), random(6, 16, size, seed=9)
    book[0, 5:] = book[0, 4]  # of equally near ones the first
    found = kernels.nearest(groups, book)
    distance = (groups[:, :, None] - book).square().sum(-1)  # [n, 6, 16]
    assert found.dtype == torch.uint8 and found.shape == (n, 6) and int(found[:, 0].max()) <= 4
    chosen = distance.gather(2, found.long()[..., None])[..., 0]
    assert torch.allclose(chosen, distance.amin(-1), atol=1e-5)
    assert torch.equal(found, assign(groups, book, native=False))
    assert torch.equal(found, assign(groups, book))
    assert kernels.nearest(groups.double(), book.double()) is None
