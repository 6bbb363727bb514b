"""Points of the frontier: what evaluation.json says of each policy's own samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palate.report.reader import Run
from palate.report.style import DASHES, PALETTE, Style, Styles, loss_name
from palate.store.records import Interval, Policy


@dataclass(frozen=True, kw_only=True)
class Point:
    """One policy on the frontier; intervals are None where not known."""

    label: str
    checkpoint: int | None
    beta: float | None
    kl: float
    reward: float
    kl_ci: tuple[float, float] | None
    reward_ci: tuple[float, float] | None
    n: int | None


@dataclass(frozen=True, kw_only=True)
class Series:
    """The policies of one loss, in order of training within each run."""

    label: str
    style: Style
    runs: tuple[tuple[Point, ...], ...]

    @property
    def marks_beta(self) -> bool:
        return len({point.beta for run in self.runs for point in run}) > 1


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """All points that were measured; between them nothing was."""

    series: tuple[Series, ...]
    reference: Point | None

    @property
    def reached_by_all(self) -> float | None:
        """The KL up to which every series has been measured, nats; None for a single series."""
        if len(self.series) < 2:
            return None
        return min(max(p.kl for run in s.runs for p in run) for s in self.series)

    @property
    def beyond(self) -> list[str]:
        """Series with a point further out than all have one: nothing is measured beside it."""
        end = self.reached_by_all
        if end is None:
            return []
        points = {s.label: [p for run in s.runs for p in run] for s in self.series}
        return [name for name, of_series in points.items() if any(p.kl > end for p in of_series)]


def interval(value: Interval | None) -> tuple[float, float] | None:
    """Both ends, if they are finite numbers."""
    if value is None:
        return None
    low, high = value
    if low is None or high is None:
        return None
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def point_of(policy: Policy) -> Point | None:
    """None unless reward and KL of its samples are finite numbers."""
    samples = policy.samples
    if samples is None or samples.reward is None or samples.kl is None:
        return None
    if not (math.isfinite(samples.reward) and math.isfinite(samples.kl)):
        return None
    return Point(
        label=policy.title,
        checkpoint=policy.checkpoint,
        beta=policy.beta,
        kl=samples.kl,
        reward=samples.reward,
        kl_ci=interval(samples.kl_ci),
        reward_ci=interval(samples.reward_ci),
        n=samples.n,
    )


def run_of(policy: Policy, runs: Sequence[Run]) -> Run | None:
    """The training run of a policy, if it is among `runs`."""
    if policy.run is None:
        return None
    folder = Path(policy.run).resolve()
    return next((run for run in runs if run.trains and run.path.resolve() == folder), None)


def evaluated_losses(runs: Sequence[Run]) -> list[str]:
    """Loss types that evaluations name, in their order; "" for a policy without one."""
    policies = [p for run in runs if run.evaluation for p in run.evaluation.policies]
    return list(dict.fromkeys(p.loss or "" for p in policies))


def frontier_of(runs: Sequence[Run], styles: Styles) -> Frontier | None:
    """One series a loss, or one a run where all have the same loss; None without a point."""
    evaluations = [run.evaluation for run in runs if run.evaluation is not None]
    policies = [p for evaluation in evaluations for p in evaluation.policies if point_of(p)]
    by_run = len({p.loss for p in policies}) == 1
    grouped: dict[str, dict[str, list[Policy]]] = {}
    for policy in policies:
        key = policy.title if by_run else policy.loss or ""
        grouped.setdefault(key, {}).setdefault(policy.run or policy.title, []).append(policy)
    series = []
    for i, (key, members) in enumerate(grouped.items()):
        if by_run:
            run_of_policy = run_of(next(iter(members.values()))[0], runs)
            fallback = Style(colour=i % len(PALETTE), dash=i % len(DASHES))
            style = styles.by_run.get(run_of_policy.name, fallback) if run_of_policy else fallback
        else:
            style = styles.by_loss[key]
        lines = []
        for run in members.values():
            ordered = sorted(run, key=lambda p: math.inf if p.checkpoint is None else p.checkpoint)
            lines.append(tuple(point for p in ordered if (point := point_of(p))))
        label = key if by_run else loss_name(key)
        series.append(Series(label=label, style=style, runs=tuple(lines)))
    if not series:
        return None
    references = [e.reference for e in evaluations if e.reference and e.reference.samples]
    return Frontier(series=tuple(series), reference=_reference(references))


def _reference(references: Sequence[Policy]) -> Point | None:
    """The reference is at KL 0 by definition, wherever its KL was not written."""
    for reference in references:
        samples = reference.samples
        if samples is None or samples.reward is None or not math.isfinite(samples.reward):
            continue
        return Point(
            label="reference",
            checkpoint=None,
            beta=None,
            kl=0.0,
            reward=samples.reward,
            kl_ci=None,
            reward_ci=interval(samples.reward_ci),
            n=samples.n,
        )
    return None
