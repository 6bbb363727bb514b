"""What scores a response: one protocol for lexica, classifiers, models, judges and ensembles.

`Reward` scores plain text (what samples of a policy are). `Scorer` takes what rows of data hold,
text or chat turns; `as_scorer` makes one of a `Reward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from palate.data.content import content_key
from palate.data.schema import Content, Message, text_in


@runtime_checkable
class Reward(Protocol):
    """Anything that gives a number to a response.

    Attributes:
        name: short, for reports.
    """

    name: str

    def score(self, prompts: list[str], responses: list[str]) -> list[float]:
        """One finite score a response, higher is better, in the order given.

        Args:
            prompts: one text a response.
            responses: the responses, without their prompts.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Anything that gives a number to a response to a prompt of text or of chat turns.

    Attributes:
        name: short, for reports.
    """

    name: str

    def score(self, prompts: list[Content], responses: list[Content | str]) -> list[float]:
        """One score a response, higher is better, in the order given.

        A response that cannot be scored (too long, an unparsable verdict) has the score NaN, and
        the scorer says how many there were; it is never given a number in its stead.

        Args:
            prompts: one a response: text, or chat turns that end with the user's.
            responses: text, or the assistant's turns that follow the prompt.
        """
        ...


def check_lengths(prompts: Sequence[Content], responses: Sequence[Content]) -> None:
    """Asserts that there is one prompt a response."""
    assert len(prompts) == len(responses), (len(prompts), len(responses))


def short_name(path: str) -> str:
    """What a model's path is called in reports: its run's folder, or its own."""
    folder = Path(path)
    own = folder.parent.name if folder.name == "model" else folder.name
    return own or path


def response_text(response: Content) -> str:
    """The text of a response; of several turns, one after another."""
    if isinstance(response, str):
        return response
    return "\n\n".join(text_in(turn["content"]) for turn in response)


def prompt_text(prompt: Content) -> str:
    """A prompt as one text: its turns under their roles, a single user turn bare."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return text_in(prompt[0]["content"])
    return "\n\n".join(f"{turn['role'].title()}: {text_in(turn['content'])}" for turn in prompt)


def as_chat(prompt: Content) -> list[Message]:
    """A prompt as chat turns: text is one turn of the user."""
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    return prompt


class TextScorer:
    """A `Reward` as a `Scorer`: chats reach it as text (`prompt_text`, `response_text`)."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.name = reward.name
        self.reads_images = bool(getattr(reward, "reads_images", False))
        self.independent = bool(getattr(reward, "independent", False))

    def score(self, prompts: list[Content], responses: list[Content | str]) -> list[float]:
        """As the reward scores the texts."""
        check_lengths(prompts, responses)
        return self.reward.score(
            [prompt_text(prompt) for prompt in prompts],
            [response_text(response) for response in responses],
        )


def as_scorer(reward: Reward) -> Scorer:
    """What scores rows of data by a reward of plain text."""
    return TextScorer(reward)


@runtime_checkable
class GroupScorer(Scorer, Protocol):
    """A scorer that takes all responses to a prompt at once: to share work, or to compare them.

    One whose scores depend on what else is in the group (a judge that compares) has an attribute
    `relative` that is True.
    """

    def score_groups(
        self, prompts: list[Content], responses: list[list[Content | str]]
    ) -> list[list[float]]:
        """Scores of each prompt's responses; comparable within a prompt, and perhaps only there.

        Args:
            prompts: one a group.
            responses: of each group, in the order that the scores come back in.
        """
        ...


def score_groups(
    scorer: Scorer, prompts: list[Content], responses: list[list[Content | str]]
) -> list[list[float]]:
    """Scores of several responses to each prompt, by any scorer.

    Returns:
        One list a prompt, in the order given.
    """
    assert len(prompts) == len(responses), (len(prompts), len(responses))
    if isinstance(scorer, GroupScorer):
        return scorer.score_groups(prompts, responses)
    flat = [response for group in responses for response in group]
    repeated = [prompt for prompt, group in zip(prompts, responses, strict=True) for _ in group]
    scores = iter(scorer.score(repeated, flat))
    return [[next(scores) for _ in group] for group in responses]


NOT_FINITE = "the score is no finite number"
HAS_IMAGES = "has images, which no scorer here reads"


@dataclass(frozen=True)
class Judged:
    """What a scorer made of one response.

    Attributes:
        score: NaN where there is none.
        text: what the scorer wrote about it, a critique or the words of a verdict; None of one that
            writes nothing.
        reason: why there is no score; without meaning where there is one.
        members: of an ensemble the name and score of each member that was asked.
    """

    score: float
    text: str | None = None
    reason: str = NOT_FINITE
    members: tuple[tuple[str, float], ...] = ()


@runtime_checkable
class TellingScorer(Scorer, Protocol):
    """A scorer that also tells what it wrote, and why there is no score where there is none."""

    def judge_groups(
        self, prompts: list[Content], responses: list[list[Content | str]]
    ) -> list[list[Judged]]:
        """As `GroupScorer.score_groups`, with text and reason."""
        ...


def judge_groups(
    scorer: Scorer, prompts: list[Content], responses: list[list[Content | str]]
) -> list[list[Judged]]:
    """As `score_groups`, by any scorer, with what it wrote and why there are no scores.

    A prompt with images is put to no scorer that would not see them.
    """
    assert len(prompts) == len(responses), (len(prompts), len(responses))
    found = [[Judged(math.nan, None, HAS_IMAGES)] * len(own) for own in responses]
    places = [i for i, p in enumerate(prompts) if reads_images(scorer) or not has_images(p)]
    asked, answers = [prompts[i] for i in places], [responses[i] for i in places]
    judged: list[list[Judged]]
    if isinstance(scorer, TellingScorer):
        judged = scorer.judge_groups(asked, answers)
    else:
        judged = [list(map(Judged, own)) for own in score_groups(scorer, asked, answers)]
    for place, own in zip(places, judged, strict=True):
        found[place] = own
    return found


def by_equal_prompts(
    score_groups: Callable[[list[Content], list[list[Content | str]]], list[list[float]]],
    prompts: list[Content],
    responses: list[Content | str],
) -> list[float]:
    """Scores of single responses by what scores groups: those to equal prompts are one group."""
    check_lengths(prompts, responses)
    places: dict[bytes, list[int]] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(content_key(prompt), []).append(i)
    groups = list(places.values())
    scored = score_groups(
        [prompts[own[0]] for own in groups], [[responses[i] for i in own] for own in groups]
    )
    found = [math.nan] * len(prompts)
    for own, scores in zip(groups, scored, strict=True):
        for i, score in zip(own, scores, strict=True):
            found[i] = score
    return found


def by_group(
    judge: Callable[[Sequence[Content], Sequence[Content | str]], list[Judged]],
    prompts: Sequence[Content],
    responses: Sequence[Sequence[Content | str]],
) -> list[list[Judged]]:
    """All responses at once, by what judges each alone."""
    judged = iter(
        judge(
            [prompt for prompt, group in zip(prompts, responses, strict=True) for _ in group],
            [response for group in responses for response in group],
        )
    )
    return [[next(judged) for _ in group] for group in responses]


def is_relative(scorer: Scorer) -> bool:
    """Whether its scores mean something only beside those of the same group."""
    return bool(getattr(scorer, "relative", False))


def reads_images(scorer: Scorer) -> bool:
    """Whether it takes prompts with images: it sees them, or looks at no prompt at all."""
    return bool(getattr(scorer, "reads_images", False))


def is_independent(scorer: Scorer) -> bool:
    """Whether every bit of a score is the same whatever else is in the call, as of a model on this
    machine it is not: passes of other shapes round differently."""
    return bool(getattr(scorer, "independent", False))


def has_images(prompt: Content) -> bool:
    """Whether an image part is among the prompt's turns."""
    if isinstance(prompt, str):
        return False
    return any(
        part["type"] == "image"
        for turn in prompt
        if isinstance(turn["content"], list)
        for part in turn["content"]
    )
