"""Logits that rise, or begin only, in a later vocabulary tile, against the float64 oracle."""

from __future__ import annotations

import pytest
import torch

from palate.kernels import Head, RefHidden, frozen, tiles, token_stats
from palate.testing import token_stats_oracle

TILE = 4
"""Targets below are the first and the last of a tile too."""


@pytest.fixture(autouse=True)
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_TILE_TOKENS", 3)
    monkeypatch.setattr(tiles, "CPU_TILE_VOCABULARY", TILE)


def rising(rise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states of policy and reference, and a head whose logits rise by `rise` a tile.

    The first column of the head is the number of the tile times `rise`; rows of hidden states
    begin with 1, -1 or 0: their logits rise, fall or stay.
    """
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(3 * TILE, 5, generator=g, dtype=torch.float64)
    weight[:, 0] = rise * torch.arange(3).repeat_interleave(TILE)
    hidden, ref_hidden = torch.randn(2, 7, 5, generator=g, dtype=torch.float64)
    hidden[:, 0] = ref_hidden[:, 0] = torch.tensor([1.0, 1.0, -1.0, 0.0, 1.0, -1.0, 0.0])
    return hidden, ref_hidden, weight


def compare(
    hidden: torch.Tensor,
    ref_hidden: torch.Tensor,
    head: Head,
    targets: torch.Tensor,
    *,
    atol: float = 1e-9,
) -> None:
    """Log-probs, KL, and their gradients in the hidden states."""
    hidden = hidden.clone().requires_grad_()
    options = {
        "hidden": hidden,
        "head": head,
        "targets": targets,
        "reference": RefHidden(hidden=ref_hidden, head=head),
        "kl": True,
    }
    stats, oracle = token_stats(**options), token_stats_oracle(**options)
    up = torch.linspace(-1.0, 2.0, len(targets), dtype=torch.float64)
    for name in ("logp", "ref_logp", "kl"):
        got, want = getattr(stats, name), getattr(oracle, name)
        torch.testing.assert_close(got.double(), want, rtol=1e-12, atol=atol)
    for name in ("logp", "kl"):
        got, want = (
            torch.autograd.grad((getattr(s, name) * up).sum(), hidden, retain_graph=True)[0]
            for s in (stats, oracle)
        )
        torch.testing.assert_close(got, want, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "general"])
@pytest.mark.parametrize("rise", [3.0, 41.0, 100.0, 1000.0])
def test_earlier_tiles_fade_where_later_logits_are_higher(trained: bool, rise: float) -> None:
    hidden, ref_hidden, weight = rising(rise)
    targets = torch.tensor([11, 4, 0, 7, 8, 3, 2])
    compare(hidden, ref_hidden, Head(weight=weight.requires_grad_(trained)), targets)


@pytest.mark.parametrize("headroom", [0.0, 1.0])
def test_raising_the_shift_at_every_tile_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, headroom: float
) -> None:
    """Here an earlier tile fades without vanishing, so that a wrong factor is seen."""
    monkeypatch.setattr(frozen, "HEADROOM", headroom)
    hidden, ref_hidden, weight = rising(1.5)
    targets = torch.tensor([11, 4, 0, 7, 8, 3, 2])
    for bias in (None, torch.linspace(-1.0, 1.0, 3 * TILE, dtype=torch.float64)):
        for scale in (1.0, 0.5):
            head = Head(weight=weight, bias=bias, scale=scale)
            compare(hidden, ref_hidden, head, targets)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "general"])
@pytest.mark.parametrize("excluded", [range(TILE), range(2 * TILE), range(TILE, 3 * TILE)])
def test_a_tile_without_any_allowed_token_counts_nothing(trained: bool, excluded: range) -> None:
    """All logits of a tile may be -inf, also of the first, where nothing has been summed yet."""
    hidden, ref_hidden, weight = rising(1.0)
    bias = torch.zeros(3 * TILE, dtype=torch.float64)
    bias[list(excluded)] = -torch.inf
    allowed = next(i for i in range(3 * TILE) if i not in excluded)
    keep = [i for i in range(3 * TILE) if i not in excluded]
    head = Head(weight=weight.requires_grad_(trained), bias=bias)
    options = {"hidden": hidden, "targets": torch.full((7,), allowed), "kl": True}
    stats = token_stats(head=head, reference=RefHidden(hidden=ref_hidden, head=head), **options)
    small = Head(weight=weight.detach()[keep])
    oracle = token_stats_oracle(
        head=small,
        reference=RefHidden(hidden=ref_hidden, head=small),
        **(options | {"targets": torch.full((7,), keep.index(allowed))}),
    )
    for name in ("logp", "ref_logp", "kl"):
        got, want = getattr(stats, name).detach(), getattr(oracle, name)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
