"""What the demonstration's numbers support: three lines, each with its uncertainty.

Prompts are the unit: every policy answered the same held-out openings, so resampling the openings
keeps all comparisons paired. Intervals are percentile bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palate.evaluate.matched_kl import common_range, reward_at
from palate.evaluate.statistics import bootstrap_rows, percentile_interval
from palate.intervals import Interval

RESAMPLES = 4000
GRID = 21
"""Points of the common KL range at which frontiers are compared."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One method: its checkpoints in order of training, each on the same P prompts.

    Attributes:
        name: as printed.
        kl, reward: [C, P] means over a prompt's samples. The base model (KL 0) is not among them.
        entropy: [C] mean token entropy, nats.
    """

    name: str
    kl: np.ndarray
    reward: np.ndarray
    entropy: np.ndarray


def conclude(
    base: np.ndarray,
    base_entropy: float,
    curves: Sequence[Curve],
    *,
    scale: str,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares methods with the base and with the first method, which is the baseline.

    Args:
        base: [P] mean reward of the base model on each prompt.
        scale: what a reward is, in words.

    Returns:
        `lines` (three) and the numbers they were made from.
    """
    rows = bootstrap_rows(len(base), resamples=RESAMPLES, seed=seed)
    gains = {c.name: with_interval(c.reward[-1] - base, rows, confidence) for c in curves}
    kls = {c.name: with_interval(c.kl[-1], rows, confidence) for c in curves}
    # What lies between the base model and a first checkpoint was measured of no method.
    span = common_range(c.kl.mean(1) for c in curves)
    first, *others = curves
    levels: dict[str, float] = {}
    differences: dict[str, tuple[float, Interval]] = {}
    if span is not None:
        at = np.linspace(*span, GRID)
        whole = np.arange(len(base))[None]
        levels = {c.name: float(interpolate(c, whole, at).mean()) for c in curves}
        baseline = interpolate(first, rows, at).mean(1)
        for curve in others:
            draws = interpolate(curve, rows, at).mean(1) - baseline
            difference = levels[curve.name] - levels[first.name]
            differences[curve.name] = (difference, percentile_interval(draws, confidence))
    return {
        "confidence": confidence,
        "prompts": len(base),
        "reward": scale,
        "base_reward": float(base.mean()),
        "gain": table(gains),
        "final_kl": table(kls),
        "matched_kl": {
            "range": None if span is None else list(span),
            "reward": levels,
            f"minus_{first.name}": table(differences),
        },
        "entropy": {"base": base_entropy} | {c.name: float(c.entropy[-1]) for c in curves},
        "lines": [
            gain_line(float(base.mean()), gains, scale, len(base), confidence),
            _no_range_line(curves)
            if span is None
            else _matched_line(first.name, levels, differences, span),
            _cost_line(kls, base_entropy, curves),
        ],
    }


def interpolate(curve: Curve, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[R, G] reward at each KL of `at`, for each of R resamples of the prompts.

    The frontier is the straight line through the checkpoints in order of KL; beyond its ends, which
    resampling moves, it stays level.
    """
    points = ((curve.kl[:, row].mean(1), curve.reward[:, row].mean(1)) for row in rows)
    return np.stack([reward_at(kl, reward, at) for kl, reward in points])


def with_interval(
    values: np.ndarray, rows: np.ndarray, confidence: float
) -> tuple[float, Interval]:
    return float(values.mean()), percentile_interval(values[rows].mean(1), confidence)


def table(values: Mapping[str, tuple[float, Interval]]) -> dict[str, Any]:
    return {name: {"value": value, "ci": list(ci)} for name, (value, ci) in values.items()}


def gain_line(
    base: float,
    gains: Mapping[str, tuple[float, Interval]],
    scale: str,
    prompts: int,
    confidence: float,
) -> str:
    parts = [f"{name} {signed(value, ci)}" for name, (value, ci) in gains.items()]
    risen = [name for name, (_, ci) in gains.items() if ci[0] > 0]
    fallen = [name for name, (_, ci) in gains.items() if ci[1] < 0]
    if len(risen) == len(gains):
        verdict = "every method raised it"
    elif not risen and not fallen:
        verdict = "no change is distinguishable from none"
    else:
        words = [f"{_listed(risen)} raised it"] if risen else []
        words += [f"{_listed(fallen)} lowered it"] if fallen else []
        open_ = [n for n in gains if n not in risen and n not in fallen]
        words += [f"{_listed(open_)} not distinguishable from no change"] if open_ else []
        verdict = "; ".join(words)
    return (
        f"Reward ({scale}) on {prompts} held-out openings against the base model's {base:.2f}: "
        f"{', '.join(parts)} ({confidence:.0%} intervals): {verdict}."
    )


def _listed(names: Sequence[str]) -> str:
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


def _matched_line(
    first: str,
    levels: Mapping[str, float],
    differences: Mapping[str, tuple[float, Interval]],
    span: Interval,
) -> str:
    parts = []
    for name, (value, ci) in differences.items():
        parts.append(f"{name} {signed(value, ci)}, {verdict_of(ci)}")
    return (
        f"At matched sequence KL ({span[0]:.1f} to {span[1]:.1f} nats), reward against {first}'s "
        f"{levels[first]:.2f}: {'; '.join(parts)}."
    )


def _no_range_line(curves: Sequence[Curve]) -> str:
    ends = ((c.name, c.kl.mean(1).min(), c.kl.mean(1).max()) for c in curves)
    measured = ", ".join(f"{name} from {low:.1f} to {high:.1f}" for name, low, high in ends)
    return (
        "At matched sequence KL nothing can be compared: no range lies between measured points of "
        f"every method ({measured} nats)."
    )


def _cost_line(
    kls: Mapping[str, tuple[float, Interval]], base_entropy: float, curves: Sequence[Curve]
) -> str:
    words = distance_words(kls, base_entropy, curves)
    return f"Distance from the base model at the end, {words}"


def distance_words(
    kls: Mapping[str, tuple[float, Interval]], base_entropy: float, curves: Sequence[Curve]
) -> str:
    """How far methods are from the base model, and their entropies."""
    far = ", ".join(
        f"{name} {value:.1f} [{ci[0]:.1f}, {ci[1]:.1f}]" for name, (value, ci) in kls.items()
    )
    entropy = ", ".join(f"{c.name} {c.entropy[-1]:.2f}" for c in curves)
    return (
        f"KL(policy||base) a response: {far} nats; next-token entropy {base_entropy:.2f} before, "
        f"after {entropy} nats."
    )


def verdict_of(ci: Interval) -> str:
    """What an interval of a difference says."""
    return "better" if ci[0] > 0 else "worse" if ci[1] < 0 else "not distinguishable"


def signed(value: float, ci: Interval) -> str:
    return f"{value:+.2f} [{ci[0]:+.2f}, {ci[1]:+.2f}]"
