"""Scores of responses by any scorer, with the reason where there is none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palate.data.schema import Content
from palate.rewards.base import (
    Scorer,
    has_images,
    is_relative,
    prompt_text,
    response_text,
    score_groups,
)
from palate.rewards.ensemble import Ensemble

GROUP = 8
"""Most responses that a scorer gets of one prompt at once, where they may be parted."""
ALONE = "the only response to its prompt: nothing to compare it with"
NO_MEMBER = "no member of the ensemble scores such prompts"
NO_VERDICT = "no verdict that could be read"
NOT_FINITE = "the score is no finite number"


@dataclass(frozen=True)
class Outcome:
    """What became of one response.

    Attributes:
        score: finite; None where there is none. reason: why; None where there is a score.
    """

    score: float | None
    reason: str | None = None


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
        exact: every response by itself, so that no bit of a score depends on the others. Without
            effect where scores are those of one response among others.

    Returns:
        One list a prompt, in the order given.
    """
    assert len(prompts) == len(responses), (len(prompts), len(responses))
    relative = is_relative(scorer)
    size = 1 if exact else GROUP
    parts = [
        (i, range(len(group))) if relative else (i, range(start, min(start + size, len(group))))
        for i, group in enumerate(responses)
        for start in ([0] if relative else range(0, len(group), size))
    ]

    def length(part: tuple[int, range]) -> int:
        own = responses[part[0]]
        longest = max((len(response_text(own[j])) for j in part[1]), default=0)
        return len(prompt_text(prompts[part[0]])) + longest

    parts.sort(key=length)
    found: list[list[float]] = [[math.nan] * len(group) for group in responses]
    calls = [[part] for part in parts] if exact and not relative else [parts]
    for call in calls:
        scores = score_groups(
            scorer, [prompts[i] for i, _ in call], [[responses[i][j] for j in js] for i, js in call]
        )
        for (i, js), own in zip(call, scores, strict=True):
            for j, score in zip(js, own, strict=True):
                found[i][j] = score
    return [
        [
            Outcome(score)
            if math.isfinite(score)
            else Outcome(None, why_unscored(scorer, prompt, response, alone=len(group) == 1))
            for response, score in zip(group, own, strict=True)
        ]
        for prompt, group, own in zip(prompts, responses, found, strict=True)
    ]


def why_unscored(
    scorer: Any, prompt: Content, response: Content | str, *, alone: bool = False
) -> str:
    """Why a scorer gave a response no score.

    Args:
        alone: it was the only response to its prompt.
    """
    if isinstance(scorer, Ensemble):
        asked = [m.scorer for m in scorer.members if m.fits(has_images(prompt))]
        reasons = [why_unscored(one, prompt, response, alone=alone) for one in asked]
        # A member that does score it has nothing to say for itself.
        told = [reason for reason in reasons if reason != NOT_FINITE]
        return told[0] if told else NOT_FINITE if asked else NO_MEMBER
    if is_relative(scorer):
        return ALONE if alone else NO_VERDICT
    counted = getattr(scorer, "unscored", None)
    if isinstance(counted, Counter):
        # What a model cannot score it refuses before it is run: asking again costs nothing.
        before = counted.copy()
        scorer.score([prompt], [response])
        new = counted - before
        scorer.unscored = before
        if new:
            return str(next(iter(new)))
        return NOT_FINITE
    return NO_VERDICT if hasattr(scorer, "counts") else NOT_FINITE
