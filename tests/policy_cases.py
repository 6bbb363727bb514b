"""Inputs for tests of policy losses: six tokens of three responses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

F64 = {"dtype": torch.float64}
SEGMENT = torch.tensor([0, 0, 0, 1, 2, 2])
N, S = 6, 3
MASK = torch.tensor([True, False, True, True, True, False])
POISON = (math.nan, math.inf, -math.inf)


def draw(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(N, generator=torch.Generator().manual_seed(seed), **F64)


def given(ratios: list[float]) -> tuple[Tensor, Tensor]:
    """(logp, old_logp) of these ratios."""
    old = torch.full((len(ratios),), -1.5, **F64)
    return (old + torch.tensor(ratios, **F64).log()).requires_grad_(), old


def gradient(losses: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(losses.sum(), of)[0]
