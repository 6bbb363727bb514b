"""metrics.jsonl as curves: one array a metric, thinned and smoothed for a picture."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from palate.report.words import plain
from palate.store.records import MetricsLine, read_lines

Floats = NDArray[np.float64]

MAX_POINTS = 400
"""More points than a narrow picture has pixels only make the file heavy."""

SMOOTH_FROM = 40
"""Curves of fewer points are drawn as they are."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of one split. `examples` is None where a line of the log did not say.

    Attributes:
        step, examples, value: [n], by increasing step; a value that is no finite number is NaN.
    """

    step: Floats
    examples: Floats | None
    value: Floats

    def last(self, share: float = 0.1) -> float | None:
        """Mean of the last `share` of the finite values: one step of a small batch says little."""
        finite = self.value[np.isfinite(self.value)]
        if not len(finite):
            return None
        return float(finite[-max(1, round(len(finite) * share)) :].mean())

    def first(self, share: float = 0.1) -> float | None:
        """Mean of the first `share` of the finite values."""
        finite = self.value[np.isfinite(self.value)]
        return float(finite[: max(1, round(len(finite) * share))].mean()) if len(finite) else None


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """All curves of a run.

    Attributes:
        train, eval: by metric name.
        lines: complete lines read.
        cut_off: the last line was unfinished, as a killed run leaves it.
        unreadable: other lines that are no JSON object.
        not_finite: how many values were NaN, infinite or null, by metric.
    """

    train: dict[str, Curve] = field(default_factory=dict)
    eval: dict[str, Curve] = field(default_factory=dict)
    lines: int = 0
    cut_off: bool = False
    unreadable: int = 0
    not_finite: Counter[str] = field(default_factory=Counter)

    def best(self, name: str) -> Curve | None:
        """The held-out curve where there is one, else the training curve."""
        return self.eval.get(name) or self.train.get(name)


def read_metrics(path: Path) -> Metrics:
    """Reads metrics.jsonl; of steps logged twice (a resumed run) the later line counts."""
    log = read_lines(path, MetricsLine, plain)
    by_step = {(line.split, line.step): line for line in log.records}
    not_finite: Counter[str] = Counter()
    curves = {
        name: _curves([by_step[key] for key in sorted(by_step) if key[0] == name], not_finite)
        for name in ("train", "eval")
    }
    return Metrics(
        **curves,
        lines=len(log.records),
        cut_off=log.cut_off,
        unreadable=log.unreadable,
        not_finite=not_finite,
    )


def _curves(lines: list[MetricsLine], not_finite: Counter[str]) -> dict[str, Curve]:
    columns: dict[str, list[tuple[float, float, float]]] = {}
    for line in lines:
        examples = math.nan if line.examples is None else line.examples
        for name, value in (line.model_extra or {}).items():
            if not _is_metric(value):
                continue
            number = _number(value)
            if not math.isfinite(number):
                not_finite[name] += 1
            columns.setdefault(name, []).append((line.step, examples, number))
    curves = {}
    for name, points in columns.items():
        step, examples_seen, values = np.asarray(points, dtype=np.float64).T
        known = bool(np.isfinite(examples_seen).all())
        curves[name] = Curve(step=step, examples=examples_seen if known else None, value=values)
    return curves


def _is_metric(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower().lstrip("+-") in {"nan", "inf", "infinity"}
    if isinstance(value, bool):
        return False
    return value is None or isinstance(value, int | float)


def _number(value: Any) -> float:
    """The number; NaN for every other value and for infinities."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def thin(x: Floats, y: Floats, limit: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """At most `limit` points: the means of consecutive stretches. NaN only where all were NaN."""
    if len(x) <= limit:
        return x, y
    edges = np.linspace(0, len(x), limit + 1).astype(int)[:-1]
    finite = np.isfinite(y)
    counts = np.add.reduceat(finite.astype(np.float64), edges)
    sums = np.add.reduceat(np.where(finite, y, 0.0), edges)
    sizes = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / sizes, _ratio(sums, counts)


def smooth(y: Floats) -> Floats | None:
    """Centred running mean over a tenth of the curve; None for a curve too short to need it."""
    if len(y) < SMOOTH_FROM:
        return None
    window = np.ones(2 * max(1, len(y) // 20) + 1)
    finite = np.isfinite(y)
    sums = np.convolve(np.where(finite, y, 0.0), window, mode="same")
    counts = np.convolve(finite.astype(np.float64), window, mode="same")
    return cast(Floats, np.where(finite, _ratio(sums, counts), np.nan))


def pieces(y: Floats) -> Iterator[slice]:
    """Stretches of finite values."""
    finite = np.concatenate([[False], np.isfinite(y), [False]])
    edges = np.flatnonzero(finite[1:] != finite[:-1])
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield slice(int(start), int(stop))


def _ratio(sums: Floats, counts: Floats) -> Floats:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
