"""Arrow tables: Parquet files and `datasets` data sets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from palate.data.containers.base import (
    PIECE_BYTES,
    PIECE_ROWS,
    Piece,
    Record,
    Rejection,
)
from palate.errors import DataError, in_one_line


@dataclass(frozen=True)
class _Part:
    """Rows of a table: as Arrow's own bytes, so that another process can have them.

    Attributes:
        data: an Arrow stream. numbers: the row number of each.
    """

    file: str
    data: Any
    numbers: Sequence[int]

    @property
    def rows(self) -> int:
        return len(self.numbers)

    def records(self) -> list[Record | Rejection]:
        table = pa.ipc.open_stream(pa.py_buffer(self.data)).read_all()
        try:
            values = table.to_pylist()
        except (ValueError, OverflowError, pa.ArrowException):
            # One bad value fails the whole table: take its rows one by one.
            return [self._single(table, k, row) for k, row in enumerate(self.numbers)]
        rows = zip(self.numbers, values, strict=True)
        return [Record(file=self.file, row=row, value=value) for row, value in rows]

    def _single(self, table: pa.Table, k: int, row: int) -> Record | Rejection:
        value: dict[str, Any] = {}
        for name in table.column_names:
            try:
                value[name] = table.column(name)[k].as_py()
            except UnicodeDecodeError:
                return Rejection(file=self.file, row=row, field=name, reason="not UTF-8")
            except (ValueError, OverflowError, pa.ArrowException):
                return Rejection(file=self.file, row=row, field=name, reason="unreadable")
        return Record(file=self.file, row=row, value=value)


@dataclass(frozen=True)
class _Parts:
    parts: list[_Part]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def records(self) -> list[Record | Rejection]:
        return [record for part in self.parts for record in part.records()]


class Table:
    """Records of a table that gives its rows in blocks, in order, and by number."""

    def __init__(
        self,
        length: int,
        *,
        blocks: Callable[[], Iterable[pa.Table]],
        rows: Callable[[list[int]], pa.Table],
        file: str,
        files: Sequence[Path] = (),
        keep: object = None,
    ) -> None:
        """Args: `keep` is held as long as the records are (an unpacked copy)."""
        self._length = length
        self._blocks = blocks
        self._rows = rows
        self.file = file
        self.files = list(files)
        self.damage: list[Rejection] = []
        self._keep = keep

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: Sequence[int]) -> list[Record | Rejection]:
        return self.take(indices).records()

    def take(self, indices: Sequence[int]) -> Piece:
        parts = []
        for start in range(0, len(indices), PIECE_ROWS):
            some = list(indices[start : start + PIECE_ROWS])
            parts.append(_part(self.file, self._rows(some), [i + 1 for i in some]))
        return _Parts(parts)

    def pieces(self) -> Iterator[Piece]:
        at = 0
        for block in self._blocks():
            step = _fitting(block.nbytes, len(block))
            for start in range(0, len(block), step):
                some = block.slice(start, step)
                yield _part(self.file, some, range(at + 1, at + 1 + len(some)))
                at += len(some)


def _part(file: str, table: pa.Table, numbers: Sequence[int]) -> _Part:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return _Part(file, sink.getvalue(), numbers)


def _fitting(size: int, rows: int) -> int:
    """How many rows make a piece, of a table of `rows` rows and `size` bytes."""
    each = max(1, size // max(1, rows))
    return max(1, min(PIECE_ROWS, PIECE_BYTES // each))


def parquet(path: Path, file: str, *, keep: object = None) -> Table:
    """Records of a Parquet file, read a part of a row group at a time.

    Raises:
        DataError: it cannot be read.
    """
    source = _Parquet(path, file)
    return Table(source.length, blocks=source.blocks, rows=source.rows, file=file, keep=keep)


class _Parquet:
    def __init__(self, path: Path, file: str) -> None:
        self._path = path
        self._file = file
        with self._opened() as parquet:
            names = parquet.schema_arrow.names
            if twice := sorted({name for name in names if names.count(name) > 1}):
                named = in_one_line(twice[0])
                raise DataError(f"two columns have one name, '{named}'", file=file)
            about = parquet.metadata
            groups = [about.row_group(i) for i in range(about.num_row_groups)]
            self._ends = list(accumulate(group.num_rows for group in groups))
            size = sum(group.total_byte_size for group in groups)
        self.length = self._ends[-1] if self._ends else 0
        self._step = _fitting(size, self.length)

    def blocks(self, groups: Sequence[int] | None = None) -> Iterator[pa.Table]:
        with self._opened() as parquet:
            batches = parquet.iter_batches(batch_size=self._step, row_groups=groups)
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise _unreadable(error, self._file) from None
                yield pa.Table.from_batches([batch])

    def rows(self, indices: list[int]) -> pa.Table:
        """The rows at `indices`, in that order; only the row groups they are in are read."""
        order = sorted(set(indices))
        blocks: list[pa.Table] = []
        groups = sorted({bisect_right(self._ends, i) for i in order})
        for group in groups:
            at = self._ends[group - 1] if group else 0
            rows_of_group = [i - at for i in order if at <= i < self._ends[group]]
            first = 0
            for block in self.blocks([group]):
                here = [i - first for i in rows_of_group if first <= i < first + len(block)]
                if here:
                    blocks.append(block.take(here))
                first += len(block)
        place = {i: k for k, i in enumerate(order)}
        if not blocks:
            with self._opened() as empty:
                return empty.schema_arrow.empty_table()
        return pa.concat_tables(blocks).take([place[i] for i in indices])

    def _opened(self) -> pq.ParquetFile:
        try:
            # With a buffer, a column is read in steps and not a row group at once.
            return pq.ParquetFile(self._path, buffer_size=1 << 20, pre_buffer=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _unreadable(error, self._file) from None


def dataset(loaded: Any, file: str) -> Table:
    """Records of a `datasets.Dataset`. Images and audio stay bytes: nothing is decoded."""
    raw = loaded.with_format("arrow")
    files = [Path(entry["filename"]) for entry in loaded.cache_files]

    def blocks() -> Iterator[pa.Table]:
        for start in range(0, len(loaded), PIECE_ROWS):
            yield raw[start : start + PIECE_ROWS]

    return Table(len(loaded), blocks=blocks, rows=lambda part: raw[part], file=file, files=files)


def _unreadable(error: BaseException, file: str) -> DataError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return DataError(f"not readable Parquet: {line}", file=file)
