"""The starting reward model of a recipe.

    model = build_reward_model(recipe)                   # random head on the recipe's backbone
    rewards = model(collate(pairs, ..., keep_last=True), Ask(heads=("reward",))).rewards

`palate.models.reward_files` saves and loads it.
"""

from __future__ import annotations

import dataclasses
import logging

from torch import nn

from palate.errors import ModelError
from palate.models.adapters import add_lora, base_revision
from palate.models.backbone import Backbone
from palate.models.model import Model
from palate.models.reward_backbone import is_classifier, is_headless, load_whole
from palate.models.reward_config import RewardSpec
from palate.models.structure import backbone_of
from palate.models.vision_parts import freeze_parts, trained_modules
from palate.recipes.reward import RewardRecipe

log = logging.getLogger("palate")


def build_reward_model(recipe: RewardRecipe) -> Model:
    """The starting model of a recipe: its backbone and a new head, drawn from torch's seed.

    Raises:
        ModelError: unreadable, no backbone that gives hidden states, or no vocabulary head for the
            likelihood term.
    """
    whole = load_whole(recipe.model)
    try:
        backbone = backbone_of(whole)
    except ModelError as error:
        raise ModelError(f"{recipe.model.path}: {error}") from None
    wanted = recipe.regularise.likelihood
    if is_headless(whole.config):
        kind = "classifier" if is_classifier(whole.config) else "backbone alone"
        if wanted is not None and not whole.config.get_text_config().tie_word_embeddings:
            raise ModelError(
                f"{recipe.model.path}: a {kind} has no vocabulary head: leave out "
                "`regularise.likelihood`"
            )
        log.warning(
            "%s: a %s: any head of its own is left out, a new one drawn", recipe.model.path, kind
        )
    language = None
    if wanted is not None:
        head = Backbone(whole).vocabulary_head()
        bias = None if head.bias is None else head.bias.detach()
        language = dataclasses.replace(head, weight=head.weight.detach(), bias=bias)
    hf: nn.Module = backbone
    if recipe.backbone == "frozen":
        backbone.requires_grad_(False)
    elif recipe.model.lora is None:
        freeze_parts(backbone, recipe.model)
    else:
        hf = add_lora(
            backbone,
            recipe.model.lora,
            task="FEATURE_EXTRACTION",
            revision=base_revision(recipe.model),
            trained=trained_modules(backbone, recipe.model),
        )
    spec = RewardSpec(
        model=recipe.model,
        head=recipe.head,
        heads=1 if recipe.ensemble is None else recipe.ensemble.heads,
        pooling=recipe.pooling,
        length=recipe.data.length,
    )
    memory_mb = 256 if wanted is None else wanted.memory_mb
    return Model.reward(hf, spec, language=language, memory_mb=memory_mb)
