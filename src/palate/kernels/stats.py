"""The value that every token operator returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """Statistics of N response tokens, float32, flat; each differentiable unless said otherwise.

    Attributes:
        logp: [N] policy log-probability of the token that was written.
        ref_logp: [N] the reference's, never differentiable.
        kl: [N] KL(ref || policy), exact sum over the vocabulary.
        reverse_kl: [N] KL(policy || ref), exact sum over the vocabulary.
        entropy: [N] entropy of the policy's next-token distribution, nats.
    """

    logp: Tensor
    ref_logp: Tensor | None = None
    kl: Tensor | None = None
    reverse_kl: Tensor | None = None
    entropy: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Head:
    """A vocabulary head: logits = softcap(scale * (hidden @ weight.T + bias)).

    Attributes:
        weight: [V, d].
        bias: [V] or None.
        scale: multiplies the logits (Cohere's logit scale; 1 / divisor for Granite).
        softcap: c in c * tanh(z / c) (Gemma 2), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def at_temperature(self, temperature: float) -> Head:
        """The head whose logits are this one's over `temperature`."""
        if temperature == 1.0:
            return self
        # c tanh(z / c) / t = (c / t) tanh((z / t) / (c / t))
        cap = None if self.softcap is None else self.softcap / temperature
        return replace(self, scale=self.scale / temperature, softcap=cap)
