"""One loop for every role: schedules, the best checkpoint, and runs that are found, refused, stopped and resumed."""

import errno
import itertools
import json
import logging
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import kgdistil
from kgdistil import kernels, records
from kgdistil.answer import files
from kgdistil.answer.format1 import DESCRIPTION, sum_in
from kgdistil.checkpoint import WEIGHTS, load_model, read_tensors, save_model, write_tensors
from kgdistil.config import RunConfig, make_config
from kgdistil.errors import CheckpointError, ConfigError, KgdistilError
from kgdistil.evaluation import evaluate
from kgdistil.graph import Graph
from kgdistil.kernels import free
from kgdistil.models import KGEModel, build_model
from kgdistil.training import loop, native
from kgdistil.training.loop import CHECKPOINT, Progress, Run, learning_rates, run, train
from kgdistil.training.native import NativeEngine
from kgdistil.training.reference import ReferenceEngine

HOME = str(Path(kgdistil.__file__).parent.parent)
ROLES = ("teacher", "no-ds", "stage1", "stage2")
# what a record says besides the numbers, which may differ between two equal runs
CIRCUMSTANCES = ("seconds", "finished", "command", "device", "commit", "dirty", "sum")


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nothing is written into the checkout; one thread, since threads that wait for each other take longest here."""
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tiny_graph: Graph) -> Graph:
    return tiny_graph


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, tiny_graph: Graph) -> str:
    """A teacher of the tiny graph, untrained: what it knows does not matter here."""
    folder = tmp_path_factory.mktemp("teacher")
    save_model(folder, build_model("RotatE", 30, 4, 8, seed=7, offset=6.0), tiny_graph)
    return str(folder)


def tiny_config(**values: Any) -> RunConfig:
    """A run of milliseconds: 12 epochs of 5 steps."""
    settings = {
        "dataset": "tiny",
        "dim": 4,
        "epochs": 12,
        "check_every": 2,
        "batch_size": 32,
        "negatives": 4,
        "lr": 0.05,
    }
    return make_config(**{**settings, **values})


def outcome(finished: Run) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Every bit that two equal runs must share: the files of weights, and the record without its circumstances."""
    weights = {str(p.relative_to(finished.folder)): p.read_bytes() for p in finished.folder.rglob("*.safetensors")}
    record = records.read_record(records.record_path(finished.id))
    return weights, {key: value for key, value in record.items() if key not in CIRCUMSTANCES}


def elsewhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("KGDISTIL_RESULTS", str(folder / "results"))
    monkeypatch.setenv("KGDISTIL_RUNS", str(folder / "runs"))


# ---- learning rates -------------------------------------------------------------------------------------------------
def all_rates(config: RunConfig, steps: int) -> torch.Tensor:
    return torch.cat([learning_rates(config, config.lr, Progress(epoch=e), steps) for e in range(config.epochs)])


def test_linear_decay_falls_evenly_to_zero() -> None:
    config = tiny_config(schedule="linear", lr=0.02, epochs=7)
    torch.testing.assert_close(all_rates(config, 3), torch.linspace(0.02, 0, 22, dtype=torch.float64)[:-1])
    assert learning_rates(config, 0.02, Progress(epoch=7), 3)[0] == 0


def test_cosine_decay_falls_to_zero() -> None:
    config = tiny_config(schedule="cosine", lr=0.02, epochs=7)
    expected = [0.01 * (1 + math.cos(math.pi * i / 21)) for i in range(21)]
    torch.testing.assert_close(all_rates(config, 3), torch.tensor(expected, dtype=torch.float64))
    assert learning_rates(config, 0.02, Progress(epoch=7), 3)[0] < 1e-15


def test_constant_rate_stays(tiny: Graph) -> None:
    assert set(all_rates(tiny_config(schedule="constant", lr=0.02), 3).tolist()) == {0.02}
    curve = run(tiny_config(schedule="constant"), tiny, progress=False).record["curve"]
    assert {point["lr"] for point in curve} == {0.05}


class Scripted:
    """Stands for ranks whose MRR the test decides."""

    def __init__(self, mrr: float):
        self.mrr = mrr

    def metrics(self) -> dict[str, dict[str, float]]:
        return {"both": {"mrr": self.mrr}}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`script([.1, .2, …])`: the MRR of each validation in turn, the last one for ever. Returns the weights seen."""

    def install(mrrs: list[float]) -> list[dict[str, torch.Tensor]]:
        values, seen = itertools.chain(mrrs, itertools.repeat(mrrs[-1])), []

        def rank(model: KGEModel, *_: object, **__: object) -> Scripted:
            seen.append({name: x.clone() for name, x in model.state_dict().items()})
            return Scripted(next(values))

        monkeypatch.setattr(loop, "rank", rank)
        return seen

    return install


def test_plateau_multiplies_by_96_percent_after_five_checks_without_improvement(tiny: Graph, script: Any) -> None:
    script([0.1, 0.5] + [0.5] * 4 + [0.6] + [0.3] * 20)  # better at checks 2 and 7; an equal MRR is no improvement
    config = tiny_config(check_every=1, epochs=24, patience=0, lr=0.05)
    rates = [point["lr"] for point in run(config, tiny, progress=False).record["curve"]]
    # four bad checks (3 to 6) change nothing; after checks 12 and 17 and 22 five more have been bad
    expected = [0.05] * 12 + [0.05 * 0.96] * 5 + [0.05 * 0.96**2] * 5 + [0.05 * 0.96**3] * 2
    assert rates == pytest.approx(expected, rel=1e-12)


def test_decays_are_what_the_loop_uses(tiny: Graph) -> None:
    config = tiny_config(schedule="linear", check_every=1)
    rates = [point["lr"] for point in run(config, tiny, progress=False).record["curve"]]
    assert rates == pytest.approx([0.05 * (1 - (5 * e + 4) / 60) for e in range(12)])  # the last step of each epoch


# ---- the best checkpoint, early stopping ----------------------------------------------------------------------------
def test_early_stopping_and_the_weights_of_the_best_epoch(tiny: Graph, script: Any) -> None:
    seen = script([0.1, 0.4, 0.3, 0.4, 0.2, 0.9])  # the .9 is never reached
    finished = run(tiny_config(check_every=2, epochs=40, patience=3), tiny, progress=False)
    assert finished.record["epochs"] == 10 and finished.record["best_epoch"] == 4
    assert [point["epoch"] for point in finished.record["curve"]] == [2, 4, 6, 8, 10]
    for name, tensor in finished.load(tiny).state_dict().items():
        assert torch.equal(tensor, seen[1][name]) and not torch.equal(tensor, seen[4][name])


def test_patience_zero_never_stops(tiny: Graph, script: Any) -> None:
    script([0.5, 0.1])
    finished = run(tiny_config(check_every=1, epochs=30, patience=0), tiny, progress=False)
    assert finished.record["epochs"] == 30 and finished.record["best_epoch"] == 1


def test_the_last_epoch_is_validated_too(tiny: Graph) -> None:
    curve = run(tiny_config(check_every=5), tiny, progress=False).record["curve"]
    assert [point["epoch"] for point in curve] == [5, 10, 12]


@pytest.mark.parametrize("role", ROLES)
def test_what_the_record_says_is_what_the_saved_model_does(tiny: Graph, tiny_teacher: str, role: str) -> None:
    teacher = {"teacher": tiny_teacher} if role.startswith("stage") else {}
    finished = run(tiny_config(role=role, check_every=1, **teacher), tiny, progress=False)
    model = finished.load(tiny)
    assert (type(model).__name__, model.dim) == ("RotatE", 4)
    for split in ("valid", "test"):
        assert evaluate(model, tiny, split).metrics() == finished.record[split]
    best = max(finished.record["curve"], key=lambda point: point["valid_mrr"])
    assert finished.record["valid"]["both"]["mrr"] == best["valid_mrr"]
    assert finished.record["best_epoch"] == best["epoch"]
    assert finished.test("hits@10", "tail") == finished.record["test"]["tail"]["hits@10"]


def test_a_curve_of_the_test_split_changes_nothing_else(tiny: Graph) -> None:
    plain = run(tiny_config(), tiny, progress=False)
    curved = run(tiny_config(test_curve=True), tiny, progress=False)
    for name, tensor in plain.load().state_dict().items():
        assert torch.equal(curved.load().state_dict()[name], tensor)
    assert [{k: v for k, v in p.items() if k != "test_mrr"} for p in curved.record["curve"]] == plain.record["curve"]
    best = next(p for p in curved.record["curve"] if p["epoch"] == curved.record["best_epoch"])
    assert best["test_mrr"] == curved.test()


def test_seeds_differ_and_repeat(tiny: Graph) -> None:
    first, again, other = (
        train(tiny_config(seed=seed), tiny, Path(os.environ["KGDISTIL_RUNS"]) / str(i), progress=False)
        for i, seed in enumerate((0, 0, 1))
    )
    weights = [finished.load().entities for finished in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# ---- teachers -------------------------------------------------------------------------------------------------------
def test_stage_one_leaves_the_teacher_alone_and_stage_two_trains_a_copy(tiny: Graph, tiny_teacher: str) -> None:
    before = (Path(tiny_teacher) / WEIGHTS).read_bytes()
    first = run(tiny_config(role="stage1", teacher=tiny_teacher), tiny, progress=False)
    second = run(tiny_config(role="stage2", teacher=tiny_teacher, student=first.id), tiny, progress=False)
    assert (Path(tiny_teacher) / WEIGHTS).read_bytes() == before
    assert not (first.folder / "teacher").exists()
    learned, given = load_model(second.folder / "teacher", tiny), load_model(tiny_teacher, tiny)
    assert learned.dim == 8 and not torch.equal(learned.entities, given.entities)


@pytest.mark.parametrize("role", ["stage1", "stage2"])
def test_models_handed_to_train_are_not_changed(tiny: Graph, tiny_teacher: str, folders: Path, role: str) -> None:
    teacher = load_model(tiny_teacher)
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    train(tiny_config(role=role, teacher="x"), tiny, folders / "here", teacher=teacher, progress=False)
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())


def test_stage_two_starts_from_the_student_it_is_given(tiny: Graph, tiny_teacher: str) -> None:
    values = {"role": "stage2", "teacher": tiny_teacher, "epochs": 1, "lr": 1e-9}  # so that nothing moves
    student = run(tiny_config(seed=5), tiny, progress=False)
    started = run(tiny_config(student=student.id, **values), tiny, progress=False).load()
    drawn = run(tiny_config(**values), tiny, progress=False).load()
    torch.testing.assert_close(started.entities, student.load().entities, rtol=0, atol=1e-6)
    assert (drawn.entities - started.entities).abs().max() > 0.01


def test_a_student_larger_than_its_teacher_is_warned_about(
    tiny: Graph, folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(folders / "small", build_model("RotatE", 30, 4, 4, offset=6.0), tiny)
    config = tiny_config(role="stage1", dim=8, teacher=str(folders / "small"), epochs=2)
    with caplog.at_level(logging.WARNING, logger="kgdistil"):
        assert run(config, tiny, progress=False).record["epochs"] == 2
    assert [r.getMessage() for r in caplog.records] == ["the student (dim 8) is larger than its teacher (dim 4)"]


def test_a_teacher_of_another_graph(tiny: Graph, folders: Path) -> None:
    save_model(folders / "foreign", build_model("RotatE", 30, 4, 8), replace(tiny, name="other", sha256="9" * 64))
    config = tiny_config(role="stage1", teacher=str(folders / "foreign"))
    with pytest.raises(CheckpointError, match=r"was trained on another graph \(other, SHA-256 9999.* than tiny \(0000"):
        run(config, tiny, progress=False)
    assert not records.record_path(config.run_id).exists()


@pytest.mark.parametrize("name", ["nobody", "~nobody-there/x", "a" * 300, "a\0b", "/", "../..", "a\nb"])
def test_a_teacher_that_is_nowhere(tiny: Graph, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"^no model ") as caught:
        run(tiny_config(role="stage1", teacher=name), tiny, progress=False)
    assert "\n" not in str(caught.value)


def test_a_damaged_teacher(tiny: Graph, folders: Path) -> None:
    (folders / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        run(tiny_config(role="stage1", teacher=str(folders)), tiny, progress=False)


def test_a_student_that_does_not_fit(tiny: Graph, tiny_teacher: str) -> None:
    config = tiny_config(role="stage2", teacher=tiny_teacher, student=tiny_teacher)
    with pytest.raises(ConfigError, match="student is a RotatE of dim 8; the run asks for RotatE of dim 4"):
        run(config, tiny, progress=False)


# ---- found, again, lost ---------------------------------------------------------------------------------------------
def was_trained(finished: Run) -> bool:
    """A run that is found on disk has no ranks of its own."""
    return finished.ranks is not None


def test_a_finished_run_is_found_and_again_trains_anew(tiny: Graph) -> None:
    config = tiny_config()
    first = run(config, tiny, progress=False)
    found = run(tiny_config(), tiny, progress=False)
    assert was_trained(first) and not was_trained(found)
    assert (found.config, found.record, found.folder) == (first.config, first.record, first.folder)
    assert found.test() == first.test()
    again = run(config, tiny, progress=False, again=True)
    assert was_trained(again) and outcome(again) == outcome(first)
    assert was_trained(run(tiny_config(seed=1), tiny, progress=False))


def test_a_run_whose_weights_or_record_are_gone_is_trained_again(tiny: Graph) -> None:
    first = run(tiny_config(), tiny, progress=False)
    before = outcome(first)
    for lost in (first.folder / WEIGHTS, records.record_path(first.id)):
        lost.unlink()
        again = run(tiny_config(), tiny, progress=False)
        assert was_trained(again) and outcome(again) == before


def test_a_run_of_a_graph_that_has_changed_is_trained_again(tiny: Graph) -> None:
    run(tiny_config(), tiny, progress=False)
    changed = replace(tiny, train=tiny.train[:-1], sha256="1" * 64)
    again = run(tiny_config(), changed, progress=False)
    assert was_trained(again) and again.record["graph"]["sha256"] == "1" * 64


def test_ranks_asked_for_later_are_made(tiny: Graph) -> None:
    run(tiny_config(), tiny, progress=False)
    finished = run(tiny_config(), tiny, progress=False, save_ranks=True)
    assert records.read_ranks(finished.id).metrics() == finished.record["test"]


def test_a_record_that_cannot_be_read(tiny: Graph) -> None:
    config = tiny_config()
    path = records.record_path(config.run_id)
    path.parent.mkdir(parents=True)
    path.write_text('{"id": ')
    with pytest.raises(CheckpointError, match=r"\.json is no run record .*; delete it to run again"):
        run(config, tiny, progress=False)
    assert path.read_text() == '{"id": '


# ---- what is shown --------------------------------------------------------------------------------------------------
def test_a_bar_is_shown_when_asked_for_and_never_without_a_terminal(tiny: Graph, capsys: pytest.CaptureFixture) -> None:
    run(tiny_config(), tiny)
    run(tiny_config(seed=1), tiny, progress=False)
    assert capsys.readouterr() == ("", "")
    run(tiny_config(seed=2), tiny, progress=True)
    shown = capsys.readouterr().err
    assert "12/12" in shown and all(word in shown for word in ("loss ", "valid MRR 0.", "triples/s"))
    assert all(re.match(r"[^|]{1,30}\|.{12}\| \d+/12", line) for line in shown.split("\r") if line.strip())


# ---- what goes wrong leaves earlier results alone -------------------------------------------------------------------
def test_a_loss_that_is_not_finite_stops_the_run(tiny: Graph, folders: Path) -> None:
    teacher = build_model("TransE", 30, 4, 4)
    with torch.no_grad():
        teacher.entities.fill_(3e38)  # finite, but no distance between such entities is
        teacher.entities[::2] *= -1
    save_model(folders / "wild", teacher, tiny)
    config = tiny_config(model="TransE", role="stage1", teacher=str(folders / "wild"))
    with pytest.raises(
        KgdistilError, match=r"the loss of epoch 1 is not finite; lower the learning rate \(lr is 0\.05"
    ):
        run(config, tiny, progress=False)
    assert not records.record_path(config.run_id).exists()
    assert not (records.model_folder(config.run_id) / WEIGHTS).exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_earlier_result_survives_a_run_that_diverges(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    first = run(tiny_config(), tiny, progress=False)
    before = outcome(first)
    for engine in (NativeEngine, ReferenceEngine):
        monkeypatch.setattr(engine, "epoch", lambda *_: {"student_soft": 0.0, "student_hard": value})
    with pytest.raises(KgdistilError, match="is not finite; lower the learning rate"):
        run(tiny_config(), tiny, progress=False, again=True)
    assert outcome(first) == before and run(tiny_config(), tiny, progress=False).record == first.record


def test_weights_that_are_not_finite_stop_the_run(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(engine: Any, *_: object) -> dict[str, float]:
        engine.trained["student"].entities.data[3] = math.nan
        return {"student_hard": 1.0}

    for engine in (NativeEngine, ReferenceEngine):
        monkeypatch.setattr(engine, "epoch", poisoned)
    with pytest.raises(KgdistilError, match="diverged; lower its learning rate"):
        run(tiny_config(), tiny, progress=False)
    assert not records.record_path(tiny_config().run_id).exists()


@pytest.mark.parametrize("what", ["checkpoint", "model", "record"])
def test_a_full_disk_stops_the_run_and_it_goes_on_once_there_is_room(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, folders: Path, what: str
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    undisturbed = outcome(run(tiny_config(), tiny, progress=False))
    elsewhere(monkeypatch, folders / "again")
    real, left = os.replace, itertools.count()
    name = {"checkpoint": CHECKPOINT, "model": WEIGHTS, "record": f"{tiny_config().run_id}.json"}[what]

    def replace_file(source: Any, target: Any) -> None:
        if Path(target).name == name and (what != "checkpoint" or next(left) == 3):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace_file)
        with pytest.raises(
            KgdistilError, match=r"^cannot write .*: No space left on device; earlier files are untouched"
        ):
            run(tiny_config(), tiny, progress=False)
    assert not records.record_path(tiny_config().run_id).exists()
    assert outcome(run(tiny_config(), tiny, progress=False)) == undisturbed


@pytest.mark.parametrize("variable", ["KGDISTIL_RUNS", "KGDISTIL_RESULTS"])
def test_a_folder_that_cannot_be_made(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, folders: Path, variable: str
) -> None:
    (folders / "file").write_text("in the way")
    monkeypatch.setenv(variable, str(folders / "file" / "below"))
    with pytest.raises(KgdistilError) as caught:
        run(tiny_config(), tiny, progress=False)
    assert str(folders / "file") in str(caught.value) and "\n" not in str(caught.value)


# ---- interrupted and resumed, in this process -----------------------------------------------------------------------
def choose_engine(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    if engine == "reference":
        monkeypatch.setattr(native, "train_library", lambda *_: None)


class Stop(Exception):
    pass


def run_in_pieces(config: RunConfig, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, int]:
    """Stopped right after every checkpoint, one each epoch, until done: the run, and how often it was stopped."""
    real, stops = loop.save, 0

    def save_then_stop(*args: Any) -> None:
        real(*args)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(loop, "save", save_then_stop)
        while True:
            try:
                return run(config, graph, progress=False), stops
            except Stop:
                stops += 1


@pytest.mark.parametrize(
    "role, engine",
    [
        *((role, "native") for role in ROLES),
        ("no-ds", "reference"),
        ("stage2", "reference"),
        pytest.param("no-ds", "cuda", marks=pytest.mark.gpu),
        pytest.param("stage2", "cuda", marks=pytest.mark.gpu),
    ],
)
def test_a_run_stopped_after_every_epoch_ends_with_the_same_bits(
    tiny: Graph, tiny_teacher: str, monkeypatch: pytest.MonkeyPatch, folders: Path, role: str, engine: str
) -> None:
    choose_engine(monkeypatch, engine)
    values = {"role": role, "check_every": 1, "epochs": 40, "patience": 11, "lr": 0.2}
    values |= {"teacher": tiny_teacher} if role.startswith("stage") else {}
    config = tiny_config(device="cuda" if engine == "cuda" else "cpu", **values)
    undisturbed = run(config, tiny, progress=False)
    # what must be remembered besides weights and moments: the best weights, the fallen rate, the checks without gain
    assert undisturbed.record["best_epoch"] < undisturbed.record["epochs"] < 40
    assert undisturbed.record["curve"][-1]["lr"] < 0.2
    expected = outcome(undisturbed)
    elsewhere(monkeypatch, folders / "pieces")
    pieces, stops = run_in_pieces(config, tiny, monkeypatch)
    assert stops == undisturbed.record["epochs"]
    assert outcome(pieces) == expected
    assert not (pieces.folder / CHECKPOINT).exists(), "a finished run needs no checkpoint"


def test_work_between_checkpoints_is_done_again_with_the_same_bits(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    config = tiny_config(check_every=1)
    expected = outcome(run(config, tiny, progress=False))
    elsewhere(monkeypatch, folders / "pieces")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    real, calls = NativeEngine.epoch, itertools.count(1)

    def stop_in_the_fifth_epoch(self: Any, *args: Any) -> dict[str, float]:
        losses = real(self, *args)
        if next(calls) == 5:
            raise Stop
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(NativeEngine, "epoch", stop_in_the_fifth_epoch)
        with pytest.raises(Stop):
            run(config, tiny, progress=False)
    assert read_tensors(records.model_folder(config.run_id) / CHECKPOINT)[1]["epoch"] == 4
    finished = run(config, tiny, progress=False)
    assert outcome(finished) == expected and next(calls) == 6, "the second sitting used the real engine"


def test_a_checkpoint_is_not_written_every_epoch(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 1e9)
    calls, real = itertools.count(1), NativeEngine.epoch

    def stop_in_the_fifth_epoch(self: Any, *args: Any) -> dict[str, float]:
        if next(calls) == 5:
            raise Stop
        return real(self, *args)

    monkeypatch.setattr(NativeEngine, "epoch", stop_in_the_fifth_epoch)
    with pytest.raises(Stop):
        run(tiny_config(), tiny, progress=False)
    assert not (records.model_folder(tiny_config().run_id) / CHECKPOINT).exists(), "the time for one had not come"


def stopped(config: RunConfig, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train until the third checkpoint, stop, and give its path."""
    real, saves = loop.save, itertools.count(1)

    def save_then_stop(*args: Any) -> None:
        real(*args)
        if next(saves) == 3:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(loop, "save", save_then_stop)
        with pytest.raises(Stop):
            run(config, graph, progress=False)
    return records.model_folder(config.run_id) / CHECKPOINT


def test_again_starts_over(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped(tiny_config(), tiny, monkeypatch)
    path.write_bytes(b"no checkpoint")
    assert run(tiny_config(), tiny, progress=False, again=True).record["epochs"] == 12


def test_a_checkpoint_cut_anywhere_is_refused(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped(tiny_config(), tiny, monkeypatch)
    whole = path.read_bytes()
    for length in [0, 1, 8, *random.Random(0).sample(range(len(whole)), 20), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors is damaged .* delete it"):
            run(tiny_config(), tiny, progress=False)
    path.write_bytes(whole)
    assert run(tiny_config(), tiny, progress=False).record["epochs"] == 12


def test_a_checkpoint_of_another_config_is_refused(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped(tiny_config(), tiny, monkeypatch)
    other = tiny_config(seed=1)
    records.model_folder(other.run_id).mkdir(parents=True)
    path.rename(records.model_folder(other.run_id) / CHECKPOINT)
    with pytest.raises(CheckpointError, match="belongs to another configuration; delete it to start over"):
        run(other, tiny, progress=False)


def test_a_checkpoint_of_another_engine_is_refused(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tiny_config(), tiny, monkeypatch)
    choose_engine(monkeypatch, "reference")
    with pytest.raises(
        CheckpointError,
        match="with NativeEngine, .* here it is ReferenceEngine, .* or delete it to",
    ):
        run(tiny_config(), tiny, progress=False)


def softmax_config(**values: Any) -> RunConfig:
    settings = {"model": "TransE", "loss": "softmax", "negatives": 20, "lr": 0.1, "schedule": "linear", "patience": 0}
    return tiny_config(**{**settings, **values})


@pytest.mark.parametrize("values", [{}, {"model": "ComplEx", "group": 2}])
def test_record_and_checkpoint_say_what_decides_the_bits(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, values: dict
) -> None:
    config = softmax_config(**values)
    about = read_tensors(stopped(config, tiny, monkeypatch))[1]
    record = run(config, tiny, progress=False).record
    kernel = "codes" if "group" in values else "pairs"
    expected = {
        "products": "bfloat16" if "bf16" in kernels.processor() else "float32",
        **dict.fromkeys((kernel, "softmax"), "readable" if kernels.compiler() is None else "compiled"),
        "threads": 1,
    }
    assert record["arithmetic"] == about["arithmetic"] == expected
    assert record["engine"] == about["engine"] == "SampledSoftmaxEngine"
    plain = run(tiny_config(), tiny, progress=False).record
    assert plain["arithmetic"] == {"products": "float32"} | ({} if kernels.compiler() else {"threads": 1})


def test_a_checkpoint_of_other_products_or_kernels_is_refused(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped(softmax_config(), tiny, monkeypatch)
    tensors, about = read_tensors(path)
    for name, value in (("products", "float8"), ("pairs", "by hand")):
        write_tensors(path, tensors, about | {"arithmetic": about["arithmetic"] | {name: value}})
        with pytest.raises(CheckpointError, match=f"was made with .* {name} {value}.* or delete it to start over") as e:
            run(softmax_config(), tiny, progress=False)
        assert "\n" not in str(e.value)
    for damaged in ("x", {"threads": 0}, {"threads": "two"}):
        write_tensors(path, tensors, about | {"arithmetic": damaged})
        with pytest.raises(CheckpointError, match="delete it to start over"):
            run(softmax_config(), tiny, progress=False)
    del about["arithmetic"]  # as older versions wrote it
    write_tensors(path, tensors, about)
    with pytest.raises(CheckpointError, match="delete it to start over"):
        run(softmax_config(), tiny, progress=False)


def test_a_run_goes_on_with_as_many_threads_as_it_was_begun(
    umls: Graph, monkeypatch: pytest.MonkeyPatch, folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where sums depend on their number; the compiled engine's do not, and it takes what there is."""
    teacher = run(softmax_config(dataset="umls", model="ComplEx", dim=8, role="teacher"), umls, progress=False)
    values = {"model": "ComplEx", "dim": 8, "role": "stage2", "teacher": teacher.id, "student": teacher.id}
    config = softmax_config(dataset="umls", **values, rank=4, group=2, batch_size=64, check_every=2)
    torch.set_num_threads(2)
    whole = outcome(run(config, umls, progress=False))
    records.record_path(config.run_id).unlink()
    stopped(config, umls, monkeypatch)
    torch.set_num_threads(1)
    caplog.clear()
    again = run(config, umls, progress=False)
    assert again.record["arithmetic"]["threads"] == 2 and torch.get_num_threads() == 1
    assert [r.getMessage() for r in caplog.records] == [
        "goes on with 2 thread(s), as it was begun: with 1 its numbers would differ"
    ]
    assert outcome(again) == whole


def test_a_run_is_taught_by_one_teacher(tiny: Graph, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model in the teacher's place is told, by a checkpoint and by a record that says whom it heard."""
    place = folders / "teacher"
    save_model(place, build_model("RotatE", 30, 4, 8, seed=7, offset=6.0), tiny)
    config, first = tiny_config(role="stage1", teacher=str(place)), (place / WEIGHTS).read_bytes()
    checkpoint = stopped(config, tiny, monkeypatch)
    save_model(place, build_model("RotatE", 30, 4, 8, seed=8, offset=6.0), tiny)
    with pytest.raises(CheckpointError, match=rf"{place} \(teacher\) holds another model now .*{CHECKPOINT}.* anew"):
        run(config, tiny, progress=False)
    (place / WEIGHTS).write_bytes(first)
    done = run(config, tiny, progress=False)
    assert done.record["sources"] == {"teacher": sum_in(place / WEIGHTS)} and not checkpoint.exists()
    (place / WEIGHTS).rename(place / "away")
    assert not was_trained(run(config, tiny, progress=False)), "a student outlives its teacher"
    save_model(place, build_model("RotatE", 30, 4, 8, seed=8, offset=6.0), tiny)
    with pytest.raises(CheckpointError, match="holds another model now than when .*json was written"):
        run(config, tiny, progress=False)
    anew = run(config, tiny, progress=False, again=True)
    assert anew.record["sources"] != done.record["sources"] and not was_trained(run(config, tiny, progress=False))
    path = records.record_path(config.run_id)
    record = {key: x for key, x in records.read_record(path).items() if key != "sources"}
    records.write_record(record)
    (place / WEIGHTS).write_bytes(first)
    assert not was_trained(run(config, tiny, progress=False))


def test_what_ranks_left_is_said_and_gone_in_the_end(tiny: Graph, caplog: pytest.LogCaptureFixture) -> None:
    folder = records.model_folder(tiny_config().run_id)
    (folder / loop.PARTS_OF_RANKS / "1-0").mkdir(parents=True)
    (folder / loop.OF_RANKS).write_text("{}")
    with caplog.at_level(logging.WARNING):
        run(tiny_config(), tiny, progress=False)
    assert "checkpoint.json: torchrun goes on there; one process begins anew" in caplog.text
    assert {path.name for path in folder.iterdir()} <= {WEIGHTS, DESCRIPTION, ".lock"}
    (folder / CHECKPOINT).write_bytes(b"left by a process that was killed after its record was written")
    assert not was_trained(run(tiny_config(), tiny, progress=False)) and not (folder / CHECKPOINT).exists()


def test_too_many_queries_are_refused(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax puts queries in order, of which there may be twice as many as triples."""
    monkeypatch.setattr("kgdistil.training.base.INDEX_BITS", 10)
    with pytest.raises(ConfigError, match=r"too many to train: give fewer than 2\^10"):
        run(softmax_config(dataset="umls", epochs=1), umls, progress=False)


def test_threads_that_changed_are_recorded_in_turn(umls: Graph, monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    """And a run that goes on keeps those it was left with."""
    config = softmax_config(dataset="umls", model="ComplEx", dim=4, epochs=2, check_every=2, batch_size=256)
    counts = iter([2, 2, 1])
    monkeypatch.setattr(free, "free_threads", lambda most: next(counts, 1))
    monkeypatch.setattr(free, "AGAIN", 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with kernels.with_free_threads():
            assert run(config, umls, progress=False).record["threads_in_turn"] == [2, 1]
        records.record_path(config.run_id).unlink()
        counts = iter([2])
        torch.set_num_threads(2)
        with kernels.with_free_threads():
            stopped(config, umls, monkeypatch)
        with kernels.with_free_threads():
            torch.set_num_threads(2)
            record = run(config, umls, progress=False).record
        assert record["threads"] == 1 == record["threads_in_turn"][-1]
    finally:
        torch.set_num_threads(before)


def test_a_checkpoint_of_other_data_is_refused(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a data set may change between two sittings; half a run on each would be of neither."""
    stopped(tiny_config(), tiny, monkeypatch)
    changed = replace(tiny, train=tiny.train.flip(0), sha256="1" * 64)
    with pytest.raises(CheckpointError, match="another graph"):
        run(tiny_config(), changed, progress=False)


@pytest.mark.parametrize("lost", ["weights.student.entities", "moments.student.relations.v", "best.student.entities"])
def test_a_checkpoint_with_something_missing_is_refused(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    path = stopped(tiny_config(), tiny, monkeypatch)
    tensors, about = read_tensors(path)
    del tensors[lost]
    write_tensors(path, tensors, about)
    with pytest.raises(CheckpointError, match=r"is damaged .* delete it to start over"):
        run(tiny_config(), tiny, progress=False)


# ---- killed, for real -----------------------------------------------------------------------------------------------
DRIVER = """
import json, os, sys, time
import torch
torch.set_num_threads(2)
from kgdistil import checkpoint, load, make_config, records, run
from kgdistil.training import loop, native

values, moment, marker = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
loop.CHECKPOINT_SECONDS = 0.0  # many checkpoints a second

def hang(*_):
    open(marker, "w").close()
    time.sleep(600)

def half_of_the_fifth(tensors, path, metadata, real=checkpoint.save_file, seen=[]):
    seen.append(path)
    real(tensors, path, metadata=metadata)
    if len(seen) == 5:
        os.truncate(path, os.path.getsize(path) // 2)
        hang()

if moment == "half a checkpoint":
    checkpoint.save_file = half_of_the_fifth
if moment == "before the first epoch":
    loop.make_engine = hang
if moment == "between weights and record":
    records.write_record = hang
run(make_config(**values), load("umls"), progress=False)
"""


class Killer:
    """Starts a real process that trains, kills it at a given moment with SIGKILL, and counts."""

    def __init__(self, values: dict[str, Any], marker: Path):
        self.values, self.marker = values, marker
        self.folder = records.model_folder(make_config(**values).run_id)

    def start(self, moment: str) -> subprocess.Popen:
        self.marker.unlink(missing_ok=True)
        command = [sys.executable, "-c", DRIVER, json.dumps(self.values), moment, str(self.marker)]
        environment = {**os.environ, "PYTHONPATH": HOME}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def epoch(self) -> int:
        """Epochs done according to the checkpoint; reading it at any time must succeed."""
        if not (path := self.folder / CHECKPOINT).exists():
            return 0
        try:
            return read_tensors(path)[1]["epoch"]
        except CheckpointError:
            assert not path.exists(), "half a file was read"  # else the run has ended just now
            return 0

    def kill(self, process: subprocess.Popen) -> bool:
        """Whether it was still running."""
        process.kill()
        return process.wait() == -9

    def kill_at(self, moment: str) -> None:
        """At a moment that the driver holds still for us."""
        process = self.start(moment)
        deadline = time.monotonic() + 120
        while not self.marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.kill(process) and self.marker.exists(), process.stderr.read()

    def kill_after(self, epochs: int, delay: float) -> bool:
        """Once that many more epochs are done, and a little later; whether it was still running."""
        before, process = self.epoch(), self.start("whenever")
        deadline = time.monotonic() + 120
        while self.epoch() < before + epochs and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        return self.kill(process)


def values_of(role: str, **more: Any) -> dict[str, Any]:
    return {"dim": 4, "role": role, "epochs": 60, "check_every": 3, "lr": 0.05, "negatives": 8, **more}


def test_kill_9_at_random_moments(umls: Graph, monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    torch.set_num_threads(2)  # as the driver: with another number the losses of the curve are summed in another order
    values, moments = values_of("no-ds"), random.Random(0)
    expected = outcome(run(make_config(**values), umls, progress=False))
    elsewhere(monkeypatch, folders / "killed")
    killer = Killer(values, folders / "marker")
    killed = [killer.kill_after(moments.randint(1, 15), moments.uniform(0, 0.03)) for _ in range(2)]
    assert any(killed) and not records.record_path(make_config(**values).run_id).exists()
    assert outcome(run(make_config(**values), umls, progress=False)) == expected


def test_kill_9_in_stage_two_at_the_worst_moments(umls: Graph, monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    save_model(folders / "teacher", build_model("RotatE", umls.num_entities, umls.num_relations, 8, offset=6.0), umls)
    torch.set_num_threads(2)  # as the driver
    values, moments = values_of("stage2", teacher=str(folders / "teacher")), random.Random(1)
    config = make_config(**values)
    undisturbed = run(config, umls, progress=False)
    expected = outcome(undisturbed)
    assert sorted(expected[0]) == [WEIGHTS, f"teacher/{WEIGHTS}"]
    elsewhere(monkeypatch, folders / "killed")
    killer = Killer(values, folders / "marker")

    killer.kill_at("before the first epoch")
    assert killer.epoch() == 0

    process = killer.start("half a checkpoint")
    while not killer.marker.exists() and process.poll() is None:
        time.sleep(0.005)
    with pytest.raises(KgdistilError, match="another process is training this run; wait for it or stop it"):
        run(config, umls, progress=False)
    assert killer.kill(process), process.stderr.read()
    strays = [path for path in killer.folder.iterdir() if path.name.startswith(f".{CHECKPOINT}.")]
    assert killer.epoch() == 4 and len(strays) == 1, "the half file lies beside the whole one"

    killer.kill_after(moments.randint(1, 30), moments.uniform(0, 0.05))
    assert not records.record_path(config.run_id).exists()
    killer.kill_at("between weights and record")
    assert (killer.folder / WEIGHTS).exists() and not records.record_path(config.run_id).exists()

    finished = run(config, umls, progress=False)  # the lock died with its holder
    assert outcome(finished) == expected
    assert finished.record["seconds"] > 0
    left = {path.name for path in killer.folder.iterdir() if path.is_file()}
    assert left == {".lock", WEIGHTS, DESCRIPTION}, "what the killed left half-written is gone"
