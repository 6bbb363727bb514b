"""What the losses share: quantities of a sequence, and the road from scores to an output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from palate.losses.sequence import LossOutput, LossTerm, SequenceStats


def log_ratio(stats: SequenceStats) -> Tensor:
    """[S] m = sum over response tokens of log policy - log reference.

    Raises:
        ValueError: the statistics hold no reference.
    """
    if stats.ref_logp is None:
        raise ValueError("this loss needs `ref_logp`: the statistics were made without a reference")
    return stats.logp - stats.ref_logp


def sequence_kl(stats: SequenceStats) -> Tensor:
    """[S] K = sum over response positions of KL(ref || policy).

    Raises:
        ValueError: the statistics hold no KL.
    """
    if stats.kl is None:
        raise ValueError("this loss needs `kl`: the statistics were made without it")
    return stats.kl


def per_token(values: Tensor, stats: SequenceStats) -> Tensor:
    """[S] sums divided by response length; 0 for an empty response."""
    return values / stats.length.clamp(min=1)


def ranked_right(margin: Tensor) -> Tensor:
    """1 where the margin is positive, 0 where negative, 1/2 at a tie; any shape.

    At the start of training every log-ratio is a tie: half right is what guessing scores.
    """
    return torch.heaviside(margin.detach(), margin.new_tensor(0.5))


def contrast(
    name: str,
    chosen: SequenceStats,
    rejected: SequenceStats,
    *,
    scores: tuple[Tensor, Tensor],
    link: Callable[[Tensor], Tensor],
    target: float = 0.0,
    terms: tuple[LossTerm, ...] = (),
    rewards: tuple[Tensor, Tensor] | None = None,
    statistics: dict[str, Tensor] | None = None,
) -> LossOutput:
    """A loss that contrasts two scores: a = score_w - score_l - target, loss link(a), per pair.

    Args:
        name: of the term.
        scores: [B] each, of chosen and rejected, beta included.
        link: from [B] trained arguments to [B] losses.
        target: margin that the scores must exceed.
        terms: further terms.
        rewards: [B] each, to report instead of the scores.
        statistics: further [B] statistics.

    Returns:
        Output whose rewards are the detached scores and whose statistics are `logits` (a),
        `accuracies/logits` (a > 0: what was trained) and, with a reference,
        `accuracies/log_ratio` (m_w > m_l: DPO's own). A tie is half right.
    """
    a = scores[0] - scores[1] - target
    reported_statistics = {"logits": a, "accuracies/logits": ranked_right(a)}
    if chosen.ref_logp is not None and rejected.ref_logp is not None:
        margin = log_ratio(chosen) - log_ratio(rejected)
        reported_statistics["accuracies/log_ratio"] = ranked_right(margin)
    reported_statistics.update(statistics or {})
    reported = rewards or scores
    return LossOutput(
        terms=(LossTerm(name=name, losses=link(a), per="pair"), *terms),
        chosen_rewards=reported[0].detach(),
        rejected_rewards=reported[1].detach(),
        statistics={key: value.detach() for key, value in reported_statistics.items()},
    )
