"""Token-level DPO, arXiv:2404.11999: the DPO margin less a difference of sequential KLs.

Letters as in `pairwise`; K = sum over the response's positions of KL(ref || policy), the exact sum
over the vocabulary, no length normalisation (Def. 4.3); sg stops the gradient.
"""

from __future__ import annotations

from typing import Literal

from palate.losses import links
from palate.losses.outcome import contrast, log_ratio, sequence_kl
from palate.losses.sequence import LossOutput, SequenceStats


def tdpo1(chosen: SequenceStats, rejected: SequenceStats, *, beta: float = 0.1) -> LossOutput:
    """TDPO1, Eq. 13-15: a = beta (m_w - m_l) - beta (K_l - K_w), gradients through all four.

    Loss -log sigmoid(a). Reward beta (m + K), as in the released code. There is no alpha.
    Statistics beside those of every pair loss: logits/log_ratio = beta (m_w - m_l) and
    logits/kl = -beta (K_l - K_w), which sum to logits.
    """
    m_w, m_l = log_ratio(chosen), log_ratio(rejected)
    k_w, k_l = sequence_kl(chosen), sequence_kl(rejected)
    return contrast(
        "tdpo1",
        chosen,
        rejected,
        scores=(beta * (m_w + k_w), beta * (m_l + k_l)),
        link=links.logistic,
        statistics={"logits/log_ratio": beta * (m_w - m_l), "logits/kl": beta * (k_w - k_l)},
    )


def tdpo2(
    chosen: SequenceStats,
    rejected: SequenceStats,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
    reward: Literal["trained", "released"] = "trained",
) -> LossOutput:
    """TDPO2, Eq. 17-18: a = beta (m_w - m_l) - alpha beta (K_l - sg(K_w)).

    Loss -log sigmoid(a). The chosen side's K is a number: no gradient passes through it.
    Statistics: logits/log_ratio and logits/kl = -alpha beta (K_l - K_w), which sum to logits.

    Args:
        alpha: weight of the KL difference, inside beta. 0 is DPO; 1 has TDPO1's value, not its
            gradient.
        reward: what to report. `trained`: beta (m + alpha K), whose margin is the trained argument.
            `released`: beta (m + K), which the paper's code logs whatever alpha is, so that its
            reward accuracy is not the accuracy of what it trains.
    """
    m_w, m_l = log_ratio(chosen), log_ratio(rejected)
    k_w, k_l = sequence_kl(chosen).detach(), sequence_kl(rejected)
    reported = {"trained": alpha, "released": 1.0}
    if reward not in reported:
        raise ValueError(f"no reward {reward!r}; there are {', '.join(reported)}")
    return contrast(
        "tdpo2",
        chosen,
        rejected,
        scores=(beta * (m_w + alpha * k_w), beta * (m_l + alpha * k_l)),
        link=links.logistic,
        rewards=(beta * (m_w + reported[reward] * k_w), beta * (m_l + reported[reward] * k_l)),
        statistics={
            "logits/log_ratio": beta * (m_w - m_l),
            "logits/kl": alpha * beta * (k_w - k_l),
        },
    )
