"""Tables of entities in blocks of rows, one for each rank, and how rows and gradients get from rank to rank.

Who reads which rows is known to all ranks alike, so nobody asks: the owner of a row sends it, and nothing else moves.
Where a step reads candidates C, which every rank takes, and rank j other entities X_j besides (the anchors of its share
of the queries), all N ranks together send, for each table of W float32 numbers a row,

    rows(C, X) = 4 W ((N − 1) |C| + Σ_j |X_j that j does not own|)  bytes of rows,

and as many of gradients on their way back where the table learns. F numbers are summed over all ranks, in gloo's and
NCCL's ring, by

    sums(F) = 8 (N − 1) F  bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from kgdistil import kernels
from kgdistil.errors import ConfigError

LOST = re.compile("gloo|nccl|store|timed? ?out|connection", re.IGNORECASE)  # what losing a rank is called


class Shards:
    """The rows `low` to `high` − 1 of a table of `size` that this rank holds, and the bytes it has sent to others.

    Args:
        size: E.
    Raises:
        ConfigError: more ranks than blocks of entities.
    """

    def __init__(self, size: int):
        self.size, self.rank, self.world = size, dist.get_rank(), dist.get_world_size()
        self.block = -(-size // self.world)
        self.low, self.high = min(size, self.rank * self.block), min(size, (self.rank + 1) * self.block)
        if self.block * (self.world - 1) >= size:
            fits = max(n for n in range(1, self.world) if -(-size // n) * (n - 1) < size)
            raise ConfigError(f"{size} entities leave one of {self.world} ranks without any: take {fits}")
        self.sent = 0

    def edges(self, ids: Tensor) -> Tensor:
        """Where each rank's part of ascending ids begins, and the last one ends: int64 [N + 1]."""
        starts = torch.arange(self.world + 1, device=ids.device) * self.block
        return torch.searchsorted(ids, starts)

    def exchange(self, out: list[int], into: list[int], rows: Tensor) -> Tensor:
        """out[j] of the rows to each rank j, into[j] from it, in the ranks' order."""
        found = rows.new_empty(sum(into), *rows.shape[1:])
        dist.all_to_all_single(found, rows.contiguous(), into, out)
        self.sent += (len(rows) - out[self.rank]) * rows[:1].nbytes if len(rows) else 0
        return found

    def adding(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Begins to add up over all ranks, in one message; what it returns waits for each tensor's sum, which has the
        same bits everywhere."""
        flat, n = torch.cat([x.flatten() for x in tensors]), sum(x.numel() for x in tensors)
        if self.world == 2:  # in one turn, of as many bytes
            both = flat.new_empty(2 * n)
            work = dist.all_gather_into_tensor(both, flat, async_op=True)
        else:
            both, work = flat, dist.all_reduce(flat, async_op=True) if self.world > 2 else None
        total = 2 * flat.nbytes * (self.world - 1)
        self.sent += total * (self.rank + 1) // self.world - total * self.rank // self.world

        def added() -> list[Tensor]:
            if work is not None:
                work.wait()
            sums = both[:n] + both[n:] if self.world == 2 else both
            parts = sums.split([x.numel() for x in tensors])
            return [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]

        return added

    def add(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor's sum over all ranks."""
        return self.adding(tensors)()


def lost(error: BaseException) -> bool:
    """Whether an error is of a rank that is gone."""
    return LOST.search(str(error)) is not None


class Wanted:
    """What a step reads of tables of one size: candidates, which every rank takes, and entities of single ranks.

    Args:
        candidates: int64 [m], the same on every rank.
        others, readers: int64 [n], entities and the rank that reads each; the same on every rank.
    """

    def __init__(self, shards: Shards, candidates: Tensor, others: Tensor, readers: Tensor):
        self.shards = shards
        rank, size, world = shards.rank, shards.size, shards.world
        self.all, _, _, place = kernels.grouped(candidates)
        keys = (readers * size + others)[~torch.isin(others, self.all)].unique()
        begins = torch.searchsorted(keys, torch.arange(world + 1, device=keys.device) * size).tolist()
        by_rank = [keys[begins[j] : begins[j + 1]] - j * size for j in range(world)]
        self.own = by_rank[rank]
        edges, own_edges = shards.edges(self.all), shards.edges(self.own)
        mine = self.all[edges[rank] : edges[rank + 1]]
        parts = [x[(x >= shards.low) & (x < shards.high)] for x in by_rank]
        self.given = torch.cat([y for x in parts for y in (mine, x)]) - shards.low  # rows that are read here, by rank
        self.out = [len(mine) + len(x) for x in parts]
        self.into = (edges.diff() + own_edges.diff()).tolist()
        self.edges, self.own_edges = edges, own_edges
        self.candidates = place + own_edges[candidates // shards.block]  # where they stand among what `fetch` returns

    def places(self, ids: Tensor) -> Tensor:
        """Where entities [n], each a candidate or one that this rank reads, stand among what `fetch` returns."""
        ids = ids.contiguous()
        place = torch.searchsorted(self.all, ids).clamp_max(len(self.all) - 1)
        common = self.all[place] == ids
        owner = ids // self.shards.block
        # a rank sends its candidates first, then what is read here alone
        return torch.where(
            common, place + self.own_edges[owner], torch.searchsorted(self.own, ids) + self.edges[owner + 1]
        )

    def fetch(self, table: Tensor) -> Tensor:
        """The rows [u, W] that this rank reads, of a table of which each rank holds its block."""
        return self.shards.exchange(self.out, self.into, table.index_select(0, self.given))

    def push(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients [u, W] of what `fetch` returned to those who hold the rows: here, rows of the own block int64 [v],
        several times where several ranks read one, and the gradients [v, W], in the ranks' order."""
        return self.given, self.shards.exchange(self.into, self.out, gradient)
