"""The frozen-head token operator: TDPO at the price of DPO.

With a head W that is not trained and that the reference shares, and no soft-capping, the expected
logit difference under the reference is a dot product of hidden states:

    KL(p || q) = lse(z) - lse(r) - e . (h - h_ref),   e = E_p[W] = W^T p

so exact KL adds one d-dot to what DPO needs. Its gradient in h is E_q[W] - e, and that of
log q_y is W_y - E_q[W]. E_q[W] comes out of the forward pass (as attention would compute it, with
h as query and W as keys and values), so the backward pass touches the vocabulary not at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palate.kernels.general import kernels_for
from palate.kernels.inputs import RefSummary
from palate.kernels.stats import Head
from palate.kernels.streaming import target_logits
from palate.kernels.tiles import (
    WeightTiles,
    exact_products,
    logits,
    low_precision,
    operand,
    plan,
    runs_ahead,
    spans,
)

HEADROOM = 40.0
"""Logits may exceed a row's shift by this before it is raised: exp(40) times any vocabulary is far
from float32's limit, and raising it costs a pass over the accumulated embeddings."""


def stream(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    mean: bool,
    exact_mean: bool = False,
    memory_mb: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One pass over the vocabulary: (logp [N], logsumexp [N], E_q[W] [N, d] or None), float32.

    Args:
        mean: also return the expected row of W.
        exact_mean: round the probabilities to 17 bits instead of 8 before they meet W; for the
            stored summary of a reference, whose error enters the KL's value.
    """
    kernels = kernels_for(hidden, head.weight)
    if kernels is not None:
        if mean:
            expected: tuple[Tensor, Tensor, Tensor] = kernels.expected(
                hidden, head, targets, exact=exact_mean, memory_mb=memory_mb
            )
            return expected
        result = kernels.forward(hidden, head, targets)
        return result.logp, result.lse, None
    n, vocabulary = hidden.shape[0], head.weight.shape[0]
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    size = plan(
        tokens=n,
        vocabulary=vocabulary,
        buffers=2 if mean else 1,
        memory_mb=memory_mb,
        device=hidden.device.type,
    )
    h, tiles = operand(hidden), WeightTiles(head.weight, size.vocabulary)
    narrow = low_precision(head.weight.dtype)
    # Finite, so that a tile of nothing but -inf gives exp(-inf) = 0 and not nan.
    shift = torch.full((n,), torch.finfo(wide).min, dtype=wide, device=hidden.device)
    total = torch.zeros(n, dtype=wide, device=hidden.device)
    acc = torch.zeros(hidden.shape, dtype=wide, device=hidden.device) if mean else None
    buffer = torch.empty(size.tokens * size.vocabulary, dtype=wide, device=hidden.device)
    with exact_products(hidden.dtype, hidden.device):
        for start, stop in spans(vocabulary, size.vocabulary):
            rows_w = tiles.operand(start, stop)
            rows_b = None if head.bias is None else head.bias[start:stop].to(wide)
            for first, last in spans(n, size.tokens):
                rows = slice(first, last)
                tile = buffer[: (last - first) * (stop - start)].view(last - first, stop - start)
                z = logits(h[rows], rows_w, tile)
                if rows_b is not None:
                    z.add_(rows_b)
                if head.scale != 1.0:
                    z.mul_(head.scale)
                top = z.amax(1)
                # Where the host runs ahead, it would have to wait for the answer.
                if runs_ahead(hidden.device) or bool((top > shift[rows] + HEADROOM).any()):
                    raised = torch.maximum(shift[rows], top)
                    fade = torch.exp(shift[rows] - raised)
                    total[rows] *= fade
                    if acc is not None:
                        acc[rows] *= fade.unsqueeze(1)
                    shift[rows] = raised
                p = z.sub_(shift[rows].unsqueeze(1)).exp_()
                total[rows] += p.sum(1)
                if acc is None:
                    continue
                if not narrow:
                    acc[rows].addmm_(p, rows_w)
                elif not exact_mean:
                    acc[rows] += p.to(head.weight.dtype) @ head.weight[start:stop]
                else:
                    high = p.to(head.weight.dtype)
                    low = p.sub_(high).to(head.weight.dtype)
                    if hidden.device.type == "cuda":
                        for part in (high, low):
                            acc[rows] += torch.mm(part, rows_w, out_dtype=torch.float32)
                    else:
                        for part in (high, low):
                            acc[rows].addmm_(part.float(), rows_w)
    lse = shift + total.log()
    logp = target_logits(hidden, head.weight, head.bias, targets, head.scale, None) - lse
    return logp, lse, None if acc is None else acc.div_(total.unsqueeze(1))


def summarise(*, hidden: Tensor, head: Head, targets: Tensor, memory_mb: int = 256) -> RefSummary:
    """The reference's summary: everything exact KL needs of it under a frozen shared head.

    Args:
        hidden: [N, d] reference hidden states.
        targets: [N].
    """
    if head.softcap is not None:
        raise ValueError(
            "a soft-capped head has no summary: logits are not linear in the hidden state"
        )
    with torch.no_grad():
        logp, lse, mean = stream(
            hidden, head, targets, mean=True, exact_mean=True, memory_mb=memory_mb
        )
        assert mean is not None
        wide = lse.dtype
        return RefSummary(
            logp=logp,
            lse=lse,
            mean_embedding=mean,
            mean_dot=head.scale * (mean * hidden.to(wide)).sum(-1),
        )


class _LogProbs(torch.autograd.Function):
    """(logp [N], lse [N]) with closed-form gradients in the hidden states."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: Head, memory_mb: int
    ) -> tuple[Tensor, Tensor]:
        logp, lse, mean = stream(
            hidden, head, targets, mean=ctx.needs_input_grad[0], memory_mb=memory_mb
        )
        ctx.head, ctx.dtype = head, hidden.dtype
        ctx.save_for_backward(targets, mean)
        ctx.set_materialize_grads(False)
        return logp, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        targets, mean = ctx.saved_tensors
        head: Head = ctx.head
        g_logp, g_lse = grads
        d_h = torch.zeros_like(mean)
        if g_logp is not None:
            d_h += g_logp.unsqueeze(1) * (head.weight[targets].to(mean.dtype) - mean)
        if g_lse is not None:
            d_h += g_lse.unsqueeze(1) * mean
        return d_h.mul_(head.scale).to(ctx.dtype), None, None, None


def frozen_stats(
    *,
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    summary: RefSummary | None = None,
    memory_mb: int = 256,
) -> tuple[Tensor, Tensor | None]:
    """(logp [N], kl [N] or None) for a head that is frozen and, for KL, the reference's too.

    Args:
        hidden: [N, d]; gradients flow to it and to nothing else.
        summary: of the reference; without it no KL.
    """
    logp, lse = _LogProbs.apply(hidden, targets, head, memory_mb)
    if summary is None:
        return logp, None
    # scale * e . h - scale * e . h_ref: both with the stored e, so its rounding acts on h - h_ref.
    dot = head.scale * (summary.mean_embedding.to(lse.dtype) * hidden.to(lse.dtype)).sum(-1)
    return logp, (lse - summary.lse) - (dot - summary.mean_dot)
