"""Shares of variance against an analysis of variance and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from palate.errors import PalateError
from palate.study.variance import variance_shares


def grid(data, algorithms, seeds):
    rows = [(d, a) for d in data for a in algorithms for _ in range(seeds)]
    return {"data": [d for d, _ in rows], "algorithm": [a for _, a in rows]}


def noisy(levels, seed=0):
    rng = np.random.default_rng(seed)
    values = {"x": 0.0, "y": 1.0, "z": 2.0, "dpo": 0.0, "tdpo2": 0.6}
    pairs = zip(levels["data"], levels["algorithm"], strict=True)
    return np.array([values[d] + values[a] + rng.normal(0, 0.5) for d, a in pairs])


def anova(y, levels):
    import pandas as pd
    import statsmodels.api as sm
    import statsmodels.formula.api as smf

    table = pd.DataFrame({"y": y, **levels})
    return sm.stats.anova_lm(smf.ols("y ~ C(data) * C(algorithm)", table).fit(), typ=2)


@pytest.mark.parametrize("missing", [[], [0, 7, 17]])
def test_sums_of_squares_are_statsmodels_type_two(missing):
    levels = grid("xyz", ["dpo", "tdpo2"], 3)
    y = noisy(levels)
    kept = [i for i in range(len(y)) if i not in missing]
    levels = {name: [values[i] for i in kept] for name, values in levels.items()}
    y = y[kept]
    table = anova(y, levels)
    result = variance_shares(y, levels)
    assert [s.term for s in result.shares] == ["data", "algorithm", "data x algorithm", "seeds"]
    assert [s.df for s in result.shares] == table["df"].tolist()
    assert [s.p_value for s in result.shares[:-1]] == pytest.approx(table["PR(>F)"][:-1].tolist())
    error = table["sum_sq"].iloc[-1] / table["df"].iloc[-1]
    parts = np.maximum(0, (table["sum_sq"] - table["df"] * error)[:-1].to_numpy()) / len(y)
    shares = np.append(parts, error) / (parts.sum() + error)
    assert [s.share for s in result.shares] == pytest.approx(shares.tolist())
    assert sum(s.share for s in result.shares) == pytest.approx(1)


def test_in_a_balanced_grid_shares_are_omega_squared():
    levels = grid("xyz", ["dpo", "tdpo2"], 4)
    for seed in range(20):
        y = noisy(levels, seed)
        result = variance_shares(y, levels)
        if not any(s.clipped for s in result.shares):
            break
    table = anova(y, levels)
    error = table["sum_sq"].iloc[-1] / table["df"].iloc[-1]
    total = ((y - y.mean()) ** 2).sum() + error
    omega = (table["sum_sq"] - table["df"] * error)[:-1] / total
    assert [s.share for s in result.shares[:-1]] == pytest.approx(omega.tolist())


def test_intervals_hold_their_estimate_and_narrow_with_seeds():
    few, many = (
        variance_shares(noisy(levels), levels)
        for levels in (grid("xyz", ["dpo", "tdpo2"], n) for n in (2, 30))
    )
    for narrow, wide in zip(many.shares, few.shares, strict=True):
        low, high = narrow.interval
        assert 0 <= low <= narrow.share <= high <= 1
        assert high - low < wide.interval[1] - wide.interval[0]
    # Variances: 2/3 of data, 0.09 of algorithms, 0.25 of seeds.
    truth = np.array([2 / 3, 0.09, 0, 0.25]) / (2 / 3 + 0.34)
    for share, value in zip(many.shares, truth, strict=True):
        assert share.interval[0] <= value <= share.interval[1]
        assert share.share == pytest.approx(value, abs=0.06)


@pytest.mark.parametrize("effect", [0.0, 0.8, 3.0])
def test_of_one_aspect_intervals_invert_the_noncentral_f(effect):
    levels = {"data": ["x"] * 4 + ["y"] * 4 + ["z"] * 4}
    rng = np.random.default_rng(2)
    y = effect * np.repeat([0.0, 1.0, 2.0], 4) + rng.normal(0, 1, 12)
    f = stats.f_oneway(y[:4], y[4:8], y[8:]).statistic
    ends = [0.0, 0.0]
    for k, probability in enumerate((0.975, 0.025)):
        if stats.f.cdf(f, 2, 9) > probability:
            gap = lambda x, p=probability: stats.ncf.cdf(f, 2, 9, x) - p  # noqa: E731
            ends[k] = optimize.brentq(gap, 1e-9, 1000)
    data, seeds = variance_shares(y, levels).shares
    expected = tuple(end / (end + 12) for end in ends)
    assert data.interval == pytest.approx(expected, abs=0.02)
    assert seeds.interval == pytest.approx((1 - expected[1], 1 - expected[0]), abs=0.02)


def test_one_aspect_at_a_time_says_nothing_of_interactions():
    levels = {
        "data": ["x"] * 3 + ["y"] * 3 + ["z"] * 3 + ["x"] * 3,
        "algorithm": ["dpo"] * 9 + ["tdpo2"] * 3,
    }
    result = variance_shares(noisy(levels), levels)
    assert result.not_identified == ("data x algorithm",)
    assert [s.term for s in result.shares] == ["data", "algorithm", "seeds"]
    assert any("says nothing of data x algorithm" in line for line in result.notes)


def test_estimates_below_zero_are_said():
    levels = grid("xyz", ["dpo", "tdpo2"], 3)
    y = np.random.default_rng(1).normal(0, 1, 18)
    result = variance_shares(y, levels)
    clipped = [s.term for s in result.shares if s.clipped]
    assert clipped and all(s.share == 0 and s.interval[0] == 0 for s in result.shares if s.clipped)
    assert f"Estimated below 0 and shown as 0: {', '.join(clipped)}." in result.notes


def test_runs_that_differ_by_nothing_else_have_no_interval():
    levels = grid("xy", ["dpo", "tdpo2"], 2)
    y = [float(d == "x") for d in levels["data"]]
    result = variance_shares(y, levels)
    assert [s.share for s in result.shares] == pytest.approx([1, 0, 0, 0])
    assert all(s.interval is None for s in result.shares)


def test_a_design_that_tells_nothing_is_refused():
    levels = grid("xy", ["dpo", "tdpo2"], 1)
    with pytest.raises(PalateError, match="two seeds or more"):
        variance_shares([1, 2, 3, 4], levels)
    with pytest.raises(PalateError, match="aspect 'data' has 1 levels"):
        variance_shares([1.0, 2.0], {"data": ["x", "x"]})
    with pytest.raises(PalateError, match="aspect 'data' has 2 levels in 3 of 2 runs"):
        variance_shares([1.0, 2.0], {"data": ["x", "y", "x"]})
    with pytest.raises(PalateError, match="no variance to share out"):
        variance_shares([1.0] * 4, {"data": ["x", "x", "y", "y"]})
    with pytest.raises(PalateError, match="one finite outcome"):
        variance_shares([1.0, np.nan], {"data": ["x", "y"]})
