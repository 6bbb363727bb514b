"""Per-token weights of log-probs: the hook for token-level variants of the pair losses.

A method is one function from TokenContext to Weights and one row of TOKEN_WEIGHTS; its keyword
arguments are the fields of its recipe. Weights are constants: no gradient passes through them.
SequenceStats.from_tokens applies them, to log-probs only: the KL and the lengths stay whole.

Most later methods fit. ConfPO (arXiv:2506.08712) keeps the tokens that the policy finds less likely
than the average of their response:

>>> def unsure(ctx: TokenContext) -> Weights:
...     mean = ctx.sequence_sum(ctx.logp.exp()) / ctx.lengths
...     kept = (ctx.logp < mean.log()[ctx.segment]).to(ctx.logp.dtype)
...     return Weights(policy=kept, reference=kept)

TIS-DPO (arXiv:2410.04350) and TGDPO weight by a token reward, with the sign of the side; with a
score [N] of any two models in place of the log-ratio, mu = 1 and a clamp to [low, high]:

>>> def importance(ctx: TokenContext, *, low: float = -0.5, high: float = 1.5) -> Weights:
...     sign = torch.where(ctx.chosen, 1.0, -1.0)[ctx.segment]
...     weight = (sign * (ctx.logp - ctx.ref_logp).clamp(low, high)).exp()
...     return Weights(policy=weight, reference=weight)

A row for each, and the recipe can name them:

>>> row = TokenWeightSpec(function=unsure, paper="arXiv:2506.08712")
>>> segment, position = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])
>>> ctx = TokenContext.of_pairs(
...     position=position, segment=segment, lengths=torch.tensor([3, 2]),
...     chosen=torch.tensor([0]), rejected=torch.tensor([1]),
...     logp=torch.tensor([-0.1, -0.2, -3.0, -0.5, -0.1]),
...     ref_logp=torch.tensor([-0.2, -0.2, -2.0, -0.5, -0.3]),
... )
>>> row.function(ctx).policy
tensor([0., 0., 1., 1., 0.])
>>> importance(ctx).policy[:3]
tensor([1.1052, 1.0000, 0.6065])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenContext:
    """What a weight may depend on: N response tokens of S sequences. Nothing has a gradient.

    Attributes:
        position: [N] index of the token in its response, from 0.
        segment: [N] sequence of the token, in 0..S-1.
        lengths: [S] response tokens. partner_lengths: [S] those of the other response of the pair.
        chosen: [S] bool, True = chosen.
        logp: [N] policy log-prob. ref_logp: [N] reference log-prob, None without a reference.
        kl: [N] KL(ref || policy), None unless computed.
    """

    position: Tensor
    segment: Tensor
    lengths: Tensor
    partner_lengths: Tensor
    chosen: Tensor
    logp: Tensor
    ref_logp: Tensor | None = None
    kl: Tensor | None = None

    @classmethod
    def of_pairs(
        cls,
        *,
        position: Tensor,
        segment: Tensor,
        lengths: Tensor,
        chosen: Tensor,
        rejected: Tensor,
        logp: Tensor,
        ref_logp: Tensor | None = None,
        kl: Tensor | None = None,
    ) -> TokenContext:
        """Context of B pairs, all of whose sequences are one or the other side of one of them.

        Args:
            chosen, rejected: [B] sequence of each.

        Raises:
            ValueError: there are not 2B sequences.
        """
        n = lengths.numel()
        if len(chosen) + len(rejected) != n:
            raise ValueError(f"{len(chosen)} pairs have {2 * len(chosen)} sequences, not {n}")
        partner = lengths.new_empty(n)
        partner[chosen], partner[rejected] = lengths[rejected], lengths[chosen]
        is_chosen = torch.zeros(n, dtype=torch.bool, device=lengths.device)
        is_chosen[chosen] = True
        return cls(
            position=position,
            segment=segment,
            lengths=lengths,
            partner_lengths=partner,
            chosen=is_chosen,
            logp=logp.detach(),
            ref_logp=None if ref_logp is None else ref_logp.detach(),
            kl=None if kl is None else kl.detach(),
        )

    def sequence_sum(self, values: Tensor) -> Tensor:
        """[S] sums of [N] token values."""
        out = torch.zeros(self.lengths.numel(), dtype=values.dtype, device=values.device)
        return out.index_add(0, self.segment, values)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Multipliers of the log-probs, [N] each."""

    policy: Tensor
    reference: Tensor


@dataclass(frozen=True, kw_only=True)
class TokenWeightSpec:
    """One row of the table: the function, (context, *, options) -> Weights, and its source."""

    function: Callable[..., Weights]
    paper: str


def ld(
    ctx: TokenContext, *, alpha: float = 0.5, reference: Literal["both", "policy"] = "both"
) -> Weights:
    """LD-DPO, arXiv:2409.06411: tokens beyond the shorter response's length count alpha.

    Args:
        alpha: weight of the tail, in [0, 1]; 1 is the plain loss.
        reference: `both` weights policy and reference alike, as TRL does, so that the log-ratio
            stays 0 where they agree; `policy` leaves the reference whole, as some projects do.
    """
    shared = torch.minimum(ctx.lengths, ctx.partner_lengths)[ctx.segment]
    ones = torch.ones_like(ctx.logp)
    weight = torch.where(ctx.position < shared, ones, alpha * ones)
    references = {"both": weight, "policy": ones}
    if reference not in references:
        raise ValueError(f"no reference {reference!r}; there are {', '.join(references)}")
    return Weights(policy=weight, reference=references[reference])


def d2po(ctx: TokenContext, *, gamma: float = 0.98) -> Weights:
    """D2PO, arXiv:2502.14340: the token at place t, counted from 1, counts gamma ** t.

    Args:
        gamma: decay, in (0, 1]; 1 is the plain loss.
    """
    weight = torch.pow(gamma, (ctx.position + 1).to(ctx.logp.dtype))
    return Weights(policy=weight, reference=weight)


TOKEN_WEIGHTS: dict[str, TokenWeightSpec] = {
    "ld": TokenWeightSpec(function=ld, paper="arXiv:2409.06411"),
    "d2po": TokenWeightSpec(function=d2po, paper="arXiv:2502.14340"),
}
"""Recipe `type` -> per-token weights."""
