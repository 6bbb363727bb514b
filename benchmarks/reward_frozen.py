"""A head on cached states of many pairs: what a run takes besides the pass of the backbone.

    python benchmarks/reward_frozen.py [--pairs 300000] [--out DIR] [--words 10 50] [--model M]

Reads and tokenises synthetic pairs, finds their states and trains a head of two layers for one
epoch, twice: the first run writes the states, the second finds them. The states are drawn from each
response's ids and not computed, since the pass of a backbone takes what that backbone takes; their
width and dtype are the model's. Peak memory is of the process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palate.models.features import FeatureTable
from palate.recipes.reward import RewardRecipe
from palate.train import reward


def write_rows(path: Path, n: int, words: tuple[int, int]) -> None:
    rng = random.Random(0)
    known = [word for word in Path("docs/maths.md").read_text().split() if word.isalpha()]

    def text() -> str:
        return " ".join(rng.choices(known, k=rng.randint(*words)))

    with path.open("w") as file:
        for i in range(n):
            row = {"prompt": f"{text()} {i}: ", "chosen": text(), "rejected": text()}
            file.write(json.dumps(row) + "\n")


def drawn(self: FeatureTable, sequences: Any) -> torch.Tensor:
    """In place of the backbone's pass."""
    features = np.empty((len(sequences), self.model.hidden_size), dtype=np.float32)
    for i, sequence in enumerate(sequences):
        seed = hashlib.sha256(repr(sequence).encode()).digest()[:8]
        features[i] = np.random.default_rng(int.from_bytes(seed, "big")).standard_normal(
            self.model.hidden_size, dtype=np.float32
        )
    return torch.from_numpy(features).to(self.model.dtype)


def train_once(args: argparse.Namespace, rows: Path) -> None:
    run = args.out / "run"
    shutil.rmtree(run, ignore_errors=True)
    recipe = {
        "output_dir": str(run),
        "model": {"path": args.model},
        "backbone": "frozen",
        "features_dir": str(args.out / "features"),
        "head": {"layers": 2},
        "data": {"train": [{"path": str(rows)}]},
        "train": {
            "batch_size_pairs": args.batch,
            "micro_batch_size_pairs": args.batch,
            "learning_rate": 3e-4,
            "log_every_steps": 10,
        },
    }
    started = time.monotonic()
    reward(RewardRecipe.model_validate(recipe), quiet=True)
    whole = time.monotonic() - started
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (datetime.fromisoformat(log[k]["time"]) for k in (0, -1))
    # The first line is written after its steps.
    head = (last - first).total_seconds() * log[-1]["step"] / (log[-1]["step"] - log[0]["step"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{args.pairs} pairs: {whole:.0f} s, of which the head {head:.0f} s "
        f"({args.pairs / head:.0f} pairs/s); peak memory {peak:.1f} GB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=300_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--words", type=int, nargs=2, default=(10, 50), help="of a text, from, to")
    parser.add_argument("--model", help="folder or hub name; default: the packaged small model")
    parser.add_argument("--out", type=Path, default=Path("runs/reward-frozen"))
    args = parser.parse_args()
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = args.out / f"rows-{args.pairs}.jsonl"
    if not rows.exists():
        write_rows(rows, args.pairs, tuple(args.words))
    FeatureTable._live = drawn  # type: ignore[method-assign]
    for _ in range(2):
        train_once(args, rows)


if __name__ == "__main__":
    main()
