"""What smaller numbers cost: one model at every precision, by the same evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from kgdistil.compress.packing import quantised, size
from kgdistil.compress.size import precisions_for
from kgdistil.evaluation import KnownTriples, Ranks, evaluate
from kgdistil.graph import Graph
from kgdistil.models import KGEModel


def compare_precisions(
    model: KGEModel,
    graph: Graph,
    split: str = "test",
    *,
    ranks: Mapping[str, Ranks] | None = None,
    known: KnownTriples | None = None,
) -> pd.DataFrame:
    """Filtered metrics of one model at each precision it can have: precision, bytes, mrr, hits@1, hits@10, mrr_loss.

    Args:
        ranks: those of these precisions, in their order, and of no others; left out, all are made.
    """
    known, rows = known or KnownTriples(graph.known.cpu(), graph.num_relations), []
    for precision in ranks or precisions_for(model.entities.shape[1]):
        if ranks:
            found = ranks[precision].metrics()["both"]
        else:
            other = model if precision == "float32" else quantised(model, precision)
            found = evaluate(other, graph, split, known=known).metrics()["both"]
        rows.append(
            {"precision": precision, "bytes": size(model, precision)}
            | {name: found[name] for name in ("mrr", "hits@1", "hits@10")}
        )
    table = pd.DataFrame(rows)
    table["mrr_loss"] = table["mrr"][0] - table["mrr"]
    return table
