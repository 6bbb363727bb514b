"""Heads and regularisers of a reward model, compared over seeds on real pairs.

    python benchmarks/reward_heads.py TRAIN.jsonl TEST.jsonl [--model M] [--out DIR] [--lora]
                                      [--seeds 0 1 2 3 4] [--epochs 4] [--only NAME ...]

TRAIN and TEST hold pairs of text (`benchmarks/reward_real.py` writes such files); `group` in TEST
is equal for pairs of one prompt. One thing is varied at a time, from a linear head with nothing
beside the loss. A seed draws the head's start and the order of the data. Without `--lora` the
backbone is frozen and run once for all. The interval of a difference is of prompts and seeds drawn
anew, both at once, the same in both of its sides.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from real_pairs import read_rows

LINEAR = "linear"
VARIANTS: dict[str, dict[str, Any]] = {
    LINEAR: {},
    "linear, bias": {"head": {"bias": True}},
    "2 layers, none": {"head": {"layers": 2, "activation": "none"}},
    "2 layers, tanh": {"head": {"layers": 2, "activation": "tanh"}},
    "2 layers, SiLU": {"head": {"layers": 2}},
    "2 layers, SiLU, width 128": {"head": {"layers": 2, "width": 128}},
    "2 layers, SiLU, dropout 0.1": {"head": {"layers": 2, "dropout": 0.1}},
    "3 layers, SiLU": {"head": {"layers": 3}},
    "mean pooling": {"pooling": "mean"},
    "centring 0.01": {"regularise": {"centring": 0.01}},
    "magnitude 0.01": {"regularise": {"magnitude": 0.01}},
    "length-scaled": {"regularise": {"length_scaled": True}},
    "length penalty 1": {"regularise": {"length_penalty": 1.0}},
    "label smoothing 0.1": {"loss": {"type": "bradley_terry", "label_smoothing": 0.1}},
}


def run_one(args: argparse.Namespace, name: str, seed: int) -> None:
    from palate import RewardRecipe
    from palate.train.reward_run import RewardRun

    margins: dict[str, float] = {}

    class Kept(RewardRun):
        """A run that also tells the margin of each held-out pair."""

        def _evaluation(self, trainer: Any, start: Any) -> dict[str, Any] | None:
            for item in self._scored(trainer.job, trainer.job.eval):
                (margins[item["id"]],) = item["margins"]
            return super()._evaluation(trainer, start)

    folder = args.out / _slug(name, seed)
    recipe = {
        "output_dir": str(folder),
        "seed": seed,
        "resume": (folder / "recipe.yaml").exists(),
        "model": {"path": args.model, "lora": {"r": 16, "alpha": 32} if args.lora else None},
        "backbone": "trained" if args.lora else "frozen",
        "features_dir": None if args.lora else str(args.out / "features"),
        "data": {
            "train": [{"path": str(args.train)}],
            "eval": [{"path": str(args.test), "name": "held-out"}],
            "length": {"max_prompt_tokens": 1024, "max_response_tokens": 1024},
        },
        "train": {
            "batch_size_pairs": 8,
            "micro_batch_size_pairs": 8,
            "epochs": args.epochs,
            "learning_rate": 1e-4 if args.lora else args.learning_rate,
            "scheduler": "linear",
            "warmup_steps": 0,
            "log_every_steps": 1000,
        },
        **VARIANTS[name],
    }
    Kept(RewardRecipe.model_validate(recipe), quiet=True).execute()
    held_out = [margins[f"held-out:test:{k + 1}"] for k in range(len(read_rows(args.test)))]
    (args.out / f"{_slug(name, seed)}.json").write_text(json.dumps(held_out))
    # Each holds a copy of the backbone.
    shutil.rmtree(folder)


def report(args: argparse.Namespace) -> None:
    rows = read_rows(args.test)
    unique, member = np.unique([row["group"] for row in rows], return_inverse=True)
    rng = np.random.default_rng(0)
    longer = np.sign([len(row["chosen"]) - len(row["rejected"]) for row in rows])
    gap = np.asarray([len(row["chosen"]) - len(row["rejected"]) for row in rows], float)
    print(f"{len(rows)} held-out pairs of {len(unique)} prompts, {len(args.seeds)} seeds")
    print(f"longer response: {100 * ((longer > 0) + 0.5 * (longer == 0)).mean():.1f}")
    right: dict[str, np.ndarray] = {}
    for name in VARIANTS:
        files = [args.out / f"{_slug(name, seed)}.json" for seed in args.seeds]
        if not all(file.exists() for file in files):
            continue
        margin = np.asarray([json.loads(file.read_text()) for file in files])
        right[name] = (margin > 0) + 0.5 * (margin == 0)
        length = np.mean([np.corrcoef(m, gap)[0, 1] for m in margin])
        right[name + "|length"] = np.asarray([length])
    n, s = len(unique), len(args.seeds)
    prompts = np.stack(
        [np.bincount(rng.integers(0, n, n), minlength=n)[member] for _ in range(4000)]
    )
    seeds = np.stack([np.bincount(rng.integers(0, s, s), minlength=s) for _ in range(4000)])
    width = max(map(len, VARIANTS))
    print(f"{'':{width}} {'accuracy':>9} {'between seeds':>14} {'less linear':>24} {'length':>7}")
    for name in VARIANTS:
        if name not in right:
            continue
        correct = right[name]
        difference = correct - right[LINEAR]
        drawn = ((seeds @ difference) * prompts).sum(1) / (prompts.sum(1) * s)
        low, high = 100 * np.quantile(drawn, [0.025, 0.975])
        less = "" if name == LINEAR else f"{100 * difference.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
        accuracy, spread = 100 * correct.mean(), 100 * correct.mean(1).std(ddof=1)
        length = right[name + "|length"][0]
        print(f"{name:{width}} {accuracy:9.1f} {spread:14.1f} {less:>24} {length:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--model", help="folder or hub name; default: the packaged small model")
    parser.add_argument("--out", type=Path, default=Path("runs/reward-heads"))
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of a head alone")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    if args.one:
        return run_one(args, args.one[0], int(args.one[1]))
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        for seed in args.seeds:
            slug = _slug(name, seed)
            if (args.out / f"{slug}.json").exists():
                continue
            print(f"{name}, seed {seed}", flush=True)
            arguments = [*sys.argv[1:], "--model", args.model, "--one", name, str(seed)]
            with (args.out / f"{slug}.log").open("w") as file:
                command = [sys.executable, __file__, *arguments]
                if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
                    raise SystemExit(f"{name} failed: {file.name}")
    report(args)


def _slug(name: str, seed: int) -> str:
    return f"{name.replace(',', '').replace(' ', '-')}-{seed}"


if __name__ == "__main__":
    main()
