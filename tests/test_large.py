"""Graphs of millions: blocks of text become numbers in Arrow, labels are arrays, and a copy is read again."""

import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import call

import kgdistil
from kgdistil.answer import labels as packed
from kgdistil.answer.format1 import DESCRIPTION
from kgdistil.answer.labels import Labels
from kgdistil.checkpoint import load_model
from kgdistil.config import make_config
from kgdistil.distillation import scale
from kgdistil.distillation.budget import Plan, bytes_of, plan
from kgdistil.distillation.distil import distil
from kgdistil.distillation.recipes import bytes_per_entity
from kgdistil.errors import CheckpointError, ConfigError, DataError
from kgdistil.graph import Graph
from kgdistil.graphs import cache, checks, forms, numbering, readers, text
from kgdistil.graphs.labels import tidy, unquoted
from kgdistil.graphs.readers import read_graph
from kgdistil.paper.bench import candidates, large, reading
from kgdistil.students.labelled import Labelled, load_labelled
from kgdistil.training.loop import train

PARTS = ("train", "valid", "test")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What is there for millions is taken for a few; the folder of copies."""
    monkeypatch.setattr(text, "BLOCK", 3)
    monkeypatch.setattr(packed, "LARGE", 4)
    for name, value in (("PENDING", 40), ("BATCH", 2)):
        monkeypatch.setattr(numbering, name, value)
    for name, value in (("LEAST", 5), ("SMALLEST", 0)):
        monkeypatch.setattr(cache, name, value)
    monkeypatch.setenv("KGDISTIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graphs"


def same(one: Graph, other: Graph) -> bool:
    triples = all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)
    labels = tuple(one.entities) == tuple(other.entities) and tuple(one.relations) == tuple(other.relations)
    return triples and labels and (one.name, one.sha256, one.notes) == (other.name, other.sha256, other.notes)


def plainly(lines: list[str], keep: bool) -> tuple[list[str], list[str], list[np.ndarray], str]:
    """Entities, relations, three splits and sum, by Python's own strings, sets and sorting."""
    clean = str if keep else lambda label: tidy(unquoted(tidy(label)))
    rows = [tuple(map(clean, line.split("\t"))) for line in lines]
    entities, relations = sorted({x for h, _, t in rows for x in (h, t)}), sorted({r for _, r, _ in rows})
    numbered = [(entities.index(h), relations.index(r), entities.index(t)) for h, r, t in rows]
    triples = np.array(sorted(set(numbered)))[np.random.default_rng(0).permutation(len(set(numbered)))]
    seen, free = set(), []
    for i, (h, r, t) in enumerate(triples.tolist()):
        if {h, ("r", r), t} <= seen:
            free.append(i)
        seen |= {h, ("r", r), t}
    count = min(max(1, round(0.1 * len(triples))), len(free) // 2)
    held = free[: 2 * count]
    parts = [np.delete(triples, held, 0), triples[held[:count]], triples[held[count:]]]
    content = "".join(f"{len(x)}:{x}" for x in entities + relations).encode()
    digest = hashlib.sha256(content + b"".join(b"|" + x.astype(np.int64).tobytes() for x in parts))
    return entities, relations, parts, digest.hexdigest()


LABELS = st.text(st.sampled_from("ab \"'%2é\u0301\u200b\U0001f600\r\0"), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(LABELS, min_size=2, max_size=6), st.integers(0, 99), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_it_is_what_python_reads_line_by_line(tmp_path_factory, labels, seed, keep, end) -> None:
    labels = [x for x in labels if not x.endswith("\r") and (keep or tidy(unquoted(tidy(x))))] + ["z"]
    draw = np.random.default_rng(seed)
    lines = ["\t".join(labels[i] for i in draw.integers(len(labels), size=3)) for _ in range(40)]
    lines.insert(0, "a\ta\ta")  # what no other form begins with
    path = tmp_path_factory.getbasetemp() / "g.tsv"
    path.write_bytes("".join(line + end for line in lines).encode())
    with pytest.MonkeyPatch.context() as patch:
        for room, name, value in ((text, "BLOCK", 7), (numbering, "PENDING", 9), (packed, "LARGE", 3)):
            patch.setattr(room, name, value)
        entities, relations, parts, digest = plainly(lines, keep)
        if not len(parts[1]):
            with pytest.raises(DataError, match="cannot be split"):
                read_graph(path, keep_labels=keep, order="hrt", header=False)
            return
        graph = read_graph(path, keep_labels=keep, order="hrt", header=False)
    assert list(graph.entities) == entities and list(graph.relations) == relations and graph.sha256 == digest
    assert isinstance(graph.entities, Labels if len(entities) > 3 else tuple)
    for part, wanted in zip(PARTS, parts):
        assert np.array_equal(getattr(graph, part), wanted)


ROWS = [(f"e{i % 7}", f"r{i % 2}", f"e{i * i % 5}") for i in range(40)]


def written(path: Path, rows: list = ROWS) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row, line",
    [
        (("e1", " ", "e2"), "line 23: the relation is empty; give it a label"),
        (('""', "r1", "e2"), "line 23: the head is empty; give it a label"),
        (("e1", "r1"), "line 23: 2 column"),
        (("e1", "r1", "\udcff"), "line 23: byte 0xff is not UTF-8"),
    ],
)
def test_the_line_at_fault_is_named_in_whatever_block(small: Path, tmp_path: Path, row: tuple, line: str) -> None:
    content = "".join("\t".join(x) + "\n" for x in [*ROWS[:22], row, *ROWS[22:30], ("", "r", "t"), ("a", "b")])
    (tmp_path / "g.tsv").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=line):
        read_graph(tmp_path / "g.tsv")


def test_the_example_is_the_first_in_the_file(small: Path, tmp_path: Path) -> None:
    """In every block heads come before relations, as they did when each column was read by itself."""
    rows = [*ROWS[:10], ("e1", "r1", "e3 "), ("e1", " r1", "e4"), ("e2  ", "r0", "e1")]
    graph = read_graph(written(tmp_path / "g.tsv", rows), order="hrt")
    assert "3 label(s) lost spaces" in graph.notes[0] and "such as 'e2  ', by which 3 became one" in graph.notes[0]
    assert len(graph.entities) == 7


def test_a_copy_is_the_same_graph(small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "g.tsv", [*ROWS, ("e1 ", "r1", "e3")])
    first = read_graph(path, order="hrt")
    kept = sorted(x.name for x in small.iterdir())
    assert [x.split(".")[1] for x in kept] == ["bin", "json"] and isinstance(first.entities, Labels)
    caplog.clear()
    caplog.set_level("INFO")
    again = read_graph(path, order="hrt")
    assert same(first, again) and first.notes and f"read from its copy in {small}" in caplog.text
    assert caplog.text.count(first.notes[0]) == 1  # what is to be said is said again
    again.train[0, 0] = 0  # memory of its own
    assert same(read_graph(path, order="hrt"), first)
    (tmp_path / "elsewhere").mkdir()
    assert same(read_graph(path.rename(tmp_path / "elsewhere" / "g.tsv"), order="hrt"), first)
    assert sorted(x.name for x in small.iterdir()) == kept, "the copy is of a file's name and bytes, wherever it lies"


def test_a_copy_serves_the_same_bytes_and_options_alone(small: Path, tmp_path: Path, monkeypatch) -> None:
    path = written(tmp_path / "g.tsv")
    first, before = read_graph(path, order="hrt"), os.stat(path)
    assert read_graph(path, order="hrt", seed=1).sha256 != first.sha256
    assert read_graph(path, order="htr").num_relations == 3
    written(path, [*ROWS[:-1], ("e0", "r1", "e2")])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size and read_graph(path, order="hrt").sha256 != first.sha256
    (tmp_path / "entities.dict").write_text("".join(f"{i}\tlabel {i}\n" for i in range(7)))
    (tmp_path / "relations.dict").write_text("0\tone\n1\ttwo\n")
    numbers = written(tmp_path / "n.tsv", [tuple(x[1:] for x in row) for row in ROWS])
    assert read_graph(numbers, order="hrt").relations == ("one", "two")
    (tmp_path / "relations.dict").write_text("0\tone\n1\tthree\n")
    assert read_graph(numbers, order="hrt").relations == ("one", "three")
    monkeypatch.setattr(cache, "reader", lambda: "another release")
    count = len(list(small.iterdir()))
    assert same(read_graph(written(path), order="hrt"), first) and len(list(small.iterdir())) == count + 2


@pytest.mark.parametrize("ending", ["bin", "json"])
def test_a_damaged_copy_is_made_anew(small: Path, tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / "g.tsv")
    first = read_graph(path, order="hrt")
    (copy,) = small.glob(f"*.{ending}")
    whole = copy.read_bytes()
    for damaged in (whole[:-3], whole[: len(whole) // 2], b"", bytes([whole[0] ^ 1]) + whole[1:]):
        copy.write_bytes(damaged)
        assert same(read_graph(path, order="hrt"), first) and copy.read_bytes() == whole
    for other in (b"null", b"[]", b"3", b"[" * 100_000):  # JSON, but of another kind
        copy.write_bytes(other)
        assert same(read_graph(path, order="hrt"), first) and copy.read_bytes() == whole
    middle = whole.replace(b"e3", b"e4") if ending == "bin" else whole.replace(b'"g"', b'"h"')
    copy.write_bytes(middle)
    assert middle != whole and same(read_graph(path, order="hrt"), first)


@pytest.mark.skipif(os.name != "posix", reason="permissions are known on POSIX only")
def test_what_others_could_write_is_not_read(small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "g.tsv")
    first = read_graph(path, order="hrt")
    assert all(x.stat().st_mode & 0o077 == 0 for x in (small, *small.iterdir()))
    next(small.glob("*.bin")).chmod(0o666)
    assert same(read_graph(path, order="hrt"), first) and "others can write to it" in caplog.text
    small.chmod(0o777)
    (small / "planted.bin").write_bytes(b"")
    assert same(read_graph(path, order="hrt"), first) and small.stat().st_mode & 0o777 == 0o700
    assert len(list(small.iterdir())) == 2


def test_copies_are_bounded(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "g.tsv")
    for seed in range(4):
        read_graph(path, order="hrt", seed=seed)
        for age, copy in enumerate(sorted(small.glob("*.bin"), key=lambda x: x.stat().st_mtime, reverse=True)):
            os.utime(copy, (1e9 - 60 * age, 1e9 - 60 * age))
        monkeypatch.setattr(cache, "MOST", 2 * next(small.glob("*.bin")).stat().st_size)
    assert len(list(small.glob("*.bin"))) == len(list(small.glob("*.json"))) == 2
    monkeypatch.setattr(cache, "write_arrays", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert len(read_graph(path, order="hrt", seed=9).known) > 5 and len(list(small.iterdir())) == 4


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 entities and 550,000 triples."""
    path, draw = tmp_path_factory.mktemp("large") / "large.tsv", np.random.default_rng(0)
    heads = np.concatenate([np.arange(100_000), draw.integers(0, 100_000, 450_000)])
    with path.open("w") as file:
        for h, r, t in zip(heads.tolist(), draw.integers(0, 7, 550_000).tolist(), draw.integers(0, 999, 550_000)):
            file.write(f"entity {h}\trelation {r}\tentity {t}\n")
    return path


def test_of_a_large_graph_50_000_triples_are_held_out(made_up: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = read_graph(made_up)
    assert graph.num_entities == 100_000 and isinstance(graph.entities, Labels)
    assert len(graph.valid) == len(graph.test) == readers.MOST
    assert "50,000 triples each are held out for validation and for test, in place of 10%" in caplog.text
    assert graph.entities[:2] == ["entity 0", "entity 1"] and graph.entities.find("entity 99999") == 99_999
    assert graph.seen["entity"].all() and len(torch.unique(graph.known, dim=0)) == len(graph.known)
    asked = read_graph(made_up, held_out=0.1)
    assert len(asked.valid) == round(0.1 * len(asked.known)) > readers.MOST


def test_blocks_are_of_the_size_that_forms_say() -> None:
    assert text.BLOCK == forms.BLOCK


def test_leaks_are_counted_as_sets_count_them() -> None:
    draw = np.random.default_rng(0)
    parts = [np.unique(draw.integers(0, (9, 3, 9), (n, 3)), axis=0) for n in (150, 30, 30)]
    train, valid, test = ({tuple(x) for x in part.tolist()} for part in parts)
    told = checks.leaks(parts, ("p", "q", "s"), 9)
    for few, many, line in ((test, train, "test triples stand in training too"), (test, valid, "stand in valid too")):
        assert any(x.startswith(f"{len(few & many):,} of {len(few):,}") and line in x for x in told), told
    turned = {(t, r, h) for h, r, t in test if h != t}
    assert any(
        x.startswith(f"{len(turned & train):,} of {len(test):,} test triples stand in training the other") for x in told
    )


def test_a_large_graph_is_trained_saved_and_asked_without_lists_of_labels(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    graph = read_graph(written(tmp_path / "g.tsv"), order="hrt")
    assert isinstance(graph.entities, Labels)
    config = make_config(dataset="g", model="TransE", dim=2, epochs=1, batch_size=8, negatives=2)
    model = train(config, graph, tmp_path / "run", progress=False).load(graph)
    assert isinstance(json.loads((tmp_path / "run" / DESCRIPTION).read_text())["entities"], dict)
    labelled = load_labelled(tmp_path / "run")
    assert isinstance(labelled.graph.entities, Labels) and list(labelled.graph.entities) == list(graph.entities)
    Labelled(model, graph).save(tmp_path / "student")
    wanted = Labelled(model, replace(graph, entities=tuple(graph.entities))).predict(head="e1", relation="r0", k=3)
    found = kgdistil.load_student(tmp_path / "student").predict(head="e1", relation="r0", k=3)
    assert found["entity"] == wanted["entity"].tolist() and np.allclose(found["score"], wanted["score"], atol=1e-5)
    assert Labelled(model, graph).predict(head=["e1", "e2"], relation="r0", k=3)[:3].entity.tolist() == found["entity"]
    assert kgdistil.load_student(tmp_path / "run").entities.find("e6") == 6
    for folder in ("student", "run"):
        assert tuple(load_labelled(tmp_path / folder).graph.entities) == tuple(graph.entities)
    assert load_model(tmp_path / "run", graph).num_entities == 7
    assert list(pickle.loads(pickle.dumps(graph)).entities) == list(graph.entities)
    copy = tmp_path / "run" / "labels.bin"
    copy.write_bytes(copy.read_bytes().replace(b"e3", b"e4"))
    with pytest.raises(CheckpointError, match="labels.bin: it was damaged or changed"):
        load_labelled(tmp_path / "run")


def test_reading_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    path = written(tmp_path / "g.tsv")
    assert reading.main([str(path), "--repeats", "1", "-o", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    (row,) = report["rows"]
    assert row["sha256"] == read_graph(path).sha256 and row["sizes"]["entities"] == 7 and "dirty" in report
    for what in ("first", "again"):
        assert row[what]["peak_bytes"] > 1 << 20 and row[what]["seconds"] > 0 < row[what]["cpu_seconds"]
    assert "g.tsv: 0 MB, 7 entities; first" in capsys.readouterr().out


def test_candidates_of_a_student_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNS", "RESULTS", "CACHE"):
        monkeypatch.setenv(f"KGDISTIL_{name}", str(tmp_path / name))
    draw = np.random.default_rng(0).integers(0, 60, (600, 2)).tolist()
    path = written(tmp_path / "g.tsv", [(f"e{h}", f"r{i % 3}", f"e{t}") for i, (h, t) in enumerate(draw)])
    made = {"dim": 8, "teacher_dim": 8, "precision": "1bit", "epochs": 1, "progress": False}
    teacher = kgdistil.distil(read_graph(path), **made).runs["teacher"].id
    assert candidates.main([str(path), teacher, "8:2", "16:1"]) == 0
    (told,) = json.loads(candidates.path().read_text()).values()
    kept = [(r["negatives"], r["passes"], r["run"]["config"]["negatives"], r["run"]["epochs"]) for r in told["rows"]]
    assert kept == [(8, 2, 8, 2), (16, 1, 16, 1)] and told["rows"][0]["gain"] == 0 != told["rows"][1]["gain"]
    assert told["ranked"] > 10 and {r["run"]["config"]["teacher"] for r in told["rows"]} == {teacher}
    assert candidates.main([str(path), "dim=4", "8:2", "16:1"]) == 0
    (told,) = json.loads(candidates.path("teachers").read_text()).values()
    kept = [(r["negatives"], r["run"]["config"]["dim"], r["run"]["config"]["role"]) for r in told["rows"]]
    assert kept == [(8, 4, "teacher"), (16, 4, "teacher")] and told["dim"] == 4
    for wrong in ("8", "8:x", "0:3", "8:3:1"):
        with pytest.raises(ConfigError, match="give candidates and passes, as 8192:3"):
            candidates.main([str(path), teacher, wrong])
    with pytest.raises(ConfigError, match="give the dimension of the teachers as dim=64"):
        candidates.main([str(path), "dim=0", "8:2"])


def test_a_graph_of_100_000_entities_becomes_a_student_in_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read, trained on samples, distilled through the rounding, judged and asked; fewer candidates, to take seconds."""
    for name in ("RUNS", "RESULTS", "CACHE"):
        monkeypatch.setenv(f"KGDISTIL_{name}", str(tmp_path / name))
    usual, draw = scale.settings, np.random.default_rng(0)
    monkeypatch.setattr(scale, "settings", lambda *given: {**usual(*given), "negatives": 128})
    monkeypatch.setattr(scale, "LISTED", 256)
    ends = np.concatenate([draw.permutation(100_000).reshape(-1, 2), draw.integers(0, 100_000, (2000, 2))])
    rows = [(f"e{h}", f"r{i % 5}", f"e{t}") for i, (h, t) in enumerate(ends.tolist())]
    given = [written(tmp_path / "g.tsv", rows), "--order", "hrt", "--held-out", 0.005, "--budget", "16B/entity"]
    done = call("distill", *given, "--epochs", 1, "-o", tmp_path / "student", "--json")
    told, found = json.loads(done.stdout), kgdistil.load_student(tmp_path / "student")
    assert (told["dim"], told["precision"]) == (64, "1bit") and len(found.entities) == 100_000
    assert {row["model"]: row["bytes per entity"] for row in told["metrics"]} == {
        "teacher": 512,
        "rounded": 16,
        "no-DS": 16,
        "stage 1": 16,
    }
    assert "validation MRR" in told["verdict"] and 16 < told["precisions"][1]["bytes"] / 100_000 < 16.1
    (asked,) = (path for path in (tmp_path / "RESULTS" / "runs").glob("*teacher*.json"))
    assert json.loads(asked.read_text())["config"]["check_sample"] >= scale.FEWEST
    assert found.predict(head="e3", relation="r0", k=3)["score"][0] > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--ask", "r9"], "--ask 'r9': .* has no such relation"), (["--budget", "9B"], "buys .*; give one that")],
)
def test_the_bench_refuses_before_it_trains(
    tiny_graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], said: str
) -> None:
    lines = ["\t".join((f"e{h}", f"r{r}", f"e{t}")) for h, r, t in tiny_graph.known.tolist()]
    (tmp_path / "g.tsv").write_text("\n".join(lines))
    monkeypatch.setattr(large, "distil", None)
    if "--budget" in more:
        monkeypatch.setattr(large, "plan", lambda *_, **__: Plan("RotatE", 2, "int8", 64, 9, "no few bits fit"))
    with pytest.raises(ConfigError, match=said):
        large.main([str(tmp_path / "g.tsv"), *more])


def test_a_page_of_another_shape_than_the_budget_buys(umls: Graph) -> None:
    bought = plan(umls, "16B/entity")
    found = large.of_shape(umls, bought, "32,2bit,16")
    assert (found.dim, found.precision, found.rank, found.teacher_dim) == (32, "2bit", 16, 32)
    assert found.bytes == bytes_of(umls, bought.model, 32, "2bit", 16) != bought.bytes
    for wrong in ("32,2bit", "32,int8,0", "x,2bit,0"):
        with pytest.raises(ConfigError, match="--shape .*: give a dimension, one of 4bit, 2bit, 1bit and a rank or 0"):
            large.of_shape(umls, bought, wrong)


def test_a_teacher_is_coded_by_each_quantiser_in_as_many_bytes(
    umls: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two numbers a code of four bits, as graphs of few entities have; of very many entities there is none."""
    pytest.importorskip("faiss", reason="FAISS comes with the extra notebooks")
    for name in ("RUNS", "RESULTS"):
        monkeypatch.setenv(f"KGDISTIL_{name}", str(tmp_path / name))
    done = distil(umls, dim=22, precision="2bit", teacher_dim=22, epochs=1, progress=False, paths=False)
    teacher = done.runs["teacher"].load(umls)
    assert bytes_per_entity(done.runs["stage 1"].config) == 11 and teacher.entities.shape[1] == 44
    made = dict(large.coded(done, umls))
    assert list(made) == ["FAISS", "OPQ", "RQ", "LSQ"]
    error = {name: float((x.entities - teacher.entities).detach().square().mean()) for name, x in made.items()}
    assert max(error.values()) < float(teacher.entities.detach().square().mean()) and error["OPQ"] < error["FAISS"]
    assert len(made["FAISS"].entities[:, [0, 22]].unique(dim=0)) <= 16, "a complex number's parts have one code"
    monkeypatch.setattr(large, "MOST_CODED", 100)
    assert list(large.coded(done, umls)) == []
