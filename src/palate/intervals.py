"""Intervals of a share, and of the difference of two."""

from __future__ import annotations

import math
from statistics import NormalDist

Interval = tuple[float, float]


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a share; ties may count half (Wilson 1927, JASA 22:209).

    Args:
        n: of observations; it may be an effective number.

    Returns:
        (low, high) within 0..1; (0, 1) when n is 0.
    """
    if n <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_of_shares(a: float, of_a: Interval, b: float, of_b: Interval) -> Interval:
    """Interval of a - b, two shares of independent observations, from the interval of each.

    It has their confidence (Newcombe 1998, Statistics in Medicine 17:873, method 10).
    """
    below = math.hypot(a - of_a[0], of_b[1] - b)
    above = math.hypot(of_a[1] - a, b - of_b[0])
    return a - b - below, a - b + above
