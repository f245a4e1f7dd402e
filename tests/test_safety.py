"""Nothing runs that the user did not ask to run, and users' runs stay out of the paper's folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kgdistil
from kgdistil import records
from kgdistil.config import make_config
from kgdistil.graph import Graph
from kgdistil.training.loop import run

DATA = os.environ.get("KGDISTIL_DATA")
PACKAGE = Path(kgdistil.__file__).parent
OURS = ("KGDISTIL_RUNS", "KGDISTIL_RESULTS", "KGDISTIL_CACHE", "XDG_DATA_HOME", "XDG_CACHE_HOME")


def python(code: str, *path: Path, cwd: Path, **environment: str) -> str:
    """What a fresh interpreter prints that finds the package on `path`."""
    env = {k: v for k, v in os.environ.items() if k not in OURS and not k.startswith("GIT_")}
    env |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "HOME": str(cwd / "home"), **environment}
    ran = subprocess.run([sys.executable, "-P", "-c", code], cwd=cwd, env=env, capture_output=True, text=True)
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


def tiny(graph: Graph, **values: object) -> kgdistil.Run:
    settings = {"dataset": "tiny", "dim": 4, "epochs": 2, "check_every": 1, "batch_size": 64, "negatives": 4, **values}
    return run(make_config(**settings), graph, progress=False, save_ranks=True)


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
    done = kgdistil.distil(tiny_graph, dim=4, teacher_dim=8, epochs=2, lists=1, progress=False)
    given = {"teacher": done.runs["teacher"].load(), "dim": 4, "epochs": 2, "lists": 0, "stages": 1}
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
        monkeypatch.setattr("kgdistil.files.platformdirs.user_cache_path", fail)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KGDISTIL_DATA", raising=False)
    with pytest.raises(kgdistil.KgdistilError, match="set HOME, or name folders in KGDISTIL_DATA"):
        kgdistil.load("wn18rr")
    assert not list(tmp_path.iterdir())
    if data := DATA:
        monkeypatch.setenv("KGDISTIL_DATA", data)
        assert kgdistil.load("wn18rr").num_relations == 11
