"""Scores as files have them, and what they come to for a whole model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from palate.data.scorer import Score, Scorer, part_values
from palate.evaluate.reward.items import BenchmarkItem, Scores, compare
from palate.rewards.combined import Combined
from palate.rewards.members import MemberSums

Numbers = list[list[float | None]]
"""Scores of the responses to each prompt; None where there is none."""


def member_spread(scorer: Scorer, scored: Sequence[Sequence[Score]]) -> dict[str, Any] | None:
    """Spread of the members of an ensemble or a mixture over all items; None of other scorers."""
    if not isinstance(scorer, Combined):
        return None
    sums = MemberSums(scorer.numbers)
    sums.add([(i, part_values(score)) for i, scores in enumerate(scored) for score in scores])
    return sums.described()


def to_json(scores: Scores) -> Numbers:
    return [[None if math.isnan(score) else score for score in of] for of in scores]


def from_json(numbers: Numbers) -> list[list[float]]:
    return [[math.nan if number is None else number for number in of] for of in numbers]


def distribution(scores: Any) -> dict[str, Any]:
    """Distribution of all scores of a model."""
    flat = np.asarray(
        [score for benchmark in scores for values in benchmark for score in values],
        dtype=np.float64,
    )
    real = flat[~np.isnan(flat)]
    described: dict[str, Any] = {"n": len(flat), "unscored": len(flat) - len(real)}
    if len(real):
        described |= {
            "mean": float(real.mean()),
            "deviation": float(real.std()),
            "min": float(real.min()),
            "max": float(real.max()),
        }
    return described


def tied(
    items: Sequence[BenchmarkItem], scores: Sequence[Sequence[float]]
) -> dict[str, Any] | None:
    """What the model says of pairs that the annotator called ties, beside the others."""
    tied = [abs(s[0] - s[1]) for item, s in zip(items, scores, strict=True) if item.tie]
    tied = [value for value in tied if not math.isnan(value)]
    others = np.abs(compare(items, scores).margin)
    others = others[~np.isnan(others)]
    if not tied or not len(others):
        return None
    return {
        "n": len(tied),
        "margin": float(np.mean(tied)),
        "margin_of_others": float(others.mean()),
    }
