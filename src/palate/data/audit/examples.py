"""Pairs to look at: some drawn by chance, and the extremes of a source."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palate.data.curation.base import Block
from palate.data.curation.shingles import Hashes
from palate.data.excerpts import excerpts
from palate.data.schema import Preference

DRAWN = 4
PROMPT_CHARACTERS = 1200
RESPONSE_CHARACTERS = 2400

SHOWN_IMAGES = 4
"""Of a pair, at most."""

KINDS = {
    "drawn by chance": DRAWN,
    "longest": 1,
    "shortest": 1,
    "largest margin": 1,
    "smallest margin": 1,
    "most in favour of the shorter": 1,
}
"""Kind -> how many are kept of each source."""


@dataclass(order=True)
class _Held:
    key: tuple[float, int]
    example: dict[str, Any] = field(compare=False)


class Examples:
    """The pairs with the least keys of each kind."""

    def __init__(self) -> None:
        self._held: dict[str, list[_Held]] = {kind: [] for kind in KINDS}

    def add(self, block: Block, priority: Hashes, sizes: Any, margins: Any) -> None:
        """Args:
        priority: [N]. sizes: [N, 3] characters of prompt, chosen and rejected.
        margins: [N], NaN where a pair has none.
        """
        both = sizes[:, 1] + sizes[:, 2]
        unlike = np.where([row.tie for row in block.rows], np.inf, sizes[:, 1] - sizes[:, 2])
        keys = {
            "longest": -both.astype(np.float64),
            "shortest": both.astype(np.float64),
            "largest margin": np.where(np.isnan(margins), np.inf, -margins),
            "smallest margin": np.where(np.isnan(margins), np.inf, margins),
            "most in favour of the shorter": np.where(unlike < 0, unlike, np.inf),
            "drawn by chance": priority.astype(np.float64),
        }
        for kind, values in keys.items():
            self._offer(kind, values, block, lambda i: _example(block, i))

    def merge(self, other: Examples) -> None:
        for kind, held in other._held.items():
            for one in held:
                self._insert(kind, one)

    def found(self) -> list[dict[str, Any]]:
        """Each once, under the first kind that it is of."""
        shown: dict[int, dict[str, Any]] = {}
        for kind, held in self._held.items():
            for one in held:
                shown.setdefault(one.key[1], {"kind": kind, **one.example})
        return list(shown.values())

    def _offer(
        self, kind: str, values: Any, block: Block, make: Callable[[int], dict[str, Any]]
    ) -> None:
        most = min(KINDS[kind], len(values))
        for i in np.argsort(values, kind="stable")[:most].tolist():
            if not np.isfinite(values[i]):
                return
            key = float(values[i]), block.index[i]
            held = self._held[kind]
            if len(held) < KINDS[kind] or key < held[-1].key:
                self._insert(kind, _Held(key, make(i)))

    def _insert(self, kind: str, one: _Held) -> None:
        held = self._held[kind]
        insort(held, one)
        del held[KINDS[kind] :]


def _example(block: Block, i: int) -> dict[str, Any]:
    row = block.rows[i]
    images = [image for image in row.all_images if image.digest is not None]
    prompt, chosen, rejected = excerpts(
        block.prompts[i],
        block.chosen[i],
        block.rejected[i],
        prompt_size=PROMPT_CHARACTERS,
        size=RESPONSE_CHARACTERS,
    )
    return {
        "id": row.id,
        "row": row.row,
        "tie": row.tie,
        "margin": _finite(row.margin),
        "images": len(row.all_images),
        "digests": [image.digest for image in images[:SHOWN_IMAGES]],
        "prompt": prompt,
        "chosen": chosen | _who(row, 0),
        "rejected": rejected | _who(row, 1),
    }


def _who(row: Preference, side: int) -> dict[str, Any]:
    response = row.responses[side]
    return {"generator": response.generator, "rating": _finite(response.rating)}


def _finite(value: float | None) -> float | None:
    """None for what JSON has no number for."""
    return None if value is None or not math.isfinite(value) else value
