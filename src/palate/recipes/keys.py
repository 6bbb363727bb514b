"""The keys of a recipe class: what help, error messages and the tests of the options walk over."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
    Any: "a value",
}


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        path: dotted, with `[]` after a list: `data.train[].path`.
        owner: the class it is a field of.
        variant: the `type` (or `step`) of its section that has it, None where there is only one.
        same_as: path of an earlier section with the same keys, which are not repeated.
    """

    path: str
    info: FieldInfo
    owner: type[BaseModel]
    variant: str | None = None
    same_as: str | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def is_section(self) -> bool:
        return bool(models_in(self.info.annotation))


def keys_of(cls: type[BaseModel]) -> list[Key]:
    """All keys of a recipe class, in the order of its fields; repeated sections once."""
    return list(_walk(cls, "", None, {}))


def _walk(
    cls: type[BaseModel], prefix: str, variant: str | None, seen: dict[type[BaseModel], str]
) -> Iterator[Key]:
    for name, info in cls.model_fields.items():
        path = prefix + name
        models = models_in(info.annotation)
        section = path + ("[]" if models and is_list(info.annotation) else "")
        known = seen.get(models[0]) if models else None
        yield Key(path, info, cls, variant, known)
        if known is not None:
            continue
        seen.update(dict.fromkeys(models, section))
        for model in models:
            yield from _walk(model, section + ".", variant_of(model), seen)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The recipe classes that a value of this type may be (or hold, for a list)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return models_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return [model for part in get_args(annotation) for model in models_in(part)]
    return []


def is_list(annotation: Any) -> bool:
    """Whether the type is a list, or a list or null."""
    if get_origin(annotation) is Annotated:
        return is_list(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return any(is_list(part) for part in get_args(annotation))
    return get_origin(annotation) is tuple


def takes_null(annotation: Any) -> bool:
    """Whether null is a value of its own, which leaves a section out."""
    if get_origin(annotation) is Annotated:
        return takes_null(get_args(annotation)[0])
    return types.NoneType in get_args(annotation)


TAGS = ("type", "step")
"""Keys that choose what a section is."""


def tag_of(model: type[BaseModel]) -> str:
    """The key that chooses this class among others; `type` where nothing is chosen."""
    return next((tag for tag in TAGS if tag in model.model_fields), TAGS[0])


def variants_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of its tag that choose this class; empty where nothing is chosen."""
    info = model.model_fields.get(tag_of(model))
    return get_args(info.annotation) if info is not None else ()


def variant_of(model: type[BaseModel]) -> str | None:
    """`variants_of` in words."""
    return " | ".join(variants_of(model)) or None


def describe(info: FieldInfo) -> str:
    """What a field takes, in words: "a number > 0", "adamw, rmsprop or sgd"."""
    return _describe(info.annotation, info.metadata)


def _describe(annotation: Any, constraints: list[Any] | tuple[Any, ...] = ()) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        metadata_of_type: list[Any] = []
        for item in metadata:
            metadata_of_type += item.metadata if isinstance(item, FieldInfo) else [item]
        return _describe(inner, [*metadata_of_type, *constraints])
    models = models_in(annotation)
    if origin in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        if len(models) > 1 and len(models) == len(parts):
            kinds = [kind for model in models for kind in variants_of(model)]
            return f"a section with `{tag_of(models[0])}`: {join(kinds)}"
        texts = [_describe(part) for part in parts]
        return join(texts) if all(" " not in text for text in texts) else " or ".join(texts)
    if origin is Literal:
        return join([str(value) for value in get_args(annotation)])
    if origin is dict:
        return f"a section that gives each name {_describe(get_args(annotation)[1])}"
    if origin is tuple:
        least = _bound(constraints, annotated_types.MinLen, "min_length")
        few = f" (at least {least})" if least else ""
        item = get_args(annotation)[0]
        return f"a list of sections{few}" if models else f"a list{few}: {_describe(item)}"
    if models:
        return "a section"
    return _NAMES[annotation] + _limits(constraints)


def _bound(constraints: list[Any] | tuple[Any, ...], kind: type, attribute: str) -> Any:
    return next((getattr(c, attribute) for c in constraints if isinstance(c, kind)), None)


def _limits(constraints: list[Any] | tuple[Any, ...]) -> str:
    signs = {
        ">": (annotated_types.Gt, "gt"),
        ">=": (annotated_types.Ge, "ge"),
        "<": (annotated_types.Lt, "lt"),
        "<=": (annotated_types.Le, "le"),
    }
    bounds = {sign: _bound(constraints, kind, name) for sign, (kind, name) in signs.items()}
    texts = [
        f"{sign} {bound if isinstance(bound, int) else f'{bound:g}'}"
        for sign, bound in bounds.items()
        if bound is not None
    ]
    return f" {' and '.join(texts)}" if texts else ""


def join(words: list[str] | tuple[str, ...], last: str = "or") -> str:
    """ "a, b or c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
