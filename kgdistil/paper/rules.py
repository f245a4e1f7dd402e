"""A teacher that is no embedding: rules of one step, read off the training triples, whose lists teach a student.

A rule says that r'(x, y), or r'(y, x), lets r(x, y) be expected; its confidence is the share of the pairs of r' that
are pairs of r (as AMIE's, Galárraga et al. 2013, with one more pair that is not in the denominator). A candidate is as
good as the rule of the highest confidence that leads to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa

from kgdistil.graph import Graph
from kgdistil.graphs.lists import SCHEMA

FLOOR = 0.01  # rules of less confidence are left out


def rules(graph: Graph) -> pd.DataFrame:
    """A row for each rule: body, inverse, head and confidence, the best first; relations by their ids."""
    heads = pairs(graph)
    heads = heads[~heads["inverse"]].rename(columns={"relation": "head"})[["x", "y", "head"]]
    found = pairs(graph).merge(heads, on=["x", "y"])
    found = found[(found["relation"] != found["head"]) | found["inverse"]]  # r says nothing of itself
    counts = found.value_counts(["relation", "inverse", "head"]).rename("both").reset_index()
    size = heads["head"].value_counts()
    counts["confidence"] = counts["both"] / (1 + counts["relation"].map(size))
    counts = counts[counts["confidence"] >= FLOOR].rename(columns={"relation": "body"})
    return counts.sort_values("confidence", ascending=False, ignore_index=True, kind="stable")


def shown(graph: Graph, count: int = 5) -> pd.DataFrame:
    """The best rules in words, with their confidence."""
    best = rules(graph).head(count)
    words = [
        f"{graph.relations[body]}({'y, x' if inverse else 'x, y'}) ⇒ {graph.relations[head]}(x, y)"
        for body, inverse, head in zip(best["body"], best["inverse"], best["head"], strict=True)
    ]
    return pd.DataFrame({"rule": words, "pairs": best["both"], "confidence": best["confidence"].round(2)})


def pairs(graph: Graph) -> pd.DataFrame:
    """What a rule's body may be: each training triple, x, y and its relation, and once more with x and y exchanged."""
    h, r, t = graph.train.cpu().numpy().T
    there = pd.DataFrame({"x": h, "y": t, "relation": r, "inverse": False})
    return pd.concat([there, there.assign(x=t, y=h, inverse=True)], ignore_index=True)


def lists(graph: Graph) -> Iterator[pa.Table]:
    """The lists of the training triples' queries, relation by relation, as `graphs.lists.write_lists` takes them.

    Candidates are what a rule says, and the answers themselves; scores are log-odds of the confidence, which is that of
    all of a relation's pairs but one for its answers.
    """
    h, r, t = graph.train.cpu().numpy().T
    bodies, found = pairs(graph).rename(columns={"relation": "body"}), rules(graph)
    size = np.bincount(r, minlength=graph.num_relations)
    entities = np.array(list(graph.entities), dtype=object)
    for relation, name in enumerate(graph.relations):
        own = r == relation
        said = bodies.merge(found[found["head"] == relation], on=["body", "inverse"])[["x", "y", "confidence"]]
        seen = pd.DataFrame({"x": h[own], "y": t[own], "confidence": size[relation] / (1 + size[relation])})
        best = pd.concat([said, seen]).groupby(["x", "y"], sort=False)["confidence"].max().reset_index()
        for side, given, answer, asked in (("tail", "x", "y", h[own]), ("head", "y", "x", t[own])):
            part = best[best[given].isin(asked)]
            yield pa.table(
                {
                    "head": entities[part[given]],
                    "relation": [name] * len(part),
                    "side": [side] * len(part),
                    "candidate": entities[part[answer]],
                    "score": np.log(part["confidence"] / (1 - part["confidence"])),
                },
                schema=SCHEMA,
            )
