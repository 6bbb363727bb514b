"""The log of a run as far as its alarms look back: its beginning, its last lines, and between them
a line now and then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, cast

BEGINNING = 5
"""First lines: what a run is compared with."""
RECENT = 3
"""Last lines: what it is now. Their median takes two to move."""
LAST = 16
"""Last lines that are kept."""
PAST = 128
"""Lines of the whole run that are kept: twice as many, and every other one is let go."""

MEDIAN = math.pi / 2
"""Variance of a median over that of a mean, of many normal values."""
MAD = 1.4826
"""Standard deviation over median absolute deviation, of normal values."""

Line = Mapping[str, float]


class History:
    """Lines of a log, in their order, of which a bounded number is kept.

    Attributes:
        count: lines so far.
        beginning, last: the first BEGINNING and the last LAST of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.beginning: list[Line] = []
        self.last: list[Line] = []
        self._past: list[tuple[int, Line]] = []
        self._every = 1

    def add(self, line: Line) -> None:
        if len(self.beginning) < BEGINNING:
            self.beginning.append(line)
        self.last = [*self.last, line][-LAST:]
        if self.count % self._every == 0:
            self._past.append((self.count, line))
        if len(self._past) == 2 * PAST:
            self._every *= 2
            self._past = [(i, kept) for i, kept in self._past if i % self._every == 0]
        self.count += 1

    @property
    def recent(self) -> list[Line]:
        return self.last[-RECENT:]

    @property
    def has_two_ends(self) -> bool:
        """Whether beginning and recent lines are different ones."""
        return self.count >= BEGINNING + RECENT

    def then(self, name: str) -> float | None:
        """Median of the beginning; None where it lacks the figure, or the two ends overlap."""
        return median_of(self.beginning, name) if self.has_two_ends else None

    def now(self, name: str) -> float | None:
        """Median of the recent lines; None where they lack the figure."""
        return median_of(self.recent, name) if self.count >= RECENT else None

    def halfway(self, name: str) -> float | None:
        """Median of the lines about half of the run so far."""
        place = self.count // 2
        nearest = sorted(self._past, key=lambda kept: (abs(kept[0] - place), kept[0]))
        return median_of([line for _, line in nearest[:RECENT]], name)

    def extremes(self, name: str) -> tuple[float, float] | None:
        """Lowest and highest median of three lines in a row, of those that are kept."""
        values = values_of([line for _, line in self._past], name)
        medians = [median(values[i : i + RECENT]) for i in range(len(values) - RECENT + 1)]
        return (min(medians), max(medians)) if medians else None

    def change(self, name: str) -> tuple[float, float, float] | None:
        """Then, now, and the difference in standard errors.

        The noise of a line is that of lines three apart, so that neither a slow trend nor a memory
        of the line before counts for much; where lines are all equal, every difference is
        infinitely many.
        """
        then, now = self.then(name), self.now(name)
        if then is None or now is None:
            return None
        values = values_of([line for _, line in self._past], name)
        steps = [abs(b - a) for a, b in zip(values, values[RECENT:], strict=False)]
        noise = MAD * median(steps) / math.sqrt(2) if steps else 0.0
        error = noise * math.sqrt(MEDIAN * (1 / BEGINNING + 1 / RECENT))
        if error == 0.0:
            return then, now, 0.0 if now == then else math.copysign(math.inf, now - then)
        return then, now, (now - then) / error

    def state(self) -> dict[str, Any]:
        """In JSON values."""
        return {
            "count": self.count,
            "beginning": list(self.beginning),
            "last": list(self.last),
            "past": [[i, line] for i, line in self._past],
            "every": self._every,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.count, self._every = state["count"], state["every"]
        self.beginning, self.last = list(state["beginning"]), list(state["last"])
        self._past = [(int(i), cast(Line, line)) for i, line in state["past"]]


def values_of(lines: Sequence[Line], name: str) -> list[float]:
    """The figure of those lines that have it."""
    return [line[name] for line in lines if name in line]


def median_of(lines: Sequence[Line], name: str) -> float | None:
    """Its median; None where fewer than half of the lines have it."""
    values = values_of(lines, name)
    return median(values) if values and 2 * len(values) >= len(lines) else None
