"""A teacher that is lists of candidates with scores: read, refused, and learned from."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner

from kgdistil.cli import main
from kgdistil.config import make_config
from kgdistil.distillation.distil import distil
from kgdistil.errors import CheckpointError, ConfigError, DataError
from kgdistil.graph import Graph
from kgdistil.graphs.lists import Lists, read_lists, write_lists
from kgdistil.losses import softmax_soft_loss
from kgdistil.models import build_model
from kgdistil.paper import rules
from kgdistil.training.lists import ListsEngine


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))


def table(rows: list[tuple]) -> pa.Table:
    columns = dict(zip(("head", "relation", "side", "candidate", "score"), zip(*rows)))
    return pa.table({name: list(values) for name, values in columns.items()})


def rows_of(graph: Graph, per: int = 3) -> list[tuple]:
    """A list for each training triple's two queries: what they say follows from the ids."""
    found = {}
    for h, r, t in graph.train.tolist():
        for given, side in ((h, "tail"), (t, "head")):
            for i in range(per):
                c = (h * 7 + r * 3 + t + i * 5) % graph.num_entities
                found[given, r, side, c] = float(i - (c % 4))
    names = graph.entities, graph.relations
    return [(names[0][g], names[1][r], side, names[0][c], score) for (g, r, side, c), score in found.items()]


def test_lists_are_written_in_parts_and_read_again(tiny_graph: Graph, tmp_path: Path) -> None:
    rows = rows_of(tiny_graph)
    parts = [table(rows[i : i + 100]) for i in range(0, len(rows), 100)]
    mixed = [part.set_column(3, "candidate", part["candidate"].dictionary_encode()) for part in parts]
    write_lists(tmp_path / "a.parquet", iter(mixed))
    found = read_lists(tmp_path / "a.parquet", tiny_graph)
    wanted = {}
    for given, relation, side, candidate, score in rows:
        wanted.setdefault((given, relation, side), {})[candidate] = score
    assert len(found.keys) == len(wanted) and len(found.ids) == len(rows)
    for (given, relation, side), answers in wanted.items():
        e, r = tiny_graph.entities.index(given), tiny_graph.relations.index(relation)
        start, count = found.spans(torch.tensor([e]), torch.tensor([r]), torch.tensor([side == "head"]))
        span = slice(int(start), int(start + count))
        assert answers == {
            tiny_graph.entities[i]: s for i, s in zip(found.ids[span].tolist(), found.scores[span].tolist())
        }
    again = Lists.load(found.save(tmp_path / "kept"), tiny_graph)
    assert again.sha256 == found.sha256 and torch.equal(again.scores, found.scores)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"head": "nobody"}, "row 2: entity 'nobody' is not known"),
        ({"relation": None}, "row 2: relation None is not known"),
        ({"side": "tails"}, "row 2: side 'tails' is not known; write tail or head"),
        ({"candidate": "nobody"}, "row 2: entity 'nobody' is not known"),
        ({"score": float("nan")}, "row 2: score is nan; write a finite number"),
        ({"score": None}, "row 2: score is None; write a finite number"),
    ],
)
def test_a_row_that_is_wrong_is_named(tiny_graph: Graph, tmp_path: Path, change: dict, says: str) -> None:
    rows = [dict(zip(("head", "relation", "side", "candidate", "score"), row)) for row in rows_of(tiny_graph)[:4]]
    rows[1] |= change
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match="a.parquet") as error:
        read_lists(path, tiny_graph)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_lists(tiny_graph: Graph, tmp_path: Path) -> None:
    path, rows = tmp_path / "a.parquet", rows_of(tiny_graph)
    pa.parquet.write_table(table([*rows, rows[5]]), path)
    with pytest.raises(DataError, match=rf"row {len(rows) + 1}: the candidate stands in row 6 for the same query"):
        read_lists(path, tiny_graph)
    pa.parquet.write_table(table(rows).drop_columns(["side"]), path)
    with pytest.raises(DataError, match="no column side"):
        read_lists(path, tiny_graph)
    whole = table(rows)
    lists = pa.array([["a"]] * len(rows))
    for name, says in (("head", "row 1: entity is no text but a list"), ("score", "column score is no number")):
        pa.parquet.write_table(whole.set_column(whole.schema.get_field_index(name), name, lists), path)
        with pytest.raises(DataError, match=says):
            read_lists(path, tiny_graph)
    pa.parquet.write_table(whole.append_column("score", whole["score"]), path)
    with pytest.raises(DataError, match="2 columns are called score; leave one"):
        read_lists(path, tiny_graph)
    pa.parquet.write_table(table(rows)[:0], path)
    with pytest.raises(DataError, match="holds no row"):
        read_lists(path, tiny_graph)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet"):
        read_lists(path, tiny_graph)
    pa.parquet.write_table(table(rows), path)
    kept = read_lists(path, tiny_graph).save(tmp_path)
    other = Graph("other", *[tiny_graph.train] * 3, tiny_graph.entities, tiny_graph.relations, "f" * 64)
    with pytest.raises(CheckpointError, match="another graph"):
        Lists.load(kept, other)


@pytest.mark.parametrize("negatives", [5, 1000])
def test_the_soft_label_is_the_softmax_over_a_list(tiny_graph: Graph, tmp_path: Path, negatives: int) -> None:
    """Against its definition; a query without a list has its own answers instead."""
    rows = [row for i, row in enumerate(rows_of(tiny_graph)) if i % 5]
    left_out = rows[0][:3]
    rows = [row for row in rows if row[:3] != left_out]
    write_lists(tmp_path / "a.parquet", [table(rows)])
    lists = read_lists(tmp_path / "a.parquet", tiny_graph)
    values = {"model": "DistMult", "dim": 4, "loss": "softmax", "negatives": negatives, "batch_size": 64}
    config = make_config(**values, role="stage1", teacher="x", temperature=2.0)
    student = build_model("DistMult", tiny_graph.num_entities, tiny_graph.num_relations, 4, seed=0)
    with pytest.raises(ConfigError, match="every list is a training query's: set it to 0"):
        ListsEngine(student, lists, tiny_graph.train, config.model_copy(update={"unlabelled": 1.0}))
    engine = ListsEngine(student, lists, tiny_graph.train, config)
    engine.half = torch.float32
    seen = {}
    made = engine.losses_of

    def losses_of(role, scores, shift, batch, place):
        seen["loss"] = made(role, scores, shift, batch, place)
        seen.update(scores=scores[0].detach()[:, : len(shift)] + shift, labels=batch.counts / batch.counts.sum())
        return seen["loss"]

    def candidates(*given):
        seen["candidates"] = ListsEngine.candidates(engine, *given)
        return seen["candidates"]

    engine.losses_of, engine.candidates = losses_of, candidates
    engine.begin(0)
    batch = torch.arange(40)
    batch = batch[engine.is_head[batch].sort(stable=True).indices]
    engine.step(batch, torch.tensor(3), {"student": 0.1})
    ids, _, _ = seen["candidates"]
    wanted = torch.full_like(seen["scores"], -torch.inf)
    column = {e: ids.tolist().index(e) for e in set(ids.tolist())}
    for i, q in enumerate(batch.tolist()):
        start, count = (int(x) for x in lists.spans(engine.anchor[q], engine.relation[q], engine.is_head[q]))
        if count:
            for e, score in zip(lists.ids[start : start + count].tolist(), lists.scores[start : start + count]):
                wanted[i, column[e]] = score
        else:
            for e in engine.answers[engine.start[q] : engine.start[q] + engine.count[q]].tolist():
                wanted[i, column[e]] = 0.0
    hard, soft = seen["loss"]
    wanted = wanted.clamp_min(-1e9)
    assert soft.item() == pytest.approx(float(softmax_soft_loss(seen["scores"], wanted, seen["labels"], 2.0)), rel=1e-4)
    assert float(hard) > 0


def test_a_student_learns_what_only_the_lists_say(tiny_graph: Graph, tmp_path: Path) -> None:
    """The lists hold the answers of the held-out triples: a student taught by them knows those, one alone does not."""
    known = torch.cat([tiny_graph.train, tiny_graph.valid, tiny_graph.test]).tolist()
    names, rows = (tiny_graph.entities, tiny_graph.relations), {}
    for h, r, t in known:
        rows[names[0][h], names[1][r], "tail", names[0][t]] = 5.0
        rows[names[0][t], names[1][r], "head", names[0][h]] = 5.0
    path = tmp_path / "lists.parquet"
    write_lists(path, [table([(*key, score) for key, score in rows.items()])])
    given = {"dim": 16, "precision": "4bit", "epochs": 30, "progress": False}
    done = distil(tiny_graph, teacher_lists=path, **given)
    assert list(done.runs) == ["no-DS", "stage 1"] and done.chosen == "stage 1"
    assert done.runs["stage 1"].test() > done.runs["no-DS"].test() + 0.1
    assert any("lists.parquet" in note for note in done.student.about["notes"])
    assert done.runs["stage 1"].config.epochs == done.runs["no-DS"].config.epochs
    with pytest.raises(ConfigError, match="teacher_lists takes the place"):
        distil(tiny_graph, teacher_lists=path, precision="int8", progress=False)


def test_what_all_scores_of_a_list_share_says_nothing(tiny_graph: Graph, tmp_path: Path) -> None:
    """Products may have 8 bits of precision: scores like log-likelihoods, all near −1000, would be the same there."""
    rows, made = rows_of(tiny_graph), []
    config = make_config(
        dataset="tiny",
        model="ComplEx",
        dim=4,
        loss="softmax",
        role="stage1",
        alpha=1.0,
        negatives=10,
        batch_size=40,
        teacher="a",
    )
    for offset in (0.0, -1000.0):
        write_lists(tmp_path / "a.parquet", [table([(*row[:4], row[4] + offset) for row in rows])])
        student = build_model("ComplEx", 30, 4, 4, seed=1)
        engine = ListsEngine(student, read_lists(tmp_path / "a.parquet", tiny_graph), tiny_graph.train, config)
        engine.epoch(0, torch.full((engine.steps,), 0.1, dtype=torch.float64))
        made.append(student.entities.detach().clone())
    assert torch.equal(*made)


def test_from_the_shell(tiny_graph: Graph, tmp_path: Path) -> None:
    triples = tmp_path / "triples.tsv"
    lines = [tiny_graph.label_triple(*x) for x in tiny_graph.known.tolist()]
    triples.write_text("".join("\t".join(line) + "\n" for line in lines))
    rows = [(h, r, "tail", t, 1.0) for h, r, t in dict.fromkeys(lines)]
    write_lists(tmp_path / "lists.parquet", [table(rows)])
    command = ["distill", triples, "--teacher-lists", tmp_path / "lists.parquet", "--dim", 8, "--epochs", 2]
    command += ["--precision", "2bit", "-o", tmp_path / "student"]
    found = CliRunner().invoke(main, [str(x) for x in command])
    assert found.exit_code == 0, found.output
    assert (tmp_path / "student" / "student.json").is_file()
    again = CliRunner().invoke(main, [str(x) for x in command])
    assert again.exit_code == 0 and "nothing is left to do" in again.output
    command = [*command[:4], "--budget", "8B/entity", "--epochs", 2, "-o", tmp_path / "bought"]
    found = CliRunner().invoke(main, [str(x) for x in command])  # a student of few bits is what lists can teach
    assert found.exit_code == 0, found.output


def test_rules_are_counted_and_their_lists_are_read(tiny_graph: Graph, tmp_path: Path) -> None:
    train = [tuple(x) for x in tiny_graph.train.tolist()]
    found = rules.rules(tiny_graph)
    assert len(found) and found["confidence"].is_monotonic_decreasing
    for body, inverse, head, both, confidence in found.itertuples(index=False):
        of_body = [(t, h) if inverse else (h, t) for h, r, t in train if r == body]
        expected = sum((x, head, y) in train for x, y in of_body)
        assert (both, confidence) == (expected, pytest.approx(expected / (1 + len(of_body))))
    write_lists(tmp_path / "rules.parquet", rules.lists(tiny_graph))
    lists = read_lists(tmp_path / "rules.parquet", tiny_graph)
    for h, r, t in train:
        for given, answer, is_head in ((h, t, False), (t, h, True)):
            start, count = lists.spans(torch.tensor([given]), torch.tensor([r]), torch.tensor([is_head]))
            assert answer in lists.ids[int(start) : int(start + count)].tolist()
    assert rules.shown(tiny_graph, 3).columns.tolist() == ["rule", "pairs", "confidence"]
