"""Images among tokens: the texts that stand for them, and where these are found again as ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from palate.data.images import ImageInfo
from palate.data.items import PlacedImage, TokenIds, Tokens
from palate.data.schema import ImageRef, Message, VideoRef
from palate.data.templates import Refused

LOST = "the chat template leaves out an image"
CUT = "an image would be cut off"


@dataclass(frozen=True)
class ImageText:
    """An image or a video as a prompt holds it.

    Attributes:
        digest: hex SHA-256 of its file; of a video of its frames.
        text: what stands for it in a text, and `core` what of that is found again as ids: from the
            first placeholder to the last.
        grid: (frames, rows, columns) of its tokens, where positions go by them.
        interval: between the positions of two frames.
        marks: what chat templates write in its place, where that is not what they write for images.
        parts: of a video whose frames stand apart in its text: these, in order.
    """

    digest: str
    text: str
    core: TokenIds
    grid: tuple[int, int, int] | None = None
    interval: float = 1.0
    marks: tuple[str, ...] = ()
    parts: tuple[ImageText, ...] = ()

    @property
    def placed(self) -> tuple[ImageText, ...]:
        """What is found again among ids."""
        return self.parts or (self,)

    @property
    def tokens(self) -> int:
        """That stand for what is seen."""
        return sum(len(part.core) for part in self.placed)


class ImageTexts(Protocol):
    """What an encoder asks about images: files behind a model's processor.

    Attributes:
        mark: what chat templates write where an image stands.
        videos_as_images: the model takes no videos: their frames are shown as images.
        video_frames: how many are taken of a video.
    """

    mark: str
    videos_as_images: bool
    video_frames: int

    def of(self, image: ImageRef, root: Path, *, alone: bool = True) -> ImageText:
        """
        Args:
            root: folder that its path starts from.
            alone: the text has no other image.

        Raises:
            ImageError: it cannot be read, or breaks a limit.
        """
        ...

    def of_video(self, video: VideoRef, root: Path) -> ImageText:
        """As `of`, of a video with its frames, for a model that takes videos."""
        ...

    def infos(self, digest: str) -> Sequence[ImageInfo]:
        """The files behind a digest: one, or a video's frames."""
        ...


def bare_turns(content: Sequence[Message]) -> list[Message]:
    """Turns as a chat template takes them: parts that say only that they are an image or video."""
    turns = []
    for turn in content:
        parts: Any = turn["content"]
        if not isinstance(parts, str):
            parts = [part if part["type"] == "text" else {"type": part["type"]} for part in parts]
        turns.append(Message(role=turn["role"], content=parts))
    return turns


def written_out(text: str, mark: str, images: Sequence[ImageText]) -> str:
    """A rendered text with what stands for each image and video in the place of its mark.

    Raises:
        Refused: it has fewer or more marks than there are images, or in another order.
    """
    marks = {mark, *(name for image in images for name in image.marks)}
    # The longest first: one mark may be part of another.
    pattern = "|".join(map(re.escape, sorted(marks, key=len, reverse=True)))
    pieces = re.split(f"({pattern})", text)
    if len(pieces) != 2 * len(images) + 1:
        raise Refused(LOST)
    for i, image in enumerate(images):
        if pieces[2 * i + 1] not in (image.marks or (mark,)):
            raise Refused(LOST)
        pieces[2 * i + 1] = image.text
    return "".join(pieces)


def placed(ids: TokenIds, images: Sequence[ImageText]) -> Tokens:
    """Ids with their images where they stand.

    Raises:
        Refused: an image is not whole among them.
    """
    images_placed = []
    start = 0
    for image in (part for whole in images for part in whole.placed):
        start, n = _find(ids, image.core, start), len(image.core)
        images_placed.append(PlacedImage(start, n, image.digest, image.grid, image.interval))
        start += n
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
