"""Scores of responses by any scorer, with the reason where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from palate.data.schema import Content
from palate.rewards.base import (
    Judged,
    Scorer,
    is_independent,
    is_relative,
    judge_groups,
    prompt_text,
    response_text,
)

NO_QUESTION = "the prompt ends with the assistant's turn: nothing is left to answer"
NO_ANSWER = "the response does not begin and end with the assistant's turn"
GROUP = 8
"""Most responses that a scorer gets of one prompt at once, where they may be parted."""


@dataclass(frozen=True)
class Outcome:
    """What became of one response.

    Attributes:
        score: finite; None where there is none. reason: why; None where there is a score.
        text: what the scorer wrote about it (a critique, a judge's words); None where it writes
            nothing.
        members: of an ensemble the scores of those members that were asked, None where one has
            none; empty of any other scorer.
    """

    score: float | None
    reason: str | None = None
    text: str | None = None
    members: dict[str, float | None] = field(default_factory=dict)


def score_rows(
    scorer: Scorer,
    prompts: Sequence[Content],
    responses: Sequence[Sequence[Content | str]],
    *,
    exact: bool = False,
) -> list[list[Outcome]]:
    """Scores several responses to each prompt, those of like lengths together.

    Args:
        prompts: one a group.
        exact: every response by itself, so that no bit of a score depends on the others; where
            scores are those of one response among others, every prompt by itself. Without effect
            on scorers that are independent of the call anyway.

    Returns:
        One list a prompt, in the order given. What answers nothing, or is no answer by its roles,
        has a reason, and is put to no scorer.
    """
    assert len(prompts) == len(responses), (len(prompts), len(responses))
    relative = is_relative(scorer)
    size = 1 if exact else GROUP
    found = [
        [Judged(math.nan, None, NO_QUESTION if _answered(prompt) else NO_ANSWER) for _ in group]
        for prompt, group in zip(prompts, responses, strict=True)
    ]
    parts: list[tuple[int, list[int]]] = []
    for i, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        if _answered(prompt):
            continue
        places = [j for j, response in enumerate(group) if _answers(response)]
        step = max(1, len(places)) if relative else size
        parts += [(i, places[start : start + step]) for start in range(0, len(places), step)]

    def length(part: tuple[int, list[int]]) -> int:
        own = responses[part[0]]
        longest = max((len(response_text(own[j])) for j in part[1]), default=0)
        return len(prompt_text(prompts[part[0]])) + longest

    parts.sort(key=length)
    calls = [[part] for part in parts] if exact and not is_independent(scorer) else [parts]
    for call in calls:
        judged = judge_groups(
            scorer, [prompts[i] for i, _ in call], [[responses[i][j] for j in js] for i, js in call]
        )
        for (i, js), own in zip(call, judged, strict=True):
            for j, one in zip(js, own, strict=True):
                found[i][j] = one
    return [[_outcome(one) for one in own] for own in found]


def members_of(outcomes: Sequence[Outcome]) -> dict[str, list[float | None]]:
    """Name -> scores of each member of an ensemble, in the order of the outcomes."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.members)
    return {name: [outcome.members.get(name) for outcome in outcomes] for name in names}


def _answered(prompt: Content) -> bool:
    return not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"


def _answers(response: Content | str) -> bool:
    """Whether it is the assistant's from its first turn to its last; tools may speak between."""
    return isinstance(response, str) or (response[0]["role"] == response[-1]["role"] == "assistant")


def _outcome(judged: Judged) -> Outcome:
    score = _finite(judged.score)
    return Outcome(
        score,
        judged.reason if score is None else None,
        judged.text,
        {name: _finite(own) for name, own in judged.members},
    )


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None
