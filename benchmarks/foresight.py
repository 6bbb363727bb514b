"""What `palate doctor` predicts of a step against what the run then measures.

    python benchmarks/foresight.py [MODEL ...] [--rated FILE] [--cases ...] [--turns 3]
                                   [--processor-time]

For each model and case, by turns and each in a process of its own: the prediction, and a run of a
few steps. A line says what both come to, predicted over measured, for seconds and peak memory.
Without MODEL the packaged Gemma 3 270M; without FILE (rated responses, as in docs/formats.md) the
cases on real rows are left out. The prediction is made of steps by the clock, so that on a machine
with other work the ratio of seconds says as much of that work; `--processor-time` has both sides
measure the time that the processor gave them instead. Memory does not depend on it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from processor import processor
from sides import report, run_side
from vs_trl_dpo import make_pairs

LORA = {"r": 16, "alpha": 32}
CASES: dict[str, dict[str, Any]] = {
    "dpo": {"loss": {"type": "dpo"}},
    "dpo, LoRA": {"loss": {"type": "dpo"}, "lora": LORA},
    "dpo, LoRA, cached": {"loss": {"type": "dpo"}, "lora": LORA, "reference": {"kind": "cache"}},
    "dpo, 4 micro-batches": {"loss": {"type": "dpo"}, "pairs": 4, "micro": 1},
    "dpo, checkpointing": {"loss": {"type": "dpo"}, "train": {"gradient_checkpointing": True}},
    "dpo, plain layout": {"loss": {"type": "dpo"}, "train": {"layout": "plain"}},
    "tdpo2": {"loss": {"type": "tdpo2"}},
    "sft": {"verb": "sft"},
    "reward": {"verb": "reward"},
    "dpo, real rows": {"loss": {"type": "dpo"}, "real": True, "lora": LORA},
    "dpo, real rows, budget": {
        "loss": {"type": "dpo"},
        "real": True,
        "lora": LORA,
        "train": {"micro_batch_tokens": 1500},
    },
    "tdpo2, real rows": {"loss": {"type": "tdpo2"}, "real": True},
}
STEPS = {True: 10, False: 4}
"""Of a run; on real rows no two are alike."""


def document(case: dict[str, Any], model: str, data: Path, folder: Path) -> dict[str, Any]:
    """The recipe of a case, in plain values."""
    real, verb = case.get("real", False), case.get("verb", "tune")
    pairs = case.get("pairs", 4 if real else 2)
    train = {
        "batch_size_pairs": pairs,
        "max_steps": STEPS[real],
        **(
            {}
            if "micro_batch_tokens" in case.get("train", {})
            else {"micro_batch_size_pairs": case.get("micro", 2)}
        ),
        **case.get("train", {}),
    }
    recipe: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"path": model, "lora": case.get("lora"), "chat_template": "plain"},
        "data": {"train": [{"path": str(data)}]},
        "train": train,
    }
    if real:
        recipe["data"]["train"][0]["limit"] = 400
        recipe["data"]["pairing"] = {}
    if verb == "tune":
        recipe |= {"loss": case["loss"], "reference": case.get("reference")}
    return recipe


def recipe_of(case: str, values: dict[str, Any]) -> Any:
    from palate.recipes import RewardRecipe, SftRecipe, TuneRecipe

    cls = {"sft": SftRecipe, "reward": RewardRecipe}.get(CASES[case].get("verb", ""), TuneRecipe)
    return cls.model_validate(values)


def run_one(args: argparse.Namespace) -> None:
    """One side, in this process."""
    import palate.train.foresight
    import palate.train.trial
    from palate import sft, train_reward, tune
    from palate.store.records import Status, read_record

    if args.processor_time:
        palate.train.trial._now = time.process_time
        clock = argparse.Namespace(monotonic=time.process_time)
        palate.train.foresight.time = clock
    values = json.loads(args.recipe)
    recipe = recipe_of(args.case, values)
    if args.side == "predict":
        cost: Any = palate.train.trial.measure(recipe)
    else:
        verbs = {"sft": sft, "reward": train_reward}
        run = verbs.get(CASES[args.case].get("verb", ""), tune)(recipe, quiet=True).path
        cost = read_record(run / "status.json", Status).step_cost
    report(seconds=cost.seconds, memory=cost.memory_bytes)


def compare(args: argparse.Namespace, model: str, case: str, data: Path, folder: Path) -> None:
    """Both sides of one case by turns; prints its line."""
    seconds: dict[str, list[float]] = {"predict": [], "run": []}
    memory: dict[str, list[float]] = {"predict": [], "run": []}
    for turn in range(args.turns):
        values = document(CASES[case], model, data, folder / f"{turn}")
        for side in seconds:
            flags = ["--processor-time"] if args.processor_time else []
            result = run_side(
                __file__, side, "--case", case, "--recipe", json.dumps(values), *flags
            )
            seconds[side].append(result["seconds"])
            memory[side].append(result["memory"])
    ratios = [a / b for a, b in zip(seconds["predict"], seconds["run"], strict=True)]
    s, m = ({side: statistics.median(v) for side, v in of.items()} for of in (seconds, memory))
    print(
        f"{case:>24}: seconds {s['predict']:6.2f} / {s['run']:6.2f} = "
        f"{s['predict'] / s['run']:.2f} [{min(ratios):.2f}, {max(ratios):.2f}], "
        f"GB {m['predict'] / 1e9:5.2f} / {m['run'] / 1e9:5.2f} = {m['predict'] / m['run']:.2f}, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--rated", type=Path, help="file of rated responses")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--shape", default="200/100", help="tokens of prompts / responses")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--side", choices=["predict", "run"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run_one(args)
        return
    if not args.models:
        from palate.demo.model import packaged_model

        args.models = [str(packaged_model(print).path)]
    print(processor())
    kind = "processor time" if args.processor_time else "time by the clock"
    for model in args.models:
        print(f"{Path(model).name}, {args.shape}: predicted / measured, {kind}")
        with tempfile.TemporaryDirectory() as folder:
            pairs = Path(folder) / "pairs.jsonl"
            make_pairs(model, 8, *map(int, args.shape.split("/")), pairs)
            for number, case in enumerate(args.cases):
                real = CASES[case].get("real", False)
                if not real or args.rated is not None:
                    data = args.rated if real else pairs
                    compare(args, model, case, data, Path(folder) / str(number))


if __name__ == "__main__":
    main()
