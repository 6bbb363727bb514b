"""A rule first, then a model: BaseReward's reward for policies (arXiv:2509.16127, section 5.4).

With s the model's score of a wrong response and mu the mean of its scores of the frozen policy's
responses to the same prompt:

    right                1
    wrong, corrected     cap * sigmoid(s - mu)        cap 0.5 by default
    wrong, paper         sigmoid(s)

A Bradley-Terry score has an offset of its own for every prompt. Where it is large, sigmoid(s) is
almost 1 for every response, and being right is worth nothing; centred and capped, a wrong response
that is as good as the frozen policy's gets cap / 2, and none more than cap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from palate.data.images import ImageError
from palate.data.scorer import Group, Score, Scorer
from palate.rewards.baselines import Baselines
from palate.rewards.columns import NO_COLUMN
from palate.rewards.combined import Combined, Member, Parts, joined_text
from palate.rewards.members import Numbers

NO_BASELINE = "no baseline of its prompt"


class Hybrid(Combined):
    """See the module's head. The model is asked about what the rule calls wrong, and nothing else.

    A response without a score by the rule has none, for its reason, and neither has a wrong one to
    a prompt without a baseline. The baseline is a part of the scores that it is used in.

    Args:
        rule: scores below `threshold` are wrong.
        model: of whose scores a wrong response gets its own.
        baselines: mu of each prompt: a column of its row, or a table; None is the paper's form.
        cap: most that a wrong response can have.
    """

    def __init__(
        self,
        rule: Scorer,
        model: Scorer,
        *,
        baselines: str | Baselines | None,
        cap: float = 0.5,
        threshold: float = 0.5,
        name: str | None = None,
    ) -> None:
        members = [Member(scorer=rule), Member(scorer=model)]
        super().__init__(members, name or f"{rule.name}, else {model.name}")
        if not 0 < cap <= 1:
            raise ValueError(f"cap {cap}: not above 0 and at most 1")
        self.baselines = baselines
        self.cap = cap
        self.threshold = threshold

    @property
    def numbers(self) -> Numbers:
        """The names alone."""
        return self._numbers("hybrid", standardised=False)

    def asks(self, number: int, before: Parts) -> bool:
        """The model is asked about what is wrong by the rule."""
        if number == 0:
            return True
        value = before[self.names[0]].value
        return value is not None and value < self.threshold

    def merged(
        self, groups: Sequence[Group], parts: Sequence[Sequence[Parts]]
    ) -> list[list[Score]]:
        """See the module's head."""
        return [
            [self._score(group, of_response) for of_response in of_group]
            for group, of_group in zip(groups, parts, strict=True)
        ]

    def _score(self, group: Group, parts: Parts) -> Score:
        text = joined_text(parts)
        if self.names[1] not in parts:
            rule = parts[self.names[0]]
            right = None if rule.value is None else 1.0
            return Score(right, rule.reason, text, parts, rule.spans)
        model = parts[self.names[1]]
        if model.value is None:
            return Score(None, model.reason, text, parts)
        centre = self._centre(group)
        if isinstance(centre, str):
            return Score(None, centre, text, parts)
        if self.baselines is not None:
            parts = {**parts, "baseline": Score(centre)}
        return Score(self.cap * _sigmoid(model.value - centre), None, text, parts)

    def _centre(self, group: Group) -> float | str:
        """mu of a prompt; or why there is none."""
        if self.baselines is None:
            return 0.0
        if isinstance(self.baselines, Baselines):
            try:
                mean = self.baselines.mean(group)
            except ImageError as error:
                return error.reason
            return NO_BASELINE if mean is None else mean
        value = group.columns.get(self.baselines)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            return NO_COLUMN.format(self.baselines)
        return float(value)


def _sigmoid(x: float) -> float:
    # Of either sign without overflow.
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
