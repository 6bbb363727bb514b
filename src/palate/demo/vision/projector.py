"""Where the projector's training starts.

What a tower ends with is never negative: all features of all images have most of their length in
common, and behind random layers all images look alike to a language model. Here the first layer
takes the common part away and gives the directions in which images differ about the same size; the
second makes of them vectors as long as the embeddings of words.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

DAMPING = 0.1
"""Directions with less than this share of the mean variance are made larger no further."""


@torch.no_grad()
def start_projector(projector: Any, features: Tensor, embeddings: Tensor) -> None:
    """Sets both layers of FastVLM's projector, float32, by what the tower gives for some images.

    Args:
        projector: with `linear_1`, `act` and `linear_2`. features: [n, d] of image tokens.
        embeddings: [V, e] of words.
    """
    first, second = projector.linear_1, projector.linear_2
    x = features.double()
    centred = x - x.mean(0)
    values, directions = torch.linalg.eigh(centred.T @ centred / len(x))
    # Largest first; of a narrow tower there may be fewer than the layer has outputs.
    k = min(first.out_features, len(values))
    values, directions = values.flip(0)[:k].clamp(min=0), directions.flip(1)[:, :k]
    scale = (values + DAMPING * values.mean()).rsqrt()
    weight = torch.zeros_like(first.weight, dtype=torch.float64)
    weight[:k] = (directions * scale).T
    first.weight.copy_(weight)
    first.bias.copy_(-(weight @ x.mean(0)))
    inner = projector.act(centred @ weight.T)
    draws = torch.Generator().manual_seed(0)
    mixed = torch.randn(second.weight.shape, generator=draws, dtype=torch.float64)
    mixed /= math.sqrt(second.in_features)
    out = (inner - inner.mean(0)) @ mixed.T
    mixed *= embeddings.double().std() / out.std()
    second.weight.copy_(mixed)
    second.bias.copy_(-(mixed @ inner.mean(0)))
