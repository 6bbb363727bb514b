"""Scorers that ask a language model, as recipes: judges, critics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.chats import Chat
from palate.recipes.critiques import GivenCritiques
from palate.recipes.losses import NotNegative
from palate.recipes.plain_scorers import ModelScorer, ScorerBase
from palate.recipes.schema import Count


class JudgeBase(ScorerBase):
    chat: Chat
    """The model that judges."""
    reasoning: bool = False
    """Let it think before its verdict."""
    method: Literal["logits", "sampled"] = "logits"
    """logits: the probabilities of the verdicts at the one place where they can stand (of a server:
    one that goes on with a begun answer and gives log-probabilities, as vLLM and SGLang do);
    sampled: the verdicts that it writes."""
    votes: Count = 1
    """Verdicts drawn a question (sampled); more than one needs a temperature."""
    temperature: NotNegative = 0.0
    """Of verdicts and reasoning; 0 takes the likeliest token."""
    max_new_tokens: Count = 1024
    """Of a verdict with its reasoning."""
    seed: Annotated[int, Field(ge=0)] = 0
    instructions: str | None = None
    """What good means, in words; replaces the default criteria."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.method == "logits" and self.reasoning:
            yield "method", "reasoning is written: use `method: sampled`"
        if self.method == "logits" and self.votes > 1:
            yield "votes", "logits give the probability itself: use `method: sampled` to vote"
        if self.method == "logits" and self.temperature:
            yield "temperature", "only with `method: sampled`"
        if self.votes > 1 and not self.temperature:
            yield "votes", "all alike at temperature 0: set `temperature`"


class PointwiseJudge(JudgeBase):
    """A language model that rates one response at a time."""

    type: Literal["pointwise"] = "pointwise"
    best: Annotated[int, Field(ge=2, le=9)] = 9
    """Ratings go from 1 to this; one digit, so that each is one token."""


class PairwiseJudge(JudgeBase):
    """A language model that says which of two responses is better. A response's score is the mean
    probability that it beats the other responses to its prompt."""

    type: Literal["pairwise"] = "pairwise"
    swap: bool = True
    """Ask in both orders and average: what the place alone decides cancels."""
    ties: bool = False
    """Allow the verdict that both are as good."""


class CriticScorer(ScorerBase):
    """Critic-based: a language model writes a critique of the response, or the data has one, and a
    reward model scores what is read with it (MM-RLHF, arXiv:2502.10391)."""

    type: Literal["critic"] = "critic"
    chat: Chat | None = None
    """The model that writes critiques."""
    given: GivenCritiques | None = None
    """Critiques of the data, with no model that writes any; instead of `chat`."""
    scorer: ModelScorer
    """The reward model; it reads the question of the critic as prompt, the critique as response."""
    max_new_tokens: Count = 1024
    """Of a critique; one that is cut is scored as it is, and counted."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.chat is None) is (self.given is None):
            yield "chat", "give either `chat`, which writes critiques, or `given`, which has them"
        if self.given is not None and self.max_new_tokens != 1024:
            yield "max_new_tokens", "only with `chat`: nothing is written"
