"""Which items are held out, and what other rows lend to KTO. All order-independent or seeded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence

from palate.data.items import Desirable, Item, TokenIds, Tokens
from palate.data.schema import Content
from palate.errors import DataError, RecipeError


def held_out(
    prompts: Sequence[Content], ids: Sequence[TokenIds], fraction: float, seed: int
) -> list[bool]:
    """Which items go to the evaluation split: `fraction` of the prompts, at least one.

    Prompts are ranked by a seeded hash of their text, so neither order nor tokenizer matters.
    Prompts that truncation has made equal stay together: no prompt is in both splits.

    Raises:
        RecipeError: too few prompts to hold any out.
    """
    key: dict[tuple[int, ...], str] = {}
    for prompt, tokens in zip(prompts, ids, strict=True):
        text = json.dumps(prompt, sort_keys=True)
        digest = hashlib.sha256(f"{seed}|held out|{text}".encode()).hexdigest()
        key[tokens] = min(key.get(tokens, digest), digest)
    count = max(1, round(fraction * len(key)))
    if count >= len(key):
        raise RecipeError(
            f"`data.eval_fraction`: {fraction:g} of {len(key)} prompts leaves none to train on"
        )
    chosen = set(sorted(key, key=lambda tokens: key[tokens])[:count])
    return [tokens in chosen for tokens in ids]


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
