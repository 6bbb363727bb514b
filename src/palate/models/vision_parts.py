"""The parts of a model that sees: tower, projector, language model, and which of them is trained.

By default tower and projector stay as they are, with adapters and without; a recipe's
`model.vision` says otherwise. With adapters a trained part is a copy beside the weights, which PEFT
saves with them and switches off with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from palate.errors import ModelError
from palate.models.structure import backbone_of
from palate.models.vision import sees, vision_layout, vision_parameters
from palate.recipes.schema import ModelRecipe, VisionRecipe

Part = Literal["tower", "projector", "language"]

PROJECTORS = frozenset(
    {
        "multi_modal_projector",  # LLaVA and its kin, Gemma 3, PaliGemma, InternVL, Mistral 3, LFM2
        "connector",  # SmolVLM, Idefics 3
        "merger",  # Qwen-VL, inside the tower
        "deepstack_merger_list",
        "image_newline",  # LLaVA-NeXT, -OneVision: the end of a row of features
    }
)
"""What families call the part between tower and language model."""


def part_of(name: str, is_vision: bool) -> Part:
    """The part that a weight belongs to.

    Args:
        name: dotted. is_vision: whether it is not the language model's.
    """
    if not is_vision:
        return "language"
    return "projector" if PROJECTORS & set(name.split(".")) else "tower"


def parts_of(model: nn.Module) -> dict[nn.Parameter, Part]:
    """The part of each weight of a transformers model; all are the language model's where it sees
    nothing."""
    backbone = backbone_of(model) if isinstance(model, PreTrainedModel) else model
    seeing = {id(p) for p in vision_parameters(backbone)} if sees(backbone) else set()
    return {p: part_of(name, id(p) in seeing) for name, p in model.named_parameters()}


def vision_recipe(model: PreTrainedModel, recipe: ModelRecipe) -> VisionRecipe | None:
    """What is to be trained of a model that sees; None of one of text alone.

    Raises:
        ModelError: `model.vision` is given for one of text alone.
    """
    if vision_layout(model.config) is None:
        if recipe.vision is not None:
            raise ModelError(f"model.vision: {recipe.path} sees no images: delete the key")
        return None
    return recipe.vision or VisionRecipe()


def _trained(vision: VisionRecipe) -> set[str]:
    parts = {"tower": vision.tower, "projector": vision.projector, "language": vision.language}
    return {part for part, how in parts.items() if how == "trained"}


def freeze_parts(model: PreTrainedModel, recipe: ModelRecipe) -> None:
    """Of a model that is trained without adapters: only what its recipe says is.

    Raises:
        ModelError: as `vision_recipe`.
    """
    vision = vision_recipe(model, recipe)
    if vision is None:
        return
    for parameter, part in parts_of(model).items():
        parameter.requires_grad_(part in _trained(vision))


def trained_modules(model: PreTrainedModel, recipe: ModelRecipe) -> list[str]:
    """Names of the modules that are trained beside adapters, whole: PEFT's `modules_to_save`.

    Raises:
        ModelError: as `vision_recipe`.
    """
    vision = vision_recipe(model, recipe)
    if vision is None:
        return []
    wanted = _trained(vision) - {"language"}
    parts = parts_of(model)

    def whole(name: str, module: nn.Module) -> Iterator[str]:
        """The largest modules of which every weight is wanted, from here down."""
        here = [parts[p] in wanted for p in module.parameters()]
        if not any(here):
            return
        # PEFT copies what has a forward pass of its own.
        if name and all(here) and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            yield name
            return
        for child, inner in module.named_children():
            yield from whole(f"{name}.{child}" if name else child, inner)

    return list(whole("", model))


def still_norms(model: nn.Module) -> None:
    """Keeps batch norms at the statistics that they came with: with those of a batch, what is seen
    of an image would depend on the other images, and the statistics would move while nothing is
    trained."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def learning_rates(model: PreTrainedModel, recipe: ModelRecipe) -> dict[nn.Parameter, float]:
    """The rates of weights that a recipe gives one of their own."""
    vision = recipe.vision
    if vision is None:
        return {}
    rates = {"tower": vision.tower_learning_rate, "projector": vision.projector_learning_rate}
    of_parts = ((p, rates.get(part)) for p, part in parts_of(model).items())
    return {p: rate for p, rate in of_parts if rate is not None}
