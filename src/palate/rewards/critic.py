"""Critic-based rewards: a language model writes about a response, and a reward model reads it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from palate.data.schema import Content
from palate.recipes import scorers as recipes
from palate.rewards.base import Judged, Scorer, by_group, check_lengths, judge_groups
from palate.rewards.chat import Chat, Reply, open_chat
from palate.rewards.judge import UNASKED, Transcript
from palate.rewards.questions import critique_question

NO_CRITIQUE = "no critique was written"


class Critic:
    """Critic-based: a critique is written (greedily), and a reward model scores it in place.

    The reward model reads the critic's question as its prompt and the critique as the response, so
    that its reward stands after question, response and critique, as in MM-RLHF (arXiv:2502.10391).

    Args:
        scorer: the reward model. chat: default: the one that the recipe describes.
    """

    CUT = "critiques cut by max_new_tokens"
    EMPTY = "responses without a critique"

    def __init__(
        self, recipe: recipes.CriticScorer, scorer: Scorer, chat: Chat | None = None
    ) -> None:
        self.recipe = recipe
        self.scorer = scorer
        self.chat = open_chat(recipe.chat) if chat is None else chat
        self.name = recipe.name or f"{scorer.name} given critiques of {self.chat.name}"
        self.counts: Counter[str] = Counter()
        self.transcript: Transcript | None = None

    def critiques(self, prompts: Sequence[Content], responses: Sequence[Content]) -> list[Reply]:
        """One critique a response."""
        questions = [
            critique_question(prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        replies = self.chat.reply(questions, max_new_tokens=self.recipe.max_new_tokens)
        for question, (reply,) in zip(questions, replies, strict=True):
            if reply.refused is not None:
                self.counts[f"{UNASKED}: {reply.refused}"] += 1
            self.counts[self.CUT] += not reply.finished
            if self.transcript is not None:
                self.transcript({"question": question, "texts": [reply.whole], "shares": None})
        return [reply for (reply,) in replies]

    @property
    def unscored(self) -> Counter[str]:
        """Why its reward model gave no score: reason -> number of responses."""
        return Counter(getattr(self.scorer, "unscored", {}))

    def score(self, prompts: list[Content], responses: list[Content | str]) -> list[float]:
        """The reward given the critique; NaN where there is none."""
        return [judged.score for judged in self._judged(prompts, responses)]

    def judge_groups(
        self, prompts: list[Content], responses: list[list[Content | str]]
    ) -> list[list[Judged]]:
        """As `score`, with the critiques."""
        return by_group(self._judged, prompts, responses)

    def _judged(
        self, prompts: Sequence[Content], responses: Sequence[Content | str]
    ) -> list[Judged]:
        check_lengths(prompts, responses)
        replies = self.critiques(prompts, responses)
        texts = [reply.text.strip() for reply in replies]
        there = [i for i, text in enumerate(texts) if text]
        self.counts[self.EMPTY] += len(texts) - len(there)
        asked: list[Content] = [critique_question(prompts[i], responses[i]) for i in there]
        read = judge_groups(self.scorer, asked, [[texts[i]] for i in there])
        found = [Judged(math.nan, None, reply.refused or NO_CRITIQUE) for reply in replies]
        for i, (judged,) in zip(there, read, strict=True):
            found[i] = replace(judged, text=texts[i])
        return found
