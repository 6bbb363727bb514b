"""Numbers and findings in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from palate.store.durations import duration

MINUS, DASH = "\u2212", "\u2013"
"""A true minus sign, and what stands for a value that is not there."""


_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def plain(value: Any) -> Any:
    """A JSON value with what no page and no picture can hold replaced: controls, lone surrogates.

    >>> plain({"a": ["tab\\tand bell\\a"]})
    {'a': ['tab\\tand bell\ufffd']}
    """
    if isinstance(value, str):
        return _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def number(value: float | int | None, digits: int = 3) -> str:
    """At most `digits` significant digits, whole numbers in full, a dash for None.

    >>> number(1234567), number(0.66449), number(12.3456)
    ('1,234,567', '0.664', '12.3')
    """
    if value is None:
        return DASH
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    size = 0 if value == 0 else math.floor(math.log10(abs(value)))
    if value != 0 and not -4 <= size < 7:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    return f"{value:,.{max(0, digits - 1 - size)}f}".replace("-", MINUS)


def fixed(value: float | None, places: int = 2) -> str:
    """That many decimal places: for columns of numbers that are compared."""
    if value is None or not math.isfinite(value):
        return number(value)
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", MINUS)


def percent(value: float | None, places: int = 1) -> str:
    """A share as per cent."""
    return DASH if value is None or not math.isfinite(value) else f"{100 * value:.{places}f}%"


def span(ci: Sequence[float | None] | None, places: int = 2, *, share: bool = False) -> str:
    """An interval in brackets; empty where there is none."""
    if ci is None or any(end is None or not math.isfinite(end) for end in ci):
        return ""
    write = percent if share else fixed
    low, high = (write(end, 1 if share else places).removesuffix("%") for end in ci)
    return f"[{low}, {high}]"


def seconds(value: float | None) -> str:
    """
    >>> seconds(4000)
    '1 h 6 min'
    """
    return DASH if value is None or not 0 <= value < math.inf else duration(value)


def listed(words: Iterable[str]) -> str:
    """
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    items = list(words)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def count(n: int, noun: str) -> str:
    """
    >>> count(1, "run"), count(1200, "pair")
    ('1 run', '1,200 pairs')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
