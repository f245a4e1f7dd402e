"""The teacher that looks at paths: what it finds, what it learns, and the lists that it leaves."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kgdistil.config import make_config
from kgdistil.distillation import paths
from kgdistil.distillation.distil import distil
from kgdistil.distillation.paths import NONE, Asked, Edges, Joined, Settings
from kgdistil.errors import ConfigError
from kgdistil.evaluation import KnownTriples, evaluate
from kgdistil.graph import Graph
from kgdistil.graphs.lists import Lists
from kgdistil.graphs.queries import queries_of
from kgdistil.models import build_model
from kgdistil.training.engine import make_engine

SETTINGS = Settings(length=3, widest=(100, 100), triples=400, least=2, epochs=8, made_up=50, kept=6, lr=0.1)


def a_graph(entities: int, relations: int, train: torch.Tensor, held: torch.Tensor | None = None) -> Graph:
    held = train[:1] if held is None else held
    names = [f"e{i:03d}" for i in range(entities)], [f"r{i}" for i in range(relations)]
    return Graph("made-up", train, held, held, *names, sha256="0" * 64)


def families(count: int = 40) -> Graph:
    """Parents of three generations, and who is whose grandparent: r1 = r0 ∘ r0, of which a fourth is held out."""
    draw, triples = np.random.default_rng(0), []
    for i in range(count):
        old, middle, young = 3 * i, 3 * i + 1, 3 * i + 2
        triples += [(old, 0, middle), (middle, 0, young), (old, 1, young)]
    for _ in range(count):  # noise, of another relation
        triples.append((int(draw.integers(3 * count)), 2, int(draw.integers(3 * count))))
    found = sorted(set(triples))
    held = [x for x in found if x[1] == 1][::4]
    train = torch.tensor([x for x in found if x not in held])
    return a_graph(3 * count, 3, train, torch.tensor(held))


def by_hand(edges: list[tuple[int, int, int, int]], start: int, without: int, length: int) -> dict[tuple, int]:
    """Walks by recursion: (entity, path) and how many."""
    found: dict[tuple, int] = {}

    def go(at: int, last: int, path: tuple[int, ...]) -> None:
        for source, kind, target, triple in edges:
            if source == at and triple not in (last, without) and target != start:
                here = (target, (*path, kind))
                found[here] = found.get(here, 0) + 1
                if len(here[1]) < length:
                    go(target, triple, here[1])

    go(start, NONE, ())
    return found


@pytest.mark.parametrize("length", [1, 2, 3])
def test_paths_are_those_of_a_walk_by_hand(length: int) -> None:
    draw = np.random.default_rng(length)
    triples = np.unique(draw.integers((9, 2, 9), size=(24, 3)), axis=0)
    graph = a_graph(9, 2, torch.from_numpy(triples))
    edges = [(h, r, t, i) for i, (h, r, t) in enumerate(triples.tolist())]
    edges += [(t, r + 2, h, i) for i, (h, r, t) in enumerate(triples.tolist())]
    start, without = np.arange(9), np.array([NONE, 0, 1, 2, 3, 4, 5, NONE, 7])
    query, entity, path, times = Edges(graph).paths(start, without, replace(SETTINGS, length=length))
    found = {}
    for q, e, p, n in zip(query.tolist(), entity.tolist(), path.tolist(), times.tolist(), strict=True):
        kinds = [p // 5**i % 5 - 1 for i in reversed(range(length))]
        found[q, e, tuple(kind for kind in kinds if kind >= 0)] = n
    expected = {(q, *key): n for q in range(9) for key, n in by_hand(edges, q, int(without[q]), length).items()}
    assert found == expected and len(found) > 9


def test_entities_of_many_triples_are_led_to_but_not_through() -> None:
    star = [(i, 0, 0) for i in range(1, 7)] + [(0, 1, 7)]
    graph = a_graph(8, 2, torch.tensor(star))
    for widest, reached in ((100, {0, 2, 3, 4, 5, 6, 7}), (3, {0})):
        _, entity, *_ = Edges(graph).paths(np.array([1]), np.array([NONE]), Settings(length=2, widest=(widest,)))
        assert set(entity.tolist()) == reached


def test_a_rule_of_two_steps_is_learned() -> None:
    graph = families()
    model = paths.fit(graph, SETTINGS)
    known = KnownTriples(graph.known, 3)
    student = build_model("ComplEx", graph.num_entities, 3, 4)
    without = Joined(model, student, share=0.0).ranks(graph.test, known)
    assert without.metrics()["both"]["mrr"] > 0.95 > 0.5 > evaluate(student, graph).metrics()["both"]["mrr"]


def test_what_is_left_out_is_not_seen() -> None:
    """A triple of its own relation alone leads from h to t: asked without it, t is none of the candidates."""
    graph = families()
    model = paths.fit(graph, replace(SETTINGS, length=1))
    known = KnownTriples(graph.train, 3)
    asked = paths.both_sides(graph.train, 3, np.arange(len(graph.train)))
    found = model.reach(asked.some(np.flatnonzero(asked.kind == 0)), known)
    assert not (found.entity == found.answer[found.query]).any()
    # and its own count is not among those of its answer
    longer = paths.fit(graph, SETTINGS)
    found = longer.reach(asked.some(np.flatnonzero(asked.kind == 1)), known)
    own = found.entity == found.answer[found.query]
    assert own.any() and (found.popular[own, 0] == 0).all()  # nobody else has this grandchild


def test_probabilities_are_of_all_entities() -> None:
    """What a path leads to has its share of a softmax, and all other entities have theirs."""
    graph = families()
    model = paths.fit(graph, SETTINGS)
    none = KnownTriples(graph.train[:0], 3)
    asked = Asked(np.arange(20), np.arange(20) % 6, np.full(20, NONE), np.full(20, NONE))
    found = model.reach(asked, none)
    scores = model.scores(found).detach()
    whole = model.normaliser(found, scores).detach()
    flat = build_model("ComplEx", graph.num_entities, 3, 2)
    together = Joined(model, flat, 0.0).scores(asked, none).softmax(1)
    assert torch.allclose(together[found.query, found.entity], (scores - whole[found.query]).exp(), atol=1e-5)
    rest = torch.ones(20) - torch.zeros(20).index_add(0, found.query, together[found.query, found.entity])
    assert torch.allclose(rest, (model.others[found.kind] - whole).exp().detach(), atol=1e-5)
    # a model that says nothing leaves the product as it is, one that says something does not
    flat.entities.data.zero_()
    assert torch.allclose(Joined(model, flat, 1.0).scores(asked, none).softmax(1), together, atol=1e-6)
    other = build_model("ComplEx", graph.num_entities, 3, 2, seed=1)
    of = other.queries(torch.arange(3), torch.arange(3), "tail")
    expected = other.compare(of, other.entities).softmax(1)
    both = Joined(model, other, 1.0).scores(asked.some(np.arange(3)), none).softmax(1)
    product = together[:3] * expected
    assert torch.allclose(both, product / product.sum(1, keepdim=True), atol=1e-5)


@pytest.fixture(scope="module")
def joined() -> Joined:
    graph = families()
    return Joined(paths.fit(graph, SETTINGS), build_model("ComplEx", graph.num_entities, 3, 4))


@pytest.fixture(scope="module")
def taught(joined: Joined) -> tuple[Graph, Lists]:
    graph = families()
    return graph, paths.lists(graph, joined)


def test_lists_are_of_training_queries_and_of_others(taught: tuple[Graph, Lists]) -> None:
    graph, found = taught
    anchor, relation, is_head, _, count, _ = queries_of(graph.train)
    own = (anchor * 3 + relation) * 2 + is_head
    assert torch.isin(own, found.keys).all() and (found.keys[1:] > found.keys[:-1]).all()
    others = found.keys[~torch.isin(found.keys, own)]
    assert 0 < len(others) <= SETTINGS.made_up
    sizes = found.start.diff()
    assert int(found.start[-1]) == len(found.ids) == len(found.scores) and (found.scores <= 1e-4).all()
    assert (sizes[torch.isin(found.keys, others)] == SETTINGS.kept).all()
    assert int(sizes.max()) <= SETTINGS.kept + int(count.max())
    for i in range(len(found.keys)):
        ids = found.ids[found.start[i] : found.start[i + 1]]
        assert (ids[1:] > ids[:-1]).all()


def test_a_training_query_is_asked_for_each_answer_without_its_triple(
    taught: tuple[Graph, Lists], joined: Joined
) -> None:
    """Its list is the mean of what is said then, the other answers left out."""
    graph, found = taught
    known = KnownTriples(graph.train, 3)
    anchor, relation, is_head, _, count, _ = queries_of(graph.train)
    every = paths.both_sides(graph.train, 3, np.arange(len(graph.train)))
    several = [i for i in range(len(anchor)) if count[i] > 1]
    for i in several[:5]:
        kind = int(relation[i]) + 3 * int(is_head[i])
        asked = every.some(np.flatnonzero((every.anchor == int(anchor[i])) & (every.kind == kind)))
        scores = joined.scores(asked, known)
        for row in range(len(scores)):
            scores[row, np.setdiff1d(asked.answer, asked.answer[row])] = -torch.inf
        best = scores.log_softmax(1).topk(SETTINGS.kept)
        mean = torch.zeros(graph.num_entities)
        for ids, values in zip(best.indices, best.values, strict=True):
            mean[ids] += values.exp() / len(scores)
        at, size = (int(x) for x in found.spans(anchor[i : i + 1], relation[i : i + 1], is_head[i : i + 1]))
        kept = mean.topk(min(SETTINGS.kept + len(scores), int((mean > 0).sum())))
        assert len(kept.indices) == size
        assert torch.allclose(found.scores[at : at + size].exp().sort().values, kept.values.sort().values, atol=1e-5)


def test_a_student_hears_of_queries_without_answers(taught: tuple[Graph, Lists]) -> None:
    graph, lists = taught
    given = {"model": "ComplEx", "dim": 4, "loss": "softmax", "role": "stage1", "teacher": "x.lists", "batch_size": 64}
    config = make_config(**given, negatives=20, epochs=2, alpha=1.0, unlabelled=1.0, dataset="umls")
    student = build_model("ComplEx", graph.num_entities, 3, 4)
    before, engine = student.entities.detach().clone(), make_engine(student, lists, config, graph)
    engine.epoch(0, torch.full((engine.steps,), 0.1))
    assert not torch.equal(before, student.entities)
    made = engine.anchor[engine.samples :], engine.relation[engine.samples :], engine.is_head[engine.samples :]
    own = {tuple(x) for x in torch.stack(engine.asked, 1).tolist()}
    asked = {tuple(x) for x in torch.stack(made, 1).tolist()}
    assert len(made[0]) == engine.samples and asked and not asked & own
    keys = set(lists.keys.tolist())
    assert all((a * 3 + r) * 2 + h in keys for a, r, h in asked)
    # an epoch's are others than those of the one before
    engine.epoch(1, torch.full((engine.steps,), 0.1))
    assert not torch.equal(engine.anchor[engine.samples :], made[0])


def test_without_such_lists_none_are_asked(taught: tuple[Graph, Lists]) -> None:
    graph, lists = taught
    anchor, relation, is_head, *_ = queries_of(graph.train)
    own = torch.isin(lists.keys, (anchor * 3 + relation) * 2 + is_head)
    places = torch.cat([torch.arange(int(a), int(b)) for a, b in itertools.pairwise(lists.start)])
    kept = own.repeat_interleave(lists.start.diff())[places]
    start = torch.cat([torch.zeros(1, dtype=torch.int64), lists.start.diff()[own].cumsum(0)])
    fewer = replace(lists, keys=lists.keys[own], start=start, ids=lists.ids[kept], scores=lists.scores[kept])
    given = {"model": "ComplEx", "dim": 4, "loss": "softmax", "role": "stage1", "teacher": "x.lists", "dataset": "umls"}
    student = build_model("ComplEx", graph.num_entities, 3, 4)
    make_engine(student, fewer, make_config(**given), graph)
    with pytest.raises(ConfigError, match="unlabelled is 1.0, but every list is a training query's: set it to 0"):
        make_engine(student, fewer, make_config(**given, unlabelled=1.0), graph)


def test_long_work_says_how_far_it_is(
    joined: Joined, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there is no terminal, a line at times; none where nothing is to be shown."""
    graph = families()
    monkeypatch.setattr(paths, "LINE_SECONDS", -1.0)
    monkeypatch.setattr(paths, "BLOCK", 100)
    caplog.set_level("INFO", logger="kgdistil")
    paths.lists(graph, joined)
    assert [line for line in caplog.messages if "lists: 100 of" in line and line.endswith(" left")]
    caplog.clear()
    paths.lists(graph, joined, progress=False)
    assert not caplog.messages


def test_lengths_that_cannot_be_are_refused() -> None:
    graph = families(4)
    for length in (0, 5):
        with pytest.raises(ConfigError, match=f"length is {length}: give 1 to 4, as widest has numbers"):
            paths.fit(graph, Settings(length=length))
    many = replace(graph, relations=[f"r{i}" for i in range(10**6)])
    with pytest.raises(ConfigError, match="length is 3: 1000000 relations make too many such paths"):
        paths.fit(many, Settings(length=3))


def test_lists_are_kept_under_a_name(taught: tuple[Graph, Lists], tmp_path: Path) -> None:
    graph, found = taught
    place = replace(found, sha256=paths.sum_of("run", SETTINGS)).save(tmp_path, "paths-0.lists")
    again = Lists.load(place, graph)
    assert torch.equal(again.scores, found.scores) and place.name == "paths-0.lists"
    assert paths.sum_of("run", SETTINGS) != paths.sum_of("run", replace(SETTINGS, kept=7))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """A graph of one's own that is small enough for a test, and runs in a folder of their own."""
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(paths, "LEAST", 100)
    return families()


def test_a_student_of_few_bits_is_taught_by_paths_where_they_help(own: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"dim": 8, "teacher_dim": 8, "precision": "4bit", "epochs": 24, "progress": False}
    done = distil(own, **given)
    assert list(done.runs) == ["teacher", "no-DS", "stage 1", "paths"] and done.chosen == "paths"
    mrr = {name: run.record["valid"]["both"]["mrr"] for name, run in done.runs.items()}
    assert mrr["paths"] > max(mrr["no-DS"], mrr["stage 1"]) and "(paths)" in done.student.about["trained"]
    assert done.verdict.endswith("; paths taught it in 12 passes that the one without a teacher did not have")
    assert {row["model"] for row in done.student.about["metrics"]} == {"rounded", *done.runs}
    better = max(("stage 1", "teacher"), key=mrr.__getitem__)
    lists = Path(str(done.runs["paths"].config.teacher))
    assert lists.name.startswith(paths.sum_of(done.runs[better].id, Settings(length=4))[:12])
    seconds = [run.record["finished"] for run in done.runs.values()]
    again = distil(own, **given)  # and nothing is made twice
    assert [run.record["finished"] for run in again.runs.values()] == seconds
    assert "paths" not in distil(own, **given, paths=False).runs
    monkeypatch.setattr("kgdistil.distillation.distil.WORTH", 1.1)
    assert "paths" not in distil(own, **given, seed=1).runs  # no gain is worth it
    monkeypatch.setattr(paths, "fit", None)  # which is not learned again
    assert "paths" not in distil(own, **given, seed=1).runs and "paths" in distil(own, **given).runs


def test_runs_may_lie_in_a_folder_that_is_named_from_here(
    own: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KGDISTIL_RUNS", "here")
    monkeypatch.setattr("kgdistil.distillation.distil.WORTH", -1.0)
    assert "paths" in distil(own, dim=4, teacher_dim=4, precision="4bit", epochs=2, progress=False).runs


@pytest.mark.parametrize("shape", ["blocks", "star", "loops", "chain", "doubled"])
def test_graphs_of_any_shape_are_distilled(own: Graph, monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    """Where all that might be asked has an answer, and where paths lead nowhere."""
    monkeypatch.setattr("kgdistil.distillation.distil.WORTH", -1.0)
    triples = {
        "blocks": [(12 * b + i, 0, 12 * b + 6 + j) for b in range(10) for i in range(6) for j in range(6)],
        "star": [(0, 0, i) for i in range(1, 200)],
        "loops": [(i, 0, i) for i in range(200)],
        "chain": [(i, 0, i + 1) for i in range(200)],
        "doubled": [(i, i % 2, (7 * i) % 50) for i in range(150)] * 2,
    }[shape]
    held = torch.tensor(triples[::9])
    train = torch.tensor([x for x in triples if x not in triples[::9]] if shape == "blocks" else triples)
    graph = a_graph(int(train.max()) + 1, 2 if shape == "doubled" else 1, train, held)
    done = distil(graph, dim=8, teacher_dim=8, precision="4bit", epochs=2, progress=False)
    assert done.chosen in done.runs and 0 <= done.runs["stage 1"].test() <= 1


def test_a_hub_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are cut by the walks that they take, and one entity's beyond a bound are not taken."""
    triples = [(0, 0, i) for i in range(1, 90)] + [(i, 1, 90 + j) for i in range(1, 90) for j in range(20)]
    edges = Edges(a_graph(110, 2, torch.tensor(triples)))
    settings = Settings(length=3, widest=(200, 200))
    whole = edges.walks(settings)
    asked = paths.both_sides(torch.tensor(triples), 2, np.arange(len(triples)))
    monkeypatch.setattr(paths, "WALKS", 3 * whole.max())
    blocks = list(edges.blocks(asked, settings))
    assert sum(len(block.anchor) for block in blocks) == len(asked.anchor) and len(blocks) > 4
    assert all(whole[block.anchor].sum() <= 3 * whole.max() for block in blocks)
    again = Edges(a_graph(110, 2, torch.tensor(triples)))
    monkeypatch.setattr(paths, "FAR", 10)
    assert (again.walks(settings) == again.count).all()
    _, _, path, _ = again.paths(np.arange(110), np.full(110, NONE), settings)
    assert (path < 5).all()  # one triple


def test_a_triple_that_stands_twice_is_taken_out_twice() -> None:
    train = torch.tensor([(0, 0, 1), (0, 0, 1), (2, 0, 3), (1, 0, 2)])
    edges = Edges(a_graph(4, 1, train))
    asked = paths.both_sides(edges.train, 1, np.arange(len(edges.train)))
    _, entity, path, _ = edges.paths(asked.anchor[:1], asked.without[:1], Settings(length=1))
    assert len(edges.train) == 3 and not len(entity) and not len(path)


def test_long_paths_are_only_for_graphs_that_have_few(own: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.affordable(own) == Settings(length=4)
    edges = Edges(own)
    counts = [edges.walks(Settings(length=n)) for n in (1, 2, 3, 4)]
    query, *_, times = edges.paths(np.arange(len(own.entities)), np.full(len(own.entities), NONE), Settings(length=2))
    found = np.bincount(query, times, minlength=len(own.entities))
    assert (counts[0] == edges.count).all() and (found <= counts[1]).all() and found.sum() > 0.3 * counts[1].sum()
    assert all((a <= b).all() for a, b in itertools.pairwise(counts))
    further = paths.made_up(own, Settings().made_up).anchor
    queries = 2 * len(own.train) + len(further)
    for length in (3, 2):
        walks = counts[length - 1]
        most = (walks * edges.count).sum() + walks[further].sum() + queries * len(own.entities) / paths.ENTITIES
        monkeypatch.setattr(paths, "COST", most)
        assert paths.affordable(own) == Settings(length=length)
    monkeypatch.setattr(paths, "COST", 1)
    assert paths.affordable(own) is None
    monkeypatch.setattr(paths, "LEAST", 10_000)
    assert paths.affordable(own) is None


def test_lists_of_one_teacher_are_not_taken_for_anothers(own: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers from elsewhere share an id, but not a folder; here each knows more than its student."""
    monkeypatch.setattr("kgdistil.distillation.distil.WORTH", -1.0)
    given, lists = {"dim": 8, "precision": "1bit", "progress": False}, set[str]()
    for seed in (1, 2):
        teacher = distil(own, **given, teacher_dim=8, epochs=24, seed=seed, paths=False).runs["teacher"].load(own)
        done = distil(own, **given, teacher=teacher, epochs=1)
        mrr = {name: run.record["valid"]["both"]["mrr"] for name, run in done.runs.items()}
        assert mrr["teacher"] > mrr["stage 1"], "so that lists are made with it"
        lists.add(str(done.runs["paths"].config.teacher))
    assert len(lists) == 2
