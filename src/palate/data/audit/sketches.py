"""What an audit remembers of numbers and names: of fixed size, and the same in whatever order.

Each takes values block by block and merges with another of its kind; the result depends on the
values alone, not on how they were cut into blocks.
"""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.intervals import wilson

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_EXACT = 128
_PER_OCTAVE = 64
_OCTAVES = 24
LENGTH_BINS = _EXACT + _PER_OCTAVE * _OCTAVES
"""Lengths below 128 have a bin each; longer ones 64 bins a doubling, so within 1.6%."""

_EXPONENTS = 128
_MANTISSAS = 32
_SIDE = _EXPONENTS * _MANTISSAS


class Lengths:
    """Counts of whole numbers that are not negative; total, least and greatest exactly.

    Attributes:
        counts: [LENGTH_BINS].
    """

    def __init__(self) -> None:
        self.counts: Ints = np.zeros(LENGTH_BINS, dtype=np.int64)
        self.total = 0
        self.low: int | None = None
        self.high: int | None = None

    def add(self, values: npt.NDArray[Any]) -> None:
        if not len(values):
            return
        self.counts += np.bincount(length_bin(values), minlength=LENGTH_BINS)
        self.total += int(values.sum())
        self._reach(int(values.min()), int(values.max()))

    def merge(self, other: Lengths) -> None:
        self.counts += other.counts
        self.total += other.total
        if other.low is not None and other.high is not None:
            self._reach(other.low, other.high)

    def summary(self) -> dict[str, Any]:
        """Mean, extremes, quantiles, and a histogram of doublings: [from, below, number]."""
        n = int(self.counts.sum())
        if not n:
            return {"mean": None, "min": None, "max": None, "quantiles": {}, "histogram": []}
        return {
            "mean": round(self.total / n, 3),
            "min": self.low,
            "max": self.high,
            "quantiles": {f"p{100 * q:g}": self.quantile(q) for q in QUANTILES},
            "histogram": self._histogram(),
        }

    def quantile(self, share: float) -> int:
        """The least value with `share` of all at or below it, to within a bin."""
        place = math.ceil(share * int(self.counts.sum()))
        found = int(np.searchsorted(np.cumsum(self.counts), max(1, place)))
        low, below = _length_edges(found)
        assert self.low is not None and self.high is not None
        return min(max((low + below - 1) // 2, self.low), self.high)

    def _histogram(self) -> list[list[int]]:
        # Four bars a doubling: 1, 2, 3, 4, 5-6, 7-8 ... are too many for small lengths.
        found: list[list[int]] = []
        edges = [0, 1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32]
        while edges[-1] <= (self.high or 0):
            octave = 2 ** (edges[-1].bit_length() - 1)
            edges.append(edges[-1] + octave // 4)
        lows = np.array([_length_edges(i)[0] for i in range(LENGTH_BINS)])
        totals = np.concatenate([[0], np.cumsum(self.counts)])
        for low, below in pairwise(edges):
            first, last = np.searchsorted(lows, [low, below])
            found.append([low, below, int(totals[last] - totals[first])])
        while found and not found[-1][2]:
            found.pop()
        while found and not found[0][2]:
            found.pop(0)
        return found

    def _reach(self, low: int, high: int) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)


def length_bin(values: npt.NDArray[Any]) -> Ints:
    """Bin of each value, rising with it."""
    values = values.astype(np.int64)
    # frexp: value = mantissa * 2**exponent, mantissa in [0.5, 1).
    mantissa, exponent = np.frexp(np.maximum(values, 1))
    part = ((mantissa - 0.5) * 2 * _PER_OCTAVE).astype(np.int64)
    bins = _EXACT + (exponent.astype(np.int64) - 8) * _PER_OCTAVE + part
    found: Ints = np.minimum(np.where(values < _EXACT, values, bins), LENGTH_BINS - 1)
    return found


def _length_edges(number: int) -> tuple[int, int]:
    if number < _EXACT:
        return number, number + 1
    octave, part = divmod(number - _EXACT, _PER_OCTAVE)
    size = 2 ** (octave + 7)
    step = size // _PER_OCTAVE
    return size + part * step, size + (part + 1) * step


def separation(higher: Ints, lower: Ints) -> float | None:
    """The chance that a value of the one is above a value of the other, ties a half (ROC area).

    Args:
        higher, lower: [B] counts in the same bins.
    """
    total = int(higher.sum()) * int(lower.sum())
    if not total:
        return None
    below = np.concatenate([[0], np.cumsum(lower)[:-1]])
    return float((higher.astype(np.float64) * (below + lower / 2)).sum() / total)


class Margins:
    """Counts of finite numbers of either sign, in 32 bins a doubling; mean and extremes exactly."""

    def __init__(self) -> None:
        self.counts: Ints = np.zeros(2 * _SIDE + 1, dtype=np.int64)
        self.totals: list[float] = []
        self.low = math.inf
        self.high = -math.inf

    def add(self, values: Floats) -> None:
        if not len(values):
            return
        mantissa, exponent = np.frexp(np.abs(values))
        octave = np.clip(exponent.astype(np.int64) + _EXPONENTS // 2, 0, _EXPONENTS - 1)
        part = ((mantissa - 0.5) * 2 * _MANTISSAS).astype(np.int64)
        place = 1 + octave * _MANTISSAS + np.clip(part, 0, _MANTISSAS - 1)
        bins = _SIDE + np.where(values == 0, 0, np.where(values > 0, place, -place))
        self.counts += np.bincount(bins, minlength=len(self.counts))
        # A sum kept exactly depends on no order.
        self.totals = _exact_sum([*self.totals, *values.tolist()])
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    def merge(self, other: Margins) -> None:
        self.counts += other.counts
        self.totals = _exact_sum([*self.totals, *other.totals])
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def summary(self) -> dict[str, Any]:
        """Numbers by sign, mean, extremes, and a histogram of equal bins: [from, below, number]."""
        n = int(self.counts.sum())
        found: dict[str, Any] = {
            "pairs": n,
            "negative": int(self.counts[:_SIDE].sum()),
            "zero": int(self.counts[_SIDE]),
        }
        if not n:
            return found | {"mean": None, "min": None, "max": None, "histogram": []}
        return found | {
            "mean": self._mean(n),
            "min": self.low,
            "max": self.high,
            "histogram": self._histogram(),
        }

    def _mean(self, n: int) -> float | None:
        """None where the sum is beyond what a float holds."""
        try:
            mean = math.fsum(self.totals) / n
        except (OverflowError, ValueError):
            return None
        return float(f"{mean:.6g}") if math.isfinite(mean) else None

    def _histogram(self, bars: int = 24) -> list[list[float]]:
        if not math.isfinite(self.high - self.low):
            return []
        used = np.flatnonzero(self.counts)
        values = np.clip([_margin_at(i - _SIDE) for i in used.tolist()], self.low, self.high)
        step = _round_step((self.high - self.low) / bars)
        places = np.floor(values / step + 1e-9).astype(np.int64)
        # However wide a bar is, none holds numbers of both signs.
        places = np.where(values < 0, np.minimum(places, -1), places)
        first = int(places.min())
        places -= first
        counts = np.bincount(places, weights=self.counts[used])
        return [
            [_short((first + i) * step), _short((first + i + 1) * step), int(count)]
            for i, count in enumerate(counts.tolist())
        ]


def _short(value: float) -> float:
    """Without the last digits, which are rounding."""
    return float(f"{value:.9g}")


def _margin_at(place: int) -> float:
    """The value of a bin that is nearest to zero."""
    if place == 0:
        return 0.0
    octave, part = divmod(abs(place) - 1, _MANTISSAS)
    value = (0.5 + part / (2 * _MANTISSAS)) * 2.0 ** (octave - _EXPONENTS // 2)
    return math.copysign(value, place)


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, not below `step`."""
    if not step > 0:
        return 1.0
    size = 10.0 ** math.floor(math.log10(step))
    return next(size * k for k in (1, 2, 5, 10) if size * k >= step * (1 - 1e-9))


def _exact_sum(values: list[float]) -> list[float]:
    """Numbers that do not overlap, with the very same sum (Shewchuk 1997)."""
    parts: list[float] = []
    for value in values:
        kept = 0
        for part in parts:
            if abs(value) < abs(part):
                value, part = part, value
            high = value + part
            low = part - (high - value)
            if low:
                parts[kept] = low
                kept += 1
            value = high
        parts[kept:] = [value]
    return parts


class Names:
    """Counts by name, of `most` names at the utmost: those whose digests are least.

    A name that is kept was never let go, so its counts are exact; which are kept says the digest.

    Attributes:
        left_out: counts of the others.
    """

    def __init__(self, columns: int, most: int = 1000) -> None:
        self.columns = columns
        self.most = most
        self.left_out: Ints = np.zeros(columns, dtype=np.int64)
        self._counts: dict[str, list[int]] = {}
        self._digests: dict[str, bytes] = {}
        self._limit: bytes | None = None

    def add(self, name: str, column: int, count: int = 1) -> None:
        row = self._row(name)
        if row is None:
            self.left_out[column] += count
        else:
            row[column] += count

    def merge(self, other: Names) -> None:
        self.left_out += other.left_out
        for name, counts in other._counts.items():
            for column, count in enumerate(counts):
                if count:
                    self.add(name, column, count)

    def items(self) -> list[tuple[str, list[int]]]:
        """(name, counts), the most frequent first."""
        return sorted(self._counts.items(), key=lambda item: (-sum(item[1]), item[0]))

    def _row(self, name: str) -> list[int] | None:
        row = self._counts.get(name)
        if row is not None:
            return row
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if self._limit is not None and digest >= self._limit:
            return None
        self._counts[name] = row = [0] * self.columns
        self._digests[name] = digest
        if len(self._counts) > self.most:
            last = max(self._digests, key=lambda one: self._digests[one])
            self._limit = self._digests.pop(last)
            self.left_out += self._counts.pop(last)
            if last == name:
                return None
        return row


class Growing:
    """A column of numbers that grows in steps: never more than one step of memory is unused."""

    _STEP = 1 << 15

    def __init__(self, kind: Any = np.uint64) -> None:
        self._kind = kind
        self._parts: list[npt.NDArray[Any]] = []
        self._used = self._STEP

    def add(self, values: npt.NDArray[Any]) -> None:
        while len(values):
            if self._used == self._STEP:
                self._parts.append(np.empty(self._STEP, dtype=self._kind))
                self._used = 0
            part = values[: self._STEP - self._used]
            self._parts[-1][self._used : self._used + len(part)] = part
            self._used += len(part)
            values = values[len(part) :]

    def all(self) -> npt.NDArray[Any]:
        if not self._parts:
            return np.zeros(0, dtype=self._kind)
        return np.concatenate([*self._parts[:-1], self._parts[-1][: self._used]])


def share_interval(successes: float, n: float) -> list[float] | None:
    """95% interval of a share, for JSON; `n` may be a number of effective observations."""
    return [round(end, 6) for end in wilson(successes, n)] if n > 0 else None
