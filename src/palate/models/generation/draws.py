"""The draw of a token: the inverse of the cumulative distribution at one uniform number.

That number depends on the seed, the prompt's tokens and images, which sample of the prompt it is,
and the position, and on nothing else: not on torch's global generator, not on the batch. Two things
follow. The same call gives the same samples; in another batch a sample changes only where rounding
moves a boundary of the distribution past its number (never seen in float32; `differing` counts
them). And two checkpoints are sampled with common random numbers, which narrows the interval of
their difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palate.data.items import Tokens
from palate.models.generation.engine import Completion

_BLOCK = 512
"""Tokens of one block of the two-level search through the vocabulary."""


def sample_key(seed: int, prompt: Tokens, sample: int) -> bytes:
    """32 bytes that a sample's draws follow from."""
    key = hashlib.sha256(np.asarray([seed, sample, *prompt.ids], dtype="<i8").tobytes())
    for image in prompt.images:
        key.update(image.digest.encode())
    return key.digest()


def uniforms(seed: int, prompt: Tokens, sample: int, n: int) -> NDArray[np.float64]:
    """[n] numbers in [0, 1) of one sample, one a position; more of them begin with these."""
    number = int.from_bytes(sample_key(seed, prompt, sample)[:16], "little")
    return np.random.Generator(np.random.PCG64(number)).random(n)


def draw(
    logits: Tensor, uniform: Tensor, *, top_p: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative distribution passes `uniform`, in order of token id.

    Args:
        logits: [R, V] float32, -inf for what is never drawn. uniform: [R] float64 in [0, 1).
        top_p: keep the smallest set of tokens whose probability reaches this.
        top_k: keep so many of the likeliest tokens, before `top_p`; 0 keeps all.

    Returns:
        [R] int64 token ids, never one of probability 0; and [R] float32, the log-probability of
        each among the tokens that are kept.
    """
    rows, vocabulary = logits.shape
    logits = logits - logits.amax(-1, keepdim=True)
    weight = logits.exp()
    if 0 < top_k < vocabulary:
        kept, place = weight.topk(top_k, dim=-1)
        weight = torch.zeros_like(weight).scatter_(1, place, kept)
    if top_p < 1.0:
        weight = _nucleus(weight, top_p)
    blocks = -(-vocabulary // _BLOCK)
    weight = torch.nn.functional.pad(weight, (0, blocks * _BLOCK - vocabulary))
    weight = weight.view(rows, blocks, _BLOCK)
    # Two levels in float64: a cumulative sum over the whole vocabulary costs several times this.
    outer = weight.sum(-1, dtype=torch.float64).cumsum(-1)
    mark = uniform[:, None] * outer[:, -1:]
    block = _search(outer, mark)
    before = torch.where(block > 0, outer.gather(1, (block - 1).clamp_min(0)), 0.0)
    inner = weight[torch.arange(rows, device=logits.device), block[:, 0]].double()
    token = block * _BLOCK + _search(inner.cumsum(-1), mark - before)
    logp = logits.gather(1, token) - outer[:, -1:].log()
    return token[:, 0], logp[:, 0].float()


def differing(a: Sequence[Completion], b: Sequence[Completion]) -> float:
    """The rate of differing tokens: how often samples that agreed so far part at the next token.

    After its first other token a sample goes its own way, so only tokens up to there count. 0 for
    two runs of one engine in float32; in bfloat16, where sums are rounded by the batch, the share
    of draws that rounding moved.

    Args:
        a, b: the same samples from two batches, or two engines, in the same order.

    Raises:
        ValueError: they are samples of other prompts.
    """
    moved = drawn = 0
    for x, y in zip(a, b, strict=True):
        if x.prompt_ids != y.prompt_ids:
            raise ValueError(f"samples of prompts {x.prompt} and {y.prompt} are compared")
        pairs = zip(x.response_ids, y.response_ids, strict=False)
        agreed = next((i for i, (t, u) in enumerate(pairs) if t != u), None)
        moved += agreed is not None
        shorter = min(len(x.response_ids), len(y.response_ids))
        drawn += shorter if agreed is None else agreed + 1
    return moved / max(1, drawn)


def _search(cumulative: Tensor, mark: Tensor) -> Tensor:
    """[R, 1] first entry above `mark`; where rounding leaves none, the last that adds anything."""
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(cumulative, mark.contiguous(), right=True), last)


def _nucleus(weight: Tensor, top_p: float) -> Tensor:
    """Zeroes what lies outside the smallest set of tokens that holds `top_p` of the mass."""
    ordered, order = weight.sort(-1, descending=True)
    mass = ordered.double().cumsum(-1)
    outside = (mass - ordered) >= top_p * mass[:, -1:]
    return weight.scatter(1, order, ordered.masked_fill(outside, 0.0))
