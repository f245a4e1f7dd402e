"""Tables of entities in blocks of rows, one for each rank, and how rows and gradients get from rank to rank.

Who reads which rows is known to all ranks alike, so nobody asks: the owner of a row sends it to every other rank, and
nothing else moves. Where a step reads |X| different entities that every rank takes, the anchors of its queries, all N
ranks together send, for each table of W float32 numbers a row,

    rows(X) = 4 W (N − 1) |X|  bytes of rows,

and as many of gradients on their way back where the table learns. F numbers are summed over all ranks, in gloo's and
NCCL's ring, by

    sums(F) = 8 (N − 1) F  bytes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from kgdistil import kernels
from kgdistil.errors import ConfigError

AWAKE = 0.005  # seconds
give_way = getattr(os, "sched_yield", lambda: time.sleep(0))  # which not every system has
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

    def held(self, ids: Tensor) -> Tensor:
        """The places, ascending, of those of ids [n] whose rows are here."""
        return ((ids >= self.low) & (ids < self.high)).nonzero()[:, 0]

    def edges(self, ids: Tensor) -> Tensor:
        """Where each rank's part of ascending ids begins, and the last one ends: int64 [N + 1]."""
        starts = torch.arange(self.world + 1, device=ids.device) * self.block
        return torch.searchsorted(ids, starts)

    def exchanging(self, out: list[int], into: list[int], rows: Tensor) -> Callable[[], Tensor]:
        """Begins to send out[j] of the rows to each rank j; what it returns waits for into[j] from it, in the ranks'
        order."""
        found, rows = rows.new_empty(sum(into), *rows.shape[1:]), rows.contiguous()
        work = dist.all_to_all_single(found, rows, into, out, async_op=True)
        self.sent += (len(rows) - out[self.rank]) * rows[:1].nbytes if len(rows) else 0

        def exchanged() -> Tensor:
            wait(work, rows)
            return found

        return exchanged

    def gathering(self, x: Tensor) -> Callable[[], Tensor]:
        """Begins to send x to every rank; what it returns waits for those of all, [N, ...]. One message to each is
        faster in gloo than its all-gather."""
        each = [1] * self.world
        return self.exchanging(each, each, x.expand(self.world, *x.shape))

    def log_sums(self, sums: Tensor) -> Tensor:
        """Log-sum-exp over all ranks of [k, n]: each adds up a share of the columns and sends that to all, so that they
        send 8 k n (N − 1) bytes together; of two ranks, each all of them, which is as many."""
        if self.world == 2:
            return self.gathering(sums)().logsumexp(0)
        k, n = sums.shape
        shares = [(n * (j + 1)) // self.world - n * j // self.world for j in range(self.world)]
        own = [shares[self.rank]] * self.world
        parts = self.exchanging(shares, own, sums.T)().view(self.world, -1, k)
        return self.exchanging(own, shares, parts.logsumexp(0).repeat(self.world, 1))().T.contiguous()

    def adding(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Begins to add up over all ranks, in one message; what it returns waits for each tensor's sum, which has the
        same bits everywhere."""
        flat = torch.cat([x.flatten() for x in tensors])
        work = dist.all_reduce(flat, async_op=True) if self.world > 1 else None
        total = 2 * flat.nbytes * (self.world - 1)
        self.sent += total * (self.rank + 1) // self.world - total * self.rank // self.world

        def added() -> list[Tensor]:
            wait(work, flat)
            return as_those(flat, tensors)

        return added

    def add(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor's sum over all ranks."""
        return self.adding(tensors)()


def as_those(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Numbers in a row in the shapes of tensors."""
    parts = flat.split([x.numel() for x in tensors])
    return [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]


def wait(work: dist.Work | None, sent: Tensor) -> None:
    """Wait for what a message brings. On a CPU the core stays awake for as long as messages of a step take, since one
    that sleeps wakes late; it gives way to whoever has work."""
    end = time.monotonic() + AWAKE
    while work is not None and sent.device.type == "cpu" and not work.is_completed() and time.monotonic() < end:
        give_way()
    if work is not None:
        work.wait()


def lost(error: BaseException) -> bool:
    """Whether an error is of a rank that is gone."""
    return LOST.search(str(error)) is not None


class Guests:
    """Entities that every rank reads of tables of one size.

    Args:
        entities: int64 [n], the same on every rank, some of them several times.
    Attributes:
        ids: int64 [u], each once, ascending.
        place: int64 [n], where entities stand among them.
    """

    def __init__(self, shards: Shards, entities: Tensor):
        self.shards = shards
        self.ids, _, _, self.place = kernels.grouped(entities)
        edges = shards.edges(self.ids)
        self.own = self.ids[edges[shards.rank] : edges[shards.rank + 1]] - shards.low  # rows that are read here
        self.into, self.out = edges.diff().tolist(), [len(self.own)] * shards.world

    def fetching(self, table: Tensor) -> Callable[[], Tensor]:
        """Begins to send their rows, of a table of which each rank holds its block; what it returns waits for them, [u,
        W]."""
        rows = table.index_select(0, self.own).repeat(self.shards.world, 1)
        return self.shards.exchanging(self.out, self.into, rows)

    def rows(self, table: Tensor) -> Tensor:
        """The rows [n, W] of all entities."""
        return self.fetching(table)()[self.place]

    def push(self, gradient: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Gradients [u, W] of what `fetching` gave to those who hold the rows: here, rows of the own block int64 [v],
        each once for every rank, and the gradients [v, W], in the ranks' order. And each other tensor's sum over all
        ranks: of two ranks in the same message."""
        ids, world = self.own.repeat(self.shards.world), self.shards.world
        if world != 2:
            added = self.shards.adding(others)
            return ids, self.shards.exchanging(self.into, self.out, gradient)(), added()
        flat, width = torch.cat([x.flatten() for x in others]), gradient.shape[1]
        out, into = ([n * width + len(flat) for n in sizes] for sizes in (self.into, self.out))
        message = torch.cat([x for part in gradient.split(self.into) for x in (part.flatten(), flat)])
        found = self.shards.exchanging(out, into, message)().view(world, -1)
        rows, sums = found.split([self.out[0] * width, len(flat)], 1)
        return ids, rows.reshape(-1, width), as_those(sums[0] + sums[1], others)
