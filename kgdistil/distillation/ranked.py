"""Ranks that are made once: of a large graph a model's take minutes, which a call that is stopped would lose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kgdistil import records
from kgdistil.checkpoint import WEIGHTS
from kgdistil.errors import CheckpointError
from kgdistil.evaluation import KnownTriples, Ranks, evaluate, sampled
from kgdistil.graph import Graph
from kgdistil.models import KGEModel
from kgdistil.training.loop import Run


def ranks_of(
    done: Run,
    graph: Graph,
    split: str,
    known: KnownTriples,
    *,
    name: str = "",
    load: Callable[[], KGEModel] | None = None,
    after: Path | None = None,
) -> Ranks:
    """Ranks of as many triples of a split as the run ends with: of the run's model, or of what is made of it.

    Where these are a sample, they are kept beside the records, and read where they are newer than the weights.

    Args:
        name: of what `load` makes of the model, in place of the run's id.
        after: a folder of other weights that it is made of.
    """
    own, sample = records.is_own(done.config.dataset), done.config.final_sample
    name = (name or done.id) + (f"-{split}" if split != "test" else "")
    found = read(name, own, [done.folder, after or done.folder]) if sample else None
    if found is not None and len(found.greater) == len(sampled(getattr(graph, split), sample)):
        return found
    ranks = evaluate((load or (lambda: done.load(graph)))(), graph, split, known=known, sample=sample)
    if sample:
        records.write_ranks(name, ranks, own)
    return ranks


def read(name: str, own: bool, folders: list[Path]) -> Ranks | None:
    """Ranks that were kept, where they are newer than all weights."""
    try:
        made = records.ranks_path(name, own).stat().st_mtime
        if made >= max((folder / WEIGHTS).stat().st_mtime for folder in folders):
            return records.read_ranks(name, own)
    except (OSError, CheckpointError):
        pass
    return None
