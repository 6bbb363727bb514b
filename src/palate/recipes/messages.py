"""Validation errors as lines that name the key, what it takes, the nearest key, and the place."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from palate.errors import in_one_line
from palate.recipes.document import Document, key_path
from palate.recipes.keys import (
    TAGS,
    Key,
    describe,
    join,
    keys_of,
    models_in,
    tag_of,
    variants_of,
)
from palate.recipes.trl_table import native_key
from palate.recipes.yaml import KeyPath, dotted

_NO_SECTION = ("model_type", "model_attributes_type")


def lines(error: ValidationError, cls: type[BaseModel], document: Document) -> list[str]:
    """One line for every key that is wrong, in the order of the file."""
    by_key: dict[KeyPath, str] = {}
    for item in error.errors(include_url=False):
        for path, message in _explain(item, cls, document):
            # A union reports once for each of its members; one line a key is enough.
            by_key.setdefault(path, f"{document.origin(path)}: {message}")
    # A list whose items are wrong is also reported as a list; the items say it better.
    inner = {path[:length] for path in by_key for length in range(len(path))}
    return [by_key[path] for path in sorted(by_key, key=document.order) if path not in inner]


def _explain(item: Any, cls: type[BaseModel], document: Document) -> Iterator[tuple[KeyPath, str]]:
    kind, loc, context = item["type"], item["loc"], item.get("ctx", {})
    path = _document_path(document.value, loc, missing=kind == "missing")
    name = dotted(path)
    if kind == "problems":
        for key, message in context["problems"]:
            full = (*path, *key_path(key))
            yield full, f"`{dotted(full)}`: {message}"
    elif kind == "extra_forbidden":
        yield path, _unknown(cls, path, document.value)
    elif kind == "missing":
        info = _field(cls, path, document.value)
        yield path, f"`{name}` is missing" + (f" ({describe(info)})" if info else "")
    elif kind == "union_tag_invalid":
        known = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        near = _nearest(str(context["tag"]), known)
        hint = f"did you mean {near}? " if near else ""
        tag = context["discriminator"].strip("'")
        message = f"unknown {tag} {context['tag']!r}; {hint}it is one of {join(known)}"
        yield (*path, tag), f"`{name}.{tag}`: {message}"
    elif kind == "union_tag_not_found":
        info = _field(cls, path, document.value)
        kinds = (
            [k for model in models_in(info.annotation) for k in variants_of(model)] if info else []
        )
        tag = context["discriminator"].strip("'")
        yield path, f"`{name}` needs `{tag}`: {join(kinds)}"
    else:
        info = _field(cls, path, document.value)
        takes = describe(info) if info else str(item["msg"])
        if kind in _NO_SECTION and info is not None:
            takes = "a section of keys"
        yield path, f"`{name}`: expected {takes}, got {in_one_line(repr(item['input']), 60)}"


def _document_path(value: Any, loc: tuple[Any, ...], *, missing: bool) -> KeyPath:
    """Drops what pydantic puts into a location besides keys: chosen types, members of unions."""
    path: list[str | int] = []
    for place, part in enumerate(loc):
        is_key = isinstance(value, dict) and part in value
        is_index = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_key or is_index:
            path.append(part)
            value = value[part]
        elif missing and place == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _sections(cls: type[BaseModel], path: KeyPath, value: Any) -> tuple[list[type[BaseModel]], Any]:
    """The classes that the section at `path` may be, the chosen one first, and its value."""
    models: list[type[BaseModel]] = [cls]
    for part in path:
        # Locations are made of keys that the document has, so that indexing cannot fail.
        value = value[part]
        if isinstance(part, str):
            info = models[0].model_fields.get(part) if models else None
            models = models_in(info.annotation) if info else []
        if isinstance(value, dict) and len(models) > 1:
            kind = value.get(tag_of(models[0]))
            models = sorted(models, key=lambda model: kind not in variants_of(model))
    return models, value


def _field(cls: type[BaseModel], path: KeyPath, value: Any) -> FieldInfo | None:
    names = [place for place, part in enumerate(path) if isinstance(part, str)]
    if not names:
        return None
    models, _ = _sections(cls, path[: names[-1]], value)
    return models[0].model_fields.get(str(path[names[-1]])) if models else None


def _unknown(cls: type[BaseModel], path: KeyPath, value: Any) -> str:
    name = str(path[-1])
    section = path[:-1]
    models, here = _sections(cls, section, value)
    chosen, others = models[0], models[1:]
    label = dotted(path)
    owners = [kind for model in others if name in model.model_fields for kind in variants_of(model)]
    if owners and isinstance(here, dict):
        kind = here.get(tag_of(chosen)) or variants_of(chosen)[0]
        return (
            f"unknown key `{label}`: {_label(section)} {kind} has no {name}"
            f" ({join(owners, 'and')} {'has' if len(owners) == 1 else 'have'})"
        )
    keys = [key for key in keys_of(cls) if key.name not in TAGS]
    if elsewhere := _places(key for key in keys if key.name == name):
        return f"unknown key `{label}`; it belongs in {join(elsewhere)}"
    if native := native_key(name):
        return f"unknown key `{label}`; TRL's {name} is here {native}"
    prefix = dotted(section) + "." if section else ""
    if near := _nearest(name, list(chosen.model_fields)):
        return f"unknown key `{label}`; did you mean `{prefix}{near}`?"
    if near := _nearest(name, sorted({key.name for key in keys})):
        places = _places(key for key in keys if key.name == near)
        return f"unknown key `{label}`; did you mean {join(places)}?"
    here_are = join(list(chosen.model_fields), "and")
    return f"unknown key `{label}`; {dotted(section) or 'the recipe'} has {here_are}"


def _label(section: KeyPath) -> str:
    return str(next(part for part in reversed(section) if isinstance(part, str)))


def _places(keys: Iterator[Key]) -> list[str]:
    return [f"`{path}`" for path in dict.fromkeys(key.path for key in keys)]


def _nearest(name: str, known: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.6)), None)
