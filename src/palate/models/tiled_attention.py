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
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from palate.kernels.tiles import exact_products, spans

TILE = 256
"""Most queries of a tile: fewer see fewer keys in vain, more make larger and fewer products."""


@dataclass(frozen=True)
class Tile:
    """Queries start to stop of a row.

    Attributes:
        keys: the keys that any of them sees.
        hidden: (start, stop, mask [stop - start of the tile, columns]) of those runs of `keys`
            where some are hidden; True is hidden.
    """

    start: int
    stop: int
    keys: slice | Tensor
    hidden: tuple[tuple[int, int, Tensor], ...]


def tiles_of(visible: Tensor) -> tuple[Tile, ...]:
    """The tiles of a row.

    Args:
        visible: [T, T] bool; every query sees a key.
    """
    found = []
    count = -(-len(visible) // TILE)
    # Alike in size: a short last tile costs as many calls as a whole one.
    for start, stop in spans(len(visible), -(-len(visible) // count)):
        seen = visible[start:stop].any(0).nonzero()[:, 0]
        first, last = int(seen[0]), int(seen[-1]) + 1
        keys = slice(first, last) if last - first == len(seen) else seen
        hides = ~visible[start:stop, keys]
        hidden = tuple((a, b, hides[:, a:b].contiguous()) for a, b in _runs(hides.any(0)))
        found.append(Tile(start, stop, keys, hidden))
    return tuple(found)


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
    found: Tensor = _Tiled.apply(query, key, value, tuple(map(tuple, rows)), scale)
    return found


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
                    found = torch.bmm(share, v[:, tile.keys])
                    o[tile.start : tile.stop] = row.by_head(found, tile).transpose(0, 1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        found = [torch.zeros_like(x) for x in (query, key, value)]
        with exact_products(query.dtype, query.device):
            for r, tiles in enumerate(ctx.rows):
                _row_backward(
                    _Row(query[r], key[r], ctx.scale),
                    (query[r], key[r], value[r]),
                    grad[r].transpose(0, 1),
                    tiles,
                    [x[r] for x in found],
                )
        return *found, None, None


def _row_backward(
    row: _Row,
    operands: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    tiles: Sequence[Tile],
    found: Sequence[Tensor],
) -> None:
    """Writes the gradients of one row to `found`."""
    query, key, value = operands
    wide_value = value.to(row.wide)
    d_key = torch.zeros_like(key, dtype=row.wide)
    d_value = torch.zeros_like(value, dtype=row.wide)
    for tile in tiles:
        share = row.shares(tile)
        upstream = row.take(grad, tile)
        wide_keys = wide_value[:, tile.keys].transpose(1, 2)
        d_share = torch.bmm(upstream.to(row.wide), wide_keys)
        d_score = torch._softmax_backward_data(d_share, share, -1, row.wide).mul_(row.scale)
        # Sums over tiles are kept wide; the products themselves end in the model's dtype anyway,
        # and rounded to it they are twice as fast.
        d_score, share = d_score.to(query.dtype), share.to(query.dtype)
        d_query = torch.bmm(d_score, key[:, tile.keys])
        found[0][:, tile.start : tile.stop] = row.by_head(d_query, tile)
        _add(d_key, tile, torch.bmm(d_score.transpose(1, 2), row.take(query, tile)))
        _add(d_value, tile, torch.bmm(share.transpose(1, 2), upstream))
    found[1].copy_(d_key)
    found[2].copy_(d_value)


class _Row:
    """One row's queries and keys, the query heads of a key head side by side."""

    def __init__(self, query: Tensor, key: Tensor, scale: float) -> None:
        self.wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.heads = len(key)
        self.query, self.key, self.scale = query.to(self.wide), key.to(self.wide), scale

    def take(self, x: Tensor, tile: Tile) -> Tensor:
        """[K, H/K * n, d] of a tile, from [H, T, d]."""
        return x[:, tile.start : tile.stop].reshape(self.heads, -1, x.shape[-1])

    def by_head(self, x: Tensor, tile: Tile) -> Tensor:
        """[H, n, d], from [K, H/K * n, d]."""
        return x.view(-1, tile.stop - tile.start, x.shape[-1])

    def shares(self, tile: Tile) -> Tensor:
        """[K, H/K * n, keys] the softmax."""
        score = torch.bmm(self.take(self.query, tile), self.key[:, tile.keys].transpose(1, 2))
        score.mul_(self.scale)
        by_head = self.by_head(score, tile)
        for start, stop, mask in tile.hidden:
            by_head[:, :, start:stop].masked_fill_(mask, -torch.inf)
        return torch.softmax(score, -1)


def _add(x: Tensor, tile: Tile, values: Tensor) -> None:
    """Adds what a tile gives its keys."""
    if isinstance(tile.keys, slice):
        x[:, tile.keys] += values
    else:
        x.index_add_(1, tile.keys, values.to(x.dtype))
