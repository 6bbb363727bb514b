"""What one can know of the pairs without a model that reasons: length, and linear probes.

A probe sees the image as the mean of the frozen tower's features and the answer as one symbol, the
whole sentence or its telling word: a linear reward in every (feature, symbol). It is fitted by
ridge regression on the training pairs' differences, in the dual, since there are more products
than pairs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Of the ridge, as multiples of the mean of the kernel's diagonal; the best on held-out twins of
the training pairs is taken."""


@dataclass(frozen=True)
class ProbePair:
    """What a baseline sees of a pair.

    Attributes:
        image: [d] mean features. chosen, rejected: answers.
    """

    image: Array
    chosen: str
    rejected: str


def length_baseline(pairs: Sequence[ProbePair]) -> Array:
    """[n] 1 where the longer answer is the chosen one, 0.5 where they are as long."""
    difference = np.array([len(p.chosen) - len(p.rejected) for p in pairs])
    return np.asarray((np.sign(difference) + 1) / 2)


def majority_baseline(train: Sequence[ProbePair], test: Sequence[ProbePair]) -> Array:
    """[n] 1 where the answer that was chosen more often in training is the chosen one, 0.5 where
    both were as often, or never."""
    counts: dict[str, int] = {}
    for pair in train:
        counts[pair.chosen] = counts.get(pair.chosen, 0) + 1
        counts[pair.rejected] = counts.get(pair.rejected, 0) - 1
    difference = [counts.get(p.chosen, 0) - counts.get(p.rejected, 0) for p in test]
    return np.asarray((np.sign(difference) + 1) / 2)


def telling_word(answer: str) -> str:
    """Yes or no, or the word that another answer ends with: easy-VQA's own answer."""
    words: list[str] = re.findall(r"[a-z]+", answer.lower())
    return words[0] if words[0] in ("yes", "no") else words[-1]


def ridge_probe(
    train: Sequence[ProbePair],
    test: Sequence[ProbePair],
    symbol: Callable[[str], str] = str,
) -> Array:
    """[n] 1 where a linear probe on (image features x answer) is right, 0.5 where it cannot tell.

    Args:
        symbol: what the probe is told of an answer; default: all of it.
    """
    answers = {answer for p in (*train, *test) for answer in (p.chosen, p.rejected)}
    place = {told: i for i, told in enumerate(sorted(set(map(symbol, answers))))}

    def differences(pairs: Sequence[ProbePair]) -> Array:
        rows = np.zeros((len(pairs), len(place)))
        for row, pair in zip(rows, pairs, strict=True):
            row[place[symbol(pair.chosen)]] += 1
            row[place[symbol(pair.rejected)]] -= 1
        return rows

    images, seen = (np.stack([p.image for p in pairs]) for pairs in (train, test))
    mean, deviation = images.mean(0), images.std() + 1e-9
    # The constant lets answers have a weight of their own.
    a, b = (_with_one((x - mean) / deviation) for x in (images, seen))
    trained_on, tested_on = differences(train), differences(test)
    kernel = (a @ a.T) * (trained_on @ trained_on.T)
    across = (b @ a.T) * (tested_on @ trained_on.T)
    weights = _dual(kernel)
    return (np.sign(np.round(across @ weights, 12)) + 1) / 2


def _with_one(values: Array) -> Array:
    return np.concatenate([values, np.ones((len(values), 1))], axis=1)


def _dual(kernel: Array) -> Array:
    """Dual weights of the differences' ridge towards 1, its penalty chosen on the last fifth."""
    n = len(kernel)
    fitted = max(1, n - n // 5)
    scale = float(np.diag(kernel).mean()) + 1e-12

    def solve(size: int, penalty: float) -> Array:
        ridge = kernel[:size, :size] + penalty * scale * np.eye(size)
        return np.asarray(np.linalg.solve(ridge, np.ones(size)), dtype=np.float64)

    def right(penalty: float) -> float:
        if fitted == n:
            return 0.0
        return float((kernel[fitted:, :fitted] @ solve(fitted, penalty) > 0).mean())

    return solve(n, max(PENALTIES, key=right))
