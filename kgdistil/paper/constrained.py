"""Type-constrained ranks of cells: what the paper's numbers on FB15k-237 may be, beside head, tail and both sides.

`python -m kgdistil.paper.constrained` ranks the test triples of Table 4's cells once against every entity and once
against those that were seen on that side of the relation and the true answer, seen there or not, and leaves
`results/constrained/<run>.json`. `unseen` counts the answers that were not.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kgdistil import records
from kgdistil.errors import CheckpointError, run_command
from kgdistil.evaluation import KnownTriples, rank, roles
from kgdistil.files import write_json
from kgdistil.graph import SPLITS, Graph
from kgdistil.paper.cells import Cell, parse, table_cells
from kgdistil.paper.recipe import config
from kgdistil.paper.reproduce import folder_of, graph_of, weights_of

# By name, the splits in which an entity must have been seen on that side of the relation; None: every entity.
# "all splits" is what OpenKE's type_constrain.txt holds: it has been told where the answers stand.
CANDIDATES: dict[str, tuple[str, ...] | None] = {"every entity": None, "training": ("train",), "all splits": SPLITS}
NEAR = 5e-4  # by which the MRR of the same weights may differ from one processor to another


def path(run_id: str) -> Path:
    return records.results_folder() / "constrained" / f"{run_id}.json"


def measure(cell: Cell, graph: Graph) -> dict[str, Any]:
    """Rank the test triples of one cell against each of `CANDIDATES`, and record it.

    Raises:
        CheckpointError: the weights are not those of the recorded run.
    """
    model, own = weights_of(cell, graph), config(cell)
    record = records.read_record(records.record_path(own.run_id))
    if record is None:
        raise CheckpointError(
            f"{cell} has weights and no record: run `python -m kgdistil.paper.reproduce {cell}` first"
        )
    began, known, found, unseen = time.monotonic(), KnownTriples(graph.known, graph.num_relations), {}, {}
    for name, splits in CANDIDATES.items():
        seen = None
        if splits:
            triples = torch.cat([getattr(graph, split) for split in splits])
            seen = roles(triples, graph.num_relations, graph.num_entities)
            unseen[name] = {
                side: int((~seen[side][graph.test[:, 1], graph.test[:, column]]).sum())
                for side, column in (("head", 0), ("tail", 2))
            }
        found[name] = rank(model, graph.test, known, allowed=seen).metrics()
    ours, said = (m["both"]["mrr"] for m in (found["every entity"], record["test"]))
    if abs(ours - said) > NEAR:
        raise CheckpointError(
            f"{folder_of(cell)} ranks the test triples of {cell} at an MRR of {ours:.4f}, its record says {said:.4f}: "
            f"these are other weights; run `python -m kgdistil.paper.reproduce {cell} --again`"
        )
    about = {
        "id": own.run_id,
        "cell": str(cell),
        "config": own.model_dump(),
        "graph": {**graph.sizes(), "sha256": graph.sha256},
        "test": found,
        "unseen": unseen,
        "seconds": round(time.monotonic() - began, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": records.command(),
        "device": records.describe_device("cpu"),
        **records.provenance(),
    }
    write_json(path(own.run_id), about)
    return about


def table4() -> list[Cell]:
    """The cells of Table 4 under the protocol tuned, where the paper's numbers are in doubt."""
    return table_cells("tuned", "fb15k-237")


def read(cell: Cell) -> dict[str, Any] | None:
    """What `measure` left."""
    own = config(cell)
    there = own is not None and path(own.run_id).is_file()
    return json.loads(path(own.run_id).read_text(encoding="utf-8")) if there else None


def complete(cells: list[Cell], again: bool = False) -> None:
    """Measure those of the cells that are not recorded; all of them `again`."""
    missing = [cell for cell in cells if again or read(cell) is None]
    print(f"{len(missing)} of {len(cells)} cells are to be ranked.")
    for cell in tqdm(missing, unit="cell", disable=None):
        found = measure(cell, graph_of(cell.dataset))
        scores = ", ".join(f"{name} {sides['both']['mrr']:.3f}" for name, sides in found["test"].items())
        tqdm.write(f"{cell}: test MRR among {scores}; {records.shown(path(found['id']))}")


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.paper.constrained`: rank what is missing of Table 4, or of the cells that are named.

    Returns:
        0 when everything asked for is recorded.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.constrained", description=__doc__.split("\n")[0])
    parser.add_argument("cells", nargs="*", type=parse, help="single cells, as tuned/fb15k-237/RotatE/DS/8")
    parser.add_argument("--again", action="store_true", help="rank what is recorded, too")
    options = parser.parse_args(arguments)
    complete(options.cells or table4(), options.again)
    return 0


if __name__ == "__main__":
    run_command(main)
