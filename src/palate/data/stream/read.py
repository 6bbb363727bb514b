"""All rows of a source in memory, with everything that could not be read counted and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palate.data.containers import Rejection
from palate.data.schema import Preference
from palate.data.stream.grouping import Row
from palate.data.stream.stream import RowStream
from palate.errors import DataError
from palate.recipes.schema import DataSource


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """What a source gave. read = rows + rejected + merged + not_drawn.

    Attributes:
        rows: in the order of the source.
        format: name of the reader. why: how it was recognised.
        read: records looked at. available: records there are (`limit` looks at fewer).
        rejected: one entry a record that is no row.
        left_out: parts of rows that the rows do without.
        files: local files read, for digests.
        merged: records that went into the row of an earlier one (formats with an answer a record).
        not_drawn: rows of such formats that are beyond the limit.
    """

    rows: list[Preference]
    format: str
    why: str
    read: int
    available: int
    rejected: list[Rejection]
    left_out: list[Rejection]
    files: list[Path]
    merged: int = 0
    not_drawn: int = 0


def read_source(
    source: DataSource, *, seed: int, keep: Sequence[str] = (), keep_lone: bool = False
) -> ReadResult:
    """Reads a file, folder or hub data set of any known format; see `RowStream`.

    Args:
        keep: columns of the records that rows keep in `extra`, whatever their format reads.
        keep_lone: of a grouped format, an answer without others is a row, too.

    Raises:
        DataError: missing, empty, of no known format, or without one usable row; in one line.
        RecipeError: as `RowStream`.
    """
    stream = RowStream(source, seed=seed, keep=tuple(keep), keep_lone=keep_lone)
    drawn: list[Row] = []
    rejected: list[Rejection] = []
    read = merged = not_drawn = 0
    for chunk in stream.chunks():
        drawn += chunk.rows
        rejected += chunk.rejected
        read += chunk.read
        merged += chunk.merged
        not_drawn += chunk.not_drawn.rows
    if not drawn:
        raise DataError(f"no usable row of {read} as {stream.reader.name}; {rejected[0]}")
    drawn.sort(key=lambda row: row.place)
    return ReadResult(
        rows=unique_ids([row.row for row in drawn]),
        format=stream.reader.name,
        why=stream.why,
        read=read,
        available=stream.available,
        rejected=rejected,
        left_out=[part for row in drawn for part in row.left_out],
        files=stream.records.files,
        merged=merged,
        not_drawn=not_drawn,
    )


def unique_ids(rows: Sequence[Preference]) -> list[Preference]:
    """Ids of the data that repeat get their row number, and a count where that repeats too."""
    seen: dict[str, int] = {}
    unique = []
    for row in rows:
        new = row.id if row.id not in seen else f"{row.id}#{row.row}"
        while new in seen:
            seen[row.id] += 1
            new = f"{row.id}#{row.row}.{seen[row.id]}"
        seen[new] = 1
        unique.append(row if new == row.id else dataclasses.replace(row, id=new))
    return unique
