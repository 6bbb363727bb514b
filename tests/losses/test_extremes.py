"""Finite values and gradients where numbers are extreme or absent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loss_cases import (
    ALL_PAIR_LOSSES,
    COUNTS,
    call,
    gradients,
    random_pairs,
    random_stats,
)
from palate.losses import LOSSES, SequenceStats, fdpo, kto
from palate.losses.divergences import score_function
from palate.losses.nll import log_odds
from palate.losses.outcome import per_token

EXTREMES = [-1000.0, -200.0, -88.0, 0.0, 88.0, 200.0, 1000.0]


@ALL_PAIR_LOSSES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_extreme_log_ratios(member, dtype):
    m_w, m_l = (
        x.flatten().to(dtype) for x in torch.meshgrid(*[torch.tensor(EXTREMES)] * 2, indexing="ij")
    )

    def side(m):
        # Log-probs are never positive: a ratio above 0 lies in the reference.
        zero = torch.zeros_like(m)
        return SequenceStats(
            logp=m.clamp(max=0.0).requires_grad_(),
            ref_logp=(-m).clamp(max=0.0),
            length=torch.ones_like(m),
            kl=(zero + 1000.0).requires_grad_(),
        )

    chosen, rejected = side(m_w), side(m_l)
    output = call(member, chosen, rejected)
    for term in output.terms:
        assert term.losses.isfinite().all()
    for g in gradients(output, chosen, rejected):
        assert g.isfinite().all()
    assert output.chosen_rewards.isfinite().all()
    assert all(v.isfinite().all() for v in output.statistics.values())


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_far_below_the_reference_pairs_keep_order_and_gradient(divergence):
    """Where exp would overflow: a pair in the wrong order has a loss and learns."""
    one = torch.ones(2)
    chosen = SequenceStats(
        logp=torch.tensor([-220.0, -200.0], requires_grad=True), ref_logp=0 * one, length=one
    )
    rejected = SequenceStats(
        logp=torch.tensor([-200.0, -220.0], requires_grad=True), ref_logp=0 * one, length=one
    )
    output = fdpo(chosen, rejected, divergence=divergence)
    losses = output.terms[0].losses
    assert losses[0] > 1.0
    assert losses[1].item() == pytest.approx(0.0, abs=1e-6)
    push = torch.autograd.grad(losses[0], (chosen.logp, rejected.logp))
    assert push[0][0] < 0 < push[1][0]


def test_scores_are_exact_to_20_nats_below_the_reference_and_linear_beyond():
    for divergence, slope in (("forward_kl", 1.0), ("alpha", 0.5)):
        score = score_function(divergence)
        for nats in (1.0, 12.0, 19.9, 20.0):
            got = score(torch.tensor(-nats / slope, dtype=torch.float64)).item()
            assert got == pytest.approx((1 - math.exp(nats)) / slope, rel=1e-12)
        beyond = score(torch.tensor(-25.0 / slope, dtype=torch.float64)).item()
        assert beyond == pytest.approx((1 - 6 * math.exp(20)) / slope, rel=1e-12)


@given(logits=st.lists(st.floats(-1000, 1000), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_kto_is_finite_and_bounded(logits):
    logp = torch.tensor(logits, requires_grad=True)
    stats = SequenceStats(logp=logp, ref_logp=torch.zeros_like(logp), length=torch.ones_like(logp))
    desirable = torch.arange(len(logits)) % 2 == 0
    output = kto(stats, desirable=desirable, kl_baseline=torch.tensor(5.0))
    losses = output.terms[0].losses
    assert ((losses >= 0) & (losses <= 1)).all()
    (g,) = torch.autograd.grad(losses.sum(), logp)
    assert g.isfinite().all()
    assert (g[desirable] <= 0).all() and (g[~desirable] >= 0).all()


def test_an_empty_response_has_a_mean_of_zero():
    stats = SequenceStats(logp=torch.zeros(3), length=torch.tensor([2.0, 1.0, 0.0]))
    assert per_token(torch.tensor([-3.0, -2.0, 0.0]), stats).tolist() == [-1.5, -2.0, 0.0]


@pytest.mark.parametrize("p", [0.5, 0.9, 0.999, 0.99999])
def test_log_odds_are_exact_up_to_one_in_a_million(p):
    mean = torch.tensor(p, dtype=torch.float64).log()
    assert log_odds(mean).item() == pytest.approx(math.log(p / (1 - p)), abs=1e-9)


def test_log_odds_of_certainty_are_those_of_one_in_a_million():
    for mean in (-1e-7, 0.0):
        odds = log_odds(torch.tensor(mean, dtype=torch.float64)).item()
        assert odds == pytest.approx(math.log(1e6), abs=1e-5)


def test_orpo_with_certain_responses_is_finite():
    zero = torch.zeros(2, requires_grad=True)
    sure = SequenceStats(logp=zero, length=torch.ones(2))
    output = LOSSES["orpo"].function(sure, sure)
    (g,) = torch.autograd.grad(output.value(COUNTS), zero)
    assert g.isfinite().all() and output.terms[0].losses.isfinite().all()


@ALL_PAIR_LOSSES
def test_empty_batch_is_a_differentiable_zero(member):
    chosen, rejected = random_pairs(0)
    for counts in (COUNTS, {"pair": 0, "chosen_token": torch.tensor(0)}):
        value = call(member, chosen, rejected).value(counts)
        value.backward()
        assert value.item() == 0.0
    assert chosen.logp.grad.shape == (0,)


def test_empty_unpaired_batch_is_a_differentiable_zero():
    stats = random_stats(0, seed=0)
    none = torch.zeros(0, dtype=torch.bool)
    value = kto(stats, desirable=none, kl_baseline=torch.zeros(())).value({"sequence": 0})
    value.backward()
    assert value.item() == 0.0
