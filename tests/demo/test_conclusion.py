"""The conclusion says what the numbers support, and no more."""

from __future__ import annotations

import json

import numpy as np
import pytest

from palate.demo.conclusion import Curve, conclude, interpolate
from palate.evaluate.matched_kl import common_range

PROMPTS = 60


def curve(name, base, *, ends, slope, noise=0.05, seed=0):
    """Three checkpoints whose reward rises by `slope` a nat."""
    rng = np.random.default_rng(seed)
    kl = np.stack([np.full(PROMPTS, end) + rng.normal(0, 0.1, PROMPTS) for end in ends])
    reward = base + slope * kl + rng.normal(0, noise, kl.shape)
    return Curve(name=name, kl=kl, reward=reward, entropy=np.array([3.0, 2.8, 2.5]))


@pytest.fixture
def base():
    return np.random.default_rng(9).normal(0.3, 0.4, PROMPTS)


def test_a_clear_difference_is_named(base):
    curves = [
        curve("DPO", base, ends=(1, 2, 4), slope=0.05, seed=1),
        curve("TDPO1", base, ends=(1, 2, 4), slope=0.05, seed=2),
        curve("TDPO2", base, ends=(1, 2, 3), slope=0.15, seed=3),
    ]
    found = conclude(base, 3.2, curves, scale="points")
    low, high = found["matched_kl"]["range"]
    assert (
        (low, high) == common_range(c.kl.mean(1) for c in curves) == pytest.approx((1, 3), abs=0.1)
    )
    differences = found["matched_kl"]["minus_DPO"]
    # Slopes differ by 0.1 a nat, over a range whose middle is (low + high) / 2.
    assert differences["TDPO2"]["value"] == pytest.approx(0.1 * (low + high) / 2, abs=0.02)
    assert differences["TDPO2"]["ci"][0] > 0
    first, second, third = found["lines"]
    assert "every method raised it" in first and "60 held-out openings" in first
    assert "TDPO2 +0.2" in second and "better" in second
    assert "not distinguishable" in second and "worse" not in second
    assert "DPO 4.0 [" in third and "3.20 before" in third
    json.dumps(found, allow_nan=False)


def test_noise_alone_is_called_not_distinguishable(base):
    curves = [
        curve(name, base, ends=(1, 2, 3), slope=0.0, noise=0.6, seed=seed)
        for seed, name in enumerate(("DPO", "TDPO1", "TDPO2"), start=4)
    ]
    found = conclude(base, 3.2, curves, scale="points")
    assert "no change is distinguishable" in found["lines"][0]
    assert "better" not in found["lines"][1] and "worse" not in found["lines"][1]


def test_losses_are_said_too(base):
    curves = [
        curve("DPO", base, ends=(1, 2, 3), slope=0.1, seed=1),
        curve("TDPO1", base, ends=(1, 2, 3), slope=-0.1, seed=2),
        curve("TDPO2", base, ends=(1, 2, 3), slope=0.0, noise=0.5, seed=3),
    ]
    first, second, _ = conclude(base, 3.2, curves, scale="points")["lines"]
    assert "DPO raised it; TDPO1 lowered it; TDPO2 not distinguishable from no change" in first
    assert "TDPO1 -0." in second and "worse" in second


def test_the_same_numbers_give_the_same_lines(base):
    curves = [curve(n, base, ends=(1, 2), slope=0.1, seed=i) for i, n in enumerate(("A", "B"))]
    first = conclude(base, 3.0, curves, scale="points", seed=7)
    assert first == conclude(base, 3.0, curves, scale="points", seed=7)


def test_only_what_lies_between_measured_points_is_compared(base):
    """A first checkpoint far out says nothing of what came before it."""
    near = curve("A", base, ends=(0.7, 1.5, 3.4), slope=0.2, seed=1)
    # Level from 2 nats on: a chord from the base model would show it ahead below that.
    far = curve("B", base, ends=(2.1, 9, 24), slope=0.0, seed=2)
    conclusion = conclude(base, 3.2, [near, far], scale="points")
    assert conclusion["matched_kl"]["range"] == pytest.approx([2.1, 3.4], abs=0.1)
    middle = conclusion["matched_kl"]["minus_A"]["B"]["value"]
    assert middle == pytest.approx(-0.2 * (2.1 + 3.4) / 2, abs=0.03)
    assert "(2.1 to 3.4 nats)" in conclusion["lines"][1]


def test_no_common_range_is_said(base):
    curves = [
        curve("A", base, ends=(0.5, 1, 2), slope=0.1, seed=1),
        curve("B", base, ends=(3, 4, 5), slope=0.1, seed=2),
    ]
    conclusion = conclude(base, 3.2, curves, scale="points")
    assert conclusion["matched_kl"]["range"] is None
    assert conclusion["matched_kl"]["minus_A"] == {}
    assert "nothing can be compared" in conclusion["lines"][1]
    assert "A from 0.5 to 2.0, B from 3.0 to 5.0 nats" in conclusion["lines"][1]
    json.dumps(conclusion, allow_nan=False)


def test_interpolation_is_a_straight_line_between_checkpoints(base):
    one = Curve(
        name="x",
        kl=np.full((2, PROMPTS), [[4.0], [2.0]]),
        reward=np.stack([base + 2.0, base + 1.5]),
        entropy=np.zeros(2),
    )
    at = np.array([0.0, 2.0, 3.0, 4.0, 9.0])
    rows = np.arange(PROMPTS)[None]
    gain = interpolate(one, rows, at)[0] - base.mean()
    assert gain == pytest.approx([1.5, 1.5, 1.75, 2.0, 2.0])
