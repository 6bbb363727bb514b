"""Whether a run keeps what its frozen tower makes of images, and the keeping of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from palate.data.items import Item
from palate.errors import RecipeError
from palate.models.image_cache import ImageFeatureCache, placeholder_tokens
from palate.models.model import Model
from palate.recipes.schema import VisionRecipe

log = logging.getLogger("palate")

FOLDER = "image_features"
GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How often a run asks for the images of its items.

    Attributes:
        train: passes over the training items. eval: over the held-out ones.
        other_tower: a reference of other weights asks a tower of its own, too.
    """

    train: float
    eval: float
    other_tower: bool = False


def keep_image_features(
    model: Model,
    recipe: VisionRecipe,
    *,
    items: Sequence[Item],
    train: Sequence[Item],
    held_out: Sequence[Item],
    passes: Passes,
    beside: Path,
    state: PartialState,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Computes the features of a run's images before its first step, where that pays.

    Args:
        items: whose images are computed. train, held_out: of the run, which say whether it pays.
        beside: folder that the folder of caches is in, where the recipe names none.

    Raises:
        RecipeError: asked for, and the tower is trained or the reference has another.
        ModelError: stored features are not this tower's.
    """
    pictures, vision = model.pictures, model.backbone.vision
    if pictures is None or vision is None or recipe.features == "live":
        return
    asked = recipe.features == "cached"
    if model.backbone.vision_trained:
        return
    if passes.other_tower:
        if asked:
            raise RecipeError(
                "model.vision.features: cached ones are the policy's, and `reference.path` has a "
                "tower of its own: use `live`"
            )
        return
    tokens = placeholder_tokens([*train, *held_out], vision)
    if not tokens:
        return
    cache = ImageFeatureCache(model, pictures, recipe.features_dir or beside / FOLDER)
    if not asked and not _pays(recipe, cache, tokens, train, held_out, passes):
        return
    digests = sorted(placeholder_tokens(items, vision))
    cache.fill(
        digests,
        rank=state.process_index,
        world_size=state.num_processes,
        progress=progress,
    )
    state.wait_for_everyone()
    cache.index(digests)
    pictures.features = cache


def _pays(
    recipe: VisionRecipe,
    cache: ImageFeatureCache,
    tokens: dict[str, int],
    train: Sequence[Item],
    held_out: Sequence[Item],
    passes: Passes,
) -> bool:
    """Whether images are asked for twice or more each, on average, and all of them find room."""
    size = sum(tokens.values()) * cache.row_bytes
    uses = passes.train * _uses(train) + passes.eval * _uses(held_out)
    if uses < 2 * len(tokens):
        return False
    if size > recipe.features_gb * GB:
        log.warning(
            "features of %d images would take %.1f GB, more than model.vision.features_gb (%g): "
            "the tower runs in every batch",
            len(tokens),
            size / GB,
            recipe.features_gb,
        )
        return False
    return True


def _uses(items: Sequence[Item]) -> int:
    """How many items each image is in, added up over images."""
    return sum(len({image.digest for _, image in item.images}) for item in items)
