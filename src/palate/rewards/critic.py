"""Critic-based rewards: a language model writes about a response, and a reward model reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from palate.data.schema import Content
from palate.data.scorer import Group, Score, Scorer, Traits, ask, regrouped
from palate.recipes import scorers as recipes
from palate.rewards.chat import Chat, Reply, open_chat
from palate.rewards.given import Given
from palate.rewards.judge import UNASKED, Transcript, with_sight
from palate.rewards.questions import critique_question

NO_CRITIQUE = "no critique was written"


class Critic:
    """Critic-based: a critique is written (greedily), and a reward model scores it in place.

    Where the recipe has `given`, critiques are looked up in data instead.

    The reward model reads the critic's question as its prompt and the critique as the response, so
    that its reward stands after question, response and critique, as in MM-RLHF (arXiv:2502.10391).

    Args:
        scorer: the reward model. chat: default: the one that the recipe describes.
        seed: of drawing the rows of given critiques.
    """

    CUT = "critiques cut by max_new_tokens"
    EMPTY = "responses without a critique"
    REPEATED = "given critiques that an earlier one of the same response rules out"

    def __init__(
        self,
        recipe: recipes.CriticScorer,
        scorer: Scorer,
        chat: Chat | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.recipe = recipe
        self.scorer = scorer
        self.given = None if recipe.given is None else Given(recipe.given, seed)
        self.chat = open_chat(recipe.chat) if chat is None and recipe.chat is not None else chat
        source = self.given or self.chat
        assert source is not None
        self.name = recipe.name or f"{scorer.name} given critiques of {source.name}"
        self.counts: Counter[str] = Counter()
        if self.given is not None and self.given.repeated:
            self.counts[self.REPEATED] = self.given.repeated
        self.transcript: Transcript | None = None

    @property
    def traits(self) -> Traits:
        """Images are read where both the writer of critiques and the reward model read them."""
        read = Traits(modalities=self.scorer.traits.modalities, blind=self.scorer.traits.blind)
        if self.chat is None or "image" not in read.modalities:
            return read
        return with_sight(Traits(), self.chat)

    def critiques(self, prompts: Sequence[Content], responses: Sequence[Content]) -> list[Reply]:
        """One critique a response."""
        if self.given is not None:
            return self.given.critiques(prompts, responses)
        assert self.chat is not None
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
