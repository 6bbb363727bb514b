"""Attention over rows of prefix trees, compiled; `attention.cpp` says how."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from palate.kernels.cpu.build import available, library
from palate.kernels.cpu.tensors import pointer


class _View(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("by_head", ctypes.c_int64),
        ("by_token", ctypes.c_int64),
    )


class _AttentionArgs(ctypes.Structure):
    _fields_ = (
        *((name, _View) for name in ("query", "key", "value")),
        *((name, ctypes.c_void_p) for name in ("until", "position")),
        *((name, ctypes.c_int64) for name in ("window", "tokens", "heads", "key_heads", "size")),
        ("scale", ctypes.c_float),
    )


def takes_attention(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `tree_attention` takes these."""
    return (
        query.dtype == key.dtype == value.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and len(query) == 1
        and query.shape[1] % key.shape[1] == 0
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and query.shape[-1] % 2 == 0
        and available()
    )


def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, structure: Tensor, *, scale: float
) -> Tensor:
    """softmax(scale q k^T) v over what each token of a row of prefix trees sees.

    Args:
        query: [1, H, T, d]. key, value: [1, K, T, d], H a multiple of K: query heads in a sequence
            share a key head. bfloat16, d even.
        structure: [3, T] int64: `visible_until` (0 for padding, which is last), positions, and in
            every place the window, 0 for none.

    Returns:
        [1, T, H, d], zero at padding; not differentiable twice.
    """
    attended: Tensor = _Attention.apply(query, key, value, structure, scale)
    return attended


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, structure: Tensor, scale: float
    ) -> Tensor:
        query, key, value = (
            x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)
        )
        _, heads, tokens, size = query.shape
        attended = torch.empty(1, tokens, heads, size, dtype=query.dtype)
        log_sums = torch.empty(heads, tokens, dtype=torch.float32)
        structure = structure.contiguous()
        args = _arguments(query, key, value, structure, scale)
        library().palate_attention_forward(
            ctypes.byref(args), torch.get_num_threads(), pointer(attended), pointer(log_sums)
        )
        ctx.save_for_backward(query, key, value, structure, attended, log_sums)
        ctx.scale = scale
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, structure, attended, log_sums = ctx.saved_tensors
        grad = grad.contiguous()
        d_query = torch.empty_like(attended)
        d_key, d_value = (torch.empty(x.shape, dtype=x.dtype) for x in (key, value))
        args = _arguments(query, key, value, structure, ctx.scale)
        library().palate_attention_backward(
            ctypes.byref(args), pointer(grad), pointer(attended), pointer(log_sums),
            torch.get_num_threads(), pointer(d_query), pointer(d_key), pointer(d_value),
        )  # fmt: skip
        return d_query.transpose(1, 2), d_key, d_value, None, None


def _arguments(
    query: Tensor, key: Tensor, value: Tensor, structure: Tensor, scale: float
) -> _AttentionArgs:
    _, heads, tokens, size = query.shape
    until, position = structure[0], structure[1]
    views = (_View(x.data_ptr(), x.stride(1), x.stride(2)) for x in (query, key, value))
    return _AttentionArgs(
        *views,
        pointer(until),
        pointer(position),
        int(structure[2, 0]),
        tokens,
        heads,
        key.shape[1],
        size,
        scale,
    )
