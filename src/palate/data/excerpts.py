"""Windows of long texts, so that a page can show a pair: cut to where its responses differ."""

from __future__ import annotations

from typing import Any

_LEAD = 120


def window(text: str, start: int, size: int) -> dict[str, Any]:
    """`size` characters from `start` on: text, and the characters before and after."""
    shown = text[start : start + size]
    return {"text": shown, "before": start, "after": len(text) - start - len(shown)}


def tail(text: str, size: int) -> dict[str, Any]:
    """The last characters: what is answered stands at the end of a long prompt."""
    start = max(0, len(text) - size)
    return {"text": text[start:], "before": start, "after": 0}


def first_shown(chosen: str, rejected: str, size: int) -> int:
    """Where windows of `size` of both begin: a little before their first difference, if that is
    beyond the first half of a window."""
    low, high = 0, min(len(chosen), len(rejected))
    while low < high:
        middle = (low + high + 1) // 2
        if chosen[:middle] == rejected[:middle]:
            low = middle
        else:
            high = middle - 1
    return low - _LEAD if low > size // 2 else 0


def excerpts(
    prompt: str, chosen: str, rejected: str, *, prompt_size: int, size: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Windows of a pair's prompt and of its responses, which begin together.

    Args:
        prompt_size, size: characters of the prompt and of a response, at most.
    """
    start = first_shown(chosen, rejected, size)
    return (
        tail(prompt, prompt_size),
        window(chosen, start, size),
        window(rejected, start, size),
    )


def storable(text: str) -> str:
    """Lone surrogates, which no file in UTF-8 can hold, as replacement characters."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
