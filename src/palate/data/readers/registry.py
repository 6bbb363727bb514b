"""All readers: every module here that has a `READER`, so that adding a format is adding a file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from palate.data.readers.base import Reader
from palate.errors import DataError, RecipeError

_PACKAGE = "palate.data.readers"


@cache
def readers() -> dict[str, Reader]:
    """The readers by name, the most specific first."""
    modules = iter_modules(import_module(_PACKAGE).__path__)
    found = [getattr(import_module(f"{_PACKAGE}.{m.name}"), "READER", None) for m in modules]
    known = [reader for reader in found if isinstance(reader, Reader)]
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


def recognise(sample: Sequence[dict[str, Any]], file: str) -> tuple[Reader, str]:
    """The reader of records like these, and why it is the one.

    Raises:
        DataError: of no known format, or of two that are equally likely.
    """
    columns = {str(name) for row in sample for name in row}
    found = [(r, why) for r in readers().values() if (why := r.recognise(columns, sample))]
    best = [(r, why) for r, why in found if r.specificity == found[0][0].specificity]
    if len(best) == 1:
        return best[0]
    there = ", ".join(sorted(columns)) or "none"
    if best:
        names = " or ".join(r.name for r, _ in best)
        raise DataError(f"could be {names} (columns: {there}): name one with `format`", file=file)
    known = "; ".join(f"{r.name} ({r.shape})" for r in readers().values())
    raise DataError(f"of no known format (columns: {there}); known: {known}", file=file)
