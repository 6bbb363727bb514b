"""Losses with a likelihood term: SFT itself, and CPO and ORPO, which add it to a contrast.

The likelihood term is averaged over the chosen response tokens of the whole optimizer step, so it
does not depend on how the step is cut into micro-batches; prompt tokens never count.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from palate.losses import links
from palate.losses.outcome import contrast, per_token
from palate.losses.sequence import LossOutput, LossTerm, SequenceStats

MEAN_LOGP_CEILING = -1e-6
"""Mean log-probs above this count as this in 1 - p of an odds.

A response whose tokens all have probability 1 in float32 has odds p / (1 - p) of 1 / 0; the ceiling
caps the log-odds at 13.8, where a sigmoid is saturated, with a finite gradient.
"""


def _nll(chosen: SequenceStats, *, name: str = "nll", weight: float = 1.0) -> LossTerm:
    return LossTerm(name=name, losses=-weight * chosen.logp, per="chosen_token")


def sft(chosen: SequenceStats, rejected: SequenceStats | None = None) -> LossOutput:
    """Negative log-likelihood of the chosen responses, averaged over their tokens.

    It ranks nothing: the reported rewards are the log-probs of the responses, summed over tokens.

    Args:
        chosen: responses to imitate; single demonstrations will do.
        rejected: only reported.
    """
    rejected_rewards = chosen.logp[:0] if rejected is None else rejected.logp
    return LossOutput(
        terms=(_nll(chosen, name="sft"),),
        chosen_rewards=chosen.logp.detach(),
        rejected_rewards=rejected_rewards.detach(),
    )


def cpo(
    chosen: SequenceStats,
    rejected: SequenceStats,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    nll_weight: float = 1.0,
) -> LossOutput:
    """CPO, arXiv:2401.08417: DPO with a uniform reference, plus the likelihood of the chosen one.

    a = beta (log policy(y_w) - log policy(y_l)), summed over tokens; loss as in `dpo`, per pair.
    Second term: nll_weight times the token-mean negative log-likelihood of the chosen responses.
    Reward beta log policy(y).

    Args:
        label_smoothing: as in `dpo`.
        nll_weight: weight of the likelihood term, 0 leaves it out.
    """
    scores = beta * chosen.logp, beta * rejected.logp
    link = partial(links.logistic, label_smoothing=label_smoothing)
    terms = (_nll(chosen, weight=nll_weight),) if nll_weight else ()
    return contrast("cpo", chosen, rejected, scores=scores, link=link, terms=terms)


def log_odds(mean_logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean log-prob), arXiv:2403.07691 Eq. 4; any shape, finite."""
    return mean_logp - torch.log(-torch.expm1(mean_logp.clamp(max=MEAN_LOGP_CEILING)))


def orpo(chosen: SequenceStats, rejected: SequenceStats, *, beta: float = 0.1) -> LossOutput:
    """ORPO, arXiv:2403.07691 Eq. 6-7: likelihood of the chosen one plus beta times the odds ratio.

    a = log odds(y_w) - log odds(y_l), odds of the per-token geometric-mean probability; loss
    -beta log sigmoid(a), per pair. Second term: token-mean negative log-likelihood of the chosen
    responses. Reward log odds (beta is a weight here, not a temperature).

    TRL averages the likelihood over prompt tokens too; here, as in every other loss, a prompt is
    not trained on.

    Args:
        beta: weight of the odds-ratio loss, the paper's lambda.
    """
    scores = log_odds(per_token(chosen.logp, chosen)), log_odds(per_token(rejected.logp, rejected))
    return contrast(
        "odds_ratio",
        chosen,
        rejected,
        scores=scores,
        link=lambda a: beta * links.logistic(a),
        terms=(_nll(chosen),),
    )
