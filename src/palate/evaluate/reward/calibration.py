"""Whether a margin means what Bradley-Terry says: P(better) = sigmoid(margin / temperature)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit

from palate.evaluate.reward.items import Array, Comparisons
from palate.evaluate.statistics import share_interval

BINS = 10


def calibration(pairs: Comparisons, confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Reliability, expected calibration error and the temperature that fits best.

    A pair is predicted with confidence sigmoid(|margin|), and right where the better response
    scores higher; pairs without a score are left out and ties are right half the time. The error
    after tempering is cross-fitted: prompts are halved by `seed`, and the pairs of each half are
    judged at the temperature of the other.

    Returns:
        n, ece, nll, bins (as `reliability`), temperature (None where no positive one fits best: at
        or below chance, or all right), reason, ece_tempered, nll_tempered, bins_tempered.
    """
    keep = ~np.isnan(pairs.margin)
    margin, group = pairs.margin[keep], pairs.group[keep]
    result: dict[str, Any] = {"n": len(margin), "temperature": None, "reason": None}
    if not len(margin):
        return result | {"reason": "no pair has a score"}
    result |= {
        "ece": ece(margin),
        "nll": nll(margin),
        "bins": reliability(margin, group, confidence),
        "ece_tempered": None,
        "nll_tempered": None,
        "bins_tempered": [],
    }
    result["temperature"], result["reason"] = fit_temperature(margin)
    if result["temperature"] is None:
        return result
    half = _halves(group, seed)
    fits = [fit_temperature(margin[half == side])[0] for side in (0, 1)]
    if None in fits:
        return result | {
            "reason": "on one half of the prompts no temperature fits: none to judge the other at"
        }
    # Each half at the temperature of the other.
    tempered = np.where(half == 0, margin / float(fits[1] or 1), margin / float(fits[0] or 1))
    return result | {
        "ece_tempered": ece(tempered),
        "nll_tempered": nll(tempered),
        "bins_tempered": reliability(tempered, group, confidence),
    }


def reliability(
    margin: Array, group: npt.NDArray[Any], confidence: float = 0.95, bins: int = BINS
) -> list[dict[str, Any]]:
    """Confidence against accuracy in equal bins of confidence from one half to one.

    Returns:
        low, high, n, confidence (mean inside), accuracy, accuracy_ci of each bin with a pair.
    """
    sure = expit(np.abs(margin))
    place = _place(sure, bins)
    filled = []
    for number in np.unique(place):
        inside = place == number
        right = _right(margin[inside])
        ci, _ = share_interval(right, group[inside], confidence)
        filled.append(
            {
                "low": 0.5 + 0.5 * int(number) / bins,
                "high": 0.5 + 0.5 * (int(number) + 1) / bins,
                "n": int(inside.sum()),
                "confidence": float(sure[inside].mean()),
                "accuracy": float(right.mean()),
                "accuracy_ci": ci,
            }
        )
    return filled


def ece(margin: Sequence[float] | Array, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015): mean |accuracy - confidence| over bins,
    weighted by their pairs."""
    x = np.asarray(margin, dtype=np.float64)
    sure = expit(np.abs(x))
    place = _place(sure, bins)
    gaps = np.bincount(place, weights=_right(x) - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(x))


def nll(margin: Sequence[float] | Array) -> float:
    """Mean -log sigmoid(margin), nats: the Bradley-Terry loss."""
    return float(np.logaddexp(0.0, -np.asarray(margin, dtype=np.float64)).mean())


def fit_temperature(margin: Array) -> tuple[float | None, str | None]:
    """The temperature of least `nll` of margin / temperature (Guo et al., arXiv:1706.04599).

    The loss is convex in 1 / temperature. It has a minimum above 0 exactly where the mean margin is
    positive and some margin is negative.

    Returns:
        the temperature and None, or None and why there is none.
    """
    if not len(margin) or not np.any(margin):
        return None, "all margins are 0"
    scale = float(np.abs(margin).mean())
    scaled = margin / scale
    if math.fsum(margin) <= 0 or float(scaled.mean()) <= 0:
        return None, "the mean margin is not positive: no temperature makes it predict better"
    if not np.any(scaled < 0):
        return None, "no pair is wrong: the sharper the better, without end"

    def slope(log_sharpness: float) -> float:
        return float(-(scaled * expit(-np.exp(log_sharpness) * scaled)).mean())

    # The slope rises through 0 once: the root lies between the first places on either side of it.
    low = high = 0.0
    while slope(low) >= 0:
        low -= 1.0
    while slope(high) <= 0:
        high += 1.0
    return scale * float(np.exp(-brentq(slope, low, high, xtol=1e-12))), None


def _right(margin: Array) -> Array:
    right: Array = np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))
    return right


def _place(sure: Array, bins: int) -> npt.NDArray[np.int64]:
    place: npt.NDArray[np.int64] = np.clip(((sure - 0.5) * 2 * bins).astype(np.int64), 0, bins - 1)
    return place


def _halves(group: npt.NDArray[Any], seed: int) -> npt.NDArray[np.int64]:
    """[P] 0 or 1: half of the prompts each."""
    prompts, inverse = np.unique(group, return_inverse=True)
    side = np.arange(len(prompts)) % 2
    np.random.default_rng(seed).shuffle(side)
    halves: npt.NDArray[np.int64] = side[inverse]
    return halves
