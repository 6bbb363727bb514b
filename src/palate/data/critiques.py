"""Critiques of responses that a row of data holds beside them, in `Preference.extra`."""

from __future__ import annotations

from typing import Any

from palate.data.schema import Preference
from palate.recipes.critiques import CritiqueColumns


def columns_of(columns: CritiqueColumns) -> tuple[str, ...]:
    """Names of the columns to keep when the data is read."""
    given = (columns.column, columns.chosen, columns.rejected)
    return tuple(name.partition(".")[0] for name in given if name is not None)


def critiques_of(row: Preference, columns: CritiqueColumns) -> list[str | None] | None:
    """The critique of each response of a row, None of one without; None of a row whose column does
    not list one for each, or that is no pair where the columns are of pairs."""
    extra = row.extra or {}
    if columns.chosen is not None and columns.rejected is not None:
        if row.kind != "pair":
            return None
        return [filled_text(extra.get(name)) for name in (columns.chosen, columns.rejected)]
    assert columns.column is not None
    values = listed(extra, columns.column)
    if values is None or len(values) != len(row.responses):
        return None
    return list(map(filled_text, values))


def listed(extra: dict[str, Any], column: str) -> list[Any] | None:
    """The values of a column that is a list, or of a key of its items; a text is a list of one."""
    name, _, key = column.partition(".")
    value = extra.get(name)
    if isinstance(value, str) and not key:
        return [value]
    if not isinstance(value, list):
        return None
    if not key:
        return value
    return [item.get(key) if isinstance(item, dict) else None for item in value]


def filled_text(value: Any) -> str | None:
    """A text without white space at its ends; None of what is none, or blank."""
    return value.strip() if isinstance(value, str) and value.strip() else None
