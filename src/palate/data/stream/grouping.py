"""Answers to one prompt that stand in records of their own, put together again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import NamedTuple

from palate.data.containers import Rejection
from palate.data.schema import Preference

LONE = "the only answer to its prompt"


class Row(NamedTuple):
    """A row as it comes out of a source.

    Attributes:
        place: of its first record in the source. records: that it was made of.
        left_out: parts that it does without.
    """

    row: Preference
    place: int
    records: int = 1
    left_out: tuple[Rejection, ...] = ()


class Group(NamedTuple):
    """Answers to one prompt that follow one another; records without a row between them do not
    part them.

    Attributes:
        file: that the first is from, for messages.
    """

    file: str
    rows: list[Row]


def groups(rows: Sequence[Row], file: str) -> list[Group]:
    """Rows that follow one another and have the same prompt, together."""
    made: list[Group] = []
    for row in rows:
        if made and made[-1].rows[0].row.prompt == row.row.prompt:
            made[-1].rows.append(row)
        else:
            made.append(Group(file, [row]))
    return made


def merge_group(group: Group, *, keep_lone: bool) -> Row | Rejection:
    """One rated row of a group's answers, named after its first.

    Args:
        keep_lone: an answer without others stays the row it is; without, it is rejected.
    """
    first = group.rows[0]
    rows = [row.row for row in group.rows]
    responses = tuple(response for row in rows for response in row.responses)
    if len(responses) < 2:
        if keep_lone:
            return first
        return Rejection(file=group.file, row=first.row.row or 0, field=None, reason=LONE)
    extras = [row.extra for row in rows if row.extra]
    # What they all say alike is said of the row.
    shared = {
        key: value
        for key, value in (extras[0] if len(extras) == len(rows) else {}).items()
        if all(_equal(extra.get(key), value) for extra in extras)
    }
    whole = dataclasses.replace(rows[0], kind="rated", responses=responses, extra=shared or None)
    left_out = tuple(part for row in group.rows for part in row.left_out)
    return Row(whole, first.place, sum(row.records for row in group.rows), left_out)


class OpenGroup:
    """The group at the end of what has been read so far, which the next piece may go on with."""

    def __init__(self) -> None:
        self._group: Group | None = None

    def ended(self, head: Group | None, tail: Group | None) -> list[Group]:
        """The groups that a piece has ended.

        Args:
            head, tail: its first and last group; `tail` is None where it has one alone.
        """
        ended: list[Group] = []
        if head is None:
            return ended
        if self._group is not None:
            if self._group.rows[0].row.prompt == head.rows[0].row.prompt:
                head = Group(self._group.file, [*self._group.rows, *head.rows])
            else:
                ended.append(self._group)
        self._group = head
        if tail is not None:
            ended.append(head)
            self._group = tail
        return ended

    def close(self) -> list[Group]:
        """The last group, at the end of the source."""
        ended = [] if self._group is None else [self._group]
        self._group = None
        return ended


def _equal(first: object, second: object) -> bool:
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
