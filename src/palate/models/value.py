"""Value models: a model of its own, begun from a reward model, or a head on the policy's trunk."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from palate.errors import ModelError
from palate.models.adapters import add_lora
from palate.models.backbone import Backbone
from palate.models.heads import RewardHead, ValueHead
from palate.models.loading import load_model
from palate.models.model import Model
from palate.models.reward_files import load_reward_model
from palate.models.structure import backbone_of
from palate.models.vision_parts import freeze_parts
from palate.recipes.rl import ValueRecipe
from palate.recipes.schema import ModelRecipe

VALUE = "value"
"""Name of the head, and of its trunk where it has one of its own."""


def add_value(
    policy: Model, recipe: ValueRecipe, model: ModelRecipe, *, reward_model: str | None = None
) -> None:
    """Gives a policy a value head, and where that is separate a trunk for it.

    A reward model's head reads every state here, where in training it read the last one alone: a
    value begins as the reward that the text so far would get. Without a reward model the head
    begins at 0.

    Args:
        model: of the policy, whose adapters a separate value model has too.
        reward_model: to start from.

    Raises:
        ModelError: a reward model that cannot be read, with several heads, or with another
            vocabulary.
    """
    if recipe.kind == "shared":
        policy.heads[VALUE] = _fresh(policy, next(iter(policy.trunks)))
        return
    if reward_model is None:
        # Without the policy's adapters, which are new: the weights are those that it begins with.
        backbone = backbone_of(load_model(model))
        head = _fresh(policy, VALUE)
    else:
        loaded = load_reward_model(Path(reward_model))
        if loaded.spec.heads > 1:
            raise ModelError(
                f"{reward_model}: has {loaded.spec.heads} heads, a value model has one"
            )
        if loaded.vocabulary != policy.vocabulary:
            raise ModelError(
                f"{reward_model}: knows {loaded.vocabulary} tokens, the policy "
                f"{policy.vocabulary}: a value model reads the policy's tokens; set "
                "`value.path`, or `value.kind: shared`"
            )
        loaded.backbone.merge_adapters()
        backbone = backbone_of(loaded.base)
        head = ValueHead(VALUE, loaded.backbone.hidden_size, loaded.spec.head)
        assert isinstance(loaded.reward_head.head, RewardHead)
        head.head.load_state_dict(copy.deepcopy(loaded.reward_head.head.state_dict()))
        nn.Module.to(backbone, policy.dtype)
    hf: nn.Module = backbone
    if model.lora is None:
        backbone.requires_grad_(True)
        freeze_parts(backbone, model)
    else:
        hf = add_lora(backbone, model.lora, task="FEATURE_EXTRACTION")
    policy.trunks[VALUE] = Backbone(hf)
    policy.heads[VALUE] = head.requires_grad_(True)


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
