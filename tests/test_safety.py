"""Nothing runs that the user did not ask to run, and users' runs stay out of the paper's folders."""

import io
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import kgdistil
from kgdistil import records
from kgdistil.answer import format as new
from kgdistil.answer.format1 import DESCRIPTION, TRIPLES
from kgdistil.checkpoint import WEIGHTS, read_model, read_tensors, write_tensors
from kgdistil.cli import emit
from kgdistil.config import make_config
from kgdistil.errors import CheckpointError
from kgdistil.graph import Graph
from kgdistil.graphs.importers import import_teacher
from kgdistil.models import build_model
from kgdistil.students.labelled import load_labelled
from kgdistil.training import loop

DATA = os.environ.get("KGDISTIL_DATA")
PACKAGE = Path(kgdistil.__file__).parent
OURS = ("KGDISTIL_RUNS", "KGDISTIL_RESULTS", "KGDISTIL_CACHE", "XDG_DATA_HOME", "XDG_CACHE_HOME")


def python(code: str, *path: Path, cwd: Path, **environment: str) -> str:
    """What a fresh interpreter prints that finds the package on `path`."""
    env = {k: v for k, v in os.environ.items() if k not in OURS and not k.startswith("GIT_")}
    env |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "HOME": str(cwd / "home"), **environment}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# ---- git ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder that looks like the checkout, whose configuration of git makes `marker` when git looks at its files."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "kgdistil"\n')
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    trap = f"touch {folder / 'marker'}; false"
    subprocess.run(["git", "-C", str(folder), "config", "core.fsmonitor", trap], check=True)
    hook = folder / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{trap}\n")
    hook.chmod(0o755)
    return folder


def test_the_trap_works(hostile: Path) -> None:
    subprocess.run(["git", "-C", str(hostile), "status"], check=True, capture_output=True)
    assert (hostile / "marker").exists()


@pytest.mark.parametrize("place", ["elsewhere", "into the folder", "above the folder"])
def test_an_installed_package_asks_no_git_about_the_folder_it_is_started_in(
    hostile: Path, tmp_path: Path, place: str
) -> None:
    site = {"elsewhere": tmp_path / "site", "into the folder": hostile, "above the folder": tmp_path}[place]
    shutil.copytree(PACKAGE, site / "kgdistil", ignore=shutil.ignore_patterns("__pycache__", "bench"))
    (site / "kgdistil-1.dist-info").mkdir()  # as `pip install --target` leaves it
    code = "import json; from kgdistil import records; print(json.dumps([records.provenance(), str(records.root())]))"
    found, root = json.loads(python(code, site, cwd=hostile))
    assert not (hostile / "marker").exists()
    assert found["commit"] is None and found["dirty"] is None
    assert found["versions"]["kgdistil"] == kgdistil.__version__, "named even where pip knows nothing of it"
    assert root.startswith(str(hostile / "home")), "runs go to the user's data folder"


def test_a_checkout_with_such_a_configuration_is_read_without_running_it(hostile: Path, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, hostile / "kgdistil", ignore=shutil.ignore_patterns("__pycache__", "bench"))
    (tmp_path / "other").mkdir()
    elsewhere = {"GIT_DIR": str(tmp_path / "other"), "GIT_WORK_TREE": str(tmp_path / "other")}
    code = "from kgdistil import records; print(records.provenance()['commit'])"
    commit = python(code, hostile, cwd=tmp_path, **elsewhere).strip()
    assert not (hostile / "marker").exists()
    assert len(commit) == 40, "its commit is named, whatever repository the variables of git name"


# ---- where a user's runs go -----------------------------------------------------------------------------------------
@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout, empty, and a home beside it."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "checkout").mkdir()
    monkeypatch.setattr(records, "checkout", lambda: tmp_path / "checkout")
    return tmp_path / "checkout"


SETTINGS = {"dataset": "tiny", "dim": 4, "epochs": 2, "check_every": 1, "batch_size": 64, "negatives": 4}
CHECKPOINT_MEND = "(damaged|another configuration|another graph|another engine|not written by kgdistil).*"


def tiny(graph: Graph, **values: object) -> kgdistil.Run:
    return loop.run(make_config(**{**SETTINGS, **values}), graph, progress=False, save_ranks=True)


def test_runs_on_a_graph_of_ones_own_stay_out_of_the_checkout(
    checkout: Path, tmp_path: Path, tiny_graph: Graph
) -> None:
    teacher = tiny(tiny_graph, role="teacher")
    taught = tiny(tiny_graph, role="stage1", teacher=teacher.id)
    assert not list(checkout.iterdir())
    for done in (teacher, taught):
        assert done.folder.is_relative_to(tmp_path / "home")
        assert records.read_record(records.record_path(done.id, own=True)) == done.record
        assert records.read_ranks(done.id, own=True).metrics() == done.record["test"]
    again = tiny(tiny_graph, role="stage1", teacher=teacher.id)
    assert again.ranks is None and again.record == taught.record, "found, not trained again"


def test_distil_stays_out_of_it_too(checkout: Path, tmp_path: Path, tiny_graph: Graph) -> None:
    done = kgdistil.distil(tiny_graph, dim=4, teacher_dim=8, epochs=2, softmax_epochs=1, progress=False)
    given = {"teacher": done.runs["teacher"].load(), "dim": 4, "epochs": 2, "softmax_epochs": 0, "stages": 1}
    kgdistil.distil(tiny_graph, **given, progress=False)
    assert not list(checkout.iterdir())
    assert len(list((tmp_path / "home").rglob("results/runs/tiny-*.json"))) == len(done.runs) + 2


def test_the_papers_graphs_go_to_the_checkout_unless_it_is_read_only(
    checkout: Path, tmp_path: Path, tiny_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tiny(tiny_graph, dataset="umls")
    assert done.folder == checkout / "runs" / "models" / done.id and records.record_path(done.id).is_file()
    monkeypatch.setattr(records.os, "access", lambda *_: False)  # root may write anywhere
    assert tiny(tiny_graph, dataset="umls", seed=1).folder.is_relative_to(tmp_path / "home")


def test_without_a_home_one_line_says_what_to_name(
    checkout: Path, tmp_path: Path, tiny_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME, no passwd entry
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kgdistil.KgdistilError, match="KGDISTIL_RUNS and KGDISTIL_RESULTS"):
        tiny(tiny_graph)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkout"], "nothing below the current folder"
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    assert tiny(tiny_graph).folder.is_relative_to(tmp_path / "runs")


@pytest.mark.parametrize("home", ["missing", "missing, newer platformdirs"])
def test_a_graph_at_hand_needs_no_home(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home == "missing":
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    else:
        monkeypatch.setattr("kgdistil.answer.files.platformdirs.user_cache_path", fail)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KGDISTIL_DATA", raising=False)
    with pytest.raises(kgdistil.KgdistilError, match="set HOME, or name folders in KGDISTIL_DATA"):
        kgdistil.load("wn18rr")
    assert not list(tmp_path.iterdir())
    if data := DATA:
        monkeypatch.setenv("KGDISTIL_DATA", data)
        assert kgdistil.load("wn18rr").num_relations == 11


# ---- a file that changed since it was written -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tiny_graph: Graph) -> Path:
    folder = tmp_path_factory.mktemp("student") / "of tiny"
    model = build_model("ComplEx", 30, 4, 4, seed=1)
    about = {"metrics": [{"model": "ComplEx", "mrr": 0.25}]}
    folder.mkdir()
    kgdistil.Labelled(model, tiny_graph, "int8", "a-run", about)._write(folder)  # format 1
    return folder


@pytest.fixture(scope="module")
def mapped(student: Path) -> Path:
    """The same in format 2."""
    kgdistil.load_student(student).save(student.with_name("mapped"))
    return student.with_name("mapped")


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION, TRIPLES, new.HEADER, new.WEIGHTS, new.LABELS, new.TRIPLES])
def test_a_flipped_bit_anywhere_in_a_student_is_noticed(student: Path, mapped: Path, tmp_path: Path, name: str) -> None:
    """But for the three letters that name the sum: without it, a file is one of an earlier release."""
    student = mapped if name in new.FILES else student
    folder = shutil.copytree(student, tmp_path / "copy")
    whole, said = (student / name).read_bytes(), load_labelled(student)
    bits = random.Random(0).sample(range(8 * len(whole)), 250)
    for bit in bits:
        flip(folder / name, bit)
        if name != new.HEADER and whole.find(b"sum", bit // 8 - 2, bit // 8 + 3) >= 0:
            assert load_labelled(folder).model.entities.equal(said.model.entities)
        else:
            with pytest.raises(CheckpointError) as caught:
                load_labelled(folder)
            assert str(folder / name) in str(caught.value) and "\n" not in str(caught.value)
        (folder / name).write_bytes(whole)
    load_labelled(folder)


def test_a_changed_record_decides_nothing(checkout: Path, tiny_graph: Graph) -> None:
    done = tiny(tiny_graph)
    path = records.record_path(done.id, own=True)
    whole = path.read_text()
    for old, other in (("0.", "0.9"), ('"dim": 4', '"dim": 8'), (f'"{done.id}"', '"another-run"')):
        assert old in whole
        path.write_text(whole.replace(old, other, 1))
        with pytest.raises(CheckpointError, match="damaged or changed since it was written.*delete it to run again"):
            tiny(tiny_graph)
    record = json.loads(whole)
    record.pop("sum")
    for change in ({"epochs": 412}, {"best_epoch": 3}, {"id": "x"}, {"test": {"both": {"mrr": 1.5}}}, {"config": []}):
        path.write_text(json.dumps({**record, **change}))
        with pytest.raises(CheckpointError, match="no run record"):
            tiny(tiny_graph)
    path.write_text(json.dumps(record))
    assert tiny(tiny_graph).record == done.record, "a record of an earlier release, without a sum"


def test_what_is_committed_has_no_sum_and_loads() -> None:
    home = PACKAGE.parent / "results"
    paths = sorted((home / "runs").glob("*.json"))[::50]
    assert len(paths) > 10 and all(records.read_record(path)["id"] == path.stem for path in paths)
    for path in sorted((home / "students").glob(f"*complex*/{WEIGHTS}")):
        assert read_model(path)[0].entities.isfinite().all()


CLAIMS = [{"epoch": 412}, {"epoch": -1}, {"epoch": 2.5}, {"epoch": 2}, {"best_epoch": 2}, {"rate": 0}, {"rate": 1e9}]
CLAIMS += [{"finished": "yes"}, {"seconds": float("nan")}, {"epoch": "1"}, {"curve": None}, {"best_mrr": 7.0}]
CLAIMS += [{"bad_checks": -3}, {"bad_checks": "x"}, {"curve": [1] * 9}]


def test_a_checkpoint_is_held_to_its_sum_and_its_config(
    checkout: Path, tiny_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(loop.tqdm, "update", lambda bar: stop() if bar.n else bar.__dict__.update(n=1))
        with pytest.raises(Stopped):
            tiny(tiny_graph)
    path = records.model_folder(make_config(**SETTINGS).run_id, own=True) / loop.CHECKPOINT
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 60):
        if whole.find(b"sum", bit // 8 - 2, bit // 8 + 3) < 0:
            flip(path, bit)
            with pytest.raises(CheckpointError, match=CHECKPOINT_MEND):
                tiny(tiny_graph)
        path.write_bytes(whole)
    tensors, about = read_tensors(path)
    assert about["epoch"] == 1
    for claim in CLAIMS:
        write_tensors(path, tensors, {**about, **claim})
        with pytest.raises(CheckpointError, match=CHECKPOINT_MEND):
            tiny(tiny_graph)
    path.write_bytes(whole)
    assert tiny(tiny_graph).record["epochs"] == 2


def test_numbers_that_are_not_finite_are_refused(student: Path, tmp_path: Path, tiny_graph: Graph) -> None:
    model = build_model("ComplEx", 30, 4, 4)
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            model.entities[3, 1] = value
        kgdistil.save_model(tmp_path, model, tiny_graph)
        with pytest.raises(CheckpointError, match="not finite"):
            kgdistil.load_model(tmp_path)
    tensors, about = read_tensors(student / WEIGHTS)
    for change in ({"offset": float("nan")}, {"epsilon": float("inf")}):
        write_tensors(tmp_path / WEIGHTS, tensors, {**about, **change})
        with pytest.raises(CheckpointError, match="not finite"):
            kgdistil.load_model(tmp_path)


def test_json_of_the_shell_has_no_nan(capsys: pytest.CaptureFixture) -> None:
    emit({"a": [float("nan"), np.float32("inf"), np.int64(3)], "b": (True, None, 0.5, "NaN")})
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said == {"a": [None, None, 3], "b": [True, None, 0.5, "NaN"]}


def test_every_entity_has_a_scale_of_its_own(student: Path, tmp_path: Path) -> None:
    """A single one would be spread over all rows."""
    tensors, about = read_tensors(student / WEIGHTS)
    write_tensors(tmp_path / WEIGHTS, {**tensors, "entities.scale": tensors["entities.scale"][:1]}, about)
    with pytest.raises(CheckpointError, match=r"\[1\] scales for 30 entities"):
        kgdistil.load_model(tmp_path)


# ---- two runs of one id ---------------------------------------------------------------------------------------------
def test_a_record_of_another_config_under_the_same_id_is_not_taken_for_ones_own(
    checkout: Path, tiny_graph: Graph
) -> None:
    done = tiny(tiny_graph)
    other = {**done.record, "config": {**done.config.model_dump(), "lr": 0.079549}}
    path = records.write_record(other)
    written = path.read_bytes()
    for again in (False, True):  # trained again, it would replace the record of the other one
        with pytest.raises(CheckpointError, match="the same: lr is 0.079549 there and 0.005 here; take another seed"):
            kgdistil.run(done.config, tiny_graph, progress=False, again=again)
    assert path.read_bytes() == written
    kept = {key: value for key, value in done.config.model_dump().items() if key not in ("accumulator", "top")}
    records.write_record({**done.record, "config": {**kept, "device": "cuda"}})
    assert tiny(tiny_graph).ranks is None, "of an earlier release, which did not know all fields, on another device"
    assert path.is_file()


# ---- small files that would take gigabytes, and files that would run code -------------------------------------------
@pytest.mark.parametrize("width", [0, 1])
def test_a_small_file_takes_little_memory(student: Path, tmp_path: Path, width: int) -> None:
    """A table of 750 million entities of no number, and sizes of which only the product is large."""
    _, about = read_tensors(student / WEIGHTS)
    about = {**about, "precision": "float32", "version": 1}
    if width:
        tables = {"entities": torch.zeros(100_000, 1), "relations": torch.zeros(1, 200_000)}
        about |= {"num_entities": 100_000, "num_relations": 1, "dim": 100_000}
    else:
        tables = {"entities": torch.zeros(750_000_000, 0), "relations": torch.zeros(1, 8)}
        about |= {"num_entities": 750_000_000, "num_relations": 1}
    write_tensors(tmp_path / WEIGHTS, tables, about)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="the sizes differ"):
        kgdistil.load_model(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_header_larger_than_any_of_ours_is_not_parsed(student: Path, tmp_path: Path) -> None:
    size = (1 << 24) + 1
    (tmp_path / WEIGHTS).write_bytes(size.to_bytes(8, "little") + b"[" * size)
    with pytest.raises(CheckpointError, match="16,777,216 may be read"):
        kgdistil.load_model(tmp_path)


def trap(path: Path) -> bytes:
    """A pickle that makes a file when it is read."""
    return b"cbuiltins\nopen\n(V" + str(path).encode() + b"\nVw\ntR."


def test_the_pickle_is_a_trap(tmp_path: Path) -> None:
    pickle.loads(trap(tmp_path / "sprung")).close()
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["pickle", "npz", "npy", "zip"])
def test_no_loader_runs_a_pickle(
    student: Path, mapped: Path, tmp_path: Path, checkout: Path, tiny_graph: Graph, kind: str
) -> None:
    """Under every name that a loader looks for: in a student, a run, a graph, a teacher from elsewhere."""
    content = trap(tmp_path / "sprung")
    if kind in ("npz", "zip"):
        with zipfile.ZipFile(tmp_path / "made", "w") as file:
            for name in ("archive/data.pkl", "data.pkl"):
                file.writestr(name, content)
            for name in ("entities", "relations", "entity_labels", "relation_labels", "greater", "equal"):
                file.writestr(f"{name}.npy", npy(content))
        content = (tmp_path / "made").read_bytes()
    elif kind == "npy":
        content = npy(content)

    def refused(read: Callable[[], object]) -> None:
        with pytest.raises(kgdistil.KgdistilError) as caught:
            read()
        assert "\n" not in str(caught.value)

    for name in (WEIGHTS, DESCRIPTION, TRIPLES, new.HEADER, new.WEIGHTS, new.LABELS, new.TRIPLES):
        folder = shutil.copytree(mapped if name in new.FILES else student, tmp_path / f"with {name}")
        (folder / name).write_bytes(content)
        refused(lambda folder=folder: load_labelled(folder))
    done = tiny(tiny_graph)
    records.ranks_path(done.id, own=True).write_bytes(content)
    refused(lambda: records.read_ranks(done.id, own=True))
    records.record_path(done.id, own=True).write_bytes(content)
    refused(lambda: tiny(tiny_graph))
    records.record_path(done.id, own=True).unlink()
    (done.folder / loop.CHECKPOINT).write_bytes(content)
    refused(lambda: tiny(tiny_graph))
    for ending in ("tsv", "csv", "parquet", "nt", "ttl"):
        path = tmp_path / f"graph.{ending}"
        path.write_bytes(content)
        refused(lambda path=path: kgdistil.read_graph(path))
    for name in ("teacher.npz", "teacher.pt", "pykeen/trained_model.pkl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        source = path.parent if path.suffix == ".pkl" else path
        refused(lambda source=source: import_teacher(source, tiny_graph, model="DistMult"))
    assert not (tmp_path / "sprung").exists()


def npy(content: bytes) -> bytes:
    """An array of objects, which numpy keeps as a pickle."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return buffer.getvalue() + content
