"""Scores of f-divergence DPO (arXiv:2309.16240): f'(t) at t = exp(log-ratio), zero at t = 1.

The reward of a response under an f-divergence penalty is beta f'(policy / reference), up to a
constant of the prompt. Additive constants cancel between the two responses of a pair; they are
chosen here so that every score is 0 where policy and reference agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

EXPONENT_LIMIT = 20.0
"""Beyond this exponent (nats), exp continues as its tangent.

exp overflows float32 at 88, and the log-ratio of a whole response passes -88 easily; two such
responses give inf - inf = nan. A clamp would keep the value finite but has no gradient, so exactly
the pairs that went furthest wrong would stop learning, and two clamped responses would tie. The
tangent keeps value and gradient finite, the gradient non-zero, and the order of two responses. At
20 the sigmoid is long saturated (beta exp(20) is 5e7 at beta = 0.1), so the loss is the exact one
wherever it is not linear anyway, and squares of such gradients still fit float32, which the
gradient norm needs.
"""


def expm1_tangent(x: Tensor) -> Tensor:
    """exp(x) - 1, continued linearly (value and slope match) above EXPONENT_LIMIT; any shape."""
    inside = torch.expm1(x.clamp(max=EXPONENT_LIMIT))
    return inside + math.exp(EXPONENT_LIMIT) * (x - EXPONENT_LIMIT).clamp(min=0.0)


def reverse_kl(log_ratio: Tensor) -> Tensor:
    """log t: plain DPO."""
    return log_ratio


def forward_kl(log_ratio: Tensor) -> Tensor:
    """1 - 1 / t."""
    return -expm1_tangent(-log_ratio)


def js(log_ratio: Tensor) -> Tensor:
    """log(2 t / (1 + t)), Jensen-Shannon."""
    return math.log(2.0) + logsigmoid(log_ratio)


def alpha_divergence(log_ratio: Tensor, *, alpha: float) -> Tensor:
    """(1 - t ** -alpha) / alpha, between reverse KL (alpha to 0) and forward KL (alpha = 1)."""
    return -expm1_tangent(-alpha * log_ratio) / alpha


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A score function of [B] log-ratios, and the alpha it takes unless told otherwise."""

    score: Callable[..., Tensor]
    default_alpha: float | None = None


DIVERGENCES: dict[str, Divergence] = {
    "reverse_kl": Divergence(score=reverse_kl),
    "forward_kl": Divergence(score=forward_kl),
    "js": Divergence(score=js),
    "alpha": Divergence(score=alpha_divergence, default_alpha=0.5),
}


def score_function(divergence: str, alpha: float | None = None) -> Callable[[Tensor], Tensor]:
    """The score function of a divergence by name.

    Raises:
        ValueError: no such divergence, or an alpha for one that has none.
    """
    row = DIVERGENCES.get(divergence)
    if row is None:
        raise ValueError(f"no divergence {divergence!r}; there are {', '.join(DIVERGENCES)}")
    if row.default_alpha is None:
        if alpha is not None:
            raise ValueError(f"divergence {divergence!r} has no alpha")
        return row.score
    chosen_alpha = row.default_alpha if alpha is None else alpha
    return lambda log_ratio: row.score(log_ratio, alpha=chosen_alpha)
