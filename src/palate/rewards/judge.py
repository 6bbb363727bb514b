"""Generative rewards: a language model judges in words, by rating or by comparing.

A judge never guesses: a verdict that cannot be read is counted (`counts`), and a response none of
whose verdicts could be read has no value.
"""

from __future__ import annotations

import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, TypeVar

from palate.data.content import content_key
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

OPPONENTS = 2
"""Of each response, where the recipe does not say."""

Vote = TypeVar("Vote")
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

    def __init__(
        self, recipe: recipes.JudgeBase, chat: Chat | None, kind: str, *, relative: bool
    ) -> None:
        self.recipe = recipe
        self.chat = open_chat(recipe.chat) if chat is None else chat
        thought = ", reasoning" if recipe.reasoning else ""
        self.name = recipe.name or f"{self.chat.name} ({kind}{thought})"
        # A server puts batches together by itself, from whatever all its clients ask.
        on_server = isinstance(recipe.chat, recipes.ServerChat)
        self._traits = Traits(relative=relative, independent=on_server)
        self.counts: Counter[str] = Counter()
        self.transcript: Transcript | None = None
        self._lock = threading.Lock()

    @property
    def traits(self) -> Traits:
        """Images are read where its model is asked about them."""
        return with_sight(self._traits, self.chat)

    def _verdicts(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[_Verdict]:
        self._count(ASKED, len(questions))
        if self.recipe.method == "logits":
            chosen = self.chat.choose([opened(question) for question in questions], options)
            verdicts = [_Verdict(None if logps is None else _softmax(logps)) for logps in chosen]
            self._count(UNREADABLE, sum(verdict.share is None for verdict in verdicts))
        else:
            verdicts = [self._counted(given, options) for given in self._replies(questions)]
        for question, verdict in zip(questions, verdicts, strict=True):
            self._keep(question, verdict.texts, verdict.share)
        return verdicts

    def _replies(self, questions: Sequence[list[Message]]) -> list[list[Reply]]:
        return self.chat.reply(
            questions,
            samples=self.recipe.votes,
            temperature=self.recipe.temperature,
            max_new_tokens=self.recipe.max_new_tokens,
            seed=self.recipe.seed,
        )

    def _keep(self, question: list[Message], texts: Sequence[str], shares: Any) -> None:
        if self.transcript is not None:
            self.transcript({"question": question, "texts": list(texts) or None, "shares": shares})

    def _count(self, what: str, n: int = 1) -> None:
        # Several threads may ask one judge.
        with self._lock:
            self.counts[what] += n

    def _counted(self, replies: Sequence[Reply], options: Sequence[str]) -> _Verdict:
        votes = [self._vote(reply, lambda text: read_verdict(text, options)) for reply in replies]
        cast = Counter(vote for vote in votes if vote is not None)
        total = cast.total()
        share = {vote: n / total for vote, n in cast.items()} if total else None
        given = tuple(reply.whole for reply in replies if reply.refused is None)
        refused = [reply.refused for reply in replies if reply.refused is not None]
        return _Verdict(share, given, refused[0] if refused and not given else NO_VERDICT)

    def _vote(self, reply: Reply, read: Callable[[str], Vote | None]) -> Vote | None:
        if reply.refused is not None:
            self._count(f"{UNASKED}: {reply.refused}")
            return None
        vote = read(reply.text) if reply.finished else None
        if vote is None:
            self._count(UNREADABLE if reply.finished else CUT)
        return vote


class Pointwise(Judge):
    """Rates one response at a time; the score is the expected rating, 1 to `best`.

    Args:
        chat: default: the one that the recipe describes.
    """

    def __init__(self, recipe: recipes.PointwiseJudge, chat: Chat | None = None) -> None:
        super().__init__(recipe, chat, recipe.type, relative=False)
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
        super().__init__(recipe, chat, recipe.type, relative=True)
        self.swap = recipe.swap
        self.ties = recipe.ties
        self.opponents = None
        if recipe.group == "opponents":
            self.opponents = recipe.opponents or OPPONENTS

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
        """Mean probability of beating the others of the group that it is compared with, with what
        was written of it beside each of them; no value for a response alone, and where a verdict
        about it could not be read."""
        pairs = [(g, i, j) for g, group in enumerate(groups) for i, j in self._pairs(group)]
        compared = self._compared(
            [groups[g].prompt for g, _, _ in pairs],
            [groups[g].responses[i] for g, i, _ in pairs],
            [groups[g].responses[j] for g, _, j in pairs],
        )
        wins: list[list[float]] = [[0.0] * len(group.responses) for group in groups]
        met: list[list[int]] = [[0] * len(group.responses) for group in groups]
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
                met[g][i] += 1
                met[g][j] += 1
            for first, second, text in ((i, j, pair.text), (j, i, pair.swapped)):
                if text is not None:
                    # Whoever reads it sees which responses "1" and "2" were.
                    headed = f"[1: response {first + 1}, 2: response {second + 1}]\n{text}"
                    texts[g][i].append(headed)
                    texts[g][j].append(headed)
        return [
            [
                Score(
                    wins[g][i] / met[g][i] if reasons[g][i] is None else None,
                    reasons[g][i],
                    "\n\n".join(texts[g][i]) or None,
                )
                for i in range(len(group.responses))
            ]
            for g, group in enumerate(groups)
        ]

    def _pairs(self, group: Group) -> list[tuple[int, int]]:
        """The responses of a group that are compared."""
        n = len(group.responses)
        if self.opponents is None or n < 3:
            return list(combinations(range(n), 2))
        key = content_key(group.prompt, group.source).hex()
        return drawn_pairs(n, self.opponents, random.Random(f"{self.recipe.seed}|{key}"))

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
        self._count(self.AGREE if same else self.DISAGREE)
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
            self._count(self.FIRST_SLOT if win > 0.5 else self.SECOND_SLOT)
        return _Compared(win, None, verdict.text)


def drawn_pairs(n: int, opponents: int, random_state: random.Random) -> list[tuple[int, int]]:
    """Pairs of n responses in which each meets as many others: `opponents`, one more where that
    many pairs do not come out even, and at most all of them. Neighbours on a shuffled circle."""
    circle = random_state.sample(range(n), n)
    half, odd = divmod(min(opponents, n - 1), 2)
    pairs = {
        frozenset((circle[i], circle[(i + step) % n]))
        for step in range(1, half + 1)
        for i in range(n)
    }
    if odd and n % 2 == 0:
        pairs |= {frozenset((circle[i], circle[i + n // 2])) for i in range(n // 2)}
    elif odd:
        pairs |= {frozenset((circle[i], circle[(i + half + 1) % n])) for i in range(n)}
    return sorted((min(pair), max(pair)) for pair in pairs)


def _softmax(logps: dict[str, float]) -> dict[str, float]:
    top = max(logps.values())
    weights = {option: math.exp(logp - top) for option, logp in logps.items()}
    total = math.fsum(weights.values())
    return {option: weight / total for option, weight in weights.items()}
