"""The general token operator: any head, trained or frozen, exact, in bounded memory.

The formulas are those of the kernels in `palate.kernels.cpu` and `palate.kernels.triton`, too,
which are used where they can be; what follows here is the same on torch's own products.

One streaming pass over the vocabulary gives, per token, with z and r the policy's and the
reference's logits, q and p their softmax:

    logp        = z_y - lse(z)
    KL(p || q)  = lse(z) - lse(r) - E_p[z - r]
    KL(q || p)  = E_q[z - r] - lse(z) + lse(r)
    entropy     = lse(z) - E_q[z]

The backward pass recomputes the tiles. With upstream gradients a, b, c, e of these four,

    dz = a (1_y - q) + b (q - p) + c q (z - r - E_q[z - r]) - e q (z - E_q[z])

Rows whose upstream is zero are not touched, and the reference's tiles are recomputed for rows with
b or c only (TDPO2 gives the chosen side none). Gradients of the head are accumulated in float32,
one vocabulary tile at a time, so no float32 copy of the head ever exists. On GPUs nothing here asks
the device which rows those are, since the host would have to wait for the answer: this path goes
through all rows there, the Triton kernels skip blocks of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palate.kernels import cpu, triton
from palate.kernels.stats import Head
from palate.kernels.streaming import (
    OnlineSums,
    Scratch,
    finish_logits,
    row_dot,
    target_logits,
    zero_where_excluded,
)
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


@dataclass(frozen=True)
class HeadOptions:
    """How raw products become logits, and what is asked for. Not tensors, so kept off autograd."""

    scale: float
    softcap: float | None
    ref_scale: float
    ref_softcap: float | None
    kl: bool
    reverse_kl: bool
    entropy: bool
    memory_mb: int

    def head(self, weight: Tensor, bias: Tensor | None) -> Head:
        return Head(weight=weight, bias=bias, scale=self.scale, softcap=self.softcap)

    def ref_head(self, weight: Tensor, bias: Tensor | None) -> Head:
        return Head(weight=weight, bias=bias, scale=self.ref_scale, softcap=self.ref_softcap)


def kernels_for(
    hidden: Tensor,
    weight: Tensor,
    ref_hidden: Tensor | None = None,
    ref_weight: Tensor | None = None,
) -> Any:
    """`triton` or `cpu`, whichever takes these; None: torch's own products."""
    given = (hidden, weight, ref_hidden, ref_weight)
    return triton if triton.takes(*given) else cpu if cpu.takes(*given) else None


class GeneralTokenStats(torch.autograd.Function):
    """See the module's text. Takes and returns tensors only; `general_stats` is the way in."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ref_hidden: Tensor | None,
        ref_weight: Tensor | None,
        ref_bias: Tensor | None,
        options: HeadOptions,
    ) -> tuple[Tensor | None, ...]:
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.kernels = kernels = kernels_for(hidden, weight, ref_hidden, ref_weight)
        if kernels is not None:
            result = kernels.forward(
                hidden,
                options.head(weight, bias),
                targets,
                ref_hidden=ref_hidden,
                ref_head=None if ref_weight is None else options.ref_head(ref_weight, ref_bias),
                kl=options.kl,
                reverse_kl=options.reverse_kl,
                entropy=options.entropy,
            )
            ctx.save_for_backward(
                hidden, weight, bias, targets, ref_hidden, ref_weight, ref_bias,
                result.lse, result.ref_lse, result.mean_gap, result.mean_logit, result.target_logit,
            )  # fmt: skip
            if result.ref_logp is not None:
                ctx.mark_non_differentiable(result.ref_logp)
            return result.logp, result.ref_logp, result.kl, result.reverse_kl, result.entropy
        n, vocabulary = hidden.shape[0], weight.shape[0]
        device = hidden.device
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        like = torch.empty(0, dtype=wide, device=device)
        with_ref = ref_hidden is not None
        size = plan(
            tokens=n,
            vocabulary=vocabulary,
            buffers=4 if with_ref else 2,
            memory_mb=options.memory_mb,
            device=device.type,
        )
        policy = OnlineSums(n, 2, like)
        ref = OnlineSums(n, 1, like)
        h, tiles = operand(hidden), WeightTiles(weight, size.vocabulary)
        if ref_hidden is not None:
            assert ref_weight is not None
            r_h, r_tiles = operand(ref_hidden), WeightTiles(ref_weight, size.vocabulary)
        scratch = Scratch(like)
        with exact_products(hidden.dtype, device):
            for start, stop in spans(vocabulary, size.vocabulary):
                rows_w = tiles.operand(start, stop)
                rows_b = None if bias is None else bias[start:stop].to(wide)
                if with_ref:
                    rows_rw = r_tiles.operand(start, stop)
                    rows_rb = None if ref_bias is None else ref_bias[start:stop].to(wide)
                for first, last in spans(n, size.tokens):
                    rows = slice(first, last)
                    z = logits(h[rows], rows_w, scratch.get("z", last - first, stop - start))
                    finish_logits(z, rows_b, options.scale, options.softcap)
                    weights = scratch.get("w", last - first, stop - start)
                    policy.weights(rows, z, weights)
                    if with_ref:
                        r = logits(r_h[rows], rows_rw, scratch.get("r", last - first, stop - start))
                        finish_logits(r, rows_rb, options.ref_scale, options.ref_softcap)
                    if options.reverse_kl:
                        gap = torch.sub(z, r, out=scratch.get("d", last - first, stop - start))
                        if bias is not None:
                            zero_where_excluded(weights, gap)
                        policy.sums[1, rows] += row_dot(weights, gap)
                    if options.entropy:
                        scores = scratch.get("d", last - first, stop - start).copy_(z)
                        if bias is not None:
                            zero_where_excluded(weights, scores)
                        policy.sums[2, rows] += row_dot(weights, scores)
                    if with_ref:
                        ref.weights(rows, r, weights)
                    if options.kl:
                        gap = z.sub_(r)  # the last use of z
                        if bias is not None:
                            zero_where_excluded(weights, gap)
                        ref.sums[1, rows] += row_dot(weights, gap)
        lse = policy.lse()
        z_y = target_logits(hidden, weight, bias, targets, options.scale, options.softcap)
        logp = z_y - lse
        ref_logp = kl = reverse_kl = entropy = ref_lse = mean_gap = mean_z = None
        if ref_hidden is not None:
            assert ref_weight is not None
            ref_lse = ref.lse()
            r_y = target_logits(
                ref_hidden, ref_weight, ref_bias, targets, options.ref_scale, options.ref_softcap
            )
            ref_logp = r_y - ref_lse
            if options.kl:
                kl = (lse - ref_lse) - ref.mean(1)
            if options.reverse_kl:
                mean_gap = policy.mean(1)
                reverse_kl = mean_gap - (lse - ref_lse)
        if options.entropy:
            mean_z = policy.mean(2)
            entropy = lse - mean_z
        ctx.save_for_backward(
            hidden, weight, bias, targets, ref_hidden, ref_weight, ref_bias,
            lse, ref_lse, mean_gap, mean_z, z_y,
        )  # fmt: skip
        if ref_logp is not None:
            ctx.mark_non_differentiable(ref_logp)
        return logp, ref_logp, kl, reverse_kl, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (
            hidden, weight, bias, targets, ref_hidden, ref_weight, ref_bias,
            lse, ref_lse, mean_gap, mean_z, z_y,
        ) = ctx.saved_tensors  # fmt: skip
        options: HeadOptions = ctx.options
        need_h, need_w, need_b = ctx.needs_input_grad[:3]
        wide = lse.dtype
        if ctx.kernels is triton:
            up = dict(zip(("logp", "ref_logp", "kl", "reverse_kl", "entropy"), grads, strict=True))
            stats = {"lse": lse, "ref_lse": ref_lse, "mean_gap": mean_gap, "mean_logit": mean_z}
            gradients = triton.backward(
                hidden,
                options.head(weight, bias),
                targets,
                upstream=up | stats,
                ref_hidden=ref_hidden,
                ref_head=None if ref_weight is None else options.ref_head(ref_weight, ref_bias),
                need=(need_h, need_w, need_b),
                memory_mb=options.memory_mb,
            )
            return _result(*gradients, hidden, bias)

        def upstream(grad: Tensor | None) -> Tensor:
            return lse.new_zeros(lse.shape) if grad is None else grad.to(wide)

        g_logp, g_kl, g_rkl, g_ent = (upstream(grads[i]) for i in (0, 2, 3, 4))
        with_ref = (g_kl != 0) | (g_rkl != 0)
        active = with_ref | (g_logp != 0) | (g_ent != 0)
        asynchronous = runs_ahead(hidden.device)
        if asynchronous:
            order = torch.arange(len(lse), device=hidden.device)
            n, n_ref = len(order), 0 if grads[2] is None and grads[3] is None else len(order)
        else:
            # Rows that need the reference come first, so that each group is a contiguous range.
            order = torch.cat([(active & with_ref).nonzero(), (active & ~with_ref).nonzero()])
            order = order.flatten()
            n, n_ref = len(order), int((active & with_ref).sum())
        d_h = torch.zeros(hidden.shape, dtype=wide, device=hidden.device) if need_h else None
        d_w = torch.empty_like(weight) if need_w else None
        d_b = torch.zeros_like(bias, dtype=wide) if need_b else None
        if n == 0:
            if d_w is not None:
                d_w.zero_()
            return _result(d_h, d_w, d_b, hidden, bias)
        h_sel, targets_s, lse_s = hidden[order], targets[order], lse[order]
        coefficients = [g[order] for g in (g_logp, g_kl, g_rkl, g_ent)]
        slope = _target_slope(coefficients[0], z_y[order], options)
        mean_z_s = None if mean_z is None else mean_z[order]
        mean_gap_s = None if mean_gap is None else mean_gap[order[:n_ref]]
        ref_h_sel: Any = ref_hidden[order[:n_ref]] if n_ref else None
        ref_lse_s: Any = ref_lse[order[:n_ref]] if n_ref else None
        if ctx.kernels is cpu:
            upstreams = {
                "logp": coefficients[0],
                "kl": coefficients[1],
                "reverse_kl": None if mean_gap is None else coefficients[2],
                "entropy": None if mean_z is None else coefficients[3],
                "lse": lse_s,
                "ref_lse": ref_lse_s,
                "mean_gap": mean_gap_s,
                "mean_logit": mean_z_s,
                "slope": slope,
            }
            d_h_rows, d_w, d_b = cpu.backward(
                h_sel,
                options.head(weight, bias),
                targets_s,
                upstream=upstreams,
                ref_hidden=ref_h_sel,
                ref_head=options.ref_head(ref_weight, ref_bias) if n_ref else None,
                need=(need_h, need_w, need_b),
                memory_mb=options.memory_mb,
            )
            if d_h is not None and d_h_rows is not None:
                d_h[order] = d_h_rows
            return _result(d_h, d_w, d_b, hidden, bias)

        size = plan(
            tokens=n,
            vocabulary=weight.shape[0],
            buffers=5 if n_ref else 2,
            memory_mb=options.memory_mb,
            device=hidden.device.type,
        )
        narrow = low_precision(weight.dtype)
        if asynchronous:
            # Whatever is in rows without a gradient, it must not reach the head's.
            idle = ~active.unsqueeze(1)
            h_sel = h_sel.masked_fill(idle, 0.0)
            slope = slope.masked_fill(~active, 0.0)
        h = operand(h_sel)
        tiles = WeightTiles(weight, size.vocabulary)
        if n_ref:
            r_h = operand(ref_h_sel)
            r_tiles = WeightTiles(ref_weight, size.vocabulary)
        d_h_sel = torch.zeros(h_sel.shape, dtype=wide, device=hidden.device) if need_h else None
        scratch = Scratch(lse)
        # Order of the ranges: spans never cross from rows with a reference to rows without.
        ranges = [*spans(n_ref, size.tokens)]
        ranges += [(a + n_ref, b + n_ref) for a, b in spans(n - n_ref, size.tokens)]
        with exact_products(hidden.dtype, hidden.device):
            for start, stop in spans(weight.shape[0], size.vocabulary):
                width = stop - start
                rows_w = tiles.operand(start, stop)
                rows_b = None if bias is None else bias[start:stop].to(wide)
                if n_ref:
                    rows_rw = r_tiles.operand(start, stop)
                    rows_rb = None if ref_bias is None else ref_bias[start:stop].to(wide)
                w_grad = None
                if need_w:
                    w_grad = torch.zeros(width, weight.shape[1], dtype=wide, device=weight.device)
                for first, last in ranges:
                    rows = slice(first, last)
                    count = last - first
                    c_logp, c_kl, c_rkl, c_ent = (c[rows].unsqueeze(1) for c in coefficients)
                    z = logits(h[rows], rows_w, scratch.get("z", count, width))
                    finish_logits(z, rows_b, options.scale, options.softcap)
                    q = torch.sub(z, lse_s[rows].unsqueeze(1), out=scratch.get("q", count, width))
                    q.exp_()
                    factor = c_kl - c_logp
                    if mean_z_s is not None:
                        # -e q (z - E_q z), merged with the multiples of q.
                        inner = torch.sub(z, mean_z_s[rows].unsqueeze(1)).mul_(-c_ent)
                        if bias is not None:
                            zero_where_excluded(q, inner)
                    else:
                        inner = None
                    if first < n_ref:
                        r = logits(r_h[rows], rows_rw, scratch.get("r", count, width))
                        finish_logits(r, rows_rb, options.ref_scale, options.ref_softcap)
                        if mean_gap_s is not None:
                            gap = torch.sub(z, r).sub_(mean_gap_s[rows].unsqueeze(1)).mul_(c_rkl)
                            if bias is not None:
                                zero_where_excluded(q, gap)
                            if asynchronous:
                                zero_where_excluded(c_rkl, gap)
                            inner = gap if inner is None else inner.add_(gap)
                        p = r.sub_(ref_lse_s[rows].unsqueeze(1)).exp_()
                        if asynchronous:
                            zero_where_excluded(c_kl, p)
                        g = q.mul_(factor if inner is None else inner.add_(factor))
                        g.addcmul_(p, c_kl, value=-1)
                    else:
                        g = q.mul_(factor if inner is None else inner.add_(factor))
                    if asynchronous:
                        g.masked_fill_(idle[rows], 0.0)
                    if options.softcap is not None:
                        # d softcap(x)/dx = 1 - (softcap(x) / c)^2
                        g.mul_(1 - (z / options.softcap).square_())
                    if options.scale != 1.0:
                        g.mul_(options.scale)
                    if d_h_sel is not None:
                        if narrow:
                            d_h_sel[rows] += g.to(weight.dtype) @ weight[start:stop]
                        else:
                            d_h_sel[rows] += g @ rows_w
                    if w_grad is not None:
                        if narrow and hidden.device.type == "cuda":
                            w_grad += torch.mm(
                                g.to(weight.dtype).T, h_sel[rows], out_dtype=torch.float32
                            )
                        else:
                            w_grad.addmm_(g.T, h[rows])
                    if d_b is not None:
                        d_b[start:stop] += g.sum(0)
                if d_w is not None:
                    assert w_grad is not None
                    # The targets' rows, before the one rounding to the head's dtype.
                    _add_targets(w_grad, start, stop, targets_s, h_sel, slope)
                    d_w[start:stop] = w_grad
        if d_b is not None:
            d_b.index_add_(0, targets_s, slope)
        if d_h is not None:
            assert d_h_sel is not None
            d_h_sel += slope.unsqueeze(1) * weight[targets_s].to(wide)
            d_h[order] = d_h_sel
        return _result(d_h, d_w, d_b, hidden, bias)


def _result(
    d_h: Tensor | None, d_w: Tensor | None, d_b: Tensor | None, hidden: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    return (
        None if d_h is None else d_h.to(hidden.dtype),
        d_w,
        None if d_b is None or bias is None else d_b.to(bias.dtype),
        None, None, None, None, None,
    )  # fmt: skip


def _target_slope(c_logp: Tensor, z_y: Tensor, options: HeadOptions) -> Tensor:
    """[n] d(sum c logp)/d(raw product of the target), without the softmax's part."""
    slope = c_logp * options.scale
    if options.softcap is not None:
        slope = slope * (1 - (z_y / options.softcap) ** 2)
    return slope


def _add_targets(
    w_grad: Tensor,
    start: int,
    stop: int,
    targets: Tensor,
    hidden: Tensor,
    slope: Tensor,
) -> None:
    """Adds the one-hot part of the head's gradient to the rows start..stop."""
    inside = (targets >= start) & (targets < stop)
    if runs_ahead(targets.device):
        values = (slope * inside).unsqueeze(1) * hidden.to(w_grad.dtype)
        w_grad.index_add_(0, torch.where(inside, targets - start, 0), values)
        return
    here = inside.nonzero().flatten()
    if len(here):
        w_grad.index_add_(
            0, targets[here] - start, slope[here].unsqueeze(1) * hidden[here].to(w_grad.dtype)
        )


def general_stats(
    *,
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    ref_hidden: Tensor | None = None,
    ref_head: Head | None = None,
    kl: bool = False,
    reverse_kl: bool = False,
    entropy: bool = False,
    memory_mb: int = 256,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(logp, ref_logp, kl, reverse_kl, entropy), each [N] float32 or None.

    Args:
        hidden: [N, d] policy hidden states at the predicting positions.
        head: the policy's head; gradients flow to `hidden`, `head.weight` and `head.bias`.
        targets: [N] int64.
        ref_hidden, ref_head: the reference's, never differentiated.
        memory_mb: working memory, excluding results and gradients.
    """
    options = HeadOptions(
        scale=head.scale,
        softcap=head.softcap,
        ref_scale=1.0 if ref_head is None else ref_head.scale,
        ref_softcap=None if ref_head is None else ref_head.softcap,
        kl=kl,
        reverse_kl=reverse_kl,
        entropy=entropy,
        memory_mb=memory_mb,
    )
    return GeneralTokenStats.apply(  # type: ignore[no-any-return]
        hidden,
        head.weight,
        head.bias,
        targets,
        None if ref_hidden is None else ref_hidden.detach(),
        None if ref_head is None else ref_head.weight.detach(),
        None if ref_head is None or ref_head.bias is None else ref_head.bias.detach(),
        options,
    )
