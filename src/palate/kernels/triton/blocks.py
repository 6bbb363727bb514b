"""How large the tiles of the programs are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from palate.kernels.tiles import low_precision

DEEP_SHARED_MEMORY = 160 * 1024
"""Bytes of a processor from which three steps of operands fit; two do everywhere."""
PROGRAMS_A_PROCESSOR = 4
"""So many programs at least are wanted for each, so that the last round leaves few idle."""


@dataclass(frozen=True)
class Blocks:
    """Tiles of logits are tokens x words; results [N, d] and [V, d] are made `columns` wide.

    Attributes:
        inner: step of the sums inside a product; divides `words`.
        weight_rows: of the head's gradient at a time; a multiple of `words`.
    """

    tokens: int
    words: int
    inner: int
    columns: int
    weight_rows: int
    warps: int
    stages: int


# A tile of float32 logits takes a quarter of a processor's registers. Widths are walked in steps,
# so no size depends on them. Not tuned at run time: tiles decide in which order sums are made, and
# so the last bits of results.
_HALF = Blocks(tokens=128, words=128, inner=64, columns=128, weight_rows=128, warps=8, stages=3)
_FULL = Blocks(tokens=64, words=64, inner=32, columns=64, weight_rows=64, warps=4, stages=2)


def blocks(
    tokens: int, device: torch.device, dtype: torch.dtype, ref_dtype: torch.dtype | None = None
) -> Blocks:
    """For tokens of these types on this device.

    Args:
        ref_dtype: of the reference's, where a program makes its logits too.
    """
    half = low_precision(dtype) and (ref_dtype is None or low_precision(ref_dtype))
    size = _HALF if half else _FULL
    if half and tokens <= 64:
        size = replace(size, tokens=64)
    if ref_dtype is not None:
        # Two tiles of logits, in the registers of one.
        size = replace(size, words=size.words // 2)
    if device.type == "cuda" and half:
        about = torch.cuda.get_device_properties(device)
        if about.shared_memory_per_multiprocessor < DEEP_SHARED_MEMORY:
            size = replace(size, stages=2)
    return size


def tiles_a_program(tiles: int, token_blocks: int, device: torch.device) -> int:
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
