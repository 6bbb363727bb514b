"""Power: the smallest effect that could have been seen, and the seeds that would settle one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import optimize, special, stats

from palate.study.crossed import Estimand, MeanSquares, Spread, from_mean_squares

MOST_SEEDS = 1000
MOST_ITEMS = 1_000_000
NODES = {"seeds": 16, "items": 6}
"""Points at which a mean square's distribution is read."""


def power_of(difference: float, standard_error: float, df: float, confidence: float) -> float:
    """Probability that a two-sided t test tells `difference` from 0 and its sign right.

    By the noncentral t. The tail of the wrong sign is left out: nobody plans for it.
    """
    critical = stats.t.ppf(0.5 + confidence / 2, df)
    return float(stats.nct.sf(critical, df, abs(difference) / standard_error))


def detectable(
    standard_error: float, df: float, *, confidence: float = 0.95, power: float = 0.8
) -> float:
    """Smallest difference that a two-sided t test tells from 0 with probability `power`."""
    top = float(stats.t.ppf(0.5 + confidence / 2, df))
    while power_of(top, 1.0, df, confidence) < power:
        top *= 1.5
    return standard_error * float(
        optimize.brentq(lambda ncp: power_of(ncp, 1.0, df, confidence) - power, 0.0, top)
    )


def planned_power(
    spread: Spread,
    difference: float,
    *,
    seeds: int,
    items: int,
    estimand: Estimand,
    confidence: float = 0.95,
) -> float:
    """Probability that a comparison of `seeds` seeds a variant on `items` items tells `difference`
    from 0 and its sign right.

    The mean over the chi-squares that mean squares of seeds and items follow of Phi((difference -
    half width) / sd), with the half width that `compare` makes of them and the true sd. Where seeds
    alone are uncertain and paired that is the noncentral t.
    """
    power, _ = _planned(spread, seeds, items, estimand, confidence)
    return power(abs(difference))


def planned_detectable(
    spread: Spread,
    *,
    seeds: int,
    items: int,
    estimand: Estimand,
    confidence: float = 0.95,
    power: float = 0.8,
) -> float:
    """Smallest difference that `seeds` seeds a variant on `items` items would tell from 0 with
    probability `power`."""
    power_at, widest = _planned(spread, seeds, items, estimand, confidence)
    if power_at(0.0) >= power:
        return 0.0
    return float(optimize.brentq(lambda size: power_at(size) - power, 0.0, widest))


def seeds_needed(
    spread: Spread,
    difference: float,
    *,
    items: int,
    estimand: Estimand,
    confidence: float = 0.95,
    power: float = 0.8,
) -> int | None:
    """Fewest seeds a variant with which a comparison on `items` items would tell `difference` from
    0 with probability `power`.

    None where 1000 seeds do not: the items, not the seeds, are then too few (or `difference` is 0).
    """
    tells = partial(
        planned_power, spread, difference, items=items, estimand=estimand, confidence=confidence
    )
    return _least(lambda seeds: tells(seeds=seeds) >= power, MOST_SEEDS) if difference else None


def items_needed(
    spread: Spread,
    difference: float,
    *,
    seeds: int,
    confidence: float = 0.95,
    power: float = 0.8,
) -> int | None:
    """Fewest items on which a comparison of `seeds` seeds a variant would tell `difference` from 0
    for new items with probability `power`; None where a million do not."""
    tells = partial(
        planned_power, spread, difference, seeds=seeds, estimand="new items", confidence=confidence
    )
    return _least(lambda items: tells(items=items) >= power, MOST_ITEMS) if difference else None


def _planned(
    spread: Spread, seeds: int, items: int, estimand: Estimand, confidence: float
) -> tuple[Callable[[float], float], float]:
    """Power as a function of the difference, and a difference that is told for certain."""
    variants = 1 if spread.paired else 2
    residual = spread.residual / seeds / items
    between = spread.seeds / seeds + residual
    across = spread.items / items + residual
    chi = _chi_square(seeds - 1, NODES["seeds"])
    axes = [chi] * variants
    if estimand == "new items":
        axes.append(_chi_square(items - 1, NODES["items"]))
    grid = np.meshgrid(*(values for values, _ in axes), indexing="ij")
    weights = np.prod(np.meshgrid(*(w for _, w in axes), indexing="ij"), axis=0)
    planned = from_mean_squares(
        np.zeros(weights.shape),
        MeanSquares(
            seeds=np.stack(grid[:variants], -1) * between / variants,
            residual=np.full((*weights.shape, variants), residual / variants),
            items=across * grid[-1],
            counts=np.full(variants, seeds),
            n_items=items,
        ),
        estimand,
    )
    half = planned.half_width(confidence)
    true = between if estimand == "these items" else between + spread.items / items
    sd = max(float(np.sqrt(true)), 1e-300)

    def power(difference: float) -> float:
        return float((weights * special.ndtr((difference - half) / sd)).sum())

    return power, float(half.max()) + 10 * sd


def _chi_square(df: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of a chi-square over its degrees of freedom, and their weights, by Gauss-Legendre."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return stats.chi2.ppf((points + 1) / 2, df) / df, weights / 2


def _least(enough: Callable[[int], bool], most: int) -> int | None:
    """Least number from 2 to `most` that is enough, where more is never less so."""
    low, high = 1, 2
    while not enough(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
