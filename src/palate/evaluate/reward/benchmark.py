"""What a benchmark is: how its files are read, and how its own score is defined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from palate.data.containers import (
    Record,
    Records,
    Rejection,
    named,
    open_records,
    source_name,
)
from palate.data.ledger import digest
from palate.data.stream import Draw, parsed
from palate.errors import DataError
from palate.evaluate.reward.items import BenchmarkItem, Scores, digest_items, unique
from palate.recipes.schema import DataSource

REPEATED = "a row that an earlier one gave already"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One published number of a benchmark, and the same for "the longer one wins".

    Attributes:
        name: section, domain or style. value: 0..1 (of Ties of RewardBench 2, to 1.01). ci: None
            where it has no simple one. n: prompts (or pairs) behind it. of: what n counts.
        ties: prompts (or pairs) that equal scores decide; of RM-Bench, of whose prompts each has
            several, comparisons with equal scores. None where there is no such number.
    """

    name: str
    value: float
    n: int
    ci: tuple[float, float] | None = None
    of: str = "prompts"
    ties: int | None = None


@dataclass(frozen=True, kw_only=True)
class Official:
    """A benchmark's own score.

    Attributes:
        value: the headline, 0..1; None where what is there is not enough for it.
        columns: what it is made of. detail: whatever else is published with it.
        notes: what differs from the published benchmark (missing subsets, other counts).
    """

    value: float | None
    columns: tuple[Column, ...]
    detail: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Read:
    """What was read for a benchmark.

    Attributes:
        entries: one a source, for data.json. quarantine: lines of quarantine.jsonl.
    """

    items: list[BenchmarkItem]
    entries: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]


class Benchmark(Protocol):
    """One benchmark.

    Attributes:
        title: as papers write it. definition: how the headline is made, in a sentence.
        version: raised whenever the same scores would give another result.
    """

    title: str
    definition: str
    version: int

    def read(self, sources: Sequence[DataSource], seed: int) -> Read:
        """Its items.

        Raises:
            DataError: a file that cannot be read, or that holds nothing of this benchmark.
        """
        ...

    def official(
        self, items: Sequence[BenchmarkItem], scores: Scores, confidence: float
    ) -> Official:
        """Its own score, as published."""
        ...


Parse = Callable[[Record], BenchmarkItem]


def read_items(
    sources: Sequence[DataSource],
    parse_of: Callable[[DataSource], Parse],
    seed: int,
    shape: str,
    *,
    key: Callable[[BenchmarkItem], str] | None = None,
) -> Read:
    """Items of files whose every record is one; one that an earlier row gave already is rejected,
    and others of its id are numbered.

    Args:
        parse_of: of a source what makes an item of a record, or raises RowError.
        shape: the format in words, for data.json and messages.
        key: of items with equal keys the first alone counts; default: of those that are equal in
            id, prompt and responses.

    Raises:
        DataError: nothing usable in a source.
    """
    items: list[BenchmarkItem] = []
    entries: list[dict[str, Any]] = []
    quarantine: list[dict[str, Any]] = []
    seen: set[str] = set()

    def item_of(parse: Parse, record: Record | Rejection) -> BenchmarkItem | Rejection:
        item = parsed(parse, record)
        if isinstance(item, Rejection):
            return item
        item_key = (key or _whole)(item)
        if item_key in seen:
            assert isinstance(record, Record)
            return Rejection(file=record.file, row=record.row, field=None, reason=REPEATED)
        seen.add(item_key)
        return item

    for source in named(sources):
        records = open_records(source)
        name = source_name(source)
        make = partial(item_of, parse_of(source))
        drawn_items = _drawn(records, source.limit, seed, name, make)
        kept = [item for item in drawn_items if isinstance(item, BenchmarkItem)]
        rejected = [item for item in drawn_items if isinstance(item, Rejection)] + records.damage
        if not kept:
            why = f"; {rejected[0]}" if rejected else ""
            raise DataError(f"no usable row of {len(rejected)} as {shape}{why}")
        items += kept
        counts = Counter(item.counted_as for item in rejected)
        entries.append(
            {
                "name": name,
                "path": source.path,
                "format": shape,
                "split_role": "eval",
                "sha256": digest(records.files),
                "available": len(records) + len(records.damage),
                "read": len(kept) + len(rejected),
                "kept": len(kept),
                "rejected": dict(sorted(counts.items())),
                "dropped": {},
                "truncated": {},
            }
        )
        quarantine += [quarantined(name, item) for item in rejected]
    return Read(items=unique(items), entries=entries, quarantine=quarantine)


def quarantined(source: str, item: Rejection) -> dict[str, Any]:
    """The line of quarantine.jsonl of a record that is not used."""
    return {
        "source": source,
        "file": item.file,
        "row": item.row,
        "field": item.field,
        "reason": item.reason,
    }


def _drawn(
    records: Records,
    limit: int | None,
    seed: int,
    name: str,
    item_of: Callable[[Record | Rejection], BenchmarkItem | Rejection],
) -> list[BenchmarkItem | Rejection]:
    """Of all records, or of as many as it takes for `limit` usable ones; in their own order."""
    by_place: list[tuple[int, BenchmarkItem | Rejection]] = []
    draw = Draw(records, limit, seed, name)
    for batch in draw.batches():
        for span in batch:
            for place, record in zip(span.places, span.piece.records(), strict=True):
                item = item_of(record)
                draw.usable += isinstance(item, BenchmarkItem)
                by_place.append((place, item))
    return [item for _, item in sorted(by_place, key=lambda pair: pair[0])]


def _whole(item: BenchmarkItem) -> str:
    return digest_items([item])
