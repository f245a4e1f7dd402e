"""The benchmark runs end to end on a small graph, and its floors count what they say they count."""

import json

import pytest
import torch

from kgdistil import build_model, kernels
from kgdistil.config import make_config
from kgdistil.errors import ConfigError
from kgdistil.evaluation import rank
from kgdistil.paper.bench import compare, gpu
from kgdistil.paper.bench.machine import training_floor
from kgdistil.paper.bench.peers import MODELS, EagerTorch

needs_compiler = pytest.mark.skipif(kernels.compiler() is None, reason="no C++ compiler on this machine")


@pytest.fixture(autouse=True)
def results_in_tmp(tmp_path, monkeypatch):
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    return tmp_path


def test_a_small_benchmark_writes_report_and_picture(results_in_tmp, monkeypatch):
    pytest.importorskip("pykeen", reason="the embedded graph comes with PyKEEN: install the notebooks extra")
    monkeypatch.setattr(compare, "CONTENDERS", {c.name: c for c in (compare.Ours, EagerTorch)})
    arguments = ["--dataset", "umls", "--models", "TransE", "--dims", "8", "--rounds", "1", "--skip-inference"]
    assert compare.main(arguments) == 0
    report = json.loads((results_in_tmp / "bench" / "bench.json").read_text())
    assert {r["contender"] for r in report["contenders"]} == {"kgdistil", "eager PyTorch"}
    assert all(r["epoch_seconds"] > 0 and r["peak_memory_bytes"] > 1 << 20 for r in report["contenders"])
    assert report["ratios"][0]["peer"] == "eager PyTorch"
    assert (results_in_tmp / "bench" / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("model", MODELS)
def test_eager_peer_ranks_as_this_project_does(model, tiny_graph):
    """The peer does the same job: with our weights it counts the same ranks."""
    work = compare.make_work(tiny_graph, model, 8)
    peer, ours = EagerTorch(), compare.Ours()
    peer.prepare(work)
    ours.prepare(work)
    assert sum(p.numel() for p in peer.net.parameters()) == ours.model.num_parameters
    assert len(peer.epochs(2)) == len(ours.epochs(2)) == 2
    with torch.no_grad():
        peer.net.entity.weight.copy_(ours.model.entities)
        relations = ours.model.relations
        if model == "RotatE":  # the peer's relations are the angles themselves
            relations = relations * (torch.pi / ours.model.range)
        if model == "TransH":
            relations, normals = relations.chunk(2, dim=-1)
            peer.net.normal.weight.copy_(normals)
        peer.net.relation.weight.copy_(relations)
    assert (peer.ranks(tiny_graph.test).numpy() == rank(ours.model, tiny_graph.test, ours.known).ranks()).all()
    assert peer.rank(tiny_graph.test) == ours.rank(tiny_graph.test) == 2 * len(tiny_graph.test)


def test_the_floor_counts_touched_rows(tiny_graph):
    model = build_model("TransE", tiny_graph.num_entities, tiny_graph.num_relations, 8)
    whole = training_floor(model, tiny_graph.train, negatives=50, batch_size=len(tiny_graph.train))
    assert whole.touched == tiny_graph.num_entities  # 8000 corruptions of 30 entities leave none out
    assert whole.bytes == 24 * (30 * 8 + 4 * 8)
    small = training_floor(model, tiny_graph.train, negatives=1, batch_size=8)
    assert small.touched < whole.touched and small.ops < whole.ops
    assert whole.seconds(bandwidth=1.0, flops=1e30) == whole.bytes


def test_inference_counts_both_sides(tiny_graph, monkeypatch):
    monkeypatch.setattr(compare, "MODELS", ("TransE",))
    monkeypatch.setattr(compare, "PAPER_TABLE5", {"dims": (8, 4), "repeats": 1})
    rows = compare.inference(tiny_graph, repeats=1)
    assert [r["parameters"] for r in rows] == [34 * 8, 34 * 4]
    assert rows[0]["speedup"] == 1 and rows[0]["triples"] == 200
    assert rows[0]["latency_p50_us"] <= rows[0]["latency_p99_us"]


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
    from kgdistil.checkpoint import save_weights
    from kgdistil.models import build_model
    from kgdistil.paper import reproduce
    from kgdistil.paper.bench import scan

    cell = next(cell for cell in scan.coded_cells("umls") if cell.bytes == 32)
    found = make_config(dataset="umls", model="ComplEx", dim=128, role="stage1", teacher="x", group=4, loss="softmax")
    monkeypatch.setattr(scan, "config", lambda cell: found)
    assert scan.trained(umls, cell)[1] is None
    model = build_model("ComplEx", umls.num_entities, umls.num_relations, 128, seed=1)
    save_weights(reproduce.published(cell), model, umls, found.run_id, precision="1bit")
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


def test_faiss_scans_the_same_codes(umls):
    pytest.importorskip("faiss", reason="FAISS comes with the extra notebooks")
    from kgdistil.answer.scan import CodedRanker
    from kgdistil.compress.product import assign, decode, fit, grouped
    from kgdistil.paper.bench.scan import faiss_top

    model = build_model("DistMult", umls.num_entities, umls.num_relations, 64, seed=1)
    groups = grouped(model.entities.detach(), 2, False)
    book = fit(groups)
    codes = assign(groups, book)
    model.entities.data = decode(codes, book).flatten(1)
    queries = model.queries(umls.test[:50, 0], umls.test[:50, 1], "tail").detach()
    theirs = torch.from_numpy(faiss_top(codes, book, queries, 10)()[1])
    nothing = (torch.zeros(50, dtype=torch.int64),) * 2 + (torch.zeros(1, dtype=torch.int32),)
    ours = CodedRanker(model, codes, book).top(queries, 10, nothing)[1].long()
    shared = (theirs[:, :, None] == ours[:, None]).any(1).float().mean()
    assert shared > 0.9  # their tables have eight bits, so the last places may differ
