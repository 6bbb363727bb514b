"""Which prompts a rollout gets next; both kinds go on exactly where their saved state was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from palate.errors import DataError, RunError


class PromptDraws(Protocol):
    """What a rollout asks for its prompts.

    Attributes:
        drawn: prompts drawn so far.
    """

    drawn: int

    def draw(self, n: int) -> list[int]:
        """Indices of the next n prompts, no two equal: equal prompts would have equal samples.

        Raises:
            DataError: there are fewer prompts.
        """
        ...

    def record(self, index: int, passed: float) -> None:
        """Takes the share of a prompt's responses that passed, 0 to 1, once they are scored."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON values from which `load_state_dict` goes on with the same draws."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
            RunError: the state of other draws, or for another number of prompts.
        """
        ...


def check_count(n: int, n_prompts: int) -> None:
    """
    Raises:
        DataError: more prompts are asked for at once than there are.
    """
    if n > n_prompts:
        raise DataError(
            f"{n} prompts are asked for at once, and there are {n_prompts}: lower "
            "`rollout.batch_size_prompts`, or give more prompts"
        )


def check_state(state: Mapping[str, Any], kind: str, n_prompts: int) -> None:
    """
    Raises:
        RunError: not the state of such draws of so many prompts.
    """
    if state.get("kind") != kind or state.get("prompts") != n_prompts:
        raise RunError(
            f"the saved draws are of {state.get('prompts')} prompts by {state.get('kind')}, and "
            f"this run draws from {n_prompts} by {kind}"
        )
