"""Images that no longer show what they showed, of the same size, as PNG files.

Of the same size, so that nothing but the picture tells them apart: a model that sees in patches of
a fixed size has as many tokens for both.
"""

from __future__ import annotations

import io
import math
import random
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from palate.data.pixels import upright

CROP_SHARES = (0.01, 0.2)
"""Least and most of the area that a crop keeps."""
BLUR = 0.05
"""Deviation of the blur as a share of the longer side."""
NOISE = 0.7
"""Share of uniform noise in each value; the rest is the picture."""
GREY = (128, 128, 128)


def crop(image: Image.Image, chance: random.Random) -> Image.Image:
    """A random part of 1% to 20% of the area, in the picture's shape, enlarged to its size."""
    width, height = image.size
    side = math.sqrt(chance.uniform(*CROP_SHARES))
    w, h = max(1, int(width * side)), max(1, int(height * side))
    left, top = chance.randint(0, width - w), chance.randint(0, height - h)
    part = image.crop((left, top, left + w, top + h))
    return part.resize(image.size, Image.Resampling.BICUBIC)


def blur(image: Image.Image, chance: random.Random) -> Image.Image:
    """Gaussian, so wide that colours and places are left and shapes and writing are not."""
    return image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))


def noise(image: Image.Image, chance: random.Random) -> Image.Image:
    """Mixed with seven parts in ten of uniform noise, drawn for each value of each pixel."""
    generator = np.random.default_rng(chance.getrandbits(64))
    shape = (image.height, image.width, 3)
    drawn = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
    return Image.blend(image, drawn, NOISE)


def blank(image: Image.Image, chance: random.Random) -> Image.Image:
    """Grey all over."""
    return Image.new("RGB", image.size, GREY)


CORRUPTIONS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "crop": crop,
    "blur": blur,
    "noise": noise,
    "blank": blank,
}


def corrupted(data: bytes, kind: str, chance: random.Random) -> bytes:
    """A PNG file of an image that was checked (`images.check`), corrupted.

    Args:
        data: the encoded file. kind: key of CORRUPTIONS. chance: where the crop lies, the noise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = upright(Image.open(io.BytesIO(data)))
    file = io.BytesIO()
    CORRUPTIONS[kind](image, chance).save(file, "PNG")
    return file.getvalue()
