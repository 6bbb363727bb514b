"""Pieces of a streaming pass: running sums, reused buffers, logits of the targets."""

from __future__ import annotations

import torch
from torch import Tensor


def finish_logits(z: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """Raw products to logits, in place."""
    if bias is not None:
        z.add_(bias)
    if scale != 1.0:
        z.mul_(scale)
    if softcap is not None:
        z.div_(softcap).tanh_().mul_(softcap)
    return z


def zero_where_excluded(p: Tensor, value: Tensor) -> Tensor:
    """value with 0 wherever p is 0: excluded tokens (logit -inf on both sides) count nothing."""
    return value.masked_fill_(p == 0, 0.0)


class OnlineSums:
    """Running logsumexp of [N] rows and running sums weighted by exp(logit - maximum)."""

    def __init__(self, n: int, moments: int, like: Tensor) -> None:
        self.maximum = like.new_full((n,), float("-inf"))
        self.sums = like.new_zeros(1 + moments, n)

    def weights(self, rows: slice, z: Tensor, out: Tensor) -> Tensor:
        """exp(z - maximum) into `out`, after raising the maximum of `rows` to cover z."""
        before = self.maximum[rows]
        now = torch.maximum(before, z.amax(1))
        # A row of nothing but -inf so far keeps a finite shift, so that exp gives 0 and not nan.
        shift = now.clamp(min=torch.finfo(z.dtype).min)
        self.sums[:, rows] *= torch.exp(before - shift)
        self.maximum[rows] = now
        torch.sub(z, shift.unsqueeze(1), out=out).exp_()
        self.sums[0, rows] += out.sum(1)
        return out

    def lse(self) -> Tensor:
        return self.maximum + self.sums[0].log()

    def mean(self, moment: int) -> Tensor:
        return self.sums[moment] / self.sums[0]


def row_dot(weights: Tensor, values: Tensor) -> Tensor:
    """[n] row-wise dot products of [n, v] matrices; overwrites `values`.

    Not an einsum: that would be a matrix product, and inside `exact_products` those read bf16.
    """
    return values.mul_(weights).sum(1)


def target_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    cap: float | None,
) -> Tensor:
    """[N] logits of the targets, float32 or better."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    z = (hidden.to(wide) * weight[targets].to(wide)).sum(-1)
    if bias is not None:
        z = z + bias[targets].to(wide)
    return finish_logits(z, None, scale, cap)


class Scratch:
    """Reused tile buffers, by name."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def get(self, name: str, rows: int, columns: int) -> Tensor:
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < rows * columns:
            buffer = self.buffers[name] = self.like.new_empty(rows * columns)
        return buffer[: rows * columns].view(rows, columns)
