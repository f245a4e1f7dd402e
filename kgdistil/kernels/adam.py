"""Adam (Kingma and Ba 2015), of which a step changes only the rows that it uses, as `train.cpp` has it.

A row without a gradient still moves by its momentum: n steps after its last one by size·β₁ⁿ·m / (√v·d + ε), where
d = root·β₂^(n/2), and size and root are a step's rate and root without Adam's bias. What it will move until the epoch's
end, m·F(√v), is known in advance, so a table holds its rows where they will be if no step uses them again. 1/(√v·d + ε)
is a logistic function of log d, which its values at twelve of Chebyshev's points give to 1e-7: F is a sum over these,
with weights for each step that may have been a row's last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kgdistil.models import KGEModel

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
REMEMBERED, POINTS = 160, 12  # β₁^160 < 5e-8: the momentum of older gradients is below float32's resolution
SLICE = 1 << 16  # rows of a whole table at a time
ENOUGH = 8  # times the rows that a step uses: a smaller table is changed whole, which takes less


class Adam:
    """One model's moments and its tables' way through an epoch; the host reads nothing, for CUDA graphs.

    A step uses entities `used` times in all; `done`, int64 [], is the number of the epoch's steps behind it.
    """

    def __init__(self, model: KGEModel, steps: int, used: int, done: Tensor):
        self.tables: dict[str, Tensor] = dict(model.named_parameters())
        self.done, device = done, done.device
        self.moments = {f"{name}.{x}": torch.zeros_like(p.data) for name, p in self.tables.items() for x in "mv"}
        self.size, self.root = torch.zeros(2, steps + 1, device=device)
        self.weight, self.point = torch.zeros(steps + 1, POINTS, device=device), torch.zeros(POINTS, device=device)
        self.sparse = model.num_entities > ENOUGH * used
        self.last = torch.zeros(model.num_entities * self.sparse, dtype=torch.int64, device=device)
        self.whole = model.entities.data, self.moments["entities.m"], self.moments["entities.v"]

    def begin(self, rates: Tensor, first: int) -> None:
        """An epoch whose steps have these rates, float64 [steps], after `first` steps."""
        t = first + torch.arange(1, len(rates) + 1, dtype=torch.float64)
        size, root = rates.cpu().double() / (1 - BETA1**t), (1 - BETA2**t).rsqrt()
        self.size[1:], self.root[1:] = size, root
        if self.sparse:
            rest, n = torch.zeros(REMEMBERED), torch.arange(1, REMEMBERED + 1)
            size, d = (torch.cat([x, rest]).unfold(0, REMEMBERED, 1) for x in (size, root.log()))
            size, d = size * BETA1 ** n.double(), d + n / 2 * math.log(BETA2)  # [steps + 1, n] of the steps to come
            middle, half, j = (d.max() + d.min()) / 2, (d.max() - d.min()) / 2, torch.arange(POINTS).double()
            angle, at = ((d - middle) / half).clamp(-1, 1).acos(), (j + 0.5) * torch.pi / POINTS
            series = torch.stack([(size * (i * angle).cos()).sum(1) for i in range(POINTS)], 1) * (2 - (j == 0).int())
            self.weight.copy_(series @ (j[:, None] * at).cos() / POINTS)
            self.point.copy_((middle + half * at.cos()).exp())
            for p, m, v in zip(*(x.split(SLICE) for x in self.whole), strict=True):
                p.sub_(m * self.ahead(v, self.done))

    def ahead(self, v: Tensor, done: Tensor) -> Tensor:
        """F [u, W] of rows whose last step was number `done`."""
        root, found = v.sqrt(), torch.zeros_like(v)
        for weight, point in zip(self.weight.index_select(0, done.view(1))[0], self.point, strict=True):
            found.addcdiv_(weight, root * point + EPSILON)
        return found

    def take(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [u, W] as they are now, and where among them entities [n] are: int64 [n]."""
        if not self.sparse:
            return self.tables["entities"], ids
        rows = ids.sort().values  # one that is used again stands there again, but only the first is looked up
        gap = (self.done - self.last.index_select(0, rows))[:, None]
        p, m, v = (x.index_select(0, rows) for x in self.whole)
        m, v = m * BETA1**gap, v * BETA2**gap
        self.taken = rows, p.addcmul_(m, self.ahead(v, self.done)).requires_grad_(), m, v
        return p, torch.searchsorted(rows, ids)

    @torch.no_grad()
    def step(self) -> None:
        """Change the tables by their gradients, and the rows that were taken by theirs."""
        now = self.done + 1
        for name, table in self.tables.items():
            rows, p, m, v = None, table, self.moments[f"{name}.m"], self.moments[f"{name}.v"]
            if self.sparse and name == "entities":
                rows, p, m, v = self.taken
            if (g := p.grad) is None:
                continue
            p.grad, g = None, g if rows is None else g.index_select(0, torch.searchsorted(rows, rows))
            m.lerp_(g, 1 - BETA1)
            v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            p.sub_((m / (v.sqrt() * self.root.take(now) + EPSILON)).mul_(self.size.take(now)))
            if rows is not None:
                for whole, x in zip(self.whole, (p.sub_(m * self.ahead(v, now)), m, v), strict=True):
                    whole.index_copy_(0, rows, x)
                self.last.index_copy_(0, rows, now.expand(len(rows)))

    def end(self) -> None:
        """The moments as the epoch leaves them."""
        moments = (*self.whole[1:], self.last) if self.sparse else ()
        for m, v, last in zip(*(x.split(SLICE) for x in moments), strict=True):
            m.mul_(BETA1 ** (self.done - last)[:, None])
            v.mul_(BETA2 ** (self.done - last)[:, None])
        self.last.zero_()
