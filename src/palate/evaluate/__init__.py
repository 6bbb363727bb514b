"""Evaluation: held-out preferences, the reward against KL frontier, diversity, samples.

The functions on pairs and samples take policies and tensors, no recipes; `evaluate` is the verb.
"""

from __future__ import annotations

from palate.evaluate.diversity import distinct, diversity, self_bleu
from palate.evaluate.frontier import SampleStats, frontier_point, sample_stats
from palate.evaluate.preference import PairScore, evaluate_pairs, score_pairs, summarise_pairs
from palate.evaluate.result import EvalResult
from palate.evaluate.run import evaluate, evaluation_document
from palate.evaluate.sample import sample
from palate.evaluate.statistics import mean_interval
from palate.intervals import wilson

__all__ = [
    "EvalResult",
    "PairScore",
    "SampleStats",
    "distinct",
    "diversity",
    "evaluate",
    "evaluate_pairs",
    "evaluation_document",
    "frontier_point",
    "mean_interval",
    "sample",
    "sample_stats",
    "score_pairs",
    "self_bleu",
    "summarise_pairs",
    "wilson",
]
