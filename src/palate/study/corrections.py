"""Many comparisons at once: adjusted p-values, and intervals that hold for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from palate.errors import PalateError
from palate.intervals import Interval
from palate.study import verdicts
from palate.study.comparison import Comparison

Correction = Literal["holm", "bh"]
"""Holm (1979, Scand. J. Stat. 6:65): no false difference among all with probability 1 - level.
Benjamini-Hochberg (1995, JRSS B 57:289): of the differences told, at most the share `level` is
false on average, for independent or positively dependent comparisons."""
NAMES = {"holm": "Holm", "bh": "Benjamini-Hochberg"}


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """One comparison of a family.

    Attributes:
        p_value: adjusted; None of a comparison without one, which is not counted in the family.
        distinguished: whether that is at most 1 - confidence; None without a p-value.
        interval: that holds for the whole family at once; None without a standard error.
        interval_confidence: its level alone.
        verdict: in words, after the correction.
    """

    comparison: Comparison
    p_value: float | None
    distinguished: bool | None
    interval: Interval | None
    interval_confidence: float
    verdict: str


def correct(comparisons: Sequence[Comparison], method: Correction = "holm") -> list[Corrected]:
    """Corrects comparisons of one family, whose level is 1 - their confidence.

    Intervals: with Holm Bonferroni's, which hold all at once. They are wider than Holm's decisions
    need, so that one may include 0 where Holm tells the difference; intervals that follow Holm
    exactly say of such a difference no more than its sign. With Benjamini-Hochberg those of
    Benjamini & Yekutieli (2005, JASA 100:71): of the intervals of the R differences told among m,
    each at 1 - R level / m, at most the share `level` misses on average; those of the others are
    as wide.

    Raises:
        PalateError: an unknown method; comparisons of unequal confidence.
    """
    if method not in NAMES:
        raise PalateError(f"correction '{method}': it is 'holm' or 'bh'")
    levels = {c.confidence for c in comparisons}
    if len(levels) > 1:
        raise PalateError(
            f"comparisons of confidence {sorted(levels)}: those of one family have the same"
        )
    counted = [i for i, c in enumerate(comparisons) if c.p_value is not None]
    adjusted: dict[int, float] = {}
    told: dict[int, bool] = {}
    confidence = level = 0.0
    if counted:
        level = 1 - comparisons[0].confidence
        values = adjust([comparisons[i].p_value or 0.0 for i in counted], method)
        adjusted = dict(zip(counted, values.tolist(), strict=True))
        told = {i: p <= level for i, p in adjusted.items()}
        shares = max(1, sum(told.values())) if method == "bh" else 1
        confidence = 1 - level * shares / len(counted)
    words = f"{NAMES[method]} over {len(counted)} comparisons"
    return [
        Corrected(
            comparison=c,
            p_value=adjusted.get(i),
            distinguished=told.get(i),
            interval=_interval(c, confidence),
            interval_confidence=confidence,
            verdict=verdicts.sentence(c, distinguished=told.get(i), correction=words),
        )
        for i, c in enumerate(comparisons)
    ]


def adjust(p_values: Sequence[float], method: Correction) -> np.ndarray:
    """Adjusted p-values, in the order given."""
    if method == "bh":
        return np.asarray(stats.false_discovery_control(p_values, method="bh"))
    # Its import takes a second.
    from statsmodels.stats.multitest import multipletests

    return np.asarray(multipletests(p_values, method="holm")[1])


def _interval(c: Comparison, confidence: float) -> Interval | None:
    if c.standard_error is None or c.df is None:
        return None
    half = float(stats.t.ppf(0.5 + confidence / 2, c.df)) * c.standard_error
    return c.difference - half, c.difference + half
