"""What a response is compared by, and whether another number of the row says the contrary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from palate.data.schema import Preference, Response
from palate.errors import DataError
from palate.recipes.pairing import PairingRecipe

ScoredBy = Literal["overall", "mean", "aspects", "votes", "rank"]

# Ratings are sums and means of a few decimals: differences below this share of them are rounding.
_ROUNDING = 1e-12


def scores_of(
    responses: Sequence[Response], recipe: PairingRecipe
) -> tuple[ScoredBy, list[float | None]]:
    """What a row's responses are compared by, and the score of each; None for one without it."""
    by: ScoredBy = _best_known(responses) if recipe.score == "auto" else recipe.score
    if by == "aspects":
        return by, [_weighted(r.aspects, recipe.aspects or {}) for r in responses]
    if by == "mean":
        return by, _means([r.aspects for r in responses])
    if by == "overall":
        return by, [r.rating for r in responses]
    if by == "votes":
        return by, [r.votes for r in responses]
    return by, [None if r.rank is None else -float(r.rank) for r in responses]


def score_of(
    response: Response, row: Preference, recipe: PairingRecipe | None = None
) -> float | None:
    """The score of one response of a row, higher better; a rank is turned round."""
    _, scores = scores_of(row.responses, recipe or PairingRecipe())
    return next((s for r, s in zip(row.responses, scores, strict=True) if r == response), None)


def _best_known(responses: Sequence[Response]) -> ScoredBy:
    # Aspects before the one rating: where a source has both, the rating is an annotation of its
    # own that says less (and in UltraFeedback as published is wrong for some 2,000 responses).
    rated = any(r.rating is not None for r in responses)
    known = [r for r in responses if r.aspects]
    if known and (len(known) == len(responses) or not rated) and _shared_aspects(responses):
        return "mean"
    if rated:
        return "overall"
    return "votes" if any(r.votes is not None for r in responses) else "rank"


def _shared_aspects(responses: Sequence[Response]) -> set[str]:
    named = [set(r.aspects) for r in responses if r.aspects]
    return set.intersection(*named) if named else set()


def _means(aspects: Sequence[Mapping[str, float] | None]) -> list[float | None]:
    # Over the aspects that all have: means over different aspects cannot be compared.
    named = [set(a) for a in aspects if a]
    shared = sorted(set.intersection(*named)) if named else []
    if not shared:
        return [None] * len(aspects)
    return [math.fsum(a[name] for name in shared) / len(shared) if a else None for a in aspects]


def _weighted(aspects: Mapping[str, float] | None, weights: Mapping[str, float]) -> float | None:
    if not aspects or any(name not in aspects for name in weights):
        return None
    total = math.fsum(weight * aspects[name] for name, weight in weights.items())
    return total / math.fsum(abs(weight) for weight in weights.values())


def gap(high: float, low: float) -> float:
    """high - low; 0 where they differ by rounding alone."""
    difference = high - low
    return 0.0 if abs(difference) <= _slack(high, low) else difference


def far_enough(high: float, low: float, recipe: PairingRecipe) -> bool:
    """Whether the gap is one that the recipe takes: more than min_gap, or min_margin or more."""
    difference, slack = gap(high, low), _slack(high, low)
    if recipe.min_margin is not None:
        return difference >= recipe.min_margin - slack
    return difference > recipe.min_gap + (slack if recipe.min_gap else 0.0)


def _slack(high: float, low: float) -> float:
    return _ROUNDING * max(abs(high), abs(low))


def check_order(row: Preference, chosen: float, rejected: float, *, tie: bool = False) -> None:
    """Refuses a pair whose chosen score is not above its rejected one (a tie: not equal to it).

    No construction here makes one; scores sorted the wrong way round, as in a published
    binarisation of HelpSteer that takes the lowest mean as chosen, end here.

    Raises:
        DataError: naming source and row.
    """
    difference = gap(chosen, rejected)
    if difference < 0 or (difference == 0 and not tie):
        raise DataError(
            f"{row.id}: chosen has the score {chosen:g}, rejected {rejected:g}: the label is "
            "flipped",
            file=row.source,
            row=row.row,
        )


def contradiction(pair: Preference, scored_by: ScoredBy | None = None) -> str | None:
    """In words, which other number of a pair prefers its rejected response; None where no one does.

    Looks at the margin, ratings, ranks, means of the aspects that both have, and votes, but not at
    what the pair was made from. A tie has no order to contradict, also where it is kept as a pair.
    """
    if pair.tie or (scored_by is not None and _equal(pair, scored_by)):
        return None
    if scored_by is None and pair.margin is not None and pair.margin < 0:
        return "the margin is negative"
    # A score of weighted aspects may well differ from their mean: that is what weights are for.
    skipped = "mean" if scored_by == "aspects" else scored_by
    for name, better, words in _EVIDENCE:
        if name != skipped and better(pair.rejected, pair.chosen):
            return words
    return None


def _equal(pair: Preference, by: ScoredBy) -> bool:
    if by == "rank":
        return pair.chosen.rank == pair.rejected.rank
    return pair.margin is not None and gap(pair.margin, 0.0) == 0


def _higher_mean(first_response: Response, second_response: Response) -> bool:
    first, second = _means([first_response.aspects, second_response.aspects])
    return first is not None and second is not None and gap(first, second) > 0


def _higher_rating(first: Response, second: Response) -> bool:
    return first.rating is not None and second.rating is not None and first.rating > second.rating


def _better_rank(first: Response, second: Response) -> bool:
    return first.rank is not None and second.rank is not None and first.rank < second.rank


def _more_votes(first: Response, second: Response) -> bool:
    return first.votes is not None and second.votes is not None and first.votes > second.votes


_EVIDENCE: tuple[tuple[ScoredBy, Callable[[Response, Response], bool], str], ...] = (
    ("overall", _higher_rating, "chosen has the lower rating"),
    ("rank", _better_rank, "chosen has the worse rank"),
    ("mean", _higher_mean, "chosen has the lower mean of aspects"),
    ("votes", _more_votes, "chosen has fewer votes"),
)
