"""How large the tiles of the programs are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from palate.kernels.tiles import low_precision

DEEP_SHARED_MEMORY = 160 * 1024
"""Bytes a block may have from which three steps of operands fit; two do everywhere."""
PROGRAMS_A_PROCESSOR = 4
"""So many programs at least are wanted for each, so that the last round leaves few idle."""


@dataclass(frozen=True)
class Blocks:
    """Tiles of logits are tokens x words; results [N, d] and [V, d] are made `columns` wide.

    Attributes:
        inner: step of the sums inside a product; divides `words`.
    """

    tokens: int
    words: int
    inner: int
    columns: int
    warps: int
    stages: int


# Two float32 tiles of logits, the policy's and the reference's, fill half of a processor's
# registers. Widths are walked in steps, so no size depends on them. Not tuned at run time: tiles
# decide in which order sums are made, and so the last bits of results.
_HALF = Blocks(tokens=128, words=128, inner=64, columns=128, warps=8, stages=3)
_FULL = Blocks(tokens=64, words=64, inner=32, columns=64, warps=4, stages=2)


def blocks(tokens: int, device: torch.device, *dtypes: torch.dtype) -> Blocks:
    """For tokens of these types on this device."""
    if not all(low_precision(dtype) for dtype in dtypes):
        return _FULL
    size = _HALF if tokens > 64 else replace(_HALF, tokens=64)
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        if getattr(about, "shared_memory_per_block_optin", 0) < DEEP_SHARED_MEMORY:
            return replace(size, stages=2)
    return size


def parts(tiles: int, token_blocks: int, device: torch.device) -> int:
    """Tiles of the vocabulary that one program goes through, so that few tokens fill a device."""
    processors = 1
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    programs = min(tiles, max(1, -(-PROGRAMS_A_PROCESSOR * processors // token_blocks)))
    return -(-tiles // programs)


def buffered_words(*, tokens: int, words: int, tile: int, bytes_a_word: int, memory_mb: int) -> int:
    """Columns of a buffer of `tokens` rows within `memory_mb`: whole tiles, one at least."""
    wanted = -(-words // tile)
    fit = memory_mb * 2**20 // (tokens * bytes_a_word * tile)
    return tile * min(wanted, max(1, fit))
