"""KTO: single responses with a label, against a baseline over the whole step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from palate.data.items import ItemKind
from palate.data.layouts import SequenceBatch
from palate.losses import LossOutput, Member, compute_unpaired
from palate.models.aggregate import sequence_stats
from palate.models.model import Ask, Outputs, evaluating
from palate.models.reference import Reference
from palate.recipes.losses import Kto, members
from palate.train.meter import Statistics
from palate.train.objectives.base import Counts, Reduce
from palate.train.objectives.preference import ask_for
from palate.train.sources.base import MicroBatch
from palate.train.statistics import single_statistics


class KtoObjective:
    """KTO (arXiv:2402.01306) on unpaired feedback; arguments as in `PreferenceObjective`."""

    kind: ItemKind = "unpaired"
    needs_reference = True

    def __init__(self, loss: Kto, *, extra: Sequence[str] = ()) -> None:
        (self.member,) = map(Member.of, members(loss))
        self._ask = ask_for(kl=False, extra=extra)

    def ask(self) -> Ask:
        return self._ask

    @torch.no_grad()
    def prepare(
        self,
        step: Iterable[MicroBatch],
        model: nn.Module,
        reference: Reference | None,
        reduce: Reduce,
    ) -> Tensor:
        """Mean log-ratio of the mismatched sequences of a step, of the weights before it: [].

        Raises:
            ValueError: no reference, or batches without mismatched responses.
        """
        if reference is None:
            raise ValueError("kto needs a reference")
        total, n = torch.zeros((), dtype=torch.float64), 0
        with evaluating(model):
            for micro in step:
                mismatched = micro.batch.mismatched
                if mismatched is None:
                    raise ValueError("kto needs mismatched responses in its batches")
                outputs: Outputs = model(
                    mismatched, Ask(), reference=reference.inputs(mismatched, kl=False)
                )
                tokens = outputs.token_stats
                assert tokens.ref_logp is not None
                if micro.counted:
                    total = (tokens.logp - tokens.ref_logp).double().sum() + total
                    n += mismatched.n_sequences
        # The one number of a step that goes to the host, by way of which processes add up.
        sums = reduce(torch.tensor([float(total), n], dtype=torch.float64))
        return (sums[0] / sums[1].clamp(min=1)).float().to(total.device)

    def counts(self, batch: SequenceBatch) -> Counts:
        return {"sequence": batch.n_sequences}

    def loss(self, outputs: Outputs, batch: SequenceBatch, state: Tensor) -> LossOutput:
        if batch.desirable is None:
            raise ValueError("kto needs labels")
        return compute_unpaired(
            self.member,
            sequence_stats(outputs.token_stats, batch),
            desirable=batch.desirable,
            kl_baseline=state,
            weight=batch.weight,
        )

    def statistics(self, outputs: Outputs, loss: LossOutput, batch: SequenceBatch) -> Statistics:
        return single_statistics(outputs.token_stats, loss, batch)
