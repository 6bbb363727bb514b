"""What it brings, and costs, that a CPU's training keeps the memory it frees.

    python benchmarks/kept_memory.py [MODEL] [--verb reward|tune] [--steps 12] [--rounds 1]

`palate reward` or `palate tune` (DPO) on pairs whose lengths vary from step to step, which is what
could part kept memory into pieces of no use; once as shipped and once with the C library's own
ways, by turns, each in a process of its own. Fails unless both end with the same weights. The first
step of each is not timed. MODEL is a local folder or hub name; the packaged small model is prepared
when it is left out.

The last line is the ratio of tokens per second.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sides import report, run_side, training_log

WORDS = "the a good bad answer to this question is long short and of course true false"


def make_pairs(count: int, path: Path) -> None:
    """Prompts of 20 to 600 words, responses of 10 to 300."""
    rng = random.Random(0)
    words = WORDS.split()

    def text(least: int, most: int) -> str:
        return "".join(" " + rng.choice(words) for _ in range(rng.randint(least, most)))

    rows = [
        {"prompt": text(20, 600), "chosen": text(10, 300), "rejected": text(10, 300)}
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(args: argparse.Namespace) -> None:
    import palate
    from palate.recipes.reward import RewardRecipe
    from palate.recipes.schema import TuneRecipe
    from palate.store.digests import sha256_file
    from palate.train import training_run

    if args.side == "given back":
        training_run.kept_memory = nullcontext  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        recipe: dict[str, Any] = {
            "output_dir": str(Path(folder) / "run"),
            "model": {"path": args.model, "dtype": "bfloat16"},
            "data": {
                "train": [{"path": str(args.data)}],
                "length": {"max_prompt_tokens": 1_000, "max_response_tokens": 1_000},
            },
            "train": {
                "batch_size_pairs": 4,
                "micro_batch_size_pairs": 4,
                "max_steps": args.steps,
                "learning_rate": 1e-6,
            },
        }
        if args.verb == "reward":
            result = palate.train_reward(RewardRecipe.model_validate(recipe), quiet=True)
        else:
            recipe["loss"] = {"type": "dpo", "beta": 0.1}
            result = palate.tune(TuneRecipe.model_validate(recipe), quiet=True)
        log = training_log(result.path)[1:]
        files = sorted((result.path / "model").glob("*.safetensors"))
        weights = " ".join(map(sha256_file, files))
    # Steps differ in length: tokens of all of them over the seconds of all of them.
    seconds = [4 / entry["pairs_per_second"] for entry in log]
    tokens = [entry["tokens_per_second"] * s for entry, s in zip(log, seconds, strict=True)]
    report(tokens=sum(tokens), seconds=sum(seconds), weights=weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--verb", choices=["reward", "tune"], default="reward")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--side", choices=["kept", "given back"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        train(args)
        return
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    total: dict[str, dict[str, float]] = {}
    weights = set()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        make_pairs(4 * args.steps, data)
        for side in ("given back", "kept") * args.rounds:
            result = run_side(
                __file__, side, args.model, "--data", data, "--verb", args.verb,
                "--steps", args.steps,
            )  # fmt: skip
            weights.add(result["weights"])
            sums = total.setdefault(side, {"tokens": 0.0, "seconds": 0.0, "peak": 0.0})
            sums["tokens"] += result["tokens"]
            sums["seconds"] += result["seconds"]
            sums["peak"] = max(sums["peak"], result["peak"])
    print(f"palate {args.verb}, {args.steps} steps of 4 pairs of varying length, {args.rounds}x")
    print(f"{'':>10} {'tokens/s':>9} {'peak GB':>8}")
    for side, sums in total.items():
        print(f"{side:>10} {sums['tokens'] / sums['seconds']:>9.1f} {sums['peak'] / 1e9:>8.2f}")
    if len(weights) > 1:
        raise SystemExit("the sides end with different weights")
    print("the same weights, bit by bit")
    given_back, kept = total["given back"], total["kept"]
    print(f"peak memory, kept / given back: {kept['peak'] / given_back['peak']:.2f}x")
    speed = kept["tokens"] / kept["seconds"] * given_back["seconds"] / given_back["tokens"]
    print(f"{speed:.2f}x tokens per second")


if __name__ == "__main__":
    main()
