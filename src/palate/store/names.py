"""Names that tell things apart."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def unique_names(names: Iterable[str], form: str = "{} ({})") -> list[str]:
    """The names, those that an earlier one has numbered from 2.

    >>> unique_names(["a", "a", "b"]), unique_names(["a", "a"], "{}#{}")
    (['a', 'a (2)', 'b'], ['a', 'a#2'])
    """
    # A number a name: it is not looked for from 2 anew where thousands are equal.
    last: dict[str, int] = {}
    numbered: list[str] = []
    for name in names:
        unique, n = name, last.get(name, 1)
        while unique in last:
            n += 1
            unique = form.format(name, n)
        last[name] = n
        last.setdefault(unique, 1)
        numbered.append(unique)
    return numbered


def path_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart; of equal paths there are none, and they are
    named in full."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=1)):
        ends = [os.path.join(*names[-depth:]) for names in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [str(path.resolve()) for path in paths]
