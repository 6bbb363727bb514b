"""What the held-out comparisons of a trained reward model come to, for its evaluation.json."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from palate.evaluate.preference import PairScore, summarise_pairs
from palate.evaluate.reward.accuracy import share_interval

CONFIDENCE = 0.95
Scored = Sequence[dict[str, Any]]
"""Of each item `id`, `source`, `prompt` (its ids), `rewards` and `heads`, and of each comparison
within it `margins`, `longer` (by how many tokens the better response is) and `head_margins`."""


def held_out(scored: Scored) -> dict[str, Any]:
    """As `palate.evaluate.preference.summarise_pairs`; empty where nothing is compared.

    Comparisons of one prompt, as of a ranked list, are not independent: where there are several,
    intervals are of the effective number (`share_interval`, beside it as `effective_n`), that of
    the margin is of sums by prompt, and there is no `p_value`.
    """
    rows = [
        (item["prompt"], _score(item, margin, longer))
        for item in scored
        for margin, longer in zip(item["margins"], item["longer"], strict=True)
    ]
    if not rows:
        return {}
    summary = summarise_pairs([score for _, score in rows], confidence=CONFIDENCE)
    for name in {score.source for _, score in rows}:
        _widen(summary[name], [row for row in rows if row[1].source == name])
    _widen(summary["all"], rows)
    return summary


def of_heads(scored: Scored) -> list[dict[str, float]]:
    """Held-out accuracy of each head (equal rewards half), and how far it is from their mean."""
    entries = []
    for k in range(len(scored[0]["heads"][0])):
        margins = [m for item in scored for m in item["head_margins"][k]]
        off = [
            head[k] - reward
            for item in scored
            for head, reward in zip(item["heads"], item["rewards"], strict=True)
        ]
        entries.append(
            {
                "accuracy": statistics.fmean((m > 0) + 0.5 * (m == 0) for m in margins),
                "margin": statistics.fmean(margins),
                "off_mean": statistics.fmean(map(abs, off)),
            }
        )
    return entries


def _score(item: dict[str, Any], margin: float, longer: float) -> PairScore:
    return PairScore(
        id=item["id"],
        source=item["source"],
        margin=margin,
        log_ratio_margin=None,
        longer=int(longer),
    )


def _widen(entry: dict[str, Any], rows: Sequence[tuple[Any, PairScore]]) -> None:
    """Puts the intervals of dependent comparisons in place."""
    numbers: dict[Any, int] = {}
    groups = np.asarray([numbers.setdefault(prompt, len(numbers)) for prompt, _ in rows])
    entry["prompts"] = len(numbers)
    if len(numbers) == len(rows):
        return
    margins = np.asarray([score.margin for _, score in rows])
    longer = np.asarray([score.longer for _, score in rows])
    right, by_length = ((x > 0) + 0.5 * (x == 0) for x in (margins, longer))
    entry["accuracy_ci"], entry["effective_n"] = share_interval(right, groups, CONFIDENCE)
    entry["length_baseline_ci"], _ = share_interval(by_length, groups, CONFIDENCE)
    entry["margin_ci"] = _grouped_mean_interval(margins, groups)
    entry.pop("p_value", None)


def _grouped_mean_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """t interval of the mean of values that are independent between groups alone.

    The variance is that of the groups' sums of residuals, as for a survey's clusters; one group
    has the interval (mean, mean).
    """
    mean = float(values.mean())
    sums = np.bincount(groups, weights=values - mean)
    n = len(sums)
    if n < 2:
        return mean, mean
    error = math.sqrt(n / (n - 1) * float(sums @ sums)) / len(values)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * error
    return mean - half, mean + half
