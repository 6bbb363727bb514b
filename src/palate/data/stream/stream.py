"""The rows of a source, a few in memory at a time: opened, recognised, parsed, grouped, limited.

Everybody who reads preference data reads it here: training, building, inspecting, scoring and
evaluating.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from palate.data.containers import Record, Records, Rejection, open_records, source_name
from palate.data.readers.base import Reader
from palate.data.readers.fields import holds
from palate.data.readers.registry import reader_named, recognise
from palate.data.stream.draw import Draw, Least
from palate.data.stream.grouping import OpenGroup, Row
from palate.data.stream.parse import Chunk, NotDrawn, RowParser, parse_record
from palate.errors import DataError, RecipeError, in_one_line
from palate.recipes.schema import DataSource

_SAMPLE_ROWS = 100
_SHOWN_NAMES, _SHOWN_CHARACTERS = 8, 40


class RowStream:
    """A data source, open.

    `limit` keeps that many usable rows, drawn with the seed, see `draw`. Of a format with a row a
    record, only as many records are read as that takes; of a grouped format all are, because rows
    are drawn once they are whole.

    Attributes:
        name: of the source. path: as the user gave it.
        reader: of its format. why: how that was found, and which columns are not read.
        parser: makes rows of its pieces.
    """

    def __init__(
        self,
        source: DataSource,
        *,
        seed: int,
        scratch: Path | None = None,
        keep: tuple[str, ...] = (),
        keep_lone: bool = False,
    ) -> None:
        """Args: `scratch` is a folder for unpacked copies; `keep`, `keep_lone`: see `RowParser`.

        Raises:
            DataError: missing, empty, or of no known format; in one line.
            RecipeError: an unknown `format`, or `split` or `subset` where there are none; `keep` of
                a format whose rows are made of several records.
        """
        self.name = source_name(source)
        self.path = source.path
        self.records: Records = open_records(source, scratch)
        self.reader, self.why = reader_of(source, self.records)
        if keep and self.reader.grouped:
            raise RecipeError(
                f"{source.path}: a row of the format {self.reader.name} is made of several records,"
                f" whose columns cannot be told apart: {', '.join(keep)}"
            )
        self.parser = RowParser(
            source=self.name,
            path=self.path,
            format=self.reader.name,
            keep=keep,
            keep_lone=keep_lone,
        )
        self.limit = source.limit
        self._seed = seed

    @property
    def available(self) -> int:
        """Records there are, those that a broken file has lost for good included."""
        return len(self.records) + len(self.records.damage)

    def __len__(self) -> int:
        """About how many records are read: exact unless a limit meets records without a row."""
        if self.limit is None or self.reader.grouped:
            return len(self.records)
        return min(self.limit, len(self.records))

    def draw(self) -> Draw:
        """Its pieces, for those who read them in other processes. Groups at the borders of pieces
        are for the caller to join, and to draw from."""
        limit = None if self.reader.grouped else self.limit
        return Draw(self.records, limit, self._seed, self.name)

    def chunks(self) -> Iterator[Chunk]:
        """What its pieces give, one after another, with groups joined and drawn, and at the end
        what a broken file has lost."""
        return self._chunks(0)

    def entries(self, start: int = 0) -> Iterator[Row | Rejection | NotDrawn]:
        """All of that one by one, in the same order each time.

        Args:
            start: how many to skip.
        """
        # Where each record is one of them, those before need not be read again.
        direct = self.limit is None and not self.reader.grouped
        place = 0
        for chunk in self._chunks(start if direct else 0):
            place = chunk.first if direct else place
            entries: list[Row | Rejection | NotDrawn] = [*chunk.rejected, *chunk.rows]
            if chunk.not_drawn.rows:
                entries.append(chunk.not_drawn)
            yield from entries[max(0, start - place) :]
            place += len(entries)

    def _chunks(self, start: int) -> Iterator[Chunk]:
        grouped, end = self.reader.grouped, len(self.records)
        draw, group = self.draw(), OpenGroup()
        least = None
        if grouped and self.limit is not None:
            least = Least[Row](self.limit, self._seed, self.name)
        for batch in draw.batches():
            for span in batch:
                if span.places[-1] < start:
                    continue
                chunk = self.parser.chunk(span)
                inner, chunk.rows = chunk.rows, []
                for ended in group.ended(chunk.head, chunk.tail):
                    chunk.add(self.parser.merged(ended))
                chunk.rows += inner
                draw.usable += len(chunk.rows)
                if least is not None:
                    chunk.not_drawn = NotDrawn.of(least.add(chunk.rows))
                    chunk.rows = []
                yield chunk
        last = Chunk(file=self.path, first=end, read=len(self.records.damage))
        for ended in group.close():
            last.add(self.parser.merged(ended))
        last.rejected += self.records.damage
        if least is not None:
            last.not_drawn = NotDrawn.of(least.add(last.rows))
            last.rows = least.kept()
        yield last


def reader_of(source: DataSource, records: Records) -> tuple[Reader, str]:
    """The reader of a source, how it was found, and the columns that it does not read, in words.

    Raises:
        DataError: of no known format, or without one record to tell it by.
        RecipeError: an unknown `format`.
    """
    first_records = records.fetch(range(min(len(records), _SAMPLE_ROWS)))
    sample = [record for record in first_records if isinstance(record, Record)]
    if source.format is not None:
        reader, why = reader_named(source.format), "named by the recipe"
    elif sample:
        reader, why = recognise([record.value for record in sample], source.path, records.files)
    else:
        faults = [r for r in [*first_records, *records.damage] if isinstance(r, Rejection)]
        reason = f"no usable row; {faults[0]}" if faults else "no usable row"
        raise DataError(reason, file=source.path)
    return reader, why + _not_read(reader, sample)


class _Watched(dict[str, Any]):
    """The columns of a record; `read` gets those that somebody looks at."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        super().__init__(columns)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def _not_read(reader: Reader, records: Sequence[Record]) -> str:
    """In words, the columns that the rows of these records do without."""
    read: set[str] = set()
    filled: set[str] = set()
    for record in records:
        columns = _Watched(record.value)
        row = parse_record(reader, dataclasses.replace(record, value=columns), "", [])
        if not isinstance(row, Rejection):
            read |= columns.read
            filled |= {name for name, value in record.value.items() if holds(value)}
    names = [in_one_line(name)[:_SHOWN_CHARACTERS] for name in sorted(filled - read)]
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"; not read: {', '.join(names[:_SHOWN_NAMES])}{more}" if names else ""
