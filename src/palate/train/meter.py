"""Means that are exact whatever the batches: sums and weights, divided once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Sum:
    """A total and what it is to be divided by: a number of pairs, of tokens, of steps."""

    total: float
    weight: float

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.total + other.total, self.weight + other.weight)


Statistics = Mapping[str, tuple[Tensor, Tensor | float]]
"""Name -> (total, weight), scalars without gradient."""


class Meter:
    """Collects statistics of micro-batches, processes and steps, in float64."""

    def __init__(self) -> None:
        self.sums: dict[str, Sum] = {}
        self.last: dict[str, float] = {}
        """Values of the last step alone, by name."""

    def add(self, statistics: Statistics) -> None:
        """Adds the totals and weights of one micro-batch."""
        for name, (total, weight) in statistics.items():
            self._add(name, Sum(float(total), float(weight)))

    def merge(self, meters: Iterable[Mapping[str, Sum]]) -> None:
        """Adds the sums of other meters, of other processes for one."""
        for sums in meters:
            for name, value in sums.items():
                self._add(name, value)

    def means(self) -> dict[str, float]:
        """Total over weight of everything that has a weight, and the margins of paired names.

        `rewards/margins`, `kl/margin` and `reverse_kl/margin` are differences of two means: over
        pairs that is the mean difference, and for unpaired feedback the only margin there is.
        """
        means = {name: s.total / s.weight for name, s in self.sums.items() if s.weight > 0}
        for group, name in MARGINS.items():
            sides = means.get(f"{group}/chosen"), means.get(f"{group}/rejected")
            if sides[0] is not None and sides[1] is not None:
                means[name] = sides[0] - sides[1]
        return means

    def state(self) -> dict[str, list[float]]:
        """JSON form, for checkpoints."""
        return {name: [s.total, s.weight] for name, s in self.sums.items()}

    def load(self, state: Mapping[str, Iterable[float]]) -> None:
        self.sums = {name: Sum(*values) for name, values in state.items()}

    def _add(self, name: str, value: Sum) -> None:
        known = self.sums.get(name)
        if known is None:
            self.sums[name] = value
        elif (extreme := EXTREMES.get(name)) is not None:
            self.sums[name] = extreme(known, value, key=lambda s: s.total)
        else:
            self.sums[name] = known + value


MARGINS = {"rewards": "rewards/margins", "kl": "kl/margin", "reverse_kl": "reverse_kl/margin"}

EXTREMES: dict[str, Any] = {"min_reward": min, "max_reward": max}
"""Names whose value is the least or the greatest there was, not a mean; their weight is 1."""
