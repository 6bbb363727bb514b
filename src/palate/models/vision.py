"""Models that see: the vision tower once for each image, and where its features go.

transformers' models take what their towers gave as `mm_encoder_outputs`: features are computed for
the unique images of a batch, outside of autograd where nothing of the tower is trained, and put
together in the order in which the rows show them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from palate.data.layouts import ImageBatch
from palate.data.trees import VisionLayout
from palate.errors import ModelError
from palate.models.structure import backbone_of

LISTED = "[]"
"""Ends the name of features that the model takes as a list, one an image."""
_OUTPUT = "pooler_output"
_DEEPSTACK = "deepstack_features"
_BLOCKS = frozenset({"gemma3"})
_PROMPTS = frozenset({"paligemma"})


def sees(model: nn.Module) -> bool:
    """Whether a backbone takes features of images."""
    return hasattr(model, "get_image_features")


def vision_layout(config: Any) -> VisionLayout | None:
    """How a model lays out images; None of one of text alone."""
    if getattr(config, "vision_config", None) is None:
        return None
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    tables = [rope, *(table for table in rope.values() if isinstance(table, Mapping))]
    return VisionLayout(
        axes=3 if any("mrope_section" in table for table in tables) else 1,
        blocks=config.model_type in _BLOCKS,
        prompts=config.model_type in _PROMPTS,
        placeholder=placeholder_of(config),
        video=-1 if (video := getattr(config, "video_token_id", None)) is None else int(video),
    )


def placeholder_of(config: Any) -> int:
    """The id of the tokens that features take the place of."""
    for name in ("image_token_id", "image_token_index"):
        if (token := getattr(config, name, None)) is not None:
            return int(token)
    raise ValueError(f"{config.model_type}: its configuration names no image token")


def vision_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Of the tower and of what projects its features: all that is not of the language model."""
    text = {id(p) for part in _text_parts(model) for p in part.parameters()}
    return [p for p in model.parameters() if id(p) not in text]


def vision_modules(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers of the tower and of what projects its features."""
    if vision_layout(model.config) is None:
        return []
    weights = {id(p) for p in vision_parameters(backbone_of(model))}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) in weights
    ]


def _text_parts(model: nn.Module) -> list[nn.Module]:
    parts = [getattr(model, name, None) for name in ("language_model", "text_model")]
    return [part for part in parts if isinstance(part, nn.Module)]


Features = dict[str, Tensor]
"""[n, d] of the tokens of one image, by name."""


def image_features(
    model: Any, pixels: Sequence[Mapping[str, Tensor]], lengths: Sequence[int] | None
) -> list[Features]:
    """What the tower of a backbone gives for images, in one pass over those that fit one tensor.

    Args:
        pixels: what the family's image processor makes of each.
        lengths: placeholder tokens of each; None of a single image: as many as it has features.

    Raises:
        ModelError: other numbers of features than placeholders.
    """
    parameters = vision_parameters(model)
    trained = any(p.requires_grad for p in parameters)
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, image in enumerate(pixels):
        # Tiles may differ in number: fewer are filled up.
        key = tuple((name, value.shape[2:]) for name, value in image.items())
        alike.setdefault(key, []).append(i)
    features: list[Features] = [{} for _ in pixels]
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        for places in alike.values():
            given = in_dtype(joined([pixels[i] for i in places]), parameters[0].dtype)
            output = model.get_image_features(**given, return_dict=True)
            values = dict([_flat(_OUTPUT, output.pooler_output)])
            for number, layer in enumerate(getattr(output, _DEEPSTACK, None) or ()):
                values |= dict([_flat(f"{_DEEPSTACK}.{number}", layer)])
            for name, value in values.items():
                sizes = [len(value)] if lengths is None else [lengths[i] for i in places]
                if len(value) != sum(sizes):
                    raise ModelError(
                        f"{type(model).__name__}: {len(value)} features of images, and "
                        f"{sum(sizes)} placeholder tokens: its processor is another model's"
                    )
                for i, part in zip(places, value.split(sizes), strict=True):
                    features[i][name] = part
    return features


def in_dtype(pixels: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in pixels.items()
    }


def own_inputs(
    model: Any,
    vision: VisionLayout,
    ids: tuple[int, ...],
    prompt: int,
    pixels: Sequence[Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """What a backbone's own forward pass takes of one sequence with images: pixels, and what each
    token is of.

    Args:
        prompt: tokens of the prompt. pixels: of each placement, in order.
    """
    row = torch.tensor([ids])
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    dtype = vision_parameters(model)[0].dtype
    inputs |= in_dtype(joined(pixels), dtype)
    is_response = (torch.arange(len(ids)) >= prompt).long().unsqueeze(0)
    return row_types(model, vision, row, is_response) | inputs


def row_types(
    model: Any,
    vision: VisionLayout,
    ids: Tensor,
    is_response: Tensor,
    grids: Sequence[tuple[int, int, int] | None] = (),
) -> dict[str, Tensor]:
    """What a family's own forward pass wants to know of each token, and of images by their grids.

    Args:
        ids: [R, T]. is_response: [R, T] 1 of a response's tokens.
        grids: (frames, rows, columns) of the tokens of each image, in reading order.
    """
    inputs: dict[str, Tensor] = {}
    is_image = (ids == vision.placeholder).long()
    taken = inspect.signature(type(model).forward).parameters
    if "mm_token_type_ids" in taken:
        inputs["mm_token_type_ids"] = is_image
    if "token_type_ids" in taken:
        inputs["token_type_ids"] = is_response if vision.prompts else is_image
    if "image_grid_thw" in taken and grids:
        merge = int(model.config.vision_config.spatial_merge_size)
        shapes = [(t, rows * merge, columns * merge) for t, rows, columns in filter(None, grids)]
        inputs["image_grid_thw"] = torch.tensor(shapes)
    return inputs


def joined(pixels: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Pixels of several images as those of one pass."""
    return {name: _joined([image[name] for image in pixels]) for name in pixels[0]}


def _joined(values: Sequence[Tensor]) -> Tensor:
    """Along the first dimension; fewer tiles are filled up with zeros, as processors do."""
    if values[0].dim() > 2 and len({len(value[0]) for value in values}) > 1:
        tiles = max(len(value[0]) for value in values)
        pad = (0, 0) * (values[0].dim() - 2)
        values = [nn.functional.pad(v, (*pad, 0, tiles - len(v[0]))) for v in values]
    return torch.cat(list(values))


def _flat(name: str, features: Tensor | Sequence[Tensor]) -> tuple[str, Tensor]:
    if isinstance(features, Tensor):
        return name, features.reshape(-1, features.shape[-1])
    return name + LISTED, torch.cat([part.reshape(-1, part.shape[-1]) for part in features])


def encoder_output(
    features: Sequence[Mapping[str, Tensor]], order: Sequence[int]
) -> BaseModelOutputWithPooling:
    """Features of images as a model takes them.

    Args:
        features: of each image. order: number of the image of each placement.
    """
    output = BaseModelOutputWithPooling()
    deepstack: dict[int, Any] = {}
    for name in features[0]:
        placed = [features[number][name] for number in order]
        value: Any = placed if name.endswith(LISTED) else torch.cat(placed)
        plain = name.removesuffix(LISTED)
        if plain == _OUTPUT:
            output.pooler_output = value
        else:
            deepstack[int(plain.rpartition(".")[2])] = value
    if deepstack:
        output[_DEEPSTACK] = [deepstack[number] for number in sorted(deepstack)]
    return output


def seen(model: nn.Module, images: ImageBatch) -> BaseModelOutputWithPooling:
    """The images of a batch as a model takes them; each goes through the tower once."""
    features = images.features or image_features(model, images.pixels, images.lengths)
    return encoder_output(features, images.order)
