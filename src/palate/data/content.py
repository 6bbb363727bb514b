"""Content without its images, and back; and the key of a content, which covers its images.

Image references are no JSON and may hold whole files: what is written or hashed goes through here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from palate.data.schema import Content, ImageRef, Message, Part, has_parts, images_in, map_parts

_DUMPS = json.JSONEncoder(sort_keys=True).encode
UNPLACED = ImageRef()
"""Placeholder in a part whose image comes from a column later; see `with_images`."""


def bare(content: Content) -> Any:
    """The content as JSON values: image parts without their images."""
    if isinstance(content, str) or not has_parts(content):
        return content
    return [
        turn
        if isinstance(turn["content"], str)
        else {"role": turn["role"], "content": list(map(_bare_part, turn["content"]))}
        for turn in content
    ]


def with_images(content: Content, images: Iterable[ImageRef]) -> Content:
    """The content with these images in its image parts, in order: as many as there are parts."""
    rest = iter(images)
    return map_parts(
        content,
        lambda part: [{"type": "image", "image": next(rest)} if part["type"] == "image" else part],
    )


def without_images(content: Content) -> Content:
    """The content without its images. A line break right after an image goes with it."""
    if isinstance(content, str):
        return content
    return [
        turn
        if isinstance(turn["content"], str)
        else Message(role=turn["role"], content=_text_of(turn["content"]))
        for turn in content
    ]


def _text_of(parts: Sequence[Part]) -> str:
    texts = []
    after_image = False
    for part in parts:
        if part["type"] == "text":
            texts.append(part["text"].removeprefix("\n") if after_image else part["text"])
        after_image = part["type"] != "text"
    return "".join(texts)


def image_key(image: ImageRef, source: str = "") -> str:
    """What tells an image: hex SHA-256 of its file, or where it is while it has not been read.

    Args:
        source: the data set that its path belongs to.
    """
    if image.digest is not None:
        return image.digest
    if image.data is not None:
        return hashlib.sha256(image.data).hexdigest()
    return f"path {source}|{image.path}" if source else f"path {image.path}"


def content_key(content: Content, source: str = "") -> bytes:
    """32 bytes, equal exactly where texts, turns and images are equal.

    Args:
        source: the data set that paths of images belong to.
    """
    if isinstance(content, str):
        return hashlib.sha256(b"text" + content.encode("utf-8", "surrogatepass")).digest()
    images = [image_key(image, source) for image in images_in(content)]
    made = hashlib.sha256(b"chat" + _DUMPS(bare(content)).encode())
    if images:
        made.update(_DUMPS(images).encode())
    return made.digest()


def prompt_key(prompt: Content, seed: int, source: str = "") -> int:
    """64 bits of a seeded hash of a prompt and its images; a text and a chat of one user turn with
    it agree.

    Args:
        source: the data set that paths of images belong to.
    """
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0]["role"] == "user":
        only = prompt[0]["content"]
        prompt = only if isinstance(only, str) else prompt
    if isinstance(prompt, str):
        text = f"{seed}|text|{prompt}"
    else:
        images = [image_key(image, source) for image in images_in(prompt)]
        text = f"{seed}|more|{_DUMPS([bare(prompt), images])}"
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _bare_part(part: Part) -> dict[str, str]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    return {"type": part["type"]}
