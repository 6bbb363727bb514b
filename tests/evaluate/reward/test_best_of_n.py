"""Best-of-n: the exact estimator against every draw, and what a curve says."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palate.evaluate.reward.best_of_n import best_of_n, curve, kl_bound, weights


def brute(proxy, gold, n):
    """Mean over all draws of n; equal proxy scores share."""
    found = []
    for draw in combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in draw)
        found.append(np.mean([gold[i] for i in draw if proxy[i] == best]))
    return float(np.mean(found))


VALUES = st.lists(
    st.tuples(st.integers(-3, 3).map(float), st.floats(-10, 10)), min_size=1, max_size=8
)


@settings(deadline=None)
@given(VALUES, st.data())
def test_estimator_equals_the_mean_over_all_draws(values, data):
    proxy, gold = zip(*values, strict=True)
    n = data.draw(st.integers(1, len(values)))
    assert best_of_n(proxy, gold, n) == pytest.approx(brute(proxy, gold, n), abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_weights_are_those_of_the_formula(candidates, data):
    n = data.draw(st.integers(1, candidates))
    found = weights(candidates, n)
    exact = [math.comb(i - 1, n - 1) / math.comb(candidates, n) for i in range(1, candidates + 1)]
    assert found == pytest.approx(exact, rel=1e-9, abs=1e-300)
    assert found.sum() == pytest.approx(1.0)


@settings(deadline=None)
@given(VALUES)
def test_one_is_the_mean_all_is_the_top_and_order_does_not_matter(values):
    proxy, gold = zip(*values, strict=True)
    assert best_of_n(proxy, gold, 1) == pytest.approx(np.mean(gold), abs=1e-9)
    top = max(proxy)
    expected = np.mean([g for p, g in values if p == top])
    assert best_of_n(proxy, gold, len(values)) == pytest.approx(expected, abs=1e-9)
    assert best_of_n(proxy[::-1], gold[::-1], 1) == pytest.approx(best_of_n(proxy, gold, 1))


def test_unbiased_over_samples():
    # Best of 2 of two independent coins by themselves: 3/4; from samples of four.
    rng = np.random.default_rng(1)
    coins = rng.integers(0, 2, size=(20_000, 4)).astype(float)
    found = np.mean([best_of_n(row, row, 2) for row in coins])
    assert found == pytest.approx(0.75, abs=0.01)


def test_bound_by_hand():
    assert kl_bound(1) == 0.0
    assert kl_bound(64) == pytest.approx(math.log(64) - 63 / 64)


def test_curve_of_a_perfect_and_of_a_misled_proxy():
    gold = [[float(g) for g in range(8)] for _ in range(5)]
    perfect = curve(gold, gold)
    assert [point["n"] for point in perfect["points"]] == [1, 2, 3, 4, 6, 8]
    assert perfect["points"][-1]["gold"] == 7.0 and perfect["share_of_ceiling"] == 1.0
    assert not perfect["over_optimised"] and perfect["peak"] == 8
    # A proxy that is right but for its favourite: better at first, worse in the end.
    misled = [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]] * 5
    fooled = [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -k / 10] for k in range(5)]
    found = curve(misled, fooled)
    assert 1 < found["peak"] < 8 and found["over_optimised"] and found["fall"] < 0


def test_curve_counts_what_it_leaves_out():
    found = curve([[1.0, math.nan, 2.0], [1.0, 2.0]], [[1.0, 1.0, 3.0], [math.nan, 2.0]])
    assert (found["left_out"], found["prompts_left_out"], found["prompts"]) == (2, 1, 1)
    assert found["largest"] == 2 and found["points"][0]["gold"] == 2.0
    assert curve([[1.0]], [[1.0]])["points"] == []


def test_short_lists_can_be_left_out():
    gold = [[0.0, 1.0], [0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 4.0, 6.0]]
    assert curve(gold, gold)["largest"] == 2
    found = curve(gold, gold, smallest=3)
    assert (found["largest"], found["prompts"], found["prompts_left_out"]) == (4, 2, 1)
    assert found["points"][-1]["gold"] == 4.5


def test_lists_of_one_prompt_are_not_independent():
    gold = [[0.0, 1.0], [0.0, 2.0], [0.0, 4.0], [0.0, 5.0]]
    alone = curve(gold, gold)
    shared = curve(gold, gold, groups=["p", "p", "q", "q"])
    top, same = alone["points"][-1], shared["points"][-1]
    assert (top["gold"], same["gold"]) == (3.0, 3.0)
    # Prompts with means 1.5 and 4.5: a t interval of two values.
    half = float(stats.t.ppf(0.975, 1)) * 1.5
    assert same["gold_ci"] == pytest.approx((3.0 - half, 3.0 + half))
    assert same["gold_ci"][0] < top["gold_ci"][0]
    # Unequal numbers of lists move no mean.
    assert curve(gold, gold, groups=["p", "q", "q", "q"])["points"][-1]["gold"] == 3.0


def test_one_prompt_has_no_interval_and_over_optimises_nothing():
    found = curve([[1.0, 2.0, 3.0]], [[1.0, 3.0, 2.0]])
    assert found["peak"] == 2 and found["fall"] < 0
    assert not found["over_optimised"] and found["fall_ci"] is None
    assert found["points"][0]["gold_ci"] is None


def test_curve_says_what_ends_it():
    found = curve([[1.0, 2.0], [1.0] * 9], [[1.0, 2.0], [1.0] * 9])
    assert (found["largest"], found["fewest"], found["most"]) == (2, 2, 9)


def test_impossible_draws_are_refused():
    for n in (0, 4):
        with pytest.raises(ValueError, match="of 3"):
            weights(3, n)
