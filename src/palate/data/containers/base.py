"""Numbered records, and the rejections that stand in for unreadable ones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from palate.errors import in_one_line

PIECE_ROWS = 2000
PIECE_BYTES = 4 << 20
"""Most rows and bytes of a piece; one row alone may be longer."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record as its container gives it.

    Attributes:
        file: path (or hub name) as the user gave it.
        row: 1-based; the line for JSONL and CSV, the record for JSON and Parquet.
        textual: all values are text because the container has no other (CSV).
    """

    file: str
    row: int
    value: dict[str, Any]
    textual: bool = False


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A record, or a part of one, that cannot be used.

    Attributes:
        field: dotted, in one printable line; None where the whole record is meant.
        reason: without values of the record, so that equal reasons can be counted.
    """

    file: str
    row: int
    field: str | None
    reason: str

    def __post_init__(self) -> None:
        # Names of fields are the record's own: they may be anything.
        if self.field is not None:
            object.__setattr__(self, "field", in_one_line(self.field))

    @property
    def counted_as(self) -> str:
        """Field (without positions in lists) and reason: the key in data.json."""
        if self.field is None:
            return self.reason
        named = ".".join(part for part in self.field.split(".") if not part.isdigit())
        return f"{named}: {self.reason}"

    def __str__(self) -> str:
        where = "" if self.field is None else f", field '{self.field}'"
        return f"{self.file}, row {self.row}{where}: {self.reason}"


class Piece(Protocol):
    """A few records that are still to be parsed, small enough to hand to another process.

    Of a file it holds the place in it; what comes from elsewhere it holds itself.

    Attributes:
        rows: how many.
    """

    @property
    def rows(self) -> int: ...

    def records(self) -> list[Record | Rejection]:
        """Reads and parses them."""
        ...


class Records(Protocol):
    """Records by position, 0-based; rows in messages are `Record.row`.

    Held in memory is at most where they are, 8 bytes a row (16 for JSON arrays and CSV), never what
    they say.

    Attributes:
        files: the local files they come from (of hub data: its files in the cache).
        damage: what a broken file has lost for good; always counted.
    """

    files: list[Path]
    damage: list[Rejection]

    def __len__(self) -> int: ...

    def fetch(self, indices: Sequence[int]) -> list[Record | Rejection]:
        """The records at `indices`, in that order."""
        ...

    def take(self, indices: Sequence[int]) -> Piece:
        """The records at `indices`, in that order, to be parsed later."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """All records in order, cut by what is in the file and by nothing else."""
        ...


class Chained:
    """The records of several containers, one after the other."""

    def __init__(self, parts: Sequence[Records]) -> None:
        self.parts = parts
        self.files = [file for part in parts for file in part.files]
        self.damage = [item for part in parts for item in part.damage]
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def fetch(self, indices: Sequence[int]) -> list[Record | Rejection]:
        return self.take(indices).records()

    def take(self, indices: Sequence[int]) -> Piece:
        where: dict[int, tuple[list[int], list[int]]] = {}
        for k, i in enumerate(indices):
            part = bisect_right(self._ends, i)
            places, rows_of_part = where.setdefault(part, ([], []))
            places.append(k)
            rows_of_part.append(i - (self._ends[part - 1] if part else 0))
        return _Several(
            [
                (places, self.parts[part].take(rows_of_part))
                for part, (places, rows_of_part) in where.items()
            ]
        )

    def pieces(self) -> Iterator[Piece]:
        for part in self.parts:
            yield from part.pieces()


@dataclass(frozen=True)
class _Several:
    """Pieces of several containers, each with the places its records have among all."""

    parts: list[tuple[list[int], Piece]]

    @property
    def rows(self) -> int:
        return sum(len(places) for places, _ in self.parts)

    def records(self) -> list[Record | Rejection]:
        records: dict[int, Record | Rejection] = {}
        for places, piece in self.parts:
            records.update(zip(places, piece.records(), strict=True))
        return [records[k] for k in range(len(records))]


def lost(file: str, row: int, reason: str) -> Rejection:
    """The rejection that stands for all rows from `row` on, which cannot be read."""
    return Rejection(file=file, row=row, field=None, reason=f"{reason}; nothing after it is read")


def shape_of(value: Any) -> str:
    """What a JSON value is, in words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return f"a {type(value).__name__}"
