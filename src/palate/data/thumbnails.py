"""Images made small enough to stand in a page: at most 160 pixels a side and 6 kB."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from palate.data.images import DECODING_ERRORS, ImageError, check, load, opened
from palate.data.pixels import upright
from palate.data.schema import ImageRef
from palate.recipes.images import ImagesRecipe
from palate.store.pictures import Picture

SIDE, BYTES = 160, 6_000
"""Pixels of the longer side, and bytes of the file, at most."""

_QUALITIES = (80, 65, 50, 35, 20)
_PREFIX = "data:image/jpeg;base64,"


def thumbnail(data: bytes, limits: ImagesRecipe) -> bytes:
    """An encoded image as a small JPEG file, turned as its EXIF says, on white.

    Raises:
        ImageError: as `palate.data.images.check`.
    """
    return _small(_upright(data, limits))


def picture(image: ImageRef, limits: ImagesRecipe, *, root: Path = Path()) -> Picture:
    """An image made small, or why it cannot be.

    Args:
        root: folder that its path starts from, where it has no root of its own.
    """
    try:
        data = load(image, root, limits)
        digest = image.digest or check(data, limits).digest
        shown = _upright(data, limits)
        small = _small(shown)
    except ImageError as error:
        return Picture(digest=image.digest, problem=error.reason)
    url = _PREFIX + base64.b64encode(small).decode()
    return Picture(url=url, width=shown.width, height=shown.height, digest=digest)


def pictures(images: Sequence[ImageRef], limits: ImagesRecipe) -> tuple[Picture, ...]:
    """Each of some images made small."""
    return tuple(picture(image, limits) for image in images)


def _upright(data: bytes, limits: ImagesRecipe) -> Image.Image:
    image = opened(data, limits)
    try:
        return upright(image)
    except DECODING_ERRORS as error:
        raise ImageError(f"cannot be turned or converted ({type(error).__name__})") from None


def _small(image: Image.Image) -> bytes:
    for side in (SIDE, SIDE * 3 // 4, SIDE // 2, SIDE // 4):
        # Of a long strip at least one pixel stays.
        scale = min(1.0, side / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(size, Image.Resampling.LANCZOS)
        # Pillow would copy a comment of any length into the new file.
        small.info = {}
        for quality in _QUALITIES:
            file = io.BytesIO()
            small.save(file, "JPEG", quality=quality, optimize=True)
            if file.tell() <= BYTES:
                return file.getvalue()
    raise AssertionError(f"{BYTES} bytes are too few for {SIDE // 4} pixels")
