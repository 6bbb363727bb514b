"""The programs that make logits; `palate.kernels.triton.head` launches them and says why.

Matrices lie row by row: a pointer, and how far apart rows are. Names in capitals are compiled in:
tiles are TOKENS x WORDS, products go through the width in steps of INNER. WIDEN turns operands into
float32 before they are multiplied, which loses nothing: the interpreter cannot multiply bfloat16.

Indices of rows are 64 bits wide, since a head may have more than 2^31 numbers. What changes from
step to step is not specialised: each new kind of number would compile a program anew.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""A finite shift for rows of nothing but -inf, so that exp gives 0 and not nan."""
NO_EXPONENT = tl.constexpr(-1.0e30)
"""The power of two of a row of nothing but -inf: 2^(this - any) is 0, 2^(this - this) is 1."""
LOG2_E = tl.constexpr(1.4426950408889634)
# The first part has few bits, so that its product with an exponent is exact.
LN_2_HIGH = tl.constexpr(0.693359375)
LN_2_LOW = tl.constexpr(-2.1219444005469057e-4)


@triton.jit
def product(left, right, total, WIDEN: tl.constexpr):
    """total + left @ right, accumulated in float32; float32 operands are not rounded to tf32."""
    if WIDEN:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def logits_tile(
    hidden,
    weight,
    bias,
    rows,
    rows_inside,
    columns,
    columns_inside,
    width,
    hidden_stride,
    weight_stride,
    scale,
    softcap,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EVEN: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    INNER: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """[TOKENS, WORDS] float32 logits; -inf outside the vocabulary."""
    steps = tl.arange(0, INNER)
    hidden_rows = hidden + rows.to(tl.int64)[:, None] * hidden_stride
    weight_rows = weight + columns.to(tl.int64)[:, None] * weight_stride
    z = tl.zeros((TOKENS, WORDS), dtype=tl.float32)
    for start in range(0, width, INNER):
        inner = (start + steps)[None, :]
        if EVEN:
            h = tl.load(hidden_rows + inner, mask=rows_inside[:, None], other=0.0)
            w = tl.load(weight_rows + inner, mask=columns_inside[:, None], other=0.0)
        else:
            inside = inner < width
            h = tl.load(hidden_rows + inner, mask=rows_inside[:, None] & inside, other=0.0)
            w = tl.load(weight_rows + inner, mask=columns_inside[:, None] & inside, other=0.0)
        z = product(h, tl.trans(w), z, WIDEN)
    if BIAS:
        z += tl.load(bias + columns, mask=columns_inside, other=0.0).to(tl.float32)[None, :]
    z *= scale
    if SOFTCAP:
        # tanh; exp may become infinite, which gives 1.
        z = softcap * (1.0 - 2.0 / (tl.exp(z * (2.0 / softcap)) + 1.0))
    return tl.where(columns_inside[None, :], z, float("-inf"))


@triton.jit
def shifted(maximum, z):
    """The raised maximum, what earlier sums fade by, and exp(z - maximum)."""
    raised = tl.maximum(maximum, tl.max(z, 1))
    shift = tl.maximum(raised, LOWEST)
    return raised, tl.exp(maximum - shift), tl.exp(z - shift[:, None])


@triton.jit
def mean_part(weights, values):
    """[TOKENS] sums of weights * values; a weight of 0 counts nothing, whatever its value is."""
    return tl.sum(weights * tl.where(weights == 0.0, 0.0, values), 1)


@triton.jit(do_not_specialize=["n", "tiles"], do_not_specialize_on_alignment=["targets"])
def statistics(
    hidden,
    weight,
    bias,
    ref_hidden,
    ref_weight,
    ref_bias,
    targets,
    sums,
    target_logit,
    ref_target_logit,
    n,
    words,
    width,
    ref_width,
    hidden_stride,
    weight_stride,
    ref_hidden_stride,
    ref_weight_stride,
    tiles,
    scale,
    softcap,
    ref_scale,
    ref_softcap,
    REF: tl.constexpr,
    KL: tl.constexpr,
    REVERSE_KL: tl.constexpr,
    ENTROPY: tl.constexpr,
    BIAS: tl.constexpr,
    REF_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    REF_SOFTCAP: tl.constexpr,
    EVEN: tl.constexpr,
    REF_EVEN: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    INNER: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One block of tokens over one part of the vocabulary: `tiles` tiles of it.

    sums: [parts, 7, n] float32: of the policy the maximum, the sum of exponentials e^(z - maximum),
    and their moments of z - r and of z; of the reference the maximum, the sum, the moment of z - r.
    """
    part = tl.program_id(1)
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    rows_inside = rows < n
    target = tl.load(targets + rows, mask=rows_inside, other=-1)
    z_target = tl.zeros((TOKENS,), dtype=tl.float32)
    r_target = tl.zeros((TOKENS,), dtype=tl.float32)
    maximum = tl.full((TOKENS,), float("-inf"), dtype=tl.float32)
    ref_maximum = tl.full((TOKENS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((TOKENS,), dtype=tl.float32)
    gap = tl.zeros((TOKENS,), dtype=tl.float32)
    score = tl.zeros((TOKENS,), dtype=tl.float32)
    ref_total = tl.zeros((TOKENS,), dtype=tl.float32)
    ref_gap = tl.zeros((TOKENS,), dtype=tl.float32)
    first = part * tiles * WORDS
    last = tl.minimum(first + tiles * WORDS, words)
    for start in range(first, last, WORDS):
        columns = start + tl.arange(0, WORDS)
        columns_inside = columns < words
        hit = columns[None, :] == target[:, None]
        z = logits_tile(
            hidden, weight, bias, rows, rows_inside, columns, columns_inside,
            width, hidden_stride, weight_stride, scale, softcap,
            BIAS, SOFTCAP, EVEN, TOKENS, WORDS, INNER, WIDEN,
        )  # fmt: skip
        z_target += tl.sum(tl.where(hit, z, 0.0), 1)
        maximum, fade, q = shifted(maximum, z)
        total = total * fade + tl.sum(q, 1)
        if ENTROPY:
            score = score * fade + mean_part(q, z)
        if REF:
            r = logits_tile(
                ref_hidden, ref_weight, ref_bias, rows, rows_inside, columns, columns_inside,
                ref_width, ref_hidden_stride, ref_weight_stride, ref_scale, ref_softcap,
                REF_BIAS, REF_SOFTCAP, REF_EVEN, TOKENS, WORDS, INNER, WIDEN,
            )  # fmt: skip
            r_target += tl.sum(tl.where(hit, r, 0.0), 1)
            if REVERSE_KL:
                gap = gap * fade + mean_part(q, z - r)
            ref_maximum, ref_fade, p = shifted(ref_maximum, r)
            ref_total = ref_total * ref_fade + tl.sum(p, 1)
            if KL:
                ref_gap = ref_gap * ref_fade + mean_part(p, z - r)
    # No two parts hold one target.
    holds = (target >= first) & (target < last)
    tl.store(target_logit + rows, z_target, mask=holds)
    at = sums + part.to(tl.int64) * 7 * n + rows
    tl.store(at, maximum, mask=rows_inside)
    tl.store(at + n, total, mask=rows_inside)
    if REVERSE_KL:
        tl.store(at + 2 * n, gap, mask=rows_inside)
    if ENTROPY:
        tl.store(at + 3 * n, score, mask=rows_inside)
    if REF:
        tl.store(ref_target_logit + rows, r_target, mask=holds)
        tl.store(at + 4 * n, ref_maximum, mask=rows_inside)
        tl.store(at + 5 * n, ref_total, mask=rows_inside)
        if KL:
            tl.store(at + 6 * n, ref_gap, mask=rows_inside)


@triton.jit(
    do_not_specialize=["first_word"],
    do_not_specialize_on_alignment=["targets", "up_logp", "up_kl", "up_reverse_kl", "up_entropy"],
)
def slopes(
    hidden,
    weight,
    bias,
    ref_hidden,
    ref_weight,
    ref_bias,
    targets,
    order,
    counts,
    up_logp,
    up_kl,
    up_reverse_kl,
    up_entropy,
    lse,
    ref_lse,
    mean_gap,
    mean_logit,
    buffer,
    bias_sums,
    first_word,
    words,
    width,
    ref_width,
    buffer_stride,
    hidden_stride,
    weight_stride,
    ref_hidden_stride,
    ref_weight_stride,
    scale,
    softcap,
    ref_scale,
    ref_softcap,
    LOGP: tl.constexpr,
    REF: tl.constexpr,
    KL: tl.constexpr,
    REVERSE_KL: tl.constexpr,
    ENTROPY: tl.constexpr,
    BIAS: tl.constexpr,
    REF_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    REF_SOFTCAP: tl.constexpr,
    BIAS_SUMS: tl.constexpr,
    EVEN: tl.constexpr,
    REF_EVEN: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    INNER: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile of the gradient of raw products, into `buffer`, whose rows are those of `order`.

    counts: [2] rows with a gradient that needs the reference, which come first, and with any.
    bias_sums: [blocks of tokens, buffer_stride] float32 sums of the tile's columns.
    """
    block = tl.program_id(0)
    active = tl.load(counts + 1)
    if block * TOKENS >= active:
        return
    positions = block * TOKENS + tl.arange(0, TOKENS)
    rows_inside = positions < active
    rows = tl.load(order + positions, mask=rows_inside, other=0)
    places = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    columns = first_word + places
    columns_inside = columns < words
    target = tl.load(targets + rows, mask=rows_inside, other=-1)
    z = logits_tile(
        hidden, weight, bias, rows, rows_inside, columns, columns_inside,
        width, hidden_stride, weight_stride, scale, softcap,
        BIAS, SOFTCAP, EVEN, TOKENS, WORDS, INNER, WIDEN,
    )  # fmt: skip
    q = tl.exp(z - tl.load(lse + rows, mask=rows_inside, other=0.0)[:, None])
    g = tl.zeros((TOKENS, WORDS), dtype=tl.float32)
    if LOGP:
        c_logp = tl.load(up_logp + rows, mask=rows_inside, other=0.0)[:, None]
        hit = columns[None, :] == target[:, None]
        g += tl.where(hit, c_logp, 0.0) - q * c_logp
    if ENTROPY:
        c_entropy = tl.load(up_entropy + rows, mask=rows_inside, other=0.0)
        mean = tl.load(mean_logit + rows, mask=rows_inside, other=0.0)
        g -= q * c_entropy[:, None] * tl.where(q == 0.0, 0.0, z - mean[:, None])
    # Compiled in or not; what follows is decided on the device.
    if REF:  # noqa: SIM102
        if block * TOKENS < tl.load(counts):
            r = logits_tile(
                ref_hidden, ref_weight, ref_bias, rows, rows_inside, columns, columns_inside,
                ref_width, ref_hidden_stride, ref_weight_stride, ref_scale, ref_softcap,
                REF_BIAS, REF_SOFTCAP, REF_EVEN, TOKENS, WORDS, INNER, WIDEN,
            )  # fmt: skip
            if KL:
                c_kl = tl.load(up_kl + rows, mask=rows_inside, other=0.0)[:, None]
                p = tl.exp(r - tl.load(ref_lse + rows, mask=rows_inside, other=0.0)[:, None])
                g += tl.where(c_kl == 0.0, 0.0, c_kl * (q - p))
            if REVERSE_KL:
                c_reverse = tl.load(up_reverse_kl + rows, mask=rows_inside, other=0.0)[:, None]
                mean = tl.load(mean_gap + rows, mask=rows_inside, other=0.0)
                none = (q == 0.0) | (c_reverse == 0.0)
                g += q * c_reverse * tl.where(none, 0.0, z - r - mean[:, None])
    if SOFTCAP:
        # d softcap(x)/dx = 1 - (softcap(x) / c)^2
        share = z / softcap
        g *= 1.0 - share * share
    g = tl.where(rows_inside[:, None] & columns_inside[None, :], g * scale, 0.0)
    at = buffer + positions.to(tl.int64)[:, None] * buffer_stride + places[None, :]
    tl.store(at, g.to(buffer.dtype.element_ty), mask=rows_inside[:, None])
    if BIAS_SUMS:
        tl.store(bias_sums + block.to(tl.int64) * buffer_stride + places, tl.sum(g, 0))


@triton.jit(
    do_not_specialize=["first_word", "n", "tiles"], do_not_specialize_on_alignment=["targets"]
)
def probabilities(
    hidden,
    weight,
    bias,
    targets,
    buffer,
    exponents,
    sums,
    target_logit,
    first_word,
    n,
    words,
    width,
    buffer_stride,
    part_stride,
    tiles,
    hidden_stride,
    weight_stride,
    scale,
    BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    INNER: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile of e^z 2^-k into `buffer`, with k of each row such that it is between 0 and 1.

    buffer: [PARTS, n, buffer_stride]: rounded, and what rounding left.
    exponents, sums: [n, tiles] float32 k, and the sum before rounding.
    """
    tile = tl.program_id(1)
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    rows_inside = rows < n
    places = tile * WORDS + tl.arange(0, WORDS)
    columns = first_word + places
    z = logits_tile(
        hidden, weight, bias, rows, rows_inside, columns, columns < words,
        width, hidden_stride, weight_stride, scale, 0.0,
        BIAS, False, EVEN, TOKENS, WORDS, INNER, WIDEN,
    )  # fmt: skip
    target = tl.load(targets + rows, mask=rows_inside, other=-1)
    hit = columns[None, :] == target[:, None]
    holds = (target >= first_word + tile * WORDS) & (target < first_word + (tile + 1) * WORDS)
    tl.store(target_logit + rows, tl.sum(tl.where(hit, z, 0.0), 1), mask=holds)
    top = tl.max(z, 1)
    exponent = tl.where(top > NO_EXPONENT, tl.ceil(top * LOG2_E), NO_EXPONENT)
    p = tl.exp(z - exponent[:, None] * LN_2_HIGH - exponent[:, None] * LN_2_LOW)
    at = rows.to(tl.int64) * tiles + tile
    tl.store(exponents + at, exponent, mask=rows_inside)
    tl.store(sums + at, tl.sum(p, 1), mask=rows_inside)
    at = buffer + rows.to(tl.int64)[:, None] * buffer_stride + places[None, :]
    high = p.to(buffer.dtype.element_ty)
    tl.store(at, high, mask=rows_inside[:, None])
    if PARTS == 2:
        low = (p - high.to(tl.float32)).to(buffer.dtype.element_ty)
        at += part_stride
        tl.store(at, low, mask=rows_inside[:, None])
