"""Launches the programs on tensors; `general` and `frozen` say what they compute.

**Forward** (`forward`): a program streams a block of tokens over a part of the vocabulary and keeps
maxima, sums and moments a token; a second, small step joins the parts. Parts are so many that few
tokens still fill the device.

**Backward** (`backward`): the gradient of a tile of raw products is made once, from recomputed
logits, and written to a buffer of [N, some thousand words] in the head's type; two products in
float32 read it, one for the hidden states, one for the head. So logits are recomputed once, at any
width. Without a buffer each block of the width would have to recompute them, or many programs would
add to one result, in an order that changes from run to run. Here each number of a result is made
by one program: a tile of the head's gradient by one that goes through all tokens and rounds once.
Rows are sorted on the device: those that need the reference, those that do not, those without any
gradient. How many there are is read by the programs, never by the host; blocks without any end.

**Expectation** (`expected`): as attention with hidden states as queries and the head as keys and
values, but a head is 600 to 8,000 wide, and no block of such results fits registers. So here, too,
tiles of exponentials go through the buffer, each row divided by a power of two that is near its
maximum in the tile. The second product scales them to the row's maximum so far, which is exact for
powers of two. So one pass over the vocabulary is enough, and logits are made once.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from palate.kernels.cpu.head import Forward
from palate.kernels.stats import Head
from palate.kernels.tiles import low_precision, spans
from palate.kernels.triton.blocks import Blocks, blocks, buffered_words, tiles_a_program

LOWEST = torch.finfo(torch.float32).min
NO_EXPONENT = -1.0e30
"""As `programs.NO_EXPONENT`."""


def interpreted() -> bool:
    """Whether Triton runs programs in its interpreter, which takes tensors on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def forward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    ref_hidden: Tensor | None = None,
    ref_head: Head | None = None,
    kl: bool = False,
    reverse_kl: bool = False,
    entropy: bool = False,
) -> Forward:
    """As `general.general_stats`, with what its backward pass needs."""
    from palate.kernels.triton import programs

    hidden, targets = hidden.detach(), targets.contiguous()
    n, device = len(hidden), hidden.device
    words = len(head.weight)
    _check(targets, words)
    size = _blocks(hidden, ref_hidden)
    token_blocks = -(-n // size.tokens)
    word_tiles = -(-words // size.words)
    tiles = tiles_a_program(word_tiles, token_blocks, device)
    sums = torch.empty(-(-word_tiles // tiles), 7, n, dtype=torch.float32, device=device)
    z_target, r_target = (torch.empty(n, dtype=torch.float32, device=device) for _ in range(2))
    with torch.cuda.device_of(hidden):
        programs.statistics[(token_blocks, len(sums))](
            targets=targets,
            sums=sums,
            target_logit=z_target,
            ref_target_logit=r_target,
            n=n,
            tiles=tiles,
            KL=kl,
            REVERSE_KL=reverse_kl,
            ENTROPY=entropy,
            **_sides(hidden, head, ref_hidden, ref_head, size),
            **_tile(size),
        )
    lse, total, fade = _joined(sums[:, 0], sums[:, 1])
    result: dict[str, Any] = {"lse": lse, "target_logit": z_target, "logp": z_target - lse}
    if entropy:
        mean = (sums[:, 3] * fade).sum(0) / total
        result |= {"mean_logit": mean, "entropy": lse - mean}
    if ref_hidden is not None:
        ref_lse, ref_total, ref_fade = _joined(sums[:, 4], sums[:, 5])
        result |= {"ref_lse": ref_lse, "ref_logp": r_target - ref_lse}
        if reverse_kl:
            mean = (sums[:, 2] * fade).sum(0) / total
            result |= {"mean_gap": mean, "reverse_kl": mean - (lse - ref_lse)}
        if kl:
            mean = (sums[:, 6] * ref_fade).sum(0) / ref_total
            result["kl"] = (lse - ref_lse) - mean
    return Forward(**result)


def backward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    upstream: dict[str, Tensor | None],
    ref_hidden: Tensor | None,
    ref_head: Head | None,
    need: tuple[bool, bool, bool],
    memory_mb: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states (float32), weight (its dtype) and bias (float32).

    Args:
        hidden: [n, d] of all tokens.
        upstream: [n] gradients of logp, kl, reverse_kl and entropy, and the forward pass's lse,
            ref_lse, mean_gap and mean_logit, float32; None where there is none.
        need: which gradients are wanted.
    """
    from palate.kernels.triton import products, programs

    hidden, targets, weight = hidden.detach(), targets.contiguous(), head.weight.detach()
    up = {k: None if v is None else v.float().contiguous() for k, v in upstream.items()}
    n, device = len(hidden), hidden.device
    words, width = weight.shape
    asks = {k: up.get(k) is not None for k in ("kl", "reverse_kl", "entropy")}
    with_ref = asks["kl"] or asks["reverse_kl"]
    order, counts = _order(up, n, device)
    size = _blocks(hidden, ref_hidden if with_ref else None)
    token_blocks = -(-n // size.tokens)
    room = buffered_words(
        tokens=n,
        words=words,
        tile=size.weight_rows,
        bytes_a_word=weight.element_size(),
        memory_mb=memory_mb,
    )
    buffer = torch.empty(n, room, dtype=weight.dtype, device=device)
    bias_sums = d_hidden = d_weight = d_bias = None
    if need[0]:
        d_hidden = torch.zeros(n, width, dtype=torch.float32, device=device)
    if need[1]:
        d_weight = torch.empty(words, width, dtype=weight.dtype, device=device)
    if need[2]:
        d_bias = torch.empty(words, dtype=torch.float32, device=device)
        # Blocks without a gradient write nothing.
        bias_sums = torch.zeros(token_blocks, room, dtype=torch.float32, device=device)
    sides = _sides(hidden, head, ref_hidden if with_ref else None, ref_head, size)
    rows: dict[str, Any] = {
        "order": order,
        "counts": counts,
        "buffer": buffer,
        "buffer_stride": room,
    }
    column_blocks = -(-width // size.columns)
    with torch.cuda.device_of(hidden):
        for start, stop in spans(words, room):
            tiles = -(-(stop - start) // size.words)
            programs.slopes[(token_blocks, tiles)](
                targets=targets,
                up_logp=up.get("logp"),
                up_kl=up.get("kl"),
                up_reverse_kl=up.get("reverse_kl"),
                up_entropy=up.get("entropy"),
                lse=up["lse"],
                ref_lse=up.get("ref_lse"),
                mean_gap=up.get("mean_gap"),
                mean_logit=up.get("mean_logit"),
                bias_sums=bias_sums,
                first_word=start,
                LOGP=up.get("logp") is not None,
                KL=asks["kl"],
                REVERSE_KL=asks["reverse_kl"],
                ENTROPY=asks["entropy"],
                BIAS_SUMS=bias_sums is not None,
                **rows,
                **sides,
                **_tile(size),
            )
            if d_hidden is not None:
                _times_weight(size, weight, d_hidden, start, stop, **rows)
            if d_weight is not None:
                rows_of_weight = -(-(stop - start) // size.weight_rows)
                products.times_hidden[(column_blocks, rows_of_weight)](
                    hidden=hidden,
                    result=d_weight,
                    first_word=start,
                    words=words,
                    width=width,
                    hidden_stride=hidden.stride(0),
                    result_stride=d_weight.stride(0),
                    COLUMNS=size.columns,
                    WORDS=size.weight_rows,
                    INNER=size.inner,
                    **rows,
                    **_launch(size),
                )
            if d_bias is not None and bias_sums is not None:
                torch.sum(bias_sums[:, : stop - start], 0, out=d_bias[start:stop])
    return d_hidden, d_weight, d_bias


def expected(
    hidden: Tensor, head: Head, targets: Tensor, *, exact: bool, memory_mb: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(logp [n], logsumexp [n], expected row of the weight [n, d]), float32.

    Args:
        exact: probabilities meet a weight of 16 bits in two parts instead of one.
    """
    from palate.kernels.triton import programs

    hidden, targets, weight = hidden.detach(), targets.contiguous(), head.weight.detach()
    n, device = len(hidden), hidden.device
    words, width = weight.shape
    _check(targets, words)
    size = _blocks(hidden, None)
    rounded = 2 if exact and low_precision(weight.dtype) else 1
    room = buffered_words(
        tokens=n,
        words=words,
        tile=size.words,
        bytes_a_word=rounded * weight.element_size(),
        memory_mb=memory_mb,
    )
    buffer = torch.empty(rounded, n, room, dtype=weight.dtype, device=device)
    z_target = torch.empty(n, dtype=torch.float32, device=device)
    mean = torch.zeros(n, width, dtype=torch.float32, device=device)
    exponent = torch.full((n,), NO_EXPONENT, dtype=torch.float32, device=device)
    total = torch.zeros(n, dtype=torch.float32, device=device)
    for start, stop in spans(words, room):
        tiles = -(-(stop - start) // size.words)
        exponents, sums = (
            torch.empty(n, tiles, dtype=torch.float32, device=device) for _ in range(2)
        )
        strides: dict[str, Any] = {"buffer_stride": room, "part_stride": n * room}
        with torch.cuda.device_of(hidden):
            programs.probabilities[(-(-n // size.tokens), tiles)](
                hidden=hidden,
                weight=weight,
                bias=None if head.bias is None else head.bias.detach().contiguous(),
                targets=targets,
                buffer=buffer,
                exponents=exponents,
                sums=sums,
                target_logit=z_target,
                first_word=start,
                n=n,
                words=words,
                width=width,
                tiles=tiles,
                hidden_stride=hidden.stride(0),
                weight_stride=weight.stride(0),
                scale=float(head.scale),
                BIAS=head.bias is not None,
                EVEN=width % size.inner == 0,
                PARTS=rounded,
                **strides,
                **_tile(size),
            )
            raised = torch.maximum(exponent, exponents.amax(1))
            total *= torch.exp2(exponent - raised)
            total += (sums * torch.exp2(exponents - raised.unsqueeze(1))).sum(1)
            _times_weight(
                size, weight, mean, start, stop,
                buffer=buffer, exponents=exponents, before=exponent, after=raised,
                tiles=tiles, rounded=rounded, **strides,
            )  # fmt: skip
        exponent = raised
    lse = (exponent.double() * math.log(2) + total.double().log()).float()
    return z_target - lse, lse, mean.div_(total.unsqueeze(1))


def _times_weight(
    size: Blocks,
    weight: Tensor,
    result: Tensor,
    start: int,
    stop: int,
    *,
    order: Tensor | None = None,
    rounded: int = 1,
    **given: Any,
) -> None:
    """Adds the buffer's product with the rows start..stop of the weight to `result`."""
    from palate.kernels.triton import products

    n, width = result.shape
    absent = dict.fromkeys(("counts", "exponents", "before", "after"))
    products.times_weight[(-(-width // size.columns), -(-n // size.tokens))](
        weight=weight,
        result=result,
        order=order,
        first_word=start,
        last_word=stop,
        n=n,
        width=width,
        weight_stride=weight.stride(0),
        FIRST=start == 0,
        ORDER=order is not None,
        PARTS=rounded,
        COLUMNS=size.columns,
        **{**absent, "part_stride": 0, "tiles": 0, **given},
        **_tile(size),
    )


def _blocks(hidden: Tensor, ref_hidden: Tensor | None) -> Blocks:
    ref_dtype = None if ref_hidden is None else ref_hidden.dtype
    return blocks(len(hidden), hidden.device, hidden.dtype, ref_dtype)


def _launch(size: Blocks) -> dict[str, Any]:
    return {"WIDEN": interpreted(), "num_warps": size.warps, "num_stages": size.stages}


def _tile(size: Blocks) -> dict[str, Any]:
    return {"TOKENS": size.tokens, "WORDS": size.words, "INNER": size.inner, **_launch(size)}


def _sides(
    hidden: Tensor, head: Head, ref_hidden: Tensor | None, ref_head: Head | None, size: Blocks
) -> dict[str, Any]:
    """Arguments of a program that makes logits of the policy and of the reference."""
    arguments: dict[str, Any] = {"words": len(head.weight), "REF": ref_hidden is not None}
    for name, states, side in (("", hidden, head), ("ref_", ref_hidden, ref_head)):
        weight = bias = scale = softcap = None
        if states is not None:
            assert side is not None
            weight, bias = side.weight.detach(), side.bias
            bias = None if bias is None else bias.detach().contiguous()
            scale, softcap = side.scale, side.softcap
        arguments |= {
            f"{name}hidden": states,
            f"{name}weight": weight,
            f"{name}bias": bias,
            f"{name}width": 0 if states is None else states.shape[1],
            f"{name}hidden_stride": 0 if states is None else states.stride(0),
            f"{name}weight_stride": 0 if weight is None else weight.stride(0),
            f"{name}scale": 1.0 if scale is None else float(scale),
            f"{name}softcap": float(softcap or 0.0),
            f"{name.upper()}BIAS": bias is not None,
            f"{name.upper()}SOFTCAP": softcap is not None,
            f"{name.upper()}EVEN": states is not None and states.shape[1] % size.inner == 0,
        }
    return arguments


def _joined(maxima: Tensor, totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logsumexp [n], sum over parts [n], what each fades by [parts, n]) of [parts, n]."""
    maximum = maxima.amax(0)
    fade = torch.exp(maxima - maximum.clamp(min=LOWEST))
    total = (totals * fade).sum(0)
    return maximum + total.log(), total, fade


def _order(up: dict[str, Tensor | None], n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows that need the reference, rows that do not, rows without gradient; how many, summed up.

    Nothing is read by the host.
    """

    def upstream(*names: str) -> Tensor:
        given = [up.get(name) for name in names]
        some = torch.zeros(n, dtype=torch.bool, device=device)
        for tensor in given:
            if tensor is not None:
                some = some | (tensor != 0)
        return some

    with_ref = upstream("kl", "reverse_kl")
    active = with_ref | upstream("logp", "entropy")
    rank = 2 - active.to(torch.int8) - with_ref.to(torch.int8)
    counts = torch.stack([with_ref.sum(), active.sum()]).to(torch.int32)
    return rank.argsort(stable=True), counts


def _check(targets: Tensor, words: int) -> None:
    """An error on the device, without waiting for it, where a target is outside the vocabulary."""
    torch._assert_async(((targets >= 0) & (targets < words)).all())
