"""What smaller numbers cost: one model at every precision, by the same evaluation."""

from __future__ import annotations

import pandas as pd

from kgdistil.compress.packing import quantised, size
from kgdistil.compress.size import precisions_for
from kgdistil.evaluation import KnownTriples, evaluate
from kgdistil.graph import Graph
from kgdistil.models import KGEModel


def compare_precisions(model: KGEModel, graph: Graph, split: str = "test") -> pd.DataFrame:
    """Filtered metrics of one model at each precision it can have: precision, bytes, mrr, hits@1, hits@10, mrr_loss."""
    known, rows = KnownTriples(graph.known.cpu(), graph.num_relations), []
    for precision in precisions_for(model.entities.shape[1]):
        found = evaluate(quantised(model, precision), graph, split, known=known).metrics()["both"]
        rows.append(
            {"precision": precision, "bytes": size(model, precision)}
            | {name: found[name] for name in ("mrr", "hits@1", "hits@10")}
        )
    table = pd.DataFrame(rows)
    table["mrr_loss"] = table["mrr"][0] - table["mrr"]
    return table
