"""Compiled attention over prefix trees against softmax(q k^T) v in float64."""

from __future__ import annotations

import pytest
import torch

from palate.kernels import cpu
from palate.kernels.cpu.attention import takes_attention, tree_attention

pytestmark = pytest.mark.skipif(
    not cpu.available(), reason=f"no compiled kernels on this machine: {cpu.why_not()}"
)
Tree = tuple[int, tuple[int, ...]]
"""Tokens that all branches share, and of each branch."""


def structure(*trees: Tree, padding: int = 0, window: int = 0) -> torch.Tensor:
    until: list[int] = []
    positions: list[int] = []
    for common, branches in trees:
        end = len(until) + common + sum(branches)
        until += [end] * common
        positions += range(common)
        for branch in branches:
            until += [len(until) + branch] * branch
            positions += range(common, common + branch)
    blank = [0] * padding
    return torch.tensor([until + blank, positions + blank, [window] * (len(until) + padding)])


def visible(lines: torch.Tensor) -> torch.Tensor:
    """[n, n] by the definition, query first; of the tokens that are in a tree."""
    until, positions, windows = (line.tolist() for line in lines)
    n = sum(end > 0 for end in until)
    seen = [
        [
            j <= i < until[j] and (windows[0] == 0 or positions[i] - positions[j] < windows[0])
            for j in range(n)
        ]
        for i in range(n)
    ]
    return torch.tensor(seen)


def drawn(heads: int, tokens: int, size: int, *, by_token: bool, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    if by_token:
        return torch.randn(1, tokens, heads, size, generator=g).bfloat16().transpose(1, 2)
    return torch.randn(1, heads, tokens, size, generator=g).bfloat16()


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize(
    ("trees", "padding", "window"),
    [
        (((1, ()),), 0, 0),
        (((5, (3, 4)),), 0, 0),
        # Blocks of 64: whole, one more, one less; several trees; a branch over a block's border.
        (((64, (64, 64)),), 0, 0),
        (((65, (63, 130)), (1, (1, 1)), (63, (65,))), 7, 0),
        (((200, (100, 100)), (40, (30, 20, 10))), 0, 0),
        (((200, (100, 100)), (40, (30, 20, 10))), 3, 33),
        (((150, ()),), 0, 64),
        (((150, (90,)),), 0, 1),
    ],
)
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(1, 1, 8), (4, 2, 32), (4, 1, 72)])
def test_values_and_gradients(
    trees: tuple[Tree, ...],
    padding: int,
    window: int,
    heads: int,
    key_heads: int,
    size: int,
    by_token: bool,
) -> None:
    lines = structure(*trees, padding=padding, window=window)
    tokens = lines.shape[1]
    n = tokens - padding
    counts = (heads, key_heads, key_heads)
    leaves = [
        drawn(count, tokens, size, by_token=by_token, seed=seed).requires_grad_()
        for seed, count in enumerate(counts)
    ]
    up = drawn(heads, tokens, size, by_token=True, seed=9).transpose(1, 2)
    assert takes_attention(*leaves)
    attended = tree_attention(*leaves, lines, scale=size**-0.5)
    assert attended.shape == (1, tokens, heads, size) and not attended[:, n:].any()
    found = torch.autograd.grad(attended, leaves, up)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    q, k, v = (x.repeat_interleave(heads // x.shape[1], dim=1)[:, :, :n] for x in wide)
    scores = (q @ k.transpose(2, 3) * size**-0.5).masked_fill(~visible(lines), -torch.inf)
    right = (scores.softmax(-1) @ v).transpose(1, 2)
    wanted = torch.autograd.grad(right, wide, up[:, :n].double())
    for got, want in zip((attended[:, :n], *found), (right, *wanted), strict=True):
        assert got.dtype == torch.bfloat16
        off = (got.double() - want).norm()
        # A lone token's scores have no gradient: what is there is rounding.
        assert off < 5e-3 * want.norm() + 1e-2 * (window == 1 or n == 1)


def test_a_tree_is_the_same_bits_wherever_it_stands() -> None:
    trees: tuple[Tree, ...] = ((70, (33, 20)), (9, (130, 64)), (64, (64, 64)))
    lines = structure(*trees)
    q, k, v = (drawn(h, lines.shape[1], 32, by_token=False, seed=h) for h in (4, 2, 2))
    together = tree_attention(q, k, v, lines, scale=0.2)
    start = 0
    for tree in trees:
        own = structure(tree, padding=5)
        stop = start + own.shape[1] - 5
        alone = (torch.nn.functional.pad(x[:, :, start:stop], (0, 0, 0, 5)) for x in (q, k, v))
        assert torch.equal(tree_attention(*alone, own, scale=0.2)[:, :-5], together[:, start:stop])
        start = stop


def test_scores_of_any_size() -> None:
    """Larger than exp can take, and a block of keys whose scores lie far above those before."""
    lines = structure((200, (50, 50)))
    q, k, v = (drawn(1, 300, 16, by_token=False, seed=s) for s in range(3))
    k[:, :, 128:] *= 30
    attended = tree_attention(q * 10, k, v, lines, scale=1.0)
    scores = (q * 10).double() @ k.double().transpose(2, 3)
    right = scores.masked_fill(~visible(lines), -torch.inf).softmax(-1) @ v.double()
    off = (attended[0, :, 0].double() - right[0, 0]).norm() / right.norm()
    assert off < 5e-3


def test_what_is_not_taken() -> None:
    q, k = (drawn(4, 5, 8, by_token=False, seed=0), drawn(2, 5, 8, by_token=False, seed=1))
    assert takes_attention(q, k, k)
    assert not takes_attention(q.float(), k.float(), k.float())
    assert not takes_attention(q, drawn(3, 5, 8, by_token=False, seed=1), k)
    assert not takes_attention(q, k, drawn(2, 5, 6, by_token=False, seed=1))
    assert not takes_attention(torch.cat([q, q]), torch.cat([k, k]), torch.cat([k, k]))
