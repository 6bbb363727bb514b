"""From per-token statistics to per-sequence sums: all that a preference loss sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Per = Literal["pair", "sequence", "chosen_token", "token"]
"""What a term's sum is divided by, counted over the whole optimizer step and all processes."""


@dataclass(frozen=True, kw_only=True)
class SequenceStats:
    """Sums over the response tokens of S sequences, float32.

    Attributes:
        logp: [S] policy log-probability of the response.
        length: [S] number of response tokens (end-of-response token included).
        ref_logp: [S] reference log-probability, None for reference-free losses.
        kl: [S] sum over response positions of KL(ref || policy), the sequential KL of
            arXiv:2404.11999 Def. 4.3; None unless the loss asks for it.
    """

    logp: Tensor
    length: Tensor
    ref_logp: Tensor | None = None
    kl: Tensor | None = None

    @classmethod
    def from_tokens(
        cls,
        *,
        logp: Tensor,
        segment: Tensor,
        n_sequences: int,
        ref_logp: Tensor | None = None,
        kl: Tensor | None = None,
        weight: Tensor | None = None,
        ref_weight: Tensor | None = None,
    ) -> SequenceStats:
        """Sums [N] token values into [S] sequences.

        Args:
            logp, ref_logp, kl: [N], one value a response token.
            segment: [N] int64, the sequence of each token, in 0..n_sequences-1.
            weight: [N] multiplies logp and ref_logp (not kl, not length); see `token_weights`.
            ref_weight: [N] multiplies ref_logp in place of `weight`.
        """
        if ref_weight is None:
            ref_weight = weight

        def total(values: Tensor) -> Tensor:
            out = torch.zeros(n_sequences, dtype=values.dtype, device=values.device)
            return out.index_add(0, segment, values)

        def weighted(values: Tensor, by: Tensor | None) -> Tensor:
            return values if by is None else values * by

        return cls(
            logp=total(weighted(logp, weight)),
            ref_logp=None if ref_logp is None else total(weighted(ref_logp, ref_weight)),
            kl=None if kl is None else total(kl),
            length=total(torch.ones_like(logp)),
        )

    def __getitem__(self, index: slice | Tensor) -> SequenceStats:
        """The statistics of some of the sequences."""
        return SequenceStats(
            logp=self.logp[index],
            length=self.length[index],
            ref_logp=None if self.ref_logp is None else self.ref_logp[index],
            kl=None if self.kl is None else self.kl[index],
        )


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One summand of an objective, unreduced.

    Attributes:
        losses: [B] (or [S]) per-example values, weight of the term already applied.
        per: what the sum is divided by.
    """

    name: str
    losses: Tensor
    per: Per = "pair"


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """What a loss returns: value = sum over terms of sum(losses) / count(per).

    Attributes:
        terms: at least one.
        chosen_rewards, rejected_rewards: [B] detached implicit rewards of the trained objective
            (for unpaired losses: of the desirable and of the undesirable examples, any lengths).
        statistics: further named, detached values, [B] each, averaged over pairs when logged.
    """

    terms: tuple[LossTerm, ...]
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)

    def value(self, counts: Mapping[Per, Tensor | float]) -> Tensor:
        """Scalar loss, given the count of each `per` over the whole optimizer step.

        A count of 0 (a process without examples) gives a differentiable zero.
        """
        total = None
        for term in self.terms:
            count = counts[term.per]
            # Counts are whole numbers: below 1 there is nothing to divide, only 0 / 0 to avoid.
            count = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
            part = term.losses.sum() / count
            total = part if total is None else total + part
        assert total is not None
        return total
