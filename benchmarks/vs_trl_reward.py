"""Reward model, full fine-tuning: TRL's RewardTrainer against `palate reward`, in one run.

    python benchmarks/vs_trl_reward.py MODEL [--pairs 4] [--steps 3] [--rounds 2]
                                       [--dtype bfloat16] [--shapes 100/400 200/100 800/100]

Same model, pairs, starting head, dtype, batch, optimizer (AdamW, constant rate), no checkpointing
of activations. Every step sees all pairs, so that the order in which either side shuffles does not
matter and the losses can be compared step by step. Each side runs in a process of its own, by
turns, `--rounds` times; the first step of each is not timed. MODEL is a local folder or hub name;
the packaged small model is prepared when MODEL is left out. A shape is tokens of the prompt / of
each response.

Scores are those of transformers on the same weights: equal in float32, and in bfloat16, where both
sides round, as far from float32 as transformers itself. Losses in bfloat16 part for that reason;
`--dtype float32` shows that nothing else differs.

The last line is the ratio of pairs per second at the last shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from sides import report, run_side
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
    report(seconds=clock.seconds, losses=[float(entry["loss"]) for entry in log])


def run_palate(args: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import load_file

    from palate.models.model import Model
    from palate.recipes.reward import RewardRecipe
    from palate.train import reward, reward_run

    rows = len(args.data.read_text().splitlines())
    build = reward_run.build_reward_model

    def with_the_same_head(recipe: RewardRecipe) -> Model:
        model = build(recipe)
        score = load_file(Path(args.model) / "model.safetensors")["score.weight"]
        with torch.no_grad():
            model.reward_head.head.layers[0].weight.copy_(score)
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
    seconds = [rows / entry["pairs_per_second"] for entry in log]
    report(seconds=seconds, losses=[entry["loss"] for entry in log])


def run_scores(args: argparse.Namespace) -> None:
    """Scores of the starting weights by transformers in float32, and how far others are off."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from palate.data.items import Item
    from palate.data.layouts import collate
    from palate.models.check import layout_check
    from palate.models.model import Ask
    from palate.models.reward_files import load_reward_model

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    items, texts = [], []
    for row in map(json.loads, args.data.read_text().splitlines()):
        prompt = tokenizer(row["prompt"])["input_ids"]
        own = [row["prompt"] + row[side] + tokenizer.eos_token for side in ("chosen", "rejected")]
        texts += own
        tails = [tuple(tokenizer(text)["input_ids"][len(prompt) :]) for text in own]
        items.append(Item.of(tuple(prompt), *tails))

    @torch.no_grad()
    def transformers_scores(dtype: str) -> torch.Tensor:
        model = AutoModelForSequenceClassification.from_pretrained(
            args.model, dtype=getattr(torch, dtype)
        ).eval()
        inputs = (tokenizer(text, return_tensors="pt") for text in texts)
        return torch.tensor([float(model(**own).logits[0, 0]) for own in inputs])

    @torch.no_grad()
    def palate_scores(dtype: str) -> torch.Tensor:
        model = load_reward_model(args.model, dtype=dtype)
        layout = args.layout
        if layout == "auto":
            layout = "shared" if layout_check(model).ok else "plain"
        batch = collate(items, layout=layout, pad_id=0, keep_last=True)
        return model(batch, Ask(heads=("reward",))).rewards

    exact = transformers_scores("float32")
    off = {
        "palate, float32": palate_scores("float32") - exact,
        f"transformers, {args.dtype}": transformers_scores(args.dtype) - exact,
        f"palate, {args.dtype}": palate_scores(args.dtype) - exact,
    }
    found = {name: float(values.square().mean().sqrt()) for name, values in off.items()}
    report(off=found, deviation=float(exact.std()))


def compare(args: argparse.Namespace, shape: str, folder: Path) -> float:
    """Runs both sides at one shape; prints a table; returns the ratio of pairs per second."""
    prompt, response = map(int, shape.split("/"))
    data = folder / "pairs.jsonl"
    make_pairs(args.model, args.pairs, prompt, response, data)
    start = folder / "start"
    if not start.exists():
        starting_model(args.model, args.dtype, start)

    def run(side: str) -> dict[str, Any]:
        return run_side(
            __file__, side, start, "--data", data, "--steps", args.steps,
            "--learning-rate", args.learning_rate, "--dtype", args.dtype, "--layout", args.layout,
        )  # fmt: skip

    scores = run("scores")
    # By turns: what else the machine does meanwhile falls on both sides.
    results: dict[str, dict[str, Any]] = {}
    for side in ("trl", "palate") * args.rounds:
        found = run(side)
        found["seconds"] = results.get(side, {"seconds": []})["seconds"] + found["seconds"][1:]
        results[side] = found
    timed = args.rounds * (args.steps - 1)
    print(
        f"\n{args.pairs} pairs a step, prompts of {prompt} and responses of {response} tokens, "
        f"{args.dtype}, full fine-tuning; median of {timed} steps"
    )
    print(f"{'':>8} {'s/step':>8} {'pairs/s':>8} {'peak GB':>8}  losses")
    speed = {}
    for side, r in results.items():
        step = statistics.median(r["seconds"])
        speed[side] = args.pairs / step
        losses = " ".join(f"{x:.5f}" for x in r["losses"])
        print(f"{side:>8} {step:>8.2f} {speed[side]:>8.3f} {r['peak'] / 1e9:>8.2f}  {losses}")
    one, other = results["trl"], results["palate"]
    gap = max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True))
    off = "; ".join(f"{name} {value:.2g}" for name, value in scores["off"].items())
    print(
        f"scores of the same weights, root mean square distance from transformers in float32: {off}"
        f" (deviation of the scores {scores['deviation']:.2g}); losses differ by up to {gap:.5f}"
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
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--layout", default="auto", help="of palate's side")
    parser.add_argument("--side", choices=["trl", "palate", "scores"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {"trl": run_trl, "palate": run_palate, "scores": run_scores}[args.side](args)
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
