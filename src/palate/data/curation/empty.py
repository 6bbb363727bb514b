"""Pairs with a blank part, or with two equal responses."""

from __future__ import annotations

from palate.data.curation.base import KEEP, Block, Dropped, Judgement, Means, RowStep
from palate.recipes.curation import Empty


class EmptyStep(RowStep):
    """Blank is what Unicode calls white space, and nothing."""

    name = "empty"

    def __init__(self, recipe: Empty, means: Means) -> None:
        self.recipe = recipe

    def judge(self, block: Block) -> list[Judgement]:
        found: list[Judgement] = []
        for row, *texts in zip(
            block.rows, block.prompts, block.chosen, block.rejected, strict=True
        ):
            blank = {
                "prompt": not texts[0].strip() and not row.has_images,
                "chosen": not texts[1].strip(),
                "rejected": not texts[2].strip(),
            }
            part = next((part for part in self.recipe.of if blank[part]), None)
            chosen, rejected = row.responses
            if part is not None:
                found.append(Dropped(f"empty {part}"))
            elif (
                self.recipe.equal_responses
                and chosen.content == rejected.content
                and chosen.prompt == rejected.prompt
            ):
                found.append(Dropped("equal responses"))
            else:
                found.append(KEEP)
        return found
