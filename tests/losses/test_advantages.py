"""Advantages against quadratic references and by hand; without a spread, a score, a token."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from palate.losses import (
    correction_weights,
    discounted_returns,
    equal_scores,
    gae,
    group_advantages,
    group_means,
    later_sums,
    leave_one_out,
    outliers,
    whiten,
)
from palate.losses.advantages import DEVIATION_EPSILON

F64 = {"dtype": torch.float64}
NAN = math.nan


def draw(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), **F64)


def ragged(lengths: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


LENGTHS = [4, 1, 7, 2, 1]
SEGMENT = ragged(LENGTHS)
N = len(SEGMENT)


def rows(segment: Tensor) -> list[list[int]]:
    return [
        [i for i, s in enumerate(segment.tolist()) if s == name] for name in range(max(segment) + 1)
    ]


def reference_gae(rewards, values, segment, gamma, lam, bootstrap) -> list[float]:
    """sum over l >= t of (gamma lam)^(l - t) d_l, each by itself: quadratic in the length."""
    out = []
    for name, row in enumerate(rows(segment)):
        after = [float(values[i]) for i in row[1:]] + [bootstrap[name]]
        errors = [
            float(rewards[i]) + gamma * v - float(values[i])
            for i, v in zip(row, after, strict=True)
        ]
        out += [
            sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(row)))
            for t in range(len(row))
        ]
    return out


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("bootstrap", [None, [0.5, 0.0, -2.0, 0.0, 3.0]])
def test_gae_against_a_quadratic_reference(gamma, lam, bootstrap):
    rewards, values = draw(N, 0), draw(N, 1)
    after = None if bootstrap is None else torch.tensor(bootstrap)
    advantages, returns = gae(rewards, values, SEGMENT, gamma=gamma, lam=lam, bootstrap=after)
    expected = reference_gae(rewards, values, SEGMENT, gamma, lam, bootstrap or [0.0] * 5)
    assert advantages.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    torch.testing.assert_close(returns, advantages + values)


def test_gae_by_hand():
    """Two tokens, reward 1 at the end: V_t is of the state before token t."""
    rewards, values = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25])
    advantages, returns = gae(rewards, values, torch.zeros(2).long(), gamma=1.0, lam=0.5)
    assert advantages.tolist() == [-0.25 + 0.5 * 0.75, 0.75]
    assert returns.tolist() == [0.625, 1.0]


def test_gae_of_a_right_value_is_zero():
    """Values that are the discounted returns leave no error, at any lambda; shifted by one place
    they do."""
    rewards = draw(N, 0)
    values = discounted_returns(rewards, SEGMENT, 0.9)
    advantages, returns = gae(rewards, values, SEGMENT, gamma=0.9, lam=0.7)
    torch.testing.assert_close(advantages, torch.zeros(N, **F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(returns, values)
    shifted, _ = gae(rewards, values.roll(1), SEGMENT, gamma=0.9, lam=0.7)
    assert shifted.abs().max() > 0.1


def test_gae_passes_on_no_gradient():
    values = draw(N, 1).requires_grad_()
    assert not any(t.requires_grad for t in gae(draw(N, 0), values, SEGMENT, gamma=1.0, lam=0.9))


def test_sequences_are_independent():
    """Bit for bit: alone, in another order, or beside a longer one."""
    rewards, values = draw(N, 0).float(), draw(N, 1).float()
    whole, _ = gae(rewards, values, SEGMENT, gamma=0.99, lam=0.95)
    for name in range(len(LENGTHS)):
        row = SEGMENT.eq(name)
        alone, _ = gae(rewards[row], values[row], SEGMENT[row] * 0, gamma=0.99, lam=0.95)
        assert torch.equal(alone, whole[row])
    order = torch.cat([SEGMENT.eq(name).nonzero().squeeze(1) for name in (3, 0, 4, 2, 1)])
    mixed, _ = gae(rewards[order], values[order], SEGMENT[order], gamma=0.99, lam=0.95)
    assert torch.equal(mixed, whole[order])


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
def test_discounted_returns(gamma):
    rewards = draw(N, 0)
    expected = reference_gae(rewards, torch.zeros(N), SEGMENT, gamma, 1.0, [0.0] * 5)
    assert discounted_returns(rewards, SEGMENT, gamma).tolist() == pytest.approx(
        expected, abs=1e-12
    )


def test_later_sums():
    values = draw(N, 0)
    expected = [
        sum(float(values[k]) for k in row[t + 1 :])
        for row in rows(SEGMENT)
        for t in range(len(row))
    ]
    later = later_sums(values, SEGMENT)
    assert later.tolist() == pytest.approx(expected, abs=1e-12)
    assert [float(later[row[-1]]) for row in rows(SEGMENT)] == [0.0] * 5
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: later_sums(x, SEGMENT), (values,))
    assert torch.autograd.gradcheck(lambda x: discounted_returns(x, SEGMENT, 0.9), (values,))


def test_no_tokens():
    none, segment = torch.empty(0), torch.empty(0, dtype=torch.int64)
    assert [t.shape for t in gae(none, none, segment, gamma=1.0, lam=1.0)] == [(0,), (0,)]
    assert discounted_returns(none, segment, 0.9).shape == later_sums(none, segment).shape == (0,)
    for function in (group_means, equal_scores, leave_one_out):
        assert function(none, segment).shape == (0,)
    for scale in ("group", "batch", "none"):
        assert group_advantages(none, segment, scale=scale).shape == (0,)
    assert whiten(none).shape == outliers(none, 3.0).shape == (0,)
    weights = correction_weights(none, none, segment, level="sequence", mode="mask", cap=2.0)
    assert weights.shape == (0,)


# --- groups ------------------------------------------------------------------------------------

# Groups in mixed order: 0 has 1, 3, 8; 1 has 5 alone; 2 has 0.1 three times; 3 has 2, none, 6.
GROUP = torch.tensor([0, 2, 1, 0, 3, 2, 0, 3, 2, 3])
SCORES = torch.tensor([1.0, 0.1, 5.0, 3.0, 2.0, 0.1, 8.0, NAN, 0.1, 6.0], **F64)
DEVIATIONS = {0: statistics.stdev([1.0, 3.0, 8.0]), 3: statistics.stdev([2.0, 6.0])}


def test_group_means_and_equal_scores():
    assert group_means(SCORES, GROUP).tolist() == pytest.approx([4.0, 5.0, 0.1, 4.0])
    assert equal_scores(SCORES, GROUP).tolist() == [False, True, True, False]
    # A group that nobody belongs to, and one without a score.
    scores, group = torch.tensor([1.0, NAN]), torch.tensor([0, 2])
    assert equal_scores(scores, group).tolist() == [True, True, True]
    assert group_means(scores, group).isnan().tolist() == [False, True, True]


def test_group_advantages_by_hand():
    centred = [-3.0, 0.0, 0.0, -1.0, -2.0, 0.0, 4.0, 0.0, 0.0, 2.0]
    assert group_advantages(SCORES, GROUP, scale="none").tolist() == pytest.approx(centred)
    by_group = [
        c / (DEVIATIONS.get(g, 1.0) + DEVIATION_EPSILON)
        for c, g in zip(centred, GROUP.tolist(), strict=True)
    ]
    assert group_advantages(SCORES, GROUP, scale="group").tolist() == pytest.approx(by_group)
    spread = statistics.stdev(SCORES[~SCORES.isnan()].tolist()) + DEVIATION_EPSILON
    by_batch = [c / spread for c in centred]
    assert group_advantages(SCORES, GROUP, scale="batch").tolist() == pytest.approx(by_batch)
    with pytest.raises(ValueError, match="no scale 'prompt'"):
        group_advantages(SCORES, GROUP, scale="prompt")


def test_leave_one_out_by_hand():
    expected = [1 - 5.5, 0.0, 0.0, 3 - 4.5, 2 - 6.0, 0.0, 8 - 2.0, 0.0, 0.0, 6 - 2.0]
    assert leave_one_out(SCORES, GROUP).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", [0.1, 1e-30, 1 / 3, -7.3e8, 1e30])
def test_equal_scores_are_exactly_zero(dtype, score):
    """The mean of equal floats need not be that float: sums round. So by comparison."""
    scores, group = torch.full((7,), score, dtype=dtype), torch.zeros(7).long()
    assert equal_scores(scores, group).tolist() == [True]
    results = [group_advantages(scores, group, scale=s) for s in ("group", "batch", "none")]
    for advantages in [*results, leave_one_out(scores, group)]:
        assert advantages.tolist() == [0.0] * 7 and advantages.dtype == dtype


def test_nearly_equal_scores_differ():
    """One unit in the last place: the group learns, by an amount that the epsilon bounds."""
    scores = torch.full((4,), 0.1)
    scores[2] = torch.nextafter(scores[2], torch.tensor(1.0))
    group = torch.zeros(4).long()
    assert equal_scores(scores, group).tolist() == [False]
    advantages = group_advantages(scores, group, scale="group")
    assert 0 < advantages[2] < 1e-3 and (advantages[[0, 1, 3]] < 0).all()
    assert leave_one_out(scores, group)[2] > 0


@pytest.mark.parametrize(
    "function", [leave_one_out, lambda s, g: group_advantages(s, g, scale="none")]
)
def test_the_order_of_rows_is_nothing(function):
    """Groups may lie anywhere in the rollout."""
    order = torch.randperm(len(GROUP), generator=torch.Generator().manual_seed(0))
    expected = function(SCORES, GROUP)[order]
    torch.testing.assert_close(function(SCORES[order], GROUP[order]), expected)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_scores_far_from_zero_in_float32(scale):
    """Sums and deviations are float64: a large mean does not eat the differences."""
    scores = 3e4 + torch.arange(24.0) * 2.0**-8
    group = torch.arange(24) % 2
    exact = scores.double()
    expected = group_advantages(exact, group, scale=scale)
    got = group_advantages(scores, group, scale=scale).double()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    got = leave_one_out(scores, group).double()
    torch.testing.assert_close(got, leave_one_out(exact, group), rtol=1e-6, atol=1e-8)


def test_leave_one_out_is_the_centred_score_scaled():
    scores, group = draw(12, 4), torch.arange(12) % 3
    centred = group_advantages(scores, group, scale="none")
    torch.testing.assert_close(leave_one_out(scores, group), centred * 4 / 3)


# --- whitening, outliers -----------------------------------------------------------------------


def test_whiten_by_hand():
    values = torch.tensor([1.0, 2.0, 6.0])
    for unbiased, variance in ((True, 7.0), (False, 14 / 3)):
        for epsilon in (1e-8, 0.5):
            scale = math.sqrt(variance + epsilon)
            options = {"unbiased": unbiased, "epsilon": epsilon}
            white = whiten(values, **options)
            assert white.tolist() == pytest.approx([-2 / scale, -1 / scale, 3 / scale])
            kept = whiten(values, shift_mean=False, **options)
            assert kept.tolist() == pytest.approx([3 - 2 / scale, 3 - 1 / scale, 3 + 3 / scale])
    white = whiten(draw(50, 0))
    assert white.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert white.std().item() == pytest.approx(1.0, rel=1e-6)


def test_whiten_by_default_has_the_epsilon_of_trl_and_an_unbiased_variance():
    values = torch.tensor([0.0, 2e-4], **F64)
    expected = 1e-4 / math.sqrt(2e-8 + 1e-8)
    assert whiten(values).tolist() == pytest.approx([-expected, expected])


def test_whiten_in_float32_far_from_zero():
    """Statistics are float64: a large mean does not eat the spread."""
    values = 1e4 + torch.tensor([0.0, 2.0**-9, 2.0**-8])
    assert whiten(values, epsilon=0.0).tolist() == pytest.approx([-1.0, 0.0, 1.0], rel=1e-3)


def test_values_without_a_spread():
    for values in (torch.full((5,), 0.1), torch.tensor([3.0])):
        assert whiten(values).tolist() == [0.0] * len(values)
        assert whiten(values, shift_mean=False).tolist() == values.tolist()
        assert not outliers(values, 0.5).any()


@pytest.mark.parametrize("poison", [NAN, math.inf])
@pytest.mark.parametrize("shift_mean", [True, False])
def test_masked_whitening(poison, shift_mean):
    values, mask = draw(8, 0), torch.tensor([True, False] * 4)
    expected = whiten(values[mask], shift_mean=shift_mean)
    values[~mask] = poison
    white = whiten(values, shift_mean=shift_mean, mask=mask)
    assert torch.equal(white[mask], expected) and (white[~mask] == 0).all()
    assert not whiten(values, mask=torch.zeros(8, dtype=torch.bool)).any()


def test_outliers_by_hand():
    values = torch.zeros(20)
    values[3], values[7] = 10.0, -1.0
    z = [
        (v - statistics.mean(values.tolist())) / statistics.stdev(values.tolist())
        for v in values.tolist()
    ]
    assert outliers(values, 3.0).tolist() == [abs(x) > 3 for x in z]
    assert outliers(values, 3.0).nonzero().tolist() == [[3]]
    assert outliers(-values, 3.0).nonzero().tolist() == [[3]]
    assert outliers(values, abs(z[3]) + 1e-6).sum() == 0
    assert outliers(values, 0.5).nonzero().squeeze(1).tolist() == [3, 7]


@pytest.mark.parametrize("poison", [NAN, math.inf, 1e6])
def test_masked_outliers(poison):
    """As published the filter mixes masked and counted tokens; here masked ones are nowhere."""
    values, mask = draw(40, 0), torch.arange(40) < 30
    values[5] = 12.0
    expected = outliers(values[mask], 3.0)
    values[~mask] = poison
    flagged = outliers(values, 3.0, mask=mask)
    assert torch.equal(flagged[mask], expected) and flagged[5] and not flagged[~mask].any()
    assert not outliers(values, 3.0, mask=mask & False).any()


# --- corrections -------------------------------------------------------------------------------


def weights_of(level: str, mode: str, cap: float, sampled: list[float]) -> list[float]:
    ratios = torch.tensor([1.5, 0.5, 2.0, 3.0, 0.1], **F64)
    engine = torch.tensor(sampled, **F64)
    segment = torch.tensor([0, 0, 0, 1, 2])
    out = correction_weights(
        (engine + ratios.log()).nan_to_num(nan=-0.3).requires_grad_(),
        engine.requires_grad_(),
        segment,
        level=level,
        mode=mode,
        cap=cap,
    )
    assert not out.requires_grad
    return out.tolist()


def test_corrections_by_hand():
    engine = [-1.0, -2.0, -0.5, -0.1, -3.0]
    expected = {
        ("token", "truncate"): [1.5, 0.5, 1.8, 1.8, 0.1],
        ("token", "mask"): [1.5, 0.5, 0.0, 0.0, 0.1],
        # Products over the response: 1.5, 3 and 0.1.
        ("sequence", "truncate"): [1.5, 1.5, 1.5, 1.8, 0.1],
        ("sequence", "mask"): [1.5, 1.5, 1.5, 0.0, 0.1],
    }
    for (level, mode), weights in expected.items():
        assert weights_of(level, mode, 1.8, engine) == pytest.approx(weights, rel=1e-12)
    for level, mode in (("row", "mask"), ("token", "drop")):
        with pytest.raises(ValueError, match=r"no (level|mode)"):
            weights_of(level, mode, 1.8, engine)


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_a_weight_at_the_cap_is_not_above_it(mode):
    old, engine = torch.tensor([math.log(2.0)], **F64), torch.zeros(1, **F64)
    options = {"level": "token", "mode": mode, "cap": 2.0}
    weights = correction_weights(old, engine, torch.zeros(1).long(), **options)
    assert weights.tolist() == pytest.approx([2.0])


def test_a_sequences_weight_is_a_product_not_a_mean():
    """1000 tokens, each off by half a percent of a nat: 0.6% against e^5."""
    gap, segment = torch.full((1000,), 0.005, **F64), torch.zeros(1000).long()
    options = {"level": "sequence", "mode": "truncate", "cap": 1e6}
    weights = correction_weights(gap, torch.zeros(1000, **F64), segment, **options)
    assert weights.tolist() == pytest.approx([math.exp(5.0)] * 1000)


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_tokens_that_the_engine_gave_no_log_prob_for_are_not_corrected(mode):
    engine = [-1.0, NAN, -0.5, -0.1, -3.0]
    assert weights_of("token", mode, 9.0, engine) == pytest.approx([1.5, 1.0, 2.0, 3.0, 0.1])
    assert weights_of("sequence", mode, 9.0, engine) == pytest.approx([3.0, 3.0, 3.0, 3.0, 0.1])


def test_corrections_at_extremes():
    """What the engine calls impossible, or the trainer does: finite, and masked where too large."""
    old, engine = torch.tensor([-1.0, -900.0, 0.0]), torch.tensor([-math.inf, -1.0, -400.0])
    segment = torch.arange(3)
    truncated = correction_weights(old, engine, segment, level="token", mode="truncate", cap=2.0)
    assert truncated.tolist() == pytest.approx([2.0, 0.0, 2.0])
    masked = correction_weights(old, engine, segment, level="token", mode="mask", cap=2.0)
    assert masked.tolist() == [0.0, 0.0, 0.0]
