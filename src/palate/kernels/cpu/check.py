"""Are the compiled kernels right on this machine? One small case of each against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from palate.kernels.cpu import head as compiled_head
from palate.kernels.cpu.attention import tree_attention
from palate.kernels.cpu.build import Unavailable
from palate.kernels.cpu.layers import gated, norm, rotated
from palate.kernels.stats import Head

NATS, SHARE = 1e-4, 0.01
"""How far statistics of tokens, and bfloat16 results as a share of their norm, may be off."""


def check() -> None:
    """Tries them all.

    Raises:
        Unavailable: a result is wrong; which one.
    """
    check_head(compiled_head)
    _check_draw()
    _check_attention()
    _check_layers()


def check_head(kernels: Any, device: torch.device | str = "cpu") -> None:
    """Tries forward, backward and expected of `palate.kernels.cpu`, or of `triton`.

    Raises:
        Unavailable: a result is wrong; which one.
    """

    def drawn(*shape: int, seed: int, size: float = 1.0) -> Tensor:
        return _drawn(*shape, seed=seed, size=size).to(device)

    n, words, width = 70, 333, 48
    hidden, ref_hidden = drawn(n, width, seed=0), drawn(n, width, seed=1)
    head, ref_head = (
        Head(
            weight=drawn(words, width, seed=seed, size=0.4),
            bias=drawn(words, seed=seed + 1),
            scale=0.9,
            softcap=20.0,
        )
        for seed in (2, 4)
    )
    targets = (torch.arange(n) * 37 % words).to(device)
    up = drawn(4, n, seed=6).float()
    names = ("logp", "kl", "reverse_kl", "entropy")
    results = kernels.forward(
        hidden, head, targets, ref_hidden=ref_hidden, ref_head=ref_head,
        kl=True, reverse_kl=True, entropy=True,
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
        _near(name, getattr(results, name), value)
    total = sum((u * value).sum() for u, value in zip(up, right, strict=True))
    wanted = torch.autograd.grad(total, leaves)
    assert head.softcap is not None
    slope = up[0] * head.scale * (1 - (results.target_logit / head.softcap) ** 2)
    stats = {n: getattr(results, n) for n in ("lse", "ref_lse", "mean_gap", "mean_logit")}
    upstream = {**dict(zip(names, up, strict=True)), **stats, "slope": slope}
    given = kernels.backward(
        hidden, head, targets, upstream=upstream,
        ref_hidden=ref_hidden, ref_head=ref_head, need=(True, True, True), memory_mb=1,
    )  # fmt: skip
    _alike("the vocabulary head", ("hidden", "weight", "bias"), given, wanted)
    q = (hidden.double() @ head.weight.double().T).softmax(-1)
    plain = Head(weight=head.weight)
    _, _, mean = kernels.expected(hidden, plain, targets, exact=True, memory_mb=1)
    _near("the expected row of the weight", mean, q @ head.weight.double())


def _check_draw() -> None:
    """A few rows; one word is never drawn, another one not in every row."""
    n, words, width = 20, 333, 48
    head = Head(weight=_drawn(words, width, seed=2, size=0.4), bias=_drawn(words, seed=3))
    hidden = _drawn(n, width, seed=0)
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    early = torch.arange(n) % 2 == 0
    token, logp = compiled_head.draw(
        hidden, head, uniform, never=torch.tensor([5]), ends=torch.tensor([200]), early=early
    )
    z = hidden.double() @ head.weight.double().T + _bias(head)
    z[:, 5] = -torch.inf
    z[early, 200] = -torch.inf
    right = torch.searchsorted(z.softmax(-1).cumsum(-1), uniform[:, None], right=True)[:, 0]
    if not torch.equal(token, right):
        raise Unavailable(f"draws are others with torch {torch.__version__}")
    _near("their logp", logp, z.log_softmax(-1)[range(n), token])


def _check_attention() -> None:
    """Two trees and padding, a window, query heads that share key heads, more than one tile."""
    tokens, size, window = 170, 24, 60
    until = torch.tensor([120] * 70 + [90] * 20 + [120] * 30 + [165] * 45 + [0] * 5)
    position = torch.tensor([*range(90), *range(70, 100), *range(45), *[0] * 5])
    lines = torch.stack([until, position, torch.full_like(until, window)])
    place = torch.arange(tokens)
    seen = (place[:, None] >= place) & (place[:, None] < until)
    seen &= position[:, None] - position < window
    inputs = [_drawn(1, heads, tokens, size, seed=heads + 7) for heads in (4, 2, 2)]
    inputs[2] = inputs[2].flip(2).contiguous()
    leaves = [x.requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    query, key, value = wide[0], *(x.repeat_interleave(2, dim=1) for x in wide[1:])
    scores = (query @ key.transpose(-1, -2) * 0.2).masked_fill(~seen, -torch.inf)
    # Padding sees nothing, and gives nothing.
    right = (scores.softmax(-1).nan_to_num() @ value).transpose(1, 2)
    attended = tree_attention(leaves[0], leaves[1], leaves[2], lines, scale=0.2)
    up = _drawn(*attended.shape, seed=8)
    real = (until > 0)[None, :, None, None]
    names = ("query", "key", "value")
    given = torch.autograd.grad(attended, leaves, up)
    wanted = torch.autograd.grad((right * real * up.double()).sum(), wide)
    _alike("attention", ("values",), (attended,), (right,))
    _alike("attention", names, given, [w.nan_to_num() for w in wanted])


def _check_layers() -> None:
    x, weight = _drawn(40, 96, seed=9), _drawn(96, seed=10)
    leaves = [t.requires_grad_() for t in (x, weight)]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    scale = (wide[0].square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    for offset in (0.0, 1.0):
        normed = norm(x, weight, epsilon=1e-6, offset=offset, early=offset == 0.0)
        right = wide[0] * scale * (offset + wide[1])
        _with_gradients("a norm", normed, right, leaves, wide)
    up = _drawn(40, 96, seed=11).requires_grad_()
    leaves, wide = [x, up], [wide[0], up.detach().double().requires_grad_()]
    _with_gradients("SiLU", gated(x, up, kind="silu"), silu(wide[0]) * wide[1], leaves, wide)
    gelu_tanh = gelu(wide[0], approximate="tanh") * wide[1]
    _with_gradients("GELU", gated(x, up, kind="gelu_tanh"), gelu_tanh, leaves, wide)
    x = _drawn(2, 3, 5, 64, seed=13).transpose(1, 2).requires_grad_()
    cos, sin = (_drawn(2, 3, 64, seed=seed) for seed in (14, 15))
    wide_x = x.detach().double().requires_grad_()
    turned = torch.cat((-wide_x[..., 32:], wide_x[..., :32]), dim=-1)
    right = wide_x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)
    _with_gradients("rotary positions", rotated(x, cos, sin), right, [x], [wide_x])


def _with_gradients(
    what: str, given: Tensor, right: Tensor, leaves: Sequence[Tensor], wide: Sequence[Tensor]
) -> None:
    up = _drawn(*given.shape, seed=12)
    names = ("values", *(f"gradient {k}" for k in range(len(leaves))))
    given_all = (given, *torch.autograd.grad(given, leaves, up))
    wanted = (right, *torch.autograd.grad(right, wide, up.double(), retain_graph=True))
    _alike(what, names, given_all, wanted)


def _near(name: str, given: Tensor, right: Tensor) -> None:
    off = (given - right).abs().max().item()
    if not off < NATS:
        raise Unavailable(f"{name} is off by {off:.1e} with torch {torch.__version__}")


def _alike(
    what: str, names: Sequence[str], given: Sequence[Tensor | None], wanted: Sequence[Tensor]
) -> None:
    for name, result, right in zip(names, given, wanted, strict=True):
        assert result is not None
        off = ((result - right).norm() / right.norm()).item()
        if not off < SHARE:
            raise Unavailable(f"{what}: {name} are off by {off:.1%} with torch {torch.__version__}")


def _drawn(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).mul_(size).bfloat16()


def _bias(head: Head) -> Tensor:
    assert head.bias is not None
    return head.bias.double()


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor, head: Head) -> Tensor:
    z = (hidden @ weight.T + bias) * head.scale
    assert head.softcap is not None
    return ((z / head.softcap).tanh() * head.softcap).log_softmax(-1)
