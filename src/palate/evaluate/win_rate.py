"""A policy's samples against the reference's: win rates, raw and length-controlled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from palate.data.schema import Content
from palate.data.scorer import Group, Scorer, ask
from palate.errors import PalateError, RecipeError
from palate.evaluate.length_control import length_controlled_win_rate
from palate.evaluate.statistics import difference_interval
from palate.recipes import scorers as recipes

Won = list[float | None]
"""Of each sample the probability, or share of verdicts, that it is better than the reference's; 1/2
for a tie; None where that is not known."""


def check_judge(recipe: recipes.Scorer) -> None:
    """
    Raises:
        RecipeError: its verdict on two responses hangs on which of them it reads first.
    """
    for _, part in recipes.parts_of(recipe):
        if isinstance(part, recipes.PairwiseJudge) and not part.swap:
            raise RecipeError(
                "`judge`: `swap: false` lets the order of the responses decide: a win rate is of "
                "both orders"
            )


def judged(
    judge: Scorer,
    recipe: recipes.Scorer,
    prompts: Sequence[Content],
    texts: Sequence[str],
    against: Sequence[str],
) -> Won:
    """Asks a judge about each sample and the reference's to the same prompt.

    A pairwise judge gives the probability with which it prefers the sample, over both orders. Of
    any other scorer the higher score wins.

    Args:
        prompts, texts, against: of each sample its prompt, itself, and the reference's.
    """
    pairs = [Group(p, (a, b)) for p, a, b in zip(prompts, texts, against, strict=True)]
    scores = ask(judge, pairs)
    if isinstance(recipe, recipes.PairwiseJudge):
        return [sample.value for sample, _ in scores]
    return beaten(
        [sample.value for sample, _ in scores], [reference.value for _, reference in scores]
    )


def beaten(rewards: Sequence[float | None], against: Sequence[float | None]) -> Won:
    """
    >>> beaten([1.0, 2.0, None], [1.0, 1.0, 1.0])
    [0.5, 1.0, None]
    """
    return [
        None if a is None or b is None else 1.0 if a > b else 0.5 if a == b else 0.0
        for a, b in zip(rewards, against, strict=True)
    ]


def win_rate(
    won: Won,
    samples: Sequence[Mapping[str, Any]],
    against: Sequence[Mapping[str, Any]],
    *,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """What verdicts on a policy's samples come to, with intervals over prompts.

    Args:
        samples, against: `prompt` (what tells it) and `text` of each sample, and of the
            reference's.

    Returns:
        unjudged (samples without a verdict) and, where any sample has one, win_rate and
        win_rate_ci; length_controlled_win_rate and length_controlled_win_rate_ci as AlpacaEval 2
        defines it, lengths in characters, or length_controlled_note why there is none.
    """
    known = [place for place, value in enumerate(won) if value is not None]
    entry: dict[str, Any] = {"unjudged": len(won) - len(known)}
    if not known:
        return entry
    values = np.asarray([won[place] for place in known], dtype=float)
    numbers: dict[Any, int] = {}
    prompts = [numbers.setdefault(samples[p]["prompt"], len(numbers)) for p in known]
    rate, interval = difference_interval(values, np.asarray(prompts), confidence)
    entry |= {
        "win_rate": rate,
        "win_rate_ci": (max(0.0, interval[0]), min(1.0, interval[1])),
    }
    try:
        controlled = length_controlled_win_rate(
            values,
            [len(samples[p]["text"]) for p in known],
            [len(against[p]["text"]) for p in known],
            clusters=prompts,
            confidence=confidence,
        )
    except PalateError as error:
        return entry | {"length_controlled_note": str(error)}
    return entry | {
        "length_controlled_win_rate": controlled.controlled,
        "length_controlled_win_rate_ci": controlled.controlled_interval,
    }
