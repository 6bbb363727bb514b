"""Images of requests: in them, beside them under their digests, in a folder, or at an address."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from collections.abc import Mapping, Sequence

from starlette.exceptions import HTTPException

from palate.data.images import ImageError, check, load
from palate.data.schema import ImageRef
from palate.recipes.serving import ServeImages
from palate.serve.errors import TooMany
from palate.serve.fetch import fetch

DIGEST = "sha256:"
NO_FOLDER = "a path, and this server has no folder of images (`images.root`)"
NO_DATA = "no image in base64: data:image/png;base64,..."
UNKNOWN = "no image of this digest in `images`"
UNNAMED = "no part names it"
WRONG_DIGEST = "is the digest of another image"
_AT_ONCE = 8
"""Requests whose images are read at the same time."""
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_HEX = re.compile(r"[0-9a-f]{64}")

Named = Sequence[tuple[str, str]]
"""(where in the request, what is written there) of image parts."""


class RequestImages:
    """Reads the images of requests.

    Args:
        blind: why the scorer reads none; None where it reads them.
    """

    def __init__(self, recipe: ServeImages, blind: str | None = None) -> None:
        self.recipe = recipe
        self.blind = blind
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def read(self, named: Named, sent: Mapping[str, str] | None) -> dict[str, ImageRef]:
        """What image parts name, read and checked, by what is written in them.

        Args:
            named: of every image part, in order. sent: digest -> data URL, beside the request.

        Raises:
            HTTPException: 422, of the first that cannot be used. TooMany: more than are allowed.
        """
        given = sent or {}
        if not named and not given:
            return {}
        if self.blind is not None:
            where = named[0][0] if named else "images"
            raise HTTPException(422, f"{where}: {self.blind}")
        most = self.recipe.max_images
        if max(len(named), len(given)) > most:
            n = max(len(named), len(given))
            raise TooMany(f"{n} images in one request, and {most} are allowed")
        async with self._turns:
            return await asyncio.to_thread(self._read_all, named, given)

    def _read_all(self, named: Named, given: Mapping[str, str]) -> dict[str, ImageRef]:
        deadline = time.monotonic() + self.recipe.fetch_seconds
        images = {DIGEST + key: image for key, image in self._sent(given).items()}
        unnamed = set(images) - {written for _, written in named}
        if unnamed:
            raise HTTPException(422, f"images.{min(unnamed)}: {UNNAMED}")
        for where, written in named:
            if written not in images:
                images[written] = self._named(where, written, deadline)
        return images

    def _sent(self, given: Mapping[str, str]) -> dict[str, ImageRef]:
        images: dict[str, ImageRef] = {}
        for key, url in given.items():
            digest = key.removeprefix(DIGEST)
            where = f"images.{key[: len(DIGEST) + 64]}"
            if not _HEX.fullmatch(digest) or digest in images:
                raise HTTPException(422, f"{where}: no SHA-256 in hex, or one that is there twice")
            try:
                images[digest] = self._checked(from_data_url(url))
            except ImageError as error:
                raise HTTPException(422, f"{where}: {error.reason}") from None
            if images[digest].digest != digest:
                raise HTTPException(422, f"{where}: {WRONG_DIGEST}")
        return images

    def _named(self, where: str, written: str, deadline: float) -> ImageRef:
        try:
            if written.startswith(DIGEST):
                raise ImageError(UNKNOWN)
            return self._checked(self._data(written, deadline))
        except ImageError as error:
            raise HTTPException(422, f"{where}: {error.reason}") from None

    def _data(self, written: str, deadline: float) -> bytes:
        if written.startswith("data:"):
            return from_data_url(written)
        if _SCHEME.match(written):
            hosts, most = self.recipe.allow_hosts, self.recipe.max_bytes
            return fetch(written, hosts, max_bytes=most, deadline=deadline)
        if self.recipe.root is None:
            raise ImageError(NO_FOLDER)
        return load(ImageRef(path=written), self.recipe.root, self.recipe)

    def _checked(self, data: bytes) -> ImageRef:
        return ImageRef(data=data, digest=check(data, self.recipe).digest)


def from_data_url(url: str) -> bytes:
    """The file in a data URL.

    Raises:
        ImageError: it is none, or not in base64.
    """
    head, comma, body = url.partition(",")
    if not head.startswith("data:") or not comma or not head.lower().endswith(";base64"):
        raise ImageError(NO_DATA)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(NO_DATA) from None
