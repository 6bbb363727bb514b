"""Turns whose content is a list of typed parts, with images among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers.base import shape_of
from palate.data.content import UNPLACED
from palate.data.readers.base import RowError
from palate.data.readers.fields import text, turns
from palate.data.readers.pictures import image_refs
from palate.data.schema import ImageRef, Message, Part


def typed_turns(value: Any, field: str) -> tuple[list[Message], list[ImageRef | None]]:
    """Chat turns as `turns` reads them, and such with image parts.

    An image part may hold its image: `image` (a path, a file, or a file in base64), `path`, `url`,
    or OpenAI's `image_url`. Addresses are kept as paths and refused when images are looked up.

    Returns:
        the turns, their images still unplaced, and an entry an image part, in order: its image, or
        None for one that is to come from a column.
    """
    if not isinstance(value, list):
        return turns(value, field), []
    plain: list[Any] = []
    contents: dict[int, list[Part]] = {}
    images: list[ImageRef | None] = []
    for i, turn in enumerate(value):
        if isinstance(turn, dict) and _has_image(turn.get("content")):
            contents[i], part_images = _parts(turn["content"], f"{field}.{i}.content")
            images += part_images
            # Roles and the like are checked on turns without images.
            turn = {**turn, "content": ""}
        plain.append(turn)
    chat = turns(plain, field)
    for i, parts in contents.items():
        chat[i] = Message(role=chat[i]["role"], content=parts)
    return chat, images


def filled(
    places: Sequence[ImageRef | None], images: Sequence[ImageRef], field: str
) -> tuple[ImageRef, ...]:
    """The images of parts: their own, and for those without one the next of a column.

    Args:
        field: of the column.
    """
    if sum(place is None for place in places) != len(images):
        raise RowError(field, "not as many as the turns have places for")
    rest = iter(images)
    return tuple(next(rest) if place is None else place for place in places)


def _has_image(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in ("image", "image_url") for part in content
    )


def _parts(content: list[Any], field: str) -> tuple[list[Part], list[ImageRef | None]]:
    parts: list[Part] = []
    images: list[ImageRef | None] = []
    for i, part in enumerate(content):
        at = f"{field}.{i}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            part_text = text(part.get("text"), f"{at}.text", blank=True)
            parts.append({"type": "text", "text": part_text})
        elif kind in ("image", "image_url"):
            if part.get("text"):
                raise RowError(f"{at}.text", "a text in an image part")
            parts.append({"type": "image", "image": UNPLACED})
            images.append(_image_in(part, at))
        else:
            raise RowError(at, "neither a text nor an image part")
    return parts, images


def _image_in(part: dict[str, Any], field: str) -> ImageRef | None:
    """The image that a part holds."""
    for name in ("image", "image_url", "path", "url"):
        value = part.get(name)
        if value is None or value == "":
            continue
        if name == "image_url" and isinstance(value, dict):
            value = value.get("url")
        if isinstance(value, list):
            raise RowError(f"{field}.{name}", f"{shape_of(value)}, not an image")
        refs = image_refs(value, f"{field}.{name}")
        if refs:
            return refs[0]
    return None
