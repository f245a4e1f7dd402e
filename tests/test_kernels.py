"""Compiled training held to `ReferenceEngine`, whatever the model, loss, graph and number of threads; falling back."""

import ctypes
import functools
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import COMPILED

from kgdistil import kernels
from kgdistil.config import make_config
from kgdistil.errors import KgdistilError
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.kernels import free
from kgdistil.kernels.train import Epoch
from kgdistil.models import MODELS, KGEModel, build_model
from kgdistil.training.engine import make_engine
from kgdistil.training.native import NativeEngine
from kgdistil.training.reference import ReferenceEngine

needs_compiler = pytest.mark.skipif(kernels.compiler() is None, reason="there is no C++ compiler")
ENTITIES, RELATIONS = 50, 5
STAGES: list[dict[str, Any]] = [
    {},
    {"role": "stage1", "teacher": "t", "alpha": 0.25},
    {"role": "stage2", "teacher": "t", "alpha": 0.25},
]


@functools.cache
def random_triples(n: int, entities: int = ENTITIES, relations: int = RELATIONS) -> torch.Tensor:
    """Different triples [n, 3]."""
    codes = torch.randperm(entities * relations * entities, generator=torch.Generator().manual_seed(n))[:n]
    return torch.stack([codes // (relations * entities), codes // entities % relations, codes % entities], dim=1)


@dataclass
class Learning:
    """One engine and the models it trains."""

    engine: ReferenceEngine | NativeEngine
    roles: dict[str, KGEModel]

    def run(self, epochs: int = 1, rate: float = 0.0, first: int = 0) -> list[dict[str, float]]:
        """Losses of each epoch. The rate falls from step to step; the teacher's is half of the student's."""
        rates = rate * torch.linspace(1, 0.5, self.engine.steps, dtype=torch.float64)
        return [self.engine.epoch(i, rates, rates / 2) for i in range(first, first + epochs)]

    def tensors(self) -> dict[str, torch.Tensor]:
        weights = {f"{role}.{name}": p.detach() for role, m in self.roles.items() for name, p in m.named_parameters()}
        return weights | self.engine.state()


def learning(
    make,
    name: str,
    norm: int = 1,
    *,
    stage: int = 0,
    triples: torch.Tensor | None = None,
    sizes: tuple[int, int] = (ENTITIES, RELATIONS),
    dims: tuple[int, int] = (8, 16),
    scale: float = 1.0,
    **settings,
) -> Learning:
    """An engine on models off any grid: Adam and the corners of |x| and [x]₊ blow up roundings at exact ties."""
    roles = {}
    for role, dim in zip(("student", "teacher")[: 1 + (stage > 0)], dims):
        offset = 2.0 if MODELS[name].distance else 0.0
        roles[role] = build_model(name, *sizes, dim, seed=dim, norm=norm, offset=offset)
        noise = torch.Generator().manual_seed(dim)
        for p in roles[role].parameters():
            p.data = scale * (p.data + 0.3 * torch.randn(p.shape, generator=noise))
    given: dict[str, Any] = {"loss": "margin", "penalty": 0.0 if name in ("TransE", "RotatE") else 0.05}
    given |= {"model": name, "negatives": 4, "seed": 3, **(STAGES[stage])} | settings
    triples = random_triples(144) if triples is None else triples
    return Learning(make(roles["student"], roles.get("teacher"), triples, make_config(**given)), roles)


def pair(*arguments, **options) -> tuple[Learning, Learning]:
    return tuple(learning(make, *arguments, **options) for make in (ReferenceEngine, NativeEngine))


def largest_error(one: Learning, other: Learning, kind: str) -> float:
    """Largest difference of the tensors whose names end in `kind`, each relative to its largest entry."""
    a, b = one.tensors(), other.tensors()
    assert a.keys() == b.keys()
    errors = [
        ((a[name] - b[name]).abs().max() / a[name].abs().max().clamp_min(1e-12)).item()
        for name in a
        if name.endswith(kind)
    ]
    assert errors
    return max(errors)


def assert_same_losses(one: list[dict[str, float]], other: list[dict[str, float]], rel: float) -> None:
    for a, b in zip(one, other, strict=True):
        assert b == pytest.approx(a, rel=rel, abs=1e-9)


@pytest.fixture
def threads() -> Iterator:
    """`torch.set_num_threads`, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---- the same numbers -----------------------------------------------------------------------------------------------
@needs_compiler
@pytest.mark.parametrize("name, norm", COMPILED)
@pytest.mark.parametrize("loss", ["margin", "cross-entropy"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_gradients_equal_the_readable_ones(name, norm, loss, stage):
    """Adam's moments are sums of gradients. At learning rate 0 nothing amplifies roundings from step to step."""
    for weighting in ("sum", "mean", "self-adversarial"):
        readable, native = pair(name, norm, stage=stage, loss=loss, weighting=weighting, batch_size=128)
        assert_same_losses(readable.run(), native.run(), rel=1e-5)
        assert largest_error(readable, native, ".m") < 1e-5, weighting
        assert largest_error(readable, native, ".v") < 3e-6, weighting
        assert largest_error(readable, native, "s") == 0  # entities and relations: at rate 0 nothing moves


@needs_compiler
@pytest.mark.parametrize("name, norm", COMPILED)
@pytest.mark.parametrize("loss", ["margin", "cross-entropy"])
@pytest.mark.parametrize("stage", [0, 2])
def test_weights_equal_the_readable_ones_after_epochs(name, norm, loss, stage):
    """Two epochs of five steps, the last one short; binary fractions keep sums that vanish exactly at zero."""
    readable, native = pair(name, norm, stage=stage, loss=loss, batch_size=32)
    start = {key: x.clone() for key, x in readable.tensors().items()}
    assert_same_losses(readable.run(2, rate=0.01), native.run(2, rate=0.01), rel=1e-4)
    for key, x in native.tensors().items():
        torch.testing.assert_close(x, readable.tensors()[key], rtol=1e-3, atol=3e-5, msg=key)
        assert (x - start[key]).abs().max() > 1e-6


@needs_compiler
@pytest.mark.parametrize("name", ["DistMult", "TransH"])
def test_rows_that_wait_long_are_caught_up(name):
    """With one triple a step most rows wait for hundreds of steps, moved by their momentum alone."""
    triples = random_triples(220, entities=400, relations=7)
    options = {"triples": triples, "sizes": (400, 7), "batch_size": 1, "negatives": 1, "penalty": 0.0}
    readable, native = pair(name, loss="cross-entropy", **options)
    assert_same_losses(readable.run(1, rate=0.005), native.run(1, rate=0.005), rel=1e-4)
    for key, x in native.tensors().items():
        torch.testing.assert_close(x, readable.tensors()[key], rtol=1e-3, atol=3e-5, msg=key)


@needs_compiler
def test_epochs_longer_than_what_is_sampled_at_once():
    """The kernel samples several steps ahead, in 6 MiB: six, with this many negatives, of the ten of an epoch."""
    options = {"triples": random_triples(150), "sizes": (30_000, 5), "batch_size": 16, "negatives": 2500}
    readable, native = pair("DistMult", stage=2, loss="cross-entropy", weighting="mean", **options)
    assert_same_losses(readable.run(1, rate=0.005), native.run(1, rate=0.005), rel=1e-4)
    for key, x in native.tensors().items():
        torch.testing.assert_close(x, readable.tensors()[key], rtol=1e-3, atol=3e-5, msg=key)


@needs_compiler
@pytest.mark.parametrize("seed, epoch", [(0, 0), (1, 1), (2**63 - 1, 10**6)])
def test_the_same_negatives_draw_for_draw(seed, epoch):
    """Where each kept corruption pulls its coordinates by ±1/B, the gradients times B are whole numbers."""
    readable, native = pair("TransE", triples=random_triples(128), seed=seed, batch_size=128, gamma=1e3)
    counts = []
    for one in (readable, native):
        one.run(first=epoch)
        pulls = one.engine.state()["student.entities.m"] / 0.1 * 128
        assert (pulls - pulls.round()).abs().max() < 1e-3
        counts.append(pulls.round())
    assert torch.equal(*counts) and counts[0].abs().sum() > 0


# ---- odd input ------------------------------------------------------------------------------------------------------
LOOPS = torch.tensor([[i, i % 2, i] for i in range(20)])
STAR = torch.tensor([[0, 0, i] if i % 2 else [i, 1, 0] for i in range(1, 20)])
COMPLETE = torch.cartesian_prod(torch.arange(4), torch.tensor([0]), torch.arange(4))
ODD = {
    "self loops": {"triples": LOOPS, "sizes": (20, 2)},
    "an entity in every triple": {"triples": STAR, "sizes": (20, 2), "batch_size": 8},
    "one entity and relation": {"triples": torch.tensor([[0, 0, 0]]), "sizes": (1, 1)},
    "every corruption is true": {"triples": COMPLETE, "sizes": (4, 1), "batch_size": 5},
    "half of the corruptions are true": {
        "triples": random_triples(200, 20, 1),
        "sizes": (20, 1),
        "negatives": 20,
        "batch_size": 128,
    },
    "duplicates": {"triples": LOOPS.repeat(5, 1)[:, [0, 1, 1]], "sizes": (20, 2), "batch_size": 16},
    "unused entities and relations": {"triples": STAR, "sizes": (500, 40)},
    "one triple": {"triples": torch.tensor([[3, 1, 2]]), "sizes": (7, 2)},
    "batch of one": {"triples": STAR, "sizes": (20, 2), "batch_size": 1},
    "batch larger than the graph": {"batch_size": 100_000},
    "one negative": {"negatives": 1},
    "many negatives": {"negatives": 70},
    "huge values": {"scale": 1e4},
    "small values": {"scale": 1e-3},
    "all zero": {"scale": 0.0},
}


@needs_compiler
@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize(
    "name, loss", [("TransH", "margin"), ("RotatE", "cross-entropy"), ("ComplEx", "cross-entropy")]
)
def test_odd_input(case, name, loss):
    readable, native = pair(name, stage=2, loss=loss, weighting="mean", **ODD[case])
    assert_same_losses(readable.run(), native.run(), rel=1e-4)
    assert largest_error(readable, native, ".m") < 1e-4


@needs_compiler
@pytest.mark.parametrize("name, dim", [("TransH", 3), ("ComplEx", 5), ("RotatE", 20)])
def test_odd_dimensions(name, dim):
    readable, native = pair(name, stage=2, dims=(dim, 8), loss="cross-entropy", batch_size=64)
    assert_same_losses(readable.run(), native.run(), rel=1e-5)
    assert largest_error(readable, native, ".m") < 1e-5


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", ["margin", "cross-entropy"])
def test_a_diverged_model_shows_in_the_loss(bad, loss):
    for one in pair("DistMult", loss=loss, penalty=0.0):
        one.roles["student"].entities.data[:] = bad
        assert not torch.tensor(one.run()[0]["student_hard"]).isfinite()


# ---- the same bits --------------------------------------------------------------------------------------------------
@needs_compiler
@pytest.mark.parametrize("name", dict(COMPILED))
def test_any_number_of_threads_gives_the_same_bits(name, threads):
    results, losses = [], []
    for count in (1, 1, 2, 3, 7):
        threads(count)
        one = learning(NativeEngine, name, stage=2, loss=MODELS[name].loss, batch_size=32)
        losses.append(one.run(3, rate=0.01))
        results.append(one.tensors())
    for other in results[1:]:
        assert all(torch.equal(x, other[key]) for key, x in results[0].items())
    for other in losses[1:]:  # these are reported only, summed by thread
        assert_same_losses(losses[0], other, rel=1e-12)


@needs_compiler
@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (5, 2)])
def test_more_threads_than_entities(sizes, threads):
    threads(7)
    triples = torch.cartesian_prod(*(torch.arange(n) for n in (sizes[0], sizes[1], sizes[0])))[::2]
    readable, native = pair("DistMult", stage=2, triples=triples, sizes=sizes, batch_size=3)
    assert_same_losses(readable.run(2), native.run(2), rel=1e-5)
    assert largest_error(readable, native, ".m") < 1e-5


@needs_compiler
def test_the_seed_decides():
    def weights(seed: int) -> torch.Tensor:
        one = learning(NativeEngine, "RotatE", loss="cross-entropy", seed=seed)
        one.run(2, rate=0.01)
        return one.tensors()["student.entities"]

    assert torch.equal(weights(3), weights(3)) and not torch.equal(weights(3), weights(4))


@needs_compiler
@pytest.mark.parametrize("make", [ReferenceEngine, NativeEngine])
def test_an_engine_resumes_from_its_state(make):
    whole = learning(make, "ComplEx", stage=2, loss="cross-entropy", batch_size=32)
    whole.run(2, rate=0.01)
    half = {key: x.clone() for key, x in whole.tensors().items()}
    whole.run(2, rate=0.01, first=2)
    resumed = learning(make, "ComplEx", stage=2, loss="cross-entropy", batch_size=32)
    for role, model in resumed.roles.items():
        model.load_state_dict({name: half[f"{role}.{name}"] for name in ("entities", "relations")})
    resumed.engine.load_state({key: half[key] for key in resumed.engine.state()})
    resumed.run(2, rate=0.01, first=2)
    assert all(torch.equal(x, resumed.tensors()[key]) for key, x in whole.tensors().items())


@needs_compiler
def test_kernels_leave_the_processor_as_it_was():
    """They flush denormals to zero while they run, not afterwards."""
    learning(NativeEngine, "DistMult").run(rate=0.01)
    assert (torch.full((1000,), 1e-40) * 1.0).min() > 0


# ---- which models, and what happens without a compiler --------------------------------------------------------------
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_freed_memory_is_kept():
    """In a process of its own, since the setting stays: page faults of tensors that are freed and asked for again."""
    code = """if True:
        import resource, torch
        from kgdistil.kernels import keep_freed_memory
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(8):
                kept = [torch.zeros(6 << 20) for _ in range(3)]  # of 24 MiB
                del kept
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(faults(), keep_freed_memory(), faults() and faults())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, kept, after = done.stdout.split()
    assert kept == "True" and int(after) < int(before) / 10


OUT_OF_MEMORY = """if True:
    import resource, sys, torch
    from kgdistil import kernels
    from kgdistil.config import make_config
    from kgdistil.models import build_model
    from kgdistil.training.native import NativeEngine
    torch.set_num_threads(1)
    if sys.argv[1] == "rank":
        ranker, target = kernels.Ranker(build_model("DistMult", 20, 2, 1 << 16)), torch.zeros(64, dtype=torch.int64)
        queries, known = torch.zeros(64, 1 << 16), (target, target, torch.zeros(1, dtype=torch.int32))
        work = lambda n: ranker.counts(queries[:n], target[:n], (known[0][:n], known[1][:n], known[2]))
    else:
        model, triples = build_model("DistMult", 50, 2, 4), torch.zeros(1 << 20, 3, dtype=torch.int64)
        engine = NativeEngine(model, None, triples, make_config(model="DistMult", negatives=5, batch_size=1 << 20))
        rates = torch.zeros(engine.steps, dtype=torch.float64)
        work = lambda n: engine.epoch(0, rates) if n > 1 else None
    work(1)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), -1))
    try:
        work(64)
    except MemoryError as error:
        print(str(error).splitlines())
"""


@needs_compiler
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited and counted as Linux does")
@pytest.mark.parametrize("kernel", ["rank", "epoch"])
def test_a_kernel_without_memory_is_an_error_of_python(kernel):
    """Rather than the end of the process: an exception of C++ that leaves a kernel ends it."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY, kernel], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"kgd_{kernel}: not enough memory" in done.stdout


@needs_compiler
def test_a_library_that_lays_out_other_structures_is_refused():
    model = build_model("TransE", 5, 2, 8)
    with pytest.raises(KgdistilError, match="its structures take"):
        kernels.compile.check_sizes(kernels.rank_library(model), Epoch)


@needs_compiler
@pytest.mark.parametrize("given", [None, "7"])
def test_openmp_is_told_how_to_wait_only_while_it_is_loaded(given, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    seen = []
    monkeypatch.setattr(ctypes, "CDLL", lambda path: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    kernels.compiled.__wrapped__("codes.cpp", "KGD_GROUP=1")
    assert seen == [given or "1000"] and os.environ.get("GOMP_SPINCOUNT") == given


def test_only_what_the_kernels_know_is_usable():
    model = build_model("TransE", 5, 2, 8)
    assert kernels.usable(model) and kernels.usable(model, None)
    assert not kernels.usable(model, build_model("TransE", 5, 2, 8).double())
    assert not kernels.usable(type("NewModel", (MODELS["TransE"],), {})(5, 2, 8))


@needs_compiler
def test_dot_products_have_no_offset():
    learners = []
    for make in (ReferenceEngine, NativeEngine):
        model = build_model("DistMult", ENTITIES, RELATIONS, 8, offset=2.0)
        one = Learning(make(model, None, random_triples(144), make_config(model="DistMult")), {"student": model})
        one.run()
        learners.append(one)
    assert largest_error(*learners, ".m") < 1e-5


@pytest.fixture
def fresh(monkeypatch, tmp_path) -> Iterator[pytest.MonkeyPatch]:
    """An empty cache of compiled files, and nothing remembered of compilers and libraries."""

    def forget() -> None:
        kernels.compiler.cache_clear()
        kernels.compiled.cache_clear()
        kernels.compile.warn_once.cache_clear()
        kernels.compile.library_folder.cache_clear()

    monkeypatch.setenv("KGDISTIL_CACHE", str(tmp_path / "cache"))
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


def compiled_files(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.so"))


def distil(graph) -> str:
    """Stage 1 for an epoch and a ranking, as `train` does it; returns which engine it took."""
    config = make_config(model="DistMult", dim=8, role="stage1", teacher="t", penalty=0.05)
    student, teacher = (build_model("DistMult", graph.num_entities, graph.num_relations, d) for d in (8, 16))
    engine = make_engine(student, teacher, config, graph)
    start = student.entities.detach().clone()
    assert engine.epoch(0, torch.full((engine.steps,), 0.01, dtype=torch.float64))["student_soft"] > 0
    assert not torch.equal(start, student.entities)
    ranks = rank(student, graph.test, KnownTriples(graph.known, graph.num_relations)).ranks()
    assert ranks.min() >= 1 and ranks.max() <= graph.num_entities
    return type(engine).__name__


def script(path, text: str):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def switched_off(monkeypatch, tmp_path) -> str:
    monkeypatch.setenv("KGDISTIL_NATIVE", "0")
    return "KGDISTIL_NATIVE=0"


def no_compiler(monkeypatch, tmp_path) -> str:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    return "no C\\+\\+ compiler"


def broken_compiler(monkeypatch, tmp_path) -> str:
    monkeypatch.setenv("CXX", script(tmp_path / "broken", "echo it is broken >&2; exit 1"))
    return "it is broken"


@pytest.mark.parametrize("circumstance", [switched_off, no_compiler, broken_compiler])
def test_falls_back_with_one_line(circumstance, fresh, tmp_path, caplog, tiny_graph):
    message = circumstance(fresh, tmp_path)
    with caplog.at_level(logging.INFO, logger="kgdistil"):
        assert distil(tiny_graph) == "ReferenceEngine"
    lines = [r.getMessage() for r in caplog.records if "PyTorch" in r.getMessage()]
    assert lines and all("\n" not in line for line in lines)
    assert not compiled_files(tmp_path)
    assert re.search(message, lines[0])
    assert len(lines) == 1


def test_a_process_without_kernels_trains(tiny_graph):
    """The real thing: a new process in which the environment switches them off."""
    code = (
        "import logging; logging.basicConfig(level=logging.INFO); import conftest, test_kernels;"
        "print(test_kernels.distil(conftest.tiny_graph.__wrapped__()))"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KGDISTIL_NATIVE": "0", "PYTHONPATH": here},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ReferenceEngine"]
    assert done.stderr.count("KGDISTIL_NATIVE=0") == 1


@needs_compiler
def test_compiled_files_are_kept_and_reused(fresh, tmp_path, tiny_graph):
    assert distil(tiny_graph) == "NativeEngine"
    files = compiled_files(tmp_path)
    assert len(files) == 3  # training at d = 8 and 16, ranking at d = 8
    assert {path.name for path in (tmp_path / "cache" / "kernels").iterdir()} == set(files)  # nothing half done
    kernels.compiled.cache_clear()
    kernels.compile.warn_once.cache_clear()  # as a new process
    fresh.setattr(kernels.compile, "run", lambda *command: pytest.fail(f"compiles again: {command}"))
    assert distil(tiny_graph) == "NativeEngine"


# ---- the folder of compiled files: loading one is running it --------------------------------------------------------
def answers(tmp_path, caplog) -> str:
    """Loads a library as a new process does; returns where it lies, having checked that it works."""
    for cached in (kernels.compiled, kernels.compile.library_folder, kernels.compile.warn_once):
        cached.cache_clear()
    caplog.clear()
    library = kernels.compiled("codes.cpp", "KGD_GROUP=2")
    assert library is not None, caplog.text
    return library._name


def in_the_way(cache, monkeypatch) -> None:
    cache.touch()


def another_users(cache, monkeypatch) -> None:
    (cache / "kernels").mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(kernels.compile.os, "getuid", lambda: os.geteuid() + 1)


def a_link(cache, monkeypatch) -> None:
    cache.mkdir()
    (cache.parent / "theirs").mkdir()
    (cache / "kernels").symlink_to(cache.parent / "theirs")


def no_home(cache, monkeypatch) -> None:
    monkeypatch.delenv("KGDISTIL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


def no_home_and_newer_platformdirs(cache, monkeypatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KGDISTIL_CACHE")
    monkeypatch.setattr("kgdistil.answer.files.platformdirs.user_cache_path", fail)


@needs_compiler
@pytest.mark.parametrize("fault", [in_the_way, another_users, a_link, no_home, no_home_and_newer_platformdirs])
def test_a_folder_that_others_may_fill_is_not_used(fault, fresh, tmp_path, caplog):
    (tmp_path / "here").mkdir()
    fresh.chdir(tmp_path / "here")
    fault(tmp_path / "cache", fresh)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    name = answers(tmp_path, caplog)
    assert not Path(name).is_relative_to(tmp_path) and Path(name).parent.stat().st_mode & 0o777 == 0o700
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    (line,) = caplog.messages
    assert "not kept but built anew" in line and "\n" not in line


@needs_compiler
def test_without_a_home_a_named_cache_is_used(fresh, tmp_path, caplog):
    named = os.environ["KGDISTIL_CACHE"]
    no_home_and_newer_platformdirs(tmp_path, fresh)
    fresh.setenv("KGDISTIL_CACHE", named)
    assert Path(answers(tmp_path, caplog)).is_relative_to(named) and not caplog.messages


@needs_compiler
@pytest.mark.parametrize("change", ["cut", "empty", "bit", "link", "group", "world"])
def test_a_library_that_is_not_as_it_was_written_is_built_again(change, fresh, tmp_path, caplog):
    library = Path(answers(tmp_path, caplog))
    content = library.read_bytes()
    assert library.stat().st_mode & 0o777 == 0o700
    # in a file of its own: the one that this process has loaded stays as it is
    library.unlink()
    if change == "link":
        (tmp_path / "theirs").write_bytes(content)
        library.symlink_to(tmp_path / "theirs")
    else:
        wrong = {"cut": content[: len(content) // 2], "empty": b"", "bit": content[:-1] + bytes([content[-1] ^ 1])}
        library.write_bytes(wrong.get(change, content))
        library.chmod({"group": 0o720, "world": 0o702}.get(change, 0o700))
    inode = library.lstat().st_ino
    again = Path(answers(tmp_path, caplog))
    assert again.read_bytes() == content and again.lstat().st_ino != inode and not again.is_symlink()
    assert compiled_files(tmp_path) == [library.name] and not caplog.messages


@needs_compiler
def test_a_folder_that_was_open_is_closed_and_emptied(fresh, tmp_path, caplog):
    """Its files bear the right sum in their names, and may be anybody's."""
    folder = tmp_path / "cache" / "kernels"
    name = Path(answers(tmp_path, caplog)).name
    (folder / name).unlink()
    planted = script(tmp_path / "planted", "no library at all")
    sum_ = hashlib.sha256(Path(planted).read_bytes()).hexdigest()
    shutil.copy(planted, folder / f"{name.rpartition('-')[0]}-{sum_}.so")
    folder.chmod(0o777)
    assert Path(answers(tmp_path, caplog)).name == name
    assert folder.stat().st_mode & 0o777 == 0o700 and compiled_files(folder) == [name]


@needs_compiler
def test_another_release_of_the_compiler_makes_another_library(fresh, tmp_path, caplog):
    using = kernels.compiler()
    for release in ("12", "13"):
        fresh.setenv("CXX", script(tmp_path / "cxx", f'[ "$1" = --version ] && echo {release} || exec {using} "$@"'))
        kernels.compiler.cache_clear()
        kernels.compile.version.cache_clear()
        answers(tmp_path, caplog)
    kernels.compile.version.cache_clear()
    assert len(compiled_files(tmp_path)) == 2


@needs_compiler
def test_what_a_killed_compiler_left_goes(fresh, tmp_path, caplog):
    folder = tmp_path / "cache" / "kernels"
    for name in ("build-old", "build-now"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o700)
    os.utime(folder / "build-old", (0, 0))
    answers(tmp_path, caplog)
    assert [path.name for path in folder.glob("build-*")] == ["build-now"]


def test_a_model_of_ones_own_never_meets_the_kernels():
    """Not even where it bears the name of one that they know."""

    class DistMult(KGEModel):
        def score(self, h, r, t):
            return -(h + r - t).square().sum(-1)

    assert kernels.usable(build_model("DistMult", ENTITIES, RELATIONS, 8))
    assert not kernels.usable(DistMult(ENTITIES, RELATIONS, 8))


# ---- threads ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "busy, set_to, wanted",
    [((0.0, 0.0), "", 2), ((0.1, 0.2), "", 2), ((1.0, 0.1), "", 1), ((1.0, 1.0), "", 1), ((1.0, 1.0), "2", 2)],
)
def test_training_takes_the_cores_that_are_free(monkeypatch, busy, set_to: str, wanted: int) -> None:
    clock = [0.0]
    monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    monkeypatch.setattr(free.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(free.time, "sleep", lambda x: clock.__setitem__(0, clock[0] + x))
    monkeypatch.setattr(free, "idle", lambda: [100 + clock[0] * (1 - x) for x in busy])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with kernels.with_free_threads():
            assert torch.get_num_threads() == wanted
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(free, "idle", list)  # a system that does not say
        assert kernels.free_threads() == 2
        kernels.again()  # where nothing was chosen
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_are_chosen_again_when_others_are_done(tiny_graph, monkeypatch) -> None:
    counts, seen = iter([1, 1, 2]), list[int]()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(free, "free_threads", lambda most: next(counts, most))
    monkeypatch.setattr(free, "AGAIN", 0)
    config = make_config(model="ComplEx", dim=4, loss="softmax", negatives=20, batch_size=16, epochs=4, seed=17)
    engine = make_engine(build_model("ComplEx", 30, 4, 4), None, config, tiny_graph)
    engine.between = lambda: (kernels.again(), seen.append(torch.get_num_threads()))
    try:
        with kernels.with_free_threads():
            assert torch.get_num_threads() == 1
            engine.epoch(0, torch.full((engine.steps,), 0.1, dtype=torch.float64))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen[0] == 1 and seen[1:] == [2] * (len(seen) - 1)


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="only Linux says how idle each core was")
def test_how_idle_the_cores_were_is_read_from_the_system() -> None:
    first = free.idle()
    assert len(first) == len(os.sched_getaffinity(0)) and min(first) >= 0
    time.sleep(0.05)
    assert all(b >= a for a, b in zip(first, free.idle(), strict=True))
