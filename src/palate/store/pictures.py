"""Small pictures of images in the files of a run, so that its report needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import StringConstraints

from palate.store.records import Record

NAME = "pictures.json"
PICTURES, CHARACTERS = 48, 400_000
"""Pictures of a report, and the characters of their addresses together."""

DataUrl = Annotated[
    str, StringConstraints(pattern=r"^data:image/jpeg;base64,[A-Za-z0-9+/]+={0,2}$")
]
"""A whole JPEG file: a page that shows it loads nothing."""


class Picture(Record):
    """An image made small.

    Attributes:
        url: the small picture itself; None where there is none, for `problem`.
        width, height: pixels of the image as it is looked at; None where it could not be read.
        digest: hex SHA-256 of its file.
        problem: why it is not shown.
        times: how often the data has it, where that was counted.
    """

    url: DataUrl | None = None
    width: int | None = None
    height: int | None = None
    digest: str | None = None
    problem: str | None = None
    times: int | None = None


class Pictures(Record):
    """pictures.json of built or inspected data.

    Attributes:
        pictures: each image once. most_seen, sample: their digests; `sample` is drawn by the seed.
        left_out: images that would have been shown and are beyond the budget.
    """

    pictures: tuple[Picture, ...] = ()
    most_seen: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    left_out: int = 0


LEFT_OUT = "left out to keep the page small"


@dataclass
class PictureBudget:
    """What a report may still show.

    Attributes:
        left_out: pictures that there was no room for.
    """

    pictures: int = PICTURES
    characters: int = CHARACTERS
    left_out: int = 0

    def take(self, picture: Picture) -> Picture:
        """The picture, or what stands in for it where there is no room left."""
        if picture.url is None:
            return picture
        if self.pictures < 1 or len(picture.url) > self.characters:
            self.left_out += 1
            return picture.model_copy(update={"url": None, "problem": LEFT_OUT})
        self.pictures -= 1
        self.characters -= len(picture.url)
        return picture
