"""Reward model, full fine-tuning: TRL's RewardTrainer against `palate reward`, in one run.

    python benchmarks/vs_trl_reward.py MODEL [--pairs 4] [--steps 4] [--dtype bfloat16]
                                       [--shapes 100/400 200/100 800/100]

Same model, pairs, starting head, dtype, batch, optimizer (AdamW, constant rate), no checkpointing
of activations. Every step sees all pairs, so that the order in which either side shuffles does not
matter and the losses can be compared step by step. Each side runs in a process of its own, one
after the other; the first step is not timed. MODEL is a local folder or hub name; the packaged
small model is prepared when MODEL is left out. A shape is tokens of the prompt / of each response.

In bfloat16 the losses part a little, because TRL's head is bfloat16 and ours float32, and because
the two sides' gradients round differently; `--dtype float32` shows that nothing else differs.

The last line is the ratio of pairs per second at the last shape.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vs_trl_dpo import make_pairs


def starting_model(path: str, dtype: str, folder: Path) -> None:
    """A classifier with a new head, from which both sides begin."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, dtype=getattr(torch, dtype)
    )
    torch.nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_trl(args: argparse.Namespace) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    clock = Clock()
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model,
            args=RewardConfig(
                output_dir=folder,
                per_device_train_batch_size=len(rows),
                max_steps=args.steps,
                learning_rate=args.learning_rate,
                lr_scheduler_type="constant",
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                max_length=None,
                logging_steps=1,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[clock],
        )
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    finish(clock.seconds, log)


def run_palate(args: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import load_file

    from palate.models.reward import RewardModel
    from palate.recipes.reward import RewardRecipe
    from palate.train import reward, reward_run

    rows = len(args.data.read_text().splitlines())
    build = reward_run.build_reward_model

    def with_the_same_head(recipe: RewardRecipe) -> RewardModel:
        model = build(recipe)
        score = load_file(Path(args.model) / "model.safetensors")["score.weight"]
        with torch.no_grad():
            model.head.layers[0].weight.copy_(score)
        return model

    reward_run.build_reward_model = with_the_same_head
    with tempfile.TemporaryDirectory() as folder:
        recipe = RewardRecipe.model_validate(
            {
                "output_dir": str(Path(folder) / "run"),
                "model": {"path": args.model, "dtype": args.dtype},
                "data": {
                    "train": [{"path": str(args.data)}],
                    "length": {"max_prompt_tokens": 10_000, "max_response_tokens": 10_000},
                },
                "train": {
                    "batch_size_pairs": rows,
                    "micro_batch_size_pairs": rows,
                    "eval_batch_size_pairs": rows,
                    "max_steps": args.steps,
                    "learning_rate": args.learning_rate,
                    "scheduler": "constant",
                    "optimizer_precision": "model",
                    "layout": args.layout,
                },
            }
        )
        result = reward(recipe)
        lines = (result.path / "metrics.jsonl").read_text().splitlines()
    log = [entry for entry in map(json.loads, lines) if entry["split"] == "train"]
    finish([rows / entry["pairs_per_second"] for entry in log], log)


def run_reference(args: argparse.Namespace) -> None:
    """The mean reward of the starting weights, computed in float32, one response at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
    rewards = []
    for row in map(json.loads, args.data.read_text().splitlines()):
        for side in ("chosen", "rejected"):
            text = row["prompt"] + row[side] + tokenizer.eos_token
            with torch.no_grad():
                found = model(**tokenizer(text, return_tensors="pt")).logits
            rewards.append(float(found[0, 0]))
    print("RESULT " + json.dumps({"mean": statistics.fmean(rewards)}))


def finish(seconds: list[float], log: list[dict[str, float]]) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "seconds": seconds,
        "losses": [float(entry["loss"]) for entry in log],
        "rewards": [float(entry["mean_reward"]) for entry in log],
        "peak": peak,
    }
    print("RESULT " + json.dumps(found))


def compare(args: argparse.Namespace, shape: str, folder: Path) -> float:
    """Runs both sides at one shape; prints a table; returns the ratio of pairs per second."""
    prompt, response = map(int, shape.split("/"))
    data = folder / "pairs.jsonl"
    make_pairs(args.model, args.pairs, prompt, response, data)
    start = folder / "start"
    if not start.exists():
        starting_model(args.model, args.dtype, start)
    results = {}
    for side in ("reference", "trl", "palate"):
        command = [
            sys.executable, __file__, str(start), "--side", side, "--data", str(data),
            "--steps", str(args.steps), "--learning-rate", str(args.learning_rate),
            "--dtype", args.dtype, "--layout", args.layout,
        ]  # fmt: skip
        out = subprocess.run(command, capture_output=True, text=True)
        found = [x for x in out.stdout.splitlines() if x.startswith("RESULT ")]
        if out.returncode or not found:
            raise SystemExit(f"{side} failed:\n{out.stdout[-2000:]}\n{out.stderr[-4000:]}")
        results[side] = json.loads(found[0][7:])
    print(
        f"\n{args.pairs} pairs a step, prompts of {prompt} and responses of {response} tokens, "
        f"{args.dtype}, full fine-tuning; median of {args.steps - 1} steps"
    )
    print(f"{'':>8} {'s/step':>8} {'pairs/s':>8} {'peak GB':>8}  losses")
    speed = {}
    exact = results.pop("reference")["mean"]
    for side, r in results.items():
        step = statistics.median(r["seconds"][1:])
        speed[side] = args.pairs / step
        losses = " ".join(f"{x:.5f}" for x in r["losses"])
        print(f"{side:>8} {step:>8.2f} {speed[side]:>8.3f} {r['peak'] / 1e9:>8.2f}  {losses}")
    one, other = results["trl"], results["palate"]
    first = [abs(own["rewards"][0] - exact) for own in (one, other)]
    gap = max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True))
    print(
        f"mean reward before the first update: {exact:.5f} in float32; TRL is off by "
        f"{first[0]:.5f}, palate by {first[1]:.5f}; losses differ by up to {gap:.5f}"
    )
    print(f"peak memory, TRL / palate: {one['peak'] / other['peak']:.2f}x")
    ratio = speed["palate"] / speed["trl"]
    print(f"{prompt}/{response}: {ratio:.2f}x pairs per second")
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--shapes", nargs="+", default=["100/400", "200/100", "800/100"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--layout", default="auto", help="of palate's side")
    parser.add_argument("--side", choices=["trl", "palate", "reference"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {"trl": run_trl, "palate": run_palate, "reference": run_reference}[args.side](args)
        return
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    ratio = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for shape in args.shapes:
            ratio = compare(args, shape, Path(folder))
    print(f"{ratio:.2f}x")


if __name__ == "__main__":
    main()
