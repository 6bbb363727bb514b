"""Win rate at equal length: what a policy wins by more than longer answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from palate.errors import PalateError
from palate.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """A win rate with and without control for length, of these trained models on new items.

    Attributes:
        win_rate: mean preference, and its t interval over items (or clusters).
        controlled: predicted mean preference at a length difference of 0, with its interval.
        constant: log-odds at equal length (and a difficulty of 0).
        length: log-odds that tanh(length difference / its standard deviation) is worth; above 0
            where longer answers win. None where all lengths are equal.
        difficulty: log-odds of a unit of instruction difficulty; None without it.
        by_item: [N] what each item says of `controlled`, to first order: their mean is it, and
            the spread of their mean is its standard error.
        words: the two win rates and what the model left out.
    """

    win_rate: float
    interval: Interval
    controlled: float
    controlled_interval: Interval
    constant: float
    length: float | None
    length_interval: Interval | None
    difficulty: float | None
    by_item: np.ndarray
    items: int
    confidence: float
    words: str


def length_controlled_win_rate(
    preferences: ArrayLike,
    policy_lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    *,
    difficulty: ArrayLike | None = None,
    clusters: Sequence[Any] | None = None,
    confidence: float = 0.95,
) -> LengthControlled:
    """Length-controlled win rate as AlpacaEval 2 defines it (Dubois et al. 2024, arXiv 2404.04475).

        logit P(policy wins item i) = constant + length * tanh((l_policy - l_baseline)_i / sd)
                                      + difficulty * d_i

    with sd the standard deviation of length differences, not centred; the controlled win rate is
    the mean over items of the prediction at a difference of 0. Preferences between 0 and 1 are fit
    by the binomial quasi-likelihood, with robust standard errors.

    AlpacaEval's published figures differ from it in three ways: d comes from a joint fit over its
    leaderboard, and without `difficulty` its term is left out; two length-attacked variants of the
    baseline weigh 0.2 in the fit; coefficients are shrunk by an L1 penalty chosen by
    cross-validation, where here nothing is.

    Args:
        preferences: [N] probability, or share of orders, with which the policy is preferred.
        policy_lengths, baseline_lengths: [N] in one unit; AlpacaEval counts characters.
        difficulty: [N] of each instruction, on any scale.
        clusters: [N] what items belong to, where several are not independent.

    Raises:
        PalateError: arrays of unequal length, preferences out of range, or a model that the data do
            not determine: every answer longer by the same, or a policy whose wins length (or being
            itself) predicts without an error.
    """
    y, policy, baseline = (
        np.asarray(v, dtype=float) for v in (preferences, policy_lengths, baseline_lengths)
    )
    extra = None if difficulty is None else np.asarray(difficulty, dtype=float)
    arrays = [y, policy, baseline, *([] if extra is None else [extra])]
    if len({v.shape for v in arrays}) > 1 or y.ndim != 1 or len(y) < 3:
        raise PalateError(
            f"{[len(v) for v in arrays]} preferences, lengths, ...: give one of each of 3 items or "
            "more"
        )
    if not all(np.isfinite(v).all() for v in arrays) or y.min() < 0 or y.max() > 1:
        raise PalateError("preferences lie between 0 and 1, and lengths are finite")
    labels = np.arange(len(y)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    difference = policy - baseline
    columns = [np.ones(len(y))]
    equal = not difference.any()
    if not equal:
        if not np.ptp(difference):
            raise PalateError(
                f"every answer is longer by {difference[0]:g}: length and policy cannot be told "
                "apart"
            )
        columns.append(np.tanh(difference / difference.std(ddof=1)))
    if extra is not None:
        columns.append(extra)
    x = np.stack(columns, 1)
    at, covariance = _fit(y, x, labels)
    t = float(stats.t.ppf(0.5 + confidence / 2, len(set(labels.tolist())) - 1))
    level = np.zeros((len(y), len(at)))
    level[:, 0] = 1
    if extra is not None:
        level[:, -1] = extra
    predicted = special.expit(level @ at)
    rate = float(predicted.mean())
    slope = (predicted * (1 - predicted)) @ level / len(y)
    fitted = special.expit(x @ at)
    information = (x * (fitted * (1 - fitted))[:, None]).T @ x
    reach = x @ np.linalg.solve(information, slope)
    by_item = predicted + len(y) * reach * (y - fitted)
    # On the log-odds scale, so that the interval stays within 0 and 1.
    error = float(np.sqrt(slope @ covariance @ slope)) / (rate * (1 - rate))
    low, high = special.expit(special.logit(rate) + t * error * np.array([-1, 1]))
    length = None if equal else float(at[1])
    half = 0.0 if equal else t * float(np.sqrt(covariance[1, 1]))
    raw, raw_interval = _raw(y, labels, t)
    return LengthControlled(
        win_rate=raw,
        interval=raw_interval,
        controlled=rate,
        controlled_interval=(float(low), float(high)),
        constant=float(at[0]),
        length=length,
        length_interval=None if length is None else (length - half, length + half),
        difficulty=None if extra is None else float(at[-1]),
        by_item=by_item,
        items=len(y),
        confidence=confidence,
        words=(
            f"win rate {raw:.1%} [{raw_interval[0]:.1%}, {raw_interval[1]:.1%}], at equal length "
            f"{rate:.1%} [{low:.1%}, {high:.1%}] ({len(y)} items"
            f"{', without instruction difficulty' if extra is None else ''})"
        ),
    )


def _fit(y: np.ndarray, x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of a fractional logistic regression and their covariance, robust by label."""
    # Its import takes a second.
    import statsmodels.api as sm

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            fit = sm.GLM(y, x, family=sm.families.Binomial()).fit(
                cov_type="cluster", cov_kwds={"groups": labels}
            )
        except (Warning, np.linalg.LinAlgError) as error:
            raise _undetermined(y) from error
    at, covariance = np.asarray(fit.params), np.asarray(fit.cov_params())
    if not fit.converged or not np.isfinite(covariance).all() or np.abs(x @ at).max() > 20:
        raise _undetermined(y)
    return at, covariance


def _undetermined(y: np.ndarray) -> PalateError:
    return PalateError(
        f"no length-controlled win rate of {len(y)} preferences with mean {y.mean():.3g}: length "
        "or the policy predicts them without an error"
    )


def _raw(y: np.ndarray, labels: np.ndarray, t: float) -> tuple[float, Interval]:
    """Mean preference and its interval, with the sum of residuals of a label as the unit."""
    sums = np.bincount(labels, y - y.mean())
    groups = len(sums)
    error = float(np.sqrt(groups / (groups - 1) * (sums**2).sum())) / len(y)
    mean = float(y.mean())
    return mean, (max(0.0, mean - t * error), min(1.0, mean + t * error))
