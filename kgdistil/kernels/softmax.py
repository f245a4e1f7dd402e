"""`softmax.cpp`: the losses of a softmax over candidates and their gradient, each in one pass over a query's row."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kgdistil.kernels.compile import check_sizes, compiled, enough, pointer, threads
from kgdistil.kernels.kinds import comparison
from kgdistil.kernels.nearest import nearest_library

if TYPE_CHECKING:
    from kgdistil.models import KGEModel

ROUNDED = 1e-7  # weights as near as that are the same


class Everywhere(NamedTuple):
    """What all processes have of queries whose candidates are shared out among them: the answers of each query, int64
    [n]; log-sum-exp float32 [3, n] of the scores of each query, of scores / T, and of the other model's / T; and as
    much of the scores here, where `softmax_sums` has put their softmax into the gradient."""

    counts: Tensor
    sums: Tensor
    here: Tensor | None = None


class Job(ctypes.Structure):
    """Mirrors `Softmax` of softmax.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("scores", "other", "shift", "start", "place", "labels")),
        *((name, ctypes.c_void_p) for name in ("counts", "everywhere", "sums")),
        *((name, ctypes.c_int64) for name in ("n", "m", "stride", "total")),
        *((name, ctypes.c_float) for name in ("temperature", "hard", "soft")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("gradient", "losses")),
    ]


def softmax_library(scores: Tensor) -> ctypes.CDLL | None:
    """The compiled losses for scores of that kind, None where they cannot be: on the CPU, float32 or bfloat16."""
    if scores.device.type != "cpu" or scores.dtype not in (torch.float32, torch.bfloat16):
        return None
    library = compiled("softmax.cpp", f"KGD_HALF={int(scores.dtype == torch.bfloat16)}")
    return None if library is None else declared(library)


@functools.cache
def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """It with what its function takes."""
    check_sizes(library, Job)
    library.kgd_softmax.argtypes = [ctypes.POINTER(Job)]
    library.kgd_softmax.errcheck = enough
    return library


def arithmetic(models: Sequence[KGEModel], group: int, products: torch.dtype) -> dict[str, str | int]:
    """The type of matrix products, which the processor decides; which parts of a step are compiled and which readable,
    of a student, which comes first, and its teacher; on a CPU the threads that share out PyTorch's sums."""
    student = models[0]
    found = {"softmax": softmax_library(student.entities) is not None}
    if student.distance:
        found["pairs"] = all(comparison("pairs.cpp", model) is not None for model in models)
    if group:
        found["codes"] = nearest_library(student.entities, group) is not None
    return {
        "products": str(products).removeprefix("torch."),
        **{name: "compiled" if here else "readable" for name, here in found.items()},
        **({"threads": torch.get_num_threads()} if student.entities.device.type == "cpu" else {}),
    }


def softmax_losses(
    scores: Tensor,
    other: Tensor | None,
    shift: Tensor,
    start: Tensor,
    place: Tensor,
    labels: Tensor | None,
    temperature: float,
    weights: tuple[float, float],
    gradient: Tensor | None = None,
    everywhere: Everywhere | None = None,
) -> tuple[Tensor, Tensor] | None:
    """`softmax_hard_loss` and `softmax_soft_loss` of `kgdistil.losses`, the soft one 0 without `other`; None where they
    cannot be compiled.

    Args:
        scores, other: [n, m or more], float32 or bfloat16; columns everywhere `shift` count nothing.
        shift: float32 [m], added to the scores of both.
        start: int64 [n + 1], where the answers of each query begin in `place` int64 [a], their candidates, and end.
        labels: float32 [n], what each query counts in the soft loss; None without `other`.
        weights: what the two are expected to count in what is minimised, so that one pass finds their gradient as well;
            where they count otherwise it is found again.
        gradient: as scores, which are then without autograd: there it is put, by those weights.
        everywhere: what all processes have; losses are then what is here of theirs, whose sum they are.
    """
    library = softmax_library(scores)
    if library is None:
        return None
    other = None if other is None else other.detach().contiguous()
    given = scores.contiguous(), other, shift, start, place, None if labels is None else labels.float().contiguous()
    if gradient is not None:
        losses = torch.empty(len(scores), 2, dtype=torch.float64)
        call(library, given, temperature, losses, everywhere, *weights, gradient)
        hard, soft = losses.sum(0).float()
        return hard, soft
    return SoftmaxLosses.apply(*given, temperature, weights, library, everywhere)


def softmax_sums(
    scores: Tensor, other: Tensor | None, shift: Tensor, temperature: float, gradient: Tensor | None = None
) -> Tensor:
    """Log-sum-exp float32 [3, n] of scores [n, m], of scores / T, and of the other model's / T (0 without one), for
    `Everywhere`.

    Args:
        gradient: as scores: there their softmax is put, for `softmax_losses` to go on from (`Everywhere.here`).
        the others: as there.
    """
    scores, other = scores.detach(), None if other is None else other.detach()
    sums = torch.zeros(3, len(scores), device=scores.device)
    if (library := softmax_library(scores)) is not None:
        other, start = None if other is None else other.contiguous(), torch.zeros(len(scores) + 1, dtype=torch.int64)
        given = scores.contiguous(), other, shift, start, start[:0], None
        call(library, given, temperature, torch.empty(0, dtype=torch.float64), gradient=gradient, sums=sums)
        return sums
    for i, (x, t) in enumerate(((scores, 1.0), (scores, temperature), (other, temperature))):
        if x is not None:
            sums[i] = ((x[:, : len(shift)].float() + shift) / t).logsumexp(1)
    return sums


class SoftmaxLosses(torch.autograd.Function):
    """`softmax_losses`, of which `other` is a constant."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        other: Tensor | None,
        shift: Tensor,
        start: Tensor,
        place: Tensor,
        labels: Tensor | None,
        temperature: float,
        weights: tuple[float, float],
        library: ctypes.CDLL,
        everywhere: Everywhere | None,
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(scores) if ctx.needs_input_grad[0] else None
        ctx.given = library, temperature, weights, everywhere
        given = scores, other, shift, start, place, labels
        ctx.save_for_backward(*given, gradient)
        losses = torch.empty(len(scores), 2, dtype=torch.float64)
        call(library, given, temperature, losses, everywhere, *weights, gradient)
        hard, soft = losses.sum(0).float()
        return hard, soft

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, hard: Tensor, soft: Tensor) -> tuple[Tensor | None, ...]:
        (library, temperature, expected, everywhere), (*given, gradient) = ctx.given, ctx.saved_tensors
        weights = float(hard), float(soft)
        if any(abs(a - b) > ROUNDED for a, b in zip(weights, expected, strict=True)):
            losses = torch.empty(len(gradient), 2, dtype=torch.float64)
            call(library, given, temperature, losses, everywhere, *weights, gradient)
        return gradient, *[None] * 9


def call(
    library: ctypes.CDLL,
    given: Sequence[Tensor | None],
    temperature: float,
    losses: Tensor,
    everywhere: Everywhere | None = None,
    hard: float = 0.0,
    soft: float = 0.0,
    gradient: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """Fill in what each query adds to the losses, float64 [n, 2], and the gradient of hard · one + soft · the other; or
    `sums` alone."""
    scores, _, shift, _, place, _ = given
    assert scores is not None and shift is not None and place is not None
    counts, sums_of_all, here = (None, None, None) if everywhere is None else everywhere
    names = ("scores", "other", "shift", "start", "place", "labels")
    job = Job(
        **{name: pointer(x) for name, x in zip(names, given, strict=True)},
        n=len(scores),
        m=len(shift),
        stride=scores.shape[1],
        total=len(place) if counts is None else int(counts.sum()),
        counts=pointer(counts),
        everywhere=pointer(sums_of_all),
        sums=pointer(sums if here is None else here),
        temperature=temperature,
        hard=hard,
        soft=soft,
        threads=threads(),
        gradient=pointer(gradient),
        losses=pointer(losses),
    )
    library.kgd_softmax(ctypes.byref(job))
