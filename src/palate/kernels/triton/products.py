"""The programs that multiply a buffer of `programs`, by the head or by the hidden states."""

from __future__ import annotations

import triton
import triton.language as tl

from palate.kernels.triton.programs import product


@triton.jit(do_not_specialize=["first_word", "last_word", "n", "tiles"])
def times_weight(
    buffer,
    weight,
    result,
    order,
    counts,
    exponents,
    before,
    after,
    first_word,
    last_word,
    n,
    width,
    buffer_stride,
    part_stride,
    weight_stride,
    tiles,
    FIRST: tl.constexpr,
    ORDER: tl.constexpr,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORDS: tl.constexpr,
    INNER: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """result [n, width] float32 += buffer @ weight[first_word:last_word], for one tile of `result`.

    With ORDER the buffer's rows are those of `order`, the first counts[1] of them. Without it they
    are multiples by 2^-k, k one of `exponents` [n, tiles] for WORDS columns, as is `result` with
    `before` [n], and with `after` [n] from then on: the factors are powers of two, so nothing is
    rounded twice.
    """
    start = tl.program_id(1) * TOKENS
    positions = start + tl.arange(0, TOKENS)
    if ORDER:
        active = tl.load(counts + 1)
        if start >= active:
            return
        rows_inside = positions < active
        rows = tl.load(order + positions, mask=rows_inside, other=0)
    else:
        rows_inside = positions < n
        rows = positions
    wide = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    wide_inside = wide[None, :] < width
    at = result + rows.to(tl.int64)[:, None] * width + wide[None, :]
    inside = rows_inside[:, None] & wide_inside
    if FIRST:
        total = tl.zeros((TOKENS, COLUMNS), dtype=tl.float32)
    else:
        total = tl.load(at, mask=inside, other=0.0)
    if not ORDER:
        exponent = tl.load(after + rows, mask=rows_inside, other=0.0)
        if not FIRST:
            fade = tl.exp2(tl.load(before + rows, mask=rows_inside, other=0.0) - exponent)
            total *= fade[:, None]
    from_rows = buffer + positions.to(tl.int64)[:, None] * buffer_stride
    for place in range(0, last_word - first_word, INNER):
        places = place + tl.arange(0, INNER)
        words = first_word + places
        w = tl.load(
            weight + words.to(tl.int64)[:, None] * weight_stride + wide[None, :],
            mask=(words < last_word)[:, None] & wide_inside,
            other=0.0,
        )
        if not ORDER:
            tile = rows.to(tl.int64) * tiles + place // WORDS
            factor = tl.exp2(tl.load(exponents + tile, mask=rows_inside, other=0.0) - exponent)
        for part in tl.static_range(PARTS):
            values = tl.load(
                from_rows + part * part_stride + places[None, :],
                mask=rows_inside[:, None],
                other=0.0,
            )
            if not ORDER:
                values = (values.to(tl.float32) * factor[:, None]).to(values.dtype)
            total = product(values, w, total, WIDEN)
    tl.store(at, total, mask=inside)


@triton.jit(do_not_specialize=["first_word"])
def times_hidden(
    buffer,
    hidden,
    result,
    order,
    counts,
    first_word,
    words,
    width,
    buffer_stride,
    hidden_stride,
    result_stride,
    COLUMNS: tl.constexpr,
    WORDS: tl.constexpr,
    INNER: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """result[first_word + tile] = buffer[:, tile].T @ hidden, for one tile; rounded once."""
    active = tl.load(counts + 1)
    places = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    wide = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    wide_inside = wide[None, :] < width
    total = tl.zeros((WORDS, COLUMNS), dtype=tl.float32)
    for start in range(0, active, INNER):
        positions = start + tl.arange(0, INNER)
        inside = (positions < active)[:, None]
        rows = tl.load(order + positions, mask=positions < active, other=0)
        g = tl.load(
            buffer + positions.to(tl.int64)[:, None] * buffer_stride + places[None, :],
            mask=inside,
            other=0.0,
        )
        h = tl.load(
            hidden + rows.to(tl.int64)[:, None] * hidden_stride + wide[None, :],
            mask=inside & wide_inside,
            other=0.0,
        )
        total = product(tl.trans(g), h, total, WIDEN)
    columns = first_word + places
    tl.store(
        result + columns.to(tl.int64)[:, None] * result_stride + wide[None, :],
        total.to(result.dtype.element_ty),
        mask=(columns < words)[:, None] & wide_inside,
    )
