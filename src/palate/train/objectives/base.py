"""What a step optimises, as the loop sees it: a new method is one class of these five calls.

An objective knows no loop, optimizer, device or process, and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from palate.data.items import ItemKind
from palate.data.layouts import SequenceBatch
from palate.losses import LossOutput
from palate.losses.sequence import Per
from palate.models.model import Ask, Outputs
from palate.models.reference import Reference
from palate.train.meter import Statistics
from palate.train.sources.base import MicroBatch

Counts = dict[Per, float]
Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over processes, on the CPU."""


class Objective(Protocol):
    """What the loop calls, in this order: `prepare` once a step, the others for its micro-batches.

    Attributes:
        kind: what the batches hold.
        needs_reference: whether the reference is asked for each micro-batch.
    """

    kind: ItemKind
    needs_reference: bool

    def ask(self) -> Ask:
        """What is wanted of a forward pass; the reference is asked for what its KLs need."""
        ...

    def prepare(
        self,
        step: Iterable[MicroBatch],
        model: nn.Module,
        reference: Reference | None,
        reduce: Reduce,
    ) -> Any:
        """What the micro-batches of a step must know of the whole step; given to `loss`.

        KTO's baseline, group statistics, whitening. Every process calls it, for its share.

        Args:
            model: `Model`, or its distributed wrapper; in training mode where the step trains.
        """
        ...

    def counts(self, batch: SequenceBatch) -> Counts:
        """What each term's sum is divided by, in one micro-batch; summed over the whole step."""
        ...

    def loss(self, outputs: Outputs, batch: SequenceBatch, state: Any) -> LossOutput:
        """Unreduced loss of one micro-batch.

        Args:
            state: what `prepare` returned.
        """
        ...

    def statistics(self, outputs: Outputs, loss: LossOutput, batch: SequenceBatch) -> Statistics:
        """Sums for the log, beside the terms of the loss."""
        ...
