"""Win rates at equal length: on AlpacaEval's own annotations, simulated data, and a plain fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, special, stats

from palate.errors import PalateError
from palate.evaluate.length_control import length_controlled_win_rate

FILE = Path("shared", "data", "alpaca_eval_annotations", "annotations.json")
"""Beside the project's folder, or beside one further up."""


def simulated(items, *, level=0.4, slope=1.2, gap=200, seed=0):
    rng = np.random.default_rng(seed)
    lengths = 1000 + rng.normal(0, 100, items)
    longer = rng.normal(gap, 300, items)
    odds = level + slope * np.tanh(longer / longer.std(ddof=1))
    wins = (rng.random(items) < special.expit(odds)).astype(float)
    return wins, lengths + longer, lengths


def test_alpaca_eval_annotations():
    """The published win rates of these annotations, on all 805 items of which 581 are here: 70.50%
    raw, 70.18% at equal length (leaderboard of AlpacaEval 2, FuseChat-Gemma-2-9B-Instruct)."""
    places = [folder / FILE for folder in Path(__file__).resolve().parents[3:]]
    annotations = next((place for place in places if place.is_file()), None)
    if annotations is None:
        pytest.skip("AlpacaEval's annotations are not here")
    rows = json.loads(annotations.read_text(encoding="utf-8"))
    preferences = np.array([row["preference"] for row in rows]) - 1
    policy, baseline = (
        np.array([len(row[key]) for row in rows]) for key in ("output_2", "output_1")
    )
    assert policy.mean() > baseline.mean()
    result = length_controlled_win_rate(preferences, policy, baseline)
    assert result.win_rate == pytest.approx(preferences.mean())
    # Longer answers win, the policy's are longer: at equal length it wins less.
    assert result.length_interval[0] > 0
    assert result.controlled < result.win_rate
    assert result.controlled == pytest.approx(0.7018, abs=0.01)
    assert result.controlled_interval[0] < 0.7018 < result.controlled_interval[1]
    assert "without instruction difficulty" in result.words
    # The same from the opposite side.
    opposite = length_controlled_win_rate(1 - preferences, baseline, policy)
    assert opposite.controlled == pytest.approx(1 - result.controlled)


def test_what_was_simulated_is_recovered():
    result = length_controlled_win_rate(*simulated(20_000))
    truth = special.expit(0.4)
    assert result.controlled == pytest.approx(truth, abs=0.015)
    assert result.controlled_interval[0] < truth < result.controlled_interval[1]
    assert result.length == pytest.approx(1.2, abs=0.1)
    assert result.win_rate > truth + 0.05


def test_it_is_a_logistic_regression_with_robust_errors():
    wins, policy, baseline = simulated(300)
    wins = 0.1 + 0.8 * wins
    result = length_controlled_win_rate(wins, policy, baseline)
    gap = policy - baseline
    x = np.column_stack([np.ones(300), np.tanh(gap / gap.std(ddof=1))])

    def loss(at):
        return -(wins * special.log_expit(x @ at) + (1 - wins) * special.log_expit(-(x @ at))).sum()

    at = optimize.minimize(loss, np.zeros(2), options={"gtol": 1e-8}).x
    assert (result.constant, result.length) == pytest.approx(tuple(at), abs=1e-5)
    p = special.expit(x @ at)
    bread = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x)
    scores = x * (wins - p)[:, None]
    covariance = bread @ scores.T @ scores @ bread
    t = stats.t.ppf(0.975, 299)
    ends = special.expit(at[0] + t * np.sqrt(covariance[0, 0]) * np.array([-1, 1]))
    assert result.controlled_interval == pytest.approx(tuple(ends), abs=1e-3)


def test_at_equal_lengths_nothing_is_controlled():
    wins, policy, _ = simulated(200)
    result = length_controlled_win_rate(wins, policy, policy)
    assert result.controlled == pytest.approx(wins.mean()) == result.win_rate
    assert result.length is None and result.length_interval is None
    assert result.controlled_interval == pytest.approx(result.interval, abs=0.01)


def test_difficulty_is_averaged_over_and_is_said():
    rng = np.random.default_rng(4)
    items = 20_000
    hard = rng.normal(0, 1, items)
    longer = rng.normal(100, 300, items) + 100 * hard
    odds = 0.5 + np.tanh(longer / longer.std(ddof=1)) - 1.5 * hard
    wins = (rng.random(items) < special.expit(odds)).astype(float)
    result = length_controlled_win_rate(wins, 500 + longer, np.full(items, 500), difficulty=hard)
    assert result.difficulty == pytest.approx(-1.5, abs=0.1)
    assert result.length == pytest.approx(1.0, abs=0.1)
    assert result.controlled == pytest.approx(special.expit(0.5 - 1.5 * hard).mean(), abs=0.01)
    assert "without" not in result.words


def test_items_of_one_cluster_count_once():
    wins, policy, baseline = simulated(200)
    alone = length_controlled_win_rate(wins, policy, baseline)
    repeated = [np.repeat(x, 4) for x in (wins, policy, baseline)]
    clusters = np.repeat(np.arange(200), 4).tolist()
    result = length_controlled_win_rate(*repeated, clusters=clusters)
    assert result.controlled_interval == pytest.approx(alone.controlled_interval, abs=2e-3)
    assert result.interval == pytest.approx(alone.interval, abs=2e-3)


def test_a_model_that_data_do_not_determine_is_refused():
    wins, policy, baseline = simulated(100)
    with pytest.raises(PalateError, match="predicts them without an error"):
        length_controlled_win_rate(np.ones(100), policy, baseline)
    with pytest.raises(PalateError, match="predicts them without an error"):
        length_controlled_win_rate((policy > baseline).astype(float), policy, baseline)
    with pytest.raises(PalateError, match="longer by 7"):
        length_controlled_win_rate(wins, baseline.round() + 7, baseline.round())
    with pytest.raises(PalateError, match="between 0 and 1"):
        length_controlled_win_rate(wins + 1, policy, baseline)
    with pytest.raises(PalateError, match="one of each"):
        length_controlled_win_rate(wins[:50], policy, baseline)
