"""Eq. 1–11 of the paper, each a function. Eq. 2, the set of negatives, is `sampling.corrupt`.

| equation | here |
| --- | --- |
| 1 (teacher) and 3 (student) | `margin_hard_loss` |
| 4 (student) and 9 (teacher) | `margin_soft_loss` |
| 5 | `stage_one_loss` |
| 6 (teacher) and 7 (student) | `cross_entropy_hard_loss` |
| 8 (student) and 10 (teacher) | `cross_entropy_soft_loss` |
| 11 | `stage_two_loss` |
| which of them a step minimises | `total_loss` |

Shapes: `positive` [B] holds the scores of B true triples, `negative` [B, k] those of their k corruptions,
`weight` [B, k] what each corruption counts. Reductions: the sum over a triple's corruptions as the equations
say, then the mean over the batch; the mean only scales Eq. 1–11, which sum over the whole graph.
Soft labels are constants: a loss for the student never moves the teacher, nor the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

PARTS = ("student_soft", "student_hard", "teacher_soft", "teacher_hard", "penalty")  # what an engine reports


def negative_weights(negative: Tensor, kept: Tensor, mode: str, temperature: float = 1.0) -> Tensor:
    """What each corruption counts, [B, k], without gradient.

    Args:
        negative: scores [B, k].
        kept: bool [B, k], False for a corruption that is a true triple and must count nothing (Eq. 2).
        mode: "sum", each counts 1 (the equations as printed); "mean", each 1/k; "self-adversarial", the
            softmax of temperature × score over the k (Sun et al. 2019, Eq. 5 and 6).
    """
    if mode == "sum":
        return kept.to(negative.dtype)
    if mode == "mean":
        return kept.to(negative.dtype) / negative.shape[1]
    logits = (temperature * negative.detach()).masked_fill(~kept, -1e30)
    return logits.softmax(dim=1) * kept


def margin_hard_loss(positive: Tensor, negative: Tensor, weight: Tensor, margin: float) -> Tensor:
    """Eq. 1 and 3: Σ [γ − f(h, t) + f(h', t')]₊, with f Table 1's score (the paper writes distances)."""
    return ((margin - positive[:, None] + negative).relu() * weight).sum(1).mean()


def margin_soft_loss(
    positive: Tensor, negative: Tensor, weight: Tensor, other_positive: Tensor, other_negative: Tensor
) -> Tensor:
    """Eq. 4 and 9: |f^T(h, t) − f^S(h, t)| + Σᵢ |f^T(h'ᵢ, t'ᵢ) − f^S(h'ᵢ, t'ᵢ)|; `other` are the labels."""
    own = (positive - other_positive.detach()).abs()
    return (own + ((negative - other_negative.detach()).abs() * weight).sum(1)).mean()


def cross_entropy_hard_loss(positive: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    """Eq. 6 and 7: −Σ (y log p + (1 − y) log(1 − p)) with p = σ(f); y is 1 for true triples, else 0."""
    return (F.softplus(-positive) + (F.softplus(negative) * weight).sum(1)).mean()


def cross_entropy_soft_loss(
    positive: Tensor, negative: Tensor, weight: Tensor, other_positive: Tensor, other_negative: Tensor
) -> Tensor:
    """Eq. 8 and 10: as Eq. 6, the label being the other model's p = σ(f) instead of y."""

    def cross_entropy(score: Tensor, label: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(score, label.detach().sigmoid(), reduction="none")

    negatives = cross_entropy(negative, other_negative) * weight
    return (cross_entropy(positive, other_positive) + negatives.sum(1)).mean()


def hard_loss(kind: str, positive: Tensor, negative: Tensor, weight: Tensor, margin: float) -> Tensor:
    """Eq. 1/3 for kind "margin", Eq. 6/7 for "cross-entropy"."""
    if kind == "margin":
        return margin_hard_loss(positive, negative, weight, margin)
    return cross_entropy_hard_loss(positive, negative, weight)


def soft_loss(
    kind: str, positive: Tensor, negative: Tensor, weight: Tensor, other_positive: Tensor, other_negative: Tensor
) -> Tensor:
    """Eq. 4/9 for kind "margin", Eq. 8/10 for "cross-entropy"."""
    function = margin_soft_loss if kind == "margin" else cross_entropy_soft_loss
    return function(positive, negative, weight, other_positive, other_negative)


def stage_one_loss(student_soft: Tensor, student_hard: Tensor, alpha: float) -> Tensor:
    """Eq. 5: α L_soft^S + (1 − α) L_hard^S. The teacher is frozen."""
    return alpha * student_soft + (1 - alpha) * student_hard


def stage_two_loss(
    student_soft: Tensor, student_hard: Tensor, teacher_soft: Tensor, teacher_hard: Tensor, alpha: float, beta: float
) -> Tensor:
    """Eq. 11: α L_soft^S + (1 − α) L_hard^S + β L_soft^T + (1 − β) L_hard^T. The teacher learns too."""
    return stage_one_loss(student_soft, student_hard, alpha) + beta * teacher_soft + (1 - beta) * teacher_hard


def total_loss(
    soft: Mapping[str, Tensor], hard: Mapping[str, Tensor], alpha: float | None, beta: float | None
) -> Tensor:
    """What a step minimises but for the regulariser: Eq. 11 where the teacher has losses, Eq. 5 where the student has
    a soft one, else the student's hard loss (Eq. 3 or 7).

    Args:
        soft, hard: losses by role, "student" and "teacher".
        alpha, beta: Eq. 5 and 11; without α the losses are added as they are (DualDE).
    """
    if alpha is None or beta is None:
        return torch.stack([*soft.values(), *hard.values()]).sum()
    if "teacher" in hard:
        return stage_two_loss(soft["student"], hard["student"], soft["teacher"], hard["teacher"], alpha, beta)
    return stage_one_loss(soft["student"], hard["student"], alpha) if soft else hard["student"]


# ---- beyond the paper: DualDE ----------------------------------------------------------------------------------------
def dual_losses(
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    other_positive: Tensor,
    other_negative: Tensor,
    structure: Tensor,
) -> tuple[Tensor, Tensor]:
    """Soft and hard loss of DualDE, to be added as they are (Zhu et al. 2022, section 3, Eq. 4 to 10).

    A soft label counts as much as the other model is sure of what is known, σ(f) of a true triple and 1 − σ(f) of a
    corruption, the hard label the rest; so nothing is left for α. Slope and shift of this sigmoid, learned there, are
    1 and 0. Probabilities are compared by Huber's distance.

    Args:
        structure: [B], `dual_structure` of the true triples.
    """
    sure, sure_not = other_positive.detach().sigmoid(), 1 - other_negative.detach().sigmoid()
    apart = F.smooth_l1_loss(positive.sigmoid(), other_positive.detach().sigmoid(), reduction="none") + structure
    apart_not = F.smooth_l1_loss(negative.sigmoid(), other_negative.detach().sigmoid(), reduction="none")
    soft = sure * apart + (sure_not * apart_not * weight).sum(1)
    hard = (1 - sure) * F.softplus(-positive) + ((1 - sure_not) * F.softplus(negative) * weight).sum(1)
    return soft.mean(), hard.mean()


def dual_structure(head: Tensor, tail: Tensor, other_head: Tensor, other_tail: Tensor) -> Tensor:
    """How differently two models lay out heads and tails [B, ·]: Huber's distance of their angles and of their ratios
    of lengths, [B] (DualDE, Eq. 5 and 6)."""

    def layout(h: Tensor, t: Tensor) -> Tensor:
        ratio = h.norm(dim=-1) / t.norm(dim=-1).clamp_min(1e-12)
        return torch.stack([F.cosine_similarity(h, t, dim=-1), ratio])

    other = layout(other_head.detach(), other_tail.detach())
    return F.smooth_l1_loss(layout(head, tail), other, reduction="none").sum(0)


# ---- beyond the paper: KvsAll and sampled softmax --------------------------------------------------------------------
def softmax_hard_loss(scores: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """−log softmax of each answer among all candidates, the mean over answers (Lacroix et al. 2018, Eq. 6).

    Args:
        scores: [n, m] of n queries and m candidates.
        row, place: int64 [a], the query and the candidate of each of the a answers.
    """
    return (scores.logsumexp(1)[row] - scores[row, place]).mean()


def softmax_soft_loss(scores: Tensor, other: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softmax(f / T) with the other model's, times T² (Hinton et al. 2015, section 2.1).

    Args:
        scores, other: [n, m].
        labels: [n], what each query counts: its share of the answers, so that hard and soft label weigh queries alike.
    """
    label = (other.detach() / temperature).softmax(1)
    scores = scores / temperature
    own = scores.logsumexp(1) - (label * scores).sum(1)
    return temperature**2 * (own * labels).sum()
