"""Does a way to decode give a model's own states? Tried on a few tokens, against its plain pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from palate.data.items import Tokens
from palate.models.generation.next_token import last_logits
from palate.models.generation.rows import left_padded
from palate.models.model import Model
from palate.models.structure import backbone_of

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Accepted distance of states as a share of their length: rounding is well below, a wrong mask,
position or norm far above."""
_WINDOW = 600
"""A sliding window up to this is outrun by the longer prompt."""
_NEW = 3


class Decoder(Protocol):
    """What writes rows on: `GeneralDecoder`, `CompiledDecoder`."""

    joins: bool

    def start(self, prompts: Sequence[Tokens], counts: Sequence[int]) -> Tensor: ...

    def step(self, tokens: Sequence[int]) -> Tensor: ...

    def keep(self, rows: Sequence[int]) -> None: ...

    def drop(self) -> None: ...


def trial_lengths(model: Model) -> tuple[int, int]:
    """Of the two prompts that are tried; the longer one goes past a sliding window."""
    windows = [w for w in model.backbone.windows.values() if w is not None and w <= _WINDOW]
    return 5, max([9, *(window + 2 for window in windows)])


@torch.no_grad()
def head_agrees(model: Model) -> bool:
    """Whether the vocabulary head, on the last state, gives the model's own logits."""
    whole: Any = model.base
    row = torch.tensor([[1, 2, 3]], device=model.device)
    states = backbone_of(model.base)(input_ids=row, use_cache=False).last_hidden_state[:, -1]
    logits = last_logits(states.contiguous(), model.vocabulary_head())
    right = whole(input_ids=row, use_cache=False).logits[:, -1]
    return _near(logits.to(model.dtype), list(right))


@torch.no_grad()
def agrees(decoder: Decoder, model: Model, lengths: tuple[int, int] | None = None) -> bool:
    """Whether two prompts, with rows that leave, give the model's own states.

    The model is in evaluation mode.

    Args:
        lengths: of the prompts; default: two different ones.
    """
    generator = torch.Generator().manual_seed(0)
    vision = model.backbone.vision
    seen = () if vision is None else vision.seen
    size = min(model.vocabulary, 1000)

    def drawn(n: int) -> list[int]:
        ids = torch.randint(size, (n,), generator=generator).tolist()
        return [1 if token in seen else token for token in ids]

    prompts = [drawn(n) for n in lengths or trial_lengths(model)]
    rows = [(prompt, drawn(_NEW)) for prompt in prompts for _ in range(2)]
    right = [_states(model, prompt, new) for prompt, new in rows]
    right = [states[len(prompt) - 1 :] for (prompt, _), states in zip(rows, right, strict=True)]
    try:
        states = decoder.start([Tokens(tuple(prompt)) for prompt in prompts], [2, 2])
        near = _near(states, [right[0][0], right[2][0]])
        alive = [0, 1, 2, 3]
        for k in range(_NEW):
            if k == 1:
                alive = [0, 1, 3]
                decoder.keep(alive)
            states = decoder.step([rows[i][1][k] for i in alive])
            near = near and _near(states, [right[i][k + 1] for i in alive])
    finally:
        decoder.drop()
    return near


def _states(model: Model, prompt: list[int], new: list[int]) -> Tensor:
    """[T, d] last hidden states of a sequence by itself."""
    row: dict[str, Any] = {"input_ids": torch.tensor([prompt + new], device=model.device)}
    vision = model.backbone.vision
    if vision is not None and vision.prompts:
        # What is of the prompt, which sees all of itself, must be told.
        inputs, _ = left_padded([(Tokens(tuple(prompt)), tuple(new))], 0, vision)
        row = {name: value.to(model.device) for name, value in inputs.items()}
    states: Tensor = backbone_of(model.base)(**row, use_cache=False).last_hidden_state
    return states[0]


def _near(given: Tensor, right: list[Tensor]) -> bool:
    a, b = given.double(), torch.stack(right).double()
    off = (a - b).norm(dim=-1) / b.norm(dim=-1)
    return bool((off < TOLERANCE[given.dtype]).all())
