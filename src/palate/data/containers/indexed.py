"""Records of text files by their place in the file: only offsets are in memory."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from palate.data.containers.base import (
    PIECE_BYTES,
    PIECE_ROWS,
    Piece,
    Record,
    Rejection,
    shape_of,
)
from palate.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Slice(ABC):
    """Records of a text file that follow one another.

    Attributes:
        path: of the file to read (an unpacked copy, where the file is packed).
        file: its name in messages.
        start, end: bytes.
        rows: records among them. first: row of the first.
    """

    path: str
    file: str
    start: int
    end: int
    rows: int
    first: int

    def records(self) -> list[Record | Rejection]:
        try:
            with open(self.path, "rb") as source:
                return self.parse(source)
        except OSError as error:
            raise DataError(error.strerror or str(error), file=self.file) from None

    def parse(self, source: BinaryIO) -> list[Record | Rejection]:
        source.seek(self.start)
        return self.parse_bytes(source.read(self.end - self.start))

    @abstractmethod
    def parse_bytes(self, data: bytes) -> list[Record | Rejection]: ...


@dataclass(frozen=True)
class _Slices:
    """Slices of one file, in the order that was asked for."""

    parts: list[Slice]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def records(self) -> list[Record | Rejection]:
        records: list[Record | Rejection] = []
        if not self.parts:
            return records
        try:
            with open(self.parts[0].path, "rb") as source:
                for part in self.parts:
                    records += part.parse(source)
        except OSError as error:
            raise DataError(error.strerror or str(error), file=self.parts[0].file) from None
        return records


class Indexed(ABC):
    """Records of a text file.

    A subclass fills `starts` (and `gaps` by `at_row`) in one pass over the file and says how a
    slice is parsed.

    Attributes:
        starts: first byte of each record, and at the end the byte after the last one.
    """

    def __init__(self, path: Path, file: str, keep: object = None) -> None:
        """Args: `keep` is held as long as the records are (an unpacked copy)."""
        self.path = path
        self.file = file
        self.files: list[Path] = []
        self.damage: list[Rejection] = []
        self.starts = array("Q")
        # Where rows are not numbered 1, 2, 3 (blank lines between them): index and row after it.
        self._jumps = array("Q", [0])
        self._rows = array("Q", [1])
        self._keep = keep

    def __len__(self) -> int:
        return max(0, len(self.starts) - 1)

    def at_row(self, index: int, row: int) -> None:
        """Notes the row number of a record; to be called in order, needed only where it jumps."""
        if row != self.row(index):
            self._jumps.append(index)
            self._rows.append(row)

    def row(self, index: int) -> int:
        """The row number of a record."""
        last = len(self._jumps) - 1
        if index < self._jumps[last]:
            last = bisect_right(self._jumps, index) - 1
        return int(self._rows[last] + index - self._jumps[last])

    @abstractmethod
    def slice(self, start: int, stop: int) -> Slice:
        """The records from `start` up to `stop`."""

    def take(self, indices: Sequence[int]) -> Piece:
        runs: list[list[int]] = []
        for i in indices:
            if runs and runs[-1][1] == i:
                runs[-1][1] = i + 1
            else:
                runs.append([i, i + 1])
        parts = []
        for start, stop in runs:
            while start < stop:
                end = min(stop, self._end_of_piece(start))
                parts.append(self.slice(start, end))
                start = end
        return _Slices(parts)

    def fetch(self, indices: Sequence[int]) -> list[Record | Rejection]:
        return self.take(indices).records()

    def pieces(self) -> Iterator[Piece]:
        start = 0
        while start < len(self):
            end = self._end_of_piece(start)
            yield self.slice(start, end)
            start = end

    def _end_of_piece(self, start: int) -> int:
        last = min(start + PIECE_ROWS, len(self))
        fitting = bisect_right(self.starts, self.starts[start] + PIECE_BYTES, start, last + 1) - 1
        return max(start + 1, fitting)


class _RepeatedKey(ValueError):
    """A key that an object has twice: nothing says which of its values is meant."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise _RepeatedKey(times.most_common(1)[0][0])
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parsed(text: bytes, file: str, row: int) -> Record | Rejection:
    """A record of one JSON object."""
    try:
        value = _DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError:
        return Rejection(file=file, row=row, field=None, reason="not UTF-8")
    except _RepeatedKey as error:
        return Rejection(file=file, row=row, field=str(error), reason="given twice")
    # ValueError: not JSON, or a number too long to convert.
    except (ValueError, RecursionError) as error:
        return Rejection(file=file, row=row, field=None, reason=not_json(error))
    return as_record(value, file, row)


def as_record(value: Any, file: str, row: int) -> Record | Rejection:
    if isinstance(value, dict):
        return Record(file=file, row=row, value=value)
    reason = f"{shape_of(value)}, not an object"
    return Rejection(file=file, row=row, field=None, reason=reason)


def not_json(error: Exception) -> str:
    """The reason that a JSON error is counted by."""
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    return f"not JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else f"{error}"
