"""Columns of the prompts' rows, which some scorers read besides prompt and response."""

from __future__ import annotations

import json
from typing import Any

from palate.data.scorer import Group
from palate.recipes import scorers as recipes

NO_COLUMN = "nothing in column {} of its prompt"


def columns_read(recipe: recipes.Scorer) -> tuple[str, ...]:
    """The columns that a scorer and those it is made of read, each once."""
    names = [
        name
        for _, part in recipes.parts_of(recipe)
        if isinstance(part, recipes.ScorerBase)
        for name in part.column_names
    ]
    return tuple(dict.fromkeys(names))


def text_of(group: Group, name: str) -> str | None:
    """A column's value as text; None where there is none."""
    value = group.columns.get(name)
    return None if value is None else str(value)


def structure_of(group: Group, name: str) -> Any:
    """A column's value; one that is written out as JSON is read. None where there is none."""
    value = group.columns.get(name)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
