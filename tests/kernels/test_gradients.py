"""Gradients of the general operator where only a part of it is asked for, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from palate.kernels import Head, RefHidden, tiles, token_stats
from palate.testing import token_stats_oracle

STATISTICS = ("kl", "reverse_kl", "entropy")
N, VOCABULARY, WIDTH = 7, 21, 5


@pytest.fixture(autouse=True)
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_TILE_TOKENS", 2)
    monkeypatch.setattr(tiles, "CPU_TILE_VOCABULARY", 4)


def problem(n: int = N, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "hidden": draw(n, WIDTH),
        "weight": draw(VOCABULARY, WIDTH),
        "bias": draw(VOCABULARY),
        "reference": RefHidden(
            hidden=draw(n, WIDTH), head=Head(weight=draw(VOCABULARY, WIDTH), bias=draw(VOCABULARY))
        ),
        # The first and the last token of each tile.
        "targets": torch.tensor([0, 3, 4, 7, 8, 16, 20])[torch.arange(n) % 7],
    }


def gradients(
    function: Any, x: dict[str, Any], trained: tuple[str, ...], asked: tuple[str, ...], up: Any
) -> tuple[torch.Tensor, ...]:
    x = x | {name: x[name].clone().requires_grad_() for name in trained}
    stats = function(
        hidden=x["hidden"],
        head=Head(weight=x["weight"], bias=x["bias"]),
        targets=x["targets"],
        reference=x["reference"],
        **{name: True for name in STATISTICS if name in asked},
    )
    total = sum((getattr(stats, name) * up.to(x["hidden"].dtype)).sum() for name in asked)
    return torch.autograd.grad(total, [x[name] for name in trained])


def compare(
    x: dict[str, Any], trained: tuple[str, ...], asked: tuple[str, ...], up: torch.Tensor
) -> None:
    got, want = (
        gradients(function, x, trained, asked, up) for function in (token_stats, token_stats_oracle)
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "asked",
    [("logp",), ("kl",), ("reverse_kl",), ("entropy",), ("reverse_kl", "entropy")],
    ids="+".join,
)
@pytest.mark.parametrize(
    "trained", [("weight",), ("bias",), ("hidden", "weight"), ("weight", "bias")]
)
def test_any_statistic_trains_any_part(asked: tuple[str, ...], trained: tuple[str, ...]) -> None:
    compare(problem(), trained, asked, torch.linspace(-1.0, 2.0, N, dtype=torch.float64))


@pytest.mark.parametrize("row", range(N))
@pytest.mark.parametrize("name", ["logp", "kl"])
def test_a_single_row_with_upstream_is_enough(row: int, name: str) -> None:
    up = torch.zeros(N, dtype=torch.float64)
    up[row] = 1.5
    compare(problem(), ("hidden", "weight", "bias"), (name,), up)


def test_a_bf16_bias_collects_its_gradient_before_it_is_rounded() -> None:
    x, up = problem(400, torch.bfloat16), torch.ones(400)
    got, want = (
        gradients(function, x, ("bias",), ("logp",), up)[0].double()
        for function in (token_stats, token_stats_oracle)
    )
    # One rounding is 2^-9 of a number; two hundred of them, one after the other, are more.
    assert ((got - want).abs() <= 2**-8 * want.abs() + 1e-3).all()
