"""What is known of every pair while the pairs themselves are on disk: numbers, no objects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.construct.process import BlockResult

KEPT = 0
MIXTURE = "mixture"
LIMIT = "limit"
"""Stages that select instead of dropping."""


@dataclass
class State:
    """Arrays over all pairs, about 35 bytes a pair.

    Attributes:
        status: KEPT, or a number of `reasons` plus one.
        of_row: row of its recipe source that each pair is of, counted from 0.
        source: of the pair, a place in `names`.
        keys: hashes of ids; equal for equal ids. prompts: hashes of prompts.
        flags: what each pair has, see `read.CHAT`.
        sizes: what each pair counts for in the mixture; empty where nothing counts them.
        reasons: (stage, reason): a step's place among the steps, MIXTURE or LIMIT.
    """

    status: npt.NDArray[np.uint16]
    of_row: npt.NDArray[np.uint32]
    source: npt.NDArray[np.uint32]
    keys: npt.NDArray[np.uint64]
    prompts: npt.NDArray[np.uint64]
    flags: npt.NDArray[np.uint8]
    sizes: npt.NDArray[np.int64]
    names: list[str]
    reasons: list[tuple[int | str, str]] = field(default_factory=list)
    _codes: dict[tuple[int | str, str], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.status)

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        kept: npt.NDArray[np.bool_] = self.status == KEPT
        return kept

    def kept_in(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """[count], of a stretch of pairs."""
        kept: npt.NDArray[np.bool_] = self.status[first : first + count] == KEPT
        return kept

    def code(self, stage: int | str, reason: str) -> int:
        """The number for a status, made on first use.

        Raises:
            OverflowError: more than 65,000 reasons: they were meant to be counted, not told.
        """
        key = (stage, reason)
        if key not in self._codes:
            self.reasons.append(key)
            self._codes[key] = len(self.reasons)
            if len(self.reasons) > np.iinfo(np.uint16).max:
                raise OverflowError(f"too many different reasons, the last: {reason}")
        return self._codes[key]

    def counts(self, first: int, last: int) -> Counter[tuple[int | str, str] | None]:
        """How many pairs of a stretch have which status; None: kept."""
        return self._named(self.status[first:last])

    def row_counts(self, first: int, last: int) -> Counter[tuple[int | str, str] | None]:
        """The same of rows: one with a pair kept is kept, another has its first pair's status."""
        if first == last:
            return Counter()
        rows, status = self.of_row[first:last], self.status[first:last]
        starts = np.concatenate(([0], np.flatnonzero(np.diff(rows)) + 1))
        kept = np.logical_or.reduceat(status == KEPT, starts)
        return self._named(np.where(kept, KEPT, status[starts]))

    def _named(self, statuses: npt.NDArray[Any]) -> Counter[tuple[int | str, str] | None]:
        numbers = np.bincount(statuses)
        found: Counter[tuple[int | str, str] | None] = Counter()
        for code in np.flatnonzero(numbers).tolist():
            found[None if code == KEPT else self.reasons[code - 1]] = int(numbers[code])
        return found


class Collected:
    """The arrays of one source, as its pieces come in."""

    def __init__(self) -> None:
        self._rows = 0
        self._names: dict[str, int] = {}
        self._of_row: list[npt.NDArray[np.uint32]] = []
        self._source: list[npt.NDArray[np.uint32]] = []
        self._keys: list[npt.NDArray[np.uint64]] = []
        self._prompts: list[npt.NDArray[np.uint64]] = []
        self._flags: list[npt.NDArray[np.uint8]] = []
        self._sizes: list[npt.NDArray[np.int64]] = []

    def add(self, block: BlockResult) -> None:
        if block.pairs:
            places = [self._names.setdefault(n, len(self._names)) for n in block.sources]
            self._of_row.append(block.of_row + np.uint32(self._rows))
            self._source.append(np.array(places, dtype=np.uint32)[block.source])
            self._keys.append(block.keys)
            self._prompts.append(block.prompts)
            self._flags.append(block.flags)
            if block.sizes is not None:
                self._sizes.append(block.sizes)
        self._rows += block.rows

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Whole arrays by name, `names` of the sources among them."""
        return {
            "of_row": _joined(self._of_row, np.uint32),
            "source": _joined(self._source, np.uint32),
            "keys": _joined(self._keys, np.uint64),
            "prompts": _joined(self._prompts, np.uint64),
            "flags": _joined(self._flags, np.uint8),
            "sizes": _joined(self._sizes, np.int64),
            "names": np.array(list(self._names), dtype=np.str_),
        }


def joined(parts: list[dict[str, npt.NDArray[Any]]]) -> State:
    """The arrays of all sources."""
    names: dict[str, int] = {}
    sources = []
    for part in parts:
        places = [names.setdefault(str(name), len(names)) for name in part["names"]]
        sources.append(np.array(places, dtype=np.uint32)[part["source"]])
    source = _joined(sources, np.uint32)
    return State(
        status=np.zeros(len(source), dtype=np.uint16),
        of_row=_joined([p["of_row"] for p in parts], np.uint32),
        source=source,
        keys=_joined([p["keys"] for p in parts], np.uint64),
        prompts=_joined([p["prompts"] for p in parts], np.uint64),
        flags=_joined([p["flags"] for p in parts], np.uint8),
        sizes=_joined([p["sizes"] for p in parts], np.int64),
        names=list(names),
    )


def _joined(parts: list[npt.NDArray[Any]], kind: Any) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=kind)
