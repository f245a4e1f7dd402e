"""The last step of saving: a kill or a full disk at any step of it, and the same command goes on to the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kgdistil
from kgdistil.answer import folder as folders
from kgdistil.answer.format import CARD, FILES, HEADER, LABELS, WEIGHTS
from kgdistil.answer.student import load_student
from kgdistil.errors import KgdistilError
from kgdistil.graph import Graph
from kgdistil.models import build_model

HOME = Path(kgdistil.__file__).parent.parent


@pytest.fixture
def student(tiny_graph: Graph) -> kgdistil.Labelled:
    return kgdistil.Labelled(build_model("DistMult", 30, 4, 4, seed=1), tiny_graph, "int8")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# A child process does a command again and again, each time in a fork that is killed, or whose call fails, at the n-th
# step that changes a file below the folder; it prints what was wrong afterwards, and at the end how many steps it took.
CHILD = r"""
import errno, os, shutil, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import kgdistil.distillation.distil, kgdistil.distillation.budget, kgdistil.graphs.readers  # once, not in each fork
from kgdistil import checkpoint, cli
from kgdistil.answer import folder as folders
work, fault, mode, stride = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
command = sys.argv[5:]
out = Path(command[command.index("-o") + 1])
CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
left = None

def strike():
    global left
    if left is None:
        return
    left -= 1
    if left == 0:
        if fault == "kill":
            os._exit(99)
        raise OSError(getattr(errno, fault), os.strerror(getattr(errno, fault)))

def hook(event, arguments):
    if event in CHANGES and str(arguments[0]).startswith(str(out.parent)) and ".training" not in str(arguments[0]):
        if event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            strike()

def run(step):
    '''The command in a fork: its exit code.'''
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    global left
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    if step:
        real_sync, real_save, real_exchange = os.fsync, checkpoint.save_file, folders.exchange
        os.fsync = lambda handle: (strike(), real_sync(handle))
        def half(tensors, path, metadata=None):
            real_save(tensors, path, metadata)
            whole = os.path.getsize(path)
            with open(path, "rb+") as file:
                last = file.read()[-10:]
            os.truncate(path, whole - 10)
            strike()
            with open(path, "ab") as file:
                file.write(last)
        checkpoint.save_file = half
        if mode == "exchange":
            folders.exchange = lambda one, other: (strike(), real_exchange(one, other), strike())[1]
        else:
            folders.exchange = lambda one, other: False
        sys.addaudithook(hook)
        left = step
    try:
        code = cli.main(command, standalone_mode=False) or 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        code = 70
    os._exit(int(code) if left is None or left > 0 else 98 if code == 0 else int(code))

def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"} if folder.is_dir() else None

start = work / "start"
before = content(start)
def reset():
    shutil.rmtree(out, ignore_errors=True)
    for p in out.parent.glob(f".{out.name}.*"):
        shutil.rmtree(p)
    if before is not None:
        shutil.copytree(start, out)

reset()
assert run(0) == 0
wanted = content(out)
step = 1
while True:
    reset()
    code = run(step)
    if code == 0:
        break
    now = content(out)
    if code not in ((99,) if fault == "kill" else (1, 98)):
        print(step, "ended with", code)
    if now is not None and now != before and now != wanted:
        print(step, "left half of a student:", sorted(now), {k for k in now if now[k] != wanted.get(k)})
    if before is not None and now is None and mode == "exchange":
        print(step, "lost the old student")
    if run(0) != 0:
        print(step, "the same command does not go on")
    elif content(out) != wanted:
        print(step, "ends in other bytes")
    if rest := [p.name for p in out.parent.iterdir() if p.name.startswith(f".{out.name}.")]:
        print(step, "leaves", rest)
    step += stride
print("steps", step)
"""


def after_each_step(work: Path, fault: str, mode: str, stride: int, *command: str) -> int:
    """How many steps there are; what is wrong after any of them fails the test."""
    places = {"KGDISTIL_RUNS", "KGDISTIL_RESULTS"}
    env = {k: v for k, v in os.environ.items() if k not in places} | {"PYTHONPATH": str(HOME), "KGDISTIL_NATIVE": "0"}
    arguments = [sys.executable, "-c", CHILD, str(work), fault, mode, str(stride), *command]
    ran = subprocess.run(arguments, capture_output=True, text=True, env=env, check=False)
    *wrong, last = ran.stdout.splitlines() or [""]
    assert ran.returncode == 0 and last.startswith("steps "), ran.stderr + ran.stdout
    assert not wrong, "\n".join(wrong)
    return int(last.split()[1])


@pytest.fixture
def arrays(tmp_path: Path) -> list[str]:
    """A graph and a teacher to import."""
    rng = np.random.default_rng(0)
    rows = sorted({(f"e{h}", f"r{r}", f"e{t}") for h, r, t in rng.integers(0, [12, 3, 12], (150, 3))})
    (tmp_path / "triples.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    labels = {"entity_labels": [f"e{i}" for i in range(12)], "relation_labels": ["r0", "r1", "r2"]}
    tables = {"entities": rng.normal(size=(12, 4)), "relations": rng.normal(size=(3, 4))}
    np.savez(tmp_path / "teacher.npz", **tables, **labels)
    graph = ["--graph", str(tmp_path / "triples.tsv")]
    (tmp_path / "out").mkdir()
    return ["import", str(tmp_path / "teacher.npz"), *graph, "--model", "DistMult", "-o", str(tmp_path / "out" / "it")]


@pytest.mark.parametrize(
    "fault, mode, replaced, stride",
    [
        ("kill", "exchange", False, 5),
        ("kill", "exchange", True, 2),
        ("kill", "two moves", True, 3),
        ("ENOSPC", "exchange", True, 5),
        ("EIO", "two moves", True, 5),
    ],
)
def test_import(
    arrays: list[str], tmp_path: Path, student: kgdistil.Labelled, fault: str, mode: str, replaced: bool, stride: int
) -> None:
    if replaced:
        student.save(tmp_path / "start")
        (tmp_path / "start" / "notes.txt").write_text("mine")
        arrays.append("--replace")
    assert after_each_step(tmp_path, fault, mode, stride, *arrays) > 20
    assert len(load_student(tmp_path / "out" / "it").entities) == 12
    assert (tmp_path / "out" / "it" / "notes.txt").exists() == replaced, "other files stay"


def test_distill(arrays: list[str], tmp_path: Path) -> None:
    small = ["--dim", "2", "--teacher-dim", "4", "--epochs", "2", "--stages", "1", "--softmax-epochs", "0"]
    command = ["distill", str(tmp_path / "triples.tsv"), *small, "-o", arrays[arrays.index("-o") + 1]]
    assert after_each_step(tmp_path, "kill", "exchange", 9, *command) > 20


# ---- the folder itself ----------------------------------------------------------------------------------------------
def test_a_folder_that_cannot_be_exchanged_is_filled_in_place(
    student: kgdistil.Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "notes.txt").write_text("mine")
    inode = here.stat().st_ino
    monkeypatch.chdir(here)
    student.save(".")
    assert here.stat().st_ino == inode and sorted(files(here)) == sorted([*FILES, "notes.txt"])
    assert len(list(here.iterdir())) == 6 and load_student(".").precision == "int8"


def test_a_link_to_a_folder_stays_one_and_a_student_without_triples_takes_the_old_ones_away(
    student: kgdistil.Labelled, tmp_path: Path
) -> None:
    student.save(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / f".{WEIGHTS}.0a1b2c3d").write_text("left by a killed process of an earlier release")
    (tmp_path / "real" / "deep").mkdir()
    (tmp_path / "real" / "deep" / "notes.txt").symlink_to("nowhere")
    empty = student.graph.train[:0]
    graph = Graph("bare", empty, empty, empty, student.graph.entities, student.graph.relations, "0" * 64)
    kgdistil.Labelled(student.model, graph).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and not load_student(tmp_path / "link").has_triples
    assert {path.name for path in (tmp_path / "real").iterdir()} == {WEIGHTS, LABELS, HEADER, CARD, "deep"}
    assert (tmp_path / "real" / "deep" / "notes.txt").is_symlink()


def test_an_old_folder_that_was_moved_away_comes_back(student: kgdistil.Labelled, tmp_path: Path) -> None:
    """Where the system cannot exchange, a kill between two moves leaves the old student under another name."""
    student.save(tmp_path / "it")
    before = files(tmp_path / "it")
    (tmp_path / "it").rename(tmp_path / ".it.old-0a1b2c3d")

    def fail(_: Path) -> None:
        raise KgdistilError("no")

    with pytest.raises(KgdistilError, match="^no$"):
        folders.replace_folder(tmp_path / "it", fail, FILES)
    assert files(tmp_path / "it") == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_the_users_umask_is_kept(student: kgdistil.Labelled, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        student.save(tmp_path / "it")
        student.save(tmp_path / "it")
    finally:
        os.umask(before)
    assert (tmp_path / "it").stat().st_mode & 0o777 == 0o777 & ~umask
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "it").iterdir()} == {0o666 & ~umask}


def test_half_a_student_of_an_earlier_release_does_not_stop_the_command(arrays: list[str], tmp_path: Path) -> None:
    from click.testing import CliRunner

    from kgdistil.cli import main

    half = tmp_path / "out" / "it"
    half.mkdir()
    (half / "triples.safetensors").write_text("half")
    (half / ".model.safetensors.abcdefgh").write_text("half")
    done = CliRunner().invoke(main, arrays)
    assert done.exit_code == 0 and sorted(files(half)) == sorted(FILES), done.output
    before = files(half)
    assert CliRunner().invoke(main, arrays).exit_code == 0 and files(half) == before, "once more is no error"
    other = [*arrays, "--split-seed", "1"]
    refused = CliRunner().invoke(main, other)
    assert refused.exit_code == 1 and "holds a model already" in refused.output and files(half) == before
