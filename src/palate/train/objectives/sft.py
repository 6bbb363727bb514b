"""Supervised fine-tuning: the token-mean negative log-likelihood of demonstrations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from torch import nn

from palate.data.items import ItemKind
from palate.data.layouts import SequenceBatch
from palate.losses import LossOutput, sft
from palate.models.aggregate import sequence_stats
from palate.models.model import Ask, Outputs
from palate.models.reference import Reference
from palate.train.meter import Statistics
from palate.train.objectives.base import Counts, Reduce
from palate.train.objectives.preference import ask_for
from palate.train.sources.base import MicroBatch
from palate.train.statistics import single_statistics


class SftObjective:
    """Negative log-likelihood of single demonstrations, a mean over all their tokens.

    Args:
        extra: `entropy`: a statistic for the log alone.
    """

    kind: ItemKind = "demonstration"
    needs_reference = False

    def __init__(self, *, extra: Sequence[str] = ()) -> None:
        self._ask = ask_for(kl=False, extra=extra)

    def ask(self) -> Ask:
        return self._ask

    def prepare(
        self,
        step: Iterable[MicroBatch],
        model: nn.Module,
        reference: Reference | None,
        reduce: Reduce,
    ) -> None:
        """Nothing: demonstrations do not depend on one another."""

    def counts(self, batch: SequenceBatch) -> Counts:
        # All of them are chosen: what is trained on is imitated.
        return {"sequence": batch.n_sequences, "chosen_token": len(batch.targets)}

    def loss(self, outputs: Outputs, batch: SequenceBatch, state: None) -> LossOutput:
        output = sft(sequence_stats(outputs.token_stats, batch))
        (term,) = output.terms
        weighted = dataclasses.replace(term, losses=term.losses * batch.weight)
        return dataclasses.replace(output, terms=(weighted,))

    def statistics(self, outputs: Outputs, loss: LossOutput, batch: SequenceBatch) -> Statistics:
        return single_statistics(outputs.token_stats, None, batch)
