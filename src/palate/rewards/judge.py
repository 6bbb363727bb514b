"""Generative rewards: a language model judges in words, by rating or by comparing.

A judge never guesses: a verdict that cannot be read is counted (`counts`), and a response none of
whose verdicts could be read has no score (NaN).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from palate.data.schema import Content, Message
from palate.recipes import scorers as recipes
from palate.rewards.base import Judged, by_equal_prompts, by_group, check_lengths
from palate.rewards.chat import Chat, Reply, open_chat
from palate.rewards.questions import (
    FIRST,
    SECOND,
    TIE,
    opened,
    pair_question,
    rating_question,
    read_verdict,
)

UNREADABLE = "verdicts that could not be read"
CUT = "verdicts cut by max_new_tokens"
ASKED = "questions asked"
UNASKED = "questions without an answer"
# Why a response has no score.
ALONE = "the only response to its prompt: nothing to compare it with"
NO_VERDICT = "no verdict that could be read"

Transcript = Callable[[dict[str, Any]], None]
"""Gets every question with what was answered."""


@dataclass(frozen=True)
class _Verdict:
    """The answer to one question.

    Attributes:
        share: of each verdict, by probability or over votes; None where none could be read.
        texts: the replies; empty where probabilities were taken, and nothing was written.
        reason: why there is no share.
    """

    share: dict[str, float] | None
    texts: tuple[str, ...] = ()
    reason: str = NO_VERDICT

    @property
    def text(self) -> str | None:
        """All replies, one after another."""
        return "\n\n".join(self.texts) if self.texts else None


class _Judge:
    """What both kinds share: asking, and reading what comes back."""

    def __init__(self, recipe: recipes.JudgeBase, chat: Chat | None) -> None:
        assert isinstance(recipe, (recipes.PointwiseJudge, recipes.PairwiseJudge))
        self.recipe = recipe
        self.chat = open_chat(recipe.chat) if chat is None else chat
        thought = ", reasoning" if recipe.reasoning else ""
        self.name = recipe.name or f"{self.chat.name} ({recipe.type}{thought})"
        self.counts: Counter[str] = Counter()
        self.transcript: Transcript | None = None

    @property
    def independent(self) -> bool:
        """A server puts batches together by itself, from whatever all its clients ask."""
        return isinstance(self.recipe.chat, recipes.ServerChat)

    def _verdicts(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[_Verdict]:
        self.counts[ASKED] += len(questions)
        if self.recipe.method == "logits":
            chosen = self.chat.choose([opened(question) for question in questions], options)
            found = [_Verdict(None if own is None else _softmax(own)) for own in chosen]
            self.counts[UNREADABLE] += sum(verdict.share is None for verdict in found)
        else:
            replies = self.chat.reply(
                questions,
                samples=self.recipe.votes,
                temperature=self.recipe.temperature,
                max_new_tokens=self.recipe.max_new_tokens,
                seed=self.recipe.seed,
            )
            found = [self._counted(given, options) for given in replies]
        if self.transcript is not None:
            for question, verdict in zip(questions, found, strict=True):
                texts = list(verdict.texts) or None
                self.transcript({"question": question, "texts": texts, "shares": verdict.share})
        return found

    def _counted(self, replies: Sequence[Reply], options: Sequence[str]) -> _Verdict:
        votes = [self._vote(reply, options) for reply in replies]
        cast = Counter(vote for vote in votes if vote is not None)
        total = cast.total()
        share = {vote: n / total for vote, n in cast.items()} if total else None
        given = tuple(reply.whole for reply in replies if reply.refused is None)
        refused = [reply.refused for reply in replies if reply.refused is not None]
        return _Verdict(share, given, refused[0] if refused and not given else NO_VERDICT)

    def _vote(self, reply: Reply, options: Sequence[str]) -> str | None:
        if reply.refused is not None:
            self.counts[f"{UNASKED}: {reply.refused}"] += 1
            return None
        vote = read_verdict(reply.text, options) if reply.finished else None
        if vote is None:
            self.counts[UNREADABLE if reply.finished else CUT] += 1
        return vote


class Pointwise(_Judge):
    """Rates one response at a time; the score is the expected rating, 1 to `best`.

    Args:
        chat: default: the one that the recipe describes.
    """

    def __init__(self, recipe: recipes.PointwiseJudge, chat: Chat | None = None) -> None:
        super().__init__(recipe, chat)
        self.best = recipe.best

    def score(self, prompts: list[Content], responses: list[Content | str]) -> list[float]:
        """The mean rating by probability, or over votes; NaN where none could be read."""
        return [judged.score for judged in self._judged(prompts, responses)]

    def judge_groups(
        self, prompts: list[Content], responses: list[list[Content | str]]
    ) -> list[list[Judged]]:
        """As `score`, with what the judge wrote."""
        return by_group(self._judged, prompts, responses)

    def _judged(
        self, prompts: Sequence[Content], responses: Sequence[Content | str]
    ) -> list[Judged]:
        check_lengths(prompts, responses)
        questions = [
            rating_question(
                prompt,
                response,
                best=self.best,
                reasoning=self.recipe.reasoning,
                instructions=self.recipe.instructions,
            )
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        options = [str(rating) for rating in range(1, self.best + 1)]
        found = []
        for verdict in self._verdicts(questions, options):
            rating = math.nan
            if verdict.share is not None:
                rating = sum(int(vote) * p for vote, p in verdict.share.items())
            found.append(Judged(rating, verdict.text, verdict.reason))
        return found


@dataclass(frozen=True)
class _Compared:
    """Two responses compared.

    Attributes:
        win: probability that the first one is better.
        text, swapped: what was written with the first one in the first place, and in the second.
        reason: why there is no probability, where it is NaN.
    """

    win: float
    text: str | None
    swapped: str | None
    reason: str


class Pairwise(_Judge):
    """Compares responses two at a time.

    Attributes:
        relative: its scores are those of one response among the others of its group.
        orders: pairs judged in both orders, by whether the same response won both times; a judge
            that reads places instead of responses has few that did.
    """

    relative = True
    AGREE = "pairs with the same winner in both orders"
    DISAGREE = "pairs whose winner changed with the order"
    FIRST_SLOT = "verdicts for the first place"
    SECOND_SLOT = "verdicts for the second place"

    def __init__(self, recipe: recipes.PairwiseJudge, chat: Chat | None = None) -> None:
        super().__init__(recipe, chat)
        self.swap = recipe.swap
        self.ties = recipe.ties

    def compare(
        self,
        prompts: Sequence[Content],
        first: Sequence[Content],
        second: Sequence[Content],
    ) -> list[float]:
        """Probability that the first response is better, ties half; NaN where a verdict of either
        order could not be read."""
        return [found.win for found in self._compared(prompts, first, second)]

    def _compared(
        self,
        prompts: Sequence[Content],
        first: Sequence[Content],
        second: Sequence[Content],
    ) -> list[_Compared]:
        forward = self._firsts(prompts, first, second)
        if not self.swap:
            return [_Compared(a.win, a.text, None, a.reason) for a in forward]
        backward = self._firsts(prompts, second, first)
        found = []
        for there, back in zip(forward, backward, strict=True):
            a, b = there.win, back.win
            if not math.isnan(a) and not math.isnan(b):
                same = (a - 0.5) * (0.5 - b) > 0 or a == b == 0.5
                self.counts[self.AGREE if same else self.DISAGREE] += 1
            reason = there.reason if math.isnan(a) else back.reason
            found.append(_Compared((a + 1 - b) / 2, there.text, back.text, reason))
        return found

    def score(self, prompts: list[Content], responses: list[Content | str]) -> list[float]:
        """As `score_groups`, the responses to equal prompts being compared with one another."""
        return by_equal_prompts(self.score_groups, prompts, responses)

    def score_groups(
        self, prompts: list[Content], responses: list[list[Content | str]]
    ) -> list[list[float]]:
        """Mean probability of beating the others of the group; NaN for a response alone, and where
        a verdict about it could not be read."""
        judged = self.judge_groups(prompts, responses)
        return [[one.score for one in group] for group in judged]

    def judge_groups(
        self, prompts: list[Content], responses: list[list[Content | str]]
    ) -> list[list[Judged]]:
        """As `score_groups`, with what was written of each response beside each of the others."""
        jobs = [
            (g, i, j)
            for g, group in enumerate(responses)
            for i in range(len(group))
            for j in range(i + 1, len(group))
        ]
        compared = self._compared(
            [prompts[g] for g, _, _ in jobs],
            [responses[g][i] for g, i, _ in jobs],
            [responses[g][j] for g, _, j in jobs],
        )
        sums = [[0.0] * len(group) for group in responses]
        texts: list[list[list[str]]] = [[[] for _ in group] for group in responses]
        reasons = [[ALONE] * len(group) for group in responses]
        for (g, i, j), found in zip(jobs, compared, strict=True):
            if math.isnan(found.win):
                reasons[g][i] = reasons[g][j] = found.reason
            sums[g][i] += found.win
            sums[g][j] += 1 - found.win
            for first, second, text in ((i, j, found.text), (j, i, found.swapped)):
                if text is not None:
                    # Whoever reads it sees which responses "1" and "2" were.
                    headed = f"[1: response {first + 1}, 2: response {second + 1}]\n{text}"
                    texts[g][i].append(headed)
                    texts[g][j].append(headed)
        return [
            [
                Judged(
                    total / (len(own) - 1) if len(own) > 1 else math.nan,
                    "\n\n".join(words) or None,
                    reason,
                )
                for total, words, reason in zip(own, written, why, strict=True)
            ]
            for own, written, why in zip(sums, texts, reasons, strict=True)
        ]

    def _firsts(
        self,
        prompts: Sequence[Content],
        first: Sequence[Content],
        second: Sequence[Content],
    ) -> list[_Compared]:
        """What stands first against what stands second, asked once."""
        questions = [
            pair_question(
                prompt,
                a,
                b,
                ties=self.ties,
                reasoning=self.recipe.reasoning,
                instructions=self.recipe.instructions,
            )
            for prompt, a, b in zip(prompts, first, second, strict=True)
        ]
        options = [FIRST, SECOND, *([TIE] if self.ties else [])]
        found = []
        for verdict in self._verdicts(questions, options):
            win = math.nan
            if verdict.share is not None:
                win = verdict.share.get(FIRST, 0.0) + verdict.share.get(TIE, 0.0) / 2
                if win != 0.5:
                    self.counts[self.FIRST_SLOT if win > 0.5 else self.SECOND_SLOT] += 1
            found.append(_Compared(win, verdict.text, None, verdict.reason))
        return found


def _softmax(logps: dict[str, float]) -> dict[str, float]:
    top = max(logps.values())
    weights = {option: math.exp(logp - top) for option, logp in logps.items()}
    total = math.fsum(weights.values())
    return {option: weight / total for option, weight in weights.items()}
