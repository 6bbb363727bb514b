"""Policy losses against hand-derived numbers, numerical gradients, and what they do at extremes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from palate.losses import cispo, clipped_surrogate, denominators
from policy_cases import F64, MASK, POISON, SEGMENT, N, S, draw, given, gradient

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
