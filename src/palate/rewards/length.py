"""The length of a response as its score: the baseline of every reward model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Traits
from palate.rewards.texts import response_text


class Length:
    """Characters of a response, or less its characters where the shorter is to win."""

    traits = Traits(independent=True, modalities=TEXT_AND_IMAGES, reads_prompt=False)

    def __init__(self, prefer: Literal["longer", "shorter"] = "longer") -> None:
        self.name = f"{prefer} wins"
        self.counts: Counter[str] = Counter()
        self._sign = 1.0 if prefer == "longer" else -1.0

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """The prompts are not looked at."""
        return [
            [Score(self._sign * len(response_text(response))) for response in group.responses]
            for group in groups
        ]
