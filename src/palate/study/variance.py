"""Which aspect explains how much of the variance between runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from palate.errors import PalateError
from palate.intervals import Interval

SEEDS = "seeds"
DRAWS = 4000
PRECISION = 1e-4
"""Of a noncentrality, relative."""
MOST = 1e9
"""Noncentrality beyond which a share is 1 for every purpose."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A term's share of the variance between runs.

    Attributes:
        term: an aspect, an interaction ("data x algorithm"), or "seeds", which is what runs with
            the same levels differ by.
        share: 0 to 1.
        interval: None where runs of the same levels do not differ at all.
        df: degrees of freedom.
        p_value: of the F test that the term makes no difference; None of seeds.
        clipped: whether the estimate was below 0 and is 0 for it.
    """

    term: str
    share: float
    interval: Interval | None
    df: int
    p_value: float | None
    clipped: bool


@dataclass(frozen=True, kw_only=True)
class VarianceShares:
    """Shares of all terms, which sum to 1; the last one is that of seeds.

    Attributes:
        not_identified: interactions of which the design says nothing, since no or too few runs
            vary their aspects together; what they add is in none of the shares.
    """

    shares: tuple[Share, ...]
    not_identified: tuple[str, ...]
    runs: int
    confidence: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the table must know, in sentences."""
        lines = ["Shares are of the variance between these levels, each weighed by its runs."]
        clipped = [s.term for s in self.shares if s.clipped]
        if clipped:
            lines.append(f"Estimated below 0 and shown as 0: {', '.join(clipped)}.")
        if self.not_identified:
            lines.append(
                f"This design says nothing of {', '.join(self.not_identified)}: an aspect's share "
                "is what it does at the levels of the others that it was run with."
            )
        return tuple(lines)


def variance_shares(
    outcomes: ArrayLike,
    levels: Mapping[str, Sequence[Any]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> VarianceShares:
    """Share of the variance between runs of each aspect, of their interactions and of seeds.

    A term's sum of squares is of type II: what it adds to all terms that do not contain it, by
    least squares. With M runs, MS_e the mean square within equal levels and V = max(0, SS - df
    MS_e) / M, a share is V over the sum of all V and MS_e. In balanced grids without a clipped term
    that is omega squared (Hays 1963).

    An interval inverts the estimate: it holds the shares under which an estimate as high, or as
    low, as the one here has a probability of at least (1 - confidence) / 2, by normal draws in
    which the shares of the other terms relative to seeds are as estimated. Of a term without any
    effect such an interval begins at 0 and holds 97.5% of 95%.

    Args:
        outcomes: [M] of runs: a mean over items, say. Items are not resampled.
        levels: of each aspect, [M] levels of the runs. Two levels or more.
        seed: of the draws.

    Raises:
        PalateError: no two runs with the same levels, an aspect with one level, equal outcomes.
    """
    y = np.asarray(outcomes, dtype=float)
    codes = {aspect: _codes(aspect, values, len(y)) for aspect, values in levels.items()}
    if not codes or y.ndim != 1 or not np.isfinite(y).all():
        raise PalateError("variance shares need an aspect and one finite outcome a run")
    if not np.ptp(y):
        raise PalateError(f"all {len(y)} runs have the outcome {y[0]:g}: no variance to share out")
    bases, missing = _terms(codes)
    cells = _joint(list(codes.values()))
    counts = np.bincount(cells)
    error_df = len(y) - len(counts)
    if not error_df:
        raise PalateError(
            f"{len(y)} runs, no two with the same levels: seeds cannot be told from interactions; "
            "train one variant with two seeds or more"
        )
    within = float(((y - (np.bincount(cells, y) / counts)[cells]) ** 2).sum())
    error = within / error_df if within > 1e-20 * float(y @ y) else 0.0
    dfs = np.array([basis.shape[1] for basis in bases.values()])
    squares = np.array([float(((basis.T @ y) ** 2).sum()) for basis in bases.values()])
    raw = (squares - dfs * error) / len(y)
    parts = np.maximum(raw, 0)
    total = parts.sum() + error
    intervals: Sequence[Interval | None] = [None] * (len(bases) + 1)
    if error:
        intervals = _intervals(y, list(bases.values()), error, error_df, confidence, seed)
    shares = [
        Share(
            term=term,
            share=float(parts[k] / total),
            interval=intervals[k],
            df=int(dfs[k]),
            p_value=float(stats.f.sf(squares[k] / dfs[k] / error, dfs[k], error_df))
            if error
            else 0.0,
            clipped=bool(raw[k] < 0),
        )
        for k, term in enumerate(bases)
    ]
    shares.append(
        Share(
            term=SEEDS,
            share=float(error / total),
            interval=intervals[-1],
            df=error_df,
            p_value=None,
            clipped=False,
        )
    )
    return VarianceShares(
        shares=tuple(shares),
        not_identified=tuple(missing),
        runs=len(y),
        confidence=confidence,
    )


def _intervals(
    y: np.ndarray,
    bases: Sequence[np.ndarray],
    error: float,
    error_df: int,
    confidence: float,
    seed: int,
) -> list[Interval]:
    """Intervals of the shares of K terms and of seeds, as `variance_shares` describes.

    Args:
        y: [M] outcomes.
        bases: K orthonormal [M, df] bases of what a term adds.
        error: mean square within equal levels, of `error_df` degrees of freedom, above 0.
    """
    runs, tail = len(y), (1 - confidence) / 2
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((DRAWS, runs))
    errors = rng.chisquare(error_df, DRAWS) / error_df
    dfs = np.array([basis.shape[1] for basis in bases])
    squares = np.empty(len(bases))
    central, along = np.empty((2, len(bases), DRAWS))
    for k, basis in enumerate(bases):
        # Where terms overlap, as in unbalanced grids, one noise makes their sums of squares.
        drawn, effect = noise @ basis, basis.T @ y
        squares[k] = effect @ effect / error
        central[k] = (drawn**2).sum(1)
        along[k] = drawn @ (effect / max(float(np.sqrt(effect @ effect)), 1e-300))

    def part(k: int, value: float) -> np.ndarray:
        drawn = central[k] + 2 * np.sqrt(value) * along[k] + value
        return np.asarray(np.maximum(0, drawn - dfs[k] * errors) / runs)

    def explained(value: float) -> np.ndarray:
        parts = [part(k, value * share) for k, share in enumerate(squares / squares.sum())]
        return np.asarray(np.sum(parts, axis=0))

    noncentrality = np.maximum(0, squares * max(error_df - 2, 1) / error_df - dfs)
    parts = np.array([part(k, value) for k, value in enumerate(noncentrality)])
    observed = np.maximum(0, squares - dfs) / runs
    total = float(observed.sum()) + 1
    intervals: list[Interval] = []
    for k in range(len(bases)):
        rest = parts.sum(0) - parts[k] + errors
        low, high = _ends(partial(part, k), rest, float(observed[k]) / total, tail)
        others = float(noncentrality.sum() - noncentrality[k]) + runs
        intervals.append((low / (low + others), high / (high + others)))
    low, high = _ends(explained, errors, 1 - 1 / total, tail)
    return [*intervals, (runs / (runs + high), runs / (runs + low))]


def _ends(
    part: Callable[[float], np.ndarray], rest: np.ndarray, share: float, tail: float
) -> Interval:
    """Noncentralities at which a share as high, or as low, is drawn with probability `tail`."""

    def high_enough(value: float) -> bool:
        drawn = part(value)
        return bool((drawn / (drawn + rest) >= share).mean() >= tail)

    def too_high(value: float) -> bool:
        drawn = part(value)
        return bool((drawn / (drawn + rest) <= share).mean() < tail)

    return _root(high_enough), _root(too_high)


def _root(reached: Callable[[float], bool]) -> float:
    """Least value from 0 for which `reached` holds, which it does from there on."""
    if reached(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not reached(high):
        low, high = high, 4 * high
        if high > MOST:
            return high
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _codes(aspect: str, values: Sequence[Any], runs: int) -> np.ndarray:
    number: dict[Any, int] = {}
    codes = np.array([number.setdefault(value, len(number)) for value in values])
    if len(codes) != runs or len(number) < 2:
        raise PalateError(
            f"aspect '{aspect}' has {len(number)} levels in {len(codes)} of {runs} runs: give each "
            "run its level, two different ones or more"
        )
    return codes


def _joint(codes: Sequence[np.ndarray]) -> np.ndarray:
    """Number of the combination of levels of each run."""
    return np.asarray(np.unique(np.stack(codes, 1), axis=0, return_inverse=True)[1]).reshape(-1)


def _terms(codes: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Orthonormal [M, df] basis of what each term adds, by name, and the terms that add nothing."""
    names = list(codes)
    subsets = [s for order in range(1, len(names) + 1) for s in combinations(names, order)]
    blocks = {}
    for subset in subsets:
        joint = _joint([codes[name] for name in subset])
        blocks[subset] = np.eye(joint.max() + 1)[joint]
    ones = np.ones((len(next(iter(codes.values()))), 1))
    bases: dict[str, np.ndarray] = {}
    missing = []
    for subset in subsets:
        without = [blocks[s] for s in subsets if not set(subset) <= set(s)]
        before = _basis(np.hstack([ones, *without]))
        block = blocks[subset]
        added = _basis(block - before @ (before.T @ block))
        name = " x ".join(subset)
        if added.shape[1]:
            bases[name] = added
        else:
            missing.append(name)
    return bases, missing


def _basis(columns: np.ndarray) -> np.ndarray:
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, sizes > 1e-8 * max(1.0, sizes.max(initial=0.0))])
