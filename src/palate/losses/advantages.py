"""Advantages of sampled responses: GAE, group baselines, whitening, importance corrections.

N trained tokens of S responses, flat: `segment` [N] int64 says whose each is, and those of a
response are contiguous and in order. Tokens that only stand between trained ones, such as a tool's
output, are not among them, so that every recursion steps over them. All functions see the whole
rollout, of all processes: that is what makes a statistic independent of how many there are. Nothing
here passes on a gradient except `later_sums` and `discounted_returns`, which are linear.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]

DEVIATION_EPSILON = 1e-4
"""Added to the deviation of scores before dividing by it, as TRL does.

Public implementations have 1e-9 to 1e-4. It bounds what a difference by rounding can grow to:
scores 1e-6 apart give advantages of a hundredth, where 1e-9 would make them 1.
"""

WHITEN_EPSILON = 1e-8
"""Added to the variance before whitening divides by its root (TRL's; 1e-6 in EasyLM)."""


def gae(
    rewards: Tensor,
    values: Tensor,
    segment: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, arXiv:1506.02438 Eq. 16.

    d_t = r_t + gamma V_{t+1} - V_t and A_t = d_t + gamma lam A_{t+1}; V_t is the value of the state
    in which token t is drawn, before it. After the last token V is `bootstrap` and A is 0.

    Args:
        rewards, values: [N].
        bootstrap: [S] value of the state after each sequence's last token: that of a truncated
            response, 0 where it has ended. Default: 0, a truncated response ends like another.

    Returns:
        [N] advantages and [N] returns A + V, what a value is trained towards.
    """
    rewards, values = rewards.detach(), values.detach()
    last = _last(segment)
    after = torch.zeros_like(values) if bootstrap is None else bootstrap.to(values)[segment]
    following = torch.where(last, after, values.roll(-1))
    advantages = _sums_to_the_end(rewards + gamma * following - values, segment, gamma * lam)
    return advantages, advantages + values


def discounted_returns(rewards: Tensor, segment: Tensor, gamma: float) -> Tensor:
    """[N] sum over s >= t of gamma^(s - t) r_s, within each sequence."""
    return _sums_to_the_end(rewards, segment, gamma)


def later_sums(values: Tensor, segment: Tensor) -> Tensor:
    """[N] sum of the values of the strictly later tokens of the sequence, undiscounted."""
    sums = _sums_to_the_end(values, segment, 1.0)
    return torch.where(_last(segment), 0.0, sums.roll(-1))


def group_means(scores: Tensor, group: Tensor) -> Tensor:
    """[G] float64 mean of each group's scores; NaN where it has none.

    Args:
        scores: [S]; NaN = not scored, takes no part.
        group: [S] int64 group of each response, in 0..G-1, in any order.
    """
    total, count = _group_sums(scores, group)
    return total / count


def equal_scores(scores: Tensor, group: Tensor) -> Tensor:
    """[G] bool, all scores of the group are exactly equal; True of a group with one or none.

    Such a group has no policy gradient. By comparison of its least and greatest score, not by a
    deviation: that of equal floats can come out above 0, and that of different ones at 0.
    """
    n_groups = _n_groups(group)
    scored = ~scores.isnan()
    least = scores.new_full((n_groups,), math.inf).scatter_reduce(
        0, group, torch.where(scored, scores, math.inf), "amin"
    )
    greatest = scores.new_full((n_groups,), -math.inf).scatter_reduce(
        0, group, torch.where(scored, scores, -math.inf), "amax"
    )
    return least >= greatest


def group_advantages(scores: Tensor, group: Tensor, *, scale: Scale) -> Tensor:
    """[S] score less its group's mean, over a deviation: GRPO, arXiv:2402.03300 Sec. 4.1.

    Args:
        scores: [S]; NaN = not scored: takes no part, advantage 0.
        group: [S] int64 group of each response, in 0..G-1, in any order.
        scale: `group`: over the group's unbiased deviation + DEVIATION_EPSILON; `batch`: over that
            of all scores; `none`: as it is (Dr. GRPO, arXiv:2503.20783).

    Returns:
        Advantages in the dtype of scores; exactly 0 in a group of one and in one of exactly equal
        scores.
    """
    exact = scores.detach().double()
    total, count = _group_sums(exact, group)
    centred = exact - (total / count)[group]
    if scale == "group":
        squares, _ = _group_sums(centred.square(), group)
        deviation = (squares / (count - 1).clamp(min=1)).sqrt()[group]
    elif scale == "batch":
        deviation = _deviation(exact[~exact.isnan()])
    elif scale == "none":
        return _learnable(centred, scores, group)
    else:
        raise ValueError(f"no scale {scale!r}; there are group, batch, none")
    return _learnable(centred / (deviation + DEVIATION_EPSILON), scores, group)


def leave_one_out(scores: Tensor, group: Tensor) -> Tensor:
    """[S] score less the mean of the group's other scores: RLOO, arXiv:2402.14740.

    Args:
        scores: [S]; NaN = not scored: takes no part, advantage 0.
        group: [S] int64 group of each response, in 0..G-1, in any order.

    Returns:
        Advantages in the dtype of scores; exactly 0 in a group of one and in one of exactly equal
        scores.
    """
    exact = scores.detach().double()
    total, count = _group_sums(exact, group)
    others = (total[group] - exact) / (count[group] - 1)
    return _learnable(exact - others, scores, group)


def whiten(
    values: Tensor,
    *,
    shift_mean: bool = True,
    unbiased: bool = True,
    epsilon: float = WHITEN_EPSILON,
    mask: Tensor | None = None,
) -> Tensor:
    """(values - mean) / sqrt(variance + epsilon), with statistics in float64.

    Args:
        values: [N], any number.
        shift_mean: False: the values keep their mean; only their spread is divided.
        unbiased: the variance's denominator is one less than the number of values.
        mask: [N] bool, True = counted, in the statistics too; 0 elsewhere.

    Returns:
        [N] in the dtype of values. Values that are all exactly equal, or a single one, have no
        spread: 0, or with `shift_mean: False` themselves.
    """
    counted = values.detach() if mask is None else values.detach()[mask]
    if counted.numel() == 0:
        return torch.zeros_like(values)
    if bool((counted == counted[0]).all()):
        white = torch.zeros_like(counted) if shift_mean else counted.clone()
    else:
        exact = counted.double()
        mean = exact.mean()
        variance = exact.var(correction=1 if unbiased else 0)
        centred = (exact - mean) / (variance + epsilon).sqrt()
        white = (centred if shift_mean else centred + mean).to(values.dtype)
    return white if mask is None else torch.zeros_like(values).masked_scatter(mask, white)


def outliers(values: Tensor, limit: float, *, mask: Tensor | None = None) -> Tensor:
    """[N] bool, more than `limit` deviations from the mean: |z| > limit, over the counted values.

    StableReinforce's advantage filter, arXiv:2505.02835, as its text has it (limit 3). Its code
    compares standardised values with bounds around the raw mean, and divides a sum over all tokens
    by the number of counted ones, which can remove a whole batch.

    Args:
        mask: [N] bool, True = counted; nothing else is an outlier.
    """
    kept = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    counted = values.detach()[kept].double()
    if counted.numel() == 0:
        return torch.zeros_like(kept)
    distance = (values.detach().double() - counted.mean()).abs()
    # Multiplied out, so that values without a spread have no outlier.
    return kept & (distance > limit * _deviation(counted)) & bool((counted != counted[0]).any())


def correction_weights(
    old_logp: Tensor,
    sampled_logp: Tensor,
    segment: Tensor,
    *,
    level: Literal["token", "sequence"],
    mode: Literal["truncate", "mask"],
    cap: float,
) -> Tensor:
    """[N] importance weights trainer / engine of tokens that an engine sampled.

    Truncated importance sampling (https://fengyao.notion.site/off-policy-rl) and its masked form.
    The ratio of the surrogate is another: it compares the trainer with itself.

    Args:
        old_logp: [N] of the trainer's policy at the rollout. sampled_logp: [N] of the engine, of
            the distribution that it drew from; NaN = the engine gave none: no correction there.
        level: `token`, or `sequence`: the product over a response (verl, TRL), no geometric mean,
            at each of its tokens.
        mode: of weights above `cap`. `truncate`: held at it; `mask`: 0.

    Returns:
        Constants, in the dtype of old_logp. Small weights stay as they are.
    """
    gap = old_logp.detach() - sampled_logp.detach()
    gap = torch.where(gap.isnan(), 0.0, gap)
    if level == "sequence":
        rows = gap.new_zeros(_n_groups(segment))
        gap = rows.index_add(0, segment, gap)[segment]
    elif level != "token":
        raise ValueError(f"no level {level!r}; there are token, sequence")
    # Held before it is exponentiated: no overflow.
    weights = gap.clamp(max=math.log(cap)).exp()
    if mode == "truncate":
        return weights
    if mode == "mask":
        return torch.where(gap > math.log(cap), 0.0, weights)
    raise ValueError(f"no mode {mode!r}; there are truncate, mask")


def _learnable(advantages: Tensor, scores: Tensor, group: Tensor) -> Tensor:
    """The advantages, 0 where nothing tells responses apart or one has no score."""
    nothing = equal_scores(scores, group)[group] | scores.isnan()
    return torch.where(nothing, 0.0, advantages).to(scores.dtype)


def _n_groups(group: Tensor) -> int:
    return int(group.max()) + 1 if group.numel() else 0


def _group_sums(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """[G] float64 sum and number of each group's scores that are no NaN."""
    scored = ~scores.isnan()
    zeros = torch.zeros(_n_groups(group), dtype=torch.float64, device=scores.device)
    total = zeros.index_add(0, group, torch.where(scored, scores.detach().double(), 0.0))
    return total, zeros.index_add(0, group, scored.double())


def _deviation(values: Tensor) -> Tensor:
    """Unbiased; 0 of one value or none."""
    if values.numel() < 2:
        return values.new_zeros(())
    return values.std()


def _last(segment: Tensor) -> Tensor:
    """[N] bool, whether the token is its sequence's last."""
    last = torch.ones_like(segment, dtype=torch.bool)
    last[:-1] = segment[1:] != segment[:-1]
    return last


def _sums_to_the_end(values: Tensor, segment: Tensor, decay: float) -> Tensor:
    """[N] sum over s >= t of decay^(s - t) values_s, within each sequence.

    A padded [rows, longest] view, one step a column: sequences are independent, so that none rounds
    by another's length.
    """
    if values.numel() == 0:
        return values.clone()
    first = _last(segment).roll(1)
    row = first.cumsum(0) - 1
    start = first.nonzero().squeeze(1)
    column = torch.arange(len(segment), device=segment.device) - start[row]
    longest = int(column.max()) + 1
    padded = values.new_zeros(len(start), longest).index_put((row, column), values)
    sums = [values.new_zeros(len(start))]
    for place in reversed(range(longest)):
        sums.append(padded[:, place] + decay * sums[-1])
    return torch.stack(sums[:0:-1], dim=1)[row, column]
