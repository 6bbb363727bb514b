"""Correlations of few runs against enumeration and Fisher's transformation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from palate.errors import PalateError
from palate.study.correlation import correlate


def test_both_correlations_and_their_p_values():
    x, y = np.random.default_rng(0).normal(0, 1, (2, 6))
    y = y + x
    result = correlate(x, y, names=("accuracy", "win rate"))
    r = np.corrcoef(x, y)[0, 1]
    assert result.pearson == pytest.approx(r)
    half = 1.959964 / np.sqrt(3)
    expected = np.tanh([np.arctanh(r) - half, np.arctanh(r) + half])
    assert result.pearson_interval == pytest.approx(tuple(expected), abs=1e-6)
    assert result.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    ranks = stats.rankdata(x)
    observed = abs(np.corrcoef(ranks, stats.rankdata(y))[0, 1])
    orders = [abs(np.corrcoef(ranks, p)[0, 1]) for p in permutations(range(1, 7))]
    share = np.mean(np.array(orders) >= observed - 1e-9)
    assert result.spearman_p == pytest.approx(share)
    assert result.words.startswith("accuracy and win rate over 6 runs: rank correlation ")


def test_of_more_runs_the_rank_p_value_is_of_t():
    x, y = np.random.default_rng(0).normal(0, 1, (2, 12))
    assert correlate(x, y).spearman_p == pytest.approx(stats.spearmanr(x, y).pvalue)


def test_a_perfect_order_of_few_runs_proves_little():
    result = correlate([1, 2, 3, 4], [2, 4, 9, 16])
    low, high = result.spearman_interval
    assert result.spearman == 1 and high == 1 and low < 0
    assert result.spearman_p == pytest.approx(2 / 24)
    assert result.words.endswith("; not distinguishable from none")
    low, high = correlate([1, 2, 3, 4], [16, 9, 4, 2]).spearman_interval
    assert low == -1 and high > 0


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1, 2, 3], [1, 2, 3], "3 runs are too few to say how x and y go"),
        ([1, 1, 1, 1], [1, 2, 3, 4], "x is the same in all 4 runs"),
        ([1, 2, 3, 4], [0, 0, 0, 0], "y is the same in all 4 runs"),
    ],
)
def test_where_there_is_none_there_are_words(x, y, words):
    result = correlate(x, y)
    assert result.words.startswith(words)
    assert result.pearson is None and result.spearman_interval is None


def test_measures_of_different_runs_are_refused():
    with pytest.raises(PalateError, match="of the same runs"):
        correlate([1, 2, 3], [1, 2])
    with pytest.raises(PalateError, match="finite"):
        correlate([1, 2, np.nan, 4], [1, 2, 3, 4])
