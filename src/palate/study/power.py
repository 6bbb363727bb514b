"""Power: the smallest effect that could have been seen, and the seeds that would settle one."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import optimize, stats

from palate.study.crossed import Estimand, Spread, planned

MOST_SEEDS = 1000
MOST_ITEMS = 1_000_000


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
    from 0."""
    variance, df = planned(spread, seeds, items, estimand)
    if variance == 0:
        return float(difference != 0)
    return power_of(difference, math.sqrt(variance), df, confidence)


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
    variance, df = planned(spread, seeds, items, estimand)
    return detectable(math.sqrt(variance), df, confidence=confidence, power=power)


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

    def enough(seeds: int) -> bool:
        return (
            planned_power(
                spread,
                difference,
                seeds=seeds,
                items=items,
                estimand=estimand,
                confidence=confidence,
            )
            >= power
        )

    return _least(enough, MOST_SEEDS) if difference else None


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

    def enough(items: int) -> bool:
        return (
            planned_power(
                spread,
                difference,
                seeds=seeds,
                items=items,
                estimand="new items",
                confidence=confidence,
            )
            >= power
        )

    return _least(enough, MOST_ITEMS) if difference else None


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
