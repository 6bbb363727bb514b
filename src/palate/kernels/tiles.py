"""Tiles of the vocabulary product, and how to multiply without rounding the logits.

The logits of bf16 operands are wanted in float32: a bf16 result is off by up to 2^-9 of its size
(0.06 at 20), which biases a KL by 1e-4 to 3e-4 nats a token. CUDA multiplies bf16 into float32
directly. The CPU library has no such product, but its float32 product may be allowed to *read* its
operands as bf16; ours are exactly that, so nothing is lost and the fast units are used. It costs
about 1.6 bf16-rounded products where a true float32 product costs 5 or more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_TILE_TOKENS = 512
CPU_TILE_VOCABULARY = 2048
"""A float32 tile of this size is 4 MB: it stays in the cache between the passes over it."""


@dataclass(frozen=True)
class Plan:
    """Tile sizes: `tokens` x `vocabulary` logits at a time."""

    tokens: int
    vocabulary: int


def plan(*, tokens: int, vocabulary: int, buffers: int, memory_mb: int, device: str) -> Plan:
    """Chooses tile sizes so that `buffers` float32 tiles fit in `memory_mb`."""
    budget = max(1, memory_mb * 2**20 // (4 * buffers))
    if device == "cpu":
        columns = min(vocabulary, CPU_TILE_VOCABULARY, max(64, budget // 16))
        rows = min(max(tokens, 1), CPU_TILE_TOKENS, max(1, budget // columns))
    else:
        # Wide tiles keep the launches few; rows are halved before columns become narrow.
        rows = max(tokens, 1)
        while rows > 1024 and budget // rows < min(vocabulary, 8192):
            rows = (rows + 1) // 2
        columns = min(vocabulary, max(64, budget // rows))
        rows = min(rows, max(1, budget // columns))
    return Plan(tokens=rows, vocabulary=columns)


def spans(total: int, width: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of consecutive spans."""
    for start in range(0, total, width):
        yield start, min(start + width, total)


def low_precision(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)


def runs_ahead(device: torch.device) -> bool:
    """Whether the host only queues work there, and would wait if it read a result."""
    return device.type != "cpu"


@contextmanager
def exact_products(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within it, float32 CPU products of values that are bf16 anyway use the bf16 units."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        yield
        return
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class WeightTiles:
    """The rows of a head, tile by tile, in the operand form of `logits`."""

    def __init__(self, weight: Tensor, width: int) -> None:
        self.weight = weight
        self.width = width
        self.upcast = weight.device.type == "cpu" and low_precision(weight.dtype)
        self._buffer = (
            torch.empty(min(width, weight.shape[0]), weight.shape[1], dtype=torch.float32)
            if self.upcast
            else None
        )

    def operand(self, start: int, stop: int) -> Tensor:
        """[stop - start, d] rows; valid until the next call."""
        rows = self.weight[start:stop]
        if self._buffer is None:
            return rows
        return self._buffer[: stop - start].copy_(rows)


def operand(hidden: Tensor) -> Tensor:
    """Hidden states in the operand form of `logits`."""
    return hidden.float() if hidden.device.type == "cpu" and low_precision(hidden.dtype) else hidden


def logits(hidden: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """hidden [n, d] @ rows [v, d].T as float32 [n, v] (float64 for float64 operands)."""
    if hidden.device.type == "cuda" and low_precision(hidden.dtype):
        return torch.mm(hidden, rows.T, out_dtype=torch.float32)
    if out is not None and out.dtype == hidden.dtype:
        return torch.mm(hidden, rows.T, out=out)
    return torch.mm(hidden, rows.T)
