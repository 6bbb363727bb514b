"""Norms, gated activations and rotary positions of a transformer, compiled: see `layers.cpp`."""

from __future__ import annotations

import ctypes
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from palate.kernels.cpu.build import library
from palate.kernels.cpu.tensors import pointer

Activation = Literal["silu", "gelu_tanh"]
_KINDS: tuple[Activation, ...] = ("silu", "gelu_tanh")
VECTOR = 16
"""Rows and flat tensors are taken in multiples of this."""


def takes_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether `norm` takes these."""
    return (
        x.dtype == weight.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.shape[-1] == weight.shape[0]
        and x.shape[-1] % VECTOR == 0
        and weight.is_contiguous()
    )


def takes_flat(gate: Tensor, up: Tensor) -> bool:
    """Whether `gated` takes these."""
    return (
        gate.dtype == up.dtype == torch.bfloat16
        and gate.device.type == "cpu"
        and gate.shape == up.shape
        and gate.numel() % VECTOR == 0
    )


def takes_heads(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether `rotated` takes these."""
    return (
        x.dtype == cos.dtype == sin.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.shape[-1] % (2 * VECTOR) == 0
        and cos.shape == sin.shape
        and cos.shape[1:] == x.shape[2:]
        and cos.shape[0] in (1, x.shape[0])
        and not (cos.requires_grad or sin.requires_grad)
    )


def norm(x: Tensor, weight: Tensor, *, epsilon: float, offset: float, early: bool) -> Tensor:
    """x / rms(x) * (offset + weight) over the last dimension.

    Args:
        x: [..., d] and weight [d], bfloat16, d a multiple of 16.
        early: the normed value is rounded before it meets the weight, as in Llama.
    """
    normed: Tensor = _Norm.apply(x, weight, epsilon, offset, early)
    return normed


def gated(gate: Tensor, up: Tensor, *, kind: Activation) -> Tensor:
    """activation(gate) * up, elementwise; bfloat16, as many values as a multiple of 16."""
    product: Tensor = _Gated.apply(gate, up, kind)
    return product


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + (-x2, x1) * sin of queries or keys x, whose heads are the halves (x1, x2).

    Args:
        x: [R, H, T, d], bfloat16, d a multiple of 32.
        cos, sin: [R, T, d] or [1, T, d], bfloat16, without gradient.
    """
    turned: Tensor = _Rotated.apply(x, cos, sin)
    return turned


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float, early: bool
    ) -> Tensor:
        x = _dense(x)
        y = torch.empty_like(x)
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        scale = torch.empty(rows, dtype=torch.float32)
        library().palate_norm_forward(
            pointer(x), pointer(weight), ctypes.c_int64(rows), ctypes.c_int64(width),
            ctypes.c_float(epsilon), ctypes.c_float(offset), int(early), torch.get_num_threads(),
            pointer(y), pointer(scale),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, scale)
        ctx.offset = offset
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        grad = _like(grad, x)
        d_x = torch.empty_like(x)
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = torch.empty(weight.shape, dtype=torch.float32)
        library().palate_norm_backward(
            pointer(grad), pointer(x), pointer(weight), pointer(scale),
            ctypes.c_int64(len(scale)), ctypes.c_int64(x.shape[-1]), ctypes.c_float(ctx.offset),
            torch.get_num_threads(), pointer(d_x), pointer(d_weight),
        )  # fmt: skip
        return d_x, None if d_weight is None else d_weight.to(weight.dtype), None, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        product = torch.empty_like(gate)
        library().palate_gated_forward(
            pointer(gate), pointer(up), ctypes.c_int64(gate.numel() // VECTOR),
            _KINDS.index(kind), torch.get_num_threads(), pointer(product),
        )  # fmt: skip
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad = grad.contiguous()
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        library().palate_gated_backward(
            pointer(grad), pointer(gate), pointer(up), ctypes.c_int64(gate.numel() // VECTOR),
            _KINDS.index(ctx.kind), torch.get_num_threads(), pointer(d_gate), pointer(d_up),
        )  # fmt: skip
        return d_gate, d_up, None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _turned(grad, *ctx.saved_tensors, back=True), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    x = _dense(x)
    y = torch.empty_like(x)
    rows, heads, tokens, size = x.shape
    by_row = 0 if len(cos) == 1 else tokens * size
    library().palate_rotate(
        pointer(x), pointer(cos), pointer(sin),
        *map(ctypes.c_int64, (rows, heads, tokens, size, *x.stride()[:3], by_row)),
        int(back), torch.get_num_threads(), pointer(y),
    )  # fmt: skip
    return y


def _dense(x: Tensor) -> Tensor:
    """As it is where its rows lie one after another in some order: queries by head do."""
    by_token = x.ndim == 4 and x.transpose(1, 2).is_contiguous()
    return x if by_token or x.is_contiguous() else x.contiguous()


def _like(grad: Tensor, x: Tensor) -> Tensor:
    """In the memory order of x."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)
