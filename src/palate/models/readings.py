"""What the start-of-run checks read off a model: the same numbers from a batch in any layout, and
from the model's own forward pass over one sequence."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from palate.data.items import TokenIds, Tokens
from palate.data.layouts import SequenceBatch
from palate.kernels import token_stats
from palate.models.attention import torchs_own
from palate.models.compiled import own_layers
from palate.models.model import Ask, Model, Outputs
from palate.models.structure import backbone_of
from palate.models.vision import own_inputs


class Readings(Protocol):
    """Numbers of every response token, [N] or [N, d], sequence after sequence."""

    model: Model
    what: str
    """What they are called."""
    unit: str
    """Of the distance of two of them."""

    def of_batch(self, batch: SequenceBatch) -> Tensor: ...

    def of_sequence(self, prompt: Tokens, response: Tokens) -> Tensor:
        """From the model's own forward pass by torch's kernel: no mask, positions or padding."""
        ...

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """[N]"""
        ...


class LogProbs:
    """Of a policy."""

    what, unit = "log-probs", "nats"

    def __init__(self, model: Model) -> None:
        self.model = model

    def of_batch(self, batch: SequenceBatch) -> Tensor:
        outputs: Outputs = self.model(batch.to(self.model.device), Ask())
        return outputs.token_stats.logp

    def of_sequence(self, prompt: Tokens, response: Tokens) -> Tensor:
        states = _unpadded_states(self.model, prompt, response.ids[:-1])
        return token_stats(
            hidden=states[len(prompt) - 1 :],
            head=self.model.vocabulary_head(),
            targets=torch.tensor(response.ids, device=states.device),
            memory_mb=self.model.memory_mb,
        ).logp

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs()


class HiddenStates:
    """Of a reward model at the response tokens, which poolings read; rewards say less, as a new
    head has no scale yet."""

    what, unit = "hidden states", "of their length"

    def __init__(self, model: Model) -> None:
        self.model = model

    def of_batch(self, batch: SequenceBatch) -> Tensor:
        batch = batch.to(self.model.device)
        assert batch.target_positions is not None
        states: Tensor = self.model.backbone(batch)
        return states[batch.target_positions].float()

    def of_sequence(self, prompt: Tokens, response: Tokens) -> Tensor:
        states = _unpadded_states(self.model, prompt, response.ids)
        return states[len(prompt) :].float()

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        distance: Tensor = (a - b).norm(dim=1) / a.norm(dim=1)
        return distance


def readings_of(model: Model) -> Readings:
    return HiddenStates(model) if model.is_reward_model else LogProbs(model)


def _unpadded_states(model: Model, prompt: Tokens, response: TokenIds) -> Tensor:
    """[T, d] states of a prompt, which may have images, and of what follows it."""
    ids = (*prompt.ids, *response)
    backbone, vision = backbone_of(model.base), model.backbone.vision
    inputs = {"input_ids": torch.tensor([ids])}
    if prompt.images:
        assert vision is not None and model.pictures is not None
        pixels = [model.pictures.pixels(image.digest) for image in prompt.images]
        inputs = own_inputs(backbone, vision, ids, len(prompt), pixels)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    with torchs_own(model.base), own_layers(model.base):
        output = backbone(**inputs, use_cache=False)
    states: Tensor = output.last_hidden_state[0]
    return states
