"""Compiled norms, gated activations and rotary positions against torch's operators in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu, silu
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from palate.kernels import cpu
from palate.kernels.cpu import layers

pytestmark = pytest.mark.skipif(
    not cpu.available(), reason=f"no compiled kernels on this machine: {cpu.why_not()}"
)
BITS = 2**-8
"""Half a unit in the last place of bfloat16, as a share."""


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def close(got: torch.Tensor, want: torch.Tensor, share: float = BITS) -> None:
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(
        got.double(), want, rtol=share, atol=share * float(want.detach().abs().mean())
    )


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(
    ("shape", "by_head"),
    [
        ((1, 16), False),
        ((3, 7, 48), False),
        ((2, 4, 5, 64), False),
        ((2, 4, 5, 64), True),
        ((300, 160), False),
    ],
)
def test_norms(shape: tuple[int, ...], offset: float, by_head: bool) -> None:
    x, weight = drawn(*shape), drawn(shape[-1], seed=1)
    if by_head:
        x = x.transpose(1, 2)
    up = drawn(*x.shape, seed=2)
    x.requires_grad_()
    weight.requires_grad_()
    y = layers.norm(x, weight, epsilon=1e-5, offset=offset, early=False)
    assert y.shape == x.shape and y.stride() == x.stride()
    wide_x, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    scale = (wide_x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    right = wide_x * scale * (offset + wide_weight)
    close(y, right)
    got = torch.autograd.grad(y, (x, weight), up)
    want = torch.autograd.grad(right, (wide_x, wide_weight), up.double())
    close(got[0], want[0])
    close(got[1], want[1])


def test_a_norm_that_rounds_early_rounds_where_llama_does() -> None:
    x, weight = drawn(50, 64), drawn(64, seed=1)
    wide = x.float()
    right = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).bfloat16()
    same = layers.norm(x, weight, epsilon=1e-6, offset=0.0, early=True) == right
    late = layers.norm(x, weight, epsilon=1e-6, offset=0.0, early=False) == right
    assert same.float().mean() > 0.999 > 0.9 > late.float().mean()


@pytest.mark.parametrize(("kind", "function"), [("silu", silu), ("gelu_tanh", None)])
def test_gated_activations(kind: layers.Activation, function: object) -> None:
    def activation(x: torch.Tensor) -> torch.Tensor:
        return silu(x) if function is silu else gelu(x, approximate="tanh")

    gate = (drawn(33, 48).float() * torch.logspace(-3, 2, 33).unsqueeze(1)).bfloat16()
    up, grad = drawn(33, 48, seed=1), drawn(33, 48, seed=2)
    leaves = [t.requires_grad_() for t in (gate, up)]
    product = layers.gated(gate, up, kind=kind)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    right = activation(wide[0]) * wide[1]
    # The activation is rounded before it is multiplied, as in the models.
    close(product, right, 2 * BITS)
    got = torch.autograd.grad(product, leaves, grad)
    for a, b in zip(got, torch.autograd.grad(right, wide, grad.double()), strict=True):
        close(a, b, 2 * BITS)
    with torch.no_grad():
        written = activation(gate) * up
        # torch's tanh is coarse where it is nearly -1.
        assert (layers.gated(gate, up, kind=kind) == written).float().mean() > 0.95


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("rows_of_turns", [1, 2])
def test_rotary_positions_are_bit_for_bit_those_of_transformers(
    by_head: bool, rows_of_turns: int
) -> None:
    x = drawn(2, 7, 3, 64).transpose(1, 2) if by_head else drawn(2, 3, 7, 64)
    cos, sin = drawn(rows_of_turns, 7, 64, seed=1), drawn(rows_of_turns, 7, 64, seed=2)
    up = drawn(*x.shape, seed=3)
    x.requires_grad_()
    assert layers.takes_heads(x, cos, sin)
    turned = layers.rotated(x, cos, sin)
    right, _ = apply_rotary_pos_emb(x, x, cos, sin)
    assert torch.equal(turned, right) and turned.stride() == x.stride()
    (got,), (want,) = (torch.autograd.grad(y, x, up) for y in (turned, right))
    assert torch.equal(got, want)


def test_what_is_not_taken() -> None:
    heads, turns = drawn(2, 3, 7, 64), drawn(1, 7, 64)
    assert layers.takes_heads(heads, turns, turns)
    assert not layers.takes_heads(heads[..., :48], turns[..., :48], turns[..., :48])
    # A part of each head alone is turned.
    assert not layers.takes_heads(heads, turns[..., :32], turns[..., :32])
    assert not layers.takes_heads(heads, turns.float(), turns.float())
    x, weight = drawn(4, 32), drawn(32)
    assert layers.takes_rows(x, weight)
    assert not layers.takes_rows(x.float(), weight.float())
    assert not layers.takes_rows(drawn(4, 20), drawn(20))
    assert layers.takes_flat(x, x) and not layers.takes_flat(x, x.float())
    assert not layers.takes_flat(drawn(3, 5), drawn(3, 5))


def test_the_number_of_threads_changes_nothing_but_rounding() -> None:
    x, weight, up = drawn(37, 64), drawn(64, seed=1), drawn(37, 64, seed=2)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in (x, weight)]
            y = layers.norm(*leaves, epsilon=1e-6, offset=1.0, early=False)
            results.append((y, *torch.autograd.grad(y, leaves, up)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[1], results[0][1])
        close(other[2], results[0][2].double(), 2 * BITS)
