"""What a model is made of, as far as the shared layout depends on it.

That layout puts several sequences in one row and keeps them apart by attention masks and position
ids alone. It is exact where nothing but attention moves information between tokens, and where every
limit of attention's reach is among the windows of `palate.models.backbone.windows_of`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from palate.errors import ModelError

ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "attention", "global"})
"""Kinds of layers, as configurations name them, whose masks are made here."""
FEED_FORWARD = frozenset({"dense", "sparse", "moe", "mlp"})
"""Kinds that see one token at a time."""
UNDERSTOOD = frozenset({"sliding_window", "use_sliding_window", "max_window_layers"})
_PATTERN = frozenset({"sliding_window_pattern", "_sliding_window_pattern"})
"""Says which layers have a window, where `layer_types` does not."""
_REACH = re.compile(
    r"window|chunk|alibi|recurr|block_size|stride|segment|lookahead|index_topk|compress"
    r"|(?<!num_)local(?!_experts)|sparse_attention|linear_attn"
)
"""Keys of configurations that limit or bend what a token sees."""
_MIXERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a language model that ends in hidden states: the model without vocabulary head.

    Raises:
        ModelError: there is no such part.
    """
    backbone: Any = model.base_model
    if backbone is model and model.get_output_embeddings() is not None:
        # The name that transformers has for the part is not always the one that the family uses.
        parts = [part for part in model.children() if isinstance(part, PreTrainedModel)]
        backbone = parts[0] if len(parts) == 1 else None
    if not isinstance(backbone, PreTrainedModel):
        raise ModelError(f"{type(model).__name__} has no backbone that gives hidden states")
    return backbone


def sharing_obstacle(backbone: PreTrainedModel) -> str | None:
    """Why several sequences must not share a row of this model, told by its parts alone.

    Returns:
        One clause that names the part; None where nothing speaks against it. That is no proof: see
        `palate.models.check`.
    """
    config = backbone.config.get_text_config()
    for name, kind in _layer_kinds(config):
        if kind not in ATTENTION_LAYERS | FEED_FORWARD:
            return f"`{name}` has layers of kind {kind!r}, for which no mask is known"
    if key := _unknown_reach(config):
        return f"`{key}` in its configuration bends attention in a way that is not known here"
    text = text_part(backbone)
    for name, module in text.named_modules():
        if getattr(module, "is_causal", None) is False:
            return f"{name} ({type(module).__name__}) sees later tokens, too"
        if _mixes(module):
            return f"{name} ({type(module).__name__}) mixes neighbouring tokens, whatever the mask"
    if "position_ids" not in inspect.signature(type(text).forward).parameters:
        return f"{type(text).__name__} counts positions itself: it takes no position ids"
    return None


def has_experts(config: Any) -> bool:
    """Whether tokens are sent to experts, as far as the configuration says."""
    entries = _entries(config.get_text_config().to_dict())
    return any(re.search(r"expert|moe", key) and value for key, value in entries)


def _layer_kinds(config: Any) -> Iterator[tuple[str, str]]:
    """Key and value of everything that a configuration calls a kind of layer of the backbone."""
    names = {*vars(config), "layer_types", "layers_block_type"}
    for name in sorted(names):
        if "mlp" in name or "mtp" in name or not re.search(r"layer|block|attention", name):
            continue
        kinds = getattr(config, name, None)
        if isinstance(kinds, list | tuple) and all(isinstance(kind, str) for kind in kinds):
            for kind in kinds:
                yield name, kind


def _unknown_reach(config: Any) -> str | None:
    """The first key that says how far a token sees and that `windows_of` does not read."""
    window = getattr(config, "sliding_window", None)
    if window is not None and (isinstance(window, bool) or not isinstance(window, int)):
        return "sliding_window"
    types = getattr(config, "layer_types", None)
    if types and "sliding_attention" in types and window is None:
        return "layer_types"
    understood = UNDERSTOOD | _PATTERN if types else UNDERSTOOD
    for key, value in _entries(config.to_dict()):
        name = key.rpartition(".")[2]
        if value and not isinstance(value, str) and name not in understood and _REACH.search(name):
            return key
    return None


def _entries(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def text_part(backbone: PreTrainedModel) -> PreTrainedModel:
    """The text decoder inside a backbone that also sees; of text alone the backbone itself."""
    text = backbone.config.get_text_config()
    if text is not backbone.config:
        for part in backbone.modules():
            if isinstance(part, PreTrainedModel) and part.config is text:
                return part
    return backbone


def _mixes(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return max(module.kernel_size) > 1
    return isinstance(module, _MIXERS)
