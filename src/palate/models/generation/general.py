"""Decoding by a model's own forward pass, whatever its layers and what they keep of the past."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from palate.data.items import Tokens
from palate.data.layouts import on_device
from palate.data.trees import TEXT, run_of
from palate.errors import ModelError
from palate.models.generation.rows import left_padded
from palate.models.model import Model
from palate.models.structure import backbone_of
from palate.models.vision import seen


class GeneralDecoder:
    """Rows that are written on together, each the continuation of a prompt.

    A prompt is run once, and what its layers keep of it is copied to its rows. Prompts of one batch
    are padded on the left.

    Args:
        pad: a token for the padding, which is masked everywhere.
    """

    joins = False
    """Whether rows may join those that are being written."""

    def __init__(self, model: Model, pad: int) -> None:
        self.model = model
        self.pad = pad
        self.backbone: Any = backbone_of(model.base)
        self.takes = inspect.signature(type(self.backbone).forward).parameters
        # Releases of transformers call it either.
        self.name = "cache" if "cache" in self.takes else "past_key_values"

    def start(self, prompts: Sequence[Tokens], counts: Sequence[int]) -> Tensor:
        """[G, d] last hidden state of each prompt, for `counts` rows each, in this order."""
        vision = self.model.backbone.vision
        inputs, images = left_padded([(prompt, ()) for prompt in prompts], self.pad, vision)
        device = self.model.device
        given: dict[str, Any] = {name: value.to(device) for name, value in inputs.items()}
        if images is not None:
            if self.model.pictures is None:
                name = type(self.model.base).__name__
                raise ModelError(f"{name}: prompts with images, and no processor")
            filled = on_device(self.model.pictures.filled(images), device)
            given["mm_encoder_outputs"] = {"image": seen(self.backbone, filled)}
        out = self._run(**given)
        self.cache = getattr(out, self.name, None)
        if self.cache is None:
            raise ModelError(f"{type(self.model.base).__name__} keeps nothing of what it has read")
        self.mask = given["attention_mask"]
        # Behind an image positions go on after the greatest of its rows and columns.
        following = [int(run_of(p, Tokens((0,)), 0, vision or TEXT).positions[0, -1]) for p in prompts]
        self.positions = torch.tensor(following, device=device)
        self.axes = given["position_ids"].shape[:-2]
        self.keep([i for i, count in enumerate(counts) for _ in range(count)])
        return out.last_hidden_state[:, -1].contiguous()

    def step(self, tokens: Sequence[int]) -> Tensor:
        """[R, d] last hidden states after one more token a row."""
        device = self.model.device
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        out = self._run(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            attention_mask=self.mask,
            # What the images and their blocks are is in the cache by now.
            position_ids=self.positions[:, None].expand(*self.axes, -1, 1),
            **{self.name: self.cache},
        )
        self.cache = getattr(out, self.name)
        self.positions = self.positions + 1
        return out.last_hidden_state[:, -1].contiguous()

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows alone, in this order; one may be named more than once."""
        if not rows:
            self.drop()
        elif list(rows) != list(range(len(self.mask))):
            chosen = torch.tensor(rows, device=self.mask.device)
            self.cache.reorder_cache(chosen)
            self.mask, self.positions = self.mask[chosen], self.positions[chosen]

    def drop(self) -> None:
        """Forgets all rows."""
        self.cache = self.mask = self.positions = None

    def _run(self, **inputs: Any) -> Any:
        if "position_ids" not in self.takes:
            del inputs["position_ids"]
        return self.backbone(**inputs, use_cache=True)
