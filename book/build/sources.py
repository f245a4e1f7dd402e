"""What a build of the book depends on, and where it is built."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from kgdistil import records

# records that every demo, test and build of the book makes anew; git ignores them
EMBEDDED = ("umls-*", "europe-*", "frontier-umls-*", "umls.json")
EXECUTED = ("kgdistil", "notebooks", "results")  # what the outputs of notebooks depend on
SOURCES = (*EXECUTED, "book", "_config.yml", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml", "constraints.txt")


# ---- what a build depends on ----------------------------------------------------------------------------------------
def digest(names: Iterable[str]) -> str:
    """Sum of all files below the names, relative to the checkout; what runs leave and git ignores does not count."""
    found = hashlib.sha256()
    for name in names:
        top = records.root() / name
        for path in sorted([top] if top.is_file() else top.rglob("*")):
            parts = path.relative_to(records.root()).parts
            if (
                path.is_file()
                and not ({"__pycache__", ".ipynb_checkpoints", "checkpoints"} & {*parts})
                and not (parts[0] == "results" and any(path.match(pattern) for pattern in EMBEDDED))
            ):
                found.update(f"{'/'.join(parts)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def site() -> Path:
    return records.root() / "_build" / "html"


AS_COMMITTED = "notebooks as committed:"  # before the sum of a site whose notebooks were not executed


def is_fresh(executed: bool = True) -> bool:
    """Whether the site was built from exactly the files that are there now, with its notebooks executed if asked."""
    stamp = site() / ".sources"
    found = stamp.read_text() if stamp.is_file() else ""
    return (found if executed else found.removeprefix(AS_COMMITTED).lstrip()) == digest(SOURCES)
