"""EfficientNet-Lite0's packaged weights as transformers' own EfficientNet.

The lite network has ReLU6 for swish and no squeeze-and-excitation: a gate whose weights are zero
and whose bias is 30 is 1 to within rounding, so transformers' class computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from palate.errors import ModelError

OPEN_GATE = 30.0
"""Bias of a squeeze-and-excitation gate that lets everything through: sigmoid(30) is 1 - 1e-13."""

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BLOCK = {
    "_expand_conv.weight": "expansion.expand_conv.weight",
    "_depthwise_conv.weight": "depthwise_conv.depthwise_conv.weight",
    "_project_conv.weight": "projection.project_conv.weight",
}
_BLOCK_NORMS = {
    "_bn0": "expansion.expand_bn",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_bn2": "projection.project_bn",
}
_ENDS = {
    "_conv_stem.weight": "embeddings.convolution.weight",
    "_conv_head.weight": "encoder.top_conv.weight",
}
_END_NORMS = {"_bn0": "embeddings.batchnorm", "_bn1": "encoder.top_bn"}
_CLASSIFIER = ("_fc.weight", "_fc.bias")


def tower_config(**changes: Any) -> Any:
    """transformers' configuration of EfficientNet-Lite0."""
    from transformers import EfficientNetConfig

    values: dict[str, Any] = {
        "image_size": 128,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "hidden_dim": 1280,
        "hidden_act": "relu6",
        "batch_norm_eps": 1e-3,
        "dropout_rate": 0.0,
        "drop_connect_rate": 0.0,
    }
    config: Any = EfficientNetConfig(**values | changes)
    # What a projector behind the tower reads.
    config.hidden_size = config.hidden_dim
    return config


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's weights under transformers' names; those of the classifier are left out.

    Args:
        weights: by the names of the EfficientNet-PyTorch code that the package's file comes from.

    Raises:
        ModelError: a name that is not of this network.
    """
    names = dict(_ENDS) | dict.fromkeys(_CLASSIFIER, "")
    for norm, new in _END_NORMS.items():
        names |= {f"{norm}.{part}": f"{new}.{part}" for part in _NORM}
    blocks = {name.split(".")[1] for name in weights if name.startswith("_blocks.")}
    for block in blocks:
        old, new_block = f"_blocks.{block}", f"encoder.blocks.{block}"
        names |= {f"{old}.{name}": f"{new_block}.{new}" for name, new in _BLOCK.items()}
        for norm, new in _BLOCK_NORMS.items():
            names |= {f"{old}.{norm}.{part}": f"{new_block}.{new}.{part}" for part in _NORM}
    if unknown := sorted(weights.keys() - names.keys()):
        raise ModelError(f"{unknown[0]}: no weight of EfficientNet-Lite")
    return {names[name]: value for name, value in weights.items() if names[name]}


def load_tower(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Puts the packaged weights into transformers' `EfficientNetModel`, all gates open.

    Raises:
        ModelError: a weight is missing, of another shape, or of another network.
    """
    filled = renamed(weights)
    for name, value in model.state_dict().items():
        if "squeeze_excite" in name:
            open_ = OPEN_GATE if name.endswith("expand.bias") else 0.0
            filled[name] = torch.full_like(value, open_)
        elif name.endswith("num_batches_tracked"):
            # Older files lack it, and it means nothing in use.
            filled.setdefault(name, torch.zeros_like(value))
    try:
        model.load_state_dict(filled)
    except RuntimeError as error:
        raise ModelError(f"EfficientNet-Lite0: {' '.join(str(error).split())}") from None
