"""Ratings of many policies from pairwise outcomes with ties: Davidson's model.

    P(i beats j) = p_i / D    P(tie) = nu sqrt(p_i p_j) / D    D = p_i + p_j + nu sqrt(p_i p_j)

with p = exp(rating) and ratings that sum to 0 (Davidson 1970, JASA 65:317); without ties it is
Bradley & Terry's (1952, Biometrika 39:324). The log-likelihood is that of a multinomial logit and
concave: Newton's method reaches its maximum, of many resamples at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from palate.errors import PalateError
from palate.intervals import Interval
from palate.study.resampled import FEWEST

ELO = 400 / math.log(10)
"""Points of an Elo scale, on which 400 are odds of ten to one, for each unit of rating."""
HALF_WINS = np.array([0.5, 0.5, 0.0])
RESAMPLES = 1000
ROUNDS = 100


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """Ratings and how sure they are.

    Attributes:
        names: [K] in the order given.
        ratings: [K] log-strengths, which sum to 0.
        intervals: K of them; each is of a rating against the mean of all.
        covariance: [K, K] of ratings, from the inverse information or over resamples.
        tie: nu; 0 where nothing was a tie.
        outcomes: counted.
        method: how intervals were made.
        regularised: whether half a win each way was added to every pair that met.
    """

    names: tuple[str, ...]
    ratings: np.ndarray
    intervals: tuple[Interval, ...]
    covariance: np.ndarray
    tie: float
    outcomes: int
    confidence: float
    method: str
    regularised: bool

    def elo(self, centre: float = 0.0) -> np.ndarray:
        """[K] ratings on a scale on which 400 points are odds of ten to one."""
        return centre + ELO * self.ratings

    def probabilities(self, first: str, second: str) -> tuple[float, float, float]:
        """Of `first` winning, a tie and `second` winning."""
        i, j = self.names.index(first), self.names.index(second)
        p, q = np.exp(self.ratings[[i, j]] - self.ratings[[i, j]].max())
        tie = self.tie * math.sqrt(p * q)
        total = p + q + tie
        return float(p / total), float(tie / total), float(q / total)

    def difference(self, first: str, second: str) -> tuple[float, Interval]:
        """Rating of `first` less that of `second` and its interval, by the covariance."""
        i, j = self.names.index(first), self.names.index(second)
        value = float(self.ratings[i] - self.ratings[j])
        c = self.covariance
        half = _z(self.confidence) * math.sqrt(max(0.0, c[i, i] + c[j, j] - 2 * c[i, j]))
        return value, (value - half, value + half)


def rate(
    first: Sequence[str],
    second: Sequence[str],
    scores: ArrayLike,
    *,
    items: Sequence[Any] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Ratings:
    """Rates policies by maximum likelihood.

    Where no finite maximum exists (a policy that never lost, or of two one that only won and tied),
    half a win each way is added to every pair that met, and the result says so: the data bound such
    a rating on one side only, and a table with a bounded rating and a wide interval is of more use
    than none. Ratings that have a maximum are left as they are.

    Intervals are Wald's from the inverse information, which takes outcomes for independent. Where
    one answer of a policy is compared with those of several they are not, and such intervals held
    88% in a simulation; with `items` they are percentile intervals over resampled items, which held
    93 to 94%. A resample may have no maximum: each gets the half wins.

    Args:
        first, second: [M] names of the policies compared.
        scores: [M] 1 where `first` won, 0 where `second` did, 0.5 for a tie.
        items: [M] what each outcome is about; ten different ones or more.
        seed: of the resampling.

    Raises:
        PalateError: scores that are none of the three; a policy against itself; groups of policies
            that never met, of which nothing says how one compares with the next.
    """
    names, pairs, cells = _outcomes(first, second, scores)
    size = len(names)
    counts = np.bincount(cells, minlength=3 * len(pairs)).reshape(1, -1, 3).astype(float)
    _check_connected(names, pairs)
    ties = bool(counts[..., 2].any())
    regularised = not has_maximum(counts[0], pairs, size, ties)
    if regularised:
        counts = counts + HALF_WINS
    ratings, tie, covariance = (x[0] for x in fit(counts, pairs, size, ties))
    method = "inverse information"
    half = _z(confidence) * np.sqrt(np.diag(covariance))
    ends = np.stack([ratings - half, ratings + half], 1)
    if items is not None:
        resampled = _resampled(cells, items, pairs, size, ties, seed)
        tail = (1 - confidence) / 2
        ends = np.quantile(resampled, [tail, 1 - tail], axis=0).T
        covariance = np.cov(resampled.T)
        method = f"percentile bootstrap over {len(set(items))} items"
    return Ratings(
        names=tuple(names),
        ratings=ratings,
        intervals=tuple((float(low), float(high)) for low, high in ends),
        covariance=covariance,
        tie=float(tie),
        outcomes=len(cells),
        confidence=confidence,
        method=method,
        regularised=regularised,
    )


def fit(
    counts: np.ndarray, pairs: np.ndarray, size: int, ties: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maximum likelihood of R tables at once.

    Args:
        counts: [R, P, 3] wins of a pair's first policy, wins of its second, ties.
        pairs: [P, 2] numbers of policies below `size`.
        ties: whether nu is estimated; it is 0 otherwise.

    Returns:
        [R, K] ratings that sum to 0, [R] nu, [R, K, K] covariance of ratings by the inverse
        information. A table without a finite maximum ends somewhere on the way to infinity.
    """
    design = _design(pairs, size, ties)
    width = design.shape[-1]
    centre = np.zeros((width, width))
    centre[:size, :size] = 1 / size
    total = counts.sum(-1, keepdims=True)
    at = np.zeros((len(counts), width))
    for _ in range(ROUNDS):
        gradient, information = _slopes(at, design, counts, total, ties)
        if np.abs(gradient).max() < 1e-9 * max(1.0, total.max()):
            break
        # The information knows nothing of the sum of ratings: held at 0 by `centre`.
        step = np.linalg.solve(information + centre + 1e-12 * np.eye(width), gradient[..., None])
        at = at + np.clip(step[..., 0], -2, 2)
    information = _slopes(at, design, counts, total, ties)[1]
    covariance = np.linalg.inv(information + centre + 1e-12 * np.eye(width)) - centre
    ratings = at[:, :size] - at[:, :size].mean(1, keepdims=True)
    nu = np.exp(at[:, size]) if ties else np.zeros(len(at))
    return ratings, nu, covariance[:, :size, :size]


def has_maximum(counts: np.ndarray, pairs: np.ndarray, size: int, ties: bool) -> bool:
    """Whether [P, 3] counts have a finite maximum of the likelihood.

    They have none where some direction makes no outcome that was seen less likely and one of them
    more (Albert & Anderson 1984, Biometrika 71:1): a linear programme.
    """
    design = _design(pairs, size, ties)
    rows = []
    for pair, seen in zip(design, counts, strict=True):
        options = range(3 if ties else 2)
        rows += [pair[k] - pair[m] for k in options if seen[k] > 0 for m in options if m != k]
    gains = np.array(rows)
    result = optimize.linprog(
        -gains.sum(0), A_ub=-gains, b_ub=np.zeros(len(gains)), bounds=(-1, 1), method="highs"
    )
    return bool(-result.fun < 1e-7)


def _design(pairs: np.ndarray, size: int, ties: bool) -> np.ndarray:
    """[P, 3, K + 1] weights of ratings and log nu in an outcome's log-odds; no ties: [P, 2, K]."""
    design = np.zeros((len(pairs), 3, size + 1))
    rows = np.arange(len(pairs))
    for k in (0, 1):
        design[rows, k, pairs[:, k]] = 1
        design[rows, 2, pairs[:, k]] = 0.5
    design[:, 2, size] = 1
    return design if ties else design[:, :2, :size]


def _slopes(
    at: np.ndarray, design: np.ndarray, counts: np.ndarray, total: np.ndarray, ties: bool
) -> tuple[np.ndarray, np.ndarray]:
    """[R, D] gradient and [R, D, D] information of the log-likelihood."""
    logits = np.einsum("pkd,rd->rpk", design, at)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    seen = counts if ties else counts[..., :2]
    gradient = np.einsum("rpk,pkd->rd", seen - total * p, design)
    mean = np.einsum("rpk,pkd->rpd", p, design)
    squares = np.einsum("rpk,pkd,pke->rde", total * p, design, design, optimize=True)
    return gradient, squares - np.einsum("rpd,rpe->rde", total * mean, mean, optimize=True)


def _outcomes(
    first: Sequence[str], second: Sequence[str], scores: ArrayLike
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, [P, 2] pairs, and of each outcome the number of its cell among [P, 3]."""
    values = np.asarray(scores, dtype=float)
    if not len(first) == len(second) == values.size or not values.size:
        raise PalateError(
            f"{len(first)} first and {len(second)} second policies and {values.size} scores: give "
            "as many of each, and some"
        )
    wrong = values[~np.isin(values, [0, 0.5, 1])]
    if len(wrong):
        raise PalateError(f"score {wrong[0]:g}: 1 is a win of the first, 0 a loss, 0.5 a tie")
    names = list(dict.fromkeys([*first, *second]))
    number = {name: i for i, name in enumerate(names)}
    pairs: dict[tuple[int, int], int] = {}
    cells = []
    for one_side, opposite, score in zip(first, second, values, strict=True):
        i, j = number[one_side], number[opposite]
        if i == j:
            raise PalateError(f"{one_side} is compared with itself")
        pair = pairs.setdefault((min(i, j), max(i, j)), len(pairs))
        won = score if i < j else 1 - score
        cells.append(3 * pair + {1.0: 0, 0.0: 1, 0.5: 2}[won])
    return names, np.array(list(pairs)), np.array(cells)


def _check_connected(names: list[str], pairs: np.ndarray) -> None:
    group = list(range(len(names)))
    for i, j in pairs:
        old, new = group[j], group[i]
        group = [new if g == old else g for g in group]
    if len(set(group)) > 1:
        apart = [n for n, g in zip(names, group, strict=True) if g != group[0]]
        raise PalateError(
            f"{', '.join(apart)} never met {names[0]}, nor what that met: rate them apart, or "
            "compare some"
        )


def _resampled(
    cells: np.ndarray,
    items: Sequence[Any],
    pairs: np.ndarray,
    size: int,
    ties: bool,
    seed: int,
) -> np.ndarray:
    """[R, K] ratings of tables made of items drawn with replacement."""
    number: dict[Any, int] = {}
    index = np.array([number.setdefault(item, len(number)) for item in items])
    if len(index) != len(cells) or len(number) < FEWEST:
        raise PalateError(
            f"{len(index)} items, {len(number)} different, of {len(cells)} outcomes: name one of "
            f"each, {FEWEST} different or more, or leave them out"
        )
    n, width = len(number), 3 * len(pairs)
    by_item = np.bincount(index * width + cells, minlength=n * width).reshape(n, width)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    counts = (weights @ by_item).reshape(RESAMPLES, -1, 3) + HALF_WINS
    return fit(counts, pairs, size, ties)[0]


def _z(confidence: float) -> float:
    return float(stats.norm.ppf(0.5 + confidence / 2))
