"""Arrow tables: Parquet files and `datasets` data sets."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from palate.data.containers.base import Record, Records, Rejection
from palate.errors import DataError

_AT_ONCE = 1000


class Table:
    """Records of an Arrow table, made into Python values a thousand at a time."""

    def __init__(
        self,
        take: Callable[[list[int]], pa.Table],
        length: int,
        *,
        file: str,
        files: Sequence[Path] = (),
    ) -> None:
        self._take = take
        self._length = length
        self.file = file
        self.files = list(files)
        self.damage: list[Rejection] = []

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: Sequence[int]) -> list[Record | Rejection]:
        found: list[Record | Rejection] = []
        for start in range(0, len(indices), _AT_ONCE):
            part = list(indices[start : start + _AT_ONCE])
            table = self._take(part)
            try:
                values = table.to_pylist()
            except (ValueError, OverflowError, pa.ArrowException):
                # One bad value fails the whole block: take its rows one by one.
                found += [self._single(table, k, i) for k, i in enumerate(part)]
                continue
            rows = zip(part, values, strict=True)
            found += [Record(file=self.file, row=i + 1, value=value) for i, value in rows]
        return found

    def _single(self, table: pa.Table, k: int, i: int) -> Record | Rejection:
        value: dict[str, Any] = {}
        for name in table.column_names:
            try:
                value[name] = table.column(name)[k].as_py()
            except UnicodeDecodeError:
                return Rejection(file=self.file, row=i + 1, field=name, reason="not UTF-8")
            except (ValueError, OverflowError, pa.ArrowException):
                return Rejection(file=self.file, row=i + 1, field=name, reason="unreadable")
        return Record(file=self.file, row=i + 1, value=value)


def parquet(data: bytes | Path, file: str) -> Records:
    """Records of a Parquet file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        table = pq.read_table(io.BytesIO(data) if isinstance(data, bytes) else data)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"not readable Parquet: {_first_line(error)}", file=file) from None
    return Table(table.take, table.num_rows, file=file)


def dataset(found: Any, file: str) -> Records:
    """Records of a `datasets.Dataset`. Images and audio stay bytes: nothing is decoded."""
    raw = found.with_format("arrow")
    files = [Path(entry["filename"]) for entry in found.cache_files]
    return Table(lambda part: raw[part], len(found), file=file, files=files)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
