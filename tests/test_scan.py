"""Students of four-bit codes: their tables, ranks and answers are those of the numbers that the codes stand for.

`test_native.py` holds the scanner itself to float64 arithmetic.
"""

import numpy as np
import pytest
import torch

from kgdistil.answer import native
from kgdistil.compress.packing import quantised
from kgdistil.compress.product import assign, decode, grouped, ungrouped
from kgdistil.compress.scan import CodedRanker, tables
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.models import SIDES, build_model, kind_of
from kgdistil.students.labelled import Labelled

PATHS = [*native.libraries(), False]
KINDS = [
    ("ComplEx", 1),
    ("LowRankComplEx", 1),
    ("DistMult", 1),
    ("SimplE", 1),
    ("RotatE", 1),
    ("RotatE", 2),
    ("TransE", 1),
    ("TransE", 2),
]


def exact(codes: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Scores [n, E] in float64."""
    columns = torch.arange(codes.shape[1])
    return torch.stack([table.double()[columns, codes.long()].sum(1) for table in made])


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
    if norm == 2:
        expected = -expected.square()
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name, norm", KINDS)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_and_answers_of_a_model_in_codes(name, norm, size, path):
    """As `evaluation.rank` and a sort rank the decoded entities. Roundings move none of these."""
    model, codes, book, coded = small(name, norm, size)
    model.entities.data[:] = torch.nan  # only the codes may count
    triples = torch.tensor([[h, r, (7 * h + r) % 50] for h in range(50) for r in range(3)])
    known = KnownTriples(torch.cat([triples, triples[:, [2, 1, 0]]]), 3)
    expected, ranker = rank(coded, triples, known), CodedRanker(model, codes, book, path)
    for column, (side, anchor, target) in enumerate(SIDES):
        queries = coded.queries(triples[:, anchor], triples[:, 1], side).detach()
        spans = known.spans(triples[:, anchor], triples[:, 1], side)
        greater, equal = ranker.counts(queries, triples[:, target], spans)
        np.testing.assert_array_equal(greater, expected.greater[:, column])
        np.testing.assert_array_equal(equal, expected.equal[:, column])
        assert greater.max() > 20
        score, best = ranker.top(queries, 5, spans)
        all_scores = coded.compare(queries, coded.entities).detach() - (coded.offset if coded.distance else 0)
        torch.testing.assert_close(score, all_scores.gather(1, best.long()), atol=1e-4, rtol=1e-4)
        for row, start, end in zip(all_scores, *spans[:2]):
            row[spans[2][start:end].long()] = -torch.inf
        torch.testing.assert_close(score, all_scores.topk(5).values, atol=1e-4, rtol=1e-4)


def test_what_has_no_tables_says_so():
    book = torch.zeros(4, 16, 2)
    with pytest.raises(ConfigError, match="take ComplEx") as error:
        tables(build_model("TransH", 5, 2, 8), torch.zeros(1, 16), book)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="4 sub-vectors of 2 do not make ComplEx's 10"):
        tables(build_model("ComplEx", 5, 2, 5), torch.zeros(1, 10), book)
    with pytest.raises(ConfigError, match="even"):
        tables(build_model("RotatE", 5, 2, 6, offset=1.0), torch.zeros(1, 12), torch.zeros(4, 16, 3))
    model = build_model("ComplEx", 5, 2, 4)
    for codes in (
        torch.zeros(5, 4),
        *(torch.zeros(n, m).byte() for n, m in ((5, 3), (0, 4))),
        torch.full((5, 4), 16).byte(),
    ):
        with pytest.raises(ConfigError, match="codes are"):
            CodedRanker(model, codes, book)


@pytest.mark.parametrize("name, norm", [("ComplEx", 1), ("RotatE", 1), ("TransE", 1), ("TransE", 2), ("RotatE", 2)])
def test_a_coded_student_answers_as_its_numbers_do(umls, name: str, norm: int) -> None:
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
