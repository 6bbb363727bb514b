"""Simulated studies of known effects: a fast part of benchmarks/study_statistics.py.

Limits are those of the full run, 92 to 98%, widened by three standard errors of the fewer
simulations here.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "study_statistics.py"
SIMULATIONS = 600


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("study_statistics", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["study_statistics"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["study_statistics"]


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def holds(share, simulations=SIMULATIONS):
    margin = 3 * np.sqrt(0.05 * 0.95 / simulations)
    return 0.92 - margin <= share <= min(1.0, 0.98 + margin)


@pytest.mark.parametrize("ratio", ["items", "seeds", "residual", "even", "seeds tenfold"])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("binary", [True, False])
def test_intervals_hold_both_estimands_at_three_seeds(script, rng, ratio, paired, binary):
    these, new = script.coverage(
        rng, script.RATIOS[ratio], SIMULATIONS, seeds=3, items=60, paired=paired, binary=binary
    )
    assert holds(these) and holds(new), (these, new)


def test_a_percentile_bootstrap_of_few_seeds_does_not(script, rng):
    assert script.percentile_coverage(rng, SIMULATIONS, 3) < 0.80
    assert script.percentile_coverage(rng, SIMULATIONS, 5) < 0.88


@pytest.mark.parametrize("items", [60, 500])
def test_false_differences_come_at_most_at_the_stated_rate(script, rng, items):
    for real in (0, 5):
        rates = script.families(rng, 60, seeds=3, items=items, real=real)
        # Four or more of 60 families, three standard errors above 5%, would be 13%.
        assert rates.family_wise <= 0.13 and rates.false_discoveries <= 0.13
        assert rates.all_hold >= 0.87 and rates.selected_miss <= 0.13


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("estimand", "effect"), [("these items", 0.3), ("new items", 0.5)])
def test_power_is_what_was_planned(script, rng, paired, estimand, effect):
    for seeds in (3, 5):
        predicted, simulated = script.power_pair(
            rng, script.RATIOS["even"], SIMULATIONS, seeds=seeds, items=60, paired=paired,
            estimand=estimand, effect=effect,
        )  # fmt: skip
        assert 0.1 < predicted < 0.99
        assert abs(predicted - simulated) < 0.10


@pytest.mark.parametrize("sizes", ["some", "most"])
def test_intervals_of_shares_hold(script, rng, sizes):
    held = script.shares_coverage(rng, 100, "3 x 2", script.SIZES[sizes], seeds=3)
    assert set(held) == {"aspect 0", "aspect 1", "aspect 0 x aspect 1", "seeds"}
    assert all(holds(share, 100) for share in held.values()), held


@pytest.mark.parametrize("items", [60, 500])
def test_intervals_of_ratings_hold(script, rng, items):
    ratings = np.array([1.0, 0.3, -0.3, -1.0])
    single, pair = script.ratings_coverage(rng, 2000, ratings, items=items, tie=0.5)
    assert holds(single, 2000) and holds(pair, 2000)


def test_dependent_outcomes_need_their_items(script, rng):
    information, items = script.clustered_ratings_coverage(rng, 60, items=60)
    assert holds(items, 60) and information < items


def test_intervals_of_correlations_hold_at_eight_runs(script, rng):
    for share in script.correlation_coverage(rng, SIMULATIONS, runs=8, rho=0.5):
        assert holds(share)


def test_intervals_of_a_bootstrap_over_items_hold(script, rng):
    assert holds(script.one_seed_coverage(rng, 100, items=60, binary=False), 100)


def test_intervals_of_length_controlled_win_rates_hold(script, rng):
    assert holds(script.length_coverage(rng, 150, items=60), 150)
