"""Truncation: prompts and responses cut to the limits of a recipe, or the row dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palate.recipes.schema import LengthRecipe

LONG_PROMPT = "prompt longer than max_prompt_tokens"
LONG_RESPONSE = "response longer than max_response_tokens"
LONG_TOTAL = "prompt and response longer than max_tokens"
MANY_IMAGES = "more image tokens than max_image_tokens"
NO_ROOM = "prompt leaves no room for a response in max_tokens"


class TooLong(Exception):
    """A row that the limits drop; `reason` is for the count."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Truncated:
    """Ids within the limits. `cut` says which of prompt and responses were cut."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    prompt_cut: bool
    cut: tuple[bool, ...]


def truncate_prompt(
    ids: tuple[int, ...], tail: tuple[int, ...], length: LengthRecipe, *, bos: int | None
) -> tuple[int, ...]:
    """A prompt of at most `max_prompt_tokens`, BOS counted and kept.

    Args:
        tail: what must stand at its end: the opening of the assistant's turn.

    Raises:
        TooLong: longer, and not to be cut, or nothing but the tail would be left.
    """
    limit = length.max_prompt_tokens
    if len(ids) <= limit:
        return ids
    if length.prompt == "drop":
        raise TooLong(LONG_PROMPT)
    head = ids[:1] if bos is not None and ids[0] == bos else ()
    room = limit - len(head) - len(tail)
    if room < 1:
        raise TooLong(LONG_PROMPT)
    if length.prompt == "keep_start":
        return (*ids[: limit - len(tail)], *tail)
    return (*head, *ids[len(ids) - (limit - len(head)) :])


def truncate(
    prompt: tuple[int, ...],
    tail: tuple[int, ...],
    responses: Sequence[tuple[int, ...]],
    length: LengthRecipe,
    *,
    bos: int | None,
) -> Truncated:
    """Prompt and responses within all limits. A cut response has no end token.

    Raises:
        TooLong: dropped by the recipe, or no room for one token of a response.
    """
    asked = truncate_prompt(prompt, tail, length, bos=bos)
    limit, over = length.max_response_tokens, LONG_RESPONSE
    if length.max_tokens is not None:
        room = length.max_tokens - len(asked)
        if room < 1:
            raise TooLong(NO_ROOM)
        if room < limit:
            limit, over = room, LONG_TOTAL
    if length.response == "drop" and any(len(ids) > limit for ids in responses):
        raise TooLong(over)
    return Truncated(
        prompt=asked,
        responses=tuple(ids[:limit] for ids in responses),
        prompt_cut=asked is not prompt,
        cut=tuple(len(ids) > limit for ids in responses),
    )
