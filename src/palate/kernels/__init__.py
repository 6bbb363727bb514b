"""Token statistics: what a preference loss needs of the vocabulary, and never a loss.

`token_stats` picks the operator; see `general` and `frozen` for the formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palate.kernels.frozen import frozen_stats, summarise
from palate.kernels.general import general_stats
from palate.kernels.inputs import RefHidden, RefInputs, RefLogps, RefSummary, at_temperature
from palate.kernels.stats import Head, TokenStats

__all__ = [
    "Head",
    "RefHidden",
    "RefInputs",
    "RefLogps",
    "RefSummary",
    "TokenStats",
    "at_temperature",
    "shares_frozen_head",
    "summarise",
    "token_stats",
]


def shares_frozen_head(head: Head, ref_head: Head | None = None) -> bool:
    """Whether the frozen-head operator applies: untrained, linear, and (if given) the same head."""
    frozen = not head.weight.requires_grad and (head.bias is None or not head.bias.requires_grad)
    if not frozen or head.softcap is not None:
        return False
    return ref_head is None or (
        ref_head.softcap is None
        and ref_head.scale == head.scale
        and _same(ref_head.weight, head.weight)
        and (ref_head.bias is head.bias or _same(ref_head.bias, head.bias))
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (
        a is not None
        and b is not None
        and a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
    )


def token_stats(
    *,
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    reference: RefInputs | None = None,
    kl: bool = False,
    reverse_kl: bool = False,
    entropy: bool = False,
    memory_mb: int = 256,
) -> TokenStats:
    """Per response token: log-probs, exact KLs to the reference, entropy; exact and streamed.

    Nothing of size tokens x vocabulary is made beyond tiles within `memory_mb`. Every result but
    `ref_logp` is differentiable with any per-token upstream gradient.

    Args:
        hidden: [N, d] policy hidden states at the positions that predict `targets`.
        head: the policy's vocabulary head, trained or frozen.
        targets: [N] int64 token ids.
        reference: what is known of the reference; see `palate.kernels.inputs`.
        kl: KL(ref || policy); needs RefHidden, or RefSummary with a frozen shared head.
        reverse_kl: KL(policy || ref); needs RefHidden.
        entropy: of the policy.
        memory_mb: working memory in MiB.

    Returns:
        TokenStats of float32 [N] tensors (float64 for float64 hidden states).

    Raises:
        ValueError: the reference given cannot answer what is asked.
    """
    if (kl or reverse_kl) and (reference is None or isinstance(reference, RefLogps)):
        raise ValueError("a token-level KL needs RefHidden or RefSummary, not log-probs alone")
    if isinstance(reference, RefSummary):
        if not shares_frozen_head(head):
            raise ValueError(
                "RefSummary is exact only with a frozen, shared head without soft-capping"
            )
        if reverse_kl:
            raise ValueError("KL(policy || ref) needs RefHidden: a summary holds E_ref[W] only")

    wants_general = entropy or reverse_kl or not shares_frozen_head(head)
    if isinstance(reference, RefHidden):
        shared = shares_frozen_head(head, reference.head)
        if wants_general or not shared:
            logp, ref_logp, kl_, reverse, ent = general_stats(
                hidden=hidden,
                head=head,
                targets=targets,
                ref_hidden=reference.hidden,
                ref_head=reference.head,
                kl=kl,
                reverse_kl=reverse_kl,
                entropy=entropy,
                memory_mb=memory_mb,
            )
            return TokenStats(logp=logp, ref_logp=ref_logp, kl=kl_, reverse_kl=reverse, entropy=ent)
        ref = {"hidden": reference.hidden, "head": head, "targets": targets, "memory_mb": memory_mb}
        if kl:
            summary = summarise(**ref)  # type: ignore[arg-type]
            logp, kl_ = frozen_stats(
                hidden=hidden, head=head, targets=targets, summary=summary, memory_mb=memory_mb
            )
            return TokenStats(logp=logp, ref_logp=summary.logp, kl=kl_)
        with torch.no_grad():
            ref_logp, _ = frozen_stats(**ref)  # type: ignore[arg-type]
        logp, _ = frozen_stats(hidden=hidden, head=head, targets=targets, memory_mb=memory_mb)
        return TokenStats(logp=logp, ref_logp=ref_logp)

    ref_logp = None if reference is None else reference.logp
    kl_ = ent = None
    if wants_general:
        logp, _, _, _, ent = general_stats(
            hidden=hidden, head=head, targets=targets, entropy=entropy, memory_mb=memory_mb
        )
        if kl and isinstance(reference, RefSummary):
            _, kl_ = frozen_stats(
                hidden=hidden, head=head, targets=targets, summary=reference, memory_mb=memory_mb
            )
    else:
        logp, kl_ = frozen_stats(
            hidden=hidden,
            head=head,
            targets=targets,
            summary=reference if kl and isinstance(reference, RefSummary) else None,
            memory_mb=memory_mb,
        )
    return TokenStats(logp=logp, ref_logp=ref_logp, kl=kl_, entropy=ent)
