"""Attention whose result for a sequence does not depend on what is beside it.

On the CPU the rounding of attention depends on the padded width of the batch: in bfloat16 the same
sequence beside a longer one differs by tenths of a nat a response. Then a cached reference is not
what a live one gives, losses do not begin at ln 2 and scores depend on the batch. Each row, and
each prefix tree of a row, at its own length gives the same bits in any batch, and takes less time,
since nothing attends to padding. What a row hides from itself costs nothing either
(`palate.models.tiled_attention`).

The shared layout says what sees what by one number a token (`visible_until`, see
`palate.data.layouts`). With the positions and the window of a layer type it goes through a model in
the place of an attention mask, as the three lines of an integer tensor [R, 1, 3, T], so that
nothing of T x T is made before the attention that needs it, and on accelerators not there either
(`palate.models.block_attention`); models with kernels of their own get the dense mask.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from palate.kernels.cpu.attention import takes_attention, tree_attention
from palate.models import block_attention
from palate.models.tiled_attention import Tile, tiled_attention, tiles_of

NAME = "palate_rows"
WIDE_TOKENS = 512
"""From this length on tiles are faster in float32, too; in bfloat16 they always are."""

Windows = Mapping[str, int | None]
"""Layer type -> sliding window in tokens (None: full attention). With the one name "" the model
takes one mask for all layers, else a mapping of masks."""


def use_rows(model: PreTrainedModel) -> None:
    """Runs the attention of `model` row by row on the CPU; elsewhere it stays torch's (SDPA).

    Models that run another kernel (eager for soft-capped scores) are left as they are.
    """
    if model.config._attn_implementation == "sdpa" and not _lists_kernels(model):
        model.set_attn_implementation(NAME)


@contextmanager
def torchs_own(model: PreTrainedModel) -> Iterator[None]:
    """Runs the attention of `model` by torch's kernel while the block runs, if it is by rows."""
    by_rows = model.config._attn_implementation == NAME
    if by_rows:
        model.set_attn_implementation({"": "sdpa"} | _without_sdpa(model))
    try:
        yield
    finally:
        if by_rows:
            model.set_attn_implementation(NAME)


def _without_sdpa(model: PreTrainedModel) -> dict[str, str]:
    """Parts of the configuration whose models torch's kernel cannot run, and what they run: towers
    of convolutions alone have no attention, and transformers refuses them any kernel but eager."""
    configs = {name: getattr(model.config, name, None) for name in model.config.sub_configs}
    return {
        name: "sdpa" if part._supports_sdpa else "eager"
        for name, config in configs.items()
        for part in model.modules()
        if isinstance(part, PreTrainedModel) and part.config is config
    }


def _lists_kernels(model: PreTrainedModel) -> bool:
    """Whether a family's code names the kernels that it works with, and does otherwise for others.

    Those that choose the keys of each query (DeepSeek V3.2) hide the rest for these alone.
    """
    classes = {type(part) for part in model.modules() if isinstance(part, PreTrainedModel)}
    sources = {inspect.getsourcefile(cls) for cls in classes}
    texts = (Path(source).read_text(encoding="utf-8") for source in sources if source)
    return any(re.search(r"_attn_implementation (not )?in \(", text) for text in texts)


def takes_structure(config: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model's attention takes the structure of shared rows in the place of a mask there.

    Then one long row costs no more than several short ones. `config` is the model's.
    """
    if config._attn_implementation != NAME:
        return False
    if device.type in block_attention.DEVICES:
        return block_attention.takes_blocks(config, dtype)
    return device.type == "cpu"


def structure_masks(
    until: Tensor,
    positions: Tensor,
    windows: Windows,
    *,
    begin: Tensor | None = None,
    dense: torch.dtype | None,
) -> Tensor | dict[str, Tensor]:
    """What a model takes as the attention mask of shared rows, by layer type where it has several.

    Args:
        until, positions: [R, T].
        begin: [R, T] first place that sees each, where that is not always itself; dense alone.
        dense: dtype of dense masks, which are additive; None where it takes the structure.
    """
    assert begin is None or dense is not None
    by_type: dict[str, Tensor] = {}
    for name, window in windows.items():
        line = torch.full_like(until, 0 if window is None else window)
        structure = torch.stack([until, positions, line], dim=1).unsqueeze(1)
        setattr(structure, block_attention.WINDOWED, window is not None)
        by_type[name] = structure if dense is None else _dense(structure, dense, begin)
    return by_type[""] if by_type.keys() == {""} else by_type


def _dense(structure: Tensor, dtype: torch.dtype, begin: Tensor | None = None) -> Tensor:
    """[R, 1, T, T] additive."""
    begins = [None] * len(structure) if begin is None else list(begin)
    rows = zip(structure[:, 0], begins, strict=True)
    visible = torch.stack([_visible(row[0], row[1], row[2], of_row) for row, of_row in rows])
    hidden = torch.zeros(visible.shape, dtype=dtype, device=structure.device)
    return hidden.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)


def _visible(
    until: Tensor, positions: Tensor, windows: Tensor, begin: Tensor | None = None
) -> Tensor:
    """[T, T] bool, True = query (first) sees key; a padded query sees itself.

    Args:
        until, positions, windows: [T]; a window of 0 is none.
        begin: [T] first query that sees each key; default: its own place.
    """
    place = torch.arange(len(until), device=until.device)
    first = place if begin is None else begin
    visible = (place[:, None] >= first[None, :]) & (place[:, None] < until[None, :])
    near = positions[:, None] - positions[None, :] < windows[None, :]
    visible &= near | (windows == 0)[None, :]
    return visible | torch.eye(len(until), dtype=torch.bool, device=until.device)


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
        attention_mask: [R, 1, T, S], boolean (True = visible) or additive, or [R, 1, 3, T], int64,
            the structure of shared rows.

    Returns:
        [R, T, heads, head size], zero at padding, and None for the weights.
    """
    width = query.shape[2]
    if attention_mask is None or key.shape[2] != width:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    is_structure = attention_mask.dtype == torch.int64
    if is_structure and query.device.type in block_attention.DEVICES:
        return _by_blocks(module, query, key, value, attention_mask, **options), None
    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    heads_fit = query.shape[1] % key.shape[1] == 0
    tiled = heads_fit and not any(options.get(name) for name in _UNTILED)
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if is_structure and tiled and takes_attention(query, key, value):
        return tree_attention(query, key, value, attention_mask[0, 0], scale=scale), None
    rows = _plans(attention_mask, len(query), query.dtype if tiled else None)
    if all(part.mask is None for row in rows for part in row):
        tiles = [[tile.moved(part.start) for part in row for tile in part.tiles] for row in rows]
        return tiled_attention(query, key, value, tiles, scale=scale), None
    out = []
    for i, row in enumerate(rows):
        done = []
        for part in row:
            q, k, v = (x[i : i + 1, :, part.start : part.stop] for x in (query, key, value))
            if part.mask is None:
                done.append(tiled_attention(q, k, v, [part.tiles], scale=scale))
            else:
                mask = part.mask[None, None]
                done.append(sdpa_attention_forward(module, q, k, v, mask, **options)[0])
        out.append(pad(torch.cat(done, dim=1), (0, 0, 0, 0, 0, width - row[-1].stop)))
    return torch.cat(out), None


def _by_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    structure: Tensor,
    **options: Any,
) -> Tensor:
    """As `rows_attention`, on accelerators."""
    if any(options.get(name) for name in _UNTILED if name != "softcap"):
        dense = _dense(structure, query.dtype)
        return sdpa_attention_forward(module, query, key, value, dense, **options)[0]
    scale = options.get("scaling")
    return block_attention.block_attention(
        query,
        key,
        value,
        structure,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        softcap=options.get("softcap"),
    )


_UNTILED = ("dropout", "position_bias", "cache", "softcap", "output_attentions")
"""Options that the tiles know nothing of."""


@dataclass(frozen=True)
class _Part:
    """A stretch of a row that sees nothing else of it: a whole plain row, or one prefix tree.

    Attributes:
        start, stop: in the row; parts follow one another without gaps.
        tiles: from the part's own start, where they are the faster way.
        mask: [n, n], boolean or additive, where they are not; else None.
    """

    start: int
    stop: int
    tiles: tuple[Tile, ...] = ()
    mask: Tensor | None = None


def _part(start: int, visible: Tensor, dtype: torch.dtype | None) -> _Part:
    """A part of a mask that only hides.

    Args:
        visible: [n, n] bool, True = visible.
        dtype: of the queries; None where tiles cannot be used.
    """
    # Which way it goes must depend on nothing but the part itself.
    n = len(visible)
    if dtype is not None and (dtype == torch.bfloat16 or n >= WIDE_TOKENS):
        return _Part(start, start + n, tiles=tiles_of(visible))
    return _Part(start, start + n, mask=visible)


def _plans(mask: Tensor, rows: int, dtype: torch.dtype | None) -> list[list[_Part]]:
    """The parts of every row; all layers that share a mask share them."""
    plans: dict[Any, list[list[_Part]]] = getattr(mask, _PLANS, {})
    if (rows, dtype) not in plans:
        if mask.dtype == torch.int64:
            plans[rows, dtype] = [_structured_row(lines, dtype) for lines in mask[:, 0]]
        else:
            plans[rows, dtype] = _masked_rows(mask, rows, dtype)
        setattr(mask, _PLANS, plans)
    return plans[rows, dtype]


_PLANS = "_palate_plans"
_LENGTHS = "_palate_lengths"
"""Of the rows of a mask, where its maker knew them: the first token of a chunk sees itself alone,
as padding does."""


def _structured_row(lines: Tensor, dtype: torch.dtype | None) -> list[_Part]:
    """The trees of a row of the shared layout, [3, T]; padding is in none."""
    until, positions, windows = lines
    parts, start = [], 0
    while start < len(until) and (stop := int(until[start])) > 0:
        here = slice(start, stop)
        visible = _visible(until[here] - start, positions[here], windows[here])
        parts.append(_part(start, visible, dtype))
        start = stop
    return parts


def _masked_rows(mask: Tensor, rows: int, dtype: torch.dtype | None) -> list[list[_Part]]:
    visible = mask if mask.dtype == torch.bool else mask == 0
    hides = mask.dtype == torch.bool or bool(
        (visible | (mask <= torch.finfo(mask.dtype).min)).all()
    )
    hides = hides and mask.shape[1] == 1
    masks, whole = (x.expand(rows, -1, -1, -1) for x in (visible, mask))
    lengths = getattr(mask, _LENGTHS, None)
    if lengths is None:
        # A mask that also weighs does not tell where a row ends.
        lengths = row_lengths(masks) if hides else [mask.shape[-1]] * rows
    hides = hides and bool(visible.any(-1).all())
    plans = []
    for seen, row, n in zip(masks, whole, lengths, strict=True):
        if hides:
            plans.append([_part(0, seen[0, :n, :n], dtype)])
        else:
            plans.append([_Part(0, n, mask=row[0, :n, :n].contiguous())])
    return plans


def rows_mask(**options: Any) -> Tensor | None:
    """transformers' mask function of that name: `sdpa_mask`, but padding sees itself alone."""
    if torch.device(options.get("device", "cpu")).type != "cpu":
        return sdpa_mask(**options)
    # Left out, a mask would be implied, and rows with and without padding differ in the kernel.
    mask = sdpa_mask(**options | {"allow_is_causal_skip": False})
    padding = options.get("attention_mask")
    if mask is None or mask.shape[-1] != mask.shape[-2]:
        return mask
    width = mask.shape[-1]
    if padding is None:
        setattr(mask, _LENGTHS, [width] * len(mask))
        return mask
    real: Tensor = padding[:, :width].to(torch.bool)
    mask = (mask & real[:, None, :, None]) | torch.eye(width, dtype=torch.bool)
    setattr(mask, _LENGTHS, (width - real.flip(1).int().argmax(1)).tolist())
    return mask


def row_lengths(mask: Tensor) -> list[int]:
    """Tokens of each row up to its last real one, told by who sees somebody else.

    Args:
        mask: [R, 1, T, T]. Every real token but a row's first sees an earlier one; padding behind
            the row sees itself alone.
    """
    width = mask.shape[-1]
    visible = mask if mask.dtype == torch.bool else mask == 0
    sees = (visible[:, 0] & ~torch.eye(width, dtype=torch.bool)).any(2)
    places = torch.arange(width).expand(len(mask), width)
    last = torch.where(sees, places, 0).max(1).values
    return [n + 1 for n in last.tolist()]


AttentionInterface.register(NAME, rows_attention)
AttentionMaskInterface.register(NAME, rows_mask)
