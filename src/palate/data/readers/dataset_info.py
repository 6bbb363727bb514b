"""LLaMA-Factory's dataset_info.json, where it lies beside the data: which columns are what."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context
from palate.data.readers.fields import holds
from palate.data.readers.meaning import checked, refuse, with_meaning
from palate.data.readers.pictures import image_refs
from palate.data.schema import ImageRef, Preference
from palate.errors import PalateError
from palate.store.files import read_json

NAME = "dataset_info.json"
_USUAL = ("instruction", "input", "conversations", "system", "history", "images")
_LARGEST = 4 << 20
_UP = 3


@dataclass(frozen=True)
class Layout:
    """What dataset_info.json says of one file.

    Attributes:
        name: of the data set there; empty for columns as they are usually named.
        formatting: alpaca, sharegpt or openai.
        ranking: whether it holds pairs; if not, answers with a label each (`kto_tag`).
        columns: what a column is (messages, chosen ...) -> its name; None where none are named.
        tags: keys and roles of turns.
    """

    name: str
    formatting: str
    columns: Mapping[str, str] | None
    tags: Mapping[str, str]
    ranking: bool = True

    def column(self, what: str, default: str) -> str:
        """The name of a column that must be there."""
        return (self.columns or {}).get(what, default)

    def optional(self, what: str, default: str | None = None) -> str | None:
        """The name of a column that may be there: with `columns` given, only where it is named."""
        return default if self.columns is None else self.columns.get(what)


@lru_cache(maxsize=256)
def layout_of(file: str) -> Layout | None:
    """What the nearest dataset_info.json says of a data file of pairs or labelled answers.

    It is looked for in the file's folder and the two above it. None where there is none, where it
    does not name the file or its folder, or names it in several ways.
    """
    path = Path(os.path.abspath(file))
    for folder in path.parents[:_UP]:
        named = [layout for layout in _layouts(folder / NAME) if _is_of(path, folder, layout[0])]
        if named:
            first = named[0][1]
            alike = all(replace(layout, name=first.name) == first for _, layout in named)
            return first if alike else None
    return None


def _layouts(path: Path) -> list[tuple[str, Layout]]:
    """The data sets of pairs and of labelled answers, each with the name of its file or folder."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return []
        entries = read_json(path)
    except (OSError, ValueError, RecursionError, PalateError):
        return []
    layouts = []
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if not isinstance(entry, dict):
            continue
        ranking = entry.get("ranking") is True
        columns = _names(entry["columns"]) if "columns" in entry else None
        if not ranking and "kto_tag" not in (columns or {}):
            continue
        file, formatting = entry.get("file_name"), entry.get("formatting", "alpaca")
        if isinstance(file, str) and file and isinstance(formatting, str):
            tags = _names(entry.get("tags"))
            layouts.append((file, Layout(str(name), formatting, columns, tags, ranking)))
    return layouts


def declared_as(
    file: Path,
    columns: set[str],
    formats: Sequence[str],
    needed: Mapping[str, str],
    *,
    ranking: bool,
) -> str | None:
    """What says that a file is of one of these formats; None where nothing does.

    Args:
        needed: what columns must be there -> their names where none are given.
    """
    layout = layout_of(str(file))
    if layout is None or layout.formatting not in formats or layout.ranking is not ranking:
        return None
    names = {layout.column(what, default) for what, default in needed.items()}
    return f"{layout.name} in {NAME} beside it" if names <= columns else None


def images_named(record: Record, layout: Layout) -> tuple[tuple[ImageRef, ...], str]:
    """The record's images, and the name of their column."""
    name = layout.optional("images", "images")
    if name is None:
        refuse(record, "images", "image")
        return (), "images"
    return image_refs(record.value.get(name), name), name


def whole_row(record: Record, row: Preference, layout: Layout, context: Context) -> Preference:
    """The row with all that carries meaning. What dataset_info.json does not name is counted:
    LLaMA-Factory reads the columns that are named there, and no others."""
    if layout.name and layout.columns is not None:
        for name in sorted(with_meaning(record, layout.columns.values())):
            if holds(record.value[name]):
                context.leave_out(name, f"not named in {NAME}")
        return row
    usual = _USUAL if layout.columns is None else layout.columns.values()
    return checked(record, row, with_meaning(record, usual))


def _is_of(path: Path, folder: Path, file: str) -> bool:
    named = Path(os.path.normpath(folder / file))
    return named == path or named in path.parents


def _names(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}
