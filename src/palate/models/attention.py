"""Attention whose result for a row does not depend on the rows beside it.

On the CPU the rounding of attention depends on the padded width of the batch: in bfloat16 the same
sequence beside a longer one differs by tenths of a nat a response. Then a cached reference is not
what a live one gives, losses do not begin at ln 2 and scores depend on the batch. Each row at its
own length gives the same bits in any batch, and takes less time, since nothing attends to padding.
What a row hides from itself costs nothing either (`palate.models.tiled_attention`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from palate.models.tiled_attention import Tile, tiled_attention, tiles_of

NAME = "palate_rows"
WIDE_TOKENS = 512
"""From this length on tiles are faster in float32, too; in bfloat16 they always are."""


def use_rows(model: PreTrainedModel) -> None:
    """Runs the attention of `model` row by row on the CPU; elsewhere it stays torch's (SDPA).

    Models that run another kernel (eager for soft-capped scores) are left as they are.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function of that name.

    Args:
        query: [R, heads, T, head size]. key, value: [R, key heads, S, head size].
        attention_mask: [R, 1, T, S], boolean (True = visible) or additive.

    Returns:
        [R, T, heads, head size], zero at padding behind a row, and None for the weights.
    """
    width = query.shape[2]
    if query.device.type != "cpu" or attention_mask is None or key.shape[2] != width:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    heads_fit = query.shape[1] % key.shape[1] == 0
    plain = heads_fit and not any(options.get(name) for name in _UNTILED)
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    rows = _rows(attention_mask, len(query))
    tiles = [row.tiles if plain and row.fits(query.dtype) else None for row in rows]
    if all(one is not None for one in tiles):
        return tiled_attention(query, key, value, tiles, scale=scale), None  # type: ignore[arg-type]
    out = []
    for i, (row, own) in enumerate(zip(rows, tiles, strict=True)):
        n = row.tokens
        q, k, v = (x[i : i + 1, :, :n] for x in (query, key, value))
        if own is not None:
            found = tiled_attention(q, k, v, [own], scale=scale)
        else:
            mask = attention_mask.expand(len(query), -1, -1, -1)[i : i + 1, :, :n, :n].contiguous()
            found, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
        out.append(pad(found, (0, 0, 0, 0, 0, width - n)))
    return torch.cat(out), None


_UNTILED = ("dropout", "position_bias", "cache", "softcap", "output_attentions")
"""Options that the tiles know nothing of."""


@dataclass(frozen=True)
class _RowPlan:
    """What is known of a row from its mask.

    Attributes:
        tokens: up to its last real one.
        tiles: None where the mask does more than to hide.
    """

    tokens: int
    tiles: tuple[Tile, ...] | None

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether tiles are the faster way, which depends on nothing but the row itself."""
        return dtype == torch.bfloat16 or self.tokens >= WIDE_TOKENS


def _rows(mask: Tensor, rows: int) -> list[_RowPlan]:
    """The plan of every row; all layers that share a mask share it."""
    known: list[_RowPlan] | None = getattr(mask, _PLAN, None)
    if known is None or len(known) != rows:
        visible = mask if mask.dtype == torch.bool else mask == 0
        hides = mask.dtype == torch.bool or bool(
            (visible | (mask <= torch.finfo(mask.dtype).min)).all()
        )
        hides = hides and mask.shape[1] == 1 and bool(visible.any(-1).all())
        known = []
        masks = visible.expand(rows, -1, -1, -1)
        for one, n in zip(masks, row_lengths(masks), strict=True):
            known.append(_RowPlan(n, tiles_of(one[0, :n, :n]) if hides else None))
        setattr(mask, _PLAN, known)
    return known


_PLAN = "_palate_rows"


def rows_mask(**options: Any) -> Tensor | None:
    """transformers' mask function of that name: `sdpa_mask`, but padding sees itself alone."""
    if torch.device(options.get("device", "cpu")).type != "cpu":
        return sdpa_mask(**options)
    # Left out, a mask would be implied, and rows with and without padding differ in the kernel.
    found = sdpa_mask(**options | {"allow_is_causal_skip": False})
    padding = options.get("attention_mask")
    if found is None or padding is None or found.shape[-1] != found.shape[-2]:
        return found
    real: Tensor = padding[:, : found.shape[-1]].to(torch.bool)
    alone = torch.eye(found.shape[-1], dtype=torch.bool)
    return (found & real[:, None, :, None]) | alone


def row_lengths(mask: Tensor) -> list[int]:
    """Tokens of each row up to its last real one, told by who sees somebody else.

    Args:
        mask: [R, 1, T, T]. Every real token but a sequence's first sees an earlier one; padding
            behind the row sees itself alone.
    """
    width = mask.shape[-1]
    visible = mask if mask.dtype == torch.bool else mask == 0
    sees = (visible[:, 0] & ~torch.eye(width, dtype=torch.bool)).any(2)
    places = torch.arange(width).expand(len(mask), width)
    last = torch.where(sees, places, 0).max(1).values
    return [n + 1 for n in last.tolist()]


AttentionInterface.register(NAME, rows_attention)
AttentionMaskInterface.register(NAME, rows_mask)
