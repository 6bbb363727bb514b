"""Comparisons in plain words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from palate.intervals import Interval

if TYPE_CHECKING:
    from palate.study.comparison import Comparison


def sentence(
    c: Comparison, *, distinguished: bool | None = None, correction: str | None = None
) -> str:
    """What a comparison says.

    Args:
        distinguished: after a correction, what it says instead of the interval.
        correction: in words ("Holm, 6 comparisons").
    """
    if distinguished is None:
        distinguished = c.distinguished
    if c.interval is None:
        return _without_interval(c)
    parts = [_told_apart(c) if distinguished else _not_told_apart(c)]
    if not distinguished and not c.distinguished:
        parts += _what_would_do(c)
    elif not distinguished:
        # How many seeds would do is counted without the correction.
        parts.append("by itself it would be told apart")
    if c.sesoi is not None:
        parts += _against_what_matters(c)
    if min(c.seeds) == 1:
        parts.append("it holds for these trained models only, not for another training of them")
    return f"{'; '.join(parts)} ({_basis(c, correction)})."


def number(value: float, precision: float) -> str:
    """`value` to two digits of `precision`; a -0 has no sign."""
    if not precision or not math.isfinite(precision):
        return f"{value:.4g}"
    digits = min(12, max(0, 1 - math.floor(math.log10(abs(precision)))))
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def with_interval(value: float, interval: Interval) -> str:
    """`0.021 [0.008, 0.034]`"""
    precision = (interval[1] - interval[0]) / 2
    low, high = (number(end, precision) for end in interval)
    return f"{number(value, precision)} [{low}, {high}]"


def _told_apart(c: Comparison) -> str:
    assert c.interval is not None
    first, second = c.names
    difference, (low, high) = c.difference, c.interval
    wanted = -1 if c.direction == "lower" else 1
    if difference * wanted < 0:
        first, second, difference, low, high = second, first, -difference, -high, -low
    word = "higher" if c.direction == "neither" else "better"
    if wanted < 0:
        return f"{first} is better (lower) than {second}: {with_interval(difference, (low, high))}"
    return f"{first} is {word} than {second} by {with_interval(difference, (low, high))}"


def _not_told_apart(c: Comparison) -> str:
    assert c.interval is not None
    first, second = c.names
    if c.difference == 0 and c.interval == (0.0, 0.0):
        return f"{first} and {second} have the same outcomes"
    value = with_interval(c.difference, c.interval)
    after = " once corrected" if c.distinguished else ""
    return f"{first} and {second} are not distinguishable{after}: {first} - {second} = {value}"


def _what_would_do(c: Comparison) -> list[str]:
    if not c.detectable or not c.difference:
        return []
    size = number(abs(c.difference), c.detectable / 2)
    parts = [
        f"an effect of {number(c.detectable, c.detectable)} would have been seen with "
        f"{c.power:.0%} power"
    ]
    if c.spread is None:
        return parts
    if c.seeds_needed is not None:
        settles = f"{c.seeds_needed} seeds would settle a difference of this size ({size})"
    else:
        settles = f"not even 1000 seeds would settle a difference of this size ({size})"
        if c.items_needed is not None:
            settles += f", but {c.items_needed} {_units(c)} would"
    return [*parts, settles]


def _against_what_matters(c: Comparison) -> list[str]:
    assert c.interval is not None and c.sesoi is not None
    matters = f"what matters ({c.sesoi:g})"
    low, high = c.interval
    if c.equivalent:
        return [f"smaller than {matters}"]
    if low >= c.sesoi or high <= -c.sesoi:
        return [f"at least {matters}"]
    return [f"whether it is {matters} stays open"]


def _without_interval(c: Comparison) -> str:
    first, second = c.names
    if c.difference < 0:
        first, second = second, first
    size = f"{abs(c.difference):.4g}"
    place = f"{first} is {size} above {second}" if c.difference else f"{first} equals {second}"
    return (
        f"{place} on {c.items} {_units(c)}, without an interval: one training run does not "
        "tell how far another would be."
    )


def _units(c: Comparison) -> str:
    return ("prompt" if c.clustered else "item") + ("s" if c.items > 1 else "")


def _basis(c: Comparison, correction: str | None) -> str:
    a, b = c.seeds
    seeds = f"{a} {'paired ' if c.paired and a > 1 else ''}seed{'s' if a > 1 else ''}"
    if a != b:
        seeds = f"{a} and {b} seeds"
    words = f"{c.confidence:.0%} interval, {c.estimand}, {seeds}, {c.items} {_units(c)}"
    return f"{words}; {correction}" if correction else words
