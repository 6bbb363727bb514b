"""Images of a record, and their places in its turns, each of which is an `<image>` in a text."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any

from palate.data.containers.base import shape_of
from palate.data.readers.base import RowError
from palate.data.readers.fields import text
from palate.data.schema import ImageRef, Message, Part, text_in

PLACE = "<image>"
_URI = "data:"
_IN_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGODlh", "R0lGODdh", "UklGR")
"""How files of PNG, JPEG, GIF and WebP begin in base64."""


def image_refs(value: Any, field: str) -> tuple[ImageRef, ...]:
    """The images of a field: one or a list of paths, or of files in the form of `datasets`.

    A file may also be written out as text: as a `data:` address in base64, or as the bare base64 of
    a PNG, JPEG, GIF or WebP.
    """
    if value is None or value == "":
        return ()
    if not isinstance(value, list):
        return (_image(value, field),)
    return tuple(_image(item, f"{field}.{i}") for i, item in enumerate(value))


def _image(value: Any, field: str) -> ImageRef:
    path, data = value, None
    if isinstance(value, dict):
        path, data = value.get("path"), value.get("bytes")
        data = _decoded(data, f"{field}.bytes") if isinstance(data, str) else data
    elif isinstance(value, str) and value.startswith((_URI, *_IN_BASE64)):
        path, data = None, _decoded(value, field)
    elif isinstance(value, bytes):
        path, data = None, value
    if data is not None and not isinstance(data, bytes):
        raise RowError(f"{field}.bytes", f"{shape_of(data)}, not bytes")
    if data is None and not isinstance(path, str):
        raise RowError(field, f"{shape_of(value)}, neither a path nor an image")
    if path is None:
        return ImageRef(data=data)
    return ImageRef(path=text(path, field if path is value else f"{field}.path"), data=data)


def _decoded(value: str, field: str) -> bytes:
    """The bytes of a text in base64."""
    if value.startswith(_URI):
        head, comma, value = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RowError(field, "a data address that is not in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise RowError(field, "not base64") from None


def place_images(
    turns: list[Message], images: Sequence[ImageRef], field: str, *, place: str = PLACE
) -> list[Message]:
    """The turns with a part for every image, in place of `<image>` in their texts.

    Without any `<image>`, the images come before the text of the first turn of the user. Without
    images the turns are as they were, whatever they say.

    Args:
        field: of the images, for messages.
        place: what stands for an image instead of `<image>`.
    """
    parts: list[Part] = [{"type": "image", "image": image} for image in images]
    return place_parts(turns, parts, field, place=place)


def place_parts(
    turns: list[Message], parts: Sequence[Part], field: str, *, place: str
) -> list[Message]:
    """As `place_images`, of parts."""
    if not parts:
        return turns
    places = sum(text_in(turn["content"]).count(place) for turn in turns)
    if places not in (0, len(parts)):
        raise RowError(field, f"not as many as there are {place} in the turns")
    if places:
        rest = iter(parts)
        return [Message(role=t["role"], content=_parts(t["content"], place, rest)) for t in turns]
    first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None:
        raise RowError(field, "no turn of the user for them")
    turn_text = turns[first]["content"]
    content = [*parts, *(_text(turn_text) if isinstance(turn_text, str) else turn_text)]
    return [*turns[:first], Message(role="user", content=content), *turns[first + 1 :]]


def _parts(content: str | list[Part], place: str, rest: Iterator[Part]) -> str | list[Part]:
    if place not in text_in(content):
        return content
    parts: list[Part] = []
    for part in _text(content) if isinstance(content, str) else content:
        if part["type"] != "text":
            parts.append(part)
            continue
        before, *after = part["text"].split(place)
        parts += _text(before)
        for piece in after:
            parts += [next(rest), *_text(piece)]
    return parts


def _text(content: str) -> list[Part]:
    return [{"type": "text", "text": content}] if content else []
