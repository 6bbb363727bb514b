"""A policy as a folder of whole weights, its adapters added in, while it goes on being trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palate.models.model import Model


def save_whole(model: Model, folder: Path) -> None:
    """Writes the main trunk as safetensors + JSON, whole: what is trained stays as it is.

    Adapters are added to the weights in float32, and the sums rounded to the weights' dtype.
    """
    if not model.has_adapters:
        model.save(folder)
        return
    model.base.save_pretrained(folder, state_dict=merged_weights(model.base))


@torch.no_grad()
def merged_weights(base: nn.Module) -> dict[str, Tensor]:
    """The weights of a model with adapters in its layers, by their names in one without."""
    from peft.tuners.lora import LoraLayer

    weights = {
        name.replace(".base_layer.", "."): weight
        for name, weight in base.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in base.named_modules():
        if isinstance(layer, LoraLayer):
            key = f"{name}.weight"
            adapted: Any = layer
            for adapter in adapted.active_adapters:
                delta = adapted.get_delta_weight(adapter)
                weights[key] = (weights[key].float() + delta.float()).to(weights[key].dtype)
    return weights
