"""Type-constrained ranks of cells: what the paper's numbers on FB15k-237 may be, beside head, tail and both sides.

`python -m kgdistil.constrained` ranks the test triples of Table 4's cells once against every entity and once against
those alone that were seen on that side of the relation, and leaves `results/constrained/<run>.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import results
from .checkpoint import WEIGHTS, load_model, write_json
from .data import SPLITS, Graph
from .errors import CheckpointError, ConfigError, KgdistilError
from .evaluation import KnownTriples, rank, roles
from .models import KGEModel
from .reproduce import Cell, config, graph_of, parse, published, table_cells
from .training import run

# By name, the splits in which an entity must have been seen on that side of the relation; None: every entity.
# "all splits" is what OpenKE's type_constrain.txt holds: it has been told where the answers stand.
CANDIDATES: dict[str, tuple[str, ...] | None] = {"every entity": None, "training": ("train",), "all splits": SPLITS}
NEAR = 5e-4  # by which the MRR of the same weights may differ from one processor to another


def path(run_id: str) -> Path:
    return results.results_folder() / "constrained" / f"{run_id}.json"


def trained(cell: Cell, graph: Graph) -> KGEModel:
    """The cell's model: from this machine's runs, from what is published, or else trained, with all that it needs.

    Raises:
        ConfigError: its recipe has not been searched.
    """
    own = config(cell)
    if own is None:
        raise ConfigError(f"{cell} has no recorded search: run `python -m kgdistil.reproduce {cell}` first")
    for folder in (results.model_folder(own.run_id), published(cell)):
        if (folder / WEIGHTS).is_file():
            return load_model(folder, graph)
    for need in cell.needs:
        trained(need, graph)
    return run(own, graph, save_ranks=True).load(graph)


def measure(cell: Cell, graph: Graph) -> dict[str, Any]:
    """Rank the test triples of one cell against each of `CANDIDATES`, and record it.

    Raises:
        CheckpointError: the weights are not those of the recorded run.
    """
    model = trained(cell, graph)
    own = config(cell)
    record = results.read_record(results.record_path(own.run_id))
    if record is None:
        raise CheckpointError(f"{cell} has weights and no record: run `python -m kgdistil.reproduce {cell}` first")
    began, known, found = time.monotonic(), KnownTriples(graph.known, graph.num_relations), {}
    for name, splits in CANDIDATES.items():
        seen = splits and roles(torch.cat([getattr(graph, s) for s in splits]), graph.num_relations, graph.num_entities)
        found[name] = rank(model, graph.test, known, allowed=seen).metrics()
    ours, said = (m["both"]["mrr"] for m in (found["every entity"], record["test"]))
    if abs(ours - said) > NEAR:
        raise CheckpointError(
            f"{results.model_folder(own.run_id)} ranks the test triples of {cell} at an MRR of {ours:.4f}, its record "
            f"says {said:.4f}: these are other weights; delete the folder to train them again"
        )
    about = {"id": own.run_id, "cell": str(cell), "config": own.model_dump(),
             "graph": {**graph.sizes(), "sha256": graph.sha256}, "test": found,
             "seconds": round(time.monotonic() - began, 2),
             "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": results.command(),
             "device": results.describe_device("cpu"), **results.provenance()}  # fmt: skip
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


def complete(cells: list[Cell]) -> None:
    """Measure those of the cells that are not recorded."""
    missing = [cell for cell in cells if read(cell) is None]
    print(f"{len(cells) - len(missing)} of {len(cells)} cells are recorded.")
    for cell in tqdm(missing, unit="cell", disable=None):
        found = measure(cell, graph_of(cell.dataset))
        scores = ", ".join(f"{name} {sides['both']['mrr']:.3f}" for name, sides in found["test"].items())
        tqdm.write(f"{cell}: test MRR among {scores}; {results.shown(path(found['id']))}")


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.constrained tuned/fb15k-237/RotatE/teacher/64`: rank what is missing, all of Table 4 unless
    cells are named.

    Returns:
        0 when everything asked for is recorded.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.constrained", description=__doc__.split("\n")[0])
    parser.add_argument("cells", nargs="*", type=parse, help="single cells, as tuned/fb15k-237/RotatE/DS/8")
    complete(parser.parse_args(arguments).cells or table4())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KgdistilError as error:
        sys.exit(str(error))
