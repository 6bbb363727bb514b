"""Pairs for tests of curation, and a way to run one step over them in blocks of any size."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from palate.data.content import with_images
from palate.data.curation import Block, Changed, Dropped, Judgement, build_steps
from palate.data.curation.base import Means
from palate.data.schema import Content, ImageRef, Preference, Response
from palate.recipes.curation import Step

_STEP: TypeAdapter[Any] = TypeAdapter(Step)

WORDS = [
    a + b + c for a in "bdfgklmnprstvz" for b in ("a", "ero", "i", "ou") for c in ("n", "lk", "s")
]


def pictured(prompt: Content, images: Sequence[ImageRef]) -> Content:
    """The prompt with the images in its image parts, or before its text."""
    if not isinstance(prompt, str):
        return with_images(prompt, images)
    parts: list[Any] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]


def pair(
    prompt: Content = "Why is the sky blue?",
    chosen: Content = "Because of scattering.",
    rejected: Content = "Because it is.",
    *,
    id: str = "",
    source: str = "s",
    margin: float | None = None,
    tie: bool = False,
    images: Sequence[ImageRef] = (),
    extra: dict[str, Any] | None = None,
) -> Preference:
    return Preference(
        id=id or f"{source}:{prompt}|{chosen}|{rejected}",
        source=source,
        kind="pair",
        prompt=pictured(prompt, images) if images else prompt,
        responses=(Response(content=chosen), Response(content=rejected)),
        margin=margin,
        tie=tie,
        extra=extra,
    )


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) + rng.choice(["", "s", "ed", "ing"]) for _ in range(words))


def clean(count: int, seed: int = 0, *, words: int = 30) -> list[Preference]:
    """Pairs that have nothing wrong with them and little in common."""
    rng = random.Random(seed)
    return [
        pair(
            sentence(rng, words) + "?",
            sentence(rng, words + rng.randrange(5)) + ".",
            sentence(rng, words + rng.randrange(5)) + ".",
            id=f"clean:{seed}:{i}",
            margin=rng.random(),
        )
        for i in range(count)
    ]


@dataclass(frozen=True)
class Outcome:
    """What a step made of pairs.

    Attributes:
        judgements: one a pair, in order. account: the step's own.
    """

    judgements: list[Judgement]
    account: dict[str, Any]

    @property
    def dropped(self) -> dict[int, str]:
        """Place and reason of each pair that went."""
        found = enumerate(self.judgements)
        return {k: j.reason for k, j in found if isinstance(j, Dropped)}

    @property
    def changed(self) -> dict[int, Preference]:
        return {k: j.row for k, j in enumerate(self.judgements) if isinstance(j, Changed)}


def curate(
    rows: Sequence[Preference],
    recipe: dict[str, Any],
    *,
    block_size: int = 64,
    seed: int = 0,
    make_scorer: Any = None,
    first: int = 0,
    stride: int = 1,
) -> Outcome:
    """Runs one step.

    Args:
        first, stride: the rows' places among all: first, first + stride ...
    """
    means = Means(seed=seed, make_scorer=make_scorer)
    (step,) = build_steps([_STEP.validate_python(recipe)], means)
    blocks = [
        Block(
            first=first + start * stride,
            index=[first + k * stride for k in range(start, min(start + block_size, len(rows)))],
            rows=list(rows[start : start + block_size]),
        )
        for start in range(0, len(rows), block_size)
    ]
    for _ in range(step.passes):
        for block in blocks:
            step.look(block)
        step.end_of_pass()
    judgements = [judgement for block in blocks for judgement in step.judge(block)]
    assert len(judgements) == len(rows)
    return Outcome(judgements, step.account())
