"""Losses of single responses, each marked desirable or not."""

from __future__ import annotations

import torch
from torch import Tensor

from palate.losses.outcome import log_ratio, ranked_right
from palate.losses.sequence import LossOutput, LossTerm, SequenceStats


def kto(
    stats: SequenceStats,
    *,
    desirable: Tensor,
    kl_baseline: Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """KTO, arXiv:2402.01306 Eq. 8: gains and losses around an estimate z of KL(policy || ref).

    a = beta (m - z) for desirable and beta (z - m) for undesirable responses;
    loss weight (1 - sigmoid(a)), per sequence. z = max(0, kl_baseline), without gradient.
    Reward beta m. Summed over tokens.

    Args:
        stats: S responses.
        desirable: [S] bool, True = desirable.
        kl_baseline: scalar, mean log-ratio of the same prompts with other rows' responses, over
            all processes. One value for the whole step is best: a small batch is a noisy estimate.
        desirable_weight, undesirable_weight: the paper's lambda_D and lambda_U.

    Returns:
        Output whose chosen_rewards are those of the desirable responses and whose rejected_rewards
        those of the others; statistics `logits` (a), `accuracies/logits` (a > 0; a tie is half
        right) and `kl_baseline` (z), [S] each.
    """
    m = log_ratio(stats)
    z = kl_baseline.detach().to(m).clamp(min=0)
    a = beta * torch.where(desirable, m - z, z - m)
    # 1 - sigmoid(a) = sigmoid(-a), without cancellation.
    lost = torch.sigmoid(-a)
    losses = torch.where(desirable, desirable_weight * lost, undesirable_weight * lost)
    rewards = beta * m.detach()
    return LossOutput(
        terms=(LossTerm(name="kto", losses=losses, per="sequence"),),
        chosen_rewards=rewards[desirable],
        rejected_rewards=rewards[~desirable],
        statistics={
            "logits": a.detach(),
            "accuracies/logits": ranked_right(a),
            "kl_baseline": z.expand_as(m),
        },
    )
