"""Accuracy by category of a benchmark, and its two means: over pairs, and over categories."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from palate.evaluate.reward.accuracy import accuracy, weighted_interval
from palate.evaluate.reward.benchmark import Column
from palate.evaluate.reward.items import Comparisons

MICRO, MACRO = "micro", "macro"


def category_columns(
    pairs: Comparisons, published: Mapping[str, int], confidence: float
) -> tuple[list[Column], list[str]]:
    """A column for each category that is there and, where none lacks, `micro` (over all pairs) and
    `macro` (the mean of the categories); and what differs from the publication.

    Args:
        pairs: their `source` is the category. published: category -> its pairs.
    """
    columns: list[Column] = []
    notes: list[str] = []
    effective: list[float] = []
    for name, count in published.items():
        part = pairs.where(pairs.source == name)
        if not len(part):
            notes.append(f"lacks {name}")
            continue
        columns.append(accuracy_column(name, part, confidence))
        effective.append(accuracy(part, confidence)["effective_n"])
        if len(part) != count:
            notes.append(f"{name} has {len(part)} pairs, not {count}")
    if len(columns) == len(published):
        mean = float(np.mean([column.value for column in columns]))
        ci = weighted_interval(mean, effective, [1] * len(effective), confidence)
        micro = accuracy_column(MICRO, pairs, confidence)
        macro = Column(name=MACRO, value=mean, n=len(pairs), ci=ci, of="pairs", ties=micro.ties)
        columns += [micro, macro]
    return columns, notes


def accuracy_column(name: str, pairs: Comparisons, confidence: float) -> Column:
    """The accuracy of some pairs as a column; intervals count units, not pairs."""
    measured = accuracy(pairs, confidence)
    return Column(
        name=name,
        value=measured["accuracy"],
        n=measured["n"],
        ci=measured["accuracy_ci"],
        of="pairs",
        ties=measured["ties"],
    )


def value_of(columns: list[Column], name: str) -> float | None:
    """The value of the column of that name; None where there is none."""
    return next((column.value for column in columns if column.name == name), None)
