"""Kinds of rows made from one another: ratings to pairs, pairs to single examples.

All chance is drawn per row, from the seed and the row's id: the result for a row depends neither on
the order of the rows nor on which others there are.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

from palate.data.schema import Preference, Response
from palate.errors import RecipeError
from palate.recipes.schema import PairingRecipe

TOO_FEW = "fewer than two rated responses"
NO_GAP = "no response lower than the best by more than min_gap"
UNDESIRABLE = "labelled undesirable: not imitated"


def make_pairs(
    rows: Sequence[Preference], recipe: PairingRecipe | None, seed: int
) -> tuple[list[Preference], Counter[str]]:
    """Pairs from rated rows; other rows pass through.

    Returns:
        the rows, and for how many rated rows no pair could be made, by reason.

    Raises:
        RecipeError: rated rows without `recipe`, or `recipe` without rated rows.
    """
    rated = any(row.kind == "rated" for row in rows)
    if rated and recipe is None:
        raise needs_pairing(next(row.source for row in rows if row.kind == "rated"))
    if recipe is not None and not rated:
        raise RecipeError("`data.pairing`: no source holds ratings; delete the key")
    found: list[Preference] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        if row.kind != "rated" or recipe is None:
            found.append(row)
            continue
        made = pairs_of(row, recipe, seed)
        if isinstance(made, str):
            reasons[made] += 1
        else:
            found += made
    return found, reasons


def needs_pairing(source: str) -> RecipeError:
    """What to add to a recipe whose source holds ratings."""
    return RecipeError(
        f"'{source}' holds ratings, not pairs: add `pairing: {{rejected: random_lower}}` to `data`"
    )


def pairs_of(row: Preference, recipe: PairingRecipe, seed: int) -> list[Preference] | str:
    """The pairs of one rated row, or why there is none.

    Chosen is the best response; ties for the best are broken by chance, once a row. Rejected are
    responses whose rating is lower by more than `min_gap`, each text once, never chosen's text:
    `random_lower` draws `pairs_per_prompt` of them, `worst` takes the lowest (ties by chance).
    """
    scored = [(score, r) for r in row.responses if (score := score_of(r, row)) is not None]
    if len(scored) < 2:
        return TOO_FEW
    chance = random.Random(f"{seed}|pairs|{row.id}")
    best = max(score for score, _ in scored)
    top, chosen = chance.choice([item for item in scored if item[0] == best])
    lower: list[tuple[float, Response]] = []
    texts = [chosen.content]
    chance.shuffle(scored)
    for score, response in scored:
        if top - score > recipe.min_gap and response.content not in texts:
            lower.append((score, response))
            texts.append(response.content)
    if not lower:
        return NO_GAP
    if recipe.rejected == "worst":
        lower = [min(lower, key=lambda item: item[0])]
    taken = lower[: recipe.pairs_per_prompt]
    single = recipe.pairs_per_prompt == 1
    return [
        _pair(row, (top, chosen), item, row.id if single else f"{row.id}/{i + 1}")
        for i, item in enumerate(taken)
    ]


def score_of(response: Response, row: Preference) -> float | None:
    """The rating, or where the row has none the rank turned round (1 is best)."""
    if any(r.rating is not None for r in row.responses):
        return response.rating
    return None if response.rank is None else -float(response.rank)


def _pair(
    row: Preference, chosen: tuple[float, Response], rejected: tuple[float, Response], id: str
) -> Preference:
    if not chosen[0] > rejected[0]:
        raise ValueError(f"{row.id}: chosen is rated {chosen[0]}, rejected {rejected[0]}")
    ranked = chosen[1].rating is None
    return Preference(
        id=id,
        source=row.source,
        kind="pair",
        prompt=row.prompt,
        responses=(chosen[1], rejected[1]),
        # A difference of ranks is no difference of scores.
        margin=None if ranked else chosen[0] - rejected[0],
        images=row.images,
        row=row.row,
        extra=row.extra,
    )


def to_unpaired(row: Preference) -> list[Preference]:
    """A pair as two rows of unpaired feedback, an unpaired row as itself."""
    if row.kind == "unpaired":
        return [row]
    return [
        dataclasses.replace(
            row,
            id=f"{row.id}/{name}",
            kind="unpaired",
            responses=(dataclasses.replace(response, label=label),),
            margin=None,
        )
        for name, label, response in (
            ("chosen", True, row.chosen),
            ("rejected", False, row.rejected),
        )
    ]


def to_demonstrations(row: Preference) -> list[Preference] | str:
    """The chosen side of a pair, or a desirable response, as a demonstration."""
    if row.kind == "demonstration":
        return [row]
    if row.kind == "unpaired" and row.responses[0].label is not True:
        return UNDESIRABLE
    return [
        dataclasses.replace(row, kind="demonstration", responses=row.responses[:1], margin=None)
    ]
