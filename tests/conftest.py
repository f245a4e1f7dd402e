"""Fixtures and settings that all tests share."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from kgdistil.distillation import rule
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.paper import recipe as recipes

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # two workers share two cores

# No deadline: a slow example on a busy machine says nothing about the code. In CI, examples never change.
settings.register_profile(
    "ci", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")


def together(nodeid: str) -> str:
    """Tests of one name run in one process: those of a file share fixtures, the notebooks share runs."""
    file = nodeid.split("::", maxsplit=1)[0]
    return "notebooks" if file.endswith(".ipynb") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid)

    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process is left with one of them at the end."""
    first = {"tests/test_book.py": 0, "notebooks": 1}
    items.sort(key=lambda item: first.get(together(item.nodeid), 2))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is False"))


@pytest.fixture(scope="session", autouse=True)
def without_a_rule(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests of recipes say what these do, whatever was fitted since; the file that is hidden."""
    with pytest.MonkeyPatch.context() as patch:
        hidden = rule.RULE
        patch.setattr(rule, "RULE", tmp_path_factory.mktemp("rule") / "none.json")
        yield hidden


@pytest.fixture(scope="session")
def umls() -> Graph:
    """The embedded default: small, real, and needs no network."""
    return load("umls")


@pytest.fixture(scope="session")
def wn18rr() -> Graph:
    """The real benchmark, only where a local folder is said to hold it: the suite needs no network."""
    if not os.environ.get("KGDISTIL_DATA"):
        pytest.skip("KGDISTIL_DATA is not set: it names the folder that holds WN18RR.tar.gz")
    return load("wn18rr")


@pytest.fixture(scope="session")
def tiny_graph() -> Graph:
    """200 different random triples over 30 entities and 4 relations: 160 train, 20 valid, 20 test."""
    codes = torch.randperm(30 * 4 * 30, generator=torch.Generator().manual_seed(0))[:200]
    triples = torch.stack([codes // 120, codes // 30 % 4, codes % 30], dim=1)  # [200, 3]
    return Graph(
        name="tiny",
        train=triples[:160],
        valid=triples[160:180],
        test=triples[180:],
        entities=tuple(f"e{i:02}" for i in range(30)),
        relations=tuple(f"r{i}" for i in range(4)),
        sha256="0" * 64,
    )


SMALL = {
    "tuned": {
        "all": {"schedule": "linear", "patience": 0, "checks": 2, "search_epochs": 2, "negatives": 2, "lr": 0.01},
        "teacher": {"epochs": 3, "gamma": [1.0, 2.0]},
        "no-DS": {"epochs": 5, "lr": [0.01, 0.05]},
        "stage1": {"epochs": 3, "alpha": [0.3, 0.7]},
        "stage2": {"epochs": 2, "share": 0.5},
        "only2": {"epochs": 5, "share": 0.5},
    }
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Recipes of a few epochs, and folders of their own."""
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    table = copy.deepcopy(SMALL)
    monkeypatch.setattr(recipes, "recipes", lambda: table)
    return tmp_path


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and results of a test lie in its folder, and it is no rank of several."""
    for name in ("RUNS", "RESULTS"):
        monkeypatch.setenv(f"KGDISTIL_{name}", str(tmp_path / name.lower()))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
