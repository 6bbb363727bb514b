"""Lengths of time in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in words, to three digits or so, cut and not rounded up.

    >>> [duration(seconds) for seconds in (3.21, 40, 75.4, 4000)]
    ['3.2 s', '40 s', '1 min 15 s', '1 h 6 min']
    """
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, left = divmod(int(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
