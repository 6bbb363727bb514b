"""Prompts by epochs: each once, none skipped or repeated, in a seeded or the files' order."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Literal

from palate.data.prompts.curriculum import Curriculum
from palate.data.prompts.draws import PromptDraws, check_count, check_state
from palate.errors import DataError
from palate.recipes.prompts import PromptsRecipe


def prompt_draws(recipe: PromptsRecipe, n_prompts: int, seed: int) -> PromptDraws:
    """The draws that a recipe asks for, by `order` or by `curriculum`."""
    if recipe.curriculum is not None:
        return Curriculum(n_prompts, recipe.curriculum, seed)
    return PromptStream(n_prompts, recipe.order, seed)


class PromptStream:
    """Indices of prompts, epoch after epoch.

    A draw that goes over the end of an epoch takes prompts of the next one that it does not hold
    yet; those that it does come at that epoch's end.

    Args:
        order: random: a permutation of its own for each epoch, of the seed and the epoch's number;
            file: rising.

    Raises:
        DataError: no prompt.
    """

    def __init__(self, n_prompts: int, order: Literal["random", "file"], seed: int) -> None:
        if n_prompts < 1:
            raise DataError("no prompt to draw")
        self.n_prompts = n_prompts
        self.order = order
        self.seed = seed
        self.drawn = 0
        self._later: list[int] = []
        self._epoch_order = self._order_of(0, self._later)

    @property
    def epoch(self) -> int:
        """Which epoch the next prompt is of, from 0."""
        return self.drawn // self.n_prompts

    def draw(self, n: int) -> list[int]:
        """See `PromptDraws`."""
        check_count(n, self.n_prompts)
        start = self.drawn % self.n_prompts
        taken = self._epoch_order[start : start + n]
        self.drawn += len(taken)
        if self.drawn and self.drawn % self.n_prompts == 0:
            self._later = [] if len(taken) == n else taken
            self._epoch_order = self._order_of(self.epoch, self._later)
        if len(taken) < n:
            rest = self._epoch_order[: n - len(taken)]
            self.drawn += len(rest)
            taken = [*taken, *rest]
        return taken

    def record(self, index: int, passed: float) -> None:
        """Nothing: the order does not depend on it."""

    def state_dict(self) -> dict[str, Any]:
        """See `PromptDraws`."""
        return {
            "kind": self.order,
            "prompts": self.n_prompts,
            "drawn": self.drawn,
            "later": list(self._later),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `PromptDraws`."""
        check_state(state, self.order, self.n_prompts)
        self.drawn = state["drawn"]
        self._later = list(state["later"])
        self._epoch_order = self._order_of(self.epoch, self._later)

    def _order_of(self, epoch: int, later: list[int]) -> list[int]:
        order = list(range(self.n_prompts))
        if self.order == "random":
            random.Random(f"{self.seed}|prompts|{epoch}").shuffle(order)
        last = set(later)
        return [i for i in order if i not in last] + [i for i in order if i in last]
