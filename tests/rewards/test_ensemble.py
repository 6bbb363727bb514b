"""Ensembles: every rule by hand, routing, unscored members, and who rules a raw mean."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from palate.data.scorer import TEXT_AND_IMAGES, Traits
from palate.errors import ModelError
from palate.rewards.combined import Member
from palate.rewards.ensemble import Ensemble, combine, validate
from palate.rewards.length import Length
from palate.rewards.spread import Spread, SpreadSums, dominance
from scored import Numbers, flat_values, values


class Fixed(Numbers):
    """Scores by a table of responses."""

    traits = Traits(modalities=TEXT_AND_IMAGES)

    def __init__(self, name, table):
        self.name = name
        self.table = table
        self.asked = []

    def numbers(self, prompts, responses):
        self.asked += responses
        return [self.table[response] for response in responses]


IMAGE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
A = Fixed("a", {"x": 1.0, "y": 2.0, "z": math.nan})
B = Fixed("b", {"x": 5.0, "y": -1.0, "z": 0.0})
C = Fixed("c", {"x": 3.0, "y": 2.0, "z": 0.0})


def members(**more):
    return [Member(scorer=s, **more) for s in (A, B, C)]


def spreads(names: Any, scores: Any, groups: Any = None, *, asked: Any = None) -> list[Spread]:
    """Of all responses at once; default: all of one prompt."""
    sums = SpreadSums(names)
    sums.add(scores, [0] * scores.shape[1] if groups is None else groups, asked=asked)
    return sums.spreads()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", [3.0, 1.0]),
        ("median", [3.0, 2.0]),
        ("min", [1.0, -1.0]),
        # sd over members: x {1, 5, 3} sqrt(8/3), y {2, -1, 2} sqrt(2)
        ("uncertainty", [3.0 - 0.5 * math.sqrt(8 / 3), 1.0 - 0.5 * math.sqrt(2)]),
    ],
)
def test_rules_by_hand(rule, expected):
    found = flat_values(Ensemble(members(), rule, penalty=0.5), ["p", "p"], ["x", "y"])
    assert found == pytest.approx(expected)


def test_zscores_and_weights_by_hand():
    parts = [
        Member(scorer=A, mean=1.0, deviation=2.0, weight=1.0),
        Member(scorer=B, mean=0.0, deviation=5.0, weight=3.0),
    ]
    # z: a {0, .5}, b {1, -.2}
    assert flat_values(Ensemble(parts, "zscore"), ["p", "p"], ["x", "y"]) == pytest.approx(
        [0.5, 0.15]
    )
    assert flat_values(Ensemble(parts, "weighted"), ["p", "p"], ["x", "y"]) == pytest.approx(
        [4.0, -0.25]
    )
    both = flat_values(Ensemble(parts, "weighted", standardise=True), ["p", "p"], ["x", "y"])
    assert both == pytest.approx([0.75, (0.5 - 0.6) / 4])
    assert flat_values(Ensemble(parts, "min", standardise=True), ["p"], ["y"]) == pytest.approx(
        [-0.2]
    )


def test_a_member_without_a_score_leaves_none():
    found = flat_values(Ensemble(members()), ["p", "p"], ["x", "z"])
    assert found == [3.0, None]


def test_members_are_asked_only_about_their_modality():
    text = Fixed("text", {"x": 1.0, "y": 4.0})
    image = Fixed("image", {"x": 7.0})
    both = Ensemble(
        [
            Member(scorer=text, modality="text"),
            Member(scorer=image, modality="image"),
            Member(scorer=C),
        ]
    )
    assert flat_values(both, ["p", IMAGE], ["x", "x"]) == [2.0, 5.0]
    assert text.asked == ["x"] and image.asked == ["x"]
    assert values(both, ["p", IMAGE], [["x", "y"], ["x"]]) == [[2.0, 3.0], [5.0]]
    only = Ensemble([Member(scorer=image, modality="image")] * 2)
    assert flat_values(only, ["p"], ["x"]) == [None]


def test_groups_and_rows_agree():
    ensemble = Ensemble(members(), "median")
    assert values(ensemble, ["p", "q"], [["x", "y"], ["y"]]) == [[3.0, 2.0], [2.0]]


def test_what_a_rule_needs_is_asked_for():
    with pytest.raises(ValueError, match="no mean and deviation"):
        Ensemble(members(), "zscore")
    with pytest.raises(ValueError, match="no weight"):
        Ensemble(members(), "weighted")
    with pytest.raises(ValueError, match="add up to nothing"):
        Ensemble(members(weight=0.0), "weighted")
    with pytest.raises(ValueError, match="two members"):
        Ensemble(members()[:1])


@pytest.mark.parametrize(
    ("rule", "member", "keys", "message"),
    [
        ("average", {"weight": 1.0}, {}, "no rule average; there are mean, zscore"),
        ("zscore", {"mean": 0.0, "deviation": -1.0}, {}, "a: mean 0.0, deviation -1.0"),
        ("min", {"mean": math.nan, "deviation": 1.0}, {"standardise": True}, "a: mean nan"),
        ("weighted", {"weight": -1.0}, {}, "a: weight -1.0, not 0 or more"),
        ("weighted", {"weight": math.inf}, {}, "a: weight inf, not 0 or more"),
        ("uncertainty", {}, {"penalty": math.nan}, "penalty nan: not 0 or more"),
    ],
)
def test_numbers_that_are_none_are_refused(rule, member, keys, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(members(**member), rule, **keys)


SCORES = arrays(np.float64, (3, 6), elements=st.floats(-50, 50, width=32))


@given(SCORES, st.floats(-20, 20), st.floats(0.1, 10))
def test_a_shift_moves_and_a_scale_scales_every_rule(scores, shift, scale):
    weights = np.asarray([1.0, 2.0, 3.0])
    for rule in ("mean", "median", "min", "uncertainty", "weighted"):
        before = combine(scores, rule, weights=weights)
        after = combine(scale * scores + shift, rule, weights=weights)
        assert after == pytest.approx(scale * before + shift, abs=1e-6)


@given(SCORES, st.permutations(range(3)))
def test_the_order_of_members_does_not_matter(scores, order):
    for rule in ("mean", "median", "min", "uncertainty"):
        assert combine(scores[list(order)], rule) == pytest.approx(combine(scores, rule), abs=1e-9)


@given(SCORES, st.floats(0.5, 9), st.floats(-5, 5))
def test_zscores_do_not_see_a_members_scale(scores, scale, shift):
    means, deviations = np.zeros(3), np.ones(3)
    other = scores.copy()
    other[1] = scale * scores[1] + shift
    found = combine(
        other,
        "zscore",
        means=np.asarray([0.0, shift, 0.0]),
        deviations=np.asarray([1.0, scale, 1.0]),
    )
    expected = combine(scores, "zscore", means=means, deviations=deviations)
    assert found == pytest.approx(expected, abs=1e-5)


def test_spreads_by_hand_and_the_warning():
    # Two prompts of two responses; offsets between prompts say nothing about choice.
    scores = np.asarray([[100.0, 101.0, 0.0, 1.0], [0.0, 8.0, 0.0, 8.0]])
    narrow, wide = spreads(["narrow", "wide"], scores, [0, 0, 1, 1])
    # Within: deviations of +-.5 and +-4 around each prompt's mean, 4 values less 2 means.
    assert narrow.within == pytest.approx(math.sqrt(4 * 0.25 / 2))
    assert wide.within == pytest.approx(math.sqrt(4 * 16 / 2))
    # cov with the sum: .5 * 4.5 and 4 * 4.5 of 4.5 ** 2.
    assert narrow.share == pytest.approx(0.5 / 4.5) and wide.share == pytest.approx(4 / 4.5)
    assert narrow.deviation > wide.deviation
    assert "wide makes 89% of the ensemble's spread" in dominance([narrow, wide])
    assert dominance([narrow, wide]).endswith("; z-scores weigh members alike")
    # What is standardised already needs no such advice.
    assert "z-scores divide by deviations" in dominance([narrow, wide], standardised=True)
    assert dominance(spreads(["a", "b"], scores[[1, 1]], [0, 0, 1, 1])) is None
    assert dominance(spreads(["a", "b"], np.zeros((2, 4)), [0, 0, 1, 1])) is None


@given(SCORES)
def test_shares_add_up_to_one(scores):
    found = [s.share for s in spreads(["a", "b", "c"], scores, [0, 0, 0, 1, 1, 1])]
    if None not in found:
        assert sum(found) == pytest.approx(1.0, abs=1e-3)


def test_validation_by_hand():
    found = validate(Length(), [("p", "four", "fo"), ("p", "a", "ab"), ("p", "abc", "abc")])
    assert (found.accuracy, found.n) == (pytest.approx(1 / 3), 3)
    assert found.margin == pytest.approx((2 - 1 + 0) / 3)
    assert found.mean == pytest.approx(15 / 6)


def test_infinite_scores_are_no_scores():
    endless = Fixed("endless", {"x": math.inf, "y": -math.inf})
    for rule in ("mean", "median", "min", "uncertainty"):
        found = Ensemble([Member(scorer=endless), Member(scorer=B)], rule)
        assert flat_values(found, ["p", "p"], ["x", "y"]) == [None, None]


def test_validation_counts_pairs_without_a_score_as_wrong():
    half = Fixed("half", {"x": math.nan, "yy": 2.0, "z": 1.0, "w": 0.0})
    found = validate(half, [("p", "yy", "z"), ("p", "x", "yy"), ("q", "z", "w"), ("q", "x", "x")])
    assert (found.accuracy, found.n, found.margin) == (0.5, 2, 1.0)
    assert found.mean == pytest.approx(1.0)


def test_equal_scores_have_no_scale():
    # Six times 0.1 has a mean a little below, and so a deviation a little above zero.
    constant = Fixed("constant", {"x": 0.1, "y": 0.1})
    assert np.full(6, 0.1).std() > 0
    with pytest.raises(ModelError, match="constant: all scores of the validation data are equal"):
        validate(constant, [("p", "x", "y")] * 3)


def test_what_members_count_is_told_under_their_names():
    judge = Fixed("judge", {"x": 1.0})
    judge.counts = Counter({"verdicts that could not be read": 2})
    found = Ensemble([Member(scorer=judge), Member(scorer=A)])
    assert found.counts == {"judge: verdicts that could not be read": 2}


def test_spreads_of_routed_members():
    """Three members, of which two score each prompt; the wide one scores all."""
    nan = math.nan
    scores = np.asarray(
        [[1.0, 2.0, nan, nan, nan], [nan, nan, 1.0, nan, nan], [0.0, 80.0, 0.0, 90.0, nan]]
    )
    fixed = [Fixed(name, {}) for name in ("text", "image", "any")]
    parts = [
        Member(scorer=one, modality=modality)
        for one, modality in zip(fixed, ("text", "image", "any"), strict=True)
    ]
    image = [False, False, True, True, False]
    asked = np.asarray([[member.fits(has) for has in image] for member in parts])
    assert asked.tolist() == [[not x for x in image], image, [True] * 5]
    text, other, every = spreads(["text", "image", "any"], scores, [0, 0, 1, 1, 2], asked=asked)
    assert (text.n, text.unscored) == (2, 1) and (other.n, other.unscored) == (1, 1)
    assert (every.n, every.unscored) == (4, 1)
    # The pair that all asked score: +-.25 and +-20 of +-20.25 around the prompt's mean.
    assert text.share == pytest.approx(0.25 / 20.25) and other.share == 0
    assert every.share == pytest.approx(20 / 20.25)
    assert "any makes 99%" in dominance([text, other, every])


def test_weights_decide_who_rules_a_weighted_mean():
    scores = np.asarray([[1.0, 2.0, 3.0, 4.0], [0.0, 80.0, 0.0, 80.0]])

    def ruling(*weights):
        parts = [Member(scorer=s, weight=w) for s, w in zip((A, B), weights, strict=True)]
        entering = Ensemble(parts, "weighted").numbers.entering(scores)
        return dominance(spreads(["narrow", "wide"], entering, [0, 0, 1, 1]))

    assert "wide makes 99%" in ruling(1.0, 1.0)
    assert ruling(80.0, 1.0) is None
    assert "narrow makes" in ruling(800.0, 1.0)


def test_a_member_that_rules_a_mean_of_zscores_is_told():
    parts = [
        Member(scorer=A, mean=0.0, deviation=1.0),
        Member(scorer=B, mean=0.0, deviation=0.01),
    ]
    numbers = Ensemble(parts, "zscore").numbers
    scores = np.asarray([[1.0, 2.0], [0.0, 1.0]])
    raw = spreads(["a", "b"], scores, [0, 0])
    entering = spreads(["a", "b"], numbers.entering(scores), [0, 0])
    warning = numbers.described(raw, entering)["warning"]
    assert warning.startswith("b makes 99%") and "weigh members alike" not in warning


@given(SCORES, st.integers(1, 5))
def test_spreads_in_parts_are_those_of_the_whole(scores, cut):
    scores = scores.copy()
    scores[1, 0] = np.nan
    groups = np.asarray([0] * cut + [1] * (6 - cut))
    sums = SpreadSums(["a", "b", "c"])
    for g in (0, 1):
        sums.add(scores[:, groups == g], groups[groups == g])
    for part, whole in zip(sums.spreads(), spreads(["a", "b", "c"], scores, groups), strict=True):
        assert (part.n, part.unscored) == (whole.n, whole.unscored)
        for key in ("mean", "deviation", "within"):
            assert getattr(part, key) == pytest.approx(getattr(whole, key), abs=1e-6)
