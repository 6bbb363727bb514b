"""A transformers model as token rows in and hidden states out; its vocabulary head is not run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from palate.data.layouts import SequenceBatch
from palate.data.trees import VisionLayout
from palate.errors import ModelError
from palate.kernels import Head
from palate.models.adapters import refuse_head_adapters
from palate.models.attention import Windows, structure_masks, takes_structure
from palate.models.compiled import head_weight
from palate.models.structure import backbone_of
from palate.models.vision import (
    image_features,
    seen,
    sees,
    vision_layout,
    vision_parameters,
)
from palate.models.vision_parts import still_norms


class Backbone(nn.Module):
    """Wraps a transformers model, of language or without a head, with or without PEFT adapters.

    Attributes:
        hf: the transformers or PEFT model; what is saved.
        blank: pixels of an image that shows nothing, for processes whose rows have none while
            others' have; None where that makes no difference.
    """

    blank: Mapping[str, Tensor] | None = None

    def __init__(self, hf: nn.Module) -> None:
        super().__init__()
        self.hf = hf
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        still_norms(self)
        return self

    def forward(self, batch: SequenceBatch) -> Tensor:
        """[R * T, d] last hidden states of every position of a batch."""
        inputs: dict[str, Any] = dict(batch.inputs)
        model = backbone_of(self.base)
        real = inputs.pop("real", None)
        if "visible_until" in inputs:
            device, dtype = inputs["visible_until"].device, self.dtype
            structured = "visible_from" not in inputs and takes_structure(
                self.config, device, dtype
            )
            if structured and real is not None:
                inputs = _without_padding(inputs, real)
            else:
                real = None
            depth = inputs.pop("depth", None)
            inputs["attention_mask"] = structure_masks(
                inputs.pop("visible_until"),
                inputs["position_ids"] if depth is None else depth,
                self.windows,
                begin=inputs.pop("visible_from", None),
                dense=None if structured else dtype,
            )
        if batch.images is not None:
            inputs["mm_encoder_outputs"] = {"image": seen(model, batch.images)}
        # Before the language model, as where there are images: sharded weights go round in order.
        nothing = self._nothing(self.blank) if batch.images is None and self.blank else None
        states: Tensor = model(**inputs, use_cache=False).last_hidden_state
        if nothing is not None:
            states = states + nothing
        states = states.reshape(-1, states.shape[-1])
        if real is None:
            return states
        places = batch.inputs["input_ids"].numel()
        return states.new_zeros(places, states.shape[-1]).index_copy(0, real, states)

    def _nothing(self, blank: Mapping[str, Tensor]) -> Tensor:
        """0, in whose gradients tower and projector take part.

        Of several processes each must run a tower that is trained as often as the others, whatever
        images its rows have.
        """
        pixels = {name: value.to(self.device) for name, value in blank.items()}
        (features,) = image_features(backbone_of(self.base), [pixels], None)
        return 0.0 * torch.stack([value.sum() for value in features.values()]).sum()

    @property
    def vision_trained(self) -> bool:
        """Whether anything of tower and projector is trained."""
        model = backbone_of(self.base)
        return sees(model) and any(p.requires_grad for p in vision_parameters(model))

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, adapters (if any) injected in its layers."""
        get = getattr(self.hf, "get_base_model", None)
        model = get() if get is not None else self.hf
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the base weights (adapters are float32)."""
        return self.base.get_input_embeddings().weight.dtype  # type: ignore[return-value]

    @property
    def hidden_size(self) -> int:
        """Of the states that come out: OPT may project its own to another size."""
        config = self.config.get_text_config()
        return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)

    @property
    def windows(self) -> Windows:
        """The sliding windows of its layer types."""
        return windows_of(self.config)

    @property
    def vision(self) -> VisionLayout | None:
        """How it lays out images; None of a model of text alone."""
        return vision_layout(self.config)

    @property
    def has_adapters(self) -> bool:
        return hasattr(self.hf, "disable_adapter")

    @property
    def is_frozen(self) -> bool:
        return not any(p.requires_grad for p in self.hf.parameters())

    def adapters_off(self) -> AbstractContextManager[None]:
        """A context in which the adapters do nothing."""
        context: AbstractContextManager[None] = self.hf.disable_adapter()  # type: ignore[operator]
        return context

    def merge_adapters(self) -> None:
        """Adds the adapters to the weights; states stay the same to rounding."""
        if self.has_adapters:
            self.hf = self.hf.merge_and_unload()  # type: ignore[operator]

    def vocabulary_module(self) -> nn.Module:
        """The module whose weight is the vocabulary head's.

        Raises:
            ModelError: it has none, or one with adapters.
        """
        module: nn.Module | None = self.base.get_output_embeddings()
        refuse_head_adapters(self.base, type(self.base).__name__)
        if module is None or not isinstance(getattr(module, "weight", None), Tensor):
            raise ModelError(f"{type(self.base).__name__} has no vocabulary head")
        return module

    def vocabulary_head(self) -> Head:
        """The vocabulary head with the family's scaling and soft-capping.

        Raises:
            ModelError: it has none.
        """
        module = self.vocabulary_module()
        config = self.config.get_text_config()
        scale = 1.0
        if getattr(config, "logit_scale", None) is not None:
            scale = float(config.logit_scale)
        elif getattr(config, "logits_scaling", None) is not None:
            scale = 1.0 / float(config.logits_scaling)
        cap = getattr(config, "final_logit_softcapping", None)
        if cap is None:
            cap = getattr(config, "logits_soft_cap", None)
        tied = head_weight(self.base)
        return Head(
            weight=module.weight if tied is None else tied,  # type: ignore[arg-type]
            bias=getattr(module, "bias", None),
            scale=scale,
            softcap=None if cap is None else float(cap),
        )


def _without_padding(inputs: dict[str, Any], real: Tensor) -> dict[str, Any]:
    """Shared rows as one row without padding.

    Attention takes every tree of a row by itself there, so that a long row costs no more than
    several short ones.

    Args:
        real: [n] places of its tokens in the flattened rows.
    """
    until = inputs["visible_until"]
    counts = (until > 0).sum(1)
    # Padding is on the right: a row begins where the real tokens of those before it end.
    until = until + (counts.cumsum(0) - counts).unsqueeze(1)
    rows = inputs | {"visible_until": until}
    # Of positions on several axes the rows are behind the first dimension.
    return {name: value.flatten(-2)[..., real].unsqueeze(-2) for name, value in rows.items()}


def windows_of(config: Any) -> Windows:
    """The sliding windows of a model's layer types; `config` is the model's.

    Under the name "" where all layers are of one type.
    """
    config = config.get_text_config()
    types = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    if "sliding_attention" in types:
        return {t: window if t == "sliding_attention" else None for t in types}
    return {"": None if types else window}
