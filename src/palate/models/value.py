"""Value models: a model of its own, begun from a reward model, or a head on the policy's trunk."""

from __future__ import annotations

import copy

import torch
from torch import nn

from palate.errors import ModelError
from palate.models.adapters import add_lora, base_revision
from palate.models.backbone import Backbone
from palate.models.heads import RewardHead, ValueHead
from palate.models.loading import load_model
from palate.models.model import Model
from palate.models.reward_config import Scale
from palate.models.structure import backbone_of
from palate.models.vision_parts import freeze_parts, trained_modules
from palate.recipes.rl import ValueRecipe
from palate.recipes.schema import ModelRecipe

VALUE = "value"
"""Name of the head, and of its trunk where it has one of its own."""


def add_value(
    policy: Model,
    recipe: ValueRecipe,
    model: ModelRecipe,
    *,
    reward_model: Model | None = None,
    scale: Scale | None = None,
) -> None:
    """Gives a policy a value head, and where that is separate a trunk for it.

    A reward model's head reads every state here, where in training it read the last one alone: a
    value begins as the reward that the text so far would get. Without a reward model the head
    begins at 0.

    Args:
        model: of the policy, whose adapters a separate value model has too.
        reward_model: to start from; see `check_begins_value`. It is taken apart.
        scale: of its scores, by which rewards are normalised.
    """
    if recipe.kind == "shared":
        policy.heads[VALUE] = _fresh(policy, next(iter(policy.trunks)))
        return
    if reward_model is None:
        # Without the policy's adapters, which are new: the weights are those that it begins with.
        backbone = backbone_of(load_model(model))
        head = _fresh(policy, VALUE)
    else:
        reward_model.backbone.merge_adapters()
        backbone = backbone_of(reward_model.base)
        # Dropout would give other values in an update than when the rollout was measured.
        head_recipe = reward_model.spec.head.model_copy(update={"dropout": 0.0})
        head = ValueHead(VALUE, reward_model.backbone.hidden_size, head_recipe)
        assert isinstance(reward_model.reward_head.head, RewardHead)
        head.head.load_state_dict(copy.deepcopy(reward_model.reward_head.head.state_dict()))
        if scale is not None:
            head.mean, head.deviation = scale.mean, scale.deviation
        nn.Module.to(backbone, policy.dtype)
    hf: nn.Module = backbone
    if model.lora is None:
        backbone.requires_grad_(True)
        freeze_parts(backbone, model)
    else:
        hf = add_lora(
            backbone,
            model.lora,
            task="FEATURE_EXTRACTION",
            revision=base_revision(model),
            trained=trained_modules(backbone, model),
        )
    policy.trunks[VALUE] = Backbone(hf)
    policy.heads[VALUE] = head.requires_grad_(True)


def check_begins_value(reward_model: Model, policy: Model, path: str) -> None:
    """Whether a value model can begin from a reward model.

    Raises:
        ModelError: one with several heads, with another vocabulary, or whose head does not read a
            single state.
    """
    spec = reward_model.spec
    instead = "set `value.path` to another, or `value.kind: shared`"
    if spec.heads > 1:
        raise ModelError(f"{path}: has {spec.heads} heads, a value model has one: {instead}")
    if spec.pooling != "token":
        raise ModelError(
            f"{path}: its head reads all of a response at once (pooling: {spec.pooling}), a value "
            f"the state before one token: {instead}"
        )
    if reward_model.vocabulary != policy.vocabulary:
        raise ModelError(
            f"{path}: knows {reward_model.vocabulary} tokens, the policy {policy.vocabulary}: a "
            f"value model reads the policy's tokens: {instead}"
        )


def _fresh(policy: Model, trunk: str) -> ValueHead:
    head = ValueHead(trunk, policy.backbone.hidden_size)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    return head


def value_parameters(model: Model) -> list[nn.Parameter]:
    """The trained weights of value trunk and head."""
    names = (f"trunks.{VALUE}.", f"heads.{VALUE}.")
    return [p for n, p in model.named_parameters() if n.startswith(names) and p.requires_grad]
