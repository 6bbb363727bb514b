"""Pairs from ratings: the right order, the right gap, and chance that depends on the row alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.data.pairing import (
    NO_GAP,
    TOO_FEW,
    make_pairs,
    pairs_of,
    score_of,
    to_demonstrations,
    to_unpaired,
)
from palate.data.schema import Preference, Response
from palate.errors import RecipeError
from palate.recipes.schema import PairingRecipe


def rated(ratings: list[float], id: str = "r", texts: list[str] | None = None) -> Preference:
    texts = texts or [f"answer {i}" for i in range(len(ratings))]
    responses = (Response(content=t, rating=r) for t, r in zip(texts, ratings, strict=True))
    return Preference(id=id, source="s", kind="rated", prompt="p", responses=tuple(responses))


def pairs(row: Preference, seed: int = 0, **recipe: object) -> list[Preference]:
    found = pairs_of(row, PairingRecipe.model_validate(recipe), seed)
    assert not isinstance(found, str), found
    return found


def test_best_against_worst() -> None:
    (pair,) = pairs(rated([3.0, 9.0, 1.5, 8.0]), rejected="worst")
    assert (pair.chosen.content, pair.rejected.content) == ("answer 1", "answer 2")
    assert (pair.margin, pair.id, pair.kind) == (7.5, "r", "pair")


def test_random_lower_reaches_all_that_are_lower_by_the_gap() -> None:
    row = rated([3.0, 9.0, 1.5, 8.0, 8.5])
    seen = {
        pair.rejected.content
        for seed in range(60)
        for pair in pairs(row, seed, rejected="random_lower", min_gap=1.0)
    }
    # 8.0 is lower by exactly the gap, which is not more than it.
    assert seen == {"answer 0", "answer 2"}


def test_several_pairs_share_chosen_and_differ_in_rejected() -> None:
    found = pairs(rated([1.0, 5.0, 2.0, 3.0]), pairs_per_prompt=9)
    assert {p.chosen.content for p in found} == {"answer 1"}
    assert len({p.rejected.content for p in found}) == len(found) == 3
    assert [p.id for p in found] == ["r/1", "r/2", "r/3"]


def test_ties_for_the_best_are_broken_by_chance() -> None:
    row = rated([5.0, 5.0, 1.0])
    chosen = {pairs(row, seed)[0].chosen.content for seed in range(30)}
    assert chosen == {"answer 0", "answer 1"}


def test_equal_texts_are_never_a_pair() -> None:
    row = rated([2.0, 1.0, 0.5], texts=["same", "same", "other"])
    assert {p.rejected.content for s in range(9) for p in pairs(row, s)} == {"other"}
    assert pairs_of(rated([2.0, 1.0], texts=["a", "a"]), PairingRecipe(), 0) == NO_GAP


def test_ranks_are_scores_turned_round() -> None:
    responses = (Response(content="a", rank=2), Response(content="b", rank=1))
    row = Preference(id="r", source="s", kind="rated", prompt="p", responses=responses)
    (pair,) = pairs(row)
    assert (pair.chosen.content, pair.margin) == ("b", None)


def test_reasons_are_counted_and_other_rows_pass() -> None:
    (pair,) = pairs(rated([2.0, 1.0]))
    rows = [rated([1.0, 1.0], "a"), rated([1.0], "b"), rated([1.0, 2.0], "c"), pair]
    found, reasons = make_pairs(rows, PairingRecipe(), 0)
    assert [row.id for row in found] == ["c", "r"]
    assert reasons == {NO_GAP: 1, TOO_FEW: 1}


def test_recipe_and_rows_must_fit() -> None:
    row = rated([1.0, 2.0])
    with pytest.raises(RecipeError, match=r"'s' holds ratings.*add `pairing: \{rejected: rand"):
        make_pairs([row], None, 0)
    (pair,) = pairs(row)
    with pytest.raises(RecipeError, match="no source holds ratings"):
        make_pairs([pair], PairingRecipe(), 0)
    assert make_pairs([pair], None, 0) == ([pair], {})


@given(
    ratings=st.lists(st.integers(0, 4).map(float), min_size=2, max_size=6),
    gap=st.sampled_from([0.0, 1.0, 2.5]),
    count=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_chosen_is_always_rated_higher(
    ratings: list[float], gap: float, count: int, seed: int
) -> None:
    row = rated(ratings)
    found = pairs_of(row, PairingRecipe(min_gap=gap, pairs_per_prompt=count), seed)
    possible = any(max(ratings) - r > gap for r in ratings)
    assert isinstance(found, str) is not possible
    for pair in found if not isinstance(found, str) else ():
        assert pair.margin == pair.chosen.rating - pair.rejected.rating > gap
        assert score_of(pair.chosen, row) == max(ratings)


def test_order_of_rows_does_not_matter() -> None:
    rows = [rated([1.0, 2.0, 3.0, 4.0], f"row {i}") for i in range(20)]
    one = {p.id: p for p in make_pairs(rows, PairingRecipe(), 3)[0]}
    two = {p.id: p for p in make_pairs(rows[::-1][:7], PairingRecipe(), 3)[0]}
    assert all(one[id] == pair for id, pair in two.items())
    assert len({p.rejected.content for p in one.values()}) > 1


def test_pairs_taken_apart() -> None:
    (pair,) = pairs(rated([1.0, 2.0]))
    good, bad = to_unpaired(pair)
    assert (good.id, good.responses[0].label) == ("r/chosen", True)
    assert (bad.id, bad.responses[0].label) == ("r/rejected", False)
    assert to_unpaired(good) == [good]
    (shown,) = to_demonstrations(pair)
    assert (shown.kind, shown.responses) == ("demonstration", (pair.chosen,))
    assert [r.kind for r in to_demonstrations(good)] == ["demonstration"]
    assert to_demonstrations(bad) == "labelled undesirable: not imitated"
