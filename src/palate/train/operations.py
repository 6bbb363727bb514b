"""What a micro-batch puts through a model, and the floating-point operations that it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from palate.data.layouts import SequenceBatch
    from palate.train.loop import Loop


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model decides how much it computes, and how often a step runs each part.

    Attributes:
        layers: numbers in the weight matrices of its layers.
        attention: heads x their width, of all layers together.
        head: numbers in the vocabulary head; 0 where it is not run.
        layer_passes, attention_passes, head_passes: forward passes that a step is worth.
    """

    layers: int
    attention: int
    head: int
    layer_passes: float
    attention_passes: float
    head_passes: float


@dataclass(frozen=True, kw_only=True)
class Volume:
    """What one micro-batch puts through a model.

    Attributes:
        items: of the data. tokens: through the backbone. targets: through the vocabulary head.
        seen: pairs of tokens of which one attends to the other, of a mean layer.
    """

    items: int
    tokens: int
    targets: int
    seen: float

    def operations(self, shape: Shape) -> dict[str, float]:
        """Floating-point operations by part."""
        return {
            "backbone": 2.0 * shape.layers * self.tokens * shape.layer_passes,
            "attention": 4.0 * shape.attention * self.seen * shape.attention_passes,
            "head": 2.0 * shape.head * self.targets * shape.head_passes,
        }


def shape_of(loop: Loop) -> Shape:
    """The shape of a loop's model, and its passes in training with the loop's objective.

    A trained part costs a backward pass of twice its forward pass, a frozen one below adapters of
    as much; the vocabulary head makes its logits again for the gradient.
    """
    job = loop.job
    model, objective = job.model, job.objective
    config = model.config.get_text_config()
    kept = {id(m) for m in (model.base.get_input_embeddings(), model.base.get_output_embeddings())}
    tables = {id(p) for m in model.base.modules() if id(m) in kept for p in m.parameters()}
    weights = [p for p in model.base.parameters() if p.ndim == 2 and id(p) not in tables]
    depth = int(getattr(config, "num_hidden_layers", 1))
    heads = int(getattr(config, "num_attention_heads", 1))
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    reference = float(objective.needs_reference and job.reference is not None)
    if reference and job.reference is not None and job.reference.identity["kind"] == "cache":
        reference = 0.0
    backward = 1.0 if model.has_adapters else 2.0
    again = float(loop.recipe.gradient_checkpointing)
    ask = objective.ask()
    head = 0
    head_trained = False
    if "lm" in ask.heads:
        weight = model.vocabulary_head().weight
        head, head_trained = weight.numel(), weight.requires_grad
    kl = 0.5 * (reference > 0 and ask.needs_kl)
    return Shape(
        layers=sum(p.numel() for p in weights),
        attention=heads * width * depth,
        head=head,
        layer_passes=1.0 + backward + again + reference,
        # Scores once more, and four products of gradients.
        attention_passes=3.5 + again + reference,
        head_passes=3.0 + head_trained + reference + kl,
    )


def _depth(batch: SequenceBatch) -> Tensor:
    """[R, T] how many tokens stand before each in its sequence."""
    depth = batch.inputs.get("depth", batch.inputs["position_ids"])
    if depth.dim() == 2:
        return depth
    # On several axes positions are no depth; without branches places are.
    return torch.arange(depth.shape[-1], device=depth.device).expand(depth.shape[1:])


def volume_of(batch: SequenceBatch, windows: Sequence[int | None], *, unpadded: bool) -> Volume:
    """What a batch puts through a model, without what KTO runs beside it for its baseline.

    Args:
        windows: of the model's layers.
        unpadded: the model leaves padding of shared rows out.
    """
    until = batch.inputs.get("visible_until")
    real = batch.inputs["attention_mask"] > 0 if until is None else until > 0
    tokens = int(real.sum()) if until is not None and unpadded else real.numel()
    depth = _depth(batch)[real] + 1
    kinds = dict.fromkeys(windows, 0)
    for window in windows:
        kinds[window] += 1
    seen = sum(
        share * float((depth if window is None else depth.clamp(max=window)).sum())
        for window, share in kinds.items()
    )
    return Volume(
        items=batch.n_items,
        tokens=tokens,
        targets=len(batch.targets),
        seen=seen / max(len(windows), 1),
    )
