"""Teachers of other libraries: their own scores and metrics, matched by label, and no file's code is ever run."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kgdistil
from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.evaluation import evaluate
from kgdistil.graph import Graph
from kgdistil.graphs.importers import from_arrays, from_pykeen, import_teacher
from kgdistil.graphs.readers import read_graph

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
    assert type(kgdistil.load_student(out).model).__name__ == name
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
