"""Bootstrap over items: what one trained model's difference would be on others."""

from __future__ import annotations

import numpy as np
from scipy import stats

from palate.intervals import Interval

FEWEST = 10
"""Units below which nothing is resampled: percentile intervals of 5 hold 84% instead of 95%."""
RESAMPLES = 9999


def bootstrap_items(
    differences: np.ndarray, confidence: float = 0.95, *, seed: int = 0
) -> tuple[Interval, float]:
    """BCa interval of a mean (Efron 1987, JASA 82:171) and the p-value that goes with it.

    The p-value of a mean of 0 is twice the tail outside of the interval that ends at 0, so that
    interval and p-value agree.

    Args:
        differences: [N] one of each item, N >= 10 and not all equal.
        seed: of the resampling.
    """
    result = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        batch=500,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    means = result.bootstrap_distribution
    centred = differences - differences.mean()
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    bias = _normal_score(means, differences.mean())
    shifted = _normal_score(means, 0.0) - bias
    tail = stats.norm.cdf(shifted / (1 + acceleration * shifted) - bias)
    return (float(interval.low), float(interval.high)), float(2 * min(tail, 1 - tail))


def _normal_score(means: np.ndarray, value: float) -> float:
    """Normal quantile of the share of `means` below `value`, ties half; finite at the ends."""
    below = ((means < value).sum() + 0.5 * (means == value).sum()) / len(means)
    edge = 0.5 / len(means)
    return float(stats.norm.ppf(min(max(below, edge), 1 - edge)))
