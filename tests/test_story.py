"""What the notebooks show besides pictures, on graphs and numbers that can be worked out by hand."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

import kgdistil
from kgdistil import records
from kgdistil.config import make_config
from kgdistil.distillation import recipes
from kgdistil.distillation.statistics import SAME
from kgdistil.paper import story
from kgdistil.paper.notebooks import ablation, by_teacher, single_stage, teacher_only
from kgdistil.training.loop import Run


def finished(role: str, valid: float, test: float, **values: object) -> Run:
    """A run that has nothing but its MRR."""
    config = make_config(role=role, **values)
    metrics = {"mrr": test, "hits@1": test, "hits@10": test}
    return Run(config, {"valid": {"both": {"mrr": valid}}, "test": {"both": metrics}, "epochs": 1}, None)


def numbers(text: str) -> list[str]:
    """The numbers of a sentence, in its order."""
    return re.findall(r"\d+(?:\.\d+)?", text)


@pytest.fixture
def model(tiny_graph):
    return kgdistil.build_model("RotatE", tiny_graph.num_entities, tiny_graph.num_relations, 4)


def test_raw_and_filtered_rank_count_the_entities_above(model, tiny_graph):
    raw, filtered = story.tail_ranks(model, tiny_graph, tiny_graph.test)
    known = {tuple(row) for row in tiny_graph.known.tolist()}
    for (h, r, t), one, other in zip(tiny_graph.test.tolist(), raw, filtered):
        with torch.no_grad():
            scores = model.score_tails(torch.tensor([h]), torch.tensor([r]))[0]
        above = [e for e in range(tiny_graph.num_entities) if scores[e] > scores[t]]
        assert one == 1 + len(above)
        assert other == 1 + sum((h, r, e) not in known for e in above)


def test_candidates_name_the_answer_and_what_is_left_out(model, tiny_graph):
    h, r, t = tiny_graph.test[0].tolist()
    frame = story.candidates(model, tiny_graph, (h, r, t), k=tiny_graph.num_entities)
    known = {e for a, b, e in tiny_graph.known.tolist() if (a, b) == (h, r)}
    assert list(frame["tail"][frame[""] == "the answer"]) == [tiny_graph.readable(t)]
    assert set(frame["tail"][frame[""] == "true too: left out"]) == {tiny_graph.readable(e) for e in known - {t}}
    assert (frame["score"].astype(float).diff().dropna() <= 0).all()


def test_a_corruption_replaces_one_side():
    triples = torch.tensor([[0, 0, 1], [2, 1, 3]])
    rows = story.corrupted(triples, torch.tensor([[7, 8], [9, 6]]), torch.tensor([[True, False], [False, True]]))
    assert rows.tolist() == [[0, 0, 7], [8, 0, 1], [9, 1, 3], [2, 1, 6]]
    assert triples.tolist() == [[0, 0, 1], [2, 1, 3]]


def test_negatives_are_no_known_triples(model, tiny_graph):
    frame = story.negatives(model, tiny_graph, tuple(tiny_graph.test[0].tolist()))
    known = {
        (tiny_graph.readable(h), tiny_graph.relations[r], tiny_graph.readable(t))
        for h, r, t in tiny_graph.known.tolist()
    }
    rows = [tuple(row) for row in frame[["head", "relation", "tail"]].itertuples(index=False)]
    assert rows[0] in known and not known & set(rows[1:])


def test_shares_of_ranks_hold_their_upper_ends():
    greater = np.array([[0, 1], [2, 3], [9, 10], [99, 100]], dtype=np.int32)
    shares = story.rank_shares(kgdistil.Ranks(greater, np.zeros_like(greater)))
    assert shares["head"].tolist() == [25, 25, 25, 25, 0]  # ranks 1, 3, 10, 100
    assert shares["tail"].tolist() == [0, 25, 25, 25, 25]  # ranks 2, 4, 11, 101


@pytest.mark.parametrize("name, inside", [("RotatE", True), ("TransE", False)])
def test_a_soft_label_is_a_probability_or_a_score(tiny_graph, name, inside):
    config = make_config(model=name, dim=4)
    sizes = (tiny_graph.num_entities, tiny_graph.num_relations, 4)
    frame = story.soft_labels(kgdistil.build_model(name, *sizes), tiny_graph, config)
    assert (frame["triple"] == "true").sum() == len(tiny_graph.train)
    assert frame["label"].between(0, 1).all() == inside


def test_the_sentence_on_soft_labels_follows_the_numbers():
    def said(true, wrong, loss="cross-entropy"):
        kind = ["true"] * len(true) + ["corrupted"] * len(wrong)
        return story.what_labels_say(pd.DataFrame({"triple": kind, "label": [*true, *wrong]}), loss)

    sure, true, wrong = said([0.99] * 9, [0.01] * 9), said([0.6] * 9, [0.01] * 9), said([0.99] * 9, [0.4] * 9)
    assert [re.findall(r"\d+%", text) for text in (sure, true, wrong)] == [
        ["100%", "100%"],
        ["0%", "100%"],
        ["100%", "0%"],
    ]
    ends = [text.partition(":")[2] for text in (sure, true, wrong)]
    assert len(set(ends)) == 3 and "corrupted" not in ends[1] and "corrupted" in ends[2], "which has more to say"
    assert re.findall(r"\d+%", said([-9.0] * 9, [-1.0] * 9, "margin")) == ["100%", "1%"]


@pytest.mark.parametrize("alone", [0.5, 0.7, 0.601])
def test_the_alpha_is_chosen_by_validation_and_judged_by_test(alone):
    one = finished("stage1", 0.5, 0.9, alpha=0.3, teacher="t")
    two = finished("stage1", 0.6, 0.6, alpha=0.7, teacher="t")
    said = story.of_alphas({"no-DS": finished("no-ds", 0.5, alone), "α = 0.3": one, "α = 0.7": two})
    assert numbers(said) == ["0.7", "0.600", f"{alone:.3f}", "0.600", "0.900"]
    assert f"{story.against(0.6 - alone)} the {alone:.3f}" in said


def test_a_difference_has_a_side_from_where_it_is_worth_naming():
    assert len({story.against(x) for x in (0.01, -0.01, 0.0)}) == 3
    assert story.against(SAME / 2) == story.against(-SAME / 2) == story.against(0.0)
    assert story.against(2 * SAME) == story.against(0.1) != story.against(-0.1)


def test_an_alpha_of_zero_is_told_for_what_it_is():
    runs = {"no-DS": finished("no-ds", 0.5, 0.5), "α = 0": finished("stage1", 0.5, 0.5, alpha=0, teacher="t")}
    taught = runs | {"α = 0": finished("stage1", 0.5, 0.5, alpha=0.5, teacher="t")}
    assert len(story.of_alphas(runs)) > len(story.of_alphas(taught)), "that it does not listen is said"


def test_the_ablation_says_above_and_below():
    runs = {"DS": 0.5, "-S1": 0.4, "-S2": 0.6, "no-DS": 0.502}
    said = story.of_ablation({name: finished("no-ds", 0.5, mrr) for name, mrr in runs.items()})
    for name in ("-S1", "-S2", "no-DS"):
        assert f"{story.against(runs['DS'] - runs[name])} {name} ({runs[name]:.3f})" in said


def test_a_table_that_is_missing_or_empty_has_not_been_run(tmp_path, monkeypatch):
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "figure2.csv").write_text("\n")  # as an empty frame is written
    assert story.recorded("figure2").empty and story.recorded("table6").empty
    assert "not been run" in story.of_figure2(story.recorded("figure2"))
    assert "not been run" in story.of_table6(story.recorded("table6"))
    with pytest.raises(kgdistil.DataError, match="make bench"):
        story.benchmark()


@pytest.fixture
def table6():
    rows = [("RotatE", dim, method) for dim in (16, 8) for method in ("DS", "-S1", "-S2")]
    frame = pd.DataFrame(rows, columns=["model", "dim", "method"]).assign(
        protocol="tuned", dataset="wn18rr", metric="mrr", run="x", paper=[0.4, 0.3, 0.2, 0.2, 0.1, 0.1]
    )
    return frame.assign(ours=[0.4, 0.5, None, None, None, None])


def test_table_6_shows_what_has_not_been_run(table6):
    frame = story.table6(table6)
    assert list(frame.columns) == [(16, "paper"), (16, "ours"), (8, "paper"), (8, "ours")]
    assert frame.loc[("RotatE", "-S1"), (16, "ours")] == "0.500"
    assert frame.loc[("RotatE", "-S2"), (16, "ours")] == "not run"


def test_table_6_is_counted(table6):
    said = story.of_table6(table6)
    assert re.findall(r"(\d+) of (\d+)", said) == [("2", "6"), ("2", "2"), ("2", "2"), ("0", "1")]
    assert said.count("not been run") == 1, "of -S2 nothing has"


def test_figure_2_names_the_best_teacher():
    frame = pd.DataFrame(
        {
            "teacher_dim": [16, 64, 16, 64],
            "dim": [8, 8, 4, 4],
            "mrr": [0.3, 0.4, 0.2, 0.201],
            "teacher_mrr": [0.5, 0.6, 0.5, 0.6],
        }
    )
    said = story.of_figure2(frame)
    large, small = said.split("; ") if "; " in said else said.rsplit(", and ", 1)
    assert [x for x in numbers(large) if "." in x] == ["0.400", "0.100"] and "64" in large
    assert [x for x in numbers(small) if "." in x] == ["0.201"], "no spread where it is not worth naming"
    table = story.figure2_table(frame.assign(alone=[0.1, 0.1, 0.05, 0.05]))
    assert table.loc["student, d = 4"].tolist() == ["0.050", "0.200", "0.201"]
    assert table.loc["the teacher itself"].tolist() == ["", "0.500", "0.600"]


def test_the_benchmark_is_told_as_recorded(monkeypatch):
    monkeypatch.setenv("KGDISTIL_RESULTS", str(records.root() / "results"))
    report = story.benchmark()
    ratio = next(r for r in report["ratios"] if (r["peer"], r["model"], r["dim"]) == ("PyKEEN", "ComplEx", 8))
    shown = story.ratios(report, "training").loc[(8, "ComplEx"), "PyKEEN"]
    assert float(shown.removesuffix("×")) == pytest.approx(ratio["training"], rel=0.05)
    step = report["floors"][0]["step_seconds"]
    assert story.floors(report)["step, ms"].iloc[0] == f"{1000 * step:.2f}"


@pytest.mark.parametrize("repeats", [0, "many", True])
def test_impossible_repeats(repeats):
    with pytest.raises(kgdistil.ConfigError, match="repeats is"):
        story.measure(repeats=repeats)


def test_live_measurement_compares_with_the_teacher():
    frame = story.measure("nations", "TransE", 4, 16, repeats=1)
    assert frame["bytes per entity"].to_dict() == {"teacher": 64, "student": 16}
    assert frame.loc["teacher", "times faster"] == 1 and (frame["milliseconds"] > 0).all()


# ---- the recipes behind them ----------------------------------------------------------------------------------------
def test_ablation_gives_every_student_the_same_updates():
    found = ablation(epochs=30)
    ds = found["first"].epochs + found["DS"].epochs
    assert {found[name].epochs for name in ("no-DS", "-S1", "-S2")} == {ds} == {60}
    assert found["-S1"].student is None and found["DS"].student == found["first"].run_id
    assert {c.teacher for n, c in found.items() if c.role in ("stage1", "stage2")} == {found["teacher"].run_id}
    assert found["-S1"].lr == found["first"].lr > found["DS"].lr


def test_students_of_one_stage_differ_in_alpha_alone():
    found = single_stage(alphas=[0, 1])
    different = [c.model_dump(exclude={"alpha"}) for name, c in found.items() if name.startswith("α")]
    assert list(found) == ["teacher", "no-DS", "α = 0", "α = 1"] and different[0] == different[1]
    assert found["no-DS"].epochs == found["α = 0"].epochs


def test_teacher_is_that_of_the_distillation():
    assert teacher_only() == recipes.distillation().teacher


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: teacher_only(dim=0), "dim is 0"),
        (lambda: single_stage(alphas=[2]), "alpha is 2"),
        (lambda: single_stage(alphas=[]), "alphas is empty"),
        (lambda: by_teacher(dims=[]), "dims is empty"),
        (lambda: by_teacher(teacher_dims=["large"]), "teacher_dim is 'large'"),
        (lambda: ablation(beta=-1), "beta is -1"),
    ],
)
def test_impossible_parameter_is_one_line(call, says):
    with pytest.raises(kgdistil.ConfigError) as caught:
        call()
    assert says in str(caught.value) and "\n" not in str(caught.value)
