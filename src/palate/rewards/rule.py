"""Rules that a response keeps or breaks: a pattern, a length, the right answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from palate.data.curation.length import length_of
from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Span, Traits
from palate.recipes.scorers import RuleScorer as Recipe
from palate.rewards.columns import NO_COLUMN, text_of
from palate.rewards.texts import prompt_text, response_text

NO_ANSWER_KNOWN = "no answer to its prompt is known"


class RuleScorer:
    """One number where a response keeps all rules of a recipe, another where it breaks one.

    Every match of the pattern is a span. A response to a prompt whose answer is not known, or not
    in its column, has no score.

    Args:
        answers: prompt, as one text -> its right answer; needed where the recipe has `answers`.
    """

    def __init__(self, recipe: Recipe, answers: Mapping[str, str] | None = None) -> None:
        assert (answers is not None) is bool(recipe.answers)
        self.recipe = recipe
        self.name = recipe.name or recipe.described
        self.counts: Counter[str] = Counter()
        self.traits = Traits(
            independent=True, modalities=TEXT_AND_IMAGES, reads_prompt=recipe.knows_answers
        )
        self._pattern = None if recipe.pattern is None else re.compile(recipe.pattern)
        self._extract = None if recipe.extract is None else re.compile(recipe.extract)
        self._answers = answers

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """See the class."""
        return [self._scores(group) for group in groups]

    def _scores(self, group: Group) -> list[Score]:
        answer, unknown = None, NO_ANSWER_KNOWN
        if (column := self.recipe.answer_column) is not None:
            answer, unknown = text_of(group, column), NO_COLUMN.format(column)
        elif self._answers is not None:
            answer = self._answers.get(prompt_text(group.prompt))
        if answer is None and self.recipe.knows_answers:
            return [Score(None, unknown)] * len(group.responses)
        return [self._score(response_text(response), answer) for response in group.responses]

    def _score(self, text: str, answer: str | None) -> Score:
        kept = True
        spans: tuple[Span, ...] = ()
        if self._pattern is not None:
            spans = tuple(
                Span(match.start(), match.end(), self.recipe.kept)
                for match in self._pattern.finditer(text)
            )
            kept = bool(spans)
        if self.recipe.length is not None:
            limits = self.recipe.length
            kept = kept and limits.broken_by(length_of(text, limits.unit)) is None
        if answer is not None:
            kept = kept and self._given(text) == answer.strip()
        return Score(self.recipe.kept if kept else self.recipe.broken, spans=spans)

    def _given(self, text: str) -> str | None:
        """The answer in a response: the last match of `extract`, or all of it."""
        if self._extract is None:
            return text.strip()
        matches = list(self._extract.finditer(text))
        if not matches:
            return None
        return (matches[-1][min(1, self._extract.groups)] or "").strip()
