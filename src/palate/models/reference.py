"""The reference policy behind one interface: a frozen copy, the adapters off, or a cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from palate.data.items import Item
from palate.data.layouts import Layout, SequenceBatch
from palate.errors import ModelError, RecipeError
from palate.kernels import Head, RefHidden, RefInputs
from palate.models.cache import CachedReference, cached_reference, needed_format
from palate.models.loading import load_model, weights_digest
from palate.models.model import Model, evaluating
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


class _Live:
    """A reference model that is run whenever its numbers are needed."""

    kind: str

    def __init__(self, policy: Model, *, digest: str, path: str | None = None) -> None:
        self.policy = policy
        self.identity: dict[str, Any] = {
            "kind": self.kind,
            "path": path,
            "digest": digest,
            "dtype": str(policy.dtype).removeprefix("torch."),
        }

    @torch.no_grad()
    def inputs(self, batch: SequenceBatch, *, kl: bool) -> RefInputs:
        with evaluating(self.policy):
            hidden = self._hidden(batch)
        return RefHidden(hidden=hidden, head=self.policy.vocabulary_head())

    def frozen_head(self) -> Head:
        """The vocabulary head as it is now, whatever is trained later."""
        head = self.policy.vocabulary_head()
        if not head.weight.requires_grad:
            return head
        bias = None if head.bias is None else head.bias.detach().clone()
        return Head(
            weight=head.weight.detach().clone(), bias=bias, scale=head.scale, softcap=head.softcap
        )

    def _hidden(self, batch: SequenceBatch) -> Tensor:
        return self.policy.hidden(batch)


class FrozenCopy(_Live):
    """A second model of the same dtype, in evaluation mode, never trained."""

    kind = "frozen_copy"

    def __init__(self, policy: Model, *, digest: str, path: str | None = None) -> None:
        super().__init__(policy.eval().requires_grad_(False), digest=digest, path=path)


class AdapterOff(_Live):
    """The policy itself with its adapters switched off: no second model."""

    kind = "adapter_off"

    def __init__(self, policy: Model, *, digest: str) -> None:
        if not policy.has_adapters:
            raise RecipeError("reference.kind: adapter_off needs model.lora")
        super().__init__(policy, digest=digest)

    def _hidden(self, batch: SequenceBatch) -> Tensor:
        with self.policy.backbone.adapters_off():
            return self.policy.hidden(batch)


class StartingPolicy(_Live):
    """The policy before its first step, which then is the reference itself.

    Serves to fill a cache without a second model; not for use once training has begun.
    """

    kind = "starting_policy"


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
        reference = Model.policy(load_model(model, recipe.path), memory_mb=policy.memory_mb)
        if reference.vocabulary != policy.vocabulary:
            raise ModelError(
                f"{recipe.path}: reference vocabulary {reference.vocabulary}, policy vocabulary "
                f"{policy.vocabulary}"
            )
        return FrozenCopy(reference, digest=weights_digest(reference.hf), path=recipe.path)
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


def build_reference(
    recipe: ReferenceRecipe,
    model: ModelRecipe,
    policy: Model,
    *,
    kl: bool,
    items: Sequence[Item],
    layout: Layout,
    pad_id: int,
    cache_root: Path,
    batch_size: int = 8,
    digest: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> LiveReference | CachedReference:
    """The reference of a run, before its first step and before any weights are resumed.

    Args:
        kl: whether token-level KL will be asked of it.
        items: everything the run will ask about; only the cache uses it.
        cache_root: folder of caches where the recipe names none.
        digest: of the policy's starting weights, where known.
        rank, world_size: of this process; with a cache and several processes, the caller waits
            for all of them and then calls `index()`.
    """
    live = build_live_reference(recipe, model, policy, digest=digest)
    if recipe.kind != "cache":
        return live
    return cached_reference(
        live,
        items,
        folder=recipe.cache_dir or cache_root,
        format=needed_format(policy, kl=kl)
        if recipe.path is None
        else ("hidden" if kl else "logps"),
        layout=layout,
        pad_id=pad_id,
        batch_size=batch_size,
        progress=progress,
        rank=rank,
        world_size=world_size,
    )
