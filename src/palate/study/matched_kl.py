"""Variants compared at the same distance from the reference, rather than wherever they ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from palate.errors import PalateError
from palate.evaluate.matched_kl import common_range, reward_at
from palate.intervals import Interval

GRID = 21
"""Points of the common KL range at which frontiers are read."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Checkpoints of one training run.

    Attributes:
        kl: [C] KL of a checkpoint from the reference, nats.
        reward: [C, N] of each item, or [C] means.
    """

    kl: np.ndarray
    reward: np.ndarray


@dataclass(frozen=True, kw_only=True)
class MatchedKL:
    """Rewards of variants read from their frontiers at the same KL.

    Attributes:
        span: range of KL, nats, that every run of every variant was measured in.
        at: [G] KL, from one end of it to the other.
        rewards: of each variant, [S, G, N] by seed, KL and item; N is 1 of means.
    """

    span: Interval
    at: np.ndarray
    rewards: dict[str, np.ndarray]

    def outcomes(self, variant: str) -> np.ndarray:
        """[S, N] mean reward over the range, as `compare` takes it."""
        return np.asarray(self.rewards[variant].mean(1))


def at_matched_kl(frontiers: Mapping[str, Sequence[Frontier]], *, points: int = GRID) -> MatchedKL:
    """Reads the frontiers of every seed at `points` KL values of the range that all cover.

    By straight lines between a run's own checkpoints, never beyond them. The uncertainty of the KL
    estimates themselves is not carried on, other than as a part of what seeds differ by.

    Args:
        frontiers: of each variant, one of each seed; compared variants list theirs in one order.

    Raises:
        PalateError: no range that all runs cover, or frontiers whose arrays do not match.
    """
    for name, runs in frontiers.items():
        if not runs or any(len(f.kl) != len(f.reward) or not len(f.kl) for f in runs):
            raise PalateError(f"{name}: give a frontier of each seed, with one reward for each KL")
    span = common_range(f.kl for runs in frontiers.values() for f in runs)
    if span is None:
        measured = ", ".join(
            f"{name} from {max(f.kl.min() for f in runs):.3g} to "
            f"{min(f.kl.max() for f in runs):.3g}"
            for name, runs in frontiers.items()
        )
        raise PalateError(
            "at matched KL nothing can be compared: no range lies between measured points of every "
            f"run (all seeds of {measured} nats)"
        )
    at = np.linspace(*span, points)
    rewards = {
        name: np.stack([reward_at(f.kl, f.reward, at).reshape(points, -1) for f in runs])
        for name, runs in frontiers.items()
    }
    return MatchedKL(span=span, at=at, rewards=rewards)
