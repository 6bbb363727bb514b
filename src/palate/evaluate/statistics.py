"""Intervals of means and shares, clustered by prompt where values of one prompt are several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from palate.intervals import Interval, wilson


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


def share_interval(
    values: Sequence[float] | np.ndarray,
    groups: np.ndarray | None = None,
    confidence: float = 0.95,
) -> tuple[Interval, float]:
    """Wilson interval of a share whose values may come in groups.

    Pairs of one prompt are not independent. Where groups have several, the interval is that of the
    effective number n / max(1, design effect), the design effect being the variance of the mean by
    groups over that of independent values (Korn and Graubard 1998, Survey Methodology 24:193).

    Args:
        values: 0..1 each. groups: of each value; default: all independent.

    Returns:
        (low, high), and the effective number.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n == 0:
        return (0.0, 1.0), 0.0
    mean = float(x.mean())
    effective = float(n)
    if groups is not None:
        _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
        clusters = len(counts)
        binomial = mean * (1 - mean) / n
        if clusters < n and clusters > 1 and binomial > 0:
            residual = np.bincount(inverse, weights=x - mean, minlength=clusters)
            variance = clusters / (clusters - 1) * float(residual @ residual) / n**2
            effective = n / max(1.0, variance / binomial)
        elif clusters < n:
            # Nothing to tell the effect by: as many as there are prompts.
            effective = float(clusters)
    low, high = wilson(mean * effective, effective, confidence)
    return (low, high), effective


def difference_interval(
    values: np.ndarray, groups: np.ndarray, confidence: float = 0.95
) -> tuple[float, Interval]:
    """Mean of values that may come in groups, and its t interval by groups, as `share_interval`."""
    n = len(values)
    if n == 0:
        return 0.0, (0.0, 0.0)
    mean = float(values.mean())
    _, inverse = np.unique(groups, return_inverse=True)
    residual = np.bincount(inverse, weights=values - mean)
    clusters = len(residual)
    if clusters < 2:
        return mean, (mean, mean)
    error = float(np.sqrt(clusters / (clusters - 1) * (residual @ residual))) / n
    half = float(stats.t.ppf(0.5 + confidence / 2, clusters - 1)) * error
    return mean, (mean - half, mean + half)


def bootstrap_rows(n: int, *, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """[resamples, n] indices, each row drawn from 0..n-1 with replacement."""
    return np.random.default_rng(seed).integers(0, n, size=(resamples, n))


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap interval of resampled values."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
