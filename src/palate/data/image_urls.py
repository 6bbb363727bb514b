"""Images as servers are sent them: data URLs, in parts as OpenAI's clients write them."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from palate.data.images import check, load
from palate.data.schema import ImageRef, Message, image_of
from palate.data.videos import FRAMES, with_frames
from palate.recipes.images import ImagesRecipe

Wire = dict[str, Any]
"""A turn or a part of one, as JSON."""


def as_frames(content: list[Message], count: int = FRAMES) -> list[Message]:
    """The content with the frames of videos as images in their places.

    Raises:
        ImageError: no frames, or a file that is no video.
        DataError: a video file, and PyAV is not installed.
    """
    framed = with_frames(content, Path(), count, as_images=True)
    assert not isinstance(framed, str)
    return framed


class ImageUrls:
    """Data URLs of images, whose media types are told by content.

    Args:
        limits: of what is sent. root: folder that paths start from, of images without a root.
    """

    def __init__(self, limits: ImagesRecipe | None = None, root: Path | None = None) -> None:
        self.limits = limits or ImagesRecipe()
        self.root = root or Path()
        self._formats: dict[str, str] = {}

    def read(self, image: ImageRef) -> tuple[str, str]:
        """Hex SHA-256 of an image's file, and its data URL.

        Raises:
            ImageError: it cannot be read, or breaks a limit.
        """
        data = load(image, self.root, self.limits)
        digest = hashlib.sha256(data).hexdigest()
        # To check is to decode: once for each image, however often it is asked about.
        if digest not in self._formats:
            self._formats[digest] = check(data, self.limits).format
        return digest, data_url(data, self._formats[digest])

    def turn(self, turn: Message) -> Wire:
        """A turn as OpenAI's clients send it, images in the places of their parts.

        Raises:
            ImageError: one cannot be read, or breaks a limit.
        """
        content: Any = turn["content"]
        if not isinstance(content, str):
            content = [
                url_part(self.read(image_of(part))[1]) if part["type"] == "image" else dict(part)
                for part in content
            ]
        return {"role": turn["role"], "content": content}


def data_url(data: bytes, format: str) -> str:
    """An encoded image as a data URL.

    Args:
        format: as Pillow names it.
    """
    media = Image.MIME.get(format, f"image/{format.lower()}")
    return f"data:{media};base64,{base64.b64encode(data).decode('ascii')}"


def url_part(url: str) -> Wire:
    """OpenAI's part of an image."""
    return {"type": "image_url", "image_url": {"url": url}}


@functools.cache
def small_image() -> str:
    """The data URL of a grey square, large enough for towers that count patches."""
    file = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 127, dtype=np.uint8)).save(file, "PNG")
    return data_url(file.getvalue(), "PNG")
