"""Scorers for tests, and short ways to ask one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from palate.data.scorer import Group, Score, Scorer, Traits, regrouped


class Numbers:
    """A scorer by `numbers(prompts, responses)`, one response a prompt; NaN is no score, for the
    reason `why`."""

    name = "numbers"
    traits = Traits()
    counts: ClassVar[Counter[str]] = Counter()
    why: str | None = None

    def numbers(self, prompts: list[Any], responses: list[Any]) -> list[float]:
        raise NotImplementedError

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        flat = [(group.prompt, response) for group in groups for response in group.responses]
        found = self.numbers([prompt for prompt, _ in flat], [response for _, response in flat])
        scores = [
            Score(None, self.why) if self.why and number != number else Score.of(number)
            for number in found
        ]
        return regrouped(scores, groups)


class Alike(Numbers):
    """Scores everything alike."""

    name = "alike"

    def numbers(self, prompts: list[Any], responses: list[Any]) -> list[float]:
        return [0.5] * len(responses)


def groups_of(prompts: Sequence[Any], responses: Sequence[Sequence[Any]]) -> list[Group]:
    """Several responses to each prompt."""
    return [Group(p, tuple(group)) for p, group in zip(prompts, responses, strict=True)]


def values(
    scorer: Scorer, prompts: Sequence[Any], responses: Sequence[Sequence[Any]]
) -> list[list[Any]]:
    """Values of several responses to each prompt."""
    scored = scorer.score(groups_of(prompts, responses))
    return [[score.value for score in scores] for scores in scored]


def flat_values(scorer: Scorer, prompts: Sequence[Any], responses: Sequence[Any]) -> list[Any]:
    """Values of one response to each prompt."""
    return [value for (value,) in values(scorer, prompts, [[own] for own in responses])]
