"""Images: every planted fault is found by name, and nothing sound is refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from curating import pictured
from palate.data import images
from palate.data.image_counts import ImageCounts
from palate.data.images import ImageError, ImageStore, check, checked, find, load
from palate.data.schema import ImageRef, Preference, Response, images_in
from palate.recipes.images import ImagesRecipe

LIMITS = ImagesRecipe(max_bytes=20_000, max_pixels=10_000)


def picture(format: str = "PNG", size: tuple[int, int] = (20, 10), shade: int = 90) -> bytes:
    out = io.BytesIO()
    made = Image.effect_noise(size, 30).point(lambda v: (v + shade) % 256)
    made.convert("RGB").save(out, format)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of some bytes whose header promises 60,000 by 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def refusal(data: bytes, limits: ImagesRecipe = LIMITS) -> str:
    with pytest.raises(ImageError) as caught:
        check(data, limits)
    return caught.value.reason


@pytest.mark.parametrize("format", images.SUFFIXES)
def test_sound_images_pass(format):
    data = picture(format)
    info = check(data, LIMITS)
    assert (info.width, info.height, info.format, info.bytes) == (20, 10, format, len(data))
    assert info.name.endswith(images.SUFFIXES[format])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_cut_images_are_broken(format):
    data = picture(format, (60, 60))
    assert refusal(data[: len(data) * 2 // 3]) == images.BROKEN


def test_damage_inside_a_png_is_found():
    data = bytearray(picture("PNG", (60, 60)))
    middle = data.index(b"IDAT") + 60
    data[middle : middle + 40] = bytes(40)
    assert refusal(bytes(data)) == images.BROKEN


def test_limits():
    assert refusal(picture("JPEG", (101, 100))) == images.TOO_MANY_PIXELS
    assert refusal(b"x" * 20_001) == images.TOO_MANY_BYTES
    assert refusal(bomb()) == images.TOO_MANY_PIXELS
    assert refusal(bomb(), ImagesRecipe(max_pixels=10**12)) == images.TOO_MANY_PIXELS
    assert refusal(b"") == images.EMPTY
    assert refusal(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == images.NOT_AN_IMAGE
    assert refusal(b"\x80\x04pickle") == images.NOT_AN_IMAGE
    assert refusal(picture("BMP"), ImagesRecipe(formats=("PNG",))) == images.OTHER_FORMAT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inside = tmp_path / "root"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "a.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture())
    (inside / "way_out.png").symlink_to(tmp_path / "secret.png")
    (inside / "folder_out").symlink_to(tmp_path)
    (inside / "way_in.png").symlink_to(inside / "sub" / "a.png")
    return inside


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.png", images.OUTSIDE),
        ("sub/../../secret.png", images.OUTSIDE),
        ("/etc/hostname", images.OUTSIDE),
        ("~/a.png", images.OUTSIDE),
        ("C:\\a.png", images.OUTSIDE),
        ("\\\\host\\a.png", images.OUTSIDE),
        ("way_out.png", images.OUTSIDE),
        ("folder_out/secret.png", images.OUTSIDE),
        ("https://example.com/a.png", images.ADDRESS),
        ("file:///etc/hostname", images.ADDRESS),
        ("none.png", images.MISSING),
        ("sub", images.MISSING),
        ("", images.MISSING),
        ("a\0b.png", images.MISSING),
    ],
)
def test_paths_that_are_refused(root, path, reason):
    with pytest.raises(ImageError) as caught:
        find(path, root)
    assert caught.value.reason == reason


@pytest.mark.parametrize("path", ["sub/a.png", "./sub/a.png", "sub/../sub/a.png", "way_in.png"])
def test_paths_inside_are_found(root, path):
    assert load(ImageRef(path=path), root, LIMITS) == (root / "sub" / "a.png").read_bytes()


def test_an_ending_that_lies_is_no_fault(root):
    (root / "b.png").write_bytes(picture("JPEG"))
    assert check(load(ImageRef(path="b.png"), root, LIMITS), LIMITS).format == "JPEG"


def test_rows_are_stored_by_content_once(root, tmp_path):
    store = ImageStore(tmp_path / "images")
    other = picture(shade=20)
    row = Preference(
        id="1",
        source="s",
        kind="pair",
        prompt=pictured("?", [ImageRef(path="sub/a.png")]),
        responses=(
            Response(content=[{"role": "assistant", "content": "a"}]),
            Response(
                content=[{"role": "assistant", "content": "b"}],
                prompt=pictured("?", [ImageRef(data=other)]),
            ),
        ),
    )
    counts = ImageCounts()
    for _ in range(2):
        made, infos = checked(row, root=root, limits=LIMITS, store=store)
        counts.add(infos)
    assert len(list((tmp_path / "images").iterdir())) == 2
    (image,) = made.images
    assert image.data is None and image.path is not None and image.digest is not None
    assert (store.folder / image.path).read_bytes() == (root / "sub" / "a.png").read_bytes()
    (seen,) = images_in(made.responses[1].prompt)
    assert made.responses[0].prompt is None
    assert (store.folder / seen.path).read_bytes() == other
    counts.refused["x"] += 1
    both = ImageCounts()
    both.merge(counts)
    both.merge(ImageCounts())
    found = both.result()
    assert found is not None
    assert (found["read"], found["used"], found["unique"], found["repeated"]) == (5, 4, 2, 2)
    assert found["broken"] == dict(Counter(x=1)) and found["width"]["max"] == 20


def test_every_planted_fault_and_no_other(root, tmp_path):
    faults = {
        "cut": picture("PNG", (60, 60))[:3000],
        "bomb": bomb(),
        "large": picture("JPEG", (200, 60)),
        "text": b"no image",
    }
    sound = [picture(format, shade=s) for format in images.SUFFIXES for s in range(5)]
    refused = {name for name, data in faults.items() if _refused(data)}
    assert refused == set(faults)
    assert not any(_refused(data) for data in sound)


def _refused(data: bytes) -> bool:
    try:
        check(data, LIMITS)
    except ImageError:
        return True
    return False
