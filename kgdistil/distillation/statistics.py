"""Whether a difference of MRR is more than chance: the paired bootstrap over test triples."""

from __future__ import annotations

import functools

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
    gain = second - first
    drawn = counts(len(gain), resamples)
    means = np.concatenate([part @ gain for part in np.array_split(drawn, max(1, drawn.size >> 20))]) / len(gain)
    low, high = np.quantile(means, [0.025, 0.975])
    p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    return float(low), float(high), float(min(1.0, max(p, 1 / resamples)))
