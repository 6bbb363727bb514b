"""What a step optimises: from a batch to an unreduced loss and named statistics.

An objective asks the reference and the policy for token statistics, sums them over sequences and
calls the loss table. It knows no trainer, optimizer, device or process; a new one is one class with
`step`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from palate.data.items import ItemKind
from palate.data.layouts import SequenceBatch
from palate.kernels import TokenStats
from palate.losses import (
    LossOutput,
    Member,
    SequenceStats,
    combined_needs,
    compute,
    compute_unpaired,
    sft,
)
from palate.losses.sequence import Per
from palate.models.aggregate import sequence_stats
from palate.models.model import Ask, Outputs
from palate.models.reference import Reference
from palate.recipes.losses import Kto, Loss, TokenWeights, members
from palate.train.meter import Statistics
from palate.train.statistics import pair_statistics, single_statistics

Counts = dict[Per, float]


class Objective(Protocol):
    """What the trainer calls.

    Attributes:
        needs_reference: whether `step` reads the reference.
        needs_kl: whether it asks it for more than log-probs.
        needs_baseline: whether `step` wants the mean log-ratio of the step's mismatched sequences.
        kind: what the batches hold.
    """

    needs_reference: bool
    needs_kl: bool
    needs_baseline: bool
    kind: ItemKind

    def step(
        self,
        policy: nn.Module,
        batch: SequenceBatch,
        reference: Reference | None,
        *,
        baseline: Tensor | None = None,
    ) -> tuple[LossOutput, Statistics]:
        """Unreduced loss of one micro-batch, and sums for the log.

        Args:
            policy: `Policy`, or its distributed wrapper.
            baseline: scalar, over the whole optimizer step and all processes.
        """
        ...


def counts(batch: SequenceBatch) -> Counts:
    """What each `per` counts in one micro-batch.

    Single examples are sequences, and all of them chosen: what is trained on is imitated (SFT) or
    told apart by its label (KTO, which counts sequences). A ranked list counts as a pair.
    """
    if batch.rank is not None:
        return {"pair": batch.n_items, "sequence": batch.n_sequences, "chosen_token": 0.0}
    if batch.pairs is None:
        return {"pair": 0.0, "sequence": batch.n_sequences, "chosen_token": len(batch.targets)}
    return {
        "pair": len(batch.pairs),
        "sequence": batch.n_sequences,
        "chosen_token": int(batch.lengths[batch.pairs.chosen].sum()),
    }


def loss_members(loss: Loss) -> list[Member]:
    """The rows of the loss table that a recipe names."""
    return [
        Member(type=m.type, options=m.model_dump(exclude={"type", "weight"}), weight=m.weight)
        for m in members(loss)
    ]


class _Asked:
    """Token statistics asked for: the loss's own needs, and what the log should show besides."""

    def __init__(self, *, reference: bool, kl: bool, extra: Sequence[str]) -> None:
        self.reference = reference
        self.reverse_kl = "reverse_kl" in extra
        self.kl = kl or "kl" in extra
        self.entropy = "entropy" in extra

    def token_stats(
        self, policy: nn.Module, batch: SequenceBatch, reference: Reference | None
    ) -> TokenStats:
        # What the loss does not use gets no upstream gradient, and so no backward work.
        given = None
        if self.reference:
            if reference is None:
                raise ValueError("this objective needs a reference")
            given = reference.inputs(batch, kl=self.kl or self.reverse_kl)
        ask = Ask(kl=self.kl, reverse_kl=self.reverse_kl, entropy=self.entropy)
        outputs: Outputs = policy(batch, ask, reference=given)
        return outputs.token_stats


class PreferenceObjective:
    """Every loss of pairs, and weighted mixtures of them.

    Args:
        loss: the recipe's.
        token_weights: of the log-ratios; see `palate.losses.token_weights`.
        extra: `kl`, `reverse_kl`, `entropy`: statistics for the log alone.
        by_source: also log reward accuracies of each data source.
    """

    kind: ItemKind = "pair"
    needs_baseline = False

    def __init__(
        self,
        loss: Loss,
        *,
        token_weights: TokenWeights | None = None,
        extra: Sequence[str] = (),
        by_source: bool = False,
    ) -> None:
        self.members = loss_members(loss)
        needs = combined_needs(self.members)
        self.needs_reference = needs.reference
        self._asked = _Asked(reference=needs.reference, kl=needs.kl, extra=extra)
        self.needs_kl = self._asked.kl or self._asked.reverse_kl
        self.by_source = by_source
        self._weights = token_weights

    def step(
        self,
        policy: nn.Module,
        batch: SequenceBatch,
        reference: Reference | None,
        *,
        baseline: Tensor | None = None,
    ) -> tuple[LossOutput, Statistics]:
        tokens = self._asked.token_stats(policy, batch, reference)
        sums = sequence_stats(tokens, batch)
        output = self._loss(tokens, sums, batch)
        statistics = pair_statistics(tokens, sums, output, batch, by_source=self.by_source)
        return output, statistics

    def _loss(self, tokens: TokenStats, sums: SequenceStats, batch: SequenceBatch) -> LossOutput:
        sides = batch.of_pairs()

        def on(losses: Sequence[Member], given: SequenceStats) -> LossOutput:
            return compute(losses, given[sides.chosen], given[sides.rejected], weight=batch.weight)

        if self._weights is None:
            return on(self.members, sums)
        # A likelihood term beside a weighted loss stays a likelihood.
        weighted = [m for m in self.members if m.spec.token_weights]
        whole = [m for m in self.members if not m.spec.token_weights]
        output = on(weighted, sequence_stats(tokens, batch, token_weights=self._weights))
        return _joined(output, on(whole, sums)) if whole else output


class KtoObjective:
    """KTO on single examples with a label; arguments as in `PreferenceObjective`."""

    kind: ItemKind = "unpaired"
    needs_reference = True
    needs_baseline = True

    def __init__(self, loss: Kto, *, extra: Sequence[str] = ()) -> None:
        (self.member,) = loss_members(loss)
        self._asked = _Asked(reference=True, kl=False, extra=extra)
        self.needs_kl = self._asked.kl or self._asked.reverse_kl

    def step(
        self,
        policy: nn.Module,
        batch: SequenceBatch,
        reference: Reference | None,
        *,
        baseline: Tensor | None = None,
    ) -> tuple[LossOutput, Statistics]:
        if batch.desirable is None or baseline is None:
            raise ValueError("kto needs labels and the step's mean log-ratio")
        tokens = self._asked.token_stats(policy, batch, reference)
        sums = sequence_stats(tokens, batch)
        output = compute_unpaired(
            self.member,
            sums,
            desirable=batch.desirable,
            kl_baseline=baseline,
            weight=batch.weight,
        )
        return output, single_statistics(tokens, sums, output, batch)


class SftObjective:
    """Supervised fine-tuning on single demonstrations: token-mean negative log-likelihood."""

    kind: ItemKind = "demonstration"
    needs_reference = False
    needs_kl = False
    needs_baseline = False

    def __init__(self, *, extra: Sequence[str] = ()) -> None:
        self._asked = _Asked(reference=False, kl=False, extra=extra)

    def step(
        self,
        policy: nn.Module,
        batch: SequenceBatch,
        reference: Reference | None,
        *,
        baseline: Tensor | None = None,
    ) -> tuple[LossOutput, Statistics]:
        tokens = self._asked.token_stats(policy, batch, None)
        sums = sequence_stats(tokens, batch)
        output = sft(sums)
        term = output.terms[0]
        weighted = dataclasses.replace(term, losses=term.losses * batch.weight)
        output = dataclasses.replace(output, terms=(weighted,))
        return output, single_statistics(tokens, sums, None, batch)


def objective_of(
    loss: Loss | None,
    *,
    token_weights: TokenWeights | None = None,
    extra: Sequence[str] = (),
    by_source: bool = False,
) -> Objective:
    """The objective of a recipe's loss; None is supervised fine-tuning."""
    if loss is None:
        return SftObjective(extra=extra)
    if isinstance(loss, Kto):
        return KtoObjective(loss, extra=extra)
    return PreferenceObjective(loss, token_weights=token_weights, extra=extra, by_source=by_source)


@torch.no_grad()
def mismatched_log_ratios(
    policy: nn.Module, batch: SequenceBatch, reference: Reference
) -> tuple[float, int]:
    """Sum and number of log policy - log reference of a batch's mismatched sequences."""
    other = batch.mismatched
    if other is None:
        raise ValueError("kto needs mismatched responses in its batches")
    outputs: Outputs = policy(other, Ask(), reference=reference.inputs(other, kl=False))
    tokens = outputs.token_stats
    assert tokens.ref_logp is not None
    return float((tokens.logp - tokens.ref_logp).double().sum()), other.n_sequences


def _joined(first: LossOutput, second: LossOutput) -> LossOutput:
    """Both losses; rewards and statistics are the first one's."""
    return dataclasses.replace(first, terms=(*first.terms, *second.terms))
