"""Where each configuration of online learning ends, on an MDP that can be enumerated.

All are Palate's own losses and advantages, in expectation over all responses (or all groups of
them), run until the gradient is 0; and each must end at *its own* fixed point, found by other
means. The optimum reference * exp(score / beta) is that of some only; docs/online-maths.md prints
how far from it the others are, and these tests hold the figures there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from online.mdp import BETA, STEPS, Mdp, converge, exponential_tilt, forward_kl_step, groups
from online.mutants import mutated
from palate.losses import (
    SequenceStats,
    advantages,
    cispo,
    clipped_surrogate,
    denominators,
    discounted_returns,
    dpo,
    future_kl,
    gae,
    group_advantages,
    kl_estimate,
    leave_one_out,
    policy_gradient,
)

MDP = Mdp.drawn(seed=0)
M = len(MDP.tokens)
SEGMENT = MDP.segment
LAST = torch.arange(M * STEPS) % STEPS == STEPS - 1
SCORE = torch.where(LAST, MDP.scores[SEGMENT], 0.0)
"""[M * STEPS] the score as the reward of the last token."""
REF = MDP.of_tokens(MDP.ref)
GROUP_SIZE = 3
Loss = Callable[[Tensor], Tensor]
Returns = Callable[[Tensor, Tensor, float], Tensor]


def exact_kl(table: Tensor) -> Tensor:
    """[M * STEPS] KL(policy || reference) at the state of each token, with gradient."""
    return MDP.of_states((table.exp() * (table - MDP.ref)).sum(1))


def mean_of_responses(table: Tensor, losses: Tensor) -> Tensor:
    """Expectation over responses of their summed token losses; probabilities are constants."""
    factor, per = denominators("dr_grpo", SEGMENT, M, STEPS)
    assert per == "sequence"
    probability = MDP.logs(table).exp().detach()
    return STEPS * (losses * factor.double() * probability[SEGMENT]).sum()


def policy_loss(table: Tensor, worth: Tensor) -> Tensor:
    logp = MDP.of_tokens(table)
    return clipped_surrogate(logp, logp.detach(), worth, epsilon=0.2).losses


# --- PPO, REINFORCE, RLOO: k1 in the reward ----------------------------------------------------


def rewards(table: Tensor) -> Tensor:
    k1 = kl_estimate(MDP.of_tokens(table), REF, "k1").detach()
    return SCORE - BETA * k1


def k1_in_reward(table: Tensor, returns: Returns = discounted_returns) -> Tensor:
    return mean_of_responses(table, policy_loss(table, returns(rewards(table), SEGMENT, 1.0)))


def k1_in_reward_cispo(table: Tensor) -> Tensor:
    logp = MDP.of_tokens(table)
    returns = discounted_returns(rewards(table), SEGMENT, 1.0)
    losses = cispo(logp, logp.detach(), returns, epsilon_high=0.2).losses
    return mean_of_responses(table, losses)


def state_values(table: Tensor) -> Tensor:
    """[M * STEPS] mean return from the state before each token."""
    table = table.detach()
    first = discounted_returns(rewards(table), SEGMENT, 1.0)
    values = torch.zeros(len(MDP.ref), dtype=torch.float64)
    for step in range(STEPS):
        states, weight = MDP.states[:, step], MDP.logs(table).exp()
        total = torch.zeros_like(values).index_add(
            0, states, weight * first.view(M, STEPS)[:, step]
        )
        mass = torch.zeros_like(values).index_add(0, states, weight)
        values = torch.where(mass > 0, total / mass, values)
    return MDP.of_states(values)


def ppo(table: Tensor, estimator: Callable[..., tuple[Tensor, Tensor]] = gae) -> Tensor:
    values = state_values(table)
    estimate, _ = estimator(rewards(table), values, SEGMENT, gamma=1.0, lam=0.5)
    return mean_of_responses(table, policy_loss(table, estimate))


ROWS, ORDERS = groups(M, GROUP_SIZE)
GROUP = torch.arange(len(ROWS)).repeat_interleave(GROUP_SIZE)


def mean_of_groups(table: Tensor, worth: Tensor) -> Tensor:
    """Expectation over groups of GROUP_SIZE responses; worth: their advantages, flat."""
    probability = MDP.logs(table).exp().detach()
    weight = ORDERS * probability[ROWS].prod(1)
    logp = MDP.of_tokens(table).view(M, STEPS)[ROWS.flatten()].flatten()
    per_token = worth.repeat_interleave(STEPS)
    losses = clipped_surrogate(logp, logp.detach(), per_token, epsilon=0.2).losses
    return (losses.view(len(ROWS), -1).sum(1) * weight).sum() / GROUP_SIZE


def rloo(table: Tensor) -> Tensor:
    scores = discounted_returns(rewards(table), SEGMENT, 1.0).view(M, STEPS)[:, 0]
    return mean_of_groups(table, leave_one_out(scores[ROWS].flatten(), GROUP))


# --- a KL in the loss --------------------------------------------------------------------------


def kl_term(table: Tensor, *, form: str, corrected: bool = False, future: bool = False) -> Tensor:
    logp = MDP.of_tokens(table)
    if form == "exact":
        kl = exact_kl(table)
    else:
        kl = kl_estimate(logp, REF, form, old_logp=logp.detach() if corrected else None)
    return kl + future_kl(logp, kl, SEGMENT) if future else kl


def kl_in_loss(**options) -> Loss:
    def loss(table: Tensor) -> Tensor:
        losses = policy_loss(table, MDP.scores[SEGMENT]) + BETA * kl_term(table, **options)
        return mean_of_responses(table, losses)

    return loss


def grpo(scale: str, form: str) -> Loss:
    """Groups of GROUP_SIZE; the KL exact with its future term, or k3."""
    worth = group_advantages(MDP.scores[ROWS].flatten(), GROUP, scale=scale)

    def loss(table: Tensor) -> Tensor:
        kl = kl_term(table, form=form, future=form == "exact")
        return mean_of_groups(table, worth) + BETA * mean_of_responses(table, kl)

    return loss


def group_worth(p: Tensor) -> Tensor:
    """[M] mean over a group's others of (score - mean) / (deviation + 1e-4), by tensor sums."""
    r = MDP.scores
    a, b, c = r[:, None, None], r[None, :, None], r[None, None, :]
    mean = (a + b + c) / 3
    deviation = (((a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2) / 2).sqrt()
    return torch.einsum("abc,b,c->a", (a - mean) / (deviation + 1e-4), p, p)


# --- online DPO --------------------------------------------------------------------------------

A, B = torch.triu_indices(M, M, offset=1)


def online_dpo(probability_of_a: Tensor, *, sampler: str = "policy") -> Loss:
    """Every pair of two samples, in both orders with the probability of that label."""

    def loss(table: Tensor) -> Tensor:
        stats = SequenceStats.from_tokens(
            logp=MDP.of_tokens(table), ref_logp=REF, segment=SEGMENT, n_sequences=M
        )
        a, b = stats[A], stats[B]
        first, second = (dpo(*pair, beta=BETA).terms[0].losses for pair in ((a, b), (b, a)))
        p = MDP.logs(table if sampler == "policy" else MDP.ref).exp().detach()
        label = probability_of_a
        return (2 * p[A] * p[B] * (label * first + (1 - label) * second)).sum()

    return loss


GAP = MDP.scores[A] - MDP.scores[B]
SOFT, HARD = GAP.sigmoid(), (GAP > 0).double()


# --- the table ---------------------------------------------------------------------------------

OPTIMUM = MDP.optimum
NO_FUTURE = MDP.by_induction(exponential_tilt)
FORWARD = MDP.by_induction(forward_kl_step)
# A group's mean holds the response itself: its advantage is 1 - 1/n of that over the others.
CENTRED = MDP.tilted((1 - 1 / GROUP_SIZE) * MDP.scores / BETA)
DIVIDED = MDP.by_iteration(lambda p: MDP.tilted(group_worth(p) / BETA))
PUBLISHED = MDP.by_iteration(lambda p: MDP.by_induction(forward_kl_step, group_worth(p)))

CASES: dict[str, tuple[Loss, Tensor, float]] = {
    "k1 in the reward": (k1_in_reward, OPTIMUM, 0.5),
    "k1 in the reward, GAE": (ppo, OPTIMUM, 0.5),
    "k1 in the reward, RLOO": (rloo, OPTIMUM, 0.5),
    "k1 in the reward, CISPO": (k1_in_reward_cispo, OPTIMUM, 0.5),
    "exact KL in the loss, with future": (kl_in_loss(form="exact", future=True), OPTIMUM, 0.5),
    "k3 in the loss, bias correction, with future": (
        kl_in_loss(form="k3", corrected=True, future=True),
        OPTIMUM,
        0.5,
    ),
    "online DPO, soft or sampled labels": (online_dpo(SOFT), OPTIMUM, 4.0),
    "offline DPO, soft labels": (online_dpo(SOFT, sampler="reference"), OPTIMUM, 0.5),
    "exact KL in the loss, without future": (kl_in_loss(form="exact"), NO_FUTURE, 0.5),
    "k2 in the loss": (kl_in_loss(form="k2"), NO_FUTURE, 0.5),
    "k3 in the loss, bias correction": (kl_in_loss(form="k3", corrected=True), NO_FUTURE, 0.5),
    "k3 in the loss": (kl_in_loss(form="k3"), FORWARD, 0.2),
    "GRPO, undivided, exact KL with future": (grpo("none", "exact"), CENTRED, 0.5),
    "GRPO, divided, exact KL with future": (grpo("group", "exact"), DIVIDED, 0.5),
    "GRPO, divided, k3": (grpo("group", "k3"), PUBLISHED, 0.2),
}
"""Name in the docs -> loss, its own fixed point, rate of the steps towards it."""
LIMIT = -float(MDP.logs(OPTIMUM)[MDP.scores.argmax()])
"""KL to the optimum of the policy that gives the best response always."""
COLLAPSING: dict[str, tuple[Loss, float, int]] = {
    "online DPO, hard labels": (online_dpo(HARD), 4.0, 600),
    "k1 in the loss": (kl_in_loss(form="k1"), 0.5, 120),
}
"""Without a fixed point inside: name -> loss, rate and number of the steps."""


def ends_at_its_own_fixed_point(name: str) -> None:
    loss, target, rate = CASES[name]
    result = converge(MDP, loss, rate=rate)
    assert abs(MDP.kl(result, target)) < 1e-9
    assert abs(MDP.kl(target, result)) < 1e-9


def printed(name: str) -> str:
    """What the docs say how far a configuration ends from the optimum."""
    row = re.search(rf"^\| {re.escape(name)} \|.*\| ([\d.]+) \|$", DOCS, re.MULTILINE)
    assert row is not None, f"no row of {name!r}"
    return row[1]


DOCS = (Path(__file__).parents[2] / "docs/online-maths.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_each_ends_at_its_own_fixed_point(name):
    ends_at_its_own_fixed_point(name)


@pytest.mark.parametrize("name", CASES)
def test_how_far_from_the_optimum(name):
    far = abs(MDP.kl(CASES[name][1], OPTIMUM))
    assert printed(name) == (f"{far:.3f}" if far > 1e-9 else "0")


@pytest.mark.parametrize("name", COLLAPSING)
def test_those_that_collapse(name):
    """Towards the one response of the greatest score, with nothing that stops them."""
    loss, rate, steps = COLLAPSING[name]
    result = converge(MDP, loss, rate=rate, steps=steps, tolerance=None)
    assert MDP.logs(result)[MDP.scores.argmax()] > -1e-3
    assert MDP.kl(result, OPTIMUM) == pytest.approx(LIMIT, abs=2e-3)
    assert printed(name) == f"{LIMIT:.3f}"


def test_the_fixed_points_differ():
    """Else a test of one would pass on another."""
    points = [OPTIMUM, NO_FUTURE, FORWARD, CENTRED, DIVIDED, PUBLISHED]
    for i, one in enumerate(points):
        assert all(MDP.kl(one, other) > 5e-3 for other in points[:i])


# --- mutants -----------------------------------------------------------------------------------


def test_dropping_the_future_term_is_seen(monkeypatch):
    monkeypatch.setattr(policy_gradient, "later_sums", lambda values, _: 0 * values)
    name = "exact KL in the loss, with future"
    with pytest.raises(AssertionError):
        ends_at_its_own_fixed_point(name)
    result = converge(MDP, CASES[name][0], rate=0.5)
    assert abs(MDP.kl(result, NO_FUTURE)) < 1e-9


def test_charging_tokens_their_own_kl_only_is_seen():
    """REINFORCE++ as one project has it: scores are summed to the end, KLs are not."""

    def own_kl_only(values: Tensor, segment: Tensor, gamma: float) -> Tensor:
        return values - SCORE + discounted_returns(SCORE, segment, gamma)

    result = converge(MDP, partial(k1_in_reward, returns=own_kl_only), rate=0.5)
    assert abs(MDP.kl(result, NO_FUTURE)) < 1e-9
    assert MDP.kl(result, OPTIMUM) > 0.1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("following - values", "following - following"),
        ("torch.where(last, after, values.roll(-1))", "values"),
    ],
    ids=["value after the token for that before it", "value before it for that after it"],
)
def test_values_off_by_one_are_seen(before, after):
    broken = mutated(advantages, before, after).gae
    result = converge(MDP, partial(ppo, estimator=broken), rate=0.25)
    assert MDP.kl(result, OPTIMUM) > 1e-2
