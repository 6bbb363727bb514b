"""What a reader is, and how a record is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.schema import Content, Kind, Preference, Response


class RowError(Exception):
    """A record that cannot be read as a row of its format; it is counted, not shown as an error.

    Attributes:
        field: dotted, None where no one field is at fault.
        reason: without values of the record, so that equal reasons can be counted.
    """

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True)
class Context:
    """What a reader is told besides the record.

    Attributes:
        source: name of the data set. id: of the row.
        leave_out: notes a part (field, reason) that the row does without, to be counted.
    """

    source: str
    id: str
    leave_out: Callable[[str, str], None]

    def row(
        self,
        record: Record,
        kind: Kind,
        *,
        prompt: Content,
        responses: Sequence[Response],
        margin: float | None = None,
        tie: bool = False,
        extra: dict[str, Any] | None = None,
        conversation: bool = False,
    ) -> Preference:
        """The row of a record, named by its source."""
        return Preference(
            id=self.id,
            source=self.source,
            kind=kind,
            prompt=prompt,
            responses=tuple(responses),
            margin=margin,
            tie=tie,
            row=record.row,
            extra=extra,
            conversation=conversation,
        )

    def usable(
        self, entries: Any, field: str, parse: Callable[[Any, str], Response], scored: str
    ) -> list[Response]:
        """The answers of a list that can be used; the others are left out, the row is not.

        Args:
            parse: makes a response of an entry and the name of its field.
            scored: how answers are told apart, for the reason.

        Raises:
            RowError: no list, or fewer than two of them.
        """
        if not isinstance(entries, list):
            raise RowError(field, f"{shape_of(entries)}, not a list")
        responses = []
        for i, entry in enumerate(entries):
            try:
                responses.append(parse(entry, f"{field}.{i}"))
            except RowError as error:
                self.leave_out(error.field or field, error.reason)
        if len(responses) < 2:
            raise RowError(field, f"fewer than two usable {scored} answers")
        return responses


Recognise = Callable[[set[str], Sequence[dict[str, Any]]], str | None]
"""Columns and some records -> why they are of this format; None where they are not."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One public format.

    Attributes:
        name: what `format` in a recipe says.
        shape: its fields, for messages.
        kind: of its rows.
        recognise: tells the format by columns and some records.
        read: makes a row of a record, or raises RowError; never alters text.
        reads: the columns of `MEANING`, and of images of one answer, that it reads, or leaves
            aside as its description says.
        specificity: of two readers that recognise a file, the higher one reads it.
        hub: hub names, "owner/name", of data in this format: a source of such a name, or in a
            folder of it, goes to this reader if it recognises the columns too.
        licence: as published, for the data card; "see source" where it is mixed.
        grouped: records that follow one another and have one prompt are answers to it. `read`
            gives a `rated` row with one response, and such rows are put together afterwards.
        declared: tells a local file, by its path and columns, whose format a file beside it says.
    """

    name: str
    shape: str
    kind: Kind
    recognise: Recognise
    read: Callable[[Record, Context], Preference]
    reads: tuple[str, ...] = ()
    specificity: int = 0
    hub: tuple[str, ...] = ()
    licence: str = ""
    grouped: bool = False
    declared: Callable[[Path, set[str]], str | None] | None = None


def having(names: Collection[str], words: str) -> Recognise:
    """Tells a format by columns that are all there.

    Args:
        words: why, for people.
    """

    def recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
        return words if columns.issuperset(names) else None

    return recognise
