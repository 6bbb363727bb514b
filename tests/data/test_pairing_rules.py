"""Declared constructions: scores, who is chosen, who is rejected, gaps, ties, caps and presets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curating import pictured
from palate.data.pairing import NO_GAP, NO_MARGIN, TIE, TOO_FEW, pair_row, pairs_of
from palate.data.schema import ImageRef, Preference, Response
from palate.data.scores import scores_of
from palate.recipes.pairing import PRESETS, PairingRecipe, Preset
from palate.recipes.yaml import parse_yaml


def row(*responses: Response, id: str = "r") -> Preference:
    return Preference(id=id, source="s", kind="rated", prompt="p", responses=responses)


def rated(*ratings: float, id: str = "r") -> Preference:
    return row(*(Response(content=f"answer {i}", rating=r) for i, r in enumerate(ratings)), id=id)


def aspects(**ratings: float) -> Response:
    return Response(content=repr(ratings), aspects=ratings)


def recipe(**keys: Any) -> PairingRecipe:
    return PairingRecipe.model_validate(keys)


def ratings(of: Preference, seed: int = 0, **keys: Any) -> list[tuple[float | None, float | None]]:
    found = pairs_of(of, recipe(**keys), seed)
    assert not isinstance(found, str), found
    return [(pair.chosen.rating, pair.rejected.rating) for pair in found]


# Scores.


def test_each_score_reads_its_own_number() -> None:
    one = Response(content="a", rating=4.0, aspects={"x": 1.0, "y": 2.0}, votes=7.0, rank=2)
    other = Response(content="b", rating=3.0, aspects={"x": 5.0, "y": 1.0}, votes=-2.0, rank=1)
    found = {
        name: scores_of([one, other], recipe(score=name))[1]
        for name in ("overall", "mean", "votes", "rank")
    }
    assert found == {
        "overall": [4.0, 3.0],
        "mean": [1.5, 3.0],
        "votes": [7.0, -2.0],
        "rank": [-2.0, -1.0],
    }
    weights = {"x": 1.0, "y": -3.0}
    by, scores = scores_of([one, other], recipe(score="aspects", aspects=weights))
    assert (by, scores) == ("aspects", [-5 / 4, 2 / 4])


@pytest.mark.parametrize(
    ("one", "other", "by"),
    [
        ({"rating": 1.0, "aspects": {"x": 1.0}}, {"rating": 2.0, "aspects": {"x": 2.0}}, "mean"),
        ({"aspects": {"x": 1.0}, "votes": 1.0}, {"aspects": {"x": 2.0}, "votes": 2.0}, "mean"),
        ({"rating": 1.0, "votes": 1.0, "rank": 1}, {"rating": 2.0}, "overall"),
        ({"votes": 1.0, "rank": 1}, {"votes": 2.0, "rank": 1}, "votes"),
        ({"rank": 1}, {"rank": 2}, "rank"),
        # Not both have aspects, or none in common, and the rating can compare them.
        ({"rating": 1.0, "aspects": {"x": 1.0}}, {"rating": 2.0}, "overall"),
        ({"rating": 1.0, "aspects": {"x": 1.0}}, {"rating": 2.0, "aspects": {"y": 2.0}}, "overall"),
    ],
)
def test_auto_takes_the_first_that_the_row_has(
    one: dict[str, Any], other: dict[str, Any], by: str
) -> None:
    responses = [Response(content="a", **one), Response(content="b", **other)]
    assert scores_of(responses, recipe())[0] == by
    assert pair_row(row(*responses), recipe(), 0).scored_by == by


def test_means_compare_the_same_aspects() -> None:
    # With the missing honesty left out of its mean, the first would score 4 against 3.
    responses = [aspects(help=4.0), aspects(help=5.0, honest=1.0), Response(content="none")]
    assert scores_of(responses, recipe(score="mean")) == ("mean", [4.0, 5.0, None])
    apart = [aspects(help=4.0), aspects(honest=1.0)]
    assert pairs_of(row(*apart), recipe(score="mean"), 0) == TOO_FEW


def test_a_response_without_a_weighted_aspect_has_no_score() -> None:
    responses = [aspects(help=4.0), aspects(help=5.0, honest=1.0), aspects(help=3.0, honest=3.0)]
    keys = {"score": "aspects", "aspects": {"help": 0.5, "honest": 0.5}}
    assert scores_of(responses, recipe(**keys))[1] == [None, 3.0, 3.0]


def test_margins_are_differences_of_scores_and_ranks_have_none() -> None:
    responses = [
        Response(content="a", votes=3.0, rank=2),
        Response(content="b", votes=10.0, rank=1),
    ]
    (by_votes,) = pair_row(row(*responses), recipe(score="votes"), 0).pairs
    (by_rank,) = pair_row(row(*responses), recipe(score="rank"), 0).pairs
    assert (by_votes.margin, by_rank.margin) == (7.0, None)


# Chosen and rejected.


def test_second_is_the_best_of_the_lower_ones() -> None:
    assert ratings(rated(1.0, 9.0, 8.0, 5.0), rejected="second") == [(9.0, 8.0)]
    assert ratings(rated(1.0, 9.0, 9.0, 5.0), rejected="second") == [(9.0, 5.0)]
    assert ratings(rated(1.0, 9.0, 8.0, 5.0), rejected="second", min_gap=1.0) == [(9.0, 5.0)]


def test_every_lower_one() -> None:
    found = ratings(rated(1.0, 9.0, 8.0, 9.0), rejected="every")
    assert sorted(found) == [(9.0, 1.0), (9.0, 8.0)]
    assert len(ratings(rated(1.0, 9.0, 8.0, 7.0), rejected="every", pairs_per_prompt=2)) == 2


def test_top_k_reaches_the_best_k_that_have_a_lower_one() -> None:
    of = rated(1.0, 9.0, 8.0, 5.0)
    seen = {ratings(of, seed, chosen="top_k", top_k=2)[0][0] for seed in range(40)}
    assert seen == {9.0, 8.0}
    # The lowest has none below it, so it is never drawn and the row never lost.
    assert {ratings(rated(1.0, 2.0), s, chosen="top_k", top_k=2)[0] for s in range(20)} == {
        (2.0, 1.0)
    }


def test_all_pairs() -> None:
    found = ratings(rated(1.0, 4.0, 4.0, 2.0), chosen="every", rejected="every")
    assert sorted(found) == [(2.0, 1.0), (4.0, 1.0), (4.0, 1.0), (4.0, 2.0), (4.0, 2.0)]
    wide = ratings(rated(1.0, 4.0, 4.0, 2.0), chosen="every", rejected="every", min_gap=2.0)
    assert sorted(wide) == [(4.0, 1.0), (4.0, 1.0)]
    each = ratings(rated(1.0, 4.0, 3.0, 2.0), chosen="every", rejected="worst")
    assert sorted(each) == [(2.0, 1.0), (3.0, 1.0), (4.0, 1.0)]
    one = ratings(rated(1.0, 4.0, 3.0, 2.0), chosen="every", rejected="random_lower")
    assert sorted(c for c, _ in one) == [2.0, 3.0, 4.0]


def test_a_smaller_cap_draws_part_of_a_larger_one() -> None:
    of = rated(1.0, 4.0, 3.0, 2.0, 0.5)
    keys = {"chosen": "every", "rejected": "every"}
    whole = pair_row(of, recipe(**keys), 5).pairs
    assert [pair.id for pair in whole] == [f"r/{i}" for i in range(1, 11)]
    for cap in (2, 3, 7):
        assert pair_row(of, recipe(**keys, pairs_per_prompt=cap), 5).pairs == whole[:cap]
    assert pair_row(of, recipe(**keys, pairs_per_prompt=1), 5).pairs[0].id == "r"


def test_one_text_with_two_ratings_is_on_one_side_of_another() -> None:
    texts = ["same", "same", "other"]
    of = row(*(Response(content=t, rating=r) for t, r in zip(texts, (5.0, 1.0, 3.0), strict=True)))
    for seed in range(20):
        (pair,) = pair_row(of, recipe(chosen="every", rejected="every"), seed).pairs
        assert {pair.chosen.content, pair.rejected.content} == {"same", "other"}


def test_one_text_about_two_images_is_two_responses() -> None:
    prompts = tuple(pictured("What?", [ImageRef(path=path)]) for path in ("a.png", "b.png"))
    of = row(
        Response(content="A cat.", rating=2.0, prompt=prompts[0]),
        Response(content="A cat.", rating=1.0, prompt=prompts[1]),
    )
    (pair,) = pair_row(of, recipe(), 0).pairs
    assert (pair.chosen.prompt, pair.rejected.prompt) == prompts


def test_gap_and_margin() -> None:
    assert pairs_of(rated(3.0, 2.0), recipe(min_gap=1.0), 0) == NO_GAP
    assert ratings(rated(3.0, 2.0), min_margin=1.0) == [(3.0, 2.0)]
    assert pairs_of(rated(3.0, 2.0), recipe(min_margin=1.5), 0) == NO_MARGIN
    # 0.3 - 0.1 and 1.1 - 1.0 are not 0.2 and 0.1 in binary.
    assert ratings(rated(0.3, 0.1), min_margin=0.2) == [(0.3, 0.1)]
    assert pairs_of(rated(1.1, 1.0), recipe(min_gap=0.1), 0) == NO_GAP


# Ties.


def test_ties_of_ratings() -> None:
    of = rated(2.0, 2.0)
    assert pairs_of(of, recipe(), 0) == NO_GAP
    kept = [pair_row(of, recipe(ties="keep"), seed).pairs[0] for seed in range(20)]
    assert {pair.chosen.content for pair in kept} == {"answer 0", "answer 1"}
    assert {(pair.tie, pair.margin) for pair in kept} == {(False, 0.0)}
    (tie,) = pair_row(of, recipe(ties="as_ties"), 0).pairs
    assert (tie.tie, tie.margin) == (True, 0.0)
    # Lower by less than the gap is neither a tie nor a pair.
    assert pairs_of(rated(2.0, 1.5), recipe(ties="keep", min_gap=1.0), 0) == NO_GAP
    found = pair_row(
        rated(2.0, 2.0, 1.0), recipe(ties="as_ties", chosen="every", rejected="every"), 0
    )
    assert sorted(pair.tie for pair in found.pairs) == [False, False, True]


def test_ties_that_the_source_gives() -> None:
    pair = Preference(
        id="r",
        source="s",
        kind="pair",
        prompt="p",
        responses=(Response(content="a"), Response(content="b")),
        tie=True,
    )
    assert pairs_of(pair, recipe(), 0) == TIE
    assert pairs_of(pair, recipe(ties="as_ties"), 0) == [pair]
    kept = [pair_row(pair, recipe(ties="keep"), seed).pairs[0] for seed in range(20)]
    assert {one.chosen.content for one in kept} == {"a", "b"}
    assert {one.tie for one in kept} == {False}


# The recipe.


def test_presets_are_their_keys_and_keys_override() -> None:
    assert set(PRESETS) == set(get_args(Preset))
    for name, keys in PRESETS.items():
        assert recipe(preset=name) == recipe(preset=name, **keys)
    changed = recipe(preset="ultrafeedback_all", pairs_per_prompt=3, score="overall")
    assert (changed.chosen, changed.rejected, changed.cap) == ("every", "every", 3)
    assert changed.score == "overall"
    # What a run folder keeps gives the same again.
    assert PairingRecipe.model_validate(changed.model_dump(mode="json")) == changed


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"score": "aspects"}, "`aspects`: .*needs weights"),
        ({"aspects": {"x": 1.0}}, "`aspects`: only with `score: aspects`"),
        ({"score": "aspects", "aspects": {"x": 0.0}}, r"`aspects\.x`: a weight of 0"),
        ({"chosen": "top_k"}, "`top_k`: goes with"),
        ({"top_k": 2}, "`top_k`: goes with"),
        ({"min_gap": 1.0, "min_margin": 1.0}, "`min_margin`: only without min_gap"),
        ({"rejected": "worst", "pairs_per_prompt": 2}, "`pairs_per_prompt`: .*one worst"),
        ({"rejected": "second", "pairs_per_prompt": 2}, "`pairs_per_prompt`: .*one second"),
        ({"preset": "best"}, "preset"),
        ({"pairs_per_prompt": 0}, "pairs_per_prompt"),
    ],
)
def test_contradicting_keys_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**keys)


def test_caps() -> None:
    assert recipe().cap == 1
    assert recipe(rejected="every").cap is None
    assert recipe(chosen="every").cap is None
    assert recipe(chosen="every", pairs_per_prompt=4).cap == 4


RECIPES = st.builds(
    lambda chosen, rejected, gap, ties, cap: recipe(
        **chosen,
        rejected=rejected,
        **gap,
        ties=ties,
        pairs_per_prompt=cap if "every" in (chosen["chosen"], rejected) else None,
    ),
    chosen=st.sampled_from(
        [{"chosen": "best"}, {"chosen": "every"}, {"chosen": "top_k", "top_k": 2}]
    ),
    rejected=st.sampled_from(["random_lower", "worst", "second", "every"]),
    gap=st.sampled_from([{}, {"min_gap": 1.0}, {"min_margin": 2.0}]),
    ties=st.sampled_from(["drop", "keep", "as_ties"]),
    cap=st.sampled_from([None, 1, 2, 5]),
)
ROWS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(0, 4).map(float)), min_size=2, max_size=7
).map(lambda items: row(*(Response(content=t, rating=r) for t, r in items)))


@given(of=ROWS, how=RECIPES, seed=st.integers(0, 3))
def test_what_holds_for_every_construction(of: Preference, how: PairingRecipe, seed: int) -> None:
    made = pair_row(of, how, seed)
    assert made == pair_row(of, how, seed)
    assert bool(made.pairs) is not bool(made.dropped)
    assert how.cap is None or len(made.pairs) <= how.cap
    assert len({pair.id for pair in made.pairs}) == len(made.pairs)
    seen = set()
    for pair in made.pairs:
        assert pair.chosen.content != pair.rejected.content
        assert pair.chosen in of.responses and pair.rejected in of.responses
        assert pair.chosen.rating is not None and pair.rejected.rating is not None
        assert pair.margin == pair.chosen.rating - pair.rejected.rating
        if pair.margin == 0:
            assert how.ties != "drop" and pair.tie is (how.ties == "as_ties")
        else:
            assert not pair.tie
            least = how.min_margin or 0.0
            assert pair.margin > how.min_gap and pair.margin >= least
        both = frozenset((str(pair.chosen.content), str(pair.rejected.content)))
        assert both not in seen
        seen.add(both)


@given(rows=st.lists(ROWS, min_size=1, max_size=5), how=RECIPES, seed=st.integers(0, 3))
def test_a_row_is_paired_alike_in_any_company(
    rows: list[Preference], how: PairingRecipe, seed: int
) -> None:
    named = [row(*one.responses, id=f"row {i}") for i, one in enumerate(rows)]
    forwards = {one.id: pair_row(one, how, seed) for one in named}
    backwards = {one.id: pair_row(one, how, seed) for one in reversed(named)}
    assert forwards == backwards


def test_the_presets_are_documented_as_they_are() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "data.md"
    lines = re.findall(r"^\| `(\w+)` \| `(score: .*)` \|$", page.read_text("utf-8"), re.MULTILINE)
    assert {name: parse_yaml(f"{{{keys}}}", "test") for name, keys in lines} == PRESETS
