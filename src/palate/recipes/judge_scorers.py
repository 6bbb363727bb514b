"""Scorers that ask a language model, as recipes: judges, critics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.chats import Chat
from palate.recipes.critiques import GivenCritiques
from palate.recipes.losses import NotNegative, Strict
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
    group: Literal["all_pairs", "opponents", "rank"] = "all_pairs"
    """Of more than two responses. all_pairs: each beside each other one; opponents: each beside so
    many others, drawn with the seed; rank: all of them in one question, whose answer is a
    ranking."""
    opponents: Count | None = None
    """Others that each response is compared with; default: 2. With `group: opponents`."""
    swap: bool = True
    """Ask in both orders and average: what the place alone decides cancels. Of a ranking the second
    order is the first one backwards."""
    ties: bool = False
    """Allow the verdict that both are as good."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.opponents is not None and self.group != "opponents":
            yield "opponents", "only with `group: opponents`"
        if self.group == "rank" and self.method == "logits":
            yield "method", "a ranking is written: use `method: sampled`"


class Criterion(Strict):
    """One thing that a response is asked to do."""

    text: str
    """What the judge is asked: a statement that is true of a response or not."""
    weight: float = 1.0
    """What it counts where it is true; below 0 it names a fault."""
    hard: bool = False
    """A response without it (of a fault: with it) has `failed` for a score."""
    name: str | None = None
    """In logs; default: the beginning of the text."""


class RubricScorer(JudgeBase):
    """A list of weighted criteria, each of which a language model says yes or no to. The score is
    the weight of what is true over all weight above 0, so that 1 is a response without fault; each
    criterion is a part of it."""

    type: Literal["rubric"] = "rubric"
    criteria: tuple[Criterion, ...] = ()
    """The same for all prompts."""
    criteria_column: str | None = None
    """Column of the data that is scored, or of the policy's prompts, with a list of criteria for
    each: texts, or objects with text (or criterion), weight (or points), hard and name; also as
    JSON. In addition to `criteria`."""
    failed: float = 0.0
    """Score where a hard criterion fails."""

    @property
    def column_names(self) -> tuple[str, ...]:
        return () if self.criteria_column is None else (self.criteria_column,)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.criteria and self.criteria_column is None:
            yield "criteria", "give it, or `criteria_column`"
        if self.criteria_column is None and not any(c.weight > 0 for c in self.criteria):
            yield "criteria", "no weight is above 0"


class JudgeVerdictScorer(ScorerBase):
    """Of a policy that is to become a judge: what its answer to a judge's question is worth. By
    R1-Reward (arXiv:2505.02835): result x (1 + 0.5 consistency) + 0.5 format. The prompts are those
    of `palate judge`, with the right verdict in a column."""

    type: Literal["judge_verdict"] = "judge_verdict"
    right_column: str = "right"
    """Column of the prompts with the right verdict."""
    options_column: str = "options"
    """Column of the verdicts that may be given; where there is none: 1, 2 and, if it is the right
    one, tie."""
    reasoning: bool = True
    """The form asks for a thought between <think> and </think> before the verdict."""
    referee: Chat | None = None
    """A model that says whether the thought bears the verdict out, asked about right verdicts;
    default: nobody does, and consistency is 0."""
    consistency_weight: NotNegative = 0.5
    format_weight: NotNegative = 0.5
    inconsistent: float = 0.0
    """Consistency of a thought that does not bear its verdict out; -1 in the released code."""

    @property
    def column_names(self) -> tuple[str, ...]:
        return self.right_column, self.options_column

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.referee is not None and not self.reasoning:
            yield "referee", "there is no thought to look at without `reasoning`"
        if self.referee is None:
            for key in ("consistency_weight", "inconsistent"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    yield key, "only with `referee`"


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
