"""Accuracy, calibration, agreement and robustness on scores written by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from palate.evaluate.reward.accuracy import (
    accuracy,
    binned,
    by_length,
    by_margin,
    by_source,
)
from palate.evaluate.reward.agreement import agreement
from palate.evaluate.reward.calibration import calibration, ece, fit_temperature, nll, reliability
from palate.evaluate.reward.items import BenchmarkItem, compare
from palate.evaluate.reward.robustness import CHANGES, changed, robustness
from palate.evaluate.statistics import share_interval
from palate.intervals import wilson

NAN = math.nan


def item(n, chosen, rejected, *, prompt=None, source="s", **more):
    return BenchmarkItem(
        id=str(n), source=source, prompt=prompt or f"p{n}", responses=(chosen, rejected), **more
    )


ITEMS = [
    item(0, "aaaa", "bb", margin=1.0),
    item(1, "a", "bbb", margin=2.0, source="t"),
    item(2, "aa", "bb", source="t"),
    item(3, "a" * 9, "b"),
    item(4, "a", "b", tie=True),
]
SCORES = [[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [NAN, 5.0], [9.0, 0.0]]


def test_comparisons_by_hand():
    pairs = compare(ITEMS, SCORES)
    assert len(pairs) == 4  # what the annotator called a tie is none
    assert pairs.margin[:3].tolist() == [1.0, -3.0, 0.0] and math.isnan(pairs.margin[3])
    assert pairs.longer.tolist() == [2, -2, 0, 8]
    assert pairs.stated[:2].tolist() == [1.0, 2.0]
    several = BenchmarkItem(id="x", source="s", prompt="p", responses=("a", "b", "c"), correct=2)
    assert compare([several], [[3.0, 1.0, 2.0]]).margin.tolist() == [1.0, -1.0]


def test_pairs_of_one_prompt_widen_the_difference_from_length():
    """Pairs said twice are known no better: groups give the interval of half as many."""
    twice = [item(n, "aa", "b", prompt=f"p{n // 2}") for n in range(40)]
    right = [[1.0, 0.0] if n // 2 % 3 else [0.0, 1.0] for n in range(40)]
    once = accuracy(compare(twice[::2], right[::2]))
    grouped = accuracy(compare(twice, right))
    assert grouped["over_length_ci"] == pytest.approx(once["over_length_ci"])


def test_accuracy_by_hand():
    found = accuracy(compare(ITEMS, SCORES))
    assert (found["n"], found["right"], found["ties"], found["unscored"]) == (4, 1, 1, 1)
    assert found["accuracy"] == 0.25 and found["tie_rate"] == 0.25
    assert found["accuracy_ci"] == pytest.approx(wilson(1, 4))
    assert found["accuracy_ties_half"] == 0.375
    assert found["accuracy_of_scored"] == pytest.approx(1 / 3)
    assert (found["length_baseline"], found["shorter_baseline"]) == (0.5, 0.25)
    # Right, wrong, wrong, wrong, where the longer is right, wrong, wrong, right.
    expected = stats.ttest_1samp([0.0, 0.0, 0.0, -1.0], 0).confidence_interval(0.95)
    assert found["over_length"] == -0.25
    assert found["over_length_ci"] == pytest.approx(tuple(expected))
    assert found["margin"] == pytest.approx(-2 / 3)
    parts = by_source(compare(ITEMS, SCORES))
    assert list(parts) == ["s", "t", "all"] and parts["t"]["accuracy"] == 0.0
    named = by_source(compare([item(0, "a", "b", source="all")], [[0.0, 1.0]]))
    assert list(named) == ["source all", "all"]
    both = by_source(
        compare(
            [item(0, "a", "b", source="all"), item(1, "a", "b", source="source all")],
            [[1.0, 0.0], [0.0, 1.0]],
        )
    )
    assert [(name, found["accuracy"]) for name, found in both.items()] == [
        ("source source all", 1.0),
        ("source all", 0.0),
        ("all", 0.5),
    ]
    empty = accuracy(compare([], []))
    assert (empty["n"], empty["accuracy"], empty["accuracy_ci"]) == (0, 0.0, (0.0, 1.0))


def test_interval_of_grouped_pairs_is_that_of_fewer():
    values = [1.0] * 30 + [0.0] * 20
    alone, n = share_interval(values)
    assert alone == pytest.approx(wilson(30, 50)) and n == 50
    # Ten prompts of five pairs that all agree: as good as ten pairs.
    grouped, effective = share_interval(values, np.repeat(np.arange(10), 5))
    assert effective == pytest.approx(10 * 0.9)
    assert grouped == pytest.approx(wilson(0.6 * effective, effective))
    # Pairs that differ within prompts cannot count for more than they are.
    _, most = share_interval([1.0, 0.0] * 25, np.repeat(np.arange(25), 2))
    assert most == 50
    _, certain = share_interval([1.0] * 50, np.repeat(np.arange(10), 5))
    assert certain == 10


def test_bins_hold_equal_numbers_and_never_part_equal_values():
    items = [item(n, "a", "b") for n in range(10)]
    pairs = compare(items, [[float(n % 2), 0.5] for n in range(10)])
    found = binned(np.arange(10.0), pairs, bins=5)
    assert [b["n"] for b in found] == [2] * 5
    assert [b["accuracy"] for b in found] == [0.5] * 5
    assert (found[0]["low"], found[0]["high"]) == (0.0, 1.0)
    level = compare(items, [[float(n // 5), 1.0] for n in range(10)])
    assert [b["ties"] for b in binned(np.arange(10.0), level, bins=2)] == [0, 5]
    same = binned(np.asarray([1.0] * 9 + [2.0]), pairs)
    assert [b["n"] for b in same] == [9, 1]
    assert binned(np.full(10, NAN), pairs) == []


def test_by_length_shows_who_reads_length():
    items = [item(n, "a" * (n + 2), "b" * 5) for n in range(6)]  # 2 .. 7 against 5
    found = by_length(compare(items, [[float(n + 2), 5.0] for n in range(6)]))
    assert found["longer"] == {"n": 2, "ties": 0, "accuracy": 1.0, "accuracy_ci": wilson(2, 2)}
    assert (found["shorter"]["n"], found["shorter"]["accuracy"], found["gap"]) == (3, 0.0, 1.0)
    margins = by_margin(compare(ITEMS, SCORES))
    assert sum(b["n"] for b in margins["model"]) == 3
    assert sum(b["n"] for b in margins["data"]) == 2


def test_calibration_by_hand():
    # sigmoid(1.0986) = 3/4: three of four right is calibrated.
    m = math.log(3)
    margins = np.asarray([m, m, m, -m])
    assert ece(margins) == pytest.approx(0.0, abs=1e-12)
    assert ece(np.asarray([m, -m])) == pytest.approx(0.25)
    assert ece(np.zeros(4)) == 0.0  # says one half, and ties are half right
    assert nll(np.zeros(3)) == pytest.approx(math.log(2))
    (only,) = reliability(margins, np.arange(4))
    assert (only["n"], only["low"], only["high"]) == (4, 0.75, 0.8)
    assert only["confidence"] == pytest.approx(0.75) and only["accuracy"] == 0.75
    temperature, reason = fit_temperature(5 * margins)
    assert temperature == pytest.approx(5.0, rel=1e-4) and reason is None
    for impossible, why in (([1.0, 2.0], "no pair is wrong"), ([-1.0, 0.5], "not positive")):
        assert fit_temperature(np.asarray(impossible))[0] is None
        assert why in fit_temperature(np.asarray(impossible))[1]
    assert fit_temperature(np.zeros(3))[1] == "all margins are 0"


def test_tempering_is_cross_fitted_and_mends_an_overconfident_model():
    rng = np.random.default_rng(0)
    true = rng.normal(0.8, 1.0, 4000)
    right = rng.random(4000) < 1 / (1 + np.exp(-np.abs(true)))
    margins = 8 * np.where(right, np.abs(true), -np.abs(true))
    items = [item(n, "a", "b") for n in range(4000)]
    found = calibration(compare(items, [[m, 0.0] for m in margins]))
    assert found["temperature"] == pytest.approx(8.0, rel=0.1)
    assert found["ece"] > 0.2 and found["ece_tempered"] < 0.03
    assert found["nll_tempered"] < found["nll"]
    unscored = calibration(compare(items[:1], [[NAN, 0.0]]))
    assert unscored == {"n": 0, "temperature": None, "reason": "no pair has a score"}


@pytest.mark.parametrize(
    "margins",
    [
        [1.0, -1.0 + 1e-9],  # next to chance: hardly any confidence
        [1e6, -1e-6],  # next to perfect
        [3.0, 2.0, -1.0, 0.0],
        [1e-12, 4e-12, -2e-12],
    ],
)
def test_temperature_is_where_the_derivative_is_zero(margins):
    temperature, _ = fit_temperature(np.asarray(margins))
    assert temperature is not None

    def slope(t):
        return sum(-m / (1 + math.exp(min(700.0, m / t))) for m in margins)

    assert slope(temperature * 1.001) < 0 < slope(temperature / 1.001)


MARGINS = arrays(np.float64, st.integers(2, 30), elements=st.floats(-20, 20, width=16))


@settings(deadline=None)
@given(MARGINS, st.floats(0.1, 50))
def test_temperature_follows_the_scale_of_the_scores(margins, scale):
    one, _ = fit_temperature(margins)
    other, _ = fit_temperature(scale * margins)
    assert (one is None) == (other is None)
    if one is not None:
        best = nll(margins / one)
        assert nll(scale * margins / other) == pytest.approx(best, abs=1e-6)
        assert best <= nll(margins) + 1e-9 and best <= nll(margins / (2 * one)) + 1e-9


@settings(deadline=None)
@given(MARGINS.map(lambda m: np.round(m * 8) / 8), st.randoms())
def test_offsets_of_prompts_and_the_order_of_rows_do_not_matter(margins, random):
    items = [item(n, "a" * (n % 4 + 1), "bb") for n in range(len(margins))]
    scores = [[m, 0.0] for m in margins]
    expected = accuracy(compare(items, scores))
    order = list(range(len(items)))
    random.shuffle(order)
    # Offsets that are exact in floating point, so that no margin is rounded to a tie.
    moved = [[a + 64 * i, b + 64 * i] for i, (a, b) in enumerate(scores)]
    found = accuracy(compare([items[i] for i in order], [moved[i] for i in order]))
    for key in ("n", "right", "ties", "accuracy", "length_baseline"):
        assert found[key] == expected[key]
    assert found["margin"] == pytest.approx(expected["margin"], abs=1e-9)


def test_agreement_by_hand():
    items = [item(n, "a", "b") for n in range(4)]
    a = [[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]
    b = [[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [NAN, 1.0]]
    (found,) = agreement({"a": compare(items, a), "b": compare(items, b)}, {"a": a, "b": b})
    assert (found["a"], found["b"], found["n"]) == ("a", "b", 3)
    assert found["verdicts"] == pytest.approx(2 / 3)
    assert found["both_wrong"] == 0.5  # pair 3 of pairs 2 and 3
    # Margins 1, 2, -3 and 2, -1, -3: one of three pairs of pairs is turned round.
    assert found["kendall"] == pytest.approx(1 / 3)
    assert found["spearman"] == pytest.approx(0.5)
    assert found["kendall_within"] is None
    many = BenchmarkItem(id="m", source="s", prompt="p", responses=("a", "b", "c"))
    one = agreement(
        {"a": compare([many], [[3.0, 2.0, 1.0]]), "b": compare([many], [[3.0, 1.0, 2.0]])},
        {"a": [[3.0, 2.0, 1.0]], "b": [[3.0, 1.0, 2.0]]},
    )
    assert one[0]["kendall_within"] == pytest.approx(1 / 3)


def test_a_model_agrees_with_itself():
    items = [item(n, "a", "b") for n in range(5)]
    scores = [[float(n), 2.5] for n in range(5)]
    pairs = compare(items, scores)
    (found,) = agreement({"a": pairs, "b": pairs}, {"a": scores, "b": scores})
    assert (found["verdicts"], found["both_wrong"]) == (1.0, 1.0)
    assert found["kendall"] == pytest.approx(1.0) and found["spearman"] == pytest.approx(1.0)


def test_changes_touch_responses_alone():
    chat = BenchmarkItem(
        id="c",
        source="s",
        prompt=[{"role": "user", "content": "Hi There"}],
        responses=([{"role": "assistant", "content": "Well  now a b"}], "No"),
    )
    lower = changed(chat, CHANGES["lower_case"][1])
    assert lower.responses == ([{"role": "assistant", "content": "well  now a b"}], "no")
    assert lower.prompt is chat.prompt
    only = changed(chat, CHANGES["trailing_space"][1], rejected_only=True)
    assert only.responses == (chat.responses[0], "No ")
    assert CHANGES["double_spaces"][1]("a b  c\n d") == "a  b  c\n d"


def test_robustness_by_hand():
    items = [item(n, "a", "b") for n in range(4)]
    before = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [NAN, 1.0]]
    after = [[2.0, 1.0], [1.0, 2.0], [0.0, 1.0], [1.0, 1.0]]
    found = robustness(items, before, after)
    assert found["n"] == 3 and found["flips"] == pytest.approx(1 / 3)
    assert found["accuracy_before"] == pytest.approx(2 / 3)
    assert found["accuracy_after"] == pytest.approx(1 / 3)
    assert found["accuracy_change"] == pytest.approx(-1 / 3)
    # Moves 1, 1, 0, 2, 0, 0 and 0 over deviations of sqrt(1 / 2) within a prompt.
    assert found["shift"] == pytest.approx((4 / 7) / math.sqrt(0.5))
    same = robustness(items, before, before)
    assert (same["flips"], same["accuracy_change"], same["shift"]) == (0.0, 0.0, 0.0)
    assert robustness(items[3:], before[3:], before[3:]) == {"n": 0, "lost": 0}
    unread = robustness(items, before, [*before[:2], [NAN, 1.0], [NAN, 1.0]])
    assert (unread["n"], unread["lost"]) == (2, 1)


def test_turned_verdicts_of_one_prompt_are_not_independent():
    items = [item(n, "a", "b", prompt=f"p{n // 5}") for n in range(50)]
    before = [[1.0, 0.0]] * 50
    after = [[0.0, 1.0] if n < 20 else [1.0, 0.0] for n in range(50)]
    found = robustness(items, before, after)
    expected, effective = share_interval([1.0] * 20 + [0.0] * 30, np.repeat(np.arange(10), 5))
    assert effective < 10 and found["flips_ci"] == pytest.approx(expected)
    # One prompt tells nothing of others.
    assert robustness(items[:5], before[:5], after[:5])["accuracy_change_ci"] is None
