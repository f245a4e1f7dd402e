"""Training and ranking on several ranks: what one process gives, and what is sent for it."""

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import agreed, models, on_ranks, sharded_ranks, sharded_run, sharded_steps, state, steps
from torch.multiprocessing import ProcessRaisedException

from kgdistil.checkpoint import WEIGHTS, load_model, save_model
from kgdistil.config import RunConfig, make_config
from kgdistil.distillation import scale
from kgdistil.distributed import keeping, tables
from kgdistil.distributed.run import main
from kgdistil.distributed.run import on_ranks as on_ranks_of_torchrun
from kgdistil.distributed.shards import Shards
from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.evaluation import KnownTriples, evaluate, rank
from kgdistil.graph import Graph
from kgdistil.models import build_model
from kgdistil.paper.bench import distributed as bench
from kgdistil.training.loop import run
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine, queries_of

TAUGHT = {"role": "stage1", "teacher": "t", "alpha": 0.6, "temperature": 2.0}
CASES = {
    "plain": {"penalty": 1e-3},
    "row": {"accumulators": "row"},
    "taught": {**TAUGHT, "group": 4},
    "both learn": {**TAUGHT, "role": "stage2"},
    "rank": {"rank": 6, "group": 2},
    "relations": {"relation_weight": 0.5, "group": 2},
    "directions": {"model": "ReciprocalComplEx", "relation_weight": 0.5, "group": 2},
    "whole": {**TAUGHT, "group": 2, "whole": 7},
    "all entities": {"negatives": 64},
    "RotatE": {"model": "RotatE", "negatives": 12},
}


def a_config(**values: object) -> RunConfig:
    shared = {"dataset": "tiny", "model": "ComplEx", "dim": 4, "loss": "softmax", "lr": 0.1, "negatives": 12}
    settings = {"batch_size": 40, "epochs": 6, "check_every": 2, "schedule": "linear", "patience": 0}
    return make_config(**{**shared, **settings, "accumulator": 1e-2, **values})


@pytest.mark.parametrize(("world", "native"), [(1, "1"), (2, "1"), (3, "1"), (4, "1"), (2, "0"), (3, "0")])
def test_ranks_give_what_one_process_gives(
    tiny_graph: Graph, world: int, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KGDISTIL_NATIVE", native)  # read by the ranks
    configs = [a_config(**values) for values in CASES.values()]
    batches = [torch.arange(0, 40), torch.arange(60, 100), torch.tensor([5, 3])]  # few answers
    found = on_ranks(world, sharded_steps, configs, 30, tiny_graph.train, batches)
    monkeypatch.undo()
    for name, config, *ranks in zip(CASES, configs, *found, strict=True):
        student, teacher = models(config, 30)
        engine = SampledSoftmaxEngine(student, teacher, tiny_graph.train, config)
        one_loss, _ = steps(engine, batches)
        for key, x in state(engine).items():
            whole = ".entities" in key
            theirs = [torch.cat([held[key] for held, _, _ in ranks])] if whole else [held[key] for held, _, _ in ranks]
            for other in theirs:
                torch.testing.assert_close(other, x, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
                assert whole or torch.equal(other, theirs[0])
        for _, losses, _ in ranks:
            torch.testing.assert_close(torch.stack(losses), torch.stack(one_loss), rtol=1e-5, atol=1e-5, msg=name)
        for i, batch in enumerate(batches):
            sent = sum(bytes_sent[i] for _, _, bytes_sent in ranks)
            assert sent == bench.step_bytes(engine, batch, world), name


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_are_those_of_one_process(tiny_graph: Graph, world: int) -> None:
    kinds = ("ComplEx", "TransE", "RotatE", "TransH")
    found = [build_model(kind, 30, 4, 4, seed=3, offset=1.0) for kind in kinds]
    for model in found:  # entities of both ends tie, and the last relation ties all
        model.entities.data[20:] = model.entities.data[:10]
    found[0].relations.data[3] = 0
    known = KnownTriples(tiny_graph.known, 4)
    for ranks in on_ranks(world, sharded_ranks, found, tiny_graph.test, tiny_graph.known):
        for model, by_kernel, by_pytorch in zip(found, *zip(*ranks)):
            one = rank(model, tiny_graph.test, known)
            assert np.array_equal(by_kernel.greater, one.greater) and np.array_equal(by_kernel.equal, one.equal)
            assert by_kernel.equal.any()
            if model.distance:
                slow = rank(model, tiny_graph.test, known, native=False)
                assert np.array_equal(by_pytorch.greater, slow.greater) and np.array_equal(by_pytorch.equal, slow.equal)


@pytest.mark.parametrize("values", [{"model": "TransE"}, {"rank": 6}, {"model": "RotatE"}], ids=str)
def test_what_is_drawn_is_the_same_on_any_ranks(
    tiny_graph: Graph, values: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "SLICE", 7)
    config = a_config(**values, seed=5)
    whole = build_model(config.model, 30, 4, config.dim, seed=5, **config.model_options)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for low, high in ((0, 30), (0, 7), (8, 22), (25, 30)):
            shards = Shards(30)
            shards.low, shards.high = low, high
            own = tables.drawn(config, tiny_graph, shards).state_dict()
            assert torch.equal(own.pop("entities"), whole.entities[low:high])
            assert all(torch.equal(x, whole.state_dict()[name]) for name, x in own.items())
    finally:
        dist.destroy_process_group()


def test_a_run_goes_on_with_other_ranks_and_ends_as_one_process_does(
    umls: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 ranks, left within the first epoch, then 3, left within the second, then 1."""
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    shared = {"dataset": "umls", "dim": 8, "negatives": 40, "batch_size": 200, "epochs": 4, "check_every": 2}
    teacher = run(a_config(**shared, role="teacher"), umls, progress=False)
    taught = {**TAUGHT, "teacher": teacher.id}
    config = a_config(**shared, **taught, rank=8, group=2, accumulators="row", student=teacher.id, whole=20)
    one = run(config, umls, progress=False)
    folder = tmp_path / "ranks"
    steps_of = -(-len(queries_of(umls.train)[0]) // config.batch_size)
    for world, saves in ((2, steps_of - 2), (3, steps_of - 1)):
        assert on_ranks(world, sharded_run, config, umls, folder, saves) == [None] * world
        about = json.loads((folder / keeping.ABOUT).read_text())
        assert len(list((folder / keeping.FOLDER).iterdir())) == 1
        assert about["epoch"] == world - 2 and not about["folder"].endswith("-0")
    (record,) = on_ranks(1, sharded_run, config, umls, folder, 0)
    assert record["distributed"]["bytes_sent"] > 0 and record["parameters"] == one.record["parameters"]
    for split in ("valid", "test"):
        assert record[split]["both"]["mrr"] == pytest.approx(one.record[split]["both"]["mrr"], abs=0.02)
    for mine, theirs in zip(record["curve"], one.record["curve"], strict=True):
        assert mine["student_hard"] == pytest.approx(theirs["student_hard"], rel=1e-3)
    model = load_model(folder, umls)  # an ordinary one
    assert evaluate(model, umls).metrics() == record["test"]
    assert not (folder / keeping.ABOUT).exists() and not (folder / keeping.FOLDER).exists()


HARMS = ["cut", "changed", "another", "no part", "another part"]


@pytest.mark.parametrize("harm", HARMS)
def test_a_checkpoint_that_cannot_be_is_said(umls: Graph, tmp_path: Path, harm: str) -> None:
    config = a_config(dataset="umls", epochs=2, check_every=1)
    assert on_ranks(1, sharded_run, config, umls, tmp_path, 2) == [None]
    about = tmp_path / keeping.ABOUT
    text, part = about.read_text(), next((tmp_path / keeping.FOLDER).glob("*/*"))
    if harm == "another":
        config = config.model_copy(update={"lr": 0.2})
    elif harm == "no part":
        part.write_bytes(part.read_bytes()[:1000])
    elif harm == "another part":  # one number of it
        content = bytearray(part.read_bytes())
        content[-2] ^= 1
        part.write_bytes(content)
    else:
        about.write_text(text[:100] if harm == "cut" else text.replace('"epoch": 0', '"epoch": 1'))
    with pytest.raises(ProcessRaisedException, match=r"(?s)CheckpointError.*(damaged|belongs to another).*start over"):
        on_ranks(1, sharded_run, config, umls, tmp_path, 0)


def test_ranks_go_on_with_the_kernels_and_the_teacher_that_they_began_with(
    umls: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, sizes = tmp_path / "teacher", (umls.num_entities, umls.num_relations)
    save_model(place, build_model("ComplEx", *sizes, 4, seed=1), umls)
    before = (place / WEIGHTS).read_bytes()
    config = a_config(dataset="umls", epochs=2, check_every=1, **{**TAUGHT, "teacher": str(place)})
    assert on_ranks(1, sharded_run, config, umls, tmp_path / "run", 2) == [None]
    save_model(place, build_model("ComplEx", *sizes, 4, seed=2), umls)
    with pytest.raises(ProcessRaisedException, match="holds another model now than when .*checkpoint.json was written"):
        on_ranks(1, sharded_run, config, umls, tmp_path / "run", 0)
    (place / WEIGHTS).write_bytes(before)
    monkeypatch.setenv("KGDISTIL_NATIVE", "0")
    with pytest.raises(ProcessRaisedException, match="checkpoint.json was made with .*compiled.*readable"):
        on_ranks(1, sharded_run, config, umls, tmp_path / "run", 0)
    for at, said in ((-3, "changed since it was written"), (before.index(b"ComplEx"), "changed since")):
        content = bytearray(before)
        content[at] ^= 1
        (place / WEIGHTS).write_bytes(content)
        with pytest.raises(ProcessRaisedException, match=f"{WEIGHTS} is damaged .*{said}"):
            on_ranks(1, sharded_run, config, umls, tmp_path / "run", 0)


@pytest.mark.usefixtures("own_folders")
def test_a_graph_of_the_same_name_elsewhere_is_another_run(
    tiny_graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        triples = [tiny_graph.label_triple(*x) for x in tiny_graph.known.tolist()[number:]]
        (folder / "g.tsv").write_text("".join("\t".join(x) + "\n" for x in triples))
        monkeypatch.chdir(folder)
        assert main(["g.tsv", *bench.flags("g.tsv", {**bench.SMALL, "dim": 4, "epochs": 1})[3:]]) == 0
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 2


def test_ranks_that_were_given_different_things_are_told(umls: Graph) -> None:
    with pytest.raises(ProcessRaisedException, match=r"ConfigError: lr is 0\.2 on rank 1, 0\.1 on rank 0: give all"):
        on_ranks(2, agreed, a_config(dataset="umls"), umls, {"lr": 0.2})
    assert on_ranks(2, agreed, a_config(dataset="umls"), umls, {"device": "cuda:1"}) == [None, None]


@pytest.mark.parametrize("wrong", [("--timeout", "-1"), ("--timeout", "nan"), ("--keep-every", "-1")])
def test_seconds_that_are_none_are_refused(wrong: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["umls", "--loss", "softmax", *wrong])
    assert ended.value.code == 2 and f"{wrong[0]} is {float(wrong[1])}: give seconds" in capsys.readouterr().err


def test_a_killed_rank_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun starts both ranks again, and they end where they would have."""
    few = {"dim": 4, "epochs": 2, "check_every": 1, "batch_size": 512}  # all is kept after each batch
    monkeypatch.setattr(bench, "KILLED", {**bench.SMALL, **few})
    monkeypatch.setattr(bench, "EVERY", ("--keep-every", "0"))
    found = bench.kill_ranks(tmp_path, 1)
    assert found["same"] == 1 and found["times"][0]["restarts"] == 1, found


def test_quality_is_written_beside_the_other_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def done(command: list[str], folder: Path, threads: int = 1) -> dict:
        ranks, seed = "torch.distributed.run" in command, int(command[command.index("--seed") + 1])
        assert threads == (1 if ranks else 2) and command[command.index("--final-sample") + 1] == "7"
        return {"test": {"both": {"mrr": 0.3 + 0.01 * seed + 0.002 * ranks}}, "graph": {"sha256": "0"}}

    monkeypatch.setattr(bench, "done", done)
    path = tmp_path / "distributed.json"
    path.write_text('{"kills": 1}')
    few = ["quality", "--graph", "g/umls.tsv", "--seeds", "3", "--sample", "7", "-o", str(path)]
    assert bench.main(few) == 0
    report = json.loads(path.read_text())
    assert report["kills"] == 1 and len(report["quality/umls"]["commit"]) == 40
    found = report["quality/umls"]["found"]
    assert found["two_less_one"] == pytest.approx(0.002) and found["graph"] == {"name": "umls", "sha256": "0"}
    assert found["sd_of_seeds"] == pytest.approx({"one_process": 0.01, "two_ranks": 0.01})


def test_speed_is_the_median_of_rounds_that_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three further epochs of 100 triples: 1, 2 and 3 s for one process, 2 s always for two ranks."""
    order = list[tuple[str, str]]()

    def done(command: list[str], folder: Path, threads: int = 1, variables: dict[str, str] = bench.PASSIVE) -> dict:
        ranks, epochs = "torch.distributed.run" in command, command[command.index("--epochs") + 1]
        order.append(("two" if ranks else "one", epochs))
        assert ranks or (threads, variables) == (2, {})  # as whoever trains has them
        assert command[command.index("--batch-size") + 1] == "2048"
        took = 2.0 if ranks else 1.0 + order.count(("one", "4")) - 1
        found = {"seconds": 5.0 + took * (epochs == "4"), "graph": {"train": 100}}
        return {**found, "arithmetic": {"products": "float32"}}

    monkeypatch.setattr(bench, "done", done)
    path = tmp_path / "distributed.json"
    assert bench.main(["speed", "--graph", "g/umls.tsv", "--queries", "2048", "-o", str(path)]) == 0
    found = json.loads(path.read_text())["speed/umls/float32/2048"]["found"]
    assert order == 3 * [("one", "1"), ("one", "4"), ("two", "1"), ("two", "4")]
    assert list(found["rounds"].values()) == [[300, 150, 100], [150, 150, 150]]
    assert list(found["triples_a_second"].values()) == [150, 150] and found["ratio"] == 1.0


def test_one_process_needs_no_torchrun(umls: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("kgdistil.distributed.run.LINE_SECONDS", 0)
    given = ["umls", *bench.flags("umls", {**bench.SMALL, "dim": 4, "epochs": 2, "group": 4})[3:]]
    assert main(given) == 0
    record, said = bench.record_in(tmp_path), capsys.readouterr()
    assert record["config"]["group"] == 4  # of a few numbers, which are not read from text
    assert f"{record['id']}: test MRR {record['test']['both']['mrr']:.4f}" in said.out
    assert f"weights in {tmp_path / 'runs' / 'models' / record['id']}, record {tmp_path}" in said.out
    assert re.findall(r"epoch (\d) of 2, about [0-9:]+ left", said.err) == ["1", "2"], "where there is no terminal"
    for option in ("--keep-every", "--timeout"):
        with pytest.raises(SystemExit):
            main([*given, option, "5"])
        assert f"{option} is of several ranks: start them with torchrun" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="softmax"):
        on_ranks_of_torchrun(make_config(dataset="umls"), umls, 1, 1)
    with pytest.raises(ConfigError, match="a model as teacher"):
        on_ranks_of_torchrun(a_config(role="stage1", teacher="some.lists"), umls, 1, 1)
    with pytest.raises(ConfigError, match="without --top and --unlabelled"):
        on_ranks_of_torchrun(a_config(role="stage1", teacher="t", unlabelled=1.0), umls, 1, 1)


@pytest.mark.usefixtures("own_folders")
def test_a_large_graph_is_trained_as_by_distil(
    umls: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It ranks a sample, has a sum for a row, says or refuses what memory it takes; what is asked for comes first."""
    path = tmp_path / "own.tsv"
    path.write_text("".join("\t".join(umls.label_triple(*x)) + "\n" for x in umls.known.tolist()))
    monkeypatch.setattr(scale, "LARGE", 100)
    monkeypatch.setattr(scale, "TOLD", 1)
    given = ["--model", "ComplEx", "--loss", "softmax", "--dim", "4", "--epochs", "1", "--negatives", "20"]
    assert main([str(path), *given, "--answers", "0"]) == 0
    config = bench.record_in(tmp_path)["config"]
    assert config["accumulators"] == "row" and config["check_sample"] >= 250 and config["answers"] == 0
    assert re.search(r"kgdistil: training takes up to 0\.0 GiB \(.*\); [0-9.]+ GiB are free", capsys.readouterr().err)
    monkeypatch.setattr(scale, "available", lambda: 1000)
    with pytest.raises(ConfigError, match=r"own, no-ds: training takes .* and 0\.0 GiB are free: no smaller"):
        main([str(path), *given, "--seed", "1"])
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 1


@pytest.mark.usefixtures("own_folders")
def test_a_finished_run_is_found_without_its_teacher(
    umls: Graph, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["umls", "--model", "ComplEx", "--loss", "softmax", "--dim", "4", "--epochs", "1", "--negatives", "20"]
    assert main([*given, "--role", "teacher"]) == 0
    (teacher,) = (tmp_path / "runs" / "models").iterdir()
    taught = [*given, "--role", "stage1", "--teacher", teacher.name, "--alpha", "0.5"]
    assert main(taught) == 0
    said = capsys.readouterr().out.splitlines()[-2]
    teacher.rename(tmp_path / "gone")
    assert main(taught) == 0 and said in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="no model"):
        main([*taught, "--seed", "1"])


def test_the_memory_of_a_rank_is_its_share_of_the_tables(umls: Graph) -> None:
    config = a_config(dim=512, group=2, **TAUGHT)
    tables = ("embeddings", "accumulators", "teacher", "best weights", "ranking", "the student as coded")
    one, *ranks = ([scale.memory_needed(config, umls, 2048, n)[name] for name in tables] for n in (1, 2, 4))
    for n, found in zip((2, 4), ranks, strict=True):
        assert found == pytest.approx([size / n for size in one], rel=0.02)
    with pytest.raises(ConfigError, match="training on 2 ranks takes"):
        scale.check_memory({"student": config}, umls, 1 << 20, 2048, 2, 2)


def test_too_many_ranks_are_refused() -> None:
    """Of 5 entities in blocks of 2, the fourth rank would hold none."""
    with pytest.raises(ProcessRaisedException, match="5 entities leave one of 4 ranks without any: take 3"):
        on_ranks(4, Shards, 5)


@pytest.mark.usefixtures("own_folders")
def test_a_rank_leaves_its_process_group(umls: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its threads outlived the interpreter they ended it by SIGABRT, after a run was done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    record = on_ranks_of_torchrun(a_config(dataset="umls", epochs=1, check_every=1), umls, 60.0, 1e9)
    assert record["epochs"] == 1 and not dist.is_initialized()
