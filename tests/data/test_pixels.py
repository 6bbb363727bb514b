"""Images as models are shown them: files of every kind, against values computed by hand."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from palate.data import images
from palate.data.images import ImageCounts, ImageError, check
from palate.data.pixels import decoded, upright
from palate.recipes.images import ImagesRecipe

Array = npt.NDArray[Any]
ORIENTATION = 0x0112
CORNERS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 9, 9], [90, 90, 90], [200, 0, 9]]]
)
"""Two rows of three pixels, all different: no turn of it looks like another."""


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def shown(data: bytes) -> Array:
    """As a model is given it: a file is checked first."""
    check(data, ImagesRecipe())
    image = decoded(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def picture(values: Any, mode: str | None = None) -> Image.Image:
    made = Image.fromarray(np.asarray(values, dtype=np.uint8))
    return made if mode is None else made.convert(mode)


# By the table of the EXIF standard: which side of the scene the first row and column are.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_stand_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    more = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(picture(CORNERS), kind, exif=exif, **more)
    assert np.array_equal(shown(data), UPRIGHT[orientation](CORNERS))


def test_a_photograph_of_a_telephone_stands_upright() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    large = CORNERS.repeat(16, 0).repeat(16, 1)
    data = file_of(picture(large), "JPEG", exif=exif, quality=100, subsampling=0)
    assert np.abs(shown(data) - UPRIGHT[8](large)).max() < 12


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk"])
def test_exif_that_is_none_is_passed_over(exif: bytes) -> None:
    data = file_of(picture(np.full((8, 8, 3), 90)), "JPEG", exif=exif)
    assert np.abs(shown(data) - 90).max() < 3


def test_what_is_transparent_lies_on_white() -> None:
    # a * shade + (1 - a) * 255, to rounding.
    values = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [100, 0, 200, 102]]])
    expected = [[[255, 255, 255], [10, 20, 30], [193, 153, 233]]]
    assert np.abs(shown(file_of(picture(values), "PNG")) - expected).max() <= 1
    lossless = file_of(picture(values), "WEBP", lossless=True, exact=True)
    assert np.abs(shown(lossless) - expected).max() <= 1
    grey = file_of(picture([[[10, 0], [10, 255], [100, 102]]]), "PNG")
    assert np.abs(shown(grey) - np.array([[[255] * 3, [10] * 3, [193] * 3]])).max() <= 1


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    """A pixel of each colour."""
    made = Image.new("P", (len(colours), 1))
    made.putpalette([v for colour in colours for v in colour])
    made.putdata(list(range(len(colours))))
    return made


def test_palettes() -> None:
    made = palette((10, 20, 30), (200, 0, 9), (0, 0, 0))
    plain = [[[10, 20, 30], [200, 0, 9], [0, 0, 0]]]
    assert shown(file_of(made, "PNG")).tolist() == plain
    assert shown(file_of(made, "BMP")).tolist() == plain
    assert shown(file_of(made, "GIF")).tolist() == plain
    white = [[[10, 20, 30], [255, 255, 255], [0, 0, 0]]]
    assert shown(file_of(made, "PNG", transparency=1)).tolist() == white
    assert shown(file_of(made, "GIF", transparency=1)).tolist() == white
    # One byte of opacity a colour.
    half = shown(file_of(made, "PNG", transparency=bytes([255, 0, 102])))
    assert np.abs(half - [[[10, 20, 30], [255, 255, 255], [153, 153, 153]]]).max() <= 1
    # One shade of grey, or one colour, that stands for nothing.
    grey = file_of(picture([[5, 9]]), "PNG", transparency=9)
    assert shown(grey).tolist() == [[[5, 5, 5], [255, 255, 255]]]
    colour = file_of(picture([[[1, 2, 3], [4, 5, 6]]]), "PNG", transparency=(4, 5, 6))
    assert shown(colour).tolist() == [[[1, 2, 3], [255, 255, 255]]]


def test_one_bit_and_sixteen() -> None:
    bits = Image.new("1", (3, 1))
    bits.putdata([0, 1, 0])
    assert shown(file_of(bits, "PNG"))[0, :, 0].tolist() == [0, 255, 0]
    assert shown(file_of(bits, "BMP"))[0, :, 0].tolist() == [0, 255, 0]
    deep = np.array([[0, 128, 129, 255, 257, 32896, 65535]], dtype=np.uint16)
    made = Image.fromarray(deep)
    expected = [round(v * 255 / 65535) for v in deep[0].tolist()]
    assert shown(file_of(made, "PNG"))[0, :, 0].tolist() == expected
    # A dark one stays dark.
    dark = file_of(Image.fromarray(np.full((2, 2), 200, dtype=np.uint16)), "PNG")
    assert shown(dark).max() == 1
    clear = shown(file_of(made, "PNG", transparency=32896))[0, :, 0].tolist()
    assert clear == [*expected[:5], 255, 255]


def test_cmyk_is_read_with_adobes_marker_and_without() -> None:
    """Ink in per cent of 255: light is what neither the ink nor black takes away."""
    ink = (51, 204, 255, 51)
    expected = [(255 - c) * (255 - ink[3]) / 255 for c in ink[:3]]
    adobe = file_of(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
    at = adobe.index(b"\xff\xee")
    length = int.from_bytes(adobe[at + 2 : at + 4], "big")
    assert adobe[at + 4 : at + 9] == b"Adobe"
    plain = adobe[:at] + adobe[at + 2 + length :]
    for data in (adobe, plain):
        assert np.abs(shown(data) - expected).max() <= 3


def test_a_jpeg_with_more_pictures_is_a_jpeg() -> None:
    first, second = (Image.new("RGB", size, c) for size, c in (((40, 30), 90), ((20, 10), 9)))
    data = file_of(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    info = check(data, ImagesRecipe(formats=("JPEG",)))
    assert (info.format, info.width, info.height, info.animated) == ("JPEG", 40, 30, False)
    assert info.name.endswith(".jpg")
    assert shown(data).shape == (30, 40, 3) and abs(shown(data)[..., 0] - 90).max() < 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_animations_the_first_frame_is_taken_and_counted(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    more = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    moved = Image.open(io.BytesIO(data))
    moved.seek(1)
    assert np.asarray(upright(moved))[0, 0].tolist() == shown(data)[0, 0].tolist() == [250, 0, 0]
    info, still = (check(d, ImagesRecipe()) for d in (data, file_of(frames[1], kind, **more)))
    assert info.animated and not still.animated
    counts = ImageCounts()
    counts.add([info, still, info])
    for made in (counts, ImageCounts.restore(counts.dump())):
        found = made.result()
        assert found is not None and (found["animated"], found["unique"]) == (1, 2)


def promised(kind: str, side: int = 30_000) -> bytes:
    """A small file whose header promises a square of that side, and no pixels behind it."""
    if kind == "PNG":
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = [
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))))
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    data = bytearray(file_of(Image.new("RGB", (16, 16)), kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF"])
def test_a_huge_header_is_refused_before_anything_is_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    for limits in (ImagesRecipe(), ImagesRecipe(max_pixels=899_999_999)):
        with pytest.raises(ImageError) as caught:
            check(promised(kind), limits)
        assert caught.value.reason == images.TOO_MANY_PIXELS


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", images.EMPTY),
        (HEIC, images.NOT_AN_IMAGE),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", images.NOT_AN_IMAGE),
        (file_of(Image.new("RGB", (8, 8)), "TIFF"), images.NOT_AN_IMAGE),
        (file_of(Image.new("RGB", (60, 60), 9), "PNG")[:-40], images.BROKEN),
        (file_of(Image.effect_noise((60, 60), 30), "JPEG")[:-400], images.BROKEN),
    ],
    ids=["empty", "heic", "svg", "tiff", "cut png", "cut jpeg"],
)
def test_files_that_are_no_image(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        check(data, ImagesRecipe())
    assert caught.value.reason == reason
