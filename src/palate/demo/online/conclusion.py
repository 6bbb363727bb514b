"""What the numbers of the demonstration of online learning support, each with its interval.

Prompts are the unit: all policies and best-of-n answered the same held-out openings, so that
resampling the openings keeps comparisons paired. Intervals are percentile bootstrap intervals. Each
algorithm was run once: they say nothing of how another seed of training would come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palate.demo.conclusion import (
    GRID,
    RESAMPLES,
    Curve,
    distance_words,
    gain_line,
    interpolate,
    signed,
    table,
    verdict_of,
    with_interval,
)
from palate.evaluate.matched_kl import common_range
from palate.evaluate.statistics import bootstrap_rows, percentile_interval
from palate.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A frontier beside another, over the KL that lies between measured points of both.

    Attributes:
        span: that KL, nats. value: mean difference of reward there.
        share: of the yardstick's gain over the base model that this one has there.
    """

    span: Interval
    value: float
    interval: Interval
    share: float | None

    def document(self) -> dict[str, Any]:
        return {
            "range": list(self.span),
            "value": self.value,
            "ci": list(self.interval),
            "share": self.share,
        }


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """What became of the run without a KL.

    Attributes:
        reward, entropy, kl: first and last of the training log: mean reward of a rollout, nats a
            token, nats a response.
        commonest: share of the last rollout's responses that are one and the same text.
        steps: of the run. alarms: (step, title) of those that began.
    """

    reward: tuple[float, float]
    entropy: tuple[float, float]
    kl: tuple[float, float]
    commonest: float
    steps: int
    alarms: Sequence[tuple[int, str]]


def conclude(
    base: np.ndarray,
    base_entropy: float,
    online: Sequence[Curve],
    offline: Sequence[Curve],
    best_of_n: Curve,
    collapse: Collapse,
    alarms: Mapping[str, Sequence[tuple[int, str]]],
    *,
    scale: str,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """Lines for people, and the numbers that they were made from.

    Args:
        base: [P] mean reward of the base model on each prompt.
        alarms: (step, title) of those that began in each algorithm's run, by its name.
        scale: what a reward is, in words.
    """
    rows = bootstrap_rows(len(base), resamples=RESAMPLES, seed=seed)
    gains = {c.name: with_interval(c.reward[-1] - base, rows, confidence) for c in online}
    kls = {c.name: with_interval(c.kl[-1], rows, confidence) for c in online}

    def beside(yardstick: Curve) -> dict[str, Matched | None]:
        return {c.name: matched(c, yardstick, base, rows, confidence) for c in online}

    to_best = beside(best_of_n)
    to_offline = {c.name: beside(c) for c in offline}
    lines = [
        gain_line(float(base.mean()), gains, scale, len(base), confidence),
        _distance_line(kls, base_entropy, online),
        _matched_line(
            f"best-of-n (n = 2 to {2 ** len(best_of_n.kl)}, KL at most log n - (n - 1) / n)",
            to_best,
            shares=True,
        ),
        *(_matched_line(f"offline {name}", here) for name, here in to_offline.items()),
        _collapse_line(collapse),
        _alarm_line(alarms),
    ]
    return {
        "confidence": confidence,
        "prompts": len(base),
        "reward": scale,
        "base_reward": float(base.mean()),
        "gain": table(gains),
        "final_kl": table(kls),
        "entropy": {"base": base_entropy} | {c.name: float(c.entropy[-1]) for c in online},
        "minus_best_of_n": _documents(to_best),
        "minus_offline": {name: _documents(here) for name, here in to_offline.items()},
        "collapse": {
            "reward": list(collapse.reward),
            "entropy": list(collapse.entropy),
            "kl": list(collapse.kl),
            "commonest": collapse.commonest,
            "steps": collapse.steps,
            "alarms": [list(alarm) for alarm in collapse.alarms],
        },
        "alarms": {name: [list(alarm) for alarm in begun] for name, begun in alarms.items()},
        "lines": lines,
    }


def matched(
    curve: Curve, yardstick: Curve, base: np.ndarray, rows: np.ndarray, confidence: float
) -> Matched | None:
    """A frontier less another at the same KL; None where no KL lies between points of both."""
    span = common_range((curve.kl.mean(1), yardstick.kl.mean(1)))
    if span is None:
        return None
    at = np.linspace(*span, GRID)
    whole = np.arange(len(base))[None]
    here, there = (float(interpolate(c, whole, at).mean()) for c in (curve, yardstick))
    draws = (interpolate(curve, rows, at) - interpolate(yardstick, rows, at)).mean(1)
    gained = there - float(base.mean())
    return Matched(
        span=span,
        value=here - there,
        interval=percentile_interval(draws, confidence),
        share=(here - float(base.mean())) / gained if gained > 0 else None,
    )


def _documents(comparisons: Mapping[str, Matched | None]) -> dict[str, Any]:
    return {name: None if m is None else m.document() for name, m in comparisons.items()}


def _distance_line(
    kls: Mapping[str, tuple[float, Interval]], base_entropy: float, curves: Sequence[Curve]
) -> str:
    return (
        f"They are this far from the base model, {distance_words(kls, base_entropy, curves)} Each "
        "was trained once: the intervals are over openings, and another seed may come out "
        "otherwise."
    )


def _matched_line(
    yardstick: str, comparisons: Mapping[str, Matched | None], *, shares: bool = False
) -> str:
    parts = []
    for name, m in comparisons.items():
        if m is None:
            parts.append(f"{name} has no KL in common with it")
            continue
        share = f"{m.share:.0%} of its gain, " if shares and m.share is not None else ""
        parts.append(
            f"{name} {signed(m.value, m.interval)} from {m.span[0]:.1f} to {m.span[1]:.1f} nats, "
            f"{share}{verdict_of(m.interval)}"
        )
    return f"Reward at matched KL against {yardstick}: {'; '.join(parts)}."


def _collapse_line(c: Collapse) -> str:
    rang = (
        "; ".join(f"“{title}” at step {step}" for step, title in c.alarms)
        if c.alarms
        else "none, which is a failure of the alarms or of this run to collapse"
    )
    return (
        f"Without a KL and at a higher learning rate GRPO went from reward {c.reward[0]:.2f} to "
        f"{c.reward[1]:.2f} on its own rollouts in {c.steps} steps, while the entropy went from "
        f"{c.entropy[0]:.2f} to {c.entropy[1]:.2f} nats a token and the KL to {c.kl[1]:.0f} nats a "
        f"response; in the last rollout {c.commonest:.0%} of the responses are one and the same "
        f"text. Alarms: {rang}."
    )


def _alarm_line(alarms: Mapping[str, Sequence[tuple[int, str]]]) -> str:
    rang = [
        f"{name}: {'; '.join(f'“{title}” at step {step}' for step, title in begun)}"
        for name, begun in alarms.items()
        if begun
    ]
    if rang:
        return f"Alarms in the runs with a KL: {'. '.join(rang)}."
    return f"In the other runs ({', '.join(alarms)}) no alarm began."
