"""All readers: every module here that has a `READER`, so that adding a format is adding a file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from palate.data.readers.base import Reader
from palate.errors import DataError, RecipeError, in_one_line

_PACKAGE = "palate.data.readers"


@cache
def readers() -> dict[str, Reader]:
    """The readers by name, the most specific first."""
    modules = iter_modules(import_module(_PACKAGE).__path__)
    members = [getattr(import_module(f"{_PACKAGE}.{m.name}"), "READER", None) for m in modules]
    known = [reader for reader in members if isinstance(reader, Reader)]
    return {r.name: r for r in sorted(known, key=lambda r: (-r.specificity, r.name))}


def reader_named(name: str) -> Reader:
    """The reader that a recipe asks for.

    Raises:
        RecipeError: no such format, with the nearest one.
    """
    known = readers()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise RecipeError(f"`format`: no format '{name}'; {hint}known: {', '.join(sorted(known))}")


def recognise(
    sample: Sequence[dict[str, Any]], file: str, files: Sequence[Path] = ()
) -> tuple[Reader, str]:
    """The reader of records like these, and why it is the one.

    What a file beside the data declares goes first, then the hub's name for it, then its columns.

    Args:
        file: path or hub name of the source.
        files: its local files.

    Raises:
        DataError: of no known format, or of two that are equally likely.
    """
    columns = {str(name) for row in sample for name in row}
    declared = [
        (r, r.declared(files[0], columns)) for r in readers().values() if r.declared and files
    ]
    if told := [(r, why) for r, why in declared if why]:
        return told[0]
    candidates = [(r, why) for r in readers().values() if (why := r.recognise(columns, sample))]
    named = [
        (r, f"{why}; named as {hub}") for r, why in candidates if (hub := _published(file, r.hub))
    ]
    candidates = named or candidates
    best = [(r, why) for r, why in candidates if r.specificity == candidates[0][0].specificity]
    if len(best) == 1:
        return best[0]
    there = ", ".join(in_one_line(name) for name in sorted(columns)) or "none"
    if best:
        names = " or ".join(r.name for r, _ in best)
        raise DataError(f"could be {names} (columns: {there}): name one with `format`", file=file)
    # The shapes that people write themselves; a published set has a name to look for.
    general = [r for r in readers().values() if not r.hub]
    known = "; ".join(f"{r.name} ({r.shape})" for r in general)
    published = len(readers()) - len(general)
    raise DataError(
        f"of no known format (columns: {there}); known: {known}; and {published} "
        "published ones (docs/formats.md)",
        file=file,
    )


def _published(source: str, hub: Sequence[str]) -> str | None:
    """The hub name that a source has, or that a folder on its path is named after."""
    parts = {part.lower() for part in Path(source).parts}
    return next((name for name in hub if name.lower().rpartition("/")[2] in parts), None)
