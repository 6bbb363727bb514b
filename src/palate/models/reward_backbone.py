"""Backbones of reward models, from language models and from what has no vocabulary head."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_MAPPING, AutoModel, AutoModelForCausalLM, PreTrainedModel

from palate.models.loading import disable_dropout, from_pretrained, load_config, load_model
from palate.recipes.schema import ModelRecipe

_HEADS = r"^(lm_head|score|classifier|v_head|value_head)\b"
"""Heads of other models, of which the backbone alone is taken."""


def load_whole(recipe: ModelRecipe) -> PreTrainedModel:
    """The model of a recipe, dropout off, without adapters.

    Of what was saved without a vocabulary head (classifiers, other reward models) it is the
    backbone alone, unless the head is the embeddings themselves.

    Raises:
        ModelError: unreadable, or without some of its weights; in one line.
    """
    config = load_config(recipe.path, recipe)
    if not is_headless(config):
        return load_model(recipe)
    tied = config.get_text_config().tie_word_embeddings
    auto = AutoModelForCausalLM if tied else AutoModel
    model: PreTrainedModel = from_pretrained(auto, recipe.path, recipe, surplus=_HEADS)
    disable_dropout(model)
    return model


def is_headless(config: Any) -> bool:
    """Whether a model was saved as a classifier or as a backbone alone."""
    saved = set(config.architectures or ())
    backbone: Any = MODEL_MAPPING.get(type(config), None)
    alone = isinstance(backbone, type) and backbone.__name__ in saved
    return alone or is_classifier(config)


def is_classifier(config: Any) -> bool:
    return any("SequenceClassification" in name for name in config.architectures or ())
