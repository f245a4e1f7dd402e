"""Entities that come after training: fitted to their triples, and appended to the student's folder."""

import dataclasses
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from kgdistil import records
from kgdistil.answer import folder as folders
from kgdistil.answer.labels import Labels
from kgdistil.answer.student import Student, load_student
from kgdistil.answer.triples import Triples, added, arrays
from kgdistil.checkpoint import save_model
from kgdistil.cli import main
from kgdistil.config import make_config
from kgdistil.errors import BusyError, CheckpointError, ConfigError
from kgdistil.graph import Graph
from kgdistil.models import MODELS, TransE, build_model
from kgdistil.paper.bench.adding import without
from kgdistil.students.labelled import Labelled
from kgdistil.training.loop import run

HELD = np.arange(3, 135, 9)  # of UMLS
HOW = {
    "ComplEx": {"loss": "softmax", "lr": 0.1, "penalty": 0.01},
    "DistMult": {"loss": "softmax", "lr": 0.1, "penalty": 0.01},
    "SimplE": {"loss": "softmax", "lr": 0.1, "penalty": 0.01},
    "ReciprocalComplEx": {"loss": "softmax", "lr": 0.1, "penalty": 0.01},
    "TransE": {"loss": "softmax", "lr": 0.05},
    "TransH": {"loss": "softmax", "lr": 0.05, "penalty": 0.0},
    "RotatE": {"loss": "softmax", "lr": 0.05},
}


@pytest.fixture(scope="module")
def trained(umls: Graph, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Labelled]:
    """Small models of UMLS without `HELD`, trained once each."""
    graph, done, folder = without(umls, HELD, 0), {}, tmp_path_factory.mktemp("runs")

    def make(model: str) -> Labelled:
        if model not in done:
            config = make_config(
                dataset="less",
                model=model,
                dim=16,
                epochs=15,
                check_every=15,
                batch_size=128,
                negatives=120,
                **HOW[model],
            )
            with records.kept_in(folder):
                done[model] = run(config, graph, progress=False).load(graph)
        return Labelled(done[model], graph)

    return make


def theirs(graph: Graph, split: str = "train") -> list[tuple[str, str, str]]:
    """Triples of `HELD`, as labels."""
    triples = getattr(graph, split).numpy()
    return [graph.label_triple(*x) for x in triples[np.isin(triples[:, [0, 2]], HELD).any(1)].tolist()]


def mrr(student: Student, triples: list[tuple[str, str, str]]) -> float:
    ids = student.entities.find_all([x for h, _, t in triples for x in (h, t)]).reshape(-1, 2)
    relations = student.relations.find_all([r for _, r, _ in triples])
    return student.ranks(np.stack([ids[:, 0], relations, ids[:, 1]], axis=1)).metrics()["both"]["mrr"]


def with_rows(student: Student, rows: np.ndarray) -> Student:
    """The same student in float32, with other rows of its last entities."""
    packed = {name: torch.from_numpy(np.array(x)) for name, x in student.packed().items()}
    every = student.weights.rows(np.arange(len(student.entities)))
    every[-len(rows) :] = rows
    from kgdistil.answer.format import layout
    from kgdistil.answer.weights import Weights

    given = {"entities": every, "relations": student.weights.relations}
    given |= {"map": packed["map"].float().numpy()} if "map" in packed else {}
    header = {**student.header, "precision": "float32"}
    return Student(header, Weights(header, layout(given)), student.entities, student.names, student._triples)


@pytest.mark.parametrize(
    "model, precision",
    [(model, "float32") for model in HOW]
    + [("ComplEx", x) for x in ("float16", "int8", "4bit", "2bit", "1bit")]
    + [("RotatE", "2bit"), ("TransE", "4bit"), ("TransH", "1bit")],
)
def test_an_entity_taken_out_and_added_again_is_ranked_far_better_than_by_its_neighbours(
    trained: Callable[[str], Labelled], umls: Graph, model: str, precision: str
) -> None:
    labelled = trained(model).quantised(precision)
    student, old = labelled.student(), labelled.student()
    old_rows = student.weights.rows(np.arange(len(student.entities)))
    triples, asked = theirs(umls), [*theirs(umls, "valid"), *theirs(umls, "test")]
    report = student.add(triples)
    assert report["entity"] == list(dict.fromkeys(x for h, _, t in triples for x in (h, t) if x not in old.entities))
    count = len(old.entities)
    assert np.array_equal(student.weights.rows(np.arange(count)), old_rows), "old rows stay"
    assert student.weights.blocks.dtype == old.weights.blocks.dtype, "codes stay codes"
    for place in (("head", "relation"), ("relation", "tail")):
        query = dict(zip(place, [old.entities[5], old.relations[2]][:: 1 if place[0] == "head" else -1]))
        before = {row["entity"]: row["score"] for row in old.predict(**query, k=count).rows()}
        after = {row["entity"]: row["score"] for row in student.predict(**query, k=2 * count).rows()}
        assert before.items() <= after.items(), "answers of old entities stay, bit for bit"
    rng = np.random.default_rng(0)
    linked = [[x for h, _, t in triples if label in (h, t) for x in (h, t)] for label in report["entity"]]
    near = [[i for i in old.entities.find_all(x) if i >= 0] for x in linked]
    found = mrr(student, asked)
    by_chance = mrr(with_rows(student, old_rows[rng.integers(0, count, len(report))]), asked)
    by_mean = mrr(with_rows(student, np.array([old_rows[x].mean(0) for x in near])), asked)
    rounded = 1.0 if precision in ("float32", "float16", "int8", "4bit") else 0.6
    assert found > max(2.0 * rounded * by_chance, 1.3 * rounded * by_mean, 0.2), (found, by_chance, by_mean)


def test_new_entities_leave_the_answers_of_others_where_they_are(
    trained: Callable[[str], Labelled], umls: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = trained("ComplEx")
    triples = [labelled.graph.label_triple(*x) for x in labelled.graph.test.tolist()]
    before, free, student = labelled.student(), labelled.student(), labelled.student()
    student.add(theirs(umls))
    with monkeypatch.context() as patch:
        patch.setattr("kgdistil.answer.adding.WEIGHT", 0.0)
        free.add(theirs(umls))
    kept, lost = mrr(before, triples) - mrr(student, triples), mrr(before, triples) - mrr(free, triples)
    assert kept < 0.7 * lost, "the term that holds a new row below what training knew"


def test_what_is_to_be_ranked_later_changes_no_row(trained: Callable[[str], Labelled], umls: Graph) -> None:
    labelled = trained("ComplEx")
    blind = dataclasses.replace(labelled.graph, valid=labelled.graph.valid[:0], test=labelled.graph.test[:0])
    student, other = labelled.student(), dataclasses.replace(labelled, graph=blind).student()
    student.add(theirs(umls)), other.add(theirs(umls))
    assert np.array_equal(student.weights.blocks, other.weights.blocks)


def test_low_rank(umls: Graph, trained: Callable[[str], Labelled]) -> None:
    from kgdistil.compress.low_rank import low_rank

    labelled = trained("ComplEx")
    student = dataclasses.replace(labelled, model=low_rank(labelled.model, 24, 0), precision="4bit").student()
    student.add(theirs(umls))
    assert mrr(student, theirs(umls, "test")) > 0.2


def test_new_entities_that_only_know_each_other_take_several_rounds(
    trained: Callable[[str], Labelled], umls: Graph, caplog: pytest.LogCaptureFixture
) -> None:
    student = trained("ComplEx").student()
    old, r = len(student.entities), student.relations[0]
    chain = [("b", r, "a"), ("c", r, "b"), (student.entities[4], r, "a"), ("lonely", r, "other"), ("b", r, "b")]
    assert student.add(chain)["triples"] == [3, 2, 1, 1, 1]
    assert [*student.entities][old:] == ["b", "a", "c", "lonely", "other"]
    assert "2 of the new entities (lonely, other) have no triple with an entity that was trained" in caplog.text
    rows = student.weights.rows(np.arange(old, old + 5))
    assert np.isfinite(rows).all() and len(np.unique(rows, axis=0)) == 5
    assert student.relations.find(r) in student.reflexive
    assert not student.predict(head="c", relation=r, k=200, new=True).by_name["entity"].count("b")


def test_an_entity_of_a_relation_that_training_never_saw_is_fitted_to_it(
    trained: Callable[[str], Labelled], caplog: pytest.LogCaptureFixture
) -> None:
    labelled, strange = trained("ComplEx"), 5
    train = labelled.graph.train
    less = dataclasses.replace(labelled.graph, train=train[train[:, 1] != strange])
    student, other = (dataclasses.replace(labelled, graph=less).student() for _ in range(2))
    entities, (known, unknown) = student.entities, (student.relations[2], student.relations[strange])
    triples = [("new", unknown, entities[i]) for i in range(0, 60, 3)]
    student.add([*triples, ("other", known, entities[0]), ("other", unknown, entities[3])])
    assert "guesses" not in caplog.text
    assert mrr(student, triples) > 0.3
    other.add([triples[0], ("other", known, entities[0])])  # what has another relation is fitted to that alone
    rows = [x.weights.rows(x.entities.find_all(["other"])) for x in (student, other)]
    assert np.array_equal(*rows)


def test_what_is_known_already_changes_no_row_and_is_said(
    trained: Callable[[str], Labelled], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained("ComplEx").save(tmp_path / "s")
    student = load_student(tmp_path / "s")
    h, r, t = student.triples.of("train")[0].tolist()
    known = (student.entities[h], student.relations[r], student.entities[t])
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.suffix}
    caplog.set_level("INFO", "kgdistil")
    assert student.add([known]).empty
    assert "1 of the triples were known already" in caplog.text
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.suffix}
    away = next(e for e in range(len(student.entities)) if e not in student.known(h, r, "tail"))
    assert student.add([(known[0], known[1], student.entities[away])]).empty
    assert "1 of the triples are of entities that were there before" in caplog.text
    assert away in load_student(tmp_path / "s").known(h, r, "tail")


@pytest.mark.parametrize("old", [False, True])
def test_a_folder_grows_in_one_move(trained: Callable[[str], Labelled], umls: Graph, tmp_path: Path, old: bool) -> None:
    labelled, folder = trained("ComplEx").quantised("2bit"), tmp_path / "s"
    if old:
        save_model(folder, labelled.model, labelled.graph, precision="2bit")
    else:
        labelled.save(folder)
    (folder / "mine.txt").write_text("stays")
    student, untouched = load_student(folder), load_student(folder)
    in_memory = load_student(folder)
    in_memory.add(theirs(umls), save=False)
    assert len(load_student(folder).entities) == len(labelled.graph.entities)
    student.add(theirs(umls))
    opened = load_student(folder)
    assert [*opened.entities] == [*student.entities] == [*in_memory.entities]
    assert np.array_equal(opened.weights.blocks, in_memory.weights.blocks)
    assert (folder / "mine.txt").read_text() == "stays"
    opened.entities.check()
    query = {"head": umls.entities[HELD[0]], "relation": umls.relations[0]}
    assert opened.predict(**query).rows() == student.predict(**query).rows() == in_memory.predict(**query).rows()
    assert untouched.predict(head=umls.entities[0], relation=umls.relations[0]).rows(), "who had it open goes on"
    untouched.add([("later", umls.relations[0], umls.entities[HELD[0]])])
    assert len(load_student(folder).entities) == len(umls.entities) + 1, "what another process added is not lost"


def test_killed_after_any_step_it_leaves_the_old_folder_or_the_new_one(
    trained: Callable[[str], Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    trained("ComplEx").save(folder)
    student = load_student(folder)
    triples, sizes, step = [("new", student.relations[0], student.entities[0])], set(), 0
    real_sync, real_exchange = os.fsync, folders.exchange
    while True:
        step += 1
        shutil.rmtree(folder)
        trained("ComplEx").save(folder)
        child = os.fork()
        if not child:
            left = [step]

            def strike(left: list[int] = left) -> None:
                left[0] -= 1
                if not left[0]:
                    os._exit(9)

            os.fsync = lambda handle: (real_sync(handle), strike())[0]
            folders.exchange = lambda one, other: (strike(), real_exchange(one, other), strike())[1]
            load_student(folder).add(triples)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = load_student(folder)
        sizes.add(len(found.entities))
        assert found.evaluate()
        if code == 0:
            break
        assert code == 9
        found.add([*triples, ("second", student.relations[0], "new")])
        assert "second" in load_student(folder).entities
    assert step > 5 and sizes == {len(student.entities), len(student.entities) + 1}
    assert not [*tmp_path.glob(".s*")]


def add_one(folder: str, label: str) -> None:
    student = load_student(folder)
    while True:
        try:
            student.add([(label, student.relations[0], student.entities[0])])
            return
        except BusyError as error:
            assert str(error) == f"{folder}: another process is changing it; try again"


def test_two_processes_that_add_at_once_lose_nothing(trained: Callable[[str], Labelled], tmp_path: Path) -> None:
    folder = tmp_path / "s"
    trained("ComplEx").save(folder)
    before = load_student(folder)
    with (
        filelock.FileLock(folder / ".lock"),
        pytest.raises(BusyError, match="another process is changing it; try again"),
    ):
        before.add([("new", before.relations[0], before.entities[0])])
    context = multiprocessing.get_context("fork")
    at_work = [context.Process(target=add_one, args=(str(folder), f"n{i}")) for i in range(4)]
    for process in at_work:
        process.start()
    for process in at_work:
        process.join()
    assert [process.exitcode for process in at_work] == [0] * 4
    assert {*load_student(folder).entities} == {*before.entities, "n0", "n1", "n2", "n3"}


@pytest.mark.parametrize(
    "name, content, told",
    [
        (
            "x.tsv",
            "a\tlikes",
            "x.tsv, line 1: 'a\\tlikes' has 2 label(s) of 3; give head, relation and tail",
        ),
        ("x.tsv", "a\tr0\te01\n\na,r0,e02\n", "x.tsv, line 3: 'a,r0,e02' has 1 label(s) of 3"),
        ("x.csv", "head,relation,tail\na,,e01\n", "x.csv, line 2: 'a,,e01' has 2 label(s) of 3"),
        ("x.csv", 'a,"r0,e01\n', "x.csv, line 1: unexpected end of data; is a quote not closed?"),
        ("x.tsv", "a\tr0\te01\nb\tr9\te01\n", "x.tsv, line 2: no relation is called 'r9'; did you mean"),
        ("x.tsv", "", "x.tsv holds no triple"),
        ("x.tsv", b"a\tr0\t\xff\n", "x.tsv, line 1: byte 0xff is not UTF-8"),
        ("x.tsv", None, "x.tsv: No such file or directory"),
    ],
)
def test_damaged_input_is_one_line(
    tiny_graph: Graph, tmp_path: Path, name: str, content: str | bytes | None, told: str
) -> None:
    Labelled(build_model("ComplEx", 30, 4, 4), tiny_graph).save(tmp_path / "s")
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.suffix}
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = CliRunner().invoke(main, ["add", str(tmp_path / "s"), str(tmp_path / name)])
    assert done.exit_code == 1 and told in done.output and "Traceback" not in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.suffix}


def test_the_command_adds_and_says_what(tiny_graph: Graph, tmp_path: Path) -> None:
    Labelled(build_model("TransE", 30, 4, 4), tiny_graph).save(tmp_path / "s")
    (tmp_path / "new.csv").write_text('head,relation,tail\n"a, b",r0,e01\ne02,r1,"a, b"\nsolo,r2,e03\n')
    done = CliRunner().invoke(main, ["add", str(tmp_path / "s"), str(tmp_path / "new.csv"), "--json"])
    assert json.loads(done.output) == [
        {"id": 30, "entity": "a, b", "triples": 2},
        {"id": 31, "entity": "solo", "triples": 1},
    ]
    asked = ["predict", str(tmp_path / "s"), "--head", "a, b", "--relation", "r0", "--new", "-k", "40", "--json"]
    answers = [row["entity"] for row in json.loads(CliRunner().invoke(main, asked).output)]
    assert "solo" in answers and "e01" not in answers


@pytest.mark.parametrize("written", [" e01", "e01\u200b", "e\x0101", "e01 \u00a0"])
def test_labels_that_look_the_same_are_one_entity(tiny_graph: Graph, tmp_path: Path, written: str) -> None:
    folder, file = tmp_path / "s", tmp_path / "new.tsv"
    Labelled(build_model("TransE", 30, 4, 4), tiny_graph).save(folder)
    file.write_text(f"{written}\tr0\tnew\n", encoding="utf-8")
    done = CliRunner().invoke(main, ["add", str(folder), str(file)])
    assert done.exit_code == 0 and "1 labels were tidied" in done.output
    assert [*load_student(folder).entities][30:] == ["new"]
    done = CliRunner().invoke(main, ["add", str(folder), str(file), "--keep-labels"])
    assert [*load_student(folder).entities][30:] == ["new", written]


def test_the_command_says_that_nothing_is_new_and_clears_what_a_killed_one_left(
    tiny_graph: Graph, tmp_path: Path
) -> None:
    folder, file = tmp_path / "s", tmp_path / "new.tsv"
    Labelled(build_model("TransE", 30, 4, 4), tiny_graph).save(folder)
    file.write_text("x" * 900 + "\tr0\te01\n")
    done = CliRunner().invoke(main, ["add", str(folder), str(file)])
    assert done.exit_code == 0 and max(map(len, done.output.splitlines())) < 400
    (tmp_path / ".s.new-1234").mkdir()
    done = CliRunner().invoke(main, ["add", str(folder), str(file)])
    assert done.exit_code == 0 and "nothing new" in done.output and "answer" not in done.output
    assert not (tmp_path / ".s.new-1234").exists()


class Manhattan(TransE):
    pass


def test_a_folder_that_is_being_changed_is_not_replaced(tiny_graph: Graph, tmp_path: Path) -> None:
    labelled = Labelled(build_model("TransE", 30, 4, 4), tiny_graph)
    own = Labelled(Manhattan(30, 4, 4), tiny_graph)  # a class of one's own
    for number, student in enumerate((labelled, own)):
        folder = tmp_path / f"s{number}"
        student.save(folder)
        with filelock.FileLock(folder / ".lock"), pytest.raises(BusyError):
            student.save(folder)
        student.save(folder)
        assert not (folder / ".lock").exists()


@pytest.mark.parametrize("wrong", [[], [("a", "r0")], [("a", "r0", 1.5)], [("", "r0", "e01")], [3]])
def test_what_is_no_triple_is_refused(tiny_graph: Graph, wrong: list) -> None:
    with pytest.raises(ConfigError):
        Labelled(build_model("DistMult", 30, 4, 4), tiny_graph).student().add(wrong)


@pytest.mark.parametrize("seed", range(5))
def test_triples_and_labels_grow_as_if_they_had_been_sorted_anew(seed: int) -> None:
    rng = np.random.default_rng(seed)
    every = np.unique(rng.integers(0, [20, 3, 20], (120, 3)), axis=0)
    rng.shuffle(every)
    held, new = every[:70], every[70:]
    split = rng.integers(0, 3, len(held))
    grown = added(Triples(arrays(held, split, 3), 20, 3), new)
    wanted = arrays(every, np.concatenate([split, np.zeros(len(new), int)]), 3)
    assert grown.keys() == wanted.keys()
    assert all(np.array_equal(grown[name], x) and grown[name].dtype == x.dtype for name, x in wanted.items())

    labels = [chr(97 + i) * n for i, n in rng.integers(0, [26, 4], (40, 2))]  # some are equal, some empty
    more = Labels.of(labels[:25]).added(labels[25:])
    more.check()
    assert [*more] == labels and more.arrays()["order"].tolist() == sorted(range(40), key=labels.__getitem__)


def test_triples_that_are_not_sorted_are_refused() -> None:
    rng = np.random.default_rng(1)
    held = arrays(every := np.unique(rng.integers(0, [9, 3, 9], (60, 3)), axis=0), np.zeros(len(every)), 5)
    n = len(held["head"])
    assert len(Triples(held, 9, 5)) == n
    for name, places in (("head", (0, 9)), ("tail", (0, 1)), ("by_tail", (0, 9)), ("by_tail", (0, n - 1))):
        wrong = held[name].copy()
        assert wrong[places[0]] != wrong[places[1]]
        wrong[[*places]] = wrong[[*places[::-1]]]
        with pytest.raises(CheckpointError, match="not sorted"):
            Triples({**held, name: wrong}, 9, 5)
    again = held["by_tail"].copy()
    again[1] = again[0]
    with pytest.raises(CheckpointError, match="not sorted"):
        Triples({**held, "by_tail": again}, 9, 5)
    assert len(Triples(arrays(np.empty((0, 3), int), np.empty(0), 2), 1, 2)) == 0


def test_every_model_is_measured() -> None:
    assert {*HOW} == {*MODELS}


def test_labels_in_quotes_are_those_of_the_graph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in the graph's own file, and so are usual names of columns."""
    (tmp_path / "g.tsv").write_text("".join(f"e{i}\tr\te{(i * 3 + k) % 20}\n" for i in range(20) for k in (1, 2)))
    call = lambda *given: CliRunner().invoke(main, [str(x) for x in given])
    student = tmp_path / "s"
    assert call("distill", tmp_path / "g.tsv", "--dim", 4, "--epochs", 1, "-o", student).exit_code == 0
    (tmp_path / "n.tsv").write_text('subject\tpredicate\tobject\n"e1"\tr\te5\n"e ""new"""\tr\te1\n')
    found = call("add", student, tmp_path / "n.tsv", "--json")
    assert found.exit_code == 0, found.output
    assert [row["entity"] for row in json.loads(found.stdout)] == ['e "new"']
    (tmp_path / "n.tsv").write_text("head\tlabel\ttail\n")
    assert "holds the names of its columns and no triple" in call("add", student, tmp_path / "n.tsv").stderr
