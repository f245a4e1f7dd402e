"""Settings by a graph's figures, and the share that a student keeps: the rule, how it is fitted, who takes it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import kgdistil
from kgdistil import cli
from kgdistil.compress.size import floats
from kgdistil.distillation import budget, recipes, rule, scale, search
from kgdistil.distillation.budget import plan
from kgdistil.errors import ConfigError
from kgdistil.graph import Graph
from kgdistil.paper import fitting

NEAR, FAR = ({"entities": x, "relations": 10.0, "triples per entity": 5.0} for x in (1e3, 1e6))
OURS, OTHER = "ComplEx", "ReciprocalComplEx"
KNOWN = {
    "models": [OURS, OTHER],
    "scale": {"entities": 1.0, "relations": 0.5, "triples per entity": 1.0},
    "graphs": {
        name: {
            "figures": figures,
            "model": OURS if name == "near" else OTHER,
            "settings": {
                "teacher": {"lr": lr, "penalty": penalty, "relation_weight": weight, "epochs": epochs},
                "stage 1": {"lr": lr, "penalty": 0.0, "relation_weight": 0.0, "epochs": 4, "alpha": alpha},
                "no-DS": {"lr": lr, "penalty": 0.0, "relation_weight": 0.0, "epochs": 6},
            },
        }
        for name, figures, lr, penalty, weight, epochs, alpha in (
            ("near", NEAR, 0.1, 0.0, 1.0, 10, 0.2),
            ("far", FAR, 0.4, 0.1, 4.0, 40, 0.6),
        )
    },
    "share": [0.02, 0.5],
}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(rule, "RULE", tmp_path / "rule.json")


def test_a_graph_like_one_that_was_searched_takes_its_settings() -> None:
    for name, figures in (("near", NEAR), ("far", FAR)):
        found = rule.settings(figures, KNOWN)
        assert found == KNOWN["graphs"][name]["settings"]


def test_a_graph_between_two_takes_what_lies_between() -> None:
    found = rule.settings(NEAR | {"entities": math.sqrt(1e3 * 1e6)}, KNOWN)["stage 1"]
    assert found["lr"] == 0.2 and found["alpha"] == 0.4 and found["epochs"] == 4
    teacher = rule.settings(NEAR | {"entities": 1e3 * math.e}, KNOWN)["teacher"]
    assert teacher["lr"] == pytest.approx(0.1, abs=0.01) and teacher["relation_weight"] == 1.0
    nowhere = rule.settings({"entities": 1e12, "relations": 1.0, "triples per entity": 5.0}, KNOWN)
    assert nowhere["teacher"] == KNOWN["graphs"]["far"]["settings"]["teacher"]


def test_the_mean_of_a_setting() -> None:
    assert rule.mean("lr", [0.1, 0.4], [1, 1]) == 0.2 and rule.mean("alpha", [0.2, 0.8], [3, 1]) == 0.35
    assert rule.mean("relation_weight", [0.0, 1.0, 1.0], [1.5, 1, 1]) == 1.0
    assert rule.mean("penalty", [0.0, 0.0], [1, 1]) == 0 and rule.mean("penalty", [0.0, 0.1], [1, 1]) == 0.001
    assert rule.mean("epochs", [10, 40], [1, 1]) == 20


def test_a_penalty_is_that_of_its_regulariser() -> None:
    parts = [{"regulariser": x, "penalty": y} for x, y in (("n3", 0.01), ("dura", 0.1), ("n3", 0.04))]
    assert rule.together(parts, [1, 1.5, 1]) == {"regulariser": "n3", "penalty": 0.02}
    assert rule.together(parts, [1, 3, 1]) == {"regulariser": "dura", "penalty": 0.1}


def test_the_kind_is_that_of_the_graphs_that_count_most(tiny_graph: Graph, umls: Graph) -> None:
    assert rule.kind(tiny_graph) is None
    known = json.loads(json.dumps(KNOWN))
    for name, model in (("near", OURS), ("near", OTHER)):
        known["graphs"][name]["model"] = model
        rule.RULE.write_text(json.dumps(known))
        assert rule.kind(tiny_graph) == model and rule.kind(umls) is None


def test_a_budget_buys_the_kind_of_the_rule_where_it_fits(umls: Graph) -> None:
    graph = replace(umls, name="own", sha256="1" * 64)
    before = plan(graph, "16B/entity")
    known = json.loads(json.dumps(KNOWN))
    for other in known["graphs"].values():
        other["model"] = OTHER
    rule.RULE.write_text(json.dumps(known))
    made = plan(graph, "16B/entity")
    assert (before.model, made.model) == (OURS, OTHER) and made.bytes > before.bytes
    assert (made.dim, made.precision, made.rank) == (before.dim, before.precision, before.rank)
    assert plan(graph, before.bytes).model == OURS  # its relations would not fit
    done = kgdistil.distil(graph, dim=4, teacher_dim=4, precision="1bit", epochs=1, progress=False)
    assert {run.config.model for run in done.runs.values()} == {OTHER}


def test_a_budget_leaves_entities_of_many_triples_whole(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = replace(umls, name="own", sha256="2" * 64)
    rule.RULE.write_text(json.dumps(KNOWN))
    plain = plan(graph, "16B/entity")
    assert 0.028 < budget.frequency(graph, 1) < 0.03 < budget.FREQUENT and not plain.whole
    monkeypatch.setattr(budget, "FREQUENT", 0.02)
    made = plan(graph, "16B/entity")
    assert (made.dim, made.precision, made.rank, made.teacher_dim, made.whole) == (60, "1bit", 0, 60, True)
    shared = budget.shared_bytes(graph, made.model, 60, "1bit")
    assert 15 * 135 < made.bytes - shared <= 16 * 135 and "those of most triples whole" in str(made)
    assert not plan(umls, "16B/entity").whole, "a graph with recipes of its own"
    for limit in range(4_000, 100_000, 4_000):  # all of it: relations and codebooks grow with the floats
        assert plan(graph, limit).bytes <= limit
    assert {plan(graph, limit).whole for limit in range(4_000, 100_000, 4_000)} == {False, True}
    with monkeypatch.context() as patch:
        patch.setattr(scale, "LARGE", 100)
        many = plan(graph, "16B/entity")
        assert (many.dim, many.precision, many.rank, many.teacher_dim, many.whole) == (60, "4bit", 30, 60, True)
        assert 15 * 135 < many.bytes - budget.shared_bytes(graph, many.model, 60, "4bit", 30) <= 16 * 135
        assert f"dimension 60 and rank 30, 4bit, those of most triples whole: {many.bytes:,} bytes" in str(many)
        patch.setattr(scale, "MANY", len(graph.train))
        assert not plan(graph, "16B/entity").rank, "where a pass takes minutes all is as ever"
    low = plan(graph, "64B/entity")
    assert low.rank and not low.whole, "of low rank, codes alone did better"
    with monkeypatch.context() as patch:  # but of many entities
        patch.setattr(scale, "LARGE", 100)
        found = plan(graph, "64B/entity")
        assert (found.precision, found.rank, found.dim, found.whole) == ("4bit", 120, 240, True)
    plain = replace(plain, dim=128, precision="2bit", teacher_dim=128)
    wide = budget.with_whole(graph, plain, 64 * 135, True)
    assert floats(wide.model, wide.dim, wide.rank) <= budget.WIDEST and wide.whole and "stay whole" in wide.why
    done = kgdistil.distil(graph, dim=60, teacher_dim=60, precision="1bit", whole=True, epochs=1, progress=False)
    assert done.runs["stage 1"].config.whole == done.runs["no-DS"].config.whole == 1
    assert [row["bytes per entity"] for row in done.student.about["metrics"]] == [480, 16, 16, 16]
    kept = done.student.student().weights
    assert kept.whole.tolist() == [int(umls.train[:, [0, 2]].flatten().bincount().argmax())]
    assert kept.bytes == made.bytes
    with pytest.raises(ConfigError, match="no room for one: codes take at least 15 bytes an entity"):
        kgdistil.distil(graph, dim=4, teacher_dim=4, precision="1bit", whole=True)
    with pytest.raises(ConfigError, match="whole is True: it takes a precision of 4bit, 2bit, 1bit and the teacher's"):
        kgdistil.distil(graph, dim=4, precision="int8", whole=True)


def test_a_student_of_low_rank_has_four_bits_a_number_and_whole_ones_are_for_hubs(
    umls: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = replace(umls, name="own", sha256="2" * 64)
    rule.RULE.write_text(json.dumps(KNOWN))
    rows = ["graph,entities,relations,triples per entity,model,dim,group,rank,bytes,kept,rounded,hubs"]
    rows += ["near,135,46,38,ComplEx,64,1,32,16,0.92,0.6,1", "far,9000,2,3,ComplEx,64,2,64,16,0.9,0.6,"]
    (tmp_path / "kept.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(budget.advice, "KEPT", tmp_path / "kept.csv")
    without = plan(graph, "16B/entity")
    assert (without.dim, without.precision, without.rank) == (64, "4bit", 32) and "on far," in without.expected
    monkeypatch.setattr(budget, "FREQUENT", 0.02)
    assert not budget.hubs(graph) and plan(graph, "16B/entity") == without, "of few entities"
    monkeypatch.setattr(scale, "LARGE", 100)
    assert budget.hubs(graph)
    many = plan(graph, "16B/entity")
    assert (many.dim, many.precision, many.rank, many.whole) == (60, "4bit", 30, True) and "on near," in many.expected


def test_a_search_may_leave_entities_whole(umls: Graph) -> None:
    graph, given = replace(umls, name="own", sha256="2" * 64), {"seed": 0, "device": "cpu", "batch_size": 128}
    given |= {"dataset": "own", "model": OURS, "whole": True}
    made = search.Search(graph, given, [(60, "1bit", 0), (15, "4bit", 0)], 1.0, False)
    assert {part: c.whole for part, c in made.recipe((60, "1bit", 0)).configs.items()} == {
        "teacher": 0,
        "no-DS": 1,
        "stage 1": 1,
    }
    assert made.recipe((15, "4bit", 0)).configs["stage 1"].whole == 135 // 38


def test_the_share_by_hand() -> None:
    assert rule.share(0.8, KNOWN) == pytest.approx(1 - 0.02 - 0.5 * 0.2)
    assert rule.share(-9.0, KNOWN) == 0 and rule.share(9.0, KNOWN) == 1.1
    assert rule.first_share([0.2, 0.3], [0.1, 0.4]) == 0.5 and rule.first_share([0.2], [0.0]) > 1


def search_of(number: int) -> dict:
    """A made-up search whose students, of two ranks, lose .02 and half of what they lack at their first check."""
    figures = {"entities": 10.0**number, "relations": number + 1.0, "triples per entity": 2.0 + number**2}
    config = {
        "model": "ComplEx" if number < 3 else "ReciprocalComplEx",
        "regulariser": "n3",
        "schedule": "linear",
        "lr": 0.1 * number,
        "penalty": 0.01,
        "relation_weight": 1.0,
        "epochs": 8,
        "alpha": 0.5,
        "temperature": 2.0,
    }
    trials = [
        {"part": part, "state": state, "valid_mrr": mrr, "config": {**config, "lr": config["lr"] * times}}
        for part in ("teacher", "stage 1", "no-DS")
        for state, mrr, times in (
            ("complete", 0.5, 1),
            ("complete", 0.499, 4),
            ("complete", 0.3, 9),
            ("pruned", 0.6, 9),
            ("failed", None, 9),
        )
    ]
    for row in trials:
        few = row["valid_mrr"] == 0.3
        row |= {"id": f"{row['part']} {row['config']['lr']}", "checks": [0.12, 0.3] if few else [0.52, 0.5]}
        row["config"] |= {"dim": 64, "group": 4, "rank": 8 * few, "teacher": f"teacher {0.1 * number}"}
    return {"dataset": f"graph {number}", "figures": figures, "trials": trials}


def test_a_rule_is_fitted_of_what_searches_found() -> None:
    known = fitting.fit(search_of(number) for number in (1, 2, 3, 4))
    assert known["share"] == pytest.approx([0.02, 0.5], abs=1e-5)
    assert known["graphs"]["graph 2"]["settings"]["teacher"] == {
        "lr": 0.4,
        "penalty": 0.01,
        "relation_weight": 1.0,
        "epochs": 8,
        "regulariser": "n3",
        "schedule": "linear",
    }
    assert [known["graphs"][f"graph {n}"]["model"] for n in (2, 3)] == [OURS, OTHER]
    assert rule.settings(search_of(3)["figures"], known)["stage 1"]["alpha"] == 0.5
    assert json.loads(json.dumps(known)) == known
    with pytest.raises(ConfigError, match="a rule takes the searches of 3 graphs"):
        fitting.fit([search_of(1), search_of(2), search_of(2)])


def test_a_graph_of_ones_own_takes_the_rule(tiny_graph: Graph, umls: Graph, tmp_path: Path, capsys, caplog) -> None:
    assert rule.defaults(tiny_graph, "ComplEx", 8) == {}
    rule.RULE.write_text(json.dumps(KNOWN))
    assert rule.defaults(umls, "ComplEx", 8) == rule.defaults(tiny_graph, "RotatE", 8) == {}
    wanted = rule.fitted(tiny_graph, KNOWN, 16)
    done = kgdistil.distil(tiny_graph, dim=8, teacher_dim=8, precision="1bit", progress=False)
    for part, run in done.runs.items():
        assert {name: getattr(run.config, name) for name in wanted[part]} == wanted[part]
    about = done.student.about["predicted"]
    checks = [[check["valid_mrr"] for check in done.runs[name].record["curve"]] for name in ("stage 1", "teacher")]
    assert about["first"] == pytest.approx(checks[0][0] / checks[1][-1], abs=1e-4)
    assert about["share"] == pytest.approx(rule.share(about["first"], KNOWN), abs=1e-3)
    done.student.save(tmp_path / "s")
    for as_json in (False, True):
        cli.report(kgdistil.load_student(tmp_path / "s"), tmp_path / "s", as_json)
        told = capsys.readouterr().out
        assert json.loads(told)["predicted"] == about if as_json else f"expected to keep {about['share']:.0%}" in told
    done.student.about["predicted"] = {"rounded": 0.8, "share": 0.9}  # as students had it before
    done.student.save(tmp_path / "old")
    cli.report(kgdistil.load_student(tmp_path / "old"), tmp_path / "old", False)
    assert "expected to keep" not in capsys.readouterr().out
    with caplog.at_level("INFO", "kgdistil"):
        asked = kgdistil.distil(tiny_graph, dim=8, teacher_dim=8, precision="1bit", epochs=2)
    assert sum("of its teacher's MRR so far; it is expected to keep" in line for line in caplog.messages) == 1
    assert [run.config.epochs for run in asked.runs.values()] == [2, 3, 1]
    assert {run.config.lr for run in asked.runs.values()} == {0.1}


def test_passes_are_the_fewer_the_more_triples_and_rates_those_of_its_sums(tiny_graph: Graph, monkeypatch) -> None:
    plain = rule.settings(rule.figures(tiny_graph), KNOWN)
    plain["no-DS"]["epochs"] = plain["teacher"]["epochs"] + plain["stage 1"]["epochs"]  # more than it would take
    assert plain["no-DS"]["epochs"] > 6
    assert rule.fitted(tiny_graph, KNOWN, 16) == plain
    low, passes = rule.fitted(tiny_graph, KNOWN, 16, 4), plain["teacher"]["epochs"]
    same = {name: x for name, x in plain["stage 1"].items() if name not in ("alpha", "lr")}
    assert low["stage 1"] == {**same, "epochs": -(-passes // 2)}
    far = recipes.few_bits("tiny", dim=8, rank=4, fitted=low).stage1
    assert (far.alpha, far.lr, recipes.few_bits("tiny", dim=8, rank=4, alpha=0.7).stage1.alpha) == (1.0, 0.1, 0.7)
    assert passes > 2 * plain["stage 1"]["epochs"]
    assert low["teacher"] == plain["teacher"] and low["no-DS"]["epochs"] >= passes + low["stage 1"]["epochs"]
    monkeypatch.setattr(rule, "PASSES", 2)
    monkeypatch.setattr(
        rule, "PRODUCTS", rule.products(tiny_graph, 16, plain["teacher"]) * plain["teacher"]["epochs"] / 2
    )
    monkeypatch.setattr(scale, "LARGE", 1)
    monkeypatch.setattr(scale, "listed", lambda graph: 0)
    constant = json.loads(json.dumps(KNOWN))
    for other in constant["graphs"].values():
        other["settings"]["teacher"]["schedule"] = "constant"
    assert rule.settings(rule.figures(tiny_graph), constant)["teacher"]["schedule"] == "constant"
    found = rule.fitted(tiny_graph, constant, 16)
    assert found["teacher"].pop("schedule") == "linear", "where passes are cut"
    for part, values in plain.items():
        assert found[part]["epochs"] == max(1, round(values["epochs"] / 2)), part
        assert found[part]["lr"] == values["lr"] * (1 if part == "stage 1" else rule.ROW)
    cut = rule.fitted(tiny_graph, constant, 16, 4)["stage 1"]["epochs"]
    assert cut == -(-passes // 2) > found["stage 1"]["epochs"], "half of what the teacher would have"
    monkeypatch.setattr(rule, "TRIPLES", len(tiny_graph.train) * plain["teacher"]["epochs"] / 4)
    few = rule.fitted(tiny_graph, constant, 16, 4)
    assert few["stage 1"]["epochs"] == few["teacher"]["epochs"] < cut, "or as many as it has"
    assert rule.fitted(tiny_graph, KNOWN, 16)["teacher"]["epochs"] == max(2, round(plain["teacher"]["epochs"] / 4))
    monkeypatch.setattr(rule, "PRODUCTS", 1)
    assert rule.fitted(tiny_graph, KNOWN, 16)["teacher"]["epochs"] == 2
    searches = [search_of(number) for number in (1, 2, 3)]
    for row in searches[2]["trials"]:
        row["config"]["accumulators"] = "row"
    fast, known = fitting.fit(search_of(number) for number in (1, 2, 3)), fitting.fit(searches)
    for part, times in (("teacher", 4), ("stage 1", 1)):
        both = [x["graphs"]["graph 3"]["settings"][part]["lr"] for x in (fast, known)]
        assert both[0] == pytest.approx(times * both[1], rel=0.02)


def test_a_pass_costs_what_its_queries_and_relations_are_compared_with(tiny_graph: Graph, monkeypatch) -> None:
    triples = tiny_graph.train.tolist()
    queries = len({(h, r) for h, r, _ in triples}) + len({(r, t) for _, r, t in triples})
    assert queries < 2 * len(triples)  # some have several answers
    every = queries * tiny_graph.num_entities
    assert rule.products(tiny_graph, 8, {}) == rule.products(tiny_graph, 8, {"relation_weight": 0.0}) == 8 * every
    predicted = 2 * len(triples) * 2 * tiny_graph.num_relations
    assert rule.products(tiny_graph, 8, {"relation_weight": 1.0}) == 8 * (every + predicted)
    monkeypatch.setattr(scale, "NEGATIVES", 5)
    monkeypatch.setattr(scale, "BATCH", 2)
    assert rule.products(tiny_graph, 8, {}) == pytest.approx(8 * (queries * 5 + 2 * 2 * len(triples)))
    assert rule.products(replace(tiny_graph, train=tiny_graph.train[:0]), 8, {}) == 40


def test_the_rule_that_is_here_is_that_of_the_searches(without_a_rule: Path, monkeypatch) -> None:
    monkeypatch.delenv("KGDISTIL_RESULTS")
    known, left = json.loads(without_a_rule.read_text()), pd.read_csv(fitting.folder("left_out.csv"))
    assert known == json.loads(json.dumps(fitting.fit(fitting.read("searches"))))
    pd.testing.assert_frame_equal(left, fitting.table(fitting.read("left_out")))
    searched = {record.get("of", record["dataset"]) for record in fitting.read("left_out")}
    assert len(known["graphs"]) >= 6 and searched == set(known["graphs"])
    for graph in known["graphs"].values():
        assert graph["settings"].keys() == {"teacher", "stage 1", "no-DS"}
        near = rule.settings(graph["figures"], known)["teacher"]
        assert near["regulariser"] == graph["settings"]["teacher"]["regulariser"], "its own settings are the nearest"


def test_searches_a_rule_and_the_graph_that_is_left_out(tiny_graph: Graph, tmp_path: Path, monkeypatch) -> None:
    graphs = {}
    for number in range(4):
        triples = tiny_graph.train[: 160 - 20 * number]
        graphs[f"g{number}"] = replace(tiny_graph, name=f"g{number}", train=triples, sha256=f"{number:064}")
    monkeypatch.setattr(fitting, "read_graph", graphs.__getitem__)
    assert fitting.main(["search", *graphs, "--time", "0.3s", "--bytes", "2"]) == 0
    assert fitting.main(["test", "g0"]) == 0 and fitting.main(["fit"]) == 0
    known = json.loads(rule.RULE.read_text())
    assert len(known["graphs"]) == 4 and len(known["share"]) == 2
    (path,) = (tmp_path / "results" / "rules" / "left_out").iterdir()
    record = json.loads(path.read_text())
    assert len(record["others"]) == 3 and record["dataset"] not in record["others"]
    assert record["searched"].keys() == record["ruled"].keys() == {"teacher", "stage 1", "no-DS"}
    (row,) = pd.read_csv(tmp_path / "results" / "rules" / "left_out.csv").to_dict("records")
    for part in record["ruled"]:
        share = record["ruled"][part]["test"] / record["searched"][part]["test"]
        assert row[f"{part}, test"] == pytest.approx(share, abs=1e-4)
    assert row["kept share"] == pytest.approx(record["share"]["test"], abs=1e-4)
    assert row["expected share"] == pytest.approx(record["share"]["expected"], abs=1e-4)
    searches = fitting.read("searches")
    others = fitting.fit(found for found in searches if found["dataset"] != record["dataset"])
    assert record["share"]["expected"] == pytest.approx(rule.share(record["share"]["first"], others))
    assert searches[0]["commit"] == record["commit"]
    graphs["later"] = replace(graphs["g0"], name="later", train=graphs["g0"].train[1:], sha256="9" * 64)
    with pytest.raises(ConfigError, match="no search of later with the SHA-256 9999.*only of .*g0.*--of"):
        fitting.main(["test", "later"])
    assert fitting.main(["test", "later", "--of", record["dataset"]]) == 0
    later = next(x for x in fitting.read("left_out") if x["dataset"].startswith("later"))
    assert (later["of"], later["others"]) == (record["dataset"], record["others"])
    assert later["searched"] == record["searched"] and later["graph"]["train"] == record["graph"]["train"] - 1
