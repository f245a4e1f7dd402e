"""Ranks and top-k answers over four-bit codes, held to float64 arithmetic and to the readable path, to the last tie."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kgdistil import kernels
from kgdistil.compress.packing import quantised
from kgdistil.compress.product import assign, decode, grouped, ungrouped
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.models import build_model, kind_of
from kgdistil.students import scan
from kgdistil.students.labelled import Labelled
from kgdistil.students.scan import Scanner, rank_codes, tables

needs_compiler = pytest.mark.skipif(kernels.compiler() is None, reason="there is no C++ compiler")
PATHS = [pytest.param(None, marks=needs_compiler, id="native"), pytest.param(False, id="readable")]
KINDS = [
    ("ComplEx", 1),
    ("LowRankComplEx", 1),
    ("DistMult", 1),
    ("SimplE", 1),
    ("RotatE", 1),
    ("TransE", 1),
    ("TransE", 2),
]
INSTRUCTIONS = ("KGD_PATH=0", "KGD_PATH=1", "KGD_PATH=2")  # portable, AVX2, AVX-512; what is missing falls back


def scanner(codes: torch.Tensor, path: str | None) -> Scanner:
    """A scanner of one path: "readable", "native", or the instructions to use."""
    if path in (None, "readable", "native"):
        return Scanner(codes, False if path == "readable" else None)
    with pytest.MonkeyPatch.context() as patch:
        library = scan.scan_library
        patch.setattr(scan, "scan_library", lambda groups: library(groups, path))
        return Scanner(codes)


def problem(seed: int, entities: int, groups: int, n: int = 9, kind: str = "normal"):
    """Codes [E, M], tables [n, M, 16], targets [n] and spans of known ids; some queries know many, one knows none."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (entities, groups), generator=draw, dtype=torch.uint8)
    codes[entities // 2 :] = codes[: entities - entities // 2].clone()  # every entity but one has a twin
    made = torch.randn(n, groups, 16, generator=draw)
    scale = torch.randn(n, groups, 1, generator=draw)
    if kind == "whole numbers":
        made = made.round()
    elif kind == "equal":
        made = scale.expand(-1, -1, 16).contiguous()
    elif kind == "zero":
        made = torch.zeros_like(made)
    elif kind == "huge ranges":
        made = made * (10 * scale.clamp(-3, 3)).exp() * 1e20
    elif kind == "tiny":
        made = made * 1e-42
    elif kind == "far off":
        made = 1000 * scale + 0.001 * made
    elif kind == "one group decides":
        made[:, 0] *= 1e6
    target = torch.randint(entities, (n,), generator=draw)
    known, start = [], [0]
    for i in range(n):
        chosen = torch.rand(entities, generator=draw) < (0, 0.02, 0.5, 1)[i % 4]
        if i % 2:
            chosen[target[i]] = True
        known.append(chosen.nonzero()[:, 0].to(torch.int32))
        start.append(start[-1] + len(known[-1]))
    bounds = torch.tensor(start)
    return codes, made, target, (bounds[:-1].clone(), bounds[1:].clone(), torch.cat([*known, torch.zeros(1).int()]))


def exact(codes: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Scores [n, E] in float64."""
    columns = torch.arange(codes.shape[1])
    return torch.stack([table.double()[columns, codes.long()].sum(1) for table in made])


def free(known: kernels.Known, entities: int) -> torch.Tensor:
    """bool [n, E]: what is not known."""
    out = torch.ones(len(known[0]), entities, dtype=torch.bool)
    for row, start, end in zip(out, *known[:2]):
        row[known[2][start:end].long()] = False
    return out


def assert_between(codes, made, target, known, greater, equal) -> None:
    """Counts lie between those of scores surely above and possibly above, in float64."""
    scores = exact(codes, made)
    size = made.abs().double().amax(-1).sum(-1, keepdim=True)
    slack = size * 2.0**-22 * codes.shape[1] ** 0.5 + 1e-44
    ahead = scores - scores.gather(1, target[:, None])
    others = free(known, len(codes))
    others.scatter_(1, target[:, None], False)
    assert (greater >= ((ahead > slack) & others).sum(1)).all()
    assert (greater + equal <= ((ahead >= -slack) & others).sum(1)).all()
    twins = (codes[None] == codes[target][:, None]).all(-1) & others
    assert (equal >= twins.sum(1)).all() and (equal >= 0).all()


SHAPES = [(1, 2), (63, 8), (64, 7), (65, 9), (331, 33), (1000, 32), (90, 258), (130, 512)]


@needs_compiler
@pytest.mark.parametrize("entities, groups", SHAPES)
@pytest.mark.parametrize(
    "kind", ["normal", "whole numbers", "equal", "zero", "huge ranges", "tiny", "far off", "one group decides"]
)
def test_counts_and_answers_of_every_path(entities, groups, kind):
    codes, made, target, known = problem(groups, entities, groups, kind=kind)
    k = min(10, entities + 3)
    readable = scanner(codes, "readable")
    counts, top = readable.counts(made, target, known), readable.top(made, k, known)
    assert_between(codes, made, target, known, *counts)
    for path in INSTRUCTIONS:
        other = scanner(codes, path)
        for mine, theirs in zip((*counts, *top), (*other.counts(made, target, known), *other.top(made, k, known))):
            assert torch.equal(mine, theirs), path


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_counted_as_float32_counts_them(bad):
    """Bytes cannot stand for them, and an infinite range must not be cast to a whole number."""
    codes, made, target, known = problem(3, 300, 20)
    made[::2, 7, 3] = bad
    readable = scanner(codes, "readable").counts(made, target, known)
    for path in INSTRUCTIONS:
        for mine, theirs in zip(scanner(codes, path).counts(made, target, known), readable, strict=True):
            assert torch.equal(mine, theirs)
        assert scanner(codes, path).top(made, 5, known)[1].max() < 300


@needs_compiler
@pytest.mark.parametrize("groups", [5, 32, 100])
@pytest.mark.parametrize("kind", ["normal", "whole numbers", "far off"])
def test_targets_at_every_depth_of_many_entities(groups, kind):
    """How a query is passed changes from chunk to chunk with how many entities come near its target."""
    entities, depths = 9001, (0, 1, 3, 10, 40, 150, 600, 1500, 4500, 8999)
    codes, made, _, _ = problem(groups, entities, groups, n=40, kind=kind)
    made *= torch.linspace(2, 0.1, groups)[:, None] ** 2  # the first groups decide most
    order = exact(codes, made).argsort(dim=1, descending=True, stable=True)
    target = torch.stack([row[depths[i % len(depths)]] for i, row in enumerate(order)])
    start = torch.zeros(len(target), dtype=torch.int64)
    known = (start, start, torch.zeros(1, dtype=torch.int32))
    expected = scanner(codes, "readable").counts(made, target, known)
    assert_between(codes, made, target, known, *expected)
    assert expected[0].max() > 4000 and (expected[0] < 5).any()
    for path in INSTRUCTIONS:
        counts = scanner(codes, path).counts(made, target, known)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(expected, counts)), path


@needs_compiler
def test_the_last_groups_may_decide():
    """The best entity and the next differ in the last group alone, which a short pass leaves out."""
    codes, made, _, known = problem(4, 9001, 32, n=12)
    made *= torch.linspace(2, 0.3, 32)[:, None]
    best, target = torch.arange(12) + 5000, torch.arange(12) + 6000
    codes[best] = codes[target] = made.argmax(-1).to(torch.uint8)
    codes[target, -1] = made[:, -1].argsort(-1)[:, -2].to(torch.uint8)
    start = torch.zeros(12, dtype=torch.int64)
    for path in ("readable", *INSTRUCTIONS):
        greater, equal = scanner(codes, path).counts(made, target, (start, start, known[2]))
        assert greater.tolist() == [1] * 12 and equal.tolist() == [0] * 12, path


@needs_compiler
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    entities=st.integers(1, 400),
    groups=st.sampled_from([2, 3, 5, 8, 13]),
    n=st.integers(0, 11),
    k=st.integers(1, 500),
    kind=st.sampled_from(["normal", "whole numbers", "huge ranges", "far off"]),
)
def test_random_shapes(seed, entities, groups, n, k, kind):
    codes, made, target, known = problem(seed, entities, groups, n, kind)
    one, other = (scanner(codes, path) for path in ("readable", "native"))
    for mine, theirs in zip(one.counts(made, target, known), other.counts(made, target, known)):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(one.top(made, k, known), other.top(made, k, known)):
        assert torch.equal(mine, theirs)


@needs_compiler
def test_the_vectors_and_the_portable_code_are_different_code():
    """Else comparing them would show nothing: where the processor has AVX2, the layouts of the codes differ."""
    flags = kernels.processor().split()
    sizes = [scan.scan_library(9, define).kgd_bytes(64) for define in INSTRUCTIONS]
    assert sizes[0] == sizes[1] == 5 * 64
    wide = {"avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_vpopcntdq"} <= set(flags)
    assert sizes[2] == (16 * 64 + 64 * 16 if wide else 5 * 64)


@pytest.mark.parametrize("native", PATHS)
def test_answers_against_a_full_sort(native):
    codes, made, _, known = problem(5, 700, 12)
    scores = exact(codes, made).masked_fill(~free(known, 700), -torch.inf)
    near = {"atol": 1e-5, "rtol": 1e-6}
    for k in (1, 10, 100, 900):
        score, best = Scanner(codes, native).top(made, k, known)
        assert score.shape == best.shape == (9, k)
        for i, row in enumerate(scores):
            candidates = int(row.isfinite().sum())
            there = min(k, candidates)
            assert (best[i, there:] == -1).all() and (score[i, there:] == -torch.inf).all()
            ids = best[i, :there].long()
            assert len(set(ids.tolist())) == there
            torch.testing.assert_close(score[i, :there].double(), row.sort(descending=True).values[:there], **near)
            torch.testing.assert_close(score[i, :there].double(), row[ids], **near)
            pairs = list(zip((-score[i, :there]).tolist(), ids.tolist()))
            assert pairs == sorted(pairs)  # of ties the lower id first


@pytest.mark.parametrize("native", PATHS)
def test_equal_codes_tie_and_known_ids_are_left_out(native):
    draw = torch.Generator().manual_seed(2)
    codes = torch.randint(16, (3, 21), generator=draw, dtype=torch.uint8).repeat_interleave(50, 0)
    made = torch.randn(1, 21, 16, generator=draw)
    order = exact(codes, made)[0, ::50].argsort(descending=True)
    middle = int(order[1]) * 50
    none = (torch.tensor([0]), torch.tensor([0]), torch.zeros(1, dtype=torch.int32))
    counts = Scanner(codes, native).counts(made, torch.tensor([middle + 7]), none)
    assert [int(x) for x in counts] == [50, 49]
    above = int(order[0]) * 50
    ids = torch.tensor(sorted([above, above + 9, middle, middle + 7, middle + 49]), dtype=torch.int32)
    counts = Scanner(codes, native).counts(made, torch.tensor([middle + 7]), (none[0], torch.tensor([5]), ids))
    assert [int(x) for x in counts] == [48, 47]


@needs_compiler
def test_any_number_of_threads_gives_the_same():
    codes, made, target, known = problem(3, 3000, 32, n=150)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        one = Scanner(codes)
        results.append((*one.counts(made, target, known), *one.top(made, 7, known)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other))


def small(name: str, norm: int, size: int, entities: int = 50, groups: int = 6):
    """A model, codes, a codebook, and the same model whose entities are what the codes stand for."""
    factor, low = kind_of(name).entity_factor, {"rank": groups * size} if name == "LowRankComplEx" else {}
    dim = groups * size if low else groups * size // factor
    model, coded = (build_model(name, entities, 3, dim, seed=1, norm=norm, offset=3.0, **low) for _ in range(2))
    book = torch.randn(groups, 16, size, generator=torch.Generator().manual_seed(size))
    codes = assign(grouped(model.entities.data, size, model.paired), book * model.entities.data.std())
    book = book * model.entities.data.std()
    coded.entities.data = ungrouped(decode(codes, book), model.paired).contiguous()
    return model, codes, book, coded


@pytest.mark.parametrize("name, norm", KINDS)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_tables_add_up_to_the_scores(name, norm, size):
    if name == "RotatE" and size == 1:
        pytest.skip("half a complex number is no group")
    model, codes, book, coded = small(name, norm, size)
    queries = coded.queries(torch.arange(50), torch.arange(50) % 3, "tail").detach()
    scores = exact(codes, tables(model, queries, book))
    expected = coded.double().compare(queries.double(), coded.entities).detach()
    if coded.distance:
        expected -= coded.offset
    if name == "TransE" and norm == 2:
        expected = -expected.square()
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("native", PATHS)
@pytest.mark.parametrize("name, norm", KINDS)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_of_a_model_in_codes(name, norm, size, native, monkeypatch):
    """As `evaluation.rank` ranks the decoded entities; queries in several blocks. Roundings move none of these."""
    monkeypatch.setattr(scan, "TABLE_BYTES", 7 * 6 * 64)
    model, codes, book, coded = small(name, norm, size)
    model.entities.data[:] = torch.nan  # only the codes may count
    triples = torch.tensor([[h, r, (7 * h + r) % 50] for h in range(50) for r in range(3)])
    known = KnownTriples(torch.cat([triples, triples[:, [2, 1, 0]]]), 3)
    ranks, expected = rank_codes(model, codes, book, triples, known, native=native), rank(coded, triples, known)
    assert ranks.greater.shape == (150, 2) and ranks.greater.dtype == np.int32
    np.testing.assert_array_equal(ranks.greater, expected.greater)
    np.testing.assert_array_equal(ranks.equal, expected.equal)
    assert ranks.greater.max() > 20


def test_what_has_no_tables_says_so():
    book = torch.zeros(4, 16, 2)
    for model in (build_model("TransH", 5, 2, 8), build_model("RotatE", 5, 2, 4, norm=2, offset=1.0)):
        with pytest.raises(ConfigError, match="take ComplEx") as error:
            tables(model, torch.zeros(1, 16), book)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="4 sub-vectors of 2 do not make ComplEx's 10"):
        tables(build_model("ComplEx", 5, 2, 5), torch.zeros(1, 10), book)
    with pytest.raises(ConfigError, match="even"):
        tables(build_model("RotatE", 5, 2, 6, offset=1.0), torch.zeros(1, 12), torch.zeros(4, 16, 3))
    for codes in (torch.zeros(5, 4), *(torch.zeros(5, m).byte() for m in (1, 513)), torch.full((5, 4), 16).byte()):
        with pytest.raises(ConfigError, match="codes are"):
            Scanner(codes)
    with pytest.raises(ConfigError, match="codes are"):
        Scanner(torch.zeros(0, 4).byte())


@needs_compiler
def test_no_answers_are_not_to_be_had():
    codes, made, _, known = problem(1, 5, 2)
    model = build_model("ComplEx", 5, 2, 4)
    floats = model.queries(torch.zeros(9).long(), torch.zeros(9).long(), "tail").detach()
    for ranker, asked in ((Scanner(codes), made), (Scanner(codes, False), made), (kernels.Ranker(model), floats)):
        with pytest.raises(ConfigError, match="at least one"):
            ranker.top(asked, 0, known)


@pytest.mark.parametrize("name, norm", [("ComplEx", 1), ("RotatE", 1), ("TransE", 1), ("TransE", 2), ("DistMult", 1)])
def test_a_coded_student_answers_as_its_numbers_do(umls, name: str, norm: int) -> None:
    from kgdistil.students.labelled import Labelled
    from kgdistil.students.predict import predict

    model = build_model(name, umls.num_entities, umls.num_relations, 16, seed=2, norm=norm, offset=3.0)
    student = Labelled(model, umls).quantised("2bit")
    assert student._ranker is not None
    asked = {"head": list(umls.entities[:20]), "relation": umls.relations[3], "k": 12}
    mine, plain = student.predict(**asked), predict(student.model, umls, **asked)
    assert np.allclose(mine["score"], plain["score"], atol=1e-5)
    close = plain.groupby("query")["score"].diff().abs().min() < 1e-5  # a tie may come in another order
    assert close or list(mine["entity"]) == list(plain["entity"])
    assert Labelled(build_model("TransH", 135, 46, 16), umls).quantised("2bit")._ranker is None


def test_a_student_whose_codes_cannot_be_scanned_says_so_once(tiny_graph, caplog):
    model = quantised(build_model("TransH", tiny_graph.num_entities, tiny_graph.num_relations, 4), "4bit")
    student = Labelled(model, tiny_graph, "4bit")
    first, second = (student.predict(head="e03", relation="r1", k=30) for _ in range(2))
    assert first.equals(second) and len(first) == 30
    assert len([r for r in caplog.records if "codes cannot be scanned" in r.getMessage()]) == 1
