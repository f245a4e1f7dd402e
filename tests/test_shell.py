"""What people ask of answers from the shell: a few answers only, folders of earlier releases, without PyTorch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import kgdistil
from kgdistil import cli
from kgdistil.answer.format import FILES
from kgdistil.checkpoint import save_model, write_tensors
from kgdistil.compress.packing import quantised
from kgdistil.errors import ConfigError
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
    assert {path.name for path in earlier.iterdir()} == {*FILES, "notes.txt"}
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


# ---- without PyTorch ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "{}", "--head", "e01", "--relation", "r0"],
        ["similar", "{}", "e01"],
        ["evaluate", "{}"],
        ["convert", "{}", "-o", "{}-copy"],
    ],
    ids=lambda x: x[0],
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
