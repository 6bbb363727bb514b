"""Tiny reward runs for tests: their recipe, log and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from palate.recipes.reward import RewardRecipe
from tiny_runs import write_pairs
from tiny_text import save_tiny


def recipe(folder: Path, *, out: str = "run", n: int = 20, **more: Any) -> RewardRecipe:
    """Over a tiny Gemma 3 and n pairs, made in `folder` on first use."""
    model, rows, held = folder / "tiny", folder / f"rows{n}.jsonl", folder / "held.jsonl"
    if not model.exists():
        save_tiny(model, "gemma3")
    if not rows.exists():
        write_pairs(rows, n)
        write_pairs(held, 7, seed=1)
    lora = more.pop("lora", None)
    data = more.pop("data", {"train": [{"path": str(rows)}], "eval": [{"path": str(held)}]})
    train = {"batch_size_pairs": 4, "micro_batch_size_pairs": 4, "learning_rate": 1e-3}
    document: dict[str, Any] = {
        "output_dir": folder / out,
        "model": {"path": str(model), "dtype": "float32", "lora": lora, "chat_template": "plain"},
        "data": data,
        "train": train | more.pop("train", {}),
    }
    return RewardRecipe.model_validate(document | more)


def log_of(run: Path, split: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = {"time", "pairs_per_second", "tokens_per_second", "seconds_left"}
    return [
        {k: v for k, v in line.items() if k not in times}
        for line in lines
        if line["split"] == split
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in (folder / "model").glob("*.safetensors"):
        found |= load_file(file)
    return found


def assert_close(a: Path, b: Path, *, atol: float = 2e-6) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=atol, msg=name)
