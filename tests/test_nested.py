"""One student of several sizes: its first codes are a student, in training, in PyTorch and where it answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from starlette.testclient import TestClient

import kgdistil
from book.build.pages import pieces
from book.build.pages.shown import Shown
from kgdistil import records
from kgdistil.answer import native
from kgdistil.checkpoint import save_model
from kgdistil.cli import main
from kgdistil.compress.nested import attach, carried, codes_of, fit, means, seen, shorter
from kgdistil.compress.product import grouped, rows_of
from kgdistil.config import make_config
from kgdistil.errors import ConfigError
from kgdistil.graph import Graph
from kgdistil.graphs.importers import import_teacher
from kgdistil.models import KGEModel, build_model, with_entities
from kgdistil.paper.bench import nested as bench
from kgdistil.paper.cells import FRONTIER, Cell
from kgdistil.paper.ensemble import joined_name
from kgdistil.serve import app
from kgdistil.students.export import export
from kgdistil.training import loop
from kgdistil.training.loop import run


def nested_model(graph: Graph, name: str, depth: int = 4) -> KGEModel:
    """A model of 32 floats an entity whose groups of four have `depth` codes: 4 bytes for each."""
    sizes = graph.num_entities, graph.num_relations
    dim = 16 if name in ("ComplEx", "SimplE") else 32
    model = build_model(name, *sizes, dim, seed=3, **({"rank": 32} if name == "LowRankComplEx" else {}))
    with torch.no_grad():
        model.entities.mul_(3)
    book = fit(model.entities.data, 4, model.paired, depth)
    books = [(1 + i / 10) * book[:d] for i, d in enumerate((1, 2, 4, 8)) if d <= depth]  # each student has its own
    relations = [(2 + i) * model.relations.data for i in range(len(books) - 1)]
    codes = codes_of(model.entities.data, books, model.paired)
    buffers = {"codes": codes, "book": book if depth == 1 else books[-1]}
    for smaller, own in zip(books, relations):
        buffers |= {f"book_{len(smaller)}": smaller, f"relations_{len(smaller)}": own}
    return attach(with_entities(model, rows_of(codes, books[-1], model.paired)), buffers)


def nested(graph: Graph, name: str = "ComplEx", depth: int = 4) -> kgdistil.Labelled:
    return kgdistil.Labelled(nested_model(graph, name, depth), graph).quantised("nested")


def test_each_next_code_is_the_nearest_to_what_is_left() -> None:
    rows = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    book = fit(rows, 8, False, 4)
    codes = codes_of(rows, [book[:1], book[:2], book], False)
    assert book.shape == (4, 2, 16, 8) and codes.shape == (300, 8)
    left = []
    for depth in (1, 2, 4):
        part = rows_of(codes[:, : 2 * depth], book[:depth], False)
        assert torch.equal(codes_of(rows, [book[:depth]], False), codes[:, : 2 * depth])
        left.append(float((rows - part).square().mean()))
    assert left[0] > left[1] > left[2] > 0


@pytest.mark.parametrize("name", ["ComplEx", "LowRankComplEx", "DistMult", "TransE"])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_the_first_codes_are_a_student(umls: Graph, tmp_path: Path, name: str, size: int) -> None:
    """Cut by PyTorch or where it lies: the same file, and of a dot product the same bits of each answer."""
    trained = nested(umls, name)
    trained.save(tmp_path / "whole")
    whole = kgdistil.load_student(tmp_path / "whole")
    found = whole.shorter(size)
    found.save(tmp_path / "small")
    small, twin = kgdistil.load_student(tmp_path / "small"), kgdistil.load_labelled(tmp_path / "small")
    wanted = kgdistil.Labelled(shorter(trained.model, size // 4), umls, "nested")
    assert small.weights.blocks.shape[1] == size and small.weights.bytes <= whole.weights.bytes
    assert torch.equal(twin.model.entities, wanted.model.entities)
    rows = small.weights.rows(np.arange(umls.num_entities))
    assert np.array_equal(rows, wanted.model.entities.detach().numpy())
    asked = list(range(0, umls.num_entities, 9))
    for query in ({"head": asked}, {"tail": asked}):
        told = {"relation": 4, "k": 20, "by": "id", "ids": True, **query}
        answers = [x.predict(**told) for x in (small, found, wanted, twin)]
        for other in answers[1:]:
            if name == "TransE":  # whose codes are decoded, and whose sums PyTorch makes in another order
                np.testing.assert_allclose(answers[0]["score"], list(other["score"]), rtol=1e-5, atol=1e-5)
            else:
                assert answers[0]["id"] == list(other["id"]) and answers[0]["score"] == list(other["score"])
    assert small.evaluate()["both"] == pytest.approx(wanted.evaluate()["both"], abs=2e-3, rel=2e-3)


def test_a_size_that_it_has_not_is_refused(umls: Graph) -> None:
    student = nested(umls).student()
    with pytest.raises(ConfigError, match="32 bytes an entity is no size of this student: it has 4, 8, 16"):
        student.shorter(32)
    with pytest.raises(ConfigError, match=r"8\.0 bytes an entity is no size"):
        student.shorter(8.0)
    plain = kgdistil.Labelled(build_model("ComplEx", umls.num_entities, umls.num_relations, 8, seed=1), umls)
    with pytest.raises(ConfigError, match="it is not nested"):
        plain.quantised("2bit").student().shorter(4)
    with pytest.raises(ConfigError, match="a model that was trained with codes of some depth"):
        plain.quantised("nested")


def test_what_is_cut_is_a_student_of_its_own(umls: Graph, tmp_path: Path) -> None:
    """It grows in memory and leaves its whole one alone; the whole size keeps what was measured of it."""
    whole = nested(umls)
    whole.save(tmp_path / "whole")
    before = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    student = kgdistil.load_student(tmp_path / "whole")
    student.header["about"] = {"told": "here"}
    small = student.shorter(4)
    small.add([("new", umls.relations[0], umls.entities[3])])
    assert len(small.entities) == umls.num_entities + 1 and small.weights.blocks.shape[1] == 4
    assert {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()} == before
    assert student.shorter(16).header["about"] == {"told": "here"} and "cut" in small.header["about"]


def test_a_command_cuts_it(umls: Graph, tmp_path: Path) -> None:
    nested(umls).save(tmp_path / "whole")
    run = lambda *more: CliRunner().invoke(main, ["convert", str(tmp_path / "whole"), *more])
    before = (tmp_path / "whole/student.json").read_bytes()
    assert run("--bytes", "8").exit_code != 0
    done = run("--bytes", "8", "-o", str(tmp_path / "small"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "whole/student.json").read_bytes() == before
    assert kgdistil.load_student(tmp_path / "small").weights.blocks.shape[1] == 8


def test_it_is_a_teacher_as_any_other(umls: Graph, tmp_path: Path) -> None:
    student = nested(umls)
    student.save(tmp_path / "whole")
    brought = import_teacher(tmp_path / "whole", umls).model
    assert torch.equal(brought.entities, student.model.entities)
    assert torch.equal(brought.relations, student.model.relations)


def test_a_new_entity_has_its_first_codes_first(umls: Graph) -> None:
    """What is added to the whole student is added to its smaller sizes as it would be to those."""
    whole = nested(umls).student()
    triples = [("new", umls.relations[r], umls.entities[t]) for r, t in ((0, 3), (1, 5), (4, 9), (4, 11), (7, 2))]
    whole.add(triples, save=False)
    assert len(whole.entities) == umls.num_entities + 1
    for size in (4, 8, 16):
        small, ranks = whole.shorter(size), []
        for _, relation, tail in triples:
            answers = small.predict(head="new", relation=relation, k=umls.num_entities + 1)
            ranks.append(list(answers["entity"]).index(tail) + 1)
        assert np.mean(ranks) < umls.num_entities / 6, (size, ranks)


def config_of(depth: int, **more: object) -> kgdistil.RunConfig:
    kinds = {"loss": "softmax", "model": "ComplEx", "dim": 16, "role": "no-ds", "group": 4, "depth": depth}
    return kgdistil.make_config(dataset="umls", **kinds, lr=0.3, schedule="constant", **more)


@pytest.mark.usefixtures("own_folders")
@pytest.mark.parametrize("depth", [4, 8])
def test_smaller_students_have_the_first_floats_of_each_group(umls: Graph, tmp_path: Path, depth: int) -> None:
    given = {"negatives": 64, "batch_size": 128, "patience": 0, "epochs": 16, "check_every": 16}
    config = config_of(depth, **given).model_copy(update={"group": 2 * depth, "spread": True})
    done = kgdistil.run(config, umls, progress=False)
    found = kgdistil.Labelled(done.load(umls), umls).quantised("nested")
    mrr, model = list[float](), found.model
    for d in [d for d in (1, 2, 4, 8) if d <= depth]:
        floats = seen(2 * depth, d, depth)
        assert floats == 4 * max(1, d // 2)
        cut = kgdistil.Labelled(shorter(model, d), umls)
        groups = grouped(cut.model.entities, 2 * depth, True)
        assert not groups[..., floats:].any() and (groups[..., :floats] != 0).any((0, 1)).all()
        mrr.append(cut.evaluate("valid")["both"]["mrr"])
    assert mrr[0] < mrr[-1]
    assert floats == 2 * depth
    found.save(tmp_path / "whole")
    student = kgdistil.load_student(tmp_path / "whole")
    for d in (1, 2):
        answers = student.shorter(8 * d // depth).evaluate()["both"]
        assert answers == pytest.approx(kgdistil.Labelled(shorter(model, d), umls).evaluate()["both"], abs=2e-3)


def test_codebooks_that_are_spread_begin_as_zero_beyond_their_floats() -> None:
    rows = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    book = fit(rows, 8, True, 4, spread=True)
    own = book.unflatten(-1, (2, 4)).abs().sum((1, 2, 4)) > 0  # level, which four of the eight floats
    assert own.tolist() == [[True, False], [True, False], [False, True], [False, True]]
    narrow = fit(rows[:, [0, 1, 4, 5, 8, 9, 12, 13]], 4, True, 2)
    assert torch.equal(book[:2, ..., :4], narrow)


@pytest.mark.usefixtures("own_folders")
def test_one_training_makes_every_size(umls: Graph) -> None:
    """Each size is as good as a training for that size alone, or hardly worse, and has relations of its own."""
    sizes, gains = {"negatives": 64, "batch_size": 128, "patience": 0, "check_every": 5}, []
    for seed in range(3):  # of one, last bits move either by .02 on so small a graph
        done = kgdistil.run(config_of(4, epochs=15, seed=seed, **sizes), umls, progress=False)
        model = done.load(umls)
        found = kgdistil.Labelled(model, umls).quantised("nested")
        whole = found.evaluate("valid")["both"]["mrr"]
        assert whole == pytest.approx(done.record["valid"]["both"]["mrr"], abs=0.02)
        mrr = [kgdistil.Labelled(shorter(found.model, d), umls).evaluate("valid")["both"]["mrr"] for d in (1, 2, 4)]
        alone = kgdistil.run(config_of(1, epochs=5, seed=seed, **sizes), umls, progress=False)
        gains.append(mrr[0] - alone.record["valid"]["both"]["mrr"])
        assert mrr[2] > mrr[0]
    assert sum(gains) / len(gains) > -0.02
    assert not torch.equal(model.relations_1, model.relations_2) and not torch.equal(model.relations_2, model.relations)


def test_codes_that_are_there_get_the_vectors_that_say_rows_best() -> None:
    generator = torch.Generator().manual_seed(1)
    groups, codes = torch.randn(500, 2, 4, generator=generator), torch.randint(16, (500, 4), generator=generator)
    book = means(groups, codes.byte())
    says = lambda book: sum(
        torch.stack([book[i, m, codes[:, 2 * i + m]] for m in range(2)], 1) for i in range(2)
    )  # [n, M, g]
    best = (groups - says(book)).square().sum()
    for i, m, c in ((0, 0, 3), (1, 1, 7), (1, 0, 15)):  # no vector can move without loss
        for by in (0.05, -0.05):
            moved = book.clone()
            moved[i, m, c] += by
            assert (groups - says(moved)).square().sum() > best


@pytest.mark.usefixtures("own_folders")
def test_a_size_begins_with_the_codes_of_a_smaller_student(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay, and so does that student; what was stopped goes on to the same end."""
    given = {"negatives": 64, "batch_size": 128, "patience": 0, "check_every": 4, "epochs": 4}
    wide = kgdistil.run(config_of(1, **given), umls, progress=False)
    start = build_model("ComplEx", umls.num_entities, umls.num_relations, 16, seed=5)
    small = wide.load(umls)
    save_model(records.model_folder("start"), carried(start, small, 4), umls)
    deep = config_of(2, **given).model_copy(update={"student": "start"})
    real = loop.save

    def save_then_stop(*arguments: object) -> None:
        real(*arguments)
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(loop, "save", save_then_stop)
        with pytest.raises(InterruptedError):
            kgdistil.run(deep, umls, progress=False)
    resumed = kgdistil.run(deep, umls, progress=False).load(umls)
    done = kgdistil.run(deep, umls, progress=False, again=True)
    model = done.load(umls)
    assert torch.equal(model.codes[:, :8], start.codes) and not torch.equal(model.entities, small.entities)
    cut = shorter(model, 1)
    assert torch.equal(cut.entities, small.entities) and torch.equal(cut.relations, small.relations)
    assert done.record["valid"]["both"]["mrr"] > wide.record["valid"]["both"]["mrr"]
    assert all(
        torch.equal(x, y) for x, y in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    deeper = config_of(4, **given).model_copy(update={"student": "start"})
    with pytest.raises(ConfigError, match="a student of 8 codes an entity becomes one of twice as many.* have 32"):
        kgdistil.run(deeper, umls, progress=False)
    with pytest.raises(ConfigError, match="are no codes of groups of 4 floats"):
        carried(start, build_model("ComplEx", umls.num_entities, umls.num_relations, 16, seed=5), 4)


def test_other_forms_hold_the_whole_of_it(umls: Graph, tmp_path: Path) -> None:
    """Arrays and an .npz come back as the float32 rows; a FAISS index of the codes gives the student's scores."""
    student = nested(umls)
    rows = student.model.entities.detach()
    export(student, "arrays", tmp_path / "arrays")
    codes, book, columns = (np.load(tmp_path / f"arrays/{name}.npy") for name in ("codes", "codebook", "columns"))
    assert not (tmp_path / "arrays/book_1.npy").exists()
    summed, vectors = np.zeros(rows.shape, np.float32), book[np.arange(len(book)), codes].reshape(len(rows), -1)
    np.add.at(summed, (slice(None), columns), vectors)
    np.testing.assert_allclose(summed, rows, atol=1e-6)
    export(student, "npz", tmp_path / "s.npz")
    for path in ("arrays", "s.npz"):
        assert torch.equal(import_teacher(tmp_path / path, umls).model.entities.detach(), rows)
    faiss = pytest.importorskip("faiss")
    export(student, "faiss", tmp_path / "s.faiss")
    ours, index = student.student(), faiss.read_index(str(tmp_path / "s.faiss"))
    query = {"relation": [umls.relations[4]], "head": [umls.entities[3]]}
    score, _ = index.search(ours.vectors(**query), umls.num_entities)
    queries = ours.weights.queries(np.array([3]), np.array([4]), "tail")
    np.testing.assert_allclose(score[0], np.sort(queries @ rows.numpy().T)[0, ::-1], rtol=1e-4, atol=1e-4)


def test_one_training_is_set_beside_a_training_for_each_size(
    umls: Graph, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes by their own records, passes for all of them; a size that nobody trained has no rival."""
    given = {"dataset": "umls", "dim": 16, "loss": "softmax", "negatives": 64, "lr": 0.1, "batch_size": 1000}
    teacher = make_config(**given, role="teacher", model="ComplEx", epochs=4)
    taught = {**given, "role": "stage1", "model": "ComplEx", "teacher": teacher.run_id, "epochs": 2}
    made = {size: make_config(**taught, group=group) for size, group in ((4, 4), (8, 2))}
    mine = [Cell(FRONTIER, "umls", "ComplEx", "distilled", size, 128) for size in made]
    run(teacher, umls, progress=False)
    monkeypatch.setattr(bench, "cells", lambda graph: mine)
    monkeypatch.setattr(bench, "config", lambda cell: made.get(cell.bytes, teacher))
    monkeypatch.setattr(
        bench, "record_of", lambda cell: records.read_record(records.record_path(made[cell.bytes].run_id))
    )
    with pytest.raises(ConfigError, match=r"umls/ComplEx/distilled/4/128 has no ranks: .*reproduce frontier/umls"):
        bench.main([str(mine[0]), "--depth", "4"])
    for config in made.values():
        run(config, umls, save_ranks=True, progress=False)
    assert bench.main([str(mine[0]), "--depth", "4"]) == 0
    (told,) = json.loads(bench.path().read_text()).values()
    assert (told["run"]["config"]["depth"], told["run"]["epochs"]) == (4, 2 * 3)
    assert [(r["depth"], r["bytes"], r.get("rival")) for r in told["rows"]] == [
        (1, 4, str(mine[0])),
        (2, 8, str(mine[1])),
        (4, 16, None),
    ]
    for row in told["rows"][:2]:
        assert row["gain"] == pytest.approx(row["test"]["both"]["mrr"] - row["rival_mrr"])
        assert row["low"] <= row["gain"] <= row["high"] and len({r["test"]["both"]["mrr"] for r in told["rows"]}) == 3
    assert told["rows"][2]["test"] == told["run"]["test"]
    monkeypatch.setattr(bench, "MILLIONS", (1000,))
    monkeypatch.setattr(bench, "SHORTLISTS", (20, 200))
    assert "--coarse" in pieces(Shown(small))["coarse"]()
    assert bench.main([str(mine[0]), "--depth", "4", "--coarse"]) == 0
    (more,) = json.loads(bench.path().read_text()).values()
    coarse = more.pop("coarse")
    assert more == told and coarse["run"] == told["run"]["id"]
    listed = [(umls.num_entities, n) for n in (0, 20, 200)] + [(1000, n) for n in (0, 20, 200)]
    assert [(r["entities"], r["shortlist"]) for r in coarse["rows"]] == listed
    assert coarse["rows"][0]["same"] == coarse["rows"][2]["same"] == 1 > coarse["rows"][1]["same"] > 0.5
    two = [Cell(FRONTIER, "umls", "ComplEx", "teacher", 64, seed=i) for i in (0, 1)]
    halves = {
        c: make_config(**{**given, "dim": 8}, role="teacher", model="ComplEx", epochs=4, seed=c.seed) for c in two
    }
    wide = make_config(**taught, group=2)
    monkeypatch.setattr(bench, "config", lambda cell: halves.get(cell) or made.get(cell.bytes, teacher))
    asked = [str(mine[1]), "--depth", "4", "--largest", "--spread", *map(str, two)]
    assert bench.main(asked) == 0
    both = json.loads(bench.path().read_text())
    spread = both[f"{mine[1]} spread"]
    assert spread["spread"] == [str(c) for c in two] and both[str(mine[0])] == {**told, "coarse": coarse}
    config = spread["run"]["config"]
    assert config["spread"] and (config["group"], config["dim"], config["epochs"]) == (8, wide.dim, 2 * 3)
    assert config["student"] == joined_name(*(c.run_id for c in halves.values()))
    page = pieces(Shown(small))["nested"]()
    assert "beginning as 2 teachers of 64 bytes" in page
    assert all(f"{size} bytes" in page for size in (4, 8, 16)) and "one student is within" in page
    assert "200" in pieces(Shown(small))["coarse"]()


def test_sizes_are_trained_in_turn(umls: Graph, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the codes of the one before, in the passes of its own, at the rate that validates best."""
    given = {"dataset": "umls", "loss": "softmax", "model": "ComplEx", "negatives": 64, "batch_size": 200}
    teachers = [make_config(**given, role="teacher", dim=16, lr=0.1, epochs=4, seed=seed) for seed in (0, 1)]
    taught = {**given, "role": "stage1", "teacher": teachers[0].run_id, "lr": 0.1, "epochs": 3}
    shapes = {4: (16, 4), 8: (16, 2), 16: (32, 2)}
    made = {size: make_config(**taught, dim=dim, group=group) for size, (dim, group) in shapes.items()}
    mine = [Cell(FRONTIER, "umls", "ComplEx", "distilled", size, 128) for size in made]
    two = [Cell(FRONTIER, "umls", "ComplEx", "teacher", 128, seed=i) for i in (0, 1)]
    monkeypatch.setattr(bench, "cells", lambda graph: mine)
    monkeypatch.setattr(bench, "config", lambda c: made[c.bytes] if c.method == "distilled" else teachers[c.seed])
    monkeypatch.setattr(bench, "record_of", lambda c: records.read_record(records.record_path(made[c.bytes].run_id)))
    run(teachers[0], umls, progress=False)
    for config in made.values():
        run(config, umls, save_ranks=True, progress=False)
    asked = [str(mine[2]), "--depth", "4", "--spread", *map(str, two), "--in-turn", "0.1", "0.4"]
    with pytest.raises(ConfigError, match=r"has 32 dimensions; the first teachers have \[16\] together"):
        bench.main([*asked[:4], str(two[0]), "--in-turn", "0.1"])
    assert bench.main(asked) == 0
    (told,) = json.loads(bench.path().read_text()).values()
    runs = [(x["depth"], x["run"]["config"]["lr"], x["run"]["epochs"]) for x in told["trainings"]]
    assert runs == [(2, 0.1, 3), (4, 0.1, 3), (4, 0.4, 3)]
    first, *last = (x["run"] for x in told["trainings"])
    assert told["run"] == max(last, key=lambda x: x["valid"]["both"]["mrr"])
    assert [x["taken"] for x in told["trainings"]] == [True, *(x == told["run"] for x in last)]
    begun = made[4].model_copy(update={"protocol": "nested"}).run_id  # the frontier's own record stays as it is
    assert first["config"]["student"] == joined_name(teachers[0].run_id, codes=begun)
    one = records.read_record(records.record_path(begun))
    wanted = [x["test"]["both"]["mrr"] for x in (one, first, told["run"])]
    assert [x["test"]["both"]["mrr"] for x in told["rows"]] == pytest.approx(wanted, abs=1e-3)
    assert told["rows"][0]["gain"] == pytest.approx(0, abs=1e-3)
    assert "one after another" in pieces(Shown(small))["nested"]()
    monkeypatch.setattr(bench, "cells", lambda graph: [mine[0], mine[2]])
    with pytest.raises(ConfigError, match="lacks a size of .*umls/ComplEx/distilled/16/128 with fewer codes"):
        bench.main(asked)


@pytest.mark.parametrize("library", [native.default(), None])
def test_ranks_coarse_to_fine(umls: Graph, monkeypatch: pytest.MonkeyPatch, library: str | None) -> None:
    """The best by the first codes, ordered by all codes: the small student's answers, with the whole one's scores."""
    monkeypatch.setattr(native, "default", lambda: library)
    student = nested(umls).student()
    small = student.shorter(4)
    assert student.weights.coarsest.scanner.native == (library or False)
    asked = {"head": list(range(0, umls.num_entities, 7)), "relation": 4, "by": "id", "ids": True}
    for more in ({}, {"new": True}, {"candidates": list(range(3, 90))}):
        every = student.predict(**asked, k=umls.num_entities, **more)
        scores = dict(zip(zip(every["query"], every["id"]), every["score"]))
        few = small.predict(**asked, k=20, **more)
        wanted = [(q, -scores[q, e], e) for q, e in zip(few["query"], few["id"])]
        wanted = [x for q in dict.fromkeys(few["query"]) for x in sorted(x for x in wanted if x[0] == q)[:5]]
        found = student.predict(**asked, k=5, shortlist=20, **more)
        assert list(zip(found["query"], (-x for x in found["score"]), found["id"])) == wanted
        whole = student.predict(**asked, k=5, shortlist=umls.num_entities - 1, **more)
        assert whole.rows() == student.predict(**asked, k=5, **more).rows()


def test_a_shortlist_that_is_none_is_refused(umls: Graph, tmp_path: Path) -> None:
    student, asked = nested(umls).student(), {"head": 3, "relation": 4, "by": "id"}
    with pytest.raises(ConfigError, match=r"shortlist is 5, and k is 10 answers of it: give a larger one"):
        student.predict(**asked, shortlist=5)
    for wrong in (0, 0.0, 1.5, "20", True, -1, [20]):
        with pytest.raises(ConfigError, match="shortlist is .*; it must be a whole number ≥ 1"):
            student.predict(**asked, shortlist=wrong)
    with pytest.raises(ConfigError, match="coverage counts on all entities, and a shortlist misses some"):
        student.predict(**asked, shortlist=50, coverage=0.5)
    with pytest.raises(ConfigError, match="a shortlist is of entities"):
        student.predict(head=3, tail=4, by="id", shortlist=50)
    plain = kgdistil.Labelled(build_model("ComplEx", umls.num_entities, umls.num_relations, 8, seed=1), umls)
    kinds = (plain.quantised("2bit"), "has one size, 2bit"), (plain, "has one size, float32")
    for other, why in (*kinds, (nested(umls, "TransE"), "compared by dist"), (nested(umls, depth=1), "has one size")):
        with pytest.raises(ConfigError, match=f"a shortlist takes a nested student of several sizes .* {why}"):
            other.student().predict(**asked, shortlist=50)
    nested(umls).save(tmp_path / "whole")
    labels = "--head", umls.entities[3], "--relation", umls.relations[4], "-k", "3"
    run = lambda *more: CliRunner().invoke(main, ["predict", str(tmp_path / "whole"), *labels, *more])
    assert run("--shortlist", str(umls.num_entities)).output == run().output
    assert run("--shortlist", "0").exit_code == 2 and run("--shortlist", "2").exit_code != 0
    (tmp_path / "queries.tsv").write_text(f"{umls.entities[3]}\t\t{umls.entities[4]}\n", encoding="utf-8")
    batch = ["predict", str(tmp_path / "whole"), "--batch", str(tmp_path / "queries.tsv"), "--shortlist", "50"]
    assert "shortlist is of entities, leave it out" in CliRunner().invoke(main, batch).output


def test_a_server_ranks_coarse_to_fine(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    student = nested(umls).student()
    client = TestClient(app.application(student), raise_server_exceptions=False)
    asked = {"head": umls.entities[3], "relation": umls.relations[4], "k": 3}
    few = student.predict(ids=True, shortlist=4, **asked).rows()
    assert few != student.predict(ids=True, **asked).rows()
    assert client.get("/predict", params=asked | {"shortlist": 4}).json() == few
    batch = asked | {"head": list(umls.entities[:5]), "shortlist": 20}
    assert client.post("/predict", json=batch).json() == student.predict(ids=True, **batch).rows()
    for wrong, why in ((0, "shortlist: input should be greater"), (2, "shortlist is 2, and k is 3 answers")):
        refused = client.get("/predict", params=asked | {"shortlist": wrong})
        assert refused.status_code == 422 and why in refused.json()["error"]
    monkeypatch.setattr(app, "LISTED", 99)
    assert client.post("/predict", json=batch).json()["error"].startswith("shortlists of 5 queries; one request ranks")
    assert client.post("/predict", json=batch | {"head": batch["head"][:4]}).status_code == 200
