"""Is the compiled head right on this machine? One small case against float64."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from palate.kernels.cpu.head import backward, expected, forward
from palate.kernels.stats import Head

NATS, SHARE = 1e-4, 0.01
"""How far values, and gradients as a share of their norm, may be off: those are bfloat16."""


def check(lib: ctypes.CDLL) -> str | None:
    """What is wrong, or None."""
    g = torch.Generator().manual_seed(0)
    n, words, width = 70, 333, 48

    def rand(*shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g).mul_(size).bfloat16()

    hidden, ref_hidden = rand(n, width), rand(n, width)
    head, ref_head = (
        Head(weight=rand(words, width, size=0.4), bias=rand(words), scale=0.9, softcap=20.0)
        for _ in range(2)
    )
    targets = torch.randint(words, (n,), generator=g)
    up = torch.randn(4, n, generator=g)
    names = ("logp", "kl", "reverse_kl", "entropy")
    results = forward(
        hidden, head, targets, ref_hidden=ref_hidden, ref_head=ref_head,
        kl=True, reverse_kl=True, entropy=True, lib=lib,
    )  # fmt: skip
    leaves = [t.double().requires_grad_() for t in (hidden, head.weight, _bias(head))]
    logq = _log_softmax(leaves[0], leaves[1], leaves[2], head)
    logp = _log_softmax(ref_hidden.double(), ref_head.weight.double(), _bias(ref_head), ref_head)
    right = (
        logq[range(n), targets],
        (logp.exp() * (logp - logq)).sum(-1),
        (logq.exp() * (logq - logp)).sum(-1),
        -(logq.exp() * logq).sum(-1),
    )
    for name, value in zip(names, right, strict=True):
        off = (getattr(results, name) - value).abs().max().item()
        if not off < NATS:
            return f"{name} is off by {off:.1e}"
    total = sum((u * value).sum() for u, value in zip(up, right, strict=True))
    wanted = torch.autograd.grad(total, leaves)
    assert head.softcap is not None
    slope = up[0] * head.scale * (1 - (results.target_logit / head.softcap) ** 2)
    stats = {n: getattr(results, n) for n in ("lse", "ref_lse", "mean_gap", "mean_logit")}
    upstream = {**dict(zip(names, up, strict=True)), **stats, "slope": slope}
    given = backward(
        hidden, head, targets, upstream=upstream,
        ref_hidden=ref_hidden, ref_head=ref_head, need=(True, True, True), memory_mb=1, lib=lib,
    )  # fmt: skip
    for name, gradient, value in zip(("hidden", "weight", "bias"), given, wanted, strict=True):
        assert gradient is not None
        off = ((gradient - value).norm() / value.norm()).item()
        if not off < SHARE:
            return f"the gradient of {name} is off by {off:.1%}"
    plain = Head(weight=head.weight)
    q = (hidden.double() @ head.weight.double().T).softmax(-1)
    _, _, mean = expected(hidden, plain, targets, exact=True, memory_mb=1, lib=lib)
    off = (mean - q @ head.weight.double()).abs().max().item()
    return None if off < NATS else f"the expected row of the weight is off by {off:.1e}"


def _bias(head: Head) -> Tensor:
    assert head.bias is not None
    return head.bias.double()


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor, head: Head) -> Tensor:
    z = (hidden @ weight.T + bias) * head.scale
    assert head.softcap is not None
    return ((z / head.softcap).tanh() * head.softcap).log_softmax(-1)
