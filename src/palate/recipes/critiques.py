"""Critiques that data holds: in which columns, and as what a critic's reward model is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from palate.recipes.losses import Strict
from palate.recipes.schema import DataSource


class CritiqueColumns(Strict):
    """Columns of critiques: one of a list, or two of a pair."""

    column: str | None = None
    """A column that lists a critique for each response of the row, by a dot that of a key of its
    items: completions.critique."""
    chosen: str | None = None
    """Of pairs: the column of the critique of the chosen response."""
    rejected: str | None = None
    """Of pairs: the column of the critique of the rejected response."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.chosen is None) is not (self.rejected is None):
            yield "rejected", "goes with `chosen`: give both or neither"
        if (self.column is None) is (self.chosen is None):
            yield "column", "give either `column`, or `chosen` and `rejected`"


class GivenCritiques(CritiqueColumns):
    """Critiques of the data, in the place of written ones: what a reward model makes of the best
    critiques there are (the last row of MM-RLHF's Table 4, arXiv:2502.10391)."""

    data: Annotated[tuple[DataSource, ...], Field(min_length=1)]
    """Prompts with their responses and the critiques of these; a response without one among them
    has no score."""
