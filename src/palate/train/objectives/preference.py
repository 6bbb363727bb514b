"""Every loss of pairs, and weighted mixtures of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from torch import nn

from palate.data.items import ItemKind
from palate.data.layouts import SequenceBatch
from palate.losses import LossOutput, Member, SequenceStats, combined_needs, compute
from palate.models.aggregate import sequence_stats
from palate.models.model import Ask, Outputs
from palate.models.reference import Reference
from palate.recipes.losses import Loss, TokenWeights, members
from palate.train.meter import Statistics
from palate.train.objectives.base import Counts, Reduce
from palate.train.sources.base import MicroBatch
from palate.train.statistics import pair_statistics


def ask_for(*, kl: bool, extra: Sequence[str]) -> Ask:
    """The loss's own needs, and what the log should show besides.

    What the loss does not use gets no upstream gradient, and so no backward work.

    Args:
        extra: `kl`, `reverse_kl`, `entropy`.
    """
    return Ask(kl=kl or "kl" in extra, reverse_kl="reverse_kl" in extra, entropy="entropy" in extra)


class PreferenceObjective:
    """Every loss of pairs, and weighted mixtures of them.

    Args:
        loss: the recipe's.
        token_weights: of the log-ratios; see `palate.losses.token_weights`.
        extra: `kl`, `reverse_kl`, `entropy`: statistics for the log alone.
        by_source: also log reward accuracies of each data source.
        soft_labels: a pair counts in both orders, by the probability that its first response is
            better and by the rest: -p log sigmoid(m) - (1 - p) log sigmoid(-m) of DPO.
        temperature: of the distribution that the responses were sampled from.
    """

    kind: ItemKind = "pair"

    def __init__(
        self,
        loss: Loss,
        *,
        token_weights: TokenWeights | None = None,
        extra: Sequence[str] = (),
        by_source: bool = False,
        soft_labels: bool = False,
        temperature: float = 1.0,
    ) -> None:
        self.soft_labels = soft_labels
        self.members = list(map(Member.of, members(loss)))
        needs = combined_needs(self.members)
        self.needs_reference = needs.reference
        self.by_source = by_source
        self._ask = dataclasses.replace(ask_for(kl=needs.kl, extra=extra), temperature=temperature)
        self._weights = token_weights

    def ask(self) -> Ask:
        return self._ask

    def prepare(
        self,
        step: Iterable[MicroBatch],
        model: nn.Module,
        reference: Reference | None,
        reduce: Reduce,
    ) -> None:
        """Nothing: the pairs of a step do not depend on one another."""

    def counts(self, batch: SequenceBatch) -> Counts:
        sides = batch.of_pairs()
        chosen_tokens = int(batch.lengths[sides.chosen].sum())
        return {
            "pair": len(sides),
            "sequence": batch.n_sequences,
            "chosen_token": chosen_tokens,
        }

    def loss(self, outputs: Outputs, batch: SequenceBatch, state: None) -> LossOutput:
        tokens = outputs.token_stats
        sides = batch.of_pairs()

        def compute_on(losses: Sequence[Member], sums: SequenceStats) -> LossOutput:
            chosen, rejected = sums[sides.chosen], sums[sides.rejected]
            if not self.soft_labels:
                return compute(losses, chosen, rejected, weight=batch.weight)
            share = sides.probability
            output = compute(losses, chosen, rejected, weight=batch.weight * share)
            other_way = compute(losses, rejected, chosen, weight=batch.weight * (1 - share))
            terms = tuple(
                dataclasses.replace(a, losses=a.losses + b.losses)
                for a, b in zip(output.terms, other_way.terms, strict=True)
            )
            return dataclasses.replace(output, terms=terms)

        sums = sequence_stats(tokens, batch)
        if self._weights is None:
            return compute_on(self.members, sums)
        # A likelihood term beside a weighted loss stays a likelihood.
        weighted = [m for m in self.members if m.spec.token_weights]
        whole = [m for m in self.members if not m.spec.token_weights]
        output = compute_on(weighted, sequence_stats(tokens, batch, token_weights=self._weights))
        if not whole:
            return output
        # Rewards and statistics are the weighted loss's.
        return dataclasses.replace(output, terms=(*output.terms, *compute_on(whole, sums).terms))

    def statistics(self, outputs: Outputs, loss: LossOutput, batch: SequenceBatch) -> Statistics:
        return pair_statistics(outputs.token_stats, loss, batch, by_source=self.by_source)
