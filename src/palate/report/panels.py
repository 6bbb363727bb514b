"""Which metrics are drawn, in which groups, and what each is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from palate.report.curves import Curve
from palate.report.reader import Run
from palate.report.rl_alarms import Alarm
from palate.report.rl_panels import marks_alarm, rl_groups, title_of
from palate.report.style import Style, Styles


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a panel."""

    label: str
    style: Style
    curve: Curve
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A step worth a line of its own: where an alarm began. `style`: of its run, where there are
    several."""

    step: float
    label: str
    style: Style | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small picture.

    Attributes:
        title, unit: of the metric. level: a value worth a line of its own, e.g. 0 or one half.
        limits: of the vertical axis, where panels share it. marks: by increasing step.
    """

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    level: float | None = None
    limits: tuple[float, float] | None = None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Panels under one heading, with a paragraph on how to read them."""

    key: str
    title: str
    text: str
    panels: tuple[Panel, ...]


TITLES: dict[str, tuple[str, str, float | None]] = {
    "loss": ("Loss", "loss", None),
    "rewards/accuracies": ("Reward accuracy", "share of pairs", 0.5),
    "rewards/margins": ("Reward margin", "reward", 0.0),
    "rewards/chosen": ("Reward of chosen", "reward", 0.0),
    "rewards/rejected": ("Reward of rejected", "reward", 0.0),
    "accuracy": ("Accuracy", "share of pairs", 0.5),
    "margin": ("Reward margin", "reward", 0.0),
    "mean_reward": ("Mean reward", "reward", 0.0),
    "min_reward": ("Least reward", "reward", None),
    "max_reward": ("Greatest reward", "reward", None),
    "accuracies/log_ratio": ("Accuracy by log-ratio", "share of pairs", 0.5),
    "kl/chosen": ("Sequence KL, chosen", "nats", None),
    "kl/rejected": ("Sequence KL, rejected", "nats", None),
    "kl/margin": ("KL margin", "nats", 0.0),
    "kl/token_chosen": ("KL a token, chosen", "nats a token", None),
    "kl/token_rejected": ("KL a token, rejected", "nats a token", None),
    "logps/chosen": ("Log-probability of chosen", "nats", None),
    "logps/rejected": ("Log-probability of rejected", "nats", None),
    "displacement/chosen": ("Chosen against the reference", "nats", 0.0),
    "displacement/fraction": ("Pairs whose chosen fell", "share of pairs", None),
    "entropy": ("Entropy of the next token", "nats a token", None),
    "length/chosen": ("Length of chosen", "tokens", None),
    "length/rejected": ("Length of rejected", "tokens", None),
    "grad_norm": ("Gradient norm", "norm before clipping", None),
    "learning_rate": ("Learning rate", "learning rate", None),
    "pairs_per_second": ("Speed", "pairs a second", None),
}
"""Title, unit, and a value worth a line of its own."""

GROUPS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "objective",
        "Objective",
        "The trained loss, how often the reward (of a policy, the implicit one) ranks a pair as "
        "the annotator did, and by how much.",
        ("loss", "rewards/accuracies", "rewards/margins", "accuracy", "margin"),
    ),
    (
        "scale",
        "Scale of the rewards",
        "Pairs leave the level of the rewards free, and only the loss bounds their width: a level "
        "that drifts costs nothing in accuracy but matters to whoever reads single scores.",
        ("mean_reward", "min_reward", "max_reward"),
    ),
    (
        "kl",
        "Distance from the reference",
        "Sequence KL(reference ‖ policy), exact over the vocabulary and summed over the response, "
        "on chosen and on rejected responses; the first two share their scale. The margin is "
        "chosen minus rejected: below zero, the policy has moved further on rejected responses.",
        ("kl/chosen", "kl/rejected", "kl/margin"),
    ),
    (
        "likelihood",
        "Likelihood",
        "A preference loss sees differences only: chosen and rejected responses can become less "
        "likely together. Below zero, chosen ones have lost probability against the reference.",
        ("logps/chosen", "logps/rejected", "displacement/chosen", "displacement/fraction"),
    ),
    (
        "optimisation",
        "Optimisation and text",
        "What the optimizer did, and the responses that it saw.",
        ("grad_norm", "learning_rate", "entropy", "length/chosen", "length/rejected"),
    ),
)

_LEFT_OUT = {"seconds_left", "tokens_per_second", "samples_per_second", "steps_per_second"}


def metric_groups(runs: Sequence[Run], styles: Styles, alarms: Sequence[Alarm] = ()) -> list[Group]:
    """The groups that any run has a metric of; metrics of no group come last.

    Args:
        alarms: marked in the curves that they are about.
    """
    logged = {n for run in runs for n in (*run.metrics.train, *run.metrics.eval)}
    plans: list[tuple[str, str, str, tuple[str, ...]]] = []
    if any(run.is_online for run in runs):
        plans += rl_groups(logged)
    drawn = {name for *_, names in plans for name in names}
    plans += [(*head, tuple(n for n in names if n not in drawn)) for *head, names in GROUPS]  # type: ignore[misc]
    groups = []
    for key, title, text, names in plans:
        panels = kl_panels(runs, styles) if key == "kl" else _panels(names, runs, styles, alarms)
        if panels:
            groups.append(Group(key=key, title=title, text=text, panels=tuple(panels)))
    known = {name for *_, names in plans for name in names} | _LEFT_OUT
    if panels := _panels(sorted(logged - known), runs, styles):
        text = "Everything else that the runs logged."
        groups.append(Group(key="more", title="More curves", text=text, panels=tuple(panels)))
    return groups


def kl_panels(runs: Sequence[Run], styles: Styles) -> list[Panel]:
    """Sequence KL of chosen and of rejected responses on one scale, and their difference."""
    panels = _panels(("kl/chosen", "kl/rejected", "kl/margin"), runs, styles)
    by_title = {panel.title: panel for panel in panels}
    sides = [p for title in ("kl/chosen", "kl/rejected") if (p := by_title.get(TITLES[title][0]))]
    values = [line.curve.value for panel in sides for line in panel.lines]
    finite = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.array([])
    if len(finite):
        low, high = min(0.0, float(finite.min())), float(finite.max())
        pad = 0.04 * ((high - low) or 1.0)
        for panel in sides:
            by_title[panel.title] = replace(panel, limits=(low - pad, high + pad))
    return list(by_title.values())


def _panels(
    names: Sequence[str], runs: Sequence[Run], styles: Styles, alarms: Sequence[Alarm] = ()
) -> list[Panel]:
    panels = []
    is_online = any(run.is_online for run in runs)
    for name in names:
        words = TITLES.get(name) or (title_of(name) if is_online else None)
        title, unit, level = words or (name, name.rpartition("/")[2], None)
        lines = tuple(_lines(name, runs, styles))
        if lines:
            panels.append(
                Panel(
                    key="m-" + re.sub(r"\W+", "-", name, flags=re.ASCII),
                    title=title,
                    unit=unit,
                    lines=lines,
                    level=level,
                    marks=tuple(
                        Mark(step=a.step, label=str(a.number), style=a.style)
                        for a in alarms
                        if marks_alarm(a.alarm, name)
                    ),
                )
            )
    return panels


def _lines(name: str, runs: Sequence[Run], styles: Styles) -> list[Line]:
    lines = []
    for run in runs:
        if run.name not in styles.by_run:
            continue
        for held_out, curves in ((False, run.metrics.train), (True, run.metrics.eval)):
            curve: Curve | None = curves.get(name)
            if curve is not None and np.isfinite(curve.value).any():
                if run.is_online:
                    # Alarms have steps; and what a run has "seen" it has written itself.
                    curve = replace(curve, examples=None)
                style: Style = styles.by_run[run.name]
                lines.append(Line(label=run.name, style=style, curve=curve, held_out=held_out))
    return lines
