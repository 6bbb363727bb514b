"""Images as towers are to see them: upright 8-bit RGB, of a size that is asked for."""

from __future__ import annotations

import io
import math
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what puts an image upright."""
_ORIENTATION = 0x0112
_DEEP = ("I", "F")
"""How the modes of more than 8 bits a channel begin; files have them in grey alone."""


def decoded(data: bytes) -> Image.Image:
    """The image of an encoded file, which was checked before; see `upright`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return upright(Image.open(io.BytesIO(data)))


@dataclass(frozen=True)
class PixelLimits:
    """Limits of an image's pixels, width times height."""

    min_pixels: int | None = None
    max_pixels: int | None = None

    def applied(self, image: Image.Image) -> Image.Image:
        """The image scaled into the limits, as near to its aspect ratio as whole pixels allow."""
        width, height = image.size
        pixels = width * height
        if self.max_pixels is not None and pixels > self.max_pixels:
            scale = math.sqrt(self.max_pixels / pixels)
            size = (max(1, math.floor(width * scale)), max(1, math.floor(height * scale)))
        elif self.min_pixels is not None and pixels < self.min_pixels:
            scale = math.sqrt(self.min_pixels / pixels)
            size = (math.ceil(width * scale), math.ceil(height * scale))
        else:
            return image
        return image.resize(size, Image.Resampling.BICUBIC)


def upright(image: Image.Image) -> Image.Image:
    """The first frame as 8-bit RGB, turned as its EXIF says, on white where it is transparent.

    Grey of 16 bits is scaled to 8. CMYK is read as Pillow reads it: inverted where the file is a
    JPEG, with Adobe's marker or without, and turned to RGB without a colour profile.
    """
    if image.tell():
        image.seek(0)
    orientation = _orientation(image)
    if image.mode.startswith(_DEEP):
        image = _in_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        shown = image.convert("RGBA")
        white = Image.new("RGBA", shown.size, (255, 255, 255, 255))
        white.alpha_composite(shown)
        image = white
    image = image.convert("RGB")
    method = _TURNS.get(orientation)
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    # PNG files may have it behind the pixels.
    image.load()
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (ValueError, TypeError, SyntaxError, KeyError, struct.error):
        # What is no EXIF says nothing of how an image stands.
        return 1


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as grey of 8, or with alpha where a shade stands for nothing."""
    values = np.asarray(image)
    whole = 65535 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255
    scaled = np.clip(np.rint(values * (255.0 / whole)), 0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if clear is None:
        return Image.fromarray(scaled)
    alpha = np.where(values == clear, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(scaled), Image.fromarray(alpha)))
