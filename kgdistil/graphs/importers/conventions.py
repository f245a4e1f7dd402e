"""How another library lays a model's numbers out, and a check that they were read so.

The same arrays can be read in several ways, and a wrong one is no error: its ranks are just worse. So training triples
are ranked under each plausible reading, and one that is several times worse than another is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kgdistil.config import short
from kgdistil.errors import CheckpointError, ConfigError
from kgdistil.evaluation import KnownTriples, rank
from kgdistil.graph import Graph
from kgdistil.graphs.importers.tables import Imported, Labels, aligned, build, halves, kind_named, stored_angles
from kgdistil.models import build_model

CONVENTIONS = ("kgdistil", "pykeen", "libkge", "dgl-ke", "kgemb", "openke", "torchkge", "biggraph")
SCALED = ("dgl-ke", "kgemb", "openke")  # RotatE's own code (KGEmb) and what follows it: angles scaled by γ
EUCLIDEAN = {("dgl-ke", "TransE"), ("torchkge", "TransE"), ("torchkge", "TransH"), ("pykeen", "RotatE")}
GAMMAS = (6.0, 9.0, 12.0, 24.0)  # of RotatE's own experiments, DGL-KE's and OpenKE's defaults
UNITS = {"angles in degrees": math.pi / 180, "angles in turns": 2 * math.pi}  # of angles, in radians
SAMPLE, OTHERS = 300, 1000  # training triples that are ranked, and entities beside theirs
BETTER = 2.0  # times the MRR: another reading is refused
LEARNT = 0.15  # of the way from chance to 1: less on training triples is no model of the graph


@dataclass(frozen=True)
class Reading:
    """One way to read tables: its name, what to add to the command for it, and how it makes our layout of them."""

    says: str
    mend: str
    kind: str
    entities: Callable[[Tensor], Tensor]
    relations: Callable[[Tensor], Tensor]
    options: Mapping[str, Any] = field(hash=False)

    def tables(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**rows, "entities": self.entities(rows["entities"]), "relations": self.relations(rows["relations"])}


def same(x: Tensor) -> Tensor:
    return x


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return F.normalize(x, dim=1)


def swapped(x: Tensor) -> Tensor:
    """[normal | translation] as [translation | normal]."""
    return torch.cat(x.chunk(2, dim=1)[::-1], dim=1)


def reading(
    kind: str, convention: str, widths: tuple[int, int], norm: int | None, offset: float, epsilon: float
) -> Reading | None:
    """How a library lays out a kind's tables of rows of these widths; None where it has no such layout."""
    norm = norm or (2 if (convention, kind) in EUCLIDEAN else 1)
    options: dict[str, Any] = {"norm": norm, "offset": offset, "epsilon": epsilon}
    says, mend = f"{convention}, norm {norm}", f"--convention {convention} --norm {norm}"
    entities: Callable[[Tensor], Tensor] = same
    relations: Callable[[Tensor], Tensor] = same
    if convention == "torchkge" and kind != "ComplEx":
        entities = unit
    if convention == "openke" and kind == "TransE":
        entities = relations = unit
    if kind == "RotatE":
        entities = halves if convention == "pykeen" else same
        if convention == "pykeen" and widths[1] == widths[0]:
            relations = lambda x: stored_angles(_as_angle(x))
            options |= {"offset": 0.0, "epsilon": 2.0}
        elif convention in ("libkge", "pykeen"):
            relations = stored_angles
            options |= {"offset": 0.0, "epsilon": 2.0}
        elif convention in ("torchkge", "biggraph"):
            return None
        if convention in SCALED:
            says, mend = f"{says}, γ {offset:g}", f"{mend} --gamma {offset:g}"
    elif convention == "pykeen" and kind == "ComplEx":
        entities = relations = halves
    elif convention == "pykeen" and kind == "TransH":
        kind, relations = "FreeTransH", swapped
    if kind not in ("TransE", "TransH", "FreeTransH", "RotatE"):
        says, mend = convention, f"--convention {convention}"
    return Reading(says, mend, kind, entities, relations, options)


def _as_angle(x: Tensor) -> Tensor:
    parts = halves(x)
    real, imaginary = parts.chunk(2, dim=1)
    return torch.atan2(imaginary, real)


def plausible(kind: str, widths: tuple[int, int], offset: float, epsilon: float) -> list[Reading]:
    """Every reading that another library's users may have meant."""
    known = ("kgdistil", "pykeen", "libkge", "openke", "torchkge")
    found = [
        x for name in known for norm in (1, 2) if (x := reading(kind, name, widths, norm, offset, epsilon)) is not None
    ]
    if kind == "RotatE" and widths[0] == 2 * widths[1]:
        found += [x for g in GAMMAS if (x := reading(kind, "dgl-ke", widths, 1, g, 2.0)) is not None]
        mend = "--convention dgl-ke --gamma γ, with the γ it was trained with, or the angles in radians as libkge's"
        options = {"norm": 1, "offset": 0.0, "epsilon": 2.0}
        found.append(Reading("dgl-ke, angles scaled by some γ", mend, kind, same, _by_largest, options))
        for says, size in UNITS.items():
            mend = f"them in radians, {size:.6g} times what they are, with --convention libkge"
            found.append(Reading(says, mend, kind, same, functools.partial(_in_radians, size), options))
    return found


def _in_radians(size: float, x: Tensor) -> Tensor:
    return stored_angles(x.double() * size)


def _by_largest(x: Tensor) -> Tensor:
    """Angles of which the largest is π."""
    return stored_angles(x.double() * (math.pi / max(float(x.abs().max()), 1e-30)))


def check_gamma(gamma: float | None) -> None:
    """ConfigError where γ scales nothing."""
    if gamma is not None and not (isinstance(gamma, int | float) and 0 < gamma <= 1e6):
        raise ConfigError(f"gamma is {short(gamma)}: it must be above 0 and at most a million")


def choose(
    kind: str,
    tables: Mapping[str, Tensor],
    words: Labels,
    graph: Graph,
    source: str,
    *,
    convention: str | None = None,
    norm: int | None = None,
    gamma: float | None = None,
    offset: float | None = None,
    epsilon: float = 2.0,
    sure: bool = False,
) -> Imported:
    """The model that tables hold, read as `convention` says, and checked against every other reading.

    Args:
        convention: one of `CONVENTIONS`; "kgdistil" where None.
        gamma: γ of scaled angles, the same as `offset`.
        sure: the file itself says how it is to be read, so another reading is no more than said.
    Raises:
        ConfigError: no such convention, γ is missing, or another reading ranks training triples several times better.
        CheckpointError: the tables are not those of such a model.
    """
    name = convention or "kgdistil"
    if name not in CONVENTIONS:
        raise ConfigError(f"convention is {short(name)}: choose one of {', '.join(CONVENTIONS)}")
    if norm not in (None, 1, 2):
        raise ConfigError(f"norm is {short(norm)}: it must be 1 or 2")
    check_gamma(gamma or None)
    kind = kind_named(kind, source).__name__
    offset = gamma if offset is None else offset
    if kind == "RotatE" and offset is None and name in SCALED:
        raise ConfigError(f"{source}: {name} scales RotatE's angles by γ: give it with --gamma (gamma=)")
    offset = offset or 0.0
    rows, notes = aligned(tables, words, graph, source)
    widths = rows["entities"].shape[1], rows["relations"].shape[1]
    taken = reading(kind, name, widths, norm, offset, epsilon)
    if taken is None:
        raise ConfigError(f"{source}: {name} has no {kind}; choose another --convention")
    made = taken.tables(rows)
    if min(widths) < 1:
        raise CheckpointError(f"{source}: its rows hold no number")
    others = [x for x in plausible(kind, widths, offset, epsilon) if x.says != taken.says]
    try:
        model = build(taken.kind, made, source, **taken.options)
    except CheckpointError as error:
        scores = {x: r.mean() for x in others if (r := reciprocal_ranks(x, rows, graph)) is not None}
        if not scores or convention is not None:
            raise
        best = max(scores, key=scores.__getitem__)
        raise ConfigError(f"{error}; they fit {best.says}: if that is meant, give {best.mend}") from None
    if len(graph.train) and not model.factored:
        notes += compare(taken, others, rows, graph, source, sure or (convention is not None and norm is not None))
    return Imported(model, source, notes)


def compare(
    taken: Reading, others: list[Reading], rows: Mapping[str, Tensor], graph: Graph, source: str, sure: bool
) -> list[str]:
    """What ranks of training triples say of a reading beside others.

    Raises:
        ConfigError: another is several times better, and nobody said that this one is meant.
    """
    mine = reciprocal_ranks(taken, rows, graph)
    if mine is None:
        return []
    found = []
    for other in others:
        theirs = reciprocal_ranks(other, rows, graph)
        if theirs is not None:
            gain = theirs - mine
            error = gain.std() / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
            if gain.mean() > max(3 * error, 0.01):
                found.append((theirs.mean(), other))
    said = f"read as {taken.says}, {len(mine):,} training triples have MRR {mine.mean():.3f}"
    # Angles whose largest is near 180 fit degrees and an unknown scale alike; degrees have no γ to look for.
    prefer = lambda item: item[0] * (1.05 if item[1].says in UNITS else 1)
    best, other = max(found, key=prefer, default=(0.0, taken))
    chance = by_chance(graph)
    if max(best, mine.mean()) - chance < LEARNT * (1 - chance):
        return [
            f"{said}, little better than chance ({chance:.3f}), and no other reading has much more: rows, labels or "
            "convention probably do not belong to this graph, or it was hardly trained"
        ]
    if best > BETTER * mine.mean() and not sure:
        raise ConfigError(f"{source}: {said}; read as {other.says}, {best:.3f}: give {other.mend}")
    if not found:
        return [f"{said}; no other reading has more"] if others else []
    return [f"{said}, and {best:.3f} read as {other.says}; if that is meant, give {other.mend}"]


def sample(graph: Graph) -> tuple[Tensor, Tensor, KnownTriples]:
    """Some entities, ids [n]; some training triples, numbered by their place there; and what is known of them."""
    generator = torch.Generator().manual_seed(0)
    train = graph.train[torch.randperm(len(graph.train), generator=generator)[:SAMPLE]].cpu()
    others = torch.randperm(graph.num_entities, generator=generator)[:OTHERS]
    chosen = torch.cat([train[:, 0], train[:, 2], others]).unique()
    place = torch.full((graph.num_entities,), -1)
    place[chosen] = torch.arange(len(chosen))
    known = torch.stack([place[graph.train[:, 0]], graph.train[:, 1].cpu(), place[graph.train[:, 2]]], dim=1)
    triples = torch.stack([place[train[:, 0]], train[:, 1], place[train[:, 2]]], dim=1)
    return chosen, triples, KnownTriples(known[(known >= 0).all(1)], graph.num_relations)


def reciprocal_ranks(how: Reading, rows: Mapping[str, Tensor], graph: Graph) -> np.ndarray | None:
    """Of some training triples among some entities, filtered, mean of both sides; None where the tables do not fit."""
    chosen, triples, known = sample(graph)
    try:
        made = how.tables({**rows, "entities": rows["entities"][chosen]})
        model = build(how.kind, made, how.says, **how.options)
    except (CheckpointError, RuntimeError):
        return None
    if not all((table.abs() < 1e9).all() for table in model.parameters()):
        return None
    return rank(model, triples, known, native=False).reciprocal()


def by_chance(graph: Graph) -> float:
    """The MRR of the same triples when the order of the same entities is drawn: H_n / n of the n that are not known."""
    chosen, triples, known = sample(graph)
    model = build_model("DistMult", len(chosen), graph.num_relations, 1)
    with torch.no_grad():
        for table in model.parameters():
            table.zero_()  # so that all tie
    left = rank(model, triples, known, native=False).equal + 1
    return float((np.cumsum(1 / np.arange(1, left.max() + 1))[left - 1] / left).mean())


def learnt(found: Imported, graph: Graph) -> Imported:
    """A teacher whose file leaves no other reading, with a note where it knows little of the training triples."""
    model, tables = found.model, {name: table.detach() for name, table in found.model.state_dict().items()}
    options = {name: getattr(model, name) for name in ("norm", "offset", "epsilon")}
    if len(graph.train) and not model.factored:
        how = Reading("what its file says", "", type(model).__name__, same, same, options)
        found.notes += compare(how, [], tables, graph, found.source, sure=True)
    return found
