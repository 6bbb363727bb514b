"""Two variants compared: difference, interval, what could have been seen, verdict in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from palate.errors import PalateError
from palate.intervals import Interval
from palate.study import verdicts
from palate.study.crossed import ESTIMANDS, Estimand, Spread, estimate, spread
from palate.study.power import detectable, items_needed, seeds_needed
from palate.study.resampled import FEWEST, bootstrap_items

Direction = Literal["higher", "lower", "neither"]
"""Which outcome is the better one; of "neither" the verdict says higher and lower."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Variant A against variant B; differences are A's mean less B's.

    Attributes:
        names: of A and B.
        estimand: what the difference, its interval and its p-value are about.
        means: of A and B over seeds and items (or clusters).
        interval, p_value, standard_error: two-sided; None where nothing can be said.
        df: degrees of freedom with which t gives that interval; None where nothing can be said.
        method: how the interval was made.
        seeds: of A and B. paired: whether they are the same.
        items: units: items, or clusters of them.
        clustered: whether a unit is a cluster.
        effect_size: Hedges' g, the difference over `effect_size_by`; None where that is 0 or not
            known.
        detectable: smallest difference that would have been told from 0 with probability `power`
            by a study of this size, from the standard error that it had.
        seeds_needed: seeds a variant that would tell a difference of the observed size from 0 with
            that power, more than there are where it was not told; None where 1000 would not, or
            nothing says so.
        items_needed: items that would with the seeds there are, for new items only.
        spread: components of variance; None with one seed.
        sesoi: smallest effect of interest, or None.
    """

    names: tuple[str, str]
    estimand: Estimand
    means: tuple[float, float]
    difference: float
    interval: Interval | None
    p_value: float | None
    standard_error: float | None
    df: float | None
    confidence: float
    method: str
    seeds: tuple[int, int]
    paired: bool
    items: int
    clustered: bool
    direction: Direction
    effect_size: float | None
    effect_size_by: str
    power: float
    detectable: float | None
    seeds_needed: int | None
    items_needed: int | None
    spread: Spread | None
    sesoi: float | None

    @property
    def distinguished(self) -> bool | None:
        """Whether the interval leaves 0 out; None without an interval."""
        return None if self.interval is None else not self.interval[0] <= 0 <= self.interval[1]

    @property
    def equivalent(self) -> bool | None:
        """Whether the whole interval is smaller than the smallest effect of interest; None where
        there is no interval or no such effect was named."""
        if self.interval is None or self.sesoi is None:
            return None
        return max(map(abs, self.interval)) < self.sesoi

    @property
    def verdict(self) -> str:
        """What can be said, in a sentence."""
        return verdicts.sentence(self)

    def record(self) -> dict[str, Any]:
        """All of it as JSON would have it, the verdict too."""
        return dataclasses.asdict(self) | {
            "distinguished": self.distinguished,
            "equivalent": self.equivalent,
            "verdict": self.verdict,
        }


def compare(
    a: ArrayLike,
    b: ArrayLike,
    *,
    names: tuple[str, str] = ("A", "B"),
    paired: bool,
    estimand: Estimand,
    confidence: float = 0.95,
    sesoi: float | None = None,
    clusters: Sequence[Any] | None = None,
    direction: Direction = "higher",
    power: float = 0.8,
    seed: int = 0,
) -> Comparison:
    """Compares two variants on the same items.

    With two seeds or more of each, `crossed.estimate` says how. With one seed of either there is
    no interval for "these items"; for "new items" it is the BCa bootstrap over items (Efron 1987,
    JASA 82:171) of the difference of seeds' means, or t below 10 items, and holds for these trained
    models only. Seeds are never resampled: percentile intervals of 3 and 5 hold 74% and 84%.

    A model without training (a base model) has no seeds: give its one row once for every seed of
    the variant it is compared with, as `paired`.

    Args:
        a, b: [S_a, N] and [S_b, N] outcomes (0/1, rewards, ...) by seed and item, without NaN.
        paired: row s of `a` and of `b` have the same seed (and with it the order of data).
        sesoi: smallest difference that matters, on the scale of outcomes, above 0.
        clusters: [N] what items belong to (pairs of one prompt): the unit is then the cluster.
            Means stay those of items: a cluster counts by how many it has.
        direction: which outcome is better.
        power: what `detectable`, `seeds_needed` and `items_needed` ask for.
        seed: of the bootstrap over items.

    Raises:
        PalateError: shapes that do not belong together, values that are not finite, options out of
            range.
    """
    if estimand not in ESTIMANDS:
        raise PalateError(f"estimand '{estimand}': it is 'these items' or 'new items'")
    for key, share in {"confidence": confidence, "power": power}.items():
        if not 0 < share < 1:
            raise PalateError(f"{key} {share}: it lies between 0 and 1")
    if sesoi is not None and not 0 < sesoi < math.inf:
        raise PalateError(f"sesoi {sesoi}: the smallest difference that matters is above 0")
    x, y = _outcomes(a, names[0]), _outcomes(b, names[1])
    _check_together(x, y, names, paired, estimand)
    if clusters is not None:
        x, y = _by_cluster(x, clusters), _by_cluster(y, clusters)
        if estimand == "new items" and x.shape[1] < 2:
            raise PalateError("clusters: new items need two clusters or more, here is one")
    seeds, items = (len(x), len(y)), x.shape[1]
    difference = float(x.mean() - y.mean())
    interval: Interval | None = None
    p_value = error = df = None
    parts: Spread | None = None
    if min(seeds) > 1:
        result = estimate(x, y, paired=paired, estimand=estimand)
        error, df = float(result.standard_error), float(result.df(confidence))
        half, p_value = float(result.half_width(confidence)), float(result.p_value())
        interval = difference - half, difference + half
        parts = spread(x, y, paired=paired)
        method = _method(paired, estimand)
    elif estimand == "new items":
        by_item = x.mean(0) - y.mean(0)
        error, df = float(stats.sem(by_item)), items - 1.0
        if items < FEWEST or not error:
            interval, p_value = _t_interval(difference, error, df, confidence)
            method = "paired t over items, of these trained models"
        else:
            interval, p_value = bootstrap_items(by_item, confidence, seed=seed)
            method = "paired BCa bootstrap over items, of these trained models"
    else:
        method = "none: one seed says nothing of another"
    size, by = _effect_size(x, y, estimand)
    needs = {"confidence": confidence, "power": power}
    needed = None
    if parts is not None:
        needed = seeds_needed(parts, difference, items=items, estimand=estimand, **needs)
    if needed is not None and interval is not None and interval[0] <= 0 <= interval[1]:
        # A plan has the degrees of freedom that are expected; a study may have had fewer.
        needed = max(needed, max(seeds) + 1)
    return Comparison(
        names=names,
        estimand=estimand,
        means=(float(x.mean()), float(y.mean())),
        difference=difference,
        interval=interval,
        p_value=p_value,
        standard_error=error,
        df=df,
        confidence=confidence,
        method=method,
        seeds=seeds,
        paired=paired,
        items=items,
        clustered=clusters is not None,
        direction=direction,
        effect_size=size,
        effect_size_by=by,
        power=power,
        detectable=None if error is None or df is None else detectable(error, df, **needs),
        seeds_needed=needed,
        items_needed=None
        if parts is None or estimand == "these items"
        else items_needed(parts, difference, seeds=min(seeds), **needs),
        spread=parts,
        sesoi=sesoi,
    )


def _outcomes(values: ArrayLike, name: str) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 2 or not x.size:
        raise PalateError(f"{name}: outcomes have shape {x.shape}; give [seeds, items], none empty")
    if not np.isfinite(x).all():
        raise PalateError(
            f"{name}: {int((~np.isfinite(x)).sum())} of {x.size} outcomes are not finite; leave "
            "out the items that any run lacks, from all runs, and count them"
        )
    return x


def _check_together(
    x: np.ndarray, y: np.ndarray, names: tuple[str, str], paired: bool, estimand: Estimand
) -> None:
    if x.shape[1] != y.shape[1]:
        raise PalateError(
            f"{names[0]} has {x.shape[1]} items and {names[1]} {y.shape[1]}; compare on the same"
        )
    if paired and len(x) != len(y):
        raise PalateError(
            f"{names[0]} has {len(x)} seeds and {names[1]} {len(y)}; paired seeds are as many (of "
            "a model without training repeat its row)"
        )
    if estimand == "new items" and x.shape[1] < 2:
        raise PalateError("new items need two items or more, here is one; ask for 'these items'")


def _by_cluster(x: np.ndarray, clusters: Sequence[Any]) -> np.ndarray:
    """[S, G] of each cluster, in order of first appearance, what it says of the mean over items.

    mean + sum over the cluster of (outcome - mean) * G / N: their mean is that of the items, and
    the variance of their mean that of a mean of clusters of unequal sizes.
    """
    if len(clusters) != x.shape[1]:
        raise PalateError(
            f"{len(clusters)} clusters of {x.shape[1]} items; name each item's cluster"
        )
    numbers: dict[Any, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    means = x.mean(1, keepdims=True)
    sums = np.stack([np.bincount(index, row) for row in x - means])
    return np.asarray(means + sums * sums.shape[1] / x.shape[1])


def _t_interval(
    difference: float, error: float, df: float, confidence: float
) -> tuple[Interval, float]:
    half = float(stats.t.ppf(0.5 + confidence / 2, df)) * error
    if not error:
        return (difference, difference), float(difference == 0)
    p_value = 2 * float(stats.t.sf(abs(difference) / error, df))
    return (difference - half, difference + half), p_value


def _method(paired: bool, estimand: Estimand) -> str:
    if estimand == "these items":
        return "paired t over seeds" if paired else "Welch's t over seeds"
    seeds = "paired seeds" if paired else "seeds"
    return f"crossed random effects of {seeds} and items, Howe's interval"


def _effect_size(x: np.ndarray, y: np.ndarray, estimand: Estimand) -> tuple[float | None, str]:
    """Hedges' g (1981, J. Educ. Stat. 6:107), and the standard deviation that it is by.

    g = J * difference / sd with J = Gamma(df / 2) / (sqrt(df / 2) Gamma((df - 1) / 2)).
    """
    if estimand == "these items":
        by = "standard deviation of a seed's mean over items, of both variants"
        df = len(x) + len(y) - 2
        squares = sum(((v.mean(1) - v.mean()) ** 2).sum() for v in (x, y))
        known = min(len(x), len(y)) > 1
    else:
        by = "standard deviation of one seed's outcomes over items, of both variants"
        df = 2 * (x.shape[1] - 1)
        squares = sum(v.var(1, ddof=1).mean() for v in (x, y)) / 2 * df
        known = True
    if not known or df < 2 or squares <= 0:
        return None, by
    correction = math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2))
    correction /= math.sqrt(df / 2)
    return float(correction * (x.mean() - y.mean()) / math.sqrt(squares / df)), by
