"""Backbones of reward models, from language models and from what has no vocabulary head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedModel

from palate.errors import ModelError
from palate.models.attention import use_rows
from palate.models.loading import (
    DTYPES,
    NO_HUB,
    check_whole,
    disable_dropout,
    hub_is_needed_and_absent,
    load_model,
    refuse_missing,
)
from palate.recipes.schema import ModelRecipe


def load_whole(recipe: ModelRecipe) -> PreTrainedModel:
    """The model of a recipe, dropout off, without adapters.

    Of what was saved without a vocabulary head (classifiers, other reward models) it is the
    backbone alone, unless the head is the embeddings themselves.

    Raises:
        ModelError: unreadable, or without some of its weights; in one line.
    """
    check_whole(recipe.path)
    offline = hub_is_needed_and_absent(recipe.path)
    more = {"revision": recipe.revision, "local_files_only": offline}
    with one_line(recipe.path, NO_HUB if offline else None, what="model"):
        config = AutoConfig.from_pretrained(
            recipe.path, trust_remote_code=recipe.trust_remote_code, **more
        )
    if not is_headless(config) or config.get_text_config().tie_word_embeddings:
        return load_model(recipe)
    with one_line(recipe.path, NO_HUB if offline else None, what="model"):
        model: PreTrainedModel = from_pretrained(AutoModel, recipe.path, recipe, **more)
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


def from_pretrained(auto: Any, source: str, recipe: ModelRecipe, **more: Any) -> Any:
    """A model of an auto class with the dtype and kernels of a recipe, from safetensors alone.

    Raises:
        ModelError: the files lack weights, which transformers would draw at random.
    """
    model, found = auto.from_pretrained(
        source,
        dtype=DTYPES[recipe.dtype],
        attn_implementation=recipe.attn_implementation,
        trust_remote_code=recipe.trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
        **more,
    )
    refuse_missing(found, source, model)
    if recipe.attn_implementation is None:
        # As in training, where no row's numbers depend on its batch.
        use_rows(model)
    return model


@contextmanager
def one_line(path: str, reason: str | None = None, what: str = "reward model") -> Iterator[None]:
    """Turns what the libraries raise into one line that names the path."""
    try:
        yield
    except (ModelError, AssertionError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{path}: {reason or f'no readable {what}: {text}'}") from error
