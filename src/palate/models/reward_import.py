"""transformers' own scalar classifiers: which are reward models, and those that others trained."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from palate.errors import ModelError
from palate.models.heads import RewardHead
from palate.models.loading import disable_dropout, from_pretrained, load_config, readable
from palate.models.model import Model
from palate.models.reward_config import RewardSpec
from palate.recipes.reward import HeadRecipe
from palate.recipes.schema import Dtype, ModelRecipe

REWARD_MODEL = "reward model"
SCORE_ON_LAST_STATE = frozenset(
    f"{family}ForSequenceClassification"
    for family in ("Bloom", "Falcon", "GPT2", "GPTBigCode", "GPTNeo", "GPTNeoX", "Mpt", "OPT")
)
"""Classes that are written out where newer families share one: a linear `score` without bias, read
at the rightmost token that is not padding."""


def classifier_class(model: Model) -> type[PreTrainedModel] | None:
    """The sequence-classification class that gives this model's scores; None where none does."""
    if not model.reward_head.head.is_linear or model.spec.pooling != "token":
        return None
    cls: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(model.config), None)
    return cls if cls is not None and scores_last_state(cls) else None


def scores_last_state(cls: type) -> bool:
    """Whether a classifier is a linear `score` of the last token's state, and nothing else."""
    from transformers.modeling_layers import GenericForSequenceClassification

    return issubclass(cls, GenericForSequenceClassification) or cls.__name__ in SCORE_ON_LAST_STATE


def imported(
    path: str, dtype: Dtype | None, revision: str | None, *, trust_remote_code: bool
) -> Model:
    """A model that others trained, a folder or hub name; see `load_reward_model`.

    Raises:
        ModelError: unreadable, several labels, or scores that are no linear ones of the last state.
    """
    recipe = ModelRecipe(path=path, revision=revision, trust_remote_code=trust_remote_code)
    config = load_config(path, recipe, what=REWARD_MODEL)
    if config.num_labels != 1:
        raise ModelError(f"{path}: a classifier with {config.num_labels} labels, not 1")
    saved = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    recipe = recipe.model_copy(update={"dtype": dtype or _dtype(saved)})
    whole = from_pretrained(AutoModelForSequenceClassification, path, recipe, what=REWARD_MODEL)
    score = getattr(whole, "score", None)
    if not isinstance(score, nn.Linear) or not scores_last_state(type(whole)):
        raise ModelError(
            f"{path}: {type(whole).__name__} has no linear `score` on its last state; use the "
            "reward `type: classifier`"
        )
    with readable(path, what=REWARD_MODEL):
        head = HeadRecipe(bias=score.bias is not None)
        spec = RewardSpec(model=recipe, head=head, whole_rendering=True)
        model = Model.reward(whole.base_model, spec)
        drawn = model.reward_head.head
        assert isinstance(drawn, RewardHead)
        drawn.layers[0].load_state_dict(score.state_dict())
    disable_dropout(model.base)
    return model.eval().requires_grad_(False)


def _dtype(name: str) -> Dtype:
    known: dict[str, Dtype] = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}
    return known.get(name, "float32")
