"""Davidson ratings against closed forms, a general optimiser, and a logistic regression."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize

from palate.errors import PalateError
from palate.study.ratings import rate


def outcomes(strengths, tie, count, seed=0):
    """`count` outcomes of each pair: first, second, score, item."""
    rng = np.random.default_rng(seed)
    names = [f"p{k}" for k in range(len(strengths))]
    rows = []
    for i, a in enumerate(strengths):
        for j in range(i + 1, len(strengths)):
            p, q = math.exp(a), math.exp(strengths[j])
            cells = np.array([p, q, tie * math.sqrt(p * q)])
            drawn = rng.choice([1.0, 0.0, 0.5], size=count, p=cells / cells.sum())
            rows += [(names[i], names[j], score, k) for k, score in enumerate(drawn)]
    return zip(*rows, strict=True)


def log_likelihood(at, first, second, scores, names):
    ratings = dict(zip(names, at[:-1], strict=True))
    total = 0.0
    for a, b, score in zip(first, second, scores, strict=True):
        x, y = ratings[a], ratings[b]
        middle = at[-1] + (x + y) / 2
        chosen = {1.0: x, 0.0: y, 0.5: middle}[score]
        total += chosen - np.logaddexp(np.logaddexp(x, y), middle)
    return total


def test_it_is_the_maximum_of_the_likelihood_and_its_curvature():
    first, second, scores, _ = outcomes((0.8, 0.1, -0.9), 0.7, 30)
    result = rate(first, second, scores)
    names = result.names

    def loss(at):
        return -log_likelihood(np.append(at, 0)[[0, 1, 3, 2]], first, second, scores, names)

    # The third rating is held at 0, which the sum over ratings is not.
    best = optimize.minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-7})
    ratings = np.append(best.x[:2], 0.0)
    assert result.ratings == pytest.approx(ratings - ratings.mean(), abs=1e-5)
    assert result.tie == pytest.approx(math.exp(best.x[2]), rel=1e-4)
    steps = np.eye(3) * 1e-3
    curvature = np.array(
        [
            [
                (loss(best.x + a + b) - loss(best.x + a - b) - loss(best.x - a + b)
                 + loss(best.x - a - b)) / 4e-6
                for b in steps
            ]
            for a in steps
        ]
    )  # fmt: skip
    difference, interval = result.difference(names[0], names[2])
    assert difference == pytest.approx(best.x[0], abs=1e-5)
    half = 1.959964 * math.sqrt(np.linalg.inv(curvature)[0, 0])
    assert interval == pytest.approx((difference - half, difference + half), abs=1e-4)
    assert result.covariance.sum(0) == pytest.approx(0, abs=1e-9)


def test_two_policies_have_a_closed_form():
    scores = [1.0] * 12 + [0.0] * 4 + [0.5] * 8
    result = rate(["a"] * 24, ["b"] * 24, scores)
    # Shares are fit exactly: odds of winning 12 : 4, and nu = ties / sqrt(wins * losses).
    assert result.difference("a", "b")[0] == pytest.approx(math.log(3))
    assert result.tie == pytest.approx(8 / math.sqrt(48))
    assert result.probabilities("b", "a") == pytest.approx((4 / 24, 8 / 24, 12 / 24))
    assert result.elo(1500)[0] == pytest.approx(1500 + 200 * math.log10(3))
    assert result.outcomes == 24 and not result.regularised


def test_without_ties_it_is_a_logistic_regression():
    import statsmodels.api as sm

    first, second, scores, _ = outcomes((0.5, 0.2, -0.7), 0.0, 40)
    result = rate(first, second, scores)
    names = list(result.names)
    design = np.zeros((len(scores), 3))
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        design[row, names.index(a)], design[row, names.index(b)] = 1, -1
    fit = sm.GLM(np.array(scores), design[:, :2], family=sm.families.Binomial()).fit()
    expected = np.append(fit.params, 0)
    assert result.ratings == pytest.approx(expected - expected.mean(), abs=1e-6)
    assert result.tie == 0
    interval = result.difference(names[0], names[2])[1]
    assert interval == pytest.approx(tuple(fit.conf_int()[0]), abs=1e-6)


def test_order_and_names_do_not_matter():
    first, second, scores, _ = outcomes((0.8, 0.1, -0.9), 0.7, 30)
    straight = rate(first, second, scores)
    swapped = rate(second[::-1], first[::-1], [1 - s for s in scores[::-1]])
    for name in straight.names:
        k, j = straight.names.index(name), swapped.names.index(name)
        assert straight.ratings[k] == pytest.approx(swapped.ratings[j])
        assert straight.intervals[k] == pytest.approx(swapped.intervals[j])


@pytest.mark.parametrize(
    "scores",
    [
        [1.0] * 8,
        # Won and tied: the odds of a tie bound nothing, since nu may grow as well.
        [1.0] * 5 + [0.5] * 3,
        [0.5] * 8,
    ],
)
def test_without_a_maximum_half_wins_are_added_and_said(scores):
    result = rate(["a"] * 8, ["b"] * 8, scores)
    assert result.regularised
    assert np.isfinite(result.ratings).all() and np.isfinite(result.covariance).all()
    wins = scores.count(1.0)
    assert result.difference("a", "b")[0] == pytest.approx(math.log((wins + 0.5) / 0.5))


def test_a_policy_that_never_loses_leaves_the_rest_comparable():
    first, second, scores, _ = outcomes((0.3, -0.3), 0.5, 40)
    first = [*first, *["best"] * 20]
    second = [*second, *["p0"] * 20]
    result = rate(first, second, [*scores, *[1.0] * 20])
    assert result.regularised and result.names[int(result.ratings.argmax())] == "best"
    alone = rate(*(x[:40] for x in (first, second, scores)))
    gap, _ = result.difference("p0", "p1")
    assert gap == pytest.approx(alone.difference("p0", "p1")[0], abs=0.1)


def test_resampling_items_counts_an_item_once():
    first, second, scores, items = outcomes((0.5, 0.0, -0.5), 0.5, 40)
    alone = rate(first, second, scores, items=items)
    five = [list(x) * 5 for x in (first, second, scores, items)]
    repeated = rate(*five[:3], items=five[3])
    information = rate(*five[:3])
    width = [high - low for low, high in alone.intervals]
    assert [h - low for low, h in repeated.intervals] == pytest.approx(width, rel=0.15)
    narrow = [high - low for low, high in information.intervals]
    assert np.array(narrow) == pytest.approx(np.array(width) / math.sqrt(5), rel=0.25)
    assert "40 items" in repeated.method


def test_what_cannot_be_rated_is_refused():
    with pytest.raises(PalateError, match="c, d never met a"):
        rate(["a", "c"], ["b", "d"], [1, 0])
    with pytest.raises(PalateError, match=r"score 0.7"):
        rate(["a"], ["b"], [0.7])
    with pytest.raises(PalateError, match="a is compared with itself"):
        rate(["a"], ["a"], [1])
    with pytest.raises(PalateError, match="1 first and 1 second policies and 2 scores"):
        rate(["a"], ["b"], [1, 0])
    with pytest.raises(PalateError, match="9 different"):
        rate(["a"] * 9, ["b"] * 9, [1, 0, 1, 0, 1, 0, 1, 0, 1], items=list(range(9)))
