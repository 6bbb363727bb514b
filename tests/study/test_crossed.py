"""The variance of a difference against t tests, an analysis of variance and its own definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from palate.study.crossed import estimate, spread


@pytest.fixture
def outcomes():
    rng = np.random.default_rng(0)
    item = rng.normal(0, 1, (1, 12))
    a = item + rng.normal(0, 0.3, (4, 1)) + rng.normal(0, 1, (4, 12)) + rng.normal(0, 0.6, (1, 12))
    b = item + rng.normal(0, 0.3, (4, 1)) + rng.normal(0, 1, (4, 12)) + rng.normal(0, 0.6, (1, 12))
    return a, b


@pytest.mark.parametrize("paired", [True, False])
def test_these_items_are_ts_of_seed_means(outcomes, paired):
    a, b = outcomes
    b = b if paired else b[:3]
    x, y = a.mean(1), b.mean(1)
    expected = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
    result = estimate(a, b, paired=paired, estimand="these items")
    assert result.p_value() == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.9)
    assert result.difference == pytest.approx((low + high) / 2)
    assert result.half_width(0.9) == pytest.approx((high - low) / 2)
    assert result.df(0.9) == pytest.approx(expected.df)


def test_new_items_are_the_mean_squares_of_an_analysis_of_variance(outcomes):
    import pandas as pd
    import statsmodels.api as sm
    import statsmodels.formula.api as smf

    a, b = outcomes
    seeds, items = a.shape
    table = pd.DataFrame(
        {
            "y": (a - b).ravel(),
            "seed": np.repeat(np.arange(seeds), items),
            "item": np.tile(np.arange(items), seeds),
        }
    )
    anova = sm.stats.anova_lm(smf.ols("y ~ C(seed) + C(item)", table).fit())
    squares = anova["mean_sq"].to_numpy() / (seeds * items)
    result = estimate(a, b, paired=True, estimand="new items")
    across = max(0, squares[1] - squares[2])
    assert across > 0
    assert result.standard_error == pytest.approx(np.sqrt(squares[0] + across))
    t = stats.t.ppf(0.975, [seeds - 1, items - 1])
    half = np.sqrt(t[0] ** 2 * squares[0] + t[1] ** 2 * across)
    assert result.half_width(0.95) == pytest.approx(half)
    assert stats.t.ppf(0.975, result.df(0.95)) * result.standard_error == pytest.approx(half)
    parts = spread(a, b, paired=True)
    assert parts.residual == pytest.approx(anova["mean_sq"].iloc[2])
    assert parts.items == pytest.approx((anova["mean_sq"].iloc[1] - parts.residual) / seeds)
    assert parts.seeds == pytest.approx(
        max(0, (anova["mean_sq"].iloc[0] - parts.residual) / items), abs=1e-12
    )


@pytest.mark.parametrize("paired", [True, False])
def test_the_p_value_is_where_the_interval_meets_zero(outcomes, paired):
    a, b = outcomes
    result = estimate(a + 1.5, b, paired=paired, estimand="new items")
    confidence = 1 - float(result.p_value())
    assert 0.5 < confidence < 1
    assert result.half_width(confidence) == pytest.approx(abs(result.difference))


def test_where_only_items_vary_it_is_t_over_items(outcomes):
    a, b = (np.repeat(x[:1], 3, axis=0) for x in outcomes)
    expected = stats.ttest_rel(a[0], b[0])
    for paired in (True, False):
        result = estimate(a, b, paired=paired, estimand="new items")
        assert result.p_value() == pytest.approx(expected.pvalue)
        assert result.df(0.95) == pytest.approx(11, rel=1e-3)


def test_a_negative_component_of_items_adds_nothing():
    rng = np.random.default_rng(3)
    a = rng.normal(0, 1, (3, 40))
    a = a - a.mean(0)
    b = rng.normal(0, 1e-9, (3, 40))
    new = estimate(a, b, paired=True, estimand="new items")
    these = estimate(a, b, paired=True, estimand="these items")
    assert spread(a, b, paired=True).items == 0
    assert new.half_width(0.95) == pytest.approx(these.half_width(0.95))


def test_seeds_with_equal_means_still_vary():
    a = np.array([[1.0, 0, 0, 1], [0, 1, 1, 0], [1, 0, 1, 0]])
    result = estimate(a, np.zeros_like(a), paired=True, estimand="these items")
    assert result.standard_error > 0.1
    assert 0 < result.p_value() < 1


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("estimand", ["these items", "new items"])
def test_many_studies_at_once_are_each_alone(paired, estimand):
    rng = np.random.default_rng(5)
    a, b = rng.normal(0, 1, (2, 6, 3, 20))
    together = estimate(a, b, paired=paired, estimand=estimand)
    for k in range(6):
        alone = estimate(a[k], b[k], paired=paired, estimand=estimand)
        assert together.p_value()[k] == pytest.approx(float(alone.p_value()))
        assert together.half_width(0.99)[k] == pytest.approx(float(alone.half_width(0.99)))


def test_unpaired_components_are_of_variants_together():
    rng = np.random.default_rng(6)
    a = rng.normal(0, 0.5, (300, 1)) + rng.normal(0, 1, (1, 300)) + rng.normal(0, 2, (300, 300))
    b = rng.normal(0, 0.7, (300, 1)) + rng.normal(0, 1, (1, 300)) + rng.normal(0, 1, (300, 300))
    parts = spread(a, b, paired=False)
    assert parts.seeds == pytest.approx(0.25 + 0.49, rel=0.2)
    assert parts.items == pytest.approx(2.0, rel=0.2)
    assert parts.residual == pytest.approx(5.0, rel=0.02)
