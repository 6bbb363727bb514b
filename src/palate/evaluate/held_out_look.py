"""Whether a trained model looks at the images of held-out pairs; as `evaluate.reward.looking`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from palate.data.encode import Drop, Encoder
from palate.data.images import ImageError
from palate.data.items import Item
from palate.data.schema import Preference
from palate.data.videos import located
from palate.evaluate.reward.items import BenchmarkItem, Scores
from palate.evaluate.reward.looking import look
from palate.recipes.images import ImagesRecipe

MOST = 300
"""Pairs that are asked about again."""
Margins = Callable[[Sequence[Item]], Sequence[float]]
"""Of pairs the margin of each."""


@dataclass(frozen=True)
class HeldOutLook:
    """Held-out pairs with images, ready to be encoded with others.

    Attributes:
        places: among all held-out pairs. items: these pairs, whose ids are their numbers here.
        rows: what they were made of.
    """

    encoder: Encoder
    places: list[int]
    items: list[BenchmarkItem]
    rows: list[Preference]
    seed: str

    @classmethod
    def of(cls, rows: Sequence[Preference], encoder: Encoder, seed: int) -> HeldOutLook | None:
        """
        Args:
            rows: of the held-out items, in their order; those of other kinds than pairs, and pairs
                whose prompts are not the same, are left out.

        Returns:
            None where no pair has an image.
        """
        places: list[int] = []
        items: list[BenchmarkItem] = []
        kept: list[Preference] = []
        for place, row in enumerate(rows):
            if row.kind != "pair" or row.has_own_prompts or not row.images:
                continue
            try:
                row = located(row, Path(), ImagesRecipe())
            except ImageError:
                continue
            places.append(place)
            kept.append(row)
            items.append(
                BenchmarkItem(
                    id=str(len(items)),
                    source=row.source,
                    prompt=row.prompt,
                    responses=(row.chosen.content, row.rejected.content),
                    tie=row.tie,
                )
            )
        return cls(encoder, places, items, kept, f"{seed}|look") if items else None

    def measure(
        self, margins: Sequence[float], ask: Margins, *, confidence: float = 0.95
    ) -> dict[str, Any] | None:
        """The entry `look` of evaluation.json.

        Args:
            margins: of all held-out pairs, with their own images. ask: margins of changed ones.
        """
        real = [[margins[place], 0.0] for place in self.places]
        return look(
            self.items,
            real,
            lambda changed, _: self._scores(changed, ask),
            most=MOST,
            seed=self.seed,
            confidence=confidence,
        )

    def _scores(self, changed: Sequence[BenchmarkItem], ask: Margins) -> Scores:
        rows = [replace(self.rows[int(item.id)], prompt=item.prompt) for item in changed]
        encoded = [each.item for each in self.encoder.encode(rows)]
        usable = [item for item in encoded if not isinstance(item, Drop)]
        # What is cached of items is found by their place among those of the run.
        margins = iter(ask([replace(item, index=-1) for item in usable]))
        return [
            [math.nan, math.nan] if isinstance(item, Drop) else [next(margins), 0.0]
            for item in encoded
        ]
