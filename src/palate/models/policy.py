"""A language model seen as hidden states at predicting positions, and a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from palate.data.layouts import SequenceBatch
from palate.errors import ModelError
from palate.kernels import Head, RefInputs, TokenStats, token_stats
from palate.models.attention import Windows, structure_masks


class Policy(nn.Module):
    """Wraps a transformers causal (or image-text) model, with or without PEFT adapters.

    `forward` runs backbone and token statistics together, so that DDP and FSDP, which wrap this
    module, see one call. The vocabulary head is never run at other positions.

    Attributes:
        hf: the transformers or PEFT model; what `save` writes.
        memory_mb: working memory of the vocabulary head.
    """

    def __init__(self, hf: nn.Module, *, memory_mb: int = 256) -> None:
        super().__init__()
        self.hf = hf
        self.memory_mb = memory_mb

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
        return self.head_module().weight.dtype  # type: ignore[return-value]

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        return len(self.head().weight)

    @property
    def has_adapters(self) -> bool:
        return hasattr(self.hf, "disable_adapter")

    def head_module(self) -> nn.Module:
        module: nn.Module | None = self.base.get_output_embeddings()
        if module is None or not isinstance(getattr(module, "weight", None), Tensor):
            raise ModelError(f"{type(self.base).__name__} has no vocabulary head")
        return module

    def head(self) -> Head:
        """The vocabulary head with the family's scaling and soft-capping."""
        module = self.head_module()
        config = self.config.get_text_config()
        scale = 1.0
        if getattr(config, "logit_scale", None) is not None:
            scale = float(config.logit_scale)
        elif getattr(config, "logits_scaling", None) is not None:
            scale = 1.0 / float(config.logits_scaling)
        cap = getattr(config, "final_logit_softcapping", None)
        return Head(
            weight=module.weight,  # type: ignore[arg-type]
            bias=getattr(module, "bias", None),
            scale=scale,
            softcap=None if cap is None else float(cap),
        )

    def hidden(self, batch: SequenceBatch) -> Tensor:
        """[N, d] last hidden states at the batch's predicting positions."""
        return run_backbone(self.base.base_model, batch, self.dtype)[batch.predict]

    def forward(
        self,
        batch: SequenceBatch,
        *,
        reference: RefInputs | None = None,
        kl: bool = False,
        reverse_kl: bool = False,
        entropy: bool = False,
    ) -> TokenStats:
        """Token statistics of the batch's response tokens; see `palate.kernels.token_stats`."""
        return token_stats(
            hidden=self.hidden(batch),
            head=self.head(),
            targets=batch.targets,
            reference=reference,
            kl=kl,
            reverse_kl=reverse_kl,
            entropy=entropy,
            memory_mb=self.memory_mb,
        )

    def save(self, folder: Path) -> None:
        """Writes safetensors + JSON that transformers (or PEFT, for adapters) loads."""
        save = self.hf.save_pretrained
        save(folder)  # type: ignore[operator]

    @property
    def n_trainable(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


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


def run_backbone(backbone: Any, batch: SequenceBatch, dtype: torch.dtype) -> Tensor:
    """[R * T, d] last hidden states of every position of a batch.

    Args:
        dtype: of the weights; attention masks take it.
    """
    inputs: dict[str, Any] = dict(batch.inputs)
    until = inputs.pop("visible_until", None)
    if until is not None:
        inputs["attention_mask"] = structure_masks(
            until,
            inputs["position_ids"],
            windows_of(backbone.config),
            kernel=backbone.config._attn_implementation,
            dtype=dtype,
        )
    states: Tensor = backbone(**inputs, use_cache=False).last_hidden_state
    return states.reshape(-1, states.shape[-1])
