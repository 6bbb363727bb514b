"""Images of rows: found inside their root, checked before they are decoded, named by content.

An image comes as a path below a declared folder or as the bytes of a file. Paths that lead out of
the folder, by `..`, from the root or over a link, are refused, and so are addresses: nothing is
fetched. Size and pixels are limited before the pixels are decoded, and then all of them are decoded
once, because a file cut short shows only there. The bytes are kept as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from PIL import Image, UnidentifiedImageError

from palate.data.schema import ImageRef, Preference
from palate.recipes.images import ImagesRecipe
from palate.store.files import write_bytes

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
"""Format -> ending of the stored file."""
_KINDS = {"MPO": "JPEG"}
"""Formats that Pillow tells apart from what they are: a JPEG with more pictures behind it, as
telephones write it, of which the first is the photograph."""

ADDRESS = "an address: images are not fetched"
OUTSIDE = "a path that leads out of the image folder"
MISSING = "no such file"
UNREADABLE = "cannot be read"
NOTHING = "neither a path nor data"
EMPTY = "empty file"
TOO_MANY_BYTES = "more bytes than images.max_bytes"
TOO_MANY_PIXELS = "too many pixels to be decoded"
NOT_AN_IMAGE = "not an image of a known format"
OTHER_FORMAT = "of a format that images.formats leaves out"
BROKEN = "broken or cut short"
TOO_LONG = "one side is more than 200 times the other"
UNFIT = "refused by the model's image processor"
LONGEST = 200
"""How many times the other side one may be: beyond that Qwen's processors refuse an image, and
those that scale its shorter side to a given size make gigabytes of it."""

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
# Pillow gives these for files that are broken inside, besides OSError.
DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    OverflowError,
    MemoryError,
)


class ImageError(Exception):
    """An image that cannot be used.

    Attributes:
        reason: without values of the row, so that equal reasons can be counted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """One checked image.

    Attributes:
        digest: hex SHA-256 of the encoded file. width, height: pixels. format: as Pillow names it.
        bytes: of the encoded file.
        animated: it has more frames than the first, which alone is looked at.
    """

    digest: str
    width: int
    height: int
    format: str
    bytes: int
    animated: bool = False

    @property
    def name(self) -> str:
        """File name in a store."""
        return self.digest + SUFFIXES[self.format]


def image_root(path: str) -> Path:
    """Where image paths of a source start: in its folder, or beside its file."""
    place = Path(path).expanduser()
    return place if place.is_dir() else place.parent


def rooted(row: Preference, root: Path) -> Preference:
    """The row with images that know where their paths start; nothing is read."""
    if not row.has_images:
        return row

    def placed(image: ImageRef) -> ImageRef:
        return dataclasses.replace(image, root=image.root or root)

    return row.with_images(placed)


def find(path: str, root: Path) -> Path:
    """The file that a path of the data names.

    Args:
        path: as written in the data, relative to `root`.
        root: folder that no image may lie outside of.

    Raises:
        ImageError: an address, a path out of the root, or nothing there.
    """
    return _there(path, root, Path.is_file)


def find_folder(path: str, root: Path) -> Path:
    """The folder that a path of the data names; otherwise as `find`."""
    return _there(path, root, Path.is_dir)


def _there(path: str, root: Path, is_kind: Callable[[Path], bool]) -> Path:
    target = _inside(path, root)
    try:
        # A name may be too long to be looked up.
        there = is_kind(target)
    except OSError:
        there = False
    if not there:
        raise ImageError(MISSING)
    return target


def _inside(path: str, root: Path) -> Path:
    """Where a path leads, below the root."""
    if _ADDRESS.match(path) and not PureWindowsPath(path).drive:
        raise ImageError(ADDRESS)
    if not path or "\0" in path:
        raise ImageError(MISSING)
    # A path of another system is a path from the root too.
    if Path(path).is_absolute() or PureWindowsPath(path).anchor or path.startswith("~"):
        raise ImageError(OUTSIDE)
    try:
        inside = root.resolve()
        target = (root / path).resolve()
    except (OSError, RuntimeError):
        raise ImageError(MISSING) from None
    if not target.is_relative_to(inside):
        raise ImageError(OUTSIDE)
    return target


def load(image: ImageRef, root: Path, limits: ImagesRecipe) -> bytes:
    """The encoded file of an image, no longer than the limit.

    Args:
        root: folder that its path starts from, where it has no root of its own.

    Raises:
        ImageError: it cannot be found or read, or is too long.
    """
    if image.data is not None:
        if len(image.data) > limits.max_bytes:
            raise ImageError(TOO_MANY_BYTES)
        return image.data
    if image.path is None:
        raise ImageError(NOTHING)
    file = find(image.path, image.root or root)
    try:
        if file.stat().st_size > limits.max_bytes:
            raise ImageError(TOO_MANY_BYTES)
        return file.read_bytes()
    except OSError:
        raise ImageError(UNREADABLE) from None


def check(data: bytes, limits: ImagesRecipe) -> ImageInfo:
    """Checks an encoded image by its header, and then by decoding all of it.

    Raises:
        ImageError: no image, one that breaks a limit, or a broken one.
    """
    with opened(data, limits) as image:
        width, height = image.size
        kind = _kind(image)
        return ImageInfo(
            digest=hashlib.sha256(data).hexdigest(),
            width=width,
            height=height,
            format=kind,
            bytes=len(data),
            animated=kind != "JPEG" and _is_animated(image),
        )


def opened(data: bytes, limits: ImagesRecipe) -> Image.Image:
    """An encoded image with its first frame's pixels read, as they are in the file.

    Raises:
        ImageError: as `check`.
    """
    if not data:
        raise ImageError(EMPTY)
    if len(data) > limits.max_bytes:
        raise ImageError(TOO_MANY_BYTES)
    with warnings.catch_warnings():
        # Our own limit is checked below, before a pixel is decoded; no pixel depends on what else
        # Pillow warns about, such as EXIF that is none.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=tuple(SUFFIXES))
        except UnidentifiedImageError:
            raise ImageError(NOT_AN_IMAGE) from None
        except Image.DecompressionBombError:
            raise ImageError(TOO_MANY_PIXELS) from None
        except DECODING_ERRORS:
            raise ImageError(BROKEN) from None
        if _kind(image) not in limits.formats:
            raise ImageError(OTHER_FORMAT)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise ImageError(TOO_MANY_PIXELS)
        try:
            image.load()
        except DECODING_ERRORS:
            raise ImageError(BROKEN) from None
        return image


def _kind(image: Image.Image) -> str:
    return _KINDS.get(str(image.format), str(image.format))


def _is_animated(image: Image.Image) -> bool:
    """Whether there is a frame behind the first one. A later one that is broken is as none."""
    try:
        return bool(getattr(image, "is_animated", False))
    except DECODING_ERRORS:
        return False


@dataclass
class ImageStore:
    """A folder of images named by their content, each written once."""

    folder: Path

    def put(self, data: bytes, info: ImageInfo) -> Path:
        """Stores a checked image and returns its path.

        Raises:
            RunError: the write failed.
        """
        path = self.folder / info.name
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
        return path


def located_image(
    image: ImageRef, root: Path, limits: ImagesRecipe, store: ImageStore | None = None
) -> ImageRef:
    """One image as `located` gives it.

    Raises:
        ImageError: it cannot be used.
        RunError: a write failed.
    """
    data = load(image, root, limits)
    info = check(data, limits)
    if image.data is None:
        return ImageRef(path=image.path, digest=info.digest, root=image.root or root)
    if store is None:
        return ImageRef(data=data, digest=info.digest)
    return ImageRef(path=store.put(data, info).name, digest=info.digest, root=store.folder)


def checked(
    row: Preference, *, root: Path, limits: ImagesRecipe, store: ImageStore
) -> tuple[Preference, list[ImageInfo]]:
    """The row with its images checked, stored and named by content.

    Args:
        root: folder that paths of the row start from.

    Returns:
        the row, whose images have `path` (their name in the store) and `digest` alone, and one
        entry an image, its responses' own prompts included.

    Raises:
        ImageError: of the first image that cannot be used.
        RunError: a write failed.
    """
    infos: list[ImageInfo] = []

    def stored(image: ImageRef) -> ImageRef:
        data = load(image, root, limits)
        info = check(data, limits)
        store.put(data, info)
        infos.append(info)
        return ImageRef(path=info.name, digest=info.digest)

    return row.with_images(stored), infos
