"""What the log shows of a micro-batch, as sums: docs/metrics.md says what each name means."""

from __future__ import annotations

import torch
from torch import Tensor

from palate.data.layouts import SequenceBatch
from palate.kernels import TokenStats
from palate.losses import LossOutput
from palate.models.aggregate import sequence_stats
from palate.train.meter import Statistics


@torch.no_grad()
def pair_statistics(
    tokens: TokenStats, output: LossOutput, batch: SequenceBatch, *, by_source: bool = False
) -> Statistics:
    """Sums over the B pairs of a batch; KL per token and entropy are over tokens.

    Args:
        output: of the loss, whose rewards and statistics are [B].
    """
    statistics = _sides(tokens, batch)
    margins = output.chosen_rewards - output.rejected_rewards
    right = (margins > 0).double() + 0.5 * (margins == 0).double()
    statistics |= _rewards(output) | {
        "rewards/accuracies": sum_and_count(right),
        **{name: sum_and_count(values) for name, values in output.statistics.items()},
    }
    if by_source:
        for source in sorted(set(batch.sources)):
            part = of_source(batch, source)
            statistics[f"rewards/accuracies/{source}"] = ((right * part).sum(), part.sum())
    return statistics


@torch.no_grad()
def single_statistics(
    tokens: TokenStats, output: LossOutput | None, batch: SequenceBatch
) -> Statistics:
    """Sums over S single examples: desirable ones are `chosen`, others `rejected`.

    Args:
        output: of an unpaired loss; None for demonstrations, which have no rewards.
    """
    statistics = _sides(tokens, batch)
    if output is not None:
        statistics |= _rewards(output)
        statistics |= {name: sum_and_count(values) for name, values in output.statistics.items()}
    return statistics


_Totals = dict[str, tuple[Tensor, Tensor | float]]


def _sides(tokens: TokenStats, batch: SequenceBatch) -> _Totals:
    statistics: _Totals = {}
    sums = sequence_stats(tokens, batch)
    lengths = batch.lengths
    n_tokens = lengths.double()
    for name, side in batch.sides.items():
        statistics[f"logps/{name}"] = sum_and_count(sums.logp[side])
        statistics[f"length/{name}"] = sum_and_count(n_tokens[side])
        if sums.kl is not None:
            statistics[f"kl/{name}"] = sum_and_count(sums.kl[side])
            statistics[f"kl/token_{name}"] = (sums.kl[side].double().sum(), n_tokens[side].sum())
        if tokens.reverse_kl is not None:
            total = _by_sequence(tokens.reverse_kl, batch)[side]
            statistics[f"reverse_kl/{name}"] = sum_and_count(total)
            statistics[f"reverse_kl/token_{name}"] = (total.sum(), n_tokens[side].sum())
    if sums.ref_logp is not None and "chosen" in batch.sides:
        moved = (sums.logp - sums.ref_logp)[batch.sides["chosen"]]
        statistics["displacement/chosen"] = sum_and_count(moved)
        statistics["displacement/fraction"] = sum_and_count((moved < 0).double())
    if tokens.entropy is not None:
        statistics["entropy"] = sum_and_count(tokens.entropy)
    return statistics


def _by_sequence(values: Tensor, batch: SequenceBatch) -> Tensor:
    out = torch.zeros(batch.n_sequences, dtype=torch.float64, device=values.device)
    return out.index_add(0, batch.segment, values.double())


def _rewards(output: LossOutput) -> _Totals:
    return {
        "rewards/chosen": sum_and_count(output.chosen_rewards),
        "rewards/rejected": sum_and_count(output.rejected_rewards),
    }


def sum_and_count(values: Tensor) -> tuple[Tensor, float]:
    """What a mean over all batches is made of."""
    return values.detach().double().sum(), float(values.numel())


def of_source(batch: SequenceBatch, source: str) -> Tensor:
    """[B] float64, 1 for the items of a batch that are of a source, else 0."""
    flags = torch.tensor([float(name == source) for name in batch.sources], dtype=torch.float64)
    return flags.to(batch.item.device, non_blocking=True)
