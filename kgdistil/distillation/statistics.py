"""Whether a difference of MRR is more than chance: the paired bootstrap over test triples."""

from __future__ import annotations

import numpy as np

SAME = 0.005  # differences of MRR below this are not worth naming
RESAMPLES = 2000  # of the paired bootstrap


def bootstrap(first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """Paired bootstrap of mean(second) − mean(first): the 95 % interval, and a two-sided p.

    Args:
        first, second: one value for each test triple, in the same order; float [n].
    Returns:
        Low and high end of the interval; p, at least 1 / resamples, for a difference of zero.
    """
    gain = second - first
    draws = np.random.default_rng(0).integers(0, len(gain), (resamples, len(gain)), dtype=np.int32)
    means = np.concatenate([gain[part].mean(1) for part in np.array_split(draws, max(1, draws.size >> 22))])
    low, high = np.quantile(means, [0.025, 0.975])
    p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    return float(low), float(high), float(min(1.0, max(p, 1 / resamples)))
