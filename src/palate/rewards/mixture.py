"""Several scorers as one by weights of the user's choice, or one before the other.

With s_m the score of member m, w_m its weight, and z_m = (s_m - mean_m) / deviation_m by saved
statistics, or by those of the responses that are scored together:

    weighted sum   sum w_m s_m, or sum w_m z_m
    gate           s_1 where s_1 < threshold, else s_2, which is asked about nothing else
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from palate.data.scorer import NOT_FINITE, Group, Score, Scorer
from palate.rewards.combined import Combined, Member, Parts, score_of
from palate.rewards.ensemble import check_scale
from palate.rewards.members import Numbers, as_arrays

ZScores = Literal["none", "given", "group"]
NO_STATISTICS = "the only response to its prompt with a score: no statistics of its group"


class WeightedSum(Combined):
    """The weighted sum of the members' scores; no value where a member has none.

    Args:
        members: with a weight each, of either sign.
        zscores: none: of scores as they are. given: of z-scores by each member's mean and
            deviation. group: by those of its scores of the responses to one prompt in one call;
            equal scores are 0 each, and the sum means something within its group alone.

    Raises:
        ValueError: a member without a finite weight, or without what z-scores need.
    """

    def __init__(
        self, members: Sequence[Member], *, zscores: ZScores = "none", name: str | None = None
    ) -> None:
        super().__init__(members, name or f"weighted sum of {len(members)}")
        self.zscores = zscores
        self.by_group = zscores == "group"
        for member in members:
            if member.weight is None or not math.isfinite(member.weight):
                raise ValueError(f"{member.scorer.name}: weight {member.weight}")
            if zscores == "given":
                check_scale(member)

    @property
    def numbers(self) -> Numbers:
        """What is known of the members."""
        return self._numbers("weighted_sum", standardised=self.zscores != "none")

    def merged(
        self, groups: Sequence[Group], parts: Sequence[Sequence[Parts]]
    ) -> list[list[Score]]:
        """See the module's head."""
        return [self._sums(group) for group in parts]

    def _sums(self, group: Sequence[Parts]) -> list[Score]:
        values = [{name: part.value for name, part in of_response.items()} for of_response in group]
        scores, _ = as_arrays(self.names, values)
        sums = self.numbers.entering(scores).sum(axis=0).tolist()
        otherwise = NO_STATISTICS if self.by_group else NOT_FINITE
        return [score_of(value, parts, otherwise) for value, parts in zip(sums, group, strict=True)]


class Gate(Combined):
    """A scorer before another one: what it scores below a threshold is not put to the other.

    The score is the gate's where that is below the threshold, and the other scorer's elsewhere,
    with its text and spans; a response without a score by the gate has none.

    Args:
        gate: asked first. threshold: it lets through what it scores so or higher.
    """

    def __init__(
        self, gate: Scorer, scorer: Scorer, *, threshold: float = 0.5, name: str | None = None
    ) -> None:
        members = [Member(scorer=gate), Member(scorer=scorer)]
        super().__init__(members, name or f"{scorer.name} behind {gate.name}")
        self.threshold = threshold

    @property
    def numbers(self) -> Numbers:
        """The names alone: nothing else is known, or needed."""
        return self._numbers("gate", standardised=False)

    def asks(self, number: int, before: Parts) -> bool:
        """The second one is asked about what the first lets through."""
        value = before[self.names[0]].value if number else math.inf
        return value is not None and value >= self.threshold

    def merged(
        self, groups: Sequence[Group], parts: Sequence[Sequence[Parts]]
    ) -> list[list[Score]]:
        """The last score that there is."""
        return [[replace(list(p.values())[-1], parts=p) for p in group] for group in parts]
