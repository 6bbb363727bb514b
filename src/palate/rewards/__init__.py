"""Rewards: anything that scores a response."""

from __future__ import annotations

from palate.data.scorer import Group, Score, Scorer, Span, Traits
from palate.rewards.baselines import Baselines
from palate.rewards.build import make_scorer
from palate.rewards.ensemble import Ensemble
from palate.rewards.function import FunctionScorer
from palate.rewards.groups import score_concurrently, score_groups
from palate.rewards.hybrid import Hybrid
from palate.rewards.lexicon import Lexicon
from palate.rewards.mixture import Gate, WeightedSum
from palate.rewards.rule import RuleScorer

__all__ = [
    "Baselines",
    "Ensemble",
    "FunctionScorer",
    "Gate",
    "Group",
    "Hybrid",
    "Lexicon",
    "RuleScorer",
    "Score",
    "Scorer",
    "Span",
    "Traits",
    "WeightedSum",
    "make_scorer",
    "score_concurrently",
    "score_groups",
]
