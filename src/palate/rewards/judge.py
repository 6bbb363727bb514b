"""Generative rewards: a language model judges in words, by rating or by comparing.

A judge never guesses: a verdict that cannot be read is counted (`counts`), and a response none of
whose verdicts could be read has no value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from palate.data.schema import Content, Message
from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Traits, regrouped
from palate.recipes import scorers as recipes
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


def with_sight(traits: Traits, chat: Chat) -> Traits:
    """Traits of a scorer that asks this model."""
    if chat.blind is not None:
        return replace(traits, blind=chat.blind)
    return replace(traits, modalities=TEXT_AND_IMAGES)


class Judge:
    """What both kinds share: asking, and reading what comes back.

    Attributes:
        transcript: gets every question with its answers, where it is set.
    """

    def __init__(self, recipe: recipes.JudgeBase, chat: Chat | None, *, relative: bool) -> None:
        assert isinstance(recipe, (recipes.PointwiseJudge, recipes.PairwiseJudge))
        self.recipe = recipe
        self.chat = open_chat(recipe.chat) if chat is None else chat
        thought = ", reasoning" if recipe.reasoning else ""
        self.name = recipe.name or f"{self.chat.name} ({recipe.type}{thought})"
        # A server puts batches together by itself, from whatever all its clients ask.
        on_server = isinstance(recipe.chat, recipes.ServerChat)
        self._traits = Traits(relative=relative, independent=on_server)
        self.counts: Counter[str] = Counter()
        self.transcript: Transcript | None = None

    @property
    def traits(self) -> Traits:
        """Images are read where its model is asked about them."""
        return with_sight(self._traits, self.chat)

    def _verdicts(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[_Verdict]:
        self.counts[ASKED] += len(questions)
        if self.recipe.method == "logits":
            chosen = self.chat.choose([opened(question) for question in questions], options)
            verdicts = [_Verdict(None if logps is None else _softmax(logps)) for logps in chosen]
            self.counts[UNREADABLE] += sum(verdict.share is None for verdict in verdicts)
        else:
            replies = self.chat.reply(
                questions,
                samples=self.recipe.votes,
                temperature=self.recipe.temperature,
                max_new_tokens=self.recipe.max_new_tokens,
                seed=self.recipe.seed,
            )
            verdicts = [self._counted(given, options) for given in replies]
        if self.transcript is not None:
            for question, verdict in zip(questions, verdicts, strict=True):
                texts = list(verdict.texts) or None
                self.transcript({"question": question, "texts": texts, "shares": verdict.share})
        return verdicts

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


class Pointwise(Judge):
    """Rates one response at a time; the score is the expected rating, 1 to `best`.

    Args:
        chat: default: the one that the recipe describes.
    """

    def __init__(self, recipe: recipes.PointwiseJudge, chat: Chat | None = None) -> None:
        super().__init__(recipe, chat, relative=False)
        self.best = recipe.best

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """The mean rating by probability, or over votes, with what the judge wrote."""
        questions = [
            rating_question(
                group.prompt,
                response,
                best=self.best,
                reasoning=self.recipe.reasoning,
                instructions=self.recipe.instructions,
            )
            for group in groups
            for response in group.responses
        ]
        options = [str(rating) for rating in range(1, self.best + 1)]
        return regrouped(map(_rated, self._verdicts(questions, options)), groups)


def _rated(verdict: _Verdict) -> Score:
    if verdict.share is None:
        return Score(None, verdict.reason, verdict.text)
    rating = sum(int(vote) * share for vote, share in verdict.share.items())
    return Score(rating, text=verdict.text)


@dataclass(frozen=True)
class _Compared:
    """Two responses compared.

    Attributes:
        win: probability that the first one is better; None where there is none.
        reason: why there is none.
        text, swapped: what was written with the first one in the first place, and in the second.
    """

    win: float | None
    reason: str | None
    text: str | None
    swapped: str | None = None


class Pairwise(Judge):
    """Compares responses two at a time; a score is that of one response among its group.

    Pairs judged in both orders are counted by whether the same response won both times: a judge
    that reads places instead of responses has few that did.
    """

    AGREE = "pairs with the same winner in both orders"
    DISAGREE = "pairs whose winner changed with the order"
    FIRST_SLOT = "verdicts for the first place"
    SECOND_SLOT = "verdicts for the second place"

    def __init__(self, recipe: recipes.PairwiseJudge, chat: Chat | None = None) -> None:
        super().__init__(recipe, chat, relative=True)
        self.swap = recipe.swap
        self.ties = recipe.ties

    def compare(
        self,
        prompts: Sequence[Content],
        first: Sequence[Content],
        second: Sequence[Content],
    ) -> list[float | None]:
        """Probability that the first response is better, ties half; None where a verdict of either
        order could not be read."""
        return [pair.win for pair in self._compared(prompts, first, second)]

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """Mean probability of beating the others of the group, with what was written of each
        response beside each of the others; no value for a response alone, and where a verdict about
        it could not be read."""
        pairs = [
            (g, i, j)
            for g, group in enumerate(groups)
            for i, j in combinations(range(len(group.responses)), 2)
        ]
        compared = self._compared(
            [groups[g].prompt for g, _, _ in pairs],
            [groups[g].responses[i] for g, i, _ in pairs],
            [groups[g].responses[j] for g, _, j in pairs],
        )
        wins: list[list[float]] = [[0.0] * len(group.responses) for group in groups]
        texts: list[list[list[str]]] = [[[] for _ in group.responses] for group in groups]
        reasons: list[list[str | None]] = [
            [ALONE if len(group.responses) == 1 else None] * len(group.responses)
            for group in groups
        ]
        for (g, i, j), pair in zip(pairs, compared, strict=True):
            if pair.win is None:
                reasons[g][i] = reasons[g][j] = pair.reason
            else:
                wins[g][i] += pair.win
                wins[g][j] += 1 - pair.win
            for first, second, text in ((i, j, pair.text), (j, i, pair.swapped)):
                if text is not None:
                    # Whoever reads it sees which responses "1" and "2" were.
                    headed = f"[1: response {first + 1}, 2: response {second + 1}]\n{text}"
                    texts[g][i].append(headed)
                    texts[g][j].append(headed)
        return [
            [
                Score(
                    wins[g][i] / (len(group.responses) - 1) if reasons[g][i] is None else None,
                    reasons[g][i],
                    "\n\n".join(texts[g][i]) or None,
                )
                for i in range(len(group.responses))
            ]
            for g, group in enumerate(groups)
        ]

    def _compared(
        self,
        prompts: Sequence[Content],
        first: Sequence[Content],
        second: Sequence[Content],
    ) -> list[_Compared]:
        forward = self._asked_once(prompts, first, second)
        if not self.swap:
            return forward
        backward = self._asked_once(prompts, second, first)
        return [self._merged(there, back) for there, back in zip(forward, backward, strict=True)]

    def _merged(self, forward: _Compared, backward: _Compared) -> _Compared:
        """The verdicts of both orders as one."""
        a, b = forward.win, backward.win
        if a is None or b is None:
            reason = forward.reason if a is None else backward.reason
            return _Compared(None, reason, forward.text, backward.text)
        same = (a - 0.5) * (0.5 - b) > 0 or a == b == 0.5
        self.counts[self.AGREE if same else self.DISAGREE] += 1
        return _Compared((a + 1 - b) / 2, None, forward.text, backward.text)

    def _asked_once(
        self,
        prompts: Sequence[Content],
        first: Sequence[Content],
        second: Sequence[Content],
    ) -> list[_Compared]:
        """What stands first against what stands second."""
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
        return [self._placed(verdict) for verdict in self._verdicts(questions, options)]

    def _placed(self, verdict: _Verdict) -> _Compared:
        if verdict.share is None:
            return _Compared(None, verdict.reason, verdict.text)
        win = verdict.share.get(FIRST, 0.0) + verdict.share.get(TIE, 0.0) / 2
        if win != 0.5:
            self.counts[self.FIRST_SLOT if win > 0.5 else self.SECOND_SLOT] += 1
        return _Compared(win, None, verdict.text)


def _softmax(logps: dict[str, float]) -> dict[str, float]:
    top = max(logps.values())
    weights = {option: math.exp(logp - top) for option, logp in logps.items()}
    total = math.fsum(weights.values())
    return {option: weight / total for option, weight in weights.items()}
