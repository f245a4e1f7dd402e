"""Cells, their runs and their searches, on a graph small enough to train in a moment."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import filelock
import pytest
import torch
from conftest import SMALL

from kgdistil import load, load_student, records
from kgdistil.errors import BusyError, CheckpointError, ConfigError, DeviceError, KgdistilError
from kgdistil.models import build_model
from kgdistil.paper import cells, frontier, reproduce, tasks
from kgdistil.paper import recipe as recipes
from kgdistil.paper.cells import (
    PROTOCOLS,
    Cell,
    cells_of,
    parse,
    table_cells,
)
from kgdistil.paper.recipe import config, read_search, recipe, search_path, start, trials, with_needs
from kgdistil.paper.tasks import Task, outstanding
from kgdistil.training.loop import run

EVERYTHING = [
    *(f"table{n}" for n in (3, 4, 6)),
    *(f"figure{n}" for n in (1, 2, 3)),
]


def cell(method: str, dim: int = 4, **more) -> Cell:
    return Cell("tuned", "nations", "TransE", method, dim, **more)


def all_cells(protocol: str) -> list[Cell]:
    return with_needs(itertools.chain(*(cells_of(name, protocol) for name in EVERYTHING)))


# ---- cells ----------------------------------------------------------------------------------------------------------
def test_the_tables_have_the_papers_cells():
    assert len(cells_of("table3", "tuned")) == len(cells_of("table4", "tuned")) == 28
    assert len(cells_of("table6", "tuned")) == 36
    assert len(cells_of("figure2", "tuned")) == 9
    with pytest.raises(ConfigError, match="table9"):
        cells_of("table9", "tuned")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_cell_has_an_address_that_leads_back(protocol: str):
    cells = [*all_cells(protocol), replace(all_cells(protocol)[3], seed=2)]
    assert [parse(str(c)) for c in cells] == cells
    assert len({str(c) for c in cells}) == len(cells)


@pytest.mark.parametrize(
    "text, named",
    [
        ("tuned/wn18rr/RotatE/DS", "no cell"),
        ("tuned/wn18rr/RotatE/DS/x", "no cell"),
        ("tuned/wn18rr/RotatE/DS/8/64/3", "no cell"),
        ("tuned/wn18rr/RotatE/DS/8@x", "no cell"),
        ("tuned/wn18/RotatE/DS/8", "'wn18' is none of wn18rr, fb15k-237"),
        ("other/wn18rr/RotatE/DS/8", "'other' is none of"),
        ("tuned/wn18rr/RotatE/SD/8", "'SD' is none of"),
    ],
)
def test_a_wrong_address_is_explained(text: str, named: str):
    with pytest.raises(ConfigError, match=named):
        parse(text)


def test_capitals_make_no_difference():
    assert str(parse("Tuned/WN18RR/rotate/ds/8@1")) == "tuned/wn18rr/RotatE/DS/8@1"


def test_what_is_needed_comes_first():
    ordered = with_needs([cell("DS"), cell("-S1")])
    assert [c.method for c in ordered] == ["teacher", "-S2", "DS", "-S1"]
    ordered = with_needs([cell("DS", teacher_size=128)])
    assert [c.dim for c in ordered[:2]] == [128, 64], "the search is shared with students of the usual teacher"


# ---- the recipe file ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_cell_has_a_recipe(protocol: str, small, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("KGDISTIL_RESULTS", str(small / "nothing"))
    for c in all_cells(protocol):
        spec = recipe(c)
        if not c.distilled and not start(c):
            found = trials(c)
            assert found and len({t.run_id for t in found}) == len(found)
            assert {t.protocol for t in found} == {"search"} and {t.dim for t in found} == {min(c.dim, 64)}
        else:
            assert trials(c) is None or trials(c) == [], c
        assert spec.get("epochs", 1000) >= spec["search_epochs"]


@pytest.mark.parametrize("cells", ["table3", "table4"])
def test_both_sides_get_as_many_trials_and_updates(cells: str):
    """What is compared is tuned alike: no-DS against stage 1 and stage 2 together."""

    def size(c: Cell) -> int:
        axes = [v for v in recipe(c).values() if isinstance(v, list)]
        return torch.tensor([len(a) for a in axes]).prod().item() if axes else 0

    def epochs(c: Cell) -> int:
        return recipe(c)["epochs"]

    for alone in (c for c in cells_of(cells, "tuned") if c.method == "no-DS"):
        first, last, only = (replace(alone, method=method) for method in ("-S2", "DS", "-S1"))
        assert size(alone) == size(first) + size(last), alone
        assert epochs(alone) == epochs(first) + epochs(last) == epochs(only), alone
        trial = [recipe(c)["search_epochs"] for c in (alone, first)]  # as long as each other, or as the runs
        assert len(set(trial)) == 1 or trial == [epochs(alone), epochs(first)], alone
        spent = [size(c) * recipe(c)["search_epochs"] for c in (alone, first, last)]
        assert spent[0] >= spent[1] + (spent[2] if size(last) else 0), f"{alone} was searched for fewer updates"
        starts = [start(c) for c in (alone, first, only) if start(c)]
        assert len(starts) in (0, 3) and start(last) is None
        assert len({epochs(c) for c in starts}) < 2 and len({size(c) for c in starts[:2]}) < 2


def test_the_papers_grid_is_the_papers():
    rates, weights = [0.0005, 0.005, 0.05, 0.01], [0.3, 0.5, 0.7]
    for c in cells_of("table3", "paper"):
        spec = recipe(c)
        assert spec["beta" if c.method == "DS" else "lr"] == (weights if c.method == "DS" else rates)
    assert recipe(Cell("paper", "wn18rr", "TransE", "-S2", 8))["alpha"] == weights
    alone = trials(Cell("paper", "wn18rr", "TransE", "no-DS", 8))[0]
    assert (alone.batch_size, alone.negatives, alone.gamma, alone.schedule) == (1024, 5, 1.0, "plateau")


def test_a_layer_refines_those_before_it_and_each_value_tells_its_layer(small):
    table = {
        "all": {"epochs": 9, "lr": 0.1},
        "no-DS": {"epochs": 8},
        "no-DS/4": {"epochs": 7},
        "nations": {"no-DS": {"epochs": 6}},
        "TransE": {"all": {"gamma": 2.0}, "nations": {"no-DS": {"negatives": 3}, "no-DS/4": {"alpha": 0.1}}},
    }
    recipes.recipes().clear(), recipes.recipes().update(tuned=table)
    mine = cell("no-DS")
    assert recipe(mine) == {"epochs": 6, "lr": 0.1, "gamma": 2.0, "negatives": 3, "alpha": 0.1}
    assert recipe(cell("no-DS", 8)) == {"epochs": 6, "lr": 0.1, "gamma": 2.0, "negatives": 3}
    own = {"nations": {"no-DS/*/16": {"alpha": 0.2, "lr": 0.3}, "no-DS/4/16": {"lr": 0.4}}}
    recipes.recipes().update(tuned={**table, "TransE": own})
    taught = [recipe(cell("no-DS", size, teacher_size=16)) for size in (4, 8)]
    assert [(x["alpha"], x["lr"]) for x in taught] == [(0.2, 0.4), (0.2, 0.3)]
    recipes.recipes().update(tuned=table)
    told = {name: (value, where) for name, value, _, where in recipes.explain(mine)}
    assert told["epochs"] == ("6", "[tuned.nations.no-DS]") and told["lr"] == ("0.1", "[tuned.all]")
    assert told["alpha"] == ("0.1", '[tuned.TransE.nations."no-DS/4"]') and told["dim"] == ("4", "the address")
    assert told["batch_size"] == ("1024", "config.py: the paper's, or the default")


@pytest.mark.parametrize("address", ["RotatE/DS/16", "RotatE/-S2/8", "TransH/no-DS/32", "ComplEx/-S1/16"])
def test_the_printed_recipe_is_what_the_record_was_trained_by(address: str, monkeypatch, capsys):
    monkeypatch.delenv("KGDISTIL_RESULTS", raising=False)
    mine = parse(f"tuned/wn18rr/{address}")
    record = records.read_record(records.record_path(config(mine).run_id))
    told = {name: value for name, value, _, _ in recipes.explain(mine)}
    for name, value in record["config"].items():
        if value is not None and name in told:
            assert told[name] == (f"{value:g}" if isinstance(value, float) else str(value)), name
    assert {name for name, value in record["config"].items() if value is not None} <= set(told)
    places = {name: where for name, *_, where in recipes.explain(mine)}
    assert re.search(r"\[tuned\.[\w.-]+\]|config\.py", places["batch_size"]), "the table, of an earlier stage, too"
    assert recipes.main([str(mine)]) == 0
    out = capsys.readouterr().out
    assert record["id"] in out and all(str(need) in out for need in recipes.needs(mine))


def test_no_table_of_the_recipes_is_without_a_reader(monkeypatch):
    """Take any value away and the recipe of some cell that can be asked for is another."""
    monkeypatch.delenv("KGDISTIL_RESULTS", raising=False)
    cells = [c for protocol in PROTOCOLS for c in all_cells(protocol)]
    for protocol in PROTOCOLS:
        for graph in ("wn18rr", "fb15k-237"):
            cells += with_needs(table_cells(protocol, graph, ("DS", "-S1")))
    cells += with_needs(c for graph in ("wn18rr", "fb15k-237", "umls") for c in frontier.cells(graph))
    cells += [c for graph in ("wn18rr", "fb15k-237") for c in frontier.reciprocal_cells(graph)]
    found = [(name, values) for c in dict.fromkeys(cells) for name, values in recipes.layers(c)]
    used = {name for name, _ in found}

    def tables(table: dict, *path: str):
        for name, inner in table.items():
            if isinstance(inner, dict):
                yield from tables(inner, *path, f'"{name}"' if "/" in name else name)
        if any(not isinstance(x, dict) or name == "scratch" for name, x in table.items()) and path:
            yield ".".join(path)

    own = (".scratch", ".paths.paths")  # notes, and settings of a path model
    there = {name for name in tables(recipes.recipes()) if not name.endswith(own)}
    assert there == used


def test_students_with_unrecorded_trials_of_their_own_are_listed():
    """What the sentence `as many trials for no-DS as for DS` has to say with it."""
    cells = [c for name in ("table3", "table4") for c in cells_of(name, "tuned")]
    assert [str(c) for c in recipes.unequal(cells)] == recipes.recipes()["unequal"]
    assert recipes.unequal(c for name in ("table3", "table4") for c in cells_of(name, "paper")) == []
    for c in cells:
        assert "distilled" not in recipes.scratch(c) or c.distilled, c
        assert recipes.SCRATCH not in recipe(c)


def test_the_number_of_an_address_is_bytes_on_the_frontier_alone():
    tuned, coded = parse("tuned/wn18rr/RotatE/DS/8"), parse("frontier/wn18rr/ComplEx/distilled/16/512")
    low = parse("frontier/wn18rr/ComplEx/low-rank/16/2048")
    assert (tuned.dim, tuned.bytes) == (8, 64) and (coded.dim, coded.bytes) == (64, 16)
    assert (low.dim, low.bytes, coded.teacher.bytes) == (256, 16, 512)


# ---- running --------------------------------------------------------------------------------------------------------
def test_a_table_is_run_once_and_then_skipped(small, monkeypatch):
    cells = [cell("teacher", 64), cell("no-DS"), cell("DS"), cell("-S1")]
    began = []
    train = run
    monkeypatch.setattr(tasks, "run", lambda c, *a, **k: began.append(c.run_id) or train(c, *a, **k))
    first = list(outstanding(cells))
    assert sum(isinstance(t, Task) for t in first) == 4 and all(t.trial for t in first if isinstance(t, Task))
    reproduce.work(cells, "cpu", show=False)
    assert len(began) == len(set(began)) == 3 * 2 + 5  # trials of teacher, no-DS and stage 1, then each cell
    assert list(outstanding(cells)) == []
    reproduce.work(cells, "cpu", show=False)
    assert len(began) == 11

    for c in with_needs(cells):
        record = records.read_record(records.record_path(config(c).run_id))
        assert record["config"]["protocol"] == "tuned"
        assert records.read_ranks(record["id"]).greater.shape == (record["graph"]["test"], 2)
        found = read_search(c)
        if searched := trials(c):
            scores = {t.run_id: found[t.run_id]["valid"]["both"]["mrr"] for t in searched}
            best = next(t for t in searched if scores[t.run_id] == max(scores.values()))
            axis = next(k for k, v in recipe(c).items() if isinstance(v, list))
            assert record["config"][axis] == getattr(best, axis)
    assert all("test" not in trial for trial in found.values()), "a search must not see the test split"
    assert len(list((small / "results/runs").iterdir())) == 5, "trials stand in the search file alone"
    chain = config(cell("DS"))
    assert chain.student == config(cell("-S2")).run_id and chain.teacher == config(cell("teacher", 64)).run_id
    assert chain.lr == config(cell("-S2")).lr / 2 and config(cell("-S1")).student is None


def test_a_cell_may_go_on_from_a_run_of_its_own(small, monkeypatch):
    methods, lists = ("teacher", "no-DS", "stage1", "only2"), {"epochs": 2, "lr": [0.02, 0.04], "gamma": 6.0}
    table = {
        **SMALL["tuned"],
        "lists": {
            "all": {"loss": "softmax", "negatives": 8, "batch_size": 64},
            **dict.fromkeys(methods[:2], lists),
            "stage1": {**lists, "lr": 0.02},
        },
        "TransE": {"nations": {f"{m}-start": SMALL["tuned"][m] for m in methods}},
    }
    monkeypatch.setattr(recipes, "recipes", lambda: {"tuned": table})
    asked = [cell("teacher", 64), cell("no-DS"), cell("DS"), cell("-S1")]
    reproduce.work(asked, "cpu", show=False)
    assert list(outstanding(asked)) == []
    made = {c.method: config(c) for c in with_needs(asked)}
    assert len(made) == 9
    for method in ("teacher", "no-DS", "-S2", "-S1"):
        first, last = made[f"{method}-start"], made[method]
        assert (first.loss, last.loss) == ("margin", "softmax") and last.student == first.run_id
        assert first.role == last.role
    assert made["-S2-start"].teacher == made["teacher-start"].run_id, "a start learns from the teacher's"
    assert made["-S2"].teacher == made["DS"].teacher == made["teacher"].run_id
    assert made["-S1-start"].student is None and made["DS"].student == made["-S2"].run_id
    adapted = f"{made['-S1-start'].run_id}/teacher"
    assert made["-S1"].teacher == adapted and (records.model_folder(adapted) / "model.safetensors").is_file()
    assert made["-S1-start"].teacher_lr == made["teacher-start"].lr / 2
    assert parse(str(cell("-S2-start", seed=1)).replace("nations", "wn18rr")).method == "-S2-start"


def test_lost_weights_are_made_again_only_for_those_who_wait(small):
    reproduce.work([cell("DS")], "cpu", show=False)
    teacher = config(cell("teacher", 64))
    (records.model_folder(teacher.run_id) / "model.safetensors").unlink()
    assert list(outstanding([cell("DS")])) == []
    records.record_path(config(cell("DS")).run_id).unlink()
    first = next(iter(outstanding([cell("DS")])))
    assert first.config == teacher and not first.trial


def test_one_command_writes_into_a_folder(small):
    (small / "runs").mkdir()
    with filelock.FileLock(small / "runs" / ".reproduce.lock"), pytest.raises(BusyError, match="another process"):
        reproduce.work([cell("no-DS")], "cpu", show=False)
    assert not (small / "results").exists()


def test_an_error_does_not_stop_the_others(small, monkeypatch):
    train, bad = run, config(cell("no-DS")) or trials(cell("no-DS"))[0]

    def fail(own, *arguments, **keywords):
        if own == bad:
            raise ConfigError("it diverged")
        return train(own, *arguments, **keywords)

    monkeypatch.setattr(tasks, "run", fail)
    with pytest.raises(KgdistilError, match=f"^{cell('no-DS')} trial {bad.run_id[-8:]}: it diverged$"):
        reproduce.work([cell("no-DS"), cell("DS")], "cpu", show=False)
    assert len(read_search(cell("DS"))) == 5, "the other trial, and those of the two others"
    assert [str(c) for c in outstanding([cell("no-DS"), cell("DS")])] == [f"{cell('no-DS')} trial {bad.run_id[-8:]}"]


def test_a_larger_teacher_takes_the_search_of_the_usual_one(small):
    reproduce.work([cell("DS", teacher_size=72)], "cpu", show=False)
    found = read_search(cell("DS"))
    assert sorted(t["config"]["dim"] for t in found.values()) == [4, 4, 64, 64]
    assert config(cell("teacher", 72)).gamma == config(cell("teacher", 64)).gamma
    assert config(cell("DS", teacher_size=72)).teacher == config(cell("teacher", 72)).run_id


def test_a_damaged_search_names_its_line(small):
    reproduce.work([cell("no-DS")], "cpu", show=False)
    path = search_path(cell("no-DS"))
    path.write_text(path.read_text() + "{not json\n")
    with pytest.raises(CheckpointError, match="line 3"):
        config(cell("no-DS"))


def test_a_changed_trial_names_its_line_and_one_without_a_sum_is_taken(small):
    reproduce.work([cell("no-DS")], "cpu", show=False)
    path = search_path(cell("no-DS"))
    first, second = path.read_text().splitlines()
    trials_ = [json.loads(line) for line in (first, second)]
    assert all("sum" in trial for trial in trials_)
    trials_[1]["valid"]["both"]["mrr"] = 0.999
    path.write_text(f"{first}\n{json.dumps(trials_[1])}\n")
    with pytest.raises(CheckpointError, match="line 2: it was damaged or changed since it was written"):
        config(cell("no-DS"))
    del trials_[1]["sum"]  # as earlier releases wrote it
    path.write_text(f"{first}\n{json.dumps(trials_[1])}\n")
    assert read_search(cell("no-DS"))[trials_[1]["id"]]["valid"]["both"]["mrr"] == 0.999


def test_a_seed_shares_the_search_and_the_teacher(small):
    reproduce.work([cell("DS")], "cpu", show=False)
    other = [t for t in outstanding([cell("DS", seed=1)]) if isinstance(t, Task)]
    assert [t.cell.method for t in other] == ["-S2"] and not other[0].trial
    assert other[0].config.seed == 1 and other[0].config.teacher == config(cell("teacher", 64)).run_id


def test_the_command_says_the_cost_first(small, capsys, monkeypatch):
    monkeypatch.setattr(cells, "GRAPHS", ("nations",))
    address = "tuned/nations/TransE/no-DS/4"
    assert reproduce.main([address, "--plan"]) == 0
    out = capsys.readouterr().out
    assert "0 of 1 cells are recorded" in out and address in out and "min" in out
    assert not (small / "results" / "search").exists()
    assert reproduce.main([address]) == 0
    assert reproduce.main([address, "--plan"]) == 0
    assert "1 of 1 cells are recorded" in capsys.readouterr().out


def test_asking_for_nothing_is_an_error(capsys):
    with pytest.raises(SystemExit):
        reproduce.main([])
    assert "nothing asked for" in capsys.readouterr().err


@pytest.mark.parametrize("graph", ["wn18rr", "fb15k-237"])
def test_published_students_are_those_of_the_tables(graph: str, monkeypatch):
    monkeypatch.delenv("KGDISTIL_RESULTS", raising=False)
    for cell in (Cell("tuned", graph, model, "DS", 8) for model in ("TransE", "TransH", "ComplEx", "RotatE")):
        folder = records.results_folder() / "students" / f"{graph}-{cell.model.lower()}-d8"
        assert load_student(folder).run_id == config(cell).run_id, cell


def test_other_seeds_and_teachers_publish_nothing(small):
    graph = load("nations")
    model = build_model("TransE", graph.num_entities, graph.num_relations, 8)
    record = {"test": {"both": {"mrr": 0.5}}}
    done = SimpleNamespace(load=lambda graph: model, id="a-run", config=SimpleNamespace(group=0), record=record)
    for other, there in (({"seed": 1}, False), ({"teacher_size": 128}, False), ({}, True)):
        tasks.publish(replace(cell("DS", 8), **other), done, graph)
        assert (small / "results" / "students").exists() is there


def test_what_is_recorded_is_trained_again_when_asked(small, monkeypatch, caplog):
    mine, calls = cell("DS"), []
    monkeypatch.setattr(reproduce, "parse", lambda text: mine)
    monkeypatch.setattr(reproduce, "print_plan", lambda *_: None)
    assert reproduce.main(["it"]) == 0
    paths = {c: records.record_path(config(c).run_id) for c in with_needs([mine])}
    before = {c: (path.stat().st_mtime_ns, records.read_record(path)["test"]) for c, path in paths.items()}
    train = run
    monkeypatch.setattr(tasks, "run", lambda own, *rest, **how: calls.append(own.run_id) or train(own, *rest, **how))
    assert reproduce.main(["it"]) == 0 and calls == [], "without --again nothing is left to do"
    with caplog.at_level("INFO", logger="kgdistil"):
        assert reproduce.main(["it", "--again"]) == 0
    assert calls == [config(mine).run_id], "what it needs is there"
    after = {c: (path.stat().st_mtime_ns, records.read_record(path)["test"]) for c, path in paths.items()}
    assert [c for c in paths if after[c][0] != before[c][0]] == [mine] and after[mine][1] == before[mine][1]
    assert f"again: {mine}, test MRR" in caplog.text
    calls.clear()
    shutil.rmtree(records.runs_folder() / "models")
    reproduce.main(["it", "--again"])
    assert set(calls) == {config(c).run_id for c in with_needs([mine])}, "weights that are gone are made again"
    assert records.read_record(paths[mine])["test"] == before[mine][1]


def test_the_plan_says_what_all_would_cost(small, capsys):
    reproduce.print_plan([cell("no-DS")], "cpu", 1, 1, True)
    assert "0 of 1 cells are recorded.\nFrom nothing they would take about" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--jobs", "0"], "'0' is no number of runs at a time: give 1 to 1,000"),
        (["--jobs", "-1"], "'-1' is no number of runs at a time"),
        (["--seed", "3"], "--seed is of --table and --figure: a cell says it itself"),
        (["--models", "RotatE"], "--models is of --table and --figure"),
        (["--protocol", "tuned"], "--protocol is of --table and --figure"),
    ],
)
def test_options_that_cannot_be_are_one_line(given: list[str], why: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        reproduce.main(["tuned/wn18rr/RotatE/DS/8", *given, "--plan"])
    assert why in capsys.readouterr().err


def test_a_device_that_is_not_there_is_said_first() -> None:
    with pytest.raises(DeviceError, match="device is 'foo'"):
        reproduce.main(["tuned/wn18rr/RotatE/DS/8", "--device", "foo", "--plan"])
