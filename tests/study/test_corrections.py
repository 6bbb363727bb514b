"""Families of comparisons against hand-made numbers and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from palate.errors import PalateError
from palate.study.comparison import compare
from palate.study.corrections import adjust, correct


def family(effects, *, confidence=0.95, seeds=5, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.5, (seeds, 100))
    return [
        compare(
            effect + rng.normal(0, 0.5, (seeds, 100)), base, names=(f"v{k}", "base"),
            paired=True, estimand="new items", confidence=confidence,
        )
        for k, effect in enumerate(effects)
    ]  # fmt: skip


def test_holm_and_bh_by_hand():
    p = [0.04, 0.01, 0.02, 0.5]
    # Holm: 4 * 0.01, 3 * 0.02, 2 * 0.04, 1 * 0.5, never less than the one before.
    assert adjust(p, "holm") == pytest.approx([0.08, 0.04, 0.06, 0.5])
    # BH: 4/1 * 0.01, 4/2 * 0.02, 4/3 * 0.04, 0.5, never more than the one after.
    assert adjust(p, "bh") == pytest.approx([0.16 / 3, 0.04, 0.04, 0.5])


@pytest.mark.parametrize(("method", "theirs"), [("holm", "holm"), ("bh", "fdr_bh")])
def test_decisions_are_statsmodels(method, theirs):
    comparisons = family([0, 0.08, 0.1, 0.5, 0])
    told, adjusted, *_ = multipletests([c.p_value for c in comparisons], 0.05, theirs)
    results = correct(comparisons, method)
    assert [r.p_value for r in results] == pytest.approx(adjusted.tolist())
    assert [r.distinguished for r in results] == told.tolist()
    assert 0 < sum(told) < 5


def test_intervals_hold_for_the_family():
    comparisons = family([0, 0.1, 0.1, 0.5])
    for method, level in (("holm", 0.05 / 4), ("bh", None)):
        results = correct(comparisons, method)
        if level is None:
            level = 0.05 * sum(bool(r.distinguished) for r in results) / 4
        for r in results:
            t = stats.t.isf(level / 2, r.comparison.df) * r.comparison.standard_error
            expected = (r.comparison.difference - t, r.comparison.difference + t)
            assert r.interval == pytest.approx(expected)
            assert r.interval_confidence == pytest.approx(1 - level)
            assert r.interval[0] <= r.comparison.interval[0]


def test_what_a_correction_takes_back_is_said():
    for seed in range(200):
        comparisons = family([0.12, 0, 0, 0, 0, 0], seed=seed)
        if 0.01 < comparisons[0].p_value < 0.05:
            break
    first, *_ = correct(comparisons)
    assert first.comparison.distinguished and not first.distinguished
    assert "not distinguishable once corrected" in first.verdict
    assert first.verdict.endswith("100 items; Holm over 6 comparisons).")


def test_a_comparison_without_a_p_value_counts_for_nothing():
    comparisons = family([0.2, 0.3])
    row = np.ones((1, 100))
    silent = compare(row, row * 0, paired=True, estimand="these items")
    results = correct([silent, *comparisons], "bh")
    assert results[0].p_value is None and results[0].interval is None
    assert "without an interval" in results[0].verdict
    assert [r.p_value for r in results[1:]] == [r.p_value for r in correct(comparisons, "bh")]
    assert correct([]) == [] and correct([silent])[0].distinguished is None


def test_levels_and_methods_must_agree():
    with pytest.raises(PalateError, match=r"confidence \[0.9, 0.95\]"):
        correct([*family([0]), *family([0], confidence=0.9)])
    with pytest.raises(PalateError, match="'holm' or 'bh'"):
        correct(family([0]), "bonferroni")
