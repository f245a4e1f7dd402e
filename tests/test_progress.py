"""How far `distil` is: one bar for all runs, lines where there is no terminal, an estimate that follows the pace."""

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

import kgdistil
from kgdistil.config import RunConfig, make_config
from kgdistil.distillation import progress
from kgdistil.distillation.distil import Distilled
from kgdistil.distillation.progress import Whole, about, samples, together, untrained
from kgdistil.graph import Graph
from kgdistil.models import KGEModel
from kgdistil.training.engine import make_engine
from kgdistil.training.loop import Progress

QUICK = {"dim": 4, "teacher_dim": 8, "epochs": 3, "softmax_epochs": 2}
LEFT = r"about [\d.]+ (s|min|h)"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))


def weights(done: Distilled) -> dict[str, torch.Tensor]:
    return {name: run.load().entities for name, run in done.runs.items()}


def test_bars_of_all_runs_and_of_each_and_the_same_numbers(
    tiny_graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plain = weights(kgdistil.distil(tiny_graph, **QUICK, progress=False))
    assert capsys.readouterr() == ("", "")
    shutil.rmtree(tmp_path / "runs"), shutil.rmtree(tmp_path / "results")
    done = kgdistil.distil(tiny_graph, **QUICK, progress=True)
    lines = [line for line in re.split(r"[\r\n]|\x1b\[A", capsys.readouterr().err) if line.strip()]
    whole = [line for line in lines if line.startswith("run ")]
    assert len(done.runs) == 6 and whole
    assert all(re.match(rf"run [1-6] of 6, {LEFT} left +\d+%\|.{{12}}\|", line) for line in whole)
    for name in done.runs:
        assert any(re.match(rf"{re.escape(name)} +\d+%\|.{{12}}\| \d+/\d+ epochs", line) for line in lines), name
    again = weights(done)
    assert plain.keys() == again.keys() and all(torch.equal(plain[name], again[name]) for name in plain)


def test_lines_where_there_is_no_terminal(
    tiny_graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with caplog.at_level("INFO", logger="kgdistil"):
        done = kgdistil.distil(tiny_graph, **QUICK)
    first, *lines = (line for line in caplog.messages if "run" in line)
    assert re.fullmatch(rf"6 of 6 runs are to be trained: {LEFT}", first)
    told = [re.fullmatch(rf"run (\d) of 6 \((.+)\): epoch (\d+) of (\d+), {LEFT} left", line) for line in lines]
    epochs = {name: run.record["epochs"] for name, run in done.runs.items()}
    wanted = [(str(i), name, e, n) for i, (name, n) in enumerate(epochs.items(), 1) for e in range(1, n + 1)]
    assert [(x[1], x[2], int(x[3]), int(x[4])) for x in told if x] == wanted

    caplog.clear()
    last = list(done.runs.values())[-1]
    shutil.rmtree(last.folder), (tmp_path / "results" / "runs" / f"{last.id}.json").unlink()
    with caplog.at_level("INFO", logger="kgdistil"):
        kgdistil.distil(tiny_graph, **QUICK)
    first, *lines = (line for line in caplog.messages if "run" in line)
    assert first.startswith("1 of 6 runs are to be trained") and all(line.startswith("run 6 of 6") for line in lines)


def test_nothing_is_timed_where_nothing_is_shown(
    tiny_graph: Graph, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kgdistil")  # the command sets another, and stays in this process
    monkeypatch.setattr(progress, "epoch_seconds", None)
    for shown in (False, None):  # pytest has no terminal
        with together({"no-DS": make_config(dataset="tiny")}, tiny_graph, None, shown) as told:
            assert told is False


def test_the_estimate_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    first, second = (make_config(dataset="tiny", epochs=100, seed=seed) for seed in (0, 1))
    whole = Whole({"a": first, "b": second}, {first.run_id: 1.0, second.run_id: 2.0}, disable=True)
    assert whole.expected == 300

    def run(config: RunConfig, done: int, seconds: float) -> str:
        bar = whole.run(config.run_id, Progress(), total=100, initial=done)
        for _ in range(100 - done):
            now[0] += seconds
            bar.update()
        return whole.desc

    assert run(first, 0, 3.0).startswith("run 1 of 2, about 9.") and "min left" in whole.desc, "2 × 3 × 100 s, nearly"
    assert run(second, 90, 6.0).startswith("run 2 of 2, about 1 s left")
    assert whole.total == 300 - 180, "what an earlier sitting has done is not to be done"


@pytest.mark.parametrize("loss", ["cross-entropy", "softmax"])
def test_what_an_epoch_goes_through(loss: str, tiny_graph: Graph) -> None:
    config = make_config(dataset="tiny", model="ComplEx", loss=loss, batch_size=7, dim=2)
    engine = make_engine(untrained(config, tiny_graph), None, config, tiny_graph)
    assert engine.steps == -(-samples(config, tiny_graph) // 7)


def test_an_estimate_is_of_the_right_size(tiny_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take a second each, of an engine whose kinds of work take no time."""
    now, config = [0.0], make_config(dataset="tiny", batch_size=2, check_every=5)

    class Slow:
        steps = 16

        def epoch(self, *_: object) -> None:
            now[0] += self.steps

    def ranked(model: KGEModel, triples: torch.Tensor, known: object) -> None:
        now[0] += 0.5 * len(triples)

    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress, "make_engine", lambda *_: Slow())
    monkeypatch.setattr(progress, "rank", ranked)
    seconds = progress.epoch_seconds(config, tiny_graph, None, object())
    assert seconds == pytest.approx(160 / 2 + 0.5 * 20 / 5)


def test_the_steps_of_sampled_softmax_are_those_of_the_whole_graph(
    tiny_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first steps warm up and are not counted; the epoch is left after as many again."""
    now, done, given = [0.0], [], []
    config = make_config(dataset="tiny", model="ComplEx", loss="softmax", batch_size=1, dim=2)

    class Engine:
        steps, device, between = 100, torch.device("cpu"), None

        def epoch(self, *_: object) -> None:
            for i in range(self.steps):
                now[0] += 50.0 if i < progress.STEPS else 2.0
                done.append(i)
                self.between()

    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress, "make_engine", lambda *x: given.append(x[-1]) or Engine())
    assert progress.epoch_seconds(config, tiny_graph, None) == pytest.approx(2.0 * 100)
    assert len(done) == 2 * progress.STEPS and given == [tiny_graph]


def test_an_epoch_that_is_timed_is_left_early(tiny_graph: Graph) -> None:
    config = make_config(dataset="tiny", model="ComplEx", loss="softmax", batch_size=1, dim=2)
    engine = make_engine(untrained(config, tiny_graph), None, config, tiny_graph)
    assert engine.steps > 2 * progress.STEPS
    assert progress.step_seconds(engine, torch.zeros(engine.steps, dtype=torch.float64)) > 0
    assert int(engine.moments["done"]) == 2 * progress.STEPS


@pytest.mark.parametrize(
    "seconds, said",
    [(0, "1 s"), (0.4, "1 s"), (89, "89 s"), (90, "1.5 min"), (240, "4 min"), (3000, "50 min"), (5400, "1.5 h")],
)
def test_times_in_words(seconds: float, said: str) -> None:
    assert about(seconds) == f"about {said}"
