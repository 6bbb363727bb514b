"""Thumbnails: never larger than promised, upright, of checked images alone, and soft where not."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from palate.data.images import BROKEN, MISSING, OUTSIDE, TOO_MANY_PIXELS, ImageError
from palate.data.schema import ImageRef
from palate.data.thumbnails import BYTES, SIDE, picture, thumbnail
from palate.recipes.images import ImagesRecipe
from palate.store.pictures import LEFT_OUT, Picture, PictureBudget
from stand_in_images import huge_png

LIMITS = ImagesRecipe()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    ("size", "shown"),
    [((900, 700), None), ((160, 20), (160, 20)), ((1, 4000), (1, 160)), ((3000, 6), (160, 1))],
)
def test_a_thumbnail_is_small_whatever_the_image(size, shown):
    small = thumbnail(encoded(noise(*size)), LIMITS)
    image = opened(small)
    assert len(small) <= BYTES and max(image.size) <= SIDE and image.format == "JPEG"
    # Noise of 160 pixels takes more than 6 kB at any quality worth looking at.
    assert shown is None or image.size == shown


def test_no_image_takes_more_bytes_than_promised():
    whole = np.asarray(noise(160, 160), dtype=float) - 128
    for share in np.linspace(0.05, 1, 12):
        image = Image.fromarray((128 + share * whole).astype(np.uint8))
        small = thumbnail(encoded(image), LIMITS)
        assert len(small) <= BYTES and max(opened(small).size) >= 80


def test_small_images_are_not_blown_up():
    image = opened(thumbnail(encoded(Image.new("RGB", (7, 5), (9, 120, 30))), LIMITS))
    assert image.size == (7, 5)
    assert np.abs(np.asarray(image, dtype=int)[2, 3] - (9, 120, 30)).max() < 12


def test_a_thumbnail_is_upright_on_white_and_without_what_the_file_says_besides():
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: left becomes top
    small = opened(thumbnail(encoded(image, exif=exif), LIMITS))
    assert small.size == (20, 40) and not small.getexif()
    top, bottom = small.getpixel((10, 8)), small.getpixel((10, 32))
    assert top[0] > 230 and top[1] < 40 and min(bottom) > 230
    talking = encoded(Image.new("RGB", (30, 30)), "JPEG", comment=b"x" * 20_000)
    assert len(thumbnail(talking, LIMITS)) < 2_000


def test_what_cannot_be_shown_says_why(tmp_path: Path):
    whole = encoded(noise(30, 30))
    (tmp_path / "good.png").write_bytes(whole)
    (tmp_path / "cut.png").write_bytes(whole[:-200])
    problems = {
        "cut.png": BROKEN,
        "none.png": MISSING,
        "../out.png": OUTSIDE,
    }
    for path, problem in problems.items():
        shown = picture(ImageRef(path=path, root=tmp_path), LIMITS)
        assert shown.url is None and shown.problem == problem
    assert picture(ImageRef(data=huge_png()), LIMITS).problem == TOO_MANY_PIXELS
    with pytest.raises(ImageError):
        thumbnail(b"no image", LIMITS)
    good = picture(ImageRef(path="good.png", root=tmp_path), LIMITS)
    assert (good.width, good.height, good.problem) == (30, 30, None)
    head, _, body = (good.url or "").partition(",")
    assert head == "data:image/jpeg;base64" and opened(base64.b64decode(body)).size == (30, 30)


def test_a_budget_ends_by_number_and_by_size():
    shown = Picture(url="data:image/jpeg;base64," + "A" * 77, digest="d")
    size = len(shown.url or "")
    by_number = PictureBudget(pictures=2, characters=10**6)
    assert [by_number.take(shown).url is None for _ in range(4)] == [False, False, True, True]
    by_size = PictureBudget(pictures=9, characters=3 * size - 1)
    taken = [by_size.take(shown) for _ in range(3)]
    assert [t.problem for t in taken] == [None, None, LEFT_OUT] and by_size.left_out == 1
    # What was never a picture takes no room.
    assert by_size.take(Picture(problem="broken")).problem == "broken" and by_size.left_out == 1


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.jpg",
        "data:image/svg+xml;base64,AAAA",
        'data:image/jpeg;base64,AA"onerror="x',
        "data:image/jpeg;base64,AAAA\n",
    ],
)
def test_only_whole_jpeg_files_are_addresses(url):
    with pytest.raises(ValueError, match="url"):
        Picture.of({"url": url})
