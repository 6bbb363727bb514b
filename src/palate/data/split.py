"""Which items are held out, and KTO's mismatched responses; seeded, or independent of order."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from palate.data.items import Desirable, Item, Tokens
from palate.errors import DataError, RecipeError


def split_by_prompt(
    keys: npt.NDArray[np.uint64], fraction: float, *, where: str
) -> npt.NDArray[np.bool_]:
    """[N], True = held out: the rows of `fraction` of the prompts, of one prompt at least.

    The prompts with the smallest keys are held out: which of two prompts comes first does not
    depend on other rows or their order, and no prompt is on both sides.

    Args:
        keys: [N], of each row's prompt, see `content.prompt_key`.
        where: the recipe's key, for messages.

    Raises:
        RecipeError: too few prompts to hold any out.
    """
    prompts = np.unique(keys)
    count = max(1, round(fraction * len(prompts)))
    if count >= len(prompts):
        raise RecipeError(
            f"`{where}`: {fraction:g} of {len(prompts)} prompts leaves none to train on"
        )
    held: npt.NDArray[np.bool_] = keys <= prompts[count - 1]
    return held


def joined_keys(keys: npt.NDArray[np.uint64], encoded: Sequence[Tokens]) -> npt.NDArray[np.uint64]:
    """[N], one key, the least, for prompts that truncation has made equal.

    Args:
        encoded: [N], tokens of the prompts, with their images.
    """
    numbers: dict[Tokens, int] = {}
    by_tokens = np.array(
        [numbers.setdefault(each, len(numbers)) for each in encoded], dtype=np.int64
    )
    by_key = np.unique(keys, return_inverse=True)[1]
    before = None
    # One prompt may be written in two ways, each cut to the tokens of another prompt, and so on.
    while before is None or (before != keys).any():
        before = keys
        for group in (by_tokens, by_key):
            least = np.full(len(keys), np.iinfo(np.uint64).max, dtype=np.uint64)
            np.minimum.at(least, group, keys)
            keys = least[group]
    return keys


def shared_images(train: Sequence[Item], held: Sequence[Item]) -> int | None:
    """Number of distinct images of evaluation items that are also trained on; None of none."""
    known, asked = images_of(train), images_of(held)
    return len(asked & known) if asked else None


def images_of(items: Iterable[Item]) -> set[str]:
    """Digests of the images of items."""
    return {image.digest for item in items for _, image in item.images}


def shared_prompts(train: Sequence[Item], held: Sequence[Item]) -> int:
    """Number of distinct evaluation prompts that are also trained on."""
    known = {item.prompts[0] for item in train}
    return len({item.prompts[0] for item in held} & known)


def with_mismatched(
    examples: Sequence[Item], seed: int, *, max_tokens: int | None, split: str
) -> list[Item]:
    """Each example with the response of another prompt, for KTO's estimate of the KL.

    The examples are permuted with `seed` and each takes the response of the next one whose prompt
    is another, cut to `max_tokens` as its own would be.

    Raises:
        DataError: all have one prompt.
    """
    order = list(range(len(examples)))
    random.Random(f"{seed}|mismatched|{split}").shuffle(order)
    completed = list(examples)
    n = len(order)
    # Donors in a circle, runs of one prompt skipped at once: next_other[k] for each place k.
    prompts = [examples[i].prompts[0] for i in order]
    if len(set(prompts)) < 2:
        raise DataError(f"KTO needs two or more different prompts ({split} split has one)")
    next_other = [0] * n
    for k in range(2 * n - 1, -1, -1):
        here, there = k % n, (k + 1) % n
        same = prompts[here] == prompts[there]
        next_other[here] = next_other[there] if same else there
    for k, i in enumerate(order):
        response = examples[order[next_other[k]]].responses[0].ids
        if max_tokens is not None:
            response = response[: max_tokens - len(examples[i].prompts[0])]
        label = examples[i].label
        assert isinstance(label, Desirable)
        label = dataclasses.replace(label, mismatched=Tokens(response))
        completed[i] = dataclasses.replace(examples[i], label=label)
    return completed
