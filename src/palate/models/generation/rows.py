"""Questions as rows for a model that goes on with them: padded on the left, with their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from palate.data.items import TokenIds, Tokens
from palate.data.layouts import ImageBatch, images_of, on_device
from palate.data.trees import TEXT, VisionLayout, plain_rows, run_of
from palate.errors import ModelError
from palate.models.model import Model
from palate.models.structure import backbone_of
from palate.models.vision import seen

Row = tuple[Tokens, TokenIds]
"""A question, and the answer that is begun."""


def left_padded(
    rows: Sequence[Row], pad_id: int, vision: VisionLayout | None
) -> tuple[dict[str, Tensor], ImageBatch | None]:
    """What a model takes of rows that end together.

    Args:
        vision: of a model that sees.

    Returns:
        `input_ids`, `attention_mask` and, where the model takes them, `token_type_ids`, [R, T], and
        `position_ids`, [R, T] or [axes, R, T]; and the rows' images, without their pixels.
    """
    lays = vision or TEXT
    runs = [run_of(question, Tokens(begun), 0, lays) for question, begun in rows]
    inputs = plain_rows(runs, pad_id, lays).inputs
    width = inputs["input_ids"].shape[-1]
    for i, run in enumerate(runs):
        for values in inputs.values():
            values[..., i, :] = values[..., i, :].roll(width - len(run), -1)
    inputs["position_ids"] = inputs["position_ids"] * inputs["attention_mask"]
    return inputs, images_of([question for question, _ in rows], vision)


def features_of(model: Model, prompts: Sequence[Tokens]) -> dict[str, Any]:
    """What a backbone takes of the images and videos of prompts: features of each, run once.

    Raises:
        ModelError: there are images, and nothing that reads them.
    """
    images = images_of(prompts, model.backbone.vision)
    if images is None:
        return {}
    if model.pictures is None:
        raise ModelError(f"{type(model.base).__name__}: prompts with images, and no processor")
    filled = on_device(model.pictures.filled(images), model.device)
    return {"mm_encoder_outputs": {"image": seen(backbone_of(model.base), filled)}}


def next_positions(prompts: Sequence[Tokens], vision: VisionLayout | None) -> list[int]:
    """The position of the first token behind each prompt: behind an image positions go on after
    the greatest of its rows and columns."""
    lays = vision or TEXT
    return [int(run_of(p, Tokens((0,)), 0, lays).positions[0, -1]) for p in prompts]
