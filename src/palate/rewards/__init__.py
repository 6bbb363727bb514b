"""Rewards: anything that scores a response."""

from __future__ import annotations

from palate.recipes.schema import ClassifierReward, LexiconReward
from palate.rewards.base import Reward
from palate.rewards.classifier import Classifier
from palate.rewards.lexicon import Lexicon

__all__ = ["Classifier", "Lexicon", "Reward", "build_reward"]


def build_reward(recipe: LexiconReward | ClassifierReward) -> Reward:
    """The reward that a recipe names.

    Raises:
        PalateError: something it needs is missing.
    """
    if isinstance(recipe, LexiconReward):
        return Lexicon()
    return Classifier(recipe.path, label=recipe.label)
