"""Policy prompts, an input of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from palate.recipes.losses import Strict
from palate.recipes.schema import DataSource


class PromptsRecipe(Strict):
    """Prompts that the policy answers."""

    train: Annotated[tuple[DataSource, ...], Field(min_length=1)]
    eval: tuple[DataSource, ...] = ()
    """Held-out prompts; never trained on."""
    eval_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Hold out this share of `train`; only without `eval`."""

    @property
    def holds_out(self) -> bool:
        return bool(self.eval) or self.eval_fraction is not None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.eval and self.eval_fraction is not None:
            yield "eval_fraction", "only without `eval`: the held-out prompts come from one of them"
