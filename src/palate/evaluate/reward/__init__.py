"""Evaluation of reward models: benchmarks, calibration, length, best-of-n, agreement, robustness.

Everything here takes scores, whoever gave them; `evaluate_rewards` is the verb.
"""

from __future__ import annotations

from palate.evaluate.reward.accuracy import accuracy, by_length, by_margin, by_source
from palate.evaluate.reward.agreement import agreement
from palate.evaluate.reward.best_of_n import best_of_n, curve, kl_bound
from palate.evaluate.reward.calibration import calibration, fit_temperature
from palate.evaluate.reward.items import BenchmarkItem, Comparisons, compare
from palate.evaluate.reward.robustness import robustness
from palate.evaluate.reward.run import evaluate_rewards
from palate.evaluate.reward.score import score_files

__all__ = [
    "BenchmarkItem",
    "Comparisons",
    "accuracy",
    "agreement",
    "best_of_n",
    "by_length",
    "by_margin",
    "by_source",
    "calibration",
    "compare",
    "curve",
    "evaluate_rewards",
    "fit_temperature",
    "kl_bound",
    "robustness",
    "score_files",
]
