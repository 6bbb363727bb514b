"""Attention over blocks of shared rows, on accelerators: what a row hides costs nothing.

torch's flash kernels take no mask, and its other kernels one of all T x T places. FlexAttention
takes a table of blocks of 128 queries by 128 keys (hidden, visible, or to be looked at place by
place) and makes one kernel of it. The table is computed here from the two numbers a token that say
all of the structure: nothing of T x T is made, and the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

DEVICES = frozenset({"cuda"})
"""Kinds of devices whose attention goes this way."""
BLOCK = 128
"""Queries and keys of a block: FlexAttention's default, a multiple of all tiles of its kernels."""
LEAST_HEAD, LARGEST_HEAD = 16, 256
"""Numbers a head: products of Triton have 16 or more, and beyond 256 tiles do not fit on the chip
with their gradients."""
DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})
LIMIT = 64
"""Kernels of a process."""

WINDOWED = "_palate_windowed"
"""Of a structure, where its maker knew whether a window is slid over it: others cost less."""
_BLOCKS = "_palate_blocks"


def takes_blocks(config: Any, dtype: torch.dtype) -> bool:
    """Whether attention of a model can go by blocks; `config` is the model's."""
    config = config.get_text_config()
    size = getattr(config, "head_dim", None)
    if size is None:
        size = config.hidden_size // config.num_attention_heads
    return dtype in DTYPES and isinstance(size, int) and LEAST_HEAD <= size <= LARGEST_HEAD


def block_mask(structure: Tensor) -> BlockMask:
    """The blocks of shared rows; all layers that share a structure share them.

    Args:
        structure: [R, 1, 3, T] int64, see `palate.models.attention`.
    """
    known: BlockMask | None = getattr(structure, _BLOCKS, None)
    if known is None:
        known = _block_mask(*structure[:, 0].unbind(1), windowed=getattr(structure, WINDOWED, True))
        setattr(structure, _BLOCKS, known)
    return known


def _block_mask(until: Tensor, positions: Tensor, windows: Tensor, *, windowed: bool) -> BlockMask:
    """Of [R, T] each; a window of 0 is none, and so are all that are not `windowed`."""
    width = until.shape[1]
    endless = torch.iinfo(positions.dtype).max
    # A key is beyond a query's window from that position on.
    reach = torch.where(windows > 0, positions + windows, endless)

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Padding sees itself, as everything does.
        later: Tensor = (query >= key) & (query < until[row, key])
        return later | (query == key)

    def near(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        within = positions[row, query] < reach[row, key]
        return seen(row, head, query, key) & within

    def blocks(values: Tensor, beyond: int) -> Tensor:
        padded = pad(values, (0, -width % BLOCK), value=beyond)
        return padded.view(len(values), -1, BLOCK)

    count = -(-width // BLOCK)
    place = torch.arange(count, device=until.device)
    query, key = place[:, None], place[None, :]
    last, least = blocks(until, 0).amax(2)[:, None], blocks(until, 0).amin(2)[:, None]
    low, high = (blocks(positions, v) for v in (endless, -1))
    # Of a key block and a later query block, the first query meets the key that is seen longest.
    some = (query > key) & (query * BLOCK < last)
    whole = (query > key) & ((query + 1) * BLOCK <= least)
    if windowed:
        some &= low.amin(2)[:, :, None] < blocks(reach, 0).amax(2)[:, None]
        whole &= high.amax(2)[:, :, None] < blocks(reach, 0).amin(2)[:, None]
    some = some | (query == key)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole),
        *_listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=near if windowed else seen,
        seq_lengths=(width, width),
    )


def _listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """[R, 1, n] how many blocks of keys each block of queries has, and [R, 1, n, n] which, first.

    Args:
        table: [R, n, n] bool.
    """
    chosen = table.unsqueeze(1).to(torch.int32)
    order = torch.argsort(chosen, dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32)


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    structure: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """softmax(cap(scale q k^T)) v over what is visible.

    Args:
        query: [R, H, T, d]. key: [R, K, T, d], value: [R, K, T, e]; H a multiple of K.
        softcap: c of cap(x) = c tanh(x / c); None: x.

    Returns:
        [R, T, H, e].
    """
    cap = None
    if softcap is not None:
        # As a number on the device: one in Python would be compiled in, or refused.
        limit = torch.full((), softcap, device=query.device, dtype=torch.float32)
        cap = _capped(limit)
    attended = _compiled()(
        query,
        key,
        value,
        score_mod=cap,
        block_mask=block_mask(structure),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        # Short rows would go to the kernel of generation, which not all groups of heads suit.
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
    )
    by_token: Tensor = attended.transpose(1, 2)
    return by_token


def _capped(limit: Tensor) -> Callable[..., Tensor]:
    def cap(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        capped: Tensor = limit * torch.tanh(score / limit)
        return capped

    return cap


@cache
def _compiled() -> Callable[..., Any]:
    """FlexAttention as one kernel; uncompiled it makes all scores.

    Lengths are symbols: nearly every micro-batch has one of its own, and a kernel for each would
    soon reach the limit of compilations. With and without gradients, short rows, and models of
    other heads are kernels of their own still, so the limit is raised; at it torch would go on
    uncompiled, which `fullgraph` makes an error.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, LIMIT)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
