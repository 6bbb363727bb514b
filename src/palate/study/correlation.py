"""Whether two measures of runs go together: benchmark accuracy and what the policy became, say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from palate.errors import PalateError
from palate.intervals import Interval

FEWEST = 4
EXACT = 8
"""Runs up to which the rank correlation is tested by all orders."""


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Pearson's and Spearman's correlation over runs; numbers are None where there is none.

    Attributes:
        words: both, or why there is none.
    """

    names: tuple[str, str]
    runs: int
    pearson: float | None
    pearson_interval: Interval | None
    pearson_p: float | None
    spearman: float | None
    spearman_interval: Interval | None
    spearman_p: float | None
    confidence: float
    words: str


def correlate(
    x: ArrayLike,
    y: ArrayLike,
    *,
    names: tuple[str, str] = ("x", "y"),
    confidence: float = 0.95,
) -> Correlation:
    """Correlation of two measures of the same runs.

    Pearson's interval is Fisher's (1921), its p-value that of t. Spearman's interval is Bonett &
    Wright's (2000, Psychometrika 65:23), tanh(atanh r -+ z sqrt((1 + r^2 / 2) / (n - 3))), with two
    changes without which it holds 44% of 95% at 4 runs: a rank correlation of 1 or -1 is read half
    of its smallest step further in, and its interval then ends at 1 or -1. Its p-value is exact
    over all orders up to 8 runs, beyond by t. All take runs for independent, which they are less
    the more they share (data, a reward model, a seed).

    Args:
        x, y: [n] finite. Below 4 runs, or where one measure is constant, there are words only.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not (np.isfinite(a) & np.isfinite(b)).all():
        raise PalateError(f"{names[0]} and {names[1]} need one finite value each of the same runs")
    pair = f"{names[0]} and {names[1]}"
    if len(a) < FEWEST:
        return _none(names, len(a), confidence, f"{len(a)} runs are too few to say how {pair} go")
    for name, values in zip(names, (a, b), strict=True):
        if not np.ptp(values):
            words = f"{name} is the same in all {len(a)} runs: no correlation of {pair}"
            return _none(names, len(a), confidence, words)
    linear = stats.pearsonr(a, b)
    r, p = float(linear.statistic), float(linear.pvalue)
    low, high = linear.confidence_interval(confidence)
    rank, rank_p = _spearman(a, b)
    rank_interval = rank_correlation_interval(rank, len(a), confidence)
    words = (
        f"{pair} over {len(a)} runs: rank correlation {rank:.2f} [{rank_interval[0]:.2f}, "
        f"{rank_interval[1]:.2f}], linear {r:.2f} [{low:.2f}, {high:.2f}]"
    )
    if rank_interval[0] <= 0 <= rank_interval[1]:
        words += "; not distinguishable from none"
    return Correlation(
        names=names,
        runs=len(a),
        pearson=r,
        pearson_interval=(float(low), float(high)),
        pearson_p=p,
        spearman=rank,
        spearman_interval=rank_interval,
        spearman_p=rank_p,
        confidence=confidence,
        words=words,
    )


def rank_correlation_interval(rank: float, runs: int, confidence: float = 0.95) -> Interval:
    """Interval of Spearman's correlation of `runs` >= 4 runs, as `correlate` describes."""
    half_step = 6 / (runs**3 - runs)
    inside = min(max(rank, half_step - 1), 1 - half_step)
    error = math.sqrt((1 + inside**2 / 2) / (runs - 3))
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    low, high = math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half)
    return (-1.0 if rank < inside else low), (1.0 if rank > inside else high)


def _spearman(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    result = stats.spearmanr(a, b)
    if len(a) > EXACT:
        return float(result.statistic), float(result.pvalue)
    first, second = stats.rankdata(a), stats.rankdata(b)
    exact = stats.permutation_test(
        (first,),
        lambda ranks, axis: (ranks * second).sum(axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=np.inf,
        alternative="two-sided",
    )
    return float(result.statistic), float(exact.pvalue)


def _none(names: tuple[str, str], runs: int, confidence: float, words: str) -> Correlation:
    return Correlation(
        names=names,
        runs=runs,
        pearson=None,
        pearson_interval=None,
        pearson_p=None,
        spearman=None,
        spearman_interval=None,
        spearman_p=None,
        confidence=confidence,
        words=words,
    )
