"""LLaMA-Factory's dataset_info.json, where it lies beside the data: which columns are what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from palate.errors import PalateError
from palate.store.files import read_json

NAME = "dataset_info.json"
_LARGEST = 4 << 20
_UP = 3


@dataclass(frozen=True)
class Layout:
    """What dataset_info.json says of one file.

    Attributes:
        name: of the data set there.
        formatting: alpaca, sharegpt or openai.
        columns: what a column is (messages, chosen ...) -> its name; None where none are named.
        tags: keys and roles of turns.
    """

    name: str
    formatting: str
    columns: Mapping[str, str] | None
    tags: Mapping[str, str]

    def column(self, what: str, default: str) -> str:
        """The name of a column that must be there."""
        return (self.columns or {}).get(what, default)

    def optional(self, what: str, default: str | None = None) -> str | None:
        """The name of a column that may be there: with `columns` given, only where it is named."""
        return default if self.columns is None else self.columns.get(what)


@lru_cache(maxsize=256)
def layout_of(file: str) -> Layout | None:
    """What the nearest dataset_info.json says of a data file: of pairs, and of this file alone.

    It is looked for in the file's folder and the two above it. None where there is none, where it
    does not name the file or its folder, or names it in several ways.
    """
    path = Path(os.path.abspath(file))
    for folder in path.parents[:_UP]:
        found = [layout for layout in _layouts(folder / NAME) if _is_of(path, folder, layout[0])]
        if found:
            first = found[0][1]
            same = (first.formatting, first.columns, first.tags)
            alike = all((o.formatting, o.columns, o.tags) == same for _, o in found)
            return first if alike else None
    return None


def _layouts(path: Path) -> list[tuple[str, Layout]]:
    """The data sets of pairs, each with the name of its file or folder."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return []
        entries = read_json(path)
    except (OSError, ValueError, RecursionError, PalateError):
        return []
    found = []
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if not isinstance(entry, dict) or entry.get("ranking") is not True:
            continue
        file, formatting = entry.get("file_name"), entry.get("formatting", "alpaca")
        if isinstance(file, str) and file and isinstance(formatting, str):
            columns = _names(entry["columns"]) if "columns" in entry else None
            layout = Layout(str(name), formatting, columns, _names(entry.get("tags")))
            found.append((file, layout))
    return found


def _is_of(path: Path, folder: Path, file: str) -> bool:
    named = Path(os.path.normpath(folder / file))
    return named == path or named in path.parents


def _names(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}
