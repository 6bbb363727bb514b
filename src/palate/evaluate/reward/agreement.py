"""How far models agree with one another, whoever is right."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from palate.evaluate.reward.items import Array, Comparisons, Scores


def agreement(
    pairs: Mapping[str, Comparisons], scores: Mapping[str, Scores]
) -> list[dict[str, Any]]:
    """Every two models on the same comparisons.

    Args:
        pairs: of each model, the comparisons of the same items. scores: of each model.

    Returns:
        a, b, n (pairs both decide), verdicts (share with the same winner), both_wrong (share of
        the pairs that either gets wrong which both do), kendall and spearman of the margins over
        pairs, kendall_within (mean over prompts with three responses or more of tau-b of their
        scores); None where there is nothing to compute it from.
    """
    return [
        {"a": a, "b": b} | _two(pairs[a], pairs[b], scores[a], scores[b])
        for a, b in combinations(pairs, 2)
    ]


def _two(a: Comparisons, b: Comparisons, scores_a: Scores, scores_b: Scores) -> dict[str, Any]:
    scored = ~(np.isnan(a.margin) | np.isnan(b.margin))
    x, y = a.margin[scored], b.margin[scored]
    decided = (x != 0) & (y != 0)
    wrong_a, wrong_b = x <= 0, y <= 0
    either = int((wrong_a | wrong_b).sum())
    n = int(decided.sum())
    return {
        "n": n,
        "verdicts": float((np.sign(x) == np.sign(y))[decided].mean()) if n else None,
        "both_wrong": int((wrong_a & wrong_b).sum()) / either if either else None,
        "kendall": _correlation(stats.kendalltau, x, y),
        "spearman": _correlation(stats.spearmanr, x, y),
        "kendall_within": _within(scores_a, scores_b),
    }


def _within(scores_a: Scores, scores_b: Scores) -> float | None:
    taus = []
    for a, b in zip(scores_a, scores_b, strict=True):
        x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        keep = ~(np.isnan(x) | np.isnan(y))
        if keep.sum() >= 3:
            tau = _correlation(stats.kendalltau, x[keep], y[keep])
            if tau is not None:
                taus.append(tau)
    return float(np.mean(taus)) if taus else None


def _correlation(function: Any, x: Array | Sequence[float], y: Array | Sequence[float]) -> Any:
    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        value = float(function(x, y).statistic)
    return None if np.isnan(value) else value
