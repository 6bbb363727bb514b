"""What a reference hands to `token_stats`: one of three records, from cheapest to most general."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from palate.kernels.stats import Head


@dataclass(frozen=True, kw_only=True)
class RefLogps:
    """Reference log-probabilities only: enough for every loss without token-level KL.

    Attributes:
        logp: [N] float32.
    """

    logp: Tensor


@dataclass(frozen=True, kw_only=True)
class RefHidden:
    """The reference's last hidden states and its head: enough for everything.

    Attributes:
        hidden: [N, d_ref].
        head: the reference's own head; may be the policy's very head when that is frozen.
    """

    hidden: Tensor
    head: Head


@dataclass(frozen=True, kw_only=True)
class RefSummary:
    """All that exact KL needs of a reference which shares a frozen head with the policy.

    With p = softmax(W h_ref): KL(p || q) = lse_q - lse_p - e . (h - h_ref), e = E_p[W].

    Attributes:
        logp: [N] float32.
        lse: [N] float32, logsumexp of the reference logits, bias excluded from `mean_dot` only.
        mean_embedding: [N, d] e, the expectation of the head's rows under the reference.
        mean_dot: [N] float32, scale * e . h_ref, accumulated with the stored `mean_embedding`.
    """

    logp: Tensor
    lse: Tensor
    mean_embedding: Tensor
    mean_dot: Tensor


RefInputs = RefLogps | RefHidden | RefSummary


def at_temperature(reference: RefInputs | None, temperature: float) -> RefInputs | None:
    """The reference whose logits are over `temperature`, too.

    Raises:
        ValueError: it is known at one temperature alone.
    """
    if temperature == 1.0 or reference is None:
        return reference
    if not isinstance(reference, RefHidden):
        raise ValueError("log-probs and summaries of a reference are of temperature 1 alone")
    return replace(reference, head=reference.head.at_temperature(temperature))
