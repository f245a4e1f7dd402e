"""Run records: what was run, with what, and what came out. Tables and pictures are made of them."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import platform
import shlex
import subprocess
import sys
import time
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgdistil._version import __version__
from kgdistil.answer.files import sealed, unsealed, user_folder, write_atomically, write_json
from kgdistil.config import RunConfig
from kgdistil.errors import CheckpointError, KgdistilError
from kgdistil.evaluation import Ranks
from kgdistil.graph import NAMES, Graph
from kgdistil.kernels.free import describe_device as describe_device

TOGETHER: ContextVar[Path | None] = ContextVar("together", default=None)  # see `kept_in`
LIBRARIES = ("torch", "numpy", "pandas", "pydantic", "safetensors")


# ---- where things lie -----------------------------------------------------------------------------------------------
# `results/` and `runs/` of the checkout are the paper's. Runs on a graph of one's own go to the user's data folder, as
# all runs do where there is no checkout or it is read-only. KGDISTIL_RESULTS and KGDISTIL_RUNS name other folders.
@functools.cache
def checkout() -> Path | None:
    """The checkout that this package lies in; None for an installed one, whatever folder it is started in."""
    above = Path(__file__).resolve().parent.parent
    try:
        named = tomllib.loads((above / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return above if named == "kgdistil" and not any(above.glob("kgdistil-*.dist-info")) else None


def root() -> Path:
    """The checkout, or the user's data folder for a package without one."""
    return checkout() or user_folder("data")


def is_own(dataset: str) -> bool:
    """Whether a run on a graph is the user's own rather than the paper's: see above."""
    home = checkout()
    return dataset not in NAMES or home is None or not os.access(home, os.W_OK)


def places() -> list[bool]:
    """The values of `own` for which there are folders; a user without a home has none of their own."""
    try:
        return [False, True] if runs_folder(own=True) and results_folder(own=True) else []
    except KgdistilError:
        return [False]


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """While this holds, runs and records lie in one folder, unless a variable names another."""
    token = TOGETHER.set(folder)
    try:
        yield
    finally:
        TOGETHER.reset(token)


def results_folder(own: bool = False) -> Path:
    """Where records lie: KGDISTIL_RESULTS, or `results/` of the checkout or, for one's own, of the data folder."""
    named = os.environ.get("KGDISTIL_RESULTS") or TOGETHER.get()
    return Path(named or (user_folder("data") if own else root()) / "results")


def runs_folder(own: bool = False) -> Path:
    """What running leaves, and git ignores: KGDISTIL_RUNS, or `runs/` beside `results/`."""
    named = os.environ.get("KGDISTIL_RUNS") or TOGETHER.get()
    return Path(named or (user_folder("data") if own else root()) / "runs")


def record_path(run_id: str, own: bool = False) -> Path:
    return results_folder(own) / "runs" / f"{run_id}.json"


def model_folder(run_id: str, own: bool = False) -> Path:
    """Where a run's weights and checkpoints lie: `runs/models/<id>`, or below KGDISTIL_RUNS."""
    return runs_folder(own) / "models" / run_id


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
    arithmetic: Mapping[str, str | int],
    metrics: dict[str, dict[str, dict[str, float]]],
    sampled: dict[str, dict[str, float]] | None = None,
    sources: Mapping[str, str] | None = None,
    turns: Sequence[int] = (),
) -> dict[str, Any]:
    """A record as plain JSON values: everything needed to make the run again and to judge it."""
    return {
        "id": config.run_id,
        "config": config.model_dump(),
        "graph": {**graph.sizes(), "sha256": graph.sha256, **({"notes": list(graph.notes)} if graph.notes else {})},
        "parameters": parameters,
        "epochs": epochs,
        "best_epoch": best_epoch,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "engine": engine,
        "arithmetic": dict(arithmetic),  # what else decided the last bits: see `training.base`
        "command": command(),
        "device": describe_device(config.device),
        "threads": None if torch.device(config.device).type == "cuda" else torch.get_num_threads(),
        **({"threads_in_turn": list(turns)} if len(turns) > 1 else {}),  # where cores became free, or were taken
        **({"sources": dict(sources)} if sources else {}),  # sums of the teacher's file and of the student's beginning
        **provenance(),
        "valid": metrics["valid"],
        "test": metrics["test"],
        **({"sampled": sampled} if sampled else {}),  # how many triples these are of, and their MRRs' standard errors
        "curve": curve,
    }


def command() -> str:
    """What was typed to get here; in a notebook's kernel, what started the kernel (papermill, pytest, Jupyter)."""
    arguments, module = sys.argv, getattr(sys.modules["__main__"], "__spec__", None)
    if Path(arguments[0]).name.startswith("ipykernel"):
        try:
            arguments = Path(f"/proc/{os.getppid()}/cmdline").read_text().rstrip("\0").split("\0")
        except OSError:
            return "a Jupyter kernel"
        if Path(arguments[0]).name.startswith("python") and len(arguments) > 1:
            arguments = arguments[1:]  # an installed script: its interpreter says nothing
    if module is not None and module.origin == arguments[0]:
        return shlex.join(["python", "-m", module.name.removesuffix(".__main__"), *arguments[1:]])
    return shlex.join([Path(arguments[0]).name, *arguments[1:]])


def provenance() -> dict[str, Any]:
    """Git commit, whether tracked files outside results/ were changed (both None without git), library versions."""
    changed = git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules", "--", ".", ":!results")
    versions = {"python": platform.python_version(), "kgdistil": __version__, **{n: installed(n) for n in LIBRARIES}}
    dirty = None if changed is None else bool(changed)
    return {"commit": git("rev-parse", "HEAD"), "dirty": dirty, "versions": versions}


def installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def git(*arguments: str) -> str | None:
    """What git prints about the checkout, or None where it cannot say. No other folder is ever asked about.

    A repository's configuration can name programs, and variables another repository: neither counts here.
    """
    home = checkout()
    if home is None or not (home / ".git").exists():
        return None
    quiet = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith("GIT_CONFIG")}
    kept["GIT_CEILING_DIRECTORIES"] = str(home.parent)
    command = ["git", "-C", str(home), *quiet, *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=kept)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip()


def write_record(record: dict[str, Any]) -> Path:
    path = record_path(record["id"], is_own(record["config"]["dataset"]))
    write_json(path, sealed(record))
    return path


def read_record(path: Path) -> dict[str, Any] | None:
    """The record, or None where there is none.

    Raises:
        CheckpointError: the file cannot be read or is no record.
    """
    try:
        if not path.is_file():
            return None
        record = unsealed(json.loads(path.read_text(encoding="utf-8")))
        for keys in (("finished",), ("config", "model"), ("graph", "sha256")):
            functools.reduce(operator.getitem, keys, record)
        if record["id"] != path.stem or not record["best_epoch"] <= record["epochs"] <= record["config"]["epochs"]:
            raise ValueError("what it says of its run cannot be")
        if not all(0 <= record[split]["both"]["mrr"] <= 1 for split in ("valid", "test")):
            raise ValueError("an MRR lies outside 0 to 1")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no run record ({error!r}); delete it to run again") from None
    return record


def read_records() -> list[dict[str, Any]]:
    """All records under `results/runs/`, by id."""
    return [r for path in sorted((results_folder() / "runs").glob("*.json")) if (r := read_record(path))]


def ranks_path(run_id: str, own: bool = False) -> Path:
    return results_folder(own) / "ranks" / f"{run_id}.npz"


def write_ranks(run_id: str, ranks: Ranks, own: bool = False) -> None:
    """Ranks of a run's test split, or of what `run_id` names, compressed: `greater` and `equal`, int32 [n, 2]."""

    def write(scratch: str) -> None:
        with Path(scratch).open("wb") as file:
            np.savez_compressed(file, greater=ranks.greater, equal=ranks.equal)

    write_atomically(ranks_path(run_id, own), write)


def read_ranks(run_id: str, own: bool = False) -> Ranks:
    """What `write_ranks` wrote.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = ranks_path(run_id, own)
    try:
        with np.load(path, allow_pickle=False) as file:
            return Ranks(file["greater"], file["equal"])
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error, TypeError) as error:
        raise CheckpointError(f"{path} holds no ranks ({error}); run again with save_ranks and again") from None
