"""Inputs for loss tests: random statistics, and every registered loss with its options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from palate.losses import LOSSES, LossOutput, Member, SequenceStats

COUNTS = {"pair": 3.0, "sequence": 3.0, "chosen_token": 7.0}

MEMBERS = [
    Member(type="dpo"),
    Member(type="dpo", options={"beta": 0.3, "label_smoothing": 0.2}),
    Member(type="rdpo"),
    Member(type="ipo_mean"),
    Member(type="ipo_sum", options={"beta": 0.5}),
    Member(type="hinge"),
    Member(type="simpo"),
    Member(type="simpo", options={"gamma": 0.0}),
    Member(type="dpo_norm"),
    Member(type="dpo_norm", options={"label_smoothing": 0.1}),
    Member(type="orpo"),
    Member(type="cpo"),
    Member(type="cpo", options={"label_smoothing": 0.1, "nll_weight": 0.0}),
    Member(type="fdpo", options={"divergence": "reverse_kl"}),
    Member(type="fdpo", options={"divergence": "forward_kl"}),
    Member(type="fdpo", options={"divergence": "js"}),
    Member(type="fdpo", options={"divergence": "alpha", "alpha": 0.3}),
    Member(type="tdpo1"),
    Member(type="tdpo2"),
    Member(type="tdpo2", options={"alpha": 0.0}),
    Member(type="tdpo2", options={"alpha": 1.0, "reward": "released"}),
    Member(type="anchor"),
    Member(type="anchor", options={"beta": 0.3, "delta": -0.7}),
    Member(type="sft"),
]


def name_of(member: Member) -> str:
    return "-".join([member.type, *(f"{k}={v}" for k, v in member.options.items())])


ALL_PAIR_LOSSES = pytest.mark.parametrize("member", MEMBERS, ids=name_of)
ALL_RANKING_LOSSES = pytest.mark.parametrize(
    "member", [m for m in MEMBERS if LOSSES[m.type].ranks], ids=name_of
)


def random_stats(n: int, *, seed: int, dtype: torch.dtype = torch.float64) -> SequenceStats:
    """Leaf statistics of n responses, policy a few nats away from the reference."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=g, dtype=dtype)

    length = torch.randint(1, 9, (n,), generator=g)
    logp = (-length * draw(0.5, 3.0)).to(dtype)
    return SequenceStats(
        logp=logp.clone().requires_grad_(),
        length=length.to(dtype),
        ref_logp=logp + draw(-2.0, 2.0),
        kl=draw(0.1, 2.0).requires_grad_(),
    )


def random_pairs(
    n: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[SequenceStats, SequenceStats]:
    return (
        random_stats(n, seed=2 * seed, dtype=dtype),
        random_stats(n, seed=2 * seed + 1, dtype=dtype),
    )


def call(member: Member, chosen: SequenceStats, rejected: SequenceStats) -> LossOutput:
    return member.spec.function(chosen, rejected, **member.options)


def total(output: LossOutput, counts: dict[str, float] | None = None) -> Tensor:
    return output.value(counts or COUNTS)


def leaves(*sides: SequenceStats) -> list[Tensor]:
    return [t for side in sides for t in (side.logp, side.kl) if t is not None and t.requires_grad]


def gradients(output: LossOutput, *sides: SequenceStats) -> list[Tensor]:
    """Of the value, for log-probs and KL of each side; zeros where it does not depend on them."""
    inputs = leaves(*sides)
    found = torch.autograd.grad(total(output), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
