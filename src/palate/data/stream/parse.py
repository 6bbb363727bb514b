"""Parses a piece of a source into rows and rejections, in this process or in another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from palate.data.containers import Record, Rejection
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.meaning import read_row
from palate.data.readers.registry import reader_named
from palate.data.schema import Preference
from palate.data.stream.draw import Span
from palate.data.stream.grouping import Group, Row, groups, merge_group

T = TypeVar("T")


class NotDrawn(NamedTuple):
    """Rows beyond a limit, and the records that they were made of."""

    rows: int = 0
    records: int = 0

    @classmethod
    def of(cls, rows: Iterable[Row]) -> NotDrawn:
        sizes = [row.records for row in rows]
        return cls(len(sizes), sum(sizes))


@dataclass(kw_only=True)
class Chunk:
    """What a piece gave. Over a whole source read = rows + not drawn + merged + rejected.

    Attributes:
        file: that its records came from, for messages.
        first: place of its first record in the source.
        merged: records that went into the row of an earlier one.
        head, tail: of a grouped format, the answers to the first and to the last prompt, which the
            pieces before and after may go on with; `tail` is None where there is one prompt.
        not_drawn: what is now known to be beyond the limit.
    """

    file: str
    first: int = 0
    read: int = 0
    rows: list[Row] = field(default_factory=list)
    merged: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    head: Group | None = None
    tail: Group | None = None
    not_drawn: NotDrawn = field(default_factory=NotDrawn)

    def add(self, made: Row | Rejection) -> None:
        """Counts what a group has become."""
        if isinstance(made, Rejection):
            self.rejected.append(made)
        else:
            self.rows.append(made)
            self.merged += made.records - 1

    @property
    def left_out(self) -> list[Rejection]:
        """Parts that its rows do without."""
        return [part for row in self.rows for part in row.left_out]


@dataclass(frozen=True, kw_only=True)
class RowParser:
    """Makes rows of the records of one source; may be sent to another process.

    Attributes:
        source: its name. path: as the user gave it, for messages. format: name of the reader.
        keep: columns of the records that rows keep in `extra`, whatever their format reads.
        keep_lone: of a grouped format, an answer without others is a row, too.
    """

    source: str
    path: str
    format: str
    keep: tuple[str, ...] = ()
    keep_lone: bool = False

    def chunk(self, span: Span) -> Chunk:
        """Reads a piece."""
        reader = reader_named(self.format)
        records = span.piece.records()
        file = records[0].file if records else self.path
        chunk = Chunk(file=file, first=span.places[0] if records else 0, read=len(records))
        rows = chunk.rows
        for place, record in zip(span.places, records, strict=True):
            parts: list[Rejection] = []
            row = parse_record(reader, record, self.source, parts)
            if isinstance(row, Rejection):
                chunk.rejected.append(row)
            else:
                if self.keep:
                    row = self._with_columns(row, record)
                rows.append(Row(row, place, 1, tuple(parts)) if parts else Row(row, place))
        if reader.grouped and rows:
            grouped = groups(rows, chunk.file)
            chunk.rows = []
            chunk.head = grouped[0]
            chunk.tail = grouped[-1] if len(grouped) > 1 else None
            for group in grouped[1:-1]:
                chunk.add(self.merged(group))
        return chunk

    def merged(self, group: Group) -> Row | Rejection:
        """The row of a whole group."""
        return merge_group(group, keep_lone=self.keep_lone)

    def _with_columns(self, row: Preference, record: Record | Rejection) -> Preference:
        assert isinstance(record, Record)
        columns = {name: record.value.get(name) for name in self.keep}
        return dataclasses.replace(row, extra={**(row.extra or {}), **columns})


def parse_record(
    reader: Reader, record: Record | Rejection, source: str, parts: list[Rejection]
) -> Preference | Rejection:
    """The row of a record, or why there is none.

    Args:
        source: its name.
        parts: gets what the row does without.
    """
    if isinstance(record, Rejection):
        return record
    context = Context(
        source=source,
        id=_id(record, source),
        leave_out=lambda field, reason: parts.append(_rejection(record, field, reason)),
    )
    try:
        return read_row(reader, record, context)
    except RowError as error:
        return _rejection(record, error.field, error.reason)


def parsed(parse: Callable[[Record], T], record: Record | Rejection) -> T | Rejection:
    """What `parse` makes of a record; a rejection where it raises RowError or is given one."""
    if isinstance(record, Rejection):
        return record
    try:
        return parse(record)
    except RowError as error:
        return _rejection(record, error.field, error.reason)


def _rejection(record: Record, field: str | None, reason: str) -> Rejection:
    return Rejection(file=record.file, row=record.row, field=field, reason=reason)


def _id(record: Record, source: str) -> str:
    given = record.value.get("id")
    if isinstance(given, (str, int)) and not isinstance(given, bool) and _is_name(str(given)):
        return f"{source}:{given}"
    return f"{_beginning(record.file, source)}:{record.row}"


@lru_cache(maxsize=256)
def _beginning(file: str, source: str) -> str:
    stem = Path(file).name.partition(".")[0]
    return source if stem == source else f"{source}:{stem}"


def _is_name(given: str) -> bool:
    # Half a surrogate pair is no Unicode text and could not be written.
    return bool(given.strip()) and (
        given.isascii() or not any("\ud800" <= c <= "\udfff" for c in given)
    )
