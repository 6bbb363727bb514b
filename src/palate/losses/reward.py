"""Losses of reward models: pure functions of scalar rewards, and the table that names them.

Letters: r reward; w chosen, l rejected; d = r_w - r_l; n response tokens. Pair losses take B pairs
and return B unreduced losses. All compute in the dtype they are given, float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True, kw_only=True)
class PairLabels:
    """What is known of B pairs besides which response was chosen.

    Attributes:
        margin: [B] how far the rewards should be apart at least; nan where the data has none.
        probability: [B] share of votes for the chosen response; nan where nobody counted.
        tie: [B] bool, True = neither was preferred, and the order means nothing.
    """

    margin: Tensor | None = None
    probability: Tensor | None = None
    tie: Tensor | None = None


def bradley_terry(
    chosen: Tensor, rejected: Tensor, labels: PairLabels, *, label_smoothing: float = 0.0
) -> Tensor:
    """Bradley and Terry 1952 (Biometrika 39:324), as in arXiv:2203.02155 Eq. 1.

    a = d - margin; loss -p log sigmoid(a) - (1 - p) log sigmoid(-a). The margin is that of Llama 2
    (arXiv:2307.09288 Eq. 2). p is 1, or the share of votes for the chosen response, or 1/2 for a
    tie; smoothing by e (the assumed probability of a flipped label) turns p into
    (1 - e) p + e (1 - p). A tie has no margin.

    Args:
        label_smoothing: e, in [0, 0.5).
    """
    a = _argument(chosen, rejected, labels)
    p = torch.ones_like(a)
    if labels.probability is not None:
        known = labels.probability.to(a)
        p = torch.where(known.isnan(), p, known)
    if labels.tie is not None:
        p = torch.where(labels.tie, torch.full_like(p, 0.5), p)
    p = (1.0 - label_smoothing) * p + label_smoothing * (1.0 - p)
    return -p * logsigmoid(a) - (1.0 - p) * logsigmoid(-a)


def rao_kupper(
    chosen: Tensor, rejected: Tensor, labels: PairLabels, *, threshold: float = 0.5
) -> Tensor:
    """Bradley-Terry with ties, Rao and Kupper 1967 (JASA 62:194); for rewards arXiv:2410.05328.

    eta = threshold: differences smaller than it tend to go unseen.
    P(w) = sigmoid(d - eta), P(tie) = (exp(2 eta) - 1) sigmoid(d - eta) sigmoid(-d - eta);
    loss -log P of what was observed.

    Args:
        threshold: eta > 0, in units of reward; at d = 0 a tie has probability tanh(eta / 2).
    """
    a = _argument(chosen, rejected, labels)
    win = logsigmoid(a - threshold)
    if labels.tie is None:
        return -win
    eta = torch.as_tensor(2.0 * threshold, dtype=a.dtype, device=a.device)
    draw = torch.log(torch.expm1(eta)) + win + logsigmoid(-a - threshold)
    return -torch.where(labels.tie, draw, win)


def davidson(
    chosen: Tensor, rejected: Tensor, labels: PairLabels, *, tie_strength: float = 1.0
) -> Tensor:
    """Bradley-Terry with ties, Davidson 1970 (JASA 65:317).

    With nu = tie_strength the three outcomes weigh exp(r_w), exp(r_l) and nu exp((r_w + r_l) / 2);
    loss -log of the observed one's share.

    Args:
        tie_strength: nu > 0; at d = 0 a tie has probability nu / (2 + nu).
    """
    a = _argument(chosen, rejected, labels)
    nu = torch.as_tensor(tie_strength, dtype=a.dtype, device=a.device)
    outcomes = torch.stack([a / 2, -a / 2, torch.log(nu).expand_as(a)])
    shares = outcomes.log_softmax(0)
    return -shares[0] if labels.tie is None else -torch.where(labels.tie, shares[2], shares[0])


PAIR_LOSSES: dict[str, Callable[..., Tensor]] = {
    "bradley_terry": bradley_terry,
    "rao_kupper": rao_kupper,
    "davidson": davidson,
}
"""Recipe `type` -> loss of pairs."""


def plackett_luce(
    rewards: Tensor,
    rank: Tensor,
    listed: Tensor,
    *,
    ties: Literal["unordered", "breslow"] = "unordered",
) -> Tensor:
    """Plackett 1975 (JRSS C 24:193) and Luce 1959, as ListMLE (ICML 2008): B ranked lists.

    A list is drawn best first, each time with probability proportional to exp(r) among those left:
    loss = sum_i [log sum_{j in R_i} exp(r_j) - r_i], R_i being i and everything ranked below it.
    Two items are Bradley-Terry. Of equal ranks the order is unknown: `unordered` compares each only
    with what is below it; `breslow` (Breslow 1974, Biometrics 30:89) puts tied items into one
    another's R_i, which also pulls their rewards together.

    Args:
        rewards: [B, K]. rank: [B, K] int, 1 is best, equal ranks are ties.
        listed: [B, K] bool, True = counted; shorter lists are padded with anything.

    Returns:
        [B] losses, summed over the places of a list; 0 for an empty list.

    Raises:
        ValueError: no such treatment of ties.
    """
    if ties not in ("unordered", "breslow"):
        raise ValueError(f"no ties {ties!r}; there are unordered, breslow")
    rank_i, rank_j = rank[:, :, None], rank[:, None, :]
    left = rank_j >= rank_i if ties == "breslow" else rank_j > rank_i
    itself = torch.eye(rank.shape[1], dtype=torch.bool, device=rank.device)
    left = (left | itself) & listed[:, None, :]
    # A padded row is left with itself, so that no softmax is empty.
    left = left | itself
    choice = rewards[:, None, :].masked_fill(~left, -torch.inf)
    return ((choice.logsumexp(-1) - rewards) * listed).sum(-1)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_w + r_l) ** 2: what Bradley-Terry leaves free, held near 0.

    arXiv:2312.09244 Eq. 2; TRL's `center_rewards_coefficient`; BaseReward (arXiv:2509.16127) calls
    the same term zero-coefficient regularisation and leaves it out.
    """
    return (chosen + rejected).square()


def magnitude(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_w ** 2 + r_l ** 2) / 2: both rewards held near 0, and so also their difference."""
    return (chosen.square() + rejected.square()) / 2


def length_scaled(rewards: Tensor, lengths: Tensor) -> Tensor:
    """r / log(n + 1), BaseReward's length normalisation (arXiv:2509.16127, Algorithm 1).

    Enters the loss alone: the model's reward stays r.
    """
    return rewards / torch.log1p(lengths.to(rewards))


def length_expert(rewards: Tensor, lengths: Tensor, *, strength: float) -> Tensor:
    """r + strength * log n: a product of experts whose second one only sees the length.

    The idea is that of arXiv:2310.05199, the second expert fixed here instead of trained: what the
    length explains need not be in r, which so prefers long responses less. Enters the loss alone.
    """
    return rewards + strength * torch.log(lengths.clamp(min=1).to(rewards))


def likelihood(logp: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta log policy(y_w)): hidden states that can still write, arXiv:2406.10216.

    The SFT form of its text-generation regularisation, log-probs summed over tokens. There the
    reward's loss is multiplied by 1 - weight besides.
    """
    return -logsigmoid(beta * logp)


def shortcut_weights(margin: Tensor, *, temperature: float = 1.0) -> Tensor:
    """sigmoid(-margin / temperature) / mean of them: pairs count more where text alone fails.

    After the shortcut-aware learning of arXiv:2503.03122, and not its formula: there a text-only
    branch is trained beside the multimodal one, and a pair's weight is the text loss over the sum
    of both losses, which change in every step. Here the text-only model is finished and only its
    scores are known; sigmoid(-margin) is the probability that it gives to the wrong order, and the
    weights do not change. Mean 1, so that the learning rate means what it meant.

    Args:
        margin: [B] text-only reward of the chosen response less that of the rejected one.
        temperature: in units of that reward; above it weights hardly differ, towards 0 pairs that
            the text-only model ranks right count nothing.

    Returns:
        [B], dtype of `margin`.
    """
    # Relative to the largest, so that they do not all round to 0 where every margin is large.
    log_weight = logsigmoid(-margin / temperature)
    weight = torch.exp(log_weight - log_weight.max()) if len(margin) else log_weight
    return weight / weight.mean()


def _argument(chosen: Tensor, rejected: Tensor, labels: PairLabels) -> Tensor:
    """[B] d, less the margin where there is one and the pair is no tie."""
    d = chosen - rejected
    if labels.margin is None:
        return d
    margin = labels.margin.to(d)
    known = ~margin.isnan()
    if labels.tie is not None:
        known = known & ~labels.tie
    return d - torch.where(known, margin, torch.zeros_like(d))
