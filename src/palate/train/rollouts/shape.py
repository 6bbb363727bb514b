"""From scores to rewards: the scale, a limit, what a missing end and too many words cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from palate.recipes.rl import OverlongRecipe, RewardSignalRecipe
from palate.train.rollouts.responses import Response


def shape_rewards(responses: Sequence[Response], recipe: RewardSignalRecipe) -> None:
    """Sets the reward of every response that has a score.

    In this order: (score - mean) / deviation, held within +- clip; an end that is missing, by a
    value in its place or a penalty; the punishment of length.
    """
    for response in responses:
        if response.score is not None:
            response.reward = _reward(response, response.score, recipe)


def whiten_rewards(responses: Sequence[Response], recipe: RewardSignalRecipe) -> None:
    """Where the recipe asks for it: rewards of a whole rollout over their deviation, their mean
    kept.

    Rows whose end is missing take no part in mean and deviation, or one of -10 would move all
    others.
    """
    if not recipe.whiten:
        return
    scored = [r for r in responses if r.score is not None]
    whole = [r.reward for r in scored if r.finished or recipe.missing_eos is None]
    if len(whole) < 2:
        return
    mean, deviation = float(np.mean(whole)), float(np.std(whole, ddof=1))
    if min(whole) == max(whole):
        # No spread to divide by: that of rounding would blow up the rows outside it.
        return
    for response in scored:
        response.reward = (response.reward - mean) / (deviation + 1e-8) + mean


def _reward(response: Response, score: float, recipe: RewardSignalRecipe) -> float:
    reward = score
    if recipe.mean is not None:
        reward -= recipe.mean
    if recipe.deviation is not None:
        reward /= recipe.deviation
    if recipe.clip is not None:
        reward = min(max(reward, -recipe.clip), recipe.clip)
    missing = recipe.missing_eos
    if missing is not None and not response.finished:
        reward = missing.value if missing.value is not None else reward - (missing.penalty or 0.0)
    if recipe.overlong is not None:
        reward -= overlong_penalty(len(response), recipe.overlong)
    return reward


def overlong_penalty(tokens: int, recipe: OverlongRecipe) -> float:
    """0 up to `max_tokens - cache_tokens`, `penalty` from `max_tokens` on, a line between
    (arXiv:2503.14476, Eq. 13)."""
    free = recipe.max_tokens - recipe.cache_tokens
    if tokens <= free:
        return 0.0
    return recipe.penalty * min(1.0, (tokens - free) / max(1, recipe.cache_tokens))
