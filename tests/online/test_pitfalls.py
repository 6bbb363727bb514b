"""The pitfalls of docs/online-pitfalls.md, by number, and mutants that fall into them.

Here are those of losses and advantages, in test_pitfalls_rollouts.py those of rewards, credit and
engines; the page names the tests of the others, and `test_every_row_has_its_test` holds it to that.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from online.mutants import mutated
from palate.losses import (
    advantages,
    clipped_surrogate,
    correction_weights,
    denominators,
    equal_scores,
    group_advantages,
    kl_estimate,
    leave_one_out,
    loss_counts,
    outliers,
    policy_gradient,
    whiten,
)

ROOT = Path(__file__).parents[2]
F64 = {"dtype": torch.float64}


# --- 1: old log-probs frozen -------------------------------------------------------------------


def learns_by_the_ratio(module: ModuleType) -> None:
    logp = torch.tensor([-1.0, -1.0], requires_grad=True)
    old = logp.detach() - torch.tensor([1.0, 0.1])
    out = module.clipped_surrogate(logp, old, torch.ones(2), epsilon=0.2)
    assert out.clipped_high.tolist() == [True, False]
    assert torch.autograd.grad(out.losses.sum(), logp)[0].tolist() == pytest.approx(
        [0.0, -math.exp(0.1)]
    )


def test_01_a_ratio_that_is_always_1_is_seen():
    learns_by_the_ratio(policy_gradient)
    inert = mutated(policy_gradient, "logp - old_logp.detach()", "logp - logp.detach()")
    with pytest.raises(AssertionError):
        learns_by_the_ratio(inert)


# --- 6: which value is whose --------------------------------------------------------------------


def values_belong_to_the_state_before(module: ModuleType) -> None:
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75])
    out, returns = module.gae(rewards, values, torch.zeros(3).long(), gamma=1.0, lam=0.5)
    # Errors -0.25, 0.5, 0.25.
    assert out.tolist() == pytest.approx([0.0625, 0.625, 0.25])
    assert returns.tolist() == pytest.approx([0.5625, 0.875, 1.0])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("following - values", "following - following"),
        ("values.roll(-1))", "values)"),
        ("values.roll(-1))", "values.roll(1))"),
        ("advantages + values", "advantages + following"),
    ],
)
def test_06_values_off_by_one_are_seen(before, after):
    values_belong_to_the_state_before(advantages)
    with pytest.raises(AssertionError):
        values_belong_to_the_state_before(mutated(advantages, before, after))


# --- 11: masks ---------------------------------------------------------------------------------


def masked_tokens_leave_no_trace(module: ModuleType) -> None:
    mask = torch.tensor([True, False, True])
    bad = torch.tensor([-1.0, math.nan, -2.0])
    for poison in (math.nan, math.inf, -math.inf):
        bad[1] = poison
        logp = bad.clone().requires_grad_()
        losses = module.clipped_surrogate(logp, bad, bad, epsilon=0.2, mask=mask).losses
        losses = losses + module.kl_estimate(logp, bad, "k3", mask=mask)
        losses = losses + module.clipped_value_loss(logp, bad, bad, 0.2, mask=mask)[0]
        (slope,) = torch.autograd.grad(losses.sum(), logp)
        assert losses.isfinite().all() and slope.isfinite().all()
        assert losses[1] == 0 == slope[1]


def test_11_a_mask_by_multiplication_is_seen():
    masked_tokens_leave_no_trace(policy_gradient)
    broken = mutated(policy_gradient, "torch.where(mask, values, 0.0)", "values * mask")
    with pytest.raises(AssertionError):
        masked_tokens_leave_no_trace(broken)


def test_11_a_statistic_over_masked_values_is_seen():
    def check(module: ModuleType) -> None:
        values, mask = torch.tensor([1.0, math.nan, 3.0]), torch.tensor([True, False, True])
        white = module.whiten(values, mask=mask)
        assert white.tolist() == pytest.approx([-(0.5**0.5), 0.0, 0.5**0.5])

    check(advantages)
    with pytest.raises(AssertionError):
        check(mutated(advantages, "values.detach()[mask]", "values.detach() * mask"))


# --- 14: the mean of the KL --------------------------------------------------------------------


def distributions() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 50, generator=g, **F64)
    return logits[0].log_softmax(0), logits[1].log_softmax(0)


def test_14_k1_below_zero_in_the_mean_shows_samples_of_another_policy():
    """Of the policy's own samples the mean of every estimate is the KL, or above 0; of samples of a
    sharper one k1's is not, while k3 cannot show it."""
    policy, reference = distributions()
    for form in ("k1", "k2", "k3"):
        assert (policy.exp() * kl_estimate(policy, reference, form)).sum() > 0
    policy = (0.9 * reference + 0.1 * policy).log_softmax(0)
    sharper = (3 * reference).log_softmax(0)
    k1, k3 = (
        float((sharper.exp() * kl_estimate(policy, reference, f)).sum()) for f in ("k1", "k3")
    )
    assert k1 < 0 < k3


# --- 25, 37: denominators ----------------------------------------------------------------------

SEGMENT = torch.tensor([0, 0, 0, 1, 2, 2])


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_25_a_step_is_one_sum_over_one_count_however_it_is_cut(loss_type):
    losses = torch.arange(1.0, 7.0)

    def step(cuts: list[Tensor]) -> float:
        total, count = 0.0, 0.0
        for rows in cuts:
            names, segment = SEGMENT[rows].unique(return_inverse=True)
            factor, per = denominators(loss_type, segment, len(names), 4)
            total += float((losses[rows] * factor).sum())
            count += loss_counts(segment, len(names))[per]
        return total / count

    expected = {"grpo": (2 + 4 + 5.5) / 3, "dr_grpo": 21 / 12, "dapo": 21 / 6}[loss_type]
    assert step([SEGMENT >= 0]) == pytest.approx(expected)
    assert step([SEGMENT == 0, SEGMENT > 0]) == pytest.approx(expected)
    assert step([SEGMENT == 2, SEGMENT == 0, SEGMENT == 1]) == pytest.approx(expected)


def test_25_each_denominator_weighs_length_as_it_says():
    """Two responses of equal advantage, of 1 token and of 9: what a token weighs."""
    segment = torch.tensor([0] + [1] * 9)
    weights = {t: denominators(t, segment, 2, 10)[0] for t in ("grpo", "dr_grpo", "dapo")}
    assert (weights["grpo"][0] / weights["grpo"][1]).item() == pytest.approx(9.0)
    assert (weights["dr_grpo"] == weights["dr_grpo"][0]).all()
    assert (weights["dapo"] == 1).all()


def counts_only_what_is_trained(module: ModuleType) -> None:
    mask = torch.tensor([True, False, True, False, True, True])
    losses = module.clipped_surrogate(
        torch.zeros(6), torch.zeros(6), torch.full((6,), -3.0), epsilon=0.2, mask=mask
    ).losses
    for loss_type in ("grpo", "dapo"):
        factor, per = module.denominators(loss_type, SEGMENT, 3, 4, mask=mask)
        value = (losses * factor).sum() / module.loss_counts(SEGMENT, 3, mask=mask)[per]
        # The mean of equal losses is that loss.
        assert value.item() == pytest.approx(3.0)


def test_37_masked_tokens_left_in_a_denominator_are_seen():
    counts_only_what_is_trained(policy_gradient)
    broken = mutated(policy_gradient, "if mask is None else mask.float()", "if True else None")
    with pytest.raises(AssertionError):
        counts_only_what_is_trained(broken)


# --- 29, 34, 35, 36: the engine's log-probs ----------------------------------------------------


def test_29_the_correction_has_the_mean_under_the_policy():
    """Uncapped, samples of the engine weighted by it have any mean of the trainer's policy."""
    policy, engine = distributions()
    weights = correction_weights(
        policy, engine, torch.arange(50), level="token", mode="truncate", cap=1e9
    )
    values = torch.arange(50.0, **F64)
    torch.testing.assert_close(
        (engine.exp() * weights * values).sum(), (policy.exp() * values).sum()
    )
    capped = correction_weights(
        policy, engine, torch.arange(50), level="token", mode="truncate", cap=2.0
    )
    assert capped.max() == pytest.approx(2.0) and (capped <= weights + 1e-12).all()


def test_34_top_p_makes_the_mean_ratio_the_kept_mass():
    """It looks like a mismatch of rounding and is none: recipes take it only with a correction."""
    policy, _ = distributions()
    order = policy.argsort(descending=True)
    kept = order[policy[order].exp().cumsum(0) - policy[order].exp() < 0.8]
    mass = policy[kept].exp().sum()
    engine = policy[kept] - mass.log()
    weights = correction_weights(
        policy[kept], engine, torch.arange(len(kept)), level="token", mode="truncate", cap=2.0
    )
    assert 0.8 <= mass < 1
    torch.testing.assert_close((engine.exp() * weights).sum(), mass)


def test_35_the_weight_of_a_sequence_is_the_product():
    old, engine = torch.full((200,), -1.0, **F64), torch.full((200,), -0.997, **F64)
    segment = torch.zeros(200).long()
    by_sequence = correction_weights(
        old, engine, segment, level="sequence", mode="truncate", cap=2.0
    )
    assert by_sequence.tolist() == pytest.approx([math.exp(-0.6)] * 200)
    # The geometric mean would hide it.
    assert float((old - engine).mean().exp()) == pytest.approx(0.997, abs=1e-4)


def test_36_a_log_prob_that_the_engine_did_not_give_corrects_nothing():
    old, engine = torch.tensor([-1.0, -2.0]), torch.tensor([math.nan, -2.5])
    for level, expected in (("token", [1.0, math.exp(0.5)]), ("sequence", [math.exp(0.5)] * 2)):
        weights = correction_weights(
            old, engine, torch.zeros(2).long(), level=level, mode="truncate", cap=2.0
        )
        assert weights.tolist() == pytest.approx(expected)
    # What is masked out stays out whatever the ratio is.
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    out = clipped_surrogate(
        logp,
        torch.tensor([-1e4, -2.0]),
        -torch.ones(2),
        epsilon=0.2,
        weights=torch.tensor([0.0, 1]),
    )
    (slope,) = torch.autograd.grad(out.losses.sum(), logp)
    assert out.losses.tolist() == [0.0, 1.0] and slope.tolist() == [0.0, 1.0]


# --- the further ones --------------------------------------------------------------------------


def test_44_zero_variance_is_exact_equality_over_the_whole_group():
    """Not a deviation near 0, and not leave-one-out, whose baseline of the one that differs sees
    equal scores."""
    scores = torch.tensor([0.3, 0.3, 0.3, 0.3 + 1e-6], **F64)
    group = torch.zeros(4).long()
    assert not equal_scores(scores, group).any() and scores.std() < 1e-6
    assert (leave_one_out(scores, group) != 0).all()
    assert equal_scores(scores[:3], group[:3]).all()
    for scale in ("group", "batch", "none"):
        assert not group_advantages(scores[:3], group[:3], scale=scale).any()
        assert not group_advantages(scores[:1], group[:1], scale=scale).any()


def test_45_the_filter_of_outliers_removes_no_whole_batch():
    """As published: standardised values against the raw mean -+ 3, so that a mean far from 0
    removes all; with |z| a shift changes nothing."""
    values = torch.randn(100, generator=torch.Generator().manual_seed(0), **F64)
    values[7] = 20.0
    white = whiten(values + 50.0)
    published = (white > values.mean() + 50 + 3) | (white < values.mean() + 50 - 3)
    assert published.all()
    for shift in (0.0, 50.0):
        assert outliers(values + shift, 3.0).nonzero().tolist() == [[7]]


# --- the page ----------------------------------------------------------------------------------

PAGE = (ROOT / "docs/online-pitfalls.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)


def test_every_pitfall_has_a_row():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 49))


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_row_has_its_test(row):
    """Or the reason why it cannot apply."""
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[3])
    assert tests or row[3].startswith("cannot apply: "), row
    for file, name in tests:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", text, re.MULTILINE), f"{file} has no {name}"
