"""Means that are exact whatever the batches: sums and weights, divided once.

Numbers on an accelerator stay there until the meter is read, and then come to the host in one
transfer: to fetch a number is to wait for all that the device was asked for before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sum:
    """A total and what it is to be divided by: a number of pairs, of tokens, of steps."""

    total: float
    weight: float

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.total + other.total, self.weight + other.weight)


Statistics = Mapping[str, tuple[Tensor | float, Tensor | float]]
"""Name -> (total, weight), scalars without gradient."""


@dataclass(frozen=True)
class _Entry:
    """Sums that were given to a meter, and may be on a device still.

    Attributes:
        numbers: the total and the weight of each name, 0 where it is in `values`.
        places: of those in `numbers`. values: float64; None where there are none.
    """

    names: tuple[str, ...]
    numbers: list[float]
    places: list[int]
    values: Tensor | None

    @classmethod
    def of(cls, statistics: Statistics) -> _Entry:
        values = [value for sums in statistics.values() for value in sums]
        places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
        numbers = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
        return cls(tuple(statistics), numbers, places, _stacked(values))

    def sums(self, values: Iterable[float]) -> dict[str, Sum]:
        """The sums, given the numbers of `values` on the host."""
        numbers = list(self.numbers)
        for place, value in zip(self.places, values, strict=True):
            numbers[place] = value
        return dict(zip(self.names, map(Sum, numbers[::2], numbers[1::2]), strict=True))


def _stacked(values: Iterable[Tensor | float]) -> Tensor | None:
    """Those that are tensors, as one: a scalar on a device takes half a kilobyte there."""
    tensors = [value.detach().double() for value in values if isinstance(value, Tensor)]
    return torch.stack(tensors) if tensors else None


class Meter:
    """Collects statistics of micro-batches, processes and steps, in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, Sum] = {}
        self._entries: list[_Entry] = []
        self._last = _Entry.of({})

    @property
    def sums(self) -> dict[str, Sum]:
        """All sums, by name."""
        self._fetch()
        return self._sums

    @property
    def last(self) -> dict[str, float]:
        """Values of the last step alone, by name."""
        self._fetch()
        return {name: value.total for name, value in self._last.sums(()).items()}

    @last.setter
    def last(self, values: Mapping[str, Tensor | float]) -> None:
        self._last = _Entry.of({name: (value, 1.0) for name, value in values.items()})

    def add(self, statistics: Statistics) -> None:
        """Adds the totals and weights of one micro-batch."""
        self._entries.append(_Entry.of(statistics))

    def merge(self, meters: Iterable[Mapping[str, Sum]]) -> None:
        """Adds the sums of other meters, of other processes for one."""
        for sums in meters:
            self.add({name: (value.total, value.weight) for name, value in sums.items()})

    def means(self) -> dict[str, float]:
        """Total over weight of everything that has a weight, totals of what is a total, and the
        margins of paired names.

        `rewards/margins`, `kl/margin` and `reverse_kl/margin` are differences of two means: over
        pairs that is the mean difference, and for unpaired feedback the only margin there is.
        """
        sums = self.sums
        means = {
            name: s.total if is_total(name) else s.total / s.weight
            for name, s in sums.items()
            if s.weight > 0
        }
        for group, name in MARGINS.items():
            sides = means.get(f"{group}/chosen"), means.get(f"{group}/rejected")
            if sides[0] is not None and sides[1] is not None:
                means[name] = sides[0] - sides[1]
        return means

    def state(self) -> dict[str, list[float]]:
        """JSON form, for checkpoints."""
        return {name: [s.total, s.weight] for name, s in self.sums.items()}

    def load(self, state: Mapping[str, Iterable[float]]) -> None:
        self._sums = {name: Sum(*values) for name, values in state.items()}
        self._entries = []

    def _fetch(self) -> None:
        """Adds what was given since the last time, in its order."""
        entries = [*self._entries, self._last]
        waiting = [entry.values for entry in entries if entry.values is not None]
        numbers = iter(torch.cat(waiting).tolist() if waiting else ())
        for entry in self._entries:
            for name, value in entry.sums(islice(numbers, len(entry.places))).items():
                self._add(name, value)
        last = self._last.sums(islice(numbers, len(self._last.places)))
        self._last = _Entry.of({name: (value.total, 1.0) for name, value in last.items()})
        self._entries = []

    def _add(self, name: str, value: Sum) -> None:
        known = self._sums.get(name)
        if known is None:
            self._sums[name] = value
        elif (extreme := EXTREMES.get(name)) is not None:
            self._sums[name] = extreme(known, value, key=lambda s: s.total)
        else:
            self._sums[name] = known + value


MARGINS = {"rewards": "rewards/margins", "kl": "kl/margin", "reverse_kl": "reverse_kl/margin"}

EXTREMES: dict[str, Any] = {"min_reward": min, "max_reward": max} | dict.fromkeys(
    ("ratio/max", "ratio/first", "mismatch/max", "length/max"), max
)
"""Names whose value is the least or the greatest there was, not a mean; their weight is 1."""

TOTALS = ("seconds/", "tokens/generated", "dropped/", "events/")
"""Beginnings of names whose value is the sum since the last line."""


def is_total(name: str) -> bool:
    """Whether a figure is a sum since the last line, not a mean."""
    return name.startswith(TOTALS)
