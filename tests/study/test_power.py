"""Power against statsmodels' t tests, the noncentral t, and its own definition."""

from __future__ import annotations

import math

import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from palate.study.crossed import Spread
from palate.study.power import (
    detectable,
    items_needed,
    planned_detectable,
    planned_power,
    seeds_needed,
)

SPREAD = Spread(seeds=0.02, items=0.5, residual=1.0, paired=True)


@pytest.mark.parametrize("seeds", [3, 5, 20])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_smallest_effect_seen_is_statsmodels(seeds, power):
    expected = TTestPower().solve_power(nobs=seeds, alpha=0.05, power=power)
    result = detectable(1 / math.sqrt(seeds), seeds - 1, power=power)
    assert result == pytest.approx(expected, rel=1e-3)


def test_one_degree_of_freedom_is_no_hurdle():
    assert detectable(1.0, 1.0) == pytest.approx(16.1, abs=0.3)


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_paired_seeds_alone_are_the_noncentral_t(seeds):
    error = math.sqrt((0.02 + 1.0 / 60) / seeds)
    for difference in (error, 3 * error, 5 * error):
        expected = stats.nct.sf(stats.t.ppf(0.975, seeds - 1), seeds - 1, difference / error)
        result = planned_power(SPREAD, -difference, seeds=seeds, items=60, estimand="these items")
        assert result == pytest.approx(expected, abs=2e-3)


def test_items_alone_are_the_noncentral_t():
    spread = Spread(seeds=0.0, items=2.0, residual=0.0, paired=True)
    error = math.sqrt(2.0 / 12)
    expected = stats.nct.sf(stats.t.ppf(0.975, 11), 11, 3.0)
    result = planned_power(spread, 3 * error, seeds=4, items=12, estimand="new items")
    assert result == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("estimand", ["these items", "new items"])
def test_the_fewest_seeds_are_enough_and_one_less_is_not(paired, estimand):
    spread = Spread(seeds=0.02, items=0.5, residual=1.0, paired=paired)
    plan = {"items": 200, "estimand": estimand}
    seeds = seeds_needed(spread, 0.2, **plan)
    assert 4 < seeds < 30
    assert planned_power(spread, 0.2, seeds=seeds, **plan) >= 0.8
    assert planned_power(spread, 0.2, seeds=seeds - 1, **plan) < 0.8
    size = planned_detectable(spread, seeds=seeds, **plan)
    assert size <= 0.2
    assert planned_power(spread, size, seeds=seeds, **plan) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("paired", [True, False])
def test_with_many_of_both_it_is_the_normal_formula(paired):
    spread = Spread(seeds=1e-3, items=2.0, residual=100.0, paired=paired)
    error = math.sqrt(1e-3 / 400 + 2.0 / 3000 + 100.0 / 400 / 3000)
    size = planned_detectable(spread, seeds=400, items=3000, estimand="new items")
    assert size == pytest.approx((1.9600 + 0.8416) * error, rel=0.01)


def test_seeds_cannot_make_up_for_items():
    assert seeds_needed(SPREAD, 0.05, items=60, estimand="new items") is None
    items = items_needed(SPREAD, 0.3, seeds=8)
    assert items is not None
    plan = {"seeds": 8, "estimand": "new items"}
    assert planned_power(SPREAD, 0.3, items=items, **plan) >= 0.8
    assert planned_power(SPREAD, 0.3, items=items - 1, **plan) < 0.8
    assert items_needed(SPREAD, 0.02, seeds=8) is None


def test_nothing_needs_no_seeds_and_no_variance_needs_two():
    still = Spread(seeds=0.0, items=0.0, residual=0.0, paired=True)
    assert seeds_needed(SPREAD, 0.0, items=60, estimand="new items") is None
    assert seeds_needed(still, 0.1, items=60, estimand="new items") == 2
