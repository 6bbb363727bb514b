"""Turns whose content is a list of typed parts, with images among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers.base import shape_of
from palate.data.content import UNPLACED, with_images
from palate.data.readers.base import RowError
from palate.data.readers.fields import text, turns
from palate.data.readers.pictures import image_refs, place_images
from palate.data.readers.videos import video_in
from palate.data.schema import ImageRef, Message, Part

_IMAGE = ("image", "image_url")
_VIDEO = ("video", "video_url")


def typed_turns(
    value: Any, field: str, *, videos: bool = False
) -> tuple[list[Message], list[ImageRef | None]]:
    """Chat turns as `turns` reads them, and such with image parts.

    An image part may hold its image: `image` (a path, a file, or a file in base64), `path`, `url`,
    or OpenAI's `image_url`. Addresses are kept as paths and refused when images are looked up.

    Args:
        videos: take video parts too. One may hold its video: `video` (a path, or a list of frames),
            `path` or `url`.

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
        if isinstance(turn, dict) and _has_media(turn.get("content")):
            at = f"{field}.{i}.content"
            contents[i], part_images = _parts(turn["content"], at, videos)
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


def with_places_filled(
    chat: list[Message],
    places: Sequence[ImageRef | None],
    images: Sequence[ImageRef],
    field: str,
) -> list[Message]:
    """Turns of `typed_turns` with their images, and with those of a column, which go where parts
    have none, or where `place_images` puts them.

    Args:
        field: of the column.
    """
    if not places:
        return place_images(chat, images, field)
    seen = with_images(chat, filled(places, images, field))
    assert not isinstance(seen, str)
    return seen


def _has_media(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in (*_IMAGE, *_VIDEO) for part in content
    )


def _parts(
    content: list[Any], field: str, videos: bool
) -> tuple[list[Part], list[ImageRef | None]]:
    parts: list[Part] = []
    images: list[ImageRef | None] = []
    for i, part in enumerate(content):
        at = f"{field}.{i}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            part_text = text(part.get("text"), f"{at}.text", blank=True)
            parts.append({"type": "text", "text": part_text})
        elif kind in _VIDEO and videos:
            if part.get("text"):
                raise RowError(f"{at}.text", "a text in a video part")
            parts.append({"type": "video", "video": video_in(part, at)})
        elif kind in _IMAGE:
            if part.get("text"):
                raise RowError(f"{at}.text", "a text in an image part")
            parts.append({"type": "image", "image": UNPLACED})
            images.append(_image_in(part, at))
        else:
            known = "neither a text nor an image part"
            raise RowError(at, "a video, not read by this format" if kind in _VIDEO else known)
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
