"""Teachers of other libraries: their own scores and metrics, matched by label, and no file's code is ever run."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import kgdistil
from kgdistil import cli
from kgdistil.checkpoint import save_model
from kgdistil.distillation.distil import _keep
from kgdistil.errors import CheckpointError, ConfigError, KgdistilError
from kgdistil.evaluation import evaluate
from kgdistil.graph import Graph
from kgdistil.graphs.importers import Imported, from_arrays, from_pykeen, import_teacher
from kgdistil.graphs.readers import read_graph
from kgdistil.models import KGEModel, build_model
from kgdistil.students.labelled import Labelled

pykeen = pytest.importorskip("pykeen")
MODELS = ("TransE", "TransH", "ComplEx", "RotatE", "DistMult")


@pytest.fixture(scope="module")
def nations() -> Graph:
    return kgdistil.load("nations")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """PyKEEN's result and its saved folder for each model, after two epochs on Nations."""
    from pykeen.pipeline import pipeline

    results = {}
    for name in MODELS:
        result = pipeline(
            dataset="nations",
            model=name,
            model_kwargs={"embedding_dim": 6},
            random_seed=0,
            device="cpu",
            training_kwargs={"num_epochs": 2, "use_tqdm": False, "use_tqdm_batch": False},
            evaluation_kwargs={"use_tqdm": False, "batch_size": 64},
            filter_validation_when_testing=True,
        )
        folder = tmp_path_factory.mktemp(name)
        result.save_to_directory(folder)
        results[name] = result, folder
    return results


def theirs(result, graph: Graph, triples: torch.Tensor) -> torch.Tensor:
    """PyKEEN's scores [n] of triples in our numbering."""
    factory = result.training
    entity = torch.tensor([factory.entity_to_id[label] for label in graph.entities])
    relation = torch.tensor([factory.relation_to_id[label] for label in graph.relations])
    h, r, t = triples.T
    with torch.no_grad():
        return result.model.score_hrt(torch.stack([entity[h], relation[r], entity[t]], dim=1))[:, 0]


@pytest.mark.parametrize("name", MODELS)
def test_pykeens_scores_and_metrics(trained: dict, nations: Graph, name: str) -> None:
    result, folder = trained[name]
    model = from_pykeen(result.model, nations, result.training).model
    everything = torch.cartesian_prod(*(torch.arange(n) for n in (14, 55, 14)))
    with torch.no_grad():
        torch.testing.assert_close(
            model.score_triples(everything), theirs(result, nations, everything), atol=1e-5, rtol=1e-5
        )
    ours = evaluate(model, nations).metrics()["both"]
    for metric, key in (
        ("mrr", "inverse_harmonic_mean_rank"),
        ("hits@10", "hits_at_10"),
        ("mr", "arithmetic_mean_rank"),
    ):
        assert ours[metric] == pytest.approx(result.get_metric(f"both.realistic.{key}"), abs=1e-6)
    read = import_teacher(folder, nations, trust_pickle=True).model
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), read.state_dict().values(), strict=True))


def test_pykeens_rotate_is_of_norm_2_whatever_it_says(trained: dict, nations: Graph, monkeypatch) -> None:
    result, _ = trained["RotatE"]
    monkeypatch.setattr(result.model.interaction, "p", 1)
    found = from_pykeen(result.model, nations, result.training).model.score_triples(nations.test).detach()
    torch.testing.assert_close(found, theirs(result, nations, nations.test), atol=1e-5, rtol=1e-5)


def test_a_pickle_is_refused_until_it_is_trusted(trained: dict, nations: Graph) -> None:
    with pytest.raises(CheckpointError, match=r"is a pickle, which can run any code.*--trust-pickle"):
        import_teacher(trained["TransE"][1], nations)


def test_entities_are_matched_by_label(trained: dict, nations: Graph) -> None:
    result, _ = trained["DistMult"]
    keep = [tuple(nations.label_triple(*x)) for x in nations.known.tolist() if 13 not in (x[0], x[2])]
    smaller = read_graph(np.array(keep, dtype=object))
    found = from_pykeen(result.model, smaller, result.training)
    assert found.notes == ["1 of the teacher's 14 entities do not occur in graph: left out"]
    row = result.model.entity_representations[0](indices=None)[result.training.entity_to_id[smaller.entities[5]]]
    torch.testing.assert_close(found.model.entities[5], row.detach())


def test_entities_the_teacher_does_not_know_are_counted(trained: dict) -> None:
    result, _ = trained["DistMult"]
    rows = [
        ("usa", "embassy", "uk"),
        ("usa", "embassy", "atlantis"),
        ("uk", "embassy", "mu"),
        ("mu", "embassy", "usa"),
        ("uk", "embassy", "usa"),
        ("atlantis", "embassy", "uk"),
        ("mu", "embassy", "uk"),
    ]
    graph = read_graph(np.array(rows, dtype=object))
    with pytest.raises(ConfigError, match="does not know 2 of the 4 entities of graph, such as 'atlantis, mu'"):
        from_pykeen(result.model, graph, result.training)


def test_a_pykeen_model_that_no_equation_here_covers(nations: Graph) -> None:
    from pykeen.datasets import Nations
    from pykeen.models import HolE, TransE

    plain, inverse = Nations().training, Nations(create_inverse_triples=True).training
    with pytest.raises(ConfigError, match="PyKEEN's HolE cannot be imported"):
        from_pykeen(HolE(triples_factory=plain, embedding_dim=4), nations, plain)
    with pytest.raises(ConfigError, match="inverse triples"):
        from_pykeen(TransE(triples_factory=inverse, embedding_dim=4), nations, inverse)
    with pytest.raises(ConfigError, match="norm 3"):
        from_pykeen(TransE(triples_factory=plain, embedding_dim=4, scoring_fct_norm=3), nations, plain)


class Config:
    """As LibKGE's, whose checkpoints hold one."""


Config.__module__, Config.__qualname__ = "kge.config", "Config"


@pytest.fixture
def libkge(tmp_path: Path, nations: Graph, monkeypatch: pytest.MonkeyPatch):
    """Writes a checkpoint laid out as LibKGE's, entities in reverse order."""
    import sys
    import types

    module = types.ModuleType("kge.config")
    module.Config = Config

    def write(name: str, entity: torch.Tensor, relation: torch.Tensor, labels: bool = True) -> Path:
        config = Config()
        config.options = {"model": name, name: {"l_norm": 2.0}}
        state = {
            "_entity_embedder._embeddings.weight": entity.flip(0),
            "_relation_embedder._embeddings.weight": relation,
        }
        meta = {"entity_ids": list(nations.entities[::-1]), "relation_ids": list(nations.relations)}
        checkpoint = {
            "type": "package",
            "config": config,
            "model": (state, {}),
            "dataset": {"meta": meta if labels else None},
        }
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "kge", types.ModuleType("kge"))
            patch.setitem(sys.modules, "kge.config", module)
            torch.save(checkpoint, tmp_path / "checkpoint.pt")
        if not labels:
            for file, words in (("entity_ids", nations.entities[::-1]), ("relation_ids", nations.relations)):
                lines = "".join(f"{i}\t{word}\n" for i, word in enumerate(words))
                (tmp_path / f"{file}.del").write_text(lines)
        return tmp_path / "checkpoint.pt"

    return write


@pytest.mark.parametrize("labels", [True, False])
def test_libkge_scores(libkge, nations: Graph, labels: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    entity, angle = torch.randn(14, 8, generator=generator), 9 * torch.randn(55, 4, generator=generator)
    triples = nations.test
    h, r, t = (x for x in (entity[triples[:, 0]], angle[triples[:, 1]], entity[triples[:, 2]]))
    h, t = (torch.complex(x[:, :4], x[:, 4:]) for x in (h, t))
    rotate = -torch.linalg.vector_norm((h * torch.polar(torch.ones_like(r), r) - t).abs(), 2, dim=1)
    model = import_teacher(libkge("rotate", entity, angle, labels), nations).model
    torch.testing.assert_close(model.score_triples(triples).detach(), rotate, atol=1e-5, rtol=1e-5)
    relation = torch.randn(55, 8, generator=generator)
    model = import_teacher(libkge("complex", entity, relation, labels), nations).model
    c = torch.complex(*relation[triples[:, 1]].chunk(2, 1))
    torch.testing.assert_close(
        model.score_triples(triples).detach(), (h * c * t.conj()).sum(1).real, atol=1e-5, rtol=1e-5
    )
    h, r, t = (x for x in (entity[triples[:, 0]], relation[triples[:, 1]], entity[triples[:, 2]]))
    for name, wanted in (("transe", -torch.linalg.vector_norm(h + r - t, dim=1)), ("distmult", (h * r * t).sum(1))):
        model = import_teacher(libkge(name, entity, relation, labels), nations).model
        torch.testing.assert_close(model.score_triples(triples).detach(), wanted, atol=1e-5, rtol=1e-5)


def test_libkge_models_that_cannot_be_imported(libkge, nations: Graph) -> None:
    with pytest.raises(CheckpointError, match="'conve' cannot be imported"):
        import_teacher(libkge("conve", torch.zeros(14, 8), torch.zeros(55, 8)), nations)


class Bomb:
    """Its pickle makes a file when it is read by a loader that runs code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_files_code_is_run(tmp_path: Path, nations: Graph) -> None:
    trap = tmp_path / "boom"
    torch.save({"config": Bomb(trap)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Bomb(trap)))
    np.savez(tmp_path / "c.npz", entities=np.array([Bomb(trap)], dtype=object), relations=np.zeros((1, 2)))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "trained_model.pkl").write_bytes(pickle.dumps(Bomb(trap)))
    for name in ("a.pt", "b.pt", "c.npz", "d"):
        with pytest.raises(CheckpointError):
            import_teacher(tmp_path / name, nations)
    assert not trap.exists()
    pickle.loads((tmp_path / "b.pt").read_bytes()).close()
    assert trap.exists()  # so the trap would have worked


def test_arrays_with_labels(nations: Graph, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    entities, relations = rng.normal(size=(14, 6)), rng.normal(size=(55, 6)).astype(np.float16)
    order = rng.permutation(14)
    labels = [nations.entities[i] for i in order]
    model = from_arrays("distmult", entities[order], relations, labels, nations.relations, nations).model
    np.testing.assert_allclose(model.entities.detach(), entities, rtol=1e-6)
    np.savez(
        tmp_path / "w.npz",
        entities=entities[order],
        relations=relations,
        entity_labels=labels,
        relation_labels=nations.relations,
    )
    assert torch.equal(import_teacher(tmp_path / "w.npz", nations, model="DistMult").model.entities, model.entities)
    with pytest.raises(ConfigError, match="does not say which model it holds: give --model"):
        import_teacher(tmp_path / "w.npz", nations)


@pytest.mark.parametrize(
    "change, line",
    [
        ({"model": "ConvE"}, "'ConvE' cannot be imported"),
        ({"model": "ComplEx", "entities": np.zeros((14, 5))}, "are not those of a ComplEx"),
        ({"entities": np.zeros(14)}, "must be numbers"),
        ({"entities": np.full((14, 6), "x")}, "must be numbers"),
        ({"entities": np.full((14, 6), np.nan)}, "hold NaN"),
        ({"entity_labels": ["usa"] * 14}, "14 entities with 14 labels, 1 of them different"),
    ],
)
def test_arrays_that_do_not_fit(nations: Graph, change: dict, line: str) -> None:
    good = {
        "model": "DistMult",
        "entities": np.zeros((14, 6)),
        "relations": np.zeros((55, 6)),
        "entity_labels": nations.entities,
        "relation_labels": nations.relations,
    }
    from_arrays(**good, graph=nations)
    with pytest.raises(CheckpointError, match=line):
        from_arrays(**{**good, **change}, graph=nations)


@pytest.mark.parametrize("name", ["TransH", "RotatE"])
def test_a_pykeen_users_model_becomes_a_student_with_one_command(trained: dict, tmp_path: Path, name: str) -> None:
    """The two whose equations differ from this package's own."""
    out = tmp_path / "student"
    environment = {k: v for k, v in os.environ.items() if k not in ("KGDISTIL_RUNS", "KGDISTIL_RESULTS")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kgdistil.cli",
            "distill",
            "pykeen:nations",
            "--teacher",
            str(trained[name][1]),
            "--trust-pickle",
            "--dim",
            "2",
            "--epochs",
            "2",
            "--stages",
            "2",
            "--json",
            "-o",
            str(out),
        ],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    theirs = trained[name][0].get_metric("both.realistic.inverse_harmonic_mean_rank")
    assert told["metrics"][0]["model"] == "teacher" and told["metrics"][0]["mrr"] == pytest.approx(theirs, abs=1e-6)
    assert type(kgdistil.load_labelled(out).model).__name__ == name
    saved = next((tmp_path / "student.training" / "teachers").iterdir())
    teacher = kgdistil.load_model(saved)
    if name == "RotatE":  # a soft label σ(f) needs a zero between true and false; the ranks stay
        scores = torch.cat([teacher.score_triples(x) for x in corrupted(kgdistil.load("nations"))])
        assert teacher.offset > 0 and 0.3 < scores.sigmoid().mean() < 0.7
    assert kgdistil.load_model(saved, read_graph("pykeen:nations")).norm == 2


def corrupted(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """Test triples, and the same with other tails."""
    false = graph.test.clone()
    false[:, 2] = (false[:, 2] + 5) % graph.num_entities
    return graph.test, false


# ---- conventions ----------------------------------------------------------------------------------------------------
def graph_of(model: KGEModel, name: str = "made") -> Graph:
    """The graph that a model knows by heart: for each head and relation the tail that it finds most plausible."""
    heads = torch.arange(model.num_entities)
    rows = []
    for r in range(model.num_relations):
        scores = model.score_tails(heads, torch.full_like(heads, r)).detach()
        scores[heads, heads] = -torch.inf
        rows.append(torch.stack([heads, torch.full_like(heads, r), scores.argmax(1)], dim=1))
    triples = torch.cat(rows)
    words = [tuple(f"{x}{i:03}" for i in range(n)) for x, n in (("e", model.num_entities), ("r", model.num_relations))]
    return Graph(name, triples, triples[:5], triples[5:10], words[0], words[1], "0" * 64)


def known_model(name: str, dim: int = 8, norm: int = 1, **options: float) -> KGEModel:
    model = build_model(name, 60, 5, dim, norm=norm, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for table in model.parameters():
            table.copy_(torch.randn(table.shape, generator=generator))
    return model


def turns(model: KGEModel) -> torch.Tensor:
    """RotatE's angles, [R, d], in (-π, π]."""
    real, imaginary = model.rotation(model.relations.detach()).chunk(2, dim=1)
    return torch.atan2(imaginary, real)


def interleaved(x: torch.Tensor) -> torch.Tensor:
    return torch.stack(x.chunk(2, dim=1), dim=-1).flatten(1)


def arrays(model: KGEModel, convention: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's numbers as another library lays them out."""
    entities, relations = model.entities.detach(), model.relations.detach()
    if type(model).__name__ == "ComplEx":
        return (interleaved(entities), interleaved(relations)) if convention == "pykeen" else (entities, relations)
    angle = turns(model)
    if convention == "pykeen":
        return interleaved(entities), interleaved(torch.cat([angle.cos(), angle.sin()], dim=1))
    if convention == "pykeen, angles":
        return interleaved(entities), angle
    scale = {"kgdistil": 2.0, "libkge": model.dim * np.pi, "dgl-ke": 14.0, "kgemb": 14.0, "openke": 14.0}[convention]
    return entities, angle * scale / (model.dim * np.pi)


@pytest.mark.parametrize(
    ("name", "convention", "norm"),
    [
        ("RotatE", "kgdistil", 1),
        ("RotatE", "libkge", 1),
        ("RotatE", "dgl-ke", 1),
        ("RotatE", "kgemb", 1),
        ("RotatE", "openke", 1),
        ("RotatE", "pykeen", 2),
        ("RotatE", "pykeen, angles", 2),
        ("ComplEx", "libkge", 1),
        ("ComplEx", "pykeen", 1),
    ],
)
def test_arrays_of_a_convention(name: str, convention: str, norm: int) -> None:
    model = known_model(name, norm=norm)
    graph, given = graph_of(model), arrays(model, convention)
    gamma = 12.0 if convention in ("dgl-ke", "kgemb", "openke") else None
    words, asked = (graph.entities, graph.relations), convention.split(",", maxsplit=1)[0]
    found = from_arrays(name, *given, *words, graph, convention=asked, gamma=gamma)
    wanted = model.score_triples(graph.train) + (gamma or 0)
    torch.testing.assert_close(found.model.score_triples(graph.train), wanted, atol=1e-4, rtol=1e-4)
    if (asked in ("kgdistil", "libkge") and name == "ComplEx") or asked == "kgdistil":
        assert evaluate(from_arrays(name, *given, *words, graph).model, graph).metrics()["tail"]["mrr"] == 1
        return
    with pytest.raises(ConfigError, match=f"give --convention ({asked}|dgl-ke)") as caught:
        from_arrays(name, *given, *words, graph)  # read as this package's
    if name == "RotatE" and gamma:
        assert "--gamma" in str(caught.value)


@pytest.mark.parametrize("name", ["RotatE", "ComplEx", "DistMult"])
def test_a_teacher_that_does_not_belong_to_the_graph_is_said(name: str) -> None:
    model = known_model(name)
    graph = graph_of(model)
    entities, relations = (x.detach() for x in (model.entities, model.relations))
    convention = "libkge" if name == "RotatE" else "kgdistil"
    relations = turns(model) if name == "RotatE" else relations
    order = torch.randperm(len(entities), generator=torch.Generator().manual_seed(0))
    swapped = torch.cat(entities.chunk(2, dim=1)[::-1], dim=1)
    wrong = {
        "permuted rows": (entities[order], relations),
        "swapped halves": (swapped, relations),
        "negated relations": (entities, -relations),
    }
    (right,) = from_arrays(name, entities, relations, *words(graph), graph, convention=convention).notes or [""]
    assert "chance" not in right
    for what, tables in wrong.items():
        (note,) = from_arrays(name, *tables, *words(graph), graph, convention=convention).notes
        assert "little better than chance (0." in note and "probably do not belong to this graph" in note, what
        assert "no other reading has more" not in note


def words(graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return graph.entities, graph.relations


def test_a_folder_of_this_package_that_does_not_belong_to_the_graph_is_said(tmp_path: Path) -> None:
    model = known_model("TransE")
    graph = graph_of(model)
    save_model(tmp_path / "right", model, graph)
    assert import_teacher(tmp_path / "right", graph).notes == []
    with torch.no_grad():
        model.entities.copy_(model.entities.flip(0).clone())
    save_model(tmp_path / "wrong", model, graph)
    (note,) = import_teacher(tmp_path / "wrong", graph).notes
    assert "little better than chance" in note


@pytest.mark.parametrize("whole", [False, True])
def test_angles_in_degrees_are_called_so(whole: bool) -> None:
    model = known_model("RotatE")
    graph = graph_of(model)
    degrees = torch.rad2deg(turns(model))
    degrees[0, 0] = 179.9  # as large as degrees may be
    degrees = degrees % 360 if whole else degrees
    for convention in (None, "libkge"):
        with pytest.raises(ConfigError, match="read as angles in degrees, .* radians, .* with --convention libkge"):
            from_arrays("RotatE", model.entities, degrees, *words(graph), graph, convention=convention)


def test_angles_in_turns_are_called_so() -> None:
    model = known_model("RotatE")
    graph = graph_of(model)
    with pytest.raises(ConfigError, match="read as angles in turns, .* radians, 6.28319 times what they are"):
        from_arrays("RotatE", model.entities, turns(model) / (2 * np.pi), *words(graph), graph)


def test_a_teacher_that_is_not_there(nations: Graph) -> None:
    for name in ("nothing.npz", "n" * 5000):
        with pytest.raises(CheckpointError, match="is not there") as caught:
            import_teacher(name, nations)
        assert len(str(caught.value)) < 300


def test_the_command_asks_for_a_convention(tmp_path: Path) -> None:
    model = known_model("RotatE")
    graph = graph_of(model)
    rows = [graph.label_triple(*row) for row in graph.train.tolist()]
    (tmp_path / "g.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    entities, relations = (x.numpy() for x in arrays(model, "libkge"))
    labels = {"entity_labels": np.array(graph.entities), "relation_labels": np.array(graph.relations)}
    np.savez(tmp_path / "w.npz", entities=entities, relations=relations, **labels)
    command = ["import", str(tmp_path / "w.npz"), "--model", "RotatE", "--graph", str(tmp_path / "g.tsv")]
    command += ["-o", str(tmp_path / "teacher"), "--json"]
    refused = CliRunner().invoke(cli.main, command)
    assert refused.exit_code == 1 and "--convention libkge" in refused.stderr
    done = CliRunner().invoke(cli.main, [*command, "--convention", "libkge"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["test"]["mrr"] > 0.5 and "no other reading has more" in done.stdout


@pytest.mark.parametrize("name", ["TransE", "TransH", "RotatE"])
def test_the_norm_of_a_distance_is_asked_for(name: str) -> None:
    model = known_model(name, dim=2, norm=2)
    graph = graph_of(model)
    given = (model.entities, model.relations, graph.entities, graph.relations, graph)
    found = from_arrays(name, *given, norm=2)
    torch.testing.assert_close(found.model.score_triples(graph.train), model.score_triples(graph.train))
    (note,) = from_arrays(name, *given, norm=1, convention="kgdistil").notes
    assert "norm 2" in note and "if that is meant" in note


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"convention": "mine"}, "convention is 'mine': choose one of kgdistil, pykeen"),
        ({"norm": 3}, "norm is 3"),
        ({"convention": "dgl-ke", "gamma": float("nan")}, "gamma is nan: it must be above 0"),
        ({"convention": "dgl-ke", "gamma": -3.0}, "gamma is -3.0: it must be above 0"),
        ({"convention": "dgl-ke"}, "scales RotatE's angles by γ: give it with --gamma"),
        ({"convention": "torchkge"}, "torchkge has no RotatE"),
    ],
)
def test_conventions_that_cannot_be(change: dict, line: str) -> None:
    model = known_model("RotatE")
    graph = graph_of(model)
    with pytest.raises(ConfigError, match=line):
        from_arrays("RotatE", model.entities, model.relations, graph.entities, graph.relations, graph, **change)


# ---- other libraries' files, against their published formulas -------------------------------------------------------
def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shuffled(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the rows of another library stand that numbers entities and relations in another order."""
    return torch.arange(graph.num_entities).flip(0), torch.roll(torch.arange(graph.num_relations), 7)


def label_files(folder: Path, graph: Graph, kind: str) -> None:
    folder.mkdir(exist_ok=True)
    entity, relation = shuffled(graph)
    for labels, order, name in (
        (graph.entities, entity, {"tsv": "entities.tsv", "openke": "entity2id.txt", "json": "ent2ix.json"}[kind]),
        (graph.relations, relation, {"tsv": "relations.tsv", "openke": "relation2id.txt", "json": "rel2ix.json"}[kind]),
    ):
        words = [labels[i] for i in order.argsort()]
        text = {
            "tsv": "".join(f"{i}\t{x}\n" for i, x in enumerate(words)),
            "openke": f"{len(words)}\n" + "".join(f"{x}\t{i}\n" for i, x in enumerate(words)),
            "json": json.dumps({x: i for i, x in enumerate(words)}),
        }[kind]
        (folder / name).write_text(text)


def rows_of(graph: Graph, entities: torch.Tensor, relations: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Head, relation and tail rows of the test triples, of tables in the other library's order."""
    entity, relation = shuffled(graph)
    h, r, t = graph.test.T
    return entities[entity[h]], relations[relation[r]], entities[entity[t]]


def same_scores(found: Imported, graph: Graph, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.model.score_triples(graph.test).detach(), wanted, atol=1e-4, rtol=1e-4)


def re_hrt(h: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Re(Σ h·r·t̄) of rows [real | imaginary]."""
    h, r, t = (torch.complex(*x.chunk(2, dim=1)) for x in (h, r, t))
    return (h * r * t.conj()).sum(1).real


DGLKE = {
    "TransE": (6, 6, lambda h, r, t: 10 - (h + r - t).norm(dim=1)),
    "TransE_l1": (6, 6, lambda h, r, t: 10 - (h + r - t).abs().sum(1)),
    "DistMult": (6, 6, lambda h, r, t: (h * r * t).sum(1)),
    "ComplEx": (6, 6, re_hrt),
    "RotatE": (
        6,
        3,
        lambda h, r, t: 10 - (cx(h) * torch.polar(torch.ones_like(r), r * np.pi * 3 / 12) - cx(t)).abs().sum(1),
    ),
}


def cx(x: torch.Tensor) -> torch.Tensor:
    return torch.complex(*x.chunk(2, dim=1))


@pytest.mark.parametrize("name", DGLKE)
def test_dglke(tmp_path: Path, nations: Graph, name: str) -> None:
    width, relation_width, score = DGLKE[name]
    entities, relations = drawn(14, width), drawn(55, relation_width, seed=1)
    np.save(tmp_path / f"nations_{name}_entity.npy", entities.numpy())
    np.save(tmp_path / f"nations_{name}_relation.npy", relations.numpy())
    (tmp_path / "config.json").write_text(json.dumps({"model_name": name, "gamma": 10.0, "hidden_dim": 3}))
    with pytest.raises(CheckpointError, match="no labels in .*entities.tsv and relations.tsv"):
        import_teacher(tmp_path, nations)
    label_files(tmp_path / "data", nations, "tsv")
    found = import_teacher(tmp_path, nations, labels=tmp_path / "data")
    same_scores(found, nations, score(*rows_of(nations, entities, relations)))
    label_files(tmp_path, nations, "tsv")
    same_scores(import_teacher(tmp_path, nations), nations, score(*rows_of(nations, entities, relations)))
    (tmp_path / "config.json").unlink()
    if name == "RotatE":
        with pytest.raises(ConfigError, match="give --gamma"):
            import_teacher(tmp_path, nations)
        same_scores(import_teacher(tmp_path, nations, gamma=10), nations, score(*rows_of(nations, entities, relations)))
    else:
        assert type(import_teacher(tmp_path, nations).model).__name__ in name


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True)


def test_openke(tmp_path: Path, nations: Graph) -> None:
    label_files(tmp_path, nations, "openke")
    path, extra = tmp_path / "m.ckpt", {"zero_const": torch.zeros(1), "pi_const": torch.tensor([3.14159])}
    entities, relations = drawn(14, 6), drawn(55, 6, seed=1)
    state = {"ent_embeddings.weight": entities, "rel_embeddings.weight": relations, **extra}
    torch.save(state, path)
    with pytest.raises(ConfigError, match="give --model TransE or --model DistMult"):
        import_teacher(path, nations)
    h, r, t = rows_of(nations, entities, relations)
    for norm in (1, 2):
        wanted = -(unit(h) + unit(r) - unit(t)).norm(p=norm, dim=1)
        same_scores(import_teacher(path, nations, model="TransE", norm=norm), nations, wanted)
    plain = import_teacher(path, nations, model="TransE", convention="kgdistil")  # norm_flag=False
    same_scores(plain, nations, -(h + r - t).abs().sum(1))
    same_scores(import_teacher(path, nations, model="DistMult"), nations, (h * r * t).sum(1))
    torch.save({**state, "margin": torch.tensor([5.0])}, path)
    wanted = 5 - (unit(h) + unit(r) - unit(t)).abs().sum(1)
    same_scores(import_teacher(path, nations, model="TransE"), nations, wanted)
    angle = drawn(55, 3, seed=2)
    state |= {"rel_embeddings.weight": angle, "margin": torch.tensor([6.0])}
    torch.save(
        {**state, "rel_embedding_range": torch.tensor([8 / 3]), "ent_embedding_range": torch.tensor([4 / 3])}, path
    )
    h, r, t = rows_of(nations, entities, angle)
    turned = cx(h) * torch.polar(torch.ones_like(r), r * np.pi / (8 / 3))
    same_scores(import_teacher(path, nations), nations, 6 - (turned - cx(t)).abs().sum(1))
    parts = {
        "ent_re": entities[:, :3],
        "ent_im": entities[:, 3:],
        "rel_re": relations[:, :3],
        "rel_im": relations[:, 3:],
    }
    torch.save({f"{name}_embeddings.weight": x.clone() for name, x in parts.items()}, path)
    same_scores(import_teacher(path, nations), nations, re_hrt(*rows_of(nations, entities, relations)))
    torch.save(
        {"ent_embeddings.weight": entities, "rel_embeddings.weight": relations, "norm_vector.weight": relations}, path
    )
    with pytest.raises(CheckpointError, match="models with norm_vector cannot be imported"):
        import_teacher(path, nations)


def test_torchkge(tmp_path: Path, nations: Graph) -> None:
    label_files(tmp_path, nations, "json")
    path, entities, relations = tmp_path / "m.pt", drawn(14, 6), drawn(55, 6, seed=1)
    h, r, t = rows_of(nations, entities, relations)
    state = {"ent_emb.weight": entities, "rel_emb.weight": relations}
    torch.save(state, path)
    found = import_teacher(path, nations, model="TransE")  # theirs are the squares of ours
    same_scores(found, nations, -(unit(h) + r - unit(t)).norm(dim=1))
    assert any("squared" in note for note in found.notes)
    same_scores(import_teacher(path, nations, model="TransE", norm=1), nations, -(unit(h) + r - unit(t)).abs().sum(1))
    same_scores(import_teacher(path, nations, model="DistMult"), nations, (unit(h) * r * unit(t)).sum(1))
    normals = drawn(55, 6, seed=2)
    torch.save({**state, "norm_vect.weight": normals, "projected_entities": torch.zeros(55, 14, 6)}, path)
    w = unit(rows_of(nations, entities, normals)[1])
    low = [x - (x * w).sum(1, keepdim=True) * w for x in (unit(h), unit(t))]
    same_scores(import_teacher(path, nations), nations, -(low[0] + r - low[1]).norm(dim=1))
    parts = {
        "re_ent": entities[:, :3],
        "im_ent": entities[:, 3:],
        "re_rel": relations[:, :3],
        "im_rel": relations[:, 3:],
    }
    torch.save({f"{name}_emb.weight": x.clone() for name, x in parts.items()}, path)
    same_scores(import_teacher(path, nations), nations, re_hrt(h, r, t))
    torch.save({"ent_emb.weight": entities, "rel_mat.weight": drawn(55, 36)}, path)
    with pytest.raises(CheckpointError, match="TransE, TransH, DistMult and ComplEx can"):
        import_teacher(path, nations)


def biggraph(
    folder: Path, graph: Graph, operator: str, comparator: str, parameters: dict, **config: object
) -> torch.Tensor:
    """A checkpoint laid out as PyTorch-BigGraph's, its entities in two partitions; returns their table."""
    h5py = pytest.importorskip("h5py")
    entities, (entity, relation) = drawn(14, 6), shuffled(graph)
    words, names = (
        [labels[i] for i in order.argsort()]
        for labels, order in ((graph.entities, entity), (graph.relations, relation))
    )
    for part, rows in enumerate((slice(0, 9), slice(9, 14))):
        with h5py.File(folder / f"embeddings_all_{part}.v7.h5", "w") as file:
            file["embeddings"] = entities[rows].numpy()
        (folder / f"entity_names_all_{part}.json").write_text(json.dumps(words[rows]))
    relations = [{"name": name, "lhs": "all", "rhs": "all", "operator": operator} for name in names]
    if config.get("dynamic_relations"):
        relations = [{**relations[0], "name": "all_edges"}]
        (folder / "dynamic_rel_names.json").write_text(json.dumps(names))
    with h5py.File(folder / "model.v7.h5", "w") as file:
        for name, table in parameters.items():
            if config.get("dynamic_relations"):
                file[f"model/relations/0/operator/{name}"] = table.numpy()
            elif name == "global":
                file["model/entities/all/global_embedding"] = table.numpy()
            else:
                for i, row in enumerate(table):
                    file[f"model/relations/{i}/operator/rhs/{name}"] = row.numpy()
    about = {
        "entities": {"all": {"num_partitions": 2}},
        "relations": relations,
        "comparator": comparator,
        "global_emb": False,
    }
    (folder / "config.json").write_text(json.dumps({**about, **config}))
    (folder / "checkpoint_version.txt").write_text("7\n")
    return entities


def test_biggraph(tmp_path: Path, nations: Graph) -> None:
    first, second, whole = drawn(55, 3, seed=1), drawn(55, 3, seed=2), drawn(55, 6, seed=3)
    entities = biggraph(tmp_path, nations, "complex_diagonal", "dot", {"real": first, "imag": second})
    h, r, t = rows_of(nations, entities, torch.cat([first, second], dim=1))
    turned = cx(t) * cx(r)
    wanted = (h * torch.cat([turned.real, turned.imag], dim=1)).sum(1)
    same_scores(import_teacher(tmp_path, nations), nations, wanted)
    everywhere = drawn(1, 6, seed=4)
    biggraph(tmp_path, nations, "diagonal", "dot", {"diagonal": whole, "global": everywhere[0]}, global_emb=True)
    h, r, t = rows_of(nations, entities + everywhere, whole)
    same_scores(import_teacher(tmp_path, nations), nations, (h * r * t).sum(1))
    biggraph(tmp_path, nations, "translation", "l2", {"translation": whole})
    h, r, t = rows_of(nations, entities, whole)
    same_scores(import_teacher(tmp_path, nations), nations, -(h - (t + r)).norm(dim=1))
    both = {"lhs/diagonals": whole, "rhs/diagonals": drawn(55, 6, seed=5)}
    biggraph(tmp_path, nations, "diagonal", "dot", both, dynamic_relations=True)
    other = rows_of(nations, entities, both["rhs/diagonals"])[1]
    found = import_teacher(tmp_path, nations)
    same_scores(found, nations, ((h * r * t).sum(1) + (h * other * t).sum(1)) / 2)
    assert any("each direction" in note for note in found.notes)
    for operator, comparator, more in (
        ("linear", "dot", {}),
        ("diagonal", "cos", {}),
        ("diagonal", "dot", {"bias": True}),
    ):
        biggraph(tmp_path, nations, operator, comparator, {}, **more)
        with pytest.raises(CheckpointError, match="are no model that can be imported"):
            import_teacher(tmp_path, nations)
    (tmp_path / "entity_names_all_1.json").unlink()
    with pytest.raises(CheckpointError, match="entity_names_all_1.json is not in"):
        import_teacher(tmp_path, nations)


# ---- what a file claims ---------------------------------------------------------------------------------------------
def npz(path: Path, graph: Graph, **change: np.ndarray) -> Path:
    labels = {"entity_labels": np.array(graph.entities), "relation_labels": np.array(graph.relations)}
    values = {
        "entities": np.ones((14, 6), np.float32),
        "relations": np.ones((55, 6), np.float32),
        "model": np.array("DistMult"),
    }
    np.savez_compressed(path, **{**values, **labels, **change})
    return path


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"entities_scale": np.ones(1, np.float32)}, r"entities_scale has shape \(1,\), and there are 14 entities"),
        (
            {"entities_scale": np.ones(40_000, np.float32), "entities": np.ones((1, 40_000), np.int8)},
            "there are 1 entities",
        ),
        ({"entities": np.zeros((100_000, 0), np.float32)}, "must be numbers"),
        ({"entities": np.zeros((1 << 11, 1 << 11), np.int8)}, "more than the .* that reading it may take"),
        ({"entities_book": np.zeros((6, 16, 3), np.float16)}, "a codebook of shape"),
        ({"entities_book": np.zeros((6, 16, 1), np.float16)}, "the numbers are not 4bit"),
        ({"offset": np.array(np.inf)}, "must be finite"),
        ({"norm": np.array([1, 2])}, "norm is no single value"),
        (
            {"entity_labels": np.array(list("abc"), dtype=object)},
            r"save labels as texts, np.array\(labels, dtype=str\)",
        ),
        ({"relation_labels": np.frombuffer(b"[1, 2]", np.uint8)}, "no list of texts"),
    ],
)
def test_an_npz_that_claims_too_much(tmp_path: Path, nations: Graph, monkeypatch, change: dict, line: str) -> None:
    monkeypatch.setattr("kgdistil.graphs.limits.LIMIT", 1 << 20)
    bomb = {"unasked": np.zeros((1 << 12, 1 << 12))}  # 128 MiB that nobody asked for
    import_teacher(npz(tmp_path / "good.npz", nations, **bomb), nations)
    with pytest.raises(CheckpointError, match=line):
        import_teacher(npz(tmp_path / "w.npz", nations, **change), nations)


def test_checkpoints_that_unpack_to_much(tmp_path: Path, nations: Graph, monkeypatch) -> None:
    monkeypatch.setattr("kgdistil.graphs.limits.LIMIT", 1 << 20)
    label_files(tmp_path, nations, "openke")
    state = {"ent_embeddings.weight": torch.zeros(1 << 20, 2), "rel_embeddings.weight": torch.zeros(55, 2)}
    torch.save(state, tmp_path / "plain.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as old,
        zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(CheckpointError, match="more than the .* that reading it may take"):
        import_teacher(tmp_path / "a.ckpt", nations, model="DistMult")
    state["ent_embeddings.weight"] = torch.zeros(1).expand(1 << 30, 4)  # four bytes that stand for 16 GiB
    torch.save(state, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="larger than it is"):
        import_teacher(tmp_path / "b.ckpt", nations, model="DistMult")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, nations: Graph) -> dict[str, Path]:
    """A good file or folder of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("dgl", "openke", "big"):
        (folder / name).mkdir()
    label_files(folder / "dgl", nations, "tsv"), label_files(folder / "openke", nations, "openke")
    np.save(folder / "dgl" / "x_DistMult_entity.npy", drawn(14, 4).numpy())
    np.save(folder / "dgl" / "x_DistMult_relation.npy", drawn(55, 4).numpy())
    (folder / "dgl" / "config.json").write_text('{"model_name": "DistMult", "gamma": 12.0}')
    state = {"ent_embeddings.weight": drawn(14, 4), "rel_embeddings.weight": drawn(55, 4)}
    torch.save(state, folder / "openke" / "m.ckpt")
    biggraph(folder / "big", nations, "diagonal", "dot", {"diagonal": drawn(55, 6)})
    npz(folder / "w.npz", nations)
    paths = {
        "dgl": folder / "dgl",
        "openke": folder / "openke" / "m.ckpt",
        "big": folder / "big",
        "npz": folder / "w.npz",
    }
    for path in paths.values():
        import_teacher(path, nations, model="DistMult")
    return paths


@settings(max_examples=400)
@given(st.data(), st.sampled_from(["dgl", "openke", "big", "npz"]))
def test_a_damaged_teacher_is_one_line_or_still_a_model(whole: dict, nations: Graph, data, kind: str) -> None:
    path = whole[kind]
    files = sorted((path if path.is_dir() else path.parent).iterdir()) if kind != "npz" else [path]
    victim = data.draw(st.sampled_from([file for file in files if file.is_file()]))
    content = victim.read_bytes()
    at, junk = data.draw(st.integers(0, len(content))), data.draw(st.binary(min_size=1, max_size=12))
    damage = data.draw(st.sampled_from(["cut", "overwrite", "insert", "anything"]))
    damaged = {
        "cut": content[:at],
        "overwrite": content[:at] + junk + content[at + len(junk) :],
        "insert": content[:at] + junk + content[at:],
        "anything": junk,
    }[damage]
    victim.write_bytes(damaged)
    try:
        found = import_teacher(path, nations, model="DistMult")
    except KgdistilError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert torch.isfinite(found.model.score_triples(nations.test)).any()
    finally:
        victim.write_bytes(content)


def test_what_a_teacher_says_itself_is_not_said_again(tiny_graph: Graph, tmp_path: Path) -> None:
    labelled = Labelled(build_model("ComplEx", tiny_graph.num_entities, tiny_graph.num_relations, 4), tiny_graph)
    labelled.save(tmp_path / "s")
    for more in ({"convention": "nonsense"}, {"norm": 2}, {"gamma": 3.0}, {"labels": str(tmp_path)}):
        (name, value), *_ = more.items()
        with pytest.raises(ConfigError, match=re.escape(f"{name} is {value!r}: {tmp_path}/s says it itself; leave")):
            import_teacher(tmp_path / "s", tiny_graph, **more)
    lines = [
        "\t".join((tiny_graph.entities[h], tiny_graph.relations[r], tiny_graph.entities[t]))
        for h, r, t in tiny_graph.known.tolist()
    ]
    (tmp_path / "g.tsv").write_text("\n".join(lines))
    asked = ["import", str(tmp_path / "s"), "--graph", str(tmp_path / "g.tsv"), "-o", str(tmp_path / "t")]
    told = CliRunner().invoke(cli.main, [*asked, "--model", "TransE"])
    assert told.exit_code == 1 and "--model is TransE, and" in told.output and "holds a ComplEx: leave" in told.output
    for spelling in ("complex", "ComplEx"):
        assert CliRunner().invoke(cli.main, [*asked, "--model", spelling, "--replace"]).exit_code == 0


def test_teachers_that_differ_in_anything_are_kept_apart(nations: Graph, tmp_path: Path, monkeypatch) -> None:
    """In a folder each, so that what one of them taught is not taken for what another did."""
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path))
    sizes = nations.num_entities, nations.num_relations
    models = [
        build_model("TransE", *sizes, 4, seed=1, norm=norm, offset=x) for norm, x in ((1, 3.0), (2, 3.0), (1, 4.0))
    ]
    low = build_model("ComplEx", *sizes, 8, seed=1, rank=4)
    models += [low, turned := copy.deepcopy(low), build_model("DistMult", *sizes, 4, seed=1)]
    turned.map.data = turned.map.data.flip(0)
    assert len({_keep(model, nations) for model in models}) == len(models)
    assert _keep(models[0], nations) == _keep(copy.deepcopy(models[0]), nations)
