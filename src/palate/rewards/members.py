"""What is known of an ensemble's or mixture's members, and how wide the scores are they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from palate.rewards.spread import Spread, SpreadSums, dominance

Array = npt.NDArray[np.float64]
Rule = Literal["mean", "zscore", "median", "min", "uncertainty", "weighted"]
"""How an ensemble combines scores."""
MixtureRule = Literal["weighted_sum", "gate", "hybrid"]
"""How a mixture does, or a hybrid of a rule and a model."""
_SUMS = ("mean", "zscore", "weighted", "uncertainty", "weighted_sum")


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What is known of the members, one number each; None where nothing is.

    Attributes:
        standardised: the members enter as z-scores.
        by_group: by the mean and deviation of each group of responses.
    """

    names: tuple[str, ...]
    rule: Rule | MixtureRule
    standardised: bool
    means: tuple[float | None, ...]
    deviations: tuple[float | None, ...]
    weights: tuple[float | None, ...]
    by_group: bool = False

    def entering(self, scores: Array, groups: Sequence[int] | None = None) -> Array:
        """[M, N] the members' scores as they enter the rule: as they are, or as z-scores, times
        their weight in a weighted sum, and in a weighted mean times their weight over the mean one.

        Args:
            groups: [N] the group of each response; default: all of one.
        """
        entering = scores
        if self.by_group:
            group = np.zeros(scores.shape[1]) if groups is None else np.asarray(groups)
            entering = np.stack([zscores_by_group(row, group) for row in scores])
        elif self.standardised:
            means, deviations = (np.asarray(x, float) for x in (self.means, self.deviations))
            entering = (scores - means[:, None]) / deviations[:, None]
        if self.rule in ("weighted", "weighted_sum"):
            weights = np.asarray(self.weights, float)
            mean = weights.mean() if self.rule == "weighted" else 1.0
            entering = entering * (weights / mean)[:, None]
        return entering

    def described(self, raw: Sequence[Spread], entering: Sequence[Spread]) -> dict[str, Any]:
        """For JSON: the numbers, how wide the members' scores are, and who rules a mean."""
        sums = self.rule in _SUMS
        return {
            "rule": self.rule,
            "standardised": self.standardised,
            "raw": [asdict(spread) for spread in raw],
            "entering": [asdict(spread) for spread in entering],
            "means": list(self.means),
            "deviations": list(self.deviations),
            "weights": list(self.weights),
            "warning": dominance(entering, standardised=self.standardised) if sums else None,
        }


def zscores_by_group(scores: Array, group: npt.NDArray[Any]) -> Array:
    """[N] scores less the mean of their group, over its deviation (of the population).

    Where all scores of a group are equal they are 0; NaN where there is no score, and of a group
    that has one score, which has no deviation.
    """
    zscores = np.full(scores.shape, np.nan)
    for name in np.unique(group):
        places = np.flatnonzero((group == name) & np.isfinite(scores))
        if len(places) > 1:
            values = scores[places]
            # The deviation of equal numbers may come out a little above zero.
            equal = values.min() == values.max()
            zscores[places] = 0.0 if equal else (values - values.mean()) / values.std()
    return zscores


def as_arrays(
    names: Sequence[str], responses: Sequence[Mapping[str, float | None]]
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """[M, N] scores of members, NaN where there is none, and [M, N] whether each was asked."""
    scores = np.full((len(names), len(responses)), np.nan)
    asked = np.zeros(scores.shape, dtype=bool)
    for m, name in enumerate(names):
        for i, values in enumerate(responses):
            if name in values:
                asked[m, i] = True
                value = values[name]
                if value is not None:
                    scores[m, i] = value
    return scores, asked


class MemberSums:
    """Spreads of the members' scores, taken as they come: raw, and as they enter the rule."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers
        self._raw, self._entering = SpreadSums(numbers.names), SpreadSums(numbers.names)

    def add(self, part: Sequence[tuple[int, Mapping[str, float | None]]]) -> None:
        """Takes responses: the prompt that each is of, and the scores of the members that were
        asked, None where one has none. All responses to a prompt are in one part."""
        if not part:
            return
        groups = [group for group, _ in part]
        scores, asked = as_arrays(self.numbers.names, [values for _, values in part])
        self._raw.add(scores, groups, asked=asked)
        self._entering.add(self.numbers.entering(scores, groups), groups, asked=asked)

    def described(self) -> dict[str, Any]:
        """Of all that was taken; see `Numbers.described`."""
        return self.numbers.described(self._raw.spreads(), self._entering.spreads())
