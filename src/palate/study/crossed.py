"""The variance of a difference of two variants, from outcomes of seeds crossed with items.

    outcome(seed s, item i) = mean + seed_s + item_i + residual_si

of each variant, or of the difference where seeds are paired. Arrays may have leading axes ahead of
[seeds, items]: a simulation is one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Estimand = Literal["these items", "new items"]
"""What a difference is about. "these items": the items are the whole question, and another training
run could have come out otherwise. "new items": the items are a sample too."""

ESTIMANDS: tuple[Estimand, ...] = ("these items", "new items")
HALVINGS = 60
SMALLEST = -700.0
"""Logarithm of the smallest p-value that is told."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Components of variance of a difference: what each training seed, item and meeting of the two
    adds. An estimate below 0 is 0.

    Attributes:
        seeds: between training seeds; the sum over both variants where seeds are not paired.
        items: of an item's difference.
        residual: of one seed on one item; the sum over both variants where seeds are not paired.
        paired: whether the variants' seeds are paired.
    """

    seeds: float
    items: float
    residual: float
    paired: bool


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A difference and two independent parts of its variance.

    Attributes:
        difference: [...].
        seeds: [...] what seeds, and a seed's residual, add to the variance of the difference.
        seeds_df: [...] degrees of freedom of that.
        items: [...] what items add; 0 for "these items".
        items_df: degrees of freedom of that.
    """

    difference: np.ndarray
    seeds: np.ndarray
    seeds_df: np.ndarray
    items: np.ndarray
    items_df: float

    @property
    def standard_error(self) -> np.ndarray:
        return np.asarray(np.sqrt(self.seeds + self.items))

    def half_width(self, confidence: float) -> np.ndarray:
        """[...] half of the interval's width."""
        return self._half_width(np.asarray((1 - confidence) / 2))

    def df(self, confidence: float) -> np.ndarray:
        """[...] degrees of freedom with which t gives the same interval."""
        ratio = self.half_width(confidence) / np.where(self.standard_error, self.standard_error, 1)
        low, high = np.log(self.seeds_df), np.full_like(ratio, np.log(1e6))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            wider = stats.t.isf((1 - confidence) / 2, np.exp(middle)) > ratio
            low, high = np.where(wider, middle, low), np.where(wider, high, middle)
        return np.asarray(np.where(self.items > 0, np.exp(low), self.seeds_df))

    def p_value(self) -> np.ndarray:
        """[...] two-sided: 1 less the highest confidence whose interval leaves 0 out."""
        size, error = np.abs(self.difference), self.standard_error
        safe = np.where(error > 0, error, 1)
        p = 2 * stats.t.sf(size / safe, self.seeds_df)
        if np.any(self.items > 0):
            low, high = np.full(np.shape(p), SMALLEST), np.zeros(np.shape(p))
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                wider = self._half_width(np.exp(middle) / 2) > size
                low, high = np.where(wider, middle, low), np.where(wider, high, middle)
            p = np.where(self.items > 0, np.exp(high), p)
        return np.asarray(np.where(error > 0, p, size == 0))

    def _half_width(self, tail: np.ndarray) -> np.ndarray:
        squares = stats.t.isf(tail, self.seeds_df) ** 2 * self.seeds
        if np.any(self.items > 0):
            squares = squares + stats.t.isf(tail, self.items_df) ** 2 * self.items
        return np.asarray(np.sqrt(squares))


@dataclass(frozen=True, kw_only=True)
class MeanSquares:
    """Mean squares of a difference, each over the number of outcomes: what it says of the variance
    of the difference of means.

    Attributes:
        seeds, residual: [..., K] of each variant; K = 1 where seeds are paired.
        items: [...].
        counts: [K] seeds of each variant.
        n_items: items.
    """

    seeds: np.ndarray
    residual: np.ndarray
    items: np.ndarray
    counts: np.ndarray
    n_items: int


def estimate(a: np.ndarray, b: np.ndarray, *, paired: bool, estimand: Estimand) -> Estimate:
    """Difference of two variants and its uncertainty.

    "these items": t of the seeds' means over items, paired or Welch's (1947, Biometrika 34:28).

    "new items": with V_s, V_i and V_e the mean squares of seeds, items and residual over the number
    of outcomes, the variance is V_s + max(0, V_i - V_e), and the interval's half width h is

        h^2 = t(f_s)^2 V_s + t(N - 1)^2 max(0, V_i - V_e)

    (Howe 1974, JASA 69:789; f_s is S - 1, or Welch's). At 3 paired seeds intervals then hold 94.9
    to 97.7% where 95% are meant and 99.4% or more where 99.5% are, whatever the ratio of
    components. A t with Satterthwaite's (1946, Biometrics Bulletin 2:110) degrees of freedom holds
    as little as 92.2% and 97.3%: where the mean square of few seeds comes out small, so does the
    standard error, and the degrees of freedom come out many. Corrections for many comparisons need
    the higher level. (benchmarks/study_statistics.py --only levels)

    Args:
        a, b: [..., S_a, N] and [..., S_b, N] outcomes, at least two seeds each, the same N items
            (two at least for "new items").
        paired: seed s of `a` is seed s of `b`.
    """
    difference = a.mean((-2, -1)) - b.mean((-2, -1))
    return from_mean_squares(difference, mean_squares(a, b, paired=paired), estimand)


def from_mean_squares(difference: np.ndarray, squares: MeanSquares, estimand: Estimand) -> Estimate:
    """As `estimate`, of mean squares; all of the same leading axes."""
    f = squares.counts - 1.0
    seeds, residual = squares.seeds.sum(-1), squares.residual.sum(-1)
    weights = (squares.seeds**2 / f).sum(-1)
    seeds_df = np.where(weights > 0, seeds**2 / np.where(weights > 0, weights, 1), f.min())
    items = np.zeros_like(seeds)
    if estimand == "new items":
        items = np.maximum(0, squares.items - residual)
    else:
        # Seeds whose means agree to the last digit, as counts of few items may, still vary.
        seeds = np.where(seeds == 0, residual, seeds)
    return Estimate(
        difference=difference,
        seeds=seeds,
        seeds_df=seeds_df,
        items=items,
        items_df=squares.n_items - 1.0,
    )


def spread(a: np.ndarray, b: np.ndarray, *, paired: bool) -> Spread:
    """Components of variance of [S_a, N] and [S_b, N] outcomes, by mean squares."""
    terms = mean_squares(a, b, paired=paired)
    n = terms.n_items
    residual = (terms.residual * terms.counts).sum() * n
    return Spread(
        seeds=max(0.0, float(((terms.seeds - terms.residual) * terms.counts).sum())),
        items=max(0.0, float((terms.items - terms.residual.sum()) * n)),
        residual=float(residual),
        paired=paired,
    )


def mean_squares(a: np.ndarray, b: np.ndarray, *, paired: bool) -> MeanSquares:
    """Of outcomes as `estimate` takes them."""
    groups = [a - b] if paired else [a, b]
    n = a.shape[-1]
    return MeanSquares(
        seeds=np.stack([g.mean(-1).var(-1, ddof=1) / g.shape[-2] for g in groups], -1),
        residual=np.stack([_residual(g) / g.shape[-2] / n for g in groups], -1),
        items=(a.mean(-2) - b.mean(-2)).var(-1, ddof=1) / n if n > 1 else np.zeros(a.shape[:-2]),
        counts=np.array([g.shape[-2] for g in groups]),
        n_items=n,
    )


def _residual(x: np.ndarray) -> np.ndarray:
    """Mean square of [..., S, N] that neither rows nor columns explain."""
    s, n = x.shape[-2:]
    if n < 2:
        return np.zeros(x.shape[:-2])
    rest = (
        x - x.mean(-1, keepdims=True) - x.mean(-2, keepdims=True) + x.mean((-2, -1), keepdims=True)
    )
    return np.asarray((rest**2).sum((-2, -1)) / ((s - 1) * (n - 1)))
