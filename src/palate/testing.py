"""The float64 oracle of the token operators, kept where tests and benchmarks both reach it."""

from __future__ import annotations

import torch
from torch import Tensor

from palate.kernels.inputs import RefHidden, RefInputs, RefLogps
from palate.kernels.stats import Head, TokenStats


def full_logits(hidden: Tensor, head: Head) -> Tensor:
    """[N, V] float64 logits of `hidden` [N, d] through `head`, nothing left out."""
    z = hidden.double() @ head.weight.double().T
    if head.bias is not None:
        z = z + head.bias.double()
    z = z * head.scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    return z


def token_stats_oracle(
    *,
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    reference: RefInputs | None = None,
    kl: bool = False,
    reverse_kl: bool = False,
    entropy: bool = False,
) -> TokenStats:
    """`palate.kernels.token_stats` on full float64 logits, by the definitions.

    Same arguments and result; memory is tokens x vocabulary, so for small inputs only.
    """

    def expected(p: Tensor, value: Tensor) -> Tensor:
        # 0 log 0 = 0, also where both logits are -inf and `value` is nan.
        return torch.where(p > 0, p * torch.where(p > 0, value, 0.0), 0.0).sum(-1)

    log_q = full_logits(hidden, head).log_softmax(-1)
    take = targets.unsqueeze(-1)
    logp = log_q.gather(-1, take).squeeze(-1)
    out: dict[str, Tensor] = {}
    if entropy:
        out["entropy"] = -expected(log_q.exp(), log_q)
    if isinstance(reference, RefLogps):
        out["ref_logp"] = reference.logp.double()
    elif isinstance(reference, RefHidden):
        log_p = full_logits(reference.hidden, reference.head).detach().log_softmax(-1)
        out["ref_logp"] = log_p.gather(-1, take).squeeze(-1)
        if kl:
            out["kl"] = expected(log_p.exp(), log_p - log_q)
        if reverse_kl:
            out["reverse_kl"] = expected(log_q.exp(), log_q - log_p)
    elif reference is not None:
        raise TypeError("the oracle takes RefHidden or RefLogps")
    return TokenStats(logp=logp, **out)
