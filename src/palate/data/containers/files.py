"""JSONL, JSON, CSV and Parquet files, plain or gzipped, with exact row numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from palate.data.containers.base import Listed, Record, Records, Rejection, shape_of
from palate.data.containers.gzipped import gunzip
from palate.data.containers.tables import parquet
from palate.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_BOM = b"\xef\xbb\xbf"
_CSV_FIELD_CHARACTERS = 1 << 30


def suffix_of(path: str | Path) -> str | None:
    """The data suffix of a file name without `.gz`; None where it has none that is known."""
    name = Path(path).name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def open_file(path: Path) -> Records:
    """The records of one file.

    Raises:
        DataError: no such file, unknown suffix, empty, or nothing of it can be read.
    """
    file = str(path)
    suffix = suffix_of(path)
    if suffix is None:
        known = ", ".join(SUFFIXES)
        raise DataError(f"no known kind of file; known: {known}, each also .gz", file=file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or str(error), file=file) from None
    broken = None
    if path.name.lower().endswith(".gz"):
        data, broken = gunzip(data, file)
    if suffix == ".parquet":
        if broken is not None:
            raise DataError(broken, file=file)
        found = parquet(data, file)
    else:
        data = data.removeprefix(_BOM)
        if not data.strip():
            raise DataError(broken or "empty", file=file)
        # Many a .json file holds JSON lines.
        array = suffix == ".json" and data.lstrip()[:1] == b"["
        if suffix == ".csv":
            found = _csv(data, file, broken)
        elif array:
            found = _array(data, file, broken)
        else:
            found = Lines(data, file, broken)
    if not len(found) and not found.damage:
        raise DataError("no row", file=file)
    found.files = [path]
    return found


class Lines:
    """JSON lines, parsed when they are asked for. Blank lines are no rows."""

    def __init__(self, data: bytes, file: str, broken: str | None) -> None:
        lines = data.split(b"\n")
        self.file = file
        self.files: list[Path] = []
        self.damage = []
        if broken is not None:
            # The last line is half a row.
            self.damage = [_lost(file, len(lines), broken)]
            lines = lines[:-1]
        self._lines = [(i + 1, line) for i, line in enumerate(lines) if line.strip()]

    def __len__(self) -> int:
        return len(self._lines)

    def fetch(self, indices: Sequence[int]) -> list[Record | Rejection]:
        return [self._parse(*self._lines[i]) for i in indices]

    def _parse(self, row: int, line: bytes) -> Record | Rejection:
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            return Rejection(file=self.file, row=row, field=None, reason="not UTF-8")
        # ValueError: not JSON, or a number too long to convert.
        except (ValueError, RecursionError) as error:
            return Rejection(file=self.file, row=row, field=None, reason=_not_json(error))
        return _object(value, self.file, row)


def _array(data: bytes, file: str, broken: str | None) -> Records:
    """The objects of a JSON array; of a broken one, those before the break."""
    text = data.decode("utf-8", errors="surrogateescape")
    items: list[Record | Rejection] = []
    damage: list[Rejection] = []
    decoder = json.JSONDecoder()
    at = _after_blanks(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        return Listed(items)
    while True:
        row = len(items) + 1
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            damage.append(_lost(file, row, broken or _not_json(error)))
            break
        if _holds_bytes(text[at:end]):
            items.append(Rejection(file=file, row=row, field=None, reason="not UTF-8"))
        else:
            items.append(_object(value, file, row))
        at = _after_blanks(text, end)
        if text[at : at + 1] != ",":
            if text[at : at + 1] != "]":
                reason = broken or "not JSON: no ',' or ']' after an object"
                damage.append(_lost(file, row + 1, reason))
            break
        at = _after_blanks(text, at + 1)
    return Listed(items, damage=damage)


def _csv(data: bytes, file: str, broken: str | None) -> Records:
    damage: list[Rejection] = []
    if broken is not None:
        whole = data.rpartition(b"\n")[0]
        damage.append(_lost(file, whole.count(b"\n") + 2, broken))
        data = whole
    # Bytes that are no UTF-8 survive as lone surrogates, so that only their own row is lost.
    text = data.decode("utf-8", errors="surrogateescape")
    items: list[Record | Rejection] = []
    with _long_csv_fields():
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            header = next(reader)
        except (csv.Error, StopIteration) as error:
            raise DataError(f"no CSV header: {error}", file=file) from None
        if len(set(header)) != len(header):
            raise DataError("two columns of the CSV header have one name", file=file)
        while True:
            row = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                items.append(Rejection(file=file, row=row, field=None, reason=f"not CSV: {error}"))
                continue
            if cells:
                items.append(_cells(header, cells, file, row))
    return Listed(items, damage=damage)


def _cells(header: list[str], cells: list[str], file: str, row: int) -> Record | Rejection:
    if len(cells) != len(header):
        reason = "not as many cells as the header has columns"
        return Rejection(file=file, row=row, field=None, reason=reason)
    for name, cell in zip(header, cells, strict=True):
        if _holds_bytes(cell):
            return Rejection(file=file, row=row, field=name, reason="not UTF-8")
    value = dict(zip(header, cells, strict=True))
    return Record(file=file, row=row, value=value, textual=True)


def _object(value: Any, file: str, row: int) -> Record | Rejection:
    if isinstance(value, dict):
        return Record(file=file, row=row, value=value)
    reason = f"{shape_of(value)}, not an object"
    return Rejection(file=file, row=row, field=None, reason=reason)


def _lost(file: str, row: int, reason: str) -> Rejection:
    return Rejection(file=file, row=row, field=None, reason=f"{reason}; nothing after it is read")


def _not_json(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    return f"not JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else f"{error}"


def _holds_bytes(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text)


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at


@contextmanager
def _long_csv_fields() -> Iterator[None]:
    # The limit is global to the csv module: it is put back for whoever else reads CSV.
    before = csv.field_size_limit(_CSV_FIELD_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)
