"""Rows of a source in its order, a few in memory at a time, from any place on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from palate.data.containers import Records, Rejection, open_records
from palate.data.readers.base import Reader
from palate.data.readers.grouping import merged, same_prompt
from palate.data.readers.read import draw_order, parse, reader_of
from palate.data.schema import Preference
from palate.recipes.schema import DataSource

_FETCH = 256
"""Records parsed at a time."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row, or one record that is none.

    Attributes:
        end: place after its last record, in the order in which the source is read.
        records: that it was made of.
        left_out: parts that the row does without.
    """

    item: Preference | Rejection
    end: int
    records: int = 1
    left_out: tuple[Rejection, ...] = ()


class Stream:
    """A data source, open.

    Args:
        source: with its name.
        seed: of drawing rows where the source has a `limit`.

    Raises:
        DataError, RecipeError: as `palate.data.readers.read_source`.

    Attributes:
        damage: what a broken file has lost for good.
    """

    def __init__(self, source: DataSource, *, seed: int) -> None:
        assert source.name is not None
        self.name = source.name
        self.path = source.path
        self.records: Records = open_records(source)
        self.reader: Reader
        self.reader, self.why = reader_of(source, self.records)
        self.damage = self.records.damage
        self.order: Sequence[int] = range(len(self.records))
        if source.limit is not None:
            self.order = self._drawn(source.limit, seed)

    def __len__(self) -> int:
        return len(self.order)

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Everything from a place on, an `end` of an earlier entry."""
        if self.reader.grouped:
            yield from self._groups(start)
            return
        for place, item, parts in self._parsed(self.order, start):
            yield Entry(item=item, end=place + 1, left_out=tuple(parts))

    def _parsed(
        self, order: Sequence[int], start: int = 0
    ) -> Iterator[tuple[int, Preference | Rejection, list[Rejection]]]:
        for first in range(start, len(order), _FETCH):
            part = order[first : first + _FETCH]
            for place, record in enumerate(self.records.fetch(part), first):
                parts: list[Rejection] = []
                item = parse(self.reader, record, self.name, parts)
                yield place, item, parts if isinstance(item, Preference) else []

    def _groups(self, start: int) -> Iterator[Entry]:
        """Answers to one prompt as one row. One without others stays a row: it can be scored."""
        group: list[Preference] = []
        left_out: list[Rejection] = []
        for place, item, parts in self._parsed(self.order, start):
            if isinstance(item, Preference) and group and same_prompt(group[0], item):
                group.append(item)
                left_out += parts
                continue
            if group:
                yield self._whole(group, left_out, place)
                group, left_out = [], []
            if isinstance(item, Rejection):
                yield Entry(item=item, end=place + 1)
            else:
                group, left_out = [item], parts
        if group:
            yield self._whole(group, left_out, len(self.order))

    @staticmethod
    def _whole(group: list[Preference], left_out: list[Rejection], end: int) -> Entry:
        return Entry(
            item=merged(group) or group[0], end=end, records=len(group), left_out=tuple(left_out)
        )

    def _drawn(self, limit: int, seed: int) -> Sequence[int]:
        """Places of the records looked at for `limit` usable rows."""
        if self.reader.grouped:
            spans = [
                (entry.end - entry.records, entry.end)
                for entry in self._groups(0)
                if isinstance(entry.item, Preference)
            ]
            chosen = sorted(draw_order(len(spans), seed, self.name)[:limit])
            return [place for k in chosen for place in range(*spans[k])]
        order = draw_order(len(self.records), seed, self.name)
        found = at = 0
        while found < limit and at < len(order):
            stop = min(at + limit - found, len(order))
            part = sorted(order[at:stop])
            found += sum(isinstance(item, Preference) for _, item, _ in self._parsed(part))
            at = stop
        return sorted(order[:at])
