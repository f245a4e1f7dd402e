"""Run records: what was run, with what, and what came out. Tables and pictures are made of them."""

from __future__ import annotations

import functools
import json
import operator
import os
import platform
import shlex
import subprocess
import sys
import time
import zipfile
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgdistil.config import RunConfig
from kgdistil.errors import CheckpointError
from kgdistil.evaluation import Ranks
from kgdistil.files import write_atomically, write_json
from kgdistil.graph import Graph

EMBEDDED = (
    "umls-*",
    "europe-*",
    "frontier-umls-*",
    "umls.json",
)  # records that every demo, test and build of the book makes anew; git ignores them
LIBRARIES = ("torch", "numpy", "pandas", "pydantic", "safetensors")


# ---- where things lie -----------------------------------------------------------------------------------------------
@functools.cache
def root() -> Path:
    """The checkout this package is installed from; the current folder for a package without one."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def results_folder() -> Path:
    """`results/` of the checkout, or the folder that KGDISTIL_RESULTS names."""
    return Path(os.environ.get("KGDISTIL_RESULTS") or root() / "results")


def runs_folder() -> Path:
    """`runs/` of the checkout, or the folder that KGDISTIL_RUNS names: what running leaves and git ignores."""
    return Path(os.environ.get("KGDISTIL_RUNS") or root() / "runs")


def record_path(run_id: str) -> Path:
    return results_folder() / "runs" / f"{run_id}.json"


def model_folder(run_id: str) -> Path:
    """Where a run's weights and checkpoints lie: `runs/models/<id>`, or below KGDISTIL_RUNS."""
    return runs_folder() / "models" / run_id


def shown(path: Path) -> str:
    """A path relative to the checkout, for messages."""
    return os.path.relpath(path, root()) if path.is_relative_to(root()) else str(path)


# ---- records --------------------------------------------------------------------------------------------------------
def make_record(
    config: RunConfig,
    graph: Graph,
    *,
    seconds: float,
    epochs: int,
    best_epoch: int,
    curve: list[dict[str, float]],
    parameters: int,
    engine: str,
    metrics: dict[str, dict[str, dict[str, float]]],
) -> dict[str, Any]:
    """A record as plain JSON values: everything needed to make the run again and to judge it."""
    return {
        "id": config.run_id,
        "config": config.model_dump(),
        "graph": {**graph.sizes(), "sha256": graph.sha256},
        "parameters": parameters,
        "epochs": epochs,
        "best_epoch": best_epoch,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "engine": engine,
        "command": command(),
        "device": describe_device(config.device),
        **provenance(),
        "valid": metrics["valid"],
        "test": metrics["test"],
        "curve": curve,
    }


def command() -> str:
    """What was typed to get here; in a notebook's kernel, what started the kernel (papermill, pytest, Jupyter)."""
    arguments = sys.argv
    if Path(arguments[0]).name.startswith("ipykernel"):
        try:
            arguments = Path(f"/proc/{os.getppid()}/cmdline").read_text().rstrip("\0").split("\0")
        except OSError:
            return "a Jupyter kernel"
        if Path(arguments[0]).name.startswith("python") and len(arguments) > 1:
            arguments = arguments[1:]  # an installed script: its interpreter says nothing
    return shlex.join([Path(arguments[0]).name, *arguments[1:]])


def provenance() -> dict[str, Any]:
    """Git commit, whether tracked files outside results/ were changed (both None without git), library versions."""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "versions": {
            "python": platform.python_version(),
            "kgdistil": installed("kgdistil"),
            **{name: installed(name) for name in LIBRARIES},
        },
    }


def installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def git(*arguments: str) -> str | None:
    """What git prints about the checkout, or None where it cannot say."""
    try:
        return subprocess.run(
            ["git", "-C", str(root()), *arguments], capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def describe_device(device: str) -> str:
    """The processor by name, and how much of it is used."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} thread(s)"


def write_record(record: dict[str, Any]) -> Path:
    path = record_path(record["id"])
    write_json(path, record)
    return path


def read_record(path: Path) -> dict[str, Any] | None:
    """The record, or None where there is none.

    Raises:
        CheckpointError: the file cannot be read or is no record.
    """
    try:
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        for keys in (("id",), ("finished",), ("config", "model"), ("graph", "sha256"), ("test", "both", "mrr")):
            functools.reduce(operator.getitem, keys, record)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no run record ({error!r}); delete it to run again") from None
    return record


def read_records() -> list[dict[str, Any]]:
    """All records under `results/runs/`, by id."""
    return [r for path in sorted((results_folder() / "runs").glob("*.json")) if (r := read_record(path))]


def ranks_path(run_id: str) -> Path:
    return results_folder() / "ranks" / f"{run_id}.npz"


def write_ranks(run_id: str, ranks: Ranks) -> None:
    """Test ranks of a run, compressed: `greater` and `equal`, int32 [n, 2]."""

    def write(scratch: str) -> None:
        with open(scratch, "wb") as file:
            np.savez_compressed(file, greater=ranks.greater, equal=ranks.equal)

    write_atomically(ranks_path(run_id), write)


def read_ranks(run_id: str) -> Ranks:
    """What `write_ranks` wrote.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = ranks_path(run_id)
    try:
        with np.load(path, allow_pickle=False) as file:
            return Ranks(file["greater"], file["equal"])
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error, TypeError) as error:
        raise CheckpointError(f"{path} holds no ranks ({error}); run again with save_ranks and again") from None
