"""examples.jsonl: pairs that a reward model got wrong, with what a reader needs to judge them."""

from __future__ import annotations

from pydantic import Field

from palate.store.pictures import Picture
from palate.store.records import Record

NAME = "examples.jsonl"

Scores = tuple[float | None, float | None]
"""Of the better response and of the worse one."""


class Excerpt(Record):
    """A window of a text: characters left out before and after."""

    text: str = ""
    before: int = 0
    after: int = 0


class WrongPair(Record):
    """A pair that a model got wrong.

    Attributes:
        benchmark: None of a training run's held-out pairs.
        scores: of every model, by its name.
        wrong: the models that score the better response no higher.
        images: the prompt's, made small. more_images: those beyond the first few.
    """

    benchmark: str | None = None
    id: str = ""
    source: str = ""
    prompt: Excerpt = Excerpt()
    chosen: Excerpt = Excerpt()
    rejected: Excerpt = Excerpt()
    scores: dict[str, Scores] = Field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    images: tuple[Picture, ...] = ()
    more_images: int = 0
