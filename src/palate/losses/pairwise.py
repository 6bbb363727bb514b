"""Losses of a pair's log-ratios or log-probs alone.

Letters: w chosen, l rejected; m = log policy(y) - log reference(y), summed over tokens; n tokens;
a the trained argument. Every function takes B pairs and returns B unreduced losses; the implicit
rewards are such that a = reward_w - reward_l (SimPO: minus gamma).
"""

from __future__ import annotations

from functools import partial

from palate.losses import links
from palate.losses.divergences import score_function
from palate.losses.outcome import contrast, log_ratio, per_token
from palate.losses.sequence import LossOutput, LossTerm, SequenceStats


def dpo(
    chosen: SequenceStats,
    rejected: SequenceStats,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """Direct preference optimisation, arXiv:2305.18290 Eq. 7; cDPO with label smoothing.

    a = beta (m_w - m_l); loss -(1 - e) log sigmoid(a) - e log sigmoid(-a). Reward beta m.
    Summed over tokens.

    Args:
        beta: strength of the pull towards the reference.
        label_smoothing: e, the assumed probability that a label is flipped, in [0, 0.5).
    """
    scores = beta * log_ratio(chosen), beta * log_ratio(rejected)
    link = partial(links.logistic, label_smoothing=label_smoothing)
    return contrast("dpo", chosen, rejected, scores=scores, link=link)


def rdpo(
    chosen: SequenceStats,
    rejected: SequenceStats,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> LossOutput:
    """rDPO, arXiv:2403.00409: DPO made unbiased under labels flipped with probability e.

    a = beta (m_w - m_l); loss [-(1 - e) log sigmoid(a) + e log sigmoid(-a)] / (1 - 2 e), which can
    be negative. Reward beta m. Summed over tokens.

    Args:
        label_smoothing: e, in (0, 0.5).
    """
    scores = beta * log_ratio(chosen), beta * log_ratio(rejected)
    link = partial(links.robust, label_smoothing=label_smoothing)
    return contrast("rdpo", chosen, rejected, scores=scores, link=link)


def ipo_sum(chosen: SequenceStats, rejected: SequenceStats, *, beta: float = 0.1) -> LossOutput:
    """IPO on summed log-ratios, arXiv:2310.12036 Eq. 17 as printed.

    Loss (m_w - m_l - 1 / (2 beta)) ** 2; a = beta (m_w - m_l), target 1/2. Reward beta m.

    Args:
        beta: the paper's tau.
    """
    scores = beta * log_ratio(chosen), beta * log_ratio(rejected)
    link = partial(links.square, beta=beta)
    return contrast("ipo_sum", chosen, rejected, scores=scores, link=link)


def ipo_mean(chosen: SequenceStats, rejected: SequenceStats, *, beta: float = 0.1) -> LossOutput:
    """IPO on log-ratios averaged over tokens, as TRL has it on the word of the paper's authors.

    Loss (m_w / n_w - m_l / n_l - 1 / (2 beta)) ** 2; a = beta (m_w / n_w - m_l / n_l), target 1/2.
    Reward beta m / n. The two variants need very different betas.

    Args:
        beta: the paper's tau.
    """
    scores = (
        beta * per_token(log_ratio(chosen), chosen),
        beta * per_token(log_ratio(rejected), rejected),
    )
    link = partial(links.square, beta=beta)
    return contrast("ipo_mean", chosen, rejected, scores=scores, link=link)


def hinge(chosen: SequenceStats, rejected: SequenceStats, *, beta: float = 0.1) -> LossOutput:
    """Hinge loss on the DPO margin: SLiC (arXiv:2305.10425) as normalised by RSO (2309.06657).

    a = beta (m_w - m_l); loss max(0, 1 - a). Reward beta m. Summed over tokens.
    """
    scores = beta * log_ratio(chosen), beta * log_ratio(rejected)
    return contrast("hinge", chosen, rejected, scores=scores, link=links.hinge)


def simpo(
    chosen: SequenceStats,
    rejected: SequenceStats,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> LossOutput:
    """SimPO, arXiv:2405.14734: reference-free, averaged over tokens, with a target margin.

    a = beta (log policy(y_w) / n_w - log policy(y_l) / n_l) - gamma; loss -log sigmoid(a).
    Reward beta log policy(y) / n.

    Args:
        gamma: target reward margin, on the scale of the rewards (not divided by beta).
    """
    scores = beta * per_token(chosen.logp, chosen), beta * per_token(rejected.logp, rejected)
    return contrast("simpo", chosen, rejected, scores=scores, link=links.logistic, target=gamma)


def dpo_norm(
    chosen: SequenceStats,
    rejected: SequenceStats,
    *,
    beta: float = 5.0,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """Length-normalised DPO, Tulu 3 (arXiv:2411.15124).

    a = beta (m_w / n_w - m_l / n_l); loss as in `dpo`. Reward beta m / n. It keeps the reference
    and has no target margin, unlike SimPO.
    """
    scores = (
        beta * per_token(log_ratio(chosen), chosen),
        beta * per_token(log_ratio(rejected), rejected),
    )
    link = partial(links.logistic, label_smoothing=label_smoothing)
    return contrast("dpo_norm", chosen, rejected, scores=scores, link=link)


def fdpo(
    chosen: SequenceStats,
    rejected: SequenceStats,
    *,
    beta: float = 0.1,
    divergence: str,
    alpha: float | None = None,
) -> LossOutput:
    """f-divergence DPO, arXiv:2309.16240, on sequence log-ratios.

    a = beta (s(m_w) - s(m_l)) with s(m) = f'(exp m), see `divergences`; loss -log sigmoid(a).
    Reward beta s(m). Summed over tokens.

    Args:
        divergence: reverse_kl (plain DPO), forward_kl, js or alpha.
        alpha: of the alpha divergence, in (0, 1); None is 0.5.

    Raises:
        ValueError: unknown divergence, or alpha for one that has none.
    """
    score = score_function(divergence, alpha)
    scores = beta * score(log_ratio(chosen)), beta * score(log_ratio(rejected))
    return contrast("fdpo", chosen, rejected, scores=scores, link=links.logistic)


def anchor(
    chosen: SequenceStats,
    rejected: SequenceStats,
    *,
    beta: float = 0.1,
    delta: float = 0.0,
) -> LossOutput:
    """Anchored preference of mDPO, arXiv:2406.11839: the reward of the chosen response is held up.

    a = beta m_w - delta; loss -log sigmoid(a), per pair. It contrasts nothing, so it stands beside
    a loss that does: DPO, TDPO or another on the same pairs. Reward beta m. Summed over tokens.

    Args:
        rejected: only reported.
        delta: reward that the chosen response should have; the released code has 0.
    """
    reward = beta * log_ratio(chosen)
    a = reward - delta
    return LossOutput(
        terms=(LossTerm(name="anchor", losses=links.logistic(a)),),
        chosen_rewards=reward.detach(),
        rejected_rewards=(beta * log_ratio(rejected)).detach(),
        statistics={"logits": a.detach()},
    )
