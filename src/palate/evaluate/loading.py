"""Policies of one base model, loaded one after another over a single copy of it in memory."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from transformers import PreTrainedModel

from palate.data.layouts import Layout
from palate.errors import ModelError
from palate.evaluate.targets import Target
from palate.models.adapters import ADAPTER_WEIGHTS, load_adapters
from palate.models.loading import check_base, load_model, load_trained, weights_digest
from palate.models.model import Model
from palate.models.pictures import Pictures
from palate.models.reference import AdapterOff, FrozenCopy, Reference
from palate.models.verdicts import exact_layout
from palate.recipes.schema import ModelRecipe
from palate.store.folder import NAMES
from palate.store.records import Lineage, read_record

Loaded = tuple[Target, Model, Reference | None]


def group_key(target: Target) -> tuple[str, ...]:
    """Targets with equal keys share base model, tokenizer and reference."""
    m = target.model
    return (
        m.path,
        str(m.revision),
        m.dtype,
        str(m.attn_implementation),
        str(m.chat_template),
        str(target.reference),
    )


def grouped(targets: Sequence[Target]) -> list[list[Target]]:
    """Targets by `group_key`, in order of first appearance."""
    order = list(dict.fromkeys(map(group_key, targets)))
    ranked = sorted(targets, key=lambda t: order.index(group_key(t)))
    return [list(group) for _, group in groupby(ranked, key=group_key)]


class PolicyLoader:
    """One base model, its reference, and the policies made of it.

    With adapters there is one model in memory: the reference is the base with the adapter off.
    Full models are loaded one at a time beside the reference.

    Args:
        model: recipe of the base. reference: path of the reference model, None for none.
        pictures: what reads the images that they are shown, of models that see.
    """

    def __init__(
        self,
        model: ModelRecipe,
        reference: str | None,
        *,
        pictures: Pictures | None = None,
        memory_mb: int = 256,
    ) -> None:
        self.recipe = model.model_copy(update={"lora": None})
        self.memory_mb = memory_mb
        self.pictures = pictures
        self._base: PreTrainedModel | None = None
        self._reference_path = reference
        self._frozen: FrozenCopy | None = None
        self.digest = ""
        """Of the base model's weights, once it is loaded."""

    @property
    def shares_base(self) -> bool:
        """Whether the reference is the base model itself."""
        return self._reference_path == self.recipe.path

    def base(self) -> PreTrainedModel:
        if self._base is None:
            self._base = load_model(self.recipe).requires_grad_(False)
            self.digest = weights_digest(self._base)
        return self._base

    @cached_property
    def layout(self) -> Layout:
        """Of its policies, which are of one architecture; no adapters may be on the base."""
        return exact_layout(self._seeing(Model.policy(self.base(), memory_mb=self.memory_mb)))

    def _seeing(self, policy: Model) -> Model:
        policy.pictures = self.pictures
        return policy

    def reference(self) -> FrozenCopy | None:
        """The reference as a policy of its own; no adapters may be on it."""
        if self._reference_path is None:
            return None
        if self._frozen is None:
            if self.shares_base:
                model, digest = self.base(), self.digest
            else:
                model = load_model(self.recipe, self._reference_path)
                digest = weights_digest(model)
            policy = self._seeing(Model.policy(model, memory_mb=self.memory_mb))
            self._frozen = FrozenCopy(policy, digest=digest, path=self._reference_path)
        return self._frozen

    def policies(self, targets: Sequence[Target]) -> Generator[Loaded, None, None]:
        """Each target with its reference, one at a time; the last one is gone when asked again.

        Raises:
            ModelError: unreadable, or a run of other base or reference weights than there are now.
        """
        for target in targets:
            self._check_reference(target)
            if target.has_adapters:
                yield from self._adapted(target)
                continue
            if target.folder is None:
                policy = Model.policy(self.base(), memory_mb=self.memory_mb)
            else:
                policy = load_trained(target.folder, self.recipe, memory_mb=self.memory_mb)
            self._seeing(policy).requires_grad_(False)
            yield target, policy, self.reference()

    def _check_reference(self, target: Target) -> None:
        """Refuses a reference whose files hold other weights than when the run was trained."""
        reference = self.reference()
        if reference is None or target.run is None:
            return
        file = target.run / NAMES[Lineage]
        record = read_record(file, Lineage) if file.exists() else Lineage()
        entries = [record.base_model]
        if isinstance(record.reference, dict):
            entries.append(record.reference)
        now = reference.identity
        for entry in entries:
            if entry is None or entry.get("path") != now["path"]:
                continue
            if entry.get("dtype") == now["dtype"] and entry.get("digest") != now["digest"]:
                raise ModelError(
                    f"{now['path']}: holds other weights now than when {target.run} was trained: "
                    "give it those of then, or name another `reference`"
                )

    def _adapted(self, target: Target) -> Generator[Loaded, None, None]:
        assert target.folder is not None
        reference = self.reference()
        base = self.base()
        file = target.folder / ADAPTER_WEIGHTS
        check_base(file, base, self.recipe, digest=self.digest)
        settings = copy.deepcopy(base.generation_config)
        hf: Any = load_adapters(base, target.folder)
        policy = self._seeing(Model.policy(hf, memory_mb=self.memory_mb))
        off: Reference | None = reference
        if reference is not None and self.shares_base:
            off = AdapterOff(policy, digest=self.digest)
        try:
            yield target, policy, off
        finally:
            base.generation_config = settings
            # Gives the base model its own layers back, for the next adapter.
            self._base = hf.unload()
            self._frozen = None if self.shares_base else self._frozen
