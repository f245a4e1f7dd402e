"""`python -m kgdistil.paper.last`: where the newest executed notebook, picture and run record lie."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from kgdistil.errors import run_command
from kgdistil.records import read_records, record_path, runs_folder, shown


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.paper.last`: where the newest executed notebook, picture and run record lie.

    The record is the last that the notebook names: where nothing had to be trained, the newest is that of another run.

    Returns:
        0, or 1 where one of them is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.last", description="Find what a run left.")
    parser.parse_args(arguments)
    notebook = newest_file(runs_folder(), ".ipynb")
    named = re.findall(r"([\w.-]+)\.json\b", notebook.read_text(encoding="utf-8")) if notebook else []
    named = [run_id for run_id in named if record_path(run_id).is_file()]
    newest = max(read_records(), key=lambda record: record["finished"], default={"id": None})["id"]
    record = named[-1] if named else newest
    found = {
        "executed notebook": notebook,
        "picture": newest_file(runs_folder(), ".png"),
        "run record": record and record_path(record),
    }
    for what, path in found.items():
        print(f"{what}: {shown(path) if path else 'none yet; `make demo` makes one'}")
    return 0 if all(found.values()) else 1


def newest_file(folder: Path, ending: str) -> Path | None:
    """The file below `folder` changed last, Jupyter's own copies aside."""
    files = (p for p in folder.rglob(f"*{ending}") if ".ipynb_checkpoints" not in p.parts)
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


if __name__ == "__main__":
    run_command(main)
