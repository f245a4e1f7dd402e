"""Run records: what was run, with what, and what came out. Tables and pictures are made of them."""

from __future__ import annotations

import functools
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .checkpoint import write_atomically, write_json
from .config import RunConfig
from .data import Graph
from .errors import CheckpointError
from .evaluation import Ranks

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


def record_path(run_id: str) -> Path:
    return results_folder() / "runs" / f"{run_id}.json"


def model_folder(run_id: str) -> Path:
    """Where a run's weights and checkpoints lie: `runs/models/<id>`, or below KGDISTIL_RUNS."""
    return Path(os.environ.get("KGDISTIL_RUNS") or root() / "runs") / "models" / run_id


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
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": describe_device(config.device),
        **provenance(),
        "valid": metrics["valid"],
        "test": metrics["test"],
        "curve": curve,
    }


def provenance() -> dict[str, Any]:
    """Git commit, whether tracked files outside results/ were changed, and library versions."""
    return {
        "commit": git("rev-parse", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")),
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


def git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(root()), *arguments], capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


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
        CheckpointError: the file is no record.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if record["id"] and record["test"]["both"]["mrr"] >= 0 else None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no run record ({error}); delete it to run again") from None


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
    with np.load(ranks_path(run_id), allow_pickle=False) as file:
        return Ranks(file["greater"], file["equal"])
