"""Where the batches of a step come from: a fixed data set, or samples of the policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from palate.data.layouts import SequenceBatch
from palate.train.meter import Statistics


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one process.

    Attributes:
        counted: False for a filler that only keeps the processes in step.
        tokens: prompt and response tokens of its items, each prompt once.
        longest: those of its longest item.
    """

    batch: SequenceBatch
    counted: bool
    tokens: int
    longest: int

    @property
    def items(self) -> int:
        """Items that count; of rollouts, whose groups may be cut, responses."""
        n = self.batch.n_items if self.batch.rollout is None else self.batch.n_sequences
        return n if self.counted else 0

    def to(self, device: torch.device) -> MicroBatch:
        """On a device, by the time that the device comes to use it: the host does not wait."""
        batch = self.batch.to(device, non_blocking=True)
        return replace(self, batch=batch)

    def pin_memory(self) -> MicroBatch:
        """In memory from which a device copies by itself; the loader calls it."""
        return replace(self, batch=self.batch.pin_memory())


class StepSource(Protocol):
    """The steps of a run, in order; goes on exactly where its state was taken.

    Attributes:
        total: steps of the whole run.
        n_items: items of an epoch.
    """

    total: int
    n_items: int

    @property
    def epoch(self) -> float:
        """Passes over the data, those of the step that was handed out last included."""
        ...

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """This process's micro-batches of each step that is left; as many on every process."""
        ...

    def held(self) -> Iterable[nn.Parameter]:
        """Trained weights that the step which was handed out last leaves as they are."""
        ...

    def after_step(self) -> Statistics:
        """What the log should show of a step besides the step's own figures; every process calls it
        when the step is made."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON values; of the steps that were handed out."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
