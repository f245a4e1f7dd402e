"""What a large graph changes: samples and lists, and the memory that is told before training."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kgdistil.checkpoint import WEIGHTS
from kgdistil.compress.packing import quantised
from kgdistil.config import make_config
from kgdistil.distillation import ranked, recipes, rule, scale
from kgdistil.distillation.budget import Plan, plan, shared_bytes
from kgdistil.distillation.distil import Distilled, distil, rounded
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, evaluate, rank, sampled
from kgdistil.graph import Graph
from kgdistil.models import KGEModel
from kgdistil.paper.bench import large


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))


def of_size(entities: int, train: int, held_out: int, name: str = "own") -> Graph:
    """A graph of which only the sizes count."""
    parts = [torch.zeros(1, 3, dtype=torch.int64).expand(n, 3) for n in (train, held_out, held_out)]
    return Graph(name, *parts, range(entities), range(15), "0" * 64)  # type: ignore[arg-type]


DEBIAN, PACKAGES = of_size(8_096_110, 22_812_043, 50_000), of_size(143_912, 562_933, 50_000)


def test_a_check_costs_a_twentieth_of_an_epoch_and_the_end_a_minute_or_a_sample() -> None:
    assert scale.settings(DEBIAN, "ComplEx", 64, "softmax") == {
        "check_sample": 330,
        "final_sample": 10_000,
        "answers": 256,
        "accumulators": "row",
    }
    few = scale.settings(PACKAGES, "ComplEx", 64, "softmax")
    assert few["final_sample"] == 0 and 250 < few["check_sample"] < 1000
    cost = 2 * few["check_sample"] * 143_912 * 128 / (562_933 * scale.TRIPLE)
    assert 0.045 < cost <= 0.0525
    assert scale.settings(DEBIAN, "ComplEx", 512, "softmax")["check_sample"] == 250
    assert scale.settings(DEBIAN, "RotatE", 64, "cross-entropy") == {"check_sample": 330, "final_sample": 10_000}


@pytest.mark.parametrize("graph", [of_size(99_999, 10**6, 10**4), of_size(10**6, 10**6, 10**4, "wn18rr")], ids=repr)
def test_graphs_of_the_size_that_is_committed_are_trained_as_ever(graph: Graph) -> None:
    assert scale.settings(graph, "ComplEx", 64, "softmax") == {} and scale.listed(graph) == 0


def test_a_student_of_many_entities_has_more_candidates_in_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student alone then scores as many as teacher and student; where a pass takes minutes all is as ever."""
    assert scale.listed(PACKAGES) == 8192 and scale.listed(DEBIAN) == 0
    configs = recipes.few_bits("own", dim=16, epochs=20, listed=scale.listed(PACKAGES)).configs
    assert {name: (c.negatives, c.epochs) for name, c in configs.items()} == {
        "teacher": (2048, 20),
        "no-DS": (2048, 20 + 4 * 4),
        "stage 1": (8192, 4),
    }
    known = json.loads(Path(rule.__file__).with_name("rule.json").read_text(encoding="utf-8"))
    more = rule.fitted(PACKAGES, known, 128)
    assert more["no-DS"]["epochs"] >= more["teacher"]["epochs"] + 4 * more["stage 1"]["epochs"]
    low = rule.fitted(PACKAGES, known, 120, 30)
    assert low["no-DS"]["epochs"] >= low["teacher"]["epochs"] + 4 * low["stage 1"]["epochs"]
    more_of_large = scale.settings(PACKAGES, "ComplEx", 60, "softmax")
    far = recipes.few_bits(
        "own", dim=60, rank=30, group=1, more=more_of_large, fitted={"stage 1": low["stage 1"]}
    ).stage1
    assert (far.alpha, far.lr, far.epochs) == (1.0, scale.AT_RANDOM, low["stage 1"]["epochs"])
    monkeypatch.setattr(scale, "LISTED", 0)
    usual = rule.fitted(PACKAGES, known, 128)
    assert more["stage 1"]["epochs"] == -(-usual["stage 1"]["epochs"] // 3) < usual["stage 1"]["epochs"]
    assert low["stage 1"]["epochs"] == 2 * usual["stage 1"]["epochs"]
    assert more["teacher"] == usual["teacher"]


def test_many_millions_of_triples_are_passed_over_fewer_times(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = replace(umls, name="own", sha256="2" * 64)
    made: dict[str, tuple[int, ...]] = {}
    for many in (len(graph.train) + 1, len(graph.train)):
        monkeypatch.setattr(scale, "LARGE", 100)
        monkeypatch.setattr(scale, "MANY", many)
        monkeypatch.setattr(scale, "PASSES", 2)
        monkeypatch.setattr(scale, "DRAWN", 64)
        for asked in (None, 4):
            size: dict[str, Any] = {"dim": 4, "teacher_dim": 4, "precision": "1bit", "epochs": asked, "progress": False}
            done = distil(graph, **size)
            runs = [done.runs[name].config for name in ("teacher", "stage 1", "no-DS")]
            made[f"{many - len(graph.train)}, {asked}"] = tuple(x for run in runs for x in (run.epochs, run.negatives))
    fewer = 2048, 2048
    assert {key: found[:2] for key, found in made.items()} == {
        "1, None": (20, 2048),
        "1, 4": (4, 2048),
        "0, None": (4, 64),
        "0, 4": (4, 2048),
    }
    assert all(found[3::2] == fewer for key, found in made.items() if key.startswith("0"))
    assert made["0, None"][2::2] == (1, 3)


def rounded_of(done: Distilled, graph: Graph) -> KGEModel:
    found = rounded(done.runs, done.runs["stage 1"], "4bit", graph)
    assert found is not None
    return found


def test_a_large_graph_is_distilled_on_samples(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "LARGE", 100)
    monkeypatch.setattr(scale, "FEWEST", 50)
    monkeypatch.setattr(scale, "TRIPLE", 1e3)
    monkeypatch.setattr(scale, "FREE", 1e6)
    monkeypatch.setattr(scale, "FINAL", 200)
    graph = replace(umls, name="own")
    done = distil(graph, dim=16, precision="1bit", teacher_dim=16, epochs=2, progress=False)
    for name, run in done.runs.items():
        assert run.record["sampled"]["test"]["triples"] == 200, name
        assert (run.config.accumulators, run.config.answers) == ("row", 256)
        assert run.config.lr == (0.05 if name == "stage 1" else 0.4), "what begins at random learns faster"
        assert run.record["curve"][-1]["valid_mrr_se"] > 0
        passes = {"teacher": (2048, 2), "no-DS": (2048, 6), "stage 1": (8192, 1)}
        assert (run.config.negatives, run.config.epochs) == passes[name]
    assert list(done.precisions["precision"]) == ["float32", "1bit"]
    by_hand = evaluate(quantised(done.runs["teacher"].load(graph), "1bit"), graph, sample=200).metrics()["both"]
    assert list(done.comparison.index) == ["teacher", "rounded", "no-DS", "stage 1"]
    told, whole = done.comparison.loc["rounded"], done.comparison.loc["teacher"]
    assert told["bytes per entity"] == done.comparison.loc["no-DS"]["bytes per entity"] == 4
    assert told["parameters"] == whole["parameters"] and told["MRR"] == f"{by_hand['mrr']:.3f}" != whole["MRR"]
    assert "over 200 triples" in done.verdict and done.low <= done.gain <= done.high
    with monkeypatch.context() as patch:
        patch.setattr(ranked, "evaluate", None)  # what took minutes is not made again
        again = distil(graph, dim=16, precision="1bit", teacher_dim=16, epochs=2, progress=False)
        assert again.comparison.equals(done.comparison) and again.precisions.equals(done.precisions)
        found = large.reciprocals(again, graph, sampled(graph.test, 200))
    assert found["rounded"].mean() == pytest.approx(by_hand["mrr"]) and found["teacher"].shape == (200,)
    weights = done.runs["no-DS"].folder / WEIGHTS
    os.utime(weights, (time.time() + 60,) * 2)  # trained anew
    monkeypatch.setattr(ranked, "evaluate", None)
    with pytest.raises(TypeError):
        distil(graph, dim=16, precision="1bit", teacher_dim=16, epochs=2, progress=False)
    monkeypatch.setattr(ranked, "evaluate", evaluate)
    os.utime(weights)
    distil(graph, dim=16, precision="1bit", teacher_dim=16, epochs=2, progress=False)
    os.utime(done.runs["teacher"].folder / WEIGHTS, (time.time() + 60,) * 2)  # what is rounded has changed
    monkeypatch.setattr(ranked, "evaluate", None)
    with pytest.raises(TypeError):
        distil(graph, dim=16, precision="1bit", teacher_dim=16, epochs=2, progress=False)
    monkeypatch.setattr(ranked, "evaluate", evaluate)
    assert {name: run.id for name, run in again.runs.items()} == {name: run.id for name, run in done.runs.items()}
    low = distil(graph, dim=8, precision="4bit", teacher_dim=8, rank=4, epochs=1, progress=False)
    plain = large.by_bits(low, graph)
    assert torch.equal(plain.entities, quantised(low.runs["teacher"].load(graph), "1bit").entities)  # 16 bits, too
    triples, known = sampled(graph.test, 200), KnownTriples(graph.known, graph.num_relations)
    mrr = [rank(x, sampled(graph.valid, 10_000), known).reciprocal().mean() for x in (plain, rounded_of(low, graph))]
    better = plain if mrr[0] > mrr[1] else rounded_of(low, graph)
    shown = large.reciprocals(low, graph, triples)["rounded"]
    assert mrr[0] != mrr[1] and shown == pytest.approx(rank(better, triples, known).reciprocal())
    assert large.by_bits(done, graph) is None, "all of the teacher's numbers already"
    small = distil(graph, dim=4, precision="int8", teacher_dim=8, epochs=1, softmax_epochs=1, progress=False)
    assert {run.config.final_sample for run in small.runs.values()} == {200}
    assert list(small.comparison.index) == list(small.runs), "a teacher of other dimensions cannot be a student"


def test_ranks_of_what_is_rounded_are_kept_by_its_shape(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "LARGE", 100)
    monkeypatch.setattr(scale, "FEWEST", 50)
    monkeypatch.setattr(scale, "FINAL", 60)
    graph = replace(umls, name="own")
    given = {"dim": 64, "precision": "4bit", "teacher_dim": 64, "epochs": 1, "progress": False}
    rows = [distil(graph, **given, whole=n).comparison.loc["rounded", "MRR"] for n in (False, True, False)]
    assert rows[0] == rows[2] != rows[1]


def test_bytes_of_an_entity_are_a_budget(umls: Graph) -> None:
    bought = plan(umls, "16B/entity")

    def entities_of(found: Plan) -> int:
        return found.bytes - shared_bytes(umls, found.model, found.dim, found.precision, found.rank)

    assert entities_of(bought) == 16 * umls.num_entities < bought.bytes
    assert 12 * umls.num_entities <= entities_of(plan(umls, "15B/entity")) <= 15 * umls.num_entities
    assert plan(umls, "40 B/entity", "RotatE").dim == 16  # int8, and a scale: 36
    for wrong in ("16B/", "16B/relation", "16ms/entity", "/entity", "0B/entity"):
        with pytest.raises(ConfigError, match="it must be a size, as 2MB or 16B/entity, or a time"):
            plan(umls, wrong)


# ---- memory ---------------------------------------------------------------------------------------------------------
def few_bits(**values: object) -> dict:
    shared = {"model": "ComplEx", "dim": 64, "loss": "softmax", "negatives": 2048, "lr": 0.1}
    shared |= {"dataset": "own", "accumulators": "row", "answers": 256, "check_sample": 330, "final_sample": 10_000}
    return {
        "teacher": make_config(**shared | {"role": "teacher"} | values),
        "stage 1": make_config(**shared | {"role": "stage1", "teacher": "t", "group": 4} | values),
    }


def test_memory_is_told_table_by_table() -> None:
    row = 4 * 8_096_110 * 128
    teacher = scale.memory_needed(few_bits()["teacher"], DEBIAN)
    assert teacher["embeddings"] == teacher["ranking"] == row and teacher["accumulators"] == row // 128
    assert "best weights" not in teacher and "teacher" not in teacher
    student = scale.memory_needed(few_bits()["stage 1"], DEBIAN)
    assert student["teacher"] == row and student["the student as coded"] == row + 8_096_110 * 32
    assert scale.memory_needed(few_bits(check_sample=0)["teacher"], DEBIAN)["best weights"] == row
    full = scale.memory_needed(few_bits(accumulators="number")["teacher"], DEBIAN)
    assert full["accumulators"] == row
    adam = make_config(dataset="own", model="RotatE", dim=64, role="teacher")
    assert scale.memory_needed(adam, DEBIAN)["Adam's moments"] == 2 * row


def test_what_cannot_fit_is_refused_in_one_line_with_what_would() -> None:
    told = scale.check_memory(few_bits(), DEBIAN, free=24 << 30)
    assert told.startswith("training takes up to 1") and "embeddings 3.9" in told and "24.0 GiB are free" in told
    with pytest.raises(ConfigError, match=r"^own, stage 1: .*, and 12.0 GiB are free: dim 32 takes .* GiB$"):
        scale.check_memory(few_bits(), DEBIAN, free=12 << 30)
    by_number = {"teacher": few_bits(accumulators="number")["teacher"]}
    with pytest.raises(ConfigError, match="12.0 GiB are free: accumulators row takes 1"):
        scale.check_memory(by_number, DEBIAN, free=12 << 30)
    with pytest.raises(ConfigError, match="0.0 GiB are free: no smaller dimension fits"):
        scale.check_memory(few_bits(), DEBIAN, free=1 << 20)
    assert 1 << 28 < scale.available() < 1 << 45


MEASURE = """
import gc, json, sys, torch
from kgdistil.compress.packing import quantised
from kgdistil.config import make_config
from kgdistil.distillation import scale
from kgdistil.graph import Graph
from kgdistil.training.loop import run

values = json.loads(sys.argv[1])
def status(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0]) << 10
def train(entities, triples, **more):
    random = torch.Generator().manual_seed(0)
    parts = [torch.randint(entities, (n, 3), generator=random) % torch.tensor([entities, 5, entities]) for n in triples]
    graph = Graph("own", *parts, tuple(map(str, range(entities))), tuple("abcde"), f"{entities:064d}")
    config = make_config(**values | {"dataset": "own", "model": "ComplEx", "epochs": 2, "check_every": 1} | more)
    gc.collect()
    before = status("VmRSS")
    run(config, graph, progress=False)
    return before, sum(scale.memory_needed(config, graph).values())
train(1000, (1000, 100, 100))  # what every run needs
before, told = train(400_000, (5_000, 100, 100))
print(json.dumps({"used": status("VmHWM") - before, "told": told}))
"""


@pytest.mark.parametrize("values", [{"accumulators": "row", "check_sample": 100}, {"group": 4}], ids=str)
def test_memory_is_what_was_told(values: dict) -> None:
    shared = {"dim": 64, "loss": "softmax", "lr": 0.1, "role": "no-ds", "batch_size": 256, "negatives": 256}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(shared | values)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # beside other tests
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["used"] == pytest.approx(found["told"], rel=0.1)
