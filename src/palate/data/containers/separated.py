"""CSV files, records that go over several lines included."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from palate.data.containers.base import Record, Rejection, lost
from palate.data.containers.indexed import Indexed, Slice
from palate.errors import DataError

_FIELD_CHARACTERS = 1 << 30


@dataclass(frozen=True, kw_only=True)
class _CsvSlice(Slice):
    """Attributes: header, the names of the columns."""

    header: tuple[str, ...]

    def parse_bytes(self, data: bytes) -> list[Record | Rejection]:
        # Bytes that are no UTF-8 survive as lone surrogates, so that only their own row is lost.
        text = data.decode("utf-8", errors="surrogateescape")
        records: list[Record | Rejection] = []
        with _long_fields():
            reader = csv.reader(io.StringIO(text, newline=""), strict=True)
            while True:
                row = self.first + reader.line_num
                try:
                    cells = next(reader)
                except StopIteration:
                    return records
                except csv.Error as error:
                    reason = f"not CSV: {error}"
                    records.append(Rejection(file=self.file, row=row, field=None, reason=reason))
                    continue
                if cells:
                    records.append(self._record(cells, row))

    def _record(self, cells: list[str], row: int) -> Record | Rejection:
        if len(cells) != len(self.header):
            reason = "not as many cells as the header has columns"
            return Rejection(file=self.file, row=row, field=None, reason=reason)
        for name, cell in zip(self.header, cells, strict=True):
            if _holds_bytes(cell):
                return Rejection(file=self.file, row=row, field=name, reason="not UTF-8")
        value = dict(zip(self.header, cells, strict=True))
        return Record(file=self.file, row=row, value=value, textual=True)


class Separated(Indexed):
    """Records of a CSV file with a header."""

    def __init__(
        self, path: Path, file: str, broken: str | None, *, skip: int = 0, keep: object = None
    ) -> None:
        super().__init__(path, file, keep)
        with path.open("rb") as source, _long_fields():
            source.seek(skip)
            lines = _Lines(source, skip, whole=broken is not None)
            self._index(lines)
        if broken is not None:
            # The last line is half a row.
            self.damage = [lost(file, lines.number + 1, broken)]

    def _index(self, lines: _Lines) -> None:
        reader = csv.reader(lines, strict=True)
        try:
            self.header = tuple(next(reader))
        except (csv.Error, StopIteration) as error:
            raise DataError(f"no CSV header: {error}", file=self.file) from None
        if len(set(self.header)) != len(self.header):
            raise DataError("two columns of the CSV header have one name", file=self.file)
        while True:
            start, row = lines.place, lines.number + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error:
                # Found again, with its reason, when the record is parsed.
                cells = [""]
            if cells:
                self.at_row(len(self.starts), row)
                self.starts.append(start)
        if self.starts:
            self.starts.append(lines.place)

    def slice(self, start: int, stop: int) -> Slice:
        return _CsvSlice(
            path=str(self.path),
            file=self.file,
            start=self.starts[start],
            end=self.starts[stop],
            rows=stop - start,
            first=self.row(start),
            header=self.header,
        )


class _Lines(Iterator[str]):
    """Lines of a file, and how far they have been read.

    Attributes:
        place: the byte after the last line given. number: its number.
    """

    def __init__(self, source: io.BufferedReader, place: int, *, whole: bool) -> None:
        """Args: `whole`, leave out a last line without a line break."""
        self.place = place
        self.number = 0
        self._whole = whole
        self._text = io.TextIOWrapper(
            source, encoding="utf-8", errors="surrogateescape", newline=""
        )

    def __next__(self) -> str:
        line = next(self._text)
        if self._whole and not line.endswith("\n"):
            raise StopIteration
        self.place += len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))
        self.number += 1
        return line


def _holds_bytes(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text)


@contextmanager
def _long_fields() -> Iterator[None]:
    # The limit is global to the csv module: it is restored for other readers of CSV.
    before = csv.field_size_limit(_FIELD_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)
