"""What an image may be, before anything decodes it, and how a model is shown it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.losses import Strict

_Count = Annotated[int, Field(ge=1)]

ImageFormat = Literal["PNG", "JPEG", "WEBP", "GIF", "BMP"]


class ImageContrastRecipe(Strict):
    """Pairs of one answer under two images, made of the training pairs that have images: chosen
    under its own, rejected under another (mDPO's conditional preference, arXiv:2406.11839)."""

    kind: Literal["mismatched", "crop", "blur", "noise", "blank"]
    """The other image: one of another training pair, or its own, corrupted: a random part of at
    most 20% of it, blurred, in noise, or grey all over."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Of the training pairs with images in their prompt, ties aside; drawn with the run's seed."""
    replace: bool = False
    """Put such a pair in the place of the pair that it is made of, instead of beside it."""


class ImagesRecipe(Strict):
    """Limits of images. A row with an image that breaks one is dropped and counted."""

    max_bytes: _Count = 20_000_000
    """Of the encoded file."""
    max_pixels: _Count = 50_000_000
    """Width times height, read from the header before anything is decoded."""
    formats: Annotated[tuple[ImageFormat, ...], Field(min_length=1)] = (
        "PNG",
        "JPEG",
        "WEBP",
        "GIF",
        "BMP",
    )
    """Formats that are let in, told by content, not by name. Of an animation the first frame
    counts."""


class ModelImages(Strict):
    """How a model is shown images and videos. Aspect ratios are kept."""

    min_pixels: _Count | None = None
    """Smaller images are enlarged to this many pixels; default: what the model's processor says."""
    max_pixels: _Count | None = None
    """Larger images are scaled down to this many pixels; default: what the model's processor says.
    Both are options of the processors of Qwen's kin, and saved with the model. For processors that
    cut images into tiles by their size, images are resized before; where every image is given as
    many tokens, they are refused."""
    video_frames: _Count = 32
    """Frames that are taken of a video, evenly spaced, the first and the last among them."""
    frame_max_pixels: _Count | None = None
    """As `max_pixels`, of a frame of a video; default: as of any image."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("max_pixels", "frame_max_pixels"):
            largest = getattr(self, name)
            if largest is not None and largest < (self.min_pixels or 0):
                yield name, f"below min_pixels ({self.min_pixels})"
