"""Whether a model looks at the image: its verdicts without images, and with those of others."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from palate.data.content import image_key, without_images
from palate.data.schema import ImageRef, images_in, map_images
from palate.data.scorer import has_images
from palate.evaluate.reward.accuracy import accuracy
from palate.evaluate.reward.items import (
    BenchmarkItem,
    Comparisons,
    Scores,
    compare,
    joined,
)
from palate.evaluate.statistics import difference_interval
from palate.intervals import Interval, difference_of_shares
from palate.report.words import fixed, percent, span

AskScores = Callable[[Sequence[BenchmarkItem], str], Scores]
"""Scores of items; the text is for the progress bar."""


def look(
    items: Sequence[BenchmarkItem],
    scores: Scores,
    ask: AskScores,
    *,
    most: int | None,
    seed: str,
    confidence: float = 0.95,
) -> dict[str, Any] | None:
    """Scores items again without their images and with those of other items; see `looking`.

    Args:
        scores: of the items as they are. ask: scores changed ones by the same model.
        most: so many items, drawn by `seed`; None: all.

    Returns:
        `looking`, with `items` (how many were asked) and `items_with_images`; None where no item
        has an image, or none of those that have one has a score.
    """
    draw = random.Random(seed)
    places = [i for i, item in enumerate(items) if not item.tie and has_images(item.prompt)]
    with_images = len(places)
    if most is not None and most < with_images:
        places = sorted(draw.sample(places, most))
    real = [scores[i] for i in places]
    if np.isnan([value for values in real for value in values]).all():
        return None
    asked = [items[i] for i in places]
    blind = ask([blind_item(item) for item in asked], "without images")
    swapped = with_other_images(asked, draw)
    changed = iter(ask([item for item in swapped if item is not None], "with other images"))
    others = [
        [np.nan] * len(item.responses) if new_item is None else next(changed)
        for item, new_item in zip(asked, swapped, strict=True)
    ]
    measured = looking(asked, real, blind, others, confidence)
    return {"items": len(asked), "items_with_images": with_images} | measured


def looking(
    items: Sequence[BenchmarkItem],
    real: Scores,
    blind: Scores,
    others: Scores,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """What the images of prompts are worth to a model.

    Args:
        items: as they are. real, blind, others: their scores with their own images, without any,
            and with the images of other items; NaN where there is none.

    Returns:
        n: pairs with all scores of real and blind; lost: pairs that have those of real alone.
        real, blind: n, accuracy, accuracy_ci and ties over these. others: the same over those that
        have a score there too.
        difference: real less blind, pair by pair, with its interval (None with one unit of pairs).
        difference_others: real less others.
        as_good_without: whether that interval holds 0 or is below it; None without an interval.
        shortcut: see `shortcut_failure`. sentence: all of it in words.
    """
    a, b, c = (compare(items, scores) for scores in (real, blind, others))
    known = ~(np.isnan(a.margin) | np.isnan(b.margin))
    lost = int((~np.isnan(a.margin) & np.isnan(b.margin)).sum())
    swapped = known & ~np.isnan(c.margin)
    a_known, b_known = a.where(known), b.where(known)
    difference, ci = _paired(a_known, b_known, confidence)
    over_others, over_others_ci = _paired(a.where(swapped), c.where(swapped), confidence)
    measured = {
        "n": int(known.sum()),
        "lost": lost,
        "real": _side(a_known, confidence),
        "blind": _side(b_known, confidence),
        "others": _side(c.where(swapped), confidence),
        "difference": difference,
        "difference_ci": ci,
        "difference_others": over_others,
        "difference_others_ci": over_others_ci,
        "as_good_without": None if ci is None else ci[0] <= 0,
        "shortcut": shortcut_failure(a_known, b_known, confidence),
    }
    return measured | {"sentence": _sentence(measured)}


def shortcut_failure(
    real: Comparisons, blind: Comparisons, confidence: float = 0.95
) -> dict[str, Any]:
    """How far accuracy falls where the text alone misleads: shortcut-failure degradation.

    The accuracy with images on the pairs that the same model gets right without them, less that on
    those it gets wrong (ties included) without them. Near 1 the model goes by its text alone, near
    0 text that misleads costs it nothing. The number is our definition after Li et al.
    (arXiv:2503.03122), whose split is by another model that was trained on text alone.

    Args:
        real, blind: the same pairs, scored with and without their images.

    Returns:
        blind_right, blind_wrong: n, accuracy and accuracy_ci; degradation and degradation_ci, None
        where there is no pair on one of the sides.
    """
    right = blind.margin > 0
    sides = [real.where(right), real.where(~right)]
    up, down = (_side(side, confidence) for side in sides)
    two_sided = len(sides[0]) > 0 and len(sides[1]) > 0
    return {
        "blind_right": up,
        "blind_wrong": down,
        "degradation": up["accuracy"] - down["accuracy"] if two_sided else None,
        "degradation_ci": difference_of_shares(
            up["accuracy"], up["accuracy_ci"], down["accuracy"], down["accuracy_ci"]
        )
        if two_sided
        else None,
    }


def look_lines(document: dict[str, Any]) -> Iterator[str]:
    """What is printed of an evaluation.json."""
    for benchmark in document["benchmarks"]:
        for name, result in benchmark["results"].items():
            if result["look"] is not None:
                yield f"{name} on {benchmark['name']}: {result['look']['sentence']}"


def blind_item(item: BenchmarkItem) -> BenchmarkItem:
    """The item with a prompt of text alone. A line break right after an image goes with it."""
    return replace(item, prompt=without_images(item.prompt))


def with_other_images(
    items: Sequence[BenchmarkItem], draw: random.Random
) -> list[BenchmarkItem | None]:
    """The items with the images of other items, never one that an item has itself.

    Images change places among items with as many of them, each set going to one item, as long as
    no image is in more than half of these; where it is, sets are drawn from the fitting items, and
    else single images from those of all items. None where there is no other image at all.

    Args:
        items: all with images in their prompts that were read, and so have digests.
    """
    images = [images_in(item.prompt) for item in items]
    digests = [{image_key(image) for image in of_item} for of_item in images]
    swapped: list[BenchmarkItem | None] = []
    donors = _donors(digests, [len(of_item) for of_item in images], draw)
    pool = {image_key(image): image for of_item in images for image in of_item}
    for place, (item, donor) in enumerate(zip(items, donors, strict=True)):
        if donor is not None:
            new = images[donor]
        else:
            fitting = [image for key, image in pool.items() if key not in digests[place]]
            new = draw.choices(fitting, k=len(images[place])) if fitting else []
        swapped.append(_with(item, new) if new else None)
    return swapped


def _donors(
    digests: Sequence[set[str]], counts: Sequence[int], draw: random.Random
) -> list[int | None]:
    """Of each item the one whose images it gets, of as many images and none of its own."""
    donors: list[int | None] = [None] * len(digests)
    same = joined([list(keys) for keys in digests])
    for count in sorted(set(counts)):
        members = [i for i, n in enumerate(counts) if n == count]
        classes: dict[int, list[int]] = {}
        for i in members:
            classes.setdefault(same[i], []).append(i)
        blocks = list(classes.values())
        draw.shuffle(blocks)
        for block in blocks:
            draw.shuffle(block)
        line = [i for block in blocks for i in block]
        # A step as wide as the widest class leads out of every class, if that is half at most.
        step = max(map(len, blocks))
        for at, i in enumerate(line):
            donor = line[(at + step) % len(line)]
            if digests[i] & digests[donor]:
                fitting = [j for j in members if not digests[i] & digests[j]]
                donors[i] = draw.choice(fitting) if fitting else None
            else:
                donors[i] = donor
    return donors


def _with(item: BenchmarkItem, images: Sequence[ImageRef]) -> BenchmarkItem:
    rest = iter(images)
    return replace(item, prompt=map_images(item.prompt, lambda _: next(rest)))


def _side(pairs: Comparisons, confidence: float) -> dict[str, Any]:
    """Number, accuracy (None of no pairs), its interval and ties."""
    measured = accuracy(pairs, confidence)
    side = {key: measured[key] for key in ("n", "accuracy", "accuracy_ci", "ties")}
    return side if len(pairs) else side | {"accuracy": None, "accuracy_ci": None}


def _paired(
    a: Comparisons, b: Comparisons, confidence: float
) -> tuple[float | None, Interval | None]:
    if not len(a):
        return None, None
    change = (a.margin > 0).astype(float) - (b.margin > 0)
    mean, ci = difference_interval(change, a.group, confidence)
    return mean, ci if len(np.unique(a.group)) > 1 else None


def _sentence(measured: dict[str, Any]) -> str:
    """One line, without a full stop."""
    if not measured["n"]:
        return "no score without the images: nothing to compare"
    shares = f"{percent(measured['real']['accuracy'])} with them"
    shares += f", {percent(measured['blind']['accuracy'])} without"
    if measured["others"]["n"]:
        shares += f", {percent(measured['others']['accuracy'])} with those of others"
    ci = measured["difference_ci"]
    if ci is None:
        return f"one prompt alone, which says nothing: {shares}"
    worth = f"a difference of {fixed(100 * measured['difference'], 1)} points "
    worth += span([100 * end for end in ci], 1)
    verdict = "as good without the images" if ci[0] <= 0 else "better with the images"
    return f"{verdict}: {shares}; {worth}"
