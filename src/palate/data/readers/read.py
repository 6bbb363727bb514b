"""From a data source to rows, with everything that could not be read counted and named."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path

from palate.data.containers import Record, Records, Rejection, open_records, source_name
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.registry import reader_named, recognise
from palate.data.schema import Preference
from palate.errors import DataError
from palate.recipes.schema import DataSource

_SAMPLE_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """What a source gave. read = rows + rejected.

    Attributes:
        rows: in the order of the source.
        format: name of the reader. why: how it was recognised.
        read: records looked at. available: records there are (`limit` looks at fewer).
        rejected: one entry a record that is no row.
        left_out: parts of rows that the rows do without.
        files: local files read, for digests.
    """

    rows: list[Preference]
    format: str
    why: str
    read: int
    available: int
    rejected: list[Rejection]
    left_out: list[Rejection]
    files: list[Path]


def read_source(source: DataSource, *, seed: int) -> ReadResult:
    """Reads a file, folder or hub data set of any known format.

    `limit` keeps that many usable rows, drawn with `seed`; the records looked at for them are
    what is counted as read.

    Raises:
        DataError: missing, empty, of no known format, or without one usable row; in one line.
        RecipeError: an unknown `format`, or `split` or `subset` where there are none.
    """
    name = source_name(source)
    records = open_records(source)
    if source.format is not None:
        reader, why = reader_named(source.format), "named by the recipe"
    else:
        reader, why = recognise(*_sample(records, source.path))
    order = list(range(len(records)))
    if source.limit is not None:
        random.Random(f"{seed}|limit|{name}").shuffle(order)
    parsed: list[tuple[int, Preference]] = []
    rejected: list[tuple[int, Rejection]] = []
    left_out: list[tuple[int, Rejection]] = []
    at = 0
    while at < len(order):
        want = len(order) if source.limit is None else source.limit - len(parsed)
        # In the order of the source, which reads tables in blocks.
        part = sorted(order[at : at + want])
        if not part:
            break
        at += len(part)
        for i, record in zip(part, records.fetch(part), strict=True):
            if isinstance(record, Rejection):
                rejected.append((i, record))
                continue
            parts: list[Rejection] = []
            row = _parse(reader, record, name, parts)
            if isinstance(row, Rejection):
                rejected.append((i, row))
            else:
                parsed.append((i, row))
                left_out += [(i, p) for p in parts]
    refused = [item for _, item in sorted(rejected, key=_position)] + records.damage
    if not parsed:
        total = at + len(records.damage)
        raise DataError(f"no usable row of {total} as {reader.name}; {refused[0]}")
    return ReadResult(
        rows=_unique([row for _, row in sorted(parsed, key=_position)]),
        format=reader.name,
        why=why,
        read=at + len(records.damage),
        available=len(records) + len(records.damage),
        rejected=refused,
        left_out=[item for _, item in sorted(left_out, key=_position)],
        files=records.files,
    )


def _parse(
    reader: Reader, record: Record, name: str, parts: list[Rejection]
) -> Preference | Rejection:
    def rejection(field: str | None, reason: str) -> Rejection:
        return Rejection(file=record.file, row=record.row, field=field, reason=reason)

    context = Context(
        source=name,
        id=_id(record, name),
        leave_out=lambda field, reason: parts.append(rejection(field, reason)),
    )
    try:
        return reader.read(record, context)
    except RowError as error:
        return rejection(error.field, error.reason)


def _sample(records: Records, file: str) -> tuple[list[dict[str, object]], str]:
    found = records.fetch(range(min(len(records), _SAMPLE_ROWS)))
    sample = [record.value for record in found if isinstance(record, Record)]
    if not sample:
        first = next((r for r in [*found, *records.damage] if isinstance(r, Rejection)), None)
        raise DataError("no usable row" if first is None else f"no usable row; {first}", file=file)
    return sample, file


def _id(record: Record, name: str) -> str:
    own = record.value.get("id")
    if isinstance(own, (str, int)) and not isinstance(own, bool) and str(own).strip():
        return f"{name}:{own}"
    stem = Path(record.file).name.partition(".")[0]
    return f"{name}:{record.row}" if stem == name else f"{name}:{stem}:{record.row}"


def _unique(rows: list[Preference]) -> list[Preference]:
    """Ids of the data that repeat get their row number, and a count where that repeats too."""
    seen: dict[str, int] = {}
    found = []
    for row in rows:
        new = row.id if row.id not in seen else f"{row.id}#{row.row}"
        while new in seen:
            seen[row.id] += 1
            new = f"{row.id}#{row.row}.{seen[row.id]}"
        seen[new] = 1
        found.append(row if new == row.id else dataclasses.replace(row, id=new))
    return found


def _position(item: tuple[int, object]) -> int:
    return item[0]
