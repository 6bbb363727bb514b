"""What a comparison says, in numbers and in words."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from palate.errors import PalateError
from palate.study.comparison import compare
from palate.study.resampled import bootstrap_items

NAMES = ("TDPO2", "DPO")


def outcomes(seeds, items, effect, *, seed=0, between=0.05, residual=1.0):
    """Two variants whose items have the same difficulty."""
    rng = np.random.default_rng(seed)
    item = rng.normal(0, 1, (1, items))

    def variant(level):
        runs = rng.normal(0, between, (seeds, 1)) + rng.normal(0, residual, (seeds, items))
        return level + item + runs

    return variant(effect), variant(0.0)


def test_a_clear_difference_is_named_with_its_interval():
    a, b = outcomes(5, 200, 0.5)
    result = compare(a, b, names=NAMES, paired=True, estimand="these items")
    expected = stats.ttest_rel(a.mean(1), b.mean(1))
    low, high = expected.confidence_interval(0.95)
    assert result.interval == pytest.approx((low, high))
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.means == pytest.approx((a.mean(), b.mean()))
    assert result.distinguished and result.equivalent is None
    assert result.verdict == (
        f"TDPO2 is better than DPO by {result.difference:.2f} [{low:.2f}, {high:.2f}] "
        "(95% interval, these items, 5 paired seeds, 200 items)."
    )


def test_the_winner_is_named_first_and_lower_may_be_better():
    a, b = outcomes(5, 200, -0.5)
    options = {"names": NAMES, "paired": True, "estimand": "new items"}
    result = compare(a, b, **options)
    assert result.interval[1] < 0
    low, high = result.interval
    assert result.verdict.startswith(
        f"DPO is better than TDPO2 by {-result.difference:.2f} [{-high:.2f}, {-low:.2f}] (95%"
    )
    lower = compare(a, b, direction="lower", **options).verdict
    assert lower.startswith("TDPO2 is better (lower) than DPO: -0.")
    assert compare(a, b, direction="neither", **options).verdict.startswith("DPO is higher than")


def test_what_is_not_seen_says_what_would_have_been():
    a, b = outcomes(3, 60, 0.05)
    result = compare(a, b, names=NAMES, paired=True, estimand="these items")
    assert not result.distinguished
    assert result.detectable > abs(result.difference) > 0
    assert result.seeds_needed > 3
    words = result.verdict
    assert words.startswith("TDPO2 and DPO are not distinguishable: TDPO2 - DPO = ")
    assert "would have been seen with 80% power" in words
    assert f"; {result.seeds_needed} seeds would settle a difference of this size" in words
    assert result.items_needed is None


def test_items_that_are_too_few_are_said():
    rng = np.random.default_rng(1)
    item = rng.normal(0, 1, (1, 60))
    a = item * 0.5 + rng.normal(0, 0.01, (4, 60)) + 0.01
    b = -item * 0.5 + rng.normal(0, 0.01, (4, 60))
    result = compare(a - item.mean(), b, paired=True, estimand="new items")
    assert result.seeds_needed is None and result.items_needed > 1000
    assert "not even 1000 seeds" in result.verdict
    assert f"but {result.items_needed} items would" in result.verdict


@pytest.mark.parametrize(
    ("effect", "sesoi", "equivalent", "words"),
    [
        (0.02, 2.0, True, "; smaller than what matters (2)"),
        (0.02, 0.03, False, "; whether it is what matters (0.03) stays open"),
        (3.0, 0.5, False, "; at least what matters (0.5)"),
        (0.5, 2.0, True, "; smaller than what matters (2)"),
    ],
)
def test_against_what_matters(effect, sesoi, equivalent, words):
    a, b = outcomes(6, 200, effect)
    result = compare(a, b, paired=True, estimand="new items", sesoi=sesoi)
    assert result.equivalent is equivalent
    assert words in result.verdict


def test_one_seed_has_no_interval_on_these_items():
    a, b = outcomes(1, 60, 0.5)
    result = compare(a, b, names=NAMES, paired=True, estimand="these items")
    assert result.interval is None and result.p_value is None and result.detectable is None
    assert result.distinguished is None and result.equivalent is None
    assert result.effect_size is None
    assert "TDPO2 is 0." in result.verdict and "without an interval" in result.verdict
    # Nor does one side of many seeds make up for the one seed of the opposite side.
    many, _ = outcomes(4, 60, 0.5)
    assert compare(many, b, paired=False, estimand="these items").interval is None


def test_one_seed_resamples_items_and_says_what_it_holds_for():
    a, b = outcomes(1, 80, 0.6)
    result = compare(a, b, names=NAMES, paired=True, estimand="new items")
    expected = stats.bootstrap(
        (a[0] - b[0],), np.mean, method="BCa", rng=np.random.default_rng(9)
    ).confidence_interval
    assert result.interval == pytest.approx((expected.low, expected.high), abs=0.02)
    assert result.interval == pytest.approx(
        stats.ttest_rel(a[0], b[0]).confidence_interval(), abs=0.05
    )
    assert "it holds for these trained models only" in result.verdict
    assert result == compare(a, b, names=NAMES, paired=True, estimand="new items")
    few = compare(a[:, :8], b[:, :8], paired=True, estimand="new items")
    t = stats.ttest_rel(a[0, :8], b[0, :8])
    assert few.interval == pytest.approx(t.confidence_interval())
    assert few.p_value == pytest.approx(t.pvalue)


def test_the_p_value_of_the_bootstrap_is_where_its_interval_meets_zero():
    rng = np.random.default_rng(2)
    differences = rng.exponential(1, 60) - 0.72
    _, p_value = bootstrap_items(differences)
    assert 0.001 < p_value < 0.2
    low, high = bootstrap_items(differences, 1 - p_value)[0]
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=0.01)


def test_a_model_without_training_is_repeated():
    a, base = outcomes(4, 50, 0.4)
    result = compare(a, np.repeat(base[:1], 4, 0), paired=True, estimand="these items")
    expected = stats.ttest_1samp(a.mean(1) - base[0].mean(), 0)
    assert result.p_value == pytest.approx(expected.pvalue)


def test_clusters_are_the_unit():
    a, b = outcomes(3, 30, 0.3)
    options = {"paired": True, "estimand": "new items"}
    alone = compare(a, b, **options)
    clusters = [f"prompt {i}" for i in range(30) for _ in range(5)]
    repeated = compare(np.repeat(a, 5, 1), np.repeat(b, 5, 1), clusters=clusters, **options)
    assert repeated.items == 30 and repeated.clustered
    assert repeated.interval == pytest.approx(alone.interval)
    assert "30 prompts" in repeated.verdict


def test_clusters_of_unequal_size_leave_the_means_of_items():
    """The interval is that of a mean whose clusters are drawn: by the linearised ratio, of one
    seed, as a survey's clusters have it."""
    a, b = outcomes(1, 40, 0.3)
    sizes = [1, 3, 8, 4, 4, 2, 6, 5, 7]
    clusters = np.repeat(np.arange(9), sizes).tolist()
    result = compare(a, b, clusters=clusters, paired=True, estimand="new items")
    assert result.means == pytest.approx((a.mean(), b.mean())) and result.items == 9
    rest = (a - b)[0] - (a - b).mean()
    sums = np.array([rest[np.array(clusters) == c].sum() for c in range(9)])
    error = np.sqrt(9 / 8 * (sums**2).sum()) / 40
    assert result.standard_error == pytest.approx(error)
    half = stats.t.ppf(0.975, 8) * error
    difference = (a - b).mean()
    assert result.interval == pytest.approx((difference - half, difference + half))


def test_effect_sizes_are_hedges_g():
    a, b = outcomes(4, 30, 0.5)
    these = compare(a, b, paired=False, estimand="these items")
    x, y = a.mean(1), b.mean(1)
    d = (x.mean() - y.mean()) / math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
    # Hedges' usual approximation of the correction.
    assert these.effect_size == pytest.approx(d * (1 - 3 / (4 * 6 - 1)), rel=2e-3)
    assert "of a seed's mean" in these.effect_size_by
    new = compare(a, b, paired=False, estimand="new items")
    sd = math.sqrt((a.var(1, ddof=1).mean() + b.var(1, ddof=1).mean()) / 2)
    assert new.effect_size == pytest.approx(
        (a.mean() - b.mean()) / sd * (1 - 3 / (4 * 58 - 1)), rel=1e-4
    )


def test_equal_outcomes_are_said_to_be_the_same():
    a, _ = outcomes(3, 20, 0.0)
    for estimand in ("these items", "new items"):
        result = compare(a, a, names=NAMES, paired=True, estimand=estimand)
        assert result.interval == (0.0, 0.0) and result.p_value == 1.0
        assert result.verdict.startswith("TDPO2 and DPO have the same outcomes (")


def test_a_record_is_json():
    a, b = outcomes(3, 20, 0.1)
    result = compare(a, b, paired=True, estimand="new items", sesoi=0.5)
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    assert record["verdict"] == result.verdict
    assert record["interval"] == list(result.interval)
    assert record["spread"]["residual"] == result.spread.residual


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros(3)}, "shape"),
        ({"a": np.full((3, 4), np.nan)}, "12 of 12 outcomes are not finite"),
        ({"a": np.zeros((3, 5))}, "5 items and B 4"),
        ({"a": np.zeros((2, 4))}, "2 seeds and B 3"),
        ({"estimand": "all items"}, "'these items' or 'new items'"),
        ({"sesoi": 0.0}, "sesoi 0.0"),
        ({"confidence": 95}, "confidence 95"),
        ({"clusters": ["x"] * 3}, "3 clusters of 4 items"),
        ({"clusters": ["x"] * 4}, "two clusters"),
        ({"a": np.zeros((3, 1)), "b": np.zeros((3, 1))}, "two items"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    options = {"a": np.zeros((3, 4)), "b": np.ones((3, 4)), "paired": True, "estimand": "new items"}
    with pytest.raises(PalateError, match=message):
        compare(**(options | change))
