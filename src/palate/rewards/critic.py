"""Critic-based rewards: a language model writes about a response, and a reward model reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from palate.data.schema import Content
from palate.data.scorer import Group, Score, Scorer, Traits, ask, regrouped
from palate.recipes import scorers as recipes
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
    traits = Traits()

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

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """The reward given the critique, which is the score's text."""
        prompts = [group.prompt for group in groups for _ in group.responses]
        responses = [response for group in groups for response in group.responses]
        replies = self.critiques(prompts, responses)
        texts = [reply.text.strip() for reply in replies]
        written = [i for i, text in enumerate(texts) if text]
        self.counts[self.EMPTY] += len(texts) - len(written)
        asked = [Group(critique_question(prompts[i], responses[i]), (texts[i],)) for i in written]
        scores = [Score(None, reply.refused or NO_CRITIQUE) for reply in replies]
        for i, (score,) in zip(written, ask(self.scorer, asked), strict=True):
            scores[i] = replace(score, text=texts[i])
        return regrouped(scores, groups)
