"""A saved configuration under the names that transformers 4, and servers built on it, read.

transformers 5 writes the rotary frequencies as `rope_parameters` and the dtype as `dtype`. Readers
of version 4 know neither: they take a base of 10,000 and float32 instead, without a word, and other
scores come out. The older names are written beside the newer ones, which version 5 goes on reading.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palate.io import read_json, write_json

CONFIG = "config.json"


def add_older_names(folder: Path) -> None:
    """Adds the older names to the config.json of a folder; without one, nothing."""
    path = folder / CONFIG
    if path.exists():
        write_json(path, _older(read_json(path)))


def _older(config: dict[str, Any]) -> dict[str, Any]:
    # Models of several parts have a configuration for each.
    found = {
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
    return found | {name: value for name, value in more.items() if name not in found}
