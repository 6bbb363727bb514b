"""What the device's memory holds: a micro-batch that is too large ends the run in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from palate.data.items import ItemKind
from palate.errors import RunError
from palate.train.sources.base import MicroBatch

Split = Literal["train", "eval"]

_WORDS: dict[ItemKind, str] = {
    "pair": "pair",
    "rated": "list",
    "unpaired": "response",
    "demonstration": "demonstration",
    "rollout": "group",
}


class DeviceMemory:
    """The longest item that the device has held, and where one is too long, what to change.

    Args:
        kind: of the items.
        by_tokens: whether micro-batches are cut by tokens, `train.micro_batch_tokens`.
        checkpointing: whether layers keep only their inputs already.
    """

    def __init__(self, kind: ItemKind, *, by_tokens: bool, checkpointing: bool) -> None:
        self.longest: dict[Split, int] = {"train": 0, "eval": 0}
        self._item = _WORDS[kind]
        cut = "micro_batch_tokens" if by_tokens else "micro_batch_size_pairs"
        self._setting: dict[Split, str] = {"train": cut, "eval": "eval_batch_size_pairs"}
        online = kind == "rollout"
        self._length = "rollout.max_new_tokens" if online else "data.length.max_tokens"
        self._checkpointing = checkpointing

    def fitted(self, micro: MicroBatch, split: Split) -> None:
        """Takes note of a micro-batch whose passes were made."""
        self.longest[split] = max(self.longest[split], micro.longest)

    @contextmanager
    def holds(self, micro: MicroBatch, split: Split, step: int) -> Iterator[None]:
        """A context for the passes of a micro-batch.

        Args:
            step: of the run, counted from 1.

        Raises:
            RunError: memory was not enough.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            n, longest = micro.batch.n_items, self.longest[split]
            several = f"{n} {self._item}s" if n > 1 else f"one {self._item}"
            before = f"{longest:,} tokens" if longest else "none"
            doing = "training" if split == "train" else "evaluation"
            settings = [f"`{self._length}`"]
            if n > 1:
                settings.insert(0, f"`train.{self._setting[split]}`")
            advice = f"lower {' or '.join(settings)}"
            if split == "train" and not self._checkpointing:
                advice += ", or set `train.gradient_checkpointing: true`"
            raise RunError(
                f"step {step}, {doing}: the device's memory does not hold a micro-batch of "
                f"{several}, {micro.tokens:,} tokens, the longest {self._item} {micro.longest:,} "
                f"(longest that fitted so far: {before}): {advice}"
            ) from error

    @contextmanager
    def holds_optimizer(self, step: int) -> Iterator[None]:
        """A context for the optimizer's own step, which makes its state in the first one.

        Raises:
            RunError: memory was not enough.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"step {step}: the device's memory does not hold the optimizer's state: set "
                "`train.optimizer_precision: model`, train adapters (`model.lora`), or shard the "
                "weights over devices (FSDP 2)"
            ) from error
