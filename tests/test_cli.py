"""The command line as a user meets it: tables, JSON, exit codes, one line for each error, and nothing lost."""

import dataclasses
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from kgdistil import cli, load_model, load_student, read_graph
from kgdistil.answer.format import FILES
from kgdistil.compress.packing import size
from kgdistil.distillation import advice, budget
from kgdistil.distillation.budget import parse_size, plan
from kgdistil.distillation.distil import distil, found
from kgdistil.distillation.statistics import bootstrap
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.models import build_model
from kgdistil.students.labelled import Labelled

QUICK = ["--epochs", "3", "--teacher-dim", "8", "--dim", "2", "--stages", "1"]


@pytest.fixture(autouse=True)
def no_folders_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """`distill` sets these where they are not set; afterwards they are gone again."""
    for name in ("KGDISTIL_RUNS", "KGDISTIL_RESULTS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def call(*arguments: object):
    return CliRunner().invoke(cli.main, [str(x) for x in arguments])


def refused(*arguments: object) -> str:
    """The one line of an error."""
    result = call(*arguments)
    assert result.exit_code == 1 and result.stdout == "", result.output
    said = ("left out", "the other way round", "to be trained")  # of the graph and the runs
    lines = [line for line in result.stderr.splitlines() if not any(x in line for x in said)]
    assert len(lines) == 1 and lines[0].startswith("kgdistil: "), result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def triples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two families, with spaces and Unicode in every name."""
    people = [
        f"{name} {family}"
        for family in ("O'Brien", "Çelik 王")
        for name in ["Zoë", "José", "Ольга", "Łukasz", "Aïsha", "Björn"]
    ]
    rows = [f"{a}\tverwandt mit\t{b}" for a in people for b in people if a.split(" ", 1)[1] == b.split(" ", 1)[1]]
    rows += [f"{a}\tknows\t{b}" for a, b in itertools.pairwise(people)]
    path = tmp_path_factory.mktemp("my graph") / "família.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, triples: Path) -> Path:
    folder = tmp_path_factory.mktemp("out") / "my student"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("KGDISTIL_RUNS", "KGDISTIL_RESULTS"):
            patch.setenv(name, "")
            patch.delenv(name)
        result = call("distill", triples, *QUICK, "-o", folder)
    assert result.exit_code == 0, result.output
    assert "Graph('família', 12 entities, 2 relations" in result.stdout and "mrr_loss" in result.stdout
    return folder


def test_the_student_lies_apart_from_what_its_training_left(student: Path) -> None:
    assert sorted(x.name for x in student.iterdir()) == sorted(FILES)
    assert list((student.with_name("my student.training") / "runs").glob("*.json"))
    found = load_student(student)
    assert found.precision == "int8" and found.dim == 2 and found.about["metrics"][0]["model"] == "teacher"


def test_the_command_that_distill_suggests_works(student: Path) -> None:
    result = call("predict", student, "--head", "Zoë Çelik 王", "--relation", "verwandt mit", "-k", 3)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and lines[0].split() == ["rank", "entity", "score"] and len(lines) == 4


def test_json_and_tables_say_the_same(student: Path) -> None:
    query = ["--relation", "knows", "--tail", "Zoë O'Brien", "-k", 12]
    rows = json.loads(call("predict", student, *query, "--json").stdout)
    ours = load_student(student).predict(relation="knows", tail="Zoë O'Brien", k=12, ids=True)
    assert rows == ours.rows() and set(rows[0]) == {"rank", "id", "entity", "name", "score"}
    by_id = call("predict", student, "--ids", "--relation", 0, "--tail", rows[0]["id"], "-k", 1, "--json")
    assert by_id.exit_code == 0 and len(json.loads(by_id.stdout)) == 1
    assert len(json.loads(call("similar", student, "Zoë O'Brien", "-k", 4, "--json").stdout)) == 4
    assert json.loads(call("evaluate", student, "--json").stdout)["both"]["mrr"] > 0


def test_relations_and_new_facts(student: Path) -> None:
    rows = json.loads(call("predict", student, "--head", "Zoë O'Brien", "--tail", "José O'Brien", "--json").stdout)
    assert {row["relation"] for row in rows} == {"knows", "verwandt mit"}
    both = ["--head", "Zoë O'Brien", "--tail", "José O'Brien", "--new", "--json"]
    assert json.loads(call("predict", student, *both).stdout) == []  # the graph says both
    rows = json.loads(
        call(
            "predict", student, "--head", "Zoë O'Brien", "--relation", "verwandt mit", "--new", "--json", "-k", 12
        ).stdout
    )
    assert {row["entity"].split(" ", 1)[1] for row in rows} == {"Çelik 王"}


def test_a_finished_command_shows_what_it_made(student: Path, triples: Path) -> None:
    before = {path.name: path.read_bytes() for path in student.iterdir()}
    again = call("distil", triples, *QUICK, "-o", student)  # `distil` is the command, too
    assert again.exit_code == 0 and "kgdistil predict" in again.stdout and "realistic ties" in again.stdout.lower()
    told = json.loads(call("distill", triples, *QUICK, "-o", student, "--json").stdout)
    assert told["verdict"] in again.stdout.replace(told["verdict"][0].upper(), told["verdict"][0])
    assert told["low"] <= told["gain"] <= told["high"] and 0 < told["p"] <= 1
    assert {path.name: path.read_bytes() for path in student.iterdir()} == before
    for more in (["--seed", 1], ["--precision", "float16"], ["--held-out", 0.2], ["--softmax-epochs", 3]):
        assert "holds a model already" in refused("distill", triples, *QUICK, *more, "-o", student)


def test_a_teacher_or_names_that_changed_are_no_finished_command(triples: Path, tmp_path: Path) -> None:
    teacher, names = tmp_path / "teacher", tmp_path / "names.tsv"
    names.write_text("Aïsha O'Brien\tthe first\n")
    asked = [triples, "--names", names, "-o", tmp_path / "s", "--teacher", teacher, "--dim", 2, "--epochs", 1]
    asked += ["--softmax-epochs", 0]
    for model in ("ComplEx", "TransE"):
        made = ["--model", model, "--dim", 4, "--teacher-dim", 4, "--epochs", 1, "--softmax-epochs", 0, "--replace"]
        assert call("distill", triples, *made, "-o", teacher).exit_code == 0
        if model == "ComplEx":
            assert call("distill", *asked).exit_code == 0
            assert "nothing is left to do" in call("distill", *asked).stdout
    assert "holds a model already; teacher differs: name" in refused("distill", *asked)
    assert call("distill", *asked, "--replace").exit_code == 0 and load_student(tmp_path / "s").model == "TransE"
    names.write_text("Aïsha O'Brien\tanother\n")
    assert "holds a model already; names differs: name" in refused("distill", *asked)
    inside = [*asked[:4], teacher / "student", *asked[5:]]  # what it leaves there is not of the teacher
    assert call("distill", *inside).exit_code == 0 and "nothing is left to do" in call("distill", *inside).stdout


def test_more_time_goes_on_only_where_the_search_still_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, asked = tmp_path / "s", {"graph": "g", "time": "1s"}
    monkeypatch.setattr(cli, "made", lambda output: dict(asked))
    assert cli.is_done(output, dict(asked)) and cli.is_done(output, {**asked, "time": "1.0s"})
    for other in ({"time": "2s"}, {"time": "0.5s"}, {"seed": "1"}):
        with pytest.raises(
            ConfigError, match=f"already; {next(iter(other))} differs: name another folder, or add --re"
        ):
            cli.is_done(output, {**asked, **other})
    (tmp_path / "s.training" / "search").mkdir(parents=True)
    (tmp_path / "s.training" / "search" / "0123.log").touch()
    assert not cli.is_done(output, {**asked, "time": "2s"})
    with pytest.raises(ConfigError, match="already; time differs"):
        cli.is_done(output, {**asked, "time": "0.5s"})


def test_options_that_nothing_would_read_are_refused(triples: Path, tmp_path: Path, measured: None) -> None:
    out = ["-o", tmp_path / "s"]
    few = ["--precision", "2bit", "--dim", 8, "--teacher-dim", 8]
    for more, why in (
        ([*few, "--stages", 2], "--stages is for few floats: 2bit is trained in one stage; leave it out"),
        ([*few, "--softmax-epochs", 3], "--softmax-epochs is for few floats"),
        (
            ["--time", "1s", *few[:4], "--teacher-dim", 16],
            "--teacher-dim is 16, but this student's teacher has 8: leave",
        ),
    ):
        done = call("distill", triples, *more, *out)
        assert done.exit_code == 1 and why in done.stderr.splitlines()[-1]
    assert not (tmp_path / "s.training" / "models").exists()


def test_an_export_and_a_batch_write_over_nothing(student: Path, tmp_path: Path) -> None:
    (mine := tmp_path / "mine.npz").write_text("my only copy")
    (folder := tmp_path / "folder").mkdir()
    (folder / "labels.tsv").write_text("mine")
    for form, output in (("npz", mine), ("arrays", folder)):
        assert "is there already; name another, or add --replace" in refused(
            "export", student, "--to", form, "-o", output
        )
    assert mine.read_text() == "my only copy" and (folder / "labels.tsv").read_text() == "mine"
    assert call("export", student, "--to", "npz", "-o", mine, "--replace").exit_code == 0
    assert np.load(mine)["entities"].size


def test_a_default_said_aloud_is_the_same_command(triples: Path, tmp_path: Path) -> None:
    asked = ["distill", triples, "--epochs", 1, "--teacher-dim", 16, "-o", tmp_path / "s"]
    assert call(*asked).exit_code == 0
    for more in (["--precision", "int8"], ["--dim", 8], ["--dim", 8, "--precision", "int8"]):
        assert "nothing is left to do" in call(*asked, *more).stdout
    assert "dim differs" in refused(*asked, "--dim", 4)
    assert "--no-paths is for few bits" in refused(*asked, "--no-paths", "--replace")
    (huge := tmp_path / "huge").mkdir()
    with (huge / "file").open("wb") as file:
        file.truncate(1 << 40)  # which nothing may sum before it is refused
    said = refused("distill", triples, "--labels", huge, "-o", tmp_path / "t")
    assert "labels: this says how a teacher's file is read" in said


def test_what_is_refused_leaves_no_folder_behind(triples: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "lists.tsv"
    wrong.write_text("a\tb\tc\n")
    before = sorted(tmp_path.iterdir())
    given = ["--dim", 4, "--precision", "4bit", "--teacher-lists", wrong, "-o", tmp_path / "s"]
    done = call("distill", triples, *given)
    assert done.exit_code == 1
    assert "lists.tsv is no Parquet file; lists are one, with the columns head, relation, side" in done.stderr
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "s.training" / "models").mkdir(parents=True)  # of a run that was stopped
    assert call("distill", triples, *given).exit_code == 1
    assert (tmp_path / "s.training" / "models").is_dir()


def test_the_former_name_of_an_option(triples: Path, tmp_path: Path) -> None:
    one, other = (
        call("distill", triples, *QUICK, name, 2, "-o", tmp_path / "s") for name in ("--lists", "--softmax-epochs")
    )
    assert one.exit_code == other.exit_code == 0 and "nothing is left to do" in other.stdout
    assert "--lists" not in call("distill", "--help").stdout


def test_errors_are_one_line(student: Path, triples: Path, tmp_path: Path) -> None:
    assert "did you mean 'Zoë O'Brien'?" in refused(
        "predict", student, "--head", "Zoe O'Brien", "--relation", "knows"
    ).replace('"', "'")
    assert "give exactly two of head, relation and tail" in refused("predict", student, "--head", "x")
    assert "is not there" in refused("predict", tmp_path, "--head", "x", "--relation", "y")
    assert "holds a model already" in refused("distill", triples, "-o", student)
    assert "is missing or no regular file" in refused("distill", tmp_path / "no.tsv", "-o", tmp_path / "a")
    assert "the budget decides both" in refused("distill", triples, "--budget", "1MB", "--dim", 4, "-o", tmp_path / "a")
    assert "budget is '2 elephants'" in refused("distill", triples, "--budget", "2 elephants", "-o", tmp_path / "a")
    assert "split is 'all'" in refused("evaluate", student, "--split", "all")
    (tmp_path / "file").write_text("precious")
    assert "holds other files" in refused("distill", triples, "-o", tmp_path)
    assert (tmp_path / "file").read_text() == "precious"
    assert call("predict", student, "--haed", "x").exit_code == 2
    assert "k is -1" in refused("similar", student, "Zoë O'Brien", "-k", -1)
    for digits in ("9" * 5000, "9" * 18):
        assert len(refused("predict", student, "--ids", "--head", digits, "--relation", 0)) < 200


def test_two_runs_in_one_output_folder(triples: Path, tmp_path: Path) -> None:
    (tmp_path / "s.training").mkdir()
    with filelock.FileLock(tmp_path / "s.training" / ".lock"):
        assert "another process is at work here" in refused("distill", triples, *QUICK, "-o", tmp_path / "s")


def test_an_output_folder_that_cannot_be(triples: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "kgdistil: " in refused("distill", triples, *QUICK, "-o", tmp_path / "file" / "s")
    if Path("/proc/1").exists():
        assert "cannot write" in refused("distill", triples, *QUICK, "-o", "/proc/kgdistil-student")


@pytest.mark.parametrize("command", ["distill", "import"])
def test_an_output_that_can_never_be_a_folder_is_refused_first(command: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    given = ["nowhere.tsv"] if command == "distill" else [tmp_path, "--graph", "nowhere.tsv"]
    for output, why in (
        ("loop", "Too many levels of symbolic links"),
        ("loop/below", "Too many levels of symbolic links"),
        ("x" * 5000, "File name too long"),
        ("/dev/null", "is no folder"),
    ):
        line = refused(command, *given, "-o", output)
        assert why in line and "name a new or an empty" in line and len(line) < 200


@pytest.mark.parametrize("options", [("--valid", "--test"), ("--teacher",), ("--names",)])
def test_an_input_that_is_a_circle_of_links(options: tuple[str, ...], triples: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    given = [x for option in options for x in (option, tmp_path / "loop")]
    result = call("distill", triples, *QUICK, *given, "-o", tmp_path / "s")
    assert result.exit_code in (1, 2) and "loop" in result.stderr.splitlines()[-1], result.output
    assert not (tmp_path / "s").exists()


def test_a_full_disk_leaves_the_old_student(student: Path, triples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in student.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        line = refused("distill", triples, *QUICK, "--seed", 1, "--replace", "--json", "-o", student)
    assert "No space left on device; earlier files are untouched" in line
    assert {path.name: path.read_bytes() for path in student.iterdir()} == before


def test_ctrl_c_and_the_same_command_again(triples: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("KGDISTIL_RUNS", "KGDISTIL_RESULTS")}
    slow = ["--stages", "1", "--epochs", "1000000", "--teacher-dim", "8", "--dim", "2"]
    command = [sys.executable, "-m", "kgdistil.cli", "distill", str(triples), *slow, "-o", str(tmp_path / "s")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would ignore it
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if list(tmp_path.glob("s.training/models/*/.lock")):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("kgdistil: stopped; the same command goes on")
    assert call("distill", triples, *QUICK, "-o", tmp_path / "s").exit_code == 0


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frontier: of two graphs the small one counts here, where few floats beat few bits at 64 bytes."""
    rows = ["graph,entities,relations,triples per entity,model,dim,group,rank,bytes,kept,rounded"]
    rows += ["large,100000,2,3,ComplEx,64,1,0,64,1.5,0.9", "small,20,2,3,ComplEx,8,1,0,8,0.9,0.8"]
    rows += ["small,20,2,3,ComplEx,8,2,0,4,0.8,0.7", "small,20,2,3,ComplEx,8,0,0,64,0.95,"]
    (tmp_path / "frontier.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(advice, "KEPT", tmp_path / "frontier.csv")


def few_floats_kept(folder: Path, share: float) -> None:
    """What few floats kept on the small graph of `measured`."""
    path = folder / "frontier.csv"
    path.write_text(re.sub("(?<=,8,0,0,64,)[0-9.]+", str(share), path.read_text()))


def test_the_budget(tiny_graph: Graph) -> None:
    assert [parse_size(x) for x in ("2MB", "500 kB", "1.5GiB", 1234)] == [2_000_000, 500_000, 3 << 29, 1234]
    for limit in (200, 1000, 4000, 10**9):
        bought = plan(tiny_graph, limit, "RotatE")
        model = build_model("RotatE", tiny_graph.num_entities, tiny_graph.num_relations, bought.dim)
        assert size(model, bought.precision) == bought.bytes <= limit
    assert (bought.dim, bought.precision, bought.teacher_dim) == (64, "float32", 64)
    next_larger = re.search("takes ([0-9,]+) bytes", plan(tiny_graph, 1000, "RotatE").why)
    assert next_larger is not None and int(next_larger[1].replace(",", "")) > 1000
    with pytest.raises(
        ConfigError, match="the smallest student of this graph, .* takes .* bytes; give ([0-9]+)B or more"
    ) as no:
        plan(tiny_graph, 50)
    assert plan(tiny_graph, str(no.value).split("give ")[1].split(" ")[0]).bytes > 50
    with pytest.raises(ConfigError, match="; give ([0-9]+)B/entity or more") as no:
        plan(tiny_graph, "1B/entity", "RotatE")
    assert plan(tiny_graph, str(no.value).split("give ")[1].split(" ")[0], "RotatE").bytes > tiny_graph.num_entities
    with pytest.raises(ConfigError, match="model is 'Rotate3D': choose one of"):
        plan(tiny_graph, 5000, "Rotate3D")


@pytest.mark.parametrize("budget", ["0.5B/entity", "10B"])
def test_the_smallest_budget_that_is_told_is_the_smallest(umls: Graph, budget: str) -> None:
    """Of all students that a budget buys, those of few bits too."""
    for graph in (umls, dataclasses.replace(umls, name="own")):
        with pytest.raises(ConfigError, match="or more") as no:
            plan(graph, budget)
        told = re.search(r"give (\d+)(\S+) or more", str(no.value))
        count, unit = int(told[1]), told[2]
        assert plan(graph, f"{count}{unit}").bytes > 0
        if count > 1:
            with pytest.raises(ConfigError, match=f"give {count}{unit} or more"):
                plan(graph, f"{count - 1}{unit}")


def test_the_budget_chooses_from_the_frontier(tiny_graph: Graph, measured: None, tmp_path: Path, monkeypatch) -> None:
    whole = plan(tiny_graph, "1MB")
    assert (whole.model, whole.dim, whole.precision, whole.teacher_dim) == ("ComplEx", 8, "float32", 64)
    assert "on small, the measured graph most like this one, a student of 64 bytes" in whole.expected
    assert "kept 95% of" in whole.expected
    model = build_model("ComplEx", tiny_graph.num_entities, tiny_graph.num_relations, 8)
    chain = [(0.95, "float16", 64), (0.95, "int8", 64), (0.7, "4bit", 64), (0.7, "2bit", 8), (0.7, "int8", 64)]
    limit = whole.bytes - 1
    for kept, precision, teacher in chain:  # few floats that do not fit are rounded, before few bits if they kept more
        few_floats_kept(tmp_path, kept)
        bought = plan(tiny_graph, limit := whole.bytes if precision == "4bit" else limit)
        assert (bought.dim, bought.precision, bought.teacher_dim) == (8, precision, teacher)
        assert size(model, precision) == bought.bytes <= limit
        assert ("it was measured in float32" in bought.why) == (precision in ("float16", "int8"))
        assert ("and a larger teacher, until" in bought.why) == (precision == "4bit")
        limit = bought.bytes - 1
    for small, dim, precision, teacher in (("400B", 3, "4bit", 64), ("3B/entity", 12, "1bit", 12)):
        below = plan(tiny_graph, small)
        found = (below.model, below.dim, below.precision, below.teacher_dim)
        assert found == ("ComplEx", dim, precision, teacher), "nothing so small was measured"
    assert plan(tiny_graph, "400B", few_bits=True).teacher_dim == 3, "a search has codes that are learned"
    finest = [plan(tiny_graph, limit) for limit in range(130, 401, 10)]
    assert {(x.precision, x.teacher_dim) for x in finest} == {("4bit", 64)}, "a larger budget has a better teacher, too"
    rows = advice.frontier(tiny_graph, sized=False)
    assert len(rows) == len(advice.frontier(tiny_graph)), "where few floats kept more than few bits they stay"
    few_floats_kept(tmp_path, 0.5)
    with (tmp_path / "frontier.csv").open("a") as file:
        file.write("small,20,2,3,ComplEx,32,2,0,64,0.6,0.6\n")
    sized, timed = (advice.frontier(tiny_graph, sized=x)["group"].tolist() for x in (True, False))
    assert 0 not in sized and 0 in timed, "of as many bytes, and perhaps faster"
    assert plan(tiny_graph, "1MB", "TransE").model == "TransE"
    few_floats_kept(tmp_path, 0.95)
    waits = {"float32": 0.5, "float16": 0.5, "int8": 0.5, "4bit": 1e-3, "2bit": 1e-4}
    monkeypatch.setattr(budget, "query_seconds", lambda graph, model, dim, precision, rank: waits[precision])
    assert [plan(tiny_graph, limit).precision for limit in ("1s", "2ms", "200us")] == ["float32", "4bit", "2bit"]
    monkeypatch.undo()
    for precision in ("float32", "4bit"):
        assert 0 < budget.query_seconds(tiny_graph, "ComplEx", 8, precision) < 60


@pytest.mark.parametrize(("kept", "dim"), [(0.952, 8), (0.97, 16)])
def test_of_students_that_kept_the_same_a_budget_buys_the_largest(
    tiny_graph: Graph, tmp_path: Path, measured: None, kept: float, dim: int
) -> None:
    with (tmp_path / "frontier.csv").open("a") as file:
        file.write(f"small,20,2,3,ComplEx,16,1,0,16,{kept},0.6\n")  # beside the one of 64 bytes, which kept .95
    assert plan(tiny_graph, "1MB").dim == dim


def test_a_budget_says_why_it_buys_no_more(triples: Path, tmp_path: Path, measured: None, monkeypatch) -> None:
    """Before anything is trained: of a megabyte, the measured frontier and the model that is asked for leave most."""

    def distil(*_: object, **__: object) -> None:
        raise ConfigError("not in this test")

    monkeypatch.setattr("kgdistil.distillation.distil.distil", distil)
    for options, why in (([], "this one kept most"), (["--model", "RotatE"], "no student is larger than its teacher")):
        said = call("distill", triples, "--budget", "1MB", *options, "-o", tmp_path / "s").stdout
        assert re.search(r"the budget of 1MB buys \w+ of dimension \d+, \w+: [\d,]+ bytes of weights", said)
        assert why in said


def test_a_search_may_choose_what_fits_the_budget_alone(tiny_graph: Graph, measured: None) -> None:
    """A vector for each direction of many relations takes more than the budget of a student that has one."""
    many = dataclasses.replace(tiny_graph, relations=tuple(f"r{i}" for i in range(150)))
    for limit in ("12kB", "30kB", "16B/entity"):
        bought = plan(many, limit, few_bits=True)
        kinds, shapes = budget.searched(many, bought, limit, ("ComplEx", "ReciprocalComplEx"))
        each = "/" in limit
        assert kinds == (["ReciprocalComplEx"] if each else []), "relations do not count of an entity's bytes"
        for kind, shape in itertools.product((bought.model, *kinds), shapes):
            size = budget.bytes_of(many, kind, *shape) - (budget.shared_bytes(many, kind, *shape) if each else 0)
            assert size <= parse_size(limit.removesuffix("/entity")) * (many.num_entities if each else 1)
    assert budget.searched(many, bought, limit, ())[0] == []


def test_a_budget_with_a_teacher_is_of_its_kind(triples: Path, tmp_path: Path) -> None:
    made = ["--model", "TransH", "--dim", 8, "--teacher-dim", 8, "--epochs", 1, "--softmax-epochs", 0, "--stages", 1]
    assert call("distill", triples, *made, "-o", tmp_path / "teacher").exit_code == 0
    asked = ["--teacher", tmp_path / "teacher", "--budget", "200B", "--epochs", 1, "--softmax-epochs", 0]
    done = call("distill", triples, *asked, "-o", tmp_path / "s")
    assert done.exit_code == 0, done.output
    told = re.search(r"the budget of 200B buys (\w+) of dimension (\d+), (\w+): ([0-9,]+) bytes", done.stdout)
    student = load_student(tmp_path / "s")
    assert told and told.groups()[:3] == (student.model, str(student.dim), student.precision) and told[1] == "TransH"
    assert int(told[4].replace(",", "")) <= 200 and student.dim < 8
    done = call("distill", triples, *asked, "--teacher-dim", 16, "-o", tmp_path / "t")
    assert done.exit_code == 1 and "--teacher-dim is 16, but this student's teacher has 8" in done.stderr


def test_a_budget_may_buy_a_low_rank(tiny_graph: Graph, tmp_path: Path, measured: None) -> None:
    with (tmp_path / "frontier.csv").open("a") as file:
        file.write("small,20,2,3,ComplEx,8,2,4,1,0.92,0.6\n")
    few_floats_kept(tmp_path, 0.7)
    low = plan(tiny_graph, "1MB")
    assert (low.dim, low.precision, low.rank, low.teacher_dim) == (8, "2bit", 4, 8) and "and rank 4" in str(low)
    model = build_model("ComplEx", tiny_graph.num_entities, tiny_graph.num_relations, 8, rank=4)
    assert size(model, "2bit") == low.bytes
    assert 0 < budget.query_seconds(tiny_graph, "ComplEx", 8, "2bit", rank=4) < 60
    with pytest.raises(ConfigError, match="rank is 4: it takes a precision of"):
        distil(tiny_graph, dim=4, rank=4)
    with pytest.raises(ConfigError, match="rank is 0, and the teacher of low rank 4: give that"):
        distil(tiny_graph, dim=8, precision="2bit", teacher=model)


def test_without_a_frontier_a_budget_buys_few_floats(tiny_graph: Graph, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(advice, "KEPT", tmp_path / "none.csv")
    assert advice.frontier(tiny_graph).empty and plan(tiny_graph, "1MB").model == "RotatE"


def test_what_was_never_trained_is_asked_on_request_and_never_suggested(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("".join(f"{i}\tr\t{i + 1}\n" for i in range(1, 9)))
    for part in ("valid", "test"):
        (tmp_path / f"{part}.tsv").write_text("10\tr\t1\n2\tr\t1\n")
    files = ["--valid", tmp_path / "valid.tsv", "--test", tmp_path / "test.tsv"]
    made = call("distill", tmp_path / "train.tsv", *files, *QUICK, "-o", tmp_path / "s")
    assert made.exit_code == 0, made.output
    asked = made.stdout.splitlines()[-1].split()[2:]
    assert asked[:3] == [str(tmp_path / "s"), "--head", "2"] and call("predict", *asked).exit_code == 0
    assert "no training triple" in refused("predict", tmp_path / "s", "--head", 10, "--relation", "r")
    assert "no training triple" in refused("similar", tmp_path / "s", 10)
    told = json.loads(call("predict", tmp_path / "s", "--tail", 3, "--relation", "r", "-k", 12, "--json").stdout)
    assert {row["entity"] for row in told if row["unseen"]} == {"10"}
    told = json.loads(call("predict", tmp_path / "s", "--head", 10, "--relation", "r", "--unseen", "--json").stdout)
    assert told and not any(row["entity"] == "10" for row in told)
    by_id = ["--ids", "--head", 1, "--relation", 0]  # the second label in order of characters is "10"
    assert "no training triple" in refused("predict", tmp_path / "s", *by_id)


def test_a_student_of_few_bits_in_one_command(triples: Path, tmp_path: Path, measured: None) -> None:
    few_floats_kept(tmp_path, 0.7)
    result = call("distill", triples, "--budget", "650B", "--epochs", 2, "-o", tmp_path / "s", "--json")
    told = json.loads(result.stdout)
    assert (told["dim"], told["precision"]) == (8, "2bit") and "kept 80% of" in told["expected"]
    assert [row["model"] for row in told["metrics"]] == ["teacher", "rounded", "no-DS", "stage 1"]
    again = call("distill", triples, "--budget", "650B", "--epochs", 2, "-o", tmp_path / "s")
    assert "rounded: the teacher's own numbers" in again.stdout
    assert {row["dim"] for row in told["metrics"]} == {8} and "validation MRR" in told["verdict"]
    student = load_student(tmp_path / "s")
    by = {row["precision"]: row["mrr"] for row in told["precisions"]}
    assert by["2bit"] == pytest.approx(by["float32"], abs=1e-6)  # its floats are what its codes say
    assert student.precision == "2bit" and student.evaluate()["both"]["mrr"] == pytest.approx(by["2bit"], abs=1e-6)
    call(
        "distill",
        triples,
        "--teacher",
        tmp_path / "s",
        "--dim",
        8,
        "--precision",
        "4bit",
        "--epochs",
        2,
        "-o",
        tmp_path / "t",
    )
    assert load_student(tmp_path / "t").dim == 8


def test_a_student_of_low_rank_in_one_command(triples: Path, tmp_path: Path) -> None:
    given = ["--dim", 8, "--teacher-dim", 8, "--precision", "2bit", "--rank", 4]
    result = call("distill", triples, *given, "--epochs", 2, "-o", tmp_path / "s", "--json")
    rows = {row["model"]: row for row in json.loads(result.stdout)["metrics"]}
    assert rows.keys() == {"teacher", "rounded", "no-DS", "stage 1"}
    assert rows["rounded"]["bytes per entity"] == rows["stage 1"]["bytes per entity"] == 1
    student = load_student(tmp_path / "s")
    assert (student.model, student.rank, student.precision) == ("LowRankComplEx", 4, "2bit")
    assert student.card().startswith("# LowRankComplEx of dimension 8 and rank 4 on ")
    plain = student.predict(head=0, relation=0, k=3, by="id")
    assert list(plain["score"]) == sorted(plain["score"], reverse=True) and len(student.similar(0, 3, by="id")) == 3
    for form in ("npz", "browser"):
        call("export", tmp_path / "s", "--to", form, "-o", tmp_path / ("s.npz" if form == "npz" else "b"))


def test_few_floats_by_a_budget(triples: Path, tmp_path: Path) -> None:
    result = call(
        "distill",
        triples,
        "--budget",
        "200B",
        "--model",
        "RotatE",
        "--teacher-dim",
        8,
        "--epochs",
        3,
        "-o",
        tmp_path / "s",
        "--json",
    )
    told = json.loads(result.stdout)
    assert (told["dim"], told["precision"]) == (4, "int8") or told["dim"] < 8
    assert {row["model"] for row in told["metrics"]} == {
        "teacher",
        "no-DS",
        "stage 1",
        "stage 2",
        "no-DS + lists",
        "stage 2 + lists",
    }  # both were trained
    assert "validation MRR" in told["verdict"] and "of their teacher's MRR on" in told["expected"]


def test_few_floats_go_on_with_whole_lists(triples: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("KGDISTIL_RUNS", "KGDISTIL_RESULTS"):
        monkeypatch.setenv(name, str(tmp_path))
    graph, given = read_graph(triples), {"dim": 4, "teacher_dim": 8, "epochs": 3}
    done = distil(graph, **given, stages=1, softmax_epochs=4)
    assert list(done.runs) == ["teacher", "no-DS", "stage 1", "no-DS + lists", "stage 1 + lists"]
    for before, role, teacher in (("no-DS", "no-ds", None), ("stage 1", "stage1", done.runs["teacher"].id)):
        went_on = done.runs[before + " + lists"].config
        assert (went_on.student, went_on.loss, went_on.epochs) == (done.runs[before].id, "softmax", 4)
        assert (went_on.role, went_on.teacher) == (role, teacher)
    students = list(done.runs)[1:]
    assert done.chosen == max(students, key=lambda name: done.runs[name].record["valid"]["both"]["mrr"])
    assert list(distil(graph, **given, softmax_epochs=0).runs) == ["teacher", "no-DS", "stage 1", "stage 2"]


@pytest.mark.parametrize(
    ("low", "high", "triples", "start"),
    [
        (-0.01, 0.05, 500, "no significant difference"),
        (0.01, 0.05, 500, "the teacher helped"),
        (-0.05, -0.01, 500, "a student trained without"),
        (0.01, 0.05, 5, "no significant difference"),
    ],
)
def test_what_an_interval_allows_to_say(low: float, high: float, triples: int, start: str) -> None:
    assert found(low, high, triples).startswith(start)


def test_the_verdict_is_that_of_the_validation_triples(triples: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("KGDISTIL_RUNS", "KGDISTIL_RESULTS"):
        monkeypatch.setenv(name, str(tmp_path))
    graph = read_graph(triples)
    done = distil(graph, dim=2, teacher_dim=8, epochs=3, stages=1, softmax_epochs=0)
    known = KnownTriples(graph.known, graph.num_relations)
    alone, taught = (
        rank(done.runs[name].load(graph), graph.valid, known).reciprocal() for name in ("no-DS", "stage 1")
    )
    assert done.gain == pytest.approx(taught.mean() - alone.mean(), abs=1e-6)
    assert (done.low, done.high, done.p) == bootstrap(alone, taught) and done.low <= done.gain <= done.high
    assert done.chosen == ("stage 1" if done.gain > 0 else "no-DS")
    assert done.verdict.startswith(found(done.low, done.high, len(graph.valid)))


def test_what_went_on_with_lists_says_how_likely(triples: Path, tmp_path: Path, monkeypatch) -> None:
    """Lists leave open where the score of a distance has its zero: half of triples and corruptions lie on each side."""
    for name in ("KGDISTIL_RUNS", "KGDISTIL_RESULTS"):
        monkeypatch.setenv(name, str(tmp_path))
    graph = read_graph(triples)
    done = distil(graph, dim=4, teacher_dim=8, epochs=3, softmax_epochs=20, precision="float32")
    assert done.chosen.endswith(" + lists")  # or this test says nothing
    before, model = done.runs[done.chosen].load(graph), done.student.model
    false = graph.train.clone()
    false[:, 2] = torch.randint(graph.num_entities, (len(false),), generator=torch.Generator().manual_seed(7))
    scores = [m.score_triples(torch.cat([graph.train, false])).sigmoid() for m in (before, model)]
    assert abs(scores[1].mean() - 0.5) < 0.05 < abs(scores[0].mean() - 0.5)
    assert torch.equal(*(m.entities for m in (before, model)))


def test_a_budget_of_time_is_measured(tiny_graph: Graph, monkeypatch) -> None:
    monkeypatch.setattr(budget, "query_seconds", lambda graph, model, dim: dim * 1e-4)
    for limit, dim in (("1ms", 8), ("450 us", 4), ("1s", 64)):
        bought = plan(tiny_graph, limit, "RotatE")
        assert (bought.dim, bought.precision) == (dim, "float32") and f"{dim / 10:.3g} ms" in str(bought)
    with pytest.raises(ConfigError, match=r"takes 0.1 ms a query here"):
        plan(tiny_graph, "50us", "RotatE")
    asked: list[int] = []

    def busy_at_first(graph: Graph, model: str, dim: int) -> float:
        asked.append(dim)
        return 1.0 if asked.count(dim) == 1 else dim * 1e-4

    monkeypatch.setattr(budget, "query_seconds", busy_at_first)
    assert plan(tiny_graph, "1ms", "RotatE").dim == 8
    monkeypatch.undo()
    assert 0 < budget.query_seconds(tiny_graph, "RotatE", 4) < 60


def test_what_a_budget_is_expected_to_cost_is_what_was_measured(tiny_graph: Graph) -> None:
    table = pd.read_csv(advice.MEASURED)
    assert (table["kept"] - table["student_mrr"] / table["teacher_mrr"]).abs().max() < 1e-3
    eighth = table[table["dim"] * 8 == table["teacher_dim"]]["kept"]
    told = plan(tiny_graph, 700, "RotatE").expected
    assert (
        told.startswith(f"students of 1/8 of the dimension kept {eighth.min():.0%}")
        and f"{eighth.max():.0%} of" in told
    )
    assert "no student is needed" in plan(tiny_graph, "1MB", "RotatE").expected


def test_a_teacher_from_elsewhere_in_one_command(triples: Path, tmp_path: Path) -> None:
    graph = cli.read(
        str(triples), dict.fromkeys(("valid", "test", "columns", "names")) | {"held_out": 0.1, "split_seed": 0}
    )
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "t.npz",
        entities=rng.normal(size=(12, 8)),
        relations=rng.normal(size=(2, 8)),
        entity_labels=graph.entities,
        relation_labels=graph.relations,
        model="ComplEx",
    )
    result = call("import", tmp_path / "t.npz", "--graph", triples, "-o", tmp_path / "teacher", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["test"]["mrr"] > 0
    for teacher in (tmp_path / "t.npz", tmp_path / "teacher"):
        out = tmp_path / f"student of {teacher.name}"
        result = call("distill", triples, "--teacher", teacher, "--dim", 2, "--epochs", 3, "-o", out)
        assert result.exit_code == 0, result.output
        assert load_student(out).model == "ComplEx"  # as its teacher


def test_how_a_teachers_file_is_read_is_said_to_distill_too(triples: Path, tmp_path: Path) -> None:
    graph = read_graph(triples)
    model = build_model("RotatE", graph.num_entities, graph.num_relations, 6)
    with torch.no_grad():  # angles of 0: a relation holds from an entity to itself
        model.relations.zero_()
    (tmp_path / "data").mkdir()
    for name, words in (("entity_ids.del", graph.entities[::-1]), ("relation_ids.del", graph.relations)):
        (tmp_path / "data" / name).write_text("".join(f"{i}\t{x}\n" for i, x in enumerate(words)), encoding="utf-8")
    scaled = {
        "ent_embeddings.weight": model.entities.detach().flip(0),
        "rel_embeddings.weight": model.relations.detach(),
    }
    torch.save({**scaled, "rel_embedding_range": torch.tensor([2.0])}, tmp_path / "t.ckpt")
    command = ["distill", triples, "--teacher", tmp_path / "t.ckpt", "--dim", 2, "--epochs", 2, "-o", tmp_path / "s"]
    assert "--labels" in refused(*command, "--json")
    options = ["--labels", tmp_path / "data", "--convention", "openke", "--gamma", 6, "--norm", 1]
    result = call(*command, *options, "--json")
    assert result.exit_code == 0, result.output
    saved = load_model(next((tmp_path / "s.training" / "teachers").iterdir()))
    assert torch.equal(saved.entities, model.entities) and saved.norm == 1 and saved.offset == 6
    assert any("little better than chance" in note for note in json.loads(result.stdout)["notes"])
    assert "little better than chance" in result.stderr  # before it trains
    again = call(*command, *options)
    assert again.exit_code == 0 and "nothing is left to do" in again.stdout and "- read as openke" in again.stdout
    assert "holds a model already" in refused(*command, *options[:-1], 2)
    assert "name it as teacher" in refused("distill", triples, "--gamma", 6, "-o", tmp_path / "none", "--json")


def test_what_was_said_of_the_graph_stays_with_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    rows = [(f"p{i}", "likes", f"p{(i * k) % 9}") for i in range(9) for k in range(4)]
    graph = read_graph(rows, rows[:6], rows[6:9], name="leaking")
    assert len(graph.notes) >= 2
    done = distil(graph, dim=2, teacher_dim=4, epochs=2, stages=1, softmax_epochs=0)
    done.student.save(tmp_path / "s")
    assert load_student(tmp_path / "s").about["notes"] == list(graph.notes)
    with pytest.raises(ConfigError, match="gamma: this says how a teacher's file is read"):
        distil(graph, teacher=done.student.model, teacher_options={"gamma": 6.0})


def test_export(student: Path, tmp_path: Path) -> None:
    result = call("export", student, "--to", "npz", "-o", tmp_path / "s.npz")
    assert result.exit_code == 0 and result.stdout.startswith(str(tmp_path / "s.npz"))
    assert "choose one of onnx, npz, arrays, pykeen, faiss, browser" in refused(
        "export", student, "--to", "pdf", "-o", tmp_path
    )


def test_help_teaches() -> None:
    for command in ("", "distill", "predict", "similar", "evaluate", "export", "convert", "import"):
        result = call(*command.split(), "--help")
        assert result.exit_code == 0 and "\n    kgdistil " in result.stdout
    assert "130 stopped with Ctrl-C" in call("--help").stdout


def test_a_label_does_not_steer_the_terminal(tiny_graph: Graph, tmp_path: Path) -> None:
    labels = ("\x1b[31mred", *tiny_graph.entities[1:])
    graph = Graph("tiny", tiny_graph.train, tiny_graph.valid, tiny_graph.test, labels, tiny_graph.relations, "0" * 64)
    Labelled(build_model("RotatE", 30, 4, 2), graph).save(tmp_path)
    result = call("predict", tmp_path, "--head", "e03", "--relation", "r0", "-k", 30)
    assert "\x1b" not in result.stdout and "\ufffd[31mred" in result.stdout
    assert "\x1b" not in refused("predict", tmp_path, "--head", "\x1b[31mrad", "--relation", "r0")


def test_nothing_printed_steers_the_terminal(tmp_path: Path) -> None:
    """Not the command that is suggested, not JSON, not an error that quotes a file; C1 characters are such, too."""
    odd = "\x1b[31m \x9b2J \u202e \U000e0001"
    names = [f"{i}{odd}" for i in range(6)]
    lines = [f"{a}\tr\x85{odd}\t{b}" for a in names for b in names if a != b]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    out = tmp_path / "s"
    told = call("distill", tmp_path / "t.tsv", *QUICK, "--keep-labels", "-o", out)
    assert told.exit_code == 0, told.output
    asked = call("predict", out, "--ids", "--head", 0, "--relation", 0, "--json")
    labels = tuple(load_student(out).entities)
    assert {row["entity"] for row in json.loads(asked.stdout)} <= set(labels) and any("\x9b" in x for x in labels)
    (tmp_path / "bad.tsv").write_text(f"a\tb\t{odd}\nc{odd}\n", encoding="utf-8")
    wrong = call("distill", tmp_path / "bad.tsv", "-o", tmp_path / "t")
    assert wrong.exit_code == 1
    for text in (told.output, asked.output, wrong.output):
        assert all(c.isprintable() or c == "\n" for c in text)


def test_an_unbuffered_file_takes_all_or_says_so() -> None:
    """What it writes of a text at a time may be a part: PYTHONUNBUFFERED, and a disk that fills."""

    class Little(io.RawIOBase):
        def __init__(self, room: int):
            self.room, self.held = room, b""

        def write(self, data: Any) -> int:
            if self.room == len(self.held):
                raise OSError(28, "No space left on device")
            taken = bytes(data)[: min(7, self.room - len(self.held))]
            self.held += taken
            return len(taken)

    large, small = Little(100), Little(50)
    assert cli.Whole(large).write(b"x" * 60) == 60 and large.held == b"x" * 60
    with pytest.raises(OSError, match="No space left on device"):
        cli.Whole(small).write(b"x" * 60)
