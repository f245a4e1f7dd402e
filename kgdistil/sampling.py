"""Negatives (Eq. 2) and the order of triples, as pure functions of (seed, step) and (seed, epoch).

Every random number is SplitMix64 (Steele et al. 2014) of a counter, so there is no generator state: the same
seed gives the same negatives on the CPU, on a GPU and in the compiled kernels, and a resumed run cannot drift.
int64 tensors hold the 64 bits; sums and products wrap as unsigned arithmetic does.
"""

from __future__ import annotations

import torch
from torch import Tensor

ATTEMPTS = 8  # draws before a corruption is given up; it then counts nothing in the loss
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
ORDER_STREAM, NEGATIVE_STREAM, MADE_UP_STREAM = 1, 2, 3
INDEX_BITS = 28  # an epoch has fewer than 2**28 training triples or queries


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 taken as 64 unsigned bits."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, int64 [...] -> int64 [...]."""
    x = (x ^ shift_right(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ shift_right(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ shift_right(x, 31)


def stream(seed: int, kind: int, index: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """The base of one sequence of numbers, `mix(base + counter·GOLDEN)`: int64, the shape of `index`."""
    start, kinds = torch.tensor([seed, kind], dtype=torch.int64, device=device)
    return mix(mix(start + kinds * GOLDEN) + index)


def epoch_order(seed: int, epoch: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """A permutation of 0 … count − 1, int64 [count]: the order of the training triples in an epoch."""
    index = torch.arange(count, device=device)
    keys = shift_right(mix(stream(seed, ORDER_STREAM, epoch, device) + index * GOLDEN), INDEX_BITS)
    packed = (keys << INDEX_BITS) | index
    return (packed + torch.iinfo(torch.int64).min).sort().values & ((1 << INDEX_BITS) - 1)


class TripleSet:
    """Membership of triples in T: sorted keys, the same arithmetic on every device.

    Args:
        triples: int64 [n, 3].
        num_entities, num_relations: sizes; E²·R must stay below 2⁶³.
    """

    def __init__(self, triples: Tensor, num_entities: int, num_relations: int):
        self.num_entities, self.num_relations = num_entities, num_relations
        self.keys = self.key(*triples.unbind(-1)).unique(sorted=True)

    def key(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return (h * self.num_relations + r) * self.num_entities + t

    def contains(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """bool [...]: which of the triples, ids that broadcast, are in the set."""
        key = self.key(h, r, t)
        place = torch.searchsorted(self.keys, key).clamp_max(len(self.keys) - 1)
        return self.keys[place] == key


def corrupt(triples: Tensor, count: int, known: TripleSet, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 2: for each triple `count` corruptions, head or tail replaced uniformly, none of them in T.

    A draw that lies in `known` is drawn again, side and entity, up to `ATTEMPTS` times.

    Args:
        triples: int64 [B, 3].
        count: k.
        base: `stream(seed, NEGATIVE_STREAM, step)`.
    Returns:
        entity int64 [B, k], the replacement; is_tail bool [B, k], which side it replaces; kept bool [B, k],
        False where every draw lay in T (a corruption to leave out).
    """
    h, r, t = (x[:, None] for x in triples.unbind(-1))
    counter = torch.arange(len(triples) * count, device=triples.device).view(len(triples), count) * 32
    entity = is_tail = bad = counter  # of the attempt before
    for attempt in range(ATTEMPTS):
        bits = mix(base + (counter + attempt) * GOLDEN)
        draw, tail = (shift_right(bits, 32) * known.num_entities) >> 32, (bits & 1).bool()
        if attempt:
            draw, tail = torch.where(bad, draw, entity), torch.where(bad, tail, is_tail)
        entity, is_tail = draw, tail
        bad = known.contains(torch.where(tail, h, draw), r, torch.where(tail, draw, t))
        if not triples.is_cuda and not bad.any():  # on a GPU asking would stop the queue
            break
    return entity, is_tail, ~bad
