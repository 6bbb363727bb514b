"""Numbered records, and the rejections that stand in for unreadable ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


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
        field: dotted, None where the whole record is meant.
        reason: without values of the record, so that equal reasons can be counted.
    """

    file: str
    row: int
    field: str | None
    reason: str

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


class Records(Protocol):
    """Records by position, 0-based; rows in messages are `Record.row`.

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


@dataclass
class Listed:
    """Records in memory."""

    items: list[Record | Rejection]
    files: list[Path] = field(default_factory=list)
    damage: list[Rejection] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, indices: Sequence[int]) -> list[Record | Rejection]:
        return [self.items[i] for i in indices]


class Chained:
    """The records of several containers, one after the other."""

    def __init__(self, parts: Sequence[Records]) -> None:
        self.parts = parts
        self.files = [file for part in parts for file in part.files]
        self.damage = [item for part in parts for item in part.damage]
        self._where = [(part, i) for part in parts for i in range(len(part))]

    def __len__(self) -> int:
        return len(self._where)

    def fetch(self, indices: Sequence[int]) -> list[Record | Rejection]:
        found: list[Record | Rejection | None] = [None] * len(indices)
        for part in self.parts:
            mine = [k for k, i in enumerate(indices) if self._where[i][0] is part]
            got = part.fetch([self._where[indices[k]][1] for k in mine]) if mine else []
            for k, item in zip(mine, got, strict=True):
                found[k] = item
        return [item for item in found if item is not None]


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
