"""A knowledge graph: three lists of triples (head, relation, tail) and the labels behind the ids."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kgdistil.answer.published import PUBLISHED

SPLITS = ("train", "valid", "test")
BUNDLED = ("umls", "kinships", "nations")  # carried by the PyKEEN package
NAMES = (*PUBLISHED, *BUNDLED)


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """A knowledge graph in three splits.

    `train`, `valid`, `test`: int64 [n, 3], columns head, relation, tail. `entities[i]` and `relations[j]` are
    the labels of the ids, sorted by code point, so an id depends on the labels alone. `sha256`: the sum of
    what was read (see `load`). `descriptions`: readable names by entity label; empty when none are at hand.
    `notes`: what was said of the graph when it was read, such as test triples that stand in training, a line each.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    entities: Sequence[str]
    relations: Sequence[str]
    sha256: str
    descriptions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_entities(self) -> int:
        return len(self.entities)

    @property
    def num_relations(self) -> int:
        return len(self.relations)

    @functools.cached_property
    def seen(self) -> dict[str, Tensor]:
        """Which entities [E] and relations [R] stand in a training triple, bool; all of them where there is none."""
        found = {"entity": torch.zeros(self.num_entities).bool(), "relation": torch.zeros(self.num_relations).bool()}
        train = self.train.cpu()
        found["entity"][train[:, [0, 2]]] = found["relation"][train[:, 1]] = True
        return found if len(train) else {kind: ~x for kind, x in found.items()}

    @property
    def known(self) -> Tensor:
        """All triples of the three splits, int64 [n, 3], a fresh copy: what a filtered rank leaves out."""
        return torch.cat([self.train, self.valid, self.test])

    def sizes(self) -> dict[str, int]:
        """The row of the paper's Table 2: number of entities, relations, and triples of each split."""
        return {"entities": self.num_entities, "relations": self.num_relations} | {
            split: len(getattr(self, split)) for split in SPLITS
        }

    def to(self, device: torch.device | str) -> Graph:
        """The same graph with its triples on `device`."""
        return replace(self, **{split: getattr(self, split).to(device) for split in SPLITS})

    def readable(self, entity_id: int) -> str:
        """A name a person can read for entity `entity_id`; its label where no name is at hand."""
        label = self.entities[int(entity_id)]
        return self.descriptions.get(label, label)

    def label_triple(self, h: int, r: int, t: int) -> tuple[str, str, str]:
        """The labels of the triple with ids (h, r, t)."""
        return self.entities[int(h)], self.relations[int(r)], self.entities[int(t)]

    def __repr__(self) -> str:
        return f"Graph({self.name!r}, " + ", ".join(f"{n:,} {what}" for what, n in self.sizes().items()) + ")"
