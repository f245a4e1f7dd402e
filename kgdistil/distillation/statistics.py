"""Whether a difference of MRR is more than chance: the paired bootstrap over test triples and seeds. And how far a mean
of seeds may be off."""

from __future__ import annotations

import functools
import math

import numpy as np

SAME = 0.005  # differences of MRR below this are not worth naming
RESAMPLES = 2000  # of the paired bootstrap


@functools.lru_cache(maxsize=3)
def counts(n: int, resamples: int) -> np.ndarray:
    """How often each of n values is in each resample of as many, uint8 [resamples, n]: the same ones ever."""
    draws = np.random.default_rng(0).integers(0, n, (resamples, n), dtype=np.int32)
    return np.stack([np.bincount(row, minlength=n).astype(np.uint8) for row in draws])


def bootstrap(first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """Paired bootstrap of mean(second) − mean(first): the 95 % interval, and a two-sided p.

    Args:
        first, second: one value for each test triple, in the same order; float [n].
    Returns:
        Low and high end of the interval; p, at least 1 / resamples, for a difference of zero.
    """
    return ends(resampled((second - first)[None], resamples)[:, 0])


def bootstrap_of_seeds(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """The same of two sides that each have several seeds: a resample draws triples, which all share, and of either side
    as many seeds as it has.

    Args:
        first, second: what `resampled` gives of each side; [resamples, seeds].
    """
    generator, means = np.random.default_rng(1), []
    for side in (first, second):
        seeds = generator.integers(0, side.shape[1], side.shape)
        means.append(np.take_along_axis(side, seeds, 1).mean(1))
    return ends(means[1] - means[0])


def resampled(values: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """The means [resamples, k] of values [k, n] over resamples of the n."""
    drawn = counts(values.shape[1], resamples)
    parts = np.array_split(drawn, max(1, drawn.size >> 18))  # which stay in a cache as floats
    return np.concatenate([part @ values.T for part in parts]) / values.shape[1]


def ends(means: np.ndarray) -> tuple[float, float, float]:
    """The 95 % interval of differences over resamples, and a two-sided p for a difference of zero."""
    low, high = np.quantile(means, [0.025, 0.975])
    p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    return float(low), float(high), float(min(1.0, max(p, 1 / len(means))))


def half_width(deviation: float, seeds: float) -> float:
    """Of the 95 % interval of a mean over seeds, by Student's t; NaN of one seed."""
    from scipy import stats

    return float(stats.t.ppf(0.975, seeds - 1) * deviation / seeds**0.5) if seeds > 1 else math.nan


def spread(deviation: float, seeds: float) -> str:
    """That half in words, after a mean: "± 0.003", which no line's end parts; nothing of one seed."""
    return f" ±\N{NO-BREAK SPACE}{half_width(deviation, seeds):.3f}" if seeds > 1 else ""
