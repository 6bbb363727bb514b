"""Best-of-n of the base model: what choosing among its own continuations is worth, for no training.

The yardstick of online learning: of all ways to a higher reward it costs about the least KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from palate.demo.conclusion import Curve
from palate.evaluate.reward.best_of_n import best_of_n, kl_bound
from palate.evaluate.run import evaluation_document
from palate.evaluate.statistics import mean_interval
from palate.store.files import read_jsonl
from palate.store.records import Evaluation, write_record

NAME = "best of n"


def sizes(candidates: int) -> list[int]:
    """2, 4, 8 ... up to the number of candidates."""
    return [2**k for k in range(1, candidates.bit_length()) if 2**k <= candidates]


def read_ratings(file: Path, prompts: Sequence[str]) -> np.ndarray:
    """[P, N] ratings of the candidates of each prompt, which are given by their texts."""
    rows = {row["prompt"]: [c["rating"] for c in row["completions"]] for row in read_jsonl(file)}
    return np.array([rows[prompt] for prompt in prompts], dtype=np.float64)


def best_of_n_curve(ratings: np.ndarray) -> Curve:
    """Best-of-n as a frontier: exact over all draws of n of a prompt's candidates.

    Its KL is the bound log n - (n - 1) / n, reached where no two candidates are equal: it stands
    too far to the right, if anything.

    Args:
        ratings: [P, N].
    """
    chosen = sizes(ratings.shape[1])
    return Curve(
        name=NAME,
        kl=np.array([[kl_bound(n)] * len(ratings) for n in chosen]),
        reward=np.array([[best_of_n(row, row, n) for row in ratings] for n in chosen]),
        entropy=np.full(len(chosen), np.nan),
    )


def write_evaluation(folder: Path, curve: Curve, *, confidence: float) -> None:
    """The points as an evaluation.json, which the report draws with those of the policies."""
    policies = []
    for n, kl, rewards in zip(sizes(2 ** len(curve.kl)), curve.kl, curve.reward, strict=True):
        mean, ci = mean_interval(rewards.tolist(), confidence)
        samples = {"prompts": len(rewards), "reward": mean, "reward_ci": ci, "kl": float(kl[0])}
        policies.append(
            {"name": f"best of {n}", "label": f"best of {n} (KL: bound)", "loss": NAME}
            | {"samples": samples}
        )
    folder.mkdir(parents=True, exist_ok=True)
    document = evaluation_document(policies, confidence=confidence)
    write_record(folder / "evaluation.json", Evaluation.of(document))
