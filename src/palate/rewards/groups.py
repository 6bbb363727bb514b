"""Scores of responses to many prompts by any scorer: parted, and those of like lengths together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from palate.data.schema import Content
from palate.data.scorer import Group, Score, Scorer, ask
from palate.rewards.texts import prompt_text, response_text

NO_QUESTION = "the prompt ends with the assistant's turn: nothing is left to answer"
NO_ANSWER = "the response does not begin and end with the assistant's turn"
PARTS_A_WORKER = 4
"""Calls for each thread, so that one with slow answers does not hold up the others."""
MOST_TOGETHER = 8
"""Most responses that a scorer gets of one prompt at once, where they may be parted."""


def score_groups(
    scorer: Scorer, groups: Sequence[Group], *, exact: bool = False
) -> list[list[Score]]:
    """Scores of several responses to each prompt.

    Args:
        exact: every response by itself, so that no bit of a score depends on the others; where
            scores are those of one response among others, every prompt by itself. Without effect
            on scorers that are independent of the call anyway.

    Returns:
        One list a group, in the order given. What answers nothing, or is no answer by its roles,
        has a reason, and is put to no scorer.
    """
    traits = scorer.traits
    scored: list[list[Score]] = []
    parts: list[tuple[int, list[int]]] = []
    for i, group in enumerate(groups):
        if _is_answered(group.prompt):
            scored.append([Score(None, NO_QUESTION)] * len(group.responses))
            continue
        scored.append([Score(None, NO_ANSWER)] * len(group.responses))
        places = [j for j, response in enumerate(group.responses) if _is_answer(response)]
        step = max(1, len(places)) if traits.relative else 1 if exact else MOST_TOGETHER
        parts += [(i, places[start : start + step]) for start in range(0, len(places), step)]

    def length(part: tuple[int, list[int]]) -> int:
        group = groups[part[0]]
        longest = max((len(response_text(group.responses[j])) for j in part[1]), default=0)
        return len(prompt_text(group.prompt)) + longest

    parts.sort(key=length)
    calls = [[part] for part in parts] if exact and not traits.independent else [parts]
    for call in calls:
        asked = [groups[i].part(js) for i, js in call]
        for (i, js), scores in zip(call, ask(scorer, asked), strict=True):
            for j, score in zip(js, scores, strict=True):
                scored[i][j] = score
    return scored


def score_concurrently(scorer: Scorer, groups: Sequence[Group], workers: int) -> list[list[Score]]:
    """`ask`, in several threads where that changes no score: for scorers that wait, for servers or
    for child processes, and for mixtures of them.

    A scorer that is not independent of the call (a model on this machine, a function of the user)
    is asked once, about all groups, whatever `workers` is.

    Returns:
        One list a group, in the order given.

    Raises:
        PalateError: what the first part that failed raised.
    """
    parts = min(workers * PARTS_A_WORKER, len(groups))
    if workers < 2 or parts < 2 or not scorer.traits.independent:
        return ask(scorer, groups)
    borders = [len(groups) * k // parts for k in range(parts + 1)]
    pieces = [groups[start:stop] for start, stop in pairwise(borders)]
    with ThreadPoolExecutor(max_workers=workers) as threads:
        scored = threads.map(lambda piece: ask(scorer, piece), pieces)
        return [scores for piece in scored for scores in piece]


def _is_answered(prompt: Content) -> bool:
    return not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"


def _is_answer(response: Content) -> bool:
    """Whether it is the assistant's from its first turn to its last; tools may speak between."""
    return isinstance(response, str) or (response[0]["role"] == response[-1]["role"] == "assistant")
