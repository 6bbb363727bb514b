"""Random problems of a vocabulary head, and their answers beside the float64 oracle's."""

from __future__ import annotations

from typing import Any

import torch

from palate.kernels import Head, RefHidden, token_stats
from palate.testing import token_stats_oracle

EVERY = ("logp", "kl", "reverse_kl", "entropy")
NATS, SHARE = 2e-5, 6e-3
"""Values, and gradients as a share of their norm: probabilities meet the weight in bfloat16."""


def problem(
    n: int = 70,
    words: int = 333,
    width: int = 48,
    *,
    ref_width: int | None = None,
    size: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    **head: Any,
) -> dict[str, Any]:
    """Random tensors of one type, as arguments of `token_stats`."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int, by: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=g).mul_(by).to(device, dtype)

    def drawn_head(width: int) -> Head:
        weight = draw(words, width, by=3 * width**-0.5)
        return Head(weight=weight, bias=draw(words) if head.get("bias") else None, **options)

    options = {name: value for name, value in head.items() if name != "bias"}
    hidden = draw(n, width, by=size)
    ref_hidden = draw(n, ref_width, by=size) if ref_width else hidden + draw(n, width, by=0.2)
    return {
        "hidden": hidden,
        "head": drawn_head(width),
        "targets": torch.randint(words, (n,), generator=g).to(device),
        "reference": RefHidden(hidden=ref_hidden, head=drawn_head(ref_width or width)),
    }


def wide(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.double()
    return Head(weight=head.weight.double(), bias=bias, scale=head.scale, softcap=head.softcap)


def compare(
    x: dict[str, Any],
    asked: tuple[str, ...] = EVERY,
    trained: tuple[str, ...] = ("hidden", "weight", "bias"),
    *,
    nats: float = NATS,
    share: float = SHARE,
    up: torch.Tensor | None = None,
    memory_mb: int = 1,
) -> None:
    """Values and gradients beside the oracle's."""
    n = len(x["targets"])
    up = torch.randn(4, n, generator=torch.Generator().manual_seed(1)) if up is None else up
    up = up.to(x["hidden"].device)
    sides = []
    for exact in (False, True):
        head = wide(x["head"]) if exact else x["head"]
        leaves = {
            "hidden": x["hidden"].double() if exact else x["hidden"],
            "weight": head.weight,
            "bias": head.bias,
        }
        leaves = {k: v if v is None else v.clone() for k, v in leaves.items()}
        chosen = [leaves[k].requires_grad_() for k in trained if leaves[k] is not None]
        ref = x["reference"]
        if exact and isinstance(ref, RefHidden):
            ref = RefHidden(hidden=ref.hidden.double(), head=wide(ref.head))
        own = Head(
            weight=leaves["weight"], bias=leaves["bias"], scale=head.scale, softcap=head.softcap
        )
        if isinstance(ref, RefHidden) and x["reference"].head is x["head"]:
            ref = RefHidden(hidden=ref.hidden, head=own)
        stats = (token_stats_oracle if exact else token_stats)(
            hidden=leaves["hidden"],
            head=own,
            targets=x["targets"],
            reference=ref,
            **{name: True for name in asked if name != "logp"},
            **({} if exact else {"memory_mb": memory_mb}),
        )
        total = sum(
            (getattr(stats, name).double() * u).sum()
            for name, u in zip(EVERY, up, strict=True)
            if name in asked
        )
        sides.append((stats, torch.autograd.grad(total, chosen)))
    (found, gradients), (right, wanted) = sides
    names = (*asked, "ref_logp") if x["reference"] is not None else asked
    for name in names:
        got, want = getattr(found, name), getattr(right, name)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=0, atol=nats, msg=f"{name}")
    for got, want in zip(gradients, wanted, strict=True):
        off = (got.double() - want).norm() / want.norm().clamp(min=1e-9)
        assert off < share, (tuple(got.shape), float(off))
