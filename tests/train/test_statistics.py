"""What the log says of a micro-batch, from numbers given by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from palate.data.layouts import SequenceBatch, collate
from palate.kernels import TokenStats
from palate.losses import SequenceStats, dpo
from palate.train.statistics import pair_statistics
from tiny import tiny_pairs


def batch_of(n: int) -> SequenceBatch:
    return collate(tiny_pairs(n), layout="plain", pad_id=0)


def of_sides(batch: SequenceBatch, chosen: list[float], rejected: list[float]) -> torch.Tensor:
    """[S] values of the sequences of a batch, given pair by pair."""
    sides, values = batch.of_pairs(), torch.zeros(batch.n_sequences)
    values[sides.chosen], values[sides.rejected] = torch.tensor(chosen), torch.tensor(rejected)
    return values


def shown_of(
    batch: SequenceBatch, moved: torch.Tensor, *, by_source: bool = False
) -> dict[str, tuple[float, float]]:
    """Sums and counts, where the policy is `moved` [S] nats from a reference that says -5."""
    first = (batch.position == 0).float()
    tokens = TokenStats(logp=first * (moved - 5.0)[batch.segment], ref_logp=first * -5.0)
    ratio = SequenceStats(logp=moved - 5.0, ref_logp=0 * moved - 5.0, length=torch.ones_like(moved))
    sides = batch.of_pairs()
    loss = dpo(ratio[sides.chosen], ratio[sides.rejected])
    shown = pair_statistics(tokens, loss, batch, by_source=by_source)
    return {name: (float(total), float(count)) for name, (total, count) in shown.items()}


def means(chosen_ratios: list[float], rejected_ratios: list[float]) -> dict[str, float]:
    """Of pairs whose log-ratios to the reference are these."""
    batch = batch_of(len(chosen_ratios))
    shown = shown_of(batch, of_sides(batch, chosen_ratios, rejected_ratios))
    return {name: total / count for name, (total, count) in shown.items()}


def test_only_chosen_responses_below_the_reference_are_displaced() -> None:
    shown = means([-0.5, 0.0, 0.25, -1.0], [-9.0, -9.0, -9.0, -9.0])
    # A response that has not moved is not displaced: at the start of a run none is.
    assert shown["displacement/fraction"] == 0.5
    assert shown["displacement/chosen"] == pytest.approx(-1.25 / 4)
    assert means([0.0, 0.0], [0.0, 0.0])["displacement/fraction"] == 0.0


def test_a_tie_of_rewards_is_half_right() -> None:
    shown = means([1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, 2.0])
    assert shown["rewards/accuracies"] == shown["accuracies/logits"] == 0.5
    assert means([1.0, 0.0], [0.0, 0.0])["rewards/accuracies"] == 0.75


def test_lengths_and_log_probs_are_of_their_own_side() -> None:
    shown, batch = means([1.0, 2.0, 3.0], [-1.0, -2.0, -6.0]), batch_of(3)
    assert (shown["logps/chosen"], shown["logps/rejected"]) == (-3.0, -8.0)
    lengths, sides = batch.lengths.double(), batch.of_pairs()
    assert shown["length/chosen"] == pytest.approx(lengths[sides.chosen].mean().item())
    assert shown["length/rejected"] == pytest.approx(lengths[sides.rejected].mean().item())


def test_kl_is_shown_per_response_and_per_token() -> None:
    batch = batch_of(2)
    kl = torch.linspace(0.1, 1.0, len(batch.targets), dtype=torch.float64)
    tokens = TokenStats(logp=-kl, ref_logp=-kl, kl=kl, reverse_kl=2 * kl, entropy=3 * kl)
    zero = SequenceStats(logp=torch.zeros(2), ref_logp=torch.zeros(2), length=torch.ones(2))
    shown = pair_statistics(tokens, dpo(zero, zero), batch)
    of_chosen, of_rejected = (
        kl[torch.isin(batch.segment, side)]
        for side in (batch.of_pairs().chosen, batch.of_pairs().rejected)
    )
    for name, values, count in (
        ("kl/chosen", of_chosen, 2),
        ("kl/token_chosen", of_chosen, len(of_chosen)),
        ("reverse_kl/chosen", 2 * of_chosen, 2),
        ("reverse_kl/token_chosen", 2 * of_chosen, len(of_chosen)),
        ("kl/rejected", of_rejected, 2),
        ("entropy", 3 * kl, len(kl)),
    ):
        total, n = shown[name]
        assert float(total) == pytest.approx(values.sum().item()), name
        assert float(n) == count, name


def test_accuracies_of_each_source_are_of_its_own_pairs() -> None:
    batch = dataclasses.replace(batch_of(3), sources=("a", "b", "b"))
    shown = shown_of(batch, of_sides(batch, [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]), by_source=True)
    assert shown["rewards/accuracies/a"] == (1.0, 1.0)
    assert shown["rewards/accuracies/b"] == (1.0, 2.0)
