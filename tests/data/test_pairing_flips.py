"""Labels against the numbers beside them; two published accidents, reproduced and caught."""

from __future__ import annotations

import dataclasses
from statistics import mean
from typing import Any

import pytest

from palate.data.pairing import make_pairs, pair_row, pairs_of
from palate.data.schema import Preference, Response
from palate.data.scores import check_order, contradiction
from palate.errors import DataError, RecipeError
from palate.recipes.pairing import PairingRecipe


def recipe(**keys: Any) -> PairingRecipe:
    return PairingRecipe.model_validate(keys)


def rated(*responses: Response, id: str = "s:1", row: int = 1) -> Preference:
    return Preference(id=id, source="s", kind="rated", prompt="p", responses=responses, row=row)


def pair(chosen: Response, rejected: Response, **more: Any) -> Preference:
    return Preference(
        id="s:4", source="s", kind="pair", prompt="p", responses=(chosen, rejected), row=4, **more
    )


A, B = Response(content="a"), Response(content="b")


def with_(response: Response, **more: Any) -> Response:
    return dataclasses.replace(response, **more)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (pair(A, B), None),
        (pair(A, B, margin=0.5), None),
        (pair(A, B, margin=0.0), None),
        (pair(A, B, margin=-0.5), "the margin is negative"),
        (pair(with_(A, rating=1.0), with_(B, rating=2.0)), "chosen has the lower rating"),
        (pair(with_(A, rating=2.0), B), None),
        (pair(with_(A, rank=3), with_(B, rank=1)), "chosen has the worse rank"),
        (pair(with_(A, rank=1), with_(B, rank=1)), None),
        (pair(with_(A, votes=-3.0), with_(B, votes=0.0)), "chosen has fewer votes"),
        (
            pair(with_(A, aspects={"x": 1.0, "y": 9.0}), with_(B, aspects={"x": 2.0})),
            "chosen has the lower mean of aspects",
        ),
        (pair(with_(A, rating=1.0), with_(B, rating=2.0), tie=True), None),
    ],
)
def test_ready_made_pairs(made: Preference, why: str | None) -> None:
    assert contradiction(made) == why
    if made.tie:
        return
    kept = pair_row(made, recipe(), 0)
    assert (kept.pairs, kept.flips) == ((made,), (why,) if why else ())
    dropped = pair_row(made, recipe(flips="drop"), 0)
    assert dropped.flips == kept.flips
    if why is None:
        assert dropped.pairs == (made,)
        assert pairs_of(made, recipe(flips="error"), 0) == [made]
    else:
        assert (dropped.pairs, dropped.dropped) == ((), (f"label contradicted: {why}",))
        with pytest.raises(DataError, match=f"^s, row 4: s:4: label contradicted: {why}$"):
            pairs_of(made, recipe(flips="error"), 0)


def test_ranks_given_as_ratings_are_counted() -> None:
    # Rating 1 is meant as the best of them; the ranks beside the ratings tell.
    rows = [
        rated(*(Response(content=f"{i}", rating=float(i), rank=i) for i in (1, 2, 3)), id=f"s:{n}")
        for n in range(5)
    ]
    made = [pair_row(row, recipe(), 0) for row in rows]
    assert [one.flips for one in made] == [("chosen has the worse rank",)] * 5
    assert all(one.pairs for one in made)
    found, reasons = make_pairs(rows, recipe(flips="drop"), 0)
    assert (found, reasons) == ([], {"label contradicted: chosen has the worse rank": 5})
    by_rank = [pair_row(row, recipe(score="rank"), 0) for row in rows]
    assert [one.flips for one in by_rank] == [("chosen has the lower rating",)] * 5


def test_part_of_the_pairs_of_a_row_may_be_dropped() -> None:
    responses = [
        Response(content="a", rating=3.0, rank=2),
        Response(content="b", rating=2.0, rank=1),
        Response(content="c", rating=1.0, rank=3),
    ]
    made = pair_row(rated(*responses), recipe(rejected="every", flips="drop"), 0)
    assert [one.rejected.content for one in made.pairs] == ["c"]
    assert made.dropped == ("label contradicted: chosen has the worse rank",)


def test_weights_may_differ_from_the_mean() -> None:
    responses = [
        Response(content="a", aspects={"helpfulness": 3.0, "verbosity": 0.0}),
        Response(content="b", aspects={"helpfulness": 2.0, "verbosity": 4.0}),
    ]
    keys = {"score": "aspects", "aspects": {"helpfulness": 1.0}}
    made = pair_row(rated(*responses), recipe(**keys), 0)
    assert (made.pairs[0].chosen.content, made.flips) == ("a", ())


def test_a_construction_that_chooses_the_lower_score_is_refused() -> None:
    row = rated(A, B)
    with pytest.raises(DataError, match=r"^s, row 1: s:1: chosen has the score 1, rejected 2: the"):
        check_order(row, 1.0, 2.0)
    with pytest.raises(DataError, match="the label is flipped"):
        check_order(row, 2.0, 2.0)
    check_order(row, 2.0, 2.0, tie=True)
    check_order(row, 2.0, 1.0)


def test_which_keys_ready_made_pairs_take() -> None:
    made = [pair(A, B, margin=-1.0), pair(B, A, margin=1.0)]
    found, reasons = make_pairs(made, recipe(flips="drop"), 0)
    assert (found, reasons) == ([made[1]], {"label contradicted: the margin is negative": 1})
    with pytest.raises(RecipeError, match="no source holds ratings; delete rejected, min_gap"):
        make_pairs(made, recipe(flips="drop", rejected="worst", min_gap=1.0), 0)
    with pytest.raises(RecipeError, match="no source holds ratings; delete the key"):
        make_pairs(made, recipe(), 0)


# The two accidents.

HELPSTEER = {
    "poor": {"helpfulness": 0.0, "correctness": 1.0, "coherence": 2.0, "complexity": 1.0},
    "fair": {"helpfulness": 2.0, "correctness": 2.0, "coherence": 3.0, "complexity": 1.0},
    "good": {"helpfulness": 4.0, "correctness": 4.0, "coherence": 4.0, "complexity": 2.0},
}


def helpsteer_row() -> Preference:
    # Verbosity is rated too; the poor answer talks most.
    extra = {"poor": 4.0, "fair": 2.0, "good": 1.0}
    return rated(
        *(
            Response(content=name, aspects=found | {"verbosity": extra[name]})
            for name, found in HELPSTEER.items()
        )
    )


def test_helpsteer_sorted_the_wrong_way_round() -> None:
    row = helpsteer_row()
    # As published: sorted by the mean of four aspects, ascending, and the first is chosen.
    order = sorted(
        row.responses,
        key=lambda r: mean((r.aspects or {})[name] for name in HELPSTEER["poor"]),
    )
    published = pair(order[0], order[-1])
    assert published.chosen.content == "poor"
    assert contradiction(published) == "chosen has the lower mean of aspects"
    assert pairs_of(published, recipe(flips="drop"), 0) == (
        "label contradicted: chosen has the lower mean of aspects"
    )
    with pytest.raises(DataError, match=r"s, row 4: .*lower mean of aspects"):
        pairs_of(published, recipe(flips="error"), 0)
    with pytest.raises(DataError, match="the label is flipped"):
        check_order(row, 1.0, 3.5)
    # Declared, not sorted by hand, it comes out right, by default and by its preset.
    for keys in ({}, {"preset": "helpsteer"}, {"preset": "helpsteer", "rejected": "worst"}):
        for seed in range(5):
            made = pair_row(row, recipe(**keys), seed)
            assert (made.pairs[0].chosen.content, made.flips) == ("good", ())


def ultrafeedback_row() -> Preference:
    # A critique's score of 1 was multiplied by 10, as if it were 0.1 of 1.
    good = {"helpfulness": 5.0, "honesty": 4.0, "instruction_following": 5.0, "truthfulness": 5.0}
    bad = {"helpfulness": 1.0, "honesty": 1.0, "instruction_following": 2.0, "truthfulness": 1.0}
    return rated(
        Response(content="good", rating=8.5, aspects=good),
        Response(content="bad", rating=10.0, aspects=bad),
    )


def test_ultrafeedback_scores_of_1_turned_into_10() -> None:
    row = ultrafeedback_row()
    wrong = pair_row(row, recipe(preset="ultrafeedback_overall"), 0)
    assert wrong.pairs[0].chosen.content == "bad"
    assert (wrong.scored_by, wrong.flips) == ("overall", ("chosen has the lower mean of aspects",))
    with pytest.raises(DataError, match=r"s, row 1: .*lower mean of aspects"):
        pair_row(row, recipe(score="overall", flips="error"), 0)
    # The default and the other presets compare means of aspects; the contradicting overall score
    # is counted.
    for keys in ({}, {"preset": "ultrafeedback_fine_grained"}, {"preset": "ultrafeedback_all"}):
        made = pair_row(row, recipe(**keys), 0)
        assert made.pairs[0].chosen.content == "good"
        assert (made.scored_by, made.flips) == ("mean", ("chosen has the lower rating",))
