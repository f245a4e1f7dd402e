"""The benchmark runs end to end on a small graph, and its floors count what they say they count."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kgdistil import build_model, kernels, records
from kgdistil.config import make_config
from kgdistil.errors import ConfigError, KgdistilError
from kgdistil.evaluation import rank
from kgdistil.graphs.datasets import load
from kgdistil.paper.bench import compare, gpu
from kgdistil.paper.bench.machine import training_floor
from kgdistil.paper.bench.peers import MODELS, EagerTorch, TorchKGE

needs_compiler = pytest.mark.skipif(kernels.compiler() is None, reason="no C++ compiler on this machine")


@pytest.fixture(autouse=True)
def results_in_tmp(tmp_path, monkeypatch):
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "own"))
    return tmp_path


SEARCHES = records.root() / "results" / "rules" / "searches"
SMALL = ["--dataset", "umls", "--models", "TransE", "--dims", "8", "--rounds", "2", "--triples", "40"]


def test_a_small_benchmark_writes_report_and_picture(results_in_tmp, monkeypatch):
    pytest.importorskip("pykeen", reason="the embedded graph comes with PyKEEN: install the notebooks extra")
    monkeypatch.setattr(compare, "CONTENDERS", {c.name: c for c in (compare.Ours, EagerTorch)})
    assert compare.main([*SMALL, "--skip-inference"]) == 0
    report = json.loads((results_in_tmp / "bench" / "bench.json").read_text())
    ours, eager = report["contenders"]
    assert (ours["contender"], eager["contender"]) == ("kgdistil", "eager PyTorch")
    for row in (ours, eager):
        assert row["epoch_seconds"] > 0 and row["peak_memory_bytes"] > 1 << 20 and row["ranked_triples"] == 40
    assert ours["batches_tried"] == [] and ours["ranking_batch"] is None
    best = max(eager["batches_tried"], key=lambda tried: tried["queries_per_second"])
    assert eager["ranking_batch"] == best["batch"] and len(eager["batches_tried"]) > 1
    assert report["ratios"][0]["peer"] == "eager PyTorch"
    assert {"config", "commit", "versions", "device", "threads", "dtype", "command", "seconds"} <= set(report)
    assert (results_in_tmp / "bench" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert not (results_in_tmp / "own" / "bench" / "bench.json").exists()  # a finished run is not gone on with


def test_a_benchmark_goes_on_where_it_was_stopped(results_in_tmp, monkeypatch):
    pytest.importorskip("pykeen", reason="the embedded graph comes with PyKEEN: install the notebooks extra")
    asked = []

    def measure(graph, model, dim, *rest):
        asked.append(dim)
        if len(asked) == 2:
            raise KeyboardInterrupt
        row = {"model": model, "dim": dim, "epoch_seconds": 1.0, "triples_per_second": 1.0, "profile": {"loss": 1.0}}
        return [{"contender": "kgdistil", "ranking_queries_per_second": 1.0, "copy_bytes_per_second": 1.0, **row}]

    monkeypatch.setattr(compare, "compare", measure)
    monkeypatch.setattr(compare, "distillation", lambda graph, model, rounds: {"model": model})
    monkeypatch.setattr(compare, "copy_bandwidth", lambda: 1e10)
    monkeypatch.setattr(compare, "peak_flops", lambda: 1e11)
    arguments = [*SMALL, "--skip-inference", "--dims", "8", "4"]
    with pytest.raises(KeyboardInterrupt):
        compare.main(arguments)
    assert compare.main(arguments) == 0 and asked == [8, 4, 4]
    report = json.loads((results_in_tmp / "bench" / "bench.json").read_text())
    assert [row["dim"] for row in report["contenders"]] == [8, 4]
    asked[:] = [0]
    with pytest.raises(KeyboardInterrupt):
        compare.main(arguments)
    assert compare.main([*arguments, "--rounds", "1"]) == 0 and asked == [0, 8, 8, 4]  # others are not gone on with


def test_the_slow_sizes_of_a_batch_are_not_all_tried(monkeypatch):
    rates = {1: 10.0, 2: 100.0, 4: 40.0, 8: 60.0, 16: 40.0, 64: 40.0, 256: 900.0}
    given = []
    clock = itertools.count()  # every look at it is a second later, so that each size has one ranking
    monkeypatch.setattr(compare.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(compare, "queries_per_second", lambda c, t, size: given.append(len(t)) or rates[size])
    contender = type("Contender", (), {"sizes": tuple(rates)})()
    assert compare.try_sizes(contender, torch.zeros(50, 3)) == {size: rates[size] for size in (1, 2, 4, 8, 16, 64)}
    assert given == [1, 32, 2, 32, 4, 32, 8, 32, 16, 32, 50, 50]  # to warm up, and timed


def test_all_rank_the_same_triples(tiny_graph):
    chosen = compare.some(tiny_graph.test, 8)
    assert (chosen == compare.some(tiny_graph.test, 8)).all() and len(chosen.unique(dim=0)) == 8
    assert (chosen[:, None] == tiny_graph.test).all(-1).any(1).all()
    assert sorted(compare.some(tiny_graph.test, 99).tolist()) == sorted(tiny_graph.test.tolist())


def give_weights(peer, model, ours):
    """Puts our entities and relations into a peer, each by its own layout."""
    entities, relations = ours.entities, ours.relations
    relations, *normals = relations.chunk(2, -1) if model == "TransH" else (relations,)
    normals = [torch.nn.functional.normalize(x, dim=-1) for x in normals]
    if model == "RotatE":  # the angles themselves
        relations = relations * (torch.pi / ours.range)
    if peer.name == "TorchKGE":
        halves = {"ComplEx": 2}.get(model, 1)
        parts = [*entities.chunk(halves, -1), *relations.chunk(halves, -1), *normals]
        weights = [p for p in peer.model.parameters() if p.requires_grad]
    elif peer.name == "PyKEEN":
        if model == "RotatE":
            relations = torch.cat((relations.cos(), relations.sin()), -1)
        if model in ("ComplEx", "RotatE"):  # real and imaginary parts alternate
            entities, relations = (torch.stack(x.chunk(2, -1), -1).flatten(1) for x in (entities, relations))
        parts, weights = [entities, *normals, relations], list(peer.model.parameters())
    else:
        parts, weights = [entities, relations, *normals], list(peer.net.parameters())
    for weight, part in zip(weights, parts, strict=True):
        weight.data.copy_(part)


LIBRARIES = {"PyKEEN": "pykeen", "TorchKGE": "torchkge"}
COMPILED = "RotatE"  # compiling takes seconds: the formulas of the others are tested as they are written


@pytest.mark.parametrize(
    ("name", "model"),
    [
        (name, model)
        for name in compare.CONTENDERS
        for model in MODELS
        if name != "kgdistil" and (name, model) != ("TorchKGE", "RotatE")
    ],
)
def test_a_peer_does_the_same_job(name, model, tiny_graph, monkeypatch):
    """It trains, and with our weights it counts the same filtered ranks of both sides, in batches of any size."""
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name], reason=f"{name} is not installed: install the extras notebooks and bench")
    if model != COMPILED:
        monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    elif name == "compiled PyTorch" and kernels.compiler() is None:
        pytest.skip("torch.compile needs a C++ compiler")
    work = compare.make_work(tiny_graph, model, 8)
    peer, ours = compare.CONTENDERS[name](), compare.Ours()
    peer.prepare(work)
    ours.prepare(work)
    assert len(peer.epochs(2)) == len(ours.epochs(2)) == 2
    assert peer.settings["parameters"] >= ours.model.num_parameters
    with torch.no_grad():
        give_weights(peer, model, ours.model)
    if (name, model) == ("PyKEEN", "RotatE"):  # its distance is the L2 norm of the whole vector
        monkeypatch.setattr(ours.model, "norm", 2)
    wanted = rank(ours.model, tiny_graph.test, ours.known, native=False).ranks()
    compiled = name == "compiled PyTorch" and model == COMPILED  # once more for each size
    for size in peer.sizes[: 1 if compiled else 3]:
        peer.ready(tiny_graph.test, size)
        assert (peer.rank().numpy() == wanted).all()


@pytest.mark.parametrize("model", MODELS)
def test_ours_ranks_what_it_was_given(model, tiny_graph):
    ours = compare.Ours()
    ours.prepare(compare.make_work(tiny_graph, model, 8))
    ours.ready(tiny_graph.test, 0)
    assert (ours.rank().numpy() == rank(ours.model, tiny_graph.test, ours.known, native=False).ranks()).all()


def test_what_torchkge_lacks_is_missing(tiny_graph):
    pytest.importorskip("torchkge", reason="TorchKGE is not installed: install the extra bench")
    with pytest.raises(NotImplementedError, match="RotatE"):
        TorchKGE().prepare(compare.make_work(tiny_graph, "RotatE", 8))


def test_the_floor_counts_touched_rows(tiny_graph):
    model = build_model("TransE", tiny_graph.num_entities, tiny_graph.num_relations, 8)
    whole = training_floor(model, tiny_graph.train, negatives=50, batch_size=len(tiny_graph.train))
    assert whole.touched == tiny_graph.num_entities  # 8000 corruptions of 30 entities leave none out
    assert whole.bytes == 24 * (30 * 8 + 4 * 8)
    small = training_floor(model, tiny_graph.train, negatives=1, batch_size=8)
    assert small.touched < whole.touched and small.ops < whole.ops
    assert whole.seconds(bandwidth=1.0, flops=1e30) == whole.bytes


def test_inference_counts_both_sides(tiny_graph, monkeypatch):
    monkeypatch.setattr(compare, "PAPER_TABLE5", {"dims": (8, 4), "parts": 3})
    rows = compare.inference(tiny_graph, "TransE")
    assert [r["parameters"] for r in rows] == [34 * 8, 34 * 4]
    assert rows[0]["speedup"] == 1 and rows[0]["triples"] == 200
    for row in rows:
        assert row["seconds"] == pytest.approx(sum(row["seconds_of_parts"])) and len(row["seconds_of_parts"]) == 3
        assert row["queries_per_second"] == pytest.approx(400 / row["seconds"])
        assert row["latency_p50_us"] <= row["latency_p99_us"]


@needs_compiler
def test_distillation_epochs_are_timed_for_all_stages(tiny_graph):
    row = compare.distillation(tiny_graph, "RotatE", rounds=1)
    assert all(row[f"{role}_seconds"] > 0 for role in ("no-ds", "stage1", "stage2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_measured(results_in_tmp, capsys):
    assert gpu.main([]) == 1
    assert "nothing was measured" in capsys.readouterr().err
    assert not (results_in_tmp / "bench").exists()


def test_the_gpu_script_runs_on_the_cpu(results_in_tmp, monkeypatch, tiny_graph):
    monkeypatch.setattr(gpu, "load", lambda name: tiny_graph)
    assert gpu.main(["--device", "cpu", "--models", "TransE", "--dims", "4", "--epochs", "1"]) == 0
    row = json.loads((results_in_tmp / "bench" / "gpu.json").read_text())["training"][0]
    assert row["step_seconds"] > 0 and row["busy"] is None  # only a GPU can say how busy it was


@pytest.mark.gpu
def test_the_gpu_script_measures_a_gpu(results_in_tmp):
    arguments = ["--datasets", "wn18rr", "wn18rr", "--models", "RotatE", "--dims", "8", "--triples", "512"]
    assert gpu.main(arguments) == 0
    row = json.loads((results_in_tmp / "bench" / "gpu.json").read_text())["training"][0]
    assert 0 < row["busy"] <= 1.05 and row["times_floor"] > 1


def test_ratios_divide_the_right_way():
    rows = [
        {
            "contender": compare.OURS,
            "model": "TransE",
            "dim": 8,
            "epoch_seconds": 1.0,
            "ranking_queries_per_second": 90,
        },
        {"contender": "PyKEEN", "model": "TransE", "dim": 8, "epoch_seconds": 6.0, "ranking_queries_per_second": 3},
    ]
    ratio = {"peer": "PyKEEN", "model": "TransE", "dim": 8, "training": 6.0, "ranking": 30.0}
    assert compare.ratios(rows) == [ratio]


def test_contender_settings_are_those_of_the_paper():
    config = make_config(model="RotatE", dim=8)
    assert (config.negatives, config.batch_size, config.gamma) == (25, 1024, 6.0)


def test_the_scan_is_measured_beside_floats_and_faiss(results_in_tmp, monkeypatch, umls):
    from kgdistil.paper.bench import scan

    monkeypatch.setattr(scan, "load", lambda name: umls)
    monkeypatch.setattr(scan.frontier, "SIZES", {64: 512, 16: 512})
    if scan.kernels.compiler() is None:
        pytest.skip("the scan is measured compiled, and there is no C++ compiler")
    assert scan.main(["--graph", "umls", "--rounds", "1"]) == 0
    report = json.loads((results_in_tmp / "bench" / "scan-umls.json").read_text())
    rows = report["rows"]
    assert {(r["form"], r["bytes"]) for r in rows if r["what"] == "rank"} == {
        ("float32", 512),
        ("float32", 64),
        ("16 vectors a group", 64),
        ("16 vectors a group", 16),
    }
    assert all(r["microseconds"] > 0 for r in rows) and report["commit"]


@needs_compiler
def test_the_scan_trains_what_it_measures_and_what_that_needs(results_in_tmp, monkeypatch, umls):
    from kgdistil.paper.bench import scan
    from kgdistil.paper.cells import Cell
    from kgdistil.paper.recipe import with_needs

    trained = []
    found = {"wn18rr": make_config(dataset="umls", model="ComplEx", dim=8, role="teacher")}
    monkeypatch.setattr(scan, "load", lambda name: umls)
    monkeypatch.setattr(scan, "config", lambda cell: found.get(cell.dataset))
    monkeypatch.setattr(scan, "float_cell", lambda graph, name, dim: Cell("tuned", "wn18rr", name, "DS", dim))
    monkeypatch.setattr(scan, "run", lambda config, graph: trained.append((config, graph)))
    monkeypatch.setattr(scan, "measure", lambda graph, rounds: [])
    assert scan.main(["--train"]) == 0
    floats = with_needs(scan.float_cell("wn18rr", name, dim) for name, dim in scan.FLOATS)
    assert trained == [(found["wn18rr"], umls)] * len(floats) and len(floats) > 2 * len(scan.FLOATS)


def test_published_students_are_measured_where_their_runs_lie_elsewhere(results_in_tmp, monkeypatch, umls):
    from kgdistil.models import build_model
    from kgdistil.paper import tasks
    from kgdistil.paper.bench import scan
    from kgdistil.students.labelled import Labelled

    cell = next(cell for cell in scan.coded_cells("umls") if cell.bytes == 32)
    found = make_config(dataset="umls", model="ComplEx", dim=128, role="stage1", teacher="x", group=4, loss="softmax")
    monkeypatch.setattr(scan, "config", lambda cell: found)
    assert scan.trained(umls, cell)[1] is None
    model = build_model("ComplEx", umls.num_entities, umls.num_relations, 128, seed=1)
    Labelled(model, umls, "1bit", found.run_id).save(tasks.published(cell))
    there, run = scan.trained(umls, cell)
    assert run == found.run_id and torch.allclose(there.relations, model.relations, atol=1e-3)


@needs_compiler
def test_whole_lists_are_measured_beside_pytorch(results_in_tmp, monkeypatch):
    from kgdistil.paper.bench import lists

    for name, value in (("QUERIES", 20), ("CANDIDATES", 50), ("DIMS", (8,))):
        monkeypatch.setattr(lists, name, value)
    assert lists.main(["--rounds", "1"]) == 0
    report = json.loads((results_in_tmp / "bench" / "lists.json").read_text())
    assert [row["model"] for row in report["rows"]] == ["TransE", "TransH", "RotatE"] and report["commit"]
    for row in report["rows"]:
        assert row["ratio"] == pytest.approx(row["pytorch_seconds"] / row["seconds"]) and row["share_of_peak"] > 0
    monkeypatch.setattr(lists.kernels, "compiler", lambda: None)
    with pytest.raises(ConfigError, match="needs the compiled kernels"):
        lists.measure(1)


def test_a_step_is_measured_beside_a_busy_process_too(monkeypatch):
    from kgdistil.paper.bench import step

    monkeypatch.setattr(step, "BUSY", (0, 1))  # other tests run, too
    before = torch.get_num_threads()
    rows = step.beside(load("umls"), 2)
    assert [(r["busy"], r["threads"]) for r in rows] == [(b, n + 1) for b in step.BUSY for n in range(before)]
    assert all(r["seconds"] > 0 and 1 <= r["chosen"] <= before for r in rows)
    assert torch.get_num_threads() == before


def test_waits_are_measured_in_processes_of_their_own(results_in_tmp, monkeypatch):
    """The median over rounds, for each count of spins, which a process reads when it begins; and a page's table."""
    from book.build.pages import speed
    from kgdistil.paper.bench import waits

    seen = []

    def ran(command, env, **_):
        seen.append(env["GOMP_SPINCOUNT"])
        rows = [
            {"busy": busy, "threads": n, "seconds": 1e-3 * (len(seen) + 100 * busy + 10 * n), "chosen": 1}
            for busy in (0, 1, 3)
            for n in (1, 2)
        ]
        assert command[1:] == ["-m", "kgdistil.paper.bench.waits", "--graph", "umls", "--steps", "2", "--one"]
        return SimpleNamespace(stdout=json.dumps(dict.fromkeys(waits.SHAPES, rows)))

    assert "bench.waits" in speed.waits(None)
    monkeypatch.setattr(waits, "subprocess", SimpleNamespace(run=ran, PIPE=-1))  # git has the real one
    assert waits.main(["--graph", "umls", "--steps", "2", "--rounds", "3"]) == 0
    assert seen == 3 * [str(count) for count in waits.WAITS]
    report = json.loads((results_in_tmp / "bench" / "waits.json").read_text())
    first = report["rows"][0]
    assert (first["spins"], first["busy"], first["threads"]) == (0, 0, 1) and len(report["commit"]) == 40
    assert first["seconds_all"] == pytest.approx([0.011, 0.015, 0.019]) and first["seconds"] == pytest.approx(0.015)
    assert len(report["rows"]) == 2 * len(waits.WAITS) * 6
    page = speed.waits(None)
    assert (
        "quiet, 2 threads" in page and "one busy process, 1 thread<" in page and ">25.0<" in page and ">125.0<" in page
    )
    assert "3 busy processes, 1 thread<" in page and ">325.0<" in page


def test_waits_of_one_process_are_of_both_shapes(monkeypatch):
    from kgdistil.paper.bench import step, waits

    monkeypatch.setattr(step, "BUSY", (0, 1))
    monkeypatch.setattr(waits, "SHAPES", {"small": {"dim": 4, "negatives": 20}, "smaller": {"dim": 2, "negatives": 10}})
    found = waits.of_one("umls", 2)
    assert [*found] == ["small", "smaller"] and all(len(rows) == 2 * torch.get_num_threads() for rows in found.values())


def test_passes_of_a_recipe_are_measured_run_by_run(umls, tmp_path, monkeypatch, capsys):
    from book.build.pages import large
    from kgdistil.paper.bench import passes

    file = tmp_path / "debian.tsv"
    names = umls.entities, umls.relations, umls.entities
    rows = [[labels[i] for labels, i in zip(names, triple, strict=True)] for triple in umls.train.tolist()]
    file.write_text("".join("\t".join(row) + "\n" for row in rows))
    monkeypatch.setattr(passes, "KILLS", dict.fromkeys(passes.PASSES, ()))
    monkeypatch.setattr(passes, "path_of", lambda name: tmp_path / f"passes-{name}.json")

    def started(arguments, part, folder):
        assert passes.main([*arguments, "--one", part, str(folder)]) == 0
        return SimpleNamespace(returncode=0, communicate=lambda: (capsys.readouterr().out, ""))

    monkeypatch.setattr(passes, "started", started)
    assert "bench.passes" in large.large_passes(None)
    assert passes.main([str(file), "--budget", "16B/entity"]) == 0
    rows = json.loads((tmp_path / "passes-debian.json").read_text())["rows"]
    assert [row["run"] for row in rows] == list(passes.PASSES)
    for row in rows:
        assert row["config"]["epochs"] == passes.PASSES[row["run"]] < row["passes"]
        assert 0 < row["before"] <= row["peak"] and row["told"]["embeddings"] and row["check_seconds"] > 0
        trained = json.loads((tmp_path / "passes-debian.json").read_text())["graph"]["train"]
        assert row["triples_a_second"] * row["pass_seconds"] == pytest.approx(trained, rel=0.01)
    rows[0]["kills"] = [{"while": "ranking", "lost_seconds": 12.3}]
    told = json.loads((tmp_path / "passes-debian.json").read_text()) | {"rows": rows}
    (tmp_path / "passes-debian.json").write_text(json.dumps(told))
    page = large.large_passes(None)
    ratio = rows[2]["pass_seconds"] / rows[0]["pass_seconds"]
    assert "12 s (ranking)" in page and f"takes {ratio:.1f} times as long" in page
    assert f"{rows[1]['triples_a_second']:,}" in page


def test_what_a_kill_loses_is_what_came_since_the_checkpoint(tmp_path, monkeypatch):
    from kgdistil.paper.bench import passes

    monkeypatch.setattr(passes, "WITHIN", 0.2)
    config = make_config(dataset="own")
    monkeypatch.delenv("KGDISTIL_RUNS")
    with records.kept_in(tmp_path):
        kept = records.model_folder(config.run_id, True) / passes.CHECKPOINT
        kept.parent.mkdir(parents=True)
        kept.write_bytes(b"")
        os.utime(kept, (time.time() - 40,) * 2)
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        lost = passes.killed(process, "training", config)
        assert process.returncode == -signal.SIGKILL and 40 <= lost["lost_seconds"] < 50
        process = subprocess.Popen([sys.executable, "-c", ""])
        with pytest.raises(KgdistilError, match="ended with 0 before it was killed"):
            passes.killed(process, "ranking", config)


def test_a_stranger_has_one_command_and_the_rule_of_others(results_in_tmp, monkeypatch):
    from book.build.pages import rules
    from kgdistil.paper import fitting
    from kgdistil.paper.bench import stranger

    assert "bench.stranger" in rules.strangers(None)
    searches = [json.loads(path.read_text()) for path in SEARCHES.glob("*.json")]
    monkeypatch.setattr(fitting, "read", lambda name: searches)
    monkeypatch.setattr(stranger, "PUBLISHED", {"umls": 0.123})
    ran, seen = subprocess.run, []

    def quickly(command, **how):
        seen.extend(json.loads(Path(command[3]).read_text())["graphs"])
        how["env"] |= {"KGDISTIL_DATA": ""}
        return ran([*command, "--epochs", "2", "--no-paths"], **how)

    monkeypatch.setattr(stranger, "subprocess", SimpleNamespace(run=quickly))
    assert stranger.main(["umls", "--budget", "16B/entity"]) == 0
    found = json.loads((results_in_tmp / "bench" / "stranger.json").read_text())["umls"]
    assert sorted(seen) == found["others"] and len(seen) == len(searches) - 1 and "umls" not in seen
    assert {run["config"]["dataset"].split("-")[0] for run in found["runs"]} == {"graph"}
    page, mrr = rules.strangers(None), {row["model"]: row["mrr"] for row in found["metrics"]}
    assert f"{mrr['stage 1']:.3f}" in page and f"{mrr['stage 1'] / mrr['teacher']:.0%}" in page and "0.123" in page
    kept = {"stage 1": "distilled", "no-DS": "alone"}[found["chosen"]]
    assert f"{mrr[found['chosen']]:.3f} ({kept})" in page


def test_small_budgets_are_spent_in_three_ways(results_in_tmp, monkeypatch):
    from book.build.pages import rules
    from kgdistil.paper.bench import budgets

    assert "bench.budgets" in rules.small_budgets(None)
    made = budgets.distil
    monkeypatch.setattr(budgets, "distil", lambda graph, **how: made(graph, **how, epochs=2))
    for name in ("KGDISTIL_RUNS", "KGDISTIL_RESULTS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # the bench sets both
    assert budgets.main(["umls", "--budgets", "8B/entity", "1kB"]) == 0
    found = json.loads((results_in_tmp / "bench" / "budgets.json").read_text())
    by_way = {(row["budget"], row["way"]): row for row in found["rows"]}
    codes = [by_way[budget, "codes"] for budget in ("8B/entity", "1kB")]
    assert [(row["dim"], row["precision"], row["teacher_dim"]) for row in codes] == [(32, "1bit", 32), (2, "4bit", 2)]
    assert by_way["1kB", "rounded"]["dim"] == 2 and by_way["1kB", "rounded"]["teacher_dim"] == 64
    assert {row["config"]["group"] for row in codes} == {1, 4} and by_way["1kB", "floats"]["model"] == "RotatE"
    assert all(row["bytes"] <= 1000 for row in found["rows"] if row["budget"] == "1kB")
    monkeypatch.setattr(budgets, "path", lambda: results_in_tmp / "bench" / "budgets.json")
    page = rules.small_budgets(None)
    best = max(found["rows"][:3], key=lambda row: row["mrr"]["valid"])
    assert f"<strong>{best['mrr']['test']:.3f}</strong>" in page and "umls, 1kB" in page
    with pytest.raises(ConfigError, match="--budgets 2ms: give sizes"):
        budgets.main(["umls", "--budgets", "2ms"])


def test_a_step_is_the_peers_and_is_measured_beside_it(results_in_tmp, monkeypatch):
    """After one step from the same numbers, both have the same rows and relations, whatever the kind of step."""
    from kgdistil.paper.bench import step
    from kgdistil.sampling import stream

    umls = load("umls")
    for group, taught, weight in step.KINDS.values():
        values = {"dataset": "umls", "model": "ComplEx", "dim": 8, "loss": "softmax", "lr": 0.1, "negatives": 50}
        values |= {"batch_size": 32, "penalty": 0.01, "group": group, "relation_weight": weight}
        values |= {"role": "stage1", "teacher": "x"} if taught else {}
        engine = step.engine_of(umls, make_config(**values), taught)
        half, engine.half = engine.half, torch.float32
        peer, batch = step.Eager(engine), torch.arange(32)
        given = step.batch_of(engine, batch, stream(0, 2, 0))
        engine.config = engine.config.model_copy(update={"shared": 1.0} if group else {})
        engine.step(batch, stream(0, 2, 0), {"student": 0.1})
        peer.step(given)
        student = engine.models["student"]
        torch.testing.assert_close(peer.tables[0].detach(), student.entities.detach(), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(peer.tables[1].detach(), student.relations.detach(), atol=1e-4, rtol=1e-3)
    monkeypatch.setattr(step, "measure", partial(step.measure, dim=4, queries=16, negatives=20))
    assert step.main(["--graph", "umls", "--rounds", "2"]) == 0
    products = str(half).removeprefix("torch.")
    assert step.path_of(products=products).name == ("step.json" if half == torch.bfloat16 else "step-float32.json")
    report = json.loads(step.path_of(products=products).read_text())
    assert [row["kind"] for row in report["rows"]] == list(step.KINDS) and report["commit"]
    for row in report["rows"]:
        assert row["ratio"] == pytest.approx(row["pytorch_seconds"] / row["seconds"])
        assert 0 <= row["outside_products"] <= 1 and row["share_of_peak"] > 0
    path = results_in_tmp / "g.tsv"
    path.write_text("".join(f"{i}\tr\t{i * 7 % 200}\n" for i in range(200)))
    assert step.main(["--large", str(path), "--rounds", "2", "--negatives", "20", "50"]) == 0
    told = json.loads(step.path_of("g", products).read_text())
    rows, graph = told["rows"], told["graph"]
    assert [row["drawn"] for row in rows] == [20, 20, 50, 50] and rows[0]["candidates"] < rows[2]["candidates"]
    row, predicting = rows[:2]
    assert (row["kind"], graph["name"]) == ("teacher", "g") and row["ops"] == 2 * 16 * row["candidates"] * 128 * 3
    assert predicting["kind"] == list(step.TEACHERS)[1] and predicting["ops"] > row["ops"]
    assert row["triples_a_second"] > 0 and row["product_seconds"] > 0


def test_one_sum_a_row_is_measured_beside_one_a_number(results_in_tmp):
    """Each at its own rate, the best of the same few on validation; graphs are added to those that are there."""
    from kgdistil.paper.bench import accumulators

    (results_in_tmp / "bench").mkdir()
    (results_in_tmp / "bench" / "accumulators.json").write_text('{"another": 1}')
    few = ["umls", "--dim", "4", "--epochs", "2", "--rates", "0.001", "0.1", "--sample", "100"]
    assert accumulators.main(few) == 0
    report = json.loads((results_in_tmp / "bench" / "accumulators.json").read_text())
    assert report["another"] == 1 and report["umls"]["commit"]
    runs, mrr, difference = (report["umls"][name] for name in ("runs", "test_mrr", "difference"))
    assert [row["accumulators"] for row in runs] == ["number"] * 3 + ["row"] * 3
    for kind, numbers in (("number", 135 * 8), ("row", 135)):
        *tried, further = (row for row in runs if row["accumulators"] == kind)
        best = max(tried, key=lambda row: row["valid_mrr"])
        assert [row["lr"] for row in tried] == [0.001, 0.1] and (further["lr"], further["seed"]) == (best["lr"], 1)
        assert mrr[kind] == pytest.approx([best["test_mrr"], further["test_mrr"]]) and best["numbers"] == numbers
    gain = sum(mrr["row"]) / 2 - sum(mrr["number"]) / 2
    assert difference["row_less_number"] == pytest.approx(gain) and difference["low"] <= gain <= difference["high"]
    assert accumulators.main([*few, "--group", "4", "--seeds", "1"]) == 0
    of_codes = json.loads((results_in_tmp / "bench" / "accumulators.json").read_text())["umls/group 4"]
    assert of_codes["config"] == {**report["umls"]["config"], "group": 4, "penalty": 0.0, "role": "no-ds"} | {
        name: of_codes["config"][name] for name in ("check_every", "seed")
    }


@needs_compiler
def test_what_no_compiler_costs_is_measured(results_in_tmp, monkeypatch):
    from kgdistil.paper.bench import readable

    for name, value in (("GRAPHS", ("nations",)), ("MODELS", ("TransE", "ComplEx")), ("DIMS", (4,)), ("TRAINED", 300)):
        monkeypatch.setattr(readable, name, value)
    assert readable.main(["--rounds", "1"]) == 0
    report = json.loads((results_in_tmp / "bench" / "readable.json").read_text())
    assert [(row["graph"], row["model"]) for row in report["rows"]] == [("nations", "TransE"), ("nations", "ComplEx")]
    for found in (row[what] for row in report["rows"] for what in ("training", "ranking")):
        assert found["ratio"] == pytest.approx(found["readable"] / found["compiled"])
    monkeypatch.setattr(readable.kernels, "compiler", lambda: None)
    with pytest.raises(ConfigError, match="needs the compiled kernels"):
        readable.measure(load("nations"), 1)


def test_the_log_says_what_no_compiler_cost_where_it_was_measured():
    from kgdistil.kernels.compile import SLOWER
    from kgdistil.paper.bench.readable import spans

    report = json.loads((records.root() / "results" / "bench" / "readable.json").read_text())
    assert f"using PyTorch, which took {spans(report['rows'])} where it was measured" == SLOWER


def test_faiss_scans_the_same_codes(umls):
    pytest.importorskip("faiss", reason="FAISS comes with the extra notebooks")
    from kgdistil.compress.product import codes_of, fit, rows_of
    from kgdistil.compress.scan import CodedRanker
    from kgdistil.paper.bench.scan import faiss_top

    model = build_model("DistMult", umls.num_entities, umls.num_relations, 64, seed=1)
    book = fit(model.entities.detach(), 2, False)
    codes = codes_of(model.entities.detach(), book, False)
    model.entities.data = rows_of(codes, book, False)
    queries = model.queries(umls.test[:50, 0], umls.test[:50, 1], "tail").detach()
    theirs = torch.from_numpy(faiss_top(codes, book, queries, 10)()[1])
    nothing = (torch.zeros(50, dtype=torch.int64),) * 2 + (torch.zeros(1, dtype=torch.int32),)
    ours = CodedRanker(model, codes, book).top(queries, 10, nothing)[1].long()
    shared = (theirs[:, :, None] == ours[:, None]).any(1).float().mean()
    assert shared > 0.9  # their tables have eight bits, so the last places may differ


def reports():
    """A report as it was written before batches were searched, one as it is now, and one of a GPU."""
    row = {"model": "TransE", "dim": 64, "epoch_seconds": 0.25, "ranking_queries_per_second": 1234.0}
    ours, peer = ({"contender": name, **row, "settings": {}} for name in ("kgdistil", "PyKEEN"))
    peer["settings"] = {"differs": "another loss"}
    report = {
        "device": "a processor",
        "batch_size": 1024,
        "ratios": [{"peer": "PyKEEN", "model": "TransE", "dim": 64, "training": 5.04, "ranking": 111.0}],
        "floors": [{"dim": 64, "times_floor": 2.5}],
    }
    lacks = {"contender": "TorchKGE", "model": "TransE", "dim": 64, "missing": "not installed"}
    tried = [{"batch": 16, "queries_per_second": 9.0}, {"batch": 64, "queries_per_second": 8.0}]
    old = [ours | {"ranked_triples": 3134}, peer | {"ranked_triples": 64}, lacks]
    new = [
        ours | {"ranked_triples": 256, "batches_tried": []},
        peer | {"ranked_triples": 256, "batches_tried": tried},
        lacks,
    ]
    step = {"model": "TransE", "dim": 64, "step_seconds": 0.002, "times_floor": 4.0, "busy": 0.93}
    step["thousand_epochs_seconds"] = 172.0
    ranked = {"model": "TransE", "dim": 64, "triples": 100, "seconds": 0.5}
    gpu = {"device": "a GPU", "training": [step], "ranking": [ranked]}
    return report | {"contenders": old}, report | {"contenders": new}, gpu


def test_readme_and_book_tell_what_the_files_hold(results_in_tmp):
    from book.build.pages import speed
    from book.build.pages.shown import Shown
    from book.build.readme import bench_block

    old, new, gpu_report = reports()
    folder = results_in_tmp / "bench"
    folder.mkdir()
    shown = Shown(results_in_tmp)
    (folder / "bench.json").write_text(json.dumps(old))
    for text in (bench_block(), speed.peers_speed(shown)):
        assert "3,134" in text and "64 of the peers" in text and "5.0×" in text and "111×" in text
    (folder / "bench.json").write_text(json.dumps(new))
    for text in (bench_block(), speed.peers_speed(shown)):
        assert "same 256" in text and "16, 64" in text and "3,134" not in text and "1,234" in text
    assert "none was measured yet" in bench_block() and "kgdistil.paper.bench.gpu" in speed.gpu_speed(shown)
    assert "PyKEEN (TransE): another loss" in speed.peers_differ(shown)
    (folder / "gpu.json").write_text(json.dumps(gpu_report))
    for text in (bench_block(), speed.gpu_speed(shown)):
        assert all(said in text for said in ("a GPU", "2.000", "4.0", "93%", "400")) and "none was" not in text


def test_answers_are_measured_beside_peers_that_search_the_same_codes(tmp_path, monkeypatch):
    from kgdistil.paper.bench import answer

    monkeypatch.setattr(answer, "PATIENCE", 0.2)
    answer.make_student([f"entity {i:04}" for i in range(3000)], tmp_path / "s")
    queries = answer.questions(answer.load_student(tmp_path / "s"))
    ours = answer.ask(tmp_path / "s", queries)
    assert ours["codes_bytes"] == 64 * -(-3000 // 64) * 16 and ours["file_bytes"] > 3000 * 16
    for name in ("FAISS fast scan", "numpy"):
        told = answer.peer(name, tmp_path / "s", queries)
        assert told["recall"] == 1 if name == "numpy" else told["recall"] > 0.9


def test_a_server_is_asked_different_questions_and_counted(tmp_path, monkeypatch):
    from kgdistil.paper.bench import answer, serve

    answer.make_student([f"entity {i:04}" for i in range(300)], tmp_path / "s")
    monkeypatch.setattr(serve, "QUERIES", 50)
    asked = serve.questions(serve.load_student(tmp_path / "s"))
    assert len(set(asked)) == 50 and asked == serve.questions(serve.load_student(tmp_path / "s"))
    if shutil.which("wrk") is None:
        pytest.skip("no wrk is installed: apt-get install wrk")
    monkeypatch.setattr(serve, "WARM", 1)
    told = serve.measure(str(tmp_path / "s"), 2, 2)
    assert told["requests"] > 0 and told["refused"] == told["broken"] == told["exit_code"] == 0
    assert 0 < told["milliseconds"]["p50"] <= told["milliseconds"]["p99"] <= told["milliseconds"]["max"]
    assert told["memory"]["after"]["resident"] > told["memory"]["after"]["anonymous"] > 0
