"""Decoding by a model's own forward pass, whatever its layers and what they keep of the past."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from palate.data.items import Tokens
from palate.models.generation.rows import features_of, left_padded, next_positions
from palate.models.model import Model
from palate.models.structure import backbone_of


class GeneralDecoder:
    """Rows that are written on together, each the continuation of a prompt.

    A prompt is run once, and what its layers keep of it is copied to its rows. Prompts of one batch
    are padded on the left. A model that keeps nothing runs its rows from the start at every token.

    Args:
        pad: a token for the padding, which is masked everywhere.
        pads: prompts of several lengths are run together; otherwise there is no mask.

    Attributes:
        joins: whether rows may join those that are being written.
    """

    joins = False

    def __init__(self, model: Model, pad: int, *, pads: bool = True) -> None:
        self.model = model
        self.pad = pad
        self.pads = pads
        self.backbone: Any = backbone_of(model.base)
        self.takes = inspect.signature(type(self.backbone).forward).parameters
        self.name = cache_argument(self.backbone)
        self.cache: Any = None
        self.inputs: dict[str, Any] = {}
        self.positions = torch.empty(0)

    def start(self, prompts: Sequence[Tokens], counts: Sequence[int]) -> Tensor:
        """[G, d] last hidden state of each prompt, for `counts` rows each, in this order."""
        vision = self.model.backbone.vision
        device = self.model.device
        inputs, _ = left_padded([(prompt, ()) for prompt in prompts], self.pad, vision)
        given: dict[str, Any] = {name: value.to(device) for name, value in inputs.items()}
        out = self._run(**given, **features_of(self.model, prompts))
        self.cache = getattr(out, self.name, None)
        self.inputs = given
        self.positions = torch.tensor(next_positions(prompts, vision), device=device)
        self.keep([i for i, count in enumerate(counts) for _ in range(count)])
        return _last(out)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """[R, d] last hidden states after one more token a row."""
        ids, mask, before = (
            self.inputs[name] for name in ("input_ids", "attention_mask", "position_ids")
        )
        new = torch.tensor(tokens, device=ids.device)[:, None]
        place = self.positions[:, None].expand(*before.shape[:-2], -1, 1)
        self.inputs = {
            "input_ids": torch.cat([ids, new], dim=1),
            "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
            "position_ids": torch.cat([before, place], dim=-1),
        }
        self.positions = self.positions + 1
        if self.cache is None:
            out = self._run(**self.inputs)
        else:
            # What the images and their blocks are is in the cache by now.
            last = {"input_ids": new, "position_ids": place, self.name: self.cache}
            out = self._run(**self.inputs | last)
            self.cache = getattr(out, self.name)
        return _last(out)

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows alone, in this order; one may be named more than once."""
        if not rows:
            self.drop()
        elif list(rows) != list(range(len(self.positions))):
            chosen = torch.tensor(rows, device=self.positions.device)
            if self.cache is not None:
                _choose(self.cache, chosen)
            self.inputs = {n: value.index_select(-2, chosen) for n, value in self.inputs.items()}
            self.positions = self.positions[chosen]

    def drop(self) -> None:
        """Forgets all rows."""
        self.cache, self.inputs, self.positions = None, {}, torch.empty(0)

    def _run(self, **inputs: Any) -> Any:
        if "position_ids" not in self.takes:
            del inputs["position_ids"]
        if not self.pads:
            del inputs["attention_mask"]
        return self.backbone(**inputs, use_cache=True)


def _last(out: Any) -> Tensor:
    states: Tensor = out.last_hidden_state
    return states[:, -1].contiguous()


def cache_argument(backbone: Any) -> str:
    """What a backbone calls its cache: releases of transformers call it either."""
    takes = inspect.signature(type(backbone).forward).parameters
    return "cache" if "cache" in takes else "past_key_values"


def _choose(cache: Any, rows: Tensor) -> None:
    """Makes these rows of a cache the whole of it."""
    # A family's own cache says how; transformers' layers of all kinds have the other in common.
    is_own = (
        "batch_select_indices" in vars(type(cache)) and type(cache).__module__ != Cache.__module__
    )
    choose = cache.batch_select_indices if is_own else cache.reorder_cache
    choose(rows)
