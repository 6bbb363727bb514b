"""Which way a model's responses are decoded: found by trying, once a model, and said once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from palate.errors import ModelError
from palate.models.compiled import use_packed
from palate.models.generation.check import Decoder, agrees, head_agrees, trial_lengths
from palate.models.generation.compiled import CompiledDecoder, Unread
from palate.models.generation.general import GeneralDecoder
from palate.models.model import Model
from palate.models.structure import backbone_of, sharing_obstacle


@dataclass(frozen=True)
class Way:
    """How a model is decoded.

    Attributes:
        compiled: by compiled layers; otherwise by its own forward pass.
        pads: prompts of several lengths may be run together.
        reason: why not by compiled layers, in a clause; empty where they are used.
    """

    compiled: bool
    pads: bool
    reason: str = ""


_LOG = logging.getLogger("palate")
_OWN_LAYERS = "responses are written by the model's own layers: %s"
_WAYS: WeakKeyDictionary[PreTrainedModel, Way] = WeakKeyDictionary()


def way_of(model: Model, pad: int) -> Way:
    """How a model, which is in evaluation mode, is decoded.

    Raises:
        ModelError: it cannot be.
    """
    way = _WAYS.get(model.base)
    if way is None:
        way = _WAYS[model.base] = _tried(model, pad)
        if way.compiled:
            _LOG.info("responses are written by compiled layers")
        else:
            _LOG.info(_OWN_LAYERS, way.reason)
            use_packed(model.base)
    return way


def decoder_of(model: Model, pad: int, way: Way, *, longest: int, room: int, rows: int) -> Decoder:
    """A decoder for a call.

    Args:
        longest: most tokens of a prompt. room: most new tokens. rows: most rows at once.
    """
    if way.compiled:
        try:
            return CompiledDecoder(model, pad, longest=longest, room=room, rows=rows)
        # What is true of the weights may change: adapters of another kind were switched on.
        except Unread as unread:
            _LOG.info(_OWN_LAYERS, unread)
    return GeneralDecoder(model, pad, pads=way.pads)


def _tried(model: Model, pad: int) -> Way:
    name = type(model.base).__name__
    if not head_agrees(model):
        raise ModelError(f"{name}: its vocabulary head is more than a matrix on the last states")
    try:
        longest = max(trial_lengths(model))
        decoder = CompiledDecoder(model, pad, longest=longest, room=16, rows=4)
        if agrees(decoder, model):
            return Way(True, True)
        reason = "tried, compiled ones gave other states"
    except Unread as unread:
        reason = str(unread)
    # Attention masks padding; of layers that run through a sequence some do not.
    if sharing_obstacle(backbone_of(model.base)) is None:
        return Way(False, True, reason)
    if agrees(GeneralDecoder(model, pad), model):
        return Way(False, True, reason)
    if not agrees(GeneralDecoder(model, pad, pads=False), model, (6, 6)):
        raise ModelError(f"{name}: token by token it gives other states than at once")
    return Way(False, False, reason)
