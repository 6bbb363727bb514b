"""Which prompts of a source are taken, by a scorer or by their likeness to given ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from palate.data.curation.base import MakeScorer
from palate.data.curation.text import as_text
from palate.data.prompts.candidates import Candidate
from palate.data.prompts.files import read_file
from palate.data.prompts.similar import nearest
from palate.data.scorer import Group, ask
from palate.errors import PalateError
from palate.recipes.prompts import PromptSource, SelectRecipe

Scored = list[tuple[float | None, str | None]]
"""A score each, or why there is none."""


def selected(
    candidates: Sequence[Candidate],
    recipe: SelectRecipe,
    *,
    seed: int,
    make_scorer: MakeScorer | None,
) -> tuple[list[Candidate], dict[str, Any]]:
    """The prompts that a recipe takes, in their order, and the account for data.json.

    Those without a score are dropped and counted; the others that are not taken count as not
    selected.

    Raises:
        PalateError: the recipe names a scorer, and the caller makes none, or it refuses.
    """
    texts = [as_text(candidate.row.prompt) for candidate in candidates]
    if recipe.like is not None:
        name, scores = f"like {recipe.like.path}", _likeness(texts, recipe, seed)
    else:
        name, scores = _by_scorer(texts, recipe, make_scorer)
    usable = [i for i, (value, _) in enumerate(scores) if value is not None]
    for candidate, (value, reason) in zip(candidates, scores, strict=True):
        if value is None:
            candidate.drop(f"no score: {reason}")
    values = {i: value for i in usable if (value := scores[i][0]) is not None}
    if recipe.above is not None:
        taken = {i for i, value in values.items() if value > recipe.above}
    else:
        ranking = sorted(usable, key=lambda i: (-values[i], i))
        taken = set(ranking[: _count(recipe.keep, len(usable))])
    for i in usable:
        if i not in taken:
            candidates[i].ledger.not_selected += 1
    account = {
        "by": name,
        "scored": len(usable),
        "without_score": len(candidates) - len(usable),
        "taken": len(taken),
        "scores": _spread(list(values.values())),
        "scores_taken": _spread([values[i] for i in sorted(taken)]),
    }
    return [candidates[i] for i in sorted(taken)], account


def _count(keep: int | float | None, n: int) -> int:
    """How many of n are kept; a fraction keeps one at least."""
    assert keep is not None
    return keep if isinstance(keep, int) else max(1, math.floor(keep * n + 0.5))


def _likeness(texts: Sequence[str], recipe: SelectRecipe, seed: int) -> Scored:
    assert recipe.like is not None
    given = PromptSource.model_validate({**recipe.like.model_dump(), "columns": ()})
    seeds = [as_text(row.prompt) for row in read_file(given, seed=seed, strict=False).rows]
    return [(value, None) for value in nearest(texts, seeds).tolist()]


def _by_scorer(
    texts: Sequence[str], recipe: SelectRecipe, make_scorer: MakeScorer | None
) -> tuple[str, Scored]:
    assert recipe.scorer is not None
    if make_scorer is None:
        raise PalateError(
            f"`select.scorer` of type {recipe.scorer.type} needs a model or reward, and there is "
            "none here"
        )
    scorer = make_scorer(recipe.scorer)
    scored = ask(scorer, [_group(text, recipe.question) for text in texts])
    return scorer.name, [(scores[0].value, scores[0].reason) for scores in scored]


def _group(text: str, question: str | None) -> Group:
    """A prompt as the answer to a question, or to nothing."""
    if question is None:
        return Group("", (text,))
    return Group(
        [{"role": "user", "content": question}], ([{"role": "assistant", "content": text}],)
    )


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Least, mean and greatest; None of none."""
    if not values:
        return None
    return {"min": min(values), "mean": math.fsum(values) / len(values), "max": max(values)}
