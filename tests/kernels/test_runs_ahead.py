"""Torch's path where the host runs ahead of its device: it asks for no number, and is as right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from head_cases import EVERY, compare, problem
from host_reads import HostReads
from palate.kernels import Head, RefHidden, frozen, general, tiles, token_stats

F32 = {"nats": 2e-5, "share": 1e-5}


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (frozen, general):
        monkeypatch.setattr(module, "runs_ahead", lambda device: True)
    monkeypatch.setattr(tiles, "CPU_TILE_TOKENS", 32)
    monkeypatch.setattr(tiles, "CPU_TILE_VOCABULARY", 128)


def backward(x: dict[str, Any], **asked: bool) -> tuple[torch.Tensor, ...]:
    """Gradients of hidden states and weight, of all statistics but with a few rows."""
    leaves = [t.clone().requires_grad_() for t in (x["hidden"], x["head"].weight)]
    stats = token_stats(**x | {"hidden": leaves[0], "head": Head(weight=leaves[1])}, **asked)
    parts = [getattr(stats, name)[10:].sum() for name in EVERY if getattr(stats, name) is not None]
    return torch.autograd.grad(sum(parts), leaves)


@pytest.mark.parametrize("head", [{}, {"softcap": 5.0}, {"bias": True, "scale": 1.5}])
def test_every_statistic(head: dict[str, Any]) -> None:
    compare(problem(dtype=torch.float32, **head), **F32)
    alone = problem(dtype=torch.float32, **head) | {"reference": None}
    compare(alone, ("logp", "entropy"), **F32)


def test_rows_without_a_gradient_touch_nothing() -> None:
    """Neither of the head nor of the reference, whatever stands in them."""
    up = torch.zeros(4, 70)
    up[0, 20:50] = 1.0
    up[1, 40:60] = 1.0
    up[2, 30:60] = -1.0
    compare(problem(dtype=torch.float32, softcap=5.0), up=up, **F32)
    x = problem(dtype=torch.float32)
    x["hidden"][:10] = torch.nan
    for gradient in backward(x, kl=True, reverse_kl=True, entropy=True):
        assert gradient.isfinite().all()
    capped = problem(dtype=torch.float32, softcap=5.0)
    capped["hidden"][:10] = torch.nan
    hidden, weight = (t.clone().requires_grad_() for t in (capped["hidden"], capped["head"].weight))
    head = Head(weight=weight, softcap=5.0)
    token_stats(**capped | {"hidden": hidden, "head": head}).logp[10:].sum().backward()
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


def test_rows_without_the_reference_do_not_hear_of_it() -> None:
    x = problem(dtype=torch.float32)
    x["reference"].hidden[:30] = torch.nan
    leaves = [t.clone().requires_grad_() for t in (x["hidden"], x["head"].weight)]
    stats = token_stats(
        **x | {"hidden": leaves[0], "head": Head(weight=leaves[1])}, kl=True, reverse_kl=True
    )
    total = stats.logp.sum() + stats.kl[30:].sum() + stats.reverse_kl[30:].sum()
    for gradient in torch.autograd.grad(total, leaves):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("rise", [3.0, 100.0])
def test_a_frozen_head_whose_logits_rise(rise: float) -> None:
    x = problem(words=300, width=16, dtype=torch.float32)
    x["head"].weight[:, 0] = rise * (torch.arange(300) // 128)
    x["hidden"][:, 0] = torch.tensor([1.0, -1.0]).repeat(35)
    x["reference"] = RefHidden(hidden=x["reference"].hidden, head=x["head"])
    compare(x, ("logp", "kl"), ("hidden",), nats=1e-5 * rise, share=1e-4)


@pytest.mark.parametrize("trained", [True, False])
def test_the_host_asks_for_no_number(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    x = problem(dtype=torch.float32)
    head = x["head"]
    x["hidden"].requires_grad_()
    head.weight.requires_grad_(trained)
    reference = RefHidden(hidden=x["reference"].hidden, head=Head(weight=head.weight.detach()))
    with HostReads() as reads:
        stats = token_stats(**x | {"reference": reference}, kl=True, reverse_kl=trained)
        (stats.logp.sum() + stats.kl.sum()).backward()
    assert reads.names == []
    # It does where nothing runs ahead.
    for module in (frozen, general):
        monkeypatch.setattr(module, "runs_ahead", lambda device: False)
    with HostReads() as reads:
        stats = token_stats(**x | {"reference": reference}, kl=True, reverse_kl=trained)
        (stats.logp.sum() + stats.kl.sum()).backward()
    assert reads.names != []
