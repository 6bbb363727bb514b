"""Scores of both sides of a pair: from a reward, from models, or from columns of the data.

This package stands below rewards and models, so the caller brings what makes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from palate.data.curation.base import Block, Means
from palate.data.schema import Preference
from palate.data.scorer import Group, Score, Scorer, ask
from palate.errors import DataError, PalateError
from palate.recipes.curation import ColumnScores, Scores

_SIDES: dict[str, Literal[0, 1]] = {"chosen": 0, "rejected": 1}


class Differences:
    """Chosen score minus rejected score of each row; None where it has none.

    Attributes:
        name: of what scores.

    Raises:
        PalateError: the recipe names a reward and the caller cannot make any.
    """

    def __init__(self, recipe: Scores, means: Means) -> None:
        self._recipe = recipe
        self._scorer: Scorer | None = None
        if isinstance(recipe, ColumnScores):
            self.name = f"{recipe.chosen} - {recipe.rejected}"
            return
        if means.make_scorer is None:
            raise PalateError(
                f"scores of type {recipe.type} need a model or reward, and there is none here"
            )
        self._scorer = means.make_scorer(recipe)
        self.name = self._scorer.name

    def of(self, block: Block) -> list[float | None]:
        """In the order of the block.

        Raises:
            DataError: a column that holds something other than numbers.
        """
        if isinstance(self._recipe, ColumnScores):
            return [_from_columns(row, self._recipe) for row in block.rows]
        assert self._scorer is not None
        scores = score_pairs(self._scorer, block.rows)
        return [_difference(chosen.value, rejected.value) for chosen, rejected in scores]


def score_pairs(scorer: Scorer, rows: Sequence[Preference]) -> list[tuple[Score, Score]]:
    """Scores of chosen and rejected, each as an answer to the prompt that it answers."""
    groups = [group for row in rows for group in _groups(row)]
    scores = (score for scores in ask(scorer, groups) for score in scores)
    return [(next(scores), next(scores)) for _ in rows]


def _groups(row: Preference) -> list[Group]:
    chosen, rejected = row.responses
    if not row.has_own_prompts:
        return [Group(row.prompt, (chosen.content, rejected.content))]
    return [
        Group(row.prompt if side.prompt is None else side.prompt, (side.content,))
        for side in (chosen, rejected)
    ]


def _from_columns(row: Preference, recipe: ColumnScores) -> float | None:
    chosen = _number(row, recipe.chosen)
    rejected = _number(row, recipe.rejected)
    return _difference(chosen, rejected)


def _number(row: Preference, field: str) -> float | None:
    side, _, name = field.partition(".")
    value: Any = row.extra
    if side in _SIDES and name:
        response = row.responses[_SIDES[side]]
        value = {key: getattr(response, key) for key in ("rating", "votes", "aspects")}
        field = name
    for key in field.split("."):
        if not isinstance(value, dict) or value.get(key) is None:
            return None
        value = value[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"holds no number: {type(value).__name__}", row=row.row, field=field)
    return float(value)


def _difference(chosen: float | None, rejected: float | None) -> float | None:
    if chosen is None or rejected is None:
        return None
    difference = chosen - rejected
    return difference if math.isfinite(difference) else None
