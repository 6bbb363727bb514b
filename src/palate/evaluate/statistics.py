"""Intervals of means: t, paired and clustered by prompt where samples are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from palate.intervals import Interval


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, *, groups: Sequence[Any] | None = None
) -> tuple[float, Interval]:
    """Mean and its t interval.

    Args:
        values: at least one; a single value (or group) has the interval (value, value).
        groups: values of one group are not independent (samples of one prompt): the interval is
            that of the mean of group means. Groups of equal size leave the mean as it is.
    """
    x = np.asarray(values, dtype=float)
    if groups is not None:
        x = group_means(x, groups)
    mean = float(x.mean())
    if len(x) < 2 or not np.ptp(x):
        return mean, (mean, mean)
    half = float(stats.t.ppf(0.5 + confidence / 2, len(x) - 1)) * float(stats.sem(x))
    return mean, (mean - half, mean + half)


def group_means(values: Sequence[float] | np.ndarray, groups: Sequence[Any]) -> np.ndarray:
    """Mean of each group, in order of first appearance."""
    sums: dict[Any, list[float]] = {}
    for value, group in zip(np.asarray(values, dtype=float), groups, strict=True):
        sums.setdefault(group, []).append(float(value))
    return np.asarray([np.mean(v) for v in sums.values()])


def bootstrap_rows(n: int, *, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """[resamples, n] indices, each row drawn from 0..n-1 with replacement."""
    return np.random.default_rng(seed).integers(0, n, size=(resamples, n))


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap interval of resampled values."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
