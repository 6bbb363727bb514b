"""What readers of comparisons share: two answers, and a verdict between them."""

from __future__ import annotations

import json
from typing import Any, Literal

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, RowError
from palate.data.readers.fields import check_prompt, numeral
from palate.data.schema import Content, Message, Preference, Response

Verdict = Literal["first", "second", "tie"]

PARTED = "the conversations differ before the last answer"
"""Counted for conversations of several turns in which each side had its own."""


def user(content: str) -> list[Message]:
    """One turn of the user."""
    return [{"role": "user", "content": content}]


def assistant(content: str) -> list[Message]:
    """One turn of the assistant."""
    return [{"role": "assistant", "content": content}]


def compared(
    record: Record,
    context: Context,
    *,
    prompt: Content,
    sides: tuple[Response, Response],
    verdict: Verdict,
    field: str,
    margin: float | None = None,
    extra: dict[str, Any] | None = None,
) -> Preference:
    """The pair of two answers.

    Args:
        sides: first and second answer. verdict: which is the better one.
        field: the second answer's, named where both are the same.
        margin: 0 or more; of a tie it is 0.
    """
    first, second = sides
    if first.content == second.content:
        raise RowError(field, "identical to the other answer")
    return context.row(
        record,
        "pair",
        prompt=prompt,
        responses=(second, first) if verdict == "second" else (first, second),
        margin=margin,
        tie=verdict == "tie",
        extra=extra,
    )


def strength(record: Record, name: str, *, limit: float = 3.0) -> tuple[Verdict, float]:
    """A number from -limit (first much better) over 0 (a tie) to limit (second much better).

    Returns:
        the verdict, and how strong it is, 0 or more.
    """
    value = numeral(record.value.get(name), name)
    if value is None:
        raise RowError(name, "null" if name in record.value else "missing")
    if abs(value) > limit:
        raise RowError(name, f"not from {-limit:g} to {limit:g}")
    if value == 0:
        return "tie", 0.0
    return ("first" if value < 0 else "second"), abs(value)


def last_answers(
    first: list[Message], second: list[Message], fields: tuple[str, str]
) -> tuple[list[Message], str, str]:
    """The turns that two conversations share, and the two last answers.

    Args:
        fields: of the conversations.
    """
    for chat, field in zip((first, second), fields, strict=True):
        last = chat[-1]
        if last["role"] != "assistant":
            raise RowError(field, "does not end with the assistant's turn")
        if not str(last["content"]).strip():
            raise RowError(f"{field}.{len(chat) - 1}.content", "empty")
    if first[:-1] != second[:-1]:
        raise RowError(None, PARTED)
    check_prompt(first[:-1], fields[0])
    return first[:-1], str(first[-1]["content"]), str(second[-1]["content"])


def listed(value: Any, field: str) -> list[Any]:
    """A list, also one that is written out as JSON in a text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(field, "text that is no JSON list") from None
        if not isinstance(value, list):
            raise RowError(field, "text that is no JSON list")
    if not isinstance(value, list):
        raise RowError(field, f"{shape_of(value)}, not a list")
    return value


def named(value: Any) -> str | None:
    """A name that a row keeps for reports; None of what is no text that could be written."""
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return value


def notes(record: Record, *names: str) -> dict[str, Any] | None:
    """Those fields that hold a text, for the row to keep; None where no field does."""
    kept = {name: note for name in names if (note := named(record.value.get(name))) is not None}
    return kept or None


def has(sample: Any, column: str, *keys: str) -> bool:
    """Whether some record's `column` is a list whose first entry is an object with these keys."""
    for row in sample:
        entries = row.get(column)
        first = entries[0] if isinstance(entries, list) and entries else None
        if isinstance(first, dict) and set(keys) <= first.keys():
            return True
    return False
