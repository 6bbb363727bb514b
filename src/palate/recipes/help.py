"""Help text of a recipe class: every key with its type, default and docstring."""

from __future__ import annotations

import inspect
import json
from typing import Any

from pydantic import BaseModel
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from palate.recipes.keys import TAGS, Key, describe, keys_of, tag_of, variant_of
from palate.recipes.losses import Strict


def help_for(cls: type[Strict], *, width: int = 100, colour: bool = False) -> str:
    """Every key of a recipe, dotted, in plain text of the given width."""
    console = Console(width=width, color_system="standard" if colour else None)
    with console.capture() as captured:
        console.print(help_block(cls))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def help_block(cls: type[Strict]) -> Group:
    """`help_for` as something rich can print at any width."""
    parts: list[Any] = []
    variant: type[BaseModel] | None = None
    shared: set[str] = set()
    for key in keys_of(cls):
        if key.name in TAGS:
            continue
        inherited = key.variant is not None and key.name not in key.owner.__annotations__
        if inherited and key.path in shared:
            continue
        if inherited:
            shared.add(key.path)
        elif key.variant is not None and key.owner is not variant:
            parts.append(_variant_line(key))
            variant = key.owner
        parts.append(_key_line(key))
        text = _document(key)
        if text:
            parts.append(Padding(Text(text), (0, 0, 0, 6)))
    return Group(*parts)


def _variant_line(key: Key) -> Padding:
    text = Text(f"{key.section.removesuffix('[]')}.{tag_of(key.owner)}: ", style="dim")
    text.append(str(variant_of(key.owner)), style="bold cyan")
    return Padding(text.append(f"  {_class_document(key.owner)}"), (0, 0, 0, 4))


def _key_line(key: Key) -> Padding:
    text = Text(key.path, style="bold")
    if key.variant is not None and key.name not in key.owner.__annotations__:
        text.append(f" (every {tag_of(key.owner)})", style="dim")
    text.append(f"  {describe(key.info)}", style="green")
    if key.info.is_required():
        text.append("  required", style="red")
    elif not key.is_section or key.info.default in (None, ()):
        text.append(f"  [{_default(key.info.default)}]", style="dim")
    indent = 4 if key.variant is not None else 2
    return Padding(text, (0, 0, 0, indent))


def _document(key: Key) -> str:
    text = " ".join((key.info.description or "").split())
    if key.same_as:
        text = f"{text} Keys as in {key.same_as}.".strip()
    return text


def _class_document(cls: type[BaseModel]) -> str:
    text = cls.__dict__.get("__doc__")
    return " ".join(inspect.cleandoc(text).split()) if text else ""


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, int | float | bool):
        return json.dumps(value)
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)
