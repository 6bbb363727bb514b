"""Frontiers read at the same KL: the range that all were measured in, and the reward there."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from palate.intervals import Interval


def common_range(kls: Iterable[np.ndarray]) -> Interval | None:
    """KL range that lies between measured points of every frontier; None where none does.

    Args:
        kls: of each frontier, the KL of its points in any order.
    """
    ends = [(float(kl.min()), float(kl.max())) for kl in kls]
    low, high = max(low for low, _ in ends), min(high for _, high in ends)
    return (low, high) if low < high else None


def reward_at(kl: np.ndarray, reward: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[G, ...] reward at each KL of `at`, on straight lines through the points in order of KL.

    Beyond the outermost points it stays level.

    Args:
        kl: [C] of a frontier's points.
        reward: [C, ...] of the same points, of each item or their mean.
        at: [G].
    """
    order = np.argsort(kl, kind="stable")
    columns = reward[order].reshape(len(kl), -1).T
    lines = np.stack([np.interp(at, kl[order], column) for column in columns], 1)
    return lines.reshape(len(at), *reward.shape[1:])
