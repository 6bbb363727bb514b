"""Saved configurations under the names that transformers 4, and servers built on it, read.

transformers 5 writes the rotary frequencies as `rope_parameters` and the dtype as `dtype`. Readers
of version 4 know neither: they take a base of 10,000 and float32 instead, without a word, and other
scores come out. The older names are written beside the newer ones, which version 5 goes on reading.

Of tokenizers version 4 knows neither the class `TokenizersBackend` nor a list of
`extra_special_tokens`, and it begins texts with BOS where nothing says otherwise. Version 5 takes
the older names for its own, and a tokenizer.json's word for what texts begin and end with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from palate.store.files import read_json, write_json

CONFIG, TOKENIZER_CONFIG, TOKENIZER = "config.json", "tokenizer_config.json", "tokenizer.json"


def add_older_names(folder: Path) -> None:
    """Adds the older names to the config.json of a folder; without one, nothing."""
    path = folder / CONFIG
    if path.exists():
        write_json(path, _older(read_json(path)))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer that both versions read alike."""
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG
    if (folder / TOKENIZER).exists():
        write_json(path, _older_tokenizer(read_json(path), tokenizer))


def _older_tokenizer(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    renamed = dict(config)
    if renamed.get("tokenizer_class") == "TokenizersBackend":
        renamed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(renamed.get("extra_special_tokens"), list):
        renamed["additional_special_tokens"] = renamed.pop("extra_special_tokens")
    ids = list(tokenizer("x")["input_ids"])
    added = len(ids) - len(tokenizer("x", add_special_tokens=False)["input_ids"])
    begins = added > 0 and ids[0] == tokenizer.bos_token_id
    more = {
        "model_input_names": list(tokenizer.model_input_names),
        "add_bos_token": begins,
        "add_eos_token": added > begins and ids[-1] == tokenizer.eos_token_id,
    }
    return more | renamed


def _older(config: dict[str, Any]) -> dict[str, Any]:
    # Models of several parts have a configuration for each.
    renamed = {
        name: _older(value) if name.endswith("_config") and isinstance(value, dict) else value
        for name, value in config.items()
    }
    more: dict[str, Any] = {}
    if "dtype" in config:
        more["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:
        # As Gemma 3 has them: other frequencies in layers with a sliding window.
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            more["rope_local_base_freq"] = local["rope_theta"]
        rope = rope["full_attention"] or {}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            more[name] = rope[name]
    scaling = {key: rope[key] for key in rope if key not in more}
    if scaling.get("rope_type", "default") != "default":
        more["rope_scaling"] = scaling
    return renamed | {name: value for name, value in more.items() if name not in renamed}
