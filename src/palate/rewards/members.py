"""What an ensemble's rule knows of its members, and how wide the scores are that they give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from palate.rewards.spread import Spread, SpreadSums, dominance, spread_entry

Array = npt.NDArray[np.float64]
Rule = Literal["mean", "zscore", "median", "min", "uncertainty", "weighted"]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What an ensemble's rule knows of its members, one number each; None where it does not.

    Attributes:
        standardised: the members enter as z-scores.
    """

    names: tuple[str, ...]
    rule: Rule
    standardised: bool
    means: tuple[float | None, ...]
    deviations: tuple[float | None, ...]
    weights: tuple[float | None, ...]

    def entering(self, scores: Array) -> Array:
        """[M, N] the members' scores as they enter the rule: as they are, or as z-scores; in a
        weighted mean times their weight over the mean weight."""
        found = scores
        if self.standardised:
            means, deviations = (np.asarray(x, float) for x in (self.means, self.deviations))
            found = (found - means[:, None]) / deviations[:, None]
        if self.rule == "weighted":
            weights = np.asarray(self.weights, float)
            found = found * (weights / weights.mean())[:, None]
        return found

    def described(self, raw: Sequence[Spread], entering: Sequence[Spread]) -> dict[str, Any]:
        """For JSON: the numbers, how wide the members' scores are, and who rules a mean."""
        means = self.rule in ("mean", "zscore", "weighted", "uncertainty")
        return {
            "rule": self.rule,
            "standardised": self.standardised,
            "raw": [spread_entry(spread) for spread in raw],
            "entering": [spread_entry(spread) for spread in entering],
            "means": list(self.means),
            "deviations": list(self.deviations),
            "weights": list(self.weights),
            "warning": dominance(entering, standardised=self.standardised) if means else None,
        }


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
        scores = np.full((len(self.numbers.names), len(part)), np.nan)
        asked = np.zeros(scores.shape, dtype=bool)
        for m, name in enumerate(self.numbers.names):
            for i, (_, members) in enumerate(part):
                if name in members:
                    asked[m, i] = True
                    score = members[name]
                    scores[m, i] = math.nan if score is None else score
        groups = [group for group, _ in part]
        self._raw.add(scores, groups, asked=asked)
        self._entering.add(self.numbers.entering(scores), groups, asked=asked)

    def described(self) -> dict[str, Any]:
        """Of all that was taken; see `Numbers.described`."""
        return self.numbers.described(self._raw.found(), self._entering.found())
