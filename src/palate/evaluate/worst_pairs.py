"""The pairs that models get wrong by most, for the reader of a report to look at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palate.data.excerpts import excerpts, storable
from palate.data.schema import Content, ImageRef, images_in
from palate.data.thumbnails import picture
from palate.recipes.images import ImagesRecipe
from palate.rewards.texts import prompt_text, response_text
from palate.store.examples import WrongPair
from palate.store.pictures import PictureBudget

MOST, FEWEST, IN_ALL = 12, 3, 36
"""Pairs of a benchmark, and of all benchmarks together."""

PROMPT_CHARACTERS, RESPONSE_CHARACTERS = 800, 1_200
IMAGES_OF_A_PAIR = 4


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A prompt whose first `correct` responses are better than its others, with its scores.

    Attributes:
        scores: of each model, one a response; NaN where there is none.
    """

    id: str
    source: str
    prompt: Content
    responses: Sequence[Content]
    scores: Mapping[str, Sequence[float]]
    correct: int = 1


@dataclass(frozen=True, order=True)
class _Wrong:
    """The worst comparison of one prompt by one model."""

    margin: float
    place: int
    better: int
    worse: int


def worst_pairs(
    judged: Mapping[str | None, Sequence[Judged]],
    models: Sequence[str],
    limits: ImagesRecipe | None = None,
) -> list[dict[str, Any]]:
    """The lines of examples.jsonl.

    Of a prompt its worst comparison counts, in which a better response scores no higher than
    another. With several models, each in turn gives the worst prompt that is not there yet.

    Args:
        judged: by benchmark. models: whose errors are looked for.
        limits: of images.

    Returns:
        Benchmarks in the order given, their worst pairs first; images of the worst pairs of every
        benchmark are shown before those of the others.
    """
    each = max(FEWEST, min(MOST, IN_ALL // max(1, len(judged))))
    ranked: list[tuple[int, int, Judged, WrongPair]] = []
    for number, (benchmark, prompts) in enumerate(judged.items()):
        for rank, (place, better, worse) in enumerate(_chosen(prompts, models, each)):
            prompt = prompts[place]
            ranked.append((rank, number, prompt, _pair(benchmark, prompt, better, worse, models)))
    budget = PictureBudget()
    lines = []
    for rank, number, prompt, pair in sorted(ranked, key=lambda entry: entry[:2]):
        images = images_in(prompt.prompt)
        made = _pictures(images[:IMAGES_OF_A_PAIR], limits or ImagesRecipe(), budget)
        more = max(0, len(images) - IMAGES_OF_A_PAIR)
        pair = pair.model_copy(update={"images": made, "more_images": more})
        lines.append((number, rank, pair.model_dump(mode="json")))
    return [line for *_, line in sorted(lines, key=lambda entry: entry[:2])]


def _pictures(images: Sequence[ImageRef], limits: ImagesRecipe, budget: PictureBudget) -> Any:
    return tuple(budget.take(picture(image, limits)) for image in images)


def _chosen(
    prompts: Sequence[Judged], models: Sequence[str], most: int
) -> Iterator[tuple[int, int, int]]:
    """(place of the prompt, its better response, its worse one), each prompt once."""
    waiting = [_errors(prompts, model) for model in models]
    taken: set[int] = set()
    while any(waiting):
        for errors in waiting:
            while errors and errors[-1].place in taken:
                errors.pop()
            if errors and len(taken) < most:
                worst = errors.pop()
                taken.add(worst.place)
                yield worst.place, worst.better, worst.worse
        if len(taken) >= most:
            return


def _errors(prompts: Sequence[Judged], model: str) -> list[_Wrong]:
    """Of every prompt that the model gets wrong its worst comparison, the worst one last."""
    errors = []
    for place, prompt in enumerate(prompts):
        values = prompt.scores[model]
        scored = [i for i, value in enumerate(values) if math.isfinite(value)]
        better = [i for i in scored if i < prompt.correct]
        worse = [i for i in scored if i >= prompt.correct]
        if better and worse:
            low = min(better, key=lambda i: values[i])
            high = max(worse, key=lambda i: values[i])
            margin = values[low] - values[high]
            if margin <= 0:
                errors.append(_Wrong(margin, place, low, high))
    return sorted(errors, reverse=True)


def _pair(
    benchmark: str | None, prompt: Judged, better: int, worse: int, models: Sequence[str]
) -> WrongPair:
    texts = excerpts(
        storable(prompt_text(prompt.prompt)),
        storable(response_text(prompt.responses[better])),
        storable(response_text(prompt.responses[worse])),
        prompt_size=PROMPT_CHARACTERS,
        size=RESPONSE_CHARACTERS,
    )
    scores = {
        name: (_finite(values[better]), _finite(values[worse]))
        for name, values in prompt.scores.items()
    }
    return WrongPair.of(
        {
            "benchmark": benchmark,
            "id": storable(prompt.id),
            "source": storable(prompt.source),
            **dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)),
            "scores": scores,
            "wrong": [name for name in models if _is_wrong(*scores[name])],
        }
    )


def _is_wrong(better: float | None, worse: float | None) -> bool:
    return better is not None and worse is not None and better <= worse


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
