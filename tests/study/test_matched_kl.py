"""Rewards read at the same KL lie on the frontiers, and never beyond them."""

from __future__ import annotations

import numpy as np
import pytest

from palate.errors import PalateError
from palate.evaluate.matched_kl import common_range, reward_at
from palate.study.comparison import compare
from palate.study.matched_kl import Frontier, at_matched_kl


def frontier(kl, slope, bumps=(0.0,)):
    kl = np.array(kl, dtype=float)
    return Frontier(kl=kl, reward=slope * kl[:, None] + np.array(bumps)[None])


def test_reward_lies_on_straight_lines_in_order_of_kl():
    kl, reward = np.array([4.0, 1.0, 2.0]), np.array([[8.0, 0.0], [1.0, 0.0], [4.0, 3.0]])
    at = np.array([1.0, 1.5, 2.0, 3.0, 4.0])
    assert reward_at(kl, reward, at)[:, 0].tolist() == [1.0, 2.5, 4.0, 6.0, 8.0]
    assert reward_at(kl, reward, at)[:, 1].tolist() == [0.0, 1.5, 3.0, 1.5, 0.0]
    assert reward_at(kl, reward[:, 0], at).tolist() == [1.0, 2.5, 4.0, 6.0, 8.0]


def test_the_range_is_what_all_have_measured():
    assert common_range(np.array(x) for x in ([1.0, 5, 3], [2.0, 9], [4.0, 0])) == (2.0, 4.0)
    assert common_range(np.array(x) for x in ([1.0, 2], [2.0, 3])) is None


def test_matched_rewards_differ_by_the_slopes_and_not_by_how_far_runs_went():
    bumps = np.random.default_rng(0).normal(0, 1, 40)
    matched = at_matched_kl(
        {
            # Further on, and so higher at the end, but lower at every KL.
            "far": [frontier([1, 4, 9], s, bumps) for s in (0.10, 0.11, 0.09)],
            "near": [frontier([0.5, 2, 3], s, bumps) for s in (0.20, 0.21, 0.19)],
        },
        points=5,
    )
    assert matched.span == (1.0, 3.0)
    assert matched.at.tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert matched.rewards["far"].shape == (3, 5, 40)
    assert matched.rewards["near"][0].mean(1) - bumps.mean() == pytest.approx(0.2 * matched.at)
    near, far = matched.outcomes("near"), matched.outcomes("far")
    result = compare(near, far, names=("near", "far"), paired=True, estimand="new items")
    assert result.difference == pytest.approx(0.1 * 2.0)
    assert result.verdict.startswith("near is better than far by 0.2")


def test_means_without_items_are_one_item():
    runs = [Frontier(kl=np.array([1.0, 2.0]), reward=np.array([0.0, 1.0]))] * 2
    matched = at_matched_kl({"a": runs, "b": runs}, points=3)
    assert matched.outcomes("a").tolist() == [[0.5], [0.5]]


def test_without_a_common_range_nothing_is_read():
    with pytest.raises(PalateError, match=r"a from 1 to 2, b from 3 to 4 nats"):
        at_matched_kl({"a": [frontier([1, 2], 1)], "b": [frontier([3, 4], 1)]})
    with pytest.raises(PalateError, match="b: give a frontier of each seed"):
        at_matched_kl({"a": [frontier([1, 2], 1)], "b": []})
