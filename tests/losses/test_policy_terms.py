"""KL estimates, value losses and denominators of online learning, by hand and at masked places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from palate.losses import (
    clipped_value_loss,
    denominators,
    future_kl,
    kl_estimate,
    loss_counts,
)
from policy_cases import F64, MASK, POISON, SEGMENT, N, S, draw, given, gradient

# --- KL ----------------------------------------------------------------------------------------


def test_kl_estimates_by_hand():
    logp = torch.tensor([-1.0, -2.0, -1.0], **F64)
    ref = torch.tensor([-1.5, -1.0, -1.0], **F64)
    expected = {
        "k1": [0.5, -1.0, 0.0],
        "k2": [0.125, 0.5, 0.0],
        "k3": [math.exp(-0.5) - 0.5, math.e - 2.0, 0.0],
    }
    for form, values in expected.items():
        assert kl_estimate(logp, ref, form).tolist() == pytest.approx(values, abs=1e-15)
    clamped = kl_estimate(logp, ref, "k1", clamp=0.75)
    assert clamped.tolist() == [0.5, -0.75, 0.0]
    with pytest.raises(ValueError, match="no KL estimate 'k4'"):
        kl_estimate(logp, ref, "k4")


def test_k3_of_close_policies_keeps_its_digits():
    """exp(-q) - 1 + q in float32 loses all of q^2 / 2 below 1e-4."""
    logp, ref = torch.tensor([-1.0 + 2.0**-12]), torch.tensor([-1.0])
    assert kl_estimate(logp, ref, "k3").item() == pytest.approx(2.0**-25, rel=1e-3)


def of_categorical(estimate) -> tuple[Tensor, Tensor]:
    """Mean over all draws, of value and gradient in the logits, of (logp, ref_logp) -> KL."""
    logits, ref = draw(5)[:4].clone().requires_grad_(), draw(6)[:4].log_softmax(0)
    logp = logits.log_softmax(0)
    mean = (logp.exp().detach() * estimate(logp, ref)).sum()
    return mean, gradient(mean, logits)


def exact(direction: str) -> tuple[Tensor, Tensor]:
    logits, ref = draw(5)[:4].clone().requires_grad_(), draw(6)[:4].log_softmax(0)
    logp = logits.log_softmax(0)
    a, b = (logp, ref) if direction == "policy" else (ref, logp)
    kl = (a.exp() * (a - b)).sum()
    return kl, gradient(kl, logits)


def test_mean_and_mean_gradient_of_each_estimate():
    """The table of kl_estimate, over all draws of a categorical policy."""
    reverse, forward = exact("policy"), exact("reference")
    k1 = of_categorical(lambda p, r: kl_estimate(p, r, "k1"))
    k2 = of_categorical(lambda p, r: kl_estimate(p, r, "k2"))
    k3 = of_categorical(lambda p, r: kl_estimate(p, r, "k3"))
    corrected = of_categorical(lambda p, r: kl_estimate(p, r, "k3", old_logp=p.detach()))
    for mean, _ in (k1, k3, corrected):
        torch.testing.assert_close(mean, reverse[0])
    torch.testing.assert_close(k1[1], torch.zeros(4, **F64), atol=1e-15, rtol=0)
    torch.testing.assert_close(k2[1], reverse[1])
    torch.testing.assert_close(k3[1], forward[1])
    torch.testing.assert_close(corrected[1], reverse[1])
    assert (reverse[1] - forward[1]).norm() > 0.1


def test_the_correction_counts_off_policy_too():
    """Samples of another policy, weighted: the mean is the KL of this one."""
    logits, ref = draw(5)[:4].clone().requires_grad_(), draw(6)[:4].log_softmax(0)
    old = draw(7)[:4].log_softmax(0)
    logp = logits.log_softmax(0)
    mean = (old.exp() * kl_estimate(logp, ref, "k3", old_logp=old)).sum()
    reverse = exact("policy")
    torch.testing.assert_close(mean, reverse[0])
    torch.testing.assert_close(gradient(mean, logits), reverse[1])


@pytest.mark.parametrize("form", ["k1", "k2", "k3"])
@pytest.mark.parametrize("poison", POISON)
def test_masked_kl_estimates(form, poison):
    logp, ref, old = draw(0), draw(1), draw(2)
    for t in (logp, ref, old):
        t[~MASK] = poison
    logp.requires_grad_()
    for options in ({}, {"old_logp": old, "clamp": 9.0}):
        kl = kl_estimate(logp, ref, form, mask=MASK, **options)
        slopes = gradient(kl, logp)
        assert (kl[~MASK] == 0).all() and (slopes[~MASK] == 0).all()
        assert kl.isfinite().all() and slopes.isfinite().all() and slopes[MASK].any()


def test_clamped_kl_estimates_stay_finite():
    logp = torch.tensor([-1000.0, 0.0], requires_grad=True)
    ref, old = torch.tensor([0.0, -1000.0]), torch.tensor([-3000.0, 1000.0])
    assert not kl_estimate(logp, ref, "k3").isfinite().all()
    held = kl_estimate(logp, ref, "k3", old_logp=old, clamp=10.0)
    assert held.isfinite().all() and gradient(held, logp).isfinite().all()


def test_future_kl_by_hand():
    logp, old = given([1.0, 2.0, 1.0, 3.0, 0.5, 1.0])
    kl = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6, 3.2], **F64).requires_grad_()
    expected = [0.6, 0.8, 0.0, 0.0, 1.6, 0.0]
    value = future_kl(logp, kl, SEGMENT, old_logp=old)
    assert value.tolist() == pytest.approx(expected, rel=1e-12)
    assert gradient(value, logp).tolist() == pytest.approx(expected, rel=1e-12)
    on_policy = future_kl(logp, kl, SEGMENT)
    assert on_policy.tolist() == pytest.approx([0.6, 0.4, 0.0, 0.0, 3.2, 0.0], rel=1e-12)
    grads = torch.autograd.grad(on_policy.sum(), (logp, kl), allow_unused=True)
    assert grads[0].tolist() == on_policy.tolist() and grads[1] is None


def test_masked_future_kl():
    logp, kl = draw(0), draw(1).abs()
    mask = torch.tensor([True, True, False, True, False, True])
    expected = [float(kl[1]), 0.0, 0.0, 0.0, 0.0, 0.0]
    logp[~mask], kl[~mask] = math.nan, math.inf
    logp.requires_grad_()
    value = future_kl(logp, kl, SEGMENT, mask=mask)
    assert value.tolist() == pytest.approx(expected)
    assert gradient(value, logp).tolist() == pytest.approx(expected)


# --- values ------------------------------------------------------------------------------------

# value, old value, return -> loss, slope, clipped; epsilon 0.2.
VALUES = [
    (1.0, 1.0, 3.0, 2.0, -2.0, False),
    # Moved up by more than 0.2, away from the return: the further error counts.
    (2.0, 1.0, 0.0, 2.0, 2.0, False),
    # Moved up by more than 0.2, towards the return: held at 1.2, without a gradient.
    (2.0, 1.0, 3.0, 0.5 * 1.8**2, 0.0, True),
    (0.0, 1.0, -1.0, 0.5 * 1.8**2, 0.0, True),
    (1.1, 1.0, 3.0, 0.5 * 1.9**2, -1.9, False),
]


def test_value_loss_by_hand():
    values, old, returns, losses, slopes, clipped = (
        list(column) for column in zip(*VALUES, strict=True)
    )
    v = torch.tensor(values, **F64).requires_grad_()
    o, r = torch.tensor(old, **F64), torch.tensor(returns, **F64)
    out, flags = clipped_value_loss(v, o, r, 0.2)
    assert out.tolist() == pytest.approx(losses, rel=1e-12)
    assert gradient(out, v).tolist() == pytest.approx(slopes, rel=1e-12)
    assert flags.tolist() == clipped
    free, flags = clipped_value_loss(v, o, r, None)
    assert free.tolist() == pytest.approx([2.0, 2.0, 0.5, 0.5, 0.5 * 1.9**2])
    assert not flags.any() and flags.dtype == torch.bool


@pytest.mark.parametrize("epsilon", [0.2, None])
@pytest.mark.parametrize("poison", POISON)
def test_masked_values(epsilon, poison):
    values, old, returns = draw(0), draw(1), draw(2)
    expected, _ = clipped_value_loss(values[MASK], old[MASK], returns[MASK], epsilon)
    for t in (values, old, returns):
        t[~MASK] = poison
    values.requires_grad_()
    losses, clipped = clipped_value_loss(values, old, returns, epsilon, mask=MASK)
    torch.testing.assert_close(losses[MASK], expected)
    slopes = gradient(losses, values)
    assert not losses[~MASK].any() and not slopes[~MASK].any() and not clipped[~MASK].any()
    assert slopes.isfinite().all()


# --- denominators ------------------------------------------------------------------------------


def test_denominators_by_hand():
    third = pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0, 0.5, 0.5])
    expected = {
        "grpo": (third, "sequence"),
        "dr_grpo": (pytest.approx([0.125] * N), "sequence"),
        "dapo": ([1.0] * N, "token"),
        "bnpo": ([1.0] * N, "token"),
        "cispo": ([1.0] * N, "token"),
    }
    for loss_type, (factors, per) in expected.items():
        factor, divisor = denominators(loss_type, SEGMENT, S, 8)
        assert factor.tolist() == factors and divisor == per
    with pytest.raises(ValueError, match="no loss type 'luspo'"):
        denominators("luspo", SEGMENT, S, 8)
    assert loss_counts(SEGMENT, S) == {"token": 6.0, "sequence": 3.0}


def test_masked_tokens_are_in_no_denominator():
    mask = torch.tensor([True, False, True, False, True, True])
    factor, _ = denominators("grpo", SEGMENT, S, 8, mask=mask)
    assert factor[mask].tolist() == [0.5, 0.5, 0.5, 0.5]
    # A sequence of which nothing counts: finite, and not counted either.
    assert factor[3] == 1.0
    assert loss_counts(SEGMENT, S, mask=mask) == {"token": 4.0, "sequence": 2.0}
    none = torch.zeros(N, dtype=torch.bool)
    assert loss_counts(SEGMENT, S, mask=none) == {"token": 0.0, "sequence": 0.0}


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_a_step_does_not_depend_on_how_it_is_cut(loss_type):
    """One micro-batch of three sequences, or of two and one: the same sum over the same count."""
    losses = draw(3)

    def total(parts: list[Tensor]) -> float:
        value, count = 0.0, 0.0
        for rows in parts:
            names, segment = SEGMENT[rows].unique(return_inverse=True)
            factor, per = denominators(loss_type, segment, len(names), 8)
            value += float((losses[rows] * factor).sum())
            count += loss_counts(segment, len(names))[per]
        return value / count

    whole = total([torch.ones(N, dtype=torch.bool)])
    assert total([SEGMENT < 2, SEGMENT == 2]) == pytest.approx(whole, rel=1e-6)
