"""The reference policy behind one interface: a frozen copy, the adapters off, or a cache."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import nn

from palate.data.layouts import SequenceBatch
from palate.errors import ModelError, RecipeError
from palate.kernels import RefHidden, RefInputs
from palate.models.loading import load_model, weights_digest
from palate.models.model import Model
from palate.recipes.schema import ModelRecipe, ReferenceRecipe


class Reference(Protocol):
    """What a loss needs of the reference, for one batch.

    Attributes:
        identity: what defines it (kind, digest, dtype); stored in checkpoints and lineage.
    """

    identity: dict[str, Any]

    def inputs(self, batch: SequenceBatch, *, kl: bool) -> RefInputs:
        """Reference inputs of the batch's response tokens, without gradients.

        Args:
            kl: whether a token-level KL will be asked for; log-probs alone may do otherwise.
        """
        ...


class FrozenCopy:
    """A second model of the same dtype, in evaluation mode, never trained."""

    def __init__(self, policy: Model, *, digest: str, path: str | None = None) -> None:
        self.policy = policy.eval().requires_grad_(False)
        self.identity = {
            "kind": "frozen_copy",
            "path": path,
            "digest": digest,
            "dtype": str(policy.dtype).removeprefix("torch."),
        }

    @torch.no_grad()
    def inputs(self, batch: SequenceBatch, *, kl: bool) -> RefInputs:
        return RefHidden(hidden=self.policy.hidden(batch), head=self.policy.vocabulary_head())


class AdapterOff:
    """The policy itself with its adapters switched off: no second model."""

    def __init__(self, policy: Model, *, digest: str) -> None:
        if not policy.has_adapters:
            raise RecipeError("reference.kind: adapter_off needs model.lora")
        self.policy = policy
        self.identity = {
            "kind": "adapter_off",
            "path": None,
            "digest": digest,
            "dtype": str(policy.dtype).removeprefix("torch."),
        }

    @torch.no_grad()
    def inputs(self, batch: SequenceBatch, *, kl: bool) -> RefInputs:
        was_training = self.policy.training
        self.policy.eval()
        try:
            with self.policy.backbone.adapters_off():
                hidden = self.policy.hidden(batch)
        finally:
            self.policy.train(was_training)
        return RefHidden(hidden=hidden, head=self.policy.vocabulary_head())


class StartingPolicy:
    """The policy before its first step, which then is the reference itself.

    Serves to fill a cache without a second model; not for use once training has begun.
    """

    def __init__(self, policy: Model, *, digest: str) -> None:
        self.policy = policy
        self.identity = {
            "kind": "starting_policy",
            "path": None,
            "digest": digest,
            "dtype": str(policy.dtype).removeprefix("torch."),
        }

    @torch.no_grad()
    def inputs(self, batch: SequenceBatch, *, kl: bool) -> RefInputs:
        was_training = self.policy.training
        self.policy.eval()
        try:
            hidden = self.policy.hidden(batch)
        finally:
            self.policy.train(was_training)
        return RefHidden(hidden=hidden, head=self.policy.vocabulary_head())


LiveReference = FrozenCopy | AdapterOff | StartingPolicy


def build_live_reference(
    recipe: ReferenceRecipe, model: ModelRecipe, policy: Model, *, digest: str | None = None
) -> LiveReference:
    """The live reference of a run, built before the first step (or before weights are resumed).

    For kind `cache` it is only asked before training, so no copy of the policy is made.

    Args:
        digest: of the policy's starting weights, where the caller has it already.

    Raises:
        RecipeError: a kind that the model recipe does not allow.
        ModelError: another reference model with another vocabulary.
    """
    if recipe.path is not None:
        other = Model.policy(load_model(model, recipe.path), memory_mb=policy.memory_mb)
        theirs, ours = other.vocabulary, policy.vocabulary
        if theirs != ours:
            raise ModelError(
                f"{recipe.path}: reference vocabulary {theirs}, policy vocabulary {ours}"
            )
        return FrozenCopy(other, digest=weights_digest(other.hf), path=recipe.path)
    digest = digest or weights_digest(policy.hf)
    if recipe.kind == "adapter_off" or (recipe.kind != "frozen_copy" and policy.has_adapters):
        return AdapterOff(policy, digest=digest)
    if recipe.kind == "cache":
        return StartingPolicy(policy, digest=digest)
    if policy.has_adapters:
        # Adapters sit inside the layers, so a plain copy comes from the base model's files.
        hf: nn.Module = load_model(model)
    else:
        hf = copy.deepcopy(policy.hf)
    return FrozenCopy(Model.policy(hf, memory_mb=policy.memory_mb), digest=digest)
