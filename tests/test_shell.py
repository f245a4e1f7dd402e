"""What people ask of answers from the shell: a few answers only, folders of earlier releases, without PyTorch."""

import gzip
import io
import json
import os
import pty
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner

import kgdistil
from kgdistil import cli
from kgdistil.answer import lines
from kgdistil.answer.format import FILES
from kgdistil.answer.student import Student
from kgdistil.checkpoint import save_model, write_tensors
from kgdistil.compress.packing import quantised
from kgdistil.errors import ConfigError, DataError
from kgdistil.graph import SPLITS, Graph
from kgdistil.models import build_model
from kgdistil.students.labelled import Labelled


def call(*arguments: object, given: bytes | None = None):
    return CliRunner().invoke(cli.main, [str(x) for x in arguments], input=given)


def refused(*arguments: object, given: bytes | None = None) -> str:
    """The one line of an error."""
    result = call(*arguments, given=given)
    lines = result.stderr.splitlines()
    assert result.exit_code == 1 and len(lines) == 1 and lines[0].startswith("kgdistil: "), result.output
    return lines[0]


@pytest.fixture(scope="module")
def labelled(tiny_graph: Graph) -> Labelled:
    model = quantised(build_model("ComplEx", tiny_graph.num_entities, tiny_graph.num_relations, 4, seed=7), "int8")
    return Labelled(model, tiny_graph, "int8", "run-1", {"source": "here"})


@pytest.fixture(scope="module")
def student(labelled: Labelled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shell") / "student"
    labelled.save(folder)
    return folder


@pytest.fixture
def earlier(labelled: Labelled, tmp_path: Path) -> Path:
    """The same as an earlier release wrote it, with a file of the user's own."""
    folder, graph = tmp_path / "earlier", labelled.graph
    save_model(folder, labelled.model, graph, "run-1", precision="int8", about={"source": "here"})
    parts = {split: getattr(graph, split).int() for split in SPLITS}
    write_tensors(folder / "triples.safetensors", parts, {"graph_sha256": graph.sha256})
    (folder / "notes.txt").write_text("mine")
    return folder


# ---- convert --------------------------------------------------------------------------------------------------------
def test_a_folder_of_an_earlier_release_is_rewritten(earlier: Path, student: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    told = call("convert", earlier, "-o", tmp_path / "other")
    assert told.exit_code == 0 and f"{len(before['model.safetensors']):,}" in told.stdout, told.output
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before  # untouched
    assert call("convert", earlier).exit_code == 0
    assert {path.name for path in earlier.iterdir()} - {".lock"} == {*FILES, "notes.txt"}
    wanted = kgdistil.load_student(student)
    for folder in (earlier, tmp_path / "other"):
        found = kgdistil.load_student(folder)
        assert {**found.header, "files": 0, "sum": 0} == {**wanted.header, "files": 0, "sum": 0}
        assert all(np.array_equal(x, wanted.weights.arrays[name]) for name, x in found.weights.arrays.items())
        assert (
            found.predict(head="e01", relation="r0", new=True).rows()
            == wanted.predict(head="e01", relation="r0", new=True).rows()
        )


def test_what_is_converted_already_is_left_as_it_is(student: Path, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in student.iterdir()}
    told = call("convert", student)
    assert told.exit_code == 0 and "already" in told.stdout
    assert {path.name: path.stat().st_mtime_ns for path in student.iterdir()} == before
    assert call("convert", student, "-o", tmp_path / "copy").exit_code == 0
    assert (tmp_path / "copy" / "weights.bin").read_bytes() == (student / "weights.bin").read_bytes()


def test_nothing_is_converted_over_what_lies_there(student: Path, earlier: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert "holds other files" in refused("convert", earlier, "-o", tmp_path / "full")
    assert "holds other files" in refused("convert", earlier, "-o", student)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    assert "is not there" in refused("convert", tmp_path / "none")


# ---- only some entities ---------------------------------------------------------------------------------------------
def test_only_candidates(student: Path, tmp_path: Path) -> None:
    """In a file, one by one, and both together; the order is that of all answers."""
    (tmp_path / "some.txt").write_bytes("\ufeffe03\r\ne17\ne09".encode())
    query = ["predict", student, "--head", "e01", "--relation", "r0", "-k", 30]
    every = [line.split()[1] for line in call(*query).stdout.splitlines()[1:]]
    names = lambda *more: [line.split()[1] for line in call(*query, *more).stdout.splitlines()[1:]]
    assert names("--candidates", tmp_path / "some.txt") == [x for x in every if x in ("e03", "e09", "e17")]
    assert names("--candidate", "e04", "--candidate", "e20") == [x for x in every if x in ("e04", "e20")]
    both = names("--candidates", tmp_path / "some.txt", "--candidate", "e04")
    assert both == [x for x in every if x in ("e03", "e04", "e09", "e17")]
    (tmp_path / "ids.txt").write_text("3\n4\n")
    found = call("predict", student, "--ids", "--head", 1, "--relation", 0, "--candidates", tmp_path / "ids.txt")
    assert {line.split()[1] for line in found.stdout.splitlines()[1:]} == {"3", "4"}


def test_only_entities_that_training_saw_there(student: Path, tiny_graph: Graph) -> None:
    train = tiny_graph.train
    assert 0 in kgdistil.load_student(student).reflexive  # so that e01 may be its own answer
    seen = {tiny_graph.entities[t] for t in train[train[:, 1] == 0, 2].tolist()}
    assert len(seen) < tiny_graph.num_entities
    found = call("predict", student, "--head", "e01", "--relation", "r0", "-k", 30, "--typed")
    assert {line.split()[1] for line in found.stdout.splitlines()[1:]} == seen


@pytest.mark.parametrize(
    "content, line",
    [
        (None, "cannot read"),
        (b"", "is empty"),
        (b"e01\ne0l\n", "line 2: no entity is called 'e0l'; did you mean"),
        (b"e01\n\ne02\n", "line 2: blank line; remove it"),
        (b"e01\n\xff\n", "line 2: byte 0xff is not UTF-8"),
        (b"e" * 2_000_000, "line 1: it has more than"),
    ],
)
def test_candidates_that_are_none(student: Path, tmp_path: Path, content: bytes | None, line: str) -> None:
    path = tmp_path / "some.txt"
    if content is not None:
        path.write_bytes(content)
    said = refused("predict", student, "--head", "e01", "--relation", "r0", "--candidates", path)
    assert str(path) in said and line in said


def test_candidates_are_no_relations(student: Path) -> None:
    assert "relation is asked for" in refused("predict", student, "--head", "e01", "--tail", "e02", "--typed")
    with pytest.raises(ConfigError, match="relation is asked for"):
        kgdistil.load_student(student).predict(head="e01", tail="e02", candidates=["e03"])


# ---- batches --------------------------------------------------------------------------------------------------------
QUERIES = "e01\tr0\t\n\tr1\te02\ne03\tr2\t?\ne04\t\te05\n?\tr0\te06\n"
HEAD = ["line", "head", "relation", "tail", "rank", "score"]


def table(told: str) -> list[list[str]]:
    return [line.split("\t") for line in told.splitlines()]


def one_by_one(student: Student, k: int, **options: object) -> list[list[object]]:
    """What `QUERIES` answer, each alone: line, triple, rank, score."""
    rows: list[list[object]] = []
    for number, line in enumerate(QUERIES.splitlines(), 1):
        given = dict(zip(("head", "relation", "tail"), line.split("\t")))
        query = {what: x for what, x in given.items() if x not in ("", "?")}
        for row in student.predict(**query, k=k, **options).rows():
            triple = [query.get(what, row.get("relation" if what == "relation" else "entity")) for what in given]
            rows.append([number, *triple, row["rank"], row["score"]])
    return rows


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("new", [False, True])
def test_a_batch_answers_as_its_queries_do_one_by_one(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, new: bool
) -> None:
    """Whatever is asked for, in whatever order, and however many are asked together; from a file and from a pipe."""
    monkeypatch.setattr(lines, "TOGETHER", size)
    (tmp_path / "q.tsv").write_bytes(b"\xef\xbb\xbfhead\trelation\ttail\r\n" + QUERIES.replace("\n", "\r\n").encode())
    more = ["-k", 4, *["--new"] * new]
    told = call("predict", student, "--batch", tmp_path / "q.tsv", *more)
    assert told.exit_code == 0 and told.stderr == "", told.output
    head, *rows = table(told.stdout)
    wanted = one_by_one(kgdistil.load_student(student), 4, new=new)
    assert head == HEAD and len(rows) == len(wanted) > 10
    for row, (line, *triple, rank, score) in zip(rows, wanted):
        assert row[:5] == [str(line + 1), *triple, str(rank)] and float(row[5]) == pytest.approx(score, rel=1e-5)
    piped = call("predict", student, "--batch", "-", *more, given=QUERIES.encode())
    assert [row[1:] for row in table(piped.stdout)] == [row[1:] for row in (head, *rows)]


def test_every_form_says_the_same(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "TOGETHER", 2)
    monkeypatch.setattr(lines, "GROUP", 6)  # rows
    (tmp_path / "q.tsv").write_text(QUERIES)
    asked = ["predict", student, "--batch", tmp_path / "q.tsv", "-k", 3]
    head, *rows = table(call(*asked).stdout)
    found = [json.loads(line) for line in call(*asked, "--format", "jsonl").stdout.splitlines()]
    assert [list(map(str, row.values()))[:5] for row in found] == [row[:5] for row in rows]
    assert all(list(row) == head for row in found) and isinstance(found[0]["score"], float)
    told = call(*asked, "--format", "parquet", "-o", tmp_path / "a.parquet")
    assert told.exit_code == 0 and "5 queries, 15 answers" in told.stdout, told.output
    file = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet")
    assert file.read().to_pylist() == [{**row, "score": pytest.approx(row["score"])} for row in found]
    assert file.num_row_groups > 1
    call(*asked, "-o", tmp_path / "a.tsv")
    assert table((tmp_path / "a.tsv").read_text()) == [head, *rows]


def test_a_batch_takes_the_options_of_a_query(labelled: Labelled, student: Path, tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("e01\tr0\t\n?\tr1\te02\n")
    (tmp_path / "some.txt").write_text("e03\ne17\n")
    asked = ["predict", student, "--batch", tmp_path / "q.tsv", "-k", 30]
    rows = table(call(*asked, "--candidates", tmp_path / "some.txt").stdout)[1:]
    assert [{row[3] for row in rows if row[0] == "1"}, {row[1] for row in rows if row[0] == "2"}] == [
        {"e03", "e17"}
    ] * 2
    told = table(call(*asked, "--typed").stdout)
    ours = kgdistil.load_student(student).predict(head="e01", relation="r0", k=30, typed=True)
    assert [row[3] for row in told[1:] if row[0] == "1"] == ours["entity"]
    (tmp_path / "ids.tsv").write_text("1\t0\t\n?\t1\t2\n")
    by_id = table(call("predict", student, "--batch", tmp_path / "ids.tsv", "--ids").stdout)
    assert by_id[0] == [*HEAD, "id"]
    assert [row[:6] for row in by_id[1:]] == table(call(*asked[:-2]).stdout)[1:]
    assert all(labelled.graph.entities[int(row[6])] == row[3 if row[0] == "1" else 1] for row in by_id[1:])


def test_a_batch_of_answer_sets(labelled: Labelled, tmp_path: Path) -> None:
    """Probabilities and sets are those of each query alone, and have their column in every form."""
    one = {"x": [-9.0, 0.0], "p": [0.1, 0.9], "sets": [-1.0, -3.0]}
    told = {"best": 100, "levels": [0.5, 0.9], "head": [0] * 4, "tail": [0] * 4, "tables": [one]}
    replace(labelled, calibration=told).save(tmp_path / "s")
    (tmp_path / "q.tsv").write_text("e01\tr0\t\n?\tr1\te02\n")
    asked = ["predict", tmp_path / "s", "--batch", tmp_path / "q.tsv", "--probability", "--coverage", "0.9"]
    head, *rows = table(call(*asked).stdout)
    assert head == [*HEAD, "probability"]
    who, how = kgdistil.load_student(tmp_path / "s"), {"probability": True, "coverage": 0.9}
    wanted = who.predict(head="e01", relation="r0", **how).rows(), who.predict(tail="e02", relation="r1", **how).rows()
    assert [len(x) for x in wanted] == [sum(row[0] == number for row in rows) for number in "12"]
    assert [float(row[6]) for row in rows] == [pytest.approx(x["probability"], rel=1e-5) for y in wanted for x in y]
    assert call(*asked, "--format", "parquet", "-o", tmp_path / "a.parquet").exit_code == 0
    found = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert found["probability"].to_pylist() == [x["probability"] for y in wanted for x in y]
    (tmp_path / "q.tsv").write_text("e01\t\te02\n")
    assert "line 1: the relation is asked for: probability and coverage" in refused(*asked)


def test_names_and_what_was_never_trained_have_columns(labelled: Labelled, tmp_path: Path) -> None:
    graph = replace(
        labelled.graph,
        train=labelled.graph.train[(labelled.graph.train != 4)[:, [0, 2]].all(1)],
        descriptions={"e01": "Zoë, a person", "e02": "a\tb\x1b"},
    )
    Labelled(labelled.model, graph, "int8").save(tmp_path / "s")
    (tmp_path / "q.tsv").write_text("e04\t\te05\nZoë\tr0\t\n")
    said = refused("predict", tmp_path / "s", "--batch", tmp_path / "q.tsv")
    assert "q.tsv, line 1: the entity 'e04' stands in no training triple" in said
    told = call("predict", tmp_path / "s", "--batch", tmp_path / "q.tsv", "--unseen", "-k", 30)
    head, *rows = table(told.stdout)
    assert head == [*HEAD, "name", "unseen"], told.output
    assert rows[0][:2] == ["1", "e04"] and rows[0][6] == rows[0][2]  # the name of a relation is its label
    second = {row[3]: row[6:] for row in rows if row[0] == "2"}
    assert {x for x, (_, unseen) in second.items() if unseen == "true"} == {"e04"}
    assert second["e01"][0] == "Zoë, a person" and second["e02"][0] == "a\\tb\\u001b"
    assert told.stderr.count("are escaped as in JSON; jsonl has them as they are") == 1
    told = call("predict", tmp_path / "s", "--batch", tmp_path / "q.tsv", "--unseen", "--format", "jsonl", "-k", 30)
    assert "escaped" not in told.stderr
    assert "a\tb\x1b" in {json.loads(line)["name"] for line in told.stdout.splitlines()}


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="no /dev/stdin")
def test_a_pipe_is_a_file_too(student: Path) -> None:
    command = [sys.executable, "-m", "kgdistil.cli", "predict", str(student), "--batch", "/dev/stdin", "-k", "1"]
    done = subprocess.run(command, input=QUERIES, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 6


def test_two_columns_where_it_is_clear(student: Path) -> None:
    rows = table(call("predict", student, "--batch", "-", "-k", 1, given=b"e01\tr0\nr0\te01\n").stdout)[1:]
    assert [(row[1], row[2]) for row in rows][:1] == [("e01", "r0")] and rows[1][2:4] == ["r0", "e01"]
    for given in (b"e01\te02\n", b"r0\tr1\n", b"e01\n", b"e01\tr0\t\t\n", b"\n"):
        assert "standard input, line 1: " in refused("predict", student, "--batch", "-", given=given)


WRONG = [
    ("e0l\tr0\t", "no entity is called 'e0l'; did you mean"),
    ("e01\tr9\t", "no relation is called 'r9'; did you mean"),
    ("e01\tr0\te02", "leaves 0 places empty"),
    ("e01\t\t", "leaves 2 places empty"),
    ("e01\t?\t?", "leaves 2 places empty"),
    ("e01\tr0\t\tx", "4 columns"),
    ("", "1 column"),
]


@pytest.mark.parametrize("line, fault", WRONG)
@pytest.mark.parametrize("size", [2, 1000])
def test_a_wrong_line_loses_no_answer(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, fault: str, size: int
) -> None:
    monkeypatch.setattr(lines, "TOGETHER", size)
    (tmp_path / "q.tsv").write_text(f"e01\tr0\t\n\tr1\te02\n\tr1\te03\n{line}\ne03\tr2\t\n")
    asked = ["predict", student, "--batch", tmp_path / "q.tsv", "-k", 2]
    told = call(*asked)
    assert told.exit_code == 1 and len(told.stderr.splitlines()) == 1
    assert f"{tmp_path}/q.tsv, line 4: " in told.stderr and fault in told.stderr
    assert [row[0] for row in table(told.stdout)[1:]] == ["1", "1", "2", "2", "3", "3"]
    told = call(*asked, "--format", "parquet", "-o", tmp_path / "a.parquet")
    assert told.exit_code == 1 and f"the answers before it are in {tmp_path}/a.parquet.partial" in told.stderr
    assert (
        len(pyarrow.parquet.read_table(tmp_path / "a.parquet.partial")) == 6 and not (tmp_path / "a.parquet").exists()
    )
    told = call(*asked, "--skip-errors")
    assert told.exit_code == 0 and "line 4: " in told.stderr
    assert [row[0] for row in table(told.stdout)[1:]] == ["1", "1", "2", "2", "3", "3", "5", "5"]


def test_lines_that_cannot_be_read_are_skipped_too(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST", 1000)
    path = tmp_path / "q.tsv"
    path.write_bytes(b"e01\tr0\t\n" + b"e" * 2500 + b"\tr0\t\ne\xff\tr0\t\n\tr1\te02\n" + b"x" * 2000)
    told = call("predict", student, "--batch", path, "-k", 1, "--skip-errors")
    assert told.exit_code == 0 and [row[0] for row in table(told.stdout)[1:]] == ["1", "4"]
    assert [line.partition("q.tsv, ")[2].partition(":")[0] for line in told.stderr.splitlines()] == [
        "line 2",
        "line 3",
        "line 5",
    ]
    assert "line 2: it has more than 1,000 bytes" in call("predict", student, "--batch", path).stderr


def test_answers_of_no_query_have_their_columns(student: Path, tmp_path: Path) -> None:
    path, into = tmp_path / "q.tsv", tmp_path / "a.parquet"
    for options in ((), ("--ids",)):
        kinds = []
        for content in ("7\t1\t\n" if options else "e01\tr0\t\n", "no\tline\n" * 3):
            path.write_text(content)
            asked = ["predict", student, "--batch", path, "--skip-errors", *options]
            assert call(*asked, "--format", "parquet", "-o", into, "--replace").exit_code == 0
            kinds.append(pyarrow.parquet.read_table(into).schema)
            assert table(call(*asked).stdout)[0] == kinds[0].names
        assert kinds[0].equals(kinds[1])
    assert len(pyarrow.parquet.read_table(into)) == 0


def test_a_batch_that_cannot_be(student: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.tsv"
    asked = ["predict", student, "--batch", path]
    assert "is missing" in refused(*asked)
    path.write_bytes(b"")
    assert "is empty" in refused(*asked) and "is empty" in refused("predict", student, "--batch", "-", given=b"")
    path.write_bytes(b"e01\tr0\t\ne\xff\tr0\t\n")
    told = call(*asked, "-k", 1)
    assert told.exit_code == 1 and "line 2: byte 0xff is not UTF-8" in told.stderr and len(table(told.stdout)) == 2
    path.write_bytes(gzip.compress(b"e01\tr0\t\n"))
    assert "line 1: it is packed; unpack it first" in refused(*asked)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("q.tsv", "e01\tr0\t\n" * 1000)
    assert "line 1: it is packed; unpack it first" in refused(*asked)
    path.write_text("e01\t\te02\n")
    assert "line 1: the relation is asked for" in refused(*asked, "--typed")
    (tmp_path / "earlier.tsv").write_text("mine")
    assert "k is 0" in refused(*asked, "-k", 0, "-o", tmp_path / "earlier.tsv", "--replace")
    assert "is there already; name another, or add --replace" in refused(*asked, "-o", tmp_path / "earlier.tsv")
    assert (tmp_path / "earlier.tsv").read_text() == "mine"  # nothing is overwritten by nothing
    assert "name a file with -o" in refused(*asked, "--format", "parquet")
    assert f"cannot write {tmp_path}/no/a.tsv: No such file" in refused(*asked, "-o", tmp_path / "no" / "a.tsv")
    if os.path.exists("/dev/full"):
        assert "cannot write /dev/full: No space left" in refused(*asked, "-o", "/dev/full")
        for told in (["--help"], ["predict", student, "--head", "e01", "--relation", "r0"], asked):
            command = [sys.executable, "-m", "kgdistil.cli", *map(str, told)]
            with open("/dev/full", "w", encoding="utf-8") as full:
                done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
            assert done.stderr.startswith("kgdistil: cannot write standard output: No space left")
    assert "holds the queries" in refused(*asked, "-o", path) and path.read_text() == "e01\t\te02\n"
    assert "comes without" in refused(*asked, "--head", "e01") and "comes without" in refused(*asked, "--json")
    assert "of a batch" in refused("predict", student, "--head", "e01", "--relation", "r0", "--format", "jsonl")
    path.write_text("e01\tr0\t\n1x\t0\t\n")
    assert "line 1: head is 'e01': with --ids it must be an id" in refused(*asked, "--ids")


def test_ctrl_c_leaves_what_was_answered(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "q.tsv").write_text(QUERIES)
    real = lines.answer_lines

    def stopped(*given: object, **how: object) -> Iterator[tuple[int, lines.Columns]]:
        yield from real(*given, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(lines, "answer_lines", stopped)
    asked = ["--batch", tmp_path / "q.tsv", "-k", 2, "--format", "parquet", "-o", tmp_path / "a.parquet"]
    told = call("predict", student, *asked)
    place = tmp_path / "a.parquet.partial"
    assert told.exit_code == 130
    assert told.stderr == f"kgdistil: the answers until now are in {place}\nkgdistil: stopped\n"
    assert len(pyarrow.parquet.read_table(place)) == 10 and not (tmp_path / "a.parquet").exists()


def test_a_reader_that_leaves_ends_the_command_quietly(student: Path, tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("e01\tr0\t\n" * 20_000)
    command = [sys.executable, "-m", "kgdistil.cli", "predict", str(student), "--batch", str(tmp_path / "q.tsv")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout.readline().startswith(b"line\t")
        running.stdout.close()
        assert running.stderr.read() == b"" and running.wait() == 1


def test_a_terminal_sees_how_far_it_is(student: Path, tmp_path: Path) -> None:
    """On standard error alone, and it is gone at the end."""
    (tmp_path / "q.tsv").write_text("e01\tr0\t\n" * 3000)
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "kgdistil.cli",
        "predict",
        str(student),
        "--batch",
        str(tmp_path / "q.tsv"),
        "-k",
        "1",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    said = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "100%, about 0 s left, 3,000 queries" in said and said.endswith("\r\x1b[K")
    assert len(done.stdout.splitlines()) == 3001 and b"queries" not in done.stdout


def test_memory_does_not_grow_with_the_file(student: Path) -> None:
    """Of a file without an end no more is read than is asked together."""
    read: list[int] = []

    class Endless(io.RawIOBase):
        def readline(self, size: int = -1) -> bytes:
            read.append(size)
            return b"e01\tr0\t\n"

    who = kgdistil.load_student(student)
    for k, most in ((1, lines.TOGETHER), (30, lines.MOST // 30)):
        read.clear()
        count, columns = next(lines.answer_lines(who, Endless(), "endless", k=k, unseen=True))
        assert count == len(read) == min(lines.TOGETHER, most) and len(columns["line"]) <= lines.MOST


# ---- without PyTorch ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "{}", "--head", "e01", "--relation", "r0"],
        ["similar", "{}", "e01"],
        ["evaluate", "{}"],
        ["convert", "{}", "-o", "{}-copy"],
        ["predict", "{}", "--batch", "{}/README.md", "--skip-errors"],
    ],
    ids=lambda x: x[0] if "--batch" not in x else "batch",
)
def test_answers_need_neither_torch_nor_pandas(labelled: Labelled, tmp_path: Path, arguments: list[str]) -> None:
    labelled.save(tmp_path / "s")
    code = "import sys; from kgdistil import cli; cli.main(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    words = [x.format(tmp_path / "s") for x in arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "kgdistil.answer.student" in loaded and not loaded & {"torch", "pandas", "scipy", "pydantic", "tqdm"}


def test_a_closed_standard_input_is_one_line(labelled: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        cli.answer_batch(labelled.student(), Path("-"), "jsonl", None, False, False)


def test_an_export_to_pykeen_says_nothing_of_its_own(student: Path, tmp_path: Path) -> None:
    pytest.importorskip("pykeen")
    told = call("export", student, "--to", "pykeen", "-o", tmp_path / "p")
    assert told.exit_code == 0 and told.stderr == "" and "trained_model.pkl" in told.stdout


@pytest.mark.parametrize("form", ["tsv", "jsonl", "parquet"])
def test_earlier_answers_stay_until_all_new_ones_are_there(student: Path, tmp_path: Path, form: str) -> None:
    (queries := tmp_path / "q.tsv").write_text("e01\tr0\t\nzz\tr0\t\ne02\tr0\t\n")
    (answers := tmp_path / f"a.{form}").write_text("PRECIOUS")
    asked = ["predict", student, "--batch", queries, "-k", 1, "--format", form, "-o", answers, "--replace"]
    told = call(*asked)
    assert told.exit_code == 1 and "line 2: no entity is called 'zz'" in told.stderr
    assert answers.read_text() == "PRECIOUS"
    queries.write_text("zz\tr0\t\n")  # nothing to keep
    (tmp_path / f"a.{form}.partial").unlink()
    assert call(*asked).exit_code == 1 and not (tmp_path / f"a.{form}.partial").exists()
    queries.write_text("e01\tr0\t\n")
    assert call(*asked).exit_code == 0 and answers.read_bytes() != b"PRECIOUS"
    assert {path.name for path in tmp_path.iterdir() if path.name[0] == "."} == set()
    before = {path.name: path.read_bytes() for path in student.iterdir() if path.is_file()}
    for name in ("weights.bin", "answers.tsv"):
        said = refused("predict", student, "--batch", queries, "-o", student / name, "--replace")
        assert "lies in the student's own folder: name another place" in said
    assert before == {path.name: path.read_bytes() for path in student.iterdir() if path.is_file()}
