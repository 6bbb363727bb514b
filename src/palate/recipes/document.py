"""A recipe file as plain values, with the line that every key came from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palate.errors import RecipeError, in_one_line
from palate.recipes.yaml import KeyPath, dotted, parse_yaml


@dataclass
class Document:
    """Values of a recipe and their origin.

    Attributes:
        value: nested dicts and lists.
        origins: where each key was written: "file.yaml, line 3, column 5", or
            "--set a.b=1".
        name: of the file, for messages about what is missing.
    """

    value: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)
    name: str = "recipe"

    def origin(self, path: KeyPath) -> str:
        """Where the value at `path`, or the nearest section above it, was written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.name

    def order(self, path: KeyPath) -> int:
        """Position of `path`, or of the nearest section above it, in the order of writing."""
        known = [place for place, key in enumerate(self.origins) if key == path[: len(key)]]
        return max(known, default=-1)

    def set(self, keys: KeyPath, value: Any, origin: str) -> None:
        """Puts `value` at `keys`, making sections on the way; digits count the items of a list.

        Raises:
            RecipeError: the keys lead through a value that is no section, or past a list's end.
        """
        here: Any = self.value
        path: KeyPath = ()
        for depth, part in enumerate(keys):
            if isinstance(here, list):
                key: str | int = _index(here, part, keys, origin)
            elif isinstance(here, dict):
                key = str(part)
            else:
                shown = in_one_line(repr(here))
                raise RecipeError(
                    f"{origin}: `{dotted(keys)}` leads through {shown}, which has no keys"
                )
            path = (*path, key)
            if depth == len(keys) - 1:
                here[key] = value
            elif isinstance(here, dict) and here.get(str(key)) is None:
                here[key] = {}
                self.origins[path] = origin
            here = here[key]
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin


def read_document(path: Path) -> Document:
    """Reads a YAML recipe.

    Raises:
        RecipeError: unreadable, not UTF-8, malformed, a key given twice, or no mapping.
    """
    name = in_one_line(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read recipe {name}: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise RecipeError(f"{name}, line {line}, column {column}: not UTF-8") from None
    return parse_document(text, name)


def parse_document(text: str, name: str) -> Document:
    """Parses the text of a recipe; `name` is what messages call it. See `read_document`."""
    document = Document({}, name=name)
    value = parse_yaml(text, name, document.origins)
    if value is not None and not isinstance(value, dict):
        raise RecipeError(f"{name}, line 1, column 1: a recipe is a mapping of keys")
    document.value = value or {}
    return document


def apply_override(document: Document, override: str) -> None:
    """Applies one `a.b=value`; the value is YAML, list items are numbered from 0.

    Raises:
        RecipeError: no `=`, an empty key or a value that cannot be read.
    """
    key, equals, text = override.partition("=")
    path = key_path(key.strip())
    origin = f"--set {in_one_line(override)}"
    if not equals or "" in path:
        raise RecipeError(f"{origin}: write it as section.key=value")
    document.set(path, parse_yaml(text, origin, positions=False), origin)


def key_path(key: str) -> KeyPath:
    """`data.train.0` as `("data", "train", 0)`: numbers, of digits 0-9, are places in a list."""
    parts = key.split(".")
    return tuple(int(p) if re.fullmatch(r"0|[1-9][0-9]{0,8}", p) else p for p in parts)


def _index(here: list[Any], part: str | int, path: KeyPath, origin: str) -> int:
    if not isinstance(part, int) or part >= len(here):
        raise RecipeError(
            f"{origin}: `{dotted(path)}` goes through a list of {len(here)}; items count from 0"
        )
    return part
