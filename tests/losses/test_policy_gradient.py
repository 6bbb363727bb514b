"""Policy losses against hand-derived numbers, numerical gradients, and what they do at extremes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from palate.losses import (
    cispo,
    clipped_surrogate,
    clipped_value_loss,
    denominators,
    future_kl,
    kl_estimate,
    loss_counts,
)

F64 = {"dtype": torch.float64}
SEGMENT = torch.tensor([0, 0, 0, 1, 2, 2])
N, S = 6, 3
MASK = torch.tensor([True, False, True, True, True, False])
POISON = (math.nan, math.inf, -math.inf)


def draw(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(N, generator=torch.Generator().manual_seed(seed), **F64)


def given(ratios: list[float]) -> tuple[Tensor, Tensor]:
    """(logp, old_logp) of these ratios."""
    old = torch.full((len(ratios),), -1.5, **F64)
    return (old + torch.tensor(ratios, **F64).log()).requires_grad_(), old


def gradient(losses: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(losses.sum(), of)[0]


# --- the clipped surrogate ---------------------------------------------------------------------

# ratio, advantage -> loss, d loss / d logp, clipped below, clipped above; epsilon 0.2, 0.28.
SURROGATE = [
    (1.0, 2.0, -2.0, -2.0, False, False),
    (1.0, -2.0, 2.0, 2.0, False, False),
    (1.25, 2.0, -2.5, -2.5, False, False),
    (1.5, 2.0, -2.56, 0.0, False, True),
    (0.5, 2.0, -1.0, -1.0, False, False),
    (1.5, -2.0, 3.0, 3.0, False, False),
    (0.9, -2.0, 1.8, 1.8, False, False),
    (0.5, -2.0, 1.6, 0.0, True, False),
    (5.0, 0.0, 0.0, 0.0, False, False),
    (0.1, 0.0, 0.0, 0.0, False, False),
]


def test_surrogate_by_hand():
    ratios, advantages, losses, slopes, low, high = (
        list(column) for column in zip(*SURROGATE, strict=True)
    )
    logp, old = given(ratios)
    out = clipped_surrogate(
        logp, old, torch.tensor(advantages, **F64), epsilon=0.2, epsilon_high=0.28
    )
    assert out.losses.tolist() == pytest.approx(losses, rel=1e-12)
    assert gradient(out.losses, logp).tolist() == pytest.approx(slopes, rel=1e-12)
    assert out.ratio.tolist() == pytest.approx(ratios, rel=1e-12)
    assert not out.ratio.requires_grad
    assert (out.clipped_low.tolist(), out.clipped_high.tolist()) == (low, high)


def test_one_epsilon_is_for_both_sides():
    logp, old = given([1.5, 0.5])
    out = clipped_surrogate(logp, old, torch.tensor([1.0, -1.0], **F64), epsilon=0.3)
    assert out.losses.tolist() == pytest.approx([-1.3, 0.7], rel=1e-12)
    # Nothing is below a bound of zero or less.
    out = clipped_surrogate(logp, old, torch.tensor([-1.0, -1.0], **F64), epsilon=1.0)
    assert out.losses.tolist() == pytest.approx([1.5, 0.5], rel=1e-12)


def test_surrogate_is_the_minimum_of_the_papers_two_branches():
    logp, old, advantages = draw(0, 0.5).requires_grad_(), draw(1, 0.5), draw(2)
    out = clipped_surrogate(logp, old, advantages, epsilon=0.2, epsilon_high=0.4)
    ratio = (logp - old).exp()
    branches = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.4) * advantages)
    torch.testing.assert_close(out.losses, branches, atol=1e-14, rtol=1e-14)
    torch.testing.assert_close(gradient(out.losses, logp), gradient(branches, logp))
    assert 0 < int(out.clipped_low.sum() + out.clipped_high.sum()) < N


def test_delta_bounds_tokens_with_a_negative_advantage_alone():
    logp, old = given([9.0, 9.0, 3.0])
    advantages = torch.tensor([-2.0, 2.0, -2.0], **F64)
    out = clipped_surrogate(logp, old, advantages, epsilon=0.2, delta=4.0)
    assert out.losses.tolist() == pytest.approx([8.0, -2.4, 6.0], rel=1e-12)
    assert gradient(out.losses, logp).tolist() == pytest.approx([0.0, 0.0, 6.0], rel=1e-12)
    assert out.clipped_high.tolist() == [True, True, False]
    assert out.ratio.tolist() == pytest.approx([9.0, 9.0, 3.0])


def test_log_ratios_are_clamped_before_they_are_exponentiated():
    """StableReinforce's pre-clip: on both sides, without a gradient outside."""
    logp, old = given([8.0, 1.0 / 8.0, 2.0])
    advantages = torch.tensor([-1.0, 1.0, -1.0], **F64)
    bound = math.log(4.0)
    out = clipped_surrogate(logp, old, advantages, epsilon=0.2, log_ratio_clamp=bound)
    assert out.losses.tolist() == pytest.approx([4.0, -0.25, 2.0], rel=1e-12)
    assert gradient(out.losses, logp).tolist() == pytest.approx([0.0, 0.0, 2.0], rel=1e-12)
    # What is reported is the ratio as it is.
    assert out.ratio.tolist() == pytest.approx([8.0, 0.125, 2.0], rel=1e-12)
    weight = cispo(logp, old, advantages, epsilon_high=9.0, log_ratio_clamp=bound)
    assert (weight.losses / -advantages / logp).tolist() == pytest.approx([4.0, 0.25, 2.0])


@pytest.mark.parametrize("gap", [-1e4, -200.0, 200.0, 1e4])
def test_extreme_log_ratios(gap):
    """Finite values and gradients in float32, whatever branch is not used; with a clamp or delta
    also where the used branch is the unbounded one."""
    logp = torch.full((3,), gap, requires_grad=True)
    old, advantages = torch.zeros(3), torch.tensor([1.0, 0.0, -1.0])
    for options in ({"log_ratio_clamp": 20.0}, {"delta": 4.0}):
        out = clipped_surrogate(logp, old, advantages, epsilon=0.2, **options)
        assert out.losses.isfinite().all() and gradient(out.losses, logp).isfinite().all()
    plain = clipped_surrogate(logp, old, advantages, epsilon=0.2)
    slopes = gradient(plain.losses, logp)
    assert plain.losses[:2].isfinite().all() and slopes[:2].isfinite().all()
    assert bool(plain.losses[2].isfinite()) == (gap < 0)
    weighted = cispo(logp, old, advantages, epsilon_high=0.2)
    assert weighted.losses.isfinite().all() and gradient(weighted.losses, logp).isfinite().all()


def test_a_clamp_tames_gradients_that_reach_1e12():
    logp, old = torch.tensor([28.0], requires_grad=True), torch.zeros(1)
    advantages = -torch.ones(1)
    free = clipped_surrogate(logp, old, advantages, epsilon=0.2)
    held = clipped_surrogate(logp, old, advantages, epsilon=0.2, log_ratio_clamp=math.log(1e3))
    assert gradient(free.losses, logp).item() > 1e12
    assert held.losses.item() == pytest.approx(1e3)
    assert gradient(held.losses, logp).item() == 0.0


# --- ratios of sequences -----------------------------------------------------------------------


def test_the_ratio_of_a_sequence_is_a_geometric_mean():
    logp, old = given([2.0, 0.5, 8.0, 0.7, 1.0, 1.0])
    out = clipped_surrogate(
        logp,
        old,
        torch.ones(N, **F64),
        epsilon=0.2,
        epsilon_high=9.0,
        level="sequence",
        segment=SEGMENT,
        n_sequences=S,
    )
    assert out.ratio.tolist() == pytest.approx([2.0, 2.0, 2.0, 0.7, 1.0, 1.0], rel=1e-12)
    assert out.losses.tolist() == pytest.approx([-2.0, -2.0, -2.0, -0.7, -1.0, -1.0], rel=1e-12)


def gspo(logp: Tensor, old: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
    """GSPO's objective as in the paper: one clipped term a sequence, averaged over sequences."""
    total = logp.new_zeros(())
    for s in range(S):
        rows = SEGMENT.eq(s)
        ratio = (logp[rows] - old[rows]).mean().exp()
        advantage = advantages[rows][0]
        total = total - torch.min(
            ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage
        )
    return total / S


def test_gspo_against_its_formula():
    logp, old = draw(0, 0.3).requires_grad_(), draw(1, 0.3)
    advantages = torch.tensor([1.0, -2.0, 0.5], **F64)[SEGMENT]
    out = clipped_surrogate(
        logp, old, advantages, epsilon=0.1, level="sequence", segment=SEGMENT, n_sequences=S
    )
    factor, _ = denominators("grpo", SEGMENT, S, 8)
    ours, paper = (out.losses * factor).sum() / S, gspo(logp, old, advantages, 0.1)
    torch.testing.assert_close(ours, paper)
    torch.testing.assert_close(gradient(ours, logp), gradient(paper, logp))


def test_advantages_that_vary_in_a_row_are_each_tokens_own():
    """With the row's mean all tokens of a sequence would have the same gradient."""
    logp, old = given([1.5, 1.5, 1.5, 1.0, 1.0, 1.0])
    advantages = torch.tensor([1.0, -1.0, -3.0, 1.0, 1.0, -1.0], **F64)
    out = clipped_surrogate(
        logp, old, advantages, epsilon=0.2, level="sequence", segment=SEGMENT, n_sequences=S
    )
    expected = [0.0, 1.5, 4.5, -1.0, -1.0, 1.0]
    assert gradient(out.losses, logp).tolist() == pytest.approx(expected, rel=1e-12)
    assert out.clipped_high.tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize("which", ["clipped_surrogate", "cispo"])
def test_ratios_of_sequences_need_their_segments(which):
    logp, old = given([1.0])
    one = torch.ones(1, **F64)
    call = {
        "clipped_surrogate": lambda **k: clipped_surrogate(
            logp, old, one, epsilon=0.2, level="sequence", **k
        ),
        "cispo": lambda **k: cispo(logp, old, one, epsilon_high=0.2, level="sequence", **k),
    }[which]
    for missing in ({"segment": torch.zeros(1).long()}, {"n_sequences": 1}, {}):
        with pytest.raises(ValueError, match="needs `segment` and `n_sequences`"):
            call(**missing)


# --- CISPO -------------------------------------------------------------------------------------


def test_cispo_by_hand():
    """Held above only, a constant: every token keeps the gradient of its log-prob."""
    logp, old = given([1.0, 1.5, 0.1, 1.5, 7.0])
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, 0.0], **F64)
    out = cispo(logp, old, advantages, epsilon_high=0.25)
    weights = torch.tensor([1.0, 1.25, 0.1, 1.25, 1.25], **F64)
    torch.testing.assert_close(out.losses, -weights * advantages * logp)
    torch.testing.assert_close(gradient(out.losses, logp), -weights * advantages)
    assert out.clipped_high.tolist() == [False, True, False, True, False]
    assert not out.clipped_low.any()
    assert out.ratio.tolist() == pytest.approx([1.0, 1.5, 0.1, 1.5, 7.0])


def test_cispo_of_sequences():
    logp, old = given([2.0, 0.5, 8.0, 0.7, 1.0, 1.0])
    out = cispo(
        logp,
        old,
        torch.ones(N, **F64),
        epsilon_high=0.5,
        level="sequence",
        segment=SEGMENT,
        n_sequences=S,
    )
    expected = [-1.5, -1.5, -1.5, -0.7, -1.0, -1.0]
    assert gradient(out.losses, logp).tolist() == pytest.approx(expected, rel=1e-12)


# --- weights and masks -------------------------------------------------------------------------


def losses_of(name: str, logp: Tensor, old: Tensor, advantages: Tensor, **options) -> Tensor:
    if name == "cispo":
        return cispo(logp, old, advantages, epsilon_high=0.2, **options).losses
    if name == "sequence":
        options = {"segment": SEGMENT, "n_sequences": S, "level": "sequence", **options}
    return clipped_surrogate(logp, old, advantages, epsilon=0.2, **options).losses


THREE = pytest.mark.parametrize("name", ["token", "sequence", "cispo"])


@THREE
def test_weights_multiply_and_have_no_gradient(name):
    logp, old, advantages = draw(0, 0.3).requires_grad_(), draw(1, 0.3), draw(2)
    weights = torch.tensor([0.5, 2.0, 1.0, 0.0, 1.0, 3.0], **F64).requires_grad_()
    losses = losses_of(name, logp, old, advantages, weights=weights)
    plain = losses_of(name, logp, old, advantages)
    torch.testing.assert_close(losses, plain * weights.detach())
    assert torch.autograd.grad(losses.sum(), weights, allow_unused=True)[0] is None


@THREE
def test_a_weight_of_zero_leaves_no_infinity(name):
    logp = torch.zeros(N, requires_grad=True)
    old = torch.zeros(N)
    old[3] = -1000.0
    weights = torch.ones(N)
    weights[3] = 0.0
    losses = losses_of(name, logp, old, -torch.ones(N), weights=weights)
    slopes = gradient(losses, logp)
    assert losses[3] == 0.0 == slopes[3]
    assert losses.isfinite().all() and slopes.isfinite().all()


@THREE
@pytest.mark.parametrize("poison", POISON)
def test_masked_tokens_are_as_if_absent_whatever_they_hold(name, poison):
    """By selection: a product with 0 would leave NaN in values and gradients."""
    tensors = [draw(0, 0.3), draw(1, 0.3), draw(2)]
    kept = {"segment": SEGMENT[MASK]} if name == "sequence" else {}
    alone = [t[MASK].clone() for t in tensors]
    alone[0].requires_grad_()
    expected = losses_of(name, *alone, **kept)
    for t in tensors:
        t[~MASK] = poison
    tensors[0].requires_grad_()
    losses = losses_of(name, *tensors, mask=MASK)
    torch.testing.assert_close(losses[MASK], expected)
    assert (losses[~MASK] == 0).all()
    slopes = gradient(losses, tensors[0])
    torch.testing.assert_close(slopes[MASK], gradient(expected, alone[0]))
    assert (slopes[~MASK] == 0).all()
    options = {"mask": MASK, "segment": SEGMENT, "n_sequences": S}
    out = clipped_surrogate(*tensors, epsilon=0.2, **options)
    assert (out.ratio[~MASK] == 1).all()
    assert not (out.clipped_low | out.clipped_high)[~MASK].any()


@THREE
def test_nothing_is_a_loss_of_zero(name):
    none = torch.empty(0, requires_grad=True)
    kept = {"segment": SEGMENT[:0]} if name == "sequence" else {}
    losses = losses_of(name, none, torch.empty(0), torch.empty(0), **kept)
    assert losses.sum() == 0 and gradient(losses, none).shape == (0,)
    logp = draw(0).requires_grad_()
    losses = losses_of(name, logp, draw(1), draw(2), mask=torch.zeros(N, dtype=torch.bool))
    assert not losses.any() and not gradient(losses, logp).any()


@THREE
def test_advantages_and_old_log_probs_are_constants(name):
    logp, old, advantages = (draw(i, 0.3).requires_grad_() for i in range(3))
    losses = losses_of(name, logp, old, advantages)
    grads = torch.autograd.grad(losses.sum(), (logp, old, advantages), allow_unused=True)
    assert grads[0] is not None and grads[1] is None and grads[2] is None


@pytest.mark.parametrize("options", [{}, {"delta": 1.6}, {"log_ratio_clamp": 0.6}, {"mask": MASK}])
def test_gradients_are_numerical_ones(options):
    logp, old, advantages = draw(0, 0.5).requires_grad_(), draw(1, 0.5), draw(2)
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, old, advantages, epsilon=0.2, **options).losses, (logp,)
    )


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
