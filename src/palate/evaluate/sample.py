"""Sampling from a policy, by transformers' `generate` with our own draw.

The draw is the inverse of the cumulative distribution at one uniform number a token. That number
depends on the seed, the prompt's tokens, which sample of the prompt it is, and the position, and on
nothing else: not on torch's global generator, not on the batch. Two things follow. The same call
gives the same samples; in another batch a sample changes only where rounding moves a boundary of
the distribution past its number (never seen in float32, some per cent of samples in bfloat16, whose
sums depend on the batch's shape). And two checkpoints are sampled with common random numbers, which
narrows the interval of their difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from palate.data.items import TokenIds, Tokens
from palate.data.layouts import images_of, on_device
from palate.errors import ModelError
from palate.models.compiled import use_packed
from palate.models.model import Model, evaluating
from palate.models.stop_tokens import stop_tokens
from palate.models.structure import backbone_of
from palate.models.vision import row_types, seen

_BLOCK = 512
"""Tokens of one block of the two-level search through the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One response that a policy wrote.

    Attributes:
        prompt: index of the prompt in the call. index: which sample of that prompt, from 0.
        response_ids: token ids; a stop token is the last one where one was drawn.
        finished: a stop token of model or tokenizer was drawn; otherwise `max_new_tokens` cut it.
        text: decoded without special tokens.
    """

    prompt: int
    index: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    finished: bool
    text: str


def sample(
    policy: Model,
    tokenizer: Any,
    prompts: Sequence[Tokens | TokenIds],
    *,
    samples_per_prompt: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    on_batch: Callable[[list[Sample]], None] | None = None,
) -> list[Sample]:
    """Draws responses; the model's own generation settings (top-k and the like) are not used.

    Tokens that stand for images and videos are never drawn.

    Args:
        prompts: as the encoder makes them; of a model that sees with their images.
        top_p: keep the smallest set of tokens whose probability reaches this.
        on_batch: called with the samples of every finished batch, in order of prompt length.

    Returns:
        Samples by prompt, then by index.
    """
    asked = [p if isinstance(p, Tokens) else Tokens(p) for p in prompts]
    tasks = [(i, k) for i in range(len(prompts)) for k in range(samples_per_prompt)]
    # Alike lengths together: less padding. The longest first: memory peaks at once.
    tasks.sort(key=lambda task: -len(prompts[task[0]]))
    ends = stop_tokens(policy.base) | {int(tokenizer.eos_token_id)}
    samples: list[Sample] = []
    use_packed(policy.base)
    for start in range(0, len(tasks), batch_size):
        chunk = tasks[start : start + batch_size]
        uniform = np.stack([_uniform(seed, asked[i], k, max_new_tokens) for i, k in chunk])
        responses = _generate(
            policy,
            [asked[i] for i, _ in chunk],
            uniform=torch.from_numpy(uniform).to(policy.device),
            ends=ends,
            pad=tokenizer.pad_token_id,
            temperature=temperature,
            top_p=top_p,
        )
        batch = []
        for (i, k), response in zip(chunk, responses, strict=True):
            finished = response[-1] in ends
            batch.append(
                Sample(
                    prompt=i,
                    index=k,
                    prompt_ids=asked[i].ids,
                    response_ids=response,
                    finished=finished,
                    text=tokenizer.decode(
                        response[:-1] if finished else response, skip_special_tokens=True
                    ),
                )
            )
        samples += batch
        if on_batch is not None:
            on_batch(batch)
    return sorted(samples, key=lambda s: (s.prompt, s.index))


def _uniform(seed: int, prompt: Tokens, index: int, n: int) -> np.ndarray:
    """[n] numbers in [0, 1) of one sample."""
    key = hashlib.sha256(np.asarray([seed, index, *prompt.ids], dtype="<i8").tobytes())
    for image in prompt.images:
        key.update(image.digest.encode())
    number = int.from_bytes(key.digest()[:16], "little")
    return np.random.Generator(np.random.PCG64(number)).random(n)


class _Draw(LogitsProcessor):
    """Draws the next token and lifts its score above all others, so that greedy search takes it."""

    def __init__(
        self, uniform: Tensor, temperature: float, top_p: float, never: Sequence[int]
    ) -> None:
        self.uniform = uniform
        self.never = list(never)
        self.temperature = temperature
        self.top_p = top_p
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.temperature != 1.0:
            scores = scores / self.temperature
        if self.never:
            scores = scores.index_fill(
                1, torch.tensor(self.never, device=scores.device), -torch.inf
            )
        token = draw(scores, self.uniform[:, self.step], top_p=self.top_p)
        self.step += 1
        return scores.scatter(1, token[:, None], float("inf"))


def draw(logits: Tensor, uniform: Tensor, *, top_p: float = 1.0) -> Tensor:
    """The token at which the cumulative distribution passes `uniform`, in order of token id.

    Args:
        logits: [R, V] float32. uniform: [R] float64 in [0, 1).

    Returns:
        [R] int64 token ids, never one of probability 0.
    """
    rows, vocabulary = logits.shape
    weight = (logits - logits.amax(-1, keepdim=True)).exp_()
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
    token = _search(inner.cumsum(-1), mark - before)
    return (block * _BLOCK + token)[:, 0]


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


@torch.no_grad()
def _generate(
    policy: Model,
    prompts: Sequence[Tokens],
    *,
    uniform: Tensor,
    ends: frozenset[int],
    pad: int,
    temperature: float,
    top_p: float,
) -> list[tuple[int, ...]]:
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt.ids)
        mask[row, width - len(prompt) :] = 1
    n = uniform.shape[1]
    # Read again, what stands for an image would ask for one.
    vision = policy.backbone.vision
    never = [] if vision is None else [token for token in vision.seen if token >= 0]
    with _settings(policy, GenerationConfig()), evaluating(policy), _contiguous_head(policy):
        model: Any = policy.base
        out = model.generate(
            input_ids=ids.to(policy.device),
            attention_mask=mask.to(policy.device),
            **_images(policy, prompts, ids),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=n,
                eos_token_id=sorted(ends),
                pad_token_id=pad,
                use_cache=True,
            ),
            logits_processor=LogitsProcessorList([_Draw(uniform, temperature, top_p, never)]),
        )
    responses = []
    for row in out[:, width:].tolist():
        stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        responses.append(tuple(row[:stop]))
    return responses


def _images(policy: Model, prompts: Sequence[Tokens], ids: Tensor) -> dict[str, Any]:
    """What `generate` takes of prompts with images: features of each image, run once, and what
    each token is of."""
    images = images_of(prompts, policy.backbone.vision)
    if images is None:
        return {}
    if policy.pictures is None:
        raise ModelError(f"{type(policy.base).__name__}: prompts with images, and no processor")
    vision = policy.backbone.vision
    assert vision is not None
    if any(vision.video in prompt.ids for prompt in prompts):
        raise ModelError(
            f"{type(policy.base).__name__}: no samples are drawn of prompts with videos: give "
            "their frames as images"
        )
    backbone = backbone_of(policy.base)
    filled = on_device(policy.pictures.filled(images), policy.device)
    inputs = {"mm_encoder_outputs": {"image": seen(backbone, filled)}}
    grids = [image.grid for prompt in prompts for image in prompt.images]
    types = row_types(backbone, vision, ids, torch.zeros_like(ids), grids)
    return inputs | {name: value.to(policy.device) for name, value in types.items()}


@contextmanager
def _settings(policy: Model, settings: GenerationConfig) -> Iterator[None]:
    # `generate` fills what a call leaves open from the model's own file: top-k 50, penalties ...
    model: Any = policy.base
    settings_before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = settings_before


@contextmanager
def _contiguous_head(policy: Model) -> Iterator[None]:
    # `generate` hands the head a slice of the hidden states. For a frozen head, torch multiplies a
    # slice by one copy of the whole head a row: 20 GB at 64 rows of a 262k vocabulary, and minutes.
    def contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].contiguous(), *inputs[1:])

    hook = policy.backbone.vocabulary_module().register_forward_pre_hook(contiguous)
    try:
        yield
    finally:
        hook.remove()
