"""Pairs with a part that is too short or too long."""

from __future__ import annotations

from palate.data.curation.base import KEEP, Block, Dropped, Judgement, Means, RowStep
from palate.recipes.curation import Length
from palate.recipes.schema import LengthUnit, Limits

_PARTS = ("prompt", "chosen", "rejected")


class LengthStep(RowStep):
    """Counts characters, or words separated by white space."""

    name = "length"

    def __init__(self, recipe: Length, means: Means) -> None:
        self.recipe = recipe

    def judge(self, block: Block) -> list[Judgement]:
        texts = zip(block.prompts, block.chosen, block.rejected, strict=True)
        return [self._judged(parts) for parts in texts]

    def _judged(self, texts: tuple[str, ...]) -> Judgement:
        unit = self.recipe.unit
        for part, text in zip(_PARTS, texts, strict=True):
            limits: Limits | None = getattr(self.recipe, part)
            broken = None if limits is None else limits.broken_by(length_of(text, unit))
            if broken is not None:
                return Dropped(f"{part} {broken} {unit}")
        return KEEP


def length_of(text: str, unit: LengthUnit) -> int:
    """Characters (code points) or words of a text."""
    return len(text) if unit == "characters" else len(text.split())
