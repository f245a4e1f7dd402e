"""Probabilities that are right as often as they say, and answer sets that hold the answer as often as was asked."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from kgdistil import cli
from kgdistil.answer.calibration import Calibration, log_softmax
from kgdistil.answer.format import read_header, write_header
from kgdistil.answer.student import load_student
from kgdistil.config import make_config
from kgdistil.errors import BusyError, CheckpointError, ConfigError
from kgdistil.graph import Graph
from kgdistil.models import build_model
from kgdistil.paper.bench.calibration import brier, error, first_answers
from kgdistil.students import calibration
from kgdistil.students.calibration import BEST, EVERYTHING, Asked, ask, fit, tables
from kgdistil.students.labelled import Labelled, load_labelled
from kgdistil.training.loop import train


@pytest.fixture(scope="module")
def trained(umls: Graph, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """A student of UMLS, calibrated, of a graph that has no test triples."""
    folder = tmp_path_factory.mktemp("run")
    config = make_config(
        dataset="umls", model="ComplEx", dim=16, epochs=12, patience=0, lr=0.05, batch_size=128, negatives=8
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KGDISTIL_RESULTS", str(folder / "results"))
        patch.setenv("KGDISTIL_RUNS", str(folder / "runs"))
        model = train(config, umls, folder / "model").load(umls)
    found = Labelled(model, replace(umls, test=umls.test[:0])).quantised("int8")
    found.calibrate()
    return found


@pytest.fixture(scope="module")
def student(trained: Labelled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "student"
    trained.save(folder)
    return folder


def held_out(trained: Labelled, umls: Graph) -> tuple[list[Asked], Calibration]:
    runtime = trained.student()
    known = np.concatenate([umls.train.numpy(), umls.valid.numpy()])
    return list(ask(runtime, known, umls.test.numpy())), Calibration(runtime.header["calibration"])


def test_probabilities_are_nearer_to_the_truth_than_the_score_says(trained: Labelled, umls: Graph) -> None:
    asked, table = held_out(trained, umls)
    before, after, true = first_answers(asked, table)
    assert error(after, true) < 0.05 < error(before, true)
    assert brier(after, true) < 0.9 * brier(before, true)
    assert brier(after, true) < 0.9 * brier(np.full(len(true), true.mean()), true)  # they tell answers apart


def test_a_probability_never_falls_as_the_score_rises_and_nothing_is_certain(trained: Labelled) -> None:
    table, x = Calibration(trained.calibration), np.linspace(-40, 0, 500)
    for side in ("head", "tail"):
        for relation in range(trained.graph.num_relations):
            p = table.probability(x, relation, side)
            assert (np.diff(p) >= 0).all() and 0 < p[0] < p[-1] < 1


def test_a_student_answers_with_the_probabilities_and_sets_that_were_fitted(student: Path, umls: Graph) -> None:
    """The graph's test triples are not the student's: to it their answers are new."""
    found = load_student(student)
    asked, table = held_out(load_labelled(student), umls)
    for side, (given, wanted) in zip(asked, (("tail", 0), ("head", 2))):
        assert side.side != given
        bound = table.least(0.8)
        for i in range(0, len(umls.test), 40):
            triple = umls.test[i].tolist()
            query = {given: triple[2 - wanted], "relation": triple[1], "by": "id", "ids": True, "new": True}
            answers = found.predict(**query, k=20, probability=True)
            p = table.probability(side.x[i, :20], triple[1], side.side)
            np.testing.assert_allclose(answers["score"], side.score[i, : len(answers)], atol=1e-5)
            np.testing.assert_allclose(answers["probability"], p[: len(answers)], atol=1e-4)
            members = found.predict(**query, coverage=0.8)["id"]
            assert (triple[wanted] in members) == (side.own[i] >= bound(triple[1], side.side))
            assert members == found.predict(**query, k=len(members) + 3)["id"][: len(members)]


def test_sets_hold_the_answer_as_often_as_asked(trained: Labelled, umls: Graph) -> None:
    asked, table = held_out(trained, umls)
    for level in (0.8, 0.9, 0.95):
        bound = table.least(level)
        inside = [own >= bound(r, side.side) for side in asked for own, r in zip(side.own, side.relation.tolist())]
        assert abs(np.mean(inside) - level) < 0.04


def made_up(n: int, seed: int) -> Asked:
    """Two relations of which one is far easier, and a third that is rare."""
    draw = np.random.default_rng(seed)
    relation = draw.choice(3, n, p=[0.6, 0.38, 0.02])
    score = np.sort(draw.normal(0, 2, (n, BEST)))[:, ::-1]
    x, each = log_softmax(score, score), np.array([0.2, 4.0, 1.0])[relation]
    true = draw.random((n, BEST)) < np.exp(x) ** 2
    return Asked("tail", relation, np.ones(n, bool), score, x, true, -draw.exponential(each))


def test_each_relation_with_enough_triples_is_covered_by_itself() -> None:
    told = tables([replace(made_up(4000, 1), side="head"), made_up(4000, 2)], 3)
    assert len(told["tables"]) == 6 and told["tail"][2] == 3  # the rare one has the table that the others share
    table, fresh = Calibration(told), made_up(20_000, 3)
    for relation in (0, 1):
        own = fresh.own[fresh.relation == relation]
        for level in (0.5, 0.8, 0.9, 0.95, 0.99):
            assert abs((own >= table.least(level)(relation, "tail")).mean() - level) < 0.02
    p = np.stack([table.probability(x, r, "tail") for x, r in zip(fresh.x, fresh.relation.tolist())])
    # p falls with x: what is drawn is the square of the softmax.
    assert np.abs(p - np.exp(fresh.x) ** 2).mean() < 0.005 and error(p.ravel(), fresh.true.ravel()) < 0.005
    between = table.least(0.8512), table.least(0.86)  # the next level up
    assert between[0](1, "tail") == between[1](1, "tail") < table.least(0.85)(1, "tail")


def test_few_triples_give_sets_of_everything_rather_than_too_small_ones() -> None:
    few = made_up(40, 4)
    told = tables([replace(few, side="head"), few], 3)
    assert Calibration(told).least(0.99)(0, "tail") == EVERYTHING < Calibration(told).least(0.9)(0, "tail")


def test_answers_that_no_score_can_reach_are_in_no_set_but_everything() -> None:
    """A triple of a thing with itself, of a relation that has none such in training, scores minus infinity."""
    few = made_up(2000, 4)
    few.own[: len(few.own) // 2] = -np.inf
    told = tables([replace(few, side="head"), few], 3)
    json.dumps(told, allow_nan=False)
    assert Calibration(told).least(0.9)(0, "tail") == EVERYTHING


def test_what_the_graph_says_is_certain(student: Path) -> None:
    found = load_student(student)
    head, relation, _ = found.triples.of("train")[7].tolist()
    answers = found.predict(head=head, relation=relation, by="id", ids=True, k=50, probability=True)
    known = np.isin(answers["id"], found.known(head, relation, "tail"))
    p = np.array(answers["probability"])
    assert known.any() and (p[known] == 1).all() and (p[~known] < 1).all()
    assert (np.diff(p[~known]) <= 0).all()


def test_a_set_that_is_cut_says_so(student: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = load_student(student)
    query: dict[str, Any] = {"head": [3, 4], "relation": 2, "by": "id", "coverage": 0.99}
    with caplog.at_level(logging.WARNING, "kgdistil"):
        whole = found.predict(**query)
        assert not caplog.records
        cut = found.predict(**query, k=3)
    assert len(cut) == 6 < len(whole) and cut["entity"][:3] == whole["entity"][:3]
    (line,) = caplog.messages
    assert line.startswith("2 of 2 answer sets have more than 3 answers")


@pytest.mark.parametrize("coverage", [0, 1, 0.995, -0.5, True, float("nan"), "0.9"])
def test_a_coverage_that_cannot_be_is_refused(student: Path, coverage: Any) -> None:
    with pytest.raises(ConfigError, match="coverage is .*above 0 and at most 0.99"):
        load_student(student).predict(head=0, relation=0, by="id", coverage=coverage)


def test_a_relation_has_no_probability(student: Path) -> None:
    for asked in ({"probability": True}, {"coverage": 0.9}):
        with pytest.raises(ConfigError, match="the relation is asked for"):
            load_student(student).predict(head=0, tail=1, by="id", **asked)


def damaged(told: dict[str, Any], how: str) -> Any:
    table = told["tables"][0]
    match how:
        case "a text":
            return "yes"
        case "no tables":
            return {**told, "tables": []}
        case "one level less":
            return {**told, "levels": told["levels"][1:]}
        case "another graph":
            return {**told, "head": told["head"][1:], "tail": told["tail"][1:]}
        case "a table beyond":
            return {**told, "head": [99, *told["head"][1:]]}
        case "falling":
            return {**told, "tables": [{**table, "p": table["p"][::-1]}, *told["tables"][1:]]}
        case "above one":
            return {**told, "tables": [{**table, "p": [*table["p"][:-1], 1.5]}, *told["tables"][1:]]}
        case "a knot less":
            return {**told, "tables": [{**table, "x": table["x"][1:]}, *told["tables"][1:]]}
        case "a number that is none":
            return {**told, "tables": [{**table, "sets": [None, *table["sets"][1:]]}, *told["tables"][1:]]}
        case _:
            return {**told, "best": 0}


@pytest.mark.parametrize(
    "how",
    [
        "a text",
        "no tables",
        "one level less",
        "another graph",
        "a table beyond",
        "falling",
        "above one",
        "a knot less",
        "a number that is none",
        "none best",
    ],
)
def test_a_damaged_table_is_refused_in_one_line(trained: Labelled, tmp_path: Path, how: str) -> None:
    trained.save(tmp_path / "s")
    header = read_header(tmp_path / "s")
    write_header(tmp_path / "s", {**header, "calibration": damaged(header["calibration"], how)})
    with pytest.raises(CheckpointError, match="student.json is damaged .*calibration") as caught:
        load_student(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_a_folder_of_before_is_refused_until_it_is_calibrated(trained: Labelled, tmp_path: Path) -> None:
    call = lambda *args: CliRunner().invoke(cli.main, [str(x) for x in args])
    replace(trained, calibration=None).save(tmp_path / "s")
    assert "calibration" not in read_header(tmp_path / "s")
    query = ["predict", tmp_path / "s", "--head", "age_group", "--relation", "interacts_with"]
    for option in (["--probability"], ["--coverage", "0.9"]):
        refused = call(*query, *option)
        assert refused.exit_code == 1 and refused.stdout == "" and len(refused.stderr.splitlines()) == 1
        assert "kgdistil calibrate" in refused.stderr
    assert call(*query).exit_code == 0
    done = call("calibrate", tmp_path / "s")
    assert done.exit_code == 0 and "2 tables" in done.stdout
    assert read_header(tmp_path / "s")["calibration"] == json.loads(json.dumps(trained.calibration))
    rows = json.loads(call(*query, "--probability", "--json").stdout)
    assert len(rows) == 10 and all(0 < row["probability"] <= 1 for row in rows)
    assert "(probability: " in call(*query, "--probability", "--coverage", 0.5).stdout


def test_a_model_and_its_folder_carry_the_same_table(trained: Labelled, student: Path) -> None:
    again = load_labelled(student)
    assert again.calibration == trained.calibration and again.quantised("float16").calibration is None
    query: dict[str, Any] = {"head": 5, "relation": 1, "by": "id", "k": 4}
    wanted = load_student(student).predict(**query, probability=True)["probability"]
    assert again.predict(**query, probability=True)["probability"].tolist() == wanted
    assert "probability" not in again.predict(**query)
    with pytest.raises(ConfigError, match="never calibrated"):
        again.quantised("float16").predict(**query, coverage=0.9)


def test_few_validation_triples_or_none_calibrate_nothing(
    tiny_graph: Graph, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = Labelled(build_model("ComplEx", 30, 4, 4, seed=1), tiny_graph)
    with caplog.at_level(logging.INFO, "kgdistil"):
        found.calibrate()
    assert found.calibration is None and "20 validation triples calibrate nothing" in caplog.text
    nothing = replace(tiny_graph, **dict.fromkeys(("train", "valid", "test"), tiny_graph.test[:0]))
    with pytest.raises(ConfigError, match="came without its triples"):
        fit(replace(found, graph=nothing).student())


def test_only_validation_triples_are_fitted_to(trained: Labelled, umls: Graph) -> None:
    """Other test triples, the same table; and a draw of many validation triples is the same each time."""
    assert replace(trained, graph=umls).student().header["calibration"] == fit(replace(trained, graph=umls).student())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "MOST", 100)
        one, two = fit(trained.student()), fit(trained.student())
    assert one == two and one["queries"] == 200


def test_the_picture_shows_what_was_measured(trained: Labelled, umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("seaborn")
    from kgdistil.paper import plots
    from kgdistil.paper.bench import calibration as bench

    monkeypatch.setattr(bench, "load_student", lambda name: replace(trained, graph=umls).student())
    monkeypatch.setattr(bench, "SIZED", 30)
    row = bench.measure("umls")
    assert json.loads(json.dumps(row)) == row
    assert [found["feature"] for found in row["features"]] == ["score", "softmax", "gap to the tenth", "rank"]
    both = [found for found in row["sets"] if found["side"] == "both"]
    assert [found["asked"] for found in both] == list(bench.COVERAGES)
    assert both[0]["mean"] < both[1]["mean"] < both[2]["mean"] < umls.num_entities
    left, right = plots.calibration([row]).axes
    tenths = row["test"]["both"]["after"]["tenths"]
    drawn = left.lines[2].get_xydata()
    assert drawn.tolist() == [[one["probability"], one["true"]] for one in tenths]
    assert right.lines[0].get_ydata().tolist() == [found["median"] for found in both]


def test_what_is_added_while_a_folder_is_calibrated_is_refused_and_not_lost(
    trained: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    trained.save(folder)
    other = load_student(folder)
    new, real = [("new", other.relations[0], other.entities[0])], calibration.fit

    def meanwhile(student: Any) -> dict[str, Any]:
        with pytest.raises(BusyError):
            other.add(new)
        return real(student)

    monkeypatch.setattr(calibration, "fit", meanwhile)
    calibration.calibrate(folder)
    other.add(new)
    calibration_kept = load_student(folder)
    assert "new" in calibration_kept.entities and "calibration" in calibration_kept.header
