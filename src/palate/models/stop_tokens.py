"""The tokens at which a model stops writing: kept in generation_config.json, where servers read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from palate.store.files import read_json

FILE = "generation_config.json"


def stop_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Ids of the tokens that end a response, as the model's generation settings name them."""
    return _ids(getattr(model.generation_config, "eos_token_id", None))


def add_stop_tokens(model: PreTrainedModel, ids: Iterable[int]) -> None:
    """Makes tokens end a response besides those that do so far."""
    settings: Any = model.generation_config
    stops = sorted(stop_tokens(model) | set(ids))
    settings.eos_token_id = stops if len(stops) > 1 else stops[0]
    # Else transformers may make them again of config.json.
    settings._from_model_config = False


def save_stop_tokens(model: PreTrainedModel, folder: Path) -> None:
    """Writes the stop tokens beside adapters, which have no other generation settings."""
    stops = sorted(stop_tokens(model))
    if stops:
        GenerationConfig(eos_token_id=stops if len(stops) > 1 else stops[0]).save_pretrained(folder)


def read_stop_tokens(folder: Path) -> frozenset[int]:
    """The stop tokens of a saved model; none where its folder does not say."""
    file = folder / FILE
    return _ids(read_json(file).get("eos_token_id")) if file.exists() else frozenset()


def _ids(value: Any) -> frozenset[int]:
    listed = value if isinstance(value, (list, tuple)) else [value]
    return frozenset(int(i) for i in listed if i is not None)
