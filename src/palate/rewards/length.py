"""The length of a response as its score: the baseline of every reward model."""

from __future__ import annotations

from typing import Literal

from palate.data.schema import Content
from palate.rewards.base import check_lengths, response_text


class Length:
    """Characters of a response, or less its characters where the shorter is to win."""

    reads_images = independent = True

    def __init__(self, prefer: Literal["longer", "shorter"] = "longer") -> None:
        self.name = f"{prefer} wins"
        self._sign = 1.0 if prefer == "longer" else -1.0

    def score(self, prompts: list[Content], responses: list[Content | str]) -> list[float]:
        """One length a response; the prompts are not looked at."""
        check_lengths(prompts, responses)
        return [self._sign * len(response_text(response)) for response in responses]
