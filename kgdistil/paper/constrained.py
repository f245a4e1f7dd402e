"""Type-constrained ranks of cells: what the paper's numbers on FB15k-237 may be, beside head, tail and both sides.

`python -m kgdistil.paper.constrained` ranks the test triples of Table 4's cells once against every entity and once
against those that were seen on that side of the relation and the true answer, seen there or not, and leaves
`results/constrained/<run>.json`. `unseen` counts the answers that were not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kgdistil import evaluation, kernels, records
from kgdistil.answer.files import write_json
from kgdistil.errors import CheckpointError, run_command
from kgdistil.evaluation import Counts, KnownTriples, Ranks, rank
from kgdistil.graph import SPLITS, Graph
from kgdistil.models import SIDES, KGEModel, Side, with_entities
from kgdistil.paper.cells import Cell, parse, table_cells
from kgdistil.paper.recipe import config
from kgdistil.paper.tasks import folder_of, graph_of, weights_of

# By name, the splits in which an entity must have been seen on that side of the relation; None: every entity.
# "all splits" is what OpenKE's type_constrain.txt holds: it has been told where the answers stand.
CANDIDATES: dict[str, tuple[str, ...] | None] = {"every entity": None, "training": ("train",), "all splits": SPLITS}
NEAR = 5e-4  # by which the MRR of the same weights may differ from one processor to another


# ---- candidates -----------------------------------------------------------------------------------------------------
def roles(triples: Tensor, num_relations: int, num_entities: int) -> dict[Side, Tensor]:
    """Which entities stand on a side of a relation in these triples [n, 3]; bool [R, E] by side.

    Type constraints in want of types: the local closed world of Krompaß et al. 2015 (arXiv 1508.02593).
    """
    seen: dict[Side, Tensor] = {}
    for side, _, column in SIDES:
        seen[side] = torch.zeros(num_relations, num_entities, dtype=torch.bool)
        seen[side][triples[:, 1], triples[:, column]] = True
    return seen


def rank_seen(
    model: KGEModel, triples: Tensor, known: KnownTriples, seen: dict[Side, Tensor], *, native: bool | None = None
) -> Ranks:
    """`rank` against the entities that were seen in the role (`roles`), and the true one: type-constrained ranks."""

    def counts(
        counter: Callable[[KGEModel], Counts], side: Side, queries: Tensor, answers: Tensor, known: kernels.Known
    ) -> tuple[Tensor, Tensor]:
        return count_allowed(model, counter, queries, answers, known, seen[side])

    return rank(model, triples, known, native=native, candidates=counts)


def count_allowed(
    model: KGEModel,
    counter: Callable[[KGEModel], Counts],
    queries: Tensor,
    answers: Tensor,
    known: kernels.Known,
    allowed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Counts of each query among the entities that its relation allows; int32 [n] twice.

    One relation after the other, a model of those entities and of its queries' targets is counted in (`counter`).

    Args:
        answers: relation and target of each query, int64 [n, 2].
        allowed: bool [R, E].
    """
    start, end, ids = known
    greater, equal = torch.empty(2, len(queries), dtype=torch.int32).unbind()
    for relation in answers[:, 0].unique():
        rows = (answers[:, 0] == relation).nonzero()[:, 0]
        here = allowed[relation].cpu().clone()
        outside = ~here  # where a target lies outside, it is a candidate of its own query alone
        here[answers[rows, 1]] = True
        entities = here.nonzero()[:, 0]
        place = here.cumsum(0) - 1  # of an entity among them
        count = counter(with_entities(model, model.entities[entities.to(model.entities.device)]))
        for part in rows.split(max(1, evaluation.MEMORY_LIMIT // (16 * len(entities)))):
            left_out = outside[entities].repeat(len(part), 1)
            for mine, row in zip(left_out, part.tolist(), strict=True):
                filtered = ids[start[row] : end[row]].long()
                mine[place[filtered[here[filtered]]]] = True
            until = left_out.sum(1).cumsum(0)
            spans = torch.cat([until.new_zeros(1), until[:-1]]), until, left_out.nonzero()[:, 1].to(torch.int32)
            found = count(queries[part.to(queries.device)], place[answers[part, 1]], spans)
            greater[part], equal[part] = (x.cpu() for x in found)
    return greater, equal


# ---- measuring ------------------------------------------------------------------------------------------------------
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
        if splits is None:
            found[name] = rank(model, graph.test, known).metrics()
        else:
            triples = torch.cat([getattr(graph, split) for split in splits])
            seen = roles(triples, graph.num_relations, graph.num_entities)
            unseen[name] = {
                side: int((~seen[side][graph.test[:, 1], graph.test[:, column]]).sum()) for side, _, column in SIDES
            }
            found[name] = rank_seen(model, graph.test, known, seen).metrics()
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
