"""What a reader is, and how a record is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.data.containers import Record
from palate.data.schema import Kind, Preference


class RowError(Exception):
    """A record that is no row of its format; never seen by the user as such.

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
        reads: the columns of `MEANING` that it reads, or leaves aside as its description says.
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
