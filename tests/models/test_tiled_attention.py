"""Attention in tiles against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from palate.models import tiled_attention as module
from palate.models.attention import _plans
from palate.models.tiled_attention import tiled_attention, tiles_of

N, SCALE = 23, 0.3


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 5)
    monkeypatch.setattr(module, "BRANCH", 6)


def causal(window: int | None = None) -> Tensor:
    place = torch.arange(N)
    visible = place[None] <= place[:, None]
    return visible if window is None else visible & (place[:, None] - place[None] < window)


def shared() -> Tensor:
    """A prompt of 9, two branches of 7 and 5 that do not see each other, padding of 2."""
    part = torch.tensor([0] * 9 + [1] * 7 + [2] * 5 + [3, 4])
    seen = (part[None] == part[:, None]) | ((part[None] == 0) & (part[:, None] < 3))
    return causal() & seen


MASKS = {"causal": causal(), "window": causal(4), "shared": shared(), "all": causal() | True}


def defined(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    score = (SCALE * q @ k.transpose(2, 3)).masked_fill(~visible, -torch.inf)
    return (score.softmax(-1) @ v).transpose(1, 2)


def operands(dtype: torch.dtype, rows: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((rows, 4, N, 6), (rows, 2, N, 6), (rows, 2, N, 3))
    return [torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_definition(name: str, dtype: torch.dtype) -> None:
    q, k, v = operands(dtype)
    tiles = [tiles_of(MASKS[name])] * 2
    found = tiled_attention(q, k, v, tiles, scale=SCALE)
    wanted = defined(*(x.double() for x in (q, k, v)), MASKS[name])
    upstream = torch.randn_like(wanted)
    gradients = torch.autograd.grad(found, (q, k, v), upstream.to(dtype))
    right = torch.autograd.grad(wanted, (q, k, v), upstream.to(dtype).double())
    error = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    for own, other in zip((found, *gradients), (wanted, *right), strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), other.double(), atol=error, rtol=error)


def test_gradients_are_those_of_differences() -> None:
    q, k, v = operands(torch.float64, rows=1)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tiled_attention(q, k, v, [tiles_of(shared())], scale=SCALE)

    assert torch.autograd.gradcheck(run, (q, k, v), fast_mode=True)


def test_a_tile_meets_only_what_it_sees() -> None:
    last_branch = tiles_of(shared())[4]
    assert isinstance(last_branch.keys, Tensor)
    assert last_branch.keys.tolist() == [*range(9), *range(16, 20)]
    middle = tiles_of(causal(4))[2]
    assert middle.keys == slice(7, 15)
    # Only where a key is hidden from somebody is there a bias.
    biases = [bias for tile in tiles_of(shared()) for _, _, bias in tile.hidden]
    assert biases and all((bias == -torch.inf).any(0).all() for bias in biases)


def test_no_tile_reaches_over_the_start_of_a_long_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    def spans(visible: Tensor) -> list[tuple[int, int]]:
        return [(tile.start, tile.stop) for tile in tiles_of(visible)]

    # The second branch begins at 16, the padding behind it is too short for a tile of its own.
    assert spans(shared()) == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 23)]
    whole = [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]
    assert spans(causal()) == spans(causal(4)) == whole
    monkeypatch.setattr(module, "BRANCH", 8)
    assert spans(shared()) == whole


def test_a_mask_that_does_more_than_hide_is_left_to_torch() -> None:
    def is_tiled(mask: Tensor) -> bool:
        ((part,),) = _plans(mask, 1, torch.bfloat16)
        assert bool(part.tiles) == (part.mask is None)
        return bool(part.tiles)

    biased = torch.zeros(1, 1, N, N).masked_fill(~causal(), torch.finfo(torch.float32).min)
    assert is_tiled(biased.clone())
    biased[0, 0, 5, 3] = -1.5
    assert not is_tiled(biased)
    by_head = causal().expand(1, 2, N, N).clone()
    assert not is_tiled(by_head)
    unseeing = causal()[None, None].clone()
    unseeing[0, 0, 7] = False
    assert not is_tiled(unseeing)
