"""Files of weights: written whole or not at all, and anything damaged or foreign refused in one line."""

import errno
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import kgdistil
from kgdistil import checkpoint
from kgdistil.answer import files
from kgdistil.answer.files import write_atomically, write_json
from kgdistil.answer.format1 import DESCRIPTION
from kgdistil.checkpoint import VERSION, WEIGHTS, load_model, read_tensors, save_model, write_tensors
from kgdistil.errors import CheckpointError, KgdistilError
from kgdistil.graph import Graph
from kgdistil.models import MODELS, build_model

HOME = str(Path(kgdistil.__file__).parent.parent)


@pytest.fixture(scope="module")
def graph() -> Graph:
    triples = torch.tensor([[0, 0, 1], [1, 1, 2], [2, 0, 0]])
    return Graph("three", triples, triples[:1], triples[1:2], ("a", "b", "ç"), ("likes", "knows"), "1" * 64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, graph: Graph) -> Path:
    """A folder with a saved model; tests that change files take a copy."""
    folder = tmp_path_factory.mktemp("saved")
    save_model(folder, build_model("RotatE", 3, 2, 4, seed=1, offset=6.0), graph, "a-run")
    return folder


def refusal(folder: Path, graph: Graph | None = None) -> str:
    """The line with which `load_model` refuses; anything but CheckpointError fails the test."""
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, graph)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


# ---- there and back -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*MODELS, "LowRankComplEx", "LowRankReciprocal"])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path, graph: Graph, name: str) -> None:
    low = {"rank": 5} if name.startswith("LowRank") else {}
    model = build_model(name, 3, 2, 4, seed=3, norm=2, offset=1.5, epsilon=0.5, **low)
    save_model(tmp_path / "new" / "folder", model, graph)
    loaded = load_model(tmp_path / "new" / "folder", graph)
    assert type(loaded) is type(model)
    assert (loaded.dim, loaded.norm, loaded.offset, loaded.epsilon) == (4, 2, 1.5, 0.5)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
    everything = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(3))
    assert torch.equal(loaded.score_triples(everything), model.score_triples(everything))


def test_what_lies_in_a_saved_folder(saved: Path, graph: Graph) -> None:
    assert sorted([x.name for x in saved.iterdir()]) == sorted([WEIGHTS, DESCRIPTION])
    described = json.loads((saved / DESCRIPTION).read_text(encoding="utf-8"))
    assert described["entities"] == ["a", "b", "ç"] and described["relations"] == ["likes", "knows"]
    assert described["graph_sha256"] == graph.sha256 and described["run_id"] == "a-run"
    assert oct((saved / WEIGHTS).stat().st_mode)[-3:] == "644"


def test_tensors_of_any_kind_come_back(tmp_path: Path) -> None:
    given = {
        "float64": torch.randn(3, 2, dtype=torch.float64),
        "int64": torch.arange(5) - 2**62,
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(7),
        "not contiguous": torch.randn(4, 3).T,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    write_tensors(tmp_path / "x", given, {"epoch": 3, "nested": {"text": "ü\n"}})
    tensors, description = read_tensors(tmp_path / "x")
    assert description == {"epoch": 3, "nested": {"text": "ü\n"}}
    assert tensors.keys() == given.keys()
    for name, tensor in given.items():
        assert tensors[name].dtype == tensor.dtype and tensors[name].shape == tensor.shape
        assert tensors[name].numpy().tobytes() == tensor.detach().contiguous().numpy().tobytes()


# ---- writing: whole or not at all -----------------------------------------------------------------------------------
def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_then_full(tensors: dict, path: str, metadata: dict) -> None:
    save_file(tensors, path, metadata=metadata)
    os.truncate(path, Path(path).stat().st_size // 2)
    full_disk()


FAULTS = {
    "half written": (checkpoint, "save_file", half_then_full),
    "no temporary file": (files.os, "open", full_disk),
    "flush": (files.os, "fsync", full_disk),
    "move": (files.os, "replace", full_disk),
}


@pytest.mark.parametrize("where", FAULTS)
def test_a_disk_that_fills_up_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(4)}, {"epoch": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(*FAULTS[where])
        with pytest.raises(KgdistilError) as caught:
            write_tensors(path, {"a": torch.ones(4)}, {"epoch": 2})
    assert str(caught.value) == f"cannot write {path}: No space left on device; earlier files are untouched"
    assert path.read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["x.safetensors"], "the temporary file is gone"
    write_tensors(path, {"a": torch.ones(4)}, {"epoch": 2})  # and once there is room again
    assert read_tensors(path)[1] == {"epoch": 2}


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:  # root may write anywhere, so the refusal is played
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    write_json(tmp_path / "x.json", {"a": 1})
    monkeypatch.setattr(files.os, "open", denied)
    with pytest.raises(KgdistilError, match=r"cannot write .*x\.json: Permission denied; earlier files are untouched$"):
        write_json(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "x.json", tmp_path / ("n" * 300) / "x.json"):
        with pytest.raises(KgdistilError, match=r"^cannot write .*; earlier files are untouched$"):
            write_json(path, {})
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_an_interruption_leaves_the_earlier_file(tmp_path: Path) -> None:
    def interrupted(scratch: str) -> None:
        Path(scratch).write_text('{"a": ')
        raise KeyboardInterrupt

    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x.json", interrupted)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1} and [x.name for x in tmp_path.iterdir()] == [
        "x.json"
    ]


def test_json_holds_only_finite_numbers(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


FILL = """
import resource, sys, torch
from pathlib import Path
from kgdistil.checkpoint import read_tensors, write_tensors
from kgdistil.errors import KgdistilError
from kgdistil.answer.files import write_json
folder = Path(sys.argv[1])
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
write_json(folder / "a.json", {"a": 1})
write_tensors(folder / "b.safetensors", {"b": torch.ones(9)}, {})
for write in (
    lambda: write_json(folder / "a.json", "x" * (1 << 18)),
    lambda: write_tensors(folder / "b.safetensors", {"b": torch.zeros(1 << 16)}, {}),
):
    try:
        write()
    except KgdistilError as error:
        print(error)
assert (folder / "a.json").read_text() == '{\\n "a": 1\\n}\\n'
assert read_tensors(folder / "b.safetensors")[0]["b"].sum() == 9
assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.safetensors"]
"""


def test_a_disk_that_really_fills_up(tmp_path: Path) -> None:
    """A file system of 64 KiB that only the child sees; where none can be mounted, a limit on the size of files."""
    command, environment = [sys.executable, "-c", FILL, str(tmp_path)], {**os.environ, "PYTHONPATH": HOME}
    mount = f"mount -t tmpfs -o size=64k tmpfs '{tmp_path}'"
    can_mount = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode == 0
    if can_mount:
        command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *command, "disk"]
    else:
        command.append("limit")
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    lines, reason = ran.stdout.splitlines(), "No space left on device" if can_mount else "File too large"
    assert len(lines) == 2 and all(reason in line and line.startswith("cannot write ") for line in lines), lines


# ---- reading: damaged, foreign, or of something else ----------------------------------------------------------------
def test_a_missing_file_or_folder(tmp_path: Path) -> None:
    assert "is not there: train it first, or name another folder" in refusal(tmp_path)
    assert "is not there" in refusal(tmp_path / "no" / "such")
    (tmp_path / "a" / WEIGHTS).mkdir(parents=True)
    assert "is not there" in refusal(tmp_path / "a")
    refusal(tmp_path / ("n" * 300))


def test_a_file_cut_anywhere(tmp_path: Path, saved: Path) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    for length in range(len(whole)):
        (tmp_path / WEIGHTS).write_bytes(whole[:length])
        assert "is damaged or no safetensors file" in refusal(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(whole + b"\0")
    refusal(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(whole)
    load_model(tmp_path)


def test_foreign_safetensors(tmp_path: Path, saved: Path) -> None:
    tensors, _ = read_tensors(saved / WEIGHTS)
    for metadata in (
        None,
        {},
        {"format": "pt"},
        {"kgdistil": "no JSON"},
        {"kgdistil": "[1]"},
        {"kgdistil": "[" * 9999},
    ):
        save_file(tensors, tmp_path / WEIGHTS, metadata=metadata)
        assert "was not written by kgdistil" in refusal(tmp_path)
    write_tensors(tmp_path / WEIGHTS, tensors, {"config": {}, "epoch": 3})  # a training checkpoint, renamed
    assert "holds no model" in refusal(tmp_path)


class Trap:
    """Unpickling an instance makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, kind: str) -> None:
    trap = {"entities": Trap(tmp_path / "sprung")}
    if kind == "pickle":
        (tmp_path / WEIGHTS).write_bytes(pickle.dumps(trap))
    else:
        torch.save(trap, tmp_path / WEIGHTS)
    refusal(tmp_path)
    assert not (tmp_path / "sprung").exists()
    if kind == "pickle":
        pickle.loads((tmp_path / WEIGHTS).read_bytes())["entities"].close()
        assert (tmp_path / "sprung").exists(), "the trap works"


def test_a_newer_version(tmp_path: Path, saved: Path) -> None:
    tensors, about = read_tensors(saved / WEIGHTS)
    write_tensors(tmp_path / WEIGHTS, tensors, {**about, "version": VERSION + 1, "model": "NotYetInvented"})
    line = refusal(tmp_path)
    assert f"has version {VERSION + 1}; this kgdistil reads up to {VERSION}: update it" in line


def test_a_model_of_another_graph(saved: Path, graph: Graph) -> None:
    other = Graph("other", graph.train, graph.valid, graph.test, graph.entities, graph.relations, "2" * 64)
    line = refusal(saved, other)
    assert "was trained on another graph (three, SHA-256 111111111111…) than other (222222222222…)" in line
    load_model(saved, graph)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "TransF"},
        {"model": None},
        {"model": "TransE"},
        {"dim": 8},
        {"dim": 0},
        {"dim": "4"},
        {"dim": 10**12},
        {"num_entities": 10**12},
        {"num_entities": 2},
        {"num_relations": 3},
        {"norm": 3},
        {"offset": "much"},
        {"offset": None},
        {"epsilon": []},
        {"offset": 10**400},
        {"epsilon": 10**400},
        {"version": None},
        {"version": "1"},
    ],
)
def test_a_description_that_does_not_fit_its_weights(tmp_path: Path, saved: Path, change: dict) -> None:
    tensors, about = read_tensors(saved / WEIGHTS)
    write_tensors(tmp_path / WEIGHTS, tensors, {**about, **change})
    refusal(tmp_path)


def test_weights_that_do_not_fit_their_description(tmp_path: Path, saved: Path) -> None:
    tensors, about = read_tensors(saved / WEIGHTS)
    entities = tensors["entities"]
    for wrong in (
        {},
        {"entities": entities},
        {**tensors, "more": entities.clone()},
        {**tensors, "entities": entities.double()},
        {**tensors, "entities": entities.to(torch.int32)},
        {**tensors, "entities": torch.tensor(1.0)},
        {**tensors, "entities": torch.zeros(3)},
        {**tensors, "entities": entities[:, :7]},
        {**tensors, "relations": tensors["relations"].T},
    ):
        write_tensors(tmp_path / WEIGHTS, wrong, about)
        assert "does not hold the model it describes" in refusal(tmp_path)


def model_or_refusal(folder: Path) -> None:
    try:
        load_model(folder)
    except CheckpointError as error:
        assert "\n" not in str(error)


@settings(max_examples=300)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "bytes"
    folder.mkdir(exist_ok=True)
    (folder / WEIGHTS).write_bytes(content)
    refusal(folder)


@settings(max_examples=300)
@given(data=st.data())
def test_a_file_with_bytes_changed_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, saved: Path, data: st.DataObject
) -> None:
    """Bytes of a real file, mostly of its header, replaced, put in or taken out."""
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    content = bytearray((saved / WEIGHTS).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 8 + int.from_bytes(content[:8], "little") % 1000) | st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (folder / WEIGHTS).write_bytes(content)
    model_or_refusal(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([*MODELS, 3, 2, 4]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=150)
@given(data=st.data())
def test_any_description_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, saved: Path, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "described"
    folder.mkdir(exist_ok=True)
    tensors, about = read_tensors(saved / WEIGHTS)
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(about)), JSON, min_size=1, max_size=3))
    save_file(tensors, folder / WEIGHTS, metadata={"kgdistil": json.dumps({**about, **changes})})
    model_or_refusal(folder)


def test_stray_temporary_files_do_no_harm(tmp_path: Path, saved: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    for name in (WEIGHTS, DESCRIPTION):
        (folder / f".{name}.abc123").write_bytes(random.Random(0).randbytes(100))
    load_model(folder)
    write_json(folder / DESCRIPTION, {})
    assert json.loads((folder / DESCRIPTION).read_text()) == {}
