"""Prompts by their measured pass rates: those always or never solved are drawn less.

A group whose scores are all equal has no advantage to learn from; offline filters of this kind are
in arXiv:2504.03380 and arXiv:2503.14476 (which samples again instead).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.prompts.draws import check_count, check_state
from palate.data.stream.draw import draw_keys
from palate.errors import DataError
from palate.recipes.prompts import CurriculumRecipe

KIND = "pass rate"


class Curriculum:
    """Draws of indices of prompts by their pass rates.

    Prompts not drawn yet come first, in the order of a hash of the seed. A draw that they do not
    fill is filled from all others without repetition, each prompt by its weight: 1 where its pass
    rate lies within `min` and `max`, ends included, or is unknown; `outside` elsewhere. Of weighted
    prompts those with the largest u^(1/weight) are taken, u uniform in (0, 1) from a hash of the
    seed, the number of the draw and the prompt (Efraimidis and Spirakis 2006), so that a state is
    counts and rates alone.

    Raises:
        DataError: no prompt.
    """

    def __init__(self, n_prompts: int, recipe: CurriculumRecipe, seed: int) -> None:
        if n_prompts < 1:
            raise DataError("no prompt to draw")
        self.n_prompts = n_prompts
        self.recipe = recipe
        self.seed = seed
        self.drawn = 0
        self._draws = 0
        # By the hash, so that two seeds agree in nothing.
        self._first_order: list[int] = np.argsort(self._keys("first")).tolist()
        self._seen = 0
        self._passed: dict[int, list[float]] = {}

    def pass_rate(self, index: int) -> float | None:
        """The mean over a prompt's latest groups; None where there was none."""
        latest = self._passed.get(index)
        return math.fsum(latest) / len(latest) if latest else None

    def weight(self, index: int) -> float:
        """Of a prompt that was drawn before."""
        rate = self.pass_rate(index)
        inside = rate is None or self.recipe.min <= rate <= self.recipe.max
        return 1.0 if inside else self.recipe.outside

    def draw(self, n: int) -> list[int]:
        """See `PromptDraws`."""
        check_count(n, self.n_prompts)
        taken = self._first_order[self._seen : self._seen + n]
        if len(taken) < n:
            taken = [*taken, *self._weighted(n - len(taken))]
        self._seen = min(self.n_prompts, self._seen + n)
        self._draws += 1
        self.drawn += n
        return taken

    def record(self, index: int, passed: float) -> None:
        """See `PromptDraws`.

        Raises:
            ValueError: no share.
        """
        if not 0.0 <= passed <= 1.0:
            raise ValueError(f"a pass rate of {passed}")
        latest = self._passed.setdefault(index, [])
        latest.append(float(passed))
        del latest[: -self.recipe.memory]

    def figures(self) -> dict[str, float]:
        """For logs: the share of prompts drawn at least once, and of those with a rate the shares
        within, below and above the bounds."""
        rates = [rate for i in self._passed if (rate := self.pass_rate(i)) is not None]
        below = sum(rate < self.recipe.min for rate in rates)
        above = sum(rate > self.recipe.max for rate in rates)
        n = max(1, len(rates))
        return {
            "seen": self._seen / self.n_prompts,
            "within": (len(rates) - below - above) / n,
            "below": below / n,
            "above": above / n,
        }

    def state_dict(self) -> dict[str, Any]:
        """See `PromptDraws`."""
        return {
            "kind": KIND,
            "prompts": self.n_prompts,
            "drawn": self.drawn,
            "draws": self._draws,
            "seen": self._seen,
            "passed": {str(index): list(latest) for index, latest in self._passed.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `PromptDraws`."""
        check_state(state, KIND, self.n_prompts)
        self.drawn, self._draws, self._seen = state["drawn"], state["draws"], state["seen"]
        self._passed = {int(index): list(latest) for index, latest in state["passed"].items()}

    def _weighted(self, n: int) -> list[int]:
        """n of the prompts drawn before, the likeliest by their weights first."""
        candidates = np.array(self._first_order[: self._seen], dtype=np.int64)
        weights = np.array([self.weight(i) for i in candidates.tolist()])
        uniform = (self._keys(f"draw {self._draws}")[candidates] >> np.uint64(11)) + 0.5
        # log(u) / w orders as u^(1/w), and does not vanish for small weights.
        scores = np.log(uniform / 2.0**53) / weights
        places = np.argsort(-scores, kind="stable")[:n]
        return [int(i) for i in candidates[places]]

    def _keys(self, name: str) -> npt.NDArray[np.uint64]:
        """[N], a hash of each index, of the seed and of what it is for."""
        return draw_keys(np.arange(self.n_prompts), self.seed, f"curriculum|{name}")
