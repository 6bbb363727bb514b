"""What a judge's answer is worth to a policy that learns to judge, by R1-Reward (arXiv:2505.02835):

    result x (1 + 0.5 consistency) + 0.5 format

result: 1 where the verdict is the right one, else 0. consistency: 1 where a referee finds that the
thought bears the verdict out, else 0 (-1 in the released code), and 0 where it cannot be told.
format: 1 where the answer has the form that the question asks for, else 0. A wrong verdict is worth
its form alone, so the referee is asked about right ones.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Sequence

from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Traits, regrouped
from palate.recipes import scorers as recipes
from palate.rewards.chat import Chat, open_chat
from palate.rewards.columns import NO_COLUMN, structure_of, text_of
from palate.rewards.names import name_of
from palate.rewards.questions import (
    FIRST,
    NO,
    SECOND,
    TIE,
    YES,
    consistency_question,
    read_verdict,
)
from palate.rewards.texts import response_text

UNTOLD = "thoughts that the referee gave no readable answer about"
UNREADABLE = "verdicts that could not be read"
_BARE = re.compile(r"\s*<answer>[^<>]*</answer>\s*")
_THOUGHT = re.compile(r"\s*<think>((?:(?!</?think>).)*)</think>\s*<answer>[^<>]*</answer>\s*", re.S)


class JudgeVerdict:
    """See the module's head. The three terms are parts of the score.

    Args:
        chat: the referee; default: the one that the recipe describes, if it does.
    """

    def __init__(self, recipe: recipes.JudgeVerdictScorer, chat: Chat | None = None) -> None:
        self.recipe = recipe
        self.name = name_of(recipe)
        # What the judge was shown is in its prompt; the referee looks at its words alone.
        self.traits = Traits(independent=recipe.referee is None, modalities=TEXT_AND_IMAGES)
        self.counts: Counter[str] = Counter()
        self.referee = chat
        if chat is None and recipe.referee is not None:
            self.referee = open_chat(recipe.referee)
        self._lock = threading.Lock()

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """No score where the prompt has no right verdict."""
        scores: list[Score] = []
        thoughts: dict[int, tuple[str, str]] = {}
        for group in groups:
            known = self._right(group)
            for response in group.responses:
                if isinstance(known, str):
                    scores.append(Score(None, known))
                    continue
                right, options = known
                text = response_text(response)
                verdict = read_verdict(text, options)
                self._count(UNREADABLE, verdict is None)
                thought = _THOUGHT.fullmatch(text) if self.recipe.reasoning else None
                formed = thought is not None or (
                    not self.recipe.reasoning and _BARE.fullmatch(text) is not None
                )
                result = verdict == right
                if result and thought is not None and verdict is not None:
                    thoughts[len(scores)] = thought[1].strip(), verdict
                scores.append(self._score(result, formed and verdict is not None, 0.0))
        if self.referee is not None and thoughts:
            asked = [consistency_question(*thought) for thought in thoughts.values()]
            for place, (reply,) in zip(thoughts, self.referee.reply(asked), strict=True):
                told = read_verdict(reply.text, (YES, NO)) if reply.finished else None
                self._count(UNTOLD, told is None)
                consistent = {YES: 1.0, NO: self.recipe.inconsistent}.get(told or "", 0.0)
                scores[place] = self._score(True, True, consistent)
        return regrouped(scores, groups)

    def _right(self, group: Group) -> tuple[str, tuple[str, ...]] | str:
        """The right verdict on a prompt, and those that may be given; or why it is not known."""
        right = text_of(group, self.recipe.right_column)
        if right is None:
            return NO_COLUMN.format(self.recipe.right_column)
        given = structure_of(group, self.recipe.options_column)
        if isinstance(given, Sequence) and not isinstance(given, str):
            options = tuple(str(option).lower() for option in given)
        else:
            options = (FIRST, SECOND, *((TIE,) if right == TIE else ()))
        if right.lower() not in options:
            return f"its right verdict is none of {', '.join(options)}"
        return right.lower(), options

    def _score(self, result: bool, formed: bool, consistency: float) -> Score:
        recipe = self.recipe
        value = result * (1 + recipe.consistency_weight * consistency)
        value += recipe.format_weight * formed
        parts = {"result": Score(float(result)), "format": Score(float(formed))}
        if self.referee is not None and result:
            parts["consistency"] = Score(consistency)
        return Score(value, parts=parts)

    def _count(self, what: str, n: int) -> None:
        with self._lock:
            self.counts[what] += n
