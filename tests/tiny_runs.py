"""Small recipes over text files written on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from palate.recipes.schema import SftRecipe, TuneRecipe
from tiny_text import save_tiny

WORDS = (
    "red",
    "blue",
    "green",
    "small",
    "large",
    "old",
    "new",
    "fast",
    "slow",
    "cat",
    "dog",
    "fox",
)


def write_pairs(path: Path, n: int, *, seed: int = 0) -> Path:
    """Pairs that can be learnt: chosen responses are of other words than rejected ones."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        chosen = " ".join(rng.choices(WORDS[:6], k=rng.randint(1, 4)))
        rejected = " ".join(rng.choices(WORDS[6:], k=rng.randint(1, 4)))
        prompt = f"{i} {rng.choice(WORDS)}: "
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return write_rows(path, rows)


def write_unpaired(path: Path, n: int, *, seed: int = 0) -> Path:
    """Labelled single responses, two thirds of them desirable."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        good = i % 3 != 0
        words = WORDS[:6] if good else WORDS[6:]
        completion = " ".join(rng.choices(words, k=rng.randint(1, 4)))
        rows.append({"prompt": f"{i}: ", "completion": completion, "label": good})
    return write_rows(path, rows)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_recipe(
    folder: Path,
    *,
    out: str = "run",
    loss: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    n: int = 20,
    dtype: str = "float32",
    reference: dict[str, Any] | None = None,
    token_weights: dict[str, Any] | None = None,
    resume: bool = False,
    kind: str = "tune",
    **train: Any,
) -> Any:
    """A recipe over a tiny Llama and n pairs (kto: examples), made in `folder` on first use."""
    model, rows, held_out = folder / "tiny", folder / f"rows{n}.jsonl", folder / "held.jsonl"
    loss = loss or {"type": "dpo"}
    write = write_unpaired if loss["type"] == "kto" else write_pairs
    if not model.exists():
        save_tiny(model)
    if not rows.exists():
        write(rows, n)
        write(held_out, 7, seed=1)
    settings = {"batch_size_pairs": 4, "micro_batch_size_pairs": 4, "learning_rate": 1e-3}
    document: dict[str, Any] = {
        "output_dir": folder / out,
        "resume": resume,
        "model": {"path": str(model), "dtype": dtype, "lora": lora},
        "data": {"train": [{"path": str(rows)}], "eval": [{"path": str(held_out)}]},
        "train": settings | train,
    }
    if kind == "sft":
        return SftRecipe.model_validate(document)
    more = {"loss": loss, "reference": reference, "token_weights": token_weights}
    return TuneRecipe.model_validate(document | more)
