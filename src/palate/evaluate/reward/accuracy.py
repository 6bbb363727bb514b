"""How often the better response scores higher, and on which pairs.

A pair counts as right where the better response scores strictly higher. Equal scores are wrong (as
in the public benchmarks) and counted; pairs without a score (a verdict that could not be read) are
wrong too, and counted, so that a judge cannot gain by not answering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from palate.evaluate.reward.items import Array, Comparisons
from palate.evaluate.statistics import difference_interval, share_interval
from palate.intervals import Interval, wilson

BINS = 5
_SIDE = ("n", "ties", "accuracy", "accuracy_ci")


def weighted_interval(
    share: float, counts: Sequence[float], weights: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Wilson interval of a weighted mean of the shares of independent parts.

    Weights that are not the counts make the mean less sure than the sum of the counts: the number
    is the effective one of Kish (1965), sum(w)^2 / sum(w^2 / n).

    Args:
        share: the mean. counts: of each part (or effective numbers), 1 or more.
        weights: of each part.
    """
    w = np.asarray(weights, dtype=np.float64)
    effective = float(w.sum() ** 2 / (w**2 / np.asarray(counts)).sum())
    return wilson(share * effective, effective, confidence)


def accuracy(pairs: Comparisons, confidence: float = 0.95) -> dict[str, Any]:
    """Accuracy and what stands beside it.

    Returns:
        n, prompts, right, ties, unscored, tie_rate, accuracy, accuracy_ci, effective_n,
        accuracy_ties_half (ties one half, unscored still wrong), accuracy_of_scored (None without
        any), length_baseline (accuracy of "the longer one wins", equal lengths wrong) and
        length_baseline_ci, shorter_baseline, over_length and over_length_ci (accuracy less the
        greater of these two, pair by pair), margin (mean over scored pairs, None without any).
    """
    n = len(pairs)
    scored = ~np.isnan(pairs.margin)
    right = pairs.margin > 0
    ties = int((pairs.margin == 0).sum())
    ci, effective = share_interval(right.astype(float), pairs.group, confidence)
    longer = pairs.longer > 0
    longer_ci, _ = share_interval(longer.astype(float), pairs.group, confidence)
    shorter = pairs.longer < 0
    rule = longer if longer.sum() >= shorter.sum() else shorter
    over, over_ci = difference_interval(right.astype(float) - rule, pairs.group, confidence)
    n_scored = int(scored.sum())
    return {
        "n": n,
        "prompts": len(np.unique(pairs.group)),
        "right": int(right.sum()),
        "ties": ties,
        "unscored": n - n_scored,
        "tie_rate": ties / n if n else 0.0,
        "accuracy": float(right.mean()) if n else 0.0,
        "accuracy_ci": ci,
        "effective_n": effective,
        "accuracy_ties_half": (int(right.sum()) + ties / 2) / n if n else 0.0,
        "accuracy_of_scored": int(right.sum()) / n_scored if n_scored else None,
        "length_baseline": float(longer.mean()) if n else 0.0,
        "length_baseline_ci": longer_ci,
        "shorter_baseline": float(shorter.mean()) if n else 0.0,
        "over_length": over,
        "over_length_ci": over_ci,
        "margin": float(pairs.margin[scored].mean()) if n_scored else None,
    }


def by_source(pairs: Comparisons, confidence: float = 0.95) -> dict[str, dict[str, Any]]:
    """`accuracy` of each source, in order of first appearance, and of `all`.

    A source that is itself called `all` stands under `source all`, or one more `source`.
    """
    names = list(dict.fromkeys(pairs.source.tolist()))
    instead = "source all"
    while instead in names:
        instead = f"source {instead}"
    by_name = {
        instead if name == "all" else name: accuracy(pairs.where(pairs.source == name), confidence)
        for name in names
    }
    return by_name | {"all": accuracy(pairs, confidence)}


def binned(
    values: Array, pairs: Comparisons, confidence: float = 0.95, bins: int = BINS
) -> list[dict[str, Any]]:
    """Accuracy in bins of equal numbers of pairs; equal values are never parted.

    Args:
        values: [P] what to bin by; pairs where it is NaN are left out.

    Returns:
        low, high (least and greatest value inside), mean, n, ties, accuracy, accuracy_ci,
        length_baseline of each bin that holds anything, in order.
    """
    keep = ~np.isnan(values)
    known, chosen = values[keep], pairs.where(keep)
    if not len(known):
        return []
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, known, side="left")
    filled = []
    for number in np.unique(place):
        inside = place == number
        part = chosen.where(inside)
        right = (part.margin > 0).astype(float)
        ci, _ = share_interval(right, part.group, confidence)
        filled.append(
            {
                "low": float(known[inside].min()),
                "high": float(known[inside].max()),
                "mean": float(known[inside].mean()),
                "n": len(part),
                "ties": int((part.margin == 0).sum()),
                "accuracy": float(right.mean()),
                "accuracy_ci": ci,
                "length_baseline": float((part.longer > 0).mean()),
            }
        )
    return filled


def by_length(pairs: Comparisons, confidence: float = 0.95) -> dict[str, Any]:
    """Accuracy by how much longer the better response is, in characters.

    Returns:
        bins: as `binned`. longer, shorter: `accuracy` where the better response is the longer or
        the shorter one; gap: the difference of the two. A model that reads length has a wide one.
    """
    longer = accuracy(pairs.where(pairs.longer > 0), confidence)
    shorter = accuracy(pairs.where(pairs.longer < 0), confidence)
    comparable = longer["n"] and shorter["n"]
    return {
        "bins": binned(pairs.longer, pairs, confidence),
        "longer": {key: longer[key] for key in _SIDE},
        "shorter": {key: shorter[key] for key in _SIDE},
        "gap": longer["accuracy"] - shorter["accuracy"] if comparable else None,
    }


def by_margin(pairs: Comparisons, confidence: float = 0.95) -> dict[str, Any]:
    """Accuracy by the size of the model's margin, and by the data's own where it has one."""
    return {
        "model": binned(np.abs(pairs.margin), pairs, confidence),
        "data": binned(pairs.stated, pairs, confidence),
    }
