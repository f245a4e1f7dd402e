"""A search for the settings of teacher and students: what is tried, what is kept, and how it goes on."""

import json
import math
import os
import re
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import kgdistil
from kgdistil import cli, records
from kgdistil.compress.size import GROUPS, row_bytes
from kgdistil.config import RunConfig, read_config
from kgdistil.distillation import rule
from kgdistil.distillation import search as searching
from kgdistil.distillation.budget import alike, bytes_of, parse_time, plan
from kgdistil.distillation.search import PARTS, Found, search
from kgdistil.errors import BusyError, CheckpointError, ConfigError, KgdistilError
from kgdistil.graph import Graph
from kgdistil.training.loop import Progress

SHAPES = [(16, "1bit", 0), (8, "2bit", 0)]
GIVEN = {"dataset": "tiny-00000000", "model": "ComplEx", "seed": 0, "batch_size": 64}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))


class Runs:
    """In place of training: an MRR that is a function of the settings, on a clock that only it moves."""

    def __init__(self) -> None:
        self.now, self.calls, self.stop, self.slow = 0.0, list[RunConfig](), math.inf, 1.0

    def monotonic(self) -> float:
        return self.now

    def __call__(self, config: RunConfig, graph: Graph, *, progress) -> SimpleNamespace:
        self.calls.append(config)
        if config.lr > 0.6:
            raise ConfigError("the loss is not finite")
        folder, state = records.model_folder(config.run_id, own=True), Progress()
        folder.mkdir(parents=True, exist_ok=True)
        mrr = 0.5 - 0.1 * abs(math.log(config.lr / 0.06)) + 0.02 * math.log2(config.dim)
        with progress(config.run_id, state, total=config.epochs, initial=0) as bar:
            for epoch in range(1, config.epochs + 1):
                self.now += self.slow if config.role == "no-ds" else 1.0
                self.stop -= 1
                if self.stop < 0:
                    raise KeyboardInterrupt
                state.epoch = epoch
                if epoch % config.check_every == 0:
                    state.curve.append({"epoch": epoch, "valid_mrr": mrr * epoch / config.epochs})
                bar.update()
        return SimpleNamespace(record={"valid": {"both": {"mrr": mrr}}})


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs()
    monkeypatch.setattr(searching, "run", made)
    monkeypatch.setattr(searching, "time", made)
    monkeypatch.setattr(searching, "epoch_seconds", lambda *_: 1.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no machine goes down here
    # few_bits asks where a teacher's weights lie
    monkeypatch.setattr("kgdistil.distillation.recipes.find_teacher", lambda name: name)
    return made


def of(found: Found, part: str) -> list[dict]:
    return [row for row in found.trials if row["part"] == part]


def test_a_student_is_of_its_teachers_kind(tiny_graph: Graph, runs: Runs) -> None:
    found = search(tiny_graph, GIVEN, SHAPES, 2000, False, ["ReciprocalComplEx"])
    kinds = {part: {row["config"]["model"] for row in of(found, part) if row["config"]} for part in PARTS}
    assert kinds["teacher"] == kinds["no-DS"] == {"ComplEx", "ReciprocalComplEx"}
    by_id = {row["id"]: row["config"] for row in found.trials}
    assert all(row["config"]["model"] == by_id[row["config"]["teacher"]]["model"] for row in of(found, "stage 1"))


def test_students_of_a_large_graph_have_more_candidates(tiny_graph: Graph, runs: Runs, monkeypatch) -> None:
    key = searching.Search(tiny_graph, GIVEN, SHAPES, 2000, False).key
    monkeypatch.setattr(searching.scale, "LARGE", 1)
    found = search(tiny_graph, GIVEN, SHAPES, 2000, False)
    drawn = {part: {row["config"]["negatives"] for row in of(found, part) if row["config"]} for part in PARTS}
    assert drawn == {"teacher": {2048}, "stage 1": {8192}, "no-DS": {2048}}
    assert searching.Search(tiny_graph, GIVEN, SHAPES, 2000, False).key != key, "one begun before is another"
    table = json.loads(Path(rule.__file__).with_name("rule.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(rule, "rule", lambda: table)
    fitted = GIVEN | {"model": "ReciprocalComplEx", "fitted": rule.defaults(tiny_graph, "ReciprocalComplEx", 8, rank=4)}
    made = searching.Search(tiny_graph, fitted, [(8, "4bit", 4), (8, "1bit", 0)], 2000, False)
    both = (8, "4bit", 4), (8, "1bit", 0)
    low, plain = (made.recipe(shape).configs["stage 1"] for shape in both)
    assert (low.alpha, low.lr) == (1.0, 0.4) != (plain.alpha, plain.lr) and low.epochs > plain.epochs
    monkeypatch.setattr(searching.scale, "LARGE", 10**6)  # and so on any graph, whichever shape comes first
    for order in (both, both[::-1]):
        given = fitted | {"fitted": rule.defaults(tiny_graph, "ReciprocalComplEx", 8, rank=order[0][2])}
        small = searching.Search(tiny_graph, given, list(order), 2000, False)
        low, plain = (small.recipe(shape).configs["stage 1"] for shape in both)
        assert (low.alpha, low.lr) == (1.0, 0.1) != (plain.alpha, plain.lr)


def test_what_was_best_elsewhere_is_tried_early(tiny_graph: Graph, runs: Runs) -> None:
    """By each part, after the recipe's own settings, of the shape that is best by these, and as any other trial for no
    longer than there is time."""
    found = search(tiny_graph, GIVEN, SHAPES[::-1], 2000, False, ["ReciprocalComplEx"])
    for part in PARTS:
        names = searching.TAUGHT if part == "stage 1" else searching.WITHOUT
        first, second, *rows = of(found, part)
        assert second["config"]["dim"] != first["config"]["dim"] and second["valid_mrr"] > first["valid_mrr"]
        best = second["config"]
        for config, values in zip((row["config"] for row in rows), searching.KNOWN[names]):
            wanted = dict(zip(names, values))
            assert (config["epochs"], config["dim"]) == (2 * best["epochs"], best["dim"])
            assert config["lr"] == pytest.approx(best["lr"] * wanted.pop("lr"))
            assert {name: config[name] for name in wanted} == wanted
    short = search(replace(tiny_graph, sha256="1" * 64), GIVEN, SHAPES, 3, False)
    assert [row["state"] for row in of(short, "teacher")] == ["complete"] * 2
    assert all(row["config"] for row in short.trials) and "waiting" not in str(short.told)


def test_the_student_alone_has_each_known_setting_that_its_teacher_had(tiny_graph: Graph, runs: Runs) -> None:
    """As far as the teacher came in the list, though the time of the student alone is up before."""
    runs.slow = 5.0
    found = search(tiny_graph, GIVEN, SHAPES, 300, False, ["ReciprocalComplEx"])
    names = [name for name in searching.WITHOUT if name != "lr"]  # which is times that of a shape
    known = [[dict(zip(searching.WITHOUT, x))[name] for name in names] for x in searching.KNOWN[searching.WITHOUT]]

    def had(part: str) -> list[list]:
        ended = [row["config"] for row in of(found, part) if row["state"] == "complete"]
        return [[config[name] for name in names] for config in ended]

    last = max(i for i, values in enumerate(known) if values in had("teacher"))
    assert last < len(known) - 1 and all(values in had("no-DS") for values in known[: last + 1])
    spent = {part: sum(row["seconds"] for row in of(found, part)) for part in PARTS}
    assert spent["no-DS"] > 2 * max(spent["stage 1"], 300 / len(PARTS))


def plain(found: Found) -> list[tuple]:
    return [(row["part"], row["trial"], row["state"], row["valid_mrr"], str(row["config"])) for row in found.trials]


@pytest.mark.parametrize(("given", "seconds"), [("30min", 1800), ("2h", 7200), ("1.5 h", 5400), ("90s", 90), (7, 7)])
def test_a_time(given: str, seconds: float) -> None:
    assert parse_time(given) == seconds


def test_a_time_without_a_unit_is_asked_for_one() -> None:
    with pytest.raises(ConfigError, match="time is '5': say 5s, 5min or 5h"):
        parse_time("5")


@pytest.mark.parametrize("given", ["banana", "", "-3min", "5 days", "nan", "inf", "1e3", True, -1, math.inf])
def test_what_is_no_time(given: str) -> None:
    with pytest.raises(ConfigError, match="it must be a time, as 30min, 2h or 90s"):
        parse_time(given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--time", "0"], "more than no time"),
        (["--time", "banana"], "must be a time"),
        (["--time", "5s", "--dim", 4], "precision is 'int8'"),
        (["--time", "5s", "--budget", "8B/entity", "--teacher", "."], "leave teacher"),
        (["--time", "5s", "--precision", "1bit", "--teacher-lists", "x.parquet"], "leave teacher"),
    ],
)
def test_a_search_that_cannot_be(options: list, said: str, tmp_path: Path) -> None:
    """Before the graph is read, which is not even there."""
    call = CliRunner().invoke(cli.main, ["distill", "none.tsv", "-o", str(tmp_path / "s"), *map(str, options)])
    assert call.exit_code == 1 and said in call.stderr and len(call.stderr.splitlines()) == 1, call.output


def test_without_optuna_one_line(tiny_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(KgdistilError, match=r'needs optuna: pip install "kgdistil\[search\]"'):
        kgdistil.distil(tiny_graph, dim=8, precision="1bit", time=1)


def test_students_that_take_no_more(tiny_graph: Graph) -> None:
    assert alike(tiny_graph, "ComplEx", (16, "1bit", 0)) == [(16, "1bit", 0), (4, "4bit", 0), (8, "2bit", 0)]
    assert alike(tiny_graph, "ComplEx", (4, "4bit", 0)) == [(4, "4bit", 0)]  # the others' codebooks are larger
    found = alike(tiny_graph, "ComplEx", (64, "2bit", 32))
    assert (32, "2bit", 32) in found and len({rank for _, _, rank in found}) == 2
    sizes = [bytes_of(tiny_graph, "ComplEx", *shape) for shape in found]
    assert max(sizes) == sizes[0]


@pytest.mark.parametrize(("budget", "model"), [("2B/entity", None), ("1kB", None), ("2B/entity", "RotatE")])
def test_a_budget_that_no_measured_student_fits(tiny_graph: Graph, budget: str, model: str | None) -> None:
    found = plan(tiny_graph, budget, model, few_bits=True)
    assert found.precision in GROUPS
    size = row_bytes(found.model, found.dim, GROUPS[found.precision])
    assert (size <= 2 if "entity" in budget else found.bytes <= 1000) and found.teacher_dim == found.dim
    assert found.model == (model or "ComplEx")
    larger = bytes_of(tiny_graph, found.model, 2 * found.dim, found.precision)
    assert larger > 1000 or row_bytes(found.model, 2 * found.dim, GROUPS[found.precision]) > 2


def test_the_recipe_first_then_what_is_drawn_and_equal_times(tiny_graph: Graph, runs: Runs) -> None:
    found = search(tiny_graph, GIVEN, SHAPES, 1500, progress=False)
    assert {row["part"] for row in found.trials} == set(PARTS)
    for part, lr, penalty in zip(PARTS, (0.1, 0.05, 0.1), (0.03, 0.0, 0.0)):
        first, second, *drawn = of(found, part)
        for row, shape in zip((first, second), SHAPES):
            config = row["config"]
            assert (config["dim"], config["lr"], config["penalty"]) == (shape[0], lr, penalty)
            assert config["relation_weight"] == 0 and row["state"] == "complete"
        assert len({str(row["config"]) for row in drawn}) == len(drawn) > 5
        assert len({row["config"]["relation_weight"] for row in drawn}) > 1
        best = max((row for row in of(found, part) if row["state"] == "complete"), key=lambda row: row["valid_mrr"])
        assert best["chosen"] and (best["valid_mrr"] > first["valid_mrr"] or part == "no-DS")
        assert [row["chosen"] for row in of(found, part)].count(True) == 1
    spent = {part: sum(row["seconds"] for row in of(found, part)) for part in PARTS}
    longest = max(row["seconds"] for row in found.trials)
    assert abs(spent["stage 1"] - spent["no-DS"]) <= longest and 500 <= spent["teacher"] <= 500 + longest
    taught = found.recipe.stage1
    assert taught.teacher == found.recipe.teacher.run_id == taught.student and taught.alpha != 0.5
    assert found.recipe.teacher.dim == taught.dim and len(found.told) == 3
    json.dumps(found.trials, allow_nan=False)


def test_what_lags_is_ended_early_what_diverges_failed_and_what_is_beaten_removed(
    tiny_graph: Graph, runs: Runs, tmp_path: Path
) -> None:
    found = search(tiny_graph, GIVEN, SHAPES, 900, progress=False)
    states = {row["state"] for row in found.trials}
    assert {"complete", "pruned", "failed"} <= states <= {"complete", "pruned", "failed", "stopped"}
    for row in found.trials:
        if row["state"] == "pruned":
            earlier = [r for r in of(found, row["part"]) if r["trial"] < row["trial"] and r["state"] == "complete"]
            step = len(row["checks"]) - 1
            others = [r["checks"][step] for r in earlier if len(r["checks"]) > step]
            assert len(earlier) > 1 and row["checks"][step] < statistics.median(others)
        assert ("not finite" in row.get("why", "")) == (row["state"] == "failed")
    kept = {path.name for path in (tmp_path / "runs" / "models").iterdir()}
    stopped = {row["id"] for row in found.trials if row["state"] == "stopped"}
    assert {config.run_id for config in found.recipe.configs.values()} <= kept and len(kept - stopped) <= 6


def test_the_same_again_and_where_it_was_stopped(tiny_graph: Graph, runs: Runs, tmp_path: Path, monkeypatch) -> None:
    """Stopped in its ninth trial's midst: the same trials come as in one that was never disturbed."""
    whole = search(tiny_graph, GIVEN, SHAPES, 540, progress=False)
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "others"))
    assert plain(search(tiny_graph, GIVEN, SHAPES, 540, progress=False)) == plain(whole)

    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "third"))
    runs.stop = 130
    with pytest.raises(KeyboardInterrupt):
        search(tiny_graph, GIVEN, SHAPES, 540, progress=False)
    runs.stop, done = math.inf, len(runs.calls)
    again = search(tiny_graph, GIVEN, SHAPES, 540, progress=False)
    assert runs.calls[done] == runs.calls[done - 1]  # the trial that was stopped
    first, second = (
        [row for row in plain(found) if row[0] == "teacher" and row[2] != "stopped"] for found in (whole, again)
    )
    assert len(second) > 4 and second == first[: len(second)]
    assert sum(row["seconds"] for row in of(again, "teacher")) >= 180


def test_time_that_is_spent_counts_and_more_of_it_adds(tiny_graph: Graph, runs: Runs) -> None:
    first = search(tiny_graph, GIVEN, SHAPES, 900, progress=False)
    calls = len(runs.calls)
    assert plain(search(tiny_graph, GIVEN, SHAPES, 900, progress=False)) == plain(first) and len(runs.calls) == calls
    more = search(tiny_graph, GIVEN, SHAPES, 1800, progress=False)
    for part in PARTS:
        before, after = ([row for row in of(x, part) if row["state"] != "stopped"] for x in (first, more))
        assert len(after) > len(before)
        assert {row["trial"]: row["valid_mrr"] for row in before}.items() <= {
            row["trial"]: row["valid_mrr"] for row in after
        }.items()
    longest = [max(row["config"]["epochs"] for row in found.trials) for found in (first, more)]
    assert longest[0] == 900 // 3 // searching.FULL < longest[1] <= 1800 // 3 // searching.FULL


def test_how_far_it_is(tiny_graph: Graph, runs: Runs, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(searching, "LINE_SECONDS", 0.0)
    with caplog.at_level("INFO", logger="kgdistil"):
        search(tiny_graph, GIVEN, SHAPES, 300)
    lines = [line for line in caplog.messages if line.startswith("search: ")]
    found = [
        re.fullmatch(r"search: (.+), trial \d+(, best validation MRR 0\.\d{3})?, about (.+) left", x) for x in lines
    ]
    assert list(dict.fromkeys(x[1] for x in found if x)) == list(PARTS) and all(found)
    assert found[0][3].endswith("min") and found[-1][3].endswith(" s")


def test_a_bar_in_a_terminal(tiny_graph: Graph, runs: Runs, capsys: pytest.CaptureFixture) -> None:
    search(tiny_graph, GIVEN, SHAPES, 300, progress=True)
    shown = [x for x in re.split(r"[\r\n]", capsys.readouterr().err) if x.strip()]
    shares = [int(x[1]) for line in shown if (x := re.match(r".*, about .+ left +(\d+)%\|.{12}\|", line))]
    assert len(shares) > 9 and shares == sorted(shares) and shares[0] < 20 < 90 < shares[-1]


def test_no_trial_that_ends_well(tiny_graph: Graph, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "LR", (0.7, 1.0))
    monkeypatch.setattr(searching.Search, "defaults", lambda *_: [])
    monkeypatch.setattr(searching.Search, "first", lambda *_: 0)
    with pytest.raises(ConfigError, match="no trial of teacher ended well; the last one: the loss is not finite"):
        search(tiny_graph, GIVEN, SHAPES, 540, progress=False)


def test_a_journal_that_was_cut_damaged_or_is_in_use(tiny_graph: Graph, runs: Runs, tmp_path: Path) -> None:
    found = search(tiny_graph, GIVEN, SHAPES, 300, progress=False)
    (path,) = (tmp_path / "runs" / "search").glob("*.log")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 5, "wor')
    assert plain(search(tiny_graph, GIVEN, SHAPES, 300, progress=False)) == plain(found)
    path.write_bytes(whole.replace(b'"op_code"', b'"op', 1))
    with pytest.raises(CheckpointError, match="is damaged"):
        search(tiny_graph, GIVEN, SHAPES, 300, progress=False)
    for begins, harm in (
        (b'"seconds":', b'"x'),
        (b'"values":[', b'"y'),
        (b'"config":{', b'"none":1,'),
        (b"op_", b"\xff"),
    ):
        end = b'"' if harm[:1] == b'"' and harm != b'"none":1,' else b""
        assert begins in whole
        path.write_bytes(re.sub(re.escape(begins) + (rb"[\d.]+" if end else b""), begins + harm + end, whole))
        with pytest.raises(CheckpointError, match="is damaged") as caught:
            search(tiny_graph, GIVEN, SHAPES, 300, progress=False)
        assert len(str(caught.value)) < 1000
    path.write_bytes(whole)
    held = searching.filelock.FileLock(f"{path}.held")
    with held, pytest.raises(BusyError, match="another process is at this search"):
        search(tiny_graph, GIVEN, SHAPES, 300, progress=False)


def test_the_command_searches_and_says_what_it_found(tiny_graph: Graph, tmp_path: Path) -> None:
    rows = ["\t".join((f"e{h}", f"r{r}", f"e{t}")) for h, r, t in tiny_graph.known.tolist()]
    (tmp_path / "g.tsv").write_text("\n".join(rows))
    arguments = ["distill", "g.tsv", "--time", "2s", "--dim", "16", "--precision", "1bit", "--epochs", "4", "-o", "s"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path), patch.delenv("KGDISTIL_RUNS"), patch.delenv("KGDISTIL_RESULTS")
        call = CliRunner().invoke(cli.main, arguments)
        assert call.exit_code == 0, call.output
        assert "What the search found" in call.stdout and "stage 1: " in call.stdout
        trials = [json.loads(line) for line in (tmp_path / "s" / "search.jsonl").read_text().splitlines()]
        assert {row["part"] for row in trials if row["chosen"]} == set(PARTS)
        again = CliRunner().invoke(cli.main, [*arguments, "--json"])
    told = json.loads(again.stdout)
    assert len(told["search"]) == 3 and told["precision"] == "1bit"
    chosen = next(row for row in trials if row["chosen"] and row["part"] == told["chosen"])
    assert read_config(chosen["config"]).run_id == chosen["id"] == told["run_id"]
    (record,) = (json.loads(x.read_text()) for x in (tmp_path / "s.training").rglob(f"{told['run_id']}.json"))
    assert record["valid"]["both"]["mrr"] == chosen["valid_mrr"]


def test_a_shape_of_another_precision_is_saved_as_what_it_is(tiny_graph: Graph, monkeypatch) -> None:
    monkeypatch.setattr(searching, "LONGER", (1,))
    done = kgdistil.distil(
        tiny_graph, dim=16, precision="1bit", shapes=[(4, "4bit", 0)], epochs=3, time="1s", progress=False
    )
    group = done.runs[done.chosen].config.group
    assert done.student.precision == {4: "1bit", 1: "4bit"}[group] and len(done.trials) >= 6
    assert {row["config"]["group"] for row in done.trials if row["part"] == "no-DS"} == {1, 4}
