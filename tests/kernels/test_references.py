"""Every kind of reference, and heads frozen and trained: what is asked for comes, no more."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from palate.kernels import Head, RefHidden, RefLogps, summarise, token_stats
from palate.testing import token_stats_oracle

FIELDS = ("logp", "ref_logp", "kl", "reverse_kl", "entropy")
N, VOCABULARY, WIDTH = 6, 17, 4


def problem(*, trained: bool, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH, generator=g, dtype=torch.float64).to(dtype)
    hidden, ref_hidden = torch.randn(2, N, WIDTH, generator=g, dtype=torch.float64).to(dtype)
    return {
        "hidden": hidden.requires_grad_(),
        "head": Head(weight=weight.requires_grad_(trained)),
        "targets": torch.arange(N),
        "ref_hidden": ref_hidden,
    }


def reference_of(kind: str, x: dict[str, Any]) -> Any:
    head, targets = x["head"], x["targets"]
    if kind == "none":
        return None
    if kind == "log-probs":
        return RefLogps(logp=torch.linspace(-3.0, -1.0, N, dtype=torch.float64))
    if kind == "summary":
        return summarise(hidden=x["ref_hidden"], head=head, targets=targets)
    return RefHidden(hidden=x["ref_hidden"], head=Head(weight=head.weight.detach()))


CASES = [
    (kind, trained, kl, reverse, entropy)
    for kind, trained, kl, reverse, entropy in itertools.product(
        ("none", "log-probs", "summary", "hidden"), *[(False, True)] * 4
    )
    # Refused: a KL of log-probs alone; a summary with a trained head, or of the reverse KL.
    if not (kind in ("none", "log-probs") and (kl or reverse))
    and not (kind == "summary" and (trained or reverse))
]


@pytest.mark.parametrize(("kind", "trained", "kl", "reverse", "entropy"), CASES)
def test_what_is_asked_for_comes_and_nothing_else(
    kind: str, trained: bool, kl: bool, reverse: bool, entropy: bool
) -> None:
    x = problem(trained=trained)
    options = {name: x[name] for name in ("hidden", "head", "targets")}
    options |= {"kl": kl, "reverse_kl": reverse, "entropy": entropy}
    stats = token_stats(**options, reference=reference_of(kind, x))
    oracle = token_stats_oracle(
        **options, reference=reference_of("hidden" if kind == "summary" else kind, x)
    )
    leaves = [x["hidden"], x["head"].weight] if trained else [x["hidden"]]
    for field in FIELDS:
        got, want = getattr(stats, field), getattr(oracle, field)
        assert (got is None) == (want is None), field
        if want is None:
            continue
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
        assert got.requires_grad == (field != "ref_logp"), field
        if got.requires_grad:
            for a, b in zip(
                torch.autograd.grad(got.sum(), leaves, retain_graph=True),
                torch.autograd.grad(want.sum(), leaves, retain_graph=True),
                strict=True,
            ):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("trained", [False, True])
def test_statistics_are_float32_or_wider(dtype: torch.dtype, trained: bool) -> None:
    x = problem(trained=trained, dtype=dtype)
    stats = token_stats(
        **{name: x[name] for name in ("hidden", "head", "targets")},
        reference=reference_of("hidden", x),
        kl=True,
    )
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {getattr(stats, field).dtype for field in ("logp", "ref_logp", "kl")} == {expected}
    (gradient,) = torch.autograd.grad(stats.kl.sum(), x["hidden"])
    assert gradient.dtype == dtype
