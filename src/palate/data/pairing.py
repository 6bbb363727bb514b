"""Kinds of rows made from one another: ratings to pairs, pairs to single examples.

All chance is drawn per row, from the seed and the row's id: the result for a row depends neither on
the order of the rows nor on which others there are.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from palate.data.schema import Preference, Response
from palate.data.scores import (
    ScoredBy,
    check_order,
    contradiction,
    far_enough,
    gap,
    score_of,
    scores_of,
)
from palate.errors import DataError, RecipeError
from palate.recipes.pairing import PairingRecipe

__all__ = [
    "PairedRow",
    "make_pairs",
    "needs_pairing",
    "pair_row",
    "pairs_of",
    "refuse_needless",
    "score_of",
    "to_demonstrations",
    "to_ranked",
    "to_unpaired",
]

TOO_FEW = "fewer than two rated responses"
NO_GAP = "no response lower than the best by more than min_gap"
NO_MARGIN = "no response lower than the best by min_margin"
TIE = "a tie: neither response is preferred"
CONTRADICTED = "label contradicted"
UNDESIRABLE = "labelled undesirable: not imitated"
OWN_PROMPTS = "responses with a prompt of their own each: only pairs for training take them"


@dataclass(frozen=True, kw_only=True)
class PairedRow:
    """What became of one row.

    Attributes:
        pairs: of a rated row; a row of another kind is itself, alone. Empty where none is left.
        dropped: why pairs were dropped, one entry each; where `pairs` is empty the first is why.
        flips: contradictions of labels found, one entry a pair, whether it was kept or not.
        scored_by: what a rated row's responses were compared by.
    """

    pairs: tuple[Preference, ...] = ()
    dropped: tuple[str, ...] = ()
    flips: tuple[str, ...] = ()
    scored_by: ScoredBy | None = None


class _Scored(NamedTuple):
    """A response with its score; `text` is equal for responses that say the same."""

    score: float
    response: Response
    text: int


def make_pairs(
    rows: Sequence[Preference], recipe: PairingRecipe | None, seed: int
) -> tuple[list[Preference], Counter[str]]:
    """Pairs of rated rows, and the other rows without the ties and flips that the recipe drops.

    Returns:
        the rows, and how many rows gave no pair, by reason.

    Raises:
        RecipeError: rated rows without `recipe`, or `recipe` without rated rows.
        DataError: a flip where the recipe says `flips: error`.
    """
    refuse_needless(recipe, rated=any(row.kind == "rated" for row in rows))
    pairs: list[Preference] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        if row.kind == "rated" and recipe is None:
            raise needs_pairing(row.source)
        made = pairs_of(row, recipe or PairingRecipe(), seed)
        if isinstance(made, str):
            reasons[made] += 1
        else:
            pairs += made
    return pairs, reasons


def needs_pairing(source: str) -> RecipeError:
    """What to add to a recipe whose source holds ratings."""
    return RecipeError(
        f"'{source}' holds ratings, not pairs: add `pairing: {{rejected: random_lower}}` to `data`"
    )


def refuse_needless(recipe: PairingRecipe | None, *, rated: bool) -> None:
    """Raises RecipeError for keys about ratings where no source holds any."""
    if recipe is None or rated:
        return
    if recipe == PairingRecipe():
        raise RecipeError("`data.pairing`: no source holds ratings; delete the key")
    if recipe.of_ratings:
        names = ", ".join(recipe.of_ratings)
        raise RecipeError(
            f"`data.pairing`: no source holds ratings; delete {names} (ready-made pairs take "
            "`flips` and `ties` alone)"
        )


def pairs_of(row: Preference, recipe: PairingRecipe, seed: int) -> list[Preference] | str:
    """The pairs of one row, or why there is none; see `pair_row`."""
    made = pair_row(row, recipe, seed)
    return list(made.pairs) if made.pairs else made.dropped[0]


def pair_row(row: Preference, recipe: PairingRecipe, seed: int) -> PairedRow:
    """The pairs of one rated row; of a ready-made pair, the pair if ties and flips let it pass.

    Chosen is the best response (ties for the best broken by chance, once a row), one of the `top_k`
    best that have a lower one, or each in turn. Rejected are responses lower by the gap, each text
    once, never chosen's text. No two pairs of a row are made of the same two texts.

    Raises:
        DataError: a pair with a contradicted label where the recipe says `flips: error`, or a
            construction that would choose the lower score; names source and row.
    """
    if row.kind == "pair":
        if row.tie and recipe.ties == "drop":
            return PairedRow(dropped=(TIE,))
        if row.tie and recipe.ties == "keep":
            row = _in_any_order(row, random.Random(f"{seed}|tie|{row.id}"))
            return PairedRow(pairs=(row,))
        return _judged([row], recipe, None)
    if row.kind != "rated":
        return PairedRow(pairs=(row,))
    by, scores = scores_of(row.responses, recipe)
    scored = [
        _Scored(score, response, _text(row, i))
        for i, (score, response) in enumerate(zip(scores, row.responses, strict=True))
        if score is not None
    ]
    if len(scored) < 2:
        return PairedRow(dropped=(TOO_FEW,), scored_by=by)
    chance = random.Random(f"{seed}|pairs|{row.id}")
    picked = list(_picked(scored, recipe, chance))[: recipe.cap]
    if not picked:
        reason = NO_GAP if recipe.min_margin is None else NO_MARGIN
        return PairedRow(dropped=(reason,), scored_by=by)
    pairs = [
        _pair(row, sides, row.id if recipe.cap == 1 else f"{row.id}/{i + 1}", by, recipe)
        for i, sides in enumerate(picked)
    ]
    return _judged(pairs, recipe, by)


def _picked(
    scored: list[_Scored], recipe: PairingRecipe, chance: random.Random
) -> Iterator[tuple[_Scored, _Scored]]:
    """Chosen and rejected responses in random order: the first few are a fair sample."""
    best = max(item.score for item in scored)
    top = chance.choice([item for item in scored if item.score == best])
    scored = list(scored)
    chance.shuffle(scored)
    if recipe.chosen == "best":
        yield from ((top, low) for low in _rejected(top, scored, recipe))
        return
    if recipe.chosen == "top_k":
        ranked = sorted(scored, key=lambda item: -item.score)[: recipe.top_k]
        if able := [item for item in ranked if _below(item, scored, recipe)]:
            top = chance.choice(able)
            yield from ((top, low) for low in _rejected(top, scored, recipe))
        return
    by_texts: dict[frozenset[int], tuple[_Scored, _Scored]] = {}
    for item in scored:
        lower = _rejected(item, scored, recipe)
        for low in lower[:1] if recipe.rejected == "random_lower" else lower:
            # A text given twice with different ratings could be on either side of another.
            by_texts.setdefault(frozenset((item.text, low.text)), (item, low))
    pairs = list(by_texts.values())
    chance.shuffle(pairs)
    yield from pairs


def _rejected(top: _Scored, scored: Sequence[_Scored], recipe: PairingRecipe) -> list[_Scored]:
    lower = _below(top, scored, recipe)
    if lower and recipe.rejected == "worst":
        return [min(lower, key=lambda item: item.score)]
    if lower and recipe.rejected == "second":
        return [max(lower, key=lambda item: item.score)]
    return lower


def _below(top: _Scored, scored: Sequence[_Scored], recipe: PairingRecipe) -> list[_Scored]:
    """What may be rejected beside `top`, each text once, in the order given."""
    by_text: dict[int, _Scored] = {}
    for item in scored:
        tied = recipe.ties != "drop" and gap(top.score, item.score) == 0
        if item.text != top.text and (tied or far_enough(top.score, item.score, recipe)):
            by_text.setdefault(item.text, item)
    return list(by_text.values())


def _text(row: Preference, place: int) -> int:
    """The place of the first response that says the same to the same prompt."""
    response = row.responses[place]
    return next(
        i
        for i, candidate in enumerate(row.responses)
        if candidate.content == response.content and candidate.prompt == response.prompt
    )


def _pair(
    row: Preference,
    sides: tuple[_Scored, _Scored],
    id: str,
    by: ScoredBy,
    recipe: PairingRecipe,
) -> Preference:
    chosen, rejected = sides
    tied = recipe.ties != "drop" and gap(chosen.score, rejected.score) == 0
    check_order(row, chosen.score, rejected.score, tie=tied)
    return Preference(
        id=id,
        source=row.source,
        kind="pair",
        prompt=row.prompt,
        responses=(chosen.response, rejected.response),
        # A difference of ranks is no difference of scores.
        margin=None if by == "rank" else chosen.score - rejected.score,
        tie=tied and recipe.ties == "as_ties",
        row=row.row,
        extra=row.extra,
    )


def _judged(pairs: Sequence[Preference], recipe: PairingRecipe, by: ScoredBy | None) -> PairedRow:
    kept: list[Preference] = []
    dropped: list[str] = []
    flips: list[str] = []
    for pair in pairs:
        why = contradiction(pair, by)
        if why is None:
            kept.append(pair)
            continue
        if recipe.flips == "error":
            raise DataError(f"{pair.id}: {CONTRADICTED}: {why}", file=pair.source, row=pair.row)
        flips.append(why)
        if recipe.flips == "drop":
            dropped.append(f"{CONTRADICTED}: {why}")
        else:
            kept.append(pair)
    return PairedRow(pairs=tuple(kept), dropped=tuple(dropped), flips=tuple(flips), scored_by=by)


def _in_any_order(row: Preference, chance: random.Random) -> Preference:
    """A tie as an ordinary pair."""
    first, second = chance.sample(row.responses, 2)
    margin = None if row.margin is None else 0.0
    return dataclasses.replace(row, responses=(first, second), tie=False, margin=margin)


def to_ranked(row: Preference, recipe: PairingRecipe) -> Preference | str:
    """The row, rated or a pair, with a rank for each response; or why it cannot be ranked.

    Args:
        recipe: says by which score; of a pair the chosen response has rank 1.
    """
    if row.has_own_prompts:
        return OWN_PROMPTS
    if row.kind == "pair":
        ranks = [1, 1 if row.tie else 2]
        kept = list(row.responses)
    else:
        _, scores = scores_of(row.responses, recipe)
        known = [(s, r) for s, r in zip(scores, row.responses, strict=True) if s is not None]
        if len(known) < 2:
            return TOO_FEW
        places = {score: i + 1 for i, score in enumerate(sorted({s for s, _ in known})[::-1])}
        ranks, kept = [places[s] for s, _ in known], [r for _, r in known]
    ranked = tuple(dataclasses.replace(r, rank=k) for r, k in zip(kept, ranks, strict=True))
    return dataclasses.replace(row, kind="rated", responses=ranked, margin=None, tie=False)


def to_unpaired(row: Preference) -> list[Preference]:
    """A pair as two rows of unpaired feedback, an unpaired row as itself."""
    if row.kind == "unpaired":
        return [row]
    return [
        dataclasses.replace(
            row,
            id=f"{row.id}/{name}",
            kind="unpaired",
            prompt=row.prompt if response.prompt is None else response.prompt,
            responses=(dataclasses.replace(response, label=label, prompt=None),),
            margin=None,
        )
        for name, label, response in (
            ("chosen", True, row.chosen),
            ("rejected", False, row.rejected),
        )
    ]


def to_demonstrations(
    row: Preference, turns: Literal["last", "all"] = "last"
) -> list[Preference] | str:
    """The chosen side of a pair, or a desirable response, as a demonstration.

    Args:
        turns: `all`: of a conversation every answer to a user or a tool, earlier ones as rows of
            their own, in order.
    """
    if row.kind == "demonstration":
        return [*_earlier_answers(row), row] if turns == "all" else [row]
    if row.kind == "unpaired" and row.responses[0].label is not True:
        return UNDESIRABLE
    return [
        dataclasses.replace(row, kind="demonstration", responses=row.responses[:1], margin=None)
    ]


def _earlier_answers(row: Preference) -> list[Preference]:
    if not row.conversation or isinstance(row.prompt, str):
        return []
    chat = row.prompt
    places = [i for i, turn in enumerate(chat) if turn["role"] == "assistant"]
    return [
        dataclasses.replace(
            row, id=f"{row.id}/{i}", prompt=chat[:i], responses=(Response(content=chat[i : i + 1]),)
        )
        for n, i in enumerate(places)
        if n not in row.context_answers and i and chat[i - 1]["role"] in ("user", "tool")
    ]
