"""Ranks and the metrics made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HITS = (1, 3, 10)


@dataclass(frozen=True)
class Ranks:
    """How many entities beat (`greater`) and tie with (`equal`) the true one; int32 [n, 2], head side then tail."""

    greater: np.ndarray
    equal: np.ndarray

    def ranks(self, ties: str = "realistic") -> np.ndarray:
        """Ranks [n, 2] from 1. Among t tied entities the true one counts as first ("optimistic"), last
        ("pessimistic"), or as the mean of the two ("realistic")."""
        share = {"optimistic": 0.0, "realistic": 0.5, "pessimistic": 1.0}[ties]
        return 1 + self.greater + share * self.equal

    def reciprocal(self) -> np.ndarray:
        """Mean of a triple's two reciprocal ranks, float [n]: their mean is the MRR."""
        return (1 / self.ranks()).mean(1)

    def standard_error(self) -> float:
        """Of the MRR, over the triples: what a sample of them leaves open."""
        return float(self.reciprocal().std(ddof=1) / len(self.greater) ** 0.5) if len(self.greater) > 1 else 1.0

    def metrics(self, ties: str = "realistic") -> dict[str, dict[str, float]]:
        """MR, MRR and Hits@1/3/10 by name of the side: "head", "tail", "both", and "mean_of_two_ranks".

        The last is the paper's own wording: the mean of a triple's two ranks is taken first. It is not what
        anyone reports, and far below "both".
        """
        ranks = self.ranks(ties)
        return {
            "both": summarise(ranks),
            "head": summarise(ranks[:, 0]),
            "tail": summarise(ranks[:, 1]),
            "mean_of_two_ranks": summarise(ranks.mean(1)),
        }


def summarise(ranks: np.ndarray) -> dict[str, float]:
    """MR, MRR and Hits@k of ranks of any shape."""
    return {
        "mr": float(ranks.mean()),
        "mrr": float((1 / ranks).mean()),
        **{f"hits@{k}": float((ranks <= k).mean()) for k in HITS},
    }
