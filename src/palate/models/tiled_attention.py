"""Attention in tiles of queries, each against those keys alone that a query of the tile sees.

A mask that is given to torch's CPU kernel costs the whole square of the sequence, though causality
hides half of it, and a sliding window or the branches of a shared prefix most of the rest. Here a
tile of queries meets the keys that are visible to it, and only the columns where some are hidden
are masked. Nothing of size tokens x tokens outlives a tile; the backward pass computes it again.

Scores and softmax are float32 of the operands as they are (see `palate.kernels.tiles`), so that a
result is as exact as that of the kernel it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from palate.kernels.tiles import exact_products, spans

TILE = 256
"""Most queries of a tile: fewer see fewer keys in vain, more make larger and fewer products."""
BRANCH = 64
"""Fewest queries for which a branch begins a tile of its own."""


@dataclass(frozen=True)
class Tile:
    """Queries start to stop of a row.

    Attributes:
        keys: the keys that any of them sees.
        hidden: (start, stop, bias [stop - start of the tile, 1, columns]) of those runs of `keys`
            where some are hidden; the bias of a score, in float32, is -inf where a key is hidden
            and 0 where not. (To add is many times as fast as to fill where a mask is True.)
    """

    start: int
    stop: int
    keys: slice | Tensor
    hidden: tuple[tuple[int, int, Tensor], ...]

    def moved(self, by: int) -> Tile:
        """The tile of the same part of a row, `by` places later in it."""
        if by == 0:
            return self
        keys = self.keys
        keys = slice(keys.start + by, keys.stop + by) if isinstance(keys, slice) else keys + by
        return Tile(self.start + by, self.stop + by, keys, self.hidden)


def tiles_of(visible: Tensor) -> tuple[Tile, ...]:
    """The tiles of a row.

    Args:
        visible: [T, T] bool; every query sees a key.
    """
    tiles = []
    for start, stop in _queries(visible):
        seen = visible[start:stop].any(0).nonzero()[:, 0]
        first, last = int(seen[0]), int(seen[-1]) + 1
        keys = slice(first, last) if last - first == len(seen) else seen
        hides = ~visible[start:stop, keys]
        bias = torch.zeros(hides.shape).masked_fill_(hides, -torch.inf)[:, None]
        hidden = tuple((a, b, bias[..., a:b].contiguous()) for a, b in _runs(hides.any(0)))
        tiles.append(Tile(start, stop, keys, hidden))
    return tuple(tiles)


def _queries(visible: Tensor) -> Iterator[tuple[int, int]]:
    """(start, stop) of each tile's queries.

    No tile reaches over the start of a long branch: its queries would meet keys of both sides.
    """
    # A window loses a key with every query, the start of a branch all keys of the branch before.
    lost = (visible[:-1] & ~visible[1:]).sum(1)
    cuts = [0]
    for place in ((lost > 1).nonzero()[:, 0] + 1).tolist():
        if min(place - cuts[-1], len(visible) - place) >= BRANCH:
            cuts.append(place)
    for start, stop in pairwise([*cuts, len(visible)]):
        # Alike in size: a short last tile costs as many calls as a whole one.
        count = -(-(stop - start) // TILE)
        for a, b in spans(stop - start, -(-(stop - start) // count)):
            yield start + a, start + b


def _runs(flags: Tensor) -> Iterator[tuple[int, int]]:
    """(start, stop) of the runs of True."""
    edges = torch.diff(flags.int(), prepend=flags.new_zeros(1), append=flags.new_zeros(1))
    yield from zip((edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0], strict=True)


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Sequence[Sequence[Tile]], *, scale: float
) -> Tensor:
    """softmax(scale q k^T) v of every row, over what is visible.

    Args:
        query: [R, H, T, d]. key: [R, K, T, d], value: [R, K, T, e]; H a multiple of K: query heads
            in a sequence share a key head. rows: `tiles_of` the mask of each.

    Returns:
        [R, T, H, e] in the dtype of the query, zero behind the tiles of a row; not differentiable
        twice.
    """
    attended: Tensor = _Tiled.apply(query, key, value, tuple(map(tuple, rows)), scale)
    return attended


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: tuple[tuple[Tile, ...], ...],
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.rows, ctx.scale = rows, scale
        out = query.new_zeros(len(query), query.shape[2], query.shape[1], value.shape[-1])
        with exact_products(query.dtype, query.device):
            for q, k, v, o, tiles in zip(query, key, value, out, rows, strict=True):
                row = _Row(q, k, scale)
                for tile in tiles:
                    share = row.shares(tile).to(v.dtype)
                    weighted = torch.bmm(share, _of(v, tile))
                    row.split(o, tile).copy_(row.by_token(weighted, tile))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        d_query = grad.new_zeros(query.transpose(1, 2).shape)
        d_key, d_value = torch.empty_like(key), torch.empty_like(value)
        with exact_products(query.dtype, query.device):
            for r, tiles in enumerate(ctx.rows):
                _row_backward(
                    _Row(query[r], key[r], ctx.scale),
                    key[r],
                    value[r],
                    grad[r],
                    tiles,
                    (d_query[r], d_key[r], d_value[r]),
                )
        return d_query.transpose(1, 2), d_key, d_value, None, None


def _row_backward(
    row: _Row,
    key: Tensor,
    value: Tensor,
    grad: Tensor,
    tiles: Sequence[Tile],
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Writes the gradients of one row to `gradients`: [T, H, d], [K, T, d] and [K, T, e].

    Args:
        grad: [T, H, e].
    """
    grad = row.arranged(grad)
    wide_grad, wide_value = grad.to(row.wide), value.to(row.wide)
    d_key = torch.zeros_like(key, dtype=row.wide)
    d_value = torch.zeros_like(value, dtype=row.wide)
    for tile in tiles:
        share = row.shares(tile)
        d_share = torch.bmm(row.take(wide_grad, tile), _of(wide_value, tile).transpose(1, 2))
        d_score = torch._softmax_backward_data(d_share, share, -1, row.wide).mul_(row.scale)
        # Sums over tiles are kept wide; the products themselves end in the model's dtype anyway,
        # and rounded to it they are twice as fast.
        d_score, share = d_score.to(key.dtype), share.to(key.dtype)
        d_query = torch.bmm(d_score, _of(key, tile))
        row.split(gradients[0], tile).copy_(row.by_token(d_query, tile))
        _add(d_key, tile, torch.bmm(d_score.transpose(1, 2), row.take(row.query, tile)))
        _add(d_value, tile, torch.bmm(share.transpose(1, 2), row.take(grad, tile)))
    gradients[1].copy_(d_key)
    gradients[2].copy_(d_value)


class _Row:
    """One row's queries and keys, the query heads of a key head beside each other at a token."""

    def __init__(self, query: Tensor, key: Tensor, scale: float) -> None:
        self.wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.heads = len(key)
        self.query = self.arranged(query.transpose(0, 1))
        self.wide_query, self.wide_key = self.query.to(self.wide), key.to(self.wide)
        self.scale = scale

    def arranged(self, x: Tensor) -> Tensor:
        """[K, T, H/K, d], from [T, H, d]: once a row, so that no tile of it is a copy."""
        return x.view(len(x), self.heads, -1, x.shape[-1]).transpose(0, 1).contiguous()

    def take(self, x: Tensor, tile: Tile) -> Tensor:
        """[K, n * H/K, d] of a tile, from what is `arranged`."""
        return x[:, tile.start : tile.stop].flatten(1, 2)

    def split(self, x: Tensor, tile: Tile) -> Tensor:
        """[K, n, H/K, d] of a tile, a view of [T, H, d]."""
        queries = x[tile.start : tile.stop]
        return queries.view(len(queries), self.heads, -1, x.shape[-1]).transpose(0, 1)

    def by_token(self, x: Tensor, tile: Tile) -> Tensor:
        """[K, n, H/K, d], from [K, n * H/K, d]."""
        return x.view(len(x), tile.stop - tile.start, -1, x.shape[-1])

    def shares(self, tile: Tile) -> Tensor:
        """[K, n * H/K, keys] the softmax."""
        keys = _of(self.wide_key, tile).transpose(1, 2)
        score = torch.bmm(self.take(self.wide_query, tile), keys).mul_(self.scale)
        by_token = self.by_token(score, tile)
        for start, stop, bias in tile.hidden:
            by_token[..., start:stop].add_(bias)
        return torch.softmax(score, -1)


def _of(x: Tensor, tile: Tile) -> Tensor:
    """[K, keys, d] those keys or values that a tile sees, from [K, T, d]."""
    return x[:, tile.keys] if isinstance(tile.keys, slice) else x.index_select(1, tile.keys)


def _add(x: Tensor, tile: Tile, values: Tensor) -> None:
    """Adds what a tile gives its keys."""
    if isinstance(tile.keys, slice):
        x[:, tile.keys] += values
    else:
        x.index_add_(1, tile.keys, values.to(x.dtype))
