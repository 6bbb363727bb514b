"""Losses of online learning: clipped surrogates, CISPO, KL estimates, the value loss, denominators.

N trained tokens of the responses that a policy sampled, flat; r_t = policy / policy at the rollout,
A_t the advantage. No function reduces: a step's loss is the sum over tokens of loss times its
factor (`denominators`), divided by a count over the whole step. `mask` [N] is True where a token
counts; values and gradients elsewhere are exactly 0, whatever the tensors hold there.
docs/online-maths.md has the formulas side by side, and where public implementations differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from palate.losses.advantages import later_sums
from palate.losses.sequence import Per

Level = Literal["token", "sequence"]
KlForm = Literal["k1", "k2", "k3"]
LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo"]


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """A policy loss of N tokens.

    Attributes:
        losses: [N] to be minimised, without denominators.
        ratio: [N] detached policy / policy at the rollout, neither clamped nor clipped; of the
            sequence at each of its tokens where the level is the sequence; 1 where masked.
        clipped_low, clipped_high: [N] bool, the token has no gradient because its ratio is below or
            above the bound on its side; of CISPO: its weight is held at the bound.
    """

    losses: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    *,
    epsilon: float,
    epsilon_high: float | None = None,
    delta: float | None = None,
    log_ratio_clamp: float | None = None,
    level: Level = "token",
    segment: Tensor | None = None,
    n_sequences: int | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
) -> TokenLoss:
    """-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A), the loss of PPO, GRPO, RLOO and DAPO.

    PPO, arXiv:1707.06347 Eq. 7; two bounds: DAPO, arXiv:2503.14476. It is -A times r, held below
    1 + epsilon_high where A >= 0 and above 1 - epsilon where A < 0, and computed so, that no
    overflow of an unused branch reaches the gradient.

    Args:
        logp: [N] of the policy, with gradient. old_logp: [N] of the policy at the rollout.
        advantages: [N], constants.
        epsilon_high: default: epsilon.
        delta: upper bound of r where A < 0, arXiv:2505.07291 (TRL's `delta`), above
            1 + epsilon_high. Without it r is unbounded there, and float32 overflows at 88 nats.
        log_ratio_clamp: log r is held within +- this before it is exponentiated, without a gradient
            outside: StableReinforce's pre-clip, arXiv:2505.02835, which has log 1000.
        level: `sequence`: one ratio a response, the geometric mean of its tokens' (GSPO,
            arXiv:2507.18071), with each token's own gradient (its GSPO-token). Where
            advantages are the same all over a row that is GSPO, value and gradient; where they vary
            each token is clipped and answers by its own, as in verl, not by the row's mean.
        segment, n_sequences: [N] int64, sequence of each token, and how many there are; for
            `level: sequence`.
        weights: [N] constants that multiply the losses (`correction_weights`). What has a weight of
            0 has no gradient but stays in the denominators, as in TRL and verl.
        mask: [N] bool, True = counted; also in the geometric mean.

    Returns:
        The losses. What `delta` holds counts as clipped above; TRL's clip fractions leave it out.

    Raises:
        ValueError: `level: sequence` without its segments.
    """
    log_ratio = _log_ratio(
        logp, old_logp, level=level, segment=segment, n_sequences=n_sequences, mask=mask
    )
    ratio = log_ratio.detach().exp()
    advantages = _masked(advantages.detach(), mask)
    if log_ratio_clamp is not None:
        log_ratio = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp)
    log_ratio = _without_rejected(log_ratio, weights)
    high = epsilon if epsilon_high is None else epsilon_high
    raise_it = advantages >= 0
    upper = torch.full_like(log_ratio, math.inf if delta is None else math.log(delta))
    upper = upper.masked_fill(raise_it, math.log1p(high))
    lower = torch.full_like(log_ratio, math.log1p(-epsilon) if epsilon < 1 else -math.inf)
    lower = lower.masked_fill(raise_it, -math.inf)
    held = log_ratio.clamp(lower, upper)
    matters = advantages != 0
    return TokenLoss(
        losses=_weighted(-advantages * held.exp(), weights),
        ratio=ratio,
        clipped_low=(log_ratio < lower) & matters,
        clipped_high=(log_ratio > upper) & matters,
    )


def cispo(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    *,
    epsilon_high: float,
    log_ratio_clamp: float | None = None,
    level: Level = "token",
    segment: Tensor | None = None,
    n_sequences: int | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
) -> TokenLoss:
    """-sg(min(r, 1 + epsilon_high)) A log policy: CISPO, arXiv:2506.13585.

    The weight is held above only and is a constant, so that every token keeps a gradient. TRL's
    `epsilon_high` is the bound itself: 1 + ours. Arguments as in `clipped_surrogate`.

    Returns:
        The losses; `clipped_high` where the bound holds the weight, for either sign of A (TRL
        counts positive ones only).
    """
    log_ratio = _log_ratio(
        logp.detach(), old_logp, level=level, segment=segment, n_sequences=n_sequences, mask=mask
    )
    ratio = log_ratio.exp()
    advantages = _masked(advantages.detach(), mask)
    if log_ratio_clamp is not None:
        log_ratio = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp)
    bound = math.log1p(epsilon_high)
    weight = _without_rejected(log_ratio, weights).clamp(max=bound).exp()
    return TokenLoss(
        losses=_weighted(-weight * advantages * _masked(logp, mask), weights),
        ratio=ratio,
        clipped_low=torch.zeros_like(advantages, dtype=torch.bool),
        clipped_high=(log_ratio > bound) & (advantages != 0),
    )


def kl_estimate(
    logp: Tensor,
    ref_logp: Tensor,
    form: KlForm,
    *,
    old_logp: Tensor | None = None,
    clamp: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """[N] estimates of KL(policy || reference) from the drawn token, differentiable in logp.

    With q = log policy - log reference: k1 = q, k2 = q^2 / 2, k3 = exp(-q) - 1 + q (Schulman,
    "Approximating KL divergence", 2020). Over samples of the policy, at one token:

                                   mean                          mean of the gradient
        k1                         KL(policy || reference)   0: for rewards, not for losses
        k2                         its second-order term     that of KL(policy || reference)
        k3                         KL(policy || reference)   that of KL(reference || policy)
        k3 with `old_logp`         KL(policy || reference)   that of KL(policy || reference)

    None has the term of the KL that later tokens come to: see `future_kl`.

    Args:
        old_logp: [N] multiplies by policy / policy at the rollout, with its gradient: the bias
            correction of DeepSeek-V3.2, TRL's `use_bias_correction_kl`. TRL takes the sequence's
            ratio where the loss does; here it is the token's, whose KL it is.
        clamp: holds q, and log r of `old_logp`, within +- this, without a gradient outside.
        mask: [N] bool, True = counted; 0 elsewhere.
    """
    q = _masked(logp - ref_logp, mask)
    if clamp is not None:
        q = q.clamp(-clamp, clamp)
    if form == "k1":
        estimate = q
    elif form == "k2":
        estimate = 0.5 * q.square()
    elif form == "k3":
        estimate = torch.expm1(-q) + q
    else:
        raise ValueError(f"no KL estimate {form!r}; there are k1, k2, k3")
    if old_logp is None:
        return estimate
    log_ratio = _masked(logp - old_logp, mask)
    if clamp is not None:
        log_ratio = log_ratio.clamp(-clamp, clamp)
    return log_ratio.exp() * estimate


def future_kl(
    logp: Tensor,
    kl: Tensor,
    segment: Tensor,
    *,
    old_logp: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """[N] r_t times the KL of the sequence's later tokens, which an exact KL in the loss lacks.

    The gradient of E sum_t KL_t, the KL of a whole response, has two parts: that of each KL_t at
    its state, which autograd gives, and sum_t grad log policy(y_t) sum_{s > t} KL_s, since what is
    drawn at t decides which states follow (arXiv:2512.21852). KL_t + future_kl has both, and its
    fixed point is reference * exp(reward / beta).

    Args:
        kl: [N] exact KL(policy || reference) at each token's state; a constant here.
        segment: [N] int64, sequence of each token, whose tokens are contiguous and in order.
        old_logp: [N] of the policy that sampled; default: this policy (r_t = 1).
        mask: [N] bool, True = counted; 0 elsewhere, and no KL there counts.
    """
    old_logp = logp.detach() if old_logp is None else old_logp
    later = later_sums(_masked(kl.detach(), mask), segment)
    return _masked(_masked(logp - old_logp, mask).exp() * later, mask)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    epsilon: float | None,
    *,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """0.5 max((V - R)^2, (clip(V, V_old - epsilon, V_old + epsilon) - R)^2), baselines' PPO2.

    Args:
        values: [N] with gradient. old_values, returns: [N] constants of the rollout.
        epsilon: None: 0.5 (V - R)^2.
        mask: [N] bool, True = counted.

    Returns:
        [N] losses; [N] bool, True where the clipped error is the larger, which has no gradient.
    """
    plain = _masked(values - returns, mask).square()
    if epsilon is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    moved = old_values + (values - old_values).clamp(-epsilon, epsilon)
    held = _masked(moved - returns, mask).square()
    return 0.5 * torch.maximum(plain, held), held > plain


def denominators(
    loss_type: LossType,
    segment: Tensor,
    n_sequences: int,
    max_new_tokens: int,
    *,
    mask: Tensor | None = None,
) -> tuple[Tensor, Per]:
    """What sums of token losses are divided by.

        grpo      1 / counted tokens of the sequence, per sequence (arXiv:2402.03300)
        dr_grpo   1 / max_new_tokens, per sequence: a token's share is the same in responses of any
                  length (arXiv:2503.20783)
        dapo      1, per token of the whole optimizer step (arXiv:2503.14476); bnpo, cispo: likewise

    Args:
        segment: [N] int64, sequence of each token, in 0..n_sequences-1.
        mask: [N] bool, True = counted: no other token is in a denominator.

    Returns:
        [N] float32 factor of each token's loss, and of what the count divides the sum
        (`loss_counts`, summed over the whole step).
    """
    if loss_type == "grpo":
        lengths = _counted(segment, n_sequences, mask).clamp(min=1)
        return lengths.reciprocal()[segment], "sequence"
    ones = torch.ones(len(segment), device=segment.device)
    if loss_type == "dr_grpo":
        return ones / max_new_tokens, "sequence"
    if loss_type in ("dapo", "bnpo", "cispo"):
        return ones, "token"
    raise ValueError(f"no loss type {loss_type!r}; there are grpo, dr_grpo, dapo, bnpo, cispo")


def loss_counts(
    segment: Tensor, n_sequences: int, *, mask: Tensor | None = None
) -> dict[Per, float]:
    """Of some tokens how many count, and how many sequences have one that does.

    A response that is masked as a whole (a truncated one, say) is in no denominator; TRL leaves it
    in that of sequences.
    """
    counted = _counted(segment, n_sequences, mask)
    return {"token": float(counted.sum()), "sequence": float((counted > 0).sum())}


def _counted(segment: Tensor, n_sequences: int, mask: Tensor | None) -> Tensor:
    """[S] float32 counted tokens of each sequence."""
    counted = torch.ones(len(segment), device=segment.device) if mask is None else mask.float()
    return counted.new_zeros(n_sequences).index_add(0, segment, counted)


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Zero where masked, by selection: 0 times an infinity is no number."""
    return values if mask is None else torch.where(mask, values, 0.0)


def _log_ratio(
    logp: Tensor,
    old_logp: Tensor,
    *,
    level: Level,
    segment: Tensor | None,
    n_sequences: int | None,
    mask: Tensor | None,
) -> Tensor:
    """[N] log-ratio of the token, or of its sequence with the token's gradient; 0 if masked."""
    log_ratio = _masked(logp - old_logp.detach(), mask)
    if level == "token":
        return log_ratio
    if segment is None or n_sequences is None:
        raise ValueError("a ratio of sequences needs `segment` and `n_sequences`")
    constant = log_ratio.detach()
    total = constant.new_zeros(n_sequences).index_add(0, segment, constant)
    mean = total / _counted(segment, n_sequences, mask).clamp(min=1).to(total.dtype)
    # x - sg(x) is 0 with the gradient of x: the value is exactly the sequence's.
    return _masked(mean[segment] + (log_ratio - constant), mask)


def _without_rejected(log_ratio: Tensor, weights: Tensor | None) -> Tensor:
    """0 where the weight is 0: an infinite ratio times that weight would be no number."""
    return log_ratio if weights is None else torch.where(weights != 0, log_ratio, 0.0)


def _weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses if weights is None else losses * weights.detach()
