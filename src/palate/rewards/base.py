"""What scores a response: one protocol for lexica, classifiers and models."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Reward(Protocol):
    """Anything that gives a number to a response.

    Attributes:
        name: short, for reports.
    """

    name: str

    def score(self, prompts: list[str], responses: list[str]) -> list[float]:
        """One finite score a response, higher is better, in the order given.

        Args:
            prompts: one text a response.
            responses: the responses, without their prompts.
        """
        ...


def check_lengths(prompts: list[str], responses: list[str]) -> None:
    """Asserts that there is one prompt a response."""
    assert len(prompts) == len(responses), (len(prompts), len(responses))
