"""Rubrics: weighted criteria, each of which a language model says yes or no to.

With w_c the weight of criterion c and p_c the probability (or share of votes) that it is true:

    score   sum w_c p_c / sum of the weights above 0
    failed  where a hard criterion of weight above 0 has p_c < 0.5, or one of a fault p_c >= 0.5
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from palate.data.scorer import Group, Score
from palate.errors import in_one_line
from palate.recipes import scorers as recipes
from palate.rewards.chat import Chat
from palate.rewards.columns import NO_COLUMN, structure_of
from palate.rewards.judge import Judge
from palate.rewards.questions import NO, YES, criterion_question
from palate.store.names import unique_names

NOT_CRITERIA = "no list of criteria in column {} of its prompt: {}"
NO_WEIGHT = "no criterion of its prompt has a weight above 0"
HARD = "responses that failed a hard criterion"
_NAME_CHARACTERS = 60
_KEYS = {"criterion": "text", "points": "weight"}
"""Other names of keys in columns."""


class Rubric(Judge):
    """See the module's head. Each criterion is a part of the score, by its name.

    A response has no score where a verdict about it could not be read: with a criterion less it is
    another rubric.
    """

    def __init__(self, recipe: recipes.RubricScorer, chat: Chat | None = None) -> None:
        super().__init__(recipe, chat, recipe.type, relative=False)
        self.rubric = recipe

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """One question for each response and criterion."""
        rubrics = [self._criteria(group) for group in groups]
        questions = [
            criterion_question(
                group.prompt,
                response,
                criterion.text,
                reasoning=self.recipe.reasoning,
                instructions=self.recipe.instructions,
            )
            for group, criteria in zip(groups, rubrics, strict=True)
            if not isinstance(criteria, str)
            for response in group.responses
            for criterion in criteria
        ]
        verdicts = iter(self._verdicts(questions, (YES, NO)))
        scored: list[list[Score]] = []
        for group, criteria in zip(groups, rubrics, strict=True):
            if isinstance(criteria, str):
                scored.append([Score(None, criteria)] * len(group.responses))
                continue
            names = unique_names(map(_name, criteria))
            scored.append([])
            for _ in group.responses:
                parts = {}
                for name, verdict in zip(names, verdicts, strict=False):
                    share = verdict.share
                    parts[name] = (
                        Score(None, verdict.reason, verdict.text)
                        if share is None
                        else Score(share.get(YES, 0.0), text=verdict.text)
                    )
                scored[-1].append(self._score(criteria, parts))
        return scored

    def _criteria(self, group: Group) -> tuple[recipes.Criterion, ...] | str:
        """The criteria of a prompt; or why there are none."""
        criteria = self.rubric.criteria
        if (column := self.rubric.criteria_column) is not None:
            given = structure_of(group, column)
            if given is None:
                return NO_COLUMN.format(column)
            if not isinstance(given, Sequence) or isinstance(given, str):
                return NOT_CRITERIA.format(column, in_one_line(repr(given), 60))
            try:
                criteria += tuple(map(_criterion, given))
            except ValidationError as error:
                return NOT_CRITERIA.format(column, in_one_line(error.errors()[0]["msg"]))
        if not any(criterion.weight > 0 for criterion in criteria):
            return NO_WEIGHT
        return criteria

    def _score(self, criteria: Sequence[recipes.Criterion], parts: Mapping[str, Score]) -> Score:
        words = (f"{name}:\n{part.text}" for name, part in parts.items() if part.text is not None)
        text = "\n\n".join(words) or None
        unread = next((part for part in parts.values() if part.value is None), None)
        if unread is not None:
            return Score(None, unread.reason, text, parts)
        values = [part.value or 0.0 for part in parts.values()]
        for criterion, value in zip(criteria, values, strict=True):
            if criterion.hard and (value >= 0.5) is not (criterion.weight > 0):
                self._count(HARD)
                return Score(self.rubric.failed, None, text, parts)
        total = math.fsum(max(0.0, criterion.weight) for criterion in criteria)
        weighed = (c.weight * value for c, value in zip(criteria, values, strict=True))
        return Score(math.fsum(weighed) / total, None, text, parts)


def _criterion(given: Any) -> recipes.Criterion:
    """Of one entry of a column.

    Raises:
        ValidationError: it is none.
    """
    if isinstance(given, str):
        return recipes.Criterion(text=given)
    if isinstance(given, Mapping):
        given = {_KEYS.get(key, key): value for key, value in given.items() if value is not None}
    return recipes.Criterion.model_validate(given)


def _name(criterion: recipes.Criterion) -> str:
    return criterion.name or in_one_line(criterion.text, _NAME_CHARACTERS)
