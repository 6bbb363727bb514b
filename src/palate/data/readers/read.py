"""From a data source to rows, with everything that could not be read counted and named."""

from __future__ import annotations

import dataclasses
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from palate.data.containers import Record, Records, Rejection, open_records, source_name
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.grouping import LONE, groups, merged
from palate.data.readers.registry import reader_named, recognise
from palate.data.schema import Preference
from palate.errors import DataError, RecipeError
from palate.recipes.schema import DataSource

_SAMPLE_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """What a source gave. read = rows + rejected + merged.

    Attributes:
        rows: in the order of the source.
        format: name of the reader. why: how it was recognised.
        read: records looked at. available: records there are (`limit` looks at fewer).
        rejected: one entry a record that is no row.
        left_out: parts of rows that the rows do without.
        files: local files read, for digests.
        merged: records that went into the row of an earlier one (formats with an answer a record).
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


def read_source(source: DataSource, *, seed: int, keep: Sequence[str] = ()) -> ReadResult:
    """Reads a file, folder or hub data set of any known format.

    `limit` keeps that many usable rows, drawn with `seed`; the records looked at for them are
    what is counted as read.

    Args:
        keep: columns of the records that rows keep in `extra`, whatever their format reads.

    Raises:
        DataError: missing, empty, of no known format, or without one usable row; in one line.
        RecipeError: an unknown `format`, or `split` or `subset` where there are none; `keep` of a
            format whose rows are made of several records.
    """
    name = source_name(source)
    records = open_records(source)
    reader, why = reader_of(source, records)
    if keep and reader.grouped:
        raise RecipeError(
            f"{source.path}: a row of the format {reader.name} is made of several records, whose "
            f"columns cannot be told apart: {', '.join(keep)}"
        )
    order: Sequence[int] = range(len(records))
    # Answers to one prompt follow one another: drawing records one by one would part them.
    limit = None if reader.grouped else source.limit
    if limit is not None:
        order = draw_order(len(records), seed, name)
    parsed: list[tuple[int, Preference]] = []
    rejected: list[tuple[int, Rejection]] = []
    left_out: list[tuple[int, Rejection]] = []
    at = 0
    while at < len(order):
        want = len(order) if limit is None else limit - len(parsed)
        # In the order of the source, which reads tables in blocks.
        part = sorted(order[at : at + want])
        if not part:
            break
        at += len(part)
        for i, record in zip(part, records.fetch(part), strict=True):
            parts: list[Rejection] = []
            row = parse(reader, record, name, parts)
            if isinstance(row, Rejection):
                rejected.append((i, row))
            else:
                if keep and isinstance(record, Record):
                    kept = {column: record.value.get(column) for column in keep}
                    row = dataclasses.replace(row, extra={**(row.extra or {}), **kept})
                parsed.append((i, row))
                left_out += [(i, p) for p in parts]
    refused = [item for _, item in sorted(rejected, key=_position)] + records.damage
    rows = [row for _, row in sorted(parsed, key=_position)]
    merged_away = 0
    if reader.grouped and rows:
        made = [(merged(group), group) for group in groups(rows)]
        refused += [lone_answer(group[0], source.path) for row, group in made if row is None]
        whole = [(row, len(group)) for row, group in made if row is not None]
        if source.limit is not None:
            drawn = sorted(draw_order(len(whole), seed, name)[: source.limit])
            whole = [whole[i] for i in drawn]
        rows = [row for row, _ in whole]
        merged_away = sum(size - 1 for _, size in whole)
        at = len(rows) + merged_away + len(refused) - len(records.damage)
    if not rows:
        total = at + len(records.damage)
        raise DataError(f"no usable row of {total} as {reader.name}; {refused[0]}")
    return ReadResult(
        rows=_unique(rows),
        format=reader.name,
        why=why,
        read=at + len(records.damage),
        available=len(records) + len(records.damage),
        rejected=refused,
        left_out=[item for _, item in sorted(left_out, key=_position)],
        files=records.files,
        merged=merged_away,
    )


def reader_of(source: DataSource, records: Records) -> tuple[Reader, str]:
    """The reader of a source, and how it was found.

    Raises:
        DataError: of no known format, or without one record to tell it by.
        RecipeError: an unknown `format`.
    """
    if source.format is not None:
        return reader_named(source.format), "named by the recipe"
    return recognise(*_sample(records, source.path), records.files)


def draw_order(count: int, seed: int, name: str) -> array[int]:
    """The places 0 .. count - 1 of a source in the order in which `limit` draws them."""
    order = array("Q", range(count))
    random.Random(f"{seed}|limit|{name}").shuffle(order)
    return order


def parse(
    reader: Reader, record: Record | Rejection, name: str, parts: list[Rejection]
) -> Preference | Rejection:
    """The row of a record, or why there is none.

    Args:
        name: of the source.
        parts: gets what the row does without.
    """
    if isinstance(record, Rejection):
        return record

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


def lone_answer(row: Preference, file: str) -> Rejection:
    """What a grouped format's row without a second answer is counted as."""
    return Rejection(file=file, row=row.row or 0, field=None, reason=LONE)


def _sample(records: Records, file: str) -> tuple[list[dict[str, object]], str]:
    found = records.fetch(range(min(len(records), _SAMPLE_ROWS)))
    sample = [record.value for record in found if isinstance(record, Record)]
    if not sample:
        first = next((r for r in [*found, *records.damage] if isinstance(r, Rejection)), None)
        raise DataError("no usable row" if first is None else f"no usable row; {first}", file=file)
    return sample, file


def _id(record: Record, name: str) -> str:
    own = record.value.get("id")
    if isinstance(own, (str, int)) and not isinstance(own, bool) and _is_name(str(own)):
        return f"{name}:{own}"
    return f"{_beginning(record.file, name)}:{record.row}"


@lru_cache(maxsize=256)
def _beginning(file: str, name: str) -> str:
    stem = Path(file).name.partition(".")[0]
    return name if stem == name else f"{name}:{stem}"


def _is_name(own: str) -> bool:
    # Half a surrogate pair is no Unicode text and could not be written.
    return bool(own.strip()) and (own.isascii() or not any("\ud800" <= c <= "\udfff" for c in own))


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
