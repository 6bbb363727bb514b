"""Images among tokens: the texts that stand for them, and where these are found again as ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from palate.data.items import PlacedImage, TokenIds, Tokens
from palate.data.schema import ImageRef, Message
from palate.data.templates import Refused

LOST = "the chat template leaves out an image"
CUT = "an image would be cut off"


@dataclass(frozen=True)
class ImageText:
    """An image as a prompt holds it.

    Attributes:
        digest: hex SHA-256 of its file.
        text: what stands for it in a text, and `core` what of that is found again as ids: from the
            first placeholder to the last.
        grid: (frames, rows, columns) of its tokens, where positions go by them.
    """

    digest: str
    text: str
    core: TokenIds
    grid: tuple[int, int, int] | None = None


class ImageTexts(Protocol):
    """What an encoder asks about images: files behind a model's processor.

    Attributes:
        mark: what chat templates write where an image stands.
    """

    mark: str

    def of(self, image: ImageRef, root: Path) -> ImageText:
        """
        Args:
            root: folder that its path starts from.

        Raises:
            ImageError: it cannot be read, or breaks a limit.
        """
        ...


def bare_turns(content: Sequence[Message]) -> list[Message]:
    """Turns as a chat template takes them: parts that say only that they are an image."""
    turns = []
    for turn in content:
        parts: Any = turn["content"]
        if not isinstance(parts, str):
            parts = [{"type": "image"} if part["type"] == "image" else part for part in parts]
        turns.append(Message(role=turn["role"], content=parts))
    return turns


def written_out(text: str, mark: str, images: Sequence[ImageText]) -> str:
    """A rendered text with what stands for each image in the place of its mark.

    Raises:
        Refused: it has fewer or more marks than there are images.
    """
    pieces = text.split(mark)
    if len(pieces) != len(images) + 1:
        raise Refused(LOST)
    rest = (image.text + piece for image, piece in zip(images, pieces[1:], strict=True))
    return pieces[0] + "".join(rest)


def placed(ids: TokenIds, images: Sequence[ImageText]) -> Tokens:
    """Ids with their images where they stand.

    Raises:
        Refused: an image is not whole among them.
    """
    images_placed = []
    start = 0
    for image in images:
        start = _find(ids, image.core, start)
        images_placed.append(PlacedImage(start, len(image.core), image.digest, image.grid))
        start += len(image.core)
    return Tokens(ids, images=tuple(images_placed))


def _find(ids: TokenIds, part: TokenIds, start: int) -> int:
    first, n = part[0], len(part)
    while True:
        try:
            start = ids.index(first, start)
        except ValueError:
            raise Refused(CUT) from None
        if ids[start : start + n] == part:
            return start
        start += 1
