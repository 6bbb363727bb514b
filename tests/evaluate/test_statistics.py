"""Intervals against printed or independent values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from palate.evaluate.statistics import (
    bootstrap_rows,
    group_means,
    mean_interval,
    percentile_interval,
)
from palate.intervals import wilson


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (10, 10), (480, 805)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_scipys(right, n, confidence):
    expected = stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson(right, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_mean_interval_is_scipys():
    x = np.random.default_rng(0).normal(2, 3, 40)
    mean, interval = mean_interval(x.tolist(), 0.9)
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert mean == pytest.approx(x.mean())
    assert interval == pytest.approx((expected.low, expected.high))


def test_samples_of_one_prompt_count_once():
    x = [1.0, 2.0, 3.0, 5.0]
    repeated = [value for value in x for _ in range(7)]
    groups = [i for i in range(4) for _ in range(7)]
    assert mean_interval(repeated, groups=groups) == mean_interval(x)
    assert group_means(repeated, groups).tolist() == x


def test_one_or_equal_values_have_no_width():
    assert mean_interval([2.0]) == (2.0, (2.0, 2.0))
    assert mean_interval([0.0, 0.0, 0.0]) == (0.0, (0.0, 0.0))


def test_bootstrap_covers_the_mean():
    x = np.random.default_rng(1).normal(0, 1, 200)
    rows = bootstrap_rows(200, seed=3)
    assert (rows == bootstrap_rows(200, seed=3)).all()
    low, high = percentile_interval(x[rows].mean(1))
    assert (low, high) == pytest.approx(mean_interval(x)[1], abs=0.02)
