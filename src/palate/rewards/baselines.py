"""What a reward model gives the frozen policy's own responses, a prompt at a time: the zero from
which the hybrid reward measures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from palate.data.content import content_key
from palate.data.images import load
from palate.data.schema import Content, ImageRef, map_images
from palate.data.scorer import Group, Score, Scorer, ask
from palate.errors import DataError, RunError
from palate.recipes.images import ImagesRecipe
from palate.rewards.texts import as_chat
from palate.store.files import read_jsonl

FILE = "baselines.jsonl"
"""Of a folder of `palate score`, where its recipe asks for it."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Scores of the frozen policy's responses to one prompt.

    Attributes:
        prompt: its key, see `baseline_key`.
        n: responses that have a score. mean, deviation: of those (of the population).
    """

    prompt: str
    n: int
    mean: float
    deviation: float

    @classmethod
    def of(cls, prompt: str, scores: Sequence[Score]) -> Baseline | None:
        """None where no response has a score."""
        values = [score.value for score in scores if score.value is not None]
        if not values:
            return None
        mean = math.fsum(values) / len(values)
        square = math.fsum((value - mean) ** 2 for value in values) / len(values)
        return cls(prompt=prompt, n=len(values), mean=mean, deviation=math.sqrt(square))

    def line(self) -> str:
        """As a line of a table."""
        return json.dumps(dataclasses.asdict(self)) + "\n"


class Baselines:
    """A table of baselines by prompt; entries of one prompt are one, by their numbers of scores."""

    def __init__(self, entries: Iterable[Baseline] = ()) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        for entry in entries:
            total, n = self._sums.get(entry.prompt, (0.0, 0))
            self._sums[entry.prompt] = (total + entry.mean * entry.n, n + entry.n)

    @classmethod
    def measured(cls, scorer: Scorer, groups: Sequence[Group]) -> Baselines:
        """By a scorer, of the frozen policy's responses to each prompt."""
        scored = zip(groups, ask(scorer, groups), strict=True)
        made = (Baseline.of(baseline_key(group), scores) for group, scores in scored)
        return cls(entry for entry in made if entry is not None)

    @classmethod
    def read(cls, file: Path) -> Baselines:
        """From a table of `palate score`.

        Raises:
            DataError: it is none.
        """
        try:
            return cls(Baseline(**line) for line in read_jsonl(file))
        except (RunError, OSError, TypeError, ValueError):
            raise DataError(
                f"{file}: no {FILE} of a `palate score` with `baselines: true`"
            ) from None

    def mean(self, group: Group) -> float | None:
        """Of a group's prompt; None of one that is not in the table."""
        total, n = self._sums.get(baseline_key(group), (0.0, 0))
        return total / n if n else None

    def __len__(self) -> int:
        return len(self._sums)


def baseline_key(group: Group) -> str:
    """Of a group's prompt, by the content of its images; a text and a chat of one user turn with it
    agree.

    Raises:
        ImageError: an image that cannot be read.
    """

    def named(image: ImageRef) -> ImageRef:
        if image.digest is not None:
            return image
        data = load(image, Path(), ImagesRecipe())
        return dataclasses.replace(image, digest=hashlib.sha256(data).hexdigest())

    prompt: Content = map_images(as_chat(group.prompt), named)
    return content_key(prompt).hex()[:32]
